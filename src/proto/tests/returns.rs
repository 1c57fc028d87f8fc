//! The dead, the buried and the cut off: who is told of them, and how they come back.

use std::time::Duration;

use crate::{
    EventKind, NodeId, NodeStatus,
    proto::{Output, Protocol, StreamInput, tests_support::*},
    wire::{
        CloseCode, StreamId, codec,
        message::{MemberRow, Nack, Open, Solicit, Standing, Wants, kind},
    },
};

use super::membership::{a_knowing_b, claim, run, status, tell};

/// What `c` tells `a` on a sync stream: a row of `b` with that standing, then its claim.
fn told_on_a_stream(a: &mut Protocol, epochs: u64, standing: Standing, ms: u64) {
    let stream = StreamId(ms * 2);
    let epoch = config("b").epoch + epochs;
    let row = MemberRow { node_id: id("b"), epoch, incarnation: 0, standing, since_ms: 700 };
    let open = Open { clock: 0, members: 1, types: Vec::new(), disabled: Vec::new() };
    let wants = Wants { members: Some(vec![row]), last: true, ..Wants::default() };
    a.handle_stream(&id("c"), stream, StreamInput::Opened, at(ms));
    for frame in [
        message(kind::OPEN, &open),
        message(kind::WANTS, &wants),
        message(kind::CLAIM, &claim(|body| body.epoch = epoch, "b")),
    ] {
        a.handle_stream(&id("c"), stream, StreamInput::Frame(frame), at(ms));
    }
    a.handle_stream(&id("c"), stream, StreamInput::Lost, at(ms));
}

/// The member is accused and found silent.
fn kill(a: &mut Protocol, id: &NodeId, ms: u64) {
    a.accuse(id, "the test says so", at(ms));
    a.convict(id, at(ms));
    assert_eq!(a.node(id).map(|node| node.status), Some(NodeStatus::Dead));
}

/// Kinds of the parts that are being spread.
fn spread(outputs: &[Output]) -> Vec<u8> {
    let mut kinds = Vec::new();
    for (_, bytes) in sent(outputs) {
        for (kind, body) in codec::parts(&bytes).unwrap() {
            if kind == kind::SPREAD {
                let (_, payload) = codec::head_and_rest(&body).unwrap();
                kinds.extend(codec::bare_parts(&payload).unwrap().into_iter().map(|(kind, _)| kind));
            }
        }
    }
    kinds
}

#[test]
fn a_later_life_that_is_told_dead_leaves_the_dead_dead() {
    let mut a = a_knowing_b(0);
    a.synced = Some(0);
    kill(&mut a, &id("b"), 100);
    run(&mut a, 100);
    told_on_a_stream(&mut a, 5, Standing::Dead, 101);
    let outputs = run(&mut a, 110);
    assert_eq!(events(&outputs), []);
    let node = a.node(&id("b")).unwrap();
    assert_eq!((node.status, node.epoch), (NodeStatus::Dead, config("b").epoch + 5));
    assert!(!spread(&outputs).contains(&kind::CLAIM), "a bare claim would make it live elsewhere");
    told_on_a_stream(&mut a, 6, Standing::Alive, 120);
    let outputs = run(&mut a, 130);
    assert_eq!(events(&outputs), [(EventKind::NodeJoin, "b".into())]);
    assert!(spread(&outputs).contains(&kind::CLAIM), "what one half learns all of it must");
}

#[test]
fn a_node_that_never_heard_of_it_admits_a_dead_one_as_dead() {
    let (mut a, mut c) = (core("a"), core("c"));
    connect(&mut a, &mut c, at(0));
    a.synced = Some(0);
    wire(&mut a, &mut c, &[]).run(1, 8); // what their meeting has set off comes to its end
    told_on_a_stream(&mut a, 0, Standing::Dead, 10);
    let outputs = run(&mut a, 20);
    assert_eq!(status(&a), Some(NodeStatus::Dead));
    assert!(!spread(&outputs).contains(&kind::CLAIM));
}

#[test]
fn a_buried_node_that_comes_back_is_made_to_rise_above_all_graves() {
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    a.handle_disconnected(&id("b"), CloseCode::LEFT, true, at(1));
    a.forget(&id("b"), at(2)).unwrap();
    assert_eq!(status(&a), None);
    connect(&mut a, &mut b, at(3));
    for (_, bytes) in sent(&drain(&mut a)) {
        b.handle_message(&id("a"), &bytes, at(4));
    }
    b.handle_timeout(at(1_000));
    assert_eq!(b.local_node().incarnation, 1, "it has refuted");
}

#[test]
fn a_leave_that_only_one_has_seen_is_told_to_who_found_the_node_dead() {
    let mut a = a_knowing_b(0);
    kill(&mut a, &id("b"), 5);
    run(&mut a, 6);
    let dead = a.members.hash();
    told_on_a_stream(&mut a, 0, Standing::Closed, 10);
    let outputs = run(&mut a, 20);
    assert_eq!(
        (status(&a), events(&outputs)),
        (Some(NodeStatus::Left), vec![(EventKind::NodeLeave, "b".into())])
    );
    assert_ne!(a.members.hash(), dead, "who holds it dead still must see that there is something to tell");
    // Nobody takes it back.
    told_on_a_stream(&mut a, 0, Standing::Dead, 30);
    assert_eq!((status(&a), events(&run(&mut a, 40))), (Some(NodeStatus::Left), vec![]));
}

#[test]
fn a_leave_that_nobody_has_signed_ends_when_the_node_is_heard() {
    // The teller may be lying, to keep two halves of a cluster apart.
    let (mut a, mut b) = (core("a"), core("b"));
    connect(&mut a, &mut b, at(0));
    a.handle_disconnected(&id("b"), CloseCode::LEFT, true, at(1));
    drain(&mut a);
    let mut ms = 1;
    while !drain(&mut a).iter().any(|output| matches!(output, Output::Dial { to, .. } if *to == id("b"))) {
        ms += 100;
        assert!(ms < 60_000, "it is never greeted");
        a.handle_timeout(at(ms));
    }
    connect(&mut a, &mut b, at(ms));
    assert_eq!(status(&a), Some(NodeStatus::Alive));
}

#[test]
fn what_two_lives_of_a_node_came_to_is_told_in_the_latest() {
    use NodeStatus::{Alive, Dead, Left};
    for (was, standing, becomes, told) in [
        (Dead, Standing::Dead, Dead, None),
        (Dead, Standing::Closed, Left, Some(EventKind::NodeLeave)),
        (Left, Standing::Closed, Left, None),
        (Left, Standing::Dead, Alive, Some(EventKind::NodeJoin)), // until it is found silent
    ] {
        let mut a = a_knowing_b(0);
        match was {
            Dead => kill(&mut a, &id("b"), 5),
            _ => a.handle_disconnected(&id("b"), CloseCode::LEFT, true, at(5)),
        }
        run(&mut a, 6);
        told_on_a_stream(&mut a, 1, standing, 10);
        let events: Vec<_> = events(&run(&mut a, 20)).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!((status(&a), events), (Some(becomes), Vec::from_iter(told)), "{was} {standing:?}");
        assert_eq!(a.node(&id("b")).unwrap().epoch, config("b").epoch + 1);
    }
}

#[test]
fn a_node_that_never_heard_of_it_admits_one_that_left_unsigned_as_left() {
    let (mut a, mut c) = (core("a"), core("c"));
    connect(&mut a, &mut c, at(0));
    a.synced = Some(0);
    wire(&mut a, &mut c, &[]).run(1, 8);
    told_on_a_stream(&mut a, 0, Standing::Closed, 10);
    let outputs = run(&mut a, 20);
    assert_eq!(status(&a), Some(NodeStatus::Left));
    assert!(!spread(&outputs).contains(&kind::CLAIM));
}

#[test]
fn a_probe_of_a_node_that_leaves_is_forgotten() {
    let mut a = a_knowing_b(0);
    let mut ms = 0;
    while a.probes.is_empty() {
        ms += 10;
        a.handle_timeout(at(ms));
    }
    for name in ["b", "c"] {
        let goodbye = claim(|body| (body.node_id, body.incarnation, body.left) = (id(name), 1, true), name);
        tell(&mut a, &goodbye, ms);
    }
    assert!(a.probes.is_empty());
}

#[test]
fn a_look_at_a_life_that_has_ended_accuses_nobody_of_the_next() {
    let mut a = a_knowing_b(0);
    let asked = Solicit { node_id: id("b"), epoch: config("b").epoch, incarnation: 0 };
    a.handle_message(&id("c"), &message(kind::SOLICIT, &asked), at(10));
    tell(&mut a, &claim(|body| body.epoch += 1_000, "b"), 100);
    run(&mut a, 100);
    for ms in (110..1_000).step_by(10) {
        // The asker is heard, so silence would count.
        a.handle_message(&id("c"), &message(kind::NACK, &Nack { seq: 0 }), at(ms));
        a.handle_timeout(at(ms));
    }
    assert!(!events(&drain(&mut a)).contains(&(EventKind::NodeSuspect, "b".into())));
}

#[test]
fn a_node_that_lost_the_others_is_no_longer_cut_off_once_half_are_back_or_all_are_forgotten() {
    let lonely = || {
        let mut a = core("a");
        for number in 0..8 {
            connect(&mut a, &mut core(&format!("n{number}")), at(0));
        }
        drain(&mut a);
        for number in 0..8 {
            let id = id(&format!("n{number}"));
            a.handle_disconnected(&id, CloseCode::UNSPECIFIED, false, at(10));
            kill(&mut a, &id, 10);
        }
        assert!(events(&drain(&mut a)).iter().any(|(kind, _)| *kind == EventKind::IsolationSuspected));
        assert!(a.isolated.is_some());
        a
    };
    let mut a = lonely();
    for (number, still) in [(0, true), (1, true), (2, true), (3, false)] {
        connect(&mut a, &mut core_with(&format!("n{number}"), |config| config.epoch += 9), at(1_000));
        assert_eq!(a.isolated.is_some(), still, "after {number}");
    }
    let mut a = lonely();
    for number in 0..8 {
        assert!(a.isolated.is_some());
        a.forget(&id(&format!("n{number}")), at(1_000)).unwrap();
    }
    run(&mut a, 1_000 + u64::try_from(Duration::from_secs(30).as_millis()).unwrap());
    assert!(a.isolated.is_none());
}

#[test]
fn a_node_cannot_forget_itself() {
    let mut a = core("a");
    a.leave(at(1));
    assert!(a.forget(&id("a"), at(2)).is_err());
}

#[test]
fn an_exchange_with_who_was_forgotten_ends_with_its_connection() {
    let mut a = a_knowing_b(0);
    connect(&mut a, &mut core("b"), at(0));
    a.handle_stream(&id("b"), StreamId(2), StreamInput::Opened, at(1));
    a.handle_message(&id("c"), &message(kind::CLAIM, &claim(|body| body.left = true, "b")), at(2));
    a.forget(&id("b"), at(3)).unwrap();
    a.handle_disconnected(&id("b"), CloseCode::UNSPECIFIED, false, at(4));
    let with_c = a.exchanges.len();
    a.handle_disconnected(&id("c"), CloseCode::UNSPECIFIED, false, at(4));
    assert_eq!(a.exchanges.len(), 0, "{with_c} before");
}

#[test]
fn a_ping_that_went_into_a_dead_connection_is_sent_again() {
    let mut a = a_knowing_b(0);
    connect(&mut a, &mut core("b"), at(0));
    a.probe_now(&id("b"), at(10));
    drain(&mut a);
    // What served there is gone; whoever came back there has reset the connection.
    a.handle_disconnected(&id("b"), CloseCode::UNSPECIFIED, false, at(11));
    let to_b = sent(&drain(&mut a)).into_iter().filter(|(to, _)| *to == id("b"));
    let pings = to_b.filter(|(_, bytes)| codec::parts(bytes).unwrap()[0].0 == kind::PING);
    assert_eq!(pings.count(), 1);
    assert_eq!(a.probes.len(), 1, "the one before proves nothing");
}
