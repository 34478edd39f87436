//! tensor: in the making.
