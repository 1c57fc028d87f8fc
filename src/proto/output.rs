//! What the core wants done, as values. The driver performs them in order; the simulator does so on virtual
//! time.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::{
    ClusterEvent, NodeId, Spread, StateChange, SyncableState,
    proto::lists::List,
    wire::{CloseCode, StreamId},
};

/// Something to be done outside the core.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Output {
    /// Send a message: as a datagram if it fits the path, else on the peer's message stream. May be lost. To
    /// a peer that is being dialled it waits, within bounds, until the connection stands.
    Send { to: NodeId, bytes: Bytes },
    /// Have a connection to the peer. Ends in `handle_connected` or `handle_dial_failed`; nothing happens if
    /// one stands or is being dialled.
    Dial { to: NodeId, address: SocketAddr },
    /// Open a bidirectional stream for a sync. Follows only for connected peers.
    OpenStream { to: NodeId, stream: StreamId },
    /// Send one frame. Once it was handed to the connection, `StreamInput::Sent` comes back: the core never
    /// has more than a few on their way.
    Frame { stream: StreamId, bytes: Bytes },
    /// No more frames from this side.
    Finish { stream: StreamId },
    /// Give the stream up in both directions; nothing more is heard of it.
    Reset { stream: StreamId },
    /// Close the connection to a peer.
    Close { peer: NodeId, code: CloseCode, reason: &'static str },
    /// Tell the subscribers.
    Event(ClusterEvent),
    /// A remote record was accepted: hand it to the type's provider.
    Apply(SyncableState),
    /// What counts for a reader has changed, by whoever: tell those who watch the type.
    Change(StateChange),
    /// Tell the providers that a node is dead.
    NodeFailed(NodeId),
    /// Ask the providers whether they hold something that nobody broadcast; a push-pull is near.
    AskProviders,
    /// A `broadcast_confirmed` has ended, with this.
    Confirmed { ticket: u64, spread: Spread },
    /// This node's state covers what so many peers held when it joined. Once in a core's life.
    Synced { peers: usize },
    /// A revocation list that this node asked a peer for, and the age that was promised: judge it; if it is
    /// news, put it in force and hand all that are to `take_lists`. Then say `list_judged`.
    List { from: NodeId, list: List },
    /// The leave has been acknowledged, or nobody is left who could: connections may be closed.
    LeaveSpread,
}

/// What happens to a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamInput {
    /// The peer opened it.
    Opened,
    /// A frame arrived whole.
    Frame(Bytes),
    /// The oldest frame still on its way was handed to the connection: there is room for another.
    Sent,
    /// The peer will send no more frames.
    Finished,
    /// The stream is gone: reset, refused, timed out, or its connection closed. Nothing follows.
    Lost,
}
