//! The worker pool: cost of a fork and join, and what is left of it beside busy neighbours.
//!
//! `cargo bench -p moeba-kernels --bench pool -- [NEIGHBOURS]` starts that many busy loops.
//! A "token" is 200 regions of 50 us of work, about what a small model does per token.
#![expect(clippy::print_stdout, reason = "a benchmark reports to the terminal")]

use std::hint::black_box;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use moeba_kernels::pool::{Pinning, Pool};
use moeba_kernels::probe;

const REGIONS: usize = 200;
const REGION_SECONDS: f64 = 50e-6;
const CHUNKS: usize = 16;
const RUN: Duration = Duration::from_millis(800);
const ROUNDS: usize = 5;

fn main() {
    let wanted = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(0);
    let turns = calibrate();
    empty_regions();
    println!("{:?}", probe::measure(&Pool::new(2, Pinning::Cores)));
    let neighbours: Vec<Child> = (0..wanted).map(|_| busy_neighbour()).collect();
    let ways: [(&str, &dyn Fn(u64) -> f64); 6] = [
        ("1 thread", &|turns| token_rate(|| work(turns))),
        ("2 threads, spin barrier", &spin_barrier),
        ("2 threads, pool, halves", &|turns| pool_rate(Pinning::None, turns, false)),
        ("2 threads, pool, claims", &|turns| pool_rate(Pinning::None, turns, true)),
        ("pinned, halves", &|turns| pool_rate(Pinning::Cores, turns, false)),
        ("pinned, claims", &|turns| pool_rate(Pinning::Cores, turns, true)),
    ];
    let mut rates = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for ((_, way), rates) in ways.iter().zip(&mut rates) {
            rates.push(way(turns));
        }
    }
    for ((name, _), mut rates) in ways.iter().zip(rates) {
        rates.sort_by(f64::total_cmp);
        let (median, low, high) = (rates[ROUNDS / 2], rates[0], rates[ROUNDS - 1]);
        println!("{name:24} {median:6.1} tokens/s ({low:.1} to {high:.1}), {wanted} neighbours");
    }
    for mut neighbour in neighbours {
        neighbour.kill().expect("a child can be ended");
        neighbour.wait().expect("a child can be waited for");
    }
}

/// A loop in a session of its own, so that the scheduler treats it as another program.
fn busy_neighbour() -> Child {
    let command = ["sh", "-c", "while :; do :; done"];
    Command::new("setsid").args(command).spawn().expect("setsid and sh exist")
}

#[inline(never)]
fn work(turns: u64) {
    let mut x = 1u64;
    for i in 0..turns {
        x = black_box(x.wrapping_mul(3) ^ i);
    }
    black_box(x);
}

/// Turns of `work` in one region's time on a free core.
fn calibrate() -> u64 {
    const TURNS: u64 = 300_000;
    let seconds = |_| {
        let start = Instant::now();
        work(TURNS);
        start.elapsed().as_secs_f64()
    };
    let best = (0..20).map(seconds).fold(f64::MAX, f64::min);
    (REGION_SECONDS * TURNS as f64 / best) as u64
}

fn empty_regions() {
    let pool = Pool::new(2, Pinning::None);
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..20_000 {
        let start = Instant::now();
        pool.run(&|_| {});
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    println!("empty region: median {:.2} us, 99% {:.2} us", times[10_000], times[19_800]);
}

fn token_rate(region: impl Fn()) -> f64 {
    let start = Instant::now();
    let mut tokens = 0;
    while start.elapsed() < RUN {
        for _ in 0..REGIONS {
            region();
        }
        tokens += 1;
    }
    f64::from(tokens) / start.elapsed().as_secs_f64()
}

fn pool_rate(pinning: Pinning, turns: u64, claims: bool) -> f64 {
    let pool = Pool::new(2, pinning);
    if claims {
        token_rate(|| pool.for_each_chunk(CHUNKS, 1, |_, _| work(turns / CHUNKS as u64)))
    } else {
        token_rate(|| pool.run(&|_| work(turns / 2)))
    }
}

/// What the pool is compared with: equal shares, and everybody spins until the last one is there.
fn spin_barrier(turns: u64) -> f64 {
    let (arrived, turn) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wait = || {
        let now = turn.load(Ordering::Acquire);
        if arrived.fetch_add(1, Ordering::AcqRel) == 1 {
            arrived.store(0, Ordering::Release);
            turn.fetch_add(1, Ordering::AcqRel);
        }
        while turn.load(Ordering::Acquire) == now {
            std::hint::spin_loop();
        }
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                wait();
                if over.load(Ordering::Acquire) {
                    return;
                }
                work(turns / 2);
                wait();
            }
        });
        let rate = token_rate(|| {
            wait();
            work(turns / 2);
            wait();
        });
        over.store(true, Ordering::Release);
        wait();
        rate
    })
}
