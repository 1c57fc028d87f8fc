//! What must hold in every world: safety after each step, agreement once faults have ended. Each rule is a pure
//! function of observations, so that its test can feed it a lie.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ClusterEvent, EventKind, NodeId, NodeStatus, StateType, SyncableState, sim::Pid};

/// Steps that may happen at one instant before it counts as a loop.
pub(crate) const STEPS_AT_ONCE_MAX: u64 = 20_000;

/// How a node's latest process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Crashed,
    Left,
}

type AppliedKey = (Pid, StateType, String, NodeId, u64);

/// What safety has to remember.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// The latest life seen, by observer and member.
    lives: BTreeMap<(Pid, NodeId), (u64, u64)>,
    applied: BTreeSet<AppliedKey>,
    ends: BTreeMap<NodeId, End>,
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
        if life < *seen {
            return Err(format!("{member} went back from epoch and incarnation {seen:?} to {life:?}"));
        }
        *seen = life;
        Ok(())
    }

    /// A provider is handed each version once in its process' life.
    pub(crate) fn apply(&mut self, observer: Pid, record: &SyncableState) -> Result<(), String> {
        let key = applied_key(observer, record);
        if self.applied.insert(key) {
            return Ok(());
        }
        let SyncableState { state_type, key, version, source_node, .. } = record;
        Err(format!("{state_type}/{key} of {source_node}, version {version}, was applied twice"))
    }

    pub(crate) fn was_applied(&self, observer: Pid, record: &SyncableState) -> bool {
        self.applied.contains(&applied_key(observer, record))
    }

    /// Nobody calls a node dead that said goodbye and did not come back.
    pub(crate) fn event(&self, event: &ClusterEvent) -> Result<(), String> {
        match &event.node_id {
            Some(node) if event.kind == EventKind::NodeDead && self.ends.get(node) == Some(&End::Left) => {
                Err(format!("{node} left, and was called dead: {event}"))
            }
            _ => Ok(()),
        }
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

    pub(crate) fn crashed(&mut self, node: &NodeId) {
        // Who crashes in the middle of a goodbye may be called dead.
        self.ends.insert(node.clone(), End::Crashed);
    }

    pub(crate) fn leaves(&mut self, node: &NodeId) {
        self.ends.insert(node.clone(), End::Left);
    }

    pub(crate) fn restarted(&mut self, node: &NodeId) {
        self.ends.remove(node);
    }

    pub(crate) fn end_of(&self, node: &NodeId) -> Option<End> {
        self.ends.get(node).copied()
    }
}

fn applied_key(observer: Pid, record: &SyncableState) -> AppliedKey {
    (observer, record.state_type.clone(), record.key.clone(), record.source_node.clone(), record.version)
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
        for (member, (status, ..)) in &view.members {
            let expected = match ends.end_of(member) {
                _ if live.contains(member) => NodeStatus::Alive,
                Some(End::Left) => NodeStatus::Left,
                Some(End::Crashed) => NodeStatus::Dead,
                None => continue,
            };
            if *status != expected {
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
