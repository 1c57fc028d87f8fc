//! Records and their dots: which wins, what is known, what is forgotten when. The merge is commutative,
//! associative and idempotent. Knows no peer and sends nothing.
//!
//! `table` one type's records and indexes · `slots` where they lie · `own` this node's writes · `outbox` which of
//! them wait · `delta` what another lacks · `proofs` its writers' signatures

mod delta;
#[cfg(test)]
mod forgotten;
#[cfg(test)]
mod models;
mod outbox;
mod own;
mod proofs;
mod slots;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod worlds;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;

pub(crate) use self::{delta::Cursor, outbox::Lane, proofs::Alike, table::Vector};
use self::{
    outbox::Outbox,
    slots::Fate,
    table::{Held, Placed, Record, Table},
};
use crate::{
    NodeId, StateChange, StateType, SyncableState,
    proto::{
        Now, Time,
        lamport::{self, Lamport},
        ranges::Ranges,
    },
    wire::{
        limits,
        message::{RecordBatch, Signed, WireRecord},
    },
};

/// Vector entries of one type at most: sources times their lives.
const ENTRIES_MAX: usize = 65_536;
/// Ranges of one entry at most, beside one for each record that is held of it: those of an honest source are as
/// sparse as it writes anew what it wrote before. A dot that would make one more stays unknown until those before
/// it have come.
const RANGES_MAX: usize = 32_768;
/// The greatest sequence number.
const SEQ_MAX: u64 = 1 << 62;
/// How far an epoch may lie ahead of the wall clock.
const EPOCH_AHEAD_MS: u64 = 24 * 3_600 * 1_000;
/// What had a time to live is remembered for so long beyond its end.
const KEPT_AFTER_ITS_END: Duration = Duration::from_secs(600);
/// Places in a page: so many records are looked at while nothing else can be done.
pub(crate) const PAGE: u32 = 512;
/// What a record costs on the wire beside key and value, about.
const RECORD_OVERHEAD: usize = 32;
/// What the proof of a record adds, with a key of the curve P-256.
const PROOF_ROOM: usize = 90;

/// What the store is told at its making.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct StoreConfig {
    pub(crate) me: NodeId,
    pub(crate) epoch: u64,
    pub(crate) tombstone_ttl: Duration,
    pub(crate) max_batch_size: usize,
    pub(crate) disabled: BTreeSet<StateType>,
    /// Of which types signatures are kept.
    pub(crate) signed: Signed,
    pub(crate) hash_key: (u64, u64),
}

/// What a change of the store means outside.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    /// Another node's record was accepted: its type's provider is handed it.
    Apply(SyncableState),
    /// What counts under a register has changed, by whoever.
    Change(StateChange),
}

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchOutcome {
    pub(crate) accepted: u64,
    pub(crate) superseded: u64,
    pub(crate) known: u64,
    /// Sequence numbers that stay unknown.
    pub(crate) refused: Vec<u64>,
    /// It has dots of this node's present life that this node did not make.
    pub(crate) forged: bool,
    pub(crate) new_dots: bool,
}

/// The shared state, as this node holds it.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Store {
    config: StoreConfig,
    clock: Lamport,
    tables: BTreeMap<StateType, Table>,
    /// The last sequence number of this life, by type.
    seqs: BTreeMap<StateType, u64>,
    outbox: Outbox,
}

impl Store {
    pub(crate) fn new(config: StoreConfig) -> Self {
        Self {
            config,
            clock: Lamport::default(),
            tables: BTreeMap::new(),
            seqs: BTreeMap::new(),
            outbox: Outbox::default(),
        }
    }

    pub(crate) fn next_version(&mut self) -> u64 {
        self.clock.tick()
    }

    /// The greatest version seen.
    pub(crate) fn clock(&self) -> u64 {
        self.clock.last()
    }

    /// A peer's clock; one beyond the bound has no say.
    pub(crate) fn witness_clock(&mut self, version: u64, now: Now) {
        if version <= lamport::bound(now.wall_ms) {
            self.clock.witness(version);
        }
    }

    fn table(&mut self, state_type: &StateType) -> &mut Table {
        let hash_key = self.config.hash_key;
        self.tables
            .entry(state_type.clone())
            .or_insert_with(|| Table::new(state_type.is_per_node(), hash_key))
    }

    /// Puts a record in if it wins.
    fn place(
        &mut self,
        state_type: &StateType,
        key: &str,
        record: &Record,
        effects: &mut Vec<Effect>,
    ) -> Taken {
        let Placed::Won(old) = self.table(state_type).place(key, record) else { return Taken::Lost };
        let new = record.to_state(state_type, key);
        let old = old.map(|old| old.to_state(state_type, key));
        // The same said again under another dot, as after a new epoch. An opinion counts by its epoch.
        let renumbered = old.as_ref().is_some_and(|old| *old == new);
        if renumbered && !state_type.stops_counting_at_death() {
            return Taken::Renumbered;
        }
        match (new.deleted, old.filter(|old| !old.deleted)) {
            (false, old) => effects.push(Effect::Change(StateChange::Put { new, old })),
            (true, Some(old)) => effects.push(Effect::Change(StateChange::Removed { old })),
            (true, None) => {}
        }
        if renumbered { Taken::Renumbered } else { Taken::Changed }
    }
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Lost,
    /// It says what was there already, under a dot of its own.
    Renumbered,
    Changed,
}

/// Others' records.
impl Store {
    /// Takes a batch: each record is accepted, superseded, known, or refused, and a refused one stays
    /// unknown.
    pub(crate) fn merge(&mut self, batch: &RecordBatch, now: Now, effects: &mut Vec<Effect>) -> BatchOutcome {
        let mut outcome = BatchOutcome::default();
        let state_type = StateType::from(&batch.state_type);
        if self.config.disabled.contains(&state_type) {
            return outcome;
        }
        if !self.has_room(&state_type, &batch.source, batch.epoch, now) {
            outcome.refused = batch.records.iter().map(|record| record.seq).collect();
            return outcome;
        }
        // Nobody else numbers this node's writes; and one of a later life would stand above all it writes in
        // this.
        let own = self.is_own_now(&batch.source, batch.epoch);
        let mut fresh = Vec::new();
        for record in &batch.records {
            if self.holds(&state_type, &batch.source, batch.epoch, record.seq) {
                outcome.known += 1;
            } else if own {
                // It stays unknown: this node goes beyond that epoch, and then it is a record like any other.
                outcome.forged = true;
                outcome.refused.push(record.seq);
            } else if is_valid(record, now) {
                fresh.push(record);
            } else {
                outcome.refused.push(record.seq);
            }
        }
        self.learn(&state_type, batch, &mut fresh, &mut outcome);
        for record in fresh {
            outcome.new_dots = true;
            self.clock.witness(record.version);
            if self.accept(&state_type, batch, record, now, effects) {
                outcome.accepted += 1;
            } else {
                outcome.superseded += 1;
            }
        }
        if let Some(carried) =
            Ranges::from_wire(&batch.carried).filter(|_| !own && outcome.refused.is_empty())
        {
            outcome.new_dots |= self.learn_all(&state_type, &batch.source, batch.epoch, &carried);
        }
        outcome
    }

    /// Takes records of known dots of which nothing is held, as if they were unknown; how many count now.
    pub(crate) fn heal(&mut self, batch: &RecordBatch, now: Now, effects: &mut Vec<Effect>) -> u64 {
        let state_type = StateType::from(&batch.state_type);
        if self.config.disabled.contains(&state_type) || self.is_own_now(&batch.source, batch.epoch) {
            return 0;
        }
        let mut healed = 0;
        for record in &batch.records {
            let known = self.holds(&state_type, &batch.source, batch.epoch, record.seq);
            let place = self.tables.get(&state_type);
            let held = place.is_some_and(|table| {
                table.at(&batch.source, batch.epoch, record.seq, record.seq).next().is_some()
            });
            if known && !held && is_valid(record, now) {
                healed += u64::from(self.accept(&state_type, batch, record, now, effects));
            }
        }
        healed
    }

    /// Whether that is this node, in its present life or in one to come.
    fn is_own_now(&self, source: &NodeId, epoch: u64) -> bool {
        *source == self.config.me && epoch >= self.config.epoch
    }

    fn accept(
        &mut self,
        state_type: &StateType,
        batch: &RecordBatch,
        record: &WireRecord,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let fate = match record.ttl_ms {
            _ if record.deleted => self.tombstone(state_type, &record.key, &batch.source, now),
            None => Fate::Stays,
            Some(ttl) => Fate::Ends(now.time + Duration::from_millis(ttl)),
        };
        let mut incoming = Record {
            source: batch.source.clone(),
            epoch: batch.epoch,
            seq: record.seq,
            version: record.version,
            timestamp_ms: record.timestamp_ms,
            fate,
            value: if record.deleted { Bytes::new() } else { record.value.clone() },
            proof: if self.config.signed.covers(state_type.as_str()) {
                record.proof.clone()
            } else {
                Bytes::new()
            },
        };
        // What has ended here does not come back because its writer has numbered it anew.
        if matches!(fate, Fate::Ends(_))
            && let Some(table) = self.tables.get(state_type)
            && let Some(held) = table.held(&record.key, &batch.source)
            && held.is_deleted()
            && held.is_same_write(&incoming)
        {
            incoming = Record { fate: held.fate(), value: Bytes::new(), ..incoming };
        }
        let taken = self.place(state_type, &record.key, &incoming, effects);
        let state = incoming.to_state(state_type, &record.key);
        if taken == Taken::Changed {
            effects.push(Effect::Apply(state));
        }
        taken != Taken::Lost
    }

    /// Whether a dot of that source and epoch could be kept at all.
    fn has_room(&self, state_type: &StateType, source: &NodeId, epoch: u64, now: Now) -> bool {
        let name = state_type.as_str();
        let fits = (1..=limits::TYPE_LEN_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
        let soon = epoch <= now.wall_ms.saturating_add(EPOCH_AHEAD_MS);
        fits && soon
            && match self.tables.get(state_type) {
                None => self.tables.len() < limits::TYPES_MAX,
                Some(table) => table.ranges(source, epoch).is_some() || table.lives() < ENTRIES_MAX,
            }
    }

    /// Knows the dots of `fresh` from now on, but for those that would make one gap too many: they are
    /// refused. All at once, since the entry is hashed anew for each change.
    fn learn(
        &mut self,
        state_type: &StateType,
        batch: &RecordBatch,
        fresh: &mut Vec<&WireRecord>,
        outcome: &mut BatchOutcome,
    ) {
        if fresh.is_empty() {
            return;
        }
        self.table(state_type).learn(&batch.source, batch.epoch, |known, held| {
            fresh.retain(|record| {
                let new = known.insert(record.seq);
                let fits = known.len() <= RANGES_MAX + held;
                if !new {
                    outcome.known += 1; // twice in one batch
                } else if !fits {
                    known.remove(record.seq);
                    outcome.refused.push(record.seq);
                }
                new && fits
            });
        });
    }

    /// Knows all these dots from now on, unless that would make too many gaps; whether any was new.
    fn learn_all(&mut self, state_type: &StateType, source: &NodeId, epoch: u64, dots: &Ranges) -> bool {
        if dots.is_empty() || dots.max().is_some_and(|max| max > SEQ_MAX) {
            return false;
        }
        let mut new = false;
        self.table(state_type).learn(source, epoch, |known, held| {
            let mut all = known.clone();
            all.union(dots);
            if all.len() <= RANGES_MAX + held && all != *known {
                *known = all;
                new = true;
            }
        });
        new
    }

    /// A peer's claims, after its whole delta: those dots are known from now on. If it names some of this
    /// node's present life, or of one to come, that this node did not make: the latest epoch of those.
    pub(crate) fn cover(&mut self, state_type: &StateType, vector: &Vector, now: Now) -> Option<u64> {
        let mut forged = None;
        if self.config.disabled.contains(state_type) {
            return None;
        }
        for ((source, epoch), dots) in vector {
            if self.is_own_now(source, *epoch) {
                let made = dots.minus(&self.ranges(state_type, source, *epoch)).is_empty();
                let soon = *epoch <= now.wall_ms.saturating_add(EPOCH_AHEAD_MS);
                forged = forged.max((!made && soon).then_some(*epoch));
            } else if self.has_room(state_type, source, *epoch, now) {
                self.learn_all(state_type, source, *epoch, dots);
            }
        }
        forged
    }
}

/// What was deleted so long ago that its tombstone is gone.
impl Store {
    /// Tombstones up to there may be gone, where the dots were learnt from.
    pub(crate) fn raise_floor(&mut self, state_type: &StateType, source: &NodeId, epoch: u64, floor: u64) {
        if !self.is_own_now(source, epoch)
            && let Some(table) = self.tables.get_mut(state_type)
        {
            table.raise_floor(source, epoch, floor);
        }
    }

    /// Those of these dots under which something lives here.
    pub(crate) fn living(
        &self,
        state_type: &StateType,
        source: &NodeId,
        epoch: u64,
        dots: &Ranges,
    ) -> Ranges {
        let mut living = Ranges::default();
        let Some(table) = self.tables.get(state_type) else { return living };
        for (lo, hi) in dots.iter() {
            for held in table.at(source, epoch, lo, hi).filter(|held| !held.is_deleted()) {
                living.insert(held.seq());
            }
        }
        living
    }

    /// Drops what lives under the next of these dots, which were superseded elsewhere by what no record tells of
    /// any more: what it was, and from which dot on it goes on.
    pub(crate) fn drop_bygone(
        &mut self,
        state_type: &StateType,
        (source, epoch): (&NodeId, u64),
        range: (u64, u64),
    ) -> (Vec<SyncableState>, Option<u64>) {
        let Some(table) = self.tables.get_mut(state_type) else { return (Vec::new(), None) };
        let (dropped, next) = table.drop_live(source, epoch, range, PAGE as usize);
        (dropped.into_iter().map(|(key, record)| record.to_state(state_type, &key)).collect(), next)
    }
}

/// Whether a record is one, whoever sent it. Depends on nothing but the record and a bound that only loosens.
fn is_valid(record: &WireRecord, now: Now) -> bool {
    (1..=SEQ_MAX).contains(&record.seq)
        && (1..=limits::KEY_LEN_MAX).contains(&record.key.len())
        && record.proof.len() <= limits::PROOF_LEN_MAX
        && record.version <= lamport::bound(now.wall_ms)
        && (record.deleted || limits::check_value(&record.value).is_ok())
}

/// What readers see.
impl Store {
    /// The live record that counts under a key, with its dot; of a per-node type, this node's own.
    pub(crate) fn held(
        &self,
        state_type: &StateType,
        key: &str,
    ) -> Option<(NodeId, u64, u64, SyncableState)> {
        let held =
            self.tables.get(state_type)?.held(key, &self.config.me).filter(|held| !held.is_deleted())?;
        Some((held.source().clone(), held.epoch(), held.seq(), held.to_state(state_type)))
    }

    /// The live records of a type, each with its epoch.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn live(&self, state_type: &StateType) -> impl Iterator<Item = (SyncableState, u64)> {
        let table = self.tables.get_key_value(state_type);
        table.into_iter().flat_map(|(state_type, table)| {
            let live = table.from(0).filter(|(_, held)| !held.is_deleted());
            live.map(|(_, held)| (held.to_state(state_type), held.epoch()))
        })
    }

    /// The live records among the next places of a type's table, each with its epoch, and where the next page
    /// begins. A record keeps its place while it is held, whatever is written under its key.
    pub(crate) fn page(
        &self,
        state_type: &StateType,
        first: u32,
    ) -> (Vec<(SyncableState, u64)>, Option<u32>) {
        let Some(table) = self.tables.get(state_type) else { return (Vec::new(), None) };
        let mut page = Vec::new();
        for (number, held) in table.from(first) {
            if number - first >= PAGE {
                return (page, Some(number));
            }
            if !held.is_deleted() {
                page.push((held.to_state(state_type), held.epoch()));
            }
        }
        (page, None)
    }

    /// The place of a register; `None` if nothing is held there.
    pub(crate) fn place_of(&self, state_type: &StateType, key: &str, source: &NodeId) -> Option<u32> {
        self.tables.get(state_type)?.find(key, source)
    }

    /// The live records of a per-node type that one source wrote, each with its epoch.
    pub(crate) fn of_source(&self, state_type: &StateType, source: &NodeId) -> Vec<(SyncableState, u64)> {
        let Some(table) = self.tables.get(state_type) else { return Vec::new() };
        let live = table.of_source(source).filter(|held| !held.is_deleted());
        live.map(|held| (held.to_state(state_type), held.epoch())).collect()
    }

    /// In which life of its source a register was written.
    pub(crate) fn register_epoch(&self, state_type: &StateType, key: &str, source: &NodeId) -> Option<u64> {
        let held = self.tables.get(state_type)?.held(key, source)?;
        (held.source() == source).then_some(held.epoch())
    }

    /// How many live records there are.
    pub(crate) fn len(&self) -> u64 {
        self.tables.values().map(|table| table.live() as u64).sum()
    }
}

/// Types that are switched off and on.
impl Store {
    /// Whether records of a type are taken and told from now on. What this life has written stays, and so do
    /// its dots: they are numbered on when the type is switched on again.
    pub(crate) fn set_kept(&mut self, state_type: &StateType, kept: bool) {
        if kept {
            self.config.disabled.remove(state_type);
        } else {
            self.config.disabled.insert(state_type.clone());
        }
    }

    /// Lets go of what others, and earlier lives, wrote in the next places of a type's table; where the next
    /// page begins. After the last one nothing is known of it any more.
    pub(crate) fn drop_page(&mut self, state_type: &StateType, first: u32) -> Option<u32> {
        let (me, epoch) = (self.config.me.clone(), self.config.epoch);
        self.tables.get_mut(state_type)?.drop_page(first, PAGE, |source, of| *source == me && of == epoch)
    }
}

/// Time.
impl Store {
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        self.tables.values().filter_map(Table::next_expiry).min()
    }

    /// Records whose time to live is over become tombstones where they stand: under their own dots, so that
    /// the same happens everywhere without a word.
    pub(crate) fn expire(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let kept = self.kept_after_its_end();
        for (state_type, table) in &mut self.tables {
            while let Some((key, old)) = table.wither(now.time, kept) {
                let old = old.to_state(state_type, &key);
                effects.push(Effect::Change(StateChange::Expired { old }));
            }
        }
    }

    /// For how long a tombstone is kept beyond the end of what it stands for.
    fn kept_after_its_end(&self) -> Duration {
        KEPT_AFTER_ITS_END.min(self.config.tombstone_ttl)
    }

    /// A tombstone that takes the place of what is held under a key. What ends by itself ends everywhere: there is
    /// nothing to keep away for long after. It makes tracked connections, of which thousands come and go a second,
    /// cost minutes of them and not a day.
    fn tombstone(&self, state_type: &StateType, key: &str, source: &NodeId, now: Now) -> Fate {
        let longest = now.time + self.config.tombstone_ttl;
        let held = self.tables.get(state_type).and_then(|table| table.held(key, source));
        let kept = match held.map(Held::fate) {
            None | Some(Fate::Stays) => longest,
            Some(Fate::Ends(at)) => at + self.kept_after_its_end(),
            Some(Fate::Ended(kept)) => kept.max(now.time + self.kept_after_its_end()),
        };
        Fate::Ended(kept.min(longest))
    }

    /// Forgets tombstones whose time is over; the vector still knows their dots, and the floor tells that there
    /// were some. How many.
    pub(crate) fn collect(&mut self, now: Now) -> usize {
        let collect = |table: &mut Table| {
            std::iter::repeat_with(|| table.collect(now.time)).take_while(|old| *old).count()
        };
        self.tables.values_mut().map(collect).sum()
    }

    /// Compares all that is kept with what it is kept from.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn check(&self) {
        self.tables.values().for_each(Table::check);
    }
}
