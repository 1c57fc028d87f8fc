//! What was deleted stays deleted, however long somebody was away, and nothing else goes.

use std::time::Duration;

use super::{secs, settled};
use crate::{
    NodeId, StateType,
    sim::{World, seeds},
};

/// How long tombstones are kept here.
const KEPT: Duration = secs(20);

fn routes() -> StateType {
    StateType::shared("routes")
}

fn own() -> StateType {
    StateType::per_node("weights")
}

/// A cluster whose nodes forget tombstones soon, and in which `old` is shared.
fn forgetful(world: &mut World, count: usize) -> Vec<NodeId> {
    world.settings.tombstone_ttl = KEPT;
    let nodes = settled(world, count);
    for (node, key) in [(0, "of-a"), (count - 1, "of-z"), (1, "kept")] {
        world.broadcast(&nodes[node], &routes(), key, "old");
    }
    world.broadcast(&nodes[0], &own(), "x", "old");
    world.run(secs(3));
    nodes
}

/// Everybody's own side goes on; one side deletes, and forgets that it did.
fn delete_meanwhile(world: &mut World, here: &NodeId, away: &NodeId) {
    world.remove(here, &routes(), "of-a");
    world.remove(here, &routes(), "of-z");
    world.remove(here, &own(), "x");
    world.broadcast(here, &routes(), "here", "new");
    world.broadcast(away, &routes(), "away", "new");
    world.run(KEPT * 3);
}

fn is_as_deleted(world: &World, owner: &NodeId) {
    for (key, text) in
        [("of-a", None), ("of-z", None), ("kept", Some("old")), ("here", Some("new")), ("away", Some("new"))]
    {
        assert!(world.all_read(&routes(), key, text), "{key}");
    }
    for node in world.live() {
        let registers = world.process(&node).core.states(&own());
        assert!(registers.iter().all(|record| record.source_node != *owner), "at {node}");
    }
}

#[test]
fn what_was_deleted_while_a_node_was_away_for_longer_than_tombstones_are_kept_goes_there_too() {
    seeds(0..6, |world| {
        let nodes = forgetful(world, 5);
        world.partition(&[&nodes[..4], &nodes[4..]]);
        world.run(secs(1));
        delete_meanwhile(world, &nodes[0], &nodes[4]);
        assert_eq!(world.text(&nodes[4], &routes(), "of-a").as_deref(), Some("old"), "not told yet");
        world.heal();
        world.run_to_agreement(secs(120));
        is_as_deleted(world, &nodes[0]);
        let counters = world.process(&nodes[4]).core.counters();
        assert!(counters.records_bygone >= 3, "{}", counters.records_bygone);
        // Its provider was told.
        let applied = &world.process(&nodes[4]).record.applied;
        assert!(applied.iter().any(|record| record.deleted && record.key == "of-a"));
    });
}

#[test]
fn halves_that_were_apart_for_longer_than_tombstones_are_kept_agree() {
    seeds(0..6, |world| {
        let nodes = forgetful(world, 6);
        world.partition(&[&nodes[..3], &nodes[3..]]);
        world.run(secs(1));
        delete_meanwhile(world, &nodes[0], &nodes[5]);
        world.heal();
        world.run_to_agreement(secs(120));
        is_as_deleted(world, &nodes[0]);
    });
}

#[test]
fn who_joined_after_a_tombstone_was_forgotten_tells_of_it_all_the_same() {
    seeds(0..6, |world| {
        let nodes = forgetful(world, 4);
        world.partition(&[&nodes[..3], &nodes[3..]]);
        world.run(secs(1));
        delete_meanwhile(world, &nodes[0], &nodes[3]);
        let joiner = world.start(1).remove(0);
        world.run(secs(20));
        // Only the joiner, which never held a tombstone, meets who was away; whoever deleted is gone for good.
        for node in &nodes[..3] {
            world.crash(node);
        }
        world.run(secs(60));
        world.heal();
        world.run_until(secs(120), |world| {
            [&joiner, &nodes[3]].iter().all(|node| {
                world.text(node, &routes(), "of-a").is_none()
                    && world.text(node, &routes(), "of-z").is_none()
                    && world.text(node, &routes(), "kept").as_deref() == Some("old")
                    && world.text(node, &routes(), "away").as_deref() == Some("new")
            })
        });
    });
}
