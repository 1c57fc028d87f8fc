//! One node's process: its core, what it is fed, and what becomes of its outputs. Knows no link; what leaves
//! the process goes to `network`.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::Hasher as _,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use crate::{
    ClusterEvent, EventData, NodeId, Spread, StateChange, SyncableState,
    proto::{
        Now, Output, Protocol, ProtocolConfig, StreamInput, Time, Vouch,
        lists::{Judged, List},
    },
    sim::{
        Pid, SEED_INTERVAL, Step, WALL_BASE_MS, World, check::Checks, clock::Clock, faults::Fault,
        trace::Line,
    },
    wire::{CloseCode, StreamId, hello::Introduction},
};

/// What reaches a core.
#[derive(Debug)]
pub(crate) enum Input {
    Message { from: NodeId, bytes: Bytes },
    Stream { peer: NodeId, stream: StreamId, input: StreamInput },
    Connected { peer: NodeId, introduction: Box<Introduction>, remote: SocketAddr, rtt: Duration },
    Disconnected { peer: NodeId, code: CloseCode, by_peer: bool },
    DialFailed { peer: NodeId },
}

/// What a core has told its host, in order.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// When, and what.
    pub(crate) events: Vec<(u64, ClusterEvent)>,
    pub(crate) applied: Vec<SyncableState>,
    pub(crate) changes: Vec<StateChange>,
    pub(crate) failed: Vec<NodeId>,
    pub(crate) asked_providers: u64,
    pub(crate) confirmed: BTreeMap<u64, (u64, Spread)>,
    pub(crate) synced: Option<usize>,
    pub(crate) leave_spread: bool,
    pub(crate) closes: Vec<(NodeId, CloseCode, &'static str)>,
}

/// A process: one life of a node.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Process {
    pub(crate) id: NodeId,
    pub(crate) epoch: u64,
    pub(crate) address: SocketAddr,
    pub(crate) core: Protocol,
    pub(crate) record: Record,
    pub(crate) running: bool,
    pub(crate) paused: bool,
    /// What it wants to send while it can neither send nor receive; its timers run all the same.
    pub(super) held: Option<Vec<(NodeId, Bytes)>>,
    pub(crate) leaving: bool,
    pub(super) clock: Clock,
    /// What each input costs a slow process; zero for one that keeps up.
    pub(super) cost: Duration,
    /// Whether the next step of a slow process is planned.
    working: bool,
    pub(super) wake_at: Option<u64>,
    pub(super) inbox: VecDeque<Input>,
    pub(super) seeds: Vec<SocketAddr>,
    /// The connection to each peer.
    pub(super) conns: BTreeMap<NodeId, usize>,
    /// Dials on their way, and what is to be sent when they stand.
    pub(super) dialling: BTreeMap<NodeId, (usize, Vec<Bytes>)>,
    /// Streams by this side's number: connection and lane.
    pub(super) streams: BTreeMap<StreamId, (usize, u64)>,
    pub(super) last_stream: u64,
    /// Of the member table as it was looked at last.
    looked_at: u64,
}

impl Process {
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    /// Whether what reaches it has to wait.
    fn is_behind(&self) -> bool {
        self.paused || self.held.is_some() || !self.cost.is_zero() || !self.inbox.is_empty()
    }
}

/// What a process that stands still or lags can find of datagrams: the rest found the buffer full.
const INBOX_MAX: usize = 4_096;

impl World {
    pub(super) fn start_process(&mut self, id: NodeId, address: SocketAddr, seeds: Vec<SocketAddr>) -> Pid {
        let pid = self.procs.len();
        let epoch = self.wall_ms(&id);
        let config = ProtocolConfig { node_id: id.clone(), address, epoch, ..self.settings.clone() };
        let vouch = Arc::new(KeyedHashes { id: id.clone(), secret: self.secret });
        let seed = self.rng.u64(..);
        let core = Protocol::new(config, vouch, seed, Now { time: Time::ZERO, wall_ms: epoch });
        self.note(&id, &format!("starts with epoch {epoch}"));
        self.procs.push(Process {
            id: id.clone(),
            epoch,
            address,
            core,
            record: Record::default(),
            running: true,
            paused: false,
            held: None,
            leaving: false,
            clock: Clock::started(self.now),
            cost: Duration::ZERO,
            working: false,
            wake_at: None,
            inbox: VecDeque::new(),
            seeds,
            conns: BTreeMap::new(),
            dialling: BTreeMap::new(),
            streams: BTreeMap::new(),
            last_stream: 0,
            looked_at: 0,
        });
        self.at_address.insert(address, pid);
        self.current.insert(id, pid);
        self.wake(pid);
        self.at(Duration::ZERO, Step::Seeds(pid));
        pid
    }

    fn wall_ms(&self, id: &NodeId) -> u64 {
        let offset = self.wall_offsets.get(id).copied().unwrap_or(0);
        (WALL_BASE_MS + self.now / 1_000).saturating_add_signed(offset)
    }

    pub(super) fn now_of(&self, pid: Pid) -> Now {
        let process = &self.procs[pid];
        process.clock.now(self.now, self.wall_ms(&process.id))
    }

    /// Has a process do something by its user's order.
    pub(crate) fn command<T>(&mut self, pid: Pid, order: impl FnOnce(&mut Protocol, Now) -> T) -> T {
        let now = self.now_of(pid);
        let answer = order(&mut self.procs[pid].core, now);
        self.wake(pid);
        answer
    }

    /// Something reaches a process: it takes it in, or finds it later.
    pub(super) fn feed(&mut self, pid: Pid, input: Input) {
        let process = &mut self.procs[pid];
        if !process.running {
            return;
        }
        if !process.is_behind() {
            return self.take_in(pid, input);
        }
        if process.inbox.len() >= INBOX_MAX && matches!(input, Input::Message { .. }) {
            return self.fault(Fault::Overflow);
        }
        process.inbox.push_back(input);
        self.work_on(pid);
    }

    /// Plans a lagging process' next step.
    pub(super) fn work_on(&mut self, pid: Pid) {
        let process = &mut self.procs[pid];
        let may = process.running && !process.paused && process.held.is_none() && !process.inbox.is_empty();
        if may && !std::mem::replace(&mut process.working, true) {
            let cost = process.cost;
            self.at(cost, Step::Work(pid));
        }
    }

    pub(super) fn work(&mut self, pid: Pid) {
        let process = &mut self.procs[pid];
        process.working = false;
        if process.running
            && !process.paused
            && let Some(input) = process.inbox.pop_front()
        {
            self.take_in(pid, input);
            self.work_on(pid);
        }
    }

    fn take_in(&mut self, pid: Pid, input: Input) {
        let now = self.now_of(pid);
        let process = &mut self.procs[pid];
        let name = process.id.clone();
        let core = &mut process.core;
        self.inputs += 1;
        let line = match input {
            Input::Message { from, bytes } => {
                core.handle_message(&from, &bytes, now);
                Line::Message { to: name, from, bytes }
            }
            Input::Stream { peer, stream, input } => {
                core.handle_stream(&peer, stream, input.clone(), now);
                Line::Stream { at: name, peer, stream: stream.0, input }
            }
            Input::Connected { peer, introduction, remote, rtt } => {
                core.handle_connected(&peer, &introduction, remote, rtt, now);
                Line::Text(format!("{name}: connected to {peer}"))
            }
            Input::Disconnected { peer, code, by_peer } => {
                core.handle_disconnected(&peer, code, by_peer, now);
                Line::Text(format!("{name}: disconnected from {peer}: {}, by peer {by_peer}", code.name()))
            }
            Input::DialFailed { peer } => {
                core.handle_dial_failed(&peer, now);
                Line::Text(format!("{name}: dial of {peer} failed"))
            }
        };
        self.trace.add(self.now, line);
        self.wake(pid);
    }

    /// Lets a core do what is due, performs what it asks for, and sees when it is to be woken next.
    pub(super) fn wake(&mut self, pid: Pid) {
        if !self.procs[pid].running || self.procs[pid].paused {
            return;
        }
        let now = self.now_of(pid);
        let process = &mut self.procs[pid];
        process.core.handle_timeout(now);
        let due = process.core.poll_timeout();
        let name = process.id.clone();
        self.require(name.as_str(), Checks::timers(due.map(Time::as_micros), now.time.as_micros()));
        if self.checked {
            self.look(pid); // before it can say anything, and before it may end
        }
        let mut outputs = 0;
        while let Some(output) = self.procs[pid].core.poll_output() {
            outputs += 1;
            self.require(name.as_str(), Checks::outputs(outputs));
            self.perform(pid, output);
            if !self.procs[pid].running {
                return;
            }
        }
        let process = &mut self.procs[pid];
        let due = process.core.poll_timeout();
        let wake_at = due.map(|due| process.clock.when(due.as_micros()));
        if process.wake_at != wake_at {
            process.wake_at = wake_at;
            if let Some(at) = wake_at {
                self.at_micros(at, Step::Wake(pid));
            }
        }
    }

    /// What one node believes of the others and holds of them, checked whenever its table has changed.
    fn look(&mut self, pid: Pid) {
        let process = &mut self.procs[pid];
        let name = process.id.clone();
        let (hash, _) = process.core.fingerprint();
        if std::mem::replace(&mut process.looked_at, hash) == hash {
            return;
        }
        let me = process.core.local_node();
        self.checks.says(pid, &name, (me.epoch, me.incarnation));
        let checked = process.core.lives().try_for_each(|(id, life)| self.checks.see_life(pid, id, life));
        self.require(name.as_str(), checked);
        let checked = Checks::queues(&self.procs[pid].core.queues());
        self.require(name.as_str(), checked);
    }

    fn perform(&mut self, pid: Pid, output: Output) {
        let now = self.now;
        let name = self.procs[pid].id.clone();
        let (checked, record) = (self.checked, &mut self.procs[pid].record);
        match output {
            Output::Send { to, bytes } => self.send(pid, &to, bytes),
            Output::Dial { to, address } => self.dial(pid, Some(to), address),
            Output::OpenStream { to, stream } => self.open_stream(pid, &to, stream),
            Output::Frame { stream, bytes } => self.send_frame(pid, stream, bytes),
            Output::Finish { stream } => self.finish_stream(pid, stream),
            Output::Reset { stream } => self.reset_stream(pid, stream),
            Output::Close { peer, code, reason } => {
                record.closes.push((peer.clone(), code, reason));
                self.note(&name, &format!("closes {peer}: {}, {reason}", code.name()));
                self.close(pid, &peer, code);
            }
            Output::Event(event) => {
                if !matches!(event.data, EventData::State { .. }) {
                    self.note(&name, &format!("event {event}"));
                }
                let member = !matches!(event.data, EventData::State { .. });
                let result = if checked { self.checks.event(pid, &name, &event) } else { Ok(()) };
                if checked || member {
                    self.procs[pid].record.events.push((now, event));
                }
                self.require(name.as_str(), result);
            }
            Output::Apply(state) => {
                if checked {
                    let result = self.checks.apply(pid, &state);
                    self.note_record(&name, "its provider is handed", &state);
                    self.procs[pid].record.applied.push(state);
                    self.require(name.as_str(), result);
                }
            }
            Output::Change(change) => {
                if checked {
                    record.changes.push(change);
                }
            }
            Output::NodeFailed(node) => record.failed.push(node),
            Output::AskProviders => record.asked_providers += 1,
            Output::Confirmed { ticket, spread } => {
                let before = record.confirmed.insert(ticket, (now, spread));
                assert!(before.is_none(), "{name}: ticket {ticket} was confirmed twice");
            }
            Output::Synced { peers } => {
                assert!(record.synced.is_none(), "{name}: synced twice");
                record.synced = Some(peers);
            }
            Output::List { from, list } => self.judge_list(pid, &from, &list),
            Output::LeaveSpread => {
                record.leave_spread = true;
                self.note(&name, "has left");
                let peers: Vec<_> = self.procs[pid].conns.keys().cloned().collect();
                for peer in peers {
                    self.close(pid, &peer, CloseCode::LEFT);
                }
                self.stop_process(pid);
            }
        }
    }

    /// What a node's host does with a list that a peer sent.
    fn judge_list(&mut self, pid: Pid, from: &NodeId, told: &List) {
        let now = self.now_of(pid);
        let number = told.bytes.first_chunk::<8>().map_or(0, |number| u64::from_be_bytes(*number));
        let good = sealed_list(self.secret, told.issuer, number);
        let core = &mut self.procs[pid].core;
        if good.bytes != told.bytes || good.age < told.age {
            return core.list_judged(from, Judged::Bad, now);
        }
        let mut lists = core.lists();
        lists.retain(|held| held.issuer != good.issuer);
        lists.push(good);
        core.list_judged(from, Judged::News, now);
        core.take_lists(lists, now);
    }

    /// The process is no more; whoever is connected to it will find out.
    pub(super) fn stop_process(&mut self, pid: Pid) {
        let process = &mut self.procs[pid];
        process.running = false;
        process.wake_at = None;
        process.inbox.clear();
        process.streams.clear();
        process.dialling.clear();
        let (address, conns) = (process.address, std::mem::take(&mut process.conns));
        for conn in conns.into_values() {
            self.silence(conn, pid);
        }
        if self.at_address.get(&address) == Some(&pid) {
            self.at_address.remove(&address);
        }
    }

    pub(super) fn look_for_seeds(&mut self, pid: Pid) {
        if !self.procs[pid].running {
            return;
        }
        if !self.procs[pid].paused && !self.procs[pid].leaving {
            // Names of seeds are resolved anew: where all that they once meant are gone they mean others.
            let Process { seeds, address: me, .. } = &self.procs[pid];
            if !seeds.is_empty() && !seeds.iter().any(|seed| self.at_address.contains_key(seed)) {
                let mut others = self.seed_addresses();
                others.retain(|seed| seed != me);
                self.procs[pid].seeds = others;
            }
            for address in self.procs[pid].seeds.clone().into_iter().take(3) {
                self.dial(pid, None, address);
            }
        }
        self.at(SEED_INTERVAL, Step::Seeds(pid));
    }
}

/// A revocation list as a number and a keyed hash.
pub(super) fn sealed_list(secret: u64, issuer: u64, number: u64) -> List {
    let age = Bytes::copy_from_slice(&number.to_be_bytes());
    let seal = keyed_hash(secret, &format!("list of {issuer}"), &age);
    List { issuer, bytes: [&age[..], &seal[..]].concat().into(), age }
}

/// Certificates and signatures as keyed hashes: whoever has no secret cannot make them.
pub(crate) struct KeyedHashes {
    id: NodeId,
    secret: u64,
}

fn keyed_hash(secret: u64, node: &str, message: &[u8]) -> [u8; 8] {
    let mut hasher = SipHasher13::new_with_keys(secret, 1);
    hasher.write(node.as_bytes());
    hasher.write_u8(0);
    hasher.write(message);
    hasher.finish().to_be_bytes()
}

impl Vouch for KeyedHashes {
    fn chain(&self) -> Bytes {
        Bytes::copy_from_slice(self.id.as_str().as_bytes())
    }

    fn sign(&self, message: &[u8]) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(&keyed_hash(self.secret, self.id.as_str(), message)))
    }

    fn verify(&self, node: &NodeId, chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
        chain == node.as_str().as_bytes() && signature == keyed_hash(self.secret, node.as_str(), message)
    }

    fn digest(&self, bytes: &[u8]) -> Bytes {
        Bytes::copy_from_slice(&keyed_hash(self.secret, "", bytes))
    }

    fn has_issued(&self, node: &NodeId, chain: &[u8]) -> bool {
        chain == node.as_str().as_bytes()
    }

    fn is_by(&self, chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
        str::from_utf8(chain).is_ok_and(|name| signature == keyed_hash(self.secret, name, message))
    }

    fn trusts_issuer(&self, _issuer: u64) -> bool {
        true
    }
}
