//! Everything at once.

use super::{ms, secs};
use crate::{
    StateType,
    sim::{Fault, World, seeds},
};

#[test]
fn a_cluster_in_a_storm_comes_to_agree() {
    seeds(0..4, |world| {
        world.link.loss = 0.02;
        world.link.duplicate = 0.01;
        world.link.reorder = 0.05;
        world.start(32);
        world.run_until(secs(20), World::all_agree);
        world.random_faults(secs(60));
        let types = [StateType::DRAIN, StateType::CONNTRACK, StateType::HEALTH];
        for round in 0..240 {
            let live = world.live();
            let writer = live[world.rng.usize(..live.len())].clone();
            let state_type = &types[world.rng.usize(..types.len())];
            let key = format!("k{}", world.rng.u32(..40));
            world.broadcast(&writer, state_type, &key, &format!("{round}"));
            world.run(ms(250));
        }
        world.heal();
        world.run_until(secs(120), World::all_agree);
        assert_eq!(world.all_applied(), Ok(()));
        let broken = [Fault::Crash, Fault::Restart, Fault::Partition, Fault::Loss, Fault::Duplicate];
        for fault in broken {
            assert!(world.count(fault) > 0, "the storm had no {fault:?}");
        }
    });
}
