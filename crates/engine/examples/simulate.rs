//! Runs many seeds of the simulator: `cargo run --release -p moeba-engine --example simulate --
//! [COUNT] [FIRST]`. A broken promise panics and names its seed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use moeba_engine::sim::{self, Report};

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let mut next = |default| match numbers.next() {
        Some(number) => number.expect("the arguments are numbers"),
        None => default,
    };
    let (count, first) = (next(10_000), next(0));
    let begun = Instant::now();
    let mut total = Report::default();
    for seed in first..first + count {
        match catch_unwind(AssertUnwindSafe(|| sim::run(seed))) {
            Ok(report) => total += report,
            Err(cause) => {
                #[expect(clippy::print_stderr, reason = "the seed replays the failure")]
                {
                    eprintln!("seed {seed} breaks a promise");
                }
                resume_unwind(cause);
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    #[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
    {
        println!("{count} seeds in {seconds:.1} s: {total:?}");
    }
}
