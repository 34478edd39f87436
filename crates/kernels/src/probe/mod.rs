//! What this machine can do at best: the yardsticks `bench` prints next to what a model does.
//!
//! A decode step can be no faster than its bytes divided by the read bandwidth, a prefill no
//! faster than its multiplications divided by the peaks. All numbers are measured with the
//! threads of the pool and the instruction set in use, and are the best of several runs, because a
//! neighbour can only make them worse.

pub mod disk;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::hint::black_box;
use std::io;
use std::sync::Mutex;
use std::time::Instant;

use crate::arch;
use crate::isa::{self, Isa};
use crate::lanes::{self, Kernel, LANES, Narrow};
use crate::os::cpu;
use crate::os::memory::Region;
use crate::pool::Pool;

/// Measured limits of this machine, all threads of the pool together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MachineLimits {
    /// Threads that took part.
    pub threads: usize,
    /// The instruction set measured.
    pub isa: Isa,
    /// Bytes per second read from memory, by four streams a thread; best run.
    pub read_bytes_per_s_best: f64,
    /// The same, median run.
    pub read_bytes_per_s_median: f64,
    /// 8-bit multiplications and additions per second, best run.
    pub int8_ops_per_s_best: f64,
    /// Multiplications of bfloat16 numbers and additions to single-precision sums per second, best
    /// run; `None` if the instruction set in use, or this machine, has none.
    pub bf16_ops_per_s_best: Option<f64>,
    /// Single-precision multiplications and additions per second, best run.
    pub f32_ops_per_s_best: f64,
}

/// Bytes to read: many times the largest caches, and a quarter of a second at most.
const BUFFER_BYTES: usize = 1 << 30;
/// Bytes a worker claims at once.
const CHUNK: usize = 4 << 20;
const READ_RUNS: usize = 7;
const PEAK_RUNS: usize = 40;
/// Loop turns per run of a peak; about a millisecond.
const TURNS: usize = 100_000;
/// Independent chains of instructions, enough to hide their latency.
const CHAINS: usize = 10;

/// Measures everything; takes one to two seconds on an idle machine.
///
/// # Errors
/// If there is no memory for the read buffer.
pub fn measure(pool: &Pool) -> io::Result<MachineLimits> {
    let isa = isa::current();
    let mut reads = read_rates(pool, isa)?;
    reads.sort_by(f64::total_cmp);
    Ok(MachineLimits {
        threads: pool.threads(),
        isa,
        read_bytes_per_s_best: reads[reads.len() - 1],
        read_bytes_per_s_median: reads[reads.len() / 2],
        int8_ops_per_s_best: peak_rate(pool, || int8_turns(isa)),
        bf16_ops_per_s_best: bf16_turns(isa).map(|turns| peak_rate(pool, turns)),
        f32_ops_per_s_best: peak_rate(pool, || lanes::run(isa, FusedTurns)),
    })
}

/// Bytes per second of each run.
fn read_rates(pool: &Pool, isa: Isa) -> io::Result<Vec<f64>> {
    let quarter = usize::try_from(cpu::ram().available / 4).unwrap_or(BUFFER_BYTES);
    let len = BUFFER_BYTES.min(quarter).max(16 * CHUNK) / CHUNK * CHUNK;
    let mut region = Region::anonymous(len)?;
    let (_, floats, _) = {
        // SAFETY: every bit pattern is a valid f32.
        unsafe { region.bytes_mut().align_to_mut::<f32>() }
    };
    // Written by all workers, so that each page lies near one of them and none is the zero page.
    pool.for_each_row(floats, CHUNK / 4, |_, row| row.fill(1.0));
    let floats = &*floats;
    let run = |_| {
        let start = Instant::now();
        pool.for_each_chunk(floats.len(), CHUNK / 4, |_, range| {
            black_box(lanes::run(isa, Sum(&floats[range])));
        });
        len as f64 / start.elapsed().as_secs_f64()
    };
    Ok((0..READ_RUNS).map(run).collect())
}

/// Operations per second of all workers: the sum of each one's best run, because on a busy machine
/// all of them are hardly ever on a core at once. `turns` says how many operations it did.
fn peak_rate(pool: &Pool, turns: impl Fn() -> f64 + Sync) -> f64 {
    let best: Vec<Mutex<f64>> = (0..pool.threads()).map(|_| Mutex::new(0.0)).collect();
    for _ in 0..PEAK_RUNS {
        pool.run(&|worker| {
            let start = Instant::now();
            let operations = turns();
            let rate = operations / start.elapsed().as_secs_f64();
            let mut best = best[worker].lock().expect("comparing cannot panic");
            *best = best.max(rate);
        });
    }
    best.into_iter().map(|best| best.into_inner().expect("comparing cannot panic")).sum()
}

/// Adds up numbers as fast as they arrive: a line from each quarter by turns, for memory gives a
/// fifth to a third more to four streams than to one.
struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<L: Narrow>(self) -> f32 {
        let mut sums = [L::splat(0.0); 4];
        let lines = self.0.as_chunks::<LANES>().0;
        let quarter = lines.len() / 4;
        for line in 0..quarter {
            for (stream, sum) in sums.iter_mut().enumerate() {
                *sum = *sum + L::load(&lines[stream * quarter + line]);
            }
        }
        let [a, b, c, d] = sums;
        (a + b + (c + d)).sum()
    }
}

/// Independent fused multiply-adds that need no memory; returns the number of operations.
struct FusedTurns;

impl Kernel for FusedTurns {
    type Out = f64;

    #[inline(always)]
    fn run<L: Narrow>(self) -> f64 {
        // As many chains as fit in registers.
        if L::REGISTERS >= 32 { fused_turns::<L, CHAINS>() } else { fused_turns::<L, 5>() }
    }
}

#[inline(always)]
fn fused_turns<L: Narrow, const N: usize>() -> f64 {
    let factor = L::splat(black_box(0.999));
    let term = L::splat(black_box(0.001));
    let mut chains = [L::splat(1.0); N];
    for _ in 0..TURNS {
        for chain in &mut chains {
            *chain = chain.mul_add(factor, term);
        }
    }
    for chain in chains {
        black_box(chain.sum());
    }
    (TURNS * N * LANES * 2) as f64
}

/// Products of unsigned and signed bytes, four to a sum, as quantised formats need them. Returns
/// the number of operations.
fn int8_turns(isa: Isa) -> f64 {
    match isa {
        // SAFETY: `isa::current` names only what this machine has.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { x86_64::int8_turns_avx512() },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86_64::int8_turns_avx2() },
        _ => int8_turns_scalar(),
    }
}

/// Products of bfloat16 numbers, where there are instructions for them: of tiles, or two to a sum.
fn bf16_turns(isa: Isa) -> Option<fn() -> f64> {
    if let Some(turns) = arch::tile_turns(isa) {
        return Some(turns);
    }
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: looked for just now.
        return Some(|| unsafe { x86_64::bf16_turns_avx512() });
    }
    let _ = isa;
    None
}

fn int8_turns_scalar() -> f64 {
    let (a, b) = (black_box([77u8; 64]), black_box([-3i8; 64]));
    let mut sum = 0i32;
    for _ in 0..TURNS / 16 {
        let (a, b) = (black_box(&a), black_box(&b));
        for (a, b) in a.iter().zip(b) {
            sum = sum.wrapping_add(i32::from(*a) * i32::from(*b));
        }
    }
    black_box(sum);
    (TURNS / 16 * 64 * 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pinning;

    #[test]
    fn limits_are_plausible() {
        let pool = Pool::new(2, Pinning::None);
        let limits = measure(&pool).unwrap();
        assert_eq!(limits.threads, 2);
        assert!(limits.read_bytes_per_s_best > 1e8, "{limits:?}");
        assert!(limits.read_bytes_per_s_median <= limits.read_bytes_per_s_best);
        assert!(limits.int8_ops_per_s_best > 1e8, "{limits:?}");
        assert!((1e7..1e14).contains(&limits.f32_ops_per_s_best), "{limits:?}");
        assert!(limits.bf16_ops_per_s_best.is_none_or(|rate| rate > 1e7), "{limits:?}");
    }
}
