#![forbid(unsafe_code)]
//! Files in, logits out.
//!
//! This crate knows containers, families and layers. It knows no requests and no text, and it
//! holds no state of any request: the caller brings batch, cache and workspace to each step.

pub mod batch;
pub mod error;
pub mod files;
pub mod parameters;
pub mod spec;
