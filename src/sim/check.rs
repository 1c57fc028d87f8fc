//! What must hold in every world: safety after each step, agreement once faults have ended. Each rule is a
//! pure function of observations, so that its test can feed it a lie.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::SystemTime,
};

use crate::{ClusterEvent, EventKind, NodeId, NodeStatus, StateType, SyncableState, sim::Pid};

/// Steps that may happen at one instant before it counts as a loop.
pub(crate) const STEPS_AT_ONCE_MAX: u64 = 20_000;
/// Outputs of one input before it counts as a loop: a frame full of the smallest records gives some 50,000.
pub(crate) const OUTPUTS_AT_ONCE_MAX: u64 = 100_000;
/// Frames of one stream that may wait to be handed over, as in the transport, which ends the stream at one
/// more.
pub(crate) const FRAMES_WAITING_MAX: usize = 32;

/// How a node's latest process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In the life of that epoch.
    Crashed(u64),
    Left,
}

/// With the writer's clock, since a writer that restarts may come to the same version again; and whether it is
/// a tombstone, since what ends by itself becomes one under the version it had.
type AppliedKey = (Pid, StateType, String, NodeId, u64, SystemTime, bool);
/// A register in the eyes of one process; the writer only of per-node types.
type RegisterKey = (Pid, StateType, String, Option<NodeId>);

/// What a register was last set to, in the eyes of one process.
#[derive(Debug)]
struct Applied {
    version: u64,
    source: NodeId,
    deleted: bool,
    /// If it was made through the world.
    write: Option<Write>,
}

/// A write through the world.
#[derive(Clone, Copy, Debug)]
struct Write {
    writer: Pid,
    /// The writer's epoch then; it may publish the same again under a later one.
    epoch: u64,
    /// Of all writes of the world, in order.
    number: u64,
}

/// Type, key and writer.
type WriteKey = (StateType, String, NodeId);
/// A value and its version.
type Said = (Vec<u8>, u64);

/// What safety has to remember. Looked up, never gone through: the order of its hashes means nothing.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// The latest life seen, by observer and member.
    lives: HashMap<(Pid, NodeId), (u64, u64)>,
    /// The latest epoch and incarnation that each node has said of itself.
    said: HashMap<NodeId, (u64, u64)>,
    /// The latest epoch of each process.
    epochs: HashMap<Pid, u64>,
    /// What was written, by type, key and writer, under which version, with the latest such write; `None` for
    /// a removal, whatever its version.
    written: HashMap<WriteKey, HashMap<Option<Said>, Write>>,
    /// What somebody removed. Who was away for longer than the tombstone is kept is told so under the version of what
    /// it had.
    removed: HashSet<(StateType, String)>,
    /// Types that a process has switched off and on: it hears of them anew.
    relearning: HashSet<(Pid, StateType)>,
    writes: u64,
    /// What each process wrote itself, by version and time.
    own: HashSet<(Pid, WriteKey, u64, SystemTime)>,
    /// Goodbyes can be lost in this world, and then a leave looks like a death.
    goodbyes_lost: bool,
    applied: HashSet<AppliedKey>,
    /// What was applied last.
    registers: HashMap<RegisterKey, Applied>,
    /// What the latest event of a member said of it, by observer.
    paths: HashMap<(Pid, NodeId), NodeStatus>,
    /// Who was forgotten by order: a table without it may take it for new.
    forgotten: BTreeSet<NodeId>,
    ends: HashMap<NodeId, End>,
    /// Steps so far at the present instant.
    instant: (u64, u64),
}

impl Checks {
    /// A member's epoch and incarnation, in the eyes of one process, never go back.
    pub(crate) fn see_life(
        &mut self,
        observer: Pid,
        member: &NodeId,
        life: (u64, u64),
    ) -> Result<(), String> {
        let seen = self.lives.entry((observer, member.clone())).or_default();
        if life < *seen && !self.forgotten.contains(member) {
            return Err(format!("{member} went back from epoch and incarnation {seen:?} to {life:?}"));
        }
        *seen = life;
        match self.said.get(member) {
            Some(said) if life > *said => {
                Err(format!("{member} is believed in {life:?}, and has never said more than {said:?}"))
            }
            _ => Ok(()),
        }
    }

    /// What a process says of itself.
    pub(crate) fn says(&mut self, pid: Pid, node: &NodeId, life: (u64, u64)) {
        self.epochs.insert(pid, life.0);
        let said = self.said.entry(node.clone()).or_default();
        *said = life.max(*said);
    }

    /// What a user wrote at a process in that epoch, for ever or for a while.
    pub(crate) fn writes(&mut self, pid: Pid, epoch: u64, record: &SyncableState, for_a_while: bool) {
        self.writes += 1;
        let write = Write { writer: pid, epoch, number: self.writes };
        let written = self.written.entry(write_key(record)).or_default();
        written.insert(Some((record.value.as_bytes().to_vec(), record.version)), write);
        if for_a_while {
            written.insert(None, write);
        }
        self.own.insert((pid, write_key(record), record.version, record.timestamp));
    }

    /// A user at `node`, which that process is, removed a key in that epoch.
    pub(crate) fn removes(
        &mut self,
        pid: Pid,
        epoch: u64,
        (state_type, key, node): (&StateType, &str, &NodeId),
    ) {
        self.writes += 1;
        let place = (state_type.clone(), key.into(), node.clone());
        let write = Write { writer: pid, epoch, number: self.writes };
        self.written.entry(place).or_default().insert(None, write);
        self.removed.insert((state_type.clone(), key.into()));
    }

    /// A process drops a type and learns it anew.
    pub(crate) fn relearns(&mut self, observer: Pid, state_type: &StateType) {
        self.relearning.insert((observer, state_type.clone()));
    }

    /// In this world a goodbye may not be heard by anybody.
    pub(crate) fn may_lose_goodbyes(&mut self) {
        self.goodbyes_lost = true;
    }

    /// A provider is handed only what somebody wrote, each version once in its process' life, those of a
    /// register in their order, and none that its own process wrote.
    pub(crate) fn apply(&mut self, observer: Pid, record: &SyncableState) -> Result<(), String> {
        let SyncableState { state_type, key, version, source_node, .. } = record;
        let removed = if record.deleted { " (removed)" } else { "" };
        let what = format!("{state_type}/{key} of {source_node}, version {version}{removed},");
        let value = (!record.deleted).then(|| (record.value.as_bytes().to_vec(), *version));
        let write = self.written.get(&write_key(record)).and_then(|written| written.get(&value)).copied();
        let bygone =
            record.deleted && write.is_none() && self.removed.contains(&(state_type.clone(), key.clone()));
        if write.is_none() && !bygone && !self.written.is_empty() {
            return Err(format!("{what} was written by nobody"));
        }
        if !bygone && self.own.contains(&(observer, write_key(record), *version, record.timestamp)) {
            return Err(format!("{what} came back to its writer"));
        }
        let per_node = state_type.is_per_node();
        let register = (observer, state_type.clone(), key.clone(), per_node.then(|| source_node.clone()));
        // A writer that lost its clock writes the same again once it has gone beyond what it wrote before.
        let both = self.registers.get(&register).and_then(|before| before.write.zip(write));
        let again = both.is_some_and(|(before, write)| {
            per_node && self.last_epoch(before) > write.epoch && self.last_epoch(write) >= before.epoch
        });
        let relearns = self.relearning.contains(&(observer, state_type.clone()));
        if !self.applied.insert(applied_key(observer, record)) && !again && !relearns {
            return Err(format!("{what} was applied twice"));
        }
        let last_epoch = write.map(|write| self.last_epoch(write));
        let now = Applied { version: *version, source: source_node.clone(), deleted: record.deleted, write };
        match self.registers.insert(register, now) {
            // A writer that has restarted counts its versions anew, but it has written later. Not to those who
            // still hear of a later epoch, until it has heard of that too and writes beyond it.
            Some(Applied { version, write: Some(late), deleted: false, .. })
                if per_node
                    && !relearns
                    && !record.deleted
                    && write.is_some_and(|write| write.number < late.number)
                    && last_epoch <= Some(late.epoch) =>
            {
                Err(format!("{what} was applied after a later write, version {version}"))
            }
            Some(before) if !per_node && (before.version, &before.source) > (*version, source_node) => {
                Err(format!("{what} was applied after version {} of {}", before.version, before.source))
            }
            _ => Ok(()),
        }
    }

    /// The latest epoch under which a write can have been published.
    fn last_epoch(&self, write: Write) -> u64 {
        self.epochs.get(&write.writer).map_or(write.epoch, |last| write.epoch.max(*last))
    }

    pub(crate) fn was_applied(&self, observer: Pid, record: &SyncableState) -> bool {
        self.applied.contains(&applied_key(observer, record))
    }

    /// Nobody calls a node dead that said goodbye and did not come back; and what one process tells of a
    /// member makes sense: it joins before anything else is told, is suspected before it dies, and so on.
    pub(crate) fn event(&mut self, observer: Pid, me: &NodeId, event: &ClusterEvent) -> Result<(), String> {
        let Some(node) = event.node_id.as_ref().filter(|node| *node != me) else { return Ok(()) };
        let left = !self.goodbyes_lost && self.ends.get(node) == Some(&End::Left);
        if event.kind == EventKind::NodeDead && left {
            return Err(format!("{node} left, and was called dead: {event}"));
        }
        let was = self.paths.get(&(observer, node.clone())).copied();
        let (is, legal) = match event.kind {
            EventKind::NodeJoin => {
                let gone = matches!(was, None | Some(NodeStatus::Dead | NodeStatus::Left));
                (NodeStatus::Alive, gone || self.forgotten.contains(node))
            }
            EventKind::NodeSuspect => (NodeStatus::Suspect, was == Some(NodeStatus::Alive)),
            EventKind::NodeAlive => (NodeStatus::Alive, was == Some(NodeStatus::Suspect)),
            EventKind::NodeUpdate => (NodeStatus::Alive, was == Some(NodeStatus::Alive)),
            EventKind::NodeDead => (NodeStatus::Dead, was == Some(NodeStatus::Suspect)),
            // Who was known as dead from the beginning was never told of as one that joined.
            EventKind::NodeLeave => (NodeStatus::Left, was != Some(NodeStatus::Left)),
            _ => return Ok(()),
        };
        if !legal {
            let was = was.map_or("unheard of", NodeStatus::as_str);
            return Err(format!("{node} was {was}, and then came: {event}"));
        }
        self.paths.insert((observer, node.clone()), is);
        Ok(())
    }

    /// A core comes to an end with what one input makes it do.
    pub(crate) fn outputs(count: u64) -> Result<(), String> {
        if count > OUTPUTS_AT_ONCE_MAX {
            return Err(format!("more than {OUTPUTS_AT_ONCE_MAX} outputs of one input: a loop"));
        }
        Ok(())
    }

    /// No queue grows beyond what a small cluster can need.
    pub(crate) fn queues(queues: &[(&'static str, usize)]) -> Result<(), String> {
        let over = queues.iter().find(|(name, len)| {
            let most = match *name {
                "exchanges" => 16,
                "pings" => 1_000,
                "news" | "hand-offs" => 5_000,
                _ => 300,
            };
            *len > most
        });
        over.map_or(Ok(()), |(name, len)| Err(format!("{len} {name} wait")))
    }

    /// A core waits for its frames to be handed over.
    pub(crate) fn frames(waiting: usize) -> Result<(), String> {
        if waiting > FRAMES_WAITING_MAX {
            return Err(format!("{waiting} frames of one stream wait; the transport would end it"));
        }
        Ok(())
    }

    /// After `handle_timeout` nothing is due any more.
    pub(crate) fn timers(due: Option<u64>, now: u64) -> Result<(), String> {
        match due {
            Some(due) if due <= now => Err(format!("a timer of {due} µs is still due at {now} µs")),
            _ => Ok(()),
        }
    }

    /// Virtual time goes on.
    pub(crate) fn step(&mut self, now: u64) -> Result<(), String> {
        if self.instant.0 != now {
            self.instant = (now, 0);
        }
        self.instant.1 += 1;
        if self.instant.1 > STEPS_AT_ONCE_MAX {
            return Err(format!("more than {STEPS_AT_ONCE_MAX} steps at {now} µs: a loop"));
        }
        Ok(())
    }

    pub(crate) fn crashed(&mut self, node: &NodeId, epoch: u64) {
        // Who crashes in the middle of a goodbye may be called dead.
        self.ends.insert(node.clone(), End::Crashed(epoch));
    }

    pub(crate) fn leaves(&mut self, node: &NodeId) {
        self.ends.insert(node.clone(), End::Left);
    }

    pub(crate) fn restarted(&mut self, node: &NodeId) {
        self.ends.remove(node);
    }

    pub(crate) fn forgotten(&mut self, node: &NodeId) {
        self.forgotten.insert(node.clone());
    }

    /// How a node that does not run ended, and whether that belief agrees with it.
    fn fits(&self, node: &NodeId, (status, epoch, _): Belief) -> Result<(), NodeStatus> {
        let (fits, expected) = match self.ends.get(node) {
            None => return Ok(()),
            Some(End::Left) => {
                let unheard = self.goodbyes_lost && status == NodeStatus::Dead;
                (status == NodeStatus::Left || unheard, NodeStatus::Left)
            }
            // It may have left, come back, and crashed before anybody who still lives heard of it.
            Some(End::Crashed(life)) => {
                let before = status == NodeStatus::Left && epoch != *life;
                (status == NodeStatus::Dead || before, NodeStatus::Dead)
            }
        };
        if fits { Ok(()) } else { Err(expected) }
    }
}

fn write_key(record: &SyncableState) -> WriteKey {
    (record.state_type.clone(), record.key.clone(), record.source_node.clone())
}

fn applied_key(observer: Pid, record: &SyncableState) -> AppliedKey {
    let SyncableState { state_type, key, version, source_node, timestamp, deleted, .. } = record.clone();
    (observer, state_type, key, source_node, version, timestamp, deleted)
}

/// What one node believes of a member: status, epoch, incarnation.
pub(crate) type Belief = (NodeStatus, u64, u64);

/// What one live node believes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) observer: String,
    pub(crate) members: BTreeMap<NodeId, Belief>,
    /// Version and source by type, key and, of per-node types, source.
    pub(crate) states: BTreeMap<(StateType, String, NodeId), (u64, Vec<u8>)>,
}

/// The first thing in which live nodes differ from one another or from what is so.
pub(crate) fn disagreement(views: &[View], ends: &Checks, live: &BTreeSet<NodeId>) -> Option<String> {
    for view in views {
        let observer = &view.observer;
        if let Some(missing) = live.iter().find(|id| !view.members.contains_key(*id)) {
            return Some(format!("{observer} does not know {missing}"));
        }
        for (member, belief) in &view.members {
            let status = belief.0;
            let fits = match (live.contains(member), status) {
                (true, NodeStatus::Alive) => Ok(()),
                (true, _) => Err(NodeStatus::Alive),
                (false, _) => ends.fits(member, *belief),
            };
            if let Err(expected) = fits {
                return Some(format!("{observer} holds {member} {status}, which is {expected}"));
            }
        }
    }
    let first = views.first()?;
    views.iter().skip(1).find_map(|view| difference(first, view))
}

fn difference(a: &View, b: &View) -> Option<String> {
    let who = format!("{} and {}", a.observer, b.observer);
    if a.members != b.members {
        let ids: BTreeSet<_> = a.members.keys().chain(b.members.keys()).collect();
        let id = ids.into_iter().find(|id| a.members.get(*id) != b.members.get(*id))?;
        return Some(format!("{who} differ in {id}: {:?}, {:?}", a.members.get(id), b.members.get(id)));
    }
    if a.states != b.states {
        let keys: BTreeSet<_> = a.states.keys().chain(b.states.keys()).collect();
        let key = keys.into_iter().find(|key| a.states.get(*key) != b.states.get(*key))?;
        return Some(format!("{who} differ in {key:?}: {:?}, {:?}", a.states.get(key), b.states.get(key)));
    }
    None
}
