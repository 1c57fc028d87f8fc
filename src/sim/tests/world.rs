//! The simulator itself: it repeats itself, and each of its checkers fires.

use std::time::Duration;

use crate::{
    StateType,
    sim::{World, seeds},
};

#[test]
fn the_same_seed_gives_the_same_trace() {
    let hash = |seed| {
        let mut world = World::new(seed);
        world.link.loss = 0.05;
        let nodes = world.start(6);
        world.random_faults(Duration::from_secs(20));
        for round in 0..20 {
            world.broadcast(&nodes[0], &StateType::DRAIN, &format!("k{round}"), "on");
            world.run(Duration::from_secs(1));
            if !world.is_up(&nodes[0]) {
                break;
            }
        }
        world.trace_hash()
    };
    assert_eq!(hash(7), hash(7));
    assert_ne!(hash(7), hash(8));
}

#[test]
fn five_nodes_join_through_one_seed() {
    seeds(0..8, |world| {
        world.start(5);
        world.run_until(Duration::from_secs(5), World::all_agree);
        world.run(Duration::from_secs(1));
        let synced = |id| world.process(id).record.synced.is_some();
        assert!(world.names[1..].iter().all(synced));
    });
}
