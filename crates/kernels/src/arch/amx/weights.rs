//! Panels of any quantised format as bfloats, laid out as tiles.
//!
//! `weight = d * sc * q - e * m` becomes `fma(1 + q / 256, 256 * scale, -(256 * scale + shift))`,
//! with `scale = d * sc` and `shift = e * m` of the sub-block: `q` goes into the fraction of a
//! float by a shift and a mask, cheaper than a conversion. The 24 bits of that float leave the
//! eight that a bfloat keeps untouched.
//!
//! Tile instructions and vectors run side by side, best when they take turns: a panel is therefore
//! converted a word at a time, between the tile products of the panels before it.

use std::arch::x86_64::*;

use super::{TILE_COLS, TILE_ROWS};
use crate::arch::avx512::Avx512;
use crate::formats::{Form, NIBBLE, PANEL_COLS, PER_ROW, Panel};

/// Tiles of a panel, one after the other along the columns: lane `i` of line `l` of tile `t` holds
/// columns `32 t + 2 l` and `32 t + 2 l + 1` of row `i`.
pub(super) type WeightTiles = [[__m512i; TILE_ROWS]; PANEL_COLS / TILE_COLS];

/// Sub-blocks in a panel, at most.
const SUBS: usize = 16;

/// A panel that waits to be converted.
pub(super) struct Pending {
    pub(super) panel: Panel<Avx512>,
    /// `256 * scale` of each sub-block.
    scales: [__m512; SUBS],
    /// `256 * scale + shift` of each sub-block.
    shifts: [__m512; SUBS],
}

impl Pending {
    pub(super) fn new(s: Avx512) -> Self {
        // SAFETY: zeros are numbers, and a value of the instruction set's type exists.
        let zero = unsafe { _mm512_setzero_ps() };
        Self { panel: Panel::new(s), scales: [zero; SUBS], shifts: [zero; SUBS] }
    }

    /// Makes scales and shifts of what was unpacked.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    pub(super) fn prepare<F: Form>(&mut self) {
        for sub in 0..PANEL_COLS / F::SUB_LEN {
            let (scale, shift) = scale_and_shift::<F>(&self.panel, sub);
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(256.0));
            (self.scales[sub], self.shifts[sub]) = (scale, _mm512_add_ps(scale, shift));
        }
    }

    /// What turns words of the sub-block that word `first` lies in into bfloats.
    #[inline(always)]
    pub(super) fn converter<F: Form>(&self, first: usize) -> Converter {
        let sub = first / (F::SUB_LEN / 4);
        Converter { scale: self.scales[sub], shift: self.shifts[sub] }
    }
}

/// How words of one sub-block become bfloats.
#[derive(Clone, Copy)]
pub(super) struct Converter {
    scale: __m512,
    shift: __m512,
}

impl Converter {
    /// Converts a word: four columns of every row, which are two lines of a tile.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    pub(super) fn convert(self, q: __m512i) -> [__m512i; 2] {
        let bytes = [
            _mm512_slli_epi32::<15>(q),
            _mm512_slli_epi32::<7>(q),
            _mm512_srli_epi32::<1>(q),
            _mm512_srli_epi32::<9>(q),
        ];
        let [a, b, c, d] = bytes.map(|shifted| {
            // (shifted & fraction) | one
            let one = _mm512_set1_epi32(0x3f80_0000);
            let fraction = _mm512_set1_epi32(0x007f_8000);
            let float = _mm512_ternarylogic_epi32::<0xf8>(one, shifted, fraction);
            _mm512_fmsub_ps(_mm512_castsi512_ps(float), self.scale, self.shift)
        });
        [pair(a, b), pair(c, d)]
    }
}

/// Two columns of every row, rounded: the first in the lower half of each lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline]
fn pair(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 512 bits of anything.
    let halves: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) };
    // Sixteen low ones are followed by sixteen high ones; now they take turns.
    let turns = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
        19, 3, 18, 2, 17, 1, 16, 0,
    );
    _mm512_permutexvar_epi16(turns, halves)
}

/// `d * sc` and `e * m` of sub-block `sub`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline]
fn scale_and_shift<F: Form>(panel: &Panel<Avx512>, sub: usize) -> (__m512, __m512) {
    let low =
        |word: __m512i| _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(word)));
    let offset = _mm512_set1_ps(F::OFFSET as f32);
    if F::INPUT_LEN < PANEL_COLS {
        let d = panel.d[sub];
        let shift = match F::OFFSET {
            // There `m` is negated.
            PER_ROW => _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(d, low(panel.m[sub % 8]))),
            _ if F::SYMMETRIC => _mm512_mul_ps(d, offset),
            _ => _mm512_mul_ps(panel.e[sub % 8], offset),
        };
        return (d, shift);
    }
    let sc = panel.sc[sub];
    let sc = if F::Q_MAX == NIBBLE { low(sc) } else { _mm512_cvtepi32_ps(sc) };
    let scale = _mm512_mul_ps(panel.d[0], sc);
    if F::SYMMETRIC {
        return (scale, _mm512_mul_ps(scale, offset));
    }
    let two = panel.m[sub / 2];
    let m = if sub.is_multiple_of(2) {
        low(two)
    } else {
        _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(two))
    };
    (scale, _mm512_mul_ps(panel.e[0], m))
}
