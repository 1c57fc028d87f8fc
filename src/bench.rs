//! What `benches/state.rs` measures and no user sees: one node's store, and records as bytes. Not stable API:
//! behind the feature `bench`, and never part of a node.

use bytes::Bytes;

use crate::{
    NodeId, StateType,
    proto::{
        Now, Signed, Time,
        store::{Store, StoreConfig, Vector},
    },
    wire::{
        codec::{self, Packet},
        message::{RecordBatch, kind},
    },
};

/// The wall clock of what is measured: 2026-01-01.
const WALL_MS: u64 = 1_767_225_600_000;
/// Records that one exchange's frame holds at most, by bytes.
const ALL: usize = usize::MAX;

/// A node's store, with records of one type: keys of 16 bytes, values of 32.
pub struct Records {
    store: Store,
    of: StateType,
    writer: NodeId,
    written: usize,
}

/// Records on their way from one store to another.
pub struct Batch(Vec<RecordBatch>);

impl Records {
    /// An empty store.
    ///
    /// # Panics
    ///
    /// If `name` is no node's name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let writer = NodeId::new(name).expect("a benchmark names its nodes as nodes are named");
        let store = Store::new(StoreConfig {
            me: writer.clone(),
            epoch: WALL_MS,
            tombstone_ttl: std::time::Duration::from_secs(86_400),
            max_batch_size: 1_000,
            disabled: std::collections::BTreeSet::new(),
            hash_key: (1, 2),
            signed: Signed::None,
        });
        Self { store, of: StateType::from("records"), writer, written: 0 }
    }

    /// One with so many records of its own, none of which waits to be told.
    #[must_use]
    pub fn with(name: &str, count: usize) -> Self {
        let mut records = Self::of(name);
        for _ in 0..count {
            records.insert();
        }
        while records.store.take_unspread(ALL, now()).is_some() {}
        records
    }

    /// Writes under a key of its own.
    pub fn insert(&mut self) {
        self.write(self.written);
        self.written += 1;
    }

    /// Writes under a key that may be there already.
    pub fn write(&mut self, number: usize) {
        let (key, value) = (format!("{number:016x}"), codec::encode(&format!("{number:031x}")).into());
        self.store.put(&self.of, &key, value, None, false, now(), &mut Vec::new());
    }

    /// Whether something is held under that key.
    #[must_use]
    pub fn get(&self, key: &str) -> bool {
        self.store.held(&self.of, key).is_some()
    }

    /// What is known here.
    #[must_use]
    pub fn known(&self) -> Known {
        Known(self.store.vector(&self.of))
    }

    /// All that who knows this much lacks.
    #[must_use]
    pub fn delta(&self, theirs: &Known) -> Batch {
        Batch(self.store.delta(&self.of, &theirs.0, ALL, now()).0)
    }

    /// Takes what another has written; how many of it count now.
    pub fn apply(&mut self, batch: &Batch) -> u64 {
        batch.0.iter().map(|batch| self.store.merge(batch, now(), &mut Vec::new()).accepted).sum()
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &NodeId {
        &self.writer
    }
}

/// What a store knows: a version vector.
pub struct Known(Vector);

impl Batch {
    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|batch| batch.records.len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A frame of these records.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut packet = Packet::new();
        for batch in &self.0 {
            packet.push(kind::RECORDS, batch);
        }
        packet.into_bytes()
    }

    /// The records of a frame.
    ///
    /// # Panics
    ///
    /// If it is none of records.
    #[must_use]
    pub fn decode(frame: &Bytes) -> Self {
        let parts = codec::parts(frame).expect("a frame that this build has encoded");
        let batches = parts.iter().map(|(_, body)| codec::decode(body).expect("a batch of records"));
        Self(batches.collect())
    }
}

fn now() -> Now {
    Now { time: Time::from_micros(0), wall_ms: WALL_MS }
}
