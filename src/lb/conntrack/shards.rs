//! What is known of flows, in many small tables: whichever of them grows or is gone through holds up readers only
//! for as long as its own few flows take. Knows nothing of who carries them.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    hash::{Hash as _, Hasher as _},
};

use siphasher::sip::SipHasher13;

use super::flow::FlowKey;

/// At a million flows each shard has about 250, which take some ten microseconds to go through; empty ones take
/// 200 kB in all.
pub(super) const SHARDS: usize = 4_096;

/// Something for each flow.
pub(super) struct Shards<T> {
    shards: Vec<HashMap<FlowKey, T>>,
    /// Chooses a flow's shard. Unknown outside, or clients could choose ports that all meet in one.
    salt: u64,
}

impl<T> Shards<T> {
    pub(super) fn new(salt: u64) -> Self {
        Self { shards: std::iter::repeat_with(HashMap::new).take(SHARDS).collect(), salt }
    }

    fn place(&self, key: &FlowKey) -> usize {
        let mut hasher = SipHasher13::new_with_keys(self.salt, 0);
        key.hash(&mut hasher);
        usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or(0)
    }

    pub(super) fn get(&self, key: &FlowKey) -> Option<&T> {
        self.shards[self.place(key)].get(key)
    }

    pub(super) fn get_mut(&mut self, key: &FlowKey) -> Option<&mut T> {
        let place = self.place(key);
        self.shards[place].get_mut(key)
    }

    pub(super) fn entry(&mut self, key: FlowKey) -> Slot<'_, FlowKey, T> {
        let place = self.place(&key);
        self.shards[place].entry(key)
    }

    /// How many flows there are.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(HashMap::len).sum()
    }

    /// What lies in one of the `SHARDS`, in no order.
    pub(super) fn shard(&self, place: usize) -> impl ExactSizeIterator<Item = (&FlowKey, &T)> {
        self.shards[place % SHARDS].iter()
    }

    /// All there is, in no order.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.shards.iter_mut().flat_map(HashMap::values_mut)
    }
}
