//! How often workers were called together, and how long some of them had nothing to do: counted
//! by a [`Pool`](crate::pool::Pool) once somebody asked, and not before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of a pool, shared with whoever looks.
#[derive(Debug, Default)]
pub struct Tally {
    regions: AtomicU64,
    nanos: AtomicU64,
    busy_nanos: AtomicU64,
}

/// What a pool has counted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Regions {
    /// Parallel regions, each a fork and a join.
    pub count: u64,
    /// Time they took, in nanoseconds, fork and join included.
    pub nanos: u64,
    /// Time workers spent on their shares, in nanoseconds, added up over all workers.
    pub busy_nanos: u64,
}

impl Tally {
    /// What has been counted so far. Exact between regions.
    pub fn read(&self) -> Regions {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Regions {
            count: read(&self.regions),
            nanos: read(&self.nanos),
            busy_nanos: read(&self.busy_nanos),
        }
    }

    pub(crate) fn add_region(&self, time: Duration) {
        self.regions.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Counts one worker's share; the join of its region makes it visible to the caller.
    pub(crate) fn add_share(&self, time: Duration) {
        self.busy_nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}
