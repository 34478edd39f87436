//! The fork-join worker pool. A serial stand-in for now.

/// How workers are bound to cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinning {
    /// Let the scheduler decide.
    None,
    /// One worker per core.
    Cores,
}

/// Runs one closure on every worker and waits for all of them.
#[derive(Debug)]
pub struct Pool {
    threads: usize,
}

impl Pool {
    /// A pool of `threads` workers, the caller included.
    pub fn new(threads: usize, _pinning: Pinning) -> Self {
        Self { threads: threads.max(1) }
    }

    /// Number of workers, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `f(worker)` for every worker in `0..threads()` and returns when all are done.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        for worker in 0..self.threads {
            f(worker);
        }
    }
}
