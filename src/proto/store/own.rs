//! A node's own writes: numbered without gaps, stored, and kept until they were spread. Takes nothing from
//! peers.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Effect, PROOF_ROOM, RECORD_OVERHEAD, Record, Store, Table, outbox::Lane, slots::Fate, table::Held,
};
use crate::{
    StateType, SyncableState,
    proto::{Now, ranges::Ranges, time::wall_ms},
    wire::message::{RecordBatch, WireRecord},
};

/// Own writes.
impl Store {
    #[expect(clippy::too_many_arguments, reason = "a record's parts, each once")]
    pub(crate) fn put(
        &mut self,
        state_type: &StateType,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        urgent: bool,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> SyncableState {
        let fate = ttl.map_or(Fate::Stays, |ttl| Fate::Ends(now.time + ttl));
        let record = Record { version: self.clock.tick(), ..self.own(fate, value, now) };
        self.write(state_type, key, record, urgent, effects)
    }

    /// Takes a record with its own version; `false`, and nothing changes, if it loses.
    pub(crate) fn put_as(&mut self, state: SyncableState, now: Now, effects: &mut Vec<Effect>) -> bool {
        let (fate, value) = if state.deleted {
            (self.tombstone(&state.state_type, &state.key, &self.config.me, now), Bytes::new())
        } else {
            (Fate::Stays, state.value.into_bytes())
        };
        let record = Record {
            version: state.version,
            timestamp_ms: wall_ms(state.timestamp),
            ..self.own(fate, value, now)
        };
        let held =
            self.tables.get(&state.state_type).and_then(|table| table.held(&state.key, &self.config.me));
        let loses = held.is_some_and(|held| {
            if state.state_type.is_per_node() {
                return held.version() >= record.version;
            }
            // What ends by itself is a tombstone by then, which no other value under its version replaces; so
            // none may before, or whoever hears of it afterwards holds something else.
            let ends = matches!(held.fate(), Fate::Ends(_))
                && (held.source(), held.version()) == (&record.source, record.version);
            // Under an equal version the same value is no news, whatever its dot.
            ends || !Table::wins(false, &Record { epoch: 0, seq: 0, ..record.clone() }, held)
        });
        if loses {
            return false;
        }
        self.clock.witness(state.version);
        self.write(&state.state_type, &state.key, record, false, effects);
        true
    }

    /// Puts a tombstone over what is live; what was there.
    pub(crate) fn remove(
        &mut self,
        state_type: &StateType,
        key: &str,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Option<SyncableState> {
        let table = self.tables.get(state_type)?;
        let old = table.held(key, &self.config.me).filter(|held| !held.is_deleted())?.to_state(state_type);
        let fate = self.tombstone(state_type, key, &self.config.me, now);
        let record = Record { version: self.clock.tick(), ..self.own(fate, Bytes::new(), now) };
        self.write(state_type, key, record, false, effects);
        Some(old)
    }

    fn own(&self, fate: Fate, value: Bytes, now: Now) -> Record {
        Record {
            source: self.config.me.clone(),
            epoch: self.config.epoch,
            seq: 0,
            version: 0,
            timestamp_ms: now.wall_ms,
            fate,
            value,
            proof: Bytes::new(),
        }
    }

    /// Numbers an own record, stores it and notes that it must be spread.
    fn write(
        &mut self,
        state_type: &StateType,
        key: &str,
        mut record: Record,
        urgent: bool,
        effects: &mut Vec<Effect>,
    ) -> SyncableState {
        let seq = self.next_seq(state_type);
        record.seq = seq;
        let (me, epoch) = (self.config.me.clone(), self.config.epoch);
        let size = key.len() + record.value.len() + RECORD_OVERHEAD + self.proof_room(state_type);
        let state = record.to_state(state_type, key);
        self.table(state_type).learn(&me, epoch, |known, _| _ = known.insert(seq));
        self.place(state_type, key, &record, effects);
        self.outbox.push(state_type, &key.into(), seq, size, urgent);
        state
    }

    /// How long the proof of an own record of that type may become, about, that has none yet.
    pub(super) fn proof_room(&self, state_type: &StateType) -> usize {
        if self.config.signed.covers(state_type.as_str()) { PROOF_ROOM } else { 0 }
    }

    fn next_seq(&mut self, state_type: &StateType) -> u64 {
        let seq = self.seqs.entry(state_type.clone()).or_insert(0);
        *seq += 1;
        *seq
    }

    /// Goes on under a later epoch: what this life wrote is written anew, so that it is known from now on by
    /// dots that nobody else has used.
    pub(crate) fn new_epoch(&mut self, epoch: u64, now: Now) {
        let me = self.config.me.clone();
        let old = std::mem::replace(&mut self.config.epoch, epoch);
        self.seqs.clear();
        self.outbox.clear();
        let types: Vec<_> = self.tables.keys().cloned().collect();
        for state_type in types {
            let own: Vec<_> = self
                .table(&state_type)
                .at(&me, old, 0, u64::MAX)
                .map(|held| (held.key().to_owned(), held.to_record()))
                .collect();
            for (key, record) in own {
                let fate = match record.fate {
                    // Whoever lacks it must hear of it under its new dot.
                    Fate::Ended(kept) => Fate::Ended(kept.max(now.time + self.kept_after_its_end())),
                    fate => fate,
                };
                // Under another dot it is signed anew, when it is told.
                let record = Record { epoch, fate, proof: Bytes::new(), ..record };
                // The same value under a new dot: nobody here is told.
                self.write(&state_type, &key, record, false, &mut Vec::new());
            }
        }
    }

    pub(crate) fn has_unspread(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// About how many bytes wait to be spread.
    pub(crate) fn unspread_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// The number of the latest own write, and of the one that has waited longest to be spread.
    pub(crate) fn written_and_waiting(&self) -> (u64, u64) {
        (self.outbox.last(), self.outbox.oldest())
    }

    /// The lane of the next own record that waits.
    pub(crate) fn next_lane(&self) -> Option<Lane> {
        self.outbox.next_lane()
    }

    /// Own records that wait, of one type and lane, as many as fit; at least one. And whether one of them is
    /// urgent.
    pub(crate) fn take_unspread(&mut self, bytes_max: usize, now: Now) -> Option<(RecordBatch, bool)> {
        let (mut batch, mut urgent, mut bytes): (Option<RecordBatch>, bool, usize) = (None, false, 0);
        let mut of: Option<(StateType, Lane)> = None;
        loop {
            let wanted = of.as_ref().map(|(state_type, lane)| (state_type, *lane));
            let Some((state_type, key, dirty, lane)) = self.outbox.pop(wanted) else { break };
            let held = self.tables.get(&state_type).and_then(|table| table.held(&key, &self.config.me));
            let own = held.filter(|held| {
                (held.source(), held.epoch(), held.seq()) == (&self.config.me, self.config.epoch, dirty.seq)
            });
            // Another's record has won meanwhile: the dot stays a gap until its successor comes from there.
            let Some(held) = own else { continue };
            of.get_or_insert_with(|| (state_type.clone(), lane));
            urgent |= dirty.urgent;
            let batch = batch.get_or_insert_with(|| RecordBatch {
                state_type: (&state_type).into(),
                source: self.config.me.clone(),
                epoch: self.config.epoch,
                records: Vec::new(),
                carried: Vec::new(),
            });
            bytes += held.size().max(dirty.size);
            batch.records.push(to_wire(held, now));
            if !dirty.carried.is_empty() {
                let mut carried = Ranges::from_wire(&batch.carried).unwrap_or_default();
                carried.union(&dirty.carried);
                batch.carried = carried.to_wire();
            }
            if bytes >= bytes_max || batch.records.len() >= self.config.max_batch_size {
                break;
            }
        }
        batch.map(|batch| (batch, urgent))
    }
}

pub(super) fn to_wire(held: Held<'_>, now: Now) -> WireRecord {
    let ttl_ms = match held.fate() {
        Fate::Ends(at) => Some(u64::try_from(at.since(now.time).as_millis()).unwrap_or(u64::MAX)),
        Fate::Stays | Fate::Ended(_) => None,
    };
    WireRecord {
        seq: held.seq(),
        key: held.key().into(),
        version: held.version(),
        timestamp_ms: held.timestamp_ms(),
        deleted: held.is_deleted(),
        ttl_ms,
        value: held.value_bytes(),
        proof: Bytes::copy_from_slice(held.proof()),
    }
}
