//! One message to a peer: as a datagram if the path takes it now, else on the peer's message stream. Never
//! waits.

use std::sync::Arc;

use bytes::Bytes;
use quinn::SendDatagramError;

use crate::net::{Shared, pool::Conn, stream};

/// `false`: there was no room anywhere.
pub(crate) fn send(shared: &Arc<Shared>, conn: &Arc<Conn>, bytes: Bytes) -> bool {
    let size = bytes.len();
    // Asked at each send: the path's limit falls when large packets are lost.
    if conn.connection.max_datagram_size().is_some_and(|max| size <= max) {
        // A peer ends the connection of who sends it more than that; a stream it reads as fast as it can.
        if !conn.may_send_datagram() {
            shared.counters.datagrams_held_back.one();
            return stream::send_message(shared, conn, bytes);
        }
        // quinn drops the oldest datagram in silence when its buffer is full.
        if conn.connection.datagram_send_buffer_space() < size {
            shared.counters.datagram_buffer_full.one();
            return stream::send_message(shared, conn, bytes);
        }
        match conn.connection.send_datagram(bytes.clone()) {
            Ok(()) => {
                shared.counters.datagrams_sent.one();
                shared.counters.datagram_bytes_sent.add(size);
                return true;
            }
            Err(SendDatagramError::ConnectionLost(_)) => return false,
            Err(_) => {}
        }
    }
    stream::send_message(shared, conn, bytes)
}
