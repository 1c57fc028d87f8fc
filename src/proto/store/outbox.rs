//! Own writes that were not spread yet: keys, not messages, so that one which changes faster than it spreads
//! costs one place and carries its newest value. Holds no values.

use std::{collections::BTreeMap, sync::Arc};

use crate::{StateType, proto::ranges::Ranges};

/// What waits under one key.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Dirty {
    /// The dot of its newest write.
    pub(super) seq: u64,
    /// Those before it that were never spread: the newest supersedes them.
    pub(super) carried: Ranges,
    urgent: bool,
    order: u64,
    size: usize,
}

/// The keys that wait.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(super) struct Outbox {
    keys: BTreeMap<(StateType, Arc<str>), Dirty>,
    /// Urgent ones first, then in the order in which they were first dirtied.
    order: BTreeMap<(bool, u64), (StateType, Arc<str>)>,
    last_order: u64,
    bytes: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(
        &mut self,
        state_type: &StateType,
        key: &Arc<str>,
        seq: u64,
        size: usize,
        urgent: bool,
    ) {
        let place = (state_type.clone(), Arc::clone(key));
        let mut dirty = if let Some(mut before) = self.keys.remove(&place) {
            before.carried.insert(before.seq);
            self.bytes -= before.size;
            self.order.remove(&(!before.urgent, before.order));
            before
        } else {
            self.last_order += 1;
            Dirty { seq, carried: Ranges::default(), urgent, order: self.last_order, size }
        };
        dirty.seq = seq;
        dirty.size = size;
        dirty.urgent |= urgent;
        self.bytes += size;
        self.order.insert((!dirty.urgent, dirty.order), place.clone());
        self.keys.insert(place, dirty);
    }

    /// The next to be spread, if it is of `state_type`; of any if that is `None`.
    pub(super) fn pop(
        &mut self,
        state_type: Option<&StateType>,
    ) -> Option<(StateType, Arc<str>, Dirty, bool)> {
        let (place, (next, _)) = self.order.first_key_value()?;
        if state_type.is_some_and(|wanted| wanted != next) {
            return None;
        }
        let place = *place;
        let key = self.order.remove(&place)?;
        let dirty = self.keys.remove(&key)?;
        self.bytes -= dirty.size;
        Some((key.0, key.1, dirty, !place.0))
    }

    pub(super) fn clear(&mut self) {
        *self = Self { last_order: self.last_order, ..Self::default() };
    }
}
