//! Attention: GFLOP/s of prefill and GB/s of decode, on each instruction set.
//!
//! `cargo bench -p moeba-kernels --bench attention`
#![expect(clippy::print_stdout, reason = "a benchmark reports to the terminal")]

use std::time::Instant;

use moeba_kernels::activations::Precision;
use moeba_kernels::attention::{
    AttentionArgs, AttentionScratch, BLOCK_TOKENS, KvDType, KvLayout, KvRole, KvTensor, Mask, Span,
    Strides, Values, attention, kv_store,
};
use moeba_kernels::isa::{self, Isa};
use moeba_kernels::pool::{Pinning, Pool};
use rustix::time::{ClockId, clock_gettime};

/// One layer's attention.
struct Shape {
    name: &'static str,
    num_heads: usize,
    num_kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    latent: bool,
}

const SHAPES: [Shape; 4] = [
    Shape {
        name: "9/3 x 64",
        num_heads: 9,
        num_kv_heads: 3,
        key_dim: 64,
        value_dim: 64,
        latent: false,
    },
    Shape {
        name: "16/16 x 128",
        num_heads: 16,
        num_kv_heads: 16,
        key_dim: 128,
        value_dim: 128,
        latent: false,
    },
    Shape {
        name: "32/4 x 128",
        num_heads: 32,
        num_kv_heads: 4,
        key_dim: 128,
        value_dim: 128,
        latent: false,
    },
    Shape {
        name: "latent 32 x 320/256",
        num_heads: 32,
        num_kv_heads: 1,
        key_dim: 320,
        value_dim: 256,
        latent: true,
    },
];

fn main() {
    let only = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    for threads in [1, 2] {
        let pool = Pool::new(threads, Pinning::Cores);
        for shape in &SHAPES {
            for dtype in [KvDType::F16, KvDType::Q8] {
                for isa in [Isa::Avx2, Isa::Avx512, Isa::Amx] {
                    if isa::force(isa)
                        && only.as_deref().is_none_or(|only| shape.name.contains(only))
                    {
                        print!("{threads} threads, {:20} {:4} {isa:7}", shape.name, dtype.name());
                        measure(&pool, shape, dtype, 512, 512);
                        measure(&pool, shape, dtype, 2048, 2048);
                        measure(&pool, shape, dtype, 1, 512);
                        measure(&pool, shape, dtype, 1, 8192);
                        println!();
                    }
                }
            }
        }
    }
}

/// Processor time this thread has used.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Attends the last `tokens` of a sequence of `length`.
fn measure(pool: &Pool, shape: &Shape, dtype: KvDType, tokens: usize, length: usize) {
    let layout = |role, dim| KvLayout { dtype, role, num_kv_heads: shape.num_kv_heads, dim };
    let keys = layout(KvRole::Keys, shape.key_dim);
    let values = layout(KvRole::Values, shape.value_dim);
    let blocks = length.div_ceil(BLOCK_TOKENS);
    let mut key_bytes = vec![0; blocks * keys.block_bytes()];
    let mut value_bytes = vec![0; blocks * values.block_bytes()];
    let row: Vec<f32> = (0..4096).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    let start = cpu_seconds();
    for slot in 0..length {
        kv_store(&keys, &mut key_bytes, slot, &row[..keys.num_kv_heads * keys.dim]);
        if !shape.latent {
            kv_store(&values, &mut value_bytes, slot, &row[..values.num_kv_heads * values.dim]);
        }
    }
    let store_ns = (cpu_seconds() - start) * 1e9 / length as f64;
    let q: Vec<f32> = (0..tokens * shape.num_heads * shape.key_dim)
        .map(|i| (i * 29 % 97) as f32 / 48.0 - 1.0)
        .collect();
    let mut out = vec![0.0; tokens * shape.num_heads * shape.value_dim];
    let block_ids: Vec<u32> = (0..blocks as u32).collect();
    let positions: Vec<u32> = (length as u32 - tokens as u32..length as u32).collect();
    let spans = [Span { tokens: 0..tokens, blocks: 0..blocks }];
    let args = AttentionArgs {
        q: &q,
        q_strides: Strides::token_major(shape.num_heads, shape.key_dim),
        num_heads: shape.num_heads,
        keys: KvTensor { layout: keys, bytes: &key_bytes },
        values: if shape.latent {
            Values::KeyPrefix(shape.value_dim)
        } else {
            Values::Cache(KvTensor { layout: values, bytes: &value_bytes })
        },
        spans: &spans,
        block_ids: &block_ids,
        positions: &positions,
        mask: Mask::Full,
        scale: 0.1,
        softcap: None,
        sinks: None,
        out_strides: Strides::token_major(shape.num_heads, shape.value_dim),
    };
    let scratch =
        AttentionScratch::new(pool.threads(), shape.key_dim, shape.value_dim, Precision::Mixed);
    let seconds = run_times(pool, || attention(pool, &args, &scratch, &mut out));
    let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
    let pairs: usize = positions.iter().map(|&p| p as usize + 1).sum();
    let flops = 2.0 * (pairs * shape.num_heads * (shape.key_dim + shape.value_dim)) as f64;
    if tokens > 1 {
        print!(
            "  {:6.1} ({:6.1}) GFLOP/s, store {store_ns:5.0} ns",
            flops / best / 1e9,
            flops / median / 1e9
        );
    } else {
        let bytes = key_bytes.len() + if shape.latent { 0 } else { value_bytes.len() };
        print!(
            "  @{length}: {:7.1} us, {:5.1} ({:5.1}) GB/s",
            best * 1e6,
            bytes as f64 / best / 1e9,
            bytes as f64 / median / 1e9
        );
    }
}

/// Sorted times of several calls.
fn run_times(pool: &Pool, mut call: impl FnMut()) -> Vec<f64> {
    let mut seconds: Vec<f64> = Vec::new();
    let begun = Instant::now();
    while seconds.len() < 5 || begun.elapsed().as_millis() < 150 {
        // A neighbour on the machine must not count: one thread is timed by its own clock.
        let (start, cpu_start) = (Instant::now(), cpu_seconds());
        call();
        seconds.push(match pool.threads() {
            1 => cpu_seconds() - cpu_start,
            _ => start.elapsed().as_secs_f64(),
        });
    }
    seconds.sort_by(f64::total_cmp);
    seconds
}
