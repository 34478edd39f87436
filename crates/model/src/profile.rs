//! Where the time of a pass goes: an [`Observer`] with a clock.
//!
//! Parts of a pass follow each other on the thread that runs it, so the time from one
//! [`Observer::done`] to the next is the part's. Beside it stand the parallel regions it took, the
//! time workers had nothing to do in them, and the bytes and operations of its products, which
//! an observer is shown. All memory is taken beforehand.

use std::ops::AddAssign;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use moeba_kernels::pool::Pool;
use moeba_kernels::tally::{Regions, Tally};

use crate::Model;
use crate::cost::{self, Operations};
use crate::observer::{Branch, Observer, Part, Product};

/// All parts, in the order a pass meets them.
pub const PARTS: [Part; 14] = [
    Part::Embedding,
    Part::Norms,
    Part::Rounding,
    Part::Projections,
    Part::Positions,
    Part::Attention,
    Part::Router,
    Part::ExpertsIn,
    Part::DenseIn,
    Part::Activation,
    Part::ExpertsOut,
    Part::DenseOut,
    Part::Sums,
    Part::Head,
];

/// What one part of one layer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Time, in nanoseconds.
    pub nanos: u64,
    /// Parallel regions: forks and joins.
    pub regions: u64,
    /// Time within them, in nanoseconds; in what is left the caller worked alone.
    pub region_nanos: u64,
    /// Time in which workers had no share of a region under way to work on, in nanoseconds, added
    /// up over all workers.
    pub idle_nanos: u64,
    /// Bytes of the matrices multiplied with.
    pub bytes: u64,
    /// Operations of these products; attention's own are left to
    /// [`Cost`](crate::cost::Cost).
    pub operations: Operations,
}

/// Collects the time of passes.
#[derive(Debug)]
pub struct Profile {
    threads: u64,
    tally: Arc<Tally>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Instant,
    regions: Regions,
    layer: usize,
    /// Of the products since `last`.
    bytes: u64,
    operations: Operations,
    /// `[layers + 1]`; the last holds what belongs to no layer.
    shares: Vec<[Share; PARTS.len()]>,
}

impl Profile {
    /// An empty profile of passes of `model` on `pool`, which counts its regions from now on.
    pub fn new(model: &Model, pool: &Pool) -> Profile {
        let layers = model.spec().layers.len();
        let tally = pool.tally();
        let state = State {
            last: Instant::now(),
            regions: tally.read(),
            layer: layers,
            bytes: 0,
            operations: Operations::default(),
            shares: vec![[Share::default(); PARTS.len()]; layers + 1],
        };
        Profile { threads: pool.threads() as u64, tally, state: Mutex::new(state) }
    }

    /// Starts the clock: before each pass, because time between passes is no part's.
    pub fn begin(&self) {
        let mut state = self.state();
        state.layer = state.shares.len() - 1;
        (state.bytes, state.operations) = (0, Operations::default());
        state.regions = self.tally.read();
        state.last = Instant::now();
    }

    /// What each part took, `[layers + 1][parts]`, parts in the order of [`PARTS`]. The last entry
    /// is what belongs to no layer: embedding and head.
    pub fn into_shares(self) -> Vec<[Share; PARTS.len()]> {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).shares
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Profile {
    fn begins(&self, layer: usize, _branch: Branch, _stream: &mut [f32]) {
        self.state().layer = layer;
    }

    fn product(&self, product: &Product) {
        let mut state = self.state();
        let weights = cost::of(product.weight);
        state.bytes += weights.bytes;
        weights.count(product.rows() as u64, &mut state.operations);
    }

    fn done(&self, part: Part) {
        let mut state = self.state();
        let (now, regions) = (Instant::now(), self.tally.read());
        let since = state.regions;
        let in_regions = self.threads * (regions.nanos - since.nanos);
        let done = Share {
            nanos: (now - state.last).as_nanos() as u64,
            regions: regions.count - since.count,
            region_nanos: regions.nanos - since.nanos,
            idle_nanos: in_regions.saturating_sub(regions.busy_nanos - since.busy_nanos),
            bytes: std::mem::take(&mut state.bytes),
            operations: std::mem::take(&mut state.operations),
        };
        (state.last, state.regions) = (now, regions);
        let layer = state.layer;
        state.shares[layer][part as usize] += done;
    }
}

impl AddAssign for Share {
    fn add_assign(&mut self, other: Share) {
        self.nanos += other.nanos;
        self.regions += other.regions;
        self.region_nanos += other.region_nanos;
        self.idle_nanos += other.idle_nanos;
        self.bytes += other.bytes;
        self.operations = self.operations + other.operations;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_listed_in_their_own_order() {
        assert!(PARTS.iter().enumerate().all(|(index, part)| *part as usize == index));
    }
}
