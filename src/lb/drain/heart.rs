//! Which orders to drain are in force, how far each node has come with them, and what that amounts to.
//!
//! Orders are an add-wins set: each has a name of its own under the target, and a cancel removes those that its
//! giver has seen. So an order that was given at the same time as a cancel stays, whatever the order of arrival.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Drain, DrainState, DrainView, NodeProgress, Order};
use crate::{
    NodeId, StateChange, StateType, SyncableState,
    lb::{
        live::{Live, Moment},
        registers::{Register, Registers, Unreadable, Write, decode},
        table::{Changes, Heart},
    },
    wire::limits,
};

/// What divides a target from its order's name in a key.
const DIVIDER: char = '#';

/// How far a node says it has come with a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Progress {
    /// The order it speaks of; none if it only says whether it serves the target.
    order: Option<String>,
    open: u64,
    done: bool,
    /// It sends the target nothing, so nobody need wait for it.
    apart: bool,
}

/// An order as it is held.
#[derive(Clone, Debug)]
struct Held {
    order: Order,
    version: u64,
    reading: u64,
}

/// Orders and progress.
pub(crate) struct Drained {
    live: Arc<Live>,
    /// Orders in force, by target and by name.
    orders: BTreeMap<Arc<str>, BTreeMap<String, Held>>,
    /// Keys of orders that were removed here, until the store says so too.
    removed: BTreeSet<String>,
    reading: u64,
    unreadable: Unreadable,
    progress: Registers<Progress>,
    views: HashMap<Arc<str>, Arc<DrainView>>,
}

/// How long an order's name is: 128 bits of chance, so that a node which starts anew, and knows nothing of
/// what it ordered before, does not give one name twice.
const NAME_LEN: usize = 32;
/// How long a target's name may be, so that its orders' keys can be written.
pub(super) const TARGET_LEN_MAX: usize = limits::KEY_LEN_MAX - NAME_LEN - 1;

/// An order's name.
pub(crate) fn name_of(chance: (u64, u64)) -> String {
    format!("{:016x}{:016x}", chance.0, chance.1)
}

/// An order's key.
pub(crate) fn key_of(target: &str, name: &str) -> String {
    format!("{target}{DIVIDER}{name}")
}

/// Target and name of an order. One that was written by hand, without a name, is an order too.
fn parts_of(key: &str) -> (&str, &str) {
    let is_name = |name: &str| name.len() == NAME_LEN && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    match key.rsplit_once(DIVIDER) {
        Some((target, name)) if !target.is_empty() && is_name(name) => (target, name),
        _ => (key, ""),
    }
}

impl Drained {
    pub(crate) fn new(me: NodeId) -> Self {
        Self {
            live: Arc::new(Live::alone(me.clone())),
            orders: BTreeMap::new(),
            removed: BTreeSet::new(),
            reading: 0,
            unreadable: Unreadable::default(),
            progress: Registers::new(StateType::DRAIN_PROGRESS, me),
            views: HashMap::new(),
        }
    }

    pub(crate) fn view(&self, target: &str) -> Option<&Arc<DrainView>> {
        self.views.get(target)
    }

    pub(super) fn views(&self) -> BTreeMap<String, Arc<DrainView>> {
        let drained = self.orders.keys();
        drained.filter_map(|target| Some((target.to_string(), Arc::clone(self.views.get(target)?)))).collect()
    }

    /// The keys of the orders in force for a target.
    pub(crate) fn keys(&self, target: &str) -> Vec<String> {
        let names = self.orders.get(target).into_iter().flat_map(BTreeMap::keys);
        let key = |name: &String| match name.as_str() {
            "" => target.to_owned(),
            name => key_of(target, name),
        };
        names.map(key).collect()
    }

    /// An order was written here.
    pub(crate) fn give(&mut self, record: &SyncableState, changes: &mut Changes<DrainView>) {
        self.put_order(record, changes);
    }

    /// An order was removed here.
    pub(crate) fn take_back(&mut self, key: &str, changes: &mut Changes<DrainView>) {
        // What the store still has to say of it is older.
        self.removed.insert(key.into());
        self.remove_order(key, changes);
    }

    /// Says how far this node has come; `false` if nothing is in force for the target.
    pub(crate) fn advance(
        &mut self,
        target: &str,
        open: u64,
        done: bool,
        changes: &mut Changes<DrainView>,
    ) -> bool {
        let Some(order) = self.newest(target) else { return false };
        let apart = self.progress.own(target).is_some_and(|own| own.apart);
        let progress = Progress { order: Some(order), open, done, apart };
        if let Some(target) = self.progress.report(target, &progress, None) {
            self.look(&target, changes);
        }
        true
    }

    /// Says whether this node sends a target anything.
    pub(crate) fn set_apart(&mut self, target: &str, apart: bool, changes: &mut Changes<DrainView>) {
        let own = self.progress.own(target).cloned().unwrap_or_default();
        let target: Arc<str> = target.into();
        self.say(&target, &Progress { apart, ..own });
        self.look(&target, changes);
    }

    /// Says it, or nothing if there is nothing to say.
    fn say(&mut self, target: &Arc<str>, progress: &Progress) {
        if *progress == Progress::default() {
            self.progress.withdraw(target);
        } else {
            self.progress.report(target, progress, None);
        }
    }

    /// The order in force that was given last.
    fn newest(&self, target: &str) -> Option<String> {
        let orders = self.orders.get(target)?.iter();
        orders.max_by_key(|(name, held)| (held.version, *name)).map(|(name, _)| name.clone())
    }

    fn put_order(&mut self, record: &SyncableState, changes: &mut Changes<DrainView>) {
        if self.removed.contains(&record.key) {
            return;
        }
        let drain = match decode::<Drain>(&record.value) {
            Ok(drain) => drain,
            Err(error) => {
                self.unreadable.note(record, &error);
                return self.remove_order(&record.key, changes);
            }
        };
        let (target, name) = parts_of(&record.key);
        let order = Order {
            id: if name.is_empty() { record.version.to_string() } else { name.into() },
            given_through: record.source_node.clone(),
            given_at: record.timestamp,
            drain,
        };
        let held = Held { order, version: record.version, reading: self.reading };
        let target: Arc<str> = match self.orders.get_key_value(target) {
            Some((target, _)) => Arc::clone(target),
            None => target.into(),
        };
        self.orders.entry(Arc::clone(&target)).or_default().insert(name.into(), held);
        self.look(&target, changes);
    }

    fn remove_order(&mut self, key: &str, changes: &mut Changes<DrainView>) {
        let (target, name) = parts_of(key);
        let Some(orders) = self.orders.get_mut(target) else { return };
        if orders.remove(name).is_some() {
            self.follow(&target.into());
            self.look(&target.into(), changes);
        }
    }

    /// Some order of a target has gone: what this node has said of it, it says of one that was in force all
    /// the while, or not any more.
    fn follow(&mut self, target: &Arc<str>) {
        if self.orders.get(target).is_some_and(BTreeMap::is_empty) {
            self.orders.remove(target);
        }
        let Some(own) = self.progress.own(target).cloned() else { return };
        let stands = |name: &String| self.orders.get(target).is_some_and(|orders| orders.contains_key(name));
        if own.order.as_ref().is_none_or(stands) {
            return;
        }
        let next = match self.newest(target) {
            Some(order) => Progress { order: Some(order), ..own },
            None => Progress { apart: own.apart, ..Progress::default() },
        };
        self.say(target, &next);
    }

    fn look(&mut self, target: &Arc<str>, changes: &mut Changes<DrainView>) {
        let new = self.orders.get(target).map(|orders| view(orders, self.progress.get(target), &self.live));
        let old = self.views.get(target);
        if old.map(|old| &**old) == new.as_ref() {
            return;
        }
        let new = new.map(Arc::new);
        let old = match &new {
            Some(new) => self.views.insert(Arc::clone(target), Arc::clone(new)),
            None => self.views.remove(target),
        };
        changes.push(target, old, new);
    }
}

/// What orders and progress amount to, among the live nodes.
fn view(
    orders: &BTreeMap<String, Held>,
    said: Option<&BTreeMap<NodeId, Register<Progress>>>,
    live: &Live,
) -> DrainView {
    let said = |node: &NodeId| said.and_then(|said| said.get(node)).map(|register| &register.value);
    let mut view = DrainView { state: DrainState::Drained, ..DrainView::default() };
    for (node, zone) in &live.nodes {
        let progress = said(node).cloned().unwrap_or_default();
        let of_order = progress.order.as_ref().is_some_and(|order| orders.contains_key(order));
        let done = of_order && progress.done;
        if of_order {
            view.open = view.open.saturating_add(progress.open);
        }
        if !done && !progress.apart {
            view.state = DrainState::Draining;
            view.waiting_for.insert(node.clone());
        }
        let open = of_order.then_some(progress.open);
        view.nodes
            .insert(node.clone(), NodeProgress { zone: zone.clone(), open, done, serves: !progress.apart });
    }
    let mut held: Vec<_> = orders.iter().collect();
    held.sort_by_key(|(name, held)| (held.version, *name));
    view.orders = held.into_iter().map(|(_, held)| held.order.clone()).collect();
    view
}

impl Heart for Drained {
    type View = DrainView;

    fn types(&self) -> Vec<StateType> {
        vec![StateType::DRAIN, StateType::DRAIN_PROGRESS]
    }

    fn tell(&mut self, change: &StateChange, _: Moment, changes: &mut Changes<DrainView>) {
        let Some(record) = change.record() else { return };
        if record.state_type == StateType::DRAIN_PROGRESS {
            if let Some(target) = self.progress.tell(change) {
                self.look(&target, changes);
            }
        } else if matches!(change, StateChange::Put { .. }) {
            self.put_order(record, changes);
        } else {
            self.removed.remove(&record.key);
            self.remove_order(&record.key, changes);
        }
    }

    fn set_live(&mut self, live: Arc<Live>, _: Moment, changes: &mut Changes<DrainView>) {
        self.live = live;
        let targets: Vec<_> = self.orders.keys().cloned().collect();
        for target in &targets {
            self.look(target, changes);
        }
    }

    fn begin_reading(&mut self) {
        self.reading += 1;
        self.removed.clear();
        self.progress.begin_reading();
    }

    fn end_reading(&mut self, _: Moment, changes: &mut Changes<DrainView>) {
        let mut targets: BTreeSet<Arc<str>> = self.progress.end_reading().into_iter().collect();
        let reading = self.reading;
        for (target, orders) in &mut self.orders {
            let before = orders.len();
            orders.retain(|_, held| held.reading == reading);
            if orders.len() != before {
                targets.insert(Arc::clone(target));
            }
        }
        for target in targets {
            self.follow(&target);
            self.look(&target, changes);
        }
    }

    fn unlink(&mut self, now: Moment, changes: &mut Changes<DrainView>) {
        self.begin_reading();
        self.progress.unlink();
        self.end_reading(now, changes);
    }

    fn say_again(&mut self, _: Moment) {
        self.progress.say_again();
    }

    fn handle_timeout(&mut self, _: Moment, _: &mut Changes<DrainView>) {}

    fn next_timeout(&self) -> Option<Moment> {
        None
    }

    fn has_writes(&self) -> bool {
        self.progress.has_writes()
    }

    fn take_writes(&mut self, now: Moment) -> Vec<Write> {
        self.progress.take_writes(true, now)
    }

    fn retry(&mut self, write: &Write) {
        self.progress.retry(&write.key);
    }

    fn unreadable(&self) -> u64 {
        self.unreadable.count + self.progress.unreadable()
    }
}
