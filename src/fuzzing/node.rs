//! A core under test: fed, drained, and watched for what it must never say. Each rule holds whatever reaches the
//! core, in whatever order. Makes no input of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    ClusterEvent, EventKind, NodeId, NodeStatus,
    proto::{
        Now, Output, Protocol, ProtocolConfig, StreamInput,
        fixtures::{core_with, drain, id},
    },
    wire::{CloseCode, StreamId, codec, hello::Introduction, limits},
};

/// Outputs of one input before it counts as a loop: a frame full of the smallest records gives some 50,000.
const OUTPUTS_MAX: usize = 100_000;
/// Frames of one stream that may wait to be handed over, as in the transport, which ends the stream at one more.
const FRAMES_WAITING_MAX: usize = 32;
/// Timers that may be due one after another within one step of time.
const TIMERS_MAX: usize = 64;

/// A stream as its host knows it.
#[derive(Debug, Default)]
struct Stream {
    waiting: usize,
    finished: bool,
}

/// A core, and what it has said so far.
pub(super) struct Node {
    pub(super) core: Protocol,
    me: NodeId,
    epoch: u64,
    lives: BTreeMap<NodeId, (u64, u64)>,
    paths: BTreeMap<NodeId, NodeStatus>,
    streams: BTreeMap<StreamId, Stream>,
    last_opened: u64,
    tickets: BTreeSet<u64>,
    synced: bool,
    pub(super) left: bool,
}

impl Node {
    pub(super) fn new(name: &str, change: impl FnOnce(&mut ProtocolConfig)) -> Self {
        Self {
            core: core_with(name, change),
            me: id(name),
            epoch: 0,
            lives: BTreeMap::new(),
            paths: BTreeMap::new(),
            streams: BTreeMap::new(),
            last_opened: 0,
            tickets: BTreeSet::new(),
            synced: false,
            left: false,
        }
    }

    /// What happens to a stream, as far as it can happen to one that is there.
    pub(super) fn stream(&mut self, peer: &NodeId, stream: StreamId, input: StreamInput, now: Now) {
        match (&input, self.streams.get_mut(&stream)) {
            (StreamInput::Opened, Some(_)) => return, // a number is never used twice
            (StreamInput::Opened, None) => _ = self.streams.insert(stream, Stream::default()),
            (StreamInput::Sent, Some(known)) => known.waiting = known.waiting.saturating_sub(1),
            (StreamInput::Lost, _) => _ = self.streams.remove(&stream),
            _ => {}
        }
        self.core.handle_stream(peer, stream, input, now);
    }

    /// A peer has been let in.
    pub(super) fn connect(&mut self, peer: &NodeId, introduction: &Introduction, now: Now) {
        let (remote, rtt) = (([10, 0, 0, 9], 7_000).into(), Duration::from_micros(500));
        self.core.handle_connected(peer, introduction, remote, rtt, now);
    }

    /// The last connection to a peer is gone.
    pub(super) fn disconnect(&mut self, peer: &NodeId, now: Now) {
        self.core.handle_disconnected(peer, CloseCode::UNSPECIFIED, false, now);
    }

    /// A stream goes with its connection.
    pub(super) fn lose(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
    }

    /// A confirmation was asked for.
    pub(super) fn awaits(&mut self, ticket: u64) {
        self.tickets.insert(ticket);
    }

    /// Lets time pass to `until`, and has everything done that is due on the way; `each` is given what comes of
    /// it.
    pub(super) fn walk(&mut self, now: Now, until: Now, mut each: impl FnMut(Vec<Output>)) {
        let mut at = now;
        for _ in 0..TIMERS_MAX {
            let Some(due) = self.core.poll_timeout().filter(|due| *due <= until.time) else { break };
            at.time = at.time.max(due);
            self.wake(at);
            each(self.hear());
        }
        self.wake(until);
        each(self.settle());
    }

    /// Does what is due.
    pub(super) fn wake(&mut self, now: Now) {
        self.core.handle_timeout(now);
        let due = self.core.poll_timeout();
        assert!(due.is_none_or(|due| due > now.time), "a timer of {due:?} is still due at {now:?}");
    }

    /// What the core wants done, after every rule was checked.
    pub(super) fn settle(&mut self) -> Vec<Output> {
        let outputs = self.hear();
        self.core.check();
        outputs
    }

    /// What the core wants done. Cheap: what is kept is not looked through.
    pub(super) fn hear(&mut self) -> Vec<Output> {
        let outputs = drain(&mut self.core);
        assert!(outputs.len() <= OUTPUTS_MAX, "{} outputs of one input: a loop", outputs.len());
        for output in &outputs {
            self.see(output);
        }
        self.see_lives();
        outputs
    }

    /// Nobody goes back to an earlier life while it stays in the table.
    fn see_lives(&mut self) {
        let lives: BTreeMap<_, _> = self.core.lives().map(|(id, life)| (id.clone(), life)).collect();
        for (id, life) in &lives {
            let before = self.lives.get(id).copied().unwrap_or_default();
            assert!(*life >= before, "{id} went back from {before:?} to {life:?}");
        }
        self.lives = lives;
        let epoch = self.core.local_node().epoch;
        assert!(epoch >= self.epoch, "its own epoch went back from {} to {epoch}", self.epoch);
        self.epoch = epoch;
    }

    fn see(&mut self, output: &Output) {
        match output {
            Output::Send { to, bytes } => {
                assert_ne!(*to, self.me, "a message to itself");
                assert!(bytes.len() <= limits::FRAME_LEN_MAX, "a message of {} bytes", bytes.len());
                assert!(codec::parts(bytes).is_ok_and(|parts| !parts.is_empty()), "no message: {bytes:?}");
            }
            Output::Dial { to, .. } => assert_ne!(*to, self.me, "it dials itself"),
            Output::OpenStream { stream, .. } => {
                assert!(stream.0 % 2 == 1 && stream.0 > self.last_opened, "{stream:?} was used before");
                self.last_opened = stream.0;
                self.streams.insert(*stream, Stream::default());
            }
            Output::Frame { stream, bytes } => {
                assert!(bytes.len() <= limits::FRAME_LEN_MAX, "a frame of {} bytes", bytes.len());
                assert!(codec::parts(bytes).is_ok(), "no frame: {bytes:?}");
                let stream = self.streams.get_mut(stream).expect("a frame of a stream that is there");
                assert!(!stream.finished, "a frame after the last");
                stream.waiting += 1;
                assert!(stream.waiting <= FRAMES_WAITING_MAX, "the transport would end the stream");
            }
            Output::Finish { stream } => {
                let stream = self.streams.get_mut(stream).expect("an end of a stream that is there");
                assert!(!std::mem::replace(&mut stream.finished, true), "it ends twice");
            }
            Output::Reset { stream } => _ = self.streams.remove(stream),
            Output::Event(event) => self.see_event(event),
            Output::Apply(record) => {
                let fits = (1..=limits::KEY_LEN_MAX).contains(&record.key.len());
                assert!(fits, "a provider is handed a key of {} bytes", record.key.len());
                assert!(limits::check_value(record.value.as_bytes()).is_ok(), "and no value: {record:?}");
            }
            Output::Confirmed { ticket, .. } => {
                assert!(self.tickets.remove(ticket), "nobody asked for confirmation {ticket}, or twice told");
            }
            Output::Synced { .. } => assert!(!std::mem::replace(&mut self.synced, true), "synced twice"),
            Output::LeaveSpread => assert!(!std::mem::replace(&mut self.left, true), "left twice"),
            Output::Close { .. }
            | Output::Change(_)
            | Output::NodeFailed(_)
            | Output::AskProviders
            | Output::List { .. } => {}
        }
    }

    /// What is told of a member makes sense: it joins before anything else, is suspected before it dies, and so
    /// on.
    fn see_event(&mut self, event: &ClusterEvent) {
        let Some(node) = event.node_id.as_ref().filter(|node| **node != self.me) else { return };
        let was = self.paths.get(node).copied();
        let (is, legal) = match event.kind {
            EventKind::NodeJoin => {
                (NodeStatus::Alive, matches!(was, None | Some(NodeStatus::Dead | NodeStatus::Left)))
            }
            EventKind::NodeSuspect => (NodeStatus::Suspect, was == Some(NodeStatus::Alive)),
            EventKind::NodeAlive => (NodeStatus::Alive, was == Some(NodeStatus::Suspect)),
            EventKind::NodeUpdate => (NodeStatus::Alive, was == Some(NodeStatus::Alive)),
            EventKind::NodeDead => (NodeStatus::Dead, was == Some(NodeStatus::Suspect)),
            // Who was known as dead from the beginning was never told of as one that joined.
            EventKind::NodeLeave => (NodeStatus::Left, was != Some(NodeStatus::Left)),
            _ => return,
        };
        assert!(legal, "{node} was {was:?}, and then came: {event}");
        self.paths.insert(node.clone(), is);
    }
}
