//! Worlds of three nodes in which a few things happen, explored to the end: every order in which nodes act
//! and letters arrive, each letter lost, delivered or delivered twice. Timers run only when all the rest is
//! over.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher as _},
};

use bytes::Bytes;

use crate::{
    NodeId, NodeStatus, Options, StateType, Value,
    proto::{Now, Output, Protocol, StreamInput, members::rank, tests_support::*},
    wire::{
        CloseCode, StreamId,
        codec::{self, Packet},
        message::kind,
    },
};

const NAMES: [&str; 3] = ["a", "b", "c"];
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
/// When it begins: what was heard at the meeting is old by then.
const BEGIN_MS: u64 = 3_000;
/// How long all may take to agree once nothing is lost any more.
const AGREE_MS: u64 = 60_000;
/// How long they must go on to agree.
const REST_MS: u64 = 3_000;
const KEY: &str = "x";

fn routes() -> StateType {
    StateType::shared("routes")
}

fn place(id: &NodeId) -> usize {
    NAMES.iter().position(|name| *name == id.as_str()).expect("there are three nodes")
}

/// A message: from whom, to whom, what.
type Letter = (usize, usize, Bytes);

/// What a hand-off has in it, as gossip would bring it: who is told must not depend on what the spread
/// remembers.
fn bare(bytes: &Bytes) -> Bytes {
    match &codec::parts(bytes).unwrap()[..] {
        [(kind::SPREAD, body)] => {
            let mut packet = Packet::new();
            packet.push_parts(&codec::head_and_rest(body).unwrap().1);
            packet.into_bytes()
        }
        _ => bytes.clone(),
    }
}

/// What has happened, for who reads of a failure.
#[expect(dead_code, reason = "printed by a failure")]
#[derive(Clone, Debug)]
enum Event {
    Deed(usize),
    Letter(Letter),
}

/// A write to the one key: who, its number, version, value if it is no removal.
type Written = (usize, u64, u64, Option<u8>);

/// What a node does of itself. The deeds of one node happen in their order.
type Deed = (usize, fn(&mut World));

#[derive(Clone)]
struct World {
    cores: Vec<Protocol>,
    ms: u64,
    /// Letters wait until they are chosen; later all arrive at once.
    exploring: bool,
    /// All that was ever sent. What may be lost, late and repeated may arrive at any time or never, so
    /// nothing is taken out: one that changes nothing leads to where one is.
    letters: BTreeSet<Letter>,
    done: BTreeSet<usize>,
    /// How it came to this.
    course: Vec<Event>,
    streams: BTreeMap<(usize, StreamId), (usize, StreamId)>,
    /// Who has left, and has stopped.
    gone: BTreeSet<usize>,
    written: Vec<Written>,
    /// The greatest claim that each has held of each.
    ranks: BTreeMap<(usize, NodeId), (u64, u64, bool)>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            cores: NAMES.into_iter().map(core).collect(),
            ms: 0,
            exploring: false,
            letters: BTreeSet::new(),
            done: BTreeSet::new(),
            course: Vec::new(),
            streams: BTreeMap::new(),
            gone: BTreeSet::new(),
            written: Vec::new(),
            ranks: BTreeMap::new(),
        };
        world.connect_all();
        world.pass();
        world.ms = 2;
        world.cores.iter_mut().for_each(|core| core.handle_timeout(at(2)));
        world.pass();
        assert!(world.is_agreed());
        (world.ms, world.exploring) = (BEGIN_MS, true);
        world
    }

    fn now(&self) -> Now {
        at(self.ms)
    }

    fn core(&mut self, node: usize) -> &mut Protocol {
        &mut self.cores[node]
    }

    fn is_linked(&self, one: usize, other: usize) -> bool {
        self.cores[one].members.get(&id(NAMES[other])).is_some_and(|member| member.linked)
    }

    fn connect(&mut self, one: usize, other: usize) {
        let (low, high) = (one.min(other), one.max(other));
        if self.is_linked(low, high) || self.is_linked(high, low) {
            return;
        }
        let now = self.now();
        let (left, right) = self.cores.split_at_mut(high);
        connect(&mut left[low], &mut right[0], now);
    }

    fn connect_all(&mut self) {
        for (one, other) in [(A, B), (A, C), (B, C)] {
            if !self.gone.contains(&one) && !self.gone.contains(&other) {
                self.connect(one, other);
            }
        }
    }

    fn disconnect(&mut self, by: usize, peer: usize, code: CloseCode) {
        let now = self.now();
        self.cores[by].handle_disconnected(&id(NAMES[peer]), code, false, now);
        self.cores[peer].handle_disconnected(&id(NAMES[by]), code, true, now);
    }

    fn deliver(&mut self, from: usize, to: usize, bytes: &Bytes) {
        if !self.gone.contains(&to) {
            let now = self.now();
            self.cores[to].handle_message(&id(NAMES[from]), bytes, now);
        }
    }

    /// Performs what all want done, until nobody wants anything.
    fn pass(&mut self) {
        let mut quiet = false;
        while !std::mem::replace(&mut quiet, true) {
            for from in 0..NAMES.len() {
                for output in drain(&mut self.cores[from]) {
                    quiet = false;
                    self.perform(from, output);
                }
            }
        }
    }

    fn perform(&mut self, from: usize, output: Output) {
        match output {
            Output::Send { to, bytes } => self.send(from, place(&to), &bytes),
            Output::Dial { to, .. } if !self.exploring && !self.gone.contains(&place(&to)) => {
                self.connect(from, place(&to));
            }
            Output::OpenStream { to, stream } => {
                let there = (place(&to), StreamId(1_000 + 2 * self.streams.len() as u64));
                if !self.exploring {
                    self.streams.insert((from, stream), there);
                    self.streams.insert(there, (from, stream));
                }
                self.stream(from, stream, StreamInput::Opened);
            }
            Output::Frame { stream, bytes } => {
                let peer = self.streams.get(&(from, stream)).map_or(from, |(peer, _)| *peer);
                let now = self.now();
                self.cores[from].handle_stream(&id(NAMES[peer]), stream, StreamInput::Sent, now);
                self.stream(from, stream, StreamInput::Frame(bytes));
            }
            Output::Finish { stream } => self.stream(from, stream, StreamInput::Finished),
            Output::Reset { stream } => self.stream(from, stream, StreamInput::Lost),
            Output::Close { peer, code, .. } => self.disconnect(from, place(&peer), code),
            Output::LeaveSpread if !self.exploring => {
                self.gone.insert(from);
                for other in (0..NAMES.len()).filter(|other| *other != from) {
                    self.disconnect(from, other, CloseCode::LEFT);
                }
            }
            _ => {}
        }
    }

    fn stream(&mut self, from: usize, stream: StreamId, input: StreamInput) {
        let now = self.now();
        match self.streams.get(&(from, stream)) {
            Some((to, there)) => self.cores[*to].handle_stream(&id(NAMES[from]), *there, input, now),
            None => self.cores[from].handle_stream(&id(NAMES[from]), stream, StreamInput::Lost, now),
        }
    }

    fn send(&mut self, from: usize, to: usize, bytes: &Bytes) {
        let kinds: Vec<_> = codec::parts(bytes).unwrap().into_iter().map(|(kind, _)| kind).collect();
        let is_answer = kinds.iter().all(|kind| matches!(*kind, kind::TOOK | kind::ACK));
        // A probe takes time, and there is none here.
        let is_probe = kinds.iter().any(|kind| matches!(*kind, kind::SOLICIT | kind::PING | kind::PING_REQ));
        if !self.exploring || is_answer {
            self.deliver(from, to, bytes);
        } else if !is_probe {
            self.letters.insert((from, to, bare(bytes)));
        }
    }

    /// Every way in which it can go on.
    fn courses(&self, deeds: &[Deed]) -> Vec<Self> {
        let mut courses = Vec::new();
        for node in 0..NAMES.len() {
            let next = |deed: &usize| deeds[*deed].0 == node && !self.done.contains(deed);
            if let Some(deed) = (0..deeds.len()).find(next) {
                let mut world = self.clone();
                world.done.insert(deed);
                world.course.push(Event::Deed(deed));
                deeds[deed].1(&mut world);
                courses.push(world);
            }
        }
        for (from, to, bytes) in &self.letters {
            let mut world = self.clone();
            world.course.push(Event::Letter((*from, *to, bytes.clone())));
            world.deliver(*from, *to, bytes);
            courses.push(world);
        }
        courses.iter_mut().for_each(Self::rest);
        courses
    }

    /// What follows from what has just happened.
    fn rest(&mut self) {
        let now = self.now();
        for core in &mut self.cores {
            // As if some time lay between this and the next.
            core.flush(now);
            core.refuted = None;
            for name in NAMES {
                core.members.note(&id(name), |member| member.warned = None);
            }
        }
        self.pass();
        self.check();
    }

    /// What holds at any time.
    fn check(&mut self) {
        for (node, core) in self.cores.iter().enumerate() {
            core.store.check();
            for (id, member) in core.members.iter() {
                let rank = rank(&member.body);
                let before = self.ranks.insert((node, id.clone()), rank);
                assert!(
                    before.is_none_or(|before| before <= rank),
                    "{id} at {}: {before:?} {rank:?} {:#?}",
                    NAMES[node],
                    self.course
                );
                assert!(
                    !member.body.left || member.status == NodeStatus::Left,
                    "{id} is back at {}",
                    NAMES[node]
                );
            }
            let epoch = config("a").epoch;
            let known = self
                .written
                .iter()
                .filter(|(source, seq, ..)| core.store.holds(&routes(), &id(NAMES[*source]), epoch, *seq));
            let winner = known.max_by_key(|(source, _, version, _)| (*version, *source));
            let shows = core.get(&routes(), KEY).map(|record| record.value.decode().unwrap());
            assert_eq!(
                shows,
                winner.and_then(|(.., value)| *value),
                "at {} of {:?}",
                NAMES[node],
                self.written
            );
        }
    }

    /// What decides how it goes on, but for times and counters; with or without what was sent.
    fn state(&self, letters: bool) -> u64 {
        let mut hasher = DefaultHasher::new();
        for core in &self.cores {
            for (id, member) in core.members.iter() {
                let accusers: Vec<_> = member.suspicion.iter().flat_map(|s| s.accusers().cloned()).collect();
                let heard = member.heard == Some(self.now().time);
                (id, rank(&member.body), member.status, accusers, heard, member.linked).hash(&mut hasher);
            }
            (core.refute_above, core.leave_told).hash(&mut hasher);
            core.rumours.iter().for_each(|(about, (part, _))| (about, part).hash(&mut hasher));
            for ((source, epoch), ranges) in core.store.vector(&routes()) {
                (source, epoch, ranges.to_wire()).hash(&mut hasher);
            }
        }
        (&self.done, letters.then_some(&self.letters)).hash(&mut hasher);
        hasher.finish()
    }

    /// Those who have not left hold the same, and all who live are alive to all.
    fn is_agreed(&self) -> bool {
        let stays = |node: &usize| !self.cores[*node].leaving;
        let staying: Vec<_> = (0..NAMES.len()).filter(stays).collect();
        let first = &self.cores[staying[0]];
        staying.iter().all(|node| {
            let core = &self.cores[*node];
            let status = |node: usize| core.node(&id(NAMES[node])).map(|info| info.status);
            core.members.hash() == first.members.hash()
                && core.store.digest(&routes()) == first.store.digest(&routes())
                && (0..NAMES.len()).all(|node| {
                    let expected = if stays(&node) { NodeStatus::Alive } else { NodeStatus::Left };
                    status(node) == Some(expected)
                })
        })
    }

    /// What is on its way is lost; from now on nothing is, and time passes until all agree, and still do a
    /// while later.
    fn end(mut self) {
        self.exploring = false;
        self.connect_all();
        self.pass();
        let mut since = None;
        while since.is_none_or(|since| self.ms < since + REST_MS) {
            let running: Vec<_> = (0..NAMES.len()).filter(|node| !self.gone.contains(node)).collect();
            let due = running.iter().filter_map(|node| self.cores[*node].poll_timeout()).min().unwrap();
            self.ms = self.ms.max(due.as_micros().div_ceil(1_000));
            assert!(self.ms < BEGIN_MS + AGREE_MS, "they do not agree: {}", self.show());
            let now = self.now();
            for node in running {
                self.cores[node].handle_timeout(now);
            }
            self.pass();
            self.check();
            since = if self.is_agreed() { since.or(Some(self.ms)) } else { None };
        }
    }

    fn show(&self) -> String {
        let rows = self.cores.iter().map(|core| {
            let rows: Vec<_> =
                core.members.iter().map(|(id, m)| (id.clone(), rank(&m.body), m.status)).collect();
            format!("\n{}: {rows:?} {:?}", core.id(), core.store.vector(&routes()))
        });
        rows.chain([format!("\n{:#?}", self.course)]).collect()
    }
}

/// Tells every course of a story, which must have at least so many states.
fn tell(states_min: usize, deeds: &[Deed]) {
    let (mut seen, mut ended) = (BTreeSet::new(), BTreeSet::new());
    let mut worlds = vec![World::new()];
    while let Some(world) = worlds.pop() {
        if seen.insert(world.state(true)) {
            worlds.extend(world.courses(deeds));
            if ended.insert(world.state(false)) {
                world.end();
            }
        }
    }
    assert!(seen.len() >= states_min, "only {} states and {} ends", seen.len(), ended.len());
}

fn put(world: &mut World, node: usize, value: u8) {
    let now = world.now();
    let encoded = Value::encode(&value).unwrap();
    let record = world.core(node).broadcast(&routes(), KEY, encoded, Options::default(), now).unwrap();
    note(world, node, record.version, Some(value));
}

fn remove(world: &mut World, node: usize) {
    let now = world.now();
    if world.core(node).remove(&routes(), KEY, now).is_some() {
        let version = world.core(node).store.clock();
        note(world, node, version, None);
    }
}

fn note(world: &mut World, node: usize, version: u64, value: Option<u8>) {
    let seq = 1 + world.written.iter().filter(|(source, ..)| *source == node).count() as u64;
    world.written.push((node, seq, version, value));
}

fn accuse(world: &mut World, accuser: usize) {
    let now = world.now();
    world.core(accuser).accuse(&id("b"), "the test says so", now);
}

fn convict(world: &mut World, accuser: usize) {
    let now = world.now();
    world.core(accuser).convict(&id("b"), now);
}

fn leave(world: &mut World) {
    let now = world.now();
    world.core(B).leave(now);
}

fn restart(world: &mut World) {
    let now = world.now();
    for other in [A, C] {
        world.core(other).handle_disconnected(&id("b"), CloseCode::UNSPECIFIED, false, now);
    }
    world.cores[B] = core_with("b", |config| config.epoch += 5);
    world.ranks.retain(|(node, _), _| *node != B);
}

#[test]
fn an_accused_node_is_alive_to_all_in_the_end() {
    tell(
        10_000,
        &[(A, |world| accuse(world, A)), (C, |world| accuse(world, C)), (C, |world| convict(world, C))],
    );
}

#[test]
fn a_goodbye_is_final_whoever_accuses_the_node_and_whatever_is_lost() {
    tell(500, &[(B, leave), (C, |world| accuse(world, C)), (C, |world| convict(world, C))]);
}

#[test]
fn a_node_that_comes_back_after_a_goodbye_is_alive_to_all_in_the_end() {
    tell(500, &[(B, leave), (B, restart), (B, |world| world.connect(A, B)), (C, |world| accuse(world, C))]);
}

#[test]
fn a_node_that_restarts_while_it_is_buried_is_alive_to_all_in_the_end() {
    tell(
        500,
        &[
            (B, restart),
            (B, |world| world.connect(A, B)),
            (C, |world| accuse(world, C)),
            (C, |world| convict(world, C)),
        ],
    );
}

#[test]
fn a_removed_record_stays_away_and_all_hold_the_same_in_the_end() {
    tell(
        1_000,
        &[
            (A, |world| put(world, A, 1)),
            (A, |world| remove(world, A)),
            (B, |world| put(world, B, 2)),
            (C, |world| remove(world, C)),
        ],
    );
}
