//! Own writes that were not spread yet: keys, not messages, so that one which changes faster than it spreads
//! costs one place and carries its newest value. Holds no values.

use std::{collections::BTreeMap, sync::Arc};

use crate::{StateType, proto::ranges::Ranges};

/// What goes before what. Membership has its own queue, before all of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// What somebody waits for: opened circuits, drains, and what its writer calls urgent.
    Urgent,
    State,
    /// What there is much of, and can wait: tracked connections.
    Bulk,
}

impl Lane {
    pub(crate) fn of(state_type: &StateType, urgent: bool) -> Self {
        let is = |of: &[StateType]| of.contains(state_type);
        if urgent || is(&[StateType::CIRCUIT_BREAKER, StateType::DRAIN, StateType::DRAIN_PROGRESS]) {
            Self::Urgent
        } else if is(&[StateType::CONNTRACK]) {
            Self::Bulk
        } else {
            Self::State
        }
    }
}

/// What waits under one key.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Dirty {
    /// The dot of its newest write.
    pub(super) seq: u64,
    /// Those before it that were never spread: the newest supersedes them.
    pub(super) carried: Ranges,
    lane: Lane,
    /// Its writer wants it to take two relays a range.
    pub(super) urgent: bool,
    order: u64,
    pub(super) size: usize,
}

/// The keys that wait.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(super) struct Outbox {
    keys: BTreeMap<(StateType, Arc<str>), Dirty>,
    /// By lane, then in the order in which they were first dirtied.
    order: BTreeMap<(Lane, u64), (StateType, Arc<str>)>,
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
        let lane = Lane::of(state_type, urgent);
        let place = (state_type.clone(), Arc::clone(key));
        let mut dirty = if let Some(mut before) = self.keys.remove(&place) {
            if before.seq != seq {
                before.carried.insert(before.seq);
            }
            self.bytes -= before.size;
            self.order.remove(&(before.lane, before.order));
            before
        } else {
            self.last_order += 1;
            Dirty { seq, carried: Ranges::default(), lane, urgent, order: self.last_order, size }
        };
        dirty.seq = seq;
        dirty.size = size;
        dirty.lane = dirty.lane.min(lane);
        dirty.urgent |= urgent;
        self.bytes += size;
        self.order.insert((dirty.lane, dirty.order), place.clone());
        self.keys.insert(place, dirty);
    }

    /// The number of what was dirtied last.
    pub(super) fn last(&self) -> u64 {
        self.last_order
    }

    /// The number of what has waited longest; `u64::MAX` if nothing waits.
    pub(super) fn oldest(&self) -> u64 {
        let lanes = [Lane::Urgent, Lane::State, Lane::Bulk];
        let first =
            |lane| self.order.range((lane, 0)..=(lane, u64::MAX)).next().map(|((_, number), _)| *number);
        lanes.into_iter().filter_map(first).min().unwrap_or(u64::MAX)
    }

    /// The lane of the next to be spread.
    pub(super) fn next_lane(&self) -> Option<Lane> {
        self.order.first_key_value().map(|((lane, _), _)| *lane)
    }

    /// The next to be spread, if it is of that type and lane; any if that is `None`.
    pub(super) fn pop(
        &mut self,
        wanted: Option<(&StateType, Lane)>,
    ) -> Option<(StateType, Arc<str>, Dirty, Lane)> {
        let (place, (next, _)) = self.order.first_key_value()?;
        if wanted.is_some_and(|wanted| wanted != (next, place.0)) {
            return None;
        }
        let place = *place;
        let key = self.order.remove(&place)?;
        let dirty = self.keys.remove(&key)?;
        self.bytes -= dirty.size;
        Some((key.0, key.1, dirty, place.0))
    }

    pub(super) fn clear(&mut self) {
        *self = Self { last_order: self.last_order, ..Self::default() };
    }
}
