//! Model files: sound ones are read and written faithfully, bad ones are refused.

mod bad_directory;
mod bad_gguf;
mod bad_model;
mod bad_safetensors;
mod bad_split;
mod child;
mod gguf_bytes;
mod mutation;
mod reading;
pub(crate) mod scratch;
mod verifying;
mod writing;
