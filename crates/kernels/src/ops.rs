//! ops: in the making.
