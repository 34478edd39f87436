//! How fast every format is multiplied on every instruction set, next to what memory can do.
//!
//! `cargo run --release -p moeba-kernels --example speed -- [--formats Q4_K,Q8_0] [--isas avx512]
//! [--tokens 1,4,64] [--cols 4096] [--mib 1024] [--rounds 5] [--threads 2] [--clock wall]
//! [--activations 16]`
//!
//! On a busy machine `--threads 1 --clock cpu` counts the seconds this process really had.
//! Every round reads the weights plainly, then multiplies them, so that a noisy neighbour hurts
//! both alike. GB/s counts weight bytes, scales that lie apart included, Gop/s counts 2 operations
//! per weight and token; the last columns are the median over rounds of the ratio to the plain
//! read, and its range.

#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::time::{ClockId, clock_gettime};

use moeba_kernels::activations::{ActKinds, Activations, Precision};
use moeba_kernels::dtype::{DType, FORMATS, ScaleLayout};
use moeba_kernels::isa::Isa;
use moeba_kernels::matmul::{Job, Rows, matmul_with};
use moeba_kernels::os::memory::Region;
use moeba_kernels::pool::{Pinning, Pool};
use moeba_kernels::tensor::{Matrix, ScaleType, Scales};

struct Options {
    formats: Vec<DType>,
    isas: Vec<Isa>,
    tokens: Vec<usize>,
    cols: usize,
    mib: usize,
    rounds: usize,
    threads: usize,
    clock: ClockId,
    precision: Precision,
}

/// Seconds on a clock; a process has as many CPU seconds per second as threads.
fn seconds(clock: ClockId) -> f64 {
    let now = clock_gettime(clock);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

fn options() -> Options {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let given: HashMap<&str, &str> =
        args.chunks_exact(2).map(|two| (two[0].trim_start_matches('-'), two[1].as_str())).collect();
    let number = |name: &str, otherwise: usize| {
        given.get(name).map_or(otherwise, |text| text.parse().expect("a number"))
    };
    let list = |name: &str, otherwise: String| -> Vec<String> {
        let text = given.get(name).map_or(otherwise, |text| (*text).to_owned());
        text.split(',').map(str::to_owned).collect()
    };
    let all: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
    Options {
        formats: list("formats", all.join(","))
            .iter()
            .map(|name| DType::from_name(name).expect("a format's name"))
            .collect(),
        isas: list("isas", Isa::detect().name().to_owned())
            .iter()
            .map(|name| Isa::from_name(name).expect("an instruction set's name"))
            .collect(),
        tokens: list("tokens", "1,4,16,64,256".to_owned())
            .iter()
            .map(|text| text.parse().expect("a number of tokens"))
            .collect(),
        cols: number("cols", 4096),
        mib: number("mib", 1024),
        rounds: number("rounds", 5),
        threads: number("threads", 2),
        precision: match given.get("activations") {
            Some(&"16") => Precision::Sixteen,
            _ => Precision::Eight,
        },
        clock: match given.get("clock") {
            Some(&"cpu") => ClockId::ProcessCPUTime,
            _ => ClockId::Monotonic,
        },
    }
}

/// Weights of one format: 64 encoded rows, repeated.
fn fill(region: &mut Region, dtype: DType, rows: usize, cols: usize) {
    let row_bytes = dtype.row_bytes(cols).expect("a whole number of blocks");
    let mut seed = 1u32;
    let mut values = vec![0f32; cols];
    let mut pattern = vec![0u8; 64 * row_bytes];
    for row in pattern.chunks_exact_mut(row_bytes) {
        for value in &mut values {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *value = (seed >> 8) as f32 / (1 << 24) as f32 - 0.5;
        }
        if !dtype.can_encode() {
            // Any bytes are weights, and all of them cost the same.
            let (words, _) = row.as_chunks_mut::<2>();
            for (word, value) in words.iter_mut().zip(&values) {
                *word = (value.to_bits() as u16).to_le_bytes();
            }
            continue;
        }
        dtype.encode_row(&values, None, row);
    }
    for part in region.bytes_mut()[..rows * row_bytes].chunks_mut(pattern.len()) {
        part.copy_from_slice(&pattern[..part.len()]);
    }
}

/// The tile of scales that lie apart, as most checkpoints have it, and their bytes: all of them 1.
fn scales(dtype: DType, rows: usize, cols: usize) -> Option<(ScaleType, [usize; 2], Vec<u8>)> {
    let ScaleLayout::Apart(apart) = dtype.format().scales else { return None };
    let tile = match dtype {
        DType::F8E4M3 => [128, 128],
        _ => [1, apart.cols.unwrap_or(32)],
    };
    let kind = apart.types[0];
    let one: &[u8] = match kind {
        ScaleType::E4M3 => &[0x38],
        ScaleType::E8M0 => &[127],
        ScaleType::BF16 => &[0x80, 0x3f],
        ScaleType::F16 => &[0, 0x3c],
        ScaleType::F32 => &[0, 0, 0x80, 0x3f],
    };
    Some((kind, tile, one.repeat(rows.div_ceil(tile[0]) * cols.div_ceil(tile[1]))))
}

/// Seconds to read `bytes` once with all threads, four streams each as in `moeba probe`.
fn read_seconds(pool: &Pool, bytes: &[u8], clock: ClockId) -> f64 {
    const CHUNK: usize = 1 << 20;
    let (next, total) = (AtomicUsize::new(0), AtomicU64::new(0));
    let start = seconds(clock);
    pool.run(&|_| {
        let mut sums = [0u64; 8];
        while let Some(chunk) = bytes.chunks(CHUNK).nth(next.fetch_add(1, Ordering::Relaxed)) {
            let lines = chunk.as_chunks::<64>().0;
            let quarter = lines.len() / 4;
            for line in 0..quarter {
                for stream in 0..4 {
                    let words = lines[stream * quarter + line].as_chunks::<8>().0;
                    for (sum, word) in sums.iter_mut().zip(words) {
                        *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
                    }
                }
            }
        }
        total.fetch_add(sums.iter().fold(0, |a, b| a.wrapping_add(*b)), Ordering::Relaxed);
    });
    black_box(total.into_inner());
    seconds(clock) - start
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let options = options();
    let pool = Pool::new(options.threads, Pinning::Cores);
    pool.pin_caller();
    let mut region = Region::anonymous(options.mib << 20).expect("memory for the weights");
    println!("{} MiB of weights, {} threads", options.mib, options.threads);
    println!("format       isa     tokens   GB/s   Gop/s   read GB/s   of read (range)");
    for &dtype in &options.formats {
        let row_bytes = dtype.row_bytes(options.cols).expect("a whole number of blocks");
        let rows = (options.mib << 20) / row_bytes / 64 * 64;
        fill(&mut region, dtype, rows, options.cols);
        for &isa in &options.isas {
            for &tokens in &options.tokens {
                measure(&options, &pool, &region, (dtype, rows, isa, tokens));
            }
        }
    }
}

fn measure(
    options: &Options,
    pool: &Pool,
    region: &Region,
    (dtype, rows, isa, tokens): (DType, usize, Isa, usize),
) {
    let cols = options.cols;
    let row_bytes = dtype.row_bytes(cols).expect("a whole number of blocks");
    // Many tokens are bound by arithmetic, not memory: fewer rows show as much in less time.
    let rows = (rows / tokens.div_ceil(4)).next_multiple_of(64).min(rows);
    let bytes = &region[..rows * row_bytes];
    let x: Vec<f32> = (0..tokens * cols).map(|i| (i % 97) as f32 - 48.0).collect();
    let precision = if isa == Isa::Amx { Precision::Mixed } else { options.precision };
    let mut input = Activations::with_capacity(tokens, cols, precision, ActKinds::ALL);
    input.set(pool, &x, tokens, cols, ActKinds::of(dtype));
    let mut output = vec![0f32; tokens * rows];
    let apart = scales(dtype, rows, cols);
    let mut weight = Matrix::new(dtype, rows, cols, bytes);
    if let Some((kind, tile, bytes)) = &apart {
        let [rows, cols] = *tile;
        weight = weight.with_scales(Scales { kind: *kind, rows, cols, bytes });
    }
    let scales = apart.as_ref().map_or(&[][..], |(.., bytes)| bytes);
    let num_bytes = (bytes.len() + scales.len()) as f64;
    let (mut reads, mut speeds, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        let read = read_seconds(pool, bytes, options.clock);
        let read = num_bytes / (read + read_seconds(pool, scales, options.clock)) / 1e9;
        let start = seconds(options.clock);
        let (rows, output) = (Rows::Range(0..tokens), &mut output[..]);
        matmul_with(isa, pool, &mut [Job { weight, input: &input, input_col: 0, rows, output }]);
        let speed = num_bytes / (seconds(options.clock) - start) / 1e9;
        black_box(&output);
        // The first round warms up.
        if round > 0 {
            reads.push(read);
            speeds.push(speed);
            ratios.push(speed / read);
        }
    }
    let (read, speed, ratio) = (median(&mut reads), median(&mut speeds), median(&mut ratios));
    let operations = speed * 2.0 * (tokens * rows * cols) as f64 / num_bytes;
    println!(
        "{:12} {:7} {tokens:6} {speed:6.1} {operations:7.0} {read:11.1} {ratio:9.3} ({:.3}-{:.3})",
        dtype.name(),
        isa.name(),
        ratios[0],
        ratios[ratios.len() - 1],
    );
}
