//! Delegated ranges: every node is reached, mostly once, whatever small differences there are between views.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::{
    NodeId, Options, StateType, Value,
    proto::{Protocol, tests_support::*},
    wire::CloseCode,
};

/// A fleet whose members all know and are connected to one another, but for some pairs that never met.
fn fleet(zones: &[u8], strangers: &BTreeSet<(usize, usize)>) -> BTreeMap<NodeId, Protocol> {
    let mut cores: Vec<_> = zones
        .iter()
        .enumerate()
        .map(|(number, zone)| {
            core_with(&format!("n{number:02}"), |config| {
                config.zone = (*zone > 0).then(|| format!("zone-{zone}"));
                config.address.set_port(8_000 + u16::try_from(number).unwrap());
            })
        })
        .collect();
    for low in 0..cores.len() {
        for high in low + 1..cores.len() {
            if !strangers.contains(&(low, high)) {
                let (left, right) = cores.split_at_mut(high);
                connect(&mut left[low], &mut right[0], at(0));
            }
        }
    }
    for core in &mut cores {
        // What meeting one another has set off is not this test's.
        core.handle_timeout(at(2));
        drain(core);
    }
    cores.into_iter().map(|core| (core.id().clone(), core)).collect()
}

/// Broadcasts from the first node; who got it, and how many hand-offs were sent.
fn broadcast(fleet: &mut BTreeMap<NodeId, Protocol>) -> (BTreeSet<NodeId>, u64) {
    let handoffs =
        |fleet: &BTreeMap<NodeId, Protocol>| fleet.values().map(|core| core.counters().handoffs).sum::<u64>();
    let before = handoffs(fleet);
    let first = fleet.first_key_value().unwrap().0.clone();
    let value = Value::encode(&1).unwrap();
    let origin = fleet.get_mut(&first).unwrap();
    origin.broadcast(&StateType::DRAIN, "x", value, Options::default(), at(1_000)).unwrap();
    let mut waiting = vec![first];
    while let Some(from) = waiting.pop() {
        for (to, bytes) in sent(&drain(fleet.get_mut(&from).unwrap())) {
            fleet.get_mut(&to).unwrap().handle_message(&from, &bytes, at(1_000));
            waiting.push(to);
        }
    }
    let got = fleet.iter().filter(|(_, core)| core.get(&StateType::DRAIN, "x").is_some());
    (got.map(|(id, _)| id.clone()).collect(), handoffs(fleet) - before)
}

#[test]
fn with_equal_views_each_node_gets_one_copy() {
    for nodes in [2, 3, 9, 10, 40] {
        let mut fleet = fleet(&vec![0; nodes], &BTreeSet::new());
        let (got, copies) = broadcast(&mut fleet);
        assert_eq!((got.len(), copies), (nodes, nodes as u64 - 1));
    }
}

#[test]
fn an_update_crosses_to_each_other_zone_once() {
    let zones: Vec<u8> = (0..30).map(|number| number % 3).collect();
    let mut fleet = fleet(&zones, &BTreeSet::new());
    let (got, copies) = broadcast(&mut fleet);
    assert_eq!((got.len(), copies), (30, 29));
}

#[test]
fn whom_the_origin_does_not_know_is_reached_through_those_who_do() {
    proptest!(ProptestConfig::with_cases(48), |(
        nodes in 4..24_usize,
        zones in prop::collection::vec(0..3_u8, 24),
        pairs in prop::collection::btree_set((0..24_usize, 0..24_usize), 0..4),
    )| {
        let zones = &zones[..nodes];
        let strangers = pairs.into_iter().filter(|(low, high)| low < high && *high < nodes).collect();
        let mut fleet = fleet(zones, &strangers);
        let (got, copies) = broadcast(&mut fleet);
        // A node that the only relay of its range does not know must wait for gossip; that is rare.
        prop_assert!(got.len() + strangers.len() >= nodes, "{} of {nodes}, {strangers:?}", got.len());
        prop_assert!(copies <= nodes as u64 + 2 * strangers.len() as u64, "{copies} copies for {nodes} nodes");
    });
}

/// A partial cut: some pairs see one another only through third parties.
#[test]
fn whom_the_origin_has_no_connection_to_is_served_by_a_neighbour_at_once() {
    for cut in 1..9 {
        let mut fleet = fleet(&[0; 9], &BTreeSet::new());
        let names: Vec<_> = fleet.keys().cloned().collect();
        for (one, other) in [(0, cut), (cut, 0)] {
            let core = fleet.get_mut(&names[one]).unwrap();
            core.handle_disconnected(&names[other], CloseCode::UNSPECIFIED, false, at(900));
            drain(core);
        }
        let before: u64 = fleet.values().map(|core| core.counters().handoffs).sum();
        let value = Value::encode(&1).unwrap();
        let origin = fleet.get_mut(&names[0]).unwrap();
        origin.broadcast(&StateType::DRAIN, "x", value, Options::default(), at(1_000)).unwrap();
        let mut waiting = vec![names[0].clone()];
        while let Some(from) = waiting.pop() {
            for (to, bytes) in sent(&drain(fleet.get_mut(&from).unwrap())) {
                let passes = ![(&names[0], &names[cut]), (&names[cut], &names[0])].contains(&(&from, &to));
                if passes {
                    fleet.get_mut(&to).unwrap().handle_message(&from, &bytes, at(1_000));
                    waiting.push(to);
                }
            }
        }
        let got = fleet.values().filter(|core| core.get(&StateType::DRAIN, "x").is_some()).count();
        let sum = |of: fn(&Protocol) -> u64| fleet.values().map(of).sum::<u64>();
        assert_eq!((got, sum(|core| core.counters().detours)), (9, 1), "{} is cut off", names[cut]);
        assert_eq!(sum(|core| core.counters().handoffs) - before, 9, "one copy more than there are others");
    }
}

/// Two that are both asked to serve a range in which they do not stand do not ask one another in turn.
#[test]
fn a_detour_ends_with_who_was_asked() {
    let mut fleet = fleet(&[0; 9], &BTreeSet::new());
    let names: Vec<_> = fleet.keys().cloned().collect();
    for name in &names[..8] {
        let core = fleet.get_mut(name).unwrap();
        core.handle_disconnected(&names[8], CloseCode::UNSPECIFIED, false, at(900));
        drain(core);
    }
    let (got, copies) = broadcast(&mut fleet);
    assert_eq!((got.len(), copies), (9, 9));
    assert_eq!(fleet.values().map(|core| core.counters().detours).sum::<u64>(), 1);
}

#[test]
fn a_copy_that_comes_again_is_neither_delivered_nor_handed_on() {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    for core in [&mut a, &mut b, &mut c] {
        core.handle_timeout(at(2));
        drain(core);
    }
    // `b` knows nobody but `a`, which knows `c`.
    b.broadcast(&StateType::DRAIN, "x", Value::encode(&1).unwrap(), Options::default(), at(1_000)).unwrap();
    let copy = sent(&drain(&mut b)).remove(0).1;
    let receivers = |a: &mut Protocol| {
        a.handle_message(&id("b"), &copy, at(1_000));
        let mut receivers: Vec<_> = sent(&drain(a)).into_iter().map(|(to, _)| to.to_string()).collect();
        receivers.sort();
        receivers
    };
    let handoffs = a.counters().handoffs;
    assert!(receivers(&mut a).contains(&"c".to_owned()));
    assert_eq!(a.counters().handoffs, handoffs + 1);
    assert_eq!(receivers(&mut a), ["b"], "only the acknowledgement");
    assert_eq!((a.counters().handoffs, a.counters().duplicates), (handoffs + 1, 1));
}

#[test]
fn a_range_that_a_silent_relay_was_handed_goes_to_another() {
    let names: Vec<_> = (0..30).map(|number| id(&format!("n{number:02}"))).collect();
    for silent in names[1..].iter().step_by(2) {
        let mut fleet = fleet(&[0; 30], &BTreeSet::new());
        let first = &names[0];
        let value = Value::encode(&1).unwrap();
        let origin = fleet.get_mut(first).unwrap();
        origin.broadcast(&StateType::DRAIN, "x", value, Options::default(), at(1_000)).unwrap();
        // Some acknowledgement time-outs, and less than news must have aged before gossip tells it.
        for ms in 1_000..1_028 {
            for name in &names {
                fleet.get_mut(name).unwrap().handle_timeout(at(ms));
            }
            let mut waiting: Vec<_> = names.clone();
            while let Some(from) = waiting.pop() {
                for (to, bytes) in sent(&drain(fleet.get_mut(&from).unwrap())) {
                    if to != *silent && from != *silent {
                        fleet.get_mut(&to).unwrap().handle_message(&from, &bytes, at(ms));
                        waiting.push(to);
                    }
                }
            }
        }
        let missing: Vec<_> = fleet
            .iter()
            .filter(|(_, core)| core.get(&StateType::DRAIN, "x").is_none())
            .map(|(id, _)| id)
            .collect();
        assert_eq!(missing, [silent]);
    }
}

#[test]
fn a_range_of_one_dead_and_one_that_lost_a_packet_is_tried_in_turn() {
    let names: Vec<_> = (0..17).map(|number| id(&format!("n{number:02}"))).collect();
    for dead in &names[1..] {
        let mut fleet = fleet(&[0; 17], &BTreeSet::new());
        let mut has_lost = BTreeSet::from([names[0].clone()]);
        let value = Value::encode(&1).unwrap();
        let origin = fleet.get_mut(&names[0]).unwrap();
        origin.broadcast(&StateType::DRAIN, "x", value, Options::default(), at(1_000)).unwrap();
        for ms in 1_000..1_028 {
            for name in &names {
                fleet.get_mut(name).unwrap().handle_timeout(at(ms));
                for (to, bytes) in sent(&drain(fleet.get_mut(name).unwrap())) {
                    if to != *dead && name != dead && !has_lost.insert(to.clone()) {
                        fleet.get_mut(&to).unwrap().handle_message(name, &bytes, at(ms));
                    }
                }
            }
        }
        let missing = fleet.iter().filter(|(_, core)| core.get(&StateType::DRAIN, "x").is_none());
        assert_eq!(missing.map(|(id, _)| id).collect::<Vec<_>>(), [dead]);
    }
}

#[test]
fn in_a_large_cluster_connections_are_kept_at_every_scale() {
    let fleet = fleet(&[0; 120], &BTreeSet::new());
    let mut cores: Vec<_> = fleet.into_values().collect();
    for core in &mut cores {
        core.config.max_connections = 60;
    }
    cores.sort_unstable_by_key(|core| core.members.me().place);
    let places: Vec<_> = cores.iter().map(|core| core.members.me().place).collect();
    let mut kept = 0;
    for (rank, core) in cores.iter().enumerate() {
        let next = (rank + 1) % cores.len();
        assert!(core.is_kept_close(places[next]), "its neighbour on the ring");
        for (other, place) in places.iter().enumerate().filter(|(other, _)| *other != rank) {
            kept += usize::from(core.is_kept_close(*place));
            assert_eq!(core.is_kept_close(*place), cores[other].is_kept_close(places[rank]), "of both");
        }
    }
    let each = kept / cores.len();
    assert!((20..60).contains(&each), "{each} on average");
}

#[test]
fn in_a_large_cluster_each_is_probed_once_a_period_by_one_that_is_connected() {
    let mut cores: Vec<_> = fleet(&[0; 120], &BTreeSet::new()).into_values().collect();
    for core in &mut cores {
        core.config.max_connections = 96;
    }
    let place = |cores: &[Protocol], id: &NodeId| {
        cores.iter().find(|core| core.id() == id).map(|core| core.members.me().place).unwrap()
    };
    let first = cores[0].next_target(at(1_000)).unwrap();
    cores[0].config.max_connections = 1;
    assert_eq!(cores[0].some_alive_near(&first, 3).len(), 3, "where nobody is near, anybody helps");
    cores[0].config.max_connections = 96;
    let (mut all, mut close, mut reached) = (0, 0, 0);
    for period in 10..20 {
        let mut probed = BTreeSet::new();
        for rank in 0..cores.len() {
            let target = cores[rank].next_target(at(period * 1_000)).unwrap();
            let at_target = place(&cores, &target);
            all += 1;
            close += usize::from(cores[rank].is_kept_close(at_target));
            let helper = cores[rank].some_alive_near(&target, 1).pop().unwrap();
            assert_ne!(helper, target);
            let helper = cores.iter().find(|core| *core.id() == helper).unwrap();
            reached += usize::from(helper.is_kept_close(at_target));
            probed.insert(target);
        }
        assert_eq!(probed.len(), cores.len(), "each once");
    }
    assert!(close * 100 > all * 97, "{close} of {all} by a connection");
    assert!(reached * 100 > all * 97, "{reached} of {all} helpers have a connection to the target");
}
