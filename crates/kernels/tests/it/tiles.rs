//! Products by tiles, on machines that have them: every format against sums in double precision of
//! weights and inputs that were rounded to bfloats; Q4_K with few inputs, whose weights are rounded
//! before they are scaled, within what that may come to.

use moeba_kernels::activations::{ActKinds, Activations, Precision};
use moeba_kernels::dtype::{DType, FORMATS, Format, ScaleLayout};
use moeba_kernels::isa::{self, Isa};
use moeba_kernels::matmul::{Job, Rows, matmul};
use moeba_kernels::pool::{Pinning, Pool};
use moeba_kernels::tensor::{Factor, Matrix};

use crate::matmul::random_weights;
use crate::oracle::Random;
use crate::planes;

/// The nearest bfloat, ties to even.
fn bfloat(value: f32) -> f64 {
    let bits = value.to_bits();
    let rounded = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    f64::from(f32::from_bits(rounded))
}

/// Multiplies with as many inputs as `tokens` picks from `x`, and compares.
fn check(dtype: DType, rows: usize, cols: usize, tokens: &Rows<'_>, random: &mut Random) {
    let weights = random_weights(random, dtype, rows, cols);
    check_matrix(Matrix::new(dtype, rows, cols, &weights), tokens, random);
}

/// [`check`] with weights that are there.
fn check_matrix(weight: Matrix<'_>, tokens: &Rows<'_>, random: &mut Random) {
    let (dtype, rows, cols) = (weight.dtype(), weight.rows(), weight.cols());
    let input_rows = 1 + (0..tokens.len()).map(|index| tokens.at(index)).max().unwrap();
    let x: Vec<f32> = (0..input_rows * cols).map(|_| random.normal()).collect();
    let pool = Pool::new(2, Pinning::None);
    let mut input = Activations::with_capacity(input_rows, cols, Precision::Mixed, ActKinds::ALL);
    input.set(&pool, &x, input_rows, cols, ActKinds::of(dtype));
    let mut output = vec![f32::NAN; tokens.len() * rows];
    let job =
        Job { weight, input: &input, input_col: 0, rows: tokens.clone(), output: &mut output };
    matmul(&pool, &mut [job]);
    let mut row = vec![0.0; cols];
    // Of Q4_K, where few inputs share it, not weights are rounded but what their scales are
    // multiplied with: as finely as the largest of the 32 that share one, at worst.
    let late = dtype == DType::Q4K && tokens.len() <= 32;
    for r in 0..rows {
        weight.decode_row(r, &mut row);
        let spread = |sub: &[f32]| {
            let (low, high) =
                sub.iter().fold((f32::MAX, f32::MIN), |(low, high), w| (low.min(*w), high.max(*w)));
            f64::from(high - low)
        };
        let spreads: Vec<f64> = row.chunks(32).map(spread).collect();
        for index in 0..tokens.len() {
            let x = &x[tokens.at(index) * cols..][..cols];
            let (mut sum, mut all, mut most, mut noise) = (0.0, 0.0, 0f64, 0.0);
            for (index, (w, x)) in row.iter().zip(x).enumerate() {
                let w = if late { f64::from(*w) } else { bfloat(*w) };
                let product = w * bfloat(*x);
                sum += product;
                all += product.abs();
                most = most.max(product.abs());
                noise += (spreads[index / 32] * bfloat(*x) / 512.0).powi(2);
            }
            // Sums are in single precision, and a few weights may be rounded the other way.
            let allowed =
                all / f64::from(1 << 14) + if late { 2.0 * noise.sqrt() } else { most / 64.0 };
            let ours = f64::from(output[index * rows + r]);
            assert!(
                (ours - sum).abs() <= allowed,
                "{dtype} [{rows}, {cols}] x {}, row {r}, input {index}: {ours}, not {sum}",
                tokens.len()
            );
        }
    }
}

#[test]
fn every_format_and_shape_is_as_close_as_bfloats_are() {
    if isa::current() != Isa::Amx {
        return;
    }
    let mut random = Random::new(9);
    let inside = |format: &&Format| format.block_len > 1 && format.scales == ScaleLayout::Inside;
    for format in FORMATS.iter().filter(inside) {
        for rows in [1, 16, 17, 40, 300] {
            for tokens in [12, 31, 33, 70, 140] {
                if rows * tokens > 10_000 {
                    continue;
                }
                let cols = format.block_len * (1 + random.below(1024 / format.block_len));
                check(format.dtype, rows, cols, &Rows::Range(0..tokens), &mut random);
            }
        }
        let picked: Vec<u32> = (0..40).map(|index| (index * 7 % 33) as u32).collect();
        check(format.dtype, 33, 512, &Rows::Gather(&picked), &mut random);
    }
    // More columns than fit into the second cache, more rows than there are sums for meanwhile.
    check(DType::Q8_0, 260, 4128, &Rows::Range(0..113), &mut random);
}

#[test]
fn few_inputs_of_q4_k_in_units_of_every_size() {
    if isa::current() != Isa::Amx {
        return;
    }
    let mut random = Random::new(12);
    // Of 308 rows the last unit has 16 and 4, of 276 32 and 4, of 440 a panel and half of one.
    for (rows, cols) in [(276, 256), (308, 512), (440, 256)] {
        for tokens in [12, 16, 17, 32] {
            check(DType::Q4K, rows, cols, &Rows::Range(0..tokens), &mut random);
        }
        // As an expert has them whose neighbours have more.
        for picked in [1u32, 11, 16] {
            let picked: Vec<u32> = (0..picked).chain([39]).collect();
            check(DType::Q4K, rows, cols, &Rows::Gather(&picked), &mut random);
        }
    }
    // More columns than there is room for with two tiles of inputs.
    check(DType::Q4K, 20, 57 * 256, &Rows::Range(0..17), &mut random);
}

#[test]
fn what_is_multiplied_with_sums_of_inputs_is_hardly_rounded() {
    if isa::current() != Isa::Amx {
        return;
    }
    let mut random = Random::new(11);
    let (rows, cols) = (40, 1024);
    // Weights of `-e * m` alone, then of `d * sc * 8` alone.
    for (nothing, code) in [(0..2, 0x00), (2..4, 0x88)] {
        let mut weights = random_weights(&mut random, DType::Q4K, rows, cols);
        for block in weights.chunks_exact_mut(DType::Q4K.format().block_bytes) {
            block[nothing.clone()].fill(0);
            block[16..].fill(code);
        }
        for tokens in [12, 20] {
            let weight = Matrix::new(DType::Q4K, rows, cols, &weights);
            check_matrix(weight, &Rows::Range(0..tokens), &mut random);
        }
    }
}

#[test]
fn scales_that_lie_apart_reach_their_weights() {
    if isa::current() != Isa::Amx {
        return;
    }
    let mut random = Random::new(10);
    for cols in [32, 224, 256, 544] {
        for layout in planes::layouts(cols) {
            if layout.0.format().block_len == 1 {
                continue;
            }
            for rows in [5, 40] {
                let weights = planes::Weights::random(&mut random, layout, [rows, cols]);
                let matrix = weights.matrix().with_factor(Factor::ONE);
                check_matrix(matrix, &Rows::Range(0..30), &mut random);
            }
        }
    }
}

#[test]
fn damaged_weights_and_inputs_stay_visible() {
    if isa::current() != Isa::Amx {
        return;
    }
    let pool = Pool::new(1, Pinning::None);
    let cols = 512;
    let damages = [(0x7fffu16, 1.0), (0x7c00, 1.0), (0x3c00, f32::NAN), (0x3c00, f32::INFINITY)];
    for (dtype, (scale, value)) in [DType::Q8_0, DType::Q4K]
        .into_iter()
        .flat_map(|dtype| damages.map(|damage| (dtype, damage)))
    {
        let mut weights = vec![1u8; dtype.row_bytes(cols).unwrap() * 2];
        for block in weights.chunks_exact_mut(dtype.format().block_bytes) {
            block[..2].copy_from_slice(&scale.to_le_bytes());
        }
        let mut x = vec![0.5; cols * 24];
        x[3] = value;
        let mut input = Activations::with_capacity(24, cols, Precision::Mixed, ActKinds::ALL);
        input.set(&pool, &x, 24, cols, ActKinds::of(dtype));
        let mut output = vec![0.0; 48];
        let weight = Matrix::new(dtype, 2, cols, &weights);
        let rows = Rows::Range(0..24);
        matmul(
            &pool,
            &mut [Job { weight, input: &input, input_col: 0, rows, output: &mut output }],
        );
        assert!(!output[0].is_finite(), "{dtype} {scale:04x} {value}");
        // Other inputs are nobody's victims.
        assert_eq!(output[47].is_finite(), scale == 0x3c00, "{dtype} {scale:04x} {value}");
    }
}
