//! isa: in the making.
