//! What the delegated spread has lost: each net below it repairs alone, with the others cut away.

use std::time::Duration;

use crate::{
    Options, StateType, Value,
    proto::{Protocol, StreamInput, lamport, tests_support::*},
    wire::{
        StreamId,
        message::{Covers, Dots, Open, RecordBatch, TypeName, Wants, WireRecord, kind},
    },
};

fn routes() -> StateType {
    StateType::shared("routes")
}

/// Two connected cores that have had their first exchange; no regular push-pull follows within an hour.
fn pair() -> (Protocol, Protocol) {
    let rare =
        |config: &mut crate::proto::ProtocolConfig| config.push_pull_interval = Duration::from_secs(3_600);
    let (mut a, mut b) = (core_with("a", rare), core_with("b", rare));
    connect(&mut a, &mut b, at(0));
    wire(&mut a, &mut b, &[]).run(0, 50);
    assert_eq!((a.synced, b.synced), (Some(1), Some(1)));
    (a, b)
}

fn put(core: &mut Protocol, number: u32, ms: u64) {
    core.broadcast(&routes(), "x", Value::encode(&number).unwrap(), Options::default(), at(ms)).unwrap();
}

fn number(core: &Protocol) -> Option<u32> {
    core.get(&routes(), "x").map(|record| record.value.decode().unwrap())
}

#[test]
fn gossip_brings_on_the_tick_what_the_spread_has_lost() {
    let (mut a, mut b) = pair();
    put(&mut a, 1, 100);
    let exchanges = a.counters().exchanges_begun + b.counters().exchanges_begun;
    wire(&mut a, &mut b, &[kind::SPREAD]).run(100, 600);
    assert_eq!(number(&b), Some(1));
    assert_eq!(b.counters().gossip_useful, 1);
    assert_eq!(a.counters().exchanges_begun + b.counters().exchanges_begun, exchanges);
}

#[test]
fn digests_on_pings_bring_what_the_spread_and_gossip_have_lost() {
    let (mut a, mut b) = pair();
    put(&mut a, 1, 100);
    wire(&mut a, &mut b, &[kind::SPREAD, kind::NEWS]).run(100, 5_000);
    assert_eq!(number(&b), Some(1));
    assert!(a.counters().early_syncs + b.counters().early_syncs >= 1);
}

#[test]
fn an_exchange_leaves_no_gap_where_a_record_was_superseded() {
    let (mut a, mut b) = pair();
    for round in 0..5 {
        // Each is spread by itself and lost, so that the first four have no record any more.
        put(&mut a, round, 100 + u64::from(round) * 10);
        let mut nobody = core("nobody");
        wire(&mut a, &mut nobody, &[]).run(100 + u64::from(round) * 10, 110 + u64::from(round) * 10);
    }
    wire(&mut a, &mut b, &[kind::SPREAD, kind::NEWS]).run(200, 5_000);
    assert_eq!(number(&b), Some(4));
    assert_eq!(b.store.vector(&routes()), a.store.vector(&routes()));
    assert_eq!(b.store.digest(&routes()), a.store.digest(&routes()));
    let before = a.counters().exchanges_begun + b.counters().exchanges_begun;
    wire(&mut a, &mut b, &[]).run(5_000, 15_000);
    assert_eq!(
        a.counters().exchanges_begun + b.counters().exchanges_begun,
        before,
        "equal nodes ask for nothing"
    );
}

#[test]
fn what_an_exchange_could_not_accept_stays_unknown_whatever_is_claimed() {
    let (mut a, _b) = pair();
    let stream = StreamId(2_000);
    let state_type = TypeName { name: "routes".into(), per_node: false };
    let record = |seq, version| WireRecord {
        seq,
        key: format!("k{seq}"),
        version,
        timestamp_ms: 0,
        deleted: false,
        ttl_ms: None,
        value: Value::encode(&seq).unwrap().into_bytes(),
    };
    let records = vec![record(1, 7), record(2, lamport::bound(WALL_MS) + (1 << 40)), record(3, 8)];
    let batch = RecordBatch {
        state_type: state_type.clone(),
        source: id("c"),
        epoch: 5,
        records,
        carried: Vec::new(),
    };
    let dots = Dots { state_type, source: id("c"), epoch: 5, ranges: vec![(1, 9)] };
    let frames = [
        message(kind::OPEN, &Open { clock: 0, members: 0, types: Vec::new(), disabled: Vec::new() }),
        message(kind::WANTS, &Wants { last: true, ..Wants::default() }),
        message(kind::RECORDS, &batch),
        message(kind::COVERS, &Covers { vectors: vec![dots] }),
        message(kind::DONE, &()),
    ];
    a.handle_stream(&id("b"), stream, StreamInput::Opened, at(100));
    for frame in frames {
        a.handle_stream(&id("b"), stream, StreamInput::Frame(frame), at(100));
    }
    assert_eq!(a.store.ranges(&routes(), &id("c"), 5).to_wire(), [(1, 1), (3, 9)]);
    assert_eq!((a.counters().records_refused, a.counters().malformed), (1, 0));
}
