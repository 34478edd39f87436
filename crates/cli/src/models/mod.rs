//! Models by name: the catalogue, the store on this machine, and the ways from one to the other.

pub(crate) mod catalogue;
mod download;
mod hub;
mod obtain;
pub(crate) mod store;
pub(crate) mod upcycle;
mod wheel;

pub(crate) use obtain::Library;
