//! Bytes to messages and back. A packet is a version byte and parts; a part is a kind, a length and a
//! MessagePack body. A kind from 128 up may be skipped by who does not know it, so that later versions can
//! add to a packet. Knows no rule of the protocol.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

use crate::wire::limits;

/// The version byte every packet begins with.
pub(crate) const PACKET_VERSION: u8 = 1;
/// The first kind that a receiver may skip.
pub(crate) const OPTIONAL_FROM: u8 = 128;
/// How deep the messages themselves nest; values inside them are opaque byte strings.
const DEPTH_MAX: usize = 12;

/// Why bytes are no message. Static, since a peer chooses the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// A packet being filled.
#[derive(Debug)]
pub(crate) struct Packet {
    bytes: BytesMut,
}

impl Packet {
    pub(crate) fn new() -> Self {
        let mut bytes = BytesMut::with_capacity(256);
        bytes.put_u8(PACKET_VERSION);
        Self { bytes }
    }

    /// How long the packet is by now.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was added yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() <= 1
    }

    /// Adds a part.
    pub(crate) fn push<T: Serialize>(&mut self, kind: u8, body: &T) {
        let encoded = encode(body);
        self.push_raw(kind, &[&encoded]);
    }

    /// Adds a part whose body is these slices in a row.
    pub(crate) fn push_raw(&mut self, kind: u8, body: &[&[u8]]) {
        self.bytes.put_u8(kind);
        put_varint(&mut self.bytes, body.iter().map(|slice| slice.len()).sum());
        for slice in body {
            self.bytes.put_slice(slice);
        }
    }

    /// Adds parts that were encoded before, as [`Packet::into_parts`] gives them.
    pub(crate) fn push_parts(&mut self, parts: &[u8]) {
        self.bytes.put_slice(parts);
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes.freeze()
    }

    /// The parts without the version byte, to be put into another packet.
    pub(crate) fn into_parts(self) -> Bytes {
        self.bytes.freeze().slice(1..)
    }
}

/// A body as MessagePack.
pub(crate) fn encode<T: Serialize>(body: &T) -> Vec<u8> {
    // Our own wire types hold nothing that cannot be encoded, and memory is the only writer.
    rmp_serde::to_vec(body).expect("a wire type always encodes into memory")
}

/// A body from MessagePack: exactly one value, of bounded depth, that claims no more than it holds.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match limits::scan(bytes, DEPTH_MAX) {
        Ok(read) if read == bytes.len() => {}
        Ok(_) => return Err(Malformed("more bytes follow the message")),
        Err((_, fault)) => return Err(Malformed(fault)),
    }
    rmp_serde::from_slice(bytes).map_err(|_| Malformed("not the message its kind promises"))
}

/// The parts of a packet, or why it is none. Checks the whole before it gives the first.
pub(crate) fn parts(packet: &Bytes) -> Result<Vec<(u8, Bytes)>, Malformed> {
    match packet.first() {
        Some(&PACKET_VERSION) => bare_parts(&packet.slice(1..)),
        Some(_) => Err(Malformed("a packet version this build does not speak")),
        None => Err(Malformed("empty")),
    }
}

/// Parts that stand without a version byte, inside another part.
pub(crate) fn bare_parts(bytes: &Bytes) -> Result<Vec<(u8, Bytes)>, Malformed> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let kind = bytes[at];
        let (len, width) = varint(&bytes[at + 1..])?;
        let from = at + 1 + width;
        let to = from.checked_add(len).filter(|to| *to <= bytes.len());
        let to = to.ok_or(Malformed("a part claims more than follows"))?;
        parts.push((kind, bytes.slice(from..to)));
        at = to;
    }
    Ok(parts)
}

/// Splits a body into its length-prefixed head and the rest.
pub(crate) fn head_and_rest(body: &Bytes) -> Result<(Bytes, Bytes), Malformed> {
    let (len, width) = varint(body)?;
    let end = width.checked_add(len).filter(|end| *end <= body.len());
    let end = end.ok_or(Malformed("a head claims more than follows"))?;
    Ok((body.slice(width..end), body.slice(end..)))
}

/// The length prefix of a head, to be put before it.
pub(crate) fn prefix(len: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5);
    put_varint(&mut bytes, len);
    bytes.freeze()
}

/// LEB128, least significant seven bits first.
fn put_varint(bytes: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        bytes.put_u8(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.put_u8(value.to_le_bytes()[0]);
}

fn varint(bytes: &[u8]) -> Result<(usize, usize), Malformed> {
    let mut value = 0_usize;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok((value, at + 1));
        }
    }
    Err(Malformed("a length that never ends"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        proptest!(|(bodies: Vec<(u8, Vec<u8>)>)| {
            let mut packet = Packet::new();
            for (kind, body) in &bodies {
                packet.push_raw(*kind, &[body]);
            }
            let out = parts(&packet.into_bytes()).unwrap();
            prop_assert_eq!(out.len(), bodies.len());
            for ((kind, body), (kind_out, body_out)) in bodies.iter().zip(&out) {
                prop_assert_eq!(kind, kind_out);
                prop_assert_eq!(&body[..], &body_out[..]);
            }
        });
    }

    #[test]
    fn no_bytes_make_the_parts_panic() {
        proptest!(|(bytes: Vec<u8>)| {
            let bytes = Bytes::from(bytes);
            let _ = parts(&bytes);
            let _ = bare_parts(&bytes);
            let _ = head_and_rest(&bytes);
            let _ = decode::<(u64, String)>(&bytes);
        });
    }

    #[test]
    fn a_body_with_more_behind_it_is_refused() {
        let mut body = encode(&(1_u8, "x"));
        assert_eq!(decode::<(u8, String)>(&body), Ok((1, "x".into())));
        body.push(0);
        assert_eq!(decode::<(u8, String)>(&body), Err(Malformed("more bytes follow the message")));
    }

    #[test]
    fn another_version_and_nothing_at_all_are_refused() {
        assert!(parts(&Bytes::new()).is_err());
        assert!(parts(&Bytes::from_static(&[255, 1, 0])).is_err());
        assert_eq!(parts(&Bytes::from_static(&[PACKET_VERSION])), Ok(Vec::new()));
    }
}
