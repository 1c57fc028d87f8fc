//! Signed records in clusters with members that alter what they relay.

use bytes::Bytes;

use super::{ms, secs, settled};
use crate::{
    EventKind, NodeId, StateType,
    proto::Signed,
    sim::{Fault, World, seeds},
    wire::{
        codec::{self, Packet},
        message::{RecordBatch, kind},
    },
};

/// What `liar` makes of what it sends: every record of others has another value.
fn altered(liar: &NodeId, packet: &Bytes) -> Bytes {
    let mut out = Packet::new();
    for (part, body) in codec::parts(packet).expect("a core makes packets") {
        match part {
            kind::SPREAD => {
                let (head, rest) = codec::head_and_rest(&body).expect("a hand-off has a head");
                let mut inner = Packet::new();
                for (part, body) in codec::bare_parts(&rest).expect("and parts") {
                    push_altered(&mut inner, liar, part, &body);
                }
                out.push_raw(kind::SPREAD, &[&codec::prefix(head.len()), &head, &inner.into_parts()]);
            }
            part => push_altered(&mut out, liar, part, &body),
        }
    }
    out.into_bytes()
}

fn push_altered(packet: &mut Packet, liar: &NodeId, part: u8, body: &Bytes) {
    match codec::decode::<RecordBatch>(body) {
        Ok(mut batch) if matches!(part, kind::RECORDS | kind::ANEW) && batch.source != *liar => {
            for record in &mut batch.records {
                record.value = Bytes::from_static(b"\xa4lies");
            }
            packet.push(part, &batch);
        }
        _ => packet.push_raw(part, &[body]),
    }
}

fn forged(world: &World, node: &NodeId) -> u64 {
    world.process(node).core.counters().records_forged
}

#[test]
fn a_relay_that_alters_records_is_named_by_the_next_node_and_what_was_written_arrives_all_the_same() {
    seeds(0..6, |world| {
        world.settings.signed = Signed::All;
        world.link.loss = 0.01;
        let nodes = settled(world, 24);
        let liar = &nodes[5];
        world.alters.insert(liar.clone(), altered);
        for number in 0..40 {
            let writer = &nodes[number % 5];
            world.broadcast(writer, &StateType::DRAIN, &format!("b{number}"), "on");
            world.run(ms(50));
        }
        world.run_until(secs(60), |world| {
            (0..40).all(|number| world.all_read(&StateType::DRAIN, &format!("b{number}"), Some("on")))
        });
        world.run_to_agreement(secs(60));
        assert!(world.count(Fault::Loss) > 0);
        let told: Vec<_> = nodes.iter().filter(|id| forged(world, id) > 0).collect();
        assert!(!told.is_empty(), "nothing was altered on the way to an honest node");
        for node in &nodes {
            let by_liar = !world.told(node, EventKind::RecordForged, liar).is_empty();
            assert_eq!(by_liar, forged(world, node) > 0, "{node}");
            assert_eq!(world.told_of_others(node, EventKind::RecordForged, liar), [0_u64; 0], "{node}");
        }
    });
}

#[test]
fn without_signatures_the_same_relay_is_believed() {
    seeds(0..2, |world| {
        let nodes = settled(world, 24);
        world.alters.insert(nodes[5].clone(), altered);
        // What a node is handed differs from what was written, which this world would not let pass.
        let believed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for number in 0..40 {
                world.broadcast(&nodes[number % 5], &StateType::DRAIN, &format!("b{number}"), "on");
                world.run(ms(50));
            }
        }));
        assert!(believed.is_err(), "the test above proves nothing");
    });
}

#[test]
fn signed_clusters_converge_through_crashes_partitions_and_restarts() {
    seeds(0..6, |world| {
        world.settings.signed = Signed::All;
        let nodes = settled(world, 8);
        for (number, node) in nodes.iter().enumerate() {
            world.broadcast(node, &StateType::DRAIN, &format!("b{number}"), "on");
            world.broadcast(node, &StateType::CONNTRACK, "c", node.as_str());
        }
        world.run(secs(1));
        world.partition(&[&nodes[..4], &nodes[4..]]);
        world.crash(&nodes[1]);
        for (number, node) in nodes.iter().enumerate().filter(|(number, _)| *number != 1) {
            world.broadcast(node, &StateType::DRAIN, "shared", &number.to_string());
        }
        world.remove(&nodes[6], &StateType::DRAIN, "b6");
        world.run(secs(40));
        world.restart(&nodes[1]);
        world.heal();
        world.run_to_agreement(secs(120));
        // One that knows nobody's past: the records of lives that are over are proved to it as well.
        let late = world.start(1).remove(0);
        world.run_to_agreement(secs(60));
        assert_eq!(world.text(&late, &StateType::DRAIN, "b1").as_deref(), Some("on"));
        for node in nodes.iter().chain([&late]) {
            let counters = world.process(node).core.counters();
            assert_eq!((counters.records_forged, counters.records_unsigned), (0, 0), "{node}");
        }
    });
}
