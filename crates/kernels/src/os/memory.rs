//! Memory for weights and scratch.
