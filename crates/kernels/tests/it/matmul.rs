//! Every product, on every instruction set this machine has, against the oracle: bit for bit.

use std::panic::{AssertUnwindSafe, catch_unwind};

use moeba_kernels::activations::{ActKinds, Activations, Precision};
use moeba_kernels::dtype::{DType, FORMATS};
use moeba_kernels::isa::Isa;
use moeba_kernels::matmul::{Job, Rows, matmul_with};
use moeba_kernels::pool::{Pinning, Pool};
use moeba_kernels::tensor::Matrix;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::blocks;
use crate::oracle::{Input, Random, Row};

/// Bytes of `rows` rows, random in every bit except that floats stay moderate.
pub(crate) fn random_weights(
    random: &mut Random,
    dtype: DType,
    rows: usize,
    cols: usize,
) -> Vec<u8> {
    let format = dtype.format();
    let mut bytes: Vec<u8> =
        (0..rows * dtype.row_bytes(cols).unwrap()).map(|_| random.bits() as u8).collect();
    if format.block_len == 1 {
        let values: Vec<f32> = (0..rows * cols).map(|_| random.normal()).collect();
        dtype.encode_row(&values, None, &mut bytes);
        return bytes;
    }
    for block in bytes.chunks_exact_mut(format.block_bytes) {
        blocks::tame(dtype, block);
    }
    bytes
}

/// Multiplies on every available instruction set and compares each output with the oracle, whose
/// outputs it returns.
fn check(dtype: DType, weights: &[u8], rows: usize, x: &[f32], tokens: &Rows<'_>) -> Vec<f32> {
    let mut expected = check_at(Precision::Eight, dtype, weights, rows, (x, tokens));
    expected.extend(check_at(Precision::Sixteen, dtype, weights, rows, (x, tokens)));
    expected
}

fn check_at(
    precision: Precision,
    dtype: DType,
    weights: &[u8],
    rows: usize,
    (x, tokens): (&[f32], &Rows<'_>),
) -> Vec<f32> {
    let cols = if rows == 0 { 512 } else { x.len() / input_rows(x, weights, dtype, rows) };
    let input_rows = x.len() / cols;
    let pool = Pool::new(2, Pinning::None);
    let mut input = Activations::with_capacity(input_rows, cols, precision, ActKinds::ALL);
    input.set(&pool, x, input_rows, cols, ActKinds::ALL);
    let row_bytes = dtype.row_bytes(cols).unwrap();
    let picked: Vec<usize> = match tokens {
        Rows::Range(range) => range.clone().collect(),
        Rows::Gather(rows) => rows.iter().map(|&row| row as usize).collect(),
    };
    let weight_rows: Vec<Row> =
        weights.chunks_exact(row_bytes).map(|row| Row::new(dtype, row)).collect();
    let mut expected = Vec::new();
    for &token in &picked {
        let input = Input::new(dtype, &x[token * cols..][..cols], precision);
        expected.extend(weight_rows.iter().map(|row| row.product(&input)));
    }
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let mut output = vec![f32::NAN; expected.len()];
        let weight = Matrix::new(dtype, rows, cols, weights);
        let (rows, output_ref) = (tokens.clone(), &mut output[..]);
        let job = Job { weight, input: &input, input_col: 0, rows, output: output_ref };
        matmul_with(isa, &pool, &mut [job]);
        for (index, (ours, expected)) in output.iter().zip(&expected).enumerate() {
            assert!(
                ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan(),
                "{dtype} {isa} [{}, {cols}] token {} row {}: {ours} instead of {expected}",
                weight.rows(),
                index / weight.rows(),
                index % weight.rows(),
            );
        }
    }
    expected
}

/// Input rows that fit the weights' width.
fn input_rows(x: &[f32], weights: &[u8], dtype: DType, rows: usize) -> usize {
    let format = dtype.format();
    let cols = weights.len() / rows / format.block_bytes * format.block_len;
    x.len() / cols.max(1)
}

fn random_inputs(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| random.normal()).collect()
}

#[test]
fn every_format_isa_and_shape_equals_the_oracle() {
    let mut random = Random::new(1);
    for format in &FORMATS {
        let block = format.block_len.max(16);
        for rows in [1, 2, 7, 8, 9, 15, 16, 17, 33, 50] {
            for tokens in [1, 2, 3, 5, 9, 15] {
                let cols = block * (1 + random.below(2048 / block));
                let weights = random_weights(&mut random, format.dtype, rows, cols);
                let x = random_inputs(&mut random, tokens * cols);
                check(format.dtype, &weights, rows, &x, &Rows::Range(0..tokens));
            }
        }
    }
}

#[test]
fn float_rows_need_no_round_width() {
    let mut random = Random::new(2);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for cols in [1, 2, 15, 16, 17, 31, 33, 100] {
            let weights = random_weights(&mut random, dtype, 5, cols);
            let x = random_inputs(&mut random, 6 * cols);
            check(dtype, &weights, 5, &x, &Rows::Range(0..6));
        }
    }
}

#[test]
fn gathered_rows_and_long_batches() {
    let mut random = Random::new(3);
    for format in &FORMATS {
        let cols = 512;
        let weights = random_weights(&mut random, format.dtype, 20, cols);
        let x = random_inputs(&mut random, 70 * cols);
        check(format.dtype, &weights, 20, &x, &Rows::Range(1..70));
        check(format.dtype, &weights, 20, &x, &Rows::Gather(&[69, 0, 3, 3, 68, 1, 2]));
        check(format.dtype, &weights, 20, &x, &Rows::Gather(&[]));
    }
}

/// Every byte value as a weight, against inputs at both ends of their range.
#[test]
fn extremes_do_not_overflow() {
    for format in &FORMATS {
        if format.block_len == 1 {
            continue;
        }
        let cols = 512;
        let row_bytes = format.dtype.row_bytes(cols).unwrap();
        let mut weights = Vec::new();
        for byte in 0..=255u8 {
            weights.extend(std::iter::repeat_n(byte, row_bytes));
        }
        for block in weights.chunks_exact_mut(format.block_bytes) {
            blocks::set_scales_to_one(format.dtype, block);
        }
        let mut x = vec![1.0; 4 * cols];
        x[cols..2 * cols].fill(-1.0);
        for (k, x) in x[2 * cols..].iter_mut().enumerate() {
            *x = [1.0, -1.0, 0.5][k % 3];
        }
        let expected = check(format.dtype, &weights, 256, &x, &Rows::Range(0..4));
        assert!(expected.iter().all(|y| y.is_finite()), "{} compares nothing", format.dtype);
    }
}

#[test]
fn infinite_and_tiny_inputs() {
    let mut random = Random::new(4);
    for format in &FORMATS {
        let weights = random_weights(&mut random, format.dtype, 18, 512);
        for odd in [f32::INFINITY, f32::NAN, 1e-38, 1e-44, 0.0, f32::MAX] {
            let mut x = vec![0.0; 512];
            x[300] = odd;
            check(format.dtype, &weights, 18, &x, &Rows::Range(0..1));
        }
    }
}

/// Several jobs of several formats, from the middle of the input, as one region.
#[test]
fn jobs_share_a_region() {
    let mut random = Random::new(5);
    let pool = Pool::new(2, Pinning::None);
    let x = random_inputs(&mut random, 3 * 1024);
    let mut input = Activations::with_capacity(4, 1100, Precision::Sixteen, ActKinds::ALL);
    input.set(&pool, &x, 3, 1024, ActKinds::ALL);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let weights: Vec<Vec<u8>> = FORMATS
            .iter()
            .map(|format| random_weights(&mut random, format.dtype, 40, 256))
            .collect();
        let mut outputs = vec![vec![0.0; 3 * 40]; FORMATS.len()];
        let mut jobs: Vec<Job<'_>> = Vec::new();
        for ((format, weights), output) in FORMATS.iter().zip(&weights).zip(&mut outputs) {
            let weight = Matrix::new(format.dtype, 40, 256, weights);
            jobs.push(Job {
                weight,
                input: &input,
                input_col: 512,
                rows: Rows::Range(0..3),
                output,
            });
        }
        matmul_with(isa, &pool, &mut jobs);
        for ((format, weights), output) in FORMATS.iter().zip(&weights).zip(&outputs) {
            let row_bytes = format.dtype.row_bytes(256).unwrap();
            for (index, ours) in output.iter().enumerate() {
                let row = &weights[index % 40 * row_bytes..][..row_bytes];
                let x = &x[index / 40 * 1024 + 512..][..256];
                let x = Input::new(format.dtype, x, Precision::Sixteen);
                let expected = Row::new(format.dtype, row).product(&x);
                assert_eq!(ours.to_bits(), expected.to_bits(), "{} {isa} {index}", format.name);
            }
        }
    }
}

#[test]
fn jobs_whose_shapes_disagree_are_the_callers_mistake() {
    let pool = Pool::new(1, Pinning::None);
    let mut input = Activations::with_capacity(3, 512, Precision::Eight, ActKinds::ALL);
    input.set(&pool, &[1.0; 2 * 512], 2, 512, ActKinds::of(DType::Q8_0));
    let refused = |dtype: DType, input_col: usize, rows: Rows<'_>, len: usize| {
        let (bytes, mut output) = (vec![0; 2 * dtype.row_bytes(256).unwrap()], vec![0.0; len]);
        let weight = Matrix::new(dtype, 2, 256, &bytes);
        let job = Job { weight, input: &input, input_col, rows, output: &mut output };
        catch_unwind(AssertUnwindSafe(|| matmul_with(Isa::Scalar, &pool, &mut [job]))).is_err()
    };
    assert!(!refused(DType::Q8_0, 256, Rows::Range(0..2), 4));
    assert!(refused(DType::Q8_0, 16, Rows::Range(0..2), 4), "in the middle of a block");
    assert!(refused(DType::Q8_0, 288, Rows::Range(0..2), 4), "past the columns set");
    assert!(refused(DType::Q8_0, 0, Rows::Range(1..3), 4), "past the rows set");
    assert!(refused(DType::Q8_0, 0, Rows::Gather(&[0, 2]), 4), "past the rows set");
    assert!(refused(DType::Q8_0, 0, Rows::Range(0..2), 5), "another output");
    assert!(refused(DType::Q4K, 0, Rows::Range(0..2), 4), "another form of inputs");
}

/// Memory whose last byte is the last that can be read: one more would end the process.
struct Fenced {
    first: *mut std::ffi::c_void,
    mapped: usize,
    len: usize,
}

impl Fenced {
    fn new(bytes: &[u8]) -> Self {
        const PAGE: usize = 1 << 16;
        let readable = bytes.len().next_multiple_of(PAGE);
        let mapped = readable + PAGE;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let first = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, access, flags) }.unwrap();
        // SAFETY: the fence and the bytes before it lie within the mapping.
        unsafe {
            mprotect(first.byte_add(readable), PAGE, MprotectFlags::empty()).unwrap();
            let start = first.byte_add(readable - bytes.len()).cast::<u8>();
            start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        Self { first, mapped, len: bytes.len() }
    }

    fn bytes(&self) -> &[u8] {
        let readable = self.mapped - (1 << 16);
        // SAFETY: `new` filled the last `len` bytes before the fence.
        unsafe {
            let start = self.first.byte_add(readable - self.len).cast::<u8>();
            std::slice::from_raw_parts(start, self.len)
        }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it, and no slice of it outlives `self`.
        unsafe { munmap(self.first, self.mapped).unwrap() };
    }
}

#[test]
fn nothing_is_read_past_the_last_weight() {
    let mut random = Random::new(6);
    for format in &FORMATS {
        for rows in [1, 5, 8, 16, 17, 32] {
            for cols in [256, 512] {
                let weights = Fenced::new(&random_weights(&mut random, format.dtype, rows, cols));
                let x = random_inputs(&mut random, 2 * cols);
                check(format.dtype, weights.bytes(), rows, &x, &Rows::Range(0..2));
            }
        }
        let cols = format.block_len;
        let weights = Fenced::new(&random_weights(&mut random, format.dtype, 16, cols));
        let x = random_inputs(&mut random, cols);
        check(format.dtype, weights.bytes(), 16, &x, &Rows::Range(0..1));
    }
}

/// Threads, and with them the split of the work, change nothing.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let mut random = Random::new(8);
    let (rows, cols) = (333, 768);
    for (format, tokens) in FORMATS.iter().flat_map(|format| [1, 2, 3].map(|n| (format, n))) {
        let weights = random_weights(&mut random, format.dtype, rows, cols);
        let x = random_inputs(&mut random, tokens * cols);
        let reversed: Vec<u32> = (0..tokens as u32).rev().collect();
        let product = |isa: Isa, threads: usize, order: Rows<'_>| -> Vec<u32> {
            let pool = Pool::new(threads, Pinning::None);
            let mut input =
                Activations::with_capacity(tokens, cols, Precision::Sixteen, ActKinds::ALL);
            input.set(&pool, &x, tokens, cols, ActKinds::ALL);
            let mut output = vec![0.0; tokens * rows];
            let weight = Matrix::new(format.dtype, rows, cols, &weights);
            let job = Job { weight, input: &input, input_col: 0, rows: order, output: &mut output };
            matmul_with(isa, &pool, &mut [job]);
            output.iter().map(|y| y.to_bits()).collect()
        };
        let alone = product(Isa::detect(), 1, Rows::Range(0..tokens));
        for threads in [2, 3, 7] {
            let together = product(Isa::detect(), threads, Rows::Range(0..tokens));
            assert!(together == alone, "{}, {tokens} inputs, {threads} threads", format.name);
        }
        let isas = [Isa::Scalar, Isa::Avx2, Isa::Avx512];
        for isa in isas.into_iter().filter(|isa| isa.is_available()) {
            let gathered = product(isa, 1, Rows::Gather(&reversed));
            let rows_back: Vec<u32> =
                gathered.chunks_exact(rows).rev().flatten().copied().collect();
            assert!(rows_back == alone, "{}, {tokens} inputs, {isa}", format.name);
        }
    }
}
