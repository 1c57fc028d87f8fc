//! The protocol as a state machine: inputs in, outputs out. No clock, no sockets, no `async`, no order that
//! depends on a hash map. This file hands over to the parts and holds no rule itself.
//!
//! Membership: `claims` what nodes say of themselves · `accuse` what is said against them · `probe` who
//! answers · `suspicion`, `awareness`, `schedule` its arithmetic · `link` connections · `members` the table
//! State: `store` records and which wins · `ranges`, `lamport` its arithmetic · `dissemination` the delegated
//! spread · `gossip` the net below it · `reconcile` push-pull · `confirm` who has it · `registers` what
//! counts for readers · `signatures` of those who wrote · `lists` revocation lists on their way

mod accuse;
mod awareness;
mod claims;
pub(crate) mod config;
mod confirm;
mod counters;
mod dissemination;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fixtures;
#[cfg(feature = "sim")]
pub(crate) mod formed;
mod gossip;
mod hearsay;
mod inbox;
#[cfg(any(test, feature = "fuzzing"))]
mod invariants;
mod lamport;
mod link;
pub(crate) mod lists;
mod members;
pub(crate) mod output;
mod probe;
mod ranges;
mod reconcile;
mod registers;
mod schedule;
mod signatures;
pub(crate) mod store;
mod suspicion;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tests_support;
pub(crate) mod time;
mod timers;
pub(crate) mod vouch;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::Hasher as _,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use siphasher::sip::SipHasher13;

pub use self::counters::{MemberExplanation, ProtoCounters};
use self::{
    awareness::Awareness,
    confirm::Confirm,
    dissemination::Spreader,
    hearsay::Hearsay,
    lists::Lists,
    members::{Member, Members},
    probe::{Check, Pinged, Probe},
    reconcile::{Exchange, Purges, Unexplained},
    schedule::Schedule,
    signatures::Signatures,
    store::{Store, StoreConfig},
    timers::{Timer, Timers},
};
pub(crate) use self::{
    config::{ProtocolConfig, Rule, Signed},
    link::Verdict,
    output::{Output, StreamInput},
    time::{Now, Time},
    vouch::Vouch,
};
use crate::{
    ClusterEvent, EventData, EventKind, NodeId, NodeInfo, NodeStatus, StateType,
    wire::{StreamId, codec::Packet, message::ClaimBody},
};

/// Old graves, tombstones and unanswered pings are looked through at most so often.
const SWEEP_MAX: Duration = Duration::from_secs(10);
/// A ping is never answered after so long.
const PING_AGE_MAX: Duration = Duration::from_secs(60);
/// How long a leave waits for acknowledgements.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// One node's protocol.
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Protocol {
    config: ProtocolConfig,
    me: NodeId,
    vouch: Arc<dyn Vouch>,
    rng: fastrand::Rng,
    outputs: VecDeque<Output>,
    timers: Timers,
    /// The time of the latest input.
    entered: Time,
    counters: ProtoCounters,

    members: Members,
    awareness: Awareness,
    schedule: Schedule,
    last_ping: u64,
    pings: BTreeMap<u64, Pinged>,
    probes: BTreeMap<u64, Probe>,
    checks: BTreeMap<NodeId, Check>,
    /// When anything arrived from anyone.
    heard: Time,
    /// How many peers are connected. Invariant: the number of members whose `linked` is set.
    links: usize,
    /// The incarnation to be refuted, if a refutation waits for its tick.
    refute_above: Option<u64>,
    refuted: Option<Time>,
    /// Who told the accusation that was refuted last.
    doubter: Option<NodeId>,
    /// Whether that was another than the time before.
    doubted: bool,
    hearsay: Hearsay,
    conflict_told: Option<Time>,
    /// When this node last went beyond a later life of its own that others told of.
    surpassed: Option<Time>,
    /// When claims were asked for that came without certificates.
    needed: BTreeMap<NodeId, Time>,
    /// Encoded news about a member, and on how many pings and acks it still rides.
    rumours: BTreeMap<NodeId, (Bytes, u32)>,
    deaths: VecDeque<Time>,
    /// How many members there were when this node began to take itself to be cut off.
    isolated: Option<usize>,
    leaving: bool,
    leave_told: bool,

    store: Store,
    spreader: Spreader,
    /// Vector entries that changed and were not told yet, with the time of the first change.
    news: BTreeMap<(StateType, NodeId, u64), Time>,
    state_changed: Time,
    fled: Option<Time>,
    exchanges: BTreeMap<StreamId, Exchange>,
    purges: Purges,
    unexplained: Unexplained,
    last_stream: u64,
    synced: Option<usize>,
    synced_with: BTreeSet<NodeId>,
    confirms: BTreeMap<u64, Confirm>,
    lists: Lists,
    signatures: Signatures,
}

impl Protocol {
    pub(crate) fn new(config: ProtocolConfig, vouch: Arc<dyn Vouch>, seed: u64, now: Now) -> Self {
        let me = config.node_id.clone();
        let hash_key = key_of(&config.cluster);
        let mut rng = fastrand::Rng::with_seed(seed);
        let shared = config.has(Rule::SharedSchedule);
        let schedule_key = if shared { hash_key } else { (rng.u64(..), rng.u64(..)) };
        let body = ClaimBody {
            node_id: me.clone(),
            epoch: config.epoch,
            incarnation: 0,
            left: false,
            address: config.address,
            zone: config.zone.clone(),
            tags: config.tags.clone(),
        };
        let store = Store::new(StoreConfig {
            me: me.clone(),
            epoch: config.epoch,
            tombstone_ttl: config.tombstone_ttl,
            max_batch_size: config.max_batch_size,
            disabled: config.disabled.clone(),
            signed: config.signed.clone(),
            hash_key,
        });
        let mut core = Self {
            members: Members::new(me.clone(), hash_key),
            store,
            me,
            vouch,
            rng,
            outputs: VecDeque::new(),
            timers: Timers::default(),
            entered: now.time,
            counters: ProtoCounters::default(),
            awareness: Awareness::new(config.has(Rule::LhaProbe)),
            schedule: Schedule::new(schedule_key),
            last_ping: 0,
            pings: BTreeMap::new(),
            probes: BTreeMap::new(),
            checks: BTreeMap::new(),
            heard: now.time,
            links: 0,
            refute_above: None,
            refuted: None,
            doubter: None,
            doubted: false,
            hearsay: Hearsay::default(),
            conflict_told: None,
            surpassed: None,
            needed: BTreeMap::new(),
            rumours: BTreeMap::new(),
            deaths: VecDeque::new(),
            isolated: None,
            leaving: false,
            leave_told: false,
            spreader: Spreader::new(),
            news: BTreeMap::new(),
            state_changed: now.time,
            fled: None,
            exchanges: BTreeMap::new(),
            purges: Purges::new(),
            unexplained: Unexplained::default(),
            last_stream: 0,
            synced: None,
            synced_with: BTreeSet::new(),
            confirms: BTreeMap::new(),
            lists: Lists::default(),
            signatures: Signatures::default(),
            config,
        };
        core.take_place(body, now);
        core
    }

    /// This node's own row, and the timers that run for its whole life.
    fn take_place(&mut self, body: ClaimBody, now: Now) {
        let chain = self.vouch.chain();
        let signed = self.sign(&body, &chain);
        self.members.keep_chain(signed.chain_hash, chain);
        let mut member = Member::new(body, signed, self.members.place_of(&self.me), now.time, now.wall_ms);
        member.cause = "this node".into();
        member.signed_types = self.config.signed.clone();
        self.members.insert(member, now.time);
        // Each node has phases of its own, so that a fleet that starts together does not tick together.
        for (timer, interval) in [
            (Timer::Period, self.config.ping_interval),
            (Timer::Gossip, self.config.gossip_interval),
            (Timer::PushPull, self.config.push_pull_interval),
            (Timer::Greet, self.config.push_pull_interval / 4),
            (Timer::Sweep, self.sweep_interval()),
        ] {
            let phase = self.jitter(interval);
            self.timers.set(timer, now.time + phase);
        }
    }

    fn sweep_interval(&self) -> Duration {
        let shortest = self.config.dead_node_reclaim.min(self.config.tombstone_ttl) / 8;
        shortest.clamp(Duration::from_millis(100), SWEEP_MAX)
    }

    /// Does all that is due.
    pub(crate) fn handle_timeout(&mut self, now: Now) {
        self.enter(now);
        while let Some(timer) = self.timers.pop_due(now.time) {
            self.handle_timer(timer, now);
        }
    }

    fn handle_timer(&mut self, timer: Timer, now: Now) {
        match timer {
            Timer::Period => self.begin_period(now),
            Timer::ProbeDirect(seq) => self.probe_indirectly(seq, now),
            Timer::ProbeEnd(seq) => self.end_probe(seq, now),
            Timer::HelpNack(ping) => self.say_nack(ping),
            Timer::HelpEnd(ping) => self.end_help(ping),
            Timer::SolicitEnd(ping) => self.end_solicited(ping, now),
            Timer::Suspicion(id) | Timer::Look(id) => self.begin_check(&id, now),
            Timer::CheckEnd(id) => self.end_check(&id, now),
            Timer::Refute => self.refute_now(now),
            Timer::Dial(id) => self.dial_planned(&id),
            Timer::Greet => self.greet(now),
            Timer::Flush => self.flush(now),
            Timer::Handoff(number) => self.redelegate(number, now),
            Timer::Gossip => self.gossip(now),
            Timer::PushPull => self.push_pull(now),
            Timer::Stalled(stream) => self.give_up_stalled(stream),
            Timer::AskNext => self.ask_next(),
            Timer::Confirm(ticket) => self.ask_again(ticket, now),
            Timer::Leave => self.end_leave(),
            Timer::Expire => self.expire(now),
            Timer::Purge => self.purge(now),
            Timer::TellAgain => self.tell_again(now),
            Timer::Sweep => self.sweep(now),
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    /// Forgets what is too old.
    fn sweep(&mut self, now: Now) {
        self.timers.set(Timer::Sweep, now.time + self.sweep_interval());
        let reclaim = self.config.dead_node_reclaim;
        let gone: Vec<_> = self
            .members
            .others()
            .filter(|(_, member)| !member.is_live() && now.time.since(member.since) >= reclaim)
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.remove_member(&id, now);
        }
        self.end_isolation(now);
        self.members.level_graves(reclaim * 2, now.time);
        self.pings.retain(|_, ping| now.time.since(ping.sent()) < PING_AGE_MAX);
        self.needed.retain(|_, asked| now.time.since(*asked) < PING_AGE_MAX);
        self.hearsay.sweep(now.time);
        self.signatures.sweep(now.time);
        self.store.collect(now);
        self.sweep_lists(now);
    }

    /// Says goodbye. Ends in `Output::LeaveSpread`, within two seconds.
    pub(crate) fn leave(&mut self, now: Now) {
        self.enter(now);
        if self.leaving {
            return;
        }
        self.claim_anew(now, |body| {
            body.left = true;
            body.incarnation = body.incarnation.saturating_add(1);
        });
        self.flush(now);
        self.leaving = true;
        self.members.update(&self.me.clone(), now.time, |member| member.status = NodeStatus::Left);
        self.timers.set(Timer::Leave, now.time + LEAVE_MAX);
        self.end_leave_if_spread();
    }

    fn end_leave_if_spread(&mut self) {
        if self.leaving && self.spreader.is_idle() && !self.store.has_unspread() {
            self.end_leave();
        }
    }

    fn end_leave(&mut self) {
        if !std::mem::replace(&mut self.leave_told, true) {
            self.timers.clear(&Timer::Leave);
            self.outputs.push_back(Output::LeaveSpread);
        }
    }
}

/// What every part uses.
impl Protocol {
    fn send(&mut self, to: &NodeId, packet: Packet) {
        self.counters.messages_sent += 1;
        self.counters.bytes_sent += packet.len() as u64;
        self.outputs.push_back(Output::Send { to: to.clone(), bytes: packet.into_bytes() });
    }

    fn send_part<T: serde::Serialize>(&mut self, to: &NodeId, kind: u8, body: &T) {
        let mut packet = Packet::new();
        packet.push(kind, body);
        self.send(to, packet);
    }

    /// A membership event, with the member as it is now.
    fn event(&mut self, kind: EventKind, id: &NodeId, cause: &str, now: Now) {
        if let Some(member) = self.members.get(id) {
            let data = EventData::Member { info: Box::new(member.info()), cause: cause.into() };
            self.event_data(kind, Some(id.clone()), data, now);
        }
    }

    fn event_reason(&mut self, kind: EventKind, reason: &str, now: Now) {
        self.event_data(kind, Some(self.me.clone()), EventData::Reason(reason.into()), now);
    }

    fn event_data(&mut self, kind: EventKind, id: Option<NodeId>, data: EventData, now: Now) {
        self.outputs.push_back(Output::Event(ClusterEvent::new(kind, id, now.wall(), data)));
    }
}

/// What readers ask.
impl Protocol {
    pub(crate) fn node(&self, id: &NodeId) -> Option<NodeInfo> {
        Some(self.members.get(id)?.info())
    }

    pub(crate) fn nodes(&self) -> BTreeMap<NodeId, NodeInfo> {
        self.members.iter().map(|(id, member)| (id.clone(), member.info())).collect()
    }

    pub(crate) fn local_node(&self) -> NodeInfo {
        self.members.me().info()
    }

    pub(crate) fn alive(&self) -> BTreeSet<NodeId> {
        let alive = self.members.iter().filter(|(_, member)| member.status == NodeStatus::Alive);
        alive.map(|(id, _)| id.clone()).collect()
    }

    pub(crate) fn explain(&self, id: &NodeId) -> Option<MemberExplanation> {
        let member = self.members.get(id)?;
        let ago = |time: Time| self.entered.since(time);
        Some(MemberExplanation {
            cause: member.cause.clone(),
            since: ago(member.since),
            last_heard: member.heard.map(ago),
            connected: member.linked,
            accusers: member.suspicion.iter().flat_map(|suspicion| suspicion.accusers().cloned()).collect(),
            suspicion_ends_in: member
                .suspicion
                .as_ref()
                .map(|suspicion| suspicion.ends().since(self.entered)),
        })
    }

    pub(crate) fn counters(&self) -> ProtoCounters {
        let (health_score, records_held) = (self.awareness.score(), self.store.len());
        ProtoCounters { health_score, records_held, ..self.counters.clone() }
    }

    /// How many records have come, whatever became of them.
    pub(crate) fn records_taken(&self) -> u64 {
        let counters = &self.counters;
        counters.records_accepted
            + counters.records_superseded
            + counters.records_known
            + counters.records_refused
    }

    /// Hashes of the member table and of the store: equal nodes have equal ones.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn fingerprint(&self) -> (u64, u64) {
        (self.members.hash(), self.store.digest_all(&BTreeSet::new()))
    }

    /// Whether it takes itself to be cut off.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn is_isolated(&self) -> bool {
        self.isolated.is_some()
    }

    /// Which life each member is in, by epoch and incarnation.
    #[cfg(any(test, feature = "sim", feature = "fuzzing"))]
    pub(crate) fn lives(&self) -> impl Iterator<Item = (&NodeId, (u64, u64))> {
        self.members.iter().map(|(id, member)| (id, (member.body.epoch, member.body.incarnation)))
    }

    /// How much of everything waits here that peers or time can make grow, by name.
    #[cfg(any(test, feature = "sim", feature = "fuzzing"))]
    pub(crate) fn queues(&self) -> [(&'static str, usize); 10] {
        [
            ("pings", self.pings.len()),
            ("probes", self.probes.len()),
            ("checks", self.checks.len()),
            ("claims asked for", self.needed.len()),
            ("rumours", self.rumours.len()),
            ("exchanges", self.exchanges.len()),
            ("news", self.news.len()),
            ("hand-offs", self.spreader.waiting_for()),
            ("lists asked for", self.lists_waiting()),
            ("certificates asked for", self.signatures.waiting_for()),
        ]
    }

    /// This node's name.
    #[cfg(test)]
    pub(crate) fn id(&self) -> &NodeId {
        &self.me
    }
}

/// The key of every hash that orders or compares: outsiders do not know the cluster's name, members all do.
fn key_of(cluster: &str) -> (u64, u64) {
    let half = |salt: u8| {
        let mut hasher = SipHasher13::new_with_keys(u64::from(salt), 0x7068_616c_616e_7801);
        hasher.write(cluster.as_bytes());
        hasher.finish()
    };
    (half(1), half(2))
}
