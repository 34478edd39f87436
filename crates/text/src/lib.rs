#![forbid(unsafe_code)]
//! Strings to tokens and back.
