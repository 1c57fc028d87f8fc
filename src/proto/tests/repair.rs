//! What the delegated spread has lost: each net below it repairs alone, with the others cut away.

use std::time::Duration;

use crate::{
    Options, StateType, Value,
    proto::{Protocol, StreamInput, lamport, ranges::Ranges, tests_support::*},
    wire::{
        StreamId,
        message::{Bygone, Covers, Dots, Open, RecordBatch, TypeName, Wants, WireRecord, kind},
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

/// An exchange that `peer` begins with `core`, in which it says that.
fn hear(core: &mut Protocol, peer: &str, stream: u64, frames: Vec<bytes::Bytes>, ms: u64) {
    let open = Open { clock: 0, members: 0, types: Vec::new(), disabled: Vec::new() };
    let wants = Wants { last: true, ..Wants::default() };
    let stream = StreamId(stream);
    core.handle_stream(&id(peer), stream, StreamInput::Opened, at(ms));
    let first = [message(kind::OPEN, &open), message(kind::WANTS, &wants)];
    for frame in first.into_iter().chain(frames).chain([message(kind::DONE, &())]) {
        core.handle_stream(&id(peer), stream, StreamInput::Frame(frame), at(ms));
    }
}

fn dots(per_node: bool, source: &Protocol, ranges: &[(u64, u64)]) -> Dots {
    Dots {
        state_type: TypeName { name: "routes".into(), per_node },
        source: source.id().clone(),
        epoch: source.local_node().epoch,
        ranges: ranges.to_vec(),
    }
}

#[test]
fn who_was_told_that_it_knows_what_it_never_had_is_sent_it_anew() {
    let (mut a, mut b) = pair();
    let mut liar = core("c");
    connect(&mut b, &mut liar, at(50));
    let covers = Covers { vectors: vec![dots(false, &a, &[(1, 1)])], floors: vec![0] };
    hear(&mut b, "c", 3_000, vec![message(kind::COVERS, &covers)], 60);
    drain(&mut liar);
    b.handle_disconnected(&id("c"), crate::wire::CloseCode::LEFT, true, at(70));
    put(&mut a, 7, 100);
    wire(&mut a, &mut b, &[]).run(100, 400);
    assert_eq!(number(&b), None, "it holds it for known");
    wire(&mut a, &mut b, &[]).run(400, 30_000);
    assert_eq!(number(&b), Some(7));
    assert_eq!(b.store.digest(&routes()), a.store.digest(&routes()));
    assert!(a.counters().digests_unexplained + b.counters().digests_unexplained > 0);
    assert_eq!(a.counters().records_healed + b.counters().records_healed, 1);
}

#[test]
fn who_knows_of_more_gaps_than_may_be_told_syncs_all_the_same() {
    let (mut a, mut b) = pair();
    let ranges: Vec<_> = (1..=32_768).map(|gap| (gap * 2, gap * 2)).collect();
    for source in 0..40 {
        // As many ranges in all as would be refused at once: what is told is cut.
        let told = Dots { source: id(&format!("s{source:02}")), ..dots(false, &a, &ranges) };
        let vector = [((told.source, told.epoch), Ranges::from_wire(&ranges).unwrap())];
        b.store.cover(&routes(), &vector.into(), at(60));
    }
    put(&mut a, 7, 100);
    b.broadcast(&routes(), "y", Value::encode(&8).unwrap(), Options::default(), at(100)).unwrap();
    wire(&mut a, &mut b, &[kind::SPREAD, kind::NEWS]).run(100, 30_000);
    assert_eq!((a.counters().malformed, b.counters().malformed), (0, 0));
    assert_eq!((number(&b), a.get(&routes(), "y").is_some()), (Some(7), true));
    assert_eq!(b.store.vector(&routes()), a.store.vector(&routes()));
}

#[test]
fn nobody_but_its_owner_tells_that_a_register_is_bygone_while_that_lives() {
    let (mut a, mut b) = pair();
    let of = StateType::per_node("routes");
    let value = || Value::encode(&1).unwrap();
    a.broadcast(&of, "x", value(), Options::default(), at(100)).unwrap();
    b.broadcast(&of, "x", value(), Options::default(), at(100)).unwrap();
    wire(&mut a, &mut b, &[]).run(100, 400);
    let mut liar = core("c");
    connect(&mut b, &mut liar, at(400));
    drain(&mut b);
    let both = Bygone { dots: vec![dots(true, &a, &[(1, 1)]), dots(true, &b, &[(1, 1)])] };
    hear(&mut b, "c", 3_000, vec![message(kind::BYGONE, &both)], 500);
    b.handle_timeout(at(600));
    assert_eq!(b.states(&of).len(), 2, "both owners live");
    assert_eq!((b.counters().bygone_refused, b.counters().records_bygone), (2, 0));
    let own = Bygone { dots: vec![dots(true, &a, &[(1, 1)])] };
    hear(&mut b, "a", 3_002, vec![message(kind::BYGONE, &own)], 700);
    b.handle_timeout(at(800));
    assert_eq!((b.states(&of).len(), b.counters().records_bygone), (1, 1));
}

#[test]
fn what_is_bygone_counts_once_the_peer_has_told_all_and_not_before() {
    let (mut a, mut b) = pair();
    put(&mut a, 1, 100);
    wire(&mut a, &mut b, &[]).run(100, 400);
    let bygone = message(kind::BYGONE, &Bygone { dots: vec![dots(false, &a, &[(1, 1)])] });
    let more = Dots { source: id("c"), ..dots(false, &a, &[(1, 9)]) };
    let covers = message(kind::COVERS, &Covers { vectors: vec![more.clone()], floors: vec![u64::MAX] });
    let stream = StreamId(3_000);
    let open = Open { clock: 0, members: 0, types: Vec::new(), disabled: Vec::new() };
    b.handle_stream(&id("a"), stream, StreamInput::Opened, at(500));
    for frame in [message(kind::OPEN, &open), bygone.clone(), covers.clone()] {
        b.handle_stream(&id("a"), stream, StreamInput::Frame(frame), at(500));
    }
    b.handle_stream(&id("a"), stream, StreamInput::Lost, at(510));
    b.handle_timeout(at(600));
    let known = |b: &Protocol| b.store.ranges(&routes(), &id("c"), more.epoch).to_wire();
    assert_eq!((number(&b), known(&b)), (Some(1), Vec::new()), "cut before the end");
    hear(&mut b, "a", 3_002, vec![bygone, covers], 700);
    b.handle_timeout(at(800));
    assert_eq!((number(&b), known(&b)), (None, vec![(1, 9)]));
    assert_eq!(b.store.floor(&routes(), &id("c"), more.epoch), 9, "no floor beyond what is known");
}

#[test]
fn bygone_dots_that_do_not_ascend_and_claims_without_floors_are_malformed() {
    let bygone = |ranges: &[(u64, u64)]| {
        let source = core("a");
        message(kind::BYGONE, &Bygone { dots: vec![dots(false, &source, ranges)] })
    };
    let covers = |floors: Vec<u64>| {
        let source = core("a");
        message(kind::COVERS, &Covers { vectors: vec![dots(false, &source, &[(1, 1)])], floors })
    };
    for frames in [
        vec![bygone(&[(1, 5)]), bygone(&[(5, 6)])],
        vec![bygone(&[(9, 9)]), bygone(&[(1, 2)])],
        vec![covers(Vec::new())],
        vec![covers(vec![0, 0])],
    ] {
        let (mut a, mut b) = pair();
        put(&mut a, 1, 100);
        wire(&mut a, &mut b, &[]).run(100, 400);
        hear(&mut b, "a", 3_000, frames, 500);
        b.handle_timeout(at(600));
        assert_eq!((b.counters().malformed, number(&b)), (1, Some(1)));
    }
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
        proof: bytes::Bytes::new(),
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
        message(kind::COVERS, &Covers { vectors: vec![dots], floors: vec![0] }),
        message(kind::DONE, &()),
    ];
    a.handle_stream(&id("b"), stream, StreamInput::Opened, at(100));
    for frame in frames {
        a.handle_stream(&id("b"), stream, StreamInput::Frame(frame), at(100));
    }
    assert_eq!(a.store.ranges(&routes(), &id("c"), 5).to_wire(), [(1, 1), (3, 9)]);
    assert_eq!((a.counters().records_refused, a.counters().malformed), (1, 0));
}
