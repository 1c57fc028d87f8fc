//! STUB, to be deleted when the real `Protocol` lands: a core of one node that talks to nobody.
#![allow(dead_code, missing_docs, clippy::all, clippy::pedantic, unused_variables)]
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::*;
use crate::wire::{CloseCode, StreamId, hello::Introduction};
use crate::*;

pub(crate) enum Verdict {
    Admit,
    Refuse(CloseCode, String),
    Incumbent { epoch: u64, address: SocketAddr },
}
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemberExplanation {
    pub accusers: Vec<NodeId>,
}
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ProtoCounters {
    pub messages: u64,
}
pub(crate) struct Protocol {
    config: ProtocolConfig,
    outputs: VecDeque<Output>,
    records: BTreeMap<(StateType, String), SyncableState>,
    nodes: BTreeMap<NodeId, NodeInfo>,
    clock: u64,
    counters: ProtoCounters,
}
impl Protocol {
    pub(crate) fn new(config: ProtocolConfig, vouch: Arc<dyn Vouch>, seed: u64, now: Now) -> Self {
        let me = NodeInfo {
            node_id: config.node_id.clone(),
            address: config.address,
            incarnation: 0,
            epoch: config.epoch,
            status: NodeStatus::Alive,
            join_time: now.wall(),
            last_seen: now.wall(),
            zone: config.zone.clone(),
            tags: config.tags.clone(),
            rtt: None,
        };
        Self {
            nodes: BTreeMap::from([(config.node_id.clone(), me)]),
            config,
            outputs: VecDeque::new(),
            records: BTreeMap::new(),
            clock: 0,
            counters: ProtoCounters::default(),
        }
    }
    pub(crate) fn introduction(&self, peer: Option<&NodeId>) -> Introduction {
        Introduction {
            versions: (1, 1),
            cluster: self.config.cluster.clone(),
            node_id: self.config.node_id.clone(),
            epoch: self.config.epoch,
            incarnation: 0,
            zone: None,
            listen: Some(self.config.address),
            your_epoch: 0,
            core: Bytes::new(),
        }
    }
    pub(crate) fn judge(&self, peer: &Introduction, now: Now) -> Verdict {
        Verdict::Admit
    }
    pub(crate) fn handle_connected(&mut self, peer: &NodeId, i: &Introduction, remote: SocketAddr, rtt: Duration, now: Now) {
        let mut info = self.local_node();
        info.node_id = peer.clone();
        info.address = remote;
        self.nodes.insert(peer.clone(), info.clone());
        self.outputs.push_back(Output::Event(ClusterEvent::new(
            EventKind::NodeJoin,
            Some(peer.clone()),
            now.wall(),
            EventData::Member { info: Box::new(info), cause: "stub".into() },
        )));
        let peers = self.nodes.len() - 1;
        self.outputs.push_back(Output::Synced { peers });
    }
    pub(crate) fn handle_disconnected(&mut self, peer: &NodeId, code: CloseCode, by_peer: bool, now: Now) {
        if let Some(info) = self.nodes.get_mut(peer) {
            info.status = if code == CloseCode::LEFT { NodeStatus::Left } else { NodeStatus::Dead };
            let kind = if code == CloseCode::LEFT { EventKind::NodeLeave } else { EventKind::NodeDead };
            self.outputs.push_back(Output::Event(ClusterEvent::new(
                kind,
                Some(peer.clone()),
                now.wall(),
                EventData::Member { info: Box::new(info.clone()), cause: "stub".into() },
            )));
            self.outputs.push_back(Output::NodeFailed(peer.clone()));
        }
    }
    pub(crate) fn handle_dial_failed(&mut self, peer: &NodeId, now: Now) {}
    pub(crate) fn handle_message(&mut self, from: &NodeId, bytes: &Bytes, now: Now) {
        let Ok(record) = rmp_serde::from_slice::<SyncableState>(bytes) else { return };
        self.outputs.push_back(Output::Apply(record.clone()));
        self.put(record, now);
    }
    pub(crate) fn handle_stream(&mut self, peer: &NodeId, stream: StreamId, input: StreamInput, now: Now) {}
    pub(crate) fn handle_timeout(&mut self, now: Now) {}
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        None
    }
    fn put(&mut self, record: SyncableState, now: Now) {
        self.clock = self.clock.max(record.version);
        let old = self.records.insert((record.state_type.clone(), record.key.clone()), record.clone());
        self.outputs.push_back(Output::Change(StateChange::Put { new: record.clone(), old }));
        self.outputs.push_back(Output::Event(ClusterEvent::new(
            EventKind::StateChanged,
            Some(record.source_node.clone()),
            now.wall(),
            EventData::State { record: Box::new(record), removed: false },
        )));
    }
    pub(crate) fn broadcast(&mut self, state_type: StateType, key: String, value: Value, options: Options, now: Now) -> Result<SyncableState, Error> {
        let version = self.next_version(now);
        let record = SyncableState::new(state_type, key, value, version, self.config.node_id.clone());
        let bytes = Bytes::from(rmp_serde::to_vec(&record).unwrap());
        for to in self.nodes.keys().filter(|id| **id != self.config.node_id) {
            self.outputs.push_back(Output::Send { to: to.clone(), bytes: bytes.clone() });
        }
        self.put(record.clone(), now);
        Ok(record)
    }
    pub(crate) fn broadcast_many(&mut self, states: Vec<SyncableState>, now: Now) -> Result<usize, Error> {
        let mut n = 0;
        for s in states {
            if self.get(&s.state_type, &s.key).is_none_or(|old| old.version < s.version) {
                self.put(s, now);
                n += 1;
            }
        }
        Ok(n)
    }
    pub(crate) fn remove(&mut self, state_type: &StateType, key: &str, now: Now) -> Result<Option<SyncableState>, Error> {
        let old = self.records.remove(&(state_type.clone(), key.to_owned()));
        if let Some(old) = &old {
            self.outputs.push_back(Output::Change(StateChange::Removed { old: old.clone() }));
        }
        Ok(old)
    }
    pub(crate) fn confirm(&mut self, state_type: &StateType, key: &str, limit: Duration, ticket: u64, now: Now) {
        let spread = Spread { reached: self.alive(), missing: BTreeSet::new() };
        self.outputs.push_back(Output::Confirmed { ticket, spread });
    }
    pub(crate) fn set_tags(&mut self, tags: BTreeMap<String, String>, now: Now) -> Result<(), Error> {
        let id = self.config.node_id.clone();
        self.nodes.get_mut(&id).unwrap().tags = tags;
        Ok(())
    }
    pub(crate) fn forget(&mut self, node: &NodeId, now: Now) -> Result<(), Error> {
        self.nodes.remove(node);
        Ok(())
    }
    pub(crate) fn leave(&mut self, now: Now) {
        self.outputs.push_back(Output::LeaveSpread);
    }
    pub(crate) fn next_version(&mut self, now: Now) -> u64 {
        self.clock += 1;
        self.clock
    }
    pub(crate) fn get(&self, state_type: &StateType, key: &str) -> Option<SyncableState> {
        self.records.get(&(state_type.clone(), key.to_owned())).cloned()
    }
    pub(crate) fn states(&self, state_type: &StateType) -> Vec<SyncableState> {
        self.records.values().filter(|r| r.state_type == *state_type).cloned().collect()
    }
    pub(crate) fn remote_states(&self, state_type: &StateType) -> Vec<SyncableState> {
        self.states(state_type).into_iter().filter(|r| r.source_node != self.config.node_id).collect()
    }
    pub(crate) fn node(&self, id: &NodeId) -> Option<NodeInfo> {
        self.nodes.get(id).cloned()
    }
    pub(crate) fn nodes(&self) -> BTreeMap<NodeId, NodeInfo> {
        self.nodes.clone()
    }
    pub(crate) fn local_node(&self) -> NodeInfo {
        self.nodes[&self.config.node_id].clone()
    }
    pub(crate) fn alive(&self) -> BTreeSet<NodeId> {
        self.nodes.iter().filter(|(_, n)| n.status == NodeStatus::Alive).map(|(id, _)| id.clone()).collect()
    }
    pub(crate) fn explain(&self, id: &NodeId) -> Option<MemberExplanation> {
        self.nodes.get(id).map(|_| MemberExplanation::default())
    }
    pub(crate) fn counters(&self) -> &ProtoCounters {
        &self.counters
    }
    pub(crate) fn synced(&self) -> Option<usize> {
        None
    }
}
