//! Tracked connections: each is carried by one node, known to the others, and passed on when that node dies.
//!
//! `flow` what a flow is and how it travels · `heart` who carries it · `shards` where it is kept

mod flow;
mod heart;
mod shards;

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

#[cfg(test)]
pub(crate) use self::flow::Claim;
pub use self::flow::{Flow, FlowKey, FlowProtocol};
pub(crate) use self::heart::Flows;
use self::shards::SHARDS;
use super::{
    Change, ChangeStream, check,
    table::{Heart as _, Table},
};
use crate::{
    Cluster, Error, NodeId, Subscription,
    driver::{Subscribers, Told, clock},
};

/// How a [`Conntrack`] shares flows.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use phalanx::lb::{Conntrack, ConntrackRules};
/// # fn example(cluster: &phalanx::Cluster) -> Result<(), phalanx::Error> {
/// let mut rules = ConntrackRules::default();
/// rules.ttl = Duration::from_secs(300); // clients may be silent for so long
/// rules.max_per_source = 1_000_000;
/// let flows = Conntrack::attach_with(cluster, rules)?;
/// # Ok(())
/// # }
/// # example(&phalanx::Cluster::new(phalanx::Config::default())?)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConntrackRules {
    /// A flow that no packet was seen of for so long has ended, at the node that carries it and, without a
    /// word, at every other. Shorter than clients stay silent loses flows; longer keeps dead ones. Default:
    /// 60 s.
    pub ttl: Duration,
    /// Flows younger than that are not shared, so that short ones cost the others nothing. What was not
    /// shared is lost with its node. Default: 1 s.
    pub min_age: Duration,
    /// A flow with so many packets is shared whatever its age. Default: 8.
    pub min_packets: u64,
    /// How many flows of one other node this node's table knows at most; further ones are left out and counted.
    /// Their records are kept and passed on all the same: this bounds the table, not the store. Default: 262,144.
    pub max_per_source: usize,
}

impl Default for ConntrackRules {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(60),
            min_age: Duration::from_secs(1),
            min_packets: 8,
            max_per_source: 262_144,
        }
    }
}

impl ConntrackRules {
    fn check(self) -> Result<(), Error> {
        check::period("the time to live", self.ttl)?;
        check::count("max-per-source", self.max_per_source)
    }
}

/// What is known of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FlowView {
    /// The flow: at the node that carries it as it is, at others as it was told last.
    pub flow: Flow,
    /// Who carries it.
    pub owner: NodeId,
    /// How often it has passed from one node to another.
    pub generation: u32,
    /// This node carries it.
    pub is_own: bool,
    /// Its owner does not live, and nobody has taken it over yet.
    pub is_orphaned: bool,
}

/// Figures of a [`Conntrack`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ConntrackStats {
    /// Flows that this node carries.
    pub own: usize,
    /// Flows that others carry.
    pub shadows: usize,
    /// Claims this node wrote or removed.
    pub written: u64,
    /// Flows this node took over from dead nodes.
    pub promoted: u64,
    /// Flows this node left to another that had taken them over.
    pub yielded: u64,
    /// Claims left out since their node has more than [`ConntrackRules::max_per_source`].
    pub over_cap: u64,
    /// Values that could not be read.
    pub unreadable: u64,
}

/// Flows that this node carries from now on.
#[derive(Clone)]
enum Promoted {
    Flows(Arc<[(FlowKey, Flow)]>),
    Lagged(u64),
}

impl Told for Promoted {
    fn lagged(missed: u64) -> Self {
        Self::Lagged(missed)
    }
}

/// Shared connection tracking: a flow survives the balancer that carries it.
///
/// The node that inserts a flow carries it. Once the flow is worth it, by age or packets, the others know it
/// as a shadow with a time to live, written again while packets come. When the owner is confirmed dead or
/// leaves, each of its flows passes to exactly one survivor, chosen by rendezvous hashing over the live nodes,
/// which is told by [`on_promote`](Self::on_promote). Two that took a flow over at the same time, since they
/// saw different members, end as one; an owner that comes back does not take back what has passed on.
///
/// Flows travel behind all other state, at about 75 bytes each over IPv4. A cheap handle; the table is
/// detached when the last clone is dropped.
///
/// # Examples
/// ```
/// use phalanx::lb::{Conntrack, Flow, FlowKey};
/// # fn example(cluster: &phalanx::Cluster) -> Result<(), Box<dyn std::error::Error>> {
/// let flows = Conntrack::attach(cluster)?;
/// let key = FlowKey::tcp("198.51.100.9:40000".parse()?, "203.0.113.1:443".parse()?);
/// flows.insert(key, Flow::new(Some("10.0.0.7:8080".parse()?)));
/// flows.seen(&key, 3, 1_800); // three packets more
/// let view = flows.lookup(&key).expect("it was inserted");
/// assert_eq!((view.flow.packets, view.is_own), (3, true));
/// flows.remove(&key);
/// # Ok(())
/// # }
/// # example(&phalanx::Cluster::new(phalanx::Config::default())?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Conntrack(Arc<Inner>);

struct Inner {
    table: Table<Flows>,
    promoted: Arc<Subscribers<Promoted>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.promoted.close();
    }
}

impl fmt::Debug for Conntrack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.stats();
        f.debug_struct("Conntrack").field("own", &stats.own).field("shadows", &stats.shadows).finish()
    }
}

impl Conntrack {
    /// Attaches a table with the default rules.
    ///
    /// # Errors
    /// [`Error::TableAttached`] if the cluster has one; [`Error::NoThread`].
    pub fn attach(cluster: &Cluster) -> Result<Self, Error> {
        Self::attach_with(cluster, ConntrackRules::default())
    }

    /// Attaches a table with rules of its own. All nodes of a cluster should have the same.
    ///
    /// # Errors
    /// [`Error::InvalidReport`] if a rule makes no sense; those of [`attach`](Self::attach).
    pub fn attach_with(cluster: &Cluster, rules: ConntrackRules) -> Result<Self, Error> {
        rules.check()?;
        let promoted = Arc::new(Subscribers::default());
        let told = Arc::clone(&promoted);
        let sink = Box::new(move |flows: Vec<_>| told.publish(Promoted::Flows(flows.into())));
        let heart = Flows::new(rules, cluster.node_id(), sink).salted(clock::entropy());
        Ok(Self(Arc::new(Inner { table: Table::attach(cluster, heart)?, promoted })))
    }

    /// This node carries a flow from now on. Whether it did not before: then the flow is new, or taken from
    /// the node that carried it; else what is known of it is replaced.
    #[expect(clippy::must_use_candidate, reason = "most callers know that it is new")]
    pub fn insert(&self, key: FlowKey, flow: Flow) -> bool {
        self.0.table.act(|heart, now, changes| heart.insert(key.plain(), flow, now, changes))
    }

    /// Replaces what is known of a flow that this node carries, as after packets; `false`, and nothing
    /// happens, if it does not carry it.
    #[expect(clippy::must_use_candidate, reason = "a flow that has passed on needs no update")]
    pub fn update(&self, key: &FlowKey, flow: Flow) -> bool {
        let take = |held: &mut Flow| held.replace(flow);
        self.0.table.act(|heart, now, changes| heart.update(&key.plain(), now, changes, take))
    }

    /// Counts packets of a flow that this node carries, seen now; `false`, and nothing happens, if it does not
    /// carry it.
    #[expect(clippy::must_use_candidate, reason = "a flow that has passed on needs no update")]
    pub fn seen(&self, key: &FlowKey, packets: u64, bytes: u64) -> bool {
        let count = |flow: &mut Flow| {
            flow.packets = flow.packets.saturating_add(packets);
            flow.bytes = flow.bytes.saturating_add(bytes);
            flow.last_seen = clock::wall_now();
        };
        self.0.table.act(|heart, now, changes| heart.update(&key.plain(), now, changes, count))
    }

    /// A flow that this node carries has ended; `false`, and nothing happens, if it does not carry it.
    #[expect(clippy::must_use_candidate, reason = "a flow that has passed on ends elsewhere")]
    pub fn remove(&self, key: &FlowKey) -> bool {
        self.0.table.act(|heart, now, changes| heart.remove(&key.plain(), now, changes))
    }

    /// A flow, whoever carries it.
    #[must_use]
    pub fn lookup(&self, key: &FlowKey) -> Option<FlowView> {
        self.0.table.look(|heart| heart.view(&key.plain()))
    }

    /// Every flow that is known, in order of its key: a copy, for people and tests. Read in parts, between which
    /// flows may come and go.
    #[must_use]
    pub fn all(&self) -> Vec<(FlowKey, FlowView)> {
        let views = |place| self.0.table.look(|heart| heart.views(place));
        let mut all: Vec<_> = (0..SHARDS).flat_map(views).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all
    }

    /// Has `callback` called with every flow that this node takes over from a dead one, on a thread of its
    /// own. One so slow that a million wait misses some, which is logged; [`all`](Self::all) has them.
    ///
    /// # Examples
    /// ```
    /// # fn example(flows: &phalanx::lb::Conntrack) {
    /// flows.on_promote(|key, flow| {
    ///     println!("{key} is ours now; it goes on to {:?}", flow.nat); // program the data path
    /// });
    /// # }
    /// ```
    pub fn on_promote(&self, callback: impl Fn(&FlowKey, &Flow) + Send + Sync + 'static) -> Subscription {
        self.0.promoted.subscribe(Box::new(move |promoted| match promoted {
            Promoted::Flows(flows) => flows.iter().for_each(|(key, flow)| callback(key, flow)),
            Promoted::Lagged(missed) => {
                tracing::warn!(
                    missed,
                    "a callback for promoted flows is too slow; so many batches were left out"
                );
            }
        }))
    }

    /// Has `callback` called with every change of a flow, in order, on a thread of its own; keyed by the
    /// flow's text. Costs every packet that is counted, so it is for low rates and for looking.
    pub fn on_change(&self, callback: impl Fn(&Change<FlowView>) + Send + Sync + 'static) -> Subscription {
        self.0.table.subscribe(callback)
    }

    /// The same changes as a stream, from now on.
    pub fn changes(&self) -> ChangeStream<FlowView> {
        self.0.table.changes()
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> ConntrackStats {
        self.0.table.look(|heart| {
            let counts = heart.counts;
            ConntrackStats {
                own: counts.own,
                shadows: heart.len().saturating_sub(counts.own),
                written: counts.written,
                promoted: counts.promoted,
                yielded: counts.yielded,
                over_cap: counts.over_cap,
                unreadable: heart.unreadable(),
            }
        })
    }
}
