//! What nodes say of themselves against a naive model: of each node the greatest claim by DESIGN §3, whoever
//! tells it, in whatever order and however often.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::{
    NodeStatus,
    proto::{Protocol, Vouch as _, tests_support::*},
    wire::message::{ClaimBody, SignedClaim, kind},
};

/// Of whom, which life, which incarnation, whether it says goodbye.
type Said = (&'static str, u64, u64, bool);

fn said() -> impl Strategy<Value = Said> {
    (prop::sample::select(vec!["x", "y"]), 0..3_u64, 0..3_u64, prop::bool::weighted(0.3))
}

/// Which of two claims of one node counts: the later epoch, then the later incarnation, then a goodbye.
fn rank((_, life, incarnation, left): Said) -> (u64, u64, bool) {
    (life, incarnation, left)
}

fn signed((name, life, incarnation, left): Said) -> SignedClaim {
    let body = ClaimBody {
        node_id: id(name),
        epoch: config(name).epoch + life,
        incarnation,
        left,
        // Each claim says something of its own.
        address: ([10, 0, 1, u8::from(left)], 7_000 + u16::try_from(life * 10 + incarnation).unwrap()).into(),
        zone: None,
        tags: [("claim".to_owned(), format!("{life}/{incarnation}/{left}"))].into(),
    };
    let chain = Seal(id(name)).chain();
    SignedClaim { chain: Some(chain.clone()), ..core(name).sign(&body, &chain) }
}

/// Who has heard those claims, from two tellers in turn.
fn hearer(claims: &[Said]) -> Protocol {
    let mut a = core("a");
    for teller in ["b", "c"] {
        connect(&mut a, &mut core(teller), at(0));
    }
    for (number, said) in claims.iter().enumerate() {
        let teller = id(["b", "c"][number % 2]);
        a.handle_message(&teller, &message(kind::CLAIM, &signed(*said)), at(1 + number as u64));
        drain(&mut a);
    }
    a
}

#[test]
fn of_all_claims_told_in_any_order_and_any_number_the_greatest_counts() {
    proptest!(|(
        claims in prop::collection::vec(said(), 0..10).prop_shuffle(),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        order in prop::collection::vec(any::<u32>(), 20),
    )| {
        let mut model: BTreeMap<&str, Said> = BTreeMap::new();
        for said in &claims {
            let held = model.entry(said.0).or_insert(*said);
            *held = [*held, *said].into_iter().max_by_key(|said| rank(*said)).unwrap();
        }
        let mut repeated = claims.clone();
        if !claims.is_empty() {
            repeated.extend(again.iter().map(|index| *index.get(&claims)));
        }
        let mut shuffled: Vec<_> = repeated.iter().copied().zip(&order).collect();
        shuffled.sort_by_key(|(_, place)| **place);
        let shuffled: Vec<_> = shuffled.into_iter().map(|(said, _)| said).collect();
        let nodes = [hearer(&claims), hearer(&shuffled)];
        for node in &nodes {
            prop_assert_eq!(node.members.len(), 3 + model.len());
            for said in model.values() {
                let (name, life, incarnation, left) = *said;
                let info = node.node(&id(name)).unwrap();
                prop_assert_eq!((info.epoch, info.incarnation), (config(name).epoch + life, incarnation));
                prop_assert_eq!(info.status, if left { NodeStatus::Left } else { NodeStatus::Alive });
                prop_assert_eq!(&info.tags["claim"], &format!("{life}/{incarnation}/{left}"));
            }
        }
        prop_assert_eq!(nodes[0].members.hash(), nodes[1].members.hash());
    });
}
