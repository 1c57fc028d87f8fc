//! The virtual network: what a transport over QUIC does, in virtual time. Datagrams may be lost, doubled and
//! overtaken; streams are whole and in order while their connection lives; a connection dies when nothing comes
//! through for long, or when its host knows nothing of it any more. Knows no rule of the protocol.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use bytes::Bytes;

use crate::{
    NodeId,
    proto::{StreamInput, Verdict},
    sim::{Pid, Step, World, faults::Fault, micros, process::Input},
    wire::{CloseCode, StreamId, hello::Introduction},
};

/// A larger message travels on the peer's message stream.
const DATAGRAM_MAX: usize = 1_200;
/// What waits for a dial at most.
const WAITING_MAX: usize = 32;
const DIAL_LIMIT: Duration = Duration::from_secs(3);
const IDLE_LIMIT: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// What is lost of a handshake is sent again after so long.
const HANDSHAKE_REPEAT: Duration = Duration::from_secs(1);
/// What is lost of a stream is sent again after so long, besides its way.
const STREAM_REPEAT: Duration = Duration::from_millis(25);
/// How long an older life of a newcomer has to show that it lives.
const INCUMBENT_LIMIT: Duration = Duration::from_millis(500);
/// How soon what met a cut link is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// 100 MB/s.
const BYTES_PER_MICRO: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Waits for the welcome.
    Pending,
    Open,
    Closed,
}

/// A connection, with the dialler at end 0.
#[derive(Debug)]
pub(crate) struct Conn {
    pids: [Pid; 2],
    ends: [End; 2],
    /// When something came through to that end.
    heard: [u64; 2],
    /// With what it was closed, if it was.
    code: Option<CloseCode>,
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    ids: [Option<StreamId>; 2],
    /// Finished by that end, and known to be finished by the other.
    finished: [bool; 2],
    told: [bool; 2],
}

/// Connection, sending end, and 0 for messages or a stream's place plus one.
pub(crate) type LaneKey = (usize, usize, u64);

/// What is on its way in one direction of one stream.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    parcels: VecDeque<Parcel>,
    last_due: u64,
}

#[derive(Debug)]
enum Parcel {
    Message(Bytes),
    Open,
    Frame(Bytes),
    Finish,
    Reset,
}

#[derive(Debug)]
pub(crate) struct Dial {
    from: Pid,
    /// `None`: whoever serves at the address.
    to: Option<NodeId>,
    address: SocketAddr,
    started: u64,
    asked_incumbent: bool,
    accepted: Option<(usize, Box<Introduction>)>,
}

/// Datagrams and streams.
impl World {
    fn one_way(&mut self) -> u64 {
        let delay = micros(self.link.delay);
        let swing = (micros(self.link.delay) as f64 * self.link.jitter).round() as u64;
        delay - swing.min(delay) + self.rng.u64(0..=2 * swing)
    }

    fn is_drawn(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.f64() < chance
    }

    fn passes(&self, from: Pid, to: Pid) -> bool {
        !self.cuts.contains(&(self.procs[from].address, self.procs[to].address))
    }

    pub(super) fn send(&mut self, pid: Pid, to: &NodeId, bytes: Bytes) {
        let Some(&conn) = self.procs[pid].conns.get(to) else {
            match self.procs[pid].dialling.get_mut(to) {
                Some((_, waiting)) if waiting.len() < WAITING_MAX => waiting.push(bytes),
                _ => self.unsent += 1,
            }
            return;
        };
        let end = self.conns[conn].end_of(pid);
        if bytes.len() > DATAGRAM_MAX {
            self.put_parcel((conn, end, 0), Parcel::Message(bytes));
            return;
        }
        if self.is_drawn(self.link.loss) {
            self.fault(Fault::Loss);
            return;
        }
        let mut at = self.now + self.one_way();
        if self.is_drawn(self.link.reorder) {
            at += self.rng.u64(0..=5_000);
            self.fault(Fault::Reorder);
        }
        if self.is_drawn(self.link.duplicate) {
            let again = at + self.rng.u64(0..=5_000);
            self.at_micros(again, Step::Datagram { conn, to: 1 - end, bytes: bytes.clone() });
            self.fault(Fault::Duplicate);
        }
        self.at_micros(at, Step::Datagram { conn, to: 1 - end, bytes });
    }

    pub(super) fn datagram_arrives(&mut self, conn: usize, to: usize, bytes: Bytes) {
        let [from_pid, to_pid] = self.conns[conn].from_to(1 - to);
        if !self.passes(from_pid, to_pid) {
            return;
        }
        match self.conns[conn].ends[to] {
            End::Open => {
                self.conns[conn].heard[to] = self.now;
                let from = self.procs[from_pid].id.clone();
                self.feed(to_pid, Input::Message { from, bytes });
            }
            End::Pending => self.at(Duration::from_micros(500), Step::Datagram { conn, to, bytes }),
            End::Closed => self.answer_stray(conn, to),
        }
    }

    /// Something came to an end that is closed: its host says so, if one runs there.
    fn answer_stray(&mut self, conn: usize, end: usize) {
        let [pid, stray] = self.conns[conn].from_to(end);
        let serves = self.at_address.get(&self.procs[pid].address).copied();
        let Some(serves) = serves.filter(|serves| !self.procs[*serves].paused && self.passes(pid, stray)) else {
            return;
        };
        let at = self.now + self.one_way();
        let step = match self.conns[conn].code {
            Some(code) if serves == pid => Step::Closed { conn, end: 1 - end, code },
            _ => Step::StatelessReset { conn, end: 1 - end },
        };
        self.at_micros(at, step);
    }

    fn put_parcel(&mut self, key: LaneKey, parcel: Parcel) -> u64 {
        let size = match &parcel {
            Parcel::Message(bytes) | Parcel::Frame(bytes) => bytes.len(),
            Parcel::Open | Parcel::Finish | Parcel::Reset => 1,
        };
        let sent = self.now + size as u64 / BYTES_PER_MICRO;
        let mut due = sent + self.one_way();
        for _ in 0..=size / DATAGRAM_MAX {
            if self.is_drawn(self.link.loss) {
                due = due.max(sent + 3 * micros(self.link.delay) + micros(STREAM_REPEAT));
                self.fault(Fault::Loss);
            }
        }
        let lane = self.lanes.entry(key).or_default();
        due = due.max(lane.last_due);
        lane.last_due = due;
        lane.parcels.push_back(parcel);
        self.at_micros(due, Step::Parcel(key));
        sent
    }

    pub(super) fn parcel_arrives(&mut self, key: &LaneKey) {
        let (conn, from, place) = *key;
        let [from_pid, to_pid] = self.conns[conn].from_to(from);
        let ends = self.conns[conn].ends;
        if ends[from] == End::Closed || ends[1 - from] == End::Closed {
            self.lanes.remove(key);
            if self.passes(from_pid, to_pid) && ends[from] != End::Closed {
                self.answer_stray(conn, 1 - from);
            }
            return;
        }
        if !self.passes(from_pid, to_pid) || ends[1 - from] == End::Pending {
            return self.at(RETRY, Step::Parcel(*key));
        }
        let Some(parcel) = self.lanes.get_mut(key).and_then(|lane| lane.parcels.pop_front()) else { return };
        self.conns[conn].heard[1 - from] = self.now;
        let peer = self.procs[from_pid].id.clone();
        if let Parcel::Message(bytes) = parcel {
            return self.feed(to_pid, Input::Message { from: peer, bytes });
        }
        let to = 1 - from;
        let stream = &mut self.conns[conn].streams[index(place)];
        let receiver = &mut self.procs[to_pid];
        if matches!(parcel, Parcel::Open) {
            receiver.last_stream += 2;
            let id = StreamId(receiver.last_stream);
            stream.ids[to] = Some(id);
            receiver.streams.insert(id, (conn, place));
        }
        let Some(id) = stream.ids[to].filter(|id| receiver.streams.contains_key(id)) else { return };
        let input = match parcel {
            Parcel::Message(_) => return,
            Parcel::Open => StreamInput::Opened,
            Parcel::Frame(bytes) => StreamInput::Frame(bytes),
            Parcel::Finish => {
                stream.told[to] = true;
                if stream.finished[to] {
                    receiver.streams.remove(&id);
                }
                StreamInput::Finished
            }
            Parcel::Reset => {
                receiver.streams.remove(&id);
                StreamInput::Lost
            }
        };
        self.feed(to_pid, Input::Stream { peer, stream: id, input });
    }

    pub(super) fn open_stream(&mut self, pid: Pid, to: &NodeId, stream: StreamId) {
        let Some(&conn) = self.procs[pid].conns.get(to) else {
            let input = Input::Stream { peer: to.clone(), stream, input: StreamInput::Lost };
            return self.at(Duration::ZERO, Step::Input(pid, input));
        };
        let end = self.conns[conn].end_of(pid);
        let mut ids = [None; 2];
        ids[end] = Some(stream);
        self.conns[conn].streams.push(Stream { ids, finished: [false; 2], told: [false; 2] });
        let place = self.conns[conn].streams.len() as u64;
        let before = self.procs[pid].streams.insert(stream, (conn, place));
        assert!(before.is_none(), "stream number {} was used twice", stream.0);
        self.put_parcel((conn, end, place), Parcel::Open);
    }

    pub(super) fn send_frame(&mut self, pid: Pid, stream: StreamId, bytes: Bytes) {
        let Some(&(conn, place)) = self.procs[pid].streams.get(&stream) else { return };
        let end = self.conns[conn].end_of(pid);
        let peer = self.procs[self.conns[conn].pids[1 - end]].id.clone();
        let sent = self.put_parcel((conn, end, place), Parcel::Frame(bytes));
        self.at_micros(sent, Step::Input(pid, Input::Stream { peer, stream, input: StreamInput::Sent }));
    }

    pub(super) fn finish_stream(&mut self, pid: Pid, stream: StreamId) {
        let Some(&(conn, place)) = self.procs[pid].streams.get(&stream) else { return };
        let end = self.conns[conn].end_of(pid);
        self.put_parcel((conn, end, place), Parcel::Finish);
        let state = &mut self.conns[conn].streams[index(place)];
        state.finished[end] = true;
        if state.told[end] {
            self.procs[pid].streams.remove(&stream);
        }
    }

    pub(super) fn reset_stream(&mut self, pid: Pid, stream: StreamId) {
        let Some((conn, place)) = self.procs[pid].streams.remove(&stream) else { return };
        let end = self.conns[conn].end_of(pid);
        self.put_parcel((conn, end, place), Parcel::Reset);
    }
}

/// Dials and admission.
impl World {
    pub(super) fn dial(&mut self, pid: Pid, to: Option<NodeId>, address: SocketAddr) {
        let process = &self.procs[pid];
        let stands = match &to {
            Some(to) => process.conns.contains_key(to) || process.dialling.contains_key(to),
            None => process.conns.values().any(|conn| {
                let conn = &self.conns[*conn];
                self.procs[conn.pids[1 - conn.end_of(pid)]].address == address
            }),
        };
        if stands {
            return;
        }
        let number = self.dials.len();
        if let Some(to) = &to {
            self.procs[pid].dialling.insert(to.clone(), (number, Vec::new()));
        }
        let started = self.now;
        self.dials.push(Dial { from: pid, to, address, started, asked_incumbent: false, accepted: None });
        let mut at = self.now;
        for _ in 0..3 {
            at += self.one_way();
            if self.is_drawn(self.link.loss) {
                at += micros(HANDSHAKE_REPEAT);
                self.fault(Fault::Loss);
            }
        }
        self.at_micros(at, Step::Dial(number));
    }

    /// A dialler's hello reaches the other side.
    pub(super) fn dial_arrives(&mut self, number: usize) {
        let Dial { from, address, started, .. } = self.dials[number];
        if !self.procs[from].running {
            return;
        }
        let here = self.procs[from].address;
        let cut = self.cuts.contains(&(here, address)) || self.cuts.contains(&(address, here));
        let target = self.at_address.get(&address).copied();
        if cut || self.procs[from].paused || target.is_some_and(|target| self.procs[target].paused) {
            if self.now >= started + micros(DIAL_LIMIT) {
                return self.fail_dial(number);
            }
            return self.at(RETRY, Step::Dial(number));
        }
        let Some(target) = target.filter(|target| *target != from) else { return self.fail_dial(number) };
        let wanted = self.dials[number].to.as_ref();
        if wanted.is_some_and(|wanted| *wanted != self.procs[target].id) {
            return self.fail_dial(number);
        }
        if self.both_stand(from, target) {
            return self.spare_dial(number);
        }
        let (dialler, acceptor) = (self.procs[from].id.clone(), self.procs[target].id.clone());
        let hello = self.procs[from].core.introduction(wanted);
        match self.procs[target].core.judge(&hello, self.now_of(target)) {
            Verdict::Admit => {}
            Verdict::Refuse(code, reason) => {
                self.note(&acceptor, &format!("refuses {dialler}: {}, {reason}", code.name()));
                return self.refuse_dial(number, code);
            }
            Verdict::Incumbent { epoch, address } => {
                let old = self.at_address.get(&address).map(|old| &self.procs[*old]);
                let lives = old.is_some_and(|old| {
                    let at = self.procs[target].address;
                    let reached = !self.cuts.contains(&(at, address)) && !self.cuts.contains(&(address, at));
                    old.id == dialler && old.epoch == epoch && !old.paused && reached
                });
                if lives {
                    self.note(&acceptor, &format!("refuses {dialler}: an older process with that id lives"));
                    return self.refuse_dial(number, CloseCode::DUPLICATE_ID);
                }
                if !std::mem::replace(&mut self.dials[number].asked_incumbent, true) {
                    return self.at(INCUMBENT_LIMIT, Step::Dial(number));
                }
            }
        }
        let welcome = self.procs[target].core.introduction(Some(&dialler));
        let conn = self.conns.len();
        self.conns.push(Conn {
            pids: [from, target],
            ends: [End::Pending, End::Open],
            heard: [self.now; 2],
            code: None,
            streams: Vec::new(),
        });
        self.dials[number].accepted = Some((conn, Box::new(welcome)));
        self.enter(conn, 1, hello);
        self.at(KEEP_ALIVE, Step::KeepAlive(conn));
        let at = self.now + self.one_way();
        self.at_micros(at, Step::Welcome(number));
    }

    /// The answer to a hello comes back.
    pub(super) fn welcome_arrives(&mut self, number: usize) {
        let Dial { from, started, .. } = self.dials[number];
        let Some((conn, _)) = self.dials[number].accepted else { return };
        let [_, target] = self.conns[conn].pids;
        if !self.procs[from].running || self.conns[conn].ends[0] == End::Closed {
            return;
        }
        if !self.passes(target, from) || self.procs[from].paused {
            if self.now < started + micros(DIAL_LIMIT) {
                return self.at(RETRY, Step::Welcome(number));
            }
            self.conns[conn].ends[0] = End::Closed;
            return self.fail_dial(number);
        }
        let Some((_, welcome)) = self.dials[number].accepted.take() else { return };
        if let Verdict::Refuse(code, reason) = self.procs[from].core.judge(&welcome, self.now_of(from)) {
            let name = self.procs[from].id.clone();
            self.note(&name, &format!("refuses the welcome of {}: {reason}", welcome.node_id));
            self.conns[conn].ends[0] = End::Closed;
            self.conns[conn].code = Some(code);
            let at = self.now + self.one_way();
            self.at_micros(at, Step::Closed { conn, end: 1, code });
            return self.fail_dial(number);
        }
        self.conns[conn].ends[0] = End::Open;
        self.enter(conn, 0, *welcome);
    }

    /// One end of a connection begins to count.
    fn enter(&mut self, conn: usize, end: usize, introduction: Introduction) {
        let [peer_pid, pid] = self.conns[conn].from_to(1 - end);
        let peer = introduction.node_id.clone();
        if let Some(old) = self.procs[pid].conns.insert(peer.clone(), conn) {
            let old_end = self.conns[old].end_of(pid);
            self.conns[old].ends[old_end] = End::Closed;
            self.lose_streams(old, pid);
        }
        self.conns[conn].heard[end] = self.now;
        let (remote, rtt) = (self.procs[peer_pid].address, self.link.delay * 2);
        let input = Input::Connected { peer: peer.clone(), introduction: Box::new(introduction), remote, rtt };
        self.feed(pid, input);
        // The acceptor's own dial, if one is on its way, will find that a connection stands.
        let waiting = match self.procs[pid].dialling.get_mut(&peer) {
            Some((_, waiting)) => std::mem::take(waiting),
            None => Vec::new(),
        };
        if end == 0 {
            self.procs[pid].dialling.remove(&peer);
        }
        for bytes in waiting {
            self.send(pid, &peer, bytes);
        }
    }

    fn both_stand(&self, a: Pid, b: Pid) -> bool {
        let of = |pid: Pid, id: &NodeId| self.procs[pid].conns.get(id);
        let conns = [of(a, &self.procs[b].id), of(b, &self.procs[a].id)];
        conns.into_iter().flatten().any(|conn| {
            let conn = &self.conns[*conn];
            conn.pids.contains(&a) && conn.pids.contains(&b) && !conn.ends.contains(&End::Closed)
        })
    }

    fn spare_dial(&mut self, number: usize) {
        let Dial { from, ref to, .. } = self.dials[number];
        if let Some(to) = to.clone() {
            if let Some((_, waiting)) = self.procs[from].dialling.remove(&to) {
                for bytes in waiting {
                    self.send(from, &to, bytes);
                }
            }
        }
    }

    fn refuse_dial(&mut self, number: usize, code: CloseCode) {
        let Dial { from, address, .. } = self.dials[number];
        self.refused.push((self.procs[from].id.clone(), from, address, code));
        self.fail_dial(number);
    }

    fn fail_dial(&mut self, number: usize) {
        let Dial { from, ref to, .. } = self.dials[number];
        let Some(peer) = to.clone() else { return };
        if let Some((_, waiting)) = self.procs[from].dialling.remove(&peer) {
            self.unsent += waiting.len() as u64;
        }
        if !self.procs[from].conns.contains_key(&peer) {
            self.at(Duration::ZERO, Step::Input(from, Input::DialFailed { peer }));
        }
    }
}

/// How connections end.
impl World {
    /// A side closes: it knows at once, the other when the close frame arrives.
    pub(super) fn close(&mut self, pid: Pid, peer: &NodeId, code: CloseCode) {
        let Some(&conn) = self.procs[pid].conns.get(peer) else { return };
        let end = self.conns[conn].end_of(pid);
        self.conns[conn].code = Some(code);
        self.end_connection(conn, end, code, false);
        let at = self.now + self.one_way();
        self.at_micros(at, Step::Closed { conn, end: 1 - end, code });
    }

    pub(super) fn close_arrives(&mut self, conn: usize, end: usize, code: CloseCode) {
        let [from, to] = self.conns[conn].from_to(1 - end);
        if self.passes(from, to) {
            self.end_connection(conn, end, code, true);
        }
    }

    /// That end finds out that nobody is there any more.
    pub(super) fn lose_end(&mut self, conn: usize, end: usize) {
        self.end_connection(conn, end, CloseCode::UNSPECIFIED, false);
    }

    fn end_connection(&mut self, conn: usize, end: usize, code: CloseCode, by_peer: bool) {
        let was = std::mem::replace(&mut self.conns[conn].ends[end], End::Closed);
        let [pid, peer_pid] = self.conns[conn].from_to(end);
        let peer = self.procs[peer_pid].id.clone();
        if was != End::Open || self.procs[pid].conns.get(&peer) != Some(&conn) {
            return;
        }
        self.procs[pid].conns.remove(&peer);
        self.lose_streams(conn, pid);
        self.at(Duration::ZERO, Step::Input(pid, Input::Disconnected { peer, code, by_peer }));
    }

    fn lose_streams(&mut self, conn: usize, pid: Pid) {
        let end = self.conns[conn].end_of(pid);
        let peer = self.procs[self.conns[conn].pids[1 - end]].id.clone();
        let of_conn = self.procs[pid].streams.iter().filter(|(_, (of, _))| *of == conn);
        let lost: Vec<StreamId> = of_conn.map(|(stream, _)| *stream).collect();
        for stream in lost {
            self.procs[pid].streams.remove(&stream);
            let input = Input::Stream { peer: peer.clone(), stream, input: StreamInput::Lost };
            self.at(Duration::ZERO, Step::Input(pid, input));
        }
    }

    /// A process' end of a connection falls silent.
    pub(super) fn silence(&mut self, conn: usize, pid: Pid) {
        let end = self.conns[conn].end_of(pid);
        self.conns[conn].ends[end] = End::Closed;
    }

    /// What QUIC's own packets see: whether the other side is there.
    pub(super) fn keep_alive(&mut self, conn: usize) {
        for end in 0..2 {
            let [pid, other] = self.conns[conn].from_to(end);
            if self.conns[conn].ends[end] != End::Open {
                continue;
            }
            let works = self.passes(pid, other) && self.passes(other, pid);
            match self.conns[conn].ends[1 - end] {
                End::Open if works && !self.procs[other].paused => self.conns[conn].heard[end] = self.now,
                End::Closed if works => self.answer_stray(conn, 1 - end),
                _ => {}
            }
            if self.now >= self.conns[conn].heard[end] + micros(IDLE_LIMIT) {
                self.lose_end(conn, end);
            }
        }
        if self.conns[conn].ends.contains(&End::Open) {
            self.at(KEEP_ALIVE, Step::KeepAlive(conn));
        }
    }
}

impl Conn {
    fn end_of(&self, pid: Pid) -> usize {
        usize::from(self.pids[1] == pid)
    }

    /// The processes at that end and at the other.
    fn from_to(&self, end: usize) -> [Pid; 2] {
        [self.pids[end], self.pids[1 - end]]
    }
}

/// A stream's place in its connection's list; places begin with 1, since 0 is the lane of messages.
fn index(place: u64) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX) - 1
}
