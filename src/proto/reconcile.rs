//! Push-pull anti-entropy on a bidirectional stream: hashes first, then what each side knows, then what the
//! other lacks, claims about coverage last (`send`), and what was deleted too long ago for a record to tell
//! (`bygone`); and, where both know the same and yet differ, what there is (`heal`). Both sides run the same steps. Knows nothing of how records win.

mod bygone;
mod heal;
mod send;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;

use self::send::Part;
pub(super) use self::{bygone::Purges, heal::Unexplained};
use crate::{
    NodeId, StateType,
    proto::{
        Now, Output, Protocol, StreamInput, Time,
        claims::{Claimed, Told},
        members::MEMBERS_MAX,
        ranges::Ranges,
        store::Vector,
        timers::Timer,
    },
    wire::{
        CloseCode, StreamId,
        codec::{self, Malformed},
        limits,
        message::{Covers, Forget, MemberRow, Open, RecordBatch, SignedClaim, Wants, kind},
    },
};

/// Frames on their way at most; each says when there is room for another.
const FRAMES_AHEAD: usize = 4;
/// The length of a frame of records or claims, about.
const FRAME_LEN: usize = 64 * 1024;
/// Of signed records: some hundred, and to check them takes some 10 ms, in which nothing else is done.
const SIGNED_FRAME_LEN: usize = FRAME_LEN / 4;
/// Exchanges that peers may have with this node at a time, and those it begins.
const INBOUND_MAX: usize = limits::EXCHANGES_MAX;
const OUTBOUND_MAX: usize = limits::EXCHANGES_MAX;
/// An exchange without progress for so long is given up; what arrived counts.
const STALLED: Duration = Duration::from_secs(10);
/// A peer that brings what this node lacks is waited for before another is asked for the same: for the first
/// second, then while it has brought so many bytes for each second more, at most so long.
const WAIT_FOR_RATE: u128 = 256 * 1024;
const WAIT_FOR_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether it still does.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// The first wait after an exchange that differing digests caused; it doubles up to the push-pull interval.
const EARLY_MIN: Duration = Duration::from_secs(1);
/// How soon a node that is not synced tries another peer.
const JOIN_RETRY: Duration = Duration::from_millis(250);
/// How many peers a node must have exchanged with before it calls itself synced.
const SYNCED_WITH: usize = 2;
/// Vector entries in a frame, about: each has at most some 250 bytes and its ranges.
const ENTRIES_PER_FRAME: usize = 512;
/// Ranges in a frame, about, each of at most 19 bytes.
const RANGES_PER_FRAME: usize = 16_384;
/// A longer entry is told in parts: one more fits a frame that has almost as many ranges already.
const RANGES_PER_ENTRY: usize = 16_384;
/// Vector entries that a peer may tell in one exchange, and dots that may be refused in one: more is no
/// honest need.
const ENTRIES_MAX: usize = 1 << 18;
/// Ranges of all these entries together; half of them of what is known, half of what is held.
const RANGES_MAX: usize = 1 << 20;
const REFUSED_MAX: usize = 1 << 16;
/// Rows of the member table in a frame, each of some 160 bytes at most.
const ROWS_PER_FRAME: usize = 4_096;

/// One exchange.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Exchange {
    peer: NodeId,
    inbound: bool,
    opened: Option<Open>,
    /// Since when the peer knows what this node lacks.
    asked: Option<Time>,
    /// Bytes that have come since.
    brought: usize,
    theirs: Wants,
    /// How many ranges these have.
    ranges: usize,
    /// The peer's rows, once its wants are complete.
    rows: BTreeMap<NodeId, MemberRow>,
    plan: Option<Plan>,
    /// Frames that wait, and how many were handed over and are not sent yet.
    queue: VecDeque<Bytes>,
    ahead: usize,
    /// Dots whose records were refused: they stay unknown whatever the peer claims.
    refused: BTreeMap<(StateType, NodeId, u64), Ranges>,
    bygone: bygone::Told,
    /// Types of which the peer was told all that is held here.
    compares: BTreeSet<StateType>,
    half: Half,
    heard_all: bool,
}

/// This side's half of an exchange.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, PartialEq, Eq)]
enum Half {
    Telling,
    /// All was told; the stream stays open while the peer is still to be asked, or frames wait.
    Told,
    Ended,
}

/// What is still to be sent.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
struct Plan {
    claims: VecDeque<NodeId>,
    forgets: Vec<Forget>,
    types: VecDeque<Part>,
    /// Certificates of writers that were told, besides those of claims.
    chains: BTreeSet<(NodeId, u64)>,
}

/// When an exchange begins.
impl Protocol {
    /// The regular round.
    pub(super) fn push_pull(&mut self, now: Now) {
        let interval = self.config.push_pull_interval;
        let alone = self.members.live() <= 1;
        let next = if self.synced.is_none() && !alone { JOIN_RETRY.min(interval) } else { interval };
        let jitter = self.jitter(next / 8);
        self.timers.set(Timer::PushPull, now.time + next - next / 16 + jitter);
        if self.leaving {
            return;
        }
        if !self.synced_with.is_empty() {
            self.check_synced(now); // whom it waited for may have died
        }
        if self.synced.is_some() || alone {
            self.outputs.push_back(Output::AskProviders);
        }
        // Before it is synced a node must hear different peers.
        let except = if self.synced.is_none() { self.synced_with.clone() } else { BTreeSet::new() };
        if let Some(peer) = self.some_alive(1, &except).pop() {
            self.begin_exchange(&peer, now);
        }
    }

    /// Digests differ, or more is missing than a pull brings.
    pub(super) fn sync_early(&mut self, peer: &NodeId, now: Now) {
        let Some((earliest, wait)) = self.members.get(peer).map(|member| member.early_sync) else { return };
        if now.time < earliest || self.exchanges.values().any(|exchange| exchange.peer == *peer) {
            return;
        }
        let wait = if now.time.since(earliest) > self.config.push_pull_interval { EARLY_MIN } else { wait };
        let wait = wait.clamp(EARLY_MIN, self.config.push_pull_interval.max(EARLY_MIN));
        self.members.note(peer, |member| member.early_sync = (now.time + wait, wait * 2));
        self.counters.early_syncs += 1;
        self.begin_exchange(peer, now);
    }

    pub(super) fn begin_exchange(&mut self, peer: &NodeId, now: Now) {
        let linked = self.members.get(peer).is_some_and(|member| member.linked && member.is_live());
        let outbound = self.exchanges.values().filter(|exchange| !exchange.inbound).count();
        let busy = self.exchanges.values().any(|exchange| exchange.peer == *peer && !exchange.inbound);
        if !linked || busy || self.leaving || outbound >= OUTBOUND_MAX {
            return;
        }
        self.last_stream += 2;
        let stream = StreamId(self.last_stream - 1);
        self.counters.exchanges_begun += 1;
        self.outputs.push_back(Output::OpenStream { to: peer.clone(), stream });
        self.exchanges.insert(stream, Exchange::new(peer.clone(), false));
        self.say_open(stream, now);
    }

    /// Streams of a connection that is gone.
    pub(super) fn lose_exchanges_with(&mut self, peer: &NodeId) {
        let lost: Vec<_> =
            self.exchanges.iter().filter(|(_, exchange)| exchange.peer == *peer).map(|(id, _)| *id).collect();
        for stream in lost {
            self.drop_exchange(stream);
        }
        self.ask_next();
    }

    fn drop_exchange(&mut self, stream: StreamId) -> Option<Exchange> {
        self.timers.clear(&Timer::Stalled(stream));
        self.exchanges.remove(&stream)
    }

    /// Ends every exchange without its claims; what differs is exchanged anew.
    pub(super) fn drop_exchanges(&mut self) {
        let streams: Vec<_> = self.exchanges.keys().copied().collect();
        for stream in streams {
            self.drop_exchange(stream);
            self.outputs.push_back(Output::Reset { stream });
        }
    }

    pub(super) fn give_up_stalled(&mut self, stream: StreamId) {
        self.counters.exchanges_stalled += 1;
        self.drop_exchange(stream);
        self.outputs.push_back(Output::Reset { stream });
        self.ask_next();
    }

    /// Asks one peer after the other for what is missing: two would both send the same. So whoever began, and
    /// however many did, what a node lacks comes once. A peer that brings little is not waited for, or it
    /// could keep the others from being asked.
    pub(super) fn ask_next(&mut self) {
        loop {
            let now = self.entered;
            let mut waiting = self.exchanges.iter();
            let Some(stream) = waiting.find(|(_, exchange)| exchange.waits()).map(|(stream, _)| *stream)
            else {
                return;
            };
            if self.exchanges.values().any(|exchange| exchange.is_worth_waiting_for(now)) {
                // A peer that falls silent gives no occasion to look again.
                self.timers.set_by(Timer::AskNext, now + ASK_AGAIN);
                return;
            }
            self.say_wants(stream);
        }
    }
}

impl Exchange {
    /// The peer could be asked, and has not been.
    fn waits(&self) -> bool {
        self.opened.is_some() && self.asked.is_none()
    }

    fn is_worth_waiting_for(&self, now: Time) -> bool {
        let Some(asked) = self.asked.filter(|_| !self.heard_all) else { return false };
        let elapsed = now.since(asked);
        let due = WAIT_FOR_RATE * elapsed.saturating_sub(WAIT_FOR_FIRST).as_millis() / 1_000;
        elapsed < WAIT_MAX && self.brought as u128 >= due
    }

    fn new(peer: NodeId, inbound: bool) -> Self {
        Self {
            peer,
            inbound,
            opened: None,
            asked: None,
            brought: 0,
            theirs: Wants::default(),
            ranges: 0,
            rows: BTreeMap::new(),
            plan: None,
            queue: VecDeque::new(),
            ahead: 0,
            refused: BTreeMap::new(),
            bygone: bygone::Told::default(),
            compares: BTreeSet::new(),
            half: Half::Telling,
            heard_all: false,
        }
    }
}

/// What arrives on a stream.
impl Protocol {
    /// What happens to a stream.
    pub(crate) fn handle_stream(&mut self, peer: &NodeId, stream: StreamId, input: StreamInput, now: Now) {
        self.enter(now);
        match input {
            StreamInput::Opened => self.accept_exchange(peer, stream, now),
            StreamInput::Lost => drop(self.drop_exchange(stream)),
            StreamInput::Sent => {
                if let Some(exchange) = self.exchanges.get_mut(&stream) {
                    exchange.ahead = exchange.ahead.saturating_sub(1);
                    self.progress(stream, now);
                    self.send_queued(stream);
                    self.finish_if_said(stream);
                    self.pump(stream, now);
                }
            }
            StreamInput::Finished => {
                // Cut short, unless it has said all it had to say.
                if self.exchanges.get(&stream).is_some_and(|exchange| !exchange.heard_all) {
                    self.drop_exchange(stream);
                    self.outputs.push_back(Output::Reset { stream });
                }
            }
            StreamInput::Frame(frame) => {
                if self.exchanges.get(&stream).is_none_or(|exchange| exchange.peer != *peer) {
                    return;
                }
                self.hear(peer, now);
                if let Err(Malformed(fault)) = self.on_frame(peer, stream, &frame, now) {
                    self.counters.malformed += 1;
                    self.drop_exchange(stream);
                    self.outputs.push_back(Output::Reset { stream });
                    let code = CloseCode::PROTOCOL_VIOLATION;
                    self.outputs.push_back(Output::Close { peer: peer.clone(), code, reason: fault });
                }
            }
        }
        self.ask_next();
    }

    fn accept_exchange(&mut self, peer: &NodeId, stream: StreamId, now: Now) {
        self.hear(peer, now);
        let inbound = self.exchanges.values().filter(|exchange| exchange.inbound);
        let of_peer = inbound.clone().any(|exchange| exchange.peer == *peer);
        if of_peer || inbound.count() >= INBOUND_MAX || self.leaving || !self.members.is_live(peer) {
            self.counters.exchanges_refused += 1;
            self.outputs.push_back(Output::Reset { stream });
            return;
        }
        self.exchanges.insert(stream, Exchange::new(peer.clone(), true));
        self.progress(stream, now);
    }

    fn progress(&mut self, stream: StreamId, now: Now) {
        self.timers.set(Timer::Stalled(stream), now.time + STALLED);
    }

    fn on_frame(
        &mut self,
        peer: &NodeId,
        stream: StreamId,
        frame: &Bytes,
        now: Now,
    ) -> Result<(), Malformed> {
        let parts = codec::parts(frame)?;
        self.progress(stream, now);
        if let Some(exchange) = self.exchanges.get_mut(&stream) {
            exchange.brought += frame.len();
        }
        for (kind, body) in parts {
            match kind {
                kind::OPEN => self.on_open(stream, codec::decode(&body)?, now)?,
                kind::WANTS => self.on_wants(stream, codec::decode(&body)?, now)?,
                kind::CLAIM => self.on_told_claim(peer, stream, &codec::decode(&body)?, now),
                kind::FORGET => drop(self.bury_forgotten(&codec::decode(&body)?, now)),
                kind::CHAIN => self.on_chain(peer, &codec::decode(&body)?, true, now),
                kind::RECORDS => self.on_slice(peer, stream, codec::decode(&body)?, now),
                kind::ANEW => self.on_anew(peer, stream, codec::decode(&body)?, now),
                kind::BYGONE => self.on_bygone(stream, &codec::decode(&body)?)?,
                kind::COVERS => self.on_covers(peer, stream, codec::decode(&body)?, now)?,
                kind::LISTS => self.on_lists(peer, &codec::decode(&body)?, now)?,
                kind::DONE => {
                    self.settle_bygone(peer, stream, now);
                    if let Some(exchange) = self.exchanges.get_mut(&stream) {
                        exchange.heard_all = true;
                    }
                    self.end_if_complete(stream, now);
                }
                kind if kind >= codec::OPTIONAL_FROM => self.counters.parts_skipped += 1,
                _ => return Err(Malformed("a part that does not belong on a sync stream")),
            }
        }
        Ok(())
    }

    /// The peer's hashes: this side answers with its own, and what differs is told.
    fn on_open(&mut self, stream: StreamId, open: Open, now: Now) -> Result<(), Malformed> {
        self.store.witness_clock(open.clock, now);
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return Ok(()) };
        let types = open.types.len().max(open.disabled.len());
        if exchange.opened.is_some() || types > limits::TYPES_MAX {
            return Err(Malformed("a second opening of one exchange, or one with too many types"));
        }
        let (inbound, peer) = (exchange.inbound, exchange.peer.clone());
        let disabled = open.disabled.iter().map(Into::into).collect();
        self.members.note(&peer, |member| member.disabled = disabled);
        exchange.opened = Some(open);
        if inbound {
            self.say_open(stream, now);
        }
        Ok(())
    }

    fn on_wants(&mut self, stream: StreamId, wants: Wants, now: Now) -> Result<(), Malformed> {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return Ok(()) };
        if exchange.opened.is_none() || exchange.plan.is_some() {
            return Err(Malformed("wants before the opening or after their end"));
        }
        let last = wants.last;
        let ranges: usize = wants.vectors.iter().chain(&wants.held).map(|dots| dots.ranges.len()).sum();
        let theirs = &mut exchange.theirs;
        theirs.types.extend(wants.types);
        theirs.digests.extend(wants.digests);
        theirs.compared.extend(wants.compared);
        theirs.vectors.extend(wants.vectors);
        theirs.held.extend(wants.held);
        if let Some(rows) = wants.members {
            theirs.members.get_or_insert_default().extend(rows);
        }
        let rows = theirs.members.as_ref().map_or(0, Vec::len);
        exchange.ranges += ranges;
        let entries = theirs.vectors.len() + theirs.held.len();
        let types = theirs.types.len().max(theirs.digests.len()).max(theirs.compared.len());
        let vectors = entries > ENTRIES_MAX || exchange.ranges > RANGES_MAX;
        if types > limits::TYPES_MAX || vectors || rows > MEMBERS_MAX {
            return Err(Malformed("wants of more types, sources or members than a cluster may have"));
        }
        if last {
            self.make_plan(stream, now);
            self.pump(stream, now);
        }
        Ok(())
    }

    fn on_told_claim(&mut self, peer: &NodeId, stream: StreamId, signed: &SignedClaim, now: Now) {
        let row = Self::read_claim(signed, now).and_then(|body| {
            let row = self.exchanges.get(&stream)?.rows.get(&body.node_id)?;
            ((row.epoch, row.incarnation) == (body.epoch, body.incarnation)).then(|| row.clone())
        });
        let is_gone = row.as_ref().is_some_and(|row| row.standing.is_gone_unsigned());
        let told =
            row.map_or(Told::Relayed, |row| Told::Row(row.standing, Duration::from_millis(row.since_ms)));
        let news = self.hear_claim(peer, signed, told, now) == Claimed::News;
        // Two halves that meet: what one of this half learns, all of it must. A joiner learns what all know.
        // Of the dead only that they are, by those who find out; a bare claim would make them live.
        if news && !is_gone && self.synced.is_some() {
            self.spread_part(kind::CLAIM, signed, false, now);
        }
    }

    fn on_slice(&mut self, peer: &NodeId, stream: StreamId, batch: RecordBatch, now: Now) {
        self.counters.records_synced += batch.records.len() as u64;
        let place = (StateType::from(&batch.state_type), batch.source.clone(), batch.epoch);
        let refused = self.take_records(peer, batch, now);
        if let Some(exchange) = self.exchanges.get_mut(&stream) {
            for seq in refused {
                exchange.refused.entry(place.clone()).or_default().insert(seq);
            }
            let ranges: usize = exchange.refused.values().map(Ranges::len).sum();
            if ranges > REFUSED_MAX {
                // What arrived counts; the rest would be refused as well.
                self.counters.exchanges_refused += 1;
                self.drop_exchange(stream);
                self.outputs.push_back(Output::Reset { stream });
            }
        }
    }

    /// The whole delta of these types has arrived.
    fn on_covers(
        &mut self,
        peer: &NodeId,
        stream: StreamId,
        covers: Covers,
        now: Now,
    ) -> Result<(), Malformed> {
        if covers.vectors.len() != covers.floors.len() {
            return Err(Malformed("claims of coverage without their floors"));
        }
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return Ok(()) };
        if exchange.bygone.concerns(&covers) {
            return exchange.bygone.withhold(covers);
        }
        self.take_covers(peer, stream, &covers, now);
        Ok(())
    }

    /// What the delta covers is known from now on.
    fn take_covers(&mut self, peer: &NodeId, stream: StreamId, covers: &Covers, now: Now) {
        let Some(exchange) = self.exchanges.get(&stream) else { return };
        let mut vectors: BTreeMap<StateType, Vector> = BTreeMap::new();
        for dots in &covers.vectors {
            let (Some(state_type), Some(ranges)) =
                (self.kept_type(&dots.state_type), Ranges::from_wire(&dots.ranges))
            else {
                continue;
            };
            let place = (state_type, dots.source.clone(), dots.epoch);
            let ranges = exchange.refused.get(&place).map_or(ranges.clone(), |refused| ranges.minus(refused));
            let (state_type, source, epoch) = place;
            vectors.entry(state_type).or_default().entry((source, epoch)).or_default().union(&ranges);
        }
        let mut forged = None;
        for (state_type, vector) in &vectors {
            forged = forged.max(self.store.cover(state_type, vector, now));
        }
        for (dots, floor) in covers.vectors.iter().zip(&covers.floors) {
            self.store.raise_floor(&StateType::from(&dots.state_type), &dots.source, dots.epoch, *floor);
        }
        if !vectors.is_empty() {
            self.state_changed = now.time;
        }
        if let Some(epoch) = forged {
            self.flee_impersonation(peer, epoch, now);
        }
    }
}
