//! Scores to weights, a query at a time.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;

use crate::arch::amx::bfloats;
use crate::attention::bfloats::{DEPTH, KEYS, PAIR, ROWS, Scores, State, Sums, Weights};

/// Vectors of a query's scores.
const VECTORS: usize = KEYS / ROWS;
/// How far the running maximum may lag behind, as a power of two.
const LAG: f32 = 8.0;

/// The queries of a pair of tiles on their way from scores to weights.
pub(super) struct Weigh<'a> {
    pub(super) scores: &'a Scores,
    pub(super) weights: &'a mut Weights,
    /// The pair's results, `[2, value tiles]` and more.
    pub(super) o: &'a mut [Sums],
    pub(super) value_tiles: usize,
    /// One for each query, up to 32.
    pub(super) states: &'a mut [State],
    /// Position of the block's first key.
    pub(super) start: usize,
    pub(super) softcap: Option<f32>,
    /// NaN for keys whose values are no finite numbers, if there are any.
    pub(super) broken: Option<&'a [f32; KEYS]>,
    /// Queries done.
    pub(super) done: usize,
    /// How many calls of [`Weigh::advance`] there will be.
    pub(super) steps: usize,
    /// How many there were.
    pub(super) step: usize,
}

impl Weigh<'_> {
    /// Does a share of the work.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    #[inline]
    pub(super) fn advance(&mut self) {
        self.step += 1;
        // All 32 after the last step, evenly before.
        while self.done < self.states.len() && self.done * self.steps < self.step * PAIR {
            self.row();
        }
    }

    /// Does what is left.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    pub(super) fn finish(&mut self) {
        while self.done < self.states.len() {
            self.row();
        }
    }

    /// The next query.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    #[inline]
    fn row(&mut self) {
        let (tile, row) = (self.done / ROWS, self.done % ROWS);
        let mut s = [_mm512_setzero_ps(); VECTORS];
        for (s, sums) in s.iter_mut().zip(&self.scores[tile]) {
            *s = load(&sums.0[row]);
        }
        self.adapt(&mut s);
        let pairs = |a, b| _mm512_max_ps(a, b);
        let (a, b) = (pairs(pairs(s[0], s[1]), pairs(s[2], s[3])), pairs(s[4], s[5]));
        let largest = pairs(a, pairs(b, pairs(s[6], s[7])));
        let state = &mut self.states[self.done];
        let limit = _mm512_set1_ps(state.m + LAG);
        if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(largest, limit) != 0 {
            let o = &mut self.o[tile * self.value_tiles..][..self.value_tiles];
            rescale(state, _mm512_reduce_max_ps(largest), o, row);
        }
        let m = _mm512_set1_ps(state.m);
        let mut l = load(&state.l);
        for (weights, s) in self.weights[tile].iter_mut().zip(s.as_chunks::<2>().0) {
            let [low, high] = s.map(|s| exp2(_mm512_sub_ps(s, m)));
            let p = bfloats(low, high);
            l = add_pairs(l, p);
            store_line(&mut weights.0[row], p);
        }
        store(&mut state.l, l);
        self.done += 1;
    }

    /// Caps scores, and replaces those of keys that are not seen, or are broken.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    #[inline]
    fn adapt(&self, s: &mut [__m512; VECTORS]) {
        if let Some(cap) = self.softcap {
            let cap = _mm512_set1_ps(cap * LOG2_E);
            let one = _mm512_set1_ps(1.0);
            for s in s.iter_mut() {
                // cap · tanh x; `s` is 2x · log2 e.
                let part = _mm512_div_ps(_mm512_set1_ps(2.0), _mm512_add_ps(exp2(*s), one));
                *s = _mm512_fnmadd_ps(cap, part, cap);
            }
        }
        if let Some(broken) = self.broken {
            for (s, broken) in s.iter_mut().zip(broken.as_chunks().0) {
                *s = _mm512_add_ps(*s, load(broken));
            }
        }
        let window = &self.states[self.done].window;
        let first = window.start.clamp(self.start, self.start + KEYS) - self.start;
        let end = window.end.clamp(self.start, self.start + KEYS) - self.start;
        if end - first == KEYS {
            return;
        }
        let below = |n: usize| if n == KEYS { u128::MAX } else { (1 << n) - 1 };
        let mut seen = below(end) & !below(first);
        for s in s {
            let unseen = _mm512_set1_ps(f32::NEG_INFINITY);
            *s = _mm512_mask_mov_ps(unseen, seen as u16, *s);
            seen >>= ROWS;
        }
    }
}

/// Moves a query's running maximum to `m`; row `row` of `o` is what it gathered.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
fn rescale(state: &mut State, m: f32, o: &mut [Sums], row: usize) {
    let c = exp2(_mm512_set1_ps(state.m - m));
    let rows = o.iter_mut().map(|sums| &mut sums.0[row]);
    for numbers in rows.chain([&mut state.l]) {
        store(numbers, _mm512_mul_ps(load(numbers), c));
    }
    state.m = m;
}

/// 2^x with a relative error below 3e-6; 0 for minus infinity.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
#[inline]
fn exp2(x: __m512) -> __m512 {
    // x minus the whole number below; the polynomial is the best of its degree there.
    let part = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
    let mut y = _mm512_set1_ps(0.013_534_168);
    for c in [0.052_011_46, 0.241_442_76, 0.693_003_83, 1.000_002_6] {
        y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(y, x)
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load(numbers: &[f32; ROWS]) -> __m512 {
    // SAFETY: the array is as large as the vector.
    unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store(numbers: &mut [f32; ROWS], x: __m512) {
    // SAFETY: the array is as large as the vector.
    unsafe { _mm512_storeu_ps(numbers.as_mut_ptr(), x) }
}

/// `sums` and neighbouring bfloats, added.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn add_pairs(sums: __m512, numbers: __m512i) -> __m512 {
    let both = [numbers, _mm512_set1_epi16(0x3f80)];
    // SAFETY: both types are 512 bits of anything.
    let [numbers, ones] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>(both) };
    _mm512_dpbf16_ps(sums, numbers, ones)
}

/// Stores `low` and `high`, one after the other, rounded to bfloats.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(super) fn store_bfloats(line: &mut [u16; DEPTH], low: __m512, high: __m512) {
    store_line(line, bfloats(low, high));
}

/// Stores a row of a tile.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store_line(line: &mut [u16; DEPTH], x: __m512i) {
    // SAFETY: the array is as large as the vector.
    unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), x) }
}
