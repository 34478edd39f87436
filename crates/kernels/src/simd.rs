//! simd: in the making.
