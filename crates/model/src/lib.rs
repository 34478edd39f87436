#![forbid(unsafe_code)]
//! Files in, logits out.
