//! Integration tests of the model crate: one binary, one module per subject.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod aliases;
mod allocations;
mod comparing;
mod converting;
mod cost;
mod damage;
mod experts;
mod families;
mod files;
mod imagined;
mod native;
mod observing;
mod oracle;
mod predicting;
mod profiling;
mod published;
mod published_moe;
mod published_sizes;
mod quantised;
mod range;
mod reference;
mod sameness;
