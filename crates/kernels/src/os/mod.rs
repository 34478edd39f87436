//! What the engine asks of the operating system.

pub mod cpu;
pub mod memory;
