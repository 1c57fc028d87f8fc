//! Subscribers, streams and watchers: order, bounds, and readers that misbehave.

use std::sync::{Barrier, Mutex, mpsc};

use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::driver::{feed::FEED_LEN_MAX, lock};

fn event(kind: EventKind) -> ClusterEvent {
    ClusterEvent::new(kind, None, clock::wall_now(), EventData::None)
}

fn reason(number: usize) -> ClusterEvent {
    let data = EventData::Reason(number.to_string());
    ClusterEvent::new(EventKind::NodeConflict, None, clock::wall_now(), data)
}

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_callback_gets_events_in_order_on_a_thread_of_its_own() {
    let subscribers = Arc::new(Subscribers::<ClusterEvent>::default());
    let (told, heard) = mpsc::channel();
    let _kept = subscribers.subscribe(Box::new(move |event| {
        told.send((std::thread::current().id(), event.clone())).unwrap();
    }));
    for number in 0..100 {
        subscribers.publish(reason(number));
    }
    for number in 0..100 {
        let (thread, event) = heard.recv_timeout(LIMIT).unwrap();
        assert_ne!(thread, std::thread::current().id());
        assert_eq!(event.data, reason(number).data);
    }
}

#[test]
fn a_callback_that_panics_is_called_for_the_next_event() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in the drop of a payload");
        }
    }
    let subscribers = Arc::new(Subscribers::<ClusterEvent>::default());
    let (told, heard) = mpsc::channel();
    let _kept = subscribers.subscribe(Box::new(move |event| match event.kind {
        EventKind::NodeDead => std::panic::panic_any(Bomb),
        kind => told.send(kind).unwrap(),
    }));
    for kind in [EventKind::NodeDead, EventKind::NodeDead, EventKind::NodeJoin] {
        subscribers.publish(event(kind));
    }
    assert_eq!(heard.recv_timeout(LIMIT).unwrap(), EventKind::NodeJoin);
    assert_eq!(subscribers.panics(), 2);
}

#[test]
fn a_callback_that_blocks_misses_an_exact_number_and_harms_no_other() {
    let subscribers = Arc::new(Subscribers::<ClusterEvent>::default());
    let (entered, gate) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (told, heard) = mpsc::channel();
    let at = [Arc::clone(&entered), Arc::clone(&gate)];
    let first = AtomicBool::new(true);
    let _slow = subscribers.subscribe(Box::new(move |event| {
        if first.swap(false, SeqCst) {
            for barrier in &at {
                barrier.wait();
            }
        }
        told.send(event.data.clone()).unwrap();
    }));
    let mut quick = subscribers.stream(|_| true);
    subscribers.publish(reason(0));
    entered.wait();
    for number in 1..=FEED_LEN_MAX + 7 {
        subscribers.publish(reason(number));
        while quick.next().now_or_never().is_some() {}
    }
    gate.wait();
    let all: Vec<_> = (0..=FEED_LEN_MAX + 1).map(|_| heard.recv_timeout(LIMIT).unwrap()).collect();
    assert_eq!(all[FEED_LEN_MAX], reason(FEED_LEN_MAX).data);
    assert_eq!(all[FEED_LEN_MAX + 1], EventData::Lagged { missed: 7 });
}

#[test]
fn unsubscribing_from_within_the_callback_ends_the_calls() {
    let subscribers = Arc::new(Subscribers::<ClusterEvent>::default());
    let own: Arc<Mutex<Option<Subscription>>> = Arc::default();
    let (told, heard) = mpsc::channel();
    let inner = Arc::clone(&own);
    let subscription = subscribers.subscribe(Box::new(move |_| {
        if let Some(subscription) = lock(&inner).take() {
            subscription.unsubscribe();
        }
        told.send(()).unwrap();
    }));
    *lock(&own) = Some(subscription);
    for _ in 0..10 {
        subscribers.publish(event(EventKind::NodeJoin));
    }
    heard.recv_timeout(LIMIT).unwrap();
    // The callback and its sender go with the thread.
    assert_eq!(heard.recv_timeout(LIMIT), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn a_stream_ends_with_the_cluster_after_what_was_told() {
    let subscribers = Arc::new(Subscribers::<ClusterEvent>::default());
    let mut stream = subscribers.stream(|_| true);
    assert!(stream.next().now_or_never().is_none());
    subscribers.publish(event(EventKind::NodeJoin));
    subscribers.close();
    assert_eq!(stream.next().now_or_never().unwrap().unwrap().kind, EventKind::NodeJoin);
    assert_eq!(stream.next().now_or_never().unwrap(), None);
    let mut late = subscribers.stream(|_| true);
    assert_eq!(late.next().now_or_never().unwrap(), None);
}

#[test]
fn a_dropped_stream_is_forgotten() {
    let subscribers = Arc::new(Subscribers::<ClusterEvent>::default());
    drop(subscribers.stream(|_| true));
    assert!(read(&subscribers.readers).is_empty());
    let driver = Driver::new(crate::Config::default()).unwrap();
    drop(driver.watch(&StateType::HEALTH, FEED_LEN_MAX));
    assert!(read(&driver.watchers.feeds).is_empty());
}

#[test]
fn a_watcher_hears_of_its_own_type_only() {
    let driver = Driver::new(crate::Config::default()).unwrap();
    let put = |state_type: &str| {
        let value = crate::Value::encode(&1).unwrap();
        let new = crate::SyncableState::new(state_type, "k", value, 1, crate::NodeId::new("a").unwrap());
        StateChange::Put { new, old: None }
    };
    let mut stream = driver.watch(&StateType::from("b"), FEED_LEN_MAX);
    for state_type in ["a", "b", "c"] {
        driver.watchers.publish(&put(state_type));
    }
    let Some(StateChange::Put { new, .. }) = stream.next().now_or_never().unwrap() else { panic!() };
    assert_eq!(new.state_type.as_str(), "b");
    assert!(stream.next().now_or_never().is_none());
}
