//! How Q4_K, Q5_K and Q6_K choose their scales when weights are encoded.
//!
//! Each sub-block tries a short list of step sizes. For the codes that a step gives, the best
//! scale (and minimum) is a small least-squares problem with a closed solution; the candidate
//! with the smallest weighted error wins. Weights that are large count for more, since they meet
//! large activations as often as any other and carry more of the product.
//! The scales are then rounded to their few bits and the codes taken anew against what will be
//! decoded. No randomness, one fixed order: the same weights give the same bytes.

use super::{half, k_scales};

/// Step sizes tried, as the number of steps added to the plain choice, in tenths.
const TENTHS: std::ops::RangeInclusive<i32> = -10..=10;

/// How much each weight's error counts: its square plus the mean square.
fn importance<const N: usize>(values: &[f32]) -> [f32; N] {
    let mean = values.iter().map(|v| v * v).sum::<f32>() / N as f32;
    std::array::from_fn(|i| values[i] * values[i] + mean)
}

/// The best `(scale, min)` found for 32 values as `scale * q - min`, `q` in `0..=q_max`.
fn search_affine(values: &[f32], q_max: u8) -> (f32, f32) {
    let count = importance::<32>(values);
    let max = values.iter().fold(f32::NEG_INFINITY, |max, &v| max.max(v));
    // The minimum is stored unsigned, so zero always lies within the range.
    let low = values.iter().fold(0f32, |low, &v| low.min(v));
    let range = max - low;
    if !(range > 0.0 && range.is_finite()) {
        return (0.0, -low);
    }
    let mut best = (f32::INFINITY, 0.0, 0.0);
    for tenth in TENTHS {
        let inverse = (f32::from(q_max) + tenth as f32 * 0.1) / range;
        let code = |v: f32| ((v - low) * inverse).round().clamp(0.0, f32::from(q_max));
        // Least squares of  v = scale * q - min.
        let (mut w, mut wq, mut wqq, mut wv, mut wqv) = (0f32, 0f32, 0f32, 0f32, 0f32);
        for (&v, &c) in values.iter().zip(&count) {
            let q = code(v);
            w += c;
            wq += c * q;
            wqq += c * q * q;
            wv += c * v;
            wqv += c * q * v;
        }
        let determinant = w * wqq - wq * wq;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (w * wqv - wq * wv) / determinant;
        let mut min = (wq * wqv - wqq * wv) / determinant;
        if min < 0.0 {
            (scale, min) = (wqv / wqq, 0.0);
        }
        let error = |(&v, &c): (&f32, &f32)| {
            let miss = scale * code(v) - min - v;
            c * miss * miss
        };
        let error: f32 = values.iter().zip(&count).map(error).sum();
        if scale > 0.0 && error < best.0 {
            best = (error, scale, min);
        }
    }
    if best.0.is_finite() { (best.1, best.2) } else { (range / f32::from(q_max), -low) }
}

/// Rounds `value / unit` to `0..=63`; 0 if there is no unit.
fn six_bits(value: f32, unit: f32) -> u8 {
    if unit > 0.0 { (value / unit).round().clamp(0.0, 63.0) as u8 } else { 0 }
}

/// Codes of 256 values in eight affine sub-blocks, each `0..=q_max`; writes `d`, `e` and the
/// scales to `head` `[16]`.
pub(crate) fn encode(values: &[f32], q_max: u8, head: &mut [u8]) -> [u8; 256] {
    let found: [(f32, f32); 8] =
        std::array::from_fn(|j| search_affine(&values[32 * j..][..32], q_max));
    let largest = |of: fn(&(f32, f32)) -> f32| found.iter().map(of).fold(0f32, f32::max);
    let d = half::write_f16(head, 0, largest(|f| f.0) / 63.0);
    let e = half::write_f16(head, 2, largest(|f| f.1) / 63.0);
    let scales = found.map(|(scale, min)| (six_bits(scale, d), six_bits(min, e)));
    k_scales::encode(&scales, &mut head[4..16]);
    std::array::from_fn(|k| {
        let (sc, m) = scales[k / 32];
        let (scale, min) = (d * f32::from(sc), e * f32::from(m));
        let q = if scale > 0.0 { ((values[k] + min) / scale).round() } else { 0.0 };
        q.clamp(0.0, f32::from(q_max)) as u8
    })
}

/// The best scale found for 16 values as `scale * q`, `q` in `-32..32`. It may be negative.
fn search_signed(values: &[f32]) -> f32 {
    let count = importance::<16>(values);
    let mut extreme = 0f32;
    for &value in values {
        if value.abs() > extreme.abs() {
            extreme = value;
        }
    }
    if extreme == 0.0 || !extreme.is_finite() {
        return 0.0;
    }
    let mut best = (0f32, extreme / -32.0);
    for tenth in TENTHS {
        let inverse = -(32.0 + tenth as f32 * 0.1) / extreme;
        let (mut wqv, mut wqq) = (0f32, 0f32);
        for (&v, &c) in values.iter().zip(&count) {
            let q = (v * inverse).round().clamp(-32.0, 31.0);
            wqv += c * q * v;
            wqq += c * q * q;
        }
        // The error of the best scale is a constant minus this gain.
        if wqq > 0.0 && wqv * wqv / wqq > best.0 {
            best = (wqv * wqv / wqq, wqv / wqq);
        }
    }
    best.1
}

/// Codes of 256 values in sixteen symmetric sub-blocks, each `q + 32` in `0..64`; writes the
/// scales and `d` to `tail` `[18]`.
pub(crate) fn encode_signed(values: &[f32], tail: &mut [u8]) -> [u8; 256] {
    let found: [f32; 16] = std::array::from_fn(|j| search_signed(&values[16 * j..][..16]));
    let mut extreme = 0f32;
    for scale in found {
        if scale.abs() > extreme.abs() {
            extreme = scale;
        }
    }
    // The extreme scale becomes exactly -128: the side with one step more.
    let d = half::write_f16(tail, 16, extreme / -128.0);
    let scales = found
        .map(|scale| if d == 0.0 { 0 } else { (scale / d).round().clamp(-128.0, 127.0) as i8 });
    for (byte, sc) in tail.iter_mut().zip(scales) {
        *byte = sc as u8;
    }
    std::array::from_fn(|k| {
        let scale = d * f32::from(scales[k / 16]);
        let q = if scale == 0.0 { 0.0 } else { (values[k] / scale).round() };
        (q.clamp(-32.0, 31.0) + 32.0) as u8
    })
}
