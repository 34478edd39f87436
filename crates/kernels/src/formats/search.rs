//! How encoders choose: scales, minimums and codes with the smallest weighted error.
//!
//! A block's weights `v` become `scale * value(code) - min`. What is minimised is the sum of
//! `weight * miss^2`. The weight is the measured importance of the column, where there is one,
//! times the size of the value: large weights count for more, since errors of small ones tend to
//! drown. Candidates for the scale are tried in order; for the codes one gives, the best scale
//! (and minimum) is a least-squares problem with a closed solution. The scales are then rounded
//! to what the format stores, neighbours of the rounded ones are tried too, and all is measured
//! against what will be decoded.
//!
//! No randomness and one fixed order of every sum, so the same numbers give the same bytes
//! everywhere. Sums run in [`LANES`] lanes, which compilers turn into vector instructions.

use super::half;

/// Parallel sums.
const LANES: usize = 8;

/// How much each of `N` values' squared error counts.
pub(crate) fn weigh<const N: usize>(values: &[f32], importance: Option<&[f32]>) -> [f32; N] {
    let mean = values.iter().map(|v| v * v).sum::<f32>() / N as f32;
    // An importance beyond all measure would make sums infinite, and every choice the same.
    let largest = importance.map_or(1.0, |all| all.iter().fold(0f32, |max, &i| max.max(i)));
    let unit = if largest > 0.0 && largest.is_finite() { 1.0 / largest } else { 0.0 };
    std::array::from_fn(|i| {
        let size = match importance {
            Some(_) => (2.0 * mean + values[i] * values[i]).sqrt(),
            None => values[i].abs() + mean.sqrt(),
        };
        size * importance.map_or(1.0, |all| all[i] * unit + 1e-6)
    })
}

/// Rounds to the nearest integer, ties to even. `x` is below 2^22.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + SHIFT) - SHIFT
}

/// `x` within `low..=high`; `low` for NaN.
#[inline(always)]
fn within(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// Adds `f(i)` over `0..N`, in lanes.
#[inline(always)]
fn sums<const N: usize, const K: usize>(f: impl Fn(usize) -> [f32; K]) -> [f32; K] {
    let mut lanes = [[0f32; LANES]; K];
    for start in (0..N).step_by(LANES) {
        for lane in 0..LANES {
            let terms = f(start + lane);
            for k in 0..K {
                lanes[k][lane] += terms[k];
            }
        }
    }
    lanes.map(|l| ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])))
}

/// The value that is farthest from zero, the first of equals.
fn extreme(values: &[f32]) -> f32 {
    let farther = |a: f32, &b: &f32| if b.abs() > a.abs() { b } else { a };
    values.iter().fold(0f32, farther)
}

/// `N` values with their weights.
#[derive(Clone, Copy)]
pub(crate) struct Values<'a, const N: usize> {
    pub(crate) values: &'a [f32; N],
    pub(crate) weights: &'a [f32; N],
}

impl<const N: usize> Values<'_, N> {
    /// The error of `scale * q - min` with the best codes `q` in `low..=high`.
    #[inline(always)]
    fn error(&self, scale: f32, min: f32, (low, high): (f32, f32)) -> f32 {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let [error] = sums::<N, 1>(|i| {
            let v = self.values[i];
            let q = nearest(within((v + min) * inverse, low, high));
            let miss = scale * q - min - v;
            [self.weights[i] * miss * miss]
        });
        error
    }

    /// The best codes, `low..=high`.
    fn codes(&self, scale: f32, min: f32, (low, high): (f32, f32)) -> [f32; N] {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        std::array::from_fn(|i| nearest(within((self.values[i] + min) * inverse, low, high)))
    }

    /// The best `(scale, min)` found for codes `0..=high`; `min` is not negative if `is_unsigned`.
    pub(crate) fn affine(&self, high: f32, is_unsigned: bool) -> (f32, f32) {
        let max = self.values.iter().fold(f32::NEG_INFINITY, |max, &v| max.max(v));
        let low = self.values.iter().fold(f32::INFINITY, |low, &v| low.min(v));
        let low = if is_unsigned { low.min(0.0) } else { low };
        let range = max - low;
        if !(range > 0.0 && range.is_finite()) {
            return (0.0, if low.is_finite() { -low } else { 0.0 });
        }
        let mut best = (self.error(range / high, -low, (0.0, high)), range / high, -low);
        for tenth in -10..=10 {
            let inverse = (high + tenth as f32 * 0.1) / range;
            // Least squares of  v = scale * q - min.
            let [w, wq, wqq, wv, wqv] = sums::<N, 5>(|i| {
                let (v, w) = (self.values[i], self.weights[i]);
                let q = nearest(within((v - low) * inverse, 0.0, high));
                [w, w * q, w * q * q, w * v, w * q * v]
            });
            let determinant = w * wqq - wq * wq;
            if determinant <= 0.0 {
                continue;
            }
            let mut scale = (w * wqv - wq * wv) / determinant;
            let mut min = (wq * wqv - wqq * wv) / determinant;
            if is_unsigned && min < 0.0 {
                (scale, min) = (wqv / wqq, 0.0);
            }
            if scale > 0.0 {
                let error = self.error(scale, min, (0.0, high));
                if error < best.0 {
                    best = (error, scale, min);
                }
            }
        }
        (best.1, best.2)
    }

    /// The best scale found for codes `low..=high`, which holds zero. It may be negative: the
    /// side with more codes then serves the side with larger values.
    pub(crate) fn symmetric(&self, (low, high): (f32, f32)) -> f32 {
        let extreme = extreme(self.values);
        if extreme == 0.0 || !extreme.is_finite() {
            return 0.0;
        }
        let mut best = (f32::INFINITY, 0.0);
        for tenth in -12..=12 {
            let inverse = (low + tenth as f32 * 0.1) / extreme;
            let [wqv, wqq] = sums::<N, 2>(|i| {
                let (v, w) = (self.values[i], self.weights[i]);
                let q = nearest(within(v * inverse, low, high));
                [w * q * v, w * q * q]
            });
            if wqq > 0.0 {
                let scale = wqv / wqq;
                let error = self.error(scale, 0.0, (low, high));
                if error < best.0 {
                    best = (error, scale);
                }
            }
        }
        best.1
    }
}

/// Scale and codes `low..=high` of 32 values that share one scale.
pub(crate) fn one_scale(
    values: &[f32],
    importance: Option<&[f32]>,
    bounds: (f32, f32),
) -> (f32, [f32; 32]) {
    let weights = weigh(values, importance);
    let of = Values { values: &part(values, 0), weights: &weights };
    let d = half::through_f16(of.symmetric(bounds));
    (d, of.codes(d, 0.0, bounds))
}

/// Scale, minimum and codes `0..=high` of 32 values: `value = scale * code + min`.
pub(crate) fn scale_and_min(
    values: &[f32],
    importance: Option<&[f32]>,
    high: f32,
) -> (f32, f32, [f32; 32]) {
    let weights = weigh(values, importance);
    let of = Values { values: &part(values, 0), weights: &weights };
    let (d, min) = of.affine(high, false);
    let (d, min) = (half::through_f16(d), half::through_f16(min));
    (d, -min, of.codes(d, min, (0.0, high)))
}

/// The best of `first` and its stored neighbours by `error`, which is asked for each once per
/// round until none is better.
fn descend<T: Copy + PartialEq>(
    first: T,
    neighbours: impl Fn(T) -> [T; 8],
    error: impl Fn(T) -> f32,
) -> T {
    let mut best = (error(first), first);
    for _ in 0..3 {
        let from = best.1;
        for next in neighbours(from) {
            if next != best.1 {
                let error = error(next);
                if error < best.0 {
                    best = (error, next);
                }
            }
        }
        if best.1 == from {
            break;
        }
    }
    best.1
}

/// A block of 256 values in `S` sub-blocks of `N`, with their weights.
struct SubBlocks<const S: usize, const N: usize> {
    values: [[f32; N]; S],
    weights: [[f32; N]; S],
}

impl<const S: usize, const N: usize> SubBlocks<S, N> {
    fn new(values: &[f32], importance: Option<&[f32]>) -> Self {
        let values: [[f32; N]; S] = std::array::from_fn(|j| part(values, j));
        let weights =
            std::array::from_fn(|j| weigh(&values[j], importance.map(|i| &i[j * N..][..N])));
        Self { values, weights }
    }

    fn each(&self) -> [Values<'_, N>; S] {
        std::array::from_fn(|j| Values { values: &self.values[j], weights: &self.weights[j] })
    }
}

/// Bounds of a block of 256 in `S` affine sub-blocks of `N`.
#[derive(Clone, Copy)]
pub(crate) struct AffineBlock {
    /// Largest code.
    pub(crate) high: f32,
    /// Largest stored scale and minimum.
    pub(crate) scale_max: f32,
}

/// What was chosen for a block: `value = d * sc * q - e * m`.
pub(crate) struct Affine<const S: usize> {
    pub(crate) d: f32,
    pub(crate) e: f32,
    /// `(sc, m)` of each sub-block.
    pub(crate) scales: [(u8, u8); S],
    pub(crate) codes: [u8; 256],
}

impl AffineBlock {
    /// Chooses everything for 256 `values` in `S` sub-blocks of `N`.
    pub(crate) fn choose<const S: usize, const N: usize>(
        self,
        values: &[f32],
        importance: Option<&[f32]>,
    ) -> Affine<S> {
        let block = SubBlocks::<S, N>::new(values, importance);
        let subs = block.each();
        let found = subs.map(|sub| sub.affine(self.high, true));
        let largest = |of: fn(&(f32, f32)) -> f32| found.iter().map(of).fold(0f32, f32::max);
        let d = half::through_f16(largest(|f| f.0) / self.scale_max);
        let e = half::through_f16(largest(|f| f.1) / self.scale_max);
        let mut best = self.settle(&subs, &found, (d, e));
        // With the codes known, better units may be: least squares over the whole block.
        for _ in 0..2 {
            let (d, e) = self.units(&subs, &best);
            let (d, e) = (half::through_f16(d), half::through_f16(e));
            let next = self.settle(&subs, &found, (d, e));
            if next.error >= best.error {
                break;
            }
            best = next;
        }
        let mut codes = [0; 256];
        for (j, sub) in subs.iter().enumerate() {
            let (scale, min) = best.of(j);
            for (code, q) in
                codes[j * N..][..N].iter_mut().zip(sub.codes(scale, min, (0.0, self.high)))
            {
                *code = q as u8;
            }
        }
        let scales = best.scales.map(|(sc, m)| (sc as u8, m as u8));
        Affine { d: best.d, e: best.e, scales, codes }
    }

    /// The best stored scales for the units `(d, e)`.
    fn settle<const S: usize, const N: usize>(
        self,
        subs: &[Values<'_, N>; S],
        found: &[(f32, f32); S],
        (d, e): (f32, f32),
    ) -> Settled<S> {
        let max = self.scale_max;
        let steps = |value: f32, unit: f32| {
            if unit > 0.0 { nearest(within(value / unit, 0.0, max)) } else { 0.0 }
        };
        let mut error = 0.0;
        let scales = std::array::from_fn(|j| {
            let first = (steps(found[j].0, d), steps(found[j].1, e));
            let bound = |x: f32| within(x, 0.0, max);
            let near = |(s, m): (f32, f32)| {
                [
                    (0.0, 1.0),
                    (0.0, -1.0),
                    (1.0, 0.0),
                    (-1.0, 0.0),
                    (1.0, 1.0),
                    (1.0, -1.0),
                    (-1.0, 1.0),
                    (-1.0, -1.0),
                ]
                .map(|(a, b)| (bound(s + a), bound(m + b)))
            };
            let of = |(s, m): (f32, f32)| subs[j].error(d * s, e * m, (0.0, self.high));
            let best = descend(first, near, of);
            error += of(best);
            best
        });
        Settled { d, e, scales, error }
    }

    /// The best units for the codes that `best` gives.
    fn units<const S: usize, const N: usize>(
        self,
        subs: &[Values<'_, N>; S],
        best: &Settled<S>,
    ) -> (f32, f32) {
        let mut total = [0f32; 5];
        for (j, sub) in subs.iter().enumerate() {
            let ((sc, m), (scale, min)) = (best.scales[j], best.of(j));
            let codes = sub.codes(scale, min, (0.0, self.high));
            let own = sums::<N, 5>(|i| {
                let (a, v, w) = (sc * codes[i], sub.values[i], sub.weights[i]);
                [w * a * a, w * a * m, w * m * m, w * a * v, w * m * v]
            });
            total = std::array::from_fn(|k| total[k] + own[k]);
        }
        // Least squares of  v = d * a - e * m.
        let [aa, am, mm, av, mv] = total;
        let determinant = aa * mm - am * am;
        let units = if determinant > 0.0 {
            ((mm * av - am * mv) / determinant, (am * av - aa * mv) / determinant)
        } else if aa > 0.0 {
            (av / aa, best.e)
        } else {
            (best.d, best.e)
        };
        if units.0 > 0.0 && units.1 >= 0.0 { units } else { (best.d, best.e) }
    }
}

/// Stored scales, not yet as integers.
struct Settled<const S: usize> {
    d: f32,
    e: f32,
    scales: [(f32, f32); S],
    error: f32,
}

impl<const S: usize> Settled<S> {
    /// Scale and minimum of sub-block `j` as decoded.
    fn of(&self, j: usize) -> (f32, f32) {
        (self.d * self.scales[j].0, self.e * self.scales[j].1)
    }
}

/// Sub-block `j` of `values`.
pub(crate) fn part<const N: usize>(values: &[f32], j: usize) -> [f32; N] {
    values[j * N..][..N].try_into().expect("a block holds whole sub-blocks")
}

/// What was chosen for a block without minimums: `value = d * sc * code`.
pub(crate) struct Symmetric<const S: usize> {
    pub(crate) d: f32,
    pub(crate) scales: [i8; S],
    pub(crate) codes: [i8; 256],
}

/// Bounds of a block of 256 in sub-blocks without minimums.
#[derive(Clone, Copy)]
pub(crate) struct SymmetricBlock {
    /// Smallest and largest code.
    pub(crate) codes: (f32, f32),
    /// Smallest and largest stored scale; the smallest is the negative side's one step more.
    pub(crate) scales: (f32, f32),
}

impl SymmetricBlock {
    /// Chooses everything for 256 `values` in `S` sub-blocks of `N`.
    pub(crate) fn choose<const S: usize, const N: usize>(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
    ) -> Symmetric<S> {
        let block = SubBlocks::<S, N>::new(values, importance);
        let subs = block.each();
        let found = subs.map(|sub| sub.symmetric(self.codes));
        let settle = |d: f32| {
            let d = half::through_f16(d);
            self.settle(&found, d, |j, scale| subs[j].error(scale, 0.0, self.codes))
        };
        let mut best = settle(extreme(&found) / self.scales.0);
        for _ in 0..2 {
            let next = settle(self.unit(&subs, &best));
            if next.2 >= best.2 {
                break;
            }
            best = next;
        }
        let (d, scales, _) = best;
        let mut codes = [0; 256];
        for (j, sub) in subs.iter().enumerate() {
            for (code, q) in
                codes[j * N..][..N].iter_mut().zip(sub.codes(d * scales[j], 0.0, self.codes))
            {
                *code = q as i8;
            }
        }
        Symmetric { d, scales: scales.map(|scale| scale as i8), codes }
    }

    /// The unit and the stored scales of 256 `values` that lie on a codebook's levels.
    pub(crate) fn choose_of_book<const S: usize, const N: usize>(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        book: &Codebook,
    ) -> (f32, [f32; S]) {
        let block = SubBlocks::<S, N>::new(values, importance);
        let subs = block.each();
        let found: [f32; S] = std::array::from_fn(|j| book.scale(&subs[j]));
        let d = half::through_f16(extreme(&found) / self.scales.0);
        let error = |j: usize, scale| book.error(&subs[j], scale);
        let (d, scales, _) = self.settle(&found, d, error);
        (d, scales)
    }

    /// The unit, the best stored scales for it, and their error; `error` is that of a sub-block
    /// under a scale.
    fn settle<const S: usize>(
        &self,
        found: &[f32; S],
        d: f32,
        error: impl Fn(usize, f32) -> f32,
    ) -> (f32, [f32; S], f32) {
        let bound = |x: f32| within(x, self.scales.0, self.scales.1);
        let mut total = 0.0;
        let scales = std::array::from_fn(|j| {
            let first = if d == 0.0 { 0.0 } else { nearest(bound(found[j] / d)) };
            let near = |s: f32| [1.0, -1.0, 2.0, -2.0, 0.0, 0.0, 0.0, 0.0].map(|a| bound(s + a));
            let of = |s: f32| error(j, d * s);
            let best = descend(first, near, of);
            total += of(best);
            best
        });
        (d, scales, total)
    }

    /// The best unit for the codes that `best` gives.
    fn unit<const S: usize, const N: usize>(
        &self,
        subs: &[Values<'_, N>; S],
        (d, scales, _): &(f32, [f32; S], f32),
    ) -> f32 {
        let (mut av, mut aa) = (0f32, 0f32);
        for (sub, &sc) in subs.iter().zip(scales) {
            let codes = sub.codes(d * sc, 0.0, self.codes);
            let own = sums::<N, 2>(|i| {
                let (a, v, w) = (sc * codes[i], sub.values[i], sub.weights[i]);
                [w * a * v, w * a * a]
            });
            (av, aa) = (av + own[0], aa + own[1]);
        }
        if aa > 0.0 { av / aa } else { *d }
    }
}

/// A codebook of 16 values, ascending.
#[derive(Clone, Copy)]
pub(crate) struct Codebook {
    values: [f32; 16],
    /// Between value `i` and `i + 1`.
    bounds: [f32; 15],
}

impl Codebook {
    pub(crate) const fn new(values: [f32; 16]) -> Codebook {
        let mut bounds = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            bounds[i] = (values[i] + values[i + 1]) * 0.5;
            i += 1;
        }
        Codebook { values, bounds }
    }

    /// The place of the value nearest to `x`.
    #[inline(always)]
    pub(crate) fn nearest(&self, x: f32) -> usize {
        self.bounds.iter().map(|&bound| usize::from(x > bound)).sum()
    }

    /// The value nearest to `x`, found without a table: the steps up to it are added.
    #[inline(always)]
    fn value(&self, x: f32) -> f32 {
        let mut value = self.values[0];
        for i in 0..15 {
            let step = self.values[i + 1] - self.values[i];
            value += if x > self.bounds[i] { step } else { 0.0 };
        }
        value
    }

    /// The error of `scale * value` with the nearest values.
    pub(crate) fn error<const N: usize>(&self, of: &Values<'_, N>, scale: f32) -> f32 {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let [error] = sums::<N, 1>(|i| {
            let miss = scale * self.value(of.values[i] * inverse) - of.values[i];
            [of.weights[i] * miss * miss]
        });
        error
    }

    /// The best scale found; it may be negative.
    pub(crate) fn scale<const N: usize>(&self, of: &Values<'_, N>) -> f32 {
        let extreme = extreme(of.values);
        if extreme == 0.0 || !extreme.is_finite() {
            return 0.0;
        }
        let mut best = (f32::INFINITY, 0.0);
        // Either end of the book may be the extreme value's place.
        for end in [self.values[0], self.values[15]] {
            for percent in (84..=112).step_by(2) {
                let inverse = end * (percent as f32 * 0.01) / extreme;
                let [wqv, wqq] = sums::<N, 2>(|i| {
                    let (v, w) = (of.values[i], of.weights[i]);
                    let q = self.value(v * inverse);
                    [w * q * v, w * q * q]
                });
                if wqq > 0.0 {
                    let scale = wqv / wqq;
                    let error = self.error(of, scale);
                    if error < best.0 {
                        best = (error, scale);
                    }
                }
            }
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_and_bounds() {
        assert_eq!([0.5, 1.5, -0.5, 2.4999, -7.6].map(nearest), [0.0, 2.0, 0.0, 2.0, -8.0]);
        assert_eq!([f32::NAN, -9.0, 9.0].map(|x| within(x, -8.0, 7.0)), [-8.0, -8.0, 7.0]);
    }

    #[test]
    fn the_nearest_value_of_a_codebook() {
        let book = Codebook::new(std::array::from_fn(|i| (i * i) as f32));
        for x in 0..230 {
            let x = x as f32;
            let wanted = (0..16).min_by_key(|i| ((i * i) as f32 - x).abs().to_bits()).unwrap();
            assert_eq!(book.nearest(x), wanted, "{x}");
            assert_eq!(book.value(x), (wanted * wanted) as f32);
        }
    }

    #[test]
    fn values_on_a_grid_are_found() {
        let weights = [1.0; 32];
        let values: [f32; 32] = std::array::from_fn(|i| 0.25 * (i % 16) as f32 - 1.5);
        let (scale, min) = Values { values: &values, weights: &weights }.affine(15.0, true);
        assert!((scale - 0.25).abs() < 1e-6 && (min - 1.5).abs() < 1e-6, "{scale} {min}");
        let values: [f32; 32] = std::array::from_fn(|i| 0.5 * ((i % 16) as f32 - 8.0));
        let scale = Values { values: &values, weights: &weights }.symmetric((-8.0, 7.0));
        assert!((scale - 0.5).abs() < 1e-6, "{scale}");
    }
}
