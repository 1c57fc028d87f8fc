//! The sending half of an exchange: hashes, wants, then in slices what the peer lacks, claims about coverage
//! last. Takes nothing in.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ENTRIES_PER_FRAME, Exchange, FRAME_LEN, FRAMES_AHEAD, Half, Plan, RANGES_MAX, RANGES_PER_ENTRY,
    RANGES_PER_FRAME, ROWS_PER_FRAME, SIGNED_FRAME_LEN, SYNCED_WITH,
};
use crate::{
    EventData, EventKind, NodeId, NodeStatus, StateType,
    proto::{
        Now, Output, Protocol, Time,
        members::{Member, rank},
        ranges::Ranges,
        store::{Cursor, Vector},
        timers::Timer,
    },
    wire::{
        StreamId,
        codec::Packet,
        message::{Accusation, Bygone, Covers, Dots, Forget, MemberRow, Open, Standing, Wants, kind},
    },
};

/// What is still to be told of one type.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Part {
    pub(super) of: StateType,
    /// What the peer has of it by now, and what it had at first.
    theirs: Vector,
    pub(super) first: Vector,
    bygone: Slices,
    /// All dots that the peer holds, if it wants to be sent anew what else there is; and from which place on.
    pub(super) held: Option<(Vector, u32)>,
}

/// How much was told of the dots that both know and of which this side holds nothing.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
enum Slices {
    /// Nothing, and perhaps nothing need be.
    None,
    UpTo(Cursor),
    All,
}

/// Whether a frame should take no more of a vector: with one entry more it would still be below 1 MiB.
fn is_full(vectors: &[Dots]) -> bool {
    let ranges: usize = vectors.iter().map(|dots| dots.ranges.len()).sum();
    vectors.len() >= ENTRIES_PER_FRAME || ranges >= RANGES_PER_FRAME
}

/// What is sent.
impl Protocol {
    /// Sends a frame as soon as there is room: the transport bounds how many may wait there.
    fn frame(&mut self, stream: StreamId, packet: Packet) {
        if let Some(exchange) = self.exchanges.get_mut(&stream) {
            exchange.queue.push_back(packet.into_bytes());
            self.send_queued(stream);
        }
    }

    pub(super) fn send_queued(&mut self, stream: StreamId) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        while exchange.ahead < FRAMES_AHEAD
            && let Some(bytes) = exchange.queue.pop_front()
        {
            exchange.ahead += 1;
            self.counters.sync_bytes_sent += bytes.len() as u64;
            self.outputs.push_back(Output::Frame { stream, bytes });
        }
    }

    pub(super) fn say_open(&mut self, stream: StreamId, now: Now) {
        let types = self.store.types();
        let open = Open {
            clock: self.store.clock(),
            members: self.members.hash(),
            types: types
                .iter()
                .map(|state_type| (state_type.into(), self.store.digest(state_type)))
                .collect(),
            disabled: self.config.disabled.iter().map(Into::into).collect(),
        };
        let mut packet = Packet::new();
        packet.push(kind::OPEN, &open);
        self.add_lists(&mut packet);
        self.frame(stream, packet);
        self.progress(stream, now);
    }

    /// Tells the vectors of what differs; an empty list says that nothing does.
    pub(super) fn say_wants(&mut self, stream: StreamId) {
        let now = self.entered;
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        exchange.asked = Some(now);
        let Some(open) = &exchange.opened else { return };
        let theirs: BTreeMap<StateType, u64> =
            open.types.iter().map(|(name, digest)| (StateType::from(name), *digest)).collect();
        let peer = exchange.peer.clone();
        let disabled = self.members.get(&peer).map(|member| member.disabled.clone()).unwrap_or_default();
        let members_differ = self.members.hash() != open.members;
        let mut types = self.store.types();
        types.extend(theirs.keys().filter(|of| !self.config.disabled.contains(*of)).cloned());
        types.sort_unstable();
        types.dedup();
        types.retain(|of| {
            !disabled.contains(of)
                && self.signs_alike(of, &peer)
                && !self.is_purging(of)
                && self.store.digest(of) != theirs.get(of).copied().unwrap_or(0)
        });
        if members_differ {
            for rows in self.rows().chunks(ROWS_PER_FRAME) {
                self.frame_wants(stream, &Wants { members: Some(rows.to_vec()), ..Wants::default() });
            }
        }
        let vectors = types.iter().map(|of| (of.clone(), self.store.vector(of))).collect();
        self.frame_dots(stream, vectors, |vectors| Wants { vectors, ..Wants::default() });
        let compared = self.begin_to_compare(stream, &types);
        let held = compared.iter().map(|of| (of.clone(), self.store.held_dots(of))).collect();
        self.frame_dots(stream, held, |held| Wants { held, ..Wants::default() });
        let wants = Wants {
            types: types.iter().map(Into::into).collect(),
            digests: types.iter().map(|of| self.store.digest(of)).collect(),
            compared: compared.iter().map(Into::into).collect(),
            last: true,
            ..Wants::default()
        };
        self.frame_wants(stream, &wants);
        self.finish_if_said(stream);
    }

    /// Tells dots in as few frames as hold them.
    fn frame_dots(
        &mut self,
        stream: StreamId,
        vectors: Vec<(StateType, Vector)>,
        wants: impl Fn(Vec<Dots>) -> Wants,
    ) {
        let (mut dots, mut room) = (Vec::new(), RANGES_MAX / 2);
        for (state_type, vector) in vectors {
            for ((source, epoch), mut ranges) in vector {
                // What is not told is sent once more.
                ranges.truncate(room);
                room -= ranges.len();
                for ranges in ranges.to_wire().chunks(RANGES_PER_ENTRY) {
                    let (state_type, source) = ((&state_type).into(), source.clone());
                    dots.push(Dots { state_type, source, epoch, ranges: ranges.to_vec() });
                    if is_full(&dots) {
                        self.frame_wants(stream, &wants(std::mem::take(&mut dots)));
                    }
                }
            }
        }
        if !dots.is_empty() {
            self.frame_wants(stream, &wants(dots));
        }
    }

    fn frame_wants(&mut self, stream: StreamId, wants: &Wants) {
        let mut packet = Packet::new();
        packet.push(kind::WANTS, wants);
        self.frame(stream, packet);
    }

    fn rows(&self) -> Vec<MemberRow> {
        let now = self.entered;
        let age = |since: Time| u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        let row = |(id, member): (&NodeId, &Member)| MemberRow {
            node_id: id.clone(),
            epoch: member.body.epoch,
            incarnation: member.body.incarnation,
            standing: member.standing(),
            since_ms: age(member.since),
        };
        self.members.iter().map(row).collect()
    }

    /// The peer's wants are complete: what of ours it lacks.
    pub(super) fn make_plan(&mut self, stream: StreamId, now: Now) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        let wants = std::mem::take(&mut exchange.theirs);
        let peer = exchange.peer.clone();
        let mut plan = Plan::default();
        if let Some(rows) = &wants.members {
            let rows: BTreeMap<_, _> = rows.iter().map(|row| (row.node_id.clone(), row.clone())).collect();
            exchange.rows.clone_from(&rows);
            for (id, member) in self.members.iter() {
                let lacks = rows.get(id).is_none_or(|row| {
                    rank(&member.body) > (row.epoch, row.incarnation, row.standing == Standing::Left)
                });
                if lacks {
                    plan.claims.push_back(id.clone());
                }
            }
            for row in rows.values() {
                if let Some(grave) = self.members.grave(&row.node_id)
                    && (row.standing.is_gone_unsigned() || row.standing == Standing::Left)
                    && (grave.epoch, grave.incarnation) >= (row.epoch, row.incarnation)
                {
                    plan.forgets.push(Forget {
                        node_id: row.node_id.clone(),
                        epoch: grave.epoch,
                        incarnation: grave.incarnation,
                    });
                }
            }
            self.consider_rows(&peer, &rows, now);
        }
        let mut vectors = self.by_type(&wants.vectors);
        let mut held = self.by_type(&wants.held);
        let compared: BTreeSet<StateType> = wants.compared.iter().map(Into::into).collect();
        self.note_unexplained(&wants, &vectors);
        let types: BTreeSet<_> = wants.types.iter().collect();
        for name in types {
            if let Some(of) = self.kept_type(name).filter(|of| !self.is_purging(of)) {
                let theirs = vectors.remove(&of).unwrap_or_default();
                let first = theirs.clone();
                let held = compared.contains(&of).then(|| (held.remove(&of).unwrap_or_default(), 0));
                plan.types.push_back(Part { of, theirs, first, bygone: Slices::None, held });
            }
        }
        if let Some(exchange) = self.exchanges.get_mut(&stream) {
            exchange.plan = Some(plan);
        }
    }

    /// Dots of the types that are kept here, by type.
    fn by_type(&self, list: &[Dots]) -> BTreeMap<StateType, Vector> {
        let mut vectors: BTreeMap<StateType, Vector> = BTreeMap::new();
        for dots in list {
            if let (Some(of), Some(ranges)) =
                (self.kept_type(&dots.state_type), Ranges::from_wire(&dots.ranges))
            {
                let vector = vectors.entry(of).or_default();
                vector.entry((dots.source.clone(), dots.epoch)).or_default().union(&ranges);
            }
        }
        vectors
    }

    /// How the peer sees those whom both know by the same claim.
    fn consider_rows(&mut self, peer: &NodeId, rows: &BTreeMap<NodeId, MemberRow>, now: Now) {
        for (id, row) in rows {
            let Some(member) = self.members.get(id) else { continue };
            if (member.body.epoch, member.body.incarnation) != (row.epoch, row.incarnation) {
                continue;
            }
            let (status, linked, is_gone) = (member.status, member.linked, member.is_gone_unsigned());
            let doubted = row.standing != Standing::Alive;
            if *id == self.me {
                if doubted && !member.body.left {
                    self.refute(row.incarnation, peer, now);
                }
            } else if status == NodeStatus::Alive && doubted {
                let accusation = Accusation {
                    node_id: id.clone(),
                    epoch: row.epoch,
                    incarnation: row.incarnation,
                    dead: false,
                    accuser: peer.clone(),
                };
                self.look_at(&accusation, now);
            } else if status == NodeStatus::Dead && row.standing == Standing::Closed {
                self.note_left(id, "a peer saw it leave", now);
            } else if is_gone && row.standing == Standing::Alive && !linked {
                self.dial(id);
            }
        }
    }

    /// Sends the next frames, as far as there is room.
    pub(super) fn pump(&mut self, stream: StreamId, now: Now) {
        while let Some(exchange) = self.exchanges.get_mut(&stream) {
            if exchange.ahead >= FRAMES_AHEAD || !exchange.queue.is_empty() || exchange.half != Half::Telling
            {
                break;
            }
            let Some(mut plan) = exchange.plan.take() else { break };
            let peer = exchange.peer.clone();
            let Some(frames) = self.next_frames(&peer, &mut plan, now) else {
                // What this node cannot sign as yet would be claimed to have been told.
                self.drop_exchange(stream);
                self.outputs.push_back(Output::Reset { stream });
                return;
            };
            let done = frames.is_empty();
            for packet in frames {
                self.frame(stream, packet);
            }
            if done {
                let mut packet = Packet::new();
                packet.push_raw(kind::DONE, &[]);
                self.frame(stream, packet);
            }
            if let Some(exchange) = self.exchanges.get_mut(&stream) {
                exchange.plan = Some(plan);
                if done {
                    exchange.half = Half::Told;
                }
            }
            self.finish_if_said(stream);
        }
        self.end_if_complete(stream, now);
    }

    /// Ends this side's half of the stream once it has told all and asked for all. One that waits until another
    /// peer has answered asks after it has told.
    pub(super) fn finish_if_said(&mut self, stream: StreamId) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        if exchange.half == Half::Told && exchange.asked.is_some() && exchange.queue.is_empty() {
            exchange.half = Half::Ended;
            self.outputs.push_back(Output::Finish { stream });
        }
    }

    /// The next slice of the plan; more than one frame only where what belongs together must be sent at once.
    /// None if the key refuses to sign.
    fn next_frames(&mut self, peer: &NodeId, plan: &mut Plan, now: Now) -> Option<Vec<Packet>> {
        let mut packet = Packet::new();
        for forget in plan.forgets.drain(..) {
            packet.push(kind::FORGET, &forget);
        }
        while packet.len() < FRAME_LEN
            && let Some(id) = plan.claims.pop_front()
        {
            if let Some(signed) = self.claim_with_chain(&id) {
                packet.push(kind::CLAIM, &signed);
            }
        }
        if !packet.is_empty() {
            return Some(vec![packet]);
        }
        let Some(mut part) = plan.types.pop_front() else { return Some(Vec::new()) };
        let signed = self.config.signed.covers(part.of.as_str());
        let slice = if signed { SIGNED_FRAME_LEN } else { FRAME_LEN };
        let (mut batches, more) = self.store.delta(&part.of, &part.theirs, slice, now);
        if !batches.iter_mut().all(|batch| self.seal(batch, now)) {
            return None;
        }
        for batch in &batches {
            self.add_chains(batch, &mut plan.chains, &mut packet);
            let known = part.theirs.entry((batch.source.clone(), batch.epoch)).or_default();
            if let Some(last) = batch.records.last() {
                known.insert_range(1, last.seq); // the slices go up; what is written meanwhile lies above
            }
            packet.push(kind::RECORDS, batch);
        }
        if more
            || self.tell_bygone(&mut part, &mut packet)
            || self.tell_anew(peer, &mut part, &mut packet, now)
        {
            // The next slice begins where this one ended, by what the peer has by then; what changed
            // meanwhile is among it.
            plan.types.push_front(part);
            return Some(vec![packet]);
        }
        // Claims last, together with the last slice: nothing can change in between.
        Some(self.claims(&part, packet))
    }

    /// Tells a peer that lacks dots whose tombstones may be gone the next of what has become bygone; whether there
    /// was any.
    fn tell_bygone(&self, part: &mut Part, packet: &mut Packet) -> bool {
        loop {
            let first = match &part.bygone {
                Slices::All => return false,
                Slices::None if !self.store.is_below_floor(&part.of, &part.first) => return false,
                Slices::None => None,
                Slices::UpTo(cursor) => Some(cursor),
            };
            let (dots, next) = self.store.bygone(&part.of, &part.first, first);
            part.bygone = next.map_or(Slices::All, Slices::UpTo);
            if !dots.is_empty() {
                packet.push(kind::BYGONE, &Bygone { dots });
                return true;
            }
        }
    }

    /// What a type's whole delta covers.
    fn claims(&self, part: &Part, mut packet: Packet) -> Vec<Packet> {
        let mut frames = Vec::new();
        let mut covers = Covers::default();
        for ((source, epoch), ranges) in self.store.vector(&part.of) {
            let had = part.first.get(&(source.clone(), epoch));
            if had.is_some_and(|had| ranges.minus(had).is_empty()) {
                continue;
            }
            let floor = self.store.floor(&part.of, &source, epoch);
            for ranges in ranges.to_wire().chunks(RANGES_PER_ENTRY) {
                let (state_type, source) = ((&part.of).into(), source.clone());
                covers.floors.push(floor);
                covers.vectors.push(Dots { state_type, source, epoch, ranges: ranges.to_vec() });
                if is_full(&covers.vectors) {
                    packet.push(kind::COVERS, &std::mem::take(&mut covers));
                    frames.push(std::mem::replace(&mut packet, Packet::new()));
                }
            }
        }
        packet.push(kind::COVERS, &covers);
        frames.push(packet);
        frames
    }

    pub(super) fn end_if_complete(&mut self, stream: StreamId, now: Now) {
        let complete = |exchange: &Exchange| {
            exchange.half != Half::Telling && exchange.heard_all && exchange.queue.is_empty()
        };
        if !self.exchanges.get(&stream).is_some_and(complete) {
            return;
        }
        let Some(exchange) = self.drop_exchange(stream) else { return };
        if exchange.half != Half::Ended {
            // The peer has said that it has no more to say, before it was asked.
            self.outputs.push_back(Output::Finish { stream });
        }
        self.counters.exchanges_completed += 1;
        if self.synced.is_none() {
            self.synced_with.insert(exchange.peer);
            self.check_synced(now);
            if self.synced.is_none() {
                self.timers.set_by(Timer::PushPull, now.time);
            }
        }
    }

    /// Whether enough peers have told all they held: two, or one where there is no second.
    pub(super) fn check_synced(&mut self, now: Now) {
        if self.synced.is_some() {
            return;
        }
        let others = self.members.live().saturating_sub(1);
        let peers = self.synced_with.len();
        if peers >= SYNCED_WITH.min(others).max(1) {
            self.synced = Some(peers);
            self.outputs.push_back(Output::Synced { peers });
            self.event_data(EventKind::Synced, None, EventData::Synced { peers }, now);
            let jitter = self.jitter(self.config.push_pull_interval);
            self.timers.set(Timer::PushPull, now.time + jitter);
        }
    }
}
