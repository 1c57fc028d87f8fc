//! Two that know the same and hold something else: no vector tells what one of them lacks. Whoever notices tells, in
//! its next exchange, all dots that it holds, and is sent anew what else the other does. Decides no winner.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Exchange, FRAME_LEN, bygone::PURGE_PAUSE, send::Part};
use crate::{
    NodeId, StateType,
    proto::{Now, Protocol, Time, signatures::Way, store::Vector, timers::Timer},
    wire::{
        StreamId,
        codec::Packet,
        message::{RecordBatch, Wants, kind},
    },
};

/// All that is held is told at most so often: it costs what there is, and no honest node has such a fault.
const PAUSE: Duration = Duration::from_secs(30);

/// Types of which that was noticed, and when each was last compared.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(in crate::proto) struct Unexplained {
    types: BTreeSet<StateType>,
    compared: BTreeMap<StateType, Time>,
}

impl Protocol {
    /// Notes the types of which the peer knows the same as this node and yet holds something else.
    pub(super) fn note_unexplained(&mut self, wants: &Wants, theirs: &BTreeMap<StateType, Vector>) {
        for (name, digest) in wants.types.iter().zip(&wants.digests) {
            let Some(of) = self.kept_type(name) else { continue };
            let same = theirs.get(&of).is_some_and(|theirs| *theirs == self.store.vector(&of));
            if same && !self.is_purging(&of) && self.store.digest(&of) != *digest {
                self.counters.digests_unexplained += 1;
                self.unexplained.types.insert(of);
            }
        }
    }

    /// Which of these types are to be compared in this exchange.
    pub(super) fn begin_to_compare(&mut self, stream: StreamId, types: &[StateType]) -> Vec<StateType> {
        let now = self.entered;
        let Unexplained { types: noticed, compared } = &mut self.unexplained;
        let due = |of: &&StateType| compared.get(*of).is_none_or(|last| now.since(*last) >= PAUSE);
        let due: Vec<_> = types.iter().filter(|of| noticed.contains(*of)).filter(due).cloned().collect();
        for of in &due {
            noticed.remove(of);
            compared.insert(of.clone(), now);
        }
        if let Some(exchange) = self.exchanges.get_mut(&stream) {
            exchange.compares = due.iter().cloned().collect();
        }
        due
    }

    /// Tells a peer the next of what it knows and does not hold; whether there was any. What it wrote itself it has
    /// seen superseded: that goes here as well.
    pub(super) fn tell_anew(
        &mut self,
        peer: &NodeId,
        part: &mut Part,
        packet: &mut Packet,
        now: Now,
    ) -> bool {
        let epoch = self.members.get(peer).map_or(0, |member| member.body.epoch);
        while let Some((held, first)) = part.held.take() {
            let theirs = (&part.first, &held, (peer, epoch));
            let unheld = self.store.unheld(&part.of, theirs, first, FRAME_LEN, now);
            part.held = unheld.next.map(|next| (held, next));
            if !unheld.withdrawn.is_empty() {
                self.purges.push_back(((part.of.clone(), peer.clone(), epoch), unheld.withdrawn));
                self.timers.set_by(Timer::Purge, now.time + PURGE_PAUSE);
            }
            let told = !unheld.batches.is_empty();
            for mut batch in unheld.batches {
                // What is not signed is not told; it differs on, and is found again.
                if self.seal(&mut batch, now) {
                    packet.push(kind::ANEW, &batch);
                }
            }
            if told {
                return true;
            }
        }
        false
    }

    /// What the peer holds besides.
    pub(super) fn on_anew(&mut self, peer: &NodeId, stream: StreamId, mut batch: RecordBatch, now: Now) {
        let Some(Exchange { compares, .. }) = self.exchanges.get(&stream) else { return };
        if compares.contains(&StateType::from(&batch.state_type)) {
            self.vet(peer, &mut batch, Way::Anew, now);
            let mut effects = Vec::new();
            self.counters.records_healed += self.store.heal(&batch, now, &mut effects);
            self.state_changed = now.time;
            self.perform_effects(effects, now);
        }
    }

    /// Has a type compared in an exchange, as if this side had told what it holds.
    #[cfg(test)]
    pub(in crate::proto) fn expect_anew(&mut self, stream: StreamId, of: &StateType) {
        if let Some(exchange) = self.exchanges.get_mut(&stream) {
            exchange.compares.insert(of.clone());
        }
    }
}
