//! What two peers say before they trust one another: `Hello` by the dialler, `Welcome` by the one that
//! accepts. The only messages that `net` decodes.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::NodeId;

/// The wire versions this build speaks.
pub(crate) const VERSION_MIN: u16 = 1;
/// The newest wire version this build speaks.
pub(crate) const VERSION_MAX: u16 = 1;

/// What a node says of itself, in a hello and in a welcome alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Introduction {
    /// The oldest and newest wire version it speaks.
    pub(crate) versions: (u16, u16),
    pub(crate) cluster: String,
    pub(crate) node_id: NodeId,
    /// Which life of the node this is.
    pub(crate) epoch: u64,
    pub(crate) incarnation: u64,
    pub(crate) zone: Option<String>,
    /// Where others reach it, if that is not where it dials from.
    pub(crate) listen: Option<SocketAddr>,
    /// The greatest epoch of the *other* node that this one remembers, 0 for none: a node that lost its
    /// memory or its clock learns here that it must go beyond it.
    pub(crate) your_epoch: u64,
    /// The core's own part, opaque here: its signed claim, its clock, which types it keeps.
    pub(crate) core: Bytes,
}
