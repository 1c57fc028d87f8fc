//! Any calls of a core in any order: two real cores that may speak to one another, and peers that say whatever the
//! input makes them say, rightly signed or not. Nothing is a fault of the input; what a core says must make sense
//! and what was written must be there.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;

use super::{core::is_well, input::Input, input::NAMES, node::Node};
use crate::{
    NodeId, Options, StateType, SyncableState, Value,
    proto::{
        Now, Output, StreamInput, Time,
        fixtures::{WALL_MS, id},
    },
    wire::{
        CloseCode, StreamId, codec,
        message::{AskHeld, Ping, PingReq, SpreadHead, kind},
    },
};

/// Calls of one script: more only take longer.
const CALLS_MAX: usize = 256;
/// What may be on its way between the two cores.
const ON_ITS_WAY_MAX: usize = 512;
/// Steps of time, in milliseconds: within a round trip, around each interval of the defaults, and beyond all.
const STEPS_MS: [u64; 12] = [0, 1, 5, 30, 100, 250, 600, 1_100, 4_000, 15_000, 130_000, 90_000_000];

/// Runs a script to its end, then has the first core leave.
pub(super) fn script(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    for _ in 0..CALLS_MAX {
        if input.is_empty() {
            break;
        }
        world.call(&mut input);
    }
    world.end();
}

struct World {
    /// `a` and `b`.
    ends: [End; 2],
    now: Now,
}

/// One of the two real cores.
struct End {
    node: Node,
    /// What it wants done and the other can hear.
    out: VecDeque<Output>,
    /// The other's number of each stream between the two.
    streams: BTreeMap<StreamId, StreamId>,
    /// Streams to peers that are made up, with whom.
    others: Vec<(NodeId, StreamId)>,
    /// The next number of a stream that a peer opens.
    inbound: u64,
    /// Types that are switched off.
    off: BTreeSet<StateType>,
    ticket: u64,
}

impl End {
    fn new(name: &str, settings: u8) -> Self {
        let node = Node::new(name, |config| {
            if settings & 1 == 1 {
                config.dead_node_reclaim = Duration::from_secs(20);
                config.tombstone_ttl = Duration::from_secs(10);
            }
            if settings & 2 == 2 {
                config.max_connections = 2;
            }
            if settings & 4 == 4 {
                config.disabled.insert(StateType::CONNTRACK);
                config.zone = Some("east".into());
            }
            if settings & 8 == 8 {
                *config = config.clone().detecting_fast();
            }
        });
        let off = if settings & 4 == 4 { BTreeSet::from([StateType::CONNTRACK]) } else { BTreeSet::new() };
        Self {
            node,
            out: VecDeque::new(),
            streams: BTreeMap::new(),
            others: Vec::new(),
            inbound: 2,
            off,
            ticket: 0,
        }
    }

    fn next_inbound(&mut self) -> StreamId {
        self.inbound += 2;
        StreamId(self.inbound - 2)
    }
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let settings = input.byte();
        Self {
            ends: [End::new("a", settings & 15), End::new("b", settings >> 4)],
            now: Now { time: Time::ZERO, wall_ms: WALL_MS },
        }
    }

    fn call(&mut self, input: &mut Input<'_>) {
        let op = input.byte();
        // Mostly the first: what happens to one core must meet what happened to it before.
        let at = usize::from(op >= 0xc0);
        match op % 32 {
            0..=3 => self.pass_time(at, input),
            4 => self.link(),
            5 => self.unlink(input),
            6..=8 => self.exchange(input),
            9 | 10 => self.connect(at, input),
            11 => self.disconnect(at, input),
            12..=16 => self.message(at, input),
            17..=19 => self.frame(at, input),
            20 => self.stream(at, input),
            21 => self.read(at, input),
            22 => self.judge(at, input),
            23 => {
                let peer = input.peer_of(&id(NAMES[at]));
                self.ends[at].node.core.handle_dial_failed(&peer, self.now);
            }
            _ => self.command(at, op % 8, input),
        }
        self.settle(at, input);
        if matches!(op % 32, 0..=8) {
            self.settle(1 - at, input);
        }
    }

    /// The first core says goodbye, which ends; the second is as well as ever.
    fn end(&mut self) {
        let until = self.later(2_500_000);
        self.ends[0].node.core.leave(self.now);
        self.ends[0].node.walk(self.now, until, drop);
        assert!(self.ends[0].node.left, "a leave has not ended after 2.5 s");
        is_well(&mut self.ends[1].node, until);
    }

    fn later(&self, micros: u64) -> Now {
        let time = self.now.time + Duration::from_micros(micros);
        Now { time, wall_ms: self.now.wall_ms.saturating_add(micros / 1_000) }
    }

    /// Keeps what the other core can hear, and lets the input know the numbers that peers could repeat.
    fn settle(&mut self, at: usize, input: &mut Input<'_>) {
        let outputs = self.ends[at].node.settle();
        self.keep(at, outputs, input);
    }

    fn keep(&mut self, at: usize, outputs: Vec<Output>, input: &mut Input<'_>) {
        let other = id(NAMES[1 - at]);
        let end = &mut self.ends[at];
        for output in outputs {
            match &output {
                Output::Send { to, bytes } => {
                    note_numbers(bytes, input);
                    if *to != other {
                        continue;
                    }
                }
                Output::OpenStream { to, stream } if *to != other => {
                    end.others.push((to.clone(), *stream));
                    continue;
                }
                Output::OpenStream { .. }
                | Output::Frame { .. }
                | Output::Finish { .. }
                | Output::Reset { .. } => {}
                _ => continue,
            }
            end.out.push_back(output);
            if end.out.len() > ON_ITS_WAY_MAX {
                end.out.pop_front();
            }
        }
    }

    fn pass_time(&mut self, at: usize, input: &mut Input<'_>) {
        let how = input.byte();
        let micros = input.pick(&STEPS_MS) * 1_000 + u64::from(how >> 3) * 7;
        let mut until = self.later(micros);
        match how % 8 {
            // The wall clock is set.
            0 => until.wall_ms = input.moment(),
            // The process stood still, and finds everything late.
            1 => {
                self.now = until;
                return self.ends[at].node.wake(until);
            }
            _ => {}
        }
        for at in [0, 1] {
            let mut outputs = Vec::new();
            self.ends[at].node.walk(self.now, until, |of_it| outputs.extend(of_it));
            self.keep(at, outputs, input);
        }
        self.now = until;
    }

    /// Connects the two real cores.
    fn link(&mut self) {
        let now = self.now;
        let [a, b] = &mut self.ends;
        let said = [a.node.core.introduction(Some(&id("b"))), b.node.core.introduction(Some(&id("a")))];
        a.node.connect(&id("b"), &said[1], now);
        b.node.connect(&id("a"), &said[0], now);
    }

    fn unlink(&mut self, input: &mut Input<'_>) {
        let (code, by_peer) = close_code(input);
        for at in [0, 1] {
            let other = id(NAMES[1 - at]);
            let end = &mut self.ends[at];
            end.out.clear();
            for (stream, _) in std::mem::take(&mut end.streams) {
                end.node.lose(stream);
            }
            end.node.core.handle_disconnected(&other, code, by_peer, self.now);
        }
    }

    /// Lets what is on its way between the two real cores arrive, or not.
    fn exchange(&mut self, input: &mut Input<'_>) {
        let (rounds, loses) = (1 + input.below(6), input.byte());
        for round in 0..rounds {
            for at in [0, 1] {
                let outputs: Vec<_> = self.ends[at].out.drain(..).collect();
                for (number, output) in outputs.into_iter().enumerate() {
                    // A bit of `loses` for each, in turn: the sixth to eighth are rare.
                    let lost = loses > 0x80 && loses >> (number % 7) & 1 == 1;
                    self.arrive(1 - at, output, lost);
                    for at in [0, 1] {
                        let outputs = self.ends[at].node.hear();
                        self.keep(at, outputs, input);
                    }
                }
            }
            self.now = self.later(u64::from(round) * 500);
        }
    }

    fn arrive(&mut self, at: usize, output: Output, lost: bool) {
        let (me, from) = (id(NAMES[at]), id(NAMES[1 - at]));
        let now = self.now;
        let (stream, what) = match output {
            Output::Send { bytes, .. } => {
                if !lost {
                    self.ends[at].node.core.handle_message(&from, &bytes, now);
                }
                return;
            }
            Output::OpenStream { stream, .. } => {
                let mine = self.ends[at].next_inbound();
                self.ends[at].streams.insert(mine, stream);
                self.ends[1 - at].streams.insert(stream, mine);
                (stream, StreamInput::Opened)
            }
            Output::Frame { stream, bytes } => {
                self.ends[1 - at].node.stream(&me, stream, StreamInput::Sent, now);
                (stream, StreamInput::Frame(bytes))
            }
            Output::Finish { stream } => (stream, StreamInput::Finished),
            Output::Reset { stream } => (stream, StreamInput::Lost),
            _ => return,
        };
        if let Some(mine) = self.ends[1 - at].streams.get(&stream).copied() {
            self.ends[at].node.stream(&from, mine, what, now);
        }
    }

    /// A peer that is made up connects, or comes again.
    fn connect(&mut self, at: usize, input: &mut Input<'_>) {
        let peer = input.peer_of(&id(NAMES[at]));
        let introduction = input.introduction(&peer);
        self.ends[at].node.connect(&peer, &introduction, self.now);
    }

    fn disconnect(&mut self, at: usize, input: &mut Input<'_>) {
        let (peer, (code, by_peer)) = (input.peer_of(&id(NAMES[at])), close_code(input));
        let end = &mut self.ends[at];
        end.others.retain(|(of, _)| *of != peer);
        end.node.core.handle_disconnected(&peer, code, by_peer, self.now);
    }

    fn message(&mut self, at: usize, input: &mut Input<'_>) {
        let from = input.node();
        let bytes = if input.rarely() { Bytes::copy_from_slice(input.raw(256)) } else { input.message() };
        self.ends[at].node.core.handle_message(&from, &bytes, self.now);
    }

    /// Mostly on a stream that is there.
    fn frame(&mut self, at: usize, input: &mut Input<'_>) {
        let (peer, stream) = self.some_stream(at, input);
        let bytes = if input.rarely() { Bytes::copy_from_slice(input.raw(256)) } else { input.frame() };
        self.ends[at].node.stream(&peer, stream, StreamInput::Frame(bytes), self.now);
    }

    fn stream(&mut self, at: usize, input: &mut Input<'_>) {
        let (peer, stream) = self.some_stream(at, input);
        let inputs = [StreamInput::Opened, StreamInput::Sent, StreamInput::Finished, StreamInput::Lost];
        self.ends[at].node.stream(&peer, stream, input.pick(&inputs), self.now);
    }

    fn some_stream(&mut self, at: usize, input: &mut Input<'_>) -> (NodeId, StreamId) {
        let end = &mut self.ends[at];
        let which = input.byte();
        if which < 64 || end.others.is_empty() {
            let (peer, stream) = (input.peer_of(&id(NAMES[at])), end.next_inbound());
            end.node.stream(&peer, stream, StreamInput::Opened, self.now);
            end.others.push((peer.clone(), stream));
            self.settle(at, input);
            return (peer, stream);
        }
        let latest = end.others.len() - 1 - usize::from(which) % end.others.len().min(4);
        end.others[latest].clone()
    }

    /// What readers ask changes nothing and never fails.
    fn read(&mut self, at: usize, input: &mut Input<'_>) {
        let core = &self.ends[at].node.core;
        let (peer, state_type) = (input.node(), input.state_type());
        let mut page = 0;
        loop {
            let (records, next) = core.states_from(&state_type, page);
            for record in &records {
                assert!(core.place_of(record).is_some(), "{record:?} is told and has no place");
                assert!(!record.deleted, "{record:?} is told and was removed");
            }
            match next {
                Some(next) => page = next,
                None => break,
            }
        }
        let (nodes, alive) = (core.nodes(), core.alive());
        assert!(alive.iter().all(|id| nodes.contains_key(id)));
        assert_eq!(core.explain(&peer).is_some(), core.node(&peer).is_some());
        assert!(core.speakers().len() <= nodes.len());
        let (_, _) = (core.counters(), core.written_and_waiting());
        let _ = core.introduction(Some(&peer));
    }

    fn judge(&mut self, at: usize, input: &mut Input<'_>) {
        let peer = input.node();
        let _ = self.ends[at].node.core.judge(&input.introduction(&peer), self.now);
    }

    /// What a user may ask of a node, as far as `Cluster` lets it through.
    fn command(&mut self, at: usize, which: u8, input: &mut Input<'_>) {
        let now = self.now;
        let end = &mut self.ends[at];
        match which {
            0 | 1 => end.write(input, now),
            2 => end.write_many(input, now),
            3 => end.remove(input, now),
            4 => end.confirm(input, now),
            5 => end.switch(input, now),
            6 => {
                let forgotten = input.node();
                let known = end.node.core.node(&forgotten).is_some();
                let done = end.node.core.forget(&forgotten, now).is_ok();
                assert!(!done || known && end.node.core.node(&forgotten).is_none());
            }
            _ => match input.below(8) {
                0 => end.node.core.leave(now),
                1 => end.node.core.sign_anew(now),
                2 => _ = end.node.core.next_version(now),
                _ => {
                    let tags = input.tags();
                    end.node.core.set_tags(tags.clone(), now);
                    assert_eq!(end.node.core.local_node().tags, tags);
                }
            },
        }
    }
}

impl End {
    fn write(&mut self, input: &mut Input<'_>, now: Now) {
        let (state_type, key, value) = (input.state_type(), input.own_key(), input.own_value());
        let mut options = Options { urgent: input.flag(), ..Options::default() };
        if input.below(4) == 3 {
            options.ttl = Some(Duration::from_millis(input.number()));
        }
        let core = &mut self.node.core;
        let written = core.broadcast(&state_type, &key, Value::from_checked(value), options, now);
        let held = core.get(&state_type, &key);
        match written {
            Ok(written) if options.ttl.is_none() && !self.off.contains(&state_type) => {
                assert_eq!(held, Some(written), "what was written is not there");
            }
            _ => {}
        }
    }

    fn write_many(&mut self, input: &mut Input<'_>, now: Now) {
        let records: Vec<_> = (0..input.below(4))
            .map(|_| {
                let source = if input.rarely() { input.node() } else { self.node.core.local_node().node_id };
                let (state_type, value) = (input.state_type(), Value::from_checked(input.own_value()));
                SyncableState {
                    state_type,
                    key: input.own_key(),
                    value,
                    version: input.number(),
                    source_node: source,
                    timestamp: now.wall(),
                    deleted: input.rarely(),
                }
            })
            .collect();
        let many = records.len();
        if let Ok(accepted) = self.node.core.broadcast_many(records, now) {
            assert!(accepted <= many);
        }
    }

    fn remove(&mut self, input: &mut Input<'_>, now: Now) {
        let (state_type, key) = (input.state_type(), input.own_key());
        self.node.core.remove(&state_type, &key, now);
        assert_eq!(self.node.core.get(&state_type, &key), None, "what was removed is there");
    }

    fn confirm(&mut self, input: &mut Input<'_>, now: Now) {
        self.ticket += 1;
        self.node.awaits(self.ticket);
        input.saw(self.ticket);
        let limit = Duration::from_millis(input.number().min(86_400_000));
        let (state_type, key) = (input.state_type(), input.own_key());
        self.node.core.confirm(&state_type, &key, limit, self.ticket, now);
    }

    /// Switches a type off or on, and drops what was held, as the driver does.
    fn switch(&mut self, input: &mut Input<'_>, now: Now) {
        let (state_type, on) = (input.state_type(), input.flag());
        self.node.core.set_sync(&state_type, on, now);
        if on {
            self.off.remove(&state_type);
            return;
        }
        self.off.insert(state_type.clone());
        let mut page = Some(0);
        while let Some(first) = page {
            page = self.node.core.drop_page(&state_type, first, now);
        }
    }
}

/// The numbers in a message that a peer could answer with.
fn note_numbers(bytes: &Bytes, input: &mut Input<'_>) {
    for (of, body) in codec::parts(bytes).unwrap_or_default() {
        let number = match of {
            kind::PING => codec::decode::<Ping>(&body).map(|ping| ping.seq),
            kind::PING_REQ => codec::decode::<PingReq>(&body).map(|request| request.seq),
            kind::ASK_HELD => codec::decode::<AskHeld>(&body).map(|ask| ask.ticket),
            kind::SPREAD => codec::head_and_rest(&body)
                .and_then(|(head, _)| codec::decode::<SpreadHead>(&head))
                .map(|head| head.handoff),
            _ => continue,
        };
        if let Ok(number) = number {
            input.saw(number);
        }
    }
}

fn close_code(input: &mut Input<'_>) -> (CloseCode, bool) {
    let codes = [CloseCode::UNSPECIFIED, CloseCode::LEFT, CloseCode::RESTARTING, CloseCode::RATE_LIMITED];
    (input.pick(&codes), input.flag())
}
