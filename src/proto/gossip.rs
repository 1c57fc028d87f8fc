//! Gossip, the net below the delegated spread: on each tick a node with news tells a few peers what changed
//! in its version vector, and who lacks something asks for it. Moves dots and records, decides none.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    NodeId, StateType,
    proto::{
        Now, Protocol, claims::AHEAD_MAX_MS, lamport, members, ranges::Ranges, signatures::Way, timers::Timer,
    },
    wire::{
        codec::Packet,
        limits,
        message::{DotList, Dots, RecordBatch, Span, kind},
    },
};

/// The spread must have had its chance before a digest asks for the same.
const NEWS_AGE: Duration = Duration::from_millis(30);
/// Up to so many missing dots are asked for one by one; more are a push-pull's business.
const PULL_MAX: u64 = 64;
/// A hint need not tell every gap.
const RANGES_MAX: usize = 8;
/// The longest reply to a pull, in bytes.
const REPLY_LEN: usize = 64 * 1024;
/// Of a hundred digests to other zones, so many are sent.
const CROSS_ZONE_PERCENT: u8 = 2;

/// How much farther than the bound a version must lie to be a lie. A node whose clock is some minutes ahead
/// accepts what others refuse as yet, and then writes beyond it in good faith.
const CLOCKS_DIFFER_MS: u64 = 3_600 * 1_000;

fn is_far_ahead(version: u64, now: Now) -> bool {
    version > lamport::bound(now.wall_ms.saturating_add(CLOCKS_DIFFER_MS))
}

impl Protocol {
    /// An entry of the vector has changed.
    pub(super) fn note_news(&mut self, state_type: &StateType, source: &NodeId, epoch: u64, now: Now) {
        self.state_changed = now.time;
        self.news.entry((state_type.clone(), source.clone(), epoch)).or_insert(now.time);
    }

    /// The tick: tells what changed to a few peers.
    pub(super) fn gossip(&mut self, now: Now) {
        self.timers.set(Timer::Gossip, now.time + self.config.gossip_interval);
        if self.leaving {
            return;
        }
        self.repeat_lists(now);
        if self.news.is_empty() {
            return;
        }
        let peers = self.gossip_partners();
        if peers.is_empty() {
            return;
        }
        let mut list = DotList { dots: Vec::new() };
        let mut size = 0;
        let mut told = Vec::new();
        // The oldest first, or sources that write all the time would keep others from being told at all.
        let aged = self.news.iter().filter(|(_, since)| now.time.since(**since) >= NEWS_AGE);
        let mut aged: Vec<_> = aged.map(|(key, since)| (*since, key)).collect();
        aged.sort_unstable();
        for (_, key) in aged {
            let (state_type, source, epoch) = key;
            let mut ranges = self.store.ranges(state_type, source, *epoch).to_wire();
            ranges.drain(..ranges.len().saturating_sub(RANGES_MAX));
            size += 40 + state_type.as_str().len() + source.as_str().len() + 18 * ranges.len();
            if size > limits::DATAGRAM_LEN_MAX && !list.dots.is_empty() {
                break; // the rest on the next tick
            }
            told.push(key.clone());
            list.dots.push(Dots {
                state_type: state_type.into(),
                source: source.clone(),
                epoch: *epoch,
                ranges,
            });
        }
        for key in told {
            self.news.remove(&key);
        }
        if !list.dots.is_empty() {
            self.counters.gossip_sent += peers.len() as u64;
            for peer in peers {
                self.send_part(&peer, kind::NEWS, &list);
            }
        }
    }

    /// Random peers, of the own zone but for a few.
    fn gossip_partners(&mut self) -> Vec<NodeId> {
        let zone = self.members.me().body.zone.clone();
        let span = Span { zone, lo: 0, hi: u64::MAX };
        let own = members::part_within(self.members.ring(), &span);
        let cross = own.is_empty() || self.rng.u8(..100) < CROSS_ZONE_PERCENT;
        let part = if cross { 0..self.members.ring().len() } else { own };
        self.some_alive_within(part, self.config.gossip_fanout, &BTreeSet::new())
    }

    /// A peer tells what it has: asks for what is missing here.
    pub(super) fn on_news(&mut self, from: &NodeId, list: &DotList, now: Now) {
        let mut missing = Vec::new();
        let mut count = 0_u64;
        for dots in &list.dots {
            let kept = self.kept_type(&dots.state_type).filter(|of| self.signs_alike(of, from));
            let Some(state_type) = kept else { continue };
            let Some(theirs) = Ranges::from_wire(&dots.ranges) else {
                self.counters.malformed += 1;
                continue;
            };
            if self.is_impersonated(&dots.source, dots.epoch, &state_type, &theirs) {
                self.flee_impersonation(from, dots.epoch, now);
                continue;
            }
            let lacking = theirs.minus(&self.store.ranges(&state_type, &dots.source, dots.epoch));
            count = count.saturating_add(lacking.count());
            if !lacking.is_empty() {
                missing.push(Dots { ranges: lacking.to_wire(), ..dots.clone() });
            }
        }
        if count == 0 {
            return;
        }
        self.counters.gossip_useful += 1;
        if count <= PULL_MAX {
            self.send_part(from, kind::PULL, &DotList { dots: missing });
        } else {
            self.sync_early(from, now);
        }
    }

    /// A peer lacks something.
    pub(super) fn on_pull(&mut self, from: &NodeId, list: &DotList, now: Now) {
        let mut packet = Packet::new();
        let mut gone = false;
        let mut count = 0_u64;
        for dots in &list.dots {
            let kept = self.kept_type(&dots.state_type).filter(|of| !self.is_purging(of));
            let Some(state_type) = kept else { continue };
            let Some(wanted) = Ranges::from_wire(&dots.ranges) else { continue };
            count = count.saturating_add(wanted.count());
            if count > PULL_MAX || packet.len() > REPLY_LEN {
                gone = true;
                break;
            }
            let (batch, absent) =
                self.store.records_at(&state_type, &dots.source, dots.epoch, &wanted, REPLY_LEN, now);
            gone |= absent;
            if let Some(mut batch) = batch
                && self.seal(&mut batch, now)
            {
                packet.push(kind::RECORDS, &batch);
            }
        }
        if gone {
            packet.push_raw(kind::GONE, &[]);
        }
        if !packet.is_empty() {
            self.counters.pulls_served += 1;
            self.send(from, packet);
        }
    }

    /// Records from a peer, by whichever way; which were refused.
    pub(super) fn take_records(&mut self, from: &NodeId, mut batch: RecordBatch, now: Now) -> Vec<u64> {
        let mut refused = self.vet(from, &mut batch, Way::Told, now);
        refused.extend(self.merge_records(from, &batch, now));
        refused
    }

    /// Records that may be taken as far as their signatures go.
    pub(super) fn merge_records(&mut self, from: &NodeId, batch: &RecordBatch, now: Now) -> Vec<u64> {
        if batch.source == *from && batch.records.iter().any(|record| is_far_ahead(record.version, now)) {
            self.on_violation(from, "a version that no clock of the cluster can have come to");
        }
        let mut effects = Vec::new();
        let outcome = self.store.merge(batch, now, &mut effects);
        self.counters.records_accepted += outcome.accepted;
        self.counters.records_superseded += outcome.superseded;
        self.counters.records_known += outcome.known;
        self.counters.records_refused += outcome.refused.len() as u64;
        if outcome.new_dots
            && let Some(state_type) = self.kept_type(&batch.state_type)
        {
            self.note_news(&state_type, &batch.source, batch.epoch, now);
        }
        self.perform_effects(effects, now);
        if outcome.forged {
            self.flee_impersonation(from, batch.epoch, now);
        }
        outcome.refused
    }

    /// The type, if this node keeps it and its name is one.
    pub(super) fn kept_type(&self, name: &crate::wire::message::TypeName) -> Option<StateType> {
        let state_type = StateType::from(name);
        let fits = (1..=limits::TYPE_LEN_MAX).contains(&name.name.len());
        (fits && !self.config.disabled.contains(&state_type)).then_some(state_type)
    }

    /// Whether those are dots that only this node could have made, and did not.
    pub(super) fn is_impersonated(
        &self,
        source: &NodeId,
        epoch: u64,
        state_type: &StateType,
        dots: &Ranges,
    ) -> bool {
        *source == self.me
            && epoch >= self.members.me().body.epoch
            && !dots.minus(&self.store.ranges(state_type, source, epoch)).is_empty()
    }

    /// Somebody has written under this node's name, or this node has lost its memory or its clock: it goes on
    /// under a new epoch, beyond the one that was used.
    pub(super) fn flee_impersonation(&mut self, teller: &NodeId, used: u64, now: Now) {
        let latest = now.wall_ms.saturating_add(AHEAD_MAX_MS);
        if used > latest || self.fled.is_some_and(|fled| now.time.since(fled) < Duration::from_secs(1)) {
            return;
        }
        self.fled = Some(now.time);
        self.counters.impersonations += 1;
        let reason = format!("{teller} holds records of this node that this process did not write");
        self.report_conflict(&reason, now);
        let used = self.members.me().body.epoch.max(used);
        let epoch = self.epoch_after(used, now);
        self.begin_epoch(epoch, now);
    }
}
