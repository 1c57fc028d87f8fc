//! What happens in the cluster, told as data. Who is told, and on which thread, is the driver's business.

use std::{fmt, net::SocketAddr, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{NodeId, NodeInfo, SyncableState};

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// A node is there that was not: it is new, or it came back from the dead or after a leave.
    NodeJoin,
    /// A node said goodbye.
    NodeLeave,
    /// A node did not answer a probe and is suspected.
    NodeSuspect,
    /// A suspected node proved to be alive.
    NodeAlive,
    /// A node's death was confirmed.
    NodeDead,
    /// A node's address, zone or tags changed, or it restarted.
    NodeUpdate,
    /// Two live processes claim one id, or one key signed two different things.
    NodeConflict,
    /// This node's state covers what its peers held when it joined.
    Synced,
    /// A record of shared state was put or removed.
    StateChanged,
    /// A built-in type was switched off or on at this node.
    SyncSwitched,
    /// A record made its type's provider panic, and is kept from it until it is written anew.
    RecordQuarantined,
    /// A peer told a record that its writer did not sign, or signed by a certificate that no authority trusted here
    /// issued to it. Told of each peer once a minute at most.
    RecordForged,
    /// So many members died at once that this node takes itself to be cut off, and keeps their state.
    IsolationSuspected,
    /// This node's certificate ends soon, or has ended: told 30, 7 and 1 days before, and at the end. One that
    /// lives for less than 70 days is told of proportionally later: 3/7, 1/10 and 1/70 of its life before.
    IdentityExpiring,
    /// A new identity could not be taken over; the old one serves on.
    IdentityReloadFailed,
    /// A revocation list in force is past its date. It still counts, but may lack what was revoked since.
    RevocationListStale,
    /// This node serves.
    ClusterStarted,
    /// This node has stopped.
    ClusterStopped,
    /// This reader was too slow; so many events were left out.
    Lagged,
}

impl EventKind {
    /// The kind in kebab-case: `"node-join"`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeJoin => "node-join",
            Self::NodeLeave => "node-leave",
            Self::NodeSuspect => "node-suspect",
            Self::NodeAlive => "node-alive",
            Self::NodeDead => "node-dead",
            Self::NodeUpdate => "node-update",
            Self::NodeConflict => "node-conflict",
            Self::Synced => "synced",
            Self::StateChanged => "state-changed",
            Self::SyncSwitched => "sync-switched",
            Self::RecordQuarantined => "record-quarantined",
            Self::RecordForged => "record-forged",
            Self::IsolationSuspected => "isolation-suspected",
            Self::IdentityExpiring => "identity-expiring",
            Self::IdentityReloadFailed => "identity-reload-failed",
            Self::RevocationListStale => "revocation-list-stale",
            Self::ClusterStarted => "cluster-started",
            Self::ClusterStopped => "cluster-stopped",
            Self::Lagged => "lagged",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an event carries besides its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventData {
    /// Nothing.
    None,
    /// A member as it is now, and why its status changed. Of every membership event.
    Member {
        /// The member.
        info: Box<NodeInfo>,
        /// Why, in words: `"no answer to ping and 3 indirect pings, confirmed by 2"`.
        cause: String,
    },
    /// A record of [`EventKind::StateChanged`] or [`EventKind::RecordQuarantined`].
    State {
        /// The record; of a removal, the one that was removed.
        record: Box<SyncableState>,
        /// Whether it was removed or expired.
        removed: bool,
    },
    /// Where this node serves.
    Started {
        /// The address of its socket.
        address: SocketAddr,
    },
    /// Which type is shared from now on, or is not.
    Switched {
        /// The type's name.
        state_type: String,
        /// Whether this node shares it.
        on: bool,
    },
    /// How many peers this node's state covers.
    Synced {
        /// The number of peers.
        peers: usize,
    },
    /// How many of how many members were lost at once.
    Isolation {
        /// Members still believed alive, this node included.
        alive: usize,
        /// Members believed alive before.
        before: usize,
    },
    /// An explanation in words, of the identity events, of `NodeConflict` and of `RecordForged`.
    Reason(String),
    /// How many events were left out.
    Lagged {
        /// The number.
        missed: u64,
    },
}

/// Something that happened in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClusterEvent {
    /// What.
    pub kind: EventKind,
    /// To which node, where it concerns one.
    pub node_id: Option<NodeId>,
    /// When, by this node's wall clock.
    pub timestamp: SystemTime,
    /// The particulars.
    pub data: EventData,
}

impl ClusterEvent {
    pub(crate) const fn new(
        kind: EventKind,
        node_id: Option<NodeId>,
        timestamp: SystemTime,
        data: EventData,
    ) -> Self {
        Self { kind, node_id, timestamp, data }
    }
}

impl fmt::Display for ClusterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        if let Some(node_id) = &self.node_id {
            write!(f, " {node_id}")?;
        }
        match &self.data {
            EventData::None => Ok(()),
            EventData::Member { cause, info } => write!(f, " at {}: {cause}", info.address),
            EventData::State { record, removed } => {
                let what = if *removed { " removed" } else { "" };
                write!(f, " {}/{:?} version {}{what}", record.state_type, record.key, record.version)
            }
            EventData::Started { address } => write!(f, " at {address}"),
            EventData::Switched { state_type, on } => {
                write!(f, ": {state_type} is switched {}", if *on { "on" } else { "off" })
            }
            EventData::Synced { peers } => write!(f, " with {peers} peers"),
            EventData::Isolation { alive, before } => write!(f, ": {alive} of {before} members left"),
            EventData::Reason(reason) => write!(f, ": {reason}"),
            EventData::Lagged { missed } => write!(f, ": {missed} events left out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_kind_is_the_same_in_text_and_in_serde() {
        for kind in [
            EventKind::NodeJoin,
            EventKind::IdentityReloadFailed,
            EventKind::RevocationListStale,
            EventKind::ClusterStopped,
            EventKind::RecordQuarantined,
            EventKind::RecordForged,
            EventKind::Lagged,
        ] {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{:?}", kind.as_str()));
        }
    }
}
