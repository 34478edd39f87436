//! The experiments behind `docs/lab/2026-11-22-{native-blocks,one-order,generic-kernels}.md`:
//! Q4_K products of the crate beside kernels written by hand for AVX-512.
//!
//! `cargo run --release -p moeba-kernels --example bets -- [mib] [rounds]`
//!
//! - `crate`: this crate's kernel on the file's own blocks.
//! - `by hand`: one row after another, sums kept per column lane in whatever order suits: the
//!   usual way to multiply such blocks by one token. Free order, no transposition.
//! - `packed`: rows interleaved 16 at a time beforehand, so that no transposition is left.
//!
//! All run on one thread, interleaved, timed by the CPU seconds this process had, since neighbours
//! come and go. With a few MiB the weights stay in the cache and the numbers are pure arithmetic.

#![cfg_attr(target_arch = "x86_64", expect(clippy::print_stdout, reason = "a bench reports"))]

#[cfg(target_arch = "x86_64")]
#[path = "bets/x86_64.rs"]
mod experiment;

fn main() {
    #[cfg(target_arch = "x86_64")]
    experiment::main();
}
