//! Tables of what each node says for itself: under each key a register a node, and a view that is a function of
//! the live nodes' registers. What the function is belongs to the type of the table.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    live::{Live, Moment},
    registers::{Register, Registers, Write},
    table::{Changes, Heart},
};
use crate::{NodeId, StateChange, StateType};

/// What makes a table of opinions this one.
pub(crate) trait Rules: Send + Sync + 'static {
    /// What a node says under a key.
    type Value: Clone + PartialEq + Serialize + DeserializeOwned + Send + Sync;
    /// What all of it amounts to.
    type View: Clone + PartialEq + Send + Sync + 'static;

    const TYPE: StateType;
    /// Whether what is said passes ahead of other records.
    const URGENT: bool;

    /// The view of a key under which `said` is not empty. Depends on nothing but what it is given, so that
    /// nodes which hold the same see the same.
    fn view(&self, key: &str, said: &BTreeMap<NodeId, Register<Self::Value>>, live: &Live) -> Self::View;

    /// A view came, changed or went.
    fn count(&mut self, old: Option<&Self::View>, new: Option<&Self::View>) {
        let _ = (old, new);
    }
}

/// A table of opinions.
pub(crate) struct Opinions<R: Rules> {
    pub(super) rules: R,
    pub(super) live: Arc<Live>,
    registers: Registers<R::Value>,
    views: HashMap<Arc<str>, Arc<R::View>>,
}

impl<R: Rules> Opinions<R> {
    pub(crate) fn new(rules: R, me: NodeId) -> Self {
        Self {
            rules,
            live: Arc::new(Live::alone(me.clone())),
            registers: Registers::new(R::TYPE, me),
            views: HashMap::new(),
        }
    }

    pub(crate) fn view(&self, key: &str) -> Option<&Arc<R::View>> {
        self.views.get(key)
    }

    /// Every view, by key.
    pub(crate) fn views(&self) -> BTreeMap<String, Arc<R::View>> {
        self.registers
            .keys()
            .filter_map(|key| Some((key.to_string(), Arc::clone(self.views.get(key)?))))
            .collect()
    }

    pub(crate) fn own(&self, key: &str) -> Option<&R::Value> {
        self.registers.own(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.registers.len()
    }

    /// Says something under a key, until `ends`.
    #[expect(clippy::needless_pass_by_value, reason = "callers have no more use for it")]
    pub(crate) fn report(
        &mut self,
        key: &str,
        value: R::Value,
        ends: Option<Moment>,
        changes: &mut Changes<R::View>,
    ) {
        if let Some(key) = self.registers.report(key, &value, ends) {
            self.look(&key, changes);
        }
    }

    /// Says nothing any more; whether something was said.
    pub(crate) fn withdraw(&mut self, key: &str, changes: &mut Changes<R::View>) -> bool {
        let withdrawn = self.registers.withdraw(key);
        withdrawn.inspect(|key| self.look(key, changes)).is_some()
    }

    /// Views a key anew.
    fn look(&mut self, key: &Arc<str>, changes: &mut Changes<R::View>) {
        let said = self.registers.get(key);
        let new = said.map(|said| self.rules.view(key, said, &self.live));
        let old = self.views.get(key);
        if old.map(|old| &**old) == new.as_ref() {
            return;
        }
        let new = new.map(Arc::new);
        let old = match &new {
            Some(new) => self.views.insert(Arc::clone(key), Arc::clone(new)),
            None => self.views.remove(key),
        };
        self.rules.count(old.as_deref(), new.as_deref());
        changes.push(key, old, new);
    }

    fn look_at_all(&mut self, changes: &mut Changes<R::View>) {
        let keys: Vec<_> = self.registers.keys().cloned().collect();
        for key in &keys {
            self.look(key, changes);
        }
    }
}

impl<R: Rules> Heart for Opinions<R> {
    type View = R::View;

    fn types(&self) -> Vec<StateType> {
        vec![R::TYPE]
    }

    fn tell(&mut self, change: &StateChange, _: Moment, changes: &mut Changes<R::View>) {
        if let Some(key) = self.registers.tell(change) {
            self.look(&key, changes);
        }
    }

    fn set_live(&mut self, live: Arc<Live>, _: Moment, changes: &mut Changes<R::View>) {
        self.live = live;
        self.look_at_all(changes);
    }

    fn begin_reading(&mut self) {
        self.registers.begin_reading();
    }

    fn end_reading(&mut self, _: Moment, changes: &mut Changes<R::View>) {
        self.registers.end_reading().iter().for_each(|key| self.look(key, changes));
    }

    fn unlink(&mut self, _: Moment, changes: &mut Changes<R::View>) {
        self.registers.unlink().iter().for_each(|key| self.look(key, changes));
    }

    fn say_again(&mut self, _: Moment) {
        self.registers.say_again();
    }

    fn handle_timeout(&mut self, now: Moment, changes: &mut Changes<R::View>) {
        self.registers.end_own(now).iter().for_each(|key| self.look(key, changes));
    }

    fn next_timeout(&self) -> Option<Moment> {
        self.registers.next_end()
    }

    fn has_writes(&self) -> bool {
        self.registers.has_writes()
    }

    fn take_writes(&mut self, now: Moment) -> Vec<Write> {
        self.registers.take_writes(R::URGENT, now)
    }

    fn retry(&mut self, write: &Write) {
        self.registers.retry(&write.key);
    }

    fn unreadable(&self) -> u64 {
        self.registers.unreadable()
    }
}
