//! Claims and accusations: who is believed, and what follows.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    Error, EventKind, NodeStatus,
    proto::{Output, Protocol, Verdict, tests_support::*},
    wire::{
        CloseCode, codec,
        hello::Introduction,
        message::{Accusation, ClaimBody, CoreHello, Digests, Ping, Signed, SignedClaim, kind},
    },
};

/// A claim of `b`'s, signed by whoever `signer` is.
pub(super) fn claim(change: impl FnOnce(&mut ClaimBody), signer: &str) -> SignedClaim {
    let b = core("b");
    let mut body = ClaimBody {
        node_id: id("b"),
        epoch: config("b").epoch,
        incarnation: 0,
        left: false,
        address: b.local_node().address,
        zone: None,
        tags: [].into(),
    };
    change(&mut body);
    let seal = Seal(id(signer));
    let chain = crate::proto::Vouch::chain(&seal);
    let mut signing = core(signer);
    SignedClaim { chain: Some(chain.clone()), ..signing.sign(&body, &chain) }
}

/// `a`, connected with `c`, and with `b` known to it by a claim with that incarnation.
pub(super) fn a_knowing_b(incarnation: u64) -> Protocol {
    let (mut a, mut c) = (core("a"), core("c"));
    connect(&mut a, &mut c, at(0));
    tell(&mut a, &claim(|body| body.incarnation = incarnation, "b"), 0);
    assert_eq!(a.node(&id("b")).unwrap().status, NodeStatus::Alive);
    drain(&mut a);
    a
}

pub(super) fn tell(a: &mut Protocol, claim: &SignedClaim, ms: u64) {
    tell_as(a, "c", claim, ms);
}

pub(super) fn tell_as(a: &mut Protocol, teller: &str, claim: &SignedClaim, ms: u64) {
    a.handle_message(&id(teller), &message(kind::CLAIM, claim), at(ms));
}

pub(super) fn accuse(a: &mut Protocol, incarnation: u64, dead: bool, accuser: &str, ms: u64) {
    let epoch = config("b").epoch;
    let accusation = Accusation { node_id: id("b"), epoch, incarnation, dead, accuser: id(accuser) };
    a.handle_message(&id("c"), &message(kind::ACCUSATION, &accusation), at(ms));
}

pub(super) fn run(a: &mut Protocol, to_ms: u64) -> Vec<Output> {
    let mut outputs = drain(a);
    while let Some(due) = a.poll_timeout().filter(|due| due.as_micros() <= to_ms * 1_000) {
        a.handle_timeout(at(due.as_micros().div_ceil(1_000)));
        outputs.extend(drain(a));
    }
    outputs
}

pub(super) fn status(a: &Protocol) -> Option<NodeStatus> {
    a.node(&id("b")).map(|node| node.status)
}

#[test]
fn a_claim_counts_only_if_its_node_signed_it() {
    let mut a = a_knowing_b(0);
    tell(&mut a, &claim(|body| body.incarnation = 9, "mallory"), 1);
    tell(&mut a, &claim(|body| body.left = true, "mallory"), 1);
    assert_eq!(a.node(&id("b")).unwrap().incarnation, 0);
    assert_eq!(status(&a), Some(NodeStatus::Alive));
    assert_eq!(a.counters().claims_forged, 2);
    tell(&mut a, &claim(|body| body.incarnation = 9, "b"), 2);
    assert_eq!(a.node(&id("b")).unwrap().incarnation, 9);
}

#[test]
fn a_claim_whose_certificate_is_not_known_is_asked_for() {
    let (mut a, mut c) = (core("a"), core("c"));
    connect(&mut a, &mut c, at(0));
    drain(&mut a);
    let bare = SignedClaim { chain: None, ..claim(|_| (), "b") };
    tell(&mut a, &bare, 1);
    assert_eq!(status(&a), None);
    let asked = sent(&drain(&mut a));
    assert_eq!(asked.len(), 1);
    assert_eq!(codec::parts(&asked[0].1).unwrap()[0].0, kind::NEED_CLAIM);
    // At most twice a second, however often it is told.
    tell(&mut a, &bare, 2);
    assert!(sent(&drain(&mut a)).is_empty());
    tell(&mut a, &claim(|_| (), "b"), 3);
    assert_eq!(status(&a), Some(NodeStatus::Alive));
}

#[test]
fn of_two_claims_the_later_epoch_counts_then_the_incarnation_then_a_goodbye() {
    let epoch = config("b").epoch;
    let claims =
        [(0, 1, true), (0, 2, false), (0, 2, true), (1, 0, false), (1, 0, true), (1, 1, false), (1, 1, true)];
    let signed = |(life, incarnation, left)| {
        claim(|body| (body.epoch, body.incarnation, body.left) = (epoch + life, incarnation, left), "b")
    };
    for (at_first, first) in claims.iter().enumerate() {
        for (at_second, second) in claims.iter().enumerate() {
            let (mut a, mut c) = (core("a"), core("c"));
            connect(&mut a, &mut c, at(0));
            tell(&mut a, &signed(*first), 1);
            tell(&mut a, &signed(*second), 2);
            let (life, incarnation, left) = claims[at_first.max(at_second)];
            let node = a.node(&id("b")).unwrap();
            let expected = if left { NodeStatus::Left } else { NodeStatus::Alive };
            assert_eq!(
                (node.epoch, node.incarnation, node.status),
                (epoch + life, incarnation, expected),
                "{first:?} {second:?}"
            );
        }
    }
}

#[test]
fn nothing_that_was_said_before_it_follows_a_goodbye() {
    let mut a = a_knowing_b(0);
    tell(&mut a, &claim(|body| (body.incarnation, body.left) = (7, true), "b"), 1);
    assert_eq!(events(&drain(&mut a)), [(EventKind::NodeLeave, "b".into())]);
    tell(&mut a, &claim(|body| body.incarnation = 7, "b"), 2);
    accuse(&mut a, 7, true, "c", 3);
    assert!(events(&run(&mut a, 30_000)).iter().all(|(_, node)| node != "b"));
    assert_eq!(status(&a), Some(NodeStatus::Left));
    tell(&mut a, &claim(|body| body.epoch += 1, "b"), 30_001);
    assert!(events(&drain(&mut a)).contains(&(EventKind::NodeJoin, "b".into())));
}

#[test]
fn a_goodbye_below_what_is_known_takes_nothing_back() {
    // Of another process that began in the same millisecond, or signed by who has stolen the key.
    let mut a = a_knowing_b(2);
    tell(&mut a, &claim(|body| (body.incarnation, body.left) = (1, true), "b"), 1);
    assert_eq!((a.node(&id("b")).unwrap().incarnation, status(&a)), (2, Some(NodeStatus::Alive)));
    // Nor does what was said before a goodbye bring back who was forgotten since.
    tell(&mut a, &claim(|body| (body.incarnation, body.left) = (3, true), "b"), 2);
    tell(&mut a, &claim(|body| (body.incarnation, body.left) = (1, true), "b"), 3);
    a.forget(&id("b"), at(4)).unwrap();
    tell(&mut a, &claim(|body| body.incarnation = 2, "b"), 5);
    assert_eq!(status(&a), None);
}

#[test]
fn an_epoch_or_incarnation_more_than_a_day_ahead_is_refused() {
    let mut a = a_knowing_b(0);
    let day = 24 * 3_600 * 1_000;
    tell(&mut a, &claim(|body| body.epoch = WALL_MS + day + 10, "b"), 1);
    tell(&mut a, &claim(|body| body.incarnation = u64::MAX, "b"), 1);
    assert_eq!((a.counters().claims_refused, a.node(&id("b")).unwrap().incarnation), (2, 0));
}

#[test]
fn an_accusation_counts_by_its_incarnation() {
    for (said, expected) in [(4, NodeStatus::Alive), (5, NodeStatus::Suspect), (6, NodeStatus::Alive)] {
        let mut a = a_knowing_b(5);
        accuse(&mut a, said, false, "c", 1);
        assert_eq!(status(&a), Some(expected), "incarnation {said}");
        let kinds: Vec<_> = sent(&drain(&mut a)).iter().map(|(_, m)| codec::parts(m).unwrap()[0].0).collect();
        match said {
            4 => assert!(kinds.contains(&kind::CLAIM), "the accuser is told the newer claim"),
            6 => assert!(kinds.contains(&kind::NEED_CLAIM), "the newer claim is asked for"),
            _ => {}
        }
    }
}

#[test]
fn a_refutation_ends_a_suspicion_and_an_older_claim_does_not() {
    let mut a = a_knowing_b(5);
    accuse(&mut a, 5, false, "c", 1);
    drain(&mut a);
    tell(&mut a, &claim(|body| body.incarnation = 5, "b"), 2);
    assert_eq!(status(&a), Some(NodeStatus::Suspect));
    tell(&mut a, &claim(|body| body.incarnation = 6, "b"), 3);
    assert_eq!(events(&drain(&mut a)), [(EventKind::NodeAlive, "b".into())]);
    // The timer of the old incarnation is gone.
    assert!(!events(&run(&mut a, 2_000)).contains(&(EventKind::NodeDead, "b".into())));
}

#[test]
fn a_third_partys_word_never_beats_a_packet_just_received() {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    drain(&mut a);
    accuse(&mut a, 0, true, "c", 500);
    assert_eq!(status(&a), Some(NodeStatus::Alive));
    // But the accused is told, so that it can refute.
    let told = sent(&drain(&mut a));
    assert_eq!(told.iter().map(|(to, _)| to.as_str()).collect::<Vec<_>>(), ["b"]);
    b.handle_message(&id("a"), &told[0].1, at(501));
    assert_eq!(b.local_node().incarnation, 1);
    accuse(&mut a, 0, false, "c", 5_000);
    assert_eq!(status(&a), Some(NodeStatus::Suspect));
}

#[test]
fn a_node_that_answers_its_own_check_is_not_buried_whoever_says_it_is_dead() {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    drain(&mut a);
    accuse(&mut a, 0, true, "c", 5_000);
    accuse(&mut a, 0, true, "d", 5_000);
    assert_eq!(status(&a), Some(NodeStatus::Suspect));
    let mut ms = 5_000;
    while ms < 30_000 {
        a.handle_timeout(at(ms));
        for (to, bytes) in sent(&drain(&mut a)) {
            let peer = if to.as_str() == "b" { &mut b } else { &mut c };
            peer.handle_message(&id("a"), &bytes, at(ms));
            for (to, bytes) in sent(&drain(peer)) {
                if to.as_str() == "a" {
                    a.handle_message(&peer.id().clone(), &bytes, at(ms));
                }
            }
        }
        ms += 10;
    }
    assert_eq!(status(&a), Some(NodeStatus::Alive));
    assert_eq!(a.counters().deaths, 0);
}

#[test]
fn an_accused_node_refutes_at_most_once_a_gossip_tick() {
    let (mut b, mut c) = (core("b"), core("c"));
    connect(&mut b, &mut c, at(0));
    for round in 0..50 {
        let mine = b.local_node().incarnation;
        let accusation = Accusation {
            node_id: id("b"),
            epoch: config("b").epoch,
            incarnation: mine,
            dead: round % 2 == 0,
            accuser: id("c"),
        };
        b.handle_message(&id("c"), &message(kind::ACCUSATION, &accusation), at(1_000 + round));
    }
    assert_eq!(b.local_node().incarnation, 1);
    b.handle_timeout(at(1_200));
    assert_eq!(b.local_node().incarnation, 2);
}

#[test]
fn who_alone_is_silent_is_suspected_then_dead_and_greeted_ever_after() {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    let mut all = Vec::new();
    for ms in (0..40_000).step_by(10) {
        a.handle_timeout(at(ms));
        let outputs = drain(&mut a);
        for (to, bytes) in sent(&outputs) {
            if to.as_str() == "c" {
                c.handle_message(&id("a"), &bytes, at(ms));
                for (_, bytes) in sent(&drain(&mut c)).iter().filter(|(to, _)| to.as_str() == "a") {
                    a.handle_message(&id("c"), bytes, at(ms));
                }
            }
        }
        if ms == 30_000 {
            // The connection times out long after.
            a.handle_disconnected(&id("b"), CloseCode::UNSPECIFIED, false, at(ms));
        }
        all.extend(outputs);
    }
    let of_b: Vec<_> =
        events(&all).into_iter().filter(|(_, node)| node == "b").map(|(kind, _)| kind).collect();
    assert_eq!(of_b, [EventKind::NodeJoin, EventKind::NodeSuspect, EventKind::NodeDead]);
    assert!(all.contains(&Output::NodeFailed(id("b"))));
    let dials =
        all.iter().filter(|output| matches!(output, Output::Dial { to, .. } if to.as_str() == "b")).count();
    assert!(dials >= 2, "greeted {dials} times");
    let why = a.explain(&id("b")).unwrap();
    assert!(why.cause.contains("accused by a"), "{}", why.cause);
}

#[test]
fn a_probe_without_any_sign_of_life_accuses_nobody() {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    // Nobody answers: it is this node that cannot hear.
    let all = run(&mut a, 15_000);
    assert!(!events(&all).iter().any(|(kind, _)| *kind == EventKind::NodeSuspect));
    assert!(a.counters().probes_void > 3);
    assert!(a.counters().health_score >= 3);
}

#[test]
fn who_hears_nobody_for_longer_than_a_suspicion_lasts_says_so_and_looks_for_the_dead() {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    let kinds = |outputs: &[Output]| events(outputs).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
    let early = kinds(&run(&mut a, 17_000));
    assert!(!early.contains(&EventKind::IsolationSuspected));
    let late = kinds(&run(&mut a, 90_000));
    let place = |kind| late.iter().position(|of| *of == kind).unwrap();
    assert!(place(EventKind::IsolationSuspected) < place(EventKind::NodeSuspect));
    assert_eq!(late.iter().filter(|kind| **kind == EventKind::NodeDead).count(), 2);
    assert_eq!(late.iter().filter(|kind| **kind == EventKind::IsolationSuspected).count(), 1);
    assert!(a.isolated.is_some());
    let mut again = core_with("b", |config| config.epoch += 100);
    connect(&mut a, &mut again, at(91_000));
    assert!(a.isolated.is_none(), "two of three are there");
}

#[test]
fn a_process_that_stood_still_does_not_take_its_own_absence_for_others_silence() {
    let mut a = a_knowing_b(0);
    accuse(&mut a, 0, false, "c", 10);
    assert_eq!(status(&a), Some(NodeStatus::Suspect));
    // A minute passes in which this process does not run.
    a.handle_timeout(at(60_000));
    assert_eq!(status(&a), Some(NodeStatus::Suspect));
    assert_eq!(a.counters().late_wakeups, 1);
}

#[test]
fn a_close_with_the_code_left_is_a_leave_and_any_other_a_reason_to_probe() {
    for (code, expected) in [(CloseCode::LEFT, NodeStatus::Left), (CloseCode::UNSPECIFIED, NodeStatus::Alive)]
    {
        let (mut a, mut b) = (core("a"), core("b"));
        connect(&mut a, &mut b, at(0));
        let probes = a.counters().probes;
        a.handle_disconnected(&id("b"), code, true, at(10));
        assert_eq!(status(&a), Some(expected));
        assert_eq!(a.counters().probes - probes, u64::from(code == CloseCode::UNSPECIFIED));
    }
}

#[test]
fn only_the_gone_can_be_forgotten_and_they_stay_so_until_they_prove_themselves() {
    let mut a = a_knowing_b(0);
    let error = a.forget(&id("b"), at(1)).unwrap_err().to_string();
    assert_eq!(error, "node b is alive; only dead and left nodes can be forgotten");
    assert!(matches!(a.forget(&id("nobody"), at(1)), Err(Error::NotForgettable { .. })));
    tell(&mut a, &claim(|body| (body.incarnation, body.left) = (1, true), "b"), 2);
    a.forget(&id("b"), at(3)).unwrap();
    tell(&mut a, &claim(|body| (body.incarnation, body.left) = (1, true), "b"), 4);
    tell(&mut a, &claim(|_| (), "b"), 4);
    assert_eq!(status(&a), None);
    tell(&mut a, &claim(|body| body.epoch += 1, "b"), 5);
    assert_eq!(status(&a), Some(NodeStatus::Alive));
}

#[test]
fn two_processes_with_one_key_are_told_of() {
    let mut a = a_knowing_b(0);
    let mut b = core("b");
    connect(&mut a, &mut b, at(0));
    drain(&mut b);
    let twin = claim(|body| body.tags = [("x".into(), "y".into())].into(), "b");
    b.handle_message(&id("a"), &message(kind::CLAIM, &twin), at(1));
    assert_eq!(b.local_node().epoch, config("b").epoch);
    // The others believe the later of two: this one goes beyond, but does not race with the other.
    let tell_later = |b: &mut Protocol, by, ms| {
        let later = claim(|body| body.epoch += by, "b");
        b.handle_message(&id("a"), &message(kind::CLAIM, &later), at(ms));
        b.local_node().epoch - config("b").epoch
    };
    let beyond = tell_later(&mut b, 10_000, 2);
    assert!(beyond > 10_000, "{beyond}");
    assert_eq!(tell_later(&mut b, 50_000, 3), beyond);
    assert_eq!(tell_later(&mut b, 50_000, 29_000), beyond);
    assert!(tell_later(&mut b, 50_000, 31_000) > 50_000);
    assert_eq!(events(&drain(&mut b)), [(EventKind::NodeConflict, "b".into())], "told once a minute");
    assert_eq!(b.counters().conflicts, 5);
}

#[test]
fn a_node_whose_later_life_the_others_believe_in_is_told_of_it_in_a_push_pull() {
    // A twin of it came and went while nothing reached it.
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    wire(&mut a, &mut b, &[]).run(1, 20_000);
    tell_as(&mut a, "b", &claim(|body| body.epoch += 100_000, "b"), 20_001);
    let believed = a.node(&id("b")).unwrap().epoch;
    assert_eq!(believed, config("b").epoch + 100_000);
    wire(&mut a, &mut b, &[]).run(20_002, 40_000);
    assert!(b.local_node().epoch > believed);
    assert_eq!(a.node(&id("b")).unwrap().epoch, b.local_node().epoch);
}

#[test]
fn a_node_below_the_life_that_said_goodbye_is_told_so_as_soon_as_it_speaks() {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    wire(&mut a, &mut b, &[]).run(1, 1_000);
    tell_as(&mut a, "b", &claim(|body| (body.epoch, body.left) = (body.epoch + 100_000, true), "b"), 1_001);
    assert_eq!(status(&a), Some(NodeStatus::Left));
    wire(&mut a, &mut b, &[]).run(1_002, 4_000);
    assert_eq!(status(&a), Some(NodeStatus::Alive));
    assert!(b.local_node().epoch > config("b").epoch + 100_000);
}

#[test]
fn a_node_whose_clock_went_back_goes_beyond_the_epoch_that_peers_remember() {
    let mut a = a_knowing_b(0);
    let remembered = a.node(&id("b")).unwrap().epoch;
    let mut b = core_with("b", |config| config.epoch -= 5_000);
    assert_eq!(
        a.judge(&b.introduction(Some(&id("a"))), at(1)),
        Verdict::Admit,
        "it serves at the same address"
    );
    connect(&mut a, &mut b, at(1));
    assert!((remembered + 1..=remembered + 1_024).contains(&b.local_node().epoch));
}

type Change = Box<dyn Fn(&mut Introduction)>;

fn core_of(claim: SignedClaim) -> Bytes {
    codec::encode(&CoreHello { claim, clock: 0, disabled: Vec::new(), signed: Signed::None }).into()
}

#[test]
fn a_peer_is_judged_by_its_introduction() {
    let a = a_knowing_b(0);
    let b = core("b");
    let refused = |change: &Change| {
        let mut introduction = b.introduction(None);
        change(&mut introduction);
        match a.judge(&introduction, at(0)) {
            Verdict::Refuse(code, reason) => (code, reason),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(a.judge(&b.introduction(None), at(0)), Verdict::Admit);
    for (code, says, change) in [
        (
            CloseCode::DUPLICATE_ID,
            "in use by a live process at 10.0.0.1:",
            Box::new(|i: &mut Introduction| i.node_id = id("a")) as Change,
        ),
        (
            CloseCode::PROTOCOL_VIOLATION,
            "cannot be read",
            Box::new(|i: &mut Introduction| i.core = "x".into()),
        ),
        (
            CloseCode::IDENTITY_MISMATCH,
            "another node or epoch",
            Box::new(|i: &mut Introduction| i.epoch += 1),
        ),
        (
            CloseCode::IDENTITY_MISMATCH,
            "not signed by its certificate",
            Box::new(|i: &mut Introduction| i.core = core_of(claim(|_| (), "mallory"))),
        ),
        (
            CloseCode::PROTOCOL_VIOLATION,
            "a day ahead",
            Box::new(|i: &mut Introduction| i.core = core_of(claim(|body| body.epoch = u64::MAX, "b"))),
        ),
    ] {
        let (got, reason) = refused(&change);
        assert_eq!(got, code, "{reason}");
        assert!(reason.contains(says), "{reason}");
    }
}

#[test]
fn a_second_process_elsewhere_must_find_the_incumbent_silent() {
    let a = a_knowing_b(0);
    let known = a.node(&id("b")).unwrap();
    let twin = core_with("b", |config| {
        config.epoch += 7;
        config.address.set_port(9);
    });
    let verdict = a.judge(&twin.introduction(None), at(10));
    assert_eq!(verdict, Verdict::Incumbent { epoch: known.epoch, address: known.address });
}

#[test]
fn tags_spread_as_a_claim() {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    drain(&mut b);
    b.set_tags([("role".into(), "edge".into())].into(), at(1));
    for (_, bytes) in sent(&drain(&mut b)) {
        a.handle_message(&id("b"), &bytes, at(1));
    }
    assert_eq!(a.node(&id("b")).unwrap().tags["role"], "edge");
    assert!(events(&drain(&mut a)).contains(&(EventKind::NodeUpdate, "b".into())));
}

#[test]
fn a_ping_is_answered_and_measures_the_path() {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    drain(&mut a);
    let ping = Ping { seq: 5, digests: Digests::default() };
    a.handle_message(&id("b"), &message(kind::PING, &ping), at(1));
    let answer = sent(&drain(&mut a));
    assert_eq!(codec::parts(&answer[0].1).unwrap()[0].0, kind::ACK);
    assert_eq!(b.node(&id("a")).unwrap().rtt, Some(Duration::from_micros(500)));
}

#[test]
fn a_leave_ends_once_it_is_acknowledged_and_after_two_seconds_anyway() {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    run(&mut a, 100);
    a.leave(at(100));
    let outputs = drain(&mut a);
    assert!(!outputs.contains(&Output::LeaveSpread));
    for (_, bytes) in sent(&outputs) {
        b.handle_message(&id("a"), &bytes, at(101));
    }
    assert!(
        events(&drain(&mut b)).contains(&(EventKind::NodeLeave, "a".into()))
            || b.node(&id("a")).unwrap().status == NodeStatus::Left
    );
    assert!(run(&mut a, 2_100).contains(&Output::LeaveSpread));
    assert_eq!(a.local_node().status, NodeStatus::Left);
}

#[test]
fn a_forgotten_node_that_is_still_connected_must_say_hello_again() {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    drain(&mut a);
    tell_as(&mut a, "b", &claim(|body| (body.incarnation, body.left) = (1, true), "b"), 1);
    a.forget(&id("b"), at(2)).unwrap();
    let closes = |output: &Output| matches!(output, Output::Close { peer, .. } if peer.as_str() == "b");
    assert!(drain(&mut a).iter().any(closes));
    a.handle_disconnected(&id("b"), CloseCode::UNSPECIFIED, false, at(3));
    let mut again = core_with("b", |config| config.epoch += 10);
    connect(&mut a, &mut again, at(4));
    assert_eq!(status(&a), Some(NodeStatus::Alive));
}

#[test]
fn a_suspecter_asks_others_to_look_and_whoever_finds_silence_accuses_too() {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    connect(&mut b, &mut c, at(0));
    let kinds = |outputs: &[Output]| -> Vec<u8> {
        sent(outputs)
            .iter()
            .flat_map(|(_, bytes)| codec::parts(bytes).unwrap())
            .map(|(kind, _)| kind)
            .collect()
    };
    let (mut asked, mut accused) = (false, false);
    // `c` is silent; only the requests to look pass from `a` to `b`, so that `b` knows of nothing else.
    for ms in (2..6_000).step_by(5) {
        // A probe counts only if somebody is heard meanwhile.
        a.handle_message(&id("b"), &message(codec::OPTIONAL_FROM, &()), at(ms));
        a.handle_timeout(at(ms));
        for (to, bytes) in sent(&drain(&mut a)) {
            let kind = codec::parts(&bytes).unwrap()[0].0;
            if to.as_str() == "b" && [kind::SOLICIT, kind::PING, kind::PING_REQ].contains(&kind) {
                asked |= kind == kind::SOLICIT;
                b.handle_message(&id("a"), &bytes, at(ms));
            }
        }
        if asked {
            b.handle_timeout(at(ms));
        }
        let outputs = drain(&mut b);
        accused |=
            kinds(&outputs).contains(&kind::SPREAD) && b.node(&id("c")).unwrap().status != NodeStatus::Alive;
        for (to, bytes) in sent(&outputs) {
            if to.as_str() == "a" {
                a.handle_message(&id("b"), &bytes, at(ms));
            }
        }
    }
    assert!(asked && accused, "{asked} {accused}");
}
