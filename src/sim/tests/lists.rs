//! A revocation list given to one node is in force at all of them, whoever was away meanwhile.

use super::{ms, secs, settled};
use crate::sim::{Fault, World, seeds};

fn all_have(world: &World, number: u64) -> bool {
    world.live().iter().all(|node| world.list_at(node, 1) == Some(number))
}

#[test]
fn a_list_given_to_one_node_is_everywhere_within_a_gossip_round() {
    seeds(0..8, |world| {
        let nodes = settled(world, 24);
        world.give_list(&nodes[5], 1, 7);
        world.run_until(ms(200), |world| all_have(world, 7));
        let served: u64 = nodes.iter().map(|id| world.process(id).core.counters().lists_served).sum();
        assert_eq!(served, 23, "it crosses to each node once");
        world.give_list(&nodes[9], 1, 8);
        world.run_until(ms(200), |world| all_have(world, 8));
    });
}

#[test]
fn lost_words_of_a_list_are_made_up_for() {
    seeds(0..4, |world| {
        let nodes = settled(world, 12);
        world.link.loss = 0.3;
        world.give_list(&nodes[0], 1, 7);
        world.run_until(secs(30), |world| all_have(world, 7));
        assert!(world.count(Fault::Loss) > 0);
    });
}

#[test]
fn who_was_cut_off_or_comes_later_has_the_newest_list_as_soon_as_it_is_connected() {
    seeds(0..8, |world| {
        let nodes = settled(world, 6);
        world.partition(&[&nodes[..4], &nodes[4..]]);
        world.run(secs(40)); // no connection is left over which it could go
        world.give_list(&nodes[0], 1, 7);
        world.give_list(&nodes[5], 1, 6);
        world.run(secs(5));
        assert_eq!((world.list_at(&nodes[3], 1), world.list_at(&nodes[4], 1)), (Some(7), Some(6)));
        world.heal();
        world.run_until(secs(30), |world| all_have(world, 7));
        world.restart(&nodes[2]);
        let late = world.start(1).remove(0);
        world.run_until(secs(10), |world| all_have(world, 7));
        assert_eq!(world.list_at(&late, 1), Some(7));
    });
}

#[test]
fn an_older_list_stays_where_it_was_given() {
    seeds(0..4, |world| {
        let nodes = settled(world, 5);
        world.give_list(&nodes[0], 1, 7);
        world.run_until(secs(1), |world| all_have(world, 7));
        let taken = |world: &World| -> u64 {
            nodes.iter().map(|id| world.process(id).core.counters().lists_taken).sum()
        };
        let before = taken(world);
        world.give_list(&nodes[1], 1, 3);
        world.run(secs(30));
        // Its host refuses to go back; here it does, and the others bring the newer one again.
        assert!(all_have(world, 7));
        assert_eq!(taken(world), before + 1);
    });
}
