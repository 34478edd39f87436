//! The engine on its thread: whatever happens, every stream ends and the handle says why.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use moeba_engine::sim::{EOS, FAILS_BATCH, FakeModel, PANICS, TURNS_NAN};
use moeba_engine::{
    CancelReason, Engine, EngineHandle, Event, EventStream, FinishReason, Limits, Request,
    SamplingParams, Speculation, SubmitError, Summary,
};

const BLOCKS: usize = 32;

fn start(change: impl FnOnce(&mut Limits)) -> EngineHandle {
    let mut limits = Limits { batch_tokens_max: 32, ..Limits::default() };
    change(&mut limits);
    Engine::start(Box::new(FakeModel::new(BLOCKS, 32)), limits)
}

/// A request for `max_tokens` tokens after a prompt that starts with `first`.
fn request(first: u32, max_tokens: usize) -> Request {
    let mut request = Request::new(vec![first, 2, 3]);
    request.max_tokens = Some(max_tokens);
    request.sampling = SamplingParams { seed: Some(1), ..SamplingParams::default() };
    request
}

fn read(stream: EventStream) -> (Vec<u32>, Summary) {
    let mut tokens = Vec::new();
    let mut end = None;
    for event in stream {
        match event {
            Event::Token { id, .. } => tokens.push(id),
            Event::Finished(summary) => end = Some(summary),
        }
    }
    (tokens, end.expect("a stream ends with `Finished`"))
}

#[test]
fn many_threads_submit_and_each_gets_what_it_would_get_alone() {
    let engine = start(|_| ());
    let alone: Vec<Vec<u32>> =
        (1..20).map(|first| read(start(|_| ()).submit(request(first, 50)).unwrap()).0).collect();
    std::thread::scope(|scope| {
        for (first, expected) in (1..20).zip(&alone) {
            let engine = engine.clone();
            scope.spawn(move || {
                for _ in 0..5 {
                    // What is read must not depend on guesses, which depend on the clock.
                    let speculation = Speculation::Off;
                    let request = Request { speculation, ..request(first, 50) };
                    let (tokens, summary) = read(engine.submit(request).unwrap());
                    assert_eq!(&tokens, expected);
                    assert_eq!(summary.reason, FinishReason::Length);
                    assert_eq!(summary.usage.completion_tokens, 50);
                    assert!(summary.decode_tokens_per_second().is_some());
                    assert!(summary.experts.bytes >= 1000 * 52);
                    // The fake model reads 1000 bytes for each token, whoever shares the step.
                    assert_eq!(summary.experts.decode_bytes_per_token(), Some(1000));
                }
            });
        }
    });
    engine.drain();
    let stats = engine.stats();
    assert_eq!((stats.finished, stats.blocks_free), (95, BLOCKS));
    assert!(stats.stopped.is_some());
}

#[test]
fn a_second_turn_of_a_conversation_finds_the_first_in_the_cache() {
    let engine = start(|_| ());
    let mut first = request(1, 45);
    first.tokens = (1..=20).collect();
    let mut tokens = first.tokens.clone();
    tokens.extend(read(engine.submit(first).unwrap()).0);
    let again = |salt: u64| {
        let mut second = request(1, 5);
        second.tokens.clone_from(&tokens);
        second.cache_salt = salt;
        read(engine.submit(second).unwrap())
    };
    // 65 tokens are known and the last was never computed: four blocks are full.
    let (warm, summary) = again(0);
    assert_eq!(summary.usage.cached_tokens, 64);
    let (cold, summary) = again(1);
    assert_eq!(summary.usage.cached_tokens, 0);
    assert_eq!(warm, cold);
}

#[test]
fn end_of_sequence_stops_unless_ignored() {
    let engine = start(|limits| limits.eos_tokens = vec![EOS]);
    let ask = |ignore_eos: bool, stop_tokens: Vec<u32>| {
        let mut request = request(1, 50);
        request.sampling.logit_bias = vec![(EOS, 1000.0)];
        (request.ignore_eos, request.stop_tokens) = (ignore_eos, stop_tokens);
        read(engine.submit(request).unwrap())
    };
    let (tokens, summary) = ask(false, vec![]);
    assert!(tokens.is_empty());
    assert_eq!(summary.reason, FinishReason::Stop { token: EOS });
    assert_eq!(summary.usage.completion_tokens, 1);
    assert_eq!(ask(true, vec![]).1.reason, FinishReason::Length);
    assert_eq!(ask(true, vec![EOS]).1.reason, FinishReason::Stop { token: EOS });
}

#[test]
fn cancelling_by_id_by_stream_and_by_dropping() {
    let engine = start(|limits| limits.events_max = 4);
    let mut streams: Vec<EventStream> =
        (1..4).map(|first| engine.submit(request(first, 400)).unwrap()).collect();
    for stream in &mut streams {
        assert!(matches!(stream.recv(), Some(Event::Token { .. })));
    }
    drop(streams.pop());
    let by_stream = streams.pop().unwrap();
    by_stream.cancel(CancelReason::Stop);
    let by_id = streams.pop().unwrap();
    let id = by_id.id();
    assert!(engine.cancel(id, CancelReason::Deadline));
    let reason = |stream| read(stream).1.reason;
    assert_eq!(reason(by_stream), FinishReason::Cancelled(CancelReason::Stop));
    assert_eq!(reason(by_id), FinishReason::Cancelled(CancelReason::Deadline));
    assert!(!engine.cancel(id, CancelReason::Client), "it is over");
    engine.drain();
    assert_eq!(engine.stats().blocks_free, BLOCKS);
}

#[test]
fn a_full_engine_refuses_and_takes_more_when_there_is_room() {
    let engine = start(|limits| {
        (limits.sequences_max, limits.waiting_max, limits.events_max) = (1, 1, 1);
    });
    // Nobody reads, so nobody finishes.
    let first = engine.submit(request(1, 100)).unwrap();
    let second = engine.submit(request(2, 100)).unwrap();
    let refused = engine.submit(request(3, 100)).err();
    assert_eq!(refused, Some(SubmitError::QueueFull { unfinished: 2, limit: 2 }));
    assert_eq!(read(first).0.len(), 100);
    assert_eq!(read(engine.submit(request(3, 100)).unwrap()).0.len(), 100);
    assert_eq!(read(second).0.len(), 100);

    let engine = start(|limits| limits.waiting_tokens_max = 5);
    let _held = engine.submit(request(1, 400)).unwrap();
    let refused = engine.submit(request(3, 1)).err();
    assert_eq!(refused, Some(SubmitError::TokensFull { unfinished: 6, limit: 5 }));
    assert!(matches!(engine.submit(request(64, 1)), Err(SubmitError::Invalid(_))));
}

#[test]
fn readers_who_never_read_hold_up_nobody() {
    let engine = start(|limits| (limits.sequences_max, limits.events_max) = (2, 2));
    let stuck: Vec<EventStream> =
        (1..6).map(|first| engine.submit(request(first, 300)).unwrap()).collect();
    for first in 10..20 {
        assert_eq!(read(engine.submit(request(first, 60)).unwrap()).0.len(), 60);
    }
    for stream in stuck {
        assert_eq!(read(stream).0.len(), 300);
    }
}

#[test]
fn broken_numbers_and_failing_steps_end_their_request_only() {
    let engine = start(|limits| limits.sequences_max = 8);
    let good: Vec<EventStream> =
        (1..5).map(|first| engine.submit(request(first, 100)).unwrap()).collect();
    let nan = engine.submit(request(TURNS_NAN, 100)).unwrap();
    let failing = engine.submit(request(FAILS_BATCH, 100)).unwrap();
    assert_eq!(read(nan).1.reason, FinishReason::NumericalError);
    assert!(matches!(read(failing).1.reason, FinishReason::ModelError(_)));
    for (first, stream) in (1..5).zip(good) {
        let alone = read(start(|_| ()).submit(request(first, 100)).unwrap());
        assert_eq!(read(stream).0, alone.0);
    }
}

#[test]
fn a_panic_reaches_every_stream_and_every_later_submission() {
    let engine = start(|limits| limits.events_max = 2);
    let mut streams: Vec<EventStream> =
        (1..5).map(|first| engine.submit(request(first, 400)).unwrap()).collect();
    streams.push(engine.submit(request(PANICS, 1)).unwrap());
    for stream in streams {
        let reason = read(stream).1.reason;
        let FinishReason::EngineStopped(message) = reason else { panic!("{reason:?}") };
        assert!(message.contains("panicked: token `63`"), "{message}");
    }
    let refused = engine.submit(request(1, 1)).err();
    assert!(matches!(refused, Some(SubmitError::Stopped(_))), "{refused:?}");
    assert!(engine.stats().stopped.is_some());
}

#[test]
fn shutting_down_cancels_and_the_last_handle_drains() {
    let engine = start(|_| ());
    let stream = engine.submit(request(1, 400)).unwrap();
    drop(engine);
    assert_eq!(read(stream).1.reason, FinishReason::Length);

    let engine = start(|limits| limits.events_max = 2);
    let stream = engine.submit(request(1, 400)).unwrap();
    engine.shut_down();
    assert_eq!(read(stream).1.reason, FinishReason::Cancelled(CancelReason::Shutdown));
    assert!(matches!(engine.submit(request(1, 1)), Err(SubmitError::Stopped(_))));
}

#[test]
fn whoever_ends_the_engine_waits_for_its_thread_even_beside_another() {
    let engine = start(|limits| limits.events_max = 2);
    // Nobody reads, so draining alone would wait for ever.
    let stream = engine.submit(request(1, 400)).unwrap();
    let other = engine.clone();
    let draining = std::thread::spawn(move || other.drain());
    while engine.submit(request(1, 1)).is_ok() {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(10));
    engine.shut_down();
    assert!(engine.stats().stopped.is_some());
    draining.join().unwrap();
    assert_eq!(read(stream).1.reason, FinishReason::Cancelled(CancelReason::Shutdown));
}

struct Thread(std::thread::Thread, AtomicUsize);

impl Wake for Thread {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.unpark();
    }
}

#[test]
fn an_async_reader_needs_no_thread_of_its_own() {
    let engine = start(|limits| limits.events_max = 3);
    let mut stream = engine.submit(request(1, 200)).unwrap();
    let wake = Arc::new(Thread(std::thread::current(), AtomicUsize::new(0)));
    let waker = Waker::from(wake.clone());
    let mut tokens = 0;
    loop {
        match stream.poll_recv(&mut Context::from_waker(&waker)) {
            Poll::Ready(Some(Event::Token { .. })) => tokens += 1,
            Poll::Ready(Some(Event::Finished(_))) => break,
            Poll::Ready(None) => panic!("the end comes before nothing"),
            Poll::Pending => std::thread::park_timeout(Duration::from_secs(10)),
        }
    }
    assert_eq!(tokens, 200);
    assert!(wake.1.load(Ordering::Relaxed) > 0);
}
