//! Numbers in raw memory: the only crate with `unsafe`.
