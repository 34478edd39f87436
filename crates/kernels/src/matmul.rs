//! matmul: in the making.
