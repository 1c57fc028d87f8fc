//! Hard days: clocks that jump, hosts that half work, clusters that go down all at once.

use super::{ms, secs, settled};
use crate::{
    EventKind, NodeStatus, StateType,
    sim::{Fault, World, seeds},
};

const HOUR_MS: i64 = 3_600_000;

#[test]
fn a_clock_that_jumps_an_hour_changes_nobodys_fate() {
    seeds(0..4, |world| {
        let nodes = settled(world, 6);
        world.jump_clock(&nodes[1], HOUR_MS);
        world.jump_clock(&nodes[2], -HOUR_MS);
        world.run(secs(30));
        for (writer, key) in [(1, "ahead"), (2, "behind"), (3, "right")] {
            world.broadcast(&nodes[writer], &StateType::DRAIN, key, "on");
            world.run_until(ms(100), |world| world.all_read(&StateType::DRAIN, key, Some("on")));
        }
        // The latest writer wins, whatever its clock says.
        world.broadcast(&nodes[1], &StateType::DRAIN, "b", "first");
        world.run(secs(1));
        world.broadcast(&nodes[2], &StateType::DRAIN, "b", "second");
        world.run_until(ms(100), |world| world.all_read(&StateType::DRAIN, "b", Some("second")));
        assert!(world.all_agree(), "{:?}", world.disagreement());
        assert!(nodes.iter().all(|id| !world.anybody_told(EventKind::NodeDead, id)));
        assert_eq!(world.count(Fault::ClockJump), 2);
    });
}

/// Its epoch would be older than the one that all remember.
#[test]
fn a_node_that_restarts_with_a_clock_an_hour_behind_is_alive_again() {
    seeds(0..4, |world| {
        let nodes = settled(world, 6);
        let before = world.info(&nodes[0], &nodes[3]).unwrap().epoch;
        world.crash(&nodes[3]);
        world.jump_clock(&nodes[3], -HOUR_MS);
        world.run(secs(2));
        world.restart(&nodes[3]);
        world.run_until(secs(2), |world| {
            let mut seen = nodes.iter().map(|id| world.info(id, &nodes[3]));
            seen.all(|info| info.is_some_and(|info| info.epoch > before && info.status == NodeStatus::Alive))
        });
        world.run_until(secs(20), World::all_agree);
        world.broadcast(&nodes[3], &StateType::CONNTRACK, "c", "up");
        world.run_until(secs(1), World::all_agree);
        assert_eq!(world.process(&nodes[0]).core.states(&StateType::CONNTRACK).len(), 1);
    });
}

#[test]
fn nodes_that_are_down_for_a_moment_are_not_suspected_in_their_next_life() {
    seeds(0..2, |world| {
        let nodes = settled(world, 32);
        let mut back = Vec::new();
        // Each is down for half a second, several at a time.
        for step in 0..nodes.len() + 5 {
            if let Some(node) = nodes.get(step) {
                world.crash(node);
            }
            if let Some(node) = step.checked_sub(5).map(|back| &nodes[back]) {
                world.restart(node);
                back.push((node.clone(), world.now));
            }
            world.run(ms(100));
        }
        world.run(secs(3));
        for (member, since) in back {
            for observer in &nodes {
                let mut told = world.told(observer, EventKind::NodeSuspect, &member).into_iter();
                // What is on its way while it comes back is about the life before.
                assert!(told.all(|at| at < since + 5_000), "{observer} suspects {member}, which runs");
            }
        }
        assert!(world.all_agree(), "{:?}", world.disagreement());
    });
}

#[test]
fn a_cluster_that_restarts_all_at_once_finds_itself() {
    seeds(0..4, |world| {
        let nodes = settled(world, 32);
        for node in &nodes {
            world.restart(node);
            world.run(ms(150));
        }
        world.run_until(secs(10), World::all_agree);
        assert_eq!(world.count(Fault::Restart), 32);
    });
}

#[test]
fn the_few_who_are_left_of_many_find_all_the_dead() {
    seeds(0..4, |world| {
        let nodes = settled(world, 20);
        world.broadcast(&nodes[5], &StateType::DRAIN, "b", "on");
        world.run(secs(1));
        for node in &nodes[2..] {
            world.crash(node);
        }
        world.run_until(secs(150), World::all_agree);
        assert!(world.all_read(&StateType::DRAIN, "b", Some("on")), "a lost peer must not empty a table");
    });
}

#[test]
fn who_is_cut_off_says_so_and_keeps_what_the_others_said() {
    seeds(0..4, |world| {
        let nodes = settled(world, 8);
        world.broadcast(&nodes[3], &StateType::HEALTH, "b", "up");
        world.run(secs(1));
        world.partition(&[&nodes[..1], &nodes[1..]]);
        let told = |world: &World, id| {
            let events = &world.process(id).record.events;
            events.iter().any(|(_, event)| event.kind == EventKind::IsolationSuspected)
        };
        world.run_until(secs(90), |world| told(world, &nodes[0]));
        world.run(secs(30));
        assert_eq!(world.process(&nodes[0]).core.states(&StateType::HEALTH).len(), 1);
        assert!(nodes[1..].iter().all(|id| !told(world, id)), "the others miss one node of eight");
        world.heal();
        world.run_until(secs(60), World::all_agree);
    });
}

/// Who stands still hears nothing, and must not take that for the others' silence.
#[test]
fn a_node_that_stands_still_for_long_buries_nobody() {
    seeds(0..4, |world| {
        let nodes = settled(world, 8);
        for _ in 0..3 {
            world.pause(&nodes[2], secs(25));
            world.run(secs(35));
        }
        assert!(nodes.iter().all(|id| world.told(&nodes[2], EventKind::NodeDead, id).is_empty()));
        world.run_until(secs(30), World::all_agree);
    });
}

/// consul#5928: one member that loses most packets makes the others flap.
#[test]
fn a_half_connected_member_buries_nobody_but_itself() {
    seeds(0..2, |world| {
        let nodes = settled(world, 16);
        world.half_connect(&nodes[5], 0.8);
        world.run(secs(120));
        for observer in nodes.iter().filter(|id| **id != nodes[5]) {
            for member in nodes.iter().filter(|id| **id != nodes[5]) {
                let buried = world.told(observer, EventKind::NodeDead, member);
                assert!(buried.is_empty(), "{observer} buried {member} at {buried:?}");
            }
        }
        world.half_connect(&nodes[5], 0.0);
        world.run_until(secs(60), World::all_agree);
    });
}

#[test]
fn a_process_that_stands_still_finds_no_more_than_its_buffer_held() {
    let mut world = World::new(1);
    let nodes = settled(&mut world, 3);
    world.pause(&nodes[2], secs(10));
    for round in 0..6_000 {
        world.broadcast(&nodes[0], &StateType::CONNTRACK, &format!("c{}", round % 7), "up");
        world.run(ms(1));
    }
    assert!(world.count(Fault::Overflow) > 0);
    world.run_until(secs(30), World::all_agree);
}
