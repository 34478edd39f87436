//! A few hundred seeds with every test run; the example `simulate` runs as many as one likes.

use moeba_engine::sim::{self, Report};

#[test]
fn simulated_seeds_keep_every_promise_and_reach_every_corner() {
    let mut total = Report::default();
    for seed in 0..400 {
        total += sim::run(seed);
    }
    assert!(total.preemptions > 100, "{total:?}");
    assert!(total.cached_tokens > 5_000, "{total:?}");
    assert!(total.paused_turns > 1000, "{total:?}");
    assert!(total.cancelled > 100, "{total:?}");
    assert!(total.failed > 100, "{total:?}");
    assert!(total.refused > 100, "{total:?}");
    assert!(total.guessed_right > 2000, "{total:?}");
    assert!(total.guessed > total.guessed_right + 2000, "{total:?}");
}
