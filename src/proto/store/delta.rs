//! What is known, in vectors and hashes, and what of it another lacks. Changes nothing.

use std::{collections::BTreeSet, hash::Hasher as _};

use siphasher::sip::SipHasher13;

use super::{RECORD_OVERHEAD, Store, Table, Vector, own::to_wire};
use crate::{
    NodeId, StateType,
    proto::{Now, ranges::Ranges},
    wire::message::RecordBatch,
};

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
                    bytes += held.key().len() + held.value().len() + RECORD_OVERHEAD;
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
                    bytes += held.key().len() + held.value().len() + RECORD_OVERHEAD;
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
