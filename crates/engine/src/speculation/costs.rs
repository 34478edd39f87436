//! How long steps take by their number of rows, as measured while working.
//!
//! A median of the last few, because a neighbour on the machine can make any single step slow.
//! What was measured long ago counts as unknown, since contexts grow and neighbours come and go:
//! then it is measured again, which costs a few steps in some hundreds.

use std::time::Duration;

use super::STEP_ROWS_MAX;

/// The last steps whose median counts.
const RECENT: usize = 7;

/// Fewer say nothing.
const RECENT_MIN: usize = 3;

/// What is older than so many steps is unknown. Three steps in 256 that yield one token instead of
/// several, or that take twice as long for nothing, are 1 %.
const STEPS_FRESH: u64 = 256;

/// What a row more costs, as a share of a step without drafts, before anybody has measured: low
/// enough that a likely draft is tried, high enough that a doubtful one is not.
const ROW_SHARE_PRIOR: f32 = 0.4;

#[derive(Clone, Copy, Debug, Default)]
struct Samples {
    seconds: [f32; RECENT], // sample `i` is at `i % RECENT`
    count: usize,
    last: u64, // step
}

/// Times of steps that computed one token of each sequence, and drafts.
#[derive(Debug, Default)]
pub(crate) struct StepCosts {
    by_rows: [Samples; STEP_ROWS_MAX + 1],
    step: u64,
}

impl StepCosts {
    /// Notes that a step of so many rows took so long.
    pub(crate) fn note(&mut self, rows: usize, took: Duration) {
        self.step += 1;
        let Some(samples) = self.by_rows.get_mut(rows) else { return };
        if self.step - samples.last > STEPS_FRESH {
            samples.count = 0;
        }
        samples.seconds[samples.count % RECENT] = took.as_secs_f32();
        samples.count += 1;
        samples.last = self.step;
    }

    /// Seconds a step of so many rows takes, if that was measured lately.
    fn measured(&self, rows: usize) -> Option<f32> {
        let samples = self.by_rows.get(rows)?;
        let fresh = self.step - samples.last < STEPS_FRESH;
        let count = samples.count.min(RECENT);
        if !fresh || count < RECENT_MIN {
            return None;
        }
        let mut seconds = samples.seconds;
        seconds[..count].sort_unstable_by(f32::total_cmp);
        Some(seconds[count / 2])
    }

    /// Seconds of steps with `rows` rows and more, one number of rows after the other; nothing when
    /// it is unknown what the first of them takes. What was not measured is on a line through its
    /// neighbours.
    pub(crate) fn from(&self, rows: usize) -> Option<impl Iterator<Item = f32>> {
        let first = self.measured(rows)?;
        let mut below = (rows, first);
        let mut slope = ROW_SHARE_PRIOR * first / rows as f32;
        Some((rows..=STEP_ROWS_MAX).map(move |now| {
            let known = |rows| self.measured(rows).map(|seconds| (rows, seconds));
            if let Some(here) = known(now) {
                if now > below.0 {
                    slope = (here.1 - below.1) / (now - below.0) as f32;
                }
                below = here;
                return here.1;
            }
            if let Some(above) = (now..=STEP_ROWS_MAX).find_map(known) {
                slope = (above.1 - below.1) / (above.0 - below.0) as f32;
            }
            below.1 + slope.max(0.0) * (now - below.0) as f32
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(costs: &mut StepCosts, rows: usize, millis: &[u64]) {
        for &ms in millis {
            costs.note(rows, Duration::from_millis(ms));
        }
    }

    fn millis(costs: &StepCosts, rows: usize) -> Option<Vec<u64>> {
        Some(costs.from(rows)?.map(|seconds| (seconds * 1e3).round() as u64).take(5).collect())
    }

    #[test]
    fn medians_lines_and_a_prior() {
        let mut costs = StepCosts::default();
        note(&mut costs, 1, &[10, 900]);
        assert_eq!(millis(&costs, 1), None, "two say nothing");
        note(&mut costs, 1, &[10]);
        assert_eq!(millis(&costs, 1), Some(vec![10, 14, 18, 22, 26]));
        note(&mut costs, 3, &[12, 12, 700]);
        assert_eq!(millis(&costs, 1), Some(vec![10, 11, 12, 13, 14]));
        note(&mut costs, 2, &[20; 3]);
        note(&mut costs, 40, &[1]);
        // More rows are never expected to take less than fewer on a line beyond the measured.
        assert_eq!(millis(&costs, 1), Some(vec![10, 20, 12, 12, 12]));
    }

    #[test]
    fn what_was_measured_long_ago_is_measured_again() {
        let mut costs = StepCosts::default();
        note(&mut costs, 1, &[10; 3]);
        note(&mut costs, 2, &[30; 300]);
        assert_eq!(millis(&costs, 1), None);
        note(&mut costs, 1, &[20; 3]);
        assert_eq!(millis(&costs, 1), Some(vec![20, 30, 40, 50, 60]));
        note(&mut costs, 1, &[20; 300]);
        assert_eq!(millis(&costs, 1), Some(vec![20, 28, 36, 44, 52]), "the prior again");
    }
}
