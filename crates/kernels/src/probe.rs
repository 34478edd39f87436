//! probe: in the making.
