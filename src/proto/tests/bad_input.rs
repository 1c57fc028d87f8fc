//! Whatever a peer sends, the node counts it, keeps what was good and goes on.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use crate::{
    Options, StateType, Value,
    proto::{Output, Protocol, StreamInput, tests_support::*},
    wire::{
        CloseCode, StreamId,
        message::{Dots, Open, TypeName, Wants, kind},
    },
};

/// Two connected cores, and real messages that went from `b` to `a`.
fn talk() -> (Protocol, Vec<Bytes>) {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    let value = Value::encode("x").unwrap();
    b.broadcast(&StateType::shared("routes"), "k", value, Options::default(), at(1)).unwrap();
    let mut messages = Vec::new();
    for ms in 1..3_000 {
        b.handle_timeout(at(ms));
        for output in drain(&mut b) {
            match output {
                Output::Send { bytes, .. } | Output::Frame { bytes, .. } => messages.push(bytes),
                _ => {}
            }
        }
    }
    drain(&mut a);
    (a, messages)
}

fn is_well(a: &mut Protocol) {
    let value = Value::encode(&1).unwrap();
    a.broadcast(&StateType::shared("still"), "here", value, Options::default(), at(9_000)).unwrap();
    assert!(a.get(&StateType::shared("still"), "here").is_some());
    assert!(a.node(&id("b")).is_some());
}

#[test]
fn no_bytes_make_the_core_panic() {
    let (_, messages) = talk();
    assert!(messages.len() > 5);
    proptest!(ProptestConfig::with_cases(2_000), |(
        which in 0..messages.len(),
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        tail: Vec<u8>,
    )| {
        let (mut a, _) = talk_quickly();
        let mut bytes = messages[which].to_vec();
        for (place, value) in flips {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        bytes.extend(tail);
        let bytes = Bytes::from(bytes);
        a.handle_message(&id("b"), &bytes, at(10));
        a.handle_stream(&id("b"), StreamId(2), StreamInput::Opened, at(10));
        a.handle_stream(&id("b"), StreamId(2), StreamInput::Frame(bytes), at(10));
        drain(&mut a);
        is_well(&mut a);
    });
}

fn talk_quickly() -> (Protocol, Protocol) {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    drain(&mut a);
    (a, b)
}

#[test]
fn every_message_cut_at_every_byte_is_refused_or_harmless() {
    let (mut a, messages) = talk();
    for bytes in messages.iter().take(12) {
        for cut in 0..bytes.len() {
            a.handle_message(&id("b"), &bytes.slice(..cut), at(10));
            drain(&mut a);
        }
    }
    assert!(a.counters().malformed > 0);
    is_well(&mut a);
}

#[test]
fn a_message_that_cannot_be_read_closes_its_connection_with_the_reason() {
    let (mut a, _) = talk_quickly();
    for (bytes, says) in [
        (Bytes::from_static(b"\x09"), "version"),
        (Bytes::from_static(b"\x01\x63\x00"), "kind"),
        (Bytes::from_static(b"\x01\x01\x7f"), "claims more"),
        (message(kind::PING, &"no ping"), "not the message"),
    ] {
        let before = a.counters().malformed;
        a.handle_message(&id("b"), &bytes, at(10));
        assert_eq!(a.counters().malformed, before + 1);
        match &drain(&mut a)[..] {
            [Output::Close { peer, code, reason }] => {
                assert_eq!((peer.as_str(), *code), ("b", CloseCode::PROTOCOL_VIOLATION));
                assert!(reason.contains(says), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    is_well(&mut a);
}

#[test]
fn a_part_of_a_later_version_is_skipped() {
    let (mut a, _) = talk_quickly();
    a.handle_message(&id("b"), &Bytes::from_static(b"\x01\xc8\x02hi"), at(10));
    assert_eq!((a.counters().malformed, drain(&mut a)), (0, Vec::new()));
}

#[test]
fn a_stranger_is_not_listened_to() {
    let (mut a, _) = talk_quickly();
    a.handle_message(&id("stranger"), &Bytes::from_static(b"\x01"), at(10));
    assert_eq!(a.counters().messages_from_strangers, 1);
    assert_eq!(drain(&mut a), []);
}

#[test]
fn a_peer_has_one_exchange_here_at_a_time_and_all_peers_have_two() {
    let mut a = core("a");
    for peer in ["b", "c", "d"] {
        connect(&mut a, &mut core(peer), at(0));
    }
    let mut open = |peer, stream| {
        a.handle_stream(&id(peer), StreamId(stream), StreamInput::Opened, at(10));
        a.counters().exchanges_refused
    };
    let refused = [("b", 2), ("b", 4), ("c", 6), ("d", 8)].map(|(peer, stream)| open(peer, stream));
    assert_eq!(refused, [0, 1, 1, 2]);
    let resets: Vec<_> = drain(&mut a).into_iter().filter(|o| matches!(o, Output::Reset { .. })).collect();
    assert_eq!(resets, [4, 8].map(|stream| Output::Reset { stream: StreamId(stream) }));
    is_well(&mut a);
}

#[test]
fn an_exchange_that_stalls_is_given_up() {
    let (mut a, _) = talk_quickly();
    a.handle_stream(&id("b"), StreamId(2), StreamInput::Opened, at(10));
    a.handle_timeout(at(10_009));
    assert_eq!(a.counters().exchanges_stalled, 1, "the one that `a` began itself");
    a.handle_timeout(at(10_011));
    assert_eq!(a.counters().exchanges_stalled, 2);
    assert!(drain(&mut a).contains(&Output::Reset { stream: StreamId(2) }));
    is_well(&mut a);
}

#[test]
fn wants_without_end_are_cut_off() {
    let (mut a, _) = talk_quickly();
    let stream = StreamId(2);
    a.handle_stream(&id("b"), stream, StreamInput::Opened, at(10));
    let open = Open { clock: 0, members: 0, types: Vec::new(), disabled: Vec::new() };
    a.handle_stream(&id("b"), stream, StreamInput::Frame(message(kind::OPEN, &open)), at(10));
    let state_type = TypeName { name: "routes".into(), per_node: false };
    let dots = Dots { state_type, source: id("b"), epoch: 1, ranges: vec![(1, 1)] };
    let wants = Wants { vectors: vec![dots; 4_096], ..Wants::default() };
    let frame = message(kind::WANTS, &wants);
    let closes = |outputs: &[Output]| outputs.iter().any(|output| matches!(output, Output::Close { .. }));
    let mut frames = 0;
    while !closes(&drain(&mut a)) {
        a.handle_stream(&id("b"), stream, StreamInput::Frame(frame.clone()), at(10));
        frames += 1;
        assert!(frames < 100, "it would go on for ever");
    }
    assert_eq!(a.counters().malformed, 1);
    is_well(&mut a);
}

/// The streams on which the core says what it lacks.
fn asked(core: &mut Protocol) -> Vec<u64> {
    let wants = message(kind::WANTS, &Wants::default())[1];
    let stream = |output: Output| match output {
        Output::Frame { stream, bytes } if bytes[1] == wants => Some(stream.0),
        _ => None,
    };
    let streams: BTreeSet<u64> = drain(core).into_iter().filter_map(stream).collect();
    Vec::from_iter(streams)
}

#[test]
fn one_peer_is_asked_after_the_other_and_who_brings_little_holds_up_nobody() {
    let drip = Bytes::from_static(b"\x01\xc8\x02hi");
    let news = |digest| Open {
        types: vec![(TypeName { name: "routes".into(), per_node: false }, digest)],
        clock: 0,
        members: 0,
        disabled: Vec::new(),
    };
    let [b, c] = [("b", StreamId(2)), ("c", StreamId(6))];
    let opened = || {
        let mut a = core("a");
        for (peer, stream) in [b, c] {
            connect(&mut a, &mut core(peer), at(0));
            a.handle_stream(&id(peer), stream, StreamInput::Opened, at(0));
            let open = message(kind::OPEN, &news(stream.0));
            a.handle_stream(&id(peer), stream, StreamInput::Frame(open), at(0));
        }
        assert_eq!(asked(&mut a), [2], "both would send the same");
        a
    };
    let mut a = opened();
    a.handle_stream(&id(b.0), b.1, StreamInput::Frame(message(kind::DONE, &())), at(500));
    assert_eq!(asked(&mut a), [6]);
    let mut a = opened();
    a.handle_stream(&id(b.0), b.1, StreamInput::Lost, at(500));
    assert_eq!(asked(&mut a), [6]);
    let mut a = opened();
    a.handle_stream(&id(b.0), b.1, StreamInput::Frame(drip.clone()), at(900));
    assert_eq!(asked(&mut a), [0; 0]);
    a.handle_stream(&id(b.0), b.1, StreamInput::Frame(drip), at(1_100));
    assert_eq!(asked(&mut a), [6]);
    let mut a = opened();
    a.handle_timeout(at(900));
    assert_eq!(asked(&mut a), [0; 0]);
    a.handle_timeout(at(1_300));
    assert_eq!(asked(&mut a), [6], "it said nothing at all");
    let mut a = opened();
    a.handle_disconnected(&id("b"), CloseCode::UNSPECIFIED, false, at(500));
    assert_eq!(asked(&mut a), [6]);
}

#[test]
fn an_exchange_that_had_to_wait_to_ask_asks_before_its_stream_ends() {
    let [b, c] = [("b", StreamId(2)), ("c", StreamId(6))];
    let mut a = core("a");
    let open = |digest| Open {
        types: vec![(TypeName { name: "routes".into(), per_node: false }, digest)],
        clock: 0,
        members: 0,
        disabled: Vec::new(),
    };
    for (peer, stream) in [b, c] {
        connect(&mut a, &mut core(peer), at(0));
        a.handle_stream(&id(peer), stream, StreamInput::Opened, at(0));
        a.handle_stream(&id(peer), stream, StreamInput::Frame(message(kind::OPEN, &open(stream.0))), at(0));
    }
    let wants = message(kind::WANTS, &Wants { last: true, ..Wants::default() });
    a.handle_stream(&id(c.0), c.1, StreamInput::Frame(wants), at(0));
    a.handle_stream(&id(b.0), b.1, StreamInput::Frame(message(kind::DONE, &())), at(1));
    let of_c = |output: &Output| match output {
        Output::Frame { stream, bytes } if *stream == c.1 => Some(Some(bytes[1])),
        Output::Finish { stream } if *stream == c.1 => Some(None),
        _ => None,
    };
    let mut said: Vec<_> = drain(&mut a).iter().filter_map(of_c).collect();
    said.dedup(); // members and vectors come in frames of their own
    assert_eq!(said, [Some(kind::OPEN), Some(kind::DONE), Some(kind::WANTS), None]);
}
