//! What must come of a cluster, whatever happens to it: each test a sentence, in worlds of several sim seeds.

mod checkers;
mod dials;
mod foreign;
mod hardship;
mod liars;
mod lifetimes;
mod lists;
mod membership;
mod signatures;
mod state;
mod storm;
mod sync;
mod tables;
mod world;

use std::time::Duration;

use crate::{NodeId, sim::World};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A cluster that has found itself.
fn settled(world: &mut World, count: usize) -> Vec<NodeId> {
    let nodes = world.start(count);
    world.run_until(secs(10), World::all_agree);
    world.run(secs(2));
    nodes
}
