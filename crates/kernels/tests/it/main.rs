//! Integration tests of the kernels, one binary so they link once.

mod formats;
mod matmul;
mod oracle;
