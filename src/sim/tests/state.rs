//! Shared state: how far it comes, how fast, and what survives.

use std::time::Duration;

use super::{ms, secs, settled};
use crate::{
    EventKind, NodeId, StateType, SyncableState, Value,
    sim::{Fault, World, seeds},
};

#[test]
fn a_record_reaches_32_nodes_within_20_ms() {
    seeds(0..4, |world| {
        let nodes = settled(world, 32);
        world.broadcast(&nodes[7], &StateType::DRAIN, "b1", "on");
        world.run_until(ms(20), |world| world.all_read(&StateType::DRAIN, "b1", Some("on")));
    });
}

#[test]
fn a_record_reaches_32_nodes_within_1500_ms_through_five_percent_of_loss() {
    seeds(0..4, |world| {
        let nodes = settled(world, 32);
        world.link.loss = 0.05;
        for node in &nodes[..10] {
            let key = format!("of {node}");
            world.broadcast(node, &StateType::DRAIN, &key, "on");
            world.run_until(ms(1_500), |world| world.all_read(&StateType::DRAIN, &key, Some("on")));
        }
        assert!(world.count(Fault::Loss) > 0);
    });
}

#[test]
fn who_was_away_gets_what_it_missed() {
    seeds(0..4, |world| {
        let nodes = settled(world, 5);
        world.crash(&nodes[4]);
        world.run(secs(5));
        world.broadcast(&nodes[1], &StateType::DRAIN, "b1", "on");
        world.run(secs(5));
        world.restart(&nodes[4]);
        world.run_until(secs(2), |world| world.all_read(&StateType::DRAIN, "b1", Some("on")));
    });
}

#[test]
fn both_halves_of_a_partition_get_what_the_other_wrote() {
    seeds(0..4, |world| {
        let nodes = settled(world, 6);
        world.partition(&[&nodes[..3], &nodes[3..]]);
        world.run(secs(40));
        world.broadcast(&nodes[0], &StateType::DRAIN, "left", "on");
        world.broadcast(&nodes[5], &StateType::DRAIN, "right", "on");
        world.run(secs(5));
        world.heal();
        world.run_until(secs(60), |world| {
            ["left", "right"].iter().all(|key| world.all_read(&StateType::DRAIN, key, Some("on")))
        });
    });
}

#[test]
fn a_removal_reaches_everybody_and_an_old_record_does_not_undo_it() {
    seeds(0..4, |world| {
        let nodes = settled(world, 6);
        world.broadcast(&nodes[1], &StateType::DRAIN, "b1", "on");
        world.run(secs(1));
        // One node misses the removal, and holds the old record when it comes back.
        world.partition(&[&nodes[..5], &nodes[5..]]);
        world.run(secs(1));
        assert!(world.remove(&nodes[2], &StateType::DRAIN, "b1").is_some());
        world.run(secs(30));
        assert_eq!(world.text(&nodes[5], &StateType::DRAIN, "b1").as_deref(), Some("on"));
        world.heal();
        world.run_until(secs(60), |world| world.all_read(&StateType::DRAIN, "b1", None));
        world.run(secs(30));
        assert!(world.all_read(&StateType::DRAIN, "b1", None));
    });
}

#[test]
fn each_node_has_a_register_of_its_own() {
    seeds(0..4, |world| {
        let nodes = settled(world, 4);
        for node in &nodes {
            world.broadcast(node, &StateType::CONNTRACK, "c", node.as_str());
        }
        world.run_until(secs(1), |world| {
            nodes.iter().all(|id| world.process(id).core.states(&StateType::CONNTRACK).len() == nodes.len())
        });
        world.run_until(secs(1), World::all_agree);
    });
}

#[test]
fn who_joins_late_gets_everything_and_says_so() {
    seeds(0..4, |world| {
        let nodes = settled(world, 4);
        for key in 0..2_000 {
            world.broadcast(&nodes[key % 4], &StateType::CONNTRACK, &format!("c{key}"), "up");
        }
        world.run_until(secs(20), World::all_agree);
        let late = world.start(1).remove(0);
        world.run_until(secs(5), |world| world.process(&late).record.synced.is_some());
        assert_eq!(world.process(&late).core.states(&StateType::CONNTRACK).len(), 2_000);
        assert_eq!(world.all_applied(), Ok(()));
    });
}

/// How long until all read what a node writes now.
fn spread_of(world: &mut World, node: &NodeId, of: &StateType, key: &str) -> Duration {
    world.broadcast(node, of, key, "open");
    world.run_until(secs(10), |world| {
        world.live().iter().all(|id| {
            let states = world.process(id).core.states(of);
            states.iter().any(|record| record.key == key)
        })
    })
}

#[test]
fn an_opened_circuit_overtakes_a_flood_of_flows() {
    seeds(0..2, |world| {
        let nodes = settled(world, 10);
        let circuits = StateType::CIRCUIT_BREAKER;
        let mut idle = Duration::ZERO;
        for round in 0..8 {
            idle = idle.max(spread_of(world, &nodes[0], &circuits, &format!("idle-{round}")));
            world.run(secs(1));
        }
        let mut worst = Duration::ZERO;
        for round in 0..2 {
            for flow in 0..12_000 {
                world.broadcast(&nodes[0], &StateType::CONNTRACK, &format!("{round}-{flow:012}"), FLOW);
            }
            let waiting = world.process(&nodes[0]).core.unspread_bytes();
            assert!(waiting > 500_000, "the flood is over before the circuits: {waiting} bytes");
            // From the node that floods, and from one that only passes the flood on.
            for writer in [0, 9] {
                let key = format!("{round}-{writer}");
                worst = worst.max(spread_of(world, &nodes[writer], &circuits, &key));
            }
        }
        assert!(worst <= idle * 2, "{worst:?} in the flood, {idle:?} without");
        world.run(secs(10));
        for id in &nodes {
            assert_eq!(world.process(id).core.states(&StateType::CONNTRACK).len(), 24_000, "{id}");
        }
        assert!(nodes.iter().all(|id| !world.anybody_told(EventKind::NodeSuspect, id)));
    });
}

/// A flow's value, as long as one is.
const FLOW: &str = "0123456789abcdef01234567";

#[test]
fn ten_thousand_records_are_one_call_and_few_batches() {
    seeds(0..2, |world| {
        let nodes = settled(world, 4);
        let pid = world.pid_of(&nodes[0]);
        let before = world.process(&nodes[0]).core.counters();
        let taken = world.command(pid, |core, now| {
            let record = |number: u32| {
                let value = Value::encode(FLOW).unwrap();
                let version = core.next_version(now);
                SyncableState::new(
                    StateType::CONNTRACK,
                    format!("{number:016}"),
                    value,
                    version,
                    core.id().clone(),
                )
            };
            let records = (0..10_000).map(record).collect();
            core.broadcast_many(records, now)
        });
        assert_eq!(taken.unwrap(), 10_000);
        world.run(secs(2));
        for id in &nodes {
            assert_eq!(world.process(id).core.states(&StateType::CONNTRACK).len(), 10_000, "{id}");
        }
        let batches = world.process(&nodes[0]).core.counters().batches_spread - before.batches_spread;
        assert!(batches <= 40, "{batches} batches for 10,000 records of 80 bytes");
    });
}

#[test]
fn a_type_that_is_switched_off_and_on_comes_back_whole() {
    const TYPES: [StateType; 3] = [StateType::HEALTH, StateType::DRAIN, StateType::CONNTRACK];
    seeds(0..12, |world| {
        let nodes = settled(world, 4);
        world.link.loss = 0.02;
        let pid = world.pid_of(&nodes[1]);
        let mut off = std::collections::BTreeSet::new();
        for _ in 0..150 {
            let span = ms(world.rng.u64(1..200));
            world.run(span);
            let of = &TYPES[world.rng.usize(..TYPES.len())];
            let (writer, key) = (world.rng.usize(..4), format!("k{}", world.rng.u8(..5)));
            match world.rng.u32(..8) {
                0 => {
                    let on = off.contains(of);
                    world.checks.relearns(pid, of);
                    let epoch = world.process(&nodes[1]).core.local_node().epoch;
                    for key in (0..5).map(|key| format!("k{key}")) {
                        world.checks.removes(pid, epoch, (of, &key, &nodes[1])); // its opinions, if it is off now
                    }
                    world.command(pid, |core, now| core.set_sync(of, on, now));
                    if on {
                        off.remove(of);
                    } else {
                        off.insert(of.clone());
                        let mut next = Some(0);
                        while let Some(first) = next {
                            next = world.command(pid, |core, now| core.drop_page(of, first, now));
                        }
                    }
                }
                1 if writer != 1 || !off.contains(of) => _ = world.remove(&nodes[writer], of, &key),
                _ if writer != 1 || !off.contains(of) => {
                    let value = world.rng.u32(..).to_string();
                    world.broadcast(&nodes[writer], of, &key, &value);
                }
                _ => {}
            }
            let core = &world.process(&nodes[1]).core;
            for of in &off {
                assert!(
                    core.states(of).is_empty() && core.get(of, &key).is_none(),
                    "{of} is told though off"
                );
            }
        }
        for of in &off {
            world.command(pid, |core, now| core.set_sync(of, true, now));
        }
        world.run_until(secs(60), World::all_agree);
        assert!(
            nodes.iter().all(|id| !world.anybody_told(EventKind::NodeConflict, id)),
            "taken for a forgery"
        );
    });
}

#[test]
fn a_confirmation_names_who_has_it_and_who_has_not() {
    seeds(0..4, |world| {
        let nodes = settled(world, 5);
        world.partition(&[&nodes[..4], &nodes[4..]]);
        world.broadcast(&nodes[0], &StateType::DRAIN, "b1", "on");
        let pid = world.pid_of(&nodes[0]);
        // Before anyone is suspected: a suspect is neither among the reached nor among the missing.
        world.command(pid, |core, now| core.confirm(&StateType::DRAIN, "b1", ms(400), 7, now));
        world.run_until(secs(1), |world| world.process(&nodes[0]).record.confirmed.contains_key(&7));
        let (_, spread) = &world.process(&nodes[0]).record.confirmed[&7];
        assert_eq!(spread.reached, nodes[..4].iter().cloned().collect());
        assert_eq!(spread.missing, nodes[4..].iter().cloned().collect());
        world.heal();
        world.run(secs(20));
        world.command(pid, |core, now| core.confirm(&StateType::DRAIN, "b1", secs(1), 8, now));
        world.run_until(secs(1), |world| world.process(&nodes[0]).record.confirmed.contains_key(&8));
        let (_, spread) = &world.process(&nodes[0]).record.confirmed[&8];
        assert!(spread.missing.is_empty() && spread.reached.len() == 5, "{spread:?}");
    });
}
