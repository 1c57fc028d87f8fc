//! Each checker fires when it is fed what must not be.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::UNIX_EPOCH,
};

use crate::{
    ClusterEvent, EventData, EventKind, NodeId, NodeStatus, StateType, SyncableState, Value,
    sim::check::{Checks, FRAMES_WAITING_MAX, OUTPUTS_AT_ONCE_MAX, STEPS_AT_ONCE_MAX, View, disagreement},
};

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

#[test]
fn a_life_that_goes_back_is_found() {
    let mut checks = Checks::default();
    assert!(checks.see_life(0, &id("a"), (5, 3)).is_ok());
    assert!(checks.see_life(0, &id("a"), (6, 0)).is_ok());
    assert!(checks.see_life(1, &id("a"), (5, 3)).is_ok(), "each observer has eyes of its own");
    assert!(checks.see_life(0, &id("a"), (5, 9)).is_err());
}

fn record(state_type: StateType, source: &str, version: u64) -> SyncableState {
    SyncableState::new(state_type, "k", Value::encode(&version).unwrap(), version, id(source))
}

#[test]
fn a_version_applied_twice_is_found() {
    let mut checks = Checks::default();
    let mut record = record(StateType::DRAIN, "a", 1);
    assert!(checks.apply(0, &record).is_ok());
    assert!(checks.apply(1, &record).is_ok());
    assert!(checks.apply(0, &record).is_err());
    record.deleted = true;
    assert!(checks.apply(0, &record).is_ok(), "it has ended");
    assert!(checks.apply(0, &record).is_err());
    (record.version, record.deleted) = (2, false);
    assert!(checks.apply(0, &record).is_ok());
}

#[test]
fn a_register_that_falls_is_found() {
    let mut checks = Checks::default();
    assert!(checks.apply(0, &record(StateType::DRAIN, "b", 7)).is_ok());
    assert!(checks.apply(0, &record(StateType::DRAIN, "c", 7)).is_ok(), "the greater source wins");
    assert!(checks.apply(0, &record(StateType::DRAIN, "a", 7)).is_err());
    let mut checks = Checks::default();
    let [early, late] = [9, 3].map(|version| record(StateType::CONNTRACK, "b", version));
    let of_another = record(StateType::CONNTRACK, "a", 1);
    for write in [&early, &late, &of_another] {
        checks.writes(7, 5, write, false);
    }
    assert!(checks.apply(0, &early).is_ok());
    assert!(checks.apply(0, &late).is_ok(), "its writer has restarted, and counts anew");
    assert!(checks.apply(0, &of_another).is_ok(), "a register of its own");
    assert!(checks.apply(1, &late).is_ok());
    assert!(checks.apply(1, &early).is_err());
    // A writer that lost its clock writes under an epoch that is behind what others know of it.
    let lost = record(StateType::CONNTRACK, "b", 1);
    checks.writes(8, 4, &lost, false);
    assert!(checks.apply(2, &lost).is_ok());
    assert!(checks.apply(2, &late).is_ok(), "of a later epoch");
    assert!(checks.apply(2, &late).is_err(), "again");
    assert!(checks.apply(2, &lost).is_err(), "its writer has not gone beyond that epoch");
    checks.says(8, &id("b"), (6, 0));
    assert!(checks.apply(2, &lost).is_ok(), "published anew by who has gone beyond");
    assert!(checks.apply(3, &late).is_ok());
    assert!(checks.apply(3, &early).is_err(), "of the same epoch");
}

#[test]
fn a_record_that_nobody_wrote_is_found() {
    let mut checks = Checks::default();
    let written = record(StateType::DRAIN, "a", 1);
    checks.writes(3, 5, &written, false);
    assert!(checks.apply(0, &written).is_ok());
    for change in [
        (|record| record.source_node = id("b")) as fn(&mut SyncableState),
        |record| record.value = Value::encode("other").unwrap(),
        |record| record.key = "x".into(),
        |record| record.deleted = true,
    ] {
        let mut record = SyncableState { version: 2, ..written.clone() };
        change(&mut record);
        assert!(checks.apply(0, &record).is_err(), "{record:?}");
    }
    let removed = SyncableState { version: 3, deleted: true, ..written };
    checks.removes(3, 5, (&StateType::DRAIN, "k", &id("a")));
    assert!(checks.apply(0, &removed).is_ok());
}

#[test]
fn a_record_that_comes_back_to_its_writer_is_found() {
    let mut checks = Checks::default();
    let written = record(StateType::DRAIN, "me", 1);
    checks.writes(3, 5, &written, false);
    assert!(checks.apply(3, &written).is_err());
    assert!(checks.apply(4, &written).is_ok(), "to a later process of its node it is news");
}

#[test]
fn a_life_that_its_node_never_told_of_is_found() {
    let mut checks = Checks::default();
    checks.says(3, &id("a"), (5, 2));
    assert!(checks.see_life(0, &id("a"), (5, 2)).is_ok());
    assert!(checks.see_life(1, &id("a"), (5, 3)).is_err());
}

#[test]
fn a_queue_without_end_is_found() {
    assert!(Checks::queues(&[("pings", 1_000), ("exchanges", 16)]).is_ok());
    assert!(Checks::queues(&[("pings", 1_001)]).is_err());
    assert!(Checks::queues(&[("pings", 1), ("exchanges", 17)]).is_err());
}

fn tell(checks: &mut Checks, kind: EventKind) -> Result<(), String> {
    let event = ClusterEvent::new(kind, Some(id("a")), UNIX_EPOCH, EventData::None);
    checks.event(0, &id("me"), &event)
}

#[test]
fn a_death_told_of_who_left_is_found() {
    let path = [EventKind::NodeJoin, EventKind::NodeSuspect];
    let mut checks = Checks::default();
    assert!(path.iter().all(|kind| tell(&mut checks, *kind).is_ok()));
    checks.leaves(&id("a"));
    assert!(tell(&mut checks, EventKind::NodeDead).is_err());
    checks.restarted(&id("a"));
    assert!(tell(&mut checks, EventKind::NodeDead).is_ok());
}

#[test]
fn events_that_make_no_sense_are_found() {
    use EventKind::{NodeAlive, NodeDead, NodeJoin, NodeLeave, NodeSuspect, NodeUpdate};
    let legal: [&[EventKind]; 4] = [
        &[NodeJoin, NodeUpdate, NodeSuspect, NodeAlive, NodeSuspect, NodeDead, NodeJoin],
        &[NodeJoin, NodeLeave, NodeJoin],
        &[NodeJoin, NodeSuspect, NodeDead, NodeLeave],
        &[NodeLeave, NodeJoin],
    ];
    for path in legal {
        let mut checks = Checks::default();
        assert!(path.iter().all(|kind| tell(&mut checks, *kind).is_ok()), "{path:?}");
    }
    let illegal: [&[EventKind]; 7] = [
        &[NodeDead],
        &[NodeUpdate],
        &[NodeJoin, NodeJoin],
        &[NodeJoin, NodeDead],
        &[NodeJoin, NodeAlive],
        &[NodeJoin, NodeLeave, NodeLeave],
        &[NodeJoin, NodeLeave, NodeSuspect],
    ];
    for path in illegal {
        let mut checks = Checks::default();
        let (last, before) = path.split_last().unwrap();
        assert!(before.iter().all(|kind| tell(&mut checks, *kind).is_ok()), "{path:?}");
        assert!(tell(&mut checks, *last).is_err(), "{path:?}");
    }
    let mut checks = Checks::default();
    assert!(tell(&mut checks, NodeJoin).is_ok());
    checks.forgotten(&id("a"));
    assert!(tell(&mut checks, NodeJoin).is_ok(), "a forgotten node is new again");
}

#[test]
fn a_timer_left_behind_and_what_never_ends_are_found() {
    assert!(Checks::timers(Some(11), 10).is_ok());
    assert!(Checks::timers(None, 10).is_ok());
    assert!(Checks::timers(Some(10), 10).is_err());
    let mut checks = Checks::default();
    assert!((0..STEPS_AT_ONCE_MAX).all(|_| checks.step(5).is_ok()));
    assert!(checks.step(5).is_err());
    assert!(checks.step(6).is_ok());
    assert!(Checks::outputs(OUTPUTS_AT_ONCE_MAX).is_ok());
    assert!(Checks::outputs(OUTPUTS_AT_ONCE_MAX + 1).is_err());
    assert!(Checks::frames(FRAMES_WAITING_MAX).is_ok());
    assert!(Checks::frames(FRAMES_WAITING_MAX + 1).is_err());
}

/// Two nodes that agree that both live, that `dead` crashed and that `gone` left.
fn agreed() -> (Vec<View>, Checks, BTreeSet<NodeId>) {
    let mut checks = Checks::default();
    checks.crashed(&id("dead"), 1);
    checks.leaves(&id("gone"));
    let members = BTreeMap::from([
        (id("a"), (NodeStatus::Alive, 1, 0)),
        (id("b"), (NodeStatus::Alive, 1, 0)),
        (id("dead"), (NodeStatus::Dead, 1, 0)),
        (id("gone"), (NodeStatus::Left, 1, 1)),
    ]);
    let states = BTreeMap::from([((StateType::DRAIN, "k".into(), id("a")), (1, vec![1]))]);
    let view =
        |observer: &str| View { observer: observer.into(), members: members.clone(), states: states.clone() };
    (vec![view("a"), view("b")], checks, BTreeSet::from([id("a"), id("b")]))
}

#[test]
fn agreement_is_agreement() {
    let (views, checks, live) = agreed();
    assert_eq!(disagreement(&views, &checks, &live), None);
}

#[test]
fn a_node_whose_last_life_nobody_heard_of_may_have_left_in_the_one_before() {
    let (mut views, mut checks, live) = agreed();
    checks.crashed(&id("gone"), 2);
    assert_eq!(disagreement(&views, &checks, &live), None);
    views[0].members.insert(id("gone"), (NodeStatus::Dead, 2, 0));
    assert!(disagreement(&views, &checks, &live).is_some(), "one has heard of it, and the other has not");
}

#[test]
fn every_difference_is_found() {
    let lies: [fn(&mut View); 9] = [
        |view| _ = view.members.insert(id("dead"), (NodeStatus::Left, 1, 1)),
        |view| _ = view.members.insert(id("a"), (NodeStatus::Suspect, 1, 0)),
        |view| _ = view.members.insert(id("a"), (NodeStatus::Alive, 1, 1)),
        |view| _ = view.members.insert(id("a"), (NodeStatus::Alive, 2, 0)),
        |view| _ = view.members.remove(&id("a")),
        |view| _ = view.members.insert(id("dead"), (NodeStatus::Alive, 1, 0)),
        |view| _ = view.members.insert(id("gone"), (NodeStatus::Dead, 1, 1)),
        |view| view.states.clear(),
        |view| view.states.values_mut().for_each(|state| state.0 += 1),
    ];
    for (number, lie) in lies.iter().enumerate() {
        let (mut views, checks, live) = agreed();
        lie(&mut views[1]);
        assert!(disagreement(&views, &checks, &live).is_some(), "lie {number} went unseen");
    }
}
