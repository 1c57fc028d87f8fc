//! What the core is told at its making: plain numbers. The driver makes it from the user's `Config`, which
//! the core does not know.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

pub(crate) use crate::wire::message::Signed;
use crate::{NodeId, StateType};

/// Lifeguard's K: more confirmations of a suspicion change nothing.
pub(crate) const CONFIRMATIONS: usize = 3;

/// The core's settings. Checked by `config::check` before they get here.
#[derive(Clone, Debug)]
pub(crate) struct ProtocolConfig {
    pub(crate) node_id: NodeId,
    /// The cluster's name: part of every signed claim, and the key of every hash that orders nodes.
    pub(crate) cluster: String,
    /// Which life of the node this is: wall clock at start in ms, or more if a greater one is remembered.
    pub(crate) epoch: u64,
    /// Where peers reach this node.
    pub(crate) address: SocketAddr,
    pub(crate) zone: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) gossip_interval: Duration,
    pub(crate) gossip_fanout: usize,
    pub(crate) push_pull_interval: Duration,
    /// The most records in one batch.
    pub(crate) max_batch_size: usize,
    /// SWIM's protocol period.
    pub(crate) ping_interval: Duration,
    pub(crate) ping_timeout: Duration,
    pub(crate) ping_req_count: usize,
    pub(crate) suspicion_mult: u32,
    /// The shortest suspicion, instead of what follows from `suspicion_mult`. None, but in experiments.
    pub(crate) suspicion: Option<Duration>,
    /// How many accusers besides the first shorten a suspicion as far as it goes.
    pub(crate) confirmations: usize,
    pub(crate) dead_node_reclaim: Duration,
    pub(crate) tombstone_ttl: Duration,
    /// Up to so many connections every peer is dialled ahead of need; beyond it on demand only.
    pub(crate) max_connections: usize,
    /// Types this node neither publishes nor keeps.
    pub(crate) disabled: BTreeSet<StateType>,
    /// Of which types records are signed, and taken only signed.
    pub(crate) signed: Signed,
    /// Rules that are switched off, to measure what each is worth. None, but in experiments.
    pub(crate) without: BTreeSet<Rule>,
}

/// What stands on top of SWIM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// A node that misses what it should have seen waits longer (Lifeguard).
    LhaProbe,
    /// A suspicion begins long and shrinks with independent confirmations (Lifeguard).
    LhaSuspicion,
    /// A suspect is told first, on the ping itself (Lifeguard).
    Buddy,
    /// A probe without any sign of life is void, the direct time-out follows the path, and a late wake-up
    /// voids what ran.
    VoidProbes,
    /// A suspecter asks others to look at once.
    Solicit,
    /// All nodes probe by one order, so that each is probed once a period.
    SharedSchedule,
    /// Nobody is convicted who was not found silent by this node itself, while others answered.
    VerifyFirst,
}

impl ProtocolConfig {
    /// The defaults of the public configuration, for simulated nodes.
    #[cfg(any(test, feature = "sim", feature = "fuzzing"))]
    pub(crate) fn of_defaults(name: &str, epoch: u64) -> Self {
        Self {
            node_id: NodeId::new(name).expect("a valid name"),
            cluster: "edge".into(),
            epoch,
            address: ([10, 0, 0, 1], 7946).into(),
            zone: None,
            tags: BTreeMap::new(),
            gossip_interval: Duration::from_millis(200),
            gossip_fanout: 2,
            push_pull_interval: Duration::from_secs(10),
            max_batch_size: 100,
            ping_interval: Duration::from_secs(1),
            ping_timeout: Duration::from_millis(500),
            ping_req_count: 3,
            suspicion_mult: 3,
            suspicion: None,
            confirmations: CONFIRMATIONS,
            dead_node_reclaim: Duration::from_secs(86_400),
            tombstone_ttl: Duration::from_secs(86_400),
            max_connections: 512,
            disabled: BTreeSet::new(),
            signed: Signed::None,
            without: BTreeSet::new(),
        }
    }

    /// The same node when it is to find a crash in about a second: the numbers behind `fast-detection`. They
    /// were found by the experiment `corroboration`.
    pub(crate) fn detecting_fast(self) -> Self {
        Self {
            ping_interval: Duration::from_millis(200),
            ping_timeout: Duration::from_millis(100),
            suspicion_mult: 1,
            ..self
        }
    }

    /// Whether a rule is in force.
    pub(crate) fn has(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }
}
