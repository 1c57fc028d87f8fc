//! What a trusted peer can say that is not so, and what comes of it.

use bytes::Bytes;

use super::{secs, settled};
use crate::{
    EventKind, NodeStatus,
    sim::seeds,
    wire::{
        codec::{self, Packet},
        message::{Accusation, ClaimBody, SignedClaim, kind},
    },
};

#[test]
fn a_liar_cannot_evict_a_healthy_node() {
    seeds(0..4, |world| {
        let nodes = settled(world, 6);
        let (liar, victim) = (&nodes[1], &nodes[4]);
        for _ in 0..100 {
            for listener in nodes.iter().filter(|id| *id != liar) {
                let Some(info) = world.info(listener, victim) else { continue };
                let accusers = nodes.iter().filter(|id| *id != victim);
                let mut packet = Packet::new();
                for accuser in accusers {
                    let accusation = Accusation {
                        node_id: victim.clone(),
                        epoch: info.epoch,
                        incarnation: info.incarnation,
                        dead: true,
                        accuser: accuser.clone(),
                    };
                    packet.push(kind::ACCUSATION, &accusation);
                }
                world.say(liar, listener, packet.into_bytes());
            }
            world.run(std::time::Duration::from_millis(300));
        }
        assert!(!world.anybody_told(EventKind::NodeDead, victim));
        world.run_until(secs(20), |world| world.all_hold(victim, NodeStatus::Alive));
    });
}

#[test]
fn a_forged_claim_changes_nothing() {
    seeds(0..4, |world| {
        let nodes = settled(world, 4);
        let before = world.info(&nodes[0], &nodes[2]).unwrap();
        let body = ClaimBody {
            node_id: nodes[2].clone(),
            epoch: before.epoch + 1,
            incarnation: 9,
            left: true,
            address: before.address,
            zone: None,
            tags: before.tags.clone(),
        };
        let claim = SignedClaim {
            body: codec::encode(&body).into(),
            signature: Bytes::from_static(b"no such k"),
            chain_hash: 0,
            chain: Some(Bytes::copy_from_slice(nodes[2].as_str().as_bytes())),
        };
        let mut packet = Packet::new();
        packet.push(kind::CLAIM, &claim);
        world.say(&nodes[1], &nodes[0], packet.into_bytes());
        world.run(secs(5));
        let after = world.info(&nodes[0], &nodes[2]).unwrap();
        assert_eq!((after.epoch, after.incarnation), (before.epoch, before.incarnation));
        assert_eq!(after.status, NodeStatus::Alive);
        assert!(world.process(&nodes[0]).core.counters().claims_forged > 0, "it was never looked at");
    });
}
