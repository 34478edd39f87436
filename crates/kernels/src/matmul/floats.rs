//! Products with float weights: 16 running sums along each row, several rows and tokens at once.

use std::marker::PhantomData;

use super::Unit;
use crate::dtype::ScaleLayout;
use crate::formats::FloatFormat;
use crate::isa::Isa;
use crate::lanes::{self, Kernel, LANES, Narrow};

/// Weight rows whose sums are in registers at once.
const ROWS: usize = 4;
/// Computes `unit`.
///
/// # Panics
/// If this machine cannot run `isa`.
pub(crate) fn run<F: FloatFormat>(isa: Isa, unit: &Unit<'_>) {
    lanes::run(isa, Product::<F> { unit, format: PhantomData });
}

struct Product<'a, F> {
    unit: &'a Unit<'a>,
    format: PhantomData<F>,
}

impl<F: FloatFormat> Kernel for Product<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<L: Narrow>(self) {
        let mut row = self.unit.rows.start;
        while row < self.unit.rows.end {
            row += if self.unit.rows.end - row >= ROWS {
                row_tokens::<L, F, ROWS>(self.unit, row)
            } else {
                row_tokens::<L, F, 1>(self.unit, row)
            };
        }
    }
}

/// `R` rows from `row` on, for the unit's tokens; returns `R`.
#[inline(always)]
fn row_tokens<L: Narrow, F: FloatFormat, const R: usize>(unit: &Unit<'_>, row: usize) -> usize {
    let mut token = unit.span.start;
    while token < unit.span.end {
        token += if L::REGISTERS >= 32 && unit.span.end - token >= 4 {
            tile::<L, F, R, 4>(unit, row, token)
        } else {
            tile::<L, F, R, 1>(unit, row, token)
        };
    }
    R
}

/// `R` rows from `row` on by `T` tokens from `token` on; returns `T`.
#[inline(always)]
fn tile<L: Narrow, F: FloatFormat, const R: usize, const T: usize>(
    unit: &Unit<'_>,
    row: usize,
    token: usize,
) -> usize {
    let weight = &unit.weight;
    let (cols, row_bytes) = (weight.cols(), weight.row_bytes());
    let w: [&[u8]; R] =
        std::array::from_fn(|r| &weight.bytes()[(row + r) * row_bytes..][..row_bytes]);
    let x: [&[f32]; T] = std::array::from_fn(|t| {
        &unit.input.floats(unit.tokens.at(token + t), unit.input_col)[..cols]
    });
    let mut sums = [[L::splat(0.0); T]; R];
    if F::SCALES == ScaleLayout::Inside {
        add_cols::<L, F, R, T>(&w, &x, &mut sums);
    } else {
        let tile_cols = weight.scale_cols().max(1);
        for (tile, first) in (0..cols).step_by(tile_cols).enumerate() {
            let end = (first + tile_cols).min(cols);
            let w = w.map(|w| &w[first * F::BYTES..end * F::BYTES]);
            let x = x.map(|x| &x[first..end]);
            let mut lanes = [[L::splat(0.0); T]; R];
            add_cols::<L, F, R, T>(&w, &x, &mut lanes);
            for r in 0..R {
                let scale = L::splat(weight.scale(row + r, tile));
                for t in 0..T {
                    sums[r][t] = scale.mul_add(lanes[r][t], sums[r][t]);
                }
            }
        }
    }
    for t in 0..T {
        unit.output(token + t, row..row + R, |out| {
            for r in 0..R {
                out[r] = weight.factor().apply(sums[r][t].sum());
            }
        });
    }
    T
}

/// Adds the products of `R` rows of weights with `T` rows of as many inputs to their lanes.
#[inline(always)]
fn add_cols<L: Narrow, F: FloatFormat, const R: usize, const T: usize>(
    w: &[&[u8]; R],
    x: &[&[f32]; T],
    sums: &mut [[L; T]; R],
) {
    let cols = x[0].len();
    let whole = cols / LANES * LANES;
    let mut col = 0;
    while col < whole {
        let x: [L; T] = std::array::from_fn(|t| {
            L::load(x[t][col..col + LANES].first_chunk().expect("16 inputs"))
        });
        for r in 0..R {
            let w: L = F::load16(&w[r][col * F::BYTES..(col + LANES) * F::BYTES]);
            for t in 0..T {
                sums[r][t] = w.mul_add(x[t], sums[r][t]);
            }
        }
        col += LANES;
    }
    if whole < cols {
        let mut tail = [[0f32; LANES]; T];
        for t in 0..T {
            tail[t][..cols - whole].copy_from_slice(&x[t][whole..]);
        }
        for r in 0..R {
            let mut bytes = [0u8; LANES * 4];
            let left = &w[r][whole * F::BYTES..];
            bytes[..left.len()].copy_from_slice(left);
            let w: L = F::load16(&bytes[..LANES * F::BYTES]);
            for t in 0..T {
                sums[r][t] = w.mul_add(L::load(&tail[t]), sums[r][t]);
            }
        }
    }
}
