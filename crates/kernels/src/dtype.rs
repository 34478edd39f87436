//! dtype: in the making.
