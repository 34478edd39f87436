//! The fork-join worker pool every parallel kernel runs on.
//!
//! A token is some hundred tiny parallel regions, each tens of microseconds long, so a fork and
//! join must cost well under a microsecond: workers spin between regions and only park between
//! requests (waking a parked thread costs 25-70 us).
//!
//! Spinning alone is fragile: when another program takes a core, every region waits for the
//! worker that happens to be off its core. Three rules keep us moving then:
//!
//! * **Nobody waits for a worker that has not started.** Each worker's share is offered through
//!   its own slot; when the caller finishes its share it takes back offers nobody claimed and runs
//!   them itself. With dynamic claiming ([`Pool::for_each_chunk`]) such a share is empty.
//! * **Bounded spinning.** A thread that notices it lost its core while spinning stops spinning
//!   soon after and sleeps instead, which the scheduler repays with a prompt wake-up.
//! * **Sleeping joins.** A caller whose last worker was preempted in the middle of its share sleeps
//!   after a short spin instead of burning the time slice its neighbour wants.
//!
//! The pool never decides *what* a worker computes, so it cannot change results: kernels give
//! every output element one fixed arithmetic whoever computes it.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::disjoint::Disjoint;
use crate::os::cpu;
use crate::tally::Tally;

/// How workers are bound to cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinning {
    /// Let the scheduler decide. The better choice when the machine is shared.
    None,
    /// Worker `i` (from 1) is bound to the `i`-th physical core this process may use. The caller,
    /// worker 0, is never moved silently, because threads it starts would inherit the binding:
    /// see [`Pool::pin_caller`].
    Cores,
}

type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// The share of one worker, a six-state handshake between it and the caller.
///
/// ```text
///           caller            worker           worker
///   IDLE ──────────► OFFERED ────────► RUNNING ───────► IDLE
///    ▲ │ worker         │ caller takes     │ caller         ▲
///    │ ▼                ▼ it back          ▼ sleeps         │ worker wakes the caller
///   PARKED ─► OFFERED  IDLE              AWAITED ───────────┘        (any ─► STOPPED on drop)
/// ```
#[repr(align(128))] // Two cache lines: the adjacent-line prefetcher pairs them.
struct Slot(AtomicU32);

const IDLE: u32 = 0;
const OFFERED: u32 = 1;
const RUNNING: u32 = 2;
const AWAITED: u32 = 3;
const PARKED: u32 = 4;
const STOPPED: u32 = 5;

/// How long a worker spins for the next region before it parks: longer than the pauses inside a
/// token (sampling, detokenising), shorter than anybody's patience with a busy idle program.
const SPIN_QUIET: Duration = Duration::from_millis(2);
/// The same while another program wants our cores.
const SPIN_CONTENDED: Duration = Duration::from_micros(60);
/// A caller spins this long for the last worker before it sleeps.
const JOIN_SPIN: Duration = Duration::from_micros(150);
/// A gap this long between two looks at the clock means that the thread was off its core.
const PREEMPTED_GAP: Duration = Duration::from_micros(300);
/// How long one observed preemption counts as "contended".
const CONTENDED_FOR: Duration = Duration::from_millis(200);
/// Polls between two looks at the clock; about 2 us.
const POLLS: u32 = 32;

struct Shared {
    slots: Vec<Slot>,
    /// The closure of the region under way. Written only while every slot is IDLE or PARKED.
    job: UnsafeCell<Option<Job<'static>>>,
    /// The caller, while it sleeps in a join.
    sleeper: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    panicked: AtomicBool,
    started: Instant,
    /// Nanoseconds after `started` until which the cores count as contended.
    contended_until: AtomicU64,
    /// Counters, once somebody asked for them.
    tally: OnceLock<Arc<Tally>>,
}

// SAFETY: `job` is the only field that is not Sync by itself. The caller writes it before it
// stores OFFERED (Release) into any slot, workers read it after they saw OFFERED (Acquire), and
// the caller writes it again only after every slot left OFFERED, RUNNING and AWAITED.
unsafe impl Sync for Shared {}
// SAFETY: the closure behind `job` is `Sync`, so it may be used from whichever thread holds this.
unsafe impl Send for Shared {}

/// Runs one closure on every worker and waits for all of them.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held during a region, so that two threads that share a pool take turns.
    region: Mutex<()>,
    handles: Vec<JoinHandle<()>>,
    pinning: Pinning,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

thread_local! {
    /// Set while this thread runs a share, to turn a nested region (a deadlock) into a panic.
    static INSIDE_REGION: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// A pool of `threads` workers (at least 1), the caller of [`Pool::run`] included.
    ///
    /// # Panics
    /// If the operating system refuses to start a thread.
    pub fn new(threads: usize, pinning: Pinning) -> Self {
        let spawned = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            slots: (0..spawned).map(|_| Slot(AtomicU32::new(IDLE))).collect(),
            job: UnsafeCell::new(None),
            sleeper: Mutex::new(None),
            panic: Mutex::new(None),
            panicked: AtomicBool::new(false),
            started: Instant::now(),
            contended_until: AtomicU64::new(0),
            tally: OnceLock::new(),
        });
        let cores = match pinning {
            Pinning::None => Vec::new(),
            Pinning::Cores => cpu::physical_cores(),
        };
        let start_worker = |index: usize| {
            let shared = Arc::clone(&shared);
            let core = cores.get((index + 1) % cores.len().max(1)).copied();
            thread::Builder::new()
                .name(format!("moeba-worker-{}", index + 1))
                .spawn(move || {
                    if let Some(core) = core {
                        // A refused binding costs speed, not correctness.
                        let _ = cpu::pin_current_thread(core);
                    }
                    shared.work(index);
                })
                .expect("the operating system can start a few worker threads")
        };
        let handles = (0..spawned).map(start_worker).collect();
        Self { shared, region: Mutex::new(()), handles, pinning }
    }

    /// Number of workers, the caller included.
    pub fn threads(&self) -> usize {
        self.shared.slots.len() + 1
    }

    /// Binds the calling thread to the first physical core if the pool was made with
    /// [`Pinning::Cores`]. For the one thread that runs the engine; threads it starts later inherit
    /// the binding.
    pub fn pin_caller(&self) {
        if self.pinning == Pinning::Cores
            && let Some(&core) = cpu::physical_cores().first()
        {
            let _ = cpu::pin_current_thread(core);
        }
    }

    /// Whether another program recently took a core away from one of our spinning threads.
    pub fn contended(&self) -> bool {
        self.shared.contended(Instant::now())
    }

    /// Counts regions and their workers' time from now on, at the price of some looks at the clock
    /// per region. All who ask get the same counters.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(self.shared.tally.get_or_init(Arc::default))
    }

    /// Calls `f(worker)` exactly once for every worker in `0..threads()` and returns when all are
    /// done. Calls of different workers may overlap or, when a worker is late, follow each other on
    /// the caller's thread, so `f` must not wait for another worker. The caller is worker 0.
    ///
    /// # Panics
    /// With the first panic of any worker, after all of them ended; and if called from inside `f`.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        assert!(!INSIDE_REGION.get(), "Pool::run called from inside a parallel region");
        let _turn = lock(&self.region);
        let shared = &*self.shared;
        let tally = shared.tally.get().map(|tally| (tally, Instant::now()));
        // SAFETY: only the lifetime changes. The reference is dropped from `job` below, after every
        // slot went back to IDLE, that is, before `run` returns and the closure can die.
        let job: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(f) };
        // SAFETY: every slot is IDLE or PARKED (the last region ended so and `region` is held),
        // hence no worker reads `job` now.
        unsafe { *shared.job.get() = Some(job) };
        let workers_may_run = AbortOnUnwind;
        for (slot, handle) in shared.slots.iter().zip(&self.handles) {
            if slot.0.swap(OFFERED, Ordering::AcqRel) == PARKED {
                handle.thread().unpark();
            }
        }
        shared.run_share(job, 0);
        for (index, slot) in shared.slots.iter().enumerate() {
            if slot.0.compare_exchange(OFFERED, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                shared.run_share(job, index + 1);
            }
        }
        for slot in &shared.slots {
            shared.join(slot);
        }
        std::mem::forget(workers_may_run);
        // SAFETY: as above, every slot is IDLE or PARKED again.
        unsafe { *shared.job.get() = None };
        if let Some((tally, start)) = tally {
            tally.add_region(start.elapsed());
        }
        if shared.panicked.swap(false, Ordering::AcqRel) {
            let payload = lock(&shared.panic).take();
            resume_unwind(payload.unwrap_or_else(|| Box::new("a pool worker panicked")));
        }
    }

    /// Calls `f(worker, range)` for consecutive ranges that cover `0..n`, each `chunk` long but the
    /// last. Workers claim ranges as they come free, so a slow or absent worker delays at most one
    /// range. Which worker gets which range changes from call to call; `worker` only picks scratch.
    pub fn for_each_chunk<F>(&self, n: usize, chunk: usize, f: F)
    where
        F: Fn(usize, Range<usize>) + Sync,
    {
        let chunk = chunk.max(1);
        if n <= chunk || self.threads() == 1 {
            let mut start = 0;
            while start < n {
                let end = n.min(start.saturating_add(chunk));
                f(0, start..end);
                start = end;
            }
            return;
        }
        let chunks = n.div_ceil(chunk);
        let next = AtomicUsize::new(0);
        self.run(&|worker| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= chunks {
                    return;
                }
                f(worker, index * chunk..n.min((index + 1) * chunk));
            }
        });
    }

    /// Calls `f(row, slice)` for every `row_len` long row of `rows`, spread over the workers when
    /// there is enough to spread.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn for_each_row<F>(&self, rows: &mut [f32], row_len: usize, f: F)
    where
        F: Fn(usize, &mut [f32]) + Sync,
    {
        /// Numbers per claim: some microseconds of elementwise work, many times a claim's cost.
        const CLAIM: usize = 8192;
        if rows.is_empty() {
            return;
        }
        assert!(row_len > 0 && rows.len().is_multiple_of(row_len), "rows are not whole");
        let count = rows.len() / row_len;
        let rows = Disjoint::new(rows);
        self.for_each_chunk(count, (CLAIM / row_len).max(1), |_, range| {
            for row in range {
                // SAFETY: every row index is claimed once, and rows do not overlap.
                let slice = unsafe { rows.piece(row * row_len..(row + 1) * row_len) };
                f(row, slice);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (slot, handle) in self.shared.slots.iter().zip(&self.handles) {
            slot.0.store(STOPPED, Ordering::Release);
            handle.thread().unpark();
        }
        for handle in self.handles.drain(..) {
            // Shares run inside `catch_unwind`, so a worker itself never ends with a panic.
            let _ = handle.join();
        }
    }
}

/// Ends the process when dropped: between the first offer and the last join workers may be inside
/// the caller's closure, and unwinding would take it away from under them.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

impl Shared {
    /// The life of the worker behind `slots[index]`.
    fn work(&self, index: usize) {
        let state = &self.slots[index].0;
        while self.wait_for_offer(state) {
            if state
                .compare_exchange(OFFERED, RUNNING, Ordering::AcqRel, Ordering::Acquire)
                .is_err()
            {
                continue; // The caller took the offer back.
            }
            // SAFETY: the slot is RUNNING, so the caller wrote `job` before and leaves it alone
            // until this worker stores IDLE.
            let job = unsafe { *self.job.get() };
            self.run_share(job.expect("a region offers only while its job is set"), index + 1);
            if state.swap(IDLE, Ordering::AcqRel) == AWAITED
                && let Some(caller) = &*lock(&self.sleeper)
            {
                caller.unpark();
            }
        }
    }

    /// Runs one share and keeps its panic for the caller.
    fn run_share(&self, job: Job<'_>, worker: usize) {
        INSIDE_REGION.set(true);
        let tally = self.tally.get().map(|tally| (tally, Instant::now()));
        let result = catch_unwind(AssertUnwindSafe(|| job(worker)));
        if let Some((tally, start)) = tally {
            tally.add_share(start.elapsed());
        }
        INSIDE_REGION.set(false);
        if let Err(payload) = result {
            let mut first = lock(&self.panic);
            if first.is_none() {
                *first = Some(payload);
            } else {
                // Dropping a payload may panic in turn, and nothing may unwind from here.
                std::mem::forget(payload);
            }
            drop(first);
            self.panicked.store(true, Ordering::Release);
        }
    }

    /// Spins, then parks, until the slot is offered (true) or the pool ends (false).
    fn wait_for_offer(&self, state: &AtomicU32) -> bool {
        let start = Instant::now();
        let mut last = start;
        loop {
            for _ in 0..POLLS {
                match state.load(Ordering::Acquire) {
                    OFFERED => return true,
                    STOPPED => return false,
                    _ => std::hint::spin_loop(),
                }
            }
            let now = Instant::now();
            self.note_gap(last, now);
            last = now;
            let patience = if self.contended(now) { SPIN_CONTENDED } else { SPIN_QUIET };
            if now - start < patience {
                continue;
            }
            if state.compare_exchange(IDLE, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                while state.load(Ordering::Acquire) == PARKED {
                    thread::park();
                }
            }
        }
    }

    /// Returns when the worker of `slot` has no share under way.
    fn join(&self, slot: &Slot) {
        let busy = |state: u32| matches!(state, RUNNING | AWAITED);
        let start = Instant::now();
        let mut last = start;
        loop {
            for _ in 0..POLLS {
                if !busy(slot.0.load(Ordering::Acquire)) {
                    return;
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            self.note_gap(last, now);
            last = now;
            if now - start > JOIN_SPIN {
                break;
            }
        }
        *lock(&self.sleeper) = Some(thread::current());
        let asleep =
            slot.0.compare_exchange(RUNNING, AWAITED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        while asleep && busy(slot.0.load(Ordering::Acquire)) {
            thread::park();
        }
        *lock(&self.sleeper) = None;
    }

    fn note_gap(&self, last: Instant, now: Instant) {
        if now - last > PREEMPTED_GAP {
            let until = (now - self.started + CONTENDED_FOR).as_nanos() as u64;
            self.contended_until.store(until, Ordering::Relaxed);
        }
    }

    fn contended(&self, now: Instant) -> bool {
        let until = self.contended_until.load(Ordering::Relaxed);
        until != 0 && ((now - self.started).as_nanos() as u64) < until
    }
}

/// A lock whose holder panicked guards nothing but plain values here, so poison means nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Regions;

    #[test]
    fn every_worker_runs_once() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads, Pinning::None);
            let calls: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..=2000 {
                pool.run(&|worker| {
                    calls[worker].fetch_add(1, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == round));
            }
        }
    }

    #[test]
    fn chunks_cover_the_range_once() {
        let pool = Pool::new(3, Pinning::Cores);
        for (n, chunk) in [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 7), (1000, 0), (17, 100)] {
            let seen: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each_chunk(n, chunk, |_, range| {
                assert!(range.len() <= chunk.max(1));
                for i in range {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn rows_are_visited_once_each() {
        let pool = Pool::new(2, Pinning::None);
        for (count, len) in [(0, 3), (1, 5), (37, 999), (3, 20_000)] {
            let mut rows = vec![1.0f32; count * len];
            pool.for_each_row(&mut rows, len, |row, slice| {
                assert_eq!(slice.len(), len);
                for x in slice {
                    *x += row as f32;
                }
            });
            assert!(rows.iter().enumerate().all(|(i, &x)| x == 1.0 + (i / len) as f32));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3, Pinning::None);
        for culprit in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|worker| assert!(worker != culprit, "worker {worker} fell"));
            }));
            let payload = result.unwrap_err();
            let text = payload.downcast_ref::<String>().expect("assert panics with a String");
            assert_eq!(text, &format!("worker {culprit} fell"));
            pool.run(&|_| {});
        }
    }

    #[test]
    fn a_nested_region_panics_instead_of_hanging() {
        let pool = Pool::new(2, Pinning::None);
        let nested = catch_unwind(AssertUnwindSafe(|| pool.run(&|_| pool.run(&|_| {}))));
        assert!(nested.is_err());
        pool.run(&|_| {});
    }

    #[test]
    fn regions_are_counted_once_somebody_asked() {
        let pool = Pool::new(2, Pinning::None);
        pool.run(&|_| {});
        let tally = pool.tally();
        assert_eq!(tally.read(), Regions::default());
        for _ in 0..3 {
            pool.run(&|_| {});
        }
        let counted = pool.tally().read();
        assert_eq!(counted.count, 3);
        assert!(counted.busy_nanos <= 2 * counted.nanos, "{counted:?}");
    }

    #[test]
    fn threads_that_share_a_pool_take_turns() {
        let pool = Pool::new(2, Pinning::None);
        let busy = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let cell = AtomicUsize::new(0);
                        pool.run(&|_| {
                            assert!(busy.fetch_add(1, Ordering::SeqCst) < 2);
                            cell.fetch_add(1, Ordering::Relaxed);
                            busy.fetch_sub(1, Ordering::SeqCst);
                        });
                        assert_eq!(cell.into_inner(), 2);
                    }
                });
            }
        });
    }

    #[test]
    fn parked_workers_and_slow_shares_are_joined() {
        let pool = Pool::new(3, Pinning::None);
        let done = AtomicUsize::new(0);
        for slow in 0..6 {
            thread::sleep(SPIN_QUIET + Duration::from_millis(1)); // Workers park.
            pool.run(&|worker| {
                if worker == slow % 3 {
                    thread::sleep(Duration::from_millis(2)); // The caller sleeps in its join.
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(done.into_inner(), 18);
    }

    #[test]
    fn many_pools_come_and_go() {
        for round in 0..60 {
            let pool = Pool::new(1 + round % 4, Pinning::None);
            if round % 2 == 0 {
                pool.run(&|_| {});
            }
        }
    }

    /// A payload that panics when it is dropped, which only the first one's catcher may do.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(thread::panicking(), "dropped");
        }
    }

    #[test]
    fn surplus_payloads_are_not_dropped() {
        let pool = Pool::new(3, Pinning::None);
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|_| std::panic::panic_any(Bomb));
            }));
            std::mem::forget(result.unwrap_err());
        }
        pool.run(&|_| {});
    }
}
