//! What a member says that is false, or says too often, moves nobody further than the truth would.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;

use crate::{
    NodeId, Options, StateType, Value,
    proto::{Protocol, tests_support::*, timers::Timer},
    wire::{
        codec::{self, Packet},
        message::{Accusation, DotList, Nack, PingReq, Reached, SpreadHead, Took, kind},
    },
};

use super::membership::{accuse, claim};

#[test]
fn an_accusation_of_an_incarnation_that_never_was_moves_the_accused_by_one() {
    let (mut b, mut c) = (core("b"), core("c"));
    connect(&mut b, &mut c, at(0));
    let accusation = Accusation {
        node_id: id("b"),
        epoch: config("b").epoch,
        incarnation: WALL_MS,
        dead: true,
        accuser: id("c"),
    };
    b.handle_message(&id("c"), &message(kind::ACCUSATION, &accusation), at(1_000));
    assert_eq!((b.local_node().incarnation, b.counters().refutations), (1, 1));
}

#[test]
fn a_peer_that_remembers_an_epoch_at_the_bound_is_not_followed() {
    let day = 24 * 3_600 * 1_000;
    for (ahead, follows) in [(day - 1, true), (day, false), (u64::MAX - WALL_MS, false)] {
        let (mut a, mut b) = (core("a"), core("b"));
        let mut introduction = a.introduction(Some(&id("b")));
        introduction.your_epoch = WALL_MS + ahead;
        let (address, rtt) = (a.local_node().address, Duration::from_millis(1));
        b.handle_connected(&id("a"), &introduction, address, rtt, at(0));
        let expected = b.local_node().epoch;
        if follows {
            assert!((1..=1_024).contains(&(expected - WALL_MS - ahead)), "{ahead}: {expected}");
        } else {
            assert_eq!(expected, config("b").epoch, "{ahead}");
        }
        // What it says of itself is believed by others in either case.
        connect(&mut a, &mut b, at(0));
        assert_eq!(a.node(&id("b")).unwrap().epoch, expected);
    }
}

#[test]
fn an_epoch_is_never_begun_twice() {
    let mut b = core("b");
    let epoch = b.local_node().epoch;
    b.begin_epoch(epoch, at(1));
    b.begin_epoch(epoch - 1, at(1));
    assert_eq!((b.local_node().epoch, b.counters().epochs_begun), (epoch, 0));
}

#[test]
fn two_processes_that_go_beyond_the_same_epoch_do_not_meet_in_the_next() {
    // The second does not hear of the first: whoever knew of it is cut off.
    let epochs: BTreeSet<_> = (0..20)
        .map(|seed| {
            let mut b = core_seeded("b", seed);
            b.surpass(WALL_MS + 5_000, at(0));
            b.local_node().epoch
        })
        .collect();
    assert!(epochs.len() > 15, "{epochs:?}");
    assert!(epochs.first().is_some_and(|first| *first > WALL_MS + 5_000));
}

#[test]
fn a_goodbye_of_an_earlier_life_in_the_same_millisecond_is_outlived() {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    let epoch = b.local_node().epoch;
    let goodbye = claim(|body| (body.incarnation, body.left) = (3, true), "b");
    b.handle_message(&id("a"), &message(kind::CLAIM, &goodbye), at(1));
    assert!((epoch + 1..=epoch + 1_024).contains(&b.local_node().epoch));
    assert_eq!(b.counters().conflicts, 0);
}

/// `a` among three peers that are silent, up to where it asks one of them to try a ping for it: whom, and
/// what.
fn asking() -> (Protocol, NodeId, PingReq, u64) {
    asking_over(Duration::from_micros(500))
}

/// The same with all of them so far away.
fn asking_over(rtt: Duration) -> (Protocol, NodeId, PingReq, u64) {
    let mut a = core_with("a", |config| config.ping_req_count = 1);
    for peer in ["b", "c", "d"] {
        connect(&mut a, &mut core(peer), at(0));
        for _ in 0..50 {
            a.measure(&id(peer), rtt);
        }
    }
    for ms in 1..5_000 {
        a.handle_timeout(at(ms));
        for (to, bytes) in sent(&drain(&mut a)) {
            let parts = codec::parts(&bytes).unwrap();
            if let Some((_, body)) = parts.iter().find(|(kind, _)| *kind == kind::PING_REQ) {
                return (a, to, codec::decode(body).unwrap(), ms);
            }
        }
    }
    panic!("no helper was asked");
}

#[test]
fn only_the_helper_that_was_asked_can_say_that_it_reached_the_target() {
    let (mut a, helper, request, ms) = asking();
    let reached = message(kind::REACHED, &Reached { seq: request.seq });
    for peer in ["b", "c", "d"].map(id).iter().filter(|peer| **peer != helper) {
        a.handle_message(peer, &reached, at(ms));
    }
    assert_eq!(a.counters().probes_saved, 0);
    a.handle_message(&helper, &reached, at(ms));
    assert_eq!(a.counters().probes_saved, 1);
}

#[test]
fn a_helper_that_says_it_is_there_does_not_count_against_this_nodes_health() {
    // Of who says nothing, and of who was not asked, nothing is known (Lifeguard, LHA-Probe).
    for (teller_is_helper, worse) in [(true, 0), (false, 1)] {
        let (mut a, helper, request, ms) = asking();
        let other =
            ["b", "c", "d"].map(id).into_iter().find(|peer| *peer != helper && *peer != request.target);
        let teller = if teller_is_helper { helper } else { other.unwrap() };
        let (before, failed) = (a.counters().health_score, a.counters().probes_failed);
        a.handle_message(&teller, &message(kind::NACK, &Nack { seq: request.seq }), at(ms));
        let mut later = ms;
        while a.counters().probes_failed == failed {
            later += 1;
            assert!(later < ms + 2_000, "the probe never ended");
            a.handle_timeout(at(later));
        }
        assert_eq!(a.counters().health_score - before, worse, "{teller}");
    }
}

#[test]
fn helpers_are_given_as_long_as_the_paths_take_and_nack_within_that() {
    let took = |ms: u64| Duration::from_millis(ms);
    for (rtt_ms, shortest, longest) in [(1, 150, 150), (40, 240, 250), (400, 500, 500)] {
        let (mut a, helper, request, asked_ms) = asking_over(took(rtt_ms));
        // A period may begin in between, so that other probes end as well.
        let runs = |a: &Protocol| a.timers.at(&Timer::ProbeEnd(request.seq)).is_some();
        let mut later = asked_ms;
        while runs(&a) {
            later += 1;
            a.handle_timeout(at(later));
        }
        let given = later - asked_ms;
        assert!((shortest..=longest).contains(&given), "{given} ms where a round trip takes {rtt_ms}");

        // The helper has that long for a round trip of its own, and its word is here in time.
        let mut b = core(helper.as_str());
        connect(&mut b, &mut core("a"), at(0));
        connect(&mut b, &mut core(request.target.as_str()), at(0));
        b.handle_message(&id("a"), &message(kind::PING_REQ, &request), at(1));
        drain(&mut b);
        let mut nacked = 1;
        while !kinds(&sent(&drain(&mut b))).contains(&kind::NACK) {
            nacked += 1;
            b.handle_timeout(at(nacked));
        }
        assert!(nacked + rtt_ms.min(100) < given, "nacked after {nacked} ms of {given}");
        assert!(nacked > rtt_ms.min(200), "{nacked}");
    }
}

/// The kinds of all parts of these messages.
fn kinds(messages: &[(NodeId, Bytes)]) -> Vec<u8> {
    messages.iter().flat_map(|(_, bytes)| codec::parts(bytes).unwrap()).map(|(kind, _)| kind).collect()
}

#[test]
fn a_helper_that_is_told_to_wait_for_ever_waits_no_longer_than_it_pings() {
    let mut b = core("b");
    connect(&mut b, &mut core("a"), at(0));
    connect(&mut b, &mut core("c"), at(0));
    let request = PingReq { seq: 1, target: id("c"), nack_ms: u32::MAX };
    b.handle_message(&id("a"), &message(kind::PING_REQ, &request), at(0));
    drain(&mut b);
    b.handle_timeout(at(1_000));
    assert!(kinds(&sent(&drain(&mut b))).contains(&kind::NACK));
    assert_eq!(b.timers.at(&Timer::HelpEnd(1)), None);
}

#[test]
fn an_accused_member_is_warned_once_a_gossip_tick() {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    a.handle_timeout(at(1));
    drain(&mut a);
    let mut warnings = |ms| {
        a.handle_message(&id("b"), &message(kind::NACK, &Nack { seq: 0 }), at(ms)); // it is heard
        drain(&mut a);
        (0..20).for_each(|_| accuse(&mut a, 0, false, "c", ms));
        sent(&drain(&mut a)).iter().filter(|(to, _)| to.as_str() == "b").count()
    };
    assert_eq!([100, 250, 310].map(&mut warnings), [1, 0, 1]);
}

/// The hand-off of the last batch with which `b` spreads so many records to `a`, under that number of a
/// batch.
fn handoff(records: usize, number: u64) -> Bytes {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    drain(&mut b);
    for record in 0..records {
        let (key, value) = (format!("k{record}"), Value::encode(&1).unwrap());
        b.broadcast(&StateType::shared("routes"), &key, value, Options::default(), at(1)).unwrap();
    }
    b.handle_timeout(at(3));
    let mut last = (0, Bytes::new());
    for (_, bytes) in sent(&drain(&mut b)) {
        if let Some((_, body)) =
            codec::parts(&bytes).unwrap().into_iter().find(|(kind, _)| *kind == kind::SPREAD)
        {
            let (head, payload) = codec::head_and_rest(&body).unwrap();
            let mut head: SpreadHead = codec::decode(&head).unwrap();
            let made = std::mem::replace(&mut head.number, number);
            let head = codec::encode(&head);
            let mut packet = Packet::new();
            packet.push_raw(kind::SPREAD, &[&codec::prefix(head.len()), &head, &payload]);
            last = last.max((made, packet.into_bytes()));
        }
    }
    last.1
}

#[test]
fn a_batch_whose_number_somebody_has_used_for_another_still_arrives() {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    a.handle_message(&id("c"), &handoff(1, 7), at(10));
    a.handle_message(&id("b"), &handoff(2, 7), at(11));
    assert!(a.get(&StateType::shared("routes"), "k1").is_some());
    assert_eq!(a.counters().duplicates, 0);
    a.handle_message(&id("c"), &handoff(2, 7), at(12));
    assert_eq!(a.counters().duplicates, 1);
}

#[test]
fn more_acknowledgements_than_a_message_can_call_for_are_refused() {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    a.handle_message(&id("b"), &message(kind::TOOK, &Took { handoffs: (0..1_024).collect() }), at(1));
    assert_eq!(a.counters().malformed, 0);
    a.handle_message(&id("b"), &message(kind::TOOK, &Took { handoffs: (0..1_025).collect() }), at(1));
    assert_eq!(a.counters().malformed, 1);
}

#[test]
fn sources_that_write_all_the_time_do_not_keep_the_oldest_news_from_being_told() {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    wire(&mut a, &mut b, &[]).run(0, 50);
    // One that sorts last has news; then two hundred that sort before it.
    let tell = |a: &mut Protocol, name: &str, ms| {
        let mut source = core(name);
        connect(a, &mut source, at(ms));
        let value = Value::encode(&1).unwrap();
        source.broadcast(&StateType::shared("routes"), name, value, Options::default(), at(ms)).unwrap();
        source.handle_timeout(at(ms + 20));
        let outputs = drain(&mut source);
        for (_, bytes) in sent(&outputs) {
            a.handle_message(&id(name), &bytes, at(ms));
        }
    };
    tell(&mut a, "zz", 60);
    for number in 0..200 {
        tell(&mut a, &format!("m{number:03}"), 70);
    }
    drain(&mut a);
    let mut told = Vec::new();
    for ms in 71..1_000 {
        a.handle_timeout(at(ms));
        for (_, bytes) in sent(&drain(&mut a)) {
            for (kind, body) in codec::parts(&bytes).unwrap() {
                if kind == kind::NEWS && told.is_empty() {
                    let list: DotList = codec::decode(&body).unwrap();
                    told = list.dots.iter().map(|dots| dots.source.to_string()).collect();
                }
            }
        }
    }
    assert_eq!(told.first().map(String::as_str), Some("zz"), "{told:?}");
    assert!(told.len() < 200, "all fitted: nothing was shown");
}
