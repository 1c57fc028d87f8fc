//! Each checker fires when it is fed what must not be.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::UNIX_EPOCH,
};

use crate::{
    ClusterEvent, EventData, EventKind, NodeId, NodeStatus, StateType, SyncableState, Value,
    sim::check::{Checks, STEPS_AT_ONCE_MAX, View, disagreement},
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

#[test]
fn a_version_applied_twice_is_found() {
    let mut checks = Checks::default();
    let mut record = SyncableState::new(StateType::DRAIN, "k", Value::NIL, 1, id("a"));
    assert!(checks.apply(0, &record).is_ok());
    assert!(checks.apply(1, &record).is_ok());
    assert!(checks.apply(0, &record).is_err());
    record.version = 2;
    assert!(checks.apply(0, &record).is_ok());
}

#[test]
fn a_death_told_of_who_left_is_found() {
    let mut checks = Checks::default();
    let event = ClusterEvent::new(EventKind::NodeDead, Some(id("a")), UNIX_EPOCH, EventData::None);
    assert!(checks.event(&event).is_ok());
    checks.leaves(&id("a"));
    assert!(checks.event(&event).is_err());
    checks.restarted(&id("a"));
    assert!(checks.event(&event).is_ok());
}

#[test]
fn a_timer_left_behind_and_a_loop_are_found() {
    assert!(Checks::timers(Some(11), 10).is_ok());
    assert!(Checks::timers(None, 10).is_ok());
    assert!(Checks::timers(Some(10), 10).is_err());
    let mut checks = Checks::default();
    assert!((0..STEPS_AT_ONCE_MAX).all(|_| checks.step(5).is_ok()));
    assert!(checks.step(5).is_err());
    assert!(checks.step(6).is_ok());
}

/// Two nodes that agree that both live, that `dead` crashed and that `gone` left.
fn agreed() -> (Vec<View>, Checks, BTreeSet<NodeId>) {
    let mut checks = Checks::default();
    checks.crashed(&id("dead"));
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
fn every_difference_is_found() {
    let lies: [fn(&mut View); 8] = [
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
