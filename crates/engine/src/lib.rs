#![forbid(unsafe_code)]
//! Tokens in, tokens out.
