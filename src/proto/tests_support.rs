//! What the core's unit tests share.

use std::{collections::BTreeMap, hash::Hasher as _, sync::Arc, time::Duration};

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use crate::{
    EventKind, NodeId,
    proto::{Now, Output, Protocol, ProtocolConfig, StreamInput, Time, Vouch},
    wire::{
        StreamId,
        codec::{self, Packet},
    },
};

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a test's name is valid")
}

/// The defaults of the public configuration.
pub(crate) fn config(name: &str) -> ProtocolConfig {
    ProtocolConfig::of_defaults(name, WALL_MS)
}

/// Certificates for tests: a keyed hash under the node's name.
pub(crate) struct Seal(pub(crate) NodeId);

fn seal(node: &str, message: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(7, 7);
    hasher.write(node.as_bytes());
    hasher.write(message);
    hasher.finish()
}

impl Vouch for Seal {
    fn chain(&self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_str().as_bytes())
    }

    fn sign(&self, message: &[u8]) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(&seal(self.0.as_str(), message).to_be_bytes()))
    }

    fn verify(&self, node: &NodeId, chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
        chain == node.as_str().as_bytes() && signature == seal(node.as_str(), message).to_be_bytes()
    }

    fn trusts_issuer(&self, issuer: u64) -> bool {
        issuer < 2
    }
}

/// The wall clock of tests at their beginning: 2026-01-01.
pub(crate) const WALL_MS: u64 = 1_767_225_600_000;

pub(crate) fn at(ms: u64) -> Now {
    Now { time: Time::from_micros(ms * 1_000), wall_ms: WALL_MS + ms }
}

/// A core of that name, at an address of its own.
pub(crate) fn core(name: &str) -> Protocol {
    core_with(name, |_| ())
}

pub(crate) fn core_with(name: &str, change: impl FnOnce(&mut ProtocolConfig)) -> Protocol {
    made(name, name.bytes().map(u64::from).sum(), change)
}

/// One that draws other numbers than the rest.
pub(crate) fn core_seeded(name: &str, seed: u64) -> Protocol {
    made(name, seed, |_| ())
}

fn made(name: &str, seed: u64, change: impl FnOnce(&mut ProtocolConfig)) -> Protocol {
    let mut config = config(name);
    config.address.set_port(7_000 + u16::from(name.bytes().fold(0_u8, u8::wrapping_add)));
    change(&mut config);
    Protocol::new(config, Arc::new(Seal(id(name))), seed, at(0))
}

/// Everything the core wants done by now.
pub(crate) fn drain(core: &mut Protocol) -> Vec<Output> {
    std::iter::from_fn(|| core.poll_output()).collect()
}

/// The messages among the outputs, by receiver.
pub(crate) fn sent(outputs: &[Output]) -> Vec<(NodeId, Bytes)> {
    let send = |output: &Output| match output {
        Output::Send { to, bytes } => Some((to.clone(), bytes.clone())),
        _ => None,
    };
    outputs.iter().filter_map(send).collect()
}

/// The events among the outputs.
pub(crate) fn events(outputs: &[Output]) -> Vec<(EventKind, String)> {
    let event = |output: &Output| match output {
        Output::Event(event) => {
            Some((event.kind, event.node_id.as_ref().map(ToString::to_string).unwrap_or_default()))
        }
        _ => None,
    };
    outputs.iter().filter_map(event).collect()
}

/// Connects two cores, as the transport does once both have admitted one another.
pub(crate) fn connect(a: &mut Protocol, b: &mut Protocol, now: Now) {
    let (from_a, from_b) = (a.introduction(Some(b.id())), b.introduction(Some(a.id())));
    let (a_id, b_id) = (a.id().clone(), b.id().clone());
    let rtt = Duration::from_micros(500);
    a.handle_connected(&b_id, &from_b, b.local_node().address, rtt, now);
    b.handle_connected(&a_id, &from_a, a.local_node().address, rtt, now);
}

/// A message of one part.
pub(crate) fn message<T: serde::Serialize>(kind: u8, body: &T) -> Bytes {
    let mut packet = Packet::new();
    packet.push(kind, body);
    packet.into_bytes()
}

/// Two cores and the connection between them, over which everything passes at once but what `lost` names.
pub(crate) struct Wire<'a> {
    pub(crate) cores: [&'a mut Protocol; 2],
    /// Kinds of messages that never arrive.
    pub(crate) lost: &'a [u8],
    /// The other end's number of each stream, by end and number.
    pub(crate) streams: BTreeMap<(usize, StreamId), StreamId>,
}

impl Wire<'_> {
    /// Lets time pass from `from` to `to`, in steps of a millisecond.
    pub(crate) fn run(&mut self, from: u64, to: u64) {
        for ms in from..to {
            for end in [0, 1] {
                self.cores[end].handle_timeout(at(ms));
            }
            while self.pass(0, ms) || self.pass(1, ms) {}
        }
    }

    fn pass(&mut self, end: usize, ms: u64) -> bool {
        let outputs = drain(self.cores[end]);
        let (me, peer) = (self.cores[end].id().clone(), self.cores[1 - end].id().clone());
        for output in &outputs {
            let (stream, input) = match output {
                Output::Send { to, bytes } => {
                    let kind =
                        codec::parts(bytes).ok().and_then(|parts| parts.first().map(|(kind, _)| *kind));
                    if *to == peer && kind.is_some_and(|kind| !self.lost.contains(&kind)) {
                        self.cores[1 - end].handle_message(&me, bytes, at(ms));
                    }
                    continue;
                }
                Output::OpenStream { stream, .. } => {
                    let theirs = StreamId(1_000 + 2 * self.streams.len() as u64);
                    self.streams.insert((end, *stream), theirs);
                    self.streams.insert((1 - end, theirs), *stream);
                    (*stream, StreamInput::Opened)
                }
                Output::Frame { stream, bytes } => (*stream, StreamInput::Frame(bytes.clone())),
                Output::Finish { stream } => (*stream, StreamInput::Finished),
                Output::Reset { stream } => (*stream, StreamInput::Lost),
                _ => continue,
            };
            if matches!(input, StreamInput::Frame(_)) {
                self.cores[end].handle_stream(&peer, stream, StreamInput::Sent, at(ms));
            }
            if let Some(theirs) = self.streams.get(&(end, stream)) {
                self.cores[1 - end].handle_stream(&me, *theirs, input, at(ms));
            }
        }
        !outputs.is_empty()
    }
}

pub(crate) fn wire<'a>(a: &'a mut Protocol, b: &'a mut Protocol, lost: &'a [u8]) -> Wire<'a> {
    Wire { cores: [a, b], lost, streams: BTreeMap::new() }
}
