//! The arithmetic of `moeba_kernels::matmul`, written a second time as plainly as possible:
//! one weight at a time, straight from the format's drawing, sharing no code with the crate.

use moeba_kernels::activations::Precision;
use moeba_kernels::dtype::DType;

/// A small seeded generator (xorshift64*), so that tests need no dependency.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.bits() >> 33) as usize % bound
    }

    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// Close enough to normal for weights.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

fn f16(bytes: &[u8], at: usize) -> f32 {
    let half = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(half >> 10 & 31), f32::from(half & 1023));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}

/// One block as integers: per weight `(sc, q, m)`, and `(d, e)`.
struct Block {
    d: f32,
    e: f32,
    symmetric: bool,
    weights: Vec<(i32, i32, i32)>,
}

fn k_scale(bytes: &[u8], j: usize) -> (i32, i32) {
    let (sc, m) = if j < 4 {
        (bytes[j] & 63, bytes[j + 4] & 63)
    } else {
        let (low, high) = (bytes[j + 4], (bytes[j - 4], bytes[j]));
        ((low & 15) | (high.0 >> 6 << 4), (low >> 4) | (high.1 >> 6 << 4))
    };
    (i32::from(sc), i32::from(m))
}

fn block(dtype: DType, b: &[u8]) -> Block {
    let nibble = |byte: u8, high: bool| i32::from(if high { byte >> 4 } else { byte & 15 });
    let symmetric = !matches!(dtype, DType::Q4_1 | DType::Q4K | DType::Q5K);
    let (d, e) = match dtype {
        DType::Q8_0 | DType::Q4_0 => (f16(b, 0), f16(b, 0)),
        DType::Q4_1 => (f16(b, 0), -f16(b, 2)),
        DType::Q4K | DType::Q5K => (f16(b, 0), f16(b, 2)),
        _ => (f16(b, 208), f16(b, 208)),
    };
    let weight = |k: usize| match dtype {
        DType::Q8_0 => (1, i32::from(b[2 + k] as i8) + 128, 128),
        DType::Q4_0 => (1, nibble(b[2 + k % 16], k >= 16), 8),
        DType::Q4_1 => (1, nibble(b[4 + k % 16], k >= 16), 1),
        DType::Q4K => {
            let (sc, m) = k_scale(&b[4..], k / 32);
            (sc, nibble(b[16 + k / 64 * 32 + k % 32], k / 32 % 2 == 1), m)
        }
        DType::Q5K => {
            let (sc, m) = k_scale(&b[4..], k / 32);
            let low = nibble(b[48 + k / 64 * 32 + k % 32], k / 32 % 2 == 1);
            (sc, low + 16 * i32::from(b[16 + k % 32] >> (k / 32) & 1), m)
        }
        _ => {
            let (half, i) = (k / 128, k % 128);
            let low = nibble(b[half * 64 + i % 64], i >= 64);
            let high = i32::from(b[128 + half * 32 + i % 32] >> (i / 32 * 2) & 3);
            let sc = i32::from(b[192 + k / 16] as i8);
            (sc, low + 16 * high, 32 * sc)
        }
    };
    Block { d, e, symmetric, weights: (0..dtype.format().block_len).map(weight).collect() }
}

/// `(q, scale)` of a block of inputs.
fn quantise(x: &[f32]) -> (Vec<i32>, f32) {
    let amax = x.iter().fold(0f32, |amax, x| amax.max(x.abs()));
    if x.iter().any(|x| !x.is_finite()) {
        return (vec![0; x.len()], f32::NAN);
    }
    let inverse = 127.0 / amax;
    if !inverse.is_finite() {
        return (vec![0; x.len()], 0.0);
    }
    (x.iter().map(|x| (x * inverse).round_ties_even() as i32).collect(), amax / 127.0)
}

/// What rounding a row of inputs to 8 bits leaves over.
fn left_over(x: &[f32], block_len: usize) -> Vec<f32> {
    let block = |x: &[f32]| -> Vec<f32> {
        let (q, scale) = quantise(x);
        x.iter().zip(q).map(|(x, q)| x - q as f32 * scale).collect()
    };
    x.chunks(block_len).flat_map(block).collect()
}

/// The product of one row of weights with one row of inputs.
pub(crate) fn product(dtype: DType, row: &[u8], x: &[f32], precision: Precision) -> f32 {
    let block_len = dtype.format().block_len;
    let coarse = limb(dtype, row, x);
    if block_len == 1 || precision == Precision::Eight {
        return coarse;
    }
    coarse + limb(dtype, row, &left_over(x, block_len))
}

/// The product with inputs rounded to 8 bits, or not at all for float weights.
fn limb(dtype: DType, row: &[u8], x: &[f32]) -> f32 {
    let format = dtype.format();
    if format.block_len == 1 {
        let mut weights = vec![0.0; x.len()];
        dtype.decode_row(row, &mut weights);
        weights.resize(x.len().next_multiple_of(16), 0.0);
        let mut lanes = [0f32; 16];
        for (k, w) in weights.into_iter().enumerate() {
            lanes[k % 16] = w.mul_add(x.get(k).copied().unwrap_or(0.0), lanes[k % 16]);
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        return lanes[0];
    }
    let mut acc = 0f32;
    for (bytes, x) in row.chunks(format.block_bytes).zip(x.chunks(format.block_len)) {
        let (block, (q, dx)) = (block(dtype, bytes), quantise(x));
        let (mut s, mut m) = (0i32, 0i32);
        for ((sc, w, min), q) in block.weights.into_iter().zip(q) {
            s = s.checked_add(sc * w * q).unwrap();
            m = m.checked_add(min * q).unwrap();
        }
        if block.symmetric {
            acc = (block.d * dx).mul_add((s - m) as f32, acc);
        } else {
            acc = (block.d * dx).mul_add(s as f32, acc);
            acc = (-(block.e * dx)).mul_add(m as f32, acc);
        }
    }
    acc
}
