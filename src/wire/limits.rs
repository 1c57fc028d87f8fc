//! Every bound that a peer, a file or a caller can meet, and the check of a value that nothing has decoded
//! yet. Knows no message.

use std::{collections::BTreeMap, time::Duration};

use crate::Error;

/// The longest key, in bytes.
pub(crate) const KEY_LEN_MAX: usize = 512;
/// The longest name of a state type, in bytes.
pub(crate) const TYPE_LEN_MAX: usize = 64;
/// The most state types a node keeps; a peer cannot make up more.
pub(crate) const TYPES_MAX: usize = 256;
/// The longest value, in bytes of MessagePack.
pub(crate) const VALUE_LEN_MAX: usize = 256 * 1024;
/// How deep arrays and maps of a value may nest.
pub(crate) const VALUE_DEPTH_MAX: usize = 32;
/// The most tags a node may have.
pub(crate) const TAGS_MAX: usize = 64;
/// The length of all tags together, keys and values, in bytes.
pub(crate) const TAGS_LEN_MAX: usize = 4 * 1024;
/// The longest zone name, in bytes.
pub(crate) const ZONE_LEN_MAX: usize = 64;
/// The longest frame on a stream, in bytes.
pub(crate) const FRAME_LEN_MAX: usize = 1024 * 1024;
/// The longest hello or welcome, in bytes: a certificate chain, a claim and tags fit.
pub(crate) const HELLO_LEN_MAX: usize = 32 * 1024;
/// The longest message that SWIM sends as a datagram, in bytes. Ordinary loss can pass for an MTU black hole,
/// after which a path carries 1,162.
pub(crate) const DATAGRAM_LEN_MAX: usize = 1_150;
/// The longest certificate chain in a claim, in bytes.
pub(crate) const CHAIN_LEN_MAX: usize = 16 * 1024;
/// The longest proof of a record, in bytes: a signature by RSA with 8192 bits, and what it covers besides.
pub(crate) const PROOF_LEN_MAX: usize = 1_200;

/// The longest revocation list that travels between nodes, in bytes: some 29,000 entries with serial numbers
/// of 16 bytes, which take 35 bytes each. It goes as one message on the peer's message stream, and must fit a
/// frame there.
pub(crate) const LIST_LEN_MAX: usize = FRAME_LEN_MAX - 1024;
// What one peer may use of this node, beside sizes. Who is over a budget is not read until there is something
// in it again; what has no flow control of its own (datagrams) ends the connection if that goes on.

/// Datagrams of a peer: so many a second, so many at once.
pub(crate) const DATAGRAMS: (u32, u32) = (5_000, 10_000);
/// What this node sends itself to a peer at most; what goes beyond takes the message stream, which the peer's
/// reading holds back. Below [`DATAGRAMS`], since two clocks differ and a path may hold things up.
pub(crate) const DATAGRAMS_SENT: (u32, u32) = (4_000, 8_000);
/// Records of a peer outside of exchanges.
pub(crate) const RECORDS: (u32, u32) = (100_000, 200_000);
/// What a peer tells of others: claims, accusations, requests to look at one. A cluster that starts at once
/// has a node's share of a thousand claims to tell.
pub(crate) const HEARSAY: (u32, u32) = (200, 2_000);
/// Streams that a peer opens.
pub(crate) const STREAMS: (u32, u32) = (20, 40);
/// Streams that a peer has open: one for messages, the rest for exchanges and echoes.
pub(crate) const STREAMS_OPEN_MAX: u32 = 8;
/// Exchanges that peers may have with this node at a time, one of each peer, and those it begins.
pub(crate) const EXCHANGES_MAX: usize = 2;
/// Handshakes that begin from one address. The burst lets the nodes of one test machine in at once.
pub(crate) const HANDSHAKES: (u32, u32) = (20, 64);
/// Handshakes that begin from all addresses, a second and at once.
pub(crate) const HANDSHAKES_ALL: u32 = 500;
/// Connections that are not welcomed yet.
pub(crate) const UNWELCOMED_MAX: usize = 1_024;
/// From so many handshakes of unproven addresses on, an address is proved first.
pub(crate) const UNVALIDATED_MAX: usize = 64;

/// How long a handshake may take.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a hello may take after it.
pub(crate) const HELLO: Duration = Duration::from_secs(2);
/// For a stream's first byte, and for the rest of a frame's header once it began.
pub(crate) const HEADER: Duration = Duration::from_secs(2);
/// For a frame's body, and for writing one.
pub(crate) const FRAME: Duration = Duration::from_secs(10);
/// How long an exchange may stand still in both directions.
pub(crate) const STILL: Duration = Duration::from_secs(30);
/// From this age on, an exchange must have moved [`EXCHANGE_RATE`] on average.
pub(crate) const EXCHANGE_AGE: Duration = Duration::from_secs(60);
/// Bytes a second, both directions together.
pub(crate) const EXCHANGE_RATE: u64 = 1_024;
/// How long a peer may stay over its budget of datagrams.
pub(crate) const OVER_BUDGET: Duration = Duration::from_secs(2);
/// For how long a peer that was closed for it is not let in again; twice as long each time.
pub(crate) const PENALTY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Refuses tags over a limit, and one without a name.
pub(crate) fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), Error> {
    let size = tags.iter().map(|(key, value)| key.len() + value.len()).sum();
    if tags.len() > TAGS_MAX {
        return Err(Error::TooLarge { what: "number of tags", size: tags.len(), limit: TAGS_MAX });
    }
    if size > TAGS_LEN_MAX {
        return Err(Error::TooLarge { what: "length of all tags in bytes", size, limit: TAGS_LEN_MAX });
    }
    if tags.contains_key("") {
        return Err(Error::InvalidKey { size: 0, limit: TAGS_LEN_MAX });
    }
    Ok(())
}

/// Refuses bytes that are not exactly one MessagePack value of bounded size and depth.
///
/// Iterative and without allocation: a hostile value costs its length and no stack. rmp-serde's own depth
/// limit misses newtype enums, and its decoding can cost 136 times the input.
pub(crate) fn check_value(bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() > VALUE_LEN_MAX {
        return Err(Error::ValueTooLarge { size: bytes.len(), limit: VALUE_LEN_MAX });
    }
    match scan(bytes, VALUE_DEPTH_MAX) {
        Ok(read) if read == bytes.len() => Ok(()),
        Ok(read) => Err(malformed(read, "more bytes follow the value")),
        Err((at, fault)) => Err(malformed(at, fault)),
    }
}

fn malformed(at: usize, fault: &'static str) -> Error {
    Error::MalformedValue { at, fault }
}

/// The length of the first value in `bytes`, or where and why it is none.
pub(crate) fn scan(bytes: &[u8], depth_max: usize) -> Result<usize, (usize, &'static str)> {
    let mut open = [0_u64; 64]; // how many values are still due at each level
    debug_assert!(depth_max < open.len());
    let mut depth = 0;
    let mut at = 0;
    open[0] = 1;
    loop {
        while open[depth] == 0 {
            if depth == 0 {
                return Ok(at);
            }
            depth -= 1;
        }
        open[depth] -= 1;
        let marker = *bytes.get(at).ok_or((at, "it ends in the middle"))?;
        let (header, body, children) =
            shape(marker, &bytes[at + 1..]).ok_or((at, "it ends in the middle"))?;
        let left = (bytes.len() - at) as u64;
        if body > left || children > left {
            return Err((at, "it claims more than follows"));
        }
        if marker == 0xc1 {
            return Err((at, "the marker 0xc1 is reserved"));
        }
        at += 1 + header + usize::try_from(body).map_err(|_| (at, "it claims more than follows"))?;
        if at > bytes.len() {
            return Err((at, "it ends in the middle"));
        }
        if children > 0 {
            depth += 1;
            if depth > depth_max {
                return Err((at, "it nests deeper than 32 levels"));
            }
            open[depth] = children;
        }
    }
}

/// What a marker says: bytes of its length field, bytes of body, values inside. `None` if the length field is
/// cut.
fn shape(marker: u8, rest: &[u8]) -> Option<(usize, u64, u64)> {
    let length = |width: usize| -> Option<u64> {
        Some(rest.get(..width)?.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)))
    };
    Some(match marker {
        0x80..=0x8f => (0, 0, u64::from(marker & 0x0f) * 2),
        0x90..=0x9f => (0, 0, u64::from(marker & 0x0f)),
        0xa0..=0xbf => (0, u64::from(marker & 0x1f), 0),
        0xc4 | 0xd9 => (1, length(1)?, 0),
        0xc5 | 0xda => (2, length(2)?, 0),
        0xc6 | 0xdb => (4, length(4)?, 0),
        0xc7 => (1, length(1)? + 1, 0),
        0xc8 => (2, length(2)? + 1, 0),
        0xc9 => (4, length(4)? + 1, 0),
        0xcc | 0xd0 => (0, 1, 0),
        0xcd | 0xd1 => (0, 2, 0),
        0xca | 0xce | 0xd2 => (0, 4, 0),
        0xcb | 0xcf | 0xd3 => (0, 8, 0),
        0xd4..=0xd8 => (0, 1 + (1 << (marker - 0xd4)), 0),
        0xdc => (2, 0, length(2)?),
        0xdd => (4, 0, length(4)?),
        0xde => (2, 0, length(2)? * 2),
        0xdf => (4, 0, length(4)? * 2),
        0x00..=0x7f | 0xc0..=0xc3 | 0xe0..=0xff => (0, 0, 0),
    })
}

/// A writer that stops growing at a bound, so that encoding an endless value ends.
pub(crate) struct Capped {
    bytes: Vec<u8>,
    max: usize,
    overflow: Option<usize>,
}

impl Capped {
    pub(crate) const fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), max, overflow: None }
    }

    /// How large the value had become when it passed the bound.
    pub(crate) const fn overflow(&self) -> Option<usize> {
        self.overflow
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl std::io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let size = self.bytes.len().saturating_add(bytes.len());
        if size > self.max {
            self.overflow = Some(size);
            return Err(std::io::Error::other("over the limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_marker_is_measured() {
        let samples: &[&[u8]] = &[
            b"\x00",
            b"\x7f",
            b"\xe0",
            b"\xc0",
            b"\xc2",
            b"\xc3",
            b"\xa1a",
            b"\xd9\x01a",
            b"\xda\x00\x01a",
            b"\xdb\x00\x00\x00\x01a",
            b"\xc4\x01a",
            b"\xc5\x00\x01a",
            b"\xc6\x00\x00\x00\x01a",
            b"\xcc\x01",
            b"\xcd\x01\x01",
            b"\xce\x01\x01\x01\x01",
            b"\xcf\x01\x01\x01\x01\x01\x01\x01\x01",
            b"\xd0\x01",
            b"\xd1\x01\x01",
            b"\xd2\x01\x01\x01\x01",
            b"\xd3\x01\x01\x01\x01\x01\x01\x01\x01",
            b"\xca\x01\x01\x01\x01",
            b"\xcb\x01\x01\x01\x01\x01\x01\x01\x01",
            b"\xd4\x01a",
            b"\xd5\x01ab",
            b"\xd6\x01abcd",
            b"\xd7\x01abcdefgh",
            b"\xd8\x01abcdefghijklmnop",
            b"\xc7\x01\x01a",
            b"\xc8\x00\x01\x01a",
            b"\xc9\x00\x00\x00\x01\x01a",
            b"\x91\x00",
            b"\x81\x00\x00",
            b"\xdc\x00\x01\x00",
            b"\xdd\x00\x00\x00\x01\x00",
            b"\xde\x00\x01\x00\x00",
            b"\xdf\x00\x00\x00\x01\x00\x00",
            b"\x90",
            b"\x80",
        ];
        for sample in samples {
            assert!(check_value(sample).is_ok(), "{sample:x?}");
            for cut in 0..sample.len() {
                assert!(check_value(&sample[..cut]).is_err(), "{sample:x?} cut at {cut}");
            }
            let longer = [sample, &b"\x00"[..]].concat();
            assert!(
                check_value(&longer).unwrap_err().to_string().contains("more bytes follow"),
                "{sample:x?}"
            );
        }
        assert!(check_value(b"\xc1").unwrap_err().to_string().contains("0xc1"));
    }

    #[test]
    fn depth_is_bounded_without_stack() {
        let nested = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
        assert!(check_value(&nested(32)).is_ok());
        assert!(check_value(&nested(33)).is_err());
        assert!(check_value(&nested(200_000)).is_err());
        let maps = [b"\x81\x00".repeat(33), vec![0]].concat();
        assert!(check_value(&maps).is_err());
    }

    #[test]
    fn a_claimed_count_over_what_follows_is_refused() {
        for claim in [
            &b"\xdd\xff\xff\xff\xff\x00\x00"[..],
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xc9\xff\xff\xff\xff\x01",
        ] {
            assert!(check_value(claim).is_err(), "{claim:x?}");
        }
    }

    #[test]
    fn the_scan_agrees_with_rmp_on_what_it_encodes() {
        use proptest::prelude::*;
        proptest!(|(value: Vec<(String, Option<i64>, Vec<u8>, (f64, bool, char))>)| {
            let bytes = rmp_serde::to_vec_named(&value).unwrap();
            prop_assert!(check_value(&bytes).is_ok());
        });
    }

    #[test]
    fn no_bytes_make_the_scan_panic() {
        use proptest::prelude::*;
        proptest!(|(bytes: Vec<u8>)| {
            if check_value(&bytes).is_ok() {
                prop_assert!(rmp_serde::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok());
            }
        });
    }
}
