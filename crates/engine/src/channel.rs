//! The way of events from the engine thread to whoever reads a request's answer.
//!
//! A channel of our own instead of `std::sync::mpsc` or a callback, for three reasons. A reader
//! may be a blocking thread ([`EventStream::recv`], or the stream as an iterator) or an async task
//! ([`EventStream::poll_recv`], any executor), and std's channel can wake only the former. A
//! callback would run foreign code on the engine thread, where a slow one stalls everybody. And
//! the engine must know *before* it computes a token whether there is room for it: a slow reader
//! pauses its own sequence and nothing else.
//!
//! A stream always ends with one [`Event::Finished`]: a sender dropped without one, as in a panic
//! of the engine thread, delivers [`FinishReason::EngineStopped`].

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::request::{
    CancelReason, Event, ExpertReads, FinishReason, RequestId, Summary, Timings, Usage,
};

/// Locks a mutex whether or not somebody panicked while holding it: every critical section of
/// this crate leaves its data consistent at each step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes the engine thread when it sleeps for want of work.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    rung: Mutex<bool>,
    bell: Condvar,
}

impl Doorbell {
    /// Wakes the engine, now or at its next wait.
    pub(crate) fn ring(&self) {
        *lock(&self.rung) = true;
        self.bell.notify_one();
    }

    /// Sleeps until the bell was rung since the last wait.
    pub(crate) fn wait(&self) {
        let mut rung = lock(&self.rung);
        while !*rung {
            rung = self.bell.wait(rung).unwrap_or_else(PoisonError::into_inner);
        }
        *rung = false;
    }
}

#[derive(Debug)]
struct State {
    events: VecDeque<Event>, // capacity events_max + 1: the end always has room
    waker: Option<Waker>,
    cancelled: Option<CancelReason>,
    /// The engine saw the queue full; it is told when half of it has been read.
    paused: bool,
    /// The end has been sent.
    closed: bool,
}

/// Both ends' common part.
#[derive(Debug)]
pub(crate) struct Channel {
    state: Mutex<State>,
    readable: Condvar,
    events_max: usize,
    doorbell: Arc<Doorbell>,
}

impl Channel {
    /// Asks the engine to end the request; the first reason counts. False when it is over already.
    pub(crate) fn cancel(&self, reason: CancelReason) -> bool {
        let mut state = lock(&self.state);
        if state.closed {
            return false;
        }
        state.cancelled.get_or_insert(reason);
        drop(state);
        self.doorbell.ring();
        true
    }
}

/// Makes the two ends of a request's channel, which holds at most `events_max` unread tokens.
pub(crate) fn channel(
    id: RequestId,
    events_max: usize,
    doorbell: Arc<Doorbell>,
) -> (EventSender, EventStream) {
    let state = State {
        events: VecDeque::with_capacity(events_max + 1),
        waker: None,
        cancelled: None,
        paused: false,
        closed: false,
    };
    let channel = Arc::new(Channel {
        state: Mutex::new(state),
        readable: Condvar::new(),
        events_max,
        doorbell,
    });
    (EventSender { channel: channel.clone() }, EventStream { channel, id, ended: false })
}

/// The engine's end.
#[derive(Debug)]
pub(crate) struct EventSender {
    channel: Arc<Channel>,
}

/// What the engine has to know of a reader before it plans a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReaderStatus {
    /// Somebody wants the request to end.
    pub(crate) cancelled: Option<CancelReason>,
    /// The queue is full, or has been and is not half empty yet.
    pub(crate) paused: bool,
    /// Tokens that can be sent before the queue is full; a reader can only make it more.
    pub(crate) room: usize,
}

impl EventSender {
    /// Looks after the reader; a queue found full counts as paused from now on.
    pub(crate) fn status(&self) -> ReaderStatus {
        let mut state = lock(&self.channel.state);
        if state.events.len() >= self.channel.events_max {
            state.paused = true;
        }
        let room = self.channel.events_max - state.events.len().min(self.channel.events_max);
        ReaderStatus { cancelled: state.cancelled, paused: state.paused, room }
    }

    /// Delivers a token. The caller has seen [`ReaderStatus::paused`] false in this step, and room
    /// for every token it yields.
    pub(crate) fn send(&self, event: Event) {
        let mut state = lock(&self.channel.state);
        assert!(state.events.len() < self.channel.events_max, "a full reader is never scheduled");
        state.events.push_back(event);
        self.wake(state);
    }

    /// Delivers the end.
    pub(crate) fn finish(self, summary: Summary) {
        self.close(summary);
    }

    /// The shared part, for cancellation by id.
    pub(crate) fn channel(&self) -> Arc<Channel> {
        self.channel.clone()
    }

    fn close(&self, summary: Summary) {
        let mut state = lock(&self.channel.state);
        if !state.closed {
            state.closed = true;
            state.events.push_back(Event::Finished(summary));
            self.wake(state);
        }
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        self.channel.readable.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.close(stopped_summary("the engine stopped before the request was over"));
    }
}

/// The end of a request of which nothing else is known any more.
pub(crate) fn stopped_summary(message: &str) -> Summary {
    Summary {
        reason: FinishReason::EngineStopped(message.to_owned()),
        usage: Usage::default(),
        timings: Timings::default(),
        experts: ExpertReads::default(),
        seed: 0,
    }
}

/// The events of one request, in order. Dropping it cancels the request.
///
/// Blocking code calls [`recv`](EventStream::recv) or iterates; async code wraps
/// [`poll_recv`](EventStream::poll_recv), for instance with `std::future::poll_fn`.
#[derive(Debug)]
pub struct EventStream {
    channel: Arc<Channel>,
    id: RequestId,
    ended: bool,
}

/// No event came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no event within the time allowed")]
pub struct RecvTimeout;

impl EventStream {
    /// The request's id.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Asks the engine to end the request at its next step; events already made and then
    /// `Finished` still arrive.
    pub fn cancel(&self, reason: CancelReason) {
        self.channel.cancel(reason);
    }

    /// Waits for the next event. `None` once `Finished` has been taken.
    pub fn recv(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let channel = self.channel.clone();
        let mut state = lock(&channel.state);
        while state.events.is_empty() {
            state = channel.readable.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.take(state)
    }

    /// Waits for the next event at most `timeout`. `Ok(None)` once `Finished` has been taken.
    ///
    /// # Errors
    /// None came in time.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<Event>, RecvTimeout> {
        if self.ended {
            return Ok(None);
        }
        let deadline = Instant::now() + timeout;
        let channel = self.channel.clone();
        let mut state = lock(&channel.state);
        while state.events.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RecvTimeout);
            }
            let waited = channel.readable.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(self.take(state))
    }

    /// The next event if one is there. `Ready(None)` once `Finished` has been taken.
    pub fn try_recv(&mut self) -> Poll<Option<Event>> {
        self.poll_recv(&mut Context::from_waker(Waker::noop()))
    }

    /// The next event, or a wake-up of `cx` when there is one. `Ready(None)` once `Finished` has
    /// been taken.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let channel = self.channel.clone();
        let mut state = lock(&channel.state);
        if state.events.is_empty() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(self.take(state))
    }

    /// Takes the first event; the caller has seen that there is one.
    fn take(&mut self, mut state: MutexGuard<'_, State>) -> Option<Event> {
        let event = state.events.pop_front();
        self.ended = matches!(event, Some(Event::Finished(_)));
        // Half empty rather than one free place: resuming a sequence for a single token at a time
        // would make it miss every other step.
        let resume = state.paused && state.events.len() <= self.channel.events_max / 2;
        if resume {
            state.paused = false;
        }
        drop(state);
        if resume {
            self.channel.doorbell.ring();
        }
        event
    }
}

impl Iterator for EventStream {
    type Item = Event;

    /// Blocks like [`EventStream::recv`].
    fn next(&mut self) -> Option<Event> {
        self.recv()
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !self.ended {
            self.channel.cancel(CancelReason::Client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    fn pair(events_max: usize) -> (EventSender, EventStream) {
        channel(RequestId(1), events_max, Arc::new(Doorbell::default()))
    }

    fn token(id: u32) -> Event {
        Event::Token { id, logprob: None, top_logprobs: Vec::new() }
    }

    #[test]
    fn a_full_reader_pauses_and_resumes_at_half() {
        let (sender, mut stream) = pair(4);
        for id in 0..4 {
            assert!(!sender.status().paused);
            sender.send(token(id));
        }
        assert!(sender.status().paused);
        assert_eq!(stream.recv(), Some(token(0)));
        assert!(sender.status().paused);
        assert_eq!(stream.recv(), Some(token(1)));
        assert!(!sender.status().paused);
    }

    #[test]
    fn the_end_has_room_in_a_full_queue_and_comes_once() {
        let (sender, mut stream) = pair(1);
        sender.send(token(7));
        sender.finish(stopped_summary("test"));
        assert_eq!(stream.recv(), Some(token(7)));
        assert!(matches!(stream.recv(), Some(Event::Finished(_))));
        assert_eq!(stream.recv(), None);
        assert_eq!(stream.try_recv(), Poll::Ready(None));
    }

    #[test]
    fn a_lost_sender_is_an_end_too() {
        let (sender, mut stream) = pair(1);
        let reader = std::thread::spawn(move || stream.recv());
        drop(sender);
        let Ok(Some(Event::Finished(summary))) = reader.join() else { panic!("no end") };
        assert!(matches!(summary.reason, FinishReason::EngineStopped(_)));
    }

    #[test]
    fn dropping_the_stream_cancels() {
        let (sender, stream) = pair(1);
        assert_eq!(sender.status().cancelled, None);
        stream.cancel(CancelReason::Stop);
        drop(stream);
        assert_eq!(sender.status().cancelled, Some(CancelReason::Stop));
    }

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_task_is_woken_when_an_event_comes() {
        let (sender, mut stream) = pair(2);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        assert!(stream.poll_recv(&mut Context::from_waker(&waker)).is_pending());
        sender.send(token(1));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(stream.poll_recv(&mut Context::from_waker(&waker)), Poll::Ready(Some(token(1))));
    }

    #[test]
    fn waiting_ends_in_time() {
        let (_sender, mut stream) = pair(2);
        assert_eq!(stream.recv_timeout(Duration::from_millis(1)), Err(RecvTimeout));
    }
}
