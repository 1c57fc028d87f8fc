//! Acknowledged delegation: an update goes to a few relays, each with a range of the ring to serve, and a
//! range that nobody acknowledges goes to another relay. Knows neither claims nor records: it moves parts as
//! they came.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use crate::{
    NodeId, NodeStatus,
    proto::{
        Now, Protocol, Time,
        inbox::Part,
        members::{self, Members, Place},
        store::Lane,
        timers::Timer,
    },
    wire::{
        codec::{self, Malformed, Packet},
        message::{Span, SpreadHead, Took, kind},
    },
};

/// Into how many ranges a range is split. 8 needs fewer levels than 4, and so fewer places to lose something,
/// for the same bytes.
const FAN: usize = 8;
/// The shortest wait for an acknowledgement.
const WAIT_MIN: Duration = Duration::from_millis(2);
/// The wait on a path that was not measured yet.
const WAIT_UNKNOWN: Duration = Duration::from_millis(50);
/// What each so many bytes of a payload add to the wait.
const WAIT_PER: (usize, Duration) = (16 * 1024, Duration::from_millis(1));
/// How often a range is handed to somebody before it is left to gossip.
const TRIES_MAX: usize = 5;
/// Repeats in thousandths that each first hand-off allows, and how many may be saved up. Where more are lost
/// than that, the cluster is overloaded, and repeating would feed the fire: gossip and push-pull bring the
/// rest.
const REPEATS_PER_MILLE: u32 = 500;
const REPEATS_SAVED: u32 = 200;
/// Hand-offs remembered that somebody else took over: a late acknowledgement still measures its path.
const LATE_MAX: usize = 1_024;
/// Updates that come one after another are batched for so long.
const BATCH_TIME: Duration = Duration::from_millis(1);
/// How many payload bytes fit into a datagram beside the heads.
const BATCH_LEN: usize = 900;
/// A batch of bulk, which travels on a stream.
const BULK_LEN: usize = 32 * 1024;
/// From how much waiting on it is bulk.
const BULK_FROM: usize = 16 * 1024;
/// Batches that one flush makes at most; the rest follows a batch time later.
const FLUSH_MAX: usize = 32;
/// Records that are signed in one flush, about: some 7 ms, in which nothing else is done.
const SIGNED_MAX: u64 = 256;
/// With so many hand-offs not acknowledged yet, nothing new is sent: the newest value of a key waits, not a
/// queue.
const PENDING_MAX: usize = 4_096;
/// Acknowledgements in one message at most; a message has fewer parts.
const TOOK_MAX: usize = 1_024;
/// With so many, what others want relayed is left to other relays and to gossip.
const HANDOFFS_MAX: usize = 65_536;
/// For how long a batch is remembered, so that it is not delivered twice.
const SEEN_FOR: Duration = Duration::from_secs(5);
/// Batches remembered at most.
const SEEN_MAX: usize = 65_536;
/// How many relays are drawn blindly before all are looked at.
const DRAWS: usize = 4;
/// How many neighbours of a range, to either side, may serve it in its stead.
const DETOUR: usize = 16;
/// Ranges of one batch served at most.
const SPANS_MAX: usize = 64;

/// What is spread, as its origin made it.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
struct Batch {
    origin: NodeId,
    epoch: u64,
    number: u64,
    payload: Bytes,
    urgent: bool,
}

/// A range that somebody was asked to serve.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
struct Handoff {
    batch: Arc<Batch>,
    span: Span,
    to: NodeId,
    tried: Vec<NodeId>,
    sent: Time,
    wait: Duration,
    /// A copy for one node that is suspected: nobody else can take it over.
    leaf: bool,
    /// Whether somebody outside the range may serve it.
    may_detour: bool,
}

/// A batch that was delivered: its origin, epoch and number as the relay told them, and a hash of what it
/// held, since a relay could tell them of something else.
type Seen = (NodeId, u64, u64, u64);

/// The dissemination's state.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Spreader {
    /// Parts of this node's that wait for the next batch.
    waiting: VecDeque<Bytes>,
    /// Whether one of those is urgent.
    urgent: bool,
    number: u64,
    last_handoff: u64,
    handoffs: BTreeMap<u64, Handoff>,
    /// Batches delivered, with the ranges served.
    seen: BTreeMap<Seen, Vec<Span>>,
    seen_order: VecDeque<(Time, Seen)>,
    /// Thousandths of repeats that are allowed now.
    repeats: u32,
    /// When hand-offs that were not acknowledged in time had been sent, and to whom.
    late: BTreeMap<(u64, NodeId), Time>,
    /// Hand-offs taken over by the message at hand, to be acknowledged at its end.
    took: Vec<u64>,
    flushed: Option<Time>,
    flushed_urgent: Option<Time>,
}

impl Spreader {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            urgent: false,
            number: 0,
            last_handoff: 0,
            handoffs: BTreeMap::new(),
            seen: BTreeMap::new(),
            seen_order: VecDeque::new(),
            repeats: REPEATS_SAVED * 1_000,
            late: BTreeMap::new(),
            took: Vec::new(),
            flushed: None,
            flushed_urgent: None,
        }
    }

    /// Whether one more repeat is allowed; counts it.
    fn may_repeat(&mut self) -> bool {
        let left = self.repeats.checked_sub(1_000);
        self.repeats = left.unwrap_or(self.repeats);
        left.is_some()
    }

    /// Hand-offs that are not acknowledged.
    #[cfg(any(test, feature = "sim", feature = "fuzzing"))]
    pub(super) fn waiting_for(&self) -> usize {
        self.handoffs.len()
    }

    /// The numbers of those hand-offs, and whether anything waits for a batch.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn waits(&self) -> (impl Iterator<Item = u64>, bool) {
        (self.handoffs.keys().copied(), !self.waiting.is_empty())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.handoffs.is_empty()
    }
}

/// The origin's side.
impl Protocol {
    /// Has a part spread to every member.
    pub(super) fn spread_part<T: serde::Serialize>(&mut self, kind: u8, body: &T, urgent: bool, now: Now) {
        let mut packet = Packet::new();
        packet.push(kind, body);
        self.spreader.waiting.push_back(packet.into_parts());
        self.spreader.urgent |= urgent;
        self.flush_soon(now);
    }

    /// Sends at once what waits, or, if something has just been sent, a little later with what comes till
    /// then.
    pub(super) fn flush_soon(&mut self, now: Now) {
        match self.spreader.flushed {
            Some(flushed) if now.time.since(flushed) < BATCH_TIME => {
                self.timers.set_by(Timer::Flush, flushed + BATCH_TIME);
                self.flush_urgent(now);
            }
            _ => self.flush(now),
        }
    }

    /// Sends what somebody waits for at once, unless some of that has just been sent.
    fn flush_urgent(&mut self, now: Now) {
        let is_recent = |flushed: Time| now.time.since(flushed) < BATCH_TIME;
        if self.store.next_lane() != Some(Lane::Urgent)
            || self.spreader.flushed_urgent.is_some_and(is_recent)
            || self.spreader.handoffs.len() > PENDING_MAX * 2
        {
            return;
        }
        if let Some(batch) = self.next_batch(now) {
            self.spreader.flushed_urgent = Some(now.time);
            self.delegate(&batch, None, None, now);
        }
    }

    pub(super) fn flush(&mut self, now: Now) {
        let signed = self.counters.records_signed;
        for _ in 0..FLUSH_MAX {
            if self.counters.records_signed - signed > SIGNED_MAX {
                break;
            }
            let nothing = self.spreader.waiting.is_empty() && !self.store.has_unspread();
            // Membership and what is urgent do not wait for the acknowledgements of what is not.
            let hurries = !self.spreader.waiting.is_empty() || self.store.next_lane() == Some(Lane::Urgent);
            let most = if hurries { PENDING_MAX * 2 } else { PENDING_MAX };
            if nothing || self.spreader.handoffs.len() > most {
                return; // an acknowledgement wakes it again
            }
            // Nothing, if others' records have won over all that waited.
            let Some(batch) = self.next_batch(now) else { continue };
            self.spreader.flushed = Some(now.time);
            self.delegate(&batch, None, None, now);
        }
        self.timers.set_by(Timer::Flush, now.time + BATCH_TIME);
    }

    /// What waits, as one batch: the parts first, then records in the room that is left.
    fn next_batch(&mut self, now: Now) -> Option<Arc<Batch>> {
        let mut payload = Packet::new();
        let mut urgent = std::mem::take(&mut self.spreader.urgent);
        while let Some(part) = self.spreader.waiting.front() {
            if !payload.is_empty() && payload.len() + part.len() > BATCH_LEN {
                self.spreader.urgent = urgent;
                break;
            }
            payload.push_parts(part);
            self.spreader.waiting.pop_front();
        }
        let hurries = self.store.next_lane() == Some(Lane::Urgent);
        let much = !hurries && self.store.unspread_bytes() > BULK_FROM;
        let limit = match (much, payload.is_empty()) {
            (true, true) => BULK_LEN,
            (true, false) => 0, // a datagram of membership does not become a frame of a stream
            (false, _) => BATCH_LEN,
        };
        while payload.len() < limit * 2 / 3 || payload.is_empty() {
            // What somebody waits for is not made longer by what can wait.
            if hurries && self.store.next_lane() != Some(Lane::Urgent) {
                break;
            }
            let Some((mut batch, first)) = self.store.take_unspread(limit.saturating_sub(payload.len()), now)
            else {
                break;
            };
            if !self.seal(&mut batch, now) {
                break; // it is told again when the key has recovered
            }
            urgent |= first;
            self.counters.records_spread += batch.records.len() as u64;
            payload.push(kind::RECORDS, &batch);
        }
        if payload.is_empty() {
            return None;
        }
        self.spreader.number += 1;
        self.counters.batches_spread += 1;
        Some(Arc::new(Batch {
            origin: self.me.clone(),
            epoch: self.members.me().body.epoch,
            number: self.spreader.number,
            payload: payload.into_parts(),
            urgent,
        }))
    }
}

/// The relay's side.
impl Protocol {
    /// A hand-off: delivers what is new, serves the range, then acknowledges.
    pub(super) fn on_spread(&mut self, from: &NodeId, body: &Bytes, now: Now) -> Result<(), Malformed> {
        let (head, payload) = codec::head_and_rest(body)?;
        let head: SpreadHead = codec::decode(&head)?;
        let mut parts = Self::spread_parts(&payload)?;
        let is_foreign = |part: &Part| matches!(part, Part::Records(batch) if batch.source != *from);
        if head.origin == *from && parts.iter().any(is_foreign) {
            // A node writes only its own records, and what it passes on for others names them as the origin.
            self.on_violation(from, "a record of another node in a batch of its own");
            return Ok(());
        }
        if self.spreader.handoffs.len() > HANDOFFS_MAX {
            self.counters.handoffs_refused += 1;
            return Ok(()); // not acknowledged: somebody else gets the range
        }
        let key = (head.origin.clone(), head.epoch, head.number, self.members.hash_of(&payload));
        let spans = self.spreader.seen.get(&key);
        let (known, served) =
            (spans.is_some(), spans.is_some_and(|s| s.len() >= SPANS_MAX || s.contains(&head.span)));
        if served || head.origin == self.me {
            self.counters.duplicates += 1;
        } else if !known && !self.vouch_for(from, &mut parts, now) {
            // What is good of it is taken. The rest is not passed on, or this node would be named for it; and not
            // acknowledged, so that whoever is honest finds another relay or asks again.
            self.counters.batches_withheld += 1;
            self.deliver_all(from, parts, now);
            return Ok(());
        } else {
            self.counters.duplicates += u64::from(known);
            self.remember(key, head.span.clone(), now);
            let batch = Arc::new(Batch {
                origin: head.origin,
                epoch: head.epoch,
                number: head.number,
                payload,
                urgent: false,
            });
            // First on its way, then looked at: the next hop need not wait for this node's work.
            self.delegate(&batch, Some(&head.span), Some(from), now);
            if !known {
                self.deliver_all(from, parts, now);
            }
        }
        self.spreader.took.push(head.handoff);
        Ok(())
    }

    /// Delivers parts whose records have been looked at as far as signatures go.
    fn deliver_all(&mut self, from: &NodeId, parts: Vec<Part>, now: Now) {
        for part in parts {
            match part {
                Part::Records(batch) => drop(self.merge_records(from, &batch, now)),
                part => self.deliver(from, part, now),
            }
        }
    }

    /// Acknowledges what the message at hand has handed over, after it was handed on.
    pub(super) fn acknowledge(&mut self, to: &NodeId) {
        if !self.spreader.took.is_empty() {
            let handoffs = std::mem::take(&mut self.spreader.took);
            self.send_part(to, kind::TOOK, &Took { handoffs });
        }
    }

    fn remember(&mut self, key: Seen, span: Span, now: Now) {
        let spreader = &mut self.spreader;
        let spans = spreader.seen.entry(key.clone()).or_default();
        if spans.is_empty() {
            spreader.seen_order.push_back((now.time, key));
        }
        spans.push(span);
        while spreader
            .seen_order
            .front()
            .is_some_and(|(at, _)| now.time.since(*at) > SEEN_FOR || spreader.seen_order.len() > SEEN_MAX)
        {
            if let Some((_, old)) = spreader.seen_order.pop_front() {
                spreader.seen.remove(&old);
            }
        }
    }

    /// Splits a range among relays; without one the whole ring, by zones first.
    fn delegate(&mut self, batch: &Arc<Batch>, span: Option<&Span>, from: Option<&NodeId>, now: Now) {
        let ring = self.members.take_ring();
        let mut handed = Vec::new();
        if let Some(span) = span {
            self.split(&ring, span, batch, from, &mut handed);
        } else {
            let my_zone = self.members.me().body.zone.clone();
            for zone in ring.chunk_by(|a, b| a.zone == b.zone) {
                let whole = Span { zone: zone[0].zone.clone(), lo: 0, hi: u64::MAX };
                if whole.zone == my_zone {
                    self.split(zone, &whole, batch, from, &mut handed);
                } else {
                    // One copy crosses to each other zone.
                    let nodes: Vec<_> = zone.iter().collect();
                    self.assign(&nodes, whole, batch, &mut handed);
                }
            }
        }
        let me = self.members.me();
        let may_detour =
            span.is_none_or(|span| span.zone == me.body.zone && (span.lo..=span.hi).contains(&me.place));
        if may_detour {
            let except: Vec<_> = [Some(&batch.origin), from].into_iter().flatten().cloned().collect();
            for (to, span, _) in handed.iter_mut().filter(|(.., leaf)| !leaf) {
                self.detour(&ring, span, &except, to);
            }
        }
        self.members.put_ring(ring);
        for (to, span, leaf) in handed {
            self.hand_off(batch, to, span, leaf, may_detour, now);
        }
    }

    /// Where nobody in a range is connected to this node, a neighbour of the range serves it that is: who
    /// stands so near is connected to all in it, and a handshake may be lost. Who serves a range in which it
    /// does not stand asks nobody else to, or it might go round for ever.
    fn detour(&mut self, ring: &[Place], span: &Span, except: &[NodeId], to: &mut NodeId) {
        let linked = |members: &Members, id: &NodeId| {
            members.get(id).is_some_and(|member| member.status == NodeStatus::Alive && member.linked)
        };
        if linked(&self.members, to) {
            return;
        }
        let part = members::part_within(ring, span);
        let before = &ring[part.start.saturating_sub(DETOUR)..part.start];
        let after = &ring[part.end..(part.end + DETOUR).min(ring.len())];
        let near: Vec<_> = before
            .iter()
            .chain(after)
            .filter(|at| at.zone == span.zone && !except.contains(&at.node_id))
            .filter(|at| linked(&self.members, &at.node_id))
            .collect();
        if !near.is_empty() {
            self.counters.detours += 1;
            to.clone_from(&near[self.rng.usize(..near.len())].node_id);
        }
    }

    /// Cuts a range of one zone into up to `FAN` ranges of equally many nodes, and finds a relay for each.
    fn split(
        &mut self,
        ring: &[Place],
        span: &Span,
        batch: &Batch,
        from: Option<&NodeId>,
        handed: &mut Vec<(NodeId, Span, bool)>,
    ) {
        let nodes: Vec<_> = members::within(ring, span)
            .iter()
            .filter(|at| at.node_id != batch.origin && Some(&at.node_id) != from)
            .collect();
        if nodes.is_empty() {
            return;
        }
        // No range may hold a node that has the batch already, or a relay with another view sends it back.
        let mut holes: Vec<_> = [Some(&self.me), Some(&batch.origin), from]
            .into_iter()
            .flatten()
            .map(|id| self.members.place_of(id))
            .collect();
        holes.sort_unstable();
        let size = nodes.len().div_ceil(FAN);
        let mut lo = span.lo;
        let mut at = 0;
        while at < nodes.len() {
            let mut end = (at + size).min(nodes.len());
            let first = nodes[at].hash;
            if let Some(hole) = holes.iter().rev().find(|hole| **hole < first) {
                lo = lo.max(hole.saturating_add(1));
            }
            let hole = holes.iter().find(|hole| **hole > first).copied();
            if let Some(hole) = hole {
                end = at + nodes[at..end].iter().take_while(|node| node.hash < hole).count();
            }
            // Up to the next range, so that whom this node does not know is served too.
            let next = nodes.get(end).map_or(span.hi, |next| next.hash.saturating_sub(1).min(span.hi));
            let hi = hole.map_or(next, |hole| next.min(hole - 1)).max(nodes[end - 1].hash);
            self.assign(&nodes[at..end], Span { zone: span.zone.clone(), lo, hi }, batch, handed);
            lo = hi.saturating_add(1);
            at = end;
        }
    }

    /// Finds who serves a range: a member believed alive, connected if there is one. Suspects get copies but
    /// never relay.
    fn assign(
        &mut self,
        nodes: &[&Place],
        span: Span,
        batch: &Batch,
        handed: &mut Vec<(NodeId, Span, bool)>,
    ) {
        match self.choose_relay(nodes, &[]) {
            Some(relay) => {
                if batch.urgent
                    && let Some(second) = self.choose_relay(nodes, std::slice::from_ref(&relay))
                {
                    handed.push((second, span.clone(), false));
                }
                handed.push((relay, span, false));
            }
            None => handed.extend(nodes.iter().map(|node| {
                let only = Span { zone: span.zone.clone(), lo: node.hash, hi: node.hash };
                (node.node_id.clone(), only, true)
            })),
        }
    }

    /// One believed alive, by chance: one that is connected, if there is any.
    fn choose_relay(&mut self, nodes: &[&Place], except: &[NodeId]) -> Option<NodeId> {
        let fits = |members: &Members, place: &Place, linked: bool| {
            !except.contains(&place.node_id)
                && members
                    .get(&place.node_id)
                    .is_some_and(|member| member.status == NodeStatus::Alive && member.linked == linked)
        };
        // Mostly the first who is drawn will do, and nobody has to look at all the others.
        for _ in 0..nodes.len().min(DRAWS) {
            let drawn = nodes[self.rng.usize(..nodes.len())];
            if fits(&self.members, drawn, true) {
                return Some(drawn.node_id.clone());
            }
        }
        [true, false].into_iter().find_map(|linked| {
            let among: Vec<_> = nodes.iter().filter(|place| fits(&self.members, place, linked)).collect();
            (!among.is_empty()).then(|| among[self.rng.usize(..among.len())].node_id.clone())
        })
    }

    fn hand_off(
        &mut self,
        batch: &Arc<Batch>,
        to: NodeId,
        span: Span,
        leaf: bool,
        may_detour: bool,
        now: Now,
    ) {
        self.spreader.last_handoff += 1;
        self.spreader.repeats = (self.spreader.repeats + REPEATS_PER_MILLE).min(REPEATS_SAVED * 1_000);
        let number = self.spreader.last_handoff;
        let wait = self.ack_wait(&to, batch.payload.len());
        self.send_handoff(number, batch, &to, &span);
        let (batch, tried, sent) = (Arc::clone(batch), Vec::new(), now.time);
        let handoff = Handoff { batch, span, to, tried, sent, wait, leaf, may_detour };
        self.timers.set(Timer::Handoff(number), now.time + wait);
        self.spreader.handoffs.insert(number, handoff);
    }

    /// `2·srtt + 4·rttvar` of the path, at least 2 ms, at most half a gossip tick; more for bulk.
    fn ack_wait(&self, to: &NodeId, len: usize) -> Duration {
        let path = self.members.get(to).filter(|member| member.linked).and_then(|member| member.rtt);
        let wait = path.map_or(WAIT_UNKNOWN, |rtt| rtt.smooth * 2 + rtt.var * 4).max(WAIT_MIN);
        let bulk = WAIT_PER.1 * u32::try_from(len / WAIT_PER.0).unwrap_or(u32::MAX);
        wait.min(self.config.gossip_interval / 2).max(WAIT_MIN) + bulk
    }

    fn send_handoff(&mut self, number: u64, batch: &Batch, to: &NodeId, span: &Span) {
        let head = codec::encode(&SpreadHead {
            handoff: number,
            origin: batch.origin.clone(),
            epoch: batch.epoch,
            number: batch.number,
            span: span.clone(),
        });
        let mut packet = Packet::new();
        packet.push_raw(kind::SPREAD, &[&codec::prefix(head.len()), &head, &batch.payload]);
        self.counters.handoffs += 1;
        if self.members.get(to).is_some_and(|member| !member.linked) {
            self.dial(to);
        }
        self.send(to, packet);
    }

    pub(super) fn on_took(&mut self, from: &NodeId, took: &Took, now: Now) {
        if took.handoffs.len() > TOOK_MAX {
            self.counters.malformed += 1;
            return;
        }
        for number in &took.handoffs {
            self.measure_late(from, *number, now);
            let Some(handoff) = self.spreader.handoffs.get(number) else { continue };
            if handoff.to != *from && !handoff.tried.contains(from) {
                continue; // nobody else can vouch for it
            }
            if handoff.tried.is_empty() {
                let sample = now.time.since(handoff.sent);
                self.measure(from, sample);
            }
            self.timers.clear(&Timer::Handoff(*number));
            self.spreader.handoffs.remove(number);
        }
        self.go_on(now);
    }

    /// A hand-off has ended: there is room for more, or a leave is through.
    fn go_on(&mut self, now: Now) {
        if self.store.has_unspread() || !self.spreader.waiting.is_empty() {
            self.flush_soon(now);
        }
        self.end_leave_if_spread();
    }

    /// An acknowledgement that came too late says how long this path takes now.
    fn measure_late(&mut self, from: &NodeId, number: u64, now: Now) {
        if let Some(sent) = self.spreader.late.remove(&(number, from.clone())) {
            self.measure(from, now.time.since(sent));
        }
    }

    /// A hand-off was not acknowledged in time: another relay gets it, and the silent one is probed.
    pub(super) fn redelegate(&mut self, number: u64, now: Now) {
        let Some(mut handoff) = self.spreader.handoffs.remove(&number) else { return };
        let silent = handoff.to.clone();
        self.counters.handoffs_lost += 1;
        handoff.tried.push(silent.clone());
        self.spreader.late.insert((number, silent.clone()), handoff.sent);
        if self.spreader.late.len() > LATE_MAX {
            self.spreader.late.pop_first(); // the oldest has the lowest number
        }
        if handoff.tried.len() >= TRIES_MAX || !self.spreader.may_repeat() {
            self.counters.handoffs_given_up += 1;
            self.probe_silent(&silent, now);
            self.go_on(now);
            return;
        }
        if !handoff.leaf {
            let ring = self.members.take_ring();
            let span = &handoff.span;
            let inside: Vec<_> = members::within(&ring, span).iter().collect();
            let mut except = handoff.tried.clone();
            except.push(handoff.batch.origin.clone());
            if let Some(other) = self.choose_relay(&inside, &except) {
                handoff.to = other;
            } else if let Some(first) = self.tried_longest_ago(&handoff.tried) {
                handoff.to = first;
            }
            if handoff.may_detour {
                self.detour(&ring, &handoff.span, &except, &mut handoff.to);
            }
            self.members.put_ring(ring);
        }
        if !self.members.is_live(&handoff.to) {
            self.go_on(now);
            return; // it died meanwhile, and nobody else is in the range
        }
        // Twice as long from the third time on. One loss is no sign that a path is slow, and to wait longer
        // at once costs the last nodes of a lossy cluster more than all that went before.
        let times = handoff.tried.iter().filter(|id| **id == handoff.to).count();
        handoff.wait = if times > 1 {
            handoff.wait * 2
        } else {
            self.ack_wait(&handoff.to, handoff.batch.payload.len())
        };
        handoff.sent = now.time;
        self.timers.set(Timer::Handoff(number), now.time + handoff.wait);
        self.send_handoff(number, &Arc::clone(&handoff.batch), &handoff.to, &handoff.span);
        self.spreader.handoffs.insert(number, handoff);
        self.probe_silent(&silent, now);
    }

    /// Everybody in a range was tried: in turn again, since the last may be dead and the first have lost a
    /// packet.
    fn tried_longest_ago(&self, tried: &[NodeId]) -> Option<NodeId> {
        let last = |id: &NodeId| tried.iter().rposition(|other| other == id);
        let alive = tried
            .iter()
            .filter(|id| self.members.get(id).is_some_and(|member| member.status == NodeStatus::Alive));
        alive.min_by_key(|id| last(id)).cloned()
    }

    /// Probes one that did not acknowledge, unless it was heard within the ping interval.
    fn probe_silent(&mut self, id: &NodeId, now: Now) {
        let heard =
            self.members.get(id).is_some_and(|m| m.is_heard_within(self.config.ping_interval, now.time));
        if !heard {
            self.probe_now(id, now);
        }
    }

    /// A connection stands: what waited for it has just been sent, over a path that is known now.
    pub(super) fn expect_handoffs_from(&mut self, peer: &NodeId, now: Now) {
        let mut waiting = Vec::new();
        for (number, handoff) in self.spreader.handoffs.iter_mut().filter(|(_, handoff)| handoff.to == *peer)
        {
            handoff.sent = now.time;
            waiting.push((*number, handoff.batch.payload.len()));
        }
        for (number, len) in waiting {
            self.timers.set_by(Timer::Handoff(number), now.time + self.ack_wait(peer, len));
        }
    }

    /// Its connection is gone: what it was handed goes to others at once.
    pub(super) fn hurry_handoffs_to(&mut self, peer: &NodeId, now: Now) {
        let lost: Vec<_> = self
            .spreader
            .handoffs
            .iter()
            .filter(|(_, handoff)| handoff.to == *peer)
            .map(|(n, _)| *n)
            .collect();
        for number in lost {
            self.timers.set(Timer::Handoff(number), now.time);
        }
    }
}
