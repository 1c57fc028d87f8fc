//! A cluster as tables see one: replicas that hold registers, lose, reorder and repeat what they are sent, and
//! see one another live, die and return. The merge is that of the store, in its shortest form.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    NodeId, StateChange, StateType, SyncableState, Value,
    lb::{
        live::{Live, Moment},
        table::{Changes, Heart},
    },
};

/// A register's name: whose it is counts only in per-node types.
type Name = (StateType, String, Option<NodeId>);

/// What a register holds; `None` is a tombstone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    name: Name,
    source: NodeId,
    epoch: u64,
    version: u64,
    value: Option<Value>,
}

impl Record {
    fn wins(&self, held: &Self) -> bool {
        if self.name.2.is_some() {
            return (self.epoch, self.version) > (held.epoch, held.version);
        }
        let rank = |record: &Self| {
            let value = record.value.clone().unwrap_or_default();
            (record.version, record.source.clone(), record.value.is_none(), value)
        };
        rank(self) > rank(held)
    }

    fn state(&self) -> SyncableState {
        let (state_type, key, _) = self.name.clone();
        let value = self.value.clone().unwrap_or_default();
        let at = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(self.version);
        let source = self.source.clone();
        SyncableState { timestamp: at, ..SyncableState::new(state_type, key, value, self.version, source) }
    }
}

/// One node: what it holds, whom it believes alive, and its table.
pub(super) struct Node<H> {
    pub(super) id: NodeId,
    epoch: u64,
    clock: u64,
    held: BTreeMap<Name, Record>,
    /// The nodes it believes alive, with the epoch it knows of each.
    live: BTreeMap<NodeId, u64>,
    pub(super) heart: H,
    /// What it has written and nobody was sent yet.
    sent: Vec<Record>,
}

/// All of them.
pub(super) struct Cluster<H: Heart> {
    pub(super) nodes: Vec<Node<H>>,
    make: Box<dyn Fn(NodeId) -> H>,
    pub(super) now: Moment,
    /// Which nodes are down or cut off from the rest.
    away: BTreeSet<usize>,
    /// Whether who is cut off knows that, and takes nobody for dead, as the core does that loses most members
    /// at once. Else it takes itself to be the only one left.
    pub(super) isolates: bool,
}

pub(super) fn id(number: usize) -> NodeId {
    NodeId::new(format!("n{number}")).unwrap()
}

impl<H: Heart> Node<H> {
    fn shows(&self, record: &Record) -> bool {
        let counts = || self.live.get(&record.source).is_some_and(|epoch| record.epoch >= *epoch);
        record.value.is_some() && (!record.name.0.stops_counting_at_death() || counts())
    }

    fn merge(&mut self, record: &Record, now: Moment) {
        self.clock = self.clock.max(record.version);
        if self.held.get(&record.name).is_some_and(|held| !record.wins(held)) {
            return;
        }
        let old = self.held.insert(record.name.clone(), record.clone());
        let old = old.filter(|old| self.shows(old)).map(|old| old.state());
        match (self.shows(record), old) {
            (true, old) => self.tell(&StateChange::Put { new: record.state(), old }, now),
            (false, Some(old)) => self.tell(&StateChange::Removed { old }, now),
            (false, None) => {}
        }
    }

    fn tell(&mut self, change: &StateChange, now: Moment) {
        self.heart.tell(change, now, &mut Changes::new(true));
    }

    fn set_live(&mut self, live: BTreeMap<NodeId, u64>, now: Moment) {
        let before: Vec<_> = self.held.values().map(|record| self.shows(record)).collect();
        self.live = live;
        let changed: Vec<_> = self
            .held
            .values()
            .zip(before)
            .filter(|(record, before)| self.shows(record) != *before)
            .map(|(record, before)| {
                let new = record.state();
                if before { StateChange::Removed { old: new } } else { StateChange::Put { new, old: None } }
            })
            .collect();
        for change in &changed {
            self.tell(change, now);
        }
        let nodes = self.live.keys().map(|node| (node.clone(), None)).collect();
        let live = Arc::new(Live { me: self.id.clone(), nodes });
        self.heart.set_live(live, now, &mut Changes::new(true));
    }

    /// Lets the table do what is due, and writes what it wants written.
    pub(super) fn settle(&mut self, now: Moment) {
        self.heart.handle_timeout(now, &mut Changes::new(true));
        for write in self.heart.take_writes(now) {
            let per_node = write.state_type.is_per_node();
            self.write(write.state_type, write.key, write.value, per_node, now);
        }
    }

    fn write(
        &mut self,
        of: StateType,
        key: String,
        value: Option<Value>,
        per_node: bool,
        now: Moment,
    ) -> Record {
        self.clock += 1;
        let name = (of, key, per_node.then(|| self.id.clone()));
        let record = Record { name, source: self.id.clone(), epoch: self.epoch, version: self.clock, value };
        self.merge(&record, now);
        self.sent.push(record.clone());
        record
    }

    /// Writes past the table, as `Drains` does with its orders, or a rogue with anything.
    pub(super) fn write_by_hand(
        &mut self,
        of: StateType,
        key: &str,
        value: Option<Value>,
        now: Moment,
    ) -> SyncableState {
        let per_node = of.is_per_node();
        self.write(of, key.into(), value, per_node, now).state()
    }
}

impl<H: Heart> Cluster<H> {
    pub(super) fn new(count: usize, make: impl Fn(NodeId) -> H + 'static) -> Self {
        let node = |number: usize| Node {
            id: id(number),
            epoch: 1,
            clock: 0,
            held: BTreeMap::new(),
            live: BTreeMap::new(),
            heart: make(id(number)),
            sent: Vec::new(),
        };
        let nodes = (0..count).map(node).collect();
        let mut cluster =
            Self { nodes, make: Box::new(make), now: Moment::ZERO, away: BTreeSet::new(), isolates: false };
        cluster.nodes.iter_mut().for_each(|node| node.heart.begin_reading());
        let now = cluster.now;
        cluster.nodes.iter_mut().for_each(|node| node.heart.end_reading(now, &mut Changes::new(true)));
        cluster.look_who_lives();
        cluster
    }

    /// Everybody sees who is there: those that are away see themselves only.
    fn look_who_lives(&mut self) {
        let epoch = |node: &Node<H>| (node.id.clone(), node.epoch);
        let present: BTreeMap<_, _> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(at, _)| !self.away.contains(at))
            .map(|(_, node)| epoch(node))
            .collect();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let live = if self.away.contains(&at) && self.isolates {
                continue;
            } else if self.away.contains(&at) {
                BTreeMap::from([(node.id.clone(), node.epoch)])
            } else {
                present.clone()
            };
            node.set_live(live, self.now);
        }
    }

    /// A node is cut off: the others take it for dead.
    pub(super) fn cut(&mut self, at: usize) {
        self.cut_all(&BTreeSet::from([at]));
    }

    /// The same for several at one moment.
    pub(super) fn cut_all(&mut self, nodes: &BTreeSet<usize>) {
        self.away.extend(nodes);
        self.look_who_lives();
    }

    /// It is back, with what it had.
    pub(super) fn heal(&mut self, at: usize) {
        self.away.remove(&at);
        self.look_who_lives();
    }

    /// It crashed and starts anew, with nothing.
    pub(super) fn restart(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.epoch += 1;
        node.held.clear();
        node.sent.clear();
        node.heart = (self.make)(node.id.clone());
        node.heart.begin_reading();
        node.heart.end_reading(self.now, &mut Changes::new(true));
        self.away.remove(&at);
        self.look_who_lives();
    }

    /// Some record of one node reaches another, again or for the first time, in any order.
    pub(super) fn deliver(&mut self, from: usize, to: usize, which: usize) {
        if self.away.contains(&from) || self.away.contains(&to) {
            return;
        }
        let sent = &self.nodes[from].sent;
        if let Some(record) = sent.get(which % sent.len().max(1)).cloned() {
            self.nodes[to].merge(&record, self.now);
            self.nodes[to].settle(self.now);
        }
    }

    /// Time passes.
    pub(super) fn pass(&mut self, span: Duration) {
        self.now += span;
        let now = self.now;
        self.nodes.iter_mut().for_each(|node| node.settle(now));
    }

    /// What was lost is repaired: all that are there exchange everything, until nothing has changed for as long
    /// as anybody waits for another to act first.
    pub(super) fn repair(&mut self) {
        let mut calm = 0;
        while calm < 24 {
            let before: Vec<_> = self.nodes.iter().map(|node| node.held.clone()).collect();
            for from in (0..self.nodes.len()).filter(|at| !self.away.contains(at)) {
                let records: Vec<_> = self.nodes[from].held.values().cloned().collect();
                for to in (0..self.nodes.len()).filter(|at| !self.away.contains(at)) {
                    for record in &records {
                        self.nodes[to].merge(record, self.now);
                    }
                }
            }
            self.pass(Duration::from_millis(500));
            let same = self.nodes.iter().map(|node| &node.held).eq(&before);
            calm = if same { calm + 1 } else { 0 };
        }
    }
}
