//! The engine as its users see it: by its handle, on its thread, and under the simulator.

mod models;
mod service;
mod simulator;
