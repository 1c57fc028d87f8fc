//! Every type that travels: what is encoded comes out the same, and damaged bytes give an error or a value
//! that is no larger than they are. Knows no rule of the protocol.

use std::{fmt::Debug, net::SocketAddr};

use bytes::Bytes;
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    codec::{self, Packet},
    hello::Introduction,
    message::*,
};
use crate::NodeId;

/// Numbers at the borders of MessagePack's widths, and any other.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(127),
        Just(128),
        Just(255),
        Just(65_536),
        Just(1 << 32),
        Just(u64::MAX),
        any::<u64>()
    ]
}

fn node() -> impl Strategy<Value = NodeId> {
    "[a-zA-Z0-9_-]{1,40}".prop_map(|name| NodeId::new(name).unwrap())
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![9 => prop::collection::vec(any::<u8>(), 0..40), 1 => prop::collection::vec(any::<u8>(), 250..300)]
        .prop_map(Bytes::from)
}

fn ranges() -> impl Strategy<Value = WireRanges> {
    prop::collection::vec((number(), number()), 0..5)
}

fn some<T: Debug + Clone>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::of(of)
}

fn many<T: Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(of, 0..4)
}

fn type_name() -> impl Strategy<Value = TypeName> {
    (".{0,20}", any::<bool>()).prop_map(|(name, per_node)| TypeName { name, per_node })
}

fn digests() -> impl Strategy<Value = Digests> {
    (number(), number(), any::<bool>()).prop_map(|(state, members, settled)| Digests {
        state,
        members,
        settled,
    })
}

fn address() -> impl Strategy<Value = SocketAddr> {
    any::<SocketAddr>().prop_map(|address| SocketAddr::new(address.ip(), address.port()))
}

fn claim_body() -> impl Strategy<Value = ClaimBody> {
    let tags = prop::collection::btree_map(".{0,9}", ".{0,9}", 0..4);
    (node(), number(), number(), any::<bool>(), address(), some(".{0,9}"), tags).prop_map(
        |(node_id, epoch, incarnation, left, address, zone, tags)| ClaimBody {
            node_id,
            epoch,
            incarnation,
            left,
            address,
            zone,
            tags,
        },
    )
}

fn signed() -> impl Strategy<Value = SignedClaim> {
    (bytes(), bytes(), number(), some(bytes())).prop_map(|(body, signature, chain_hash, chain)| SignedClaim {
        body,
        signature,
        chain_hash,
        chain,
    })
}

fn accusation() -> impl Strategy<Value = Accusation> {
    (node(), number(), number(), any::<bool>(), node()).prop_map(
        |(node_id, epoch, incarnation, dead, accuser)| Accusation {
            node_id,
            epoch,
            incarnation,
            dead,
            accuser,
        },
    )
}

fn head() -> impl Strategy<Value = SpreadHead> {
    let span = (some(".{0,9}"), number(), number()).prop_map(|(zone, lo, hi)| Span { zone, lo, hi });
    (number(), node(), number(), number(), span).prop_map(|(handoff, origin, epoch, number, span)| {
        SpreadHead { handoff, origin, epoch, number, span }
    })
}

fn dots() -> impl Strategy<Value = Vec<Dots>> {
    many((type_name(), node(), number(), ranges()).prop_map(|(state_type, source, epoch, ranges)| Dots {
        state_type,
        source,
        epoch,
        ranges,
    }))
}

fn record() -> impl Strategy<Value = WireRecord> {
    (number(), ".{0,20}", number(), number(), any::<bool>(), some(number()), bytes(), bytes()).prop_map(
        |(seq, key, version, timestamp_ms, deleted, ttl_ms, value, proof)| WireRecord {
            seq,
            key,
            version,
            timestamp_ms,
            deleted,
            ttl_ms,
            value,
            proof,
        },
    )
}

fn batch() -> impl Strategy<Value = RecordBatch> {
    (type_name(), node(), number(), many(record()), ranges()).prop_map(
        |(state_type, source, epoch, records, carried)| RecordBatch {
            state_type,
            source,
            epoch,
            records,
            carried,
        },
    )
}

fn rows() -> impl Strategy<Value = Vec<MemberRow>> {
    let standing = prop::sample::select(vec![
        Standing::Alive,
        Standing::Suspect,
        Standing::Dead,
        Standing::Left,
        Standing::Closed,
    ]);
    many((node(), number(), number(), standing, number()).prop_map(
        |(node_id, epoch, incarnation, standing, since_ms)| MemberRow {
            node_id,
            epoch,
            incarnation,
            standing,
            since_ms,
        },
    ))
}

fn wants() -> impl Strategy<Value = Wants> {
    let types = (many(type_name()), many(number()), many(type_name()));
    (types, dots(), dots(), some(rows()), any::<bool>()).prop_map(
        |((types, digests, compared), held, vectors, members, last)| Wants {
            types,
            digests,
            compared,
            held,
            vectors,
            members,
            last,
        },
    )
}

fn introduction() -> impl Strategy<Value = Introduction> {
    let numbers = (number(), number(), number());
    (any::<(u16, u16)>(), ".{0,9}", node(), numbers, some(".{0,9}"), some(address()), bytes()).prop_map(
        |(versions, cluster, node_id, (epoch, incarnation, your_epoch), zone, listen, core)| Introduction {
            versions,
            cluster,
            node_id,
            epoch,
            incarnation,
            zone,
            listen,
            your_epoch,
            core,
        },
    )
}

/// How a peer may spoil bytes.
#[derive(Clone, Debug)]
struct Damage {
    cut: Option<prop::sample::Index>,
    flips: Vec<(prop::sample::Index, u8)>,
    /// Bytes put in somewhere: headers that claim more than there is, or anything.
    put: Option<(prop::sample::Index, Vec<u8>)>,
    tail: Vec<u8>,
}

fn damage() -> impl Strategy<Value = Damage> {
    let claims: Vec<Vec<u8>> = [
        &b"\xdd\xff\xff\xff\xff"[..],
        b"\xdf\x7f\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xf0",
        b"\xdc\xff\xff",
        b"\xc9\x7f\xff\xff\xff\x01",
    ]
    .iter()
    .map(|claim| claim.to_vec())
    .collect();
    let put = prop_oneof![prop::sample::select(claims), prop::collection::vec(any::<u8>(), 1..6)];
    let flip = (any::<prop::sample::Index>(), any::<u8>());
    (
        prop::option::weighted(0.3, any::<prop::sample::Index>()),
        prop::collection::vec(flip, 0..4),
        prop::option::weighted(0.3, (any::<prop::sample::Index>(), put)),
        prop::collection::vec(any::<u8>(), 0..3),
    )
        .prop_map(|(cut, flips, put, tail)| Damage { cut, flips, put, tail })
}

impl Damage {
    fn of(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        if let Some(cut) = &self.cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        for (place, value) in &self.flips {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = *value;
            }
        }
        if let Some((place, put)) = &self.put {
            let place = place.index(bytes.len() + 1);
            bytes.splice(place..place, put.iter().copied());
        }
        bytes.extend(&self.tail);
        bytes
    }
}

/// Whatever decodes is no larger than what it was decoded from, and goes round from there on.
fn check_decoded<T>(bytes: &[u8]) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    if let Ok(value) = codec::decode::<T>(bytes) {
        let again = codec::encode(&value);
        // A struct that came as a map may lack its optional fields: one byte each.
        prop_assert!(again.len() <= bytes.len() + 3, "{} bytes out of {}", again.len(), bytes.len());
        prop_assert_eq!(codec::decode::<T>(&again), Ok(value));
    }
    Ok(())
}

fn check<T>(of: impl Strategy<Value = T>)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    proptest!(|(value in of, damages in prop::collection::vec(damage(), 16))| {
        let good = codec::encode(&value);
        prop_assert_eq!(&codec::decode::<T>(&good).expect("it decodes"), &value);
        for cut in 0..good.len() {
            prop_assert!(codec::decode::<T>(&good[..cut]).is_err(), "cut at {} of {}", cut, good.len());
        }
        prop_assert!(codec::decode::<T>(&[&good[..], b"\0"].concat()).is_err());
        for damage in damages {
            check_decoded::<T>(&damage.of(&good))?;
        }
    });
}

#[test]
fn every_message_comes_out_as_it_went_in_and_a_damaged_one_is_refused_or_small() {
    check((number(), digests()).prop_map(|(seq, digests)| Ping { seq, digests }));
    check((number(), digests()).prop_map(|(seq, digests)| Ack { seq, digests }));
    check((number(), node(), any::<u32>()).prop_map(|(seq, target, nack_ms)| PingReq {
        seq,
        target,
        nack_ms,
    }));
    check(number().prop_map(|seq| Nack { seq }));
    check(number().prop_map(|seq| Reached { seq }));
    check(node().prop_map(|node_id| NeedClaim { node_id }));
    check(number().prop_map(|ticket| Held { ticket }));
    check(prop::collection::vec(number(), 0..9).prop_map(|handoffs| Took { handoffs }));
    check((node(), number(), number()).prop_map(|(node_id, epoch, incarnation)| Solicit {
        node_id,
        epoch,
        incarnation,
    }));
    check((node(), number(), number()).prop_map(|(node_id, epoch, incarnation)| Forget {
        node_id,
        epoch,
        incarnation,
    }));
    check((number(), type_name(), node(), number(), number()).prop_map(
        |(ticket, state_type, source, epoch, seq)| AskHeld { ticket, state_type, source, epoch, seq },
    ));
    check(head());
    check(accusation());
    let list_head = (number(), bytes()).prop_map(|(issuer, age)| ListHead { issuer, age });
    check(many(list_head).prop_map(|heads| ListHeads { heads }));
    check(number().prop_map(|issuer| NeedList { issuer }));
    check((number(), bytes()).prop_map(|(issuer, list)| TheList { issuer, list }));
}

#[test]
fn every_large_message_comes_out_as_it_went_in_and_a_damaged_one_is_refused_or_small() {
    check(claim_body());
    check(signed());
    check(batch());
    check(dots().prop_map(|dots| DotList { dots }));
    check(wants());
    check((dots(), many(number())).prop_map(|(vectors, floors)| Covers { vectors, floors }));
    check(dots().prop_map(|dots| Bygone { dots }));
    let types = many((type_name(), number()));
    check(
        (number(), number(), types, many(type_name())).prop_map(|(clock, members, types, disabled)| Open {
            clock,
            members,
            types,
            disabled,
        }),
    );
    let wanted = prop_oneof![
        Just(Signed::None),
        Just(Signed::All),
        prop::collection::btree_set(".{0,9}", 0..4).prop_map(Signed::Types),
    ];
    check(
        (signed(), number(), many(type_name()), wanted)
            .prop_map(|(claim, clock, disabled, signed)| CoreHello { claim, clock, disabled, signed }),
    );
    let lease = some((number(), bytes()).prop_map(|(ends_ms, value)| Lease { ends_ms, value }));
    check((number(), lease, bytes()).prop_map(|(chain_hash, lease, signature)| Proof {
        chain_hash,
        lease,
        signature,
    }));
    check((node(), number()).prop_map(|(node_id, chain_hash)| NeedChain { node_id, chain_hash }));
    check((node(), bytes()).prop_map(|(node_id, chain)| Chain { node_id, chain }));
    check(introduction());
}

#[test]
fn a_packet_cut_within_a_part_is_refused_and_the_parts_of_a_damaged_one_are_within_it() {
    let part = (any::<u8>(), prop_oneof![Just(0), Just(127), Just(128), 0..20_usize, Just(16_384)]);
    proptest!(|(
        sizes in prop::collection::vec(part, 0..6),
        damages in prop::collection::vec(damage(), 16),
    )| {
        let mut packet = Packet::new();
        for (kind, len) in &sizes {
            packet.push_raw(*kind, &[&vec![7; *len]]);
        }
        let good = packet.into_bytes();
        let parts = codec::parts(&good).expect("it is whole");
        prop_assert_eq!(parts.iter().map(|(kind, body)| (*kind, body.len())).collect::<Vec<_>>(), sizes);
        let mut end = 1;
        for (_, body) in &parts {
            let head = if body.len() < 128 { 2 } else if body.len() < 16_384 { 3 } else { 4 };
            prop_assert!(codec::parts(&good.slice(..=end)).is_err(), "cut after its kind");
            end += head + body.len();
            prop_assert!(codec::parts(&good.slice(..end)).is_ok());
            prop_assert!(codec::parts(&good.slice(..end - 1)).is_err(), "cut before its end");
        }
        prop_assert_eq!(end, good.len());
        for damage in damages {
            let bytes = Bytes::from(damage.of(&good));
            let Ok(parts) = codec::parts(&bytes) else { continue };
            // Each part has a kind and a length besides its body, and nothing lies between them.
            let (mut rest, mut told) = (Packet::new(), 0);
            for (kind, body) in &parts {
                told += 2 + body.len();
                rest.push_raw(*kind, &[body]);
            }
            prop_assert!(told < bytes.len());
            prop_assert!(rest.len() <= bytes.len());
            prop_assert_eq!(codec::parts(&rest.into_bytes()), Ok(parts));
        }
    });
}
