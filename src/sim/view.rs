//! What a test does with a world and asks of it: starts nodes, writes as their users would, and sees what
//! each of them believes. Injects no fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;

use crate::{
    EventKind, NodeId, NodeInfo, NodeStatus, Options, StateType, SyncableState, Value,
    sim::{
        Pid, World,
        check::{self, View},
        process::{Process, sealed_list},
    },
};

/// How many of the first nodes that run serve as seeds of whoever starts later.
const SEEDS: usize = 3;

impl World {
    /// Starts `count` nodes; the first is the seed of the others.
    pub(crate) fn start(&mut self, count: usize) -> Vec<NodeId> {
        let known = self.seed_addresses();
        (0..count)
            .map(|_| {
                let number = self.names.len();
                let id = NodeId::new(format!("n{number:02}")).expect("a short name of letters and digits");
                let address = address_number(number);
                let seeds = match number {
                    0 => Vec::new(),
                    _ if known.is_empty() => vec![address_number(0)],
                    _ => known.clone(),
                };
                self.names.push(id.clone());
                self.start_process(id.clone(), address, seeds);
                id
            })
            .collect()
    }

    /// Starts a second process with a name that is in use, elsewhere. The name goes on to mean the first.
    pub(crate) fn start_twin(&mut self, id: &NodeId) -> Pid {
        let first = self.pid_of(id);
        let [.., high, low] = self.procs.len().to_be_bytes(); // one address holds one process
        let address = ([10, 9, high, low], 7946).into();
        let seeds = self.seed_addresses();
        let twin = self.start_process(id.clone(), address, seeds);
        self.current.insert(id.clone(), first);
        twin
    }

    pub(crate) fn seed_addresses(&self) -> Vec<SocketAddr> {
        let live = self.live();
        let seeds = if live.is_empty() { &self.names } else { &live };
        seeds.iter().take(SEEDS).map(|id| self.address_of(id)).collect()
    }

    pub(crate) fn pid_of(&self, id: &NodeId) -> Pid {
        self.current[id]
    }

    pub(crate) fn address_of(&self, id: &NodeId) -> SocketAddr {
        self.process(id).address
    }

    /// The present process of that name, or its last.
    pub(crate) fn process(&self, id: &NodeId) -> &Process {
        &self.procs[self.pid_of(id)]
    }

    pub(crate) fn is_up(&self, id: &NodeId) -> bool {
        self.process(id).is_running()
    }

    /// Nodes that run and are not about to leave.
    pub(crate) fn live(&self) -> Vec<NodeId> {
        let live = |id: &&NodeId| self.is_up(id) && !self.process(id).leaving;
        self.names.iter().filter(live).cloned().collect()
    }

    /// What `observer` knows of `member`.
    pub(crate) fn info(&self, observer: &NodeId, member: &NodeId) -> Option<NodeInfo> {
        self.process(observer).core.node(member)
    }

    pub(crate) fn status(&self, observer: &NodeId, member: &NodeId) -> Option<NodeStatus> {
        Some(self.info(observer, member)?.status)
    }

    /// Whether every other live node holds `member` to be that.
    pub(crate) fn all_hold(&self, member: &NodeId, status: NodeStatus) -> bool {
        self.live().iter().filter(|id| *id != member).all(|id| self.status(id, member) == Some(status))
    }

    /// Writes as the node's user does.
    pub(crate) fn broadcast(
        &mut self,
        node: &NodeId,
        state_type: &StateType,
        key: &str,
        value: &str,
    ) -> SyncableState {
        let value = Value::encode(value).expect("a text can be encoded");
        self.broadcast_with(node, state_type, key, value, Options::default())
    }

    pub(crate) fn broadcast_with(
        &mut self,
        node: &NodeId,
        state_type: &StateType,
        key: &str,
        value: Value,
        options: Options,
    ) -> SyncableState {
        self.types.insert(state_type.clone());
        let pid = self.pid_of(node);
        let written = self.command(pid, |core, now| core.broadcast(state_type, key, value, options, now));
        let written = written.expect("a short record is accepted");
        let epoch = self.process(node).core.local_node().epoch;
        self.note_record(node, "writes", &written);
        self.checks.writes(pid, epoch, &written, options.ttl.is_some());
        written
    }

    /// Gives `node` an authority's revocation list, as its operator does.
    pub(crate) fn give_list(&mut self, node: &NodeId, issuer: u64, number: u64) {
        let (pid, list) = (self.pid_of(node), sealed_list(self.secret, issuer, number));
        self.command(pid, |core, now| {
            let mut lists = core.lists();
            lists.retain(|held| held.issuer != issuer);
            lists.push(list);
            core.take_lists(lists, now);
        });
    }

    /// The number of the list of that issuer that `node` goes by.
    pub(crate) fn list_at(&self, node: &NodeId, issuer: u64) -> Option<u64> {
        let lists = self.process(node).core.lists();
        let list = lists.iter().find(|list| list.issuer == issuer)?;
        Some(u64::from_be_bytes(*list.bytes.first_chunk()?))
    }

    /// Has `node` forget a member, as its operator does.
    pub(crate) fn forget(&mut self, node: &NodeId, member: &NodeId) {
        self.checks.forgotten(member);
        let pid = self.pid_of(node);
        self.command(pid, |core, now| core.forget(member, now)).expect("the member is not alive");
    }

    pub(crate) fn remove(
        &mut self,
        node: &NodeId,
        state_type: &StateType,
        key: &str,
    ) -> Option<SyncableState> {
        let pid = self.pid_of(node);
        let removed = self.command(pid, |core, now| core.remove(state_type, key, now));
        let epoch = self.process(node).core.local_node().epoch;
        if let Some(removed) = &removed {
            self.note_record(node, "removes", removed);
        }
        self.checks.removes(pid, epoch, (state_type, key, node));
        removed
    }

    /// The text that counts for a reader at `node`.
    pub(crate) fn text(&self, node: &NodeId, state_type: &StateType, key: &str) -> Option<String> {
        self.process(node).core.get(state_type, key)?.value.decode().ok()
    }

    pub(crate) fn all_read(&self, state_type: &StateType, key: &str, text: Option<&str>) -> bool {
        self.live().iter().all(|node| self.text(node, state_type, key).as_deref() == text)
    }

    /// Sends bytes of the test's own making over `from`'s connection.
    pub(crate) fn say(&mut self, from: &NodeId, to: &NodeId, bytes: Bytes) {
        let pid = self.pid_of(from);
        assert!(self.procs[pid].conns.contains_key(to), "{from} has no connection to {to}");
        self.send(pid, to, bytes);
    }

    /// When `observer`'s present process told that of `member`, in microseconds of the world.
    pub(crate) fn told(&self, observer: &NodeId, kind: EventKind, member: &NodeId) -> Vec<u64> {
        let events = self.process(observer).record.events.iter();
        let of_it = events.filter(|(_, event)| event.kind == kind && event.node_id.as_ref() == Some(member));
        of_it.map(|(at, _)| *at).collect()
    }

    /// When it told that of anybody else.
    pub(crate) fn told_of_others(&self, observer: &NodeId, kind: EventKind, member: &NodeId) -> Vec<u64> {
        let events = self.process(observer).record.events.iter();
        let of = events.filter(|(_, event)| event.kind == kind && event.node_id.as_ref() != Some(member));
        of.map(|(at, _)| *at).collect()
    }

    /// Whether any process of the world told that of `member`.
    pub(crate) fn anybody_told(&self, kind: EventKind, member: &NodeId) -> bool {
        let mut events = self.procs.iter().flat_map(|process| &process.record.events);
        events.any(|(_, event)| event.kind == kind && event.node_id.as_ref() == Some(member))
    }

    pub(crate) fn all_agree(&self) -> bool {
        self.seem_to_agree() && self.disagreement().is_none()
    }

    /// Equal nodes have equal hashes, and that is quickly seen.
    fn seem_to_agree(&self) -> bool {
        let live = self.live();
        let Some(first) = live.first() else { return true };
        let first = self.process(first).core.fingerprint();
        live.iter().all(|id| self.process(id).core.fingerprint() == first)
            && live.iter().all(|id| self.is_right(id))
    }

    /// Runs until all agree, and says how long that took. Whoever only seems to agree is looked at in full
    /// five times a second: that is dear.
    pub(crate) fn run_to_agreement(&mut self, limit: Duration) -> Duration {
        let mut look_again = self.now;
        self.run_until(limit, |world| {
            if world.now < look_again || !world.seem_to_agree() {
                return false;
            }
            look_again = world.now + 200_000;
            world.disagreement().is_none()
        })
    }

    /// Whether what one node believes of the others' standing is so.
    fn is_right(&self, observer: &NodeId) -> bool {
        self.names.iter().all(|name| match self.status(observer, name) {
            Some(NodeStatus::Alive) => self.is_up(name),
            Some(_) => !self.is_up(name),
            None => !self.is_up(name) || self.process(name).leaving,
        })
    }

    /// The first thing in which live nodes differ from one another or from what is so.
    pub(crate) fn disagreement(&self) -> Option<String> {
        let live: BTreeSet<_> = self.live().into_iter().collect();
        let views: Vec<_> = live.iter().map(|id| self.view(id)).collect();
        check::disagreement(&views, &self.checks, &live)
    }

    fn view(&self, id: &NodeId) -> View {
        let core = &self.process(id).core;
        let belief = |info: NodeInfo| (info.status, info.epoch, info.incarnation);
        let members = core.nodes().into_iter().map(|(id, info)| (id, belief(info))).collect();
        let mut states = BTreeMap::new();
        for state_type in &self.types {
            for record in core.states(state_type) {
                // Who takes itself to be cut off still shows the opinions of those it holds dead.
                if state_type.stops_counting_at_death() && core.is_isolated() {
                    let owner = core.node(&record.source_node);
                    if owner.is_none_or(|owner| owner.status == NodeStatus::Dead) {
                        continue;
                    }
                }
                let owner = if state_type.is_per_node() { record.source_node.clone() } else { nobody() };
                let value = record.value.as_bytes().to_vec();
                states.insert((record.state_type, record.key, owner), (record.version, value));
            }
        }
        View { observer: id.to_string(), members, states }
    }

    /// Every record of another node that a live node holds was handed to its provider.
    pub(crate) fn all_applied(&self) -> Result<(), String> {
        for id in self.live() {
            for record in
                self.types.iter().flat_map(|state_type| self.process(&id).core.remote_states(state_type))
            {
                if !self.checks.was_applied(self.pid_of(&id), &record) {
                    return Err(format!("{id} holds {record:?}, which no provider was handed"));
                }
            }
        }
        Ok(())
    }
}

/// The owner of a shared type's registers.
fn nobody() -> NodeId {
    NodeId::new("shared").expect("a valid name")
}

fn address_number(number: usize) -> SocketAddr {
    let [.., high, low] = (number + 1).to_be_bytes();
    ([10, 0, high, low], 7946).into()
}
