//! x86-64: detection, and each kernel compiled for each instruction set.

use std::ops::Range;

use super::amx;
use super::avx2::Avx2;
use super::avx512::Avx512;
use crate::activations::Fill;
use crate::attention::bfloats::TileTask;
use crate::formats::BlockFormat;
use crate::isa::Isa;
use crate::matmul::{self, Unit};

/// Whether this processor, and the operating system that saves its registers, can run `isa`.
pub(super) fn is_available(isa: Isa) -> bool {
    match isa {
        Isa::Scalar => true,
        Isa::Avx2 => {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        }
        Isa::Avx512 => {
            is_available(Isa::Avx2)
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni")
        }
        Isa::Amx => is_available(Isa::Avx512) && amx::is_available(),
    }
}

/// Computes `unit` with code compiled for `isa`, which must be available.
pub(super) fn run_blocks<F: BlockFormat>(isa: Isa, unit: &Unit<'_>) {
    match isa {
        Isa::Scalar => super::scalar_blocks::<F>(unit),
        // SAFETY: the caller checked that the instruction set is available.
        Isa::Avx2 => unsafe { avx2_blocks::<F>(unit) },
        // SAFETY: as above.
        Isa::Amx if unit.input.by_tiles() => unsafe { amx::run::<F>(unit) },
        // SAFETY: as above; a machine with tiles has AVX-512.
        Isa::Avx512 | Isa::Amx => unsafe { avx512_blocks::<F>(unit) },
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn avx2_blocks<F: BlockFormat>(unit: &Unit<'_>) {
    // SAFETY: this function runs only where its own target features do.
    matmul::run_blocks::<_, F>(unsafe { Avx2::new() }, unit);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn avx512_blocks<F: BlockFormat>(unit: &Unit<'_>) {
    // SAFETY: this function runs only where its own target features do.
    matmul::run_blocks::<_, F>(unsafe { Avx512::new() }, unit);
}

/// Fills rows of activations with code compiled for `isa`, which must be available.
pub(super) fn fill(isa: Isa, fill: &Fill<'_>, rows: Range<usize>) {
    match isa {
        Isa::Scalar => fill.rows(rows),
        // SAFETY: the caller checked that the instruction set is available.
        Isa::Avx2 => unsafe { avx2_fill(fill, rows) },
        // SAFETY: as above.
        Isa::Avx512 | Isa::Amx => unsafe { avx512_fill(fill, rows) },
    }
}

#[target_feature(enable = "avx2")]
fn avx2_fill(fill: &Fill<'_>, rows: Range<usize>) {
    fill.rows(rows);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn avx512_fill(fill: &Fill<'_>, rows: Range<usize>) {
    fill.rows(rows);
}

/// See [`super::attend`], whose caller saw that there are tiles.
pub(super) fn attend(task: TileTask<'_>) {
    assert!(amx::is_available(), "this machine has no tiles");
    // SAFETY: it has them.
    unsafe { amx::attend(task) }
}

/// See [`super::tile_turns`], whose caller saw that there are tiles.
pub(super) fn tile_turns() -> f64 {
    /// About a millisecond at full speed.
    const TURNS: usize = 50_000;
    assert!(amx::is_available(), "this machine has no tiles");
    // SAFETY: it has them.
    unsafe { amx::turns(TURNS) }
}
