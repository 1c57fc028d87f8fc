//! Shared state as users write and read it: commands go to the store and its effects come out; what a dead
//! node's registers count for is decided here.

use std::collections::BTreeMap;

use crate::{
    Error, EventData, EventKind, NodeId, NodeStatus, Options, StateChange, StateType, SyncableState, Value,
    proto::{
        Now, Output, Protocol, lamport,
        members::Member,
        store::{Effect, Lane},
        timers::Timer,
    },
    wire::limits,
};

/// So much may wait to be spread before writers are told to slow down.
const UNSPREAD_MAX: usize = 16 * 1024 * 1024;

/// Writes.
impl Protocol {
    pub(crate) fn broadcast(
        &mut self,
        state_type: &StateType,
        key: &str,
        value: Value,
        options: Options,
        now: Now,
    ) -> Result<SyncableState, Error> {
        self.enter(now);
        self.refuse_overload(Lane::of(state_type, options.urgent))?;
        let mut effects = Vec::new();
        let bytes = value.into_bytes();
        let record = self.store.put(state_type, key, bytes, options.ttl, options.urgent, now, &mut effects);
        self.note_own_write(state_type, now);
        self.perform_effects(effects, now);
        self.flush_soon(now);
        Ok(record)
    }

    /// Takes records as they are; all of them are checked before the first is taken.
    pub(crate) fn broadcast_many(&mut self, states: Vec<SyncableState>, now: Now) -> Result<usize, Error> {
        self.enter(now);
        self.check_many(&states, now)?;
        let lanes = states.iter().map(|record| Lane::of(&record.state_type, false));
        self.refuse_overload(lanes.max().unwrap_or(Lane::Urgent))?;
        let mut effects = Vec::new();
        let mut accepted = 0;
        for record in states {
            let state_type = record.state_type.clone();
            if self.store.put_as(record, now, &mut effects) {
                accepted += 1;
                self.note_own_write(&state_type, now);
            }
        }
        self.perform_effects(effects, now);
        self.flush_soon(now);
        Ok(accepted)
    }

    /// Whether records can be taken as they are, but for what waits already.
    pub(crate) fn check_many(&self, states: &[SyncableState], now: Now) -> Result<(), Error> {
        let bound = lamport::bound(now.wall_ms);
        for (index, record) in states.iter().enumerate() {
            if record.source_node != self.me {
                let (key, source_node) = (record.key.clone(), record.source_node.clone());
                return Err(Error::ForeignSource { index, key, source_node, node_id: self.me.clone() });
            }
            if record.version > bound {
                return Err(Error::VersionTooHigh { version: record.version, bound });
            }
            if !record.deleted {
                limits::check_value(record.value.as_bytes())?;
            }
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, state_type: &StateType, key: &str, now: Now) -> Option<SyncableState> {
        self.enter(now);
        let mut effects = Vec::new();
        let removed = self.store.remove(state_type, key, now, &mut effects);
        if removed.is_some() {
            self.note_own_write(state_type, now);
            self.perform_effects(effects, now);
            self.flush_soon(now);
        }
        removed
    }

    pub(crate) fn next_version(&mut self, now: Now) -> u64 {
        self.enter(now);
        self.store.next_version()
    }

    /// The number of the latest own write, and of the one that has waited longest to be spread.
    pub(crate) fn written_and_waiting(&self) -> (u64, u64) {
        self.store.written_and_waiting()
    }

    /// About how many bytes of own records wait to be spread.
    #[cfg(test)]
    pub(crate) fn unspread_bytes(&self) -> usize {
        self.store.unspread_bytes()
    }

    /// Urgent records are never refused, and bulk leaves some room to the rest.
    fn refuse_overload(&self, lane: Lane) -> Result<(), Error> {
        let limit = match lane {
            Lane::Urgent => return Ok(()),
            Lane::State => UNSPREAD_MAX,
            Lane::Bulk => UNSPREAD_MAX / 4 * 3,
        };
        match self.store.unspread_bytes() {
            waiting if waiting > limit => Err(Error::Overloaded { waiting, limit }),
            _ => Ok(()),
        }
    }

    fn note_own_write(&mut self, state_type: &StateType, now: Now) {
        let epoch = self.members.me().body.epoch;
        self.note_news(state_type, &self.me.clone(), epoch, now);
    }

    /// What a change of the store means outside.
    pub(super) fn perform_effects(&mut self, effects: Vec<Effect>, now: Now) {
        for effect in effects {
            match effect {
                Effect::Apply(record) => self.outputs.push_back(Output::Apply(record)),
                Effect::Change(change) => {
                    if self.is_shown(&change) {
                        self.tell_change(change, now);
                    }
                }
            }
        }
        self.arm_expiry();
    }

    fn tell_change(&mut self, change: StateChange, now: Now) {
        let Some(record) = change.record() else { return };
        let removed = !matches!(change, StateChange::Put { .. });
        let data = EventData::State { record: Box::new(record.clone()), removed };
        let source = record.source_node.clone();
        self.outputs.push_back(Output::Change(change));
        self.event_data(EventKind::StateChanged, Some(source), data, now);
    }

    fn arm_expiry(&mut self) {
        if let Some(at) = self.store.next_expiry() {
            self.timers.set_by(Timer::Expire, at);
        }
    }

    pub(super) fn expire(&mut self, now: Now) {
        let mut effects = Vec::new();
        self.store.expire(now, &mut effects);
        self.perform_effects(effects, now);
    }
}

/// Types that are switched off and on.
impl Protocol {
    /// Begins to keep and tell a type, or ceases to. What `drop_page` does is still to be done then.
    pub(crate) fn set_sync(&mut self, state_type: &StateType, on: bool, now: Now) {
        self.enter(now);
        // What is half way would claim dots as known whose records were not taken.
        self.drop_exchanges();
        if on {
            self.config.disabled.remove(state_type);
            self.store.set_kept(state_type, true);
            for (new, epoch) in self.store.of_source(state_type, &self.me.clone()) {
                if self.counts(state_type, &self.me, epoch) {
                    self.tell_change(StateChange::Put { new, old: None }, now);
                }
            }
            self.push_pull(now); // which tells the peer, and brings what was missed
            return;
        }
        if state_type.stops_counting_at_death() {
            // An opinion that nobody maintains any more would go on counting elsewhere.
            for (own, _) in self.store.of_source(state_type, &self.me.clone()) {
                self.remove(state_type, &own.key, now);
            }
        }
        self.config.disabled.insert(state_type.clone());
        self.store.set_kept(state_type, false);
    }

    /// Lets go of the next page of a type that was switched off, and tells that its records are gone; where
    /// the next page begins.
    pub(crate) fn drop_page(&mut self, state_type: &StateType, first: u32, now: Now) -> Option<u32> {
        self.enter(now);
        let (page, _) = self.store.page(state_type, first);
        for (old, epoch) in page {
            self.tell_if_counted(StateChange::Removed { old }, epoch, now);
        }
        self.store.drop_page(state_type, first)
    }

    /// Tells of a record that is not held any more, if it counted: it was of that epoch of its source.
    pub(super) fn tell_if_counted(&mut self, change: StateChange, epoch: u64, now: Now) {
        let counted = change
            .record()
            .is_some_and(|record| self.counts_in(&record.state_type, &record.source_node, epoch));
        if counted {
            self.tell_change(change, now);
        }
    }
}

/// Reads.
impl Protocol {
    pub(crate) fn get(&self, state_type: &StateType, key: &str) -> Option<SyncableState> {
        let (source, epoch, _, record) = self.store.held(state_type, key)?;
        self.counts(state_type, &source, epoch).then_some(record)
    }

    /// Live records, every node's.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn states(&self, state_type: &StateType) -> Vec<SyncableState> {
        self.store
            .live(state_type)
            .filter(|(record, epoch)| self.counts(state_type, &record.source_node, *epoch))
            .map(|(record, _)| record)
            .collect()
    }

    /// A page of them, and where the next begins.
    pub(crate) fn states_from(
        &self,
        state_type: &StateType,
        first: u32,
    ) -> (Vec<SyncableState>, Option<u32>) {
        let (page, next) = self.store.page(state_type, first);
        let counts = |(record, epoch): (SyncableState, u64)| {
            self.counts(state_type, &record.source_node, epoch).then_some(record)
        };
        (page.into_iter().filter_map(counts).collect(), next)
    }

    /// In which page a record's register is or would be told; `None` if nothing is held there.
    pub(crate) fn place_of(&self, record: &SyncableState) -> Option<u32> {
        self.store.place_of(&record.state_type, &record.key, &record.source_node)
    }

    /// Those of other sources.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn remote_states(&self, state_type: &StateType) -> Vec<SyncableState> {
        self.states(state_type).into_iter().filter(|record| record.source_node != self.me).collect()
    }

    /// Whether a register counts: one of a type that is kept.
    fn counts(&self, state_type: &StateType, source: &NodeId, epoch: u64) -> bool {
        let kept = self.config.disabled.is_empty() || !self.config.disabled.contains(state_type);
        kept && self.counts_in(state_type, source, epoch)
    }

    /// Whether it would: an opinion does so while its owner lives, in the life in which it was given.
    fn counts_in(&self, state_type: &StateType, source: &NodeId, epoch: u64) -> bool {
        if !state_type.stops_counting_at_death() {
            return true;
        }
        let owner = self.members.get(source);
        owner.is_some_and(|owner| self.speaks(owner) && epoch >= owner.body.epoch)
    }

    /// Whether what a member says counts: while it lives, or this node is cut off and cannot know.
    fn speaks(&self, member: &Member) -> bool {
        match member.status {
            NodeStatus::Alive | NodeStatus::Suspect => true,
            NodeStatus::Dead => self.isolated.is_some(),
            NodeStatus::Left => member.body.node_id == self.me,
        }
    }

    /// The members whose word counts, each with its zone.
    pub(crate) fn speakers(&self) -> BTreeMap<NodeId, Option<String>> {
        let speakers = self.members.iter().filter(|(_, member)| self.speaks(member));
        speakers.map(|(id, member)| (id.clone(), member.body.zone.clone())).collect()
    }

    fn is_shown(&self, change: &StateChange) -> bool {
        let Some(record) = change.record() else { return true };
        let of = &record.state_type;
        if !of.stops_counting_at_death() {
            return !self.config.disabled.contains(of);
        }
        let epoch = self.store.register_epoch(of, &record.key, &record.source_node).unwrap_or(0);
        self.counts(of, &record.source_node, epoch)
    }

    /// Changes a member, and tells which of its registers began or stopped to count by that.
    pub(super) fn with_counting(&mut self, id: &NodeId, now: Now, change: impl FnOnce(&mut Self)) {
        self.with_counting_all(std::slice::from_ref(id), now, change);
    }

    pub(super) fn with_counting_all(&mut self, ids: &[NodeId], now: Now, change: impl FnOnce(&mut Self)) {
        let before: Vec<_> = ids.iter().map(|id| self.counting_of(id)).collect();
        change(self);
        for (id, before) in ids.iter().zip(before) {
            let after = self.counting_of(id);
            for (register, old) in &before {
                if !after.contains_key(register) {
                    self.tell_change(StateChange::Removed { old: old.clone() }, now);
                }
            }
            for (register, new) in after {
                if !before.contains_key(&register) {
                    self.tell_change(StateChange::Put { new, old: None }, now);
                }
            }
        }
    }

    fn counting_of(&self, id: &NodeId) -> BTreeMap<(StateType, String), SyncableState> {
        StateType::BUILT_IN
            .iter()
            .filter(|of| of.stops_counting_at_death())
            .flat_map(|of| {
                let registers = self.store.of_source(of, id).into_iter();
                registers.filter(|(_, epoch)| self.counts(of, id, *epoch)).map(|(record, _)| record)
            })
            .map(|record| ((record.state_type.clone(), record.key.clone()), record))
            .collect()
    }
}
