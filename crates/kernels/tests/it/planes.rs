//! Formats whose scales lie apart, on every instruction set, against the oracle: bit for bit.

use moeba_kernels::activations::{ActKinds, Activations, Precision};
use moeba_kernels::dtype::{DType, FORMATS, ScaleLayout};
use moeba_kernels::isa::Isa;
use moeba_kernels::matmul::{Job, Rows, matmul_with};
use moeba_kernels::pool::{Pinning, Pool};
use moeba_kernels::tensor::{Factor, Matrix, ScaleType, Scales};

use crate::blocks::f16;
use crate::oracle::{self, Input, Random, Row};

/// A matrix and what lies apart from it, all owned.
pub(crate) struct Weights {
    dtype: DType,
    rows: usize,
    cols: usize,
    codes: Vec<u8>,
    kind: ScaleType,
    tile: [usize; 2],
    scales: Vec<u8>,
    zeros: Option<Vec<u8>>,
    factor: Factor,
}

/// The formats with scales apart, each with every kind of scale and some tiles.
pub(crate) fn layouts(cols: usize) -> Vec<(DType, ScaleType, [usize; 2], bool)> {
    let mut all = Vec::new();
    for format in &FORMATS {
        let ScaleLayout::Apart(apart) = format.scales else { continue };
        let tiles: &[[usize; 2]] = match format.dtype {
            DType::Nvfp4Planes => &[[1, 16]],
            DType::Mxfp4Planes => &[[1, 32]],
            DType::Int4 => &[[1, 32], [1, 64], [1, 128], [1, cols]],
            _ => &[[1, cols], [128, 128], [3, 16], [1, 48], [1 << 20, cols]],
        };
        for &kind in apart.types {
            all.extend(tiles.iter().map(|tile| (format.dtype, kind, *tile, false)));
            if apart.zeros {
                all.push((format.dtype, kind, tiles[1], true));
            }
        }
    }
    all
}

fn encode(kind: ScaleType, value: f32, out: &mut Vec<u8>) {
    let as_row = |dtype: DType, bytes: usize| {
        let mut row = vec![0; bytes];
        dtype.encode_row(&[value], None, &mut row);
        row
    };
    match kind {
        ScaleType::E4M3 => out.extend(as_row(DType::F8E4M3, 1)),
        ScaleType::E8M0 => out.push((value.abs().log2() + 127.0) as u8),
        ScaleType::BF16 => out.extend(as_row(DType::BF16, 2)),
        ScaleType::F16 => out.extend(as_row(DType::F16, 2)),
        ScaleType::F32 => out.extend(value.to_le_bytes()),
    }
}

impl Weights {
    pub(crate) fn random(
        random: &mut Random,
        (dtype, kind, tile, zeros): (DType, ScaleType, [usize; 2], bool),
        [rows, cols]: [usize; 2],
    ) -> Self {
        let bytes = |random: &mut Random, len: usize| -> Vec<u8> {
            (0..len).map(|_| random.bits() as u8).collect()
        };
        let mut codes = bytes(random, rows * dtype.row_bytes(cols).unwrap());
        if dtype == DType::F8E4M3 {
            // Numbers only; what is none has a test of its own.
            codes.iter_mut().filter(|c| **c & 0x7f == 0x7f).for_each(|c| *c ^= 1);
        }
        let count = rows.div_ceil(tile[0]) * cols.div_ceil(tile[1]);
        let mut scales = Vec::new();
        for _ in 0..count {
            encode(kind, random.normal() * 3.0, &mut scales);
        }
        let words = rows.div_ceil(8) * cols.div_ceil(tile[1]);
        let zeros = zeros.then(|| bytes(random, 4 * words));
        Self { dtype, rows, cols, codes, kind, tile, scales, zeros, factor: Factor::Over(3.7) }
    }

    pub(crate) fn matrix(&self) -> Matrix<'_> {
        let [rows, cols] = self.tile;
        let scales = Scales { kind: self.kind, rows, cols, bytes: &self.scales };
        let matrix = Matrix::new(self.dtype, self.rows, self.cols, &self.codes);
        let matrix = matrix.with_scales(scales).with_factor(self.factor);
        self.zeros.as_deref().map_or(matrix, |zeros| matrix.with_zeros(zeros))
    }

    /// Scale and zero point of a weight, from the drawing.
    fn scale(&self, row: usize, col: usize) -> (f32, i32) {
        let per_row = self.cols.div_ceil(self.tile[1]);
        let index = row / self.tile[0] * per_row + col / self.tile[1];
        let b = &self.scales;
        let scale = match self.kind {
            ScaleType::E4M3 => oracle::e4m3(b[index]),
            ScaleType::E8M0 if b[index] == 255 => f32::NAN,
            ScaleType::E8M0 => (f64::from(b[index]) - 127.0).exp2() as f32,
            ScaleType::BF16 => {
                f32::from_bits(u32::from(b[2 * index]) << 16 | u32::from(b[2 * index + 1]) << 24)
            }
            ScaleType::F16 => f16(b, 2 * index),
            ScaleType::F32 => f32::from_le_bytes(b[4 * index..4 * index + 4].try_into().unwrap()),
        };
        let zero = self.zeros.as_ref().map_or(8, |zeros| {
            let word = row / 8 * per_row + col / self.tile[1];
            let word = u32::from_le_bytes(zeros[4 * word..4 * word + 4].try_into().unwrap());
            (word >> (4 * (row % 8)) & 15) as i32
        });
        (scale, zero)
    }

    fn product(&self, row: usize, x: &[f32], precision: Precision) -> f32 {
        let row_bytes = self.dtype.row_bytes(self.cols).unwrap();
        let codes = &self.codes[row * row_bytes..(row + 1) * row_bytes];
        let scale = |col: usize| self.scale(row, col);
        let sum = if self.dtype == DType::F8E4M3 {
            self.float_product(codes, &scale, x)
        } else {
            Row::scaled(self.dtype, codes, &scale).product(&Input::new(self.dtype, x, precision))
        };
        match self.factor {
            Factor::Times(factor) => sum * factor,
            Factor::Over(divisor) => sum / divisor,
        }
    }

    /// Sixteen lanes within each tile, joined by the tile's scale.
    fn float_product(&self, codes: &[u8], scale: oracle::ScaleOf<'_>, x: &[f32]) -> f32 {
        let mut acc = [0f32; 16];
        for first in (0..self.cols).step_by(self.tile[1]) {
            let mut lanes = [0f32; 16];
            for col in first..(first + self.tile[1]).min(self.cols) {
                let lane = (col - first) % 16;
                lanes[lane] = oracle::e4m3(codes[col]).mul_add(x[col], lanes[lane]);
            }
            for lane in 0..16 {
                acc[lane] = scale(first).0.mul_add(lanes[lane], acc[lane]);
            }
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                acc[lane] += acc[lane + half];
            }
        }
        acc[0]
    }
}

/// Compares the product of `matrix`, whose row `r` is row `row_of(r)` of `weights`, with the
/// oracle; returns the outputs.
fn check(
    weights: &Weights,
    matrix: Matrix<'_>,
    row_of: &dyn Fn(usize) -> usize,
    x: &[f32],
) -> Vec<f32> {
    let (rows, cols, tokens) = (matrix.rows(), weights.cols, x.len() / weights.cols);
    let pool = Pool::new(2, Pinning::None);
    let mut last = Vec::new();
    for precision in [Precision::Eight, Precision::Sixteen] {
        let kinds = ActKinds::of(weights.dtype);
        let mut input = Activations::with_capacity(tokens, cols, precision, kinds);
        input.set(&pool, x, tokens, cols, kinds);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let mut output = vec![f32::NAN; tokens * rows];
            let (range, out) = (Rows::Range(0..tokens), &mut output[..]);
            let job = Job { weight: matrix, input: &input, input_col: 0, rows: range, output: out };
            matmul_with(isa, &pool, &mut [job]);
            for (index, ours) in output.iter().enumerate() {
                let (token, row) = (index / rows, index % rows);
                let x = &x[token * cols..(token + 1) * cols];
                let expected = weights.product(row_of(row), x, precision);
                assert!(
                    ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan(),
                    "{} {:?} {:?} {isa} {precision:?} [{rows}, {cols}] token {token} row {row}: \
                     {ours} instead of {expected}",
                    weights.dtype,
                    weights.kind,
                    weights.tile,
                );
            }
            last = output;
        }
    }
    last
}

fn inputs(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| random.normal()).collect()
}

#[test]
fn every_layout_and_shape_equals_the_oracle() {
    let mut random = Random::new(21);
    for cols in [32, 224, 256, 544] {
        for layout in layouts(cols) {
            for (rows, tokens) in [(1, 1), (7, 3), (33, 1), (33, 2), (33, 9)] {
                let weights = Weights::random(&mut random, layout, [rows, cols]);
                let x = inputs(&mut random, tokens * cols);
                check(&weights, weights.matrix(), &|row| row, &x);
            }
        }
    }
}

#[test]
fn rows_cut_out_keep_their_scales() {
    let mut random = Random::new(22);
    let cols = 96;
    for layout in layouts(cols) {
        let weights = Weights::random(&mut random, layout, [150, cols]);
        let x = inputs(&mut random, cols);
        let matrix = weights.matrix();
        check(&weights, matrix.slice_rows(121..146), &|row| row + 121, &x);
        let inner = matrix.slice_rows(121..146).slice_rows(3..20);
        check(&weights, inner, &|row| row + 124, &x);
        if layout.2[0] == 1 && !layout.3 {
            let bytes =
                matrix.slice_rows(0..70).num_bytes() + matrix.slice_rows(70..150).num_bytes();
            assert_eq!(bytes, matrix.num_bytes());
        }
        assert_eq!(matrix.slice_rows(5..5).num_bytes(), 0);
    }
}

/// Every byte as a code beside every byte as a scale, at both ends of the inputs.
#[test]
fn every_code_meets_every_scale() {
    let mut random = Random::new(23);
    let (rows, cols) = (256, 512);
    for (dtype, kind, tile, zeros) in layouts(cols) {
        let mut weights = Weights::random(&mut random, (dtype, kind, tile, zeros), [rows, cols]);
        let row_bytes = weights.codes.len() / rows;
        for (index, code) in weights.codes.iter_mut().enumerate() {
            *code = (index / row_bytes) as u8;
        }
        if kind.num_bytes() == 1 {
            let per_row = weights.scales.len() / rows.div_ceil(tile[0]);
            for (index, scale) in weights.scales.iter_mut().enumerate() {
                // A row has every 16th or so, from another start in every row.
                *scale = (index / per_row + index % per_row * 16) as u8;
            }
        }
        let mut x = vec![1.0; 3 * cols];
        x[cols..2 * cols].fill(-1.0);
        for (k, x) in x[2 * cols..].iter_mut().enumerate() {
            *x = [1.0, -1.0, 0.5][k % 3];
        }
        check(&weights, weights.matrix(), &|row| row, &x);
    }
}

/// `weight = code * (scale factor)`, in this order of rounding.
#[test]
fn decoded_rows_follow_the_formula() {
    let mut random = Random::new(24);
    let cols = 160;
    for layout in layouts(cols) {
        let mut weights = Weights::random(&mut random, layout, [9, cols]);
        for factor in [Factor::ONE, Factor::Times(0.3), Factor::Over(1234.5)] {
            weights.factor = factor;
            let row_bytes = weights.dtype.row_bytes(cols).unwrap();
            let (mut codes, mut values) = (vec![0.0; cols], vec![0.0; cols]);
            for row in 0..9 {
                weights
                    .dtype
                    .decode_row(&weights.codes[row * row_bytes..][..row_bytes], &mut codes);
                weights.matrix().decode_row(row, &mut values);
                for (col, (code, value)) in codes.iter().zip(&values).enumerate() {
                    let (scale, zero) = weights.scale(row, col);
                    // A zero point of 8 is none: it leaves the sign of a zero alone.
                    let code = if zero == 8 { *code } else { code + (8 - zero) as f32 };
                    let expected = code * factor.apply(scale);
                    assert!(
                        value.to_bits() == expected.to_bits(),
                        "{layout:?} row {row} column {col}: {value} instead of {expected}"
                    );
                }
            }
        }
    }
}

/// One weight or scale that is no number spoils its row and no other.
#[test]
fn what_is_no_number_is_seen() {
    let mut random = Random::new(25);
    let cols = 288;
    for (dtype, kind, tile) in [
        (DType::Nvfp4Planes, ScaleType::E4M3, [1, 16]),
        (DType::Mxfp4Planes, ScaleType::E8M0, [1, 32]),
        (DType::Int4, ScaleType::F32, [1, 32]),
        (DType::F8E4M3, ScaleType::F32, [1, 48]),
    ] {
        for bad in [0, cols / tile[1] - 1] {
            let mut weights = Weights::random(&mut random, (dtype, kind, tile, false), [20, cols]);
            let at = (13 * (cols / tile[1]) + bad) * kind.num_bytes();
            weights.scales[at..at + kind.num_bytes()].fill(0xff);
            let out = check(&weights, weights.matrix(), &|row| row, &inputs(&mut random, cols));
            assert!(out.iter().enumerate().all(|(row, y)| y.is_nan() == (row == 13)), "{dtype}");
        }
    }
    let layout = (DType::F8E4M3, ScaleType::F32, [1, cols], false);
    let mut weights = Weights::random(&mut random, layout, [20, cols]);
    weights.codes[7 * cols + 31] = 0xff;
    let out = check(&weights, weights.matrix(), &|row| row, &inputs(&mut random, cols));
    assert!(out.iter().enumerate().all(|(row, y)| y.is_nan() == (row == 7)));
}

#[test]
#[should_panic(expected = "bytes of 6 scales")]
fn a_plane_of_another_size_is_refused() {
    let codes = [0; 3 * 16];
    let scales = Scales { kind: ScaleType::E4M3, rows: 1, cols: 16, bytes: &[0; 7] };
    let _ = Matrix::new(DType::Nvfp4Planes, 3, 32, &codes).with_scales(scales);
}
