//! What the core's unit tests share.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use super::fixtures::made;
pub(crate) use super::fixtures::{Seal, WALL_MS, at, config, core_with, drain, id};
use crate::{
    EventKind, NodeId,
    proto::{Now, Output, Protocol, StreamInput},
    wire::{
        StreamId,
        codec::{self, Packet},
    },
};

/// A core of that name, at an address of its own.
pub(crate) fn core(name: &str) -> Protocol {
    core_with(name, |_| ())
}

/// One that draws other numbers than the rest.
pub(crate) fn core_seeded(name: &str, seed: u64) -> Protocol {
    made(name, seed, |_| ())
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
