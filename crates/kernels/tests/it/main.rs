//! Integration tests of the kernels, one binary so they link once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod blocks;
mod encoders;
mod formats;
mod matmul;
mod oracle;
mod planes;
mod tiles;
