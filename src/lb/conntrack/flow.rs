//! Flows, and how they travel: a key of 18 characters over IPv4 (50 over IPv6) and a value of about 20 bytes, so
//! that a flow costs a datagram as little as it can. Times are told in seconds.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Value, driver::clock};

/// A flow's transport protocol, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "a number of the IANA registry and nothing more")]
pub struct FlowProtocol(pub u8);

impl FlowProtocol {
    /// 6.
    pub const TCP: Self = Self(6);
    /// 17.
    pub const UDP: Self = Self(17);
    /// 132.
    pub const SCTP: Self = Self(132);
}

impl fmt::Display for FlowProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.pad("tcp"),
            Self::UDP => f.pad("udp"),
            Self::SCTP => f.pad("sctp"),
            Self(number) => write!(f, "protocol {number}"),
        }
    }
}

/// What tells a flow from every other: the 5-tuple.
///
/// # Examples
/// ```
/// use phalanx::lb::{FlowKey, FlowProtocol};
/// let key = FlowKey::tcp("198.51.100.9:40000".parse()?, "203.0.113.1:443".parse()?);
/// assert_eq!(key.protocol, FlowProtocol::TCP);
/// assert_eq!(key.to_string(), "tcp 198.51.100.9:40000 > 203.0.113.1:443");
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "a 5-tuple is these five and nothing more")]
pub struct FlowKey {
    /// Where it comes from. An IPv6 flow label and scope are not part of a flow's identity, and do not travel.
    pub src: SocketAddr,
    /// Where it goes to.
    pub dst: SocketAddr,
    /// Its protocol.
    pub protocol: FlowProtocol,
}

impl FlowKey {
    /// A flow of any protocol.
    #[must_use]
    pub const fn new(src: SocketAddr, dst: SocketAddr, protocol: FlowProtocol) -> Self {
        Self { src, dst, protocol }
    }

    /// A TCP connection.
    #[must_use]
    pub const fn tcp(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::new(src, dst, FlowProtocol::TCP)
    }

    /// A flow of UDP datagrams.
    #[must_use]
    pub const fn udp(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::new(src, dst, FlowProtocol::UDP)
    }

    /// Without what does not travel.
    pub(super) fn plain(self) -> Self {
        let plain = |at: SocketAddr| SocketAddr::new(at.ip(), at.port());
        Self { src: plain(self.src), dst: plain(self.dst), protocol: self.protocol }
    }

    /// The key of its records.
    pub(crate) fn to_key(self) -> String {
        base64url(&self.to_bytes())
    }

    /// The same for every node: what it ranks by.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(38);
        bytes.push(self.protocol.0);
        put_address(&mut bytes, self.src);
        put_address(&mut bytes, self.dst);
        if bytes.len() == MIXED_LEN {
            bytes.push(u8::from(self.src.is_ipv6())); // which of the two is the long one
        }
        bytes
    }

    /// The flow of a record's key; `None` if it is none.
    pub(super) fn from_key(key: &str) -> Option<Self> {
        let bytes = from_base64url(key)?;
        let (protocol, rest) = bytes.split_first()?;
        let (first, last) = match bytes.len() {
            13 => (6, 6),
            37 => (18, 18),
            len if len == MIXED_LEN + 1 => match rest.last()? {
                0 => (6, 18),
                1 => (18, 6),
                _ => return None,
            },
            _ => return None,
        };
        let src = address(rest.get(..first)?)?;
        let dst = address(rest.get(first..first + last)?)?;
        Some(Self { src, dst, protocol: FlowProtocol(*protocol) })
    }
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} > {}", self.protocol, self.src, self.dst)
    }
}

/// The length of a key with one address of each family, before the byte that says which is which.
const MIXED_LEN: usize = 1 + 6 + 18;

fn put_address(bytes: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => bytes.extend(ip.octets()),
        IpAddr::V6(ip) => bytes.extend(ip.octets()),
    }
    bytes.extend(address.port().to_be_bytes());
}

fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let ip = match ip.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

/// RFC 4648 §5, without padding.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn base64url(bytes: &[u8]) -> String {
    let digits = bytes.chunks(3).flat_map(|chunk| {
        let at = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        (0..=chunk.len()).map(move |place| char::from(DIGITS[(word >> (18 - 6 * place) & 63) as usize]))
    });
    digits.collect()
}

fn from_base64url(text: &str) -> Option<Vec<u8>> {
    let value = |digit: u8| match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'-' => Some(62),
        b'_' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.as_bytes().chunks(4) {
        let mut word = 0_u32;
        for place in 0..4 {
            word = word << 6 | u32::from(chunk.get(place).map_or(Some(0), |digit| value(*digit))?);
        }
        let whole = word.to_be_bytes();
        let count = chunk.len().checked_sub(1).filter(|count| *count > 0)?;
        // What does not fill a byte must be zero, or one flow would have several keys.
        if whole[1 + count..].iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend(&whole[1..=count]);
    }
    Some(bytes)
}

/// A tracked flow.
///
/// # Examples
/// ```
/// use phalanx::lb::Flow;
/// let flow = Flow::new(Some("10.0.0.7:8080".parse()?));
/// assert_eq!((flow.packets, flow.bytes), (0, 0));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Flow {
    /// Where it is sent on to: the backend, after translation.
    pub nat: Option<SocketAddr>,
    /// When it began, by the wall clock of the node that saw it. Travels in whole seconds.
    pub created: SystemTime,
    /// When a packet of it was seen last. Travels in whole seconds.
    pub last_seen: SystemTime,
    /// How many packets were seen.
    pub packets: u64,
    /// How many bytes they had.
    pub bytes: u64,
    /// What a later version of this library says of it beyond that; passed on as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) extra: Vec<u8>,
}

impl Flow {
    /// One that begins now.
    #[must_use]
    pub fn new(nat: Option<SocketAddr>) -> Self {
        let now = clock::wall_now();
        Self { nat, created: now, last_seen: now, packets: 0, bytes: 0, extra: Vec::new() }
    }

    /// Takes another's place for what this version knows; what only a later one does stays.
    pub(crate) fn replace(&mut self, flow: Self) {
        let old = std::mem::replace(self, flow);
        self.keep_extra(&old);
    }

    /// Keeps what a later version has said of the flow, unless there is such a word already.
    pub(super) fn keep_extra(&mut self, of: &Self) {
        if self.extra.is_empty() {
            self.extra.clone_from(&of.extra);
        }
    }
}

/// What a node says of a flow that it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// How often the flow has passed from one node to another. The highest claim counts.
    pub(crate) generation: u32,
    /// The flow has ended: this is here only so that no earlier claim counts again.
    pub(crate) closed: bool,
    pub(crate) flow: Flow,
}

/// How much a later version may say beyond this one: it is kept for each flow, and written again.
const EXTRA_LEN_MAX: usize = 64;

/// The first byte of a claim.
const CLOSED: u8 = 1;
const NAT_V4: u8 = 2;
const NAT_V6: u8 = 4;
const KNOWN: u8 = CLOSED | NAT_V4 | NAT_V6;

impl Claim {
    pub(crate) fn to_value(&self) -> Result<Value, Error> {
        let flow = &self.flow;
        let nat = flow.nat.map(|nat| if nat.is_ipv4() { NAT_V4 } else { NAT_V6 });
        let (created, last_seen) = (seconds(flow.created), seconds(flow.last_seen));
        let mut bytes = Vec::with_capacity(32);
        bytes.push(if self.closed { CLOSED } else { 0 } | nat.unwrap_or(0));
        put_number(&mut bytes, self.generation.into());
        put_number(&mut bytes, created);
        put_number(&mut bytes, last_seen.saturating_sub(created));
        put_number(&mut bytes, flow.packets);
        put_number(&mut bytes, flow.bytes);
        if let Some(nat) = flow.nat {
            put_address(&mut bytes, nat);
        }
        bytes.extend(&flow.extra);
        Value::encode(&serde_bytes::ByteBuf::from(bytes))
    }

    pub(crate) fn from_value(value: &Value) -> Result<Self, Error> {
        let bytes = value.decode::<serde_bytes::ByteBuf>()?;
        Self::parse(&bytes).ok_or_else(|| Error::Decode { source: "not a claim of a flow".into() })
    }

    fn parse(mut bytes: &[u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first()?;
        if flags & !KNOWN != 0 {
            return None;
        }
        bytes = rest;
        let generation = u32::try_from(take_number(&mut bytes)?).ok()?;
        let created = take_number(&mut bytes)?;
        let last_seen = created.checked_add(take_number(&mut bytes)?)?;
        let (packets, of_bytes) = (take_number(&mut bytes)?, take_number(&mut bytes)?);
        let nat = match flags & (NAT_V4 | NAT_V6) {
            0 => None,
            NAT_V4 => Some(address(take(&mut bytes, 6)?)?),
            NAT_V6 => Some(address(take(&mut bytes, 18)?)?),
            _ => return None,
        };
        if bytes.len() > EXTRA_LEN_MAX {
            return None;
        }
        let time = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let (created, last_seen) = (time(created)?, time(last_seen)?);
        let flow = Flow { nat, created, last_seen, packets, bytes: of_bytes, extra: bytes.to_vec() };
        Some(Self { generation, closed: flags & CLOSED != 0, flow })
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Seven bits a byte, the lowest first, the highest bit set on all but the last (LEB128).
fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7f) as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for place in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if place == 9 && part > 1 {
            return None;
        }
        number |= part << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        let ip =
            prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        (ip, any::<u16>()).prop_map(SocketAddr::from)
    }

    proptest! {
        #[test]
        fn a_key_comes_back_and_no_other_text_gives_it(
            src in any_address(), dst in any_address(), protocol: u8, other in "[A-Za-z0-9_=-]{0,52}",
        ) {
            let key = FlowKey::new(src, dst, FlowProtocol(protocol));
            let text = key.to_key();
            prop_assert!(text.len() <= 50);
            prop_assert_eq!(FlowKey::from_key(&text), Some(key));
            if let Some(flow) = FlowKey::from_key(&other) {
                prop_assert_eq!(flow.to_key(), other);
            }
        }

        #[test]
        fn a_claim_comes_back_and_any_bytes_are_read_or_refused(
            generation: u32, closed: bool, nat in proptest::option::of(any_address()),
            created in 0_u64..1 << 33, age in 0_u64..1 << 33, packets: u64, bytes: u64,
            extra in proptest::collection::vec(any::<u8>(), 0..9),
            junk in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let (created, last_seen) = (at(created), at(created + age));
            let flow = Flow { nat, created, last_seen, packets, bytes, extra };
            let claim = Claim { generation, closed, flow };
            prop_assert_eq!(Claim::from_value(&claim.to_value().unwrap()).unwrap(), claim);
            let junk = Value::encode(&serde_bytes::ByteBuf::from(junk)).unwrap();
            if let Ok(read) = Claim::from_value(&junk) {
                prop_assert_eq!(Claim::from_value(&read.to_value().unwrap()).unwrap(), read);
            }
        }
    }

    #[test]
    fn known_keys_are_written_as_rfc_4648_writes_them() {
        assert_eq!(base64url(b"foobar"), "Zm9vYmFy");
        assert_eq!(base64url(b"foob"), "Zm9vYg");
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
        assert_eq!(from_base64url("Zm9vYh"), None, "bits that do not fill a byte");
        assert_eq!(from_base64url("Zm9vY"), None, "a digit too few");
    }
}
