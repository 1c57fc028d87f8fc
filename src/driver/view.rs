//! What readers of a cluster are shown: its status, where it serves, why a node is what it is. Data only.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{NodeId, NodeInfo, identity, proto::MemberExplanation};

/// Where a cluster's handle stands between `start` and `stop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// Nothing is open: before the first start, after a stop, and after the runtime went away.
    #[default]
    Stopped,
    /// `start` was called and looks for the seeds. The socket is open and peers are served.
    Starting,
    /// The node serves.
    Running,
    /// `stop` was called and spreads the leave.
    Stopping,
}

impl Status {
    /// `"stopped"`, `"starting"`, `"running"` or `"stopping"`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What [`Cluster::start`](crate::Cluster::start) has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Started {
    /// Under which id the node serves.
    pub node_id: NodeId,
    /// The address its socket is bound to; the port is the one the system picked if `bind-port` is 0.
    pub address: SocketAddr,
}

/// What [`Cluster::wait_synced`](crate::Cluster::wait_synced) waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Synced {
    /// The state of how many peers, as it was when this node joined, is covered.
    pub peers: usize,
}

/// Why a node has the status it has: see [`Cluster::explain`](crate::Cluster::explain).
///
/// `Display` gives it in a few lines for people.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The node as [`Cluster::all_nodes`](crate::Cluster::all_nodes) shows it: status, epoch, incarnation,
    /// when it was last heard.
    pub node: NodeInfo,
    /// Who accuses it and since when, when it was last heard, why its status changed.
    pub member: MemberExplanation,
    /// The connection to it, if one stands.
    pub connection: Option<ConnectionInfo>,
    /// How the last connection to it ended, if one did.
    pub last_close: Option<CloseInfo>,
    /// Why the last attempt to connect to it failed, if one did since the last connection.
    pub last_dial_error: Option<String>,
}

/// A connection to a peer, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// The peer's address.
    pub remote: SocketAddr,
    /// Whether this node dialled.
    pub dialled: bool,
    /// QUIC's own smoothed round-trip time.
    pub rtt: Duration,
    /// Packets sent since it stands.
    pub packets_sent: u64,
    /// Packets of these that were lost.
    pub packets_lost: u64,
    /// Bytes sent since it stands.
    pub bytes_sent: u64,
    /// Bytes received since it stands.
    pub bytes_received: u64,
    /// When the peer's certificate ends.
    pub certificate_end: SystemTime,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CloseInfo {
    /// The close code: 0 unspecified (a crash), 1 left, 0x12 no longer trusted …; 0x100 and more are TLS
    /// alerts.
    pub code: u64,
    /// The code's name.
    pub name: &'static str,
    /// The reason given, escaped, on one line.
    pub reason: String,
    /// Whether the peer closed it.
    pub by_peer: bool,
    /// When.
    pub at: SystemTime,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.node;
        write!(
            f,
            "{} at {} is {} (epoch {}, incarnation {})",
            node.node_id, node.address, node.status, node.epoch, node.incarnation
        )?;
        let member = &self.member;
        write!(f, "\n  so for {:.1?}: {}", member.since, member.cause)?;
        match member.last_heard {
            Some(ago) => write!(f, "\n  last heard {ago:.1?} ago")?,
            None => write!(f, "\n  never heard by this node")?,
        }
        if !member.accusers.is_empty() {
            let names: Vec<_> = member.accusers.iter().map(NodeId::as_str).collect();
            write!(f, "\n  accused by {}", names.join(", "))?;
        }
        if let Some(left) = member.suspicion_ends_in {
            write!(f, "; this node looks for itself in {left:.1?}")?;
        }
        match &self.connection {
            Some(link) => {
                let who = if link.dialled { "dialled" } else { "accepted" };
                write!(f, "\n  connected to {} ({who}), round trip {:?}", link.remote, link.rtt)?;
                write!(f, ", {} of {} packets lost", link.packets_lost, link.packets_sent)?;
                write!(f, ", certificate until {}", identity::written(link.certificate_end))?;
            }
            None => write!(f, "\n  not connected")?,
        }
        if let Some(close) = &self.last_close {
            let who = if close.by_peer { "the peer" } else { "this node" };
            let at = identity::written(close.at);
            write!(
                f,
                "\n  last closed at {at} by {who}: {} ({:#x}) {}",
                close.name, close.code, close.reason
            )?;
        }
        if let Some(error) = &self.last_dial_error {
            write!(f, "\n  last dial: {error}")?;
        }
        Ok(())
    }
}
