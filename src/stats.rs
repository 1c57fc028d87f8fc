//! `Stats`, gathered from the counters that each layer keeps for itself. Plain numbers; decides nothing.

use std::{collections::BTreeMap, time::SystemTime};

use serde::Serialize;

use crate::{Config, NetStats, NodeId, ProtoCounters, Status};

/// What a node has counted: see [`Cluster::stats`](crate::Cluster::stats). Serialises with serde.
///
/// Counters begin anew with each start; while the node does not run, they are zero.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Whether it runs.
    pub status: Status,
    /// Who is there.
    pub membership: MembershipStats,
    /// How state spreads.
    pub gossip: GossipStats,
    /// The configuration in force; an identity given by the program is left out.
    pub config: Config,
    /// Each provider, by the name of its type.
    pub providers: BTreeMap<String, ProviderStats>,
    /// This node's certificate, and the revocations it goes by.
    pub identity: IdentityStats,
    /// What the transport has done.
    pub net: NetStats,
    /// How often a subscriber's callback has panicked.
    pub subscriber_panics: u64,
}

/// Who is there, in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MembershipStats {
    /// This node.
    pub node_id: NodeId,
    /// Nodes believed alive, this one included.
    pub alive_count: usize,
    /// Nodes suspected of having died.
    pub suspected_count: usize,
    /// Nodes believed dead and not forgotten yet.
    pub dead_count: usize,
    /// Nodes that left and are not forgotten yet.
    pub left_count: usize,
}

/// This node's certificate and what it judges peers by, since the handle was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct IdentityStats {
    /// When the certificate chain ends; `None` if the node has none.
    pub not_after: Option<SystemTime>,
    /// Whole days until then: 0 on the last day, negative once it has ended.
    pub days_left: Option<i64>,
    /// How often watched files were looked at (`tls.watch`).
    pub looks: u64,
    /// Identities taken over while the handle lived, from files or by
    /// [`Cluster::reload_identity`](crate::Cluster::reload_identity).
    pub renewals: u64,
    /// Identities that could not be taken over.
    pub failed_renewals: u64,
    /// When the last one was taken over.
    pub last_renewal: Option<SystemTime>,
    /// The revocation lists in force, one an authority at most.
    pub revocation_lists: Vec<ListStats>,
}

/// A revocation list in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ListStats {
    /// Its number, in hexadecimal.
    pub number: String,
    /// How many certificates are on it.
    pub entries: usize,
    /// When the next list was to come, if it says so.
    pub next_update: Option<SystemTime>,
    /// Whether that is past: the list still counts, but may lack what was revoked since.
    pub stale: bool,
}

impl ListStats {
    pub(crate) fn new(number: String, entries: usize, next_update: Option<SystemTime>) -> Self {
        Self { number, entries, next_update, stale: false }
    }

    /// As it is at `now`.
    pub(crate) fn at(&self, now: SystemTime) -> Self {
        Self { stale: self.next_update.is_some_and(|next| next < now), ..self.clone() }
    }
}

/// How state spreads, in numbers.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GossipStats {
    /// Whether the node runs.
    pub running: bool,
    /// How many providers are registered.
    pub provider_count: usize,
    /// The configuration in force.
    pub config: Config,
    /// What the protocol has counted.
    #[serde(flatten)]
    pub counters: ProtoCounters,
}

/// What one provider was asked, and what it answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ProviderStats {
    /// Calls of any of its functions.
    pub calls: u64,
    /// Records it took over.
    pub applied: u64,
    /// Records in conflict with something local, and settled.
    pub conflicts: u64,
    /// Records it refused, and records it offered that could not be taken.
    pub rejected: u64,
    /// Calls that panicked.
    pub panics: u64,
    /// Records that made it panic, and were set aside until they are written anew.
    #[serde(default)]
    pub quarantined: u64,
    /// Records that wait for it now.
    pub pending: usize,
}
