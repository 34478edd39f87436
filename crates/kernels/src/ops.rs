//! The small operations between matrix products: norms, activation functions, rotary embedding,
//! softmax, selection.
//!
//! All work on one row (or one flat run of rows, where elements do not interact) and never
//! allocate. Sums over a row follow one order on every instruction set: lane `l` of 16 adds the
//! elements `i ≡ l (mod 16)` ascending, then lanes are folded 8, 4, 2, 1. Rows of a batch are
//! independent; [`crate::pool::Pool::for_each_row`] spreads them over workers.

use crate::isa::{self, Isa};
use crate::lanes::{self, Kernel, LANES, Lanes, Narrow};

/// `out[i] = x[i] / sqrt(mean(x²) + eps) * weight[i]`, all `[n]`.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "rms_norm: lengths differ");
    out.copy_from_slice(x);
    rms_norm_in_place(out, weight, eps);
}

/// [`rms_norm`] with the result in the place of `x`.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), weight.len(), "rms_norm: lengths differ");
    lanes::run(isa::current(), RmsNorm { x, weight, eps });
}

/// `x[i] = (x[i] - mean(x)) / sqrt(variance(x) + eps) * weight[i] + bias[i]`, all `[n]`.
///
/// # Panics
/// If the lengths differ.
pub fn layer_norm_in_place(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    assert!(x.len() == weight.len() && x.len() == bias.len(), "layer_norm: lengths differ");
    lanes::run(isa::current(), LayerNorm { x, weight, bias, eps });
}

/// `gate[i] = silu(gate[i]) * up[i]` with silu(x) = x / (1 + e^-x), both `[n]`.
///
/// # Panics
/// If the lengths differ.
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    zip_with(isa::current(), gate, up, SiluMul);
}

/// `gate[i] = gelu(gate[i]) * up[i]` with the tanh form of GELU, both `[n]`.
///
/// # Panics
/// If the lengths differ.
pub fn gelu_tanh_mul(gate: &mut [f32], up: &[f32]) {
    zip_with(isa::current(), gate, up, GeluTanhMul);
}

/// `gate[i] = (u + 1) * g / (1 + e^(-alpha·g))` with g = `gate[i]`, at most `limit`, and
/// u = `up[i]`, within ±`limit`; both `[n]`.
///
/// # Panics
/// If the lengths differ.
pub fn clamped_swiglu_mul(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
    zip_with(isa::current(), gate, up, ClampedSwiglu { alpha, limit });
}

/// `x[i] = 1 / (1 + e^-x[i])`.
pub fn sigmoid(x: &mut [f32]) {
    map_with(isa::current(), x, Sigmoid);
}

/// `x[i] = cap * tanh(x[i] / cap)`: bounds logits smoothly to ±`cap`.
pub fn softcap(x: &mut [f32], cap: f32) {
    map_with(isa::current(), x, Softcap(cap));
}

/// `x[i] = e^(x[i] - max) / sum`, computed over the whole slice. An empty slice stays empty; `-inf`
/// becomes 0 unless all are.
pub fn softmax(x: &mut [f32]) {
    if !x.is_empty() {
        lanes::run(isa::current(), Softmax { x });
    }
}

/// `x[i] += y[i]`.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "add_assign: lengths differ");
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `x[i] *= factor`.
pub fn scale_assign(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// `y[i] = alpha * x[i] + y[i]`, rounded once.
///
/// # Panics
/// If the lengths differ.
pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    zip_with(isa::current(), y, x, Axpy(alpha));
}

/// The `ids.len()` largest logits, largest first, into `ids` and `values` (both `[k]`).
///
/// Among equal logits the lowest id wins. NaN counts as the lowest of all and is reported as
/// `-inf`, so every id is a valid index whatever the logits are.
///
/// # Panics
/// If `ids` and `values` differ in length or are longer than `logits`.
pub fn top_k(logits: &[f32], ids: &mut [u32], values: &mut [f32]) {
    let k = ids.len();
    assert!(k == values.len() && k <= logits.len(), "top_k: {k} of {}", logits.len());
    if k == 0 {
        return;
    }
    let mut found = 0;
    for (id, &logit) in logits.iter().enumerate() {
        let logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit };
        if found == k && logit <= values[k - 1] {
            continue;
        }
        let mut at = if found < k { found } else { k - 1 };
        while at > 0 && logit > values[at - 1] {
            values[at] = values[at - 1];
            ids[at] = ids[at - 1];
            at -= 1;
        }
        values[at] = logit;
        ids[at] = id as u32;
        found = k.min(found + 1);
    }
}

/// Rotary embedding that pairs element `i` with `i + n/2` (Hugging Face's order).
///
/// `x` is `[heads, head_dim]`; `cos` and `sin` are `[n/2]`, with n <= `head_dim`: the first n
/// elements of each head turn, the rest stay.
///
/// # Panics
/// If `x` is not whole heads, `cos` and `sin` differ in length, or n exceeds `head_dim`.
pub fn rope_half(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = check_rope(x, head_dim, cos, sin);
    for head in x.chunks_exact_mut(head_dim) {
        let (first, second) = head[..2 * half].split_at_mut(half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Rotary embedding that pairs element `2i` with `2i + 1` (the original order); arguments and
/// panics as in [`rope_half`].
///
/// # Panics
/// As [`rope_half`].
pub fn rope_interleaved(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = check_rope(x, head_dim, cos, sin);
    for head in x.chunks_exact_mut(head_dim) {
        let pairs = head[..2 * half].chunks_exact_mut(2);
        for ((pair, cos), sin) in pairs.zip(cos).zip(sin) {
            (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin);
        }
    }
}

fn check_rope(x: &[f32], head_dim: usize, cos: &[f32], sin: &[f32]) -> usize {
    assert!(head_dim > 0 && x.len().is_multiple_of(head_dim), "rope: x is not whole heads");
    assert!(cos.len() == sin.len() && 2 * cos.len() <= head_dim, "rope: cos or sin too long");
    cos.len()
}

/// A function of two numbers, applied per lane.
trait Pairwise {
    fn apply<L: Lanes>(&self, x: L, y: L) -> L;
}

struct SiluMul;
impl Pairwise for SiluMul {
    #[inline(always)]
    fn apply<L: Lanes>(&self, x: L, y: L) -> L {
        let zero = L::splat(0.0);
        x / (L::splat(1.0) + lanes::exp(zero - x)) * y
    }
}

struct GeluTanhMul;
impl Pairwise for GeluTanhMul {
    #[inline(always)]
    fn apply<L: Lanes>(&self, x: L, y: L) -> L {
        // (1 + tanh u) / 2 = 1 / (1 + e^-2u), which keeps its precision for negative u.
        const MINUS_2_SQRT_2_OVER_PI: f32 = -1.595_769;
        let cubic = (x * x).mul_add(L::splat(0.044_715) * x, x);
        x / (L::splat(1.0) + lanes::exp(cubic * L::splat(MINUS_2_SQRT_2_OVER_PI))) * y
    }
}

struct ClampedSwiglu {
    alpha: f32,
    limit: f32,
}
impl Pairwise for ClampedSwiglu {
    #[inline(always)]
    fn apply<L: Lanes>(&self, x: L, y: L) -> L {
        // What is not a number stays so: comparisons with it fail, and then the second is taken.
        let gate = L::splat(self.limit).min(x);
        let up = L::splat(-self.limit).max(L::splat(self.limit).min(y));
        let one = L::splat(1.0);
        gate / (one + lanes::exp(gate * L::splat(-self.alpha))) * (up + one)
    }
}

struct Axpy(f32);
impl Pairwise for Axpy {
    #[inline(always)]
    fn apply<L: Lanes>(&self, x: L, y: L) -> L {
        y.mul_add(L::splat(self.0), x)
    }
}

struct Sigmoid;
impl Pairwise for Sigmoid {
    #[inline(always)]
    fn apply<L: Lanes>(&self, x: L, _: L) -> L {
        let one = L::splat(1.0);
        one / (one + lanes::exp(L::splat(0.0) - x))
    }
}

struct Softcap(f32);
impl Pairwise for Softcap {
    #[inline(always)]
    fn apply<L: Lanes>(&self, x: L, _: L) -> L {
        let cap = L::splat(self.0);
        cap * lanes::tanh(x / cap)
    }
}

/// `x[i] = f(x[i], y[i])`.
fn zip_with<F: Pairwise>(isa: Isa, x: &mut [f32], y: &[f32], f: F) {
    assert_eq!(x.len(), y.len(), "elementwise operation: lengths differ");
    lanes::run(isa, Elementwise { x, y: Some(y), f });
}

/// `x[i] = f(x[i], 0)`.
fn map_with<F: Pairwise>(isa: Isa, x: &mut [f32], f: F) {
    lanes::run(isa, Elementwise { x, y: None, f });
}

struct Elementwise<'a, F> {
    x: &'a mut [f32],
    y: Option<&'a [f32]>,
    f: F,
}

impl<F: Pairwise> Kernel for Elementwise<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<L: Narrow>(self) {
        for start in (0..self.x.len()).step_by(LANES) {
            let x: L = load_at(self.x, start);
            let y = self.y.map_or(L::splat(0.0), |y| load_at(y, start));
            store_at(self.f.apply(x, y), self.x, start);
        }
    }
}

struct RmsNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Narrow>(self) {
        let n = self.x.len();
        let mut squares = L::splat(0.0);
        for start in (0..n).step_by(LANES) {
            let x: L = load_at(self.x, start);
            squares = x.mul_add(x, squares);
        }
        let mean = squares.sum() / n as f32;
        let scale = L::splat(1.0 / (mean + self.eps).sqrt());
        for start in (0..n).step_by(LANES) {
            let x: L = load_at(self.x, start);
            let weight: L = load_at(self.weight, start);
            store_at(x * scale * weight, self.x, start);
        }
    }
}

struct LayerNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Kernel for LayerNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Narrow>(self) {
        let n = self.x.len();
        let mut total = L::splat(0.0);
        for start in (0..n).step_by(LANES) {
            total = total + load_at::<L>(self.x, start);
        }
        let mean = total.sum() / n as f32;
        let mut squares = L::splat(0.0);
        for start in (0..n).step_by(LANES) {
            // Beyond the end stands the mean, which is no distance from itself.
            let distance = load_padded::<L>(self.x, start, mean) - L::splat(mean);
            squares = distance.mul_add(distance, squares);
        }
        let variance = squares.sum() / n as f32;
        let scale = L::splat(1.0 / (variance + self.eps).sqrt());
        for start in (0..n).step_by(LANES) {
            let x = (load_at::<L>(self.x, start) - L::splat(mean)) * scale;
            let weight: L = load_at(self.weight, start);
            store_at(x.mul_add(weight, load_at(self.bias, start)), self.x, start);
        }
    }
}

struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Narrow>(self) {
        let n = self.x.len();
        let mut largest = L::splat(self.x[0]);
        for start in (0..n).step_by(LANES) {
            largest = load_padded::<L>(self.x, start, self.x[0]).max(largest);
        }
        let largest = L::splat(lanes::largest(largest));
        let mut total = L::splat(0.0);
        for start in (0..n).step_by(LANES) {
            let e = lanes::exp(load_padded::<L>(self.x, start, f32::NEG_INFINITY) - largest);
            total = total + e;
            store_at(e, self.x, start);
        }
        let total = L::splat(total.sum());
        for start in (0..n).step_by(LANES) {
            store_at(load_at::<L>(self.x, start) / total, self.x, start);
        }
    }
}

/// Up to 16 numbers from `start` on, zeros where the slice ends.
#[inline(always)]
fn load_at<L: Lanes>(x: &[f32], start: usize) -> L {
    load_padded(x, start, 0.0)
}

#[inline(always)]
fn load_padded<L: Lanes>(x: &[f32], start: usize, padding: f32) -> L {
    let rest = &x[start..];
    if let Some(whole) = rest.first_chunk() {
        return L::load(whole);
    }
    let mut padded = [padding; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    L::load(&padded)
}

/// The inverse of [`load_at`]: lanes beyond the slice's end are dropped.
#[inline(always)]
fn store_at<L: Lanes>(value: L, x: &mut [f32], start: usize) {
    let rest = &mut x[start..];
    if let Some(whole) = rest.first_chunk_mut() {
        value.store(whole);
        return;
    }
    let mut padded = [0.0; LANES];
    value.store(&mut padded);
    rest.copy_from_slice(&padded[..rest.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64, spread: f32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next() * spread).collect()
    }

    fn near(found: &[f32], expected: impl IntoIterator<Item = f64>, tolerance: f64) {
        for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(found) - expected).abs() / (1.0 + expected.abs());
            assert!(error <= tolerance, "element {i}: {found} instead of {expected}");
        }
    }

    const LENGTHS: [usize; 7] = [1, 3, 16, 17, 64, 575, 2048];

    #[test]
    fn rms_norm_matches_its_formula() {
        for n in LENGTHS {
            let (x, w) = (numbers(n, 1, 3.0), numbers(n, 2, 1.0));
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
            let scale = 1.0 / (mean + 1e-5).sqrt();
            let pairs = x.iter().zip(&w).map(|(&x, &w)| (f64::from(x), f64::from(w)));
            let expected = pairs.map(|(x, w)| x * scale * w).collect::<Vec<_>>();
            let mut out = vec![0.0; n];
            rms_norm(&x, &w, 1e-5, &mut out);
            near(&out, expected, 1e-6);
            let mut again = x.clone();
            rms_norm_in_place(&mut again, &w, 1e-5);
            assert_eq!(again, out);
        }
    }

    #[test]
    fn layer_norm_matches_its_formula() {
        for n in LENGTHS {
            let x: Vec<f32> = numbers(n, 1, 3.0).into_iter().map(|x| x + 5.0).collect();
            let (w, b) = (numbers(n, 2, 1.0), numbers(n, 10, 1.0));
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
            let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
            let scale = 1.0 / (variance + 1e-3).sqrt();
            let expected = (0..n)
                .map(|i| (f64::from(x[i]) - mean) * scale * f64::from(w[i]) + f64::from(b[i]));
            let mut out = x.clone();
            layer_norm_in_place(&mut out, &w, &b, 1e-3);
            near(&out, expected, 2e-6);
        }
    }

    #[test]
    fn clamps_keep_what_is_not_a_number() {
        let mut gate = [f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY];
        clamped_swiglu_mul(&mut gate, &[0.0, f32::NAN, 0.0, 0.0], 1.702, 7.0);
        assert!(gate[0].is_nan() && gate[1].is_nan() && (gate[2] - 7.0).abs() < 1e-3, "{gate:?}");
    }

    #[test]
    fn activation_functions_match_their_formulas() {
        for n in LENGTHS {
            let (x, y) = (numbers(n, 3, 20.0), numbers(n, 4, 2.0));
            let pairs = || x.iter().zip(&y).map(|(&x, &y)| (f64::from(x), f64::from(y)));
            let check = |f: fn(&mut [f32], &[f32]), expected: fn(f64, f64) -> f64| {
                let mut out = x.clone();
                f(&mut out, &y);
                near(&out, pairs().map(|(x, y)| expected(x, y)), 1e-6);
            };
            check(silu_mul, |x, y| x / (1.0 + (-x).exp()) * y);
            check(gelu_tanh_mul, |x, y| {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + u.tanh()) * y
            });
            check(
                |x, y| clamped_swiglu_mul(x, y, 1.702, 1.5),
                |x, y| {
                    let g = x.min(1.5);
                    (y.clamp(-1.5, 1.5) + 1.0) * g / (1.0 + (-1.702 * g).exp())
                },
            );
            check(|x, _| sigmoid(x), |x, _| 1.0 / (1.0 + (-x).exp()));
            check(|x, _| softcap(x, 8.0), |x, _| 8.0 * (x / 8.0).tanh());
            check(|x, y| axpy(0.3, y, x), |x, y| f64::from(0.3f32) * y + x);
            check(add_assign, |x, y| x + y);
            check(|x, _| scale_assign(x, 0.7), |x, _| x * f64::from(0.7f32));
        }
    }

    #[test]
    fn softmax_matches_its_formula() {
        for n in LENGTHS {
            let x = numbers(n, 5, 30.0);
            let top = x.iter().copied().fold(f32::MIN, f32::max);
            let e: Vec<f64> = x.iter().map(|&x| (f64::from(x) - f64::from(top)).exp()).collect();
            let total: f64 = e.iter().sum();
            let mut out = x;
            softmax(&mut out);
            near(&out, e.into_iter().map(|e| e / total), 1e-6);
        }
        let mut masked = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 1.0];
        softmax(&mut masked);
        assert_eq!(masked, [0.0, 0.5, 0.0, 0.5]);
        softmax(&mut []);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for n in LENGTHS {
            let (x, y) = (numbers(n, 6, 12.0), numbers(n, 7, 1.0));
            let all = |isa: Isa| {
                let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] =
                    std::array::from_fn(|_| x.clone());
                zip_with(isa, &mut a, &y, SiluMul);
                zip_with(isa, &mut b, &y, GeluTanhMul);
                zip_with(isa, &mut c, &y, Axpy(0.37));
                map_with(isa, &mut d, Softcap(5.0));
                lanes::run(isa, RmsNorm { x: &mut e, weight: &y, eps: 1e-6 });
                lanes::run(isa, Softmax { x: &mut f });
                zip_with(isa, &mut g, &y, ClampedSwiglu { alpha: 1.702, limit: 7.0 });
                lanes::run(isa, LayerNorm { x: &mut h, weight: &y, bias: &x, eps: 1e-6 });
                [a, b, c, d, e, f, g, h]
                    .map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            let expected = all(Isa::Scalar);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert_eq!(all(isa), expected, "{isa:?}, {n} elements");
            }
        }
    }

    #[test]
    fn top_k_prefers_low_ids_and_survives_nan() {
        let check = |logits: &[f32], expected: &[u32]| {
            let mut ids = vec![u32::MAX; expected.len()];
            let mut values = vec![0.0; expected.len()];
            top_k(logits, &mut ids, &mut values);
            assert_eq!(ids, expected, "{logits:?}");
            assert!(values.windows(2).all(|v| v[0] >= v[1]), "{values:?}");
        };
        check(&[1.0, 3.0, 3.0, 2.0], &[1, 2, 3]);
        check(&[5.0, 5.0, 5.0, 5.0], &[0, 1]);
        check(&[f32::NAN, 1.0, f32::NAN, 2.0], &[3, 1, 0, 2]);
        check(&[f32::NAN; 3], &[0, 1]);
        check(&[f32::NEG_INFINITY, f32::NAN, f32::INFINITY], &[2, 0, 1]);
        check(&[1.0], &[]);
        let logits = numbers(500, 8, 1.0);
        let mut order: Vec<u32> = (0..500).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        check(&logits, &order[..9]);
    }

    #[test]
    fn rope_turns_the_right_pairs() {
        let angle: [f64; 2] = [0.3, 1.1];
        let (cos, sin) = (angle.map(|a| a.cos() as f32), angle.map(|a| a.sin() as f32));
        let x: Vec<f32> = numbers(12, 9, 1.0); // Two heads of 6; the first 4 elements turn.
        let turned = |pairs: [(usize, usize); 2]| {
            let mut out: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            for head in [0, 6] {
                for (i, (a, b)) in pairs.into_iter().enumerate() {
                    let (p, q) = (f64::from(x[head + a]), f64::from(x[head + b]));
                    let (s, c) = angle[i].sin_cos();
                    (out[head + a], out[head + b]) = (p * c - q * s, q * c + p * s);
                }
            }
            out
        };
        let mut half = x.clone();
        rope_half(&mut half, 6, &cos, &sin);
        near(&half, turned([(0, 2), (1, 3)]), 1e-7);
        let mut interleaved = x.clone();
        rope_interleaved(&mut interleaved, 6, &cos, &sin);
        near(&interleaved, turned([(0, 1), (2, 3)]), 1e-7);
    }
}
