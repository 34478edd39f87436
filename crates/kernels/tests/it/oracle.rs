//! The arithmetic of `moeba_kernels::matmul`, written a second time as plainly as possible:
//! one weight at a time (what a block holds is in `blocks`), sharing no code with the crate.

use moeba_kernels::activations::Precision;
use moeba_kernels::dtype::DType;

use crate::blocks::{Block, block};

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

/// Values that share a scale in the inputs of a format: as many weights as one of its floats
/// reaches.
fn input_len(dtype: DType) -> usize {
    dtype.format().activation.block_len()
}

/// What lies apart from a row's weights: the scale and zero point of each column.
pub(crate) type ScaleOf<'a> = &'a dyn Fn(usize) -> (f32, i32);

/// A row of inputs, as floats and rounded.
pub(crate) struct Input {
    floats: Vec<f32>,
    /// Per limb, the blocks' `(q, scale)`.
    limbs: Vec<Vec<(Vec<i32>, f32)>>,
}

impl Input {
    /// `x` as weights of `dtype` are multiplied with it.
    pub(crate) fn new(dtype: DType, x: &[f32], precision: Precision) -> Self {
        let block_len = input_len(dtype);
        let limb = |x: &[f32]| x.chunks(block_len).map(quantise).collect();
        let limbs = match precision {
            _ if block_len == 1 => Vec::new(),
            Precision::Eight => vec![limb(x)],
            Precision::Sixteen | Precision::Mixed => vec![limb(x), limb(&left_over(x, block_len))],
        };
        Self { floats: x.to_vec(), limbs }
    }
}

/// A row of weights: floats, or blocks of integers.
pub(crate) enum Row {
    Floats(Vec<f32>),
    Blocks(Vec<Block>),
}

impl Row {
    /// What `bytes` hold.
    pub(crate) fn new(dtype: DType, bytes: &[u8]) -> Self {
        if matches!(dtype, DType::Nvfp4 | DType::Nvfp4Planes | DType::Mxfp4Planes | DType::Int4) {
            // Without planes, scales are 1 and zero points in the middle.
            return Self::scaled(dtype, bytes, &|_| (1.0, 8));
        }
        let format = dtype.format();
        let blocks = bytes.chunks(format.block_bytes);
        if format.block_len > 1 {
            // Its floats may reach over several blocks of inputs.
            let parts = |Block { d, e, symmetric, weights }: Block| {
                let parts = weights.chunks(input_len(dtype)).map(<[_]>::to_vec);
                parts.map(|weights| Block { d, e, symmetric, weights }).collect::<Vec<_>>()
            };
            return Self::Blocks(blocks.flat_map(|bytes| parts(block(dtype, bytes))).collect());
        }
        let mut weights = vec![0.0; blocks.len()];
        dtype.decode_row(bytes, &mut weights);
        Self::Floats(weights)
    }

    /// Nibbles in `bytes` with scales and zero points that lie apart (NVFP4 has its own inside).
    pub(crate) fn scaled(dtype: DType, bytes: &[u8], scale: ScaleOf<'_>) -> Self {
        let code = |col: usize| {
            let (byte, high) = match dtype {
                DType::Nvfp4 => {
                    let (sub, i) = (col % 64 / 16, col % 16);
                    (bytes[col / 64 * 36 + 4 + 8 * sub + i % 8], i >= 8)
                }
                _ => (bytes[col / 2], col % 2 == 1),
            };
            if high { byte >> 4 } else { byte & 15 }
        };
        let (len, format) = (input_len(dtype), dtype.format());
        let cols = bytes.len() / format.block_bytes * format.block_len;
        let block = |first: usize| {
            let (apart, zero) = scale(first);
            let d = match dtype {
                DType::Int4 => apart,
                DType::Nvfp4 => match bytes[first / 64 * 36 + first % 64 / 16] {
                    0x7f => 0.0,
                    0xff => 240.0,
                    byte => e4m3(byte & 0x7f) * 0.5,
                },
                _ => apart * 0.5,
            };
            let weight = |col: usize| match dtype {
                DType::Int4 => i32::from(code(col)) - zero,
                _ => twice_e2m1(code(col)),
            };
            let weights = (first..first + len).map(|col| (1, weight(col), 0)).collect();
            Block { d, e: d, symmetric: true, weights }
        };
        Self::Blocks((0..cols).step_by(len).map(block).collect())
    }

    /// The product with a row of inputs.
    pub(crate) fn product(&self, input: &Input) -> f32 {
        match self {
            Self::Floats(weights) => floats(weights, &input.floats),
            Self::Blocks(blocks) => {
                let limbs = input.limbs.iter().map(|limb| integers(blocks, limb));
                limbs.reduce(|coarse, fine| coarse + fine).unwrap()
            }
        }
    }
}

/// A float of 8 bits, from its definition.
pub(crate) fn e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match byte & 0x7f {
        0x7f => f32::NAN,
        0..8 => fraction * 2f32.powi(-9),
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    if byte >= 128 { -magnitude } else { magnitude }
}

/// Twice a float of 4 bits.
fn twice_e2m1(code: u8) -> i32 {
    let magnitude = match code & 7 {
        small @ 0..4 => i32::from(small),
        large => (2 + i32::from(large & 1)) << (large >> 1 & 1) << 1,
    };
    if code & 8 == 0 { magnitude } else { -magnitude }
}

fn floats(weights: &[f32], x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for k in 0..x.len().next_multiple_of(16) {
        let padded = |values: &[f32]| values.get(k).copied().unwrap_or(0.0);
        lanes[k % 16] = padded(weights).mul_add(padded(x), lanes[k % 16]);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// The product with inputs rounded to 8 bits.
fn integers(blocks: &[Block], limb: &[(Vec<i32>, f32)]) -> f32 {
    let mut acc = 0f32;
    for (block, (q, dx)) in blocks.iter().zip(limb) {
        let (mut s, mut m) = (0i32, 0i32);
        for ((sc, w, min), q) in block.weights.iter().zip(q) {
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
