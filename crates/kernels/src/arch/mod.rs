//! Instruction sets: which exist here, and the functions compiled for each.
//!
//! Everything above is generic over [`crate::simd::Simd`] and forced inline; the functions below
//! are where those generics meet a `target_feature`.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::ops::Range;

use crate::activations::Fill;
use crate::attention::bfloats::TileTask;
use crate::formats::BlockFormat;
use crate::isa::Isa;
use crate::matmul::{self, Unit};
use crate::simd::Scalar;

/// Whether this machine can run `isa`.
pub(crate) fn is_available(isa: Isa) -> bool {
    #[cfg(target_arch = "x86_64")]
    return x86_64::is_available(isa);
    #[cfg(not(target_arch = "x86_64"))]
    return isa == Isa::Scalar;
}

/// Computes one unit of a product with quantised weights.
///
/// # Panics
/// If this machine cannot run `isa`.
pub(crate) fn run_blocks<F: BlockFormat>(isa: Isa, unit: &Unit<'_>) {
    assert!(is_available(isa), "this machine cannot run {isa}");
    #[cfg(target_arch = "x86_64")]
    x86_64::run_blocks::<F>(isa, unit);
    #[cfg(not(target_arch = "x86_64"))]
    scalar_blocks::<F>(unit);
}

/// Fills rows of activations with code compiled for `isa`.
///
/// # Panics
/// If this machine cannot run `isa`.
pub(crate) fn fill(isa: Isa, fill: &Fill<'_>, rows: Range<usize>) {
    assert!(is_available(isa), "this machine cannot run {isa}");
    #[cfg(target_arch = "x86_64")]
    x86_64::fill(isa, fill, rows);
    #[cfg(not(target_arch = "x86_64"))]
    fill.rows(rows);
}

/// Computes one task of attention by tiles.
///
/// # Panics
/// If `isa` has no tiles, or this machine cannot run it.
pub(crate) fn attend(isa: Isa, task: TileTask<'_>) {
    assert!(isa == Isa::Amx && is_available(isa), "this machine cannot run {isa}, or not by tiles");
    #[cfg(target_arch = "x86_64")]
    x86_64::attend(task);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = task;
}

/// What does a millisecond's worth of tile products of bfloats that need no memory, and says how
/// many operations they were. `None` if `isa` has none.
pub(crate) fn tile_turns(isa: Isa) -> Option<fn() -> f64> {
    #[cfg(target_arch = "x86_64")]
    return (isa == Isa::Amx && is_available(isa)).then_some(x86_64::tile_turns);
    #[cfg(not(target_arch = "x86_64"))]
    return None;
}

fn scalar_blocks<F: BlockFormat>(unit: &Unit<'_>) {
    matmul::run_blocks::<Scalar, F>(Scalar, unit);
}

/// Asks for the cache line at `address`, which need not be readable.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults and every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
