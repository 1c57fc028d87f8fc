//! What was deleted so long ago that no tombstone tells of it: a peer that has lost the tombstone tells which dots
//! it knows and holds nothing of, and what still lives under them here is dropped. Decides whose word counts for
//! that; compares no values.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{ENTRIES_MAX, Exchange};
use crate::{
    NodeId, StateChange, StateType, SyncableState, Value,
    proto::{Now, Output, Protocol, ranges::Ranges, store::PAGE, timers::Timer},
    wire::{
        StreamId,
        codec::Malformed,
        message::{Bygone, Covers},
    },
};

/// Ranges that may be kept as they came; beyond, only the dots that live here are.
const RANGES_MAX: usize = 1 << 18;
/// The next page is dropped after so long, so that nothing waits for more than one.
pub(super) const PURGE_PAUSE: Duration = Duration::from_millis(1);

/// A type's source in one of its lives.
type Place = (StateType, NodeId, u64);

/// What an exchange has told of the sort.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(super) struct Told {
    dots: BTreeMap<Place, Ranges>,
    /// The last dot told of each: they ascend.
    last: BTreeMap<Place, u64>,
    ranges: usize,
    /// Claims about types of which bygone dots were told. They count together with those, or a cut in between
    /// would leave this node above the floor with what was deleted below it.
    withheld: Vec<Covers>,
    entries: usize,
}

/// Dots under which nothing may live any more, and how far that is done.
pub(in crate::proto) type Purges = VecDeque<(Place, Ranges)>;

impl Told {
    pub(super) fn concerns(&self, covers: &Covers) -> bool {
        let mut types = covers.vectors.iter().map(|dots| StateType::from(&dots.state_type));
        !self.dots.is_empty() && types.any(|of| self.dots.keys().any(|(told, _, _)| *told == of))
    }

    /// Keeps claims back until the peer has told all.
    pub(super) fn withhold(&mut self, covers: Covers) -> Result<(), Malformed> {
        self.entries += covers.vectors.len();
        if self.entries > ENTRIES_MAX {
            return Err(Malformed("claims of more sources than a cluster may have"));
        }
        self.withheld.push(covers);
        Ok(())
    }
}

impl Protocol {
    /// The peer holds nothing under these dots, which both sides know.
    pub(super) fn on_bygone(&mut self, stream: StreamId, bygone: &Bygone) -> Result<(), Malformed> {
        for dots in &bygone.dots {
            let (Some(of), Some(ranges)) =
                (self.kept_type(&dots.state_type), Ranges::from_wire(&dots.ranges))
            else {
                continue;
            };
            let Some(Exchange { bygone: told, .. }) = self.exchanges.get_mut(&stream) else { return Ok(()) };
            let place = (of, dots.source.clone(), dots.epoch);
            let Some((first, last)) = ranges.min().zip(ranges.max()) else { continue };
            if told.last.insert(place.clone(), last).is_some_and(|before| before >= first) {
                return Err(Malformed("bygone dots that do not ascend"));
            }
            if told.last.len() > ENTRIES_MAX {
                return Err(Malformed("bygone dots of more sources than a cluster may have"));
            }
            told.ranges += ranges.len();
            told.dots.entry(place).or_default().append(&ranges);
            if told.ranges > RANGES_MAX {
                told.ranges = 0;
                for ((of, source, epoch), ranges) in &mut told.dots {
                    *ranges = self.store.living(of, source, *epoch, ranges);
                }
            }
        }
        Ok(())
    }

    /// The peer has told all: what it said to be bygone is dropped, and its claims about those types count.
    pub(super) fn settle_bygone(&mut self, peer: &NodeId, stream: StreamId, now: Now) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        let Told { dots, withheld, .. } = std::mem::take(&mut exchange.bygone);
        if dots.is_empty() {
            return;
        }
        // What superseded a dot may be among the refused: then it must stay, and be told again.
        let mut left: BTreeSet<StateType> = exchange.refused.keys().map(|(of, _, _)| of.clone()).collect();
        let mut owners: BTreeSet<(StateType, NodeId)> = BTreeSet::new();
        for ((of, source, epoch), ranges) in dots {
            if self.purges.iter().map(|(_, ranges)| ranges.len()).sum::<usize>() > 2 * RANGES_MAX {
                left.insert(of.clone()); // as much again is under way
            }
            if left.contains(&of) {
                self.counters.bygone_refused += 1;
            } else if self.may_tell_bygone(peer, &of, &source) {
                self.purges.push_back(((of, source, epoch), ranges));
            } else {
                self.counters.bygone_refused += 1;
                owners.insert((of, source));
            }
        }
        for covers in withheld {
            let told = covers.vectors.into_iter().zip(covers.floors);
            let told = told.filter(|(dots, _)| {
                let of = StateType::from(&dots.state_type);
                !left.contains(&of) && !owners.contains(&(of, dots.source.clone()))
            });
            let (vectors, floors) = told.unzip();
            self.take_covers(peer, stream, &Covers { vectors, floors }, now);
        }
        for (_, owner) in owners {
            self.sync_early(&owner, now);
        }
        // What others are being told may be among it.
        let begins = !self.purges.is_empty();
        let others = self.exchanges.keys().filter(|other| begins && **other != stream);
        for other in others.copied().collect::<Vec<_>>() {
            self.drop_exchange(other);
            self.outputs.push_back(Output::Reset { stream: other });
        }
        self.purge(now);
    }

    /// Whether some of a type is still to be dropped: until then nobody is told of it, since this node knows already
    /// what superseded that.
    pub(in crate::proto) fn is_purging(&self, of: &StateType) -> bool {
        self.purges.iter().any(|((purged, _, _), _)| purged == of)
    }

    /// Whose word counts. A shared record could any member have deleted, and in its own name; but a register is
    /// its owner's, and while that lives nobody else tells what has become of it.
    fn may_tell_bygone(&self, peer: &NodeId, of: &StateType, source: &NodeId) -> bool {
        !of.is_per_node() || peer == source || (*source != self.me && !self.members.is_live(source))
    }

    /// Drops the next page.
    pub(in crate::proto) fn purge(&mut self, now: Now) {
        let Some(((of, source, epoch), ranges)) = self.purges.pop_front() else { return };
        let mut rest = ranges;
        // A page of records, or of ranges that held nothing.
        for _ in 0..PAGE {
            let Some(range) = rest.iter().next() else { break };
            let (dropped, next) = self.store.drop_bygone(&of, (&source, epoch), range);
            let some = !dropped.is_empty();
            for old in dropped {
                self.forget_bygone(old, epoch, now);
            }
            rest = rest.from(next.unwrap_or(range.1.saturating_add(1)));
            if some {
                break;
            }
        }
        if !rest.is_empty() {
            self.purges.push_front(((of, source, epoch), rest));
        }
        if !self.purges.is_empty() {
            self.timers.set(Timer::Purge, now.time + PURGE_PAUSE);
        }
    }

    fn forget_bygone(&mut self, old: SyncableState, epoch: u64, now: Now) {
        self.counters.records_bygone += 1;
        self.state_changed = now.time;
        let gone = SyncableState { value: Value::NIL, deleted: true, ..old.clone() };
        self.outputs.push_back(Output::Apply(gone));
        self.tell_if_counted(StateChange::Removed { old }, epoch, now);
    }
}
