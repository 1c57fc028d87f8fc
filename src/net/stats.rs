//! What the transport counts: plain numbers that only grow. Counts, never decides.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// What the transport has done since the node started.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        #[non_exhaustive]
        pub struct NetStats {
            $($(#[$doc])+ pub $name: u64,)+
            /// Connections refused by this node or by the peer before they were admitted, by cause: a close
            /// code's name (`duplicate-id`) or a TLS alert's (`unknown_ca`).
            pub refused: BTreeMap<&'static str, u64>,
            /// Connections lost after they were admitted, by cause.
            pub closed: BTreeMap<&'static str, u64>,
        }

        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)+
            refused: Mutex<BTreeMap<&'static str, u64>>,
            closed: Mutex<BTreeMap<&'static str, u64>>,
        }

        impl Counters {
            pub(crate) fn read(&self) -> NetStats {
                NetStats {
                    $($name: self.$name.0.load(Relaxed),)+
                    refused: self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
                    closed: self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone(),
                }
            }
        }
    };
}

counters! {
    /// Handshakes begun by peers, as far as they were looked at.
    handshakes_seen,
    /// Peers sent away to prove their address first (a QUIC Retry).
    handshakes_retried,
    /// Handshakes ignored because too many were under way or came from one address.
    handshakes_ignored,
    /// Connections admitted that peers had dialled.
    accepted,
    /// Connections this node began to dial.
    dials,
    /// Connections admitted that this node had dialled.
    dials_admitted,
    /// Dials that came to nothing.
    dials_failed,
    /// Second connections to one peer that were closed in favour of the other.
    duplicates,
    /// Connections closed because there were more than `max-connections`.
    evicted,
    /// Messages sent as datagrams.
    datagrams_sent,
    /// Bytes of them.
    datagram_bytes_sent,
    /// Messages received as datagrams.
    datagrams_received,
    /// Bytes of them.
    datagram_bytes_received,
    /// Datagrams of a peer over its budget, never read; counted when its connection ends.
    datagrams_over_budget,
    /// Times a peer was not read for a while, since it was over a budget.
    reads_paused,
    /// Messages that went on the stream, since so many datagrams would have been over the peer's budget.
    datagrams_held_back,
    /// Times the datagram buffer was full; the message went on the stream, or was dropped.
    datagram_buffer_full,
    /// Messages sent on a peer's message stream.
    stream_messages_sent,
    /// Messages received on a peer's message stream.
    stream_messages_received,
    /// Messages dropped: no connection, or every queue to the peer full.
    messages_dropped,
    /// Messages that waited for a connection being dialled.
    messages_queued,
    /// Streams this node opened for exchanges.
    streams_opened,
    /// Streams peers opened, of every kind.
    streams_accepted,
    /// Streams that ended by a reset, a deadline or a lost connection.
    streams_lost,
    /// Streams of a kind this node does not know, refused.
    streams_refused,
    /// Times a peer's streams had to wait, since it had opened too many a second.
    streams_paused,
    /// Streams on which something was not said or taken in time.
    streams_too_slow,
    /// Frames that claimed to be longer than a frame may be.
    frames_too_large,
    /// Frames sent on exchange streams.
    frames_sent,
    /// Bytes of them.
    frame_bytes_sent,
    /// Frames received on exchange streams.
    frames_received,
    /// Bytes of them.
    frame_bytes_received,
    /// Errors of the socket while receiving.
    socket_errors,
}

/// A number that grows.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, by: usize) {
        self.0.fetch_add(by as u64, Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }
}

impl Counters {
    pub(crate) fn refused(&self, cause: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(cause).or_default() += 1;
    }

    pub(crate) fn closed(&self, cause: &'static str) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner).entry(cause).or_default() += 1;
    }
}
