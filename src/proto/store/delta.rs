//! What is known, in vectors and hashes, and what of it another lacks. Changes nothing.

use std::{collections::BTreeSet, hash::Hasher as _};

use siphasher::sip::SipHasher13;

use super::{PAGE, Store, Table, Vector, own::to_wire, slots::Fate};
use crate::{
    NodeId, StateType,
    proto::{Now, ranges::Ranges},
    wire::message::{Dots, RecordBatch},
};

/// Records looked at for one slice of what is bygone.
const WALK_MAX: usize = 4_096;
/// Ranges in one such slice, so that it stays far below a frame's length.
const SLICE_RANGES_MAX: usize = 2_048;

/// Where the next slice of what is bygone begins: source, epoch and dot.
pub(crate) type Cursor = (NodeId, u64, u64);

/// What is known, and what to send.
impl Store {
    /// The types of which something is kept and told.
    pub(crate) fn types(&self) -> Vec<StateType> {
        self.tables.keys().filter(|of| !self.config.disabled.contains(*of)).cloned().collect()
    }

    pub(crate) fn vector(&self, state_type: &StateType) -> Vector {
        let entries = self.tables.get(state_type).into_iter().flat_map(Table::vector);
        entries.map(|(source, epoch, known)| ((source.clone(), epoch), known.clone())).collect()
    }

    pub(crate) fn ranges(&self, state_type: &StateType, source: &NodeId, epoch: u64) -> Ranges {
        let ranges = self.tables.get(state_type).and_then(|table| table.ranges(source, epoch));
        ranges.cloned().unwrap_or_default()
    }

    pub(crate) fn holds(&self, state_type: &StateType, source: &NodeId, epoch: u64, seq: u64) -> bool {
        let ranges = self.tables.get(state_type).and_then(|table| table.ranges(source, epoch));
        ranges.is_some_and(|ranges| ranges.contains(seq))
    }

    /// A hash of a type's live records and vector: equal where nothing is to be exchanged. 0 for an unknown
    /// type.
    pub(crate) fn digest(&self, state_type: &StateType) -> u64 {
        self.tables.get(state_type).map_or(0, Table::digest)
    }

    /// The same for all types but some.
    pub(crate) fn digest_all(&self, except: &BTreeSet<StateType>) -> u64 {
        let types = self
            .tables
            .iter()
            .filter(|(of, table)| table.digest() != 0 && !except.contains(*of))
            .filter(|(of, _)| !self.config.disabled.contains(*of));
        types.fold(0, |all: u64, (state_type, table)| {
            let mut hasher = SipHasher13::new_with_keys(self.config.hash_key.0, self.config.hash_key.1);
            hasher.write(state_type.as_str().as_bytes());
            hasher.write_u64(table.digest());
            all.wrapping_add(hasher.finish())
        })
    }

    /// The next slice of what `theirs` lacks, in the order of dots, and whether there is more. Costs what is
    /// missing, whatever the store holds.
    pub(crate) fn delta(
        &self,
        state_type: &StateType,
        theirs: &Vector,
        bytes_max: usize,
        now: Now,
    ) -> (Vec<RecordBatch>, bool) {
        let mut batches = Vec::new();
        let mut bytes = 0;
        let Some(table) = self.tables.get(state_type) else { return (batches, false) };
        for (source, epoch, ours) in table.vector() {
            let lacking = match theirs.get(&(source.clone(), epoch)) {
                Some(theirs) => ours.minus(theirs),
                None => ours.clone(),
            };
            let mut records = Vec::new();
            let mut full = false;
            'slice: for (lo, hi) in lacking.iter() {
                for held in table.at(source, epoch, lo, hi) {
                    if bytes >= bytes_max {
                        full = true;
                        break 'slice;
                    }
                    bytes += held.size();
                    records.push(to_wire(held, now));
                }
            }
            if !records.is_empty() {
                let (state_type, source) = (state_type.into(), source.clone());
                batches.push(RecordBatch { state_type, source, epoch, records, carried: Vec::new() });
            }
            if full {
                return (batches, true);
            }
        }
        (batches, false)
    }

    /// The records with these dots, and whether some that are known here are not among them: they have no
    /// record any more, or it did not fit. Either way an exchange must bring the rest.
    pub(crate) fn records_at(
        &self,
        state_type: &StateType,
        source: &NodeId,
        epoch: u64,
        wanted: &Ranges,
        bytes_max: usize,
        now: Now,
    ) -> (Option<RecordBatch>, bool) {
        let Some(table) = self.tables.get(state_type) else { return (None, false) };
        let known = table.ranges(source, epoch).map_or(0, |ours| wanted.count() - wanted.minus(ours).count());
        let mut records = Vec::new();
        let mut bytes = 0;
        for (lo, hi) in wanted.iter() {
            for held in table.at(source, epoch, lo, hi) {
                if bytes < bytes_max {
                    bytes += held.size();
                    records.push(to_wire(held, now));
                }
            }
        }
        let gone = (records.len() as u64) < known;
        let (state_type, source) = (state_type.into(), source.clone());
        let batch = (!records.is_empty()).then_some(RecordBatch {
            state_type,
            source,
            epoch,
            records,
            carried: Vec::new(),
        });
        (batch, gone)
    }
}

/// What was deleted so long ago that no tombstone tells of it any more (Dotted version vectors: a dot that is known
/// and not held was superseded).
impl Store {
    /// Whether `theirs` lacks a dot whose tombstone may have been collected: then it may hold what that had
    /// deleted, and no record tells.
    pub(crate) fn is_below_floor(&self, state_type: &StateType, theirs: &Vector) -> bool {
        let floors = self.tables.get(state_type).into_iter().flat_map(Table::floors);
        let mut floors =
            floors.map(|(source, epoch, ours, floor)| match theirs.get(&(source.clone(), epoch)) {
                Some(theirs) => ours.minus(theirs).min().is_some_and(|first| first <= floor),
                None => ours.min().is_some_and(|first| first <= floor),
            });
        floors.any(|below| below)
    }

    pub(crate) fn floor(&self, state_type: &StateType, source: &NodeId, epoch: u64) -> u64 {
        self.tables.get(state_type).map_or(0, |table| table.floor(source, epoch))
    }

    /// The next slice of the dots that both know and of which nothing is held here, from `first` on, and where
    /// the slice after it begins: whoever still holds them holds what was superseded. Costs what both know, a
    /// slice at a time.
    pub(crate) fn bygone(
        &self,
        state_type: &StateType,
        theirs: &Vector,
        first: Option<&Cursor>,
    ) -> (Vec<Dots>, Option<Cursor>) {
        let mut slice = Vec::new();
        let (mut walked, mut ranges) = (0, 0);
        let Some(table) = self.tables.get(state_type) else { return (slice, None) };
        for (source, epoch, ours) in table.vector() {
            let Some(theirs) = theirs.get(&(source.clone(), epoch)) else { continue };
            let from = match first {
                Some((of, life, _)) if (source, epoch) < (of, *life) => continue,
                Some((of, life, seq)) if (source, epoch) == (of, *life) => *seq,
                _ => 1,
            };
            let both = ours.intersection(theirs).from(from);
            let mut gone = Ranges::default();
            let mut stopped = None;
            'life: for (lo, hi) in both.iter() {
                let mut next = lo;
                for held in table.at(source, epoch, lo, hi) {
                    if walked >= WALK_MAX || ranges + gone.len() >= SLICE_RANGES_MAX {
                        stopped = Some(next);
                        break 'life;
                    }
                    walked += 1;
                    if next < held.seq() {
                        gone.insert_range(next, held.seq() - 1);
                    }
                    next = held.seq() + 1;
                }
                if next <= hi {
                    gone.insert_range(next, hi);
                }
                if ranges + gone.len() >= SLICE_RANGES_MAX {
                    stopped = hi.checked_add(1);
                    break;
                }
            }
            ranges += gone.len();
            if !gone.is_empty() {
                let (state_type, source) = (state_type.into(), source.clone());
                slice.push(Dots { state_type, source, epoch, ranges: gone.to_wire() });
            }
            if let Some(seq) = stopped {
                return (slice, Some((source.clone(), epoch, seq)));
            }
        }
        (slice, None)
    }
}

/// What one node holds and another that knows the same does not.
#[derive(Debug, Default)]
pub(crate) struct Unheld {
    /// What it is to be sent anew.
    pub(crate) batches: Vec<RecordBatch>,
    /// Dots of its own present life: it wrote them and knows that they were superseded.
    pub(crate) withdrawn: Ranges,
    /// Where the next page begins.
    pub(crate) next: Option<u32>,
}

/// Where two know the same and hold something else: one of them has marked a dot as known and never had its record,
/// or they have forgotten a tombstone at different times. Neither is lost: both hold all of both afterwards.
impl Store {
    /// The dots of which something is held.
    pub(crate) fn held_dots(&self, state_type: &StateType) -> Vector {
        self.tables.get(state_type).map(Table::held_dots).unwrap_or_default()
    }

    /// The records in the next places whose dots `theirs` knows and `held` does not hold; `they` are that node in
    /// its present life. What ends by itself is left out: it may have ended there.
    pub(crate) fn unheld(
        &self,
        state_type: &StateType,
        (theirs, held, they): (&Vector, &Vector, (&NodeId, u64)),
        first: u32,
        bytes_max: usize,
        now: Now,
    ) -> Unheld {
        let mut unheld = Unheld::default();
        let mut bytes = 0;
        let Some(table) = self.tables.get(state_type) else { return unheld };
        for (number, record) in table.from(first) {
            if number - first >= PAGE || bytes >= bytes_max {
                unheld.next = Some(number);
                break;
            }
            let (source, epoch, seq) = (record.source(), record.epoch(), record.seq());
            let is_in =
                |vector: &Vector| vector.get(&(source.clone(), epoch)).is_some_and(|dots| dots.contains(seq));
            if matches!(record.fate(), Fate::Ends(_)) || !is_in(theirs) || is_in(held) {
                continue;
            }
            if (source, epoch) == they {
                unheld.withdrawn.insert(seq);
                continue;
            }
            bytes += record.size();
            let record = to_wire(record, now);
            let last = unheld.batches.last_mut();
            match last.filter(|batch| batch.source == *source && batch.epoch == epoch) {
                Some(batch) => batch.records.push(record),
                None => unheld.batches.push(RecordBatch {
                    state_type: state_type.into(),
                    source: source.clone(),
                    epoch,
                    records: vec![record],
                    carried: Vec::new(),
                }),
            }
        }
        unheld
    }
}
