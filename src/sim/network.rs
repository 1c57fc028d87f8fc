//! The virtual network: what a transport over QUIC does, in virtual time. Datagrams may be lost, doubled and
//! overtaken; streams are whole and in order while their connection lives; a connection dies when nothing
//! comes through for long, or when its host knows nothing of it any more. Knows no rule of the protocol.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use bytes::Bytes;

use crate::{
    NodeId,
    proto::StreamInput,
    sim::{LinkSettings, Pid, Step, World, check::Checks, faults::Fault, micros, process::Input},
    wire::{CloseCode, StreamId},
};

/// A larger message travels on the peer's message stream.
const DATAGRAM_MAX: usize = 1_200;
/// What waits for a dial at most.
const WAITING_MAX: usize = 32;
const IDLE_LIMIT: Duration = Duration::from_secs(30);
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// What is lost of a stream is sent again after so long, besides its way.
const STREAM_REPEAT: Duration = Duration::from_millis(25);
/// The wait doubles with each loss, up to this.
const STREAM_REPEAT_MAX: Duration = Duration::from_secs(1);
/// How soon what met a cut link is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(100);
/// 100 MB/s.
const BYTES_PER_MICRO: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Waits for the welcome.
    Pending,
    Open,
    Closed,
}

/// A connection, with the dialler at end 0.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(super) pids: [Pid; 2],
    pub(super) ends: [End; 2],
    /// When something came through to that end.
    pub(super) heard: [u64; 2],
    /// With what it was closed, if it was.
    pub(super) code: Option<CloseCode>,
    /// Datagrams that overtook the welcome.
    pub(super) early: Vec<Bytes>,
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
    /// When the parcels that wait for the wire will have been handed to it, in order.
    handed: VecDeque<u64>,
}

#[derive(Debug)]
enum Parcel {
    Message(Bytes),
    Open,
    Frame(Bytes),
    Finish,
    Reset,
}

/// Datagrams and streams.
impl World {
    /// How the link behaves in that direction.
    pub(super) fn link_between(&self, from: SocketAddr, to: SocketAddr) -> LinkSettings {
        if self.links.is_empty() {
            self.link
        } else {
            self.links.get(&(from, to)).copied().unwrap_or(self.link)
        }
    }

    fn link_of(&self, from: Pid, to: Pid) -> LinkSettings {
        self.link_between(self.procs[from].address, self.procs[to].address)
    }

    pub(super) fn one_way(&mut self, link: &LinkSettings) -> u64 {
        let delay = micros(link.delay);
        let swing = delay * link.jitter_percent / 100;
        delay - swing + self.rng.u64(0..=2 * swing)
    }

    pub(super) fn is_drawn(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.f64() < chance
    }

    pub(super) fn passes(&self, from: Pid, to: Pid) -> bool {
        self.cuts.is_empty() || !self.cuts.contains(&(self.procs[from].address, self.procs[to].address))
    }

    /// The chance that a packet between two hosts is lost: by the network, or by either of them.
    pub(super) fn loss_between(&self, from: SocketAddr, to: SocketAddr) -> f64 {
        let loss = self.link_between(from, to).loss;
        if self.lossy.is_empty() {
            return loss;
        }
        let of = |host: SocketAddr| self.lossy.get(&host).copied().unwrap_or(0.0);
        1.0 - (1.0 - loss) * (1.0 - of(from)) * (1.0 - of(to))
    }

    /// What leaves a process, which is what its core says but at a liar's.
    fn said(&self, pid: Pid, bytes: Bytes) -> Bytes {
        let id = &self.procs[pid].id;
        match self.alters.get(id) {
            Some(alter) => alter(id, &bytes),
            None => bytes,
        }
    }

    pub(super) fn send(&mut self, pid: Pid, to: &NodeId, bytes: Bytes) {
        let bytes = self.said(pid, bytes);
        if let Some(held) = &mut self.procs[pid].held {
            held.push((to.clone(), bytes));
            return;
        }
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
        let [_, other] = self.conns[conn].seen_from(end);
        if self.is_drawn(self.loss_between(self.procs[pid].address, self.procs[other].address)) {
            self.fault(Fault::Loss);
            return;
        }
        let link = self.link_of(pid, other);
        let mut at = self.now + self.one_way(&link);
        if self.is_drawn(link.reorder) {
            at += self.rng.u64(0..=5_000);
            self.fault(Fault::Reorder);
        }
        if self.is_drawn(link.duplicate) {
            let again = at + self.rng.u64(0..=5_000);
            self.at_micros(again, Step::Datagram { conn, to: 1 - end, bytes: bytes.clone() });
            self.fault(Fault::Duplicate);
        }
        self.at_micros(at, Step::Datagram { conn, to: 1 - end, bytes });
    }

    pub(super) fn datagram_arrives(&mut self, conn: usize, to: usize, bytes: Bytes) {
        let [from_pid, to_pid] = self.conns[conn].seen_from(1 - to);
        if !self.passes(from_pid, to_pid) {
            return;
        }
        match self.conns[conn].ends[to] {
            End::Open => {
                self.conns[conn].heard[to] = self.now;
                let from = self.procs[from_pid].id.clone();
                self.feed(to_pid, Input::Message { from, bytes });
            }
            End::Pending => {
                let early = &mut self.conns[conn].early;
                if early.len() < WAITING_MAX {
                    early.push(bytes);
                }
            }
            End::Closed => self.answer_stray(conn, to),
        }
    }

    /// Something came to an end that is closed: its host says so, if one runs there.
    fn answer_stray(&mut self, conn: usize, end: usize) {
        let [pid, stray] = self.conns[conn].seen_from(end);
        let serves = self.at_address.get(&self.procs[pid].address).copied();
        let Some(serves) = serves.filter(|serves| !self.procs[*serves].paused && self.passes(pid, stray))
        else {
            return;
        };
        let link = self.link_of(pid, stray);
        let at = self.now + self.one_way(&link);
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
        let [from, to] = self.conns[key.0].seen_from(key.1);
        let (now, loss) = (self.now, self.loss_between(self.procs[from].address, self.procs[to].address));
        let lane = self.lanes.entry(key).or_default();
        while lane.handed.front().is_some_and(|handed| *handed <= now) {
            lane.handed.pop_front();
        }
        // One after the other: a lane has one wire.
        let sent = lane.handed.back().copied().unwrap_or(now) + size as u64 / BYTES_PER_MICRO;
        lane.handed.push_back(sent);
        let waiting = lane.handed.len();
        let link = self.link_of(from, to);
        let mut due = sent + self.one_way(&link);
        // Packets are lost and sent again side by side: the last to come through decides.
        for _ in 0..=size / DATAGRAM_MAX {
            let mut through = sent + micros(link.delay);
            let mut repeat = 2 * micros(link.delay) + micros(STREAM_REPEAT);
            while self.is_drawn(loss) {
                through += repeat;
                repeat = (repeat * 2).min(micros(STREAM_REPEAT_MAX));
                self.fault(Fault::Loss);
            }
            due = due.max(through);
        }
        if matches!(parcel, Parcel::Frame(_)) {
            let name = self.procs[from].id.clone();
            self.require(name.as_str(), Checks::frames(waiting));
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
        let [from_pid, to_pid] = self.conns[conn].seen_from(from);
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
        let bytes = self.said(pid, bytes);
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

/// How connections end.
impl World {
    /// A side closes: it knows at once, the other when the close frame arrives.
    pub(super) fn close(&mut self, pid: Pid, peer: &NodeId, code: CloseCode) {
        let Some(&conn) = self.procs[pid].conns.get(peer) else { return };
        let end = self.conns[conn].end_of(pid);
        self.conns[conn].code = Some(code);
        self.end_connection(conn, end, code, false);
        let [_, other] = self.conns[conn].seen_from(end);
        let link = self.link_of(pid, other);
        let at = self.now + self.one_way(&link);
        self.at_micros(at, Step::Closed { conn, end: 1 - end, code });
    }

    pub(super) fn close_arrives(&mut self, conn: usize, end: usize, code: CloseCode) {
        let [from, to] = self.conns[conn].seen_from(1 - end);
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
        let [pid, peer_pid] = self.conns[conn].seen_from(end);
        let peer = self.procs[peer_pid].id.clone();
        if was != End::Open || self.procs[pid].conns.get(&peer) != Some(&conn) {
            return;
        }
        self.procs[pid].conns.remove(&peer);
        self.lose_streams(conn, pid);
        self.at(Duration::ZERO, Step::Input(pid, Input::Disconnected { peer, code, by_peer }));
    }

    pub(super) fn lose_streams(&mut self, conn: usize, pid: Pid) {
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
            let [pid, other] = self.conns[conn].seen_from(end);
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
            self.at_regular(KEEP_ALIVE, Step::KeepAlive(conn));
        }
    }
}

impl Conn {
    /// One that was admitted by the acceptor, whose welcome is on its way.
    pub(super) fn new(pids: [Pid; 2], now: u64) -> Self {
        Self {
            pids,
            ends: [End::Pending, End::Open],
            heard: [now; 2],
            code: None,
            early: Vec::new(),
            streams: Vec::new(),
        }
    }

    pub(super) fn end_of(&self, pid: Pid) -> usize {
        usize::from(self.pids[1] == pid)
    }

    /// The processes at that end and at the other.
    pub(super) fn seen_from(&self, end: usize) -> [Pid; 2] {
        [self.pids[end], self.pids[1 - end]]
    }
}

/// A stream's place in its connection's list; places begin with 1, since 0 is the lane of messages.
fn index(place: u64) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX) - 1
}
