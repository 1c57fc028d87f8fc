//! Two that dial one another at once, in every order in which the steps of both handshakes can come.

use std::{collections::BTreeSet, time::Duration};

use super::secs;
use crate::{
    NodeStatus, StateType,
    sim::{LinkSettings, seeds},
};

const fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// The steps of two handshakes in the order in which they come: a hello arrives after three ways, its welcome
/// after one back.
fn order(there: u64, back: u64, later: u64) -> [&'static str; 4] {
    let mut steps = [
        (3 * there, "hello of a"),
        (3 * there + back, "welcome of b"),
        (later + 3 * back, "hello of b"),
        (later + 3 * back + there, "welcome of a"),
    ];
    steps.sort_unstable();
    steps.map(|(_, step)| step)
}

#[test]
fn two_that_dial_at_once_end_with_one_connection_in_every_order_of_their_handshakes() {
    let mut orders = BTreeSet::new();
    for (there, back) in [(100, 100), (100, 900), (900, 100), (250, 700), (700, 250)] {
        for later in (0..4_000).step_by(50) {
            orders.insert(order(there, back, later));
            seeds(0..1, |world| {
                let nodes = [world.start(1), world.start(1)].concat();
                let [a, b] = [world.pid_of(&nodes[0]), world.pid_of(&nodes[1])];
                for pid in [a, b] {
                    world.procs[pid].seeds.clear();
                }
                let quiet = LinkSettings { jitter_percent: 0, ..world.link };
                for (from, to, delay) in [(0, 1, there), (1, 0, back)] {
                    let link = LinkSettings { delay: micros(delay), ..quiet };
                    world.bad_link(&nodes[from], &nodes[to], link);
                }
                world.dial(a, Some(nodes[1].clone()), world.address_of(&nodes[1]));
                world.run(micros(later));
                world.dial(b, Some(nodes[0].clone()), world.address_of(&nodes[0]));
                world.run(secs(3));
                let stands = [&world.procs[a].conns[&nodes[1]], &world.procs[b].conns[&nodes[0]]];
                assert_eq!(stands[0], stands[1], "each holds another for the one that stands");
                assert_eq!([world.procs[a].conns.len(), world.procs[b].conns.len()], [1, 1]);
                let record = world.broadcast(&nodes[0], &StateType::DRAIN, "x", "on");
                world.run(secs(1));
                assert!(world.all_read(&StateType::DRAIN, &record.key, Some("on")));
                assert!(world.all_agree(), "{:?}", world.disagreement());
                for (observer, member) in [(0, 1), (1, 0)] {
                    let record = &world.process(&nodes[observer]).record;
                    assert_eq!(record.events.len(), 3, "joined, synced, and one write: {:?}", record.events);
                    assert_eq!(world.status(&nodes[observer], &nodes[member]), Some(NodeStatus::Alive));
                }
            });
        }
    }
    assert_eq!(orders.len(), 6, "four steps, two of which follow upon the others: {orders:?}");
}
