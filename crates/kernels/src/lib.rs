//! Numbers in raw memory: the only crate with `unsafe`.
//!
//! Everything here works on slices and knows neither models nor tokens. One rule binds all of
//! it: **the same inputs give the same bits**, whatever the instruction set, the number of
//! threads, or how many rows are multiplied at once. [`matmul`] writes that arithmetic down. Only
//! who asks for [`activations::Precision::Mixed`] may get another one, where a machine has tiles.
//!
//! Weights are row-major `[rows, cols]`; a product is `y[t, r] = sum_k w[r, k] * x[t, k]`.

pub mod activations;
mod arch;
pub mod attention;
mod disjoint;
pub mod dtype;
pub mod encode;
mod formats;
pub mod isa;
mod lanes;
pub mod matmul;
pub mod ops;
pub mod os;
pub mod pool;
pub mod probe;
mod simd;
pub mod tally;
pub mod tensor;
