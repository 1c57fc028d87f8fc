//! The simulator itself: it repeats itself, and each of its checkers fires.

use std::time::Duration;

use crate::sim::{World, seeds, storm::storm};

#[test]
fn the_same_seed_gives_the_same_trace() {
    let hash = |seed| {
        let mut world = World::new(seed);
        storm(&mut world, 8, Duration::from_secs(20), None);
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
