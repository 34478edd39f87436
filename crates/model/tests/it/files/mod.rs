//! Model files: sound ones are read and written faithfully, bad ones are refused.

mod reading;
mod scratch;
mod writing;
