//! What trusted peers say to one another: the bodies of a packet's parts and of a push-pull's frames. What
//! travels is not the public types, so either can change without the other. Data only.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{NodeId, StateType};

/// The kinds of parts. Numbers are on the wire and never change.
pub(crate) mod kind {
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
    pub(crate) const NEED_CHAIN: u8 = 19;
    pub(crate) const CHAIN: u8 = 20;

    // Frames of a push-pull stream.
    pub(crate) const OPEN: u8 = 32;
    pub(crate) const WANTS: u8 = 33;
    pub(crate) const COVERS: u8 = 34;
    pub(crate) const DONE: u8 = 35;
    pub(crate) const BYGONE: u8 = 36;
    pub(crate) const ANEW: u8 = 37;

    // Revocation lists. Added later: who does not know them skips them; 128 stays free, for tests of that.
    pub(crate) const LISTS: u8 = 129;
    pub(crate) const NEED_LIST: u8 = 130;
    pub(crate) const LIST: u8 = 131;
}

/// Hashes by which two nodes see whether they hold the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Digests {
    /// Of the records of the types that both keep.
    pub(crate) state: u64,
    /// Of the member table.
    pub(crate) members: u64,
    /// Whether neither has changed for a while: only then does a difference mean that something was missed.
    pub(crate) settled: bool,
}

/// Are you there?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ping {
    pub(crate) seq: u64,
    pub(crate) digests: Digests,
}

/// I am.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ack {
    pub(crate) seq: u64,
    pub(crate) digests: Digests,
}

/// Ask it for me (SWIM §3.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PingReq {
    pub(crate) seq: u64,
    pub(crate) target: NodeId,
    /// After how many milliseconds without an answer the asker wants to hear that the helper is there.
    pub(crate) nack_ms: u32,
}

/// It has not answered me yet, but I am here (Lifeguard).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Nack {
    pub(crate) seq: u64,
}

/// It answered me.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reached {
    pub(crate) seq: u64,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClaimBody {
    pub(crate) node_id: NodeId,
    pub(crate) epoch: u64,
    pub(crate) incarnation: u64,
    /// It says goodbye.
    pub(crate) left: bool,
    pub(crate) address: SocketAddr,
    pub(crate) zone: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// A claim as it travels: relayed as it is, so that its signature holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignedClaim {
    /// A `ClaimBody`, encoded by who signed it.
    pub(crate) body: Bytes,
    pub(crate) signature: Bytes,
    /// Hash of the certificate chain whose key signed.
    pub(crate) chain_hash: u64,
    /// The chain itself; left out for who is thought to have it.
    pub(crate) chain: Option<Bytes>,
}

/// Tell me that claim with its certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NeedClaim {
    pub(crate) node_id: NodeId,
}

/// What one node says against another: a hint, never a fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accusation {
    pub(crate) node_id: NodeId,
    pub(crate) epoch: u64,
    pub(crate) incarnation: u64,
    /// Whether the accuser has convicted it.
    pub(crate) dead: bool,
    pub(crate) accuser: NodeId,
}

/// Ping it now, and say what you find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Solicit {
    pub(crate) node_id: NodeId,
    pub(crate) epoch: u64,
    pub(crate) incarnation: u64,
}

/// A part of the ring: the nodes of one zone whose hash lies in `lo..=hi`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) zone: Option<String>,
    pub(crate) lo: u64,
    pub(crate) hi: u64,
}

/// The head of a hand-off; the parts to be spread follow it as they came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpreadHead {
    /// The sender's number of this hand-off, for its acknowledgement.
    pub(crate) handoff: u64,
    pub(crate) origin: NodeId,
    pub(crate) epoch: u64,
    /// The origin's number of this batch.
    pub(crate) number: u64,
    pub(crate) span: Span,
}

/// Hand-offs taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Took {
    pub(crate) handoffs: Vec<u64>,
}

/// A state type as it travels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct TypeName {
    pub(crate) name: String,
    pub(crate) per_node: bool,
}

impl From<&StateType> for TypeName {
    fn from(state_type: &StateType) -> Self {
        Self { name: state_type.as_str().into(), per_node: state_type.is_per_node() }
    }
}

impl From<&TypeName> for StateType {
    fn from(name: &TypeName) -> Self {
        if name.per_node { Self::per_node(name.name.as_str()) } else { Self::shared(name.name.as_str()) }
    }
}

/// Sequence numbers as ascending, disjoint, inclusive ranges.
pub(crate) type WireRanges = Vec<(u64, u64)>;

/// Some dots of one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dots {
    pub(crate) state_type: TypeName,
    pub(crate) source: NodeId,
    pub(crate) epoch: u64,
    pub(crate) ranges: WireRanges,
}

/// What has changed in a node's vector since it last told; and what another lacks of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DotList {
    pub(crate) dots: Vec<Dots>,
}

/// One record, without what its batch says for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireRecord {
    pub(crate) seq: u64,
    pub(crate) key: String,
    pub(crate) version: u64,
    pub(crate) timestamp_ms: u64,
    pub(crate) deleted: bool,
    /// What is left of its time to live.
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) value: Bytes,
    /// A `Proof`, encoded by who signed it. Not there in a record that is not signed, which costs no byte.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub(crate) proof: Bytes,
}

/// Its writer's signature over a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof {
    /// Hash of the certificate chain whose key signed.
    pub(crate) chain_hash: u64,
    /// Of a record that ends by itself.
    pub(crate) lease: Option<Lease>,
    pub(crate) signature: Bytes,
}

/// What is signed of a record that ends by itself: so it can be proved when its value is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// When it ends, by its writer's clock.
    pub(crate) ends_ms: u64,
    /// The hash of its value.
    pub(crate) value: Bytes,
}

/// Send me the certificates by which that node signed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct NeedChain {
    pub(crate) node_id: NodeId,
    pub(crate) chain_hash: u64,
}

/// Here they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chain {
    pub(crate) node_id: NodeId,
    pub(crate) chain: Bytes,
}

/// Of which types a node signs its records, and takes others' only signed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Signed {
    #[default]
    #[serde(rename = "n")]
    None,
    #[serde(rename = "a")]
    All,
    #[serde(rename = "t")]
    Types(BTreeSet<String>),
}

impl Signed {
    pub(crate) fn covers(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Types(types) => types.contains(name),
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Records of one type, source and epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordBatch {
    pub(crate) state_type: TypeName,
    pub(crate) source: NodeId,
    pub(crate) epoch: u64,
    pub(crate) records: Vec<WireRecord>,
    /// Dots besides the records' own that were superseded by records of this batch.
    pub(crate) carried: WireRanges,
}

/// Remove a dead or left node from the table until it proves itself again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forget {
    pub(crate) node_id: NodeId,
    pub(crate) epoch: u64,
    pub(crate) incarnation: u64,
}

/// Do you hold this dot?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AskHeld {
    pub(crate) ticket: u64,
    pub(crate) state_type: TypeName,
    pub(crate) source: NodeId,
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
}

/// I do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) ticket: u64,
}

/// Which revocation list of an issuer a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListHead {
    /// A hash of the authority's name and key.
    pub(crate) issuer: u64,
    /// Its number and date, so that the newer of two is the greater, compared byte by byte.
    pub(crate) age: Bytes,
}

/// I have these revocation lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListHeads {
    pub(crate) heads: Vec<ListHead>,
}

/// Send me yours of that issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NeedList {
    pub(crate) issuer: u64,
}

/// Here it is, as its authority signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TheList {
    pub(crate) issuer: u64,
    pub(crate) list: Bytes,
}

/// The core's part of a hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CoreHello {
    pub(crate) claim: SignedClaim,
    /// The greatest version seen.
    pub(crate) clock: u64,
    /// Types this node does not keep.
    pub(crate) disabled: Vec<TypeName>,
    /// Of which types it wants records signed.
    #[serde(default, skip_serializing_if = "Signed::is_none")]
    pub(crate) signed: Signed,
}

/// The first frame of a push-pull, from both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Open {
    pub(crate) clock: u64,
    pub(crate) members: u64,
    pub(crate) types: Vec<(TypeName, u64)>,
    /// Types this node does not keep, which may have changed since the hello.
    pub(crate) disabled: Vec<TypeName>,
}

/// A member as the teller sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberRow {
    pub(crate) node_id: NodeId,
    pub(crate) epoch: u64,
    pub(crate) incarnation: u64,
    pub(crate) standing: Standing,
    /// For how long it has been dead or gone.
    pub(crate) since_ms: u64,
}

/// A member's standing as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Standing {
    #[serde(rename = "a")]
    Alive,
    #[serde(rename = "s")]
    Suspect,
    #[serde(rename = "d")]
    Dead,
    /// It has signed a goodbye.
    #[serde(rename = "l")]
    Left,
    /// It closed its connection with the code left; no goodbye has arrived.
    #[serde(rename = "c")]
    Closed,
}

impl Standing {
    /// Dead, or gone by nobody's signature: it may be back without having to say anything new.
    pub(crate) fn is_gone_unsigned(self) -> bool {
        matches!(self, Self::Dead | Self::Closed)
    }
}

/// What the sender knows, so that the other can send the rest. A large one comes in several frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wants {
    /// The types that differ.
    pub(crate) types: Vec<TypeName>,
    /// The digest of each of them, of the moment of the vectors.
    pub(crate) digests: Vec<u64>,
    /// Types whose digests have differed though the vectors were equal, and all dots held of them: what else is
    /// held there is sent anew.
    pub(crate) compared: Vec<TypeName>,
    pub(crate) held: Vec<Dots>,
    /// The whole vector of each of them.
    pub(crate) vectors: Vec<Dots>,
    /// The whole member table, if it differs.
    pub(crate) members: Option<Vec<MemberRow>>,
    /// Whether this is the last frame of it.
    pub(crate) last: bool,
}

/// The vector of a type, whose whole delta has been sent: said last, or two replicas with equal vectors could
/// differ for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Covers {
    pub(crate) vectors: Vec<Dots>,
    /// For each of them, up to which dot tombstones may be gone where the sender learnt of them.
    pub(crate) floors: Vec<u64>,
}

/// Dots that both know and of which the sender holds nothing, told to who may have missed why: a tombstone that was
/// collected since. They ascend, within a type, by source, epoch and dot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bygone {
    pub(crate) dots: Vec<Dots>,
}
