//! What travels, encoded by hand as the documentation of the wire says and not through the library: a bad
//! peer must be able to say what the library never would.

use std::{collections::BTreeMap, net::SocketAddr};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use siphasher::sip::SipHasher13;

pub(crate) const HELLO: u8 = 0;
pub(crate) const MESSAGES: u8 = 1;
pub(crate) const EXCHANGE: u8 = 2;

pub(crate) const PING: u8 = 1;
pub(crate) const ACK: u8 = 2;
pub(crate) const PING_REQ: u8 = 3;
pub(crate) const NACK: u8 = 4;
pub(crate) const REACHED: u8 = 5;
pub(crate) const CLAIM: u8 = 6;
pub(crate) const NEED_CLAIM: u8 = 7;
pub(crate) const ACCUSATION: u8 = 8;
pub(crate) const SOLICIT: u8 = 9;
pub(crate) const SPREAD: u8 = 10;
pub(crate) const TOOK: u8 = 11;
pub(crate) const NEWS: u8 = 12;
pub(crate) const PULL: u8 = 13;
pub(crate) const RECORDS: u8 = 14;
pub(crate) const FORGET: u8 = 15;
pub(crate) const ASK_HELD: u8 = 16;
pub(crate) const HELD: u8 = 17;
pub(crate) const GONE: u8 = 18;
pub(crate) const OPEN: u8 = 32;
pub(crate) const WANTS: u8 = 33;
pub(crate) const COVERS: u8 = 34;
pub(crate) const DONE: u8 = 35;

/// A hello or a welcome.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Introduction {
    pub(crate) versions: (u16, u16),
    pub(crate) cluster: String,
    pub(crate) node_id: String,
    pub(crate) epoch: u64,
    pub(crate) incarnation: u64,
    pub(crate) zone: Option<String>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) your_epoch: u64,
    pub(crate) core: Bytes,
}

/// The core's part of it: the claim, the clock, the types that are switched off.
pub(crate) type CoreHello = (SignedClaim, u64, Vec<(String, bool)>);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SignedClaim {
    pub(crate) body: Bytes,
    pub(crate) signature: Bytes,
    pub(crate) chain_hash: u64,
    pub(crate) chain: Option<Bytes>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ClaimBody {
    pub(crate) node_id: String,
    pub(crate) epoch: u64,
    pub(crate) incarnation: u64,
    pub(crate) left: bool,
    pub(crate) address: SocketAddr,
    pub(crate) zone: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// Of the state, of the members, and whether neither has changed for a while.
pub(crate) type Digests = (u64, u64, bool);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) seq: u64,
    pub(crate) key: String,
    pub(crate) version: u64,
    pub(crate) timestamp_ms: u64,
    pub(crate) deleted: bool,
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) value: Bytes,
}

/// Records of one type, source and epoch, and the dots that they carry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) state_type: (String, bool),
    pub(crate) source: String,
    pub(crate) epoch: u64,
    pub(crate) records: Vec<Record>,
    pub(crate) carried: Vec<(u64, u64)>,
}

/// Type, source, epoch, ranges.
pub(crate) type Dots = ((String, bool), String, u64, Vec<(u64, u64)>);

impl Record {
    /// A record as an honest node writes it, of a small value.
    pub(crate) fn new(seq: u64, key: &str, version: u64) -> Self {
        Self {
            seq,
            key: key.into(),
            version,
            timestamp_ms: 1_700_000_000_000,
            deleted: false,
            ttl_ms: None,
            value: encode(&"bad").into(),
        }
    }
}

impl Batch {
    /// One of the shared type `routes`.
    pub(crate) fn new(source: &str, epoch: u64, records: Vec<Record>) -> Self {
        Self { state_type: ("routes".into(), false), source: source.into(), epoch, records, carried: vec![] }
    }
}

pub(crate) fn encode<T: Serialize>(body: &T) -> Vec<u8> {
    rmp_serde::to_vec(body).unwrap()
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    rmp_serde::from_slice(bytes).unwrap()
}

/// The version byte, and parts.
pub(crate) fn packet(parts: &[Vec<u8>]) -> Vec<u8> {
    [&[1], parts.concat().as_slice()].concat()
}

pub(crate) fn part<T: Serialize>(kind: u8, body: &T) -> Vec<u8> {
    raw_part(kind, &encode(body))
}

pub(crate) fn raw_part(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], varint(body.len()).as_slice(), body].concat()
}

/// A packet of one part.
pub(crate) fn message<T: Serialize>(kind: u8, body: &T) -> Vec<u8> {
    packet(&[part(kind, body)])
}

pub(crate) fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
    bytes
}

/// A hand-off for the whole ring, of a batch that `origin` is said to have begun.
pub(crate) fn spread(handoff: u64, origin: &str, epoch: u64, parts: &[Vec<u8>]) -> Vec<u8> {
    let span = (None::<String>, 0_u64, u64::MAX);
    let head = encode(&(handoff, origin, epoch, handoff, span));
    let body = [varint(head.len()), head, parts.concat()].concat();
    packet(&[raw_part(SPREAD, &body)])
}

/// Kinds and bodies of what came. Panics on what the library should never send.
pub(crate) fn parts(packet: &[u8]) -> Vec<(u8, Vec<u8>)> {
    assert_eq!(packet[0], 1, "the version byte");
    let mut rest = &packet[1..];
    let mut parts = Vec::new();
    while let Some((kind, after)) = rest.split_first() {
        let width = after.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
        let len = after[..width].iter().rev().fold(0, |len, byte| len << 7 | usize::from(byte & 0x7f));
        parts.push((*kind, after[width..width + len].to_vec()));
        rest = &after[width + len..];
    }
    parts
}

/// A frame: its length in four bytes, then it.
pub(crate) fn frame(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

pub(crate) fn chain_hash(chain: &[u8]) -> u64 {
    SipHasher13::new_with_keys(0, 0).hash(chain)
}

/// The greatest version that is accepted at a time.
pub(crate) fn version_bound(wall_ms: u64) -> u64 {
    (wall_ms - 1_577_836_800_000 + 24 * 3_600 * 1_000) << 20
}
