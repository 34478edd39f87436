//! Integration tests of the model crate: one binary, one module per subject.

mod files;
