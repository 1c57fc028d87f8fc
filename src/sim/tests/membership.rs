//! Who is there, and who is not.

use std::collections::BTreeMap;

use super::{ms, secs, settled};
use crate::{
    EventKind, NodeStatus,
    sim::{Fault, World, seeds},
    wire::CloseCode,
};

#[test]
fn a_crash_is_seen_by_all_within_the_longest_suspicion_and_not_before_the_shortest() {
    seeds(0..8, |world| {
        let nodes = settled(world, 8);
        world.crash(&nodes[3]);
        let crashed = world.now;
        // A round of probes over 8 members, the longest suspicion, and the last check.
        world.run_until(secs(8 + 18 + 2), |world| world.all_hold(&nodes[3], NodeStatus::Dead));
        for observer in world.live() {
            let dead = world.told(&observer, EventKind::NodeDead, &nodes[3])[0];
            assert!(dead >= crashed + 3_000_000, "{observer} after {} µs", dead - crashed);
        }
    });
}

#[test]
fn with_fast_detection_all_know_of_a_crash_within_a_second_and_nobody_else_is_buried() {
    seeds(0..4, |world| {
        world.settings = world.settings.clone().detecting_fast();
        let nodes = settled(world, 16);
        world.link.loss = 0.05;
        world.half_connect(&nodes[5], 0.8);
        world.pause(&nodes[6], ms(2_000));
        world.run(secs(20));
        let well = nodes.iter().filter(|node| ![&nodes[5], &nodes[6]].contains(node));
        for node in well {
            assert!(!world.anybody_told(EventKind::NodeDead, node), "{node} was well");
        }
        world.link.loss = 0.0;
        world.half_connect(&nodes[5], 0.0);
        world.run_until(secs(60), World::all_agree);
        world.crash(&nodes[3]);
        world.run_until(secs(1), |world| world.all_hold(&nodes[3], NodeStatus::Dead));
    });
}

#[test]
fn a_leave_is_known_to_all_within_100_ms_and_is_never_a_death() {
    seeds(0..8, |world| {
        let nodes = settled(world, 8);
        world.leave(&nodes[3]);
        world.run_until(ms(100), |world| world.all_hold(&nodes[3], NodeStatus::Left));
        world.run(secs(60));
        assert!(!world.is_up(&nodes[3]), "the leave never ended");
        assert!(world.all_hold(&nodes[3], NodeStatus::Left));
        assert!(!world.anybody_told(EventKind::NodeDead, &nodes[3]));
    });
}

#[test]
fn a_restarted_node_is_alive_everywhere_within_a_second_in_its_new_life() {
    seeds(0..8, |world| {
        let nodes = settled(world, 8);
        world.crash(&nodes[3]);
        world.run(secs(1));
        world.restart(&nodes[3]);
        let epoch = world.process(&nodes[3]).epoch;
        world.run_until(secs(1), |world| {
            let others = world.names.iter().filter(|id| **id != nodes[3]);
            let mut seen = others.map(|id| world.info(id, &nodes[3]));
            seen.all(|info| info.is_some_and(|info| info.epoch == epoch && info.status == NodeStatus::Alive))
        });
        world.run_until(secs(20), World::all_agree);
    });
}

#[test]
fn a_node_that_was_buried_comes_back() {
    seeds(0..4, |world| {
        let nodes = settled(world, 6);
        world.crash(&nodes[2]);
        world.run(secs(40));
        assert!(world.all_hold(&nodes[2], NodeStatus::Dead));
        world.restart(&nodes[2]);
        world.run_until(secs(1), |world| world.all_hold(&nodes[2], NodeStatus::Alive));
    });
}

#[test]
fn a_long_partition_heals_without_an_operator() {
    seeds(0..8, |world| {
        let nodes = settled(world, 6);
        world.partition(&[&nodes[..3], &nodes[3..]]);
        world.run(secs(120));
        for (here, there) in [(0, 5), (5, 0)] {
            assert_eq!(world.status(&nodes[here], &nodes[there]), Some(NodeStatus::Dead));
        }
        world.heal();
        world.run_until(secs(60), World::all_agree);
        assert!(world.count(Fault::Partition) > 0);
    });
}

#[test]
fn a_cut_in_one_direction_buries_nobody_who_others_reach() {
    seeds(0..4, |world| {
        let nodes = settled(world, 6);
        world.cut(&nodes[1], &nodes[4]);
        world.run(secs(90));
        world.heal();
        world.run_until(secs(30), World::all_agree);
        assert!(!world.anybody_told(EventKind::NodeDead, &nodes[4]));
        assert!(!world.anybody_told(EventKind::NodeDead, &nodes[1]));
    });
}

#[test]
fn ten_percent_of_loss_kill_nobody() {
    seeds(0..4, |world| {
        world.link.loss = 0.10;
        let nodes = world.start(8);
        world.run_until(secs(60), World::all_agree); // a lost handshake costs a second, and then another
        world.run(secs(120));
        assert!(nodes.iter().all(|id| !world.anybody_told(EventKind::NodeDead, id)));
        assert!(world.count(Fault::Loss) > 0);
    });
}

#[test]
fn a_node_that_stood_still_for_three_seconds_is_not_buried() {
    seeds(0..8, |world| {
        let nodes = settled(world, 6);
        world.pause(&nodes[2], secs(3));
        world.run(secs(30));
        assert!(world.all_agree(), "{:?}", world.disagreement());
        assert!(nodes.iter().all(|id| !world.anybody_told(EventKind::NodeDead, id)));
    });
}

#[test]
fn a_second_process_with_an_id_that_lives_is_refused() {
    seeds(0..4, |world| {
        let nodes = settled(world, 4);
        let epoch = world.process(&nodes[2]).epoch;
        let twin = world.start_twin(&nodes[2]);
        world.run(secs(10));
        assert!(world.procs[twin].core.nodes().len() == 1, "the twin has got in");
        assert!(
            world.refused.iter().any(|(_, pid, _, code)| *pid == twin && *code == CloseCode::DUPLICATE_ID)
        );
        for observer in world.live() {
            assert_eq!(world.info(&observer, &nodes[2]).map(|info| info.epoch), Some(epoch));
        }
    });
}

#[test]
fn a_forgotten_node_is_gone_everywhere_until_it_comes_back() {
    seeds(0..4, |world| {
        let nodes = settled(world, 5);
        world.crash(&nodes[4]);
        world.run_until(secs(40), |world| world.all_hold(&nodes[4], NodeStatus::Dead));
        world.forget(&nodes[1], &nodes[4]);
        let gone = |world: &World| nodes[..4].iter().all(|id| world.info(id, &nodes[4]).is_none());
        world.run_until(secs(2), gone);
        world.run(secs(60));
        assert!(gone(world), "it has come out of its grave");
        world.restart(&nodes[4]);
        world.run_until(secs(2), World::all_agree);
    });
}

#[test]
fn new_tags_reach_everybody() {
    seeds(0..4, |world| {
        let nodes = settled(world, 8);
        let tags = BTreeMap::from([("rack".to_owned(), "r7".to_owned())]);
        let pid = world.pid_of(&nodes[5]);
        world.command(pid, |core, now| core.set_tags(tags.clone(), now));
        world.run_until(secs(1), |world| {
            nodes.iter().all(|id| world.info(id, &nodes[5]).is_some_and(|info| info.tags == tags))
        });
    });
}

/// The partition ends before the connections across it do: nobody dials, and still the halves must meet.
#[test]
fn a_partition_shorter_than_its_connections_heals() {
    seeds(0..4, |world| {
        let nodes = settled(world, 6);
        world.partition(&[&nodes[..3], &nodes[3..]]);
        let parted = |world: &World| {
            nodes[..3].iter().all(|near| {
                nodes[3..].iter().all(|far| {
                    world.status(near, far) == Some(NodeStatus::Dead)
                        && world.status(far, near) == Some(NodeStatus::Dead)
                })
            })
        };
        assert!(world.run_until(secs(28), parted) < secs(28), "the connections have not timed out yet");
        // Until nothing is on its way any more that could bring them together by itself.
        world.run(secs(5));
        world.heal();
        world.run_until(secs(15), World::all_agree);
    });
}
