//! Shared state through the core: what is refused, what counts when its owner dies.

use std::time::Duration;

use crate::{
    Error, EventKind, NodeStatus, Options, StateChange, StateType, SyncableState, Value,
    proto::{Output, Protocol, lamport, tests_support::*},
    wire::message::{RecordBatch, WireRecord, kind},
};

fn value(number: u32) -> Value {
    Value::encode(&number).unwrap()
}

fn put(core: &mut Protocol, of: &StateType, key: &str, number: u32, ms: u64) {
    core.broadcast(of, key, value(number), Options::default(), at(ms)).unwrap();
}

/// Hands everything `from` sends to `to`.
fn pass(from: &mut Protocol, to: &mut Protocol, ms: u64) {
    let (sender, receiver) = (from.id().clone(), to.id().clone());
    for (name, bytes) in sent(&drain(from)) {
        if name == receiver {
            to.handle_message(&sender, &bytes, at(ms));
        }
    }
}

fn pair() -> (Protocol, Protocol) {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    drain(&mut a);
    drain(&mut b);
    (a, b)
}

#[test]
fn a_broadcast_arrives_with_one_message_and_is_applied_once() {
    let (mut a, mut b) = pair();
    put(&mut b, &StateType::DRAIN, "x", 1, 10);
    pass(&mut b, &mut a, 10);
    let outputs = drain(&mut a);
    let applied = outputs.iter().filter(|output| matches!(output, Output::Apply(_))).count();
    assert_eq!(applied, 1);
    assert_eq!(events(&outputs), [(EventKind::StateChanged, "b".into())]);
    assert_eq!(a.get(&StateType::DRAIN, "x").unwrap().value, value(1));
    assert_eq!(a.remote_states(&StateType::DRAIN).len(), 1);
    assert_eq!(b.remote_states(&StateType::DRAIN).len(), 0);
}

#[test]
fn a_batch_with_one_bad_record_is_refused_whole() {
    let (mut a, _) = pair();
    let state =
        |key: &str, version, source: &str| SyncableState::new("routes", key, value(1), version, id(source));
    let bound = lamport::bound(WALL_MS);
    let error = a.broadcast_many(vec![state("x", 1, "a"), state("y", 1, "b")], at(0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "record 1 of the batch (\"y\") names b as its source; a node writes only its own records (a)"
    );
    let error = a.broadcast_many(vec![state("x", 1, "a"), state("y", bound + 1, "a")], at(0)).unwrap_err();
    assert!(matches!(error, Error::VersionTooHigh { bound: told, .. } if told == bound), "{error}");
    assert_eq!(a.states(&"routes".into()), []);
    let taken = a.broadcast_many(vec![state("x", 5, "a"), state("x", 4, "a"), state("y", 1, "a")], at(0));
    assert_eq!(taken.unwrap(), 2);
    assert_eq!(a.states(&"routes".into()).len(), 2);
}

#[test]
fn opinions_stop_counting_when_their_owner_dies_and_orders_do_not() {
    let (mut a, mut b) = (core("a"), core("b"));
    let mut c = core("c");
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    for of in [StateType::HEALTH, StateType::CIRCUIT_BREAKER, StateType::DRAIN, StateType::per_node("own")] {
        put(&mut b, &of, "x", 1, 1);
    }
    for ms in 1..8 {
        b.handle_timeout(at(ms));
        pass(&mut b, &mut a, ms);
    }
    assert_eq!(a.states(&StateType::HEALTH).len(), 1);
    let mut changes = Vec::new();
    for ms in (10..40_000).step_by(10) {
        a.handle_timeout(at(ms));
        let outputs = drain(&mut a);
        for (to, bytes) in sent(&outputs) {
            if to.as_str() == "c" {
                c.handle_message(&id("a"), &bytes, at(ms));
                pass(&mut c, &mut a, ms);
            }
        }
        changes.extend(outputs.into_iter().filter_map(|output| match output {
            Output::Change(StateChange::Removed { old }) => Some(old.state_type.to_string()),
            _ => None,
        }));
    }
    assert_eq!(a.node(&id("b")).unwrap().status, NodeStatus::Dead);
    changes.sort();
    assert_eq!(changes, ["circuit-breaker", "health"]);
    assert_eq!(a.states(&StateType::HEALTH), []);
    assert_eq!((a.states(&StateType::DRAIN).len(), a.states(&StateType::per_node("own")).len()), (1, 1));
}

#[test]
fn a_cut_off_node_keeps_what_the_lost_majority_said() {
    let mut a = core("a");
    let mut others: Vec<_> = ["b", "c", "d", "e"].into_iter().map(core).collect();
    for other in &mut others {
        connect(&mut a, other, at(0));
        put(other, &StateType::HEALTH, "x", 1, 1);
        for ms in 1..8 {
            other.handle_timeout(at(ms));
            pass(other, &mut a, ms);
        }
    }
    assert_eq!(a.states(&StateType::HEALTH).len(), 4);
    // Only `e` answers; the other three are lost together.
    let mut isolated = 0;
    for ms in (10..60_000).step_by(10) {
        a.handle_timeout(at(ms));
        let outputs = drain(&mut a);
        isolated +=
            events(&outputs).iter().filter(|(kind, _)| *kind == EventKind::IsolationSuspected).count();
        for (to, bytes) in sent(&outputs) {
            if to.as_str() == "e" {
                others[3].handle_message(&id("a"), &bytes, at(ms));
                pass(&mut others[3], &mut a, ms);
            }
        }
    }
    let dead = a.nodes().values().filter(|node| node.status == NodeStatus::Dead).count();
    assert_eq!((dead, isolated), (3, 1));
    assert_eq!(a.states(&StateType::HEALTH).len(), 4);
    // One of them is heard again: most are there, so the rest are taken for dead after all.
    a.handle_message(
        &id("b"),
        &message(crate::wire::message::kind::HELD, &crate::wire::message::Held { ticket: 0 }),
        at(60_001),
    );
    assert_eq!(a.states(&StateType::HEALTH).len(), 2);
}

#[test]
fn a_writer_faster_than_the_cluster_is_told_so_and_urgent_words_still_pass() {
    let (mut a, _b) = pair();
    let big = Value::encode(&vec![7_u8; 200_000]).unwrap();
    let mut written = 0;
    let error = loop {
        let key = format!("k{written}");
        match a.broadcast(&"bulk".into(), &key, big.clone(), Options::default(), at(10)) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1_000, "never refused");
    };
    assert!(matches!(error, Error::Overloaded { limit: 16_777_216, .. }), "{error}");
    assert!(error.to_string().contains("slow down"));
    assert_eq!(a.states(&"bulk".into()).len(), written);
    let urgent = Options { urgent: true, ..Options::default() };
    a.broadcast(&StateType::DRAIN, "x", value(1), urgent, at(10)).unwrap();
}

#[test]
fn a_confirmation_names_who_has_it_and_who_has_not() {
    let (mut a, mut b) = pair();
    let mut c = core("c");
    connect(&mut a, &mut c, at(0));
    put(&mut a, &StateType::DRAIN, "x", 1, 10);
    a.confirm(&StateType::DRAIN, "x", Duration::from_millis(300), 7, at(10));
    let mut confirmed = None;
    for ms in 10..400 {
        a.handle_timeout(at(ms));
        let outputs = drain(&mut a);
        for (to, bytes) in sent(&outputs) {
            if to.as_str() == "b" {
                b.handle_message(&id("a"), &bytes, at(ms));
                pass(&mut b, &mut a, ms);
            }
        }
        confirmed = confirmed.or_else(|| {
            outputs.into_iter().find_map(|output| match output {
                Output::Confirmed { ticket: 7, spread } => Some((ms, spread)),
                _ => None,
            })
        });
    }
    let (ms, spread) = confirmed.expect("it ends");
    assert_eq!(ms, 310);
    assert_eq!(spread.reached, [id("a"), id("b")].into());
    assert_eq!(spread.missing, [id("c")].into());
}

#[test]
fn a_record_with_a_time_to_live_is_gone_when_it_is_over() {
    let (mut a, _) = pair();
    let options = Options { ttl: Some(Duration::from_secs(2)), ..Options::default() };
    a.broadcast(&StateType::DRAIN, "x", value(1), options, at(10)).unwrap();
    a.handle_timeout(at(2_009));
    assert!(a.get(&StateType::DRAIN, "x").is_some());
    drain(&mut a);
    a.handle_timeout(at(2_010));
    assert!(a.get(&StateType::DRAIN, "x").is_none());
    assert!(drain(&mut a).iter().any(|output| matches!(output, Output::Change(StateChange::Expired { .. }))));
}

/// Its dot must not be known without it: nobody would ever tell this node of it again.
#[test]
fn a_record_of_an_own_later_life_is_kept_once_that_life_is_an_earlier_one() {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut c, at(0));
    let record = WireRecord {
        seq: 1,
        key: "x".into(),
        version: 9,
        timestamp_ms: WALL_MS,
        deleted: false,
        ttl_ms: None,
        value: value(7).into_bytes(),
        proof: bytes::Bytes::new(),
    };
    // `a` holds it and does not know `b`, as after an operator had it forgotten.
    let (epoch, carried) = (WALL_MS + 5_000, Vec::new());
    let state_type = (&StateType::CONNTRACK).into();
    let batch = RecordBatch { state_type, source: id("b"), epoch, records: vec![record], carried };
    a.handle_message(&id("c"), &message(kind::RECORDS, &batch), at(1));
    connect(&mut a, &mut b, at(2));
    wire(&mut a, &mut b, &[]).run(3, 40_000);
    assert!(b.local_node().epoch > epoch, "{}", b.local_node().epoch);
    assert_eq!(a.fingerprint().1, b.fingerprint().1);
    for core in [&a, &b] {
        let held = core.store.ranges(&StateType::CONNTRACK, &id("b"), epoch);
        assert_eq!((held.count(), core.states(&StateType::CONNTRACK).len()), (1, 1), "{}", core.id());
    }
}

#[test]
fn who_hears_of_own_records_that_it_did_not_write_goes_on_under_a_later_epoch() {
    let (mut a, mut b) = pair();
    put(&mut a, &StateType::HEALTH, "x", 1, 10);
    drain(&mut a);
    let used = WALL_MS + 3_600_000;
    let records = vec![WireRecord {
        seq: 1,
        key: "x".into(),
        version: 99,
        timestamp_ms: 0,
        deleted: false,
        ttl_ms: None,
        value: value(666).into_bytes(),
        proof: bytes::Bytes::new(),
    }];
    let state_type = (&StateType::HEALTH).into();
    let forged = RecordBatch { state_type, source: id("a"), epoch: used, records, carried: Vec::new() };
    a.handle_message(&id("b"), &message(kind::RECORDS, &forged), at(20));
    assert!((used + 1..=used + 1_024).contains(&a.local_node().epoch));
    assert_eq!((a.counters().impersonations, a.counters().epochs_begun), (1, 1));
    assert_eq!(a.get(&StateType::HEALTH, "x").unwrap().value, value(1));
    let outputs = drain(&mut a);
    assert!(events(&outputs).contains(&(EventKind::NodeConflict, "a".into())));
    for (_, bytes) in sent(&outputs) {
        b.handle_message(&id("a"), &bytes, at(21));
    }
    for ms in 22..30 {
        a.handle_timeout(at(ms));
        pass(&mut a, &mut b, ms);
    }
    assert_eq!(b.states(&StateType::HEALTH)[0].value, value(1));
    // An epoch that no clock allows is no reason to follow it there.
    let forged = RecordBatch { epoch: u64::MAX, ..forged };
    a.handle_message(&id("b"), &message(kind::RECORDS, &forged), at(5_000));
    assert!((used + 1..=used + 1_024).contains(&a.local_node().epoch));
}
