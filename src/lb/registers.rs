//! What nodes have said, register by register, and what this node itself has to say: the part that tables of
//! opinions share. Decides nothing about what it means.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use super::live::Moment;
use crate::{Error, NodeId, Options, StateChange, StateType, SyncableState, Value};

/// A write that a table wants done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Write {
    pub(crate) state_type: StateType,
    pub(crate) key: String,
    /// `None` removes.
    pub(crate) value: Option<Value>,
    pub(crate) options: Options,
}

/// What one node has said under one key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Register<V> {
    pub(super) version: u64,
    pub(super) value: V,
    /// In which reading of everything it was told.
    reading: u64,
}

/// What this node has said under one key.
#[derive(Clone, Debug)]
struct Mine {
    /// As it is written.
    value: Value,
    /// When it ends by itself.
    ends: Option<Moment>,
}

/// The registers of one per-node type: under each key, what each node has said.
///
/// This node's own come from `report`, not from what it hears: readers see them at once, also while the
/// cluster stands still. Own ones that it did not say in this life of the table are taken as they come.
#[derive(Debug)]
pub(super) struct Registers<V> {
    state_type: StateType,
    me: NodeId,
    keys: BTreeMap<Arc<str>, BTreeMap<NodeId, Register<V>>>,
    mine: BTreeMap<Arc<str>, Mine>,
    /// Ends of `mine`, the earliest first.
    ends: BTreeSet<(Moment, Arc<str>)>,
    /// Own keys whose write is due.
    dirty: BTreeSet<Arc<str>>,
    /// Own keys that were withdrawn, until the store says so too: what it says of them before is older.
    withdrawn: BTreeSet<Arc<str>>,
    reading: u64,
    /// Whether there is a store which says what becomes of own writes.
    linked: bool,
    unreadable: Unreadable,
}

/// Reads a value with named fields. A list of fields without names could be of any type, and is of none.
pub(super) fn decode<V: DeserializeOwned>(value: &Value) -> Result<V, Error> {
    match value.as_bytes().first() {
        Some(0x80..=0x8f | 0xde | 0xdf) => value.decode(),
        _ => Err(Error::Decode { source: "not a map of named fields".into() }),
    }
}

/// Values that were not of the table's type.
#[derive(Clone, Debug, Default)]
pub(super) struct Unreadable {
    pub(super) count: u64,
    /// Whose were reported.
    sources: BTreeSet<NodeId>,
}

/// How many writes are taken at once.
const WRITES_LEN: usize = 512;
/// Sources whose unreadable values are reported one by one; those of more are counted only.
const REPORTED_MAX: usize = 256;

impl Unreadable {
    /// Counts a value, and reports the first of its source.
    pub(super) fn note(&mut self, record: &SyncableState, error: &Error) {
        self.count += 1;
        if self.sources.len() < REPORTED_MAX && self.sources.insert(record.source_node.clone()) {
            let SyncableState { state_type, key, source_node, .. } = record;
            tracing::warn!(
                %state_type, key, %source_node, %error,
                "a value that this version cannot read is left out; further ones of this node are counted only"
            );
        }
    }
}

impl<V: Serialize + DeserializeOwned + Clone + PartialEq> Registers<V> {
    pub(super) fn new(state_type: StateType, me: NodeId) -> Self {
        Self {
            state_type,
            me,
            keys: BTreeMap::new(),
            mine: BTreeMap::new(),
            ends: BTreeSet::new(),
            dirty: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            reading: 0,
            linked: false,
            unreadable: Unreadable::default(),
        }
    }

    pub(super) fn unreadable(&self) -> u64 {
        self.unreadable.count
    }

    /// How many registers there are.
    pub(super) fn len(&self) -> usize {
        self.keys.values().map(BTreeMap::len).sum()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.keys.keys()
    }

    /// What was said under a key, by whom.
    pub(super) fn get(&self, key: &str) -> Option<&BTreeMap<NodeId, Register<V>>> {
        self.keys.get(key)
    }

    /// What this node says itself.
    pub(super) fn own(&self, key: &str) -> Option<&V> {
        Some(&self.keys.get(key)?.get(&self.me)?.value)
    }

    // What is heard.

    /// Takes over a change; the key, if that changed something under it.
    pub(super) fn tell(&mut self, change: &StateChange) -> Option<Arc<str>> {
        let record = change.record()?;
        let key = record.key.as_str();
        let own = record.source_node == self.me;
        if own && self.mine.contains_key(key) {
            return self.note_version(record);
        }
        if !matches!(change, StateChange::Put { .. }) {
            if own {
                self.withdrawn.remove(key);
            }
            return self.take_out(key, &record.source_node);
        }
        if own && self.withdrawn.contains(key) {
            return None;
        }
        match decode(&record.value) {
            Ok(value) => {
                let register = Register { version: record.version, value, reading: self.reading };
                Some(self.put_in(key, record.source_node.clone(), register))
            }
            Err(error) => {
                self.unreadable.note(record, &error);
                // What the node said before, it does not say any more.
                self.take_out(key, &record.source_node)
            }
        }
    }

    /// An own report has got its version.
    fn note_version(&mut self, record: &SyncableState) -> Option<Arc<str>> {
        let (key, _) = self.keys.get_key_value(record.key.as_str())?;
        let key = Arc::clone(key);
        self.keys.get_mut(&key)?.get_mut(&self.me)?.version = record.version;
        Some(key)
    }

    fn put_in(&mut self, key: &str, node: NodeId, register: Register<V>) -> Arc<str> {
        let key = match self.keys.get_key_value(key) {
            Some((key, _)) => Arc::clone(key),
            None => key.into(),
        };
        self.keys.entry(Arc::clone(&key)).or_default().insert(node, register);
        key
    }

    fn take_out(&mut self, key: &str, node: &NodeId) -> Option<Arc<str>> {
        let (key, registers) =
            self.keys.get_key_value(key).map(|(key, registers)| (Arc::clone(key), registers))?;
        if !registers.contains_key(node) {
            return None;
        }
        if registers.len() == 1 {
            self.keys.remove(&key);
        } else {
            self.keys.get_mut(&key)?.remove(node);
        }
        Some(key)
    }

    /// All that is there will be told anew from now on.
    pub(super) fn begin_reading(&mut self) {
        self.reading += 1;
        self.linked = true;
        self.withdrawn.clear();
    }

    /// The store is gone, and with it what others said. The keys that changed by that.
    pub(super) fn unlink(&mut self) -> Vec<Arc<str>> {
        self.begin_reading();
        self.linked = false;
        self.end_reading()
    }

    /// All that is there was told: what was not is there no more. The keys that changed by that.
    pub(super) fn end_reading(&mut self) -> Vec<Arc<str>> {
        let (me, mine, reading) = (&self.me, &self.mine, self.reading);
        let mut changed = Vec::new();
        self.keys.retain(|key, registers| {
            let before = registers.len();
            registers.retain(|node, register| {
                register.reading == reading || (node == me && mine.contains_key(key))
            });
            if registers.len() != before {
                changed.push(Arc::clone(key));
            }
            !registers.is_empty()
        });
        changed
    }

    // What is said.

    /// Says something under a key from now on, until `ends`; `None`, and nothing happens, if it cannot be
    /// written.
    pub(super) fn report(&mut self, key: &str, said: &V, ends: Option<Moment>) -> Option<Arc<str>> {
        let written = Value::encode(said).and_then(|value| Ok((decode(&value)?, value)));
        let (read, value) = match written {
            Ok(written) => written,
            Err(error) => {
                debug_assert!(false, "a report that was let in cannot be written: {error}");
                tracing::error!(%error, key, "a report cannot be written");
                return None;
            }
        };
        // As the others read it, who may see a time less exact than it was given.
        let register = Register { version: u64::MAX, value: read, reading: self.reading };
        let key = self.put_in(key, self.me.clone(), register);
        self.forget_mine(&key);
        self.withdrawn.remove(&key);
        self.ends.extend(ends.map(|ends| (ends, Arc::clone(&key))));
        self.mine.insert(Arc::clone(&key), Mine { value, ends });
        self.dirty.insert(Arc::clone(&key));
        Some(key)
    }

    /// Says nothing any more under a key; the key, if something was said.
    pub(super) fn withdraw(&mut self, key: &str) -> Option<Arc<str>> {
        let key = self.take_out(key, &self.me.clone())?;
        self.forget_mine(&key);
        if self.linked {
            self.withdrawn.insert(Arc::clone(&key));
            self.dirty.insert(Arc::clone(&key));
        } else {
            self.dirty.remove(&key);
        }
        Some(key)
    }

    fn forget_mine(&mut self, key: &Arc<str>) {
        if let Some(Mine { ends: Some(ends), .. }) = self.mine.remove(key) {
            self.ends.remove(&(ends, Arc::clone(key)));
        }
    }

    /// When the next own register ends by itself.
    pub(super) fn next_end(&self) -> Option<Moment> {
        self.ends.first().map(|(at, _)| *at)
    }

    /// Ends own registers whose time is over; their keys. What was written ends everywhere by itself; where
    /// the write is still due, something older stands, and is removed instead.
    pub(super) fn end_own(&mut self, now: Moment) -> Vec<Arc<str>> {
        let mut ended = Vec::new();
        while let Some((_, key)) = self.ends.first().filter(|(at, _)| *at <= now).cloned() {
            self.forget_mine(&key);
            if self.linked {
                self.withdrawn.insert(Arc::clone(&key));
            }
            ended.extend(self.take_out(&key, &self.me.clone()));
        }
        ended
    }

    /// Everything said is to be written again: the store has lost it.
    pub(super) fn say_again(&mut self) {
        self.dirty = self.mine.keys().cloned().collect();
    }

    /// Own keys are to be written again: their writes were refused.
    pub(super) fn retry(&mut self, key: &str) {
        self.dirty.insert(key.into());
    }

    pub(super) fn has_writes(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The first of the writes that are due, each with its newest value.
    pub(super) fn take_writes(&mut self, urgent: bool, now: Moment) -> Vec<Write> {
        let dirty: Vec<_> = std::iter::from_fn(|| self.dirty.pop_first()).take(WRITES_LEN).collect();
        let write = |key: Arc<str>| {
            let mine = self.mine.get(&key);
            let ttl = mine.and_then(|mine| mine.ends).map(|ends| ends.saturating_sub(now));
            let (state_type, value) = (self.state_type.clone(), mine.map(|mine| mine.value.clone()));
            Write { state_type, key: key.to_string(), value, options: Options { ttl, urgent } }
        };
        dirty.into_iter().map(write).collect()
    }
}
