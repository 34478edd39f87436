//! attention: in the making.
