//! One type's records: its registers by key, the index by dot, the version vector, and the hash of all three,
//! kept together. Checks nothing that came from a peer; that is the store's.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    hash::Hasher as _,
    sync::Arc,
};

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use crate::{
    NodeId, StateType, SyncableState, Value,
    proto::{Time, ranges::Ranges, time::wall_time},
};

/// What is known of a type: for each source and epoch, the dots.
pub(crate) type Vector = BTreeMap<(NodeId, u64), Ranges>;

/// A record as it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) source: NodeId,
    pub(super) epoch: u64,
    pub(super) seq: u64,
    pub(super) version: u64,
    pub(super) timestamp_ms: u64,
    pub(super) deleted: bool,
    /// When it came here; of a tombstone, since when it is one.
    pub(super) since: Time,
    /// When it is no more, by this node's own clock.
    pub(super) expires: Option<Time>,
    pub(super) value: Bytes,
}

impl Record {
    /// Whether both are one write, whatever its number, and whether or not its time to live is over.
    pub(super) fn is_same_write(&self, other: &Self) -> bool {
        (&self.source, self.version, self.timestamp_ms) == (&other.source, other.version, other.timestamp_ms)
    }
}

/// A key's registers: one of a shared type, one for each source of a per-node type, ordered by source. Few
/// sources write under one key, and a map for each key would cost a kilobyte.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
enum Register {
    One(Record),
    Many(Vec<Record>),
}

/// Where the register of `source` is, or would be.
fn place_of(records: &[Record], source: &NodeId) -> Result<usize, usize> {
    records.binary_search_by(|record| record.source.cmp(source))
}

/// All there is of one type.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Table {
    per_node: bool,
    hash_key: (u64, u64),
    registers: BTreeMap<Arc<str>, Register>,
    /// Invariant: exactly the dots of the records held, tombstones included.
    dots: BTreeMap<(NodeId, u64, u64), Arc<str>>,
    vector: Vector,
    /// Invariant: the sum of the hashes of the live records and of the vector's entries.
    digest: u64,
    live: usize,
}

/// What became of a record that was put in.
pub(super) enum Placed {
    /// It counts now, instead of the other.
    Won(Option<Record>),
    Lost,
}

impl Table {
    pub(super) fn new(per_node: bool, hash_key: (u64, u64)) -> Self {
        Self {
            per_node,
            hash_key,
            registers: BTreeMap::new(),
            dots: BTreeMap::new(),
            vector: Vector::new(),
            digest: 0,
            live: 0,
        }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }

    pub(super) fn vector(&self) -> &Vector {
        &self.vector
    }

    pub(super) fn ranges(&self, source: &NodeId, epoch: u64) -> Option<&Ranges> {
        self.vector.get(&(source.clone(), epoch))
    }

    /// Changes what is known of a source's epoch.
    pub(super) fn learn(&mut self, source: &NodeId, epoch: u64, change: impl FnOnce(&mut Ranges)) {
        let key = (source.clone(), epoch);
        let mut ranges = self.vector.remove(&key).unwrap_or_default();
        self.digest = self.digest.wrapping_sub(self.entry_hash(source, epoch, &ranges));
        change(&mut ranges);
        self.digest = self.digest.wrapping_add(self.entry_hash(source, epoch, &ranges));
        if !ranges.is_empty() {
            self.vector.insert(key, ranges);
        }
    }

    /// Whether `incoming` replaces `held`. Both orders are total, so every node keeps the same record
    /// whatever the order of arrival.
    pub(super) fn wins(per_node: bool, incoming: &Record, held: &Record) -> bool {
        if per_node {
            return (incoming.epoch, incoming.seq) > (held.epoch, held.seq);
        }
        // Wall clocks have no say: a host that runs a minute ahead would win for a minute. The dot comes
        // last: it tells apart only what says the same.
        let rank = |record: &Record| (record.version, record.source.clone(), record.deleted);
        (rank(incoming), &incoming.value, incoming.epoch, incoming.seq)
            > (rank(held), &held.value, held.epoch, held.seq)
    }

    /// Puts a record under a key, if it wins there.
    pub(super) fn place(&mut self, key: &str, record: Record) -> Placed {
        let key: Arc<str> =
            self.registers.get_key_value(key).map_or_else(|| key.into(), |(key, _)| Arc::clone(key));
        if self.held(&key, &record.source).is_some_and(|held| !Self::wins(self.per_node, &record, held)) {
            return Placed::Lost;
        }
        let dot = (record.source.clone(), record.epoch, record.seq);
        self.count(&key, &record, true);
        let old = match self.registers.entry(Arc::clone(&key)) {
            Entry::Vacant(vacant) if self.per_node => {
                vacant.insert(Register::Many(vec![record]));
                None
            }
            Entry::Vacant(vacant) => {
                vacant.insert(Register::One(record));
                None
            }
            Entry::Occupied(mut occupied) => match occupied.get_mut() {
                Register::One(held) => Some(std::mem::replace(held, record)),
                Register::Many(held) => match place_of(held, &record.source) {
                    Ok(at) => Some(std::mem::replace(&mut held[at], record)),
                    Err(at) => {
                        held.insert(at, record);
                        None
                    }
                },
            },
        };
        if let Some(old) = &old {
            self.count(&key, old, false);
            self.dots.remove(&(old.source.clone(), old.epoch, old.seq));
        }
        self.dots.insert(dot, key);
        Placed::Won(old)
    }

    /// Takes a register out altogether.
    pub(super) fn remove(&mut self, key: &str, source: &NodeId) -> Option<Record> {
        let register = self.registers.get_mut(key)?;
        let (record, empty) = match register {
            Register::One(record) => (Some(record.clone()).filter(|record| record.source == *source), true),
            Register::Many(records) => {
                let removed = place_of(records, source).ok().map(|at| records.remove(at));
                (removed, records.is_empty())
            }
        };
        let record = record?;
        if empty {
            self.registers.remove(key);
        }
        self.count(key, &record, false);
        self.dots.remove(&(record.source.clone(), record.epoch, record.seq));
        Some(record)
    }

    /// Turns a record into a tombstone where it stands: it has expired.
    pub(super) fn wither(&mut self, key: &str, source: &NodeId, now: Time) -> Option<Record> {
        let before =
            self.held(key, source).filter(|record| record.source == *source && !record.deleted)?.clone();
        self.count(key, &before, false);
        if let Some(record) = self.held_mut(key, source) {
            record.deleted = true;
            record.value = Bytes::new();
            record.expires = None;
            record.since = now;
        }
        Some(before)
    }

    /// The record that a record of `source` under `key` would have to beat.
    pub(super) fn held(&self, key: &str, source: &NodeId) -> Option<&Record> {
        match self.registers.get(key)? {
            Register::One(record) => Some(record),
            Register::Many(records) => place_of(records, source).ok().map(|at| &records[at]),
        }
    }

    fn held_mut(&mut self, key: &str, source: &NodeId) -> Option<&mut Record> {
        match self.registers.get_mut(key)? {
            Register::One(record) => Some(record),
            Register::Many(records) => place_of(records, source).ok().map(|at| &mut records[at]),
        }
    }

    /// Every record, with its key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Record)> {
        self.registers.iter().flat_map(|(key, register)| {
            let (one, many) = match register {
                Register::One(record) => (Some(record), None),
                Register::Many(records) => (None, Some(records)),
            };
            one.into_iter().chain(many.into_iter().flatten()).map(move |record| (key, record))
        })
    }

    /// The records of a source's epoch with these dots, in their order.
    pub(super) fn at(
        &self,
        source: &NodeId,
        epoch: u64,
        lo: u64,
        hi: u64,
    ) -> impl Iterator<Item = (&Arc<str>, &Record)> {
        let range = (source.clone(), epoch, lo)..=(source.clone(), epoch, hi);
        self.dots.range(range).filter_map(|((source, ..), key)| Some((key, self.held(key, source)?)))
    }

    /// The keys of a source's records, of whatever epoch.
    pub(super) fn keys_of<'a>(&'a self, source: &'a NodeId) -> impl Iterator<Item = &'a Arc<str>> {
        let from = (source.clone(), 0, 0);
        self.dots.range(from..).take_while(move |((of, ..), _)| of == source).map(|(_, key)| key)
    }

    /// Counts a live record in or out.
    fn count(&mut self, key: &str, record: &Record, enters: bool) {
        if record.deleted {
            return;
        }
        let hash = self.record_hash(key, record);
        if enters {
            self.digest = self.digest.wrapping_add(hash);
            self.live += 1;
        } else {
            self.digest = self.digest.wrapping_sub(hash);
            self.live -= 1;
        }
    }

    fn record_hash(&self, key: &str, record: &Record) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.hash_key.0, self.hash_key.1);
        hasher.write(record.source.as_str().as_bytes());
        hasher.write_u8(1);
        hasher.write_u64(record.epoch);
        hasher.write_u64(record.seq);
        hasher.write_u64(record.version);
        hasher.write_u64(key.len() as u64);
        hasher.write(key.as_bytes());
        hasher.write(&record.value);
        hasher.finish()
    }

    fn entry_hash(&self, source: &NodeId, epoch: u64, ranges: &Ranges) -> u64 {
        if ranges.is_empty() {
            return 0;
        }
        let mut hasher = SipHasher13::new_with_keys(self.hash_key.0, self.hash_key.1);
        hasher.write(source.as_str().as_bytes());
        hasher.write_u8(2);
        hasher.write_u64(epoch);
        for (lo, hi) in ranges.iter() {
            hasher.write_u64(lo);
            hasher.write_u64(hi);
        }
        hasher.finish()
    }

    /// Compares everything that is kept with what it is kept from.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut digest = 0_u64;
        let mut live = 0;
        let mut dots = BTreeMap::new();
        for (key, record) in self.iter() {
            if !record.deleted {
                digest = digest.wrapping_add(self.record_hash(key, record));
                live += 1;
            }
            dots.insert((record.source.clone(), record.epoch, record.seq), Arc::clone(key));
            let known = self.ranges(&record.source, record.epoch);
            assert!(
                known.is_some_and(|known| known.contains(record.seq)),
                "a record outside the vector: {key}"
            );
        }
        for ((source, epoch), ranges) in &self.vector {
            digest = digest.wrapping_add(self.entry_hash(source, *epoch, ranges));
        }
        assert_eq!((digest, live, &dots), (self.digest, self.live, &self.dots));
    }
}

impl Record {
    /// As users see it.
    pub(super) fn to_state(&self, state_type: &StateType, key: &str) -> SyncableState {
        SyncableState {
            state_type: state_type.clone(),
            key: key.into(),
            value: if self.deleted { Value::NIL } else { Value::from_checked(self.value.clone()) },
            version: self.version,
            source_node: self.source.clone(),
            timestamp: wall_time(self.timestamp_ms),
            deleted: self.deleted,
        }
    }
}
