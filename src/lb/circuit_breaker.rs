//! Circuit breakers that share what each balancer has seen: one that opens for a target is seen open by all,
//! as far as the rule wants it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Change, ChangeStream, check,
    live::Live,
    opinions::{Opinions, Rules},
    registers::Register,
    table::{Heart, Table},
};
use crate::{Cluster, Error, NodeId, StateType, Subscription};

/// Whether requests pass. The order is that of severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CircuitState {
    /// Requests pass.
    #[default]
    Closed,
    /// A few requests pass, to see whether the target has recovered.
    HalfOpen,
    /// No requests pass.
    Open,
}

/// What a node says of its own breaker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Breaker {
    /// Where it stands.
    pub state: CircuitState,
    /// The share of requests that failed when it opened: 0 to 1.
    #[serde(default, deserialize_with = "a_rate")]
    pub error_rate: f64,
    /// How long it stays open, from when it opened; zero unless it is.
    #[serde(default, rename = "period_ms", with = "super::ms")]
    pub period: Duration,
}

/// A peer may send any number; one that is no rate makes the value unreadable.
fn a_rate<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let rate = f64::deserialize(deserializer)?;
    check::rate("the error rate", rate).map(|()| rate).map_err(serde::de::Error::custom)
}

/// One node's breaker for a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BreakerOpinion {
    /// Whose it is.
    pub node: NodeId,
    /// That node's zone.
    pub zone: Option<String>,
    /// Where it stands.
    pub breaker: Breaker,
}

/// What the live nodes' breakers for a target amount to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CircuitView {
    /// Whether requests pass.
    pub state: CircuitState,
    /// The highest error rate among the breakers that are open.
    pub error_rate: f64,
    /// What each live node says that has a breaker, by name of the node.
    pub opinions: Vec<BreakerOpinion>,
    /// While the state is `HalfOpen`: the node of each zone that may send requests, to see whether the target
    /// has recovered.
    pub probers: Vec<NodeId>,
}

/// How breakers make one state. All nodes of a cluster should have the same rule.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use phalanx::lb::{CircuitBreakers, CircuitRule, CircuitState};
/// # fn example(cluster: &phalanx::Cluster) -> Result<(), phalanx::Error> {
/// let breakers = CircuitBreakers::attach_with(cluster, CircuitRule::AtLeast(2))?;
/// breakers.open("backend-7", 0.6, Duration::from_secs(30))?;
/// assert_eq!(breakers.state("backend-7"), CircuitState::Closed); // this node is alone with its opinion
/// # Ok(())
/// # }
/// # example(&phalanx::Cluster::new(phalanx::Config::default())?)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum CircuitRule {
    /// The most severe among live nodes: open beats half-open beats closed. The default.
    #[default]
    MostSevere,
    /// Open if at least so many nodes say so; half-open if at least so many say that or open. One balancer
    /// with a fault of its own does not open a circuit for all under `AtLeast(2)`.
    AtLeast(usize),
    /// The same for a share of the live nodes.
    Fraction(f64),
}

impl CircuitRule {
    fn check(self) -> Result<(), Error> {
        match self {
            Self::MostSevere => Ok(()),
            Self::AtLeast(least) => check::count("the rule AtLeast", least),
            Self::Fraction(share) => check::share("the rule Fraction", share),
        }
    }

    /// The state of which so many say that it is at least that.
    fn state(self, breakers: &[BreakerOpinion], nodes: usize) -> CircuitState {
        let enough = |state| {
            let count = breakers.iter().filter(|opinion| opinion.breaker.state >= state).count();
            match self {
                Self::MostSevere => count >= 1,
                Self::AtLeast(least) => count >= least,
                #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 nodes")]
                Self::Fraction(share) => count >= 1 && count as f64 >= share * nodes as f64,
            }
        };
        [CircuitState::Open, CircuitState::HalfOpen]
            .into_iter()
            .find(|state| enough(*state))
            .unwrap_or_default()
    }
}

/// The rule as a table of opinions wants it.
pub(crate) struct Circuits(pub(crate) CircuitRule);

impl Rules for Circuits {
    type Value = Breaker;
    type View = CircuitView;

    const TYPE: StateType = StateType::CIRCUIT_BREAKER;
    const URGENT: bool = true;

    fn view(&self, key: &str, said: &BTreeMap<NodeId, Register<Breaker>>, live: &Live) -> CircuitView {
        let opinions: Vec<_> = said
            .iter()
            .filter(|(node, _)| live.has(node))
            .map(|(node, register)| BreakerOpinion {
                node: node.clone(),
                zone: live.zone_of(node).map(Into::into),
                breaker: register.value.clone(),
            })
            .collect();
        let state = self.0.state(&opinions, live.nodes.len());
        let open = opinions.iter().filter(|opinion| opinion.breaker.state == CircuitState::Open);
        let error_rate = open.map(|opinion| opinion.breaker.error_rate).fold(0.0, f64::max);
        let probers = match state {
            CircuitState::HalfOpen => live.chosen_by_zone(key.as_bytes()).into_iter().cloned().collect(),
            CircuitState::Closed | CircuitState::Open => Vec::new(),
        };
        CircuitView { state, error_rate, opinions, probers }
    }
}

/// Shared circuit breakers: what one balancer has learnt about a target, all act upon.
///
/// Each node has a breaker of its own for a target; the state that counts is by default the most severe among
/// the live nodes'. An opened one travels ahead of all other state and closes by itself when its period is
/// over, everywhere, also if the node that opened it cannot say so any more; one of a node that dies or leaves
/// stops counting.
///
/// A cheap handle; the table is detached when the last clone is dropped. While the cluster does not run, or
/// with `sync-circuit-breaker = false`, it shows this node's own breakers.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use phalanx::lb::{CircuitBreakers, CircuitState};
/// # fn example(cluster: &phalanx::Cluster) -> Result<(), phalanx::Error> {
/// let breakers = CircuitBreakers::attach(cluster)?;
/// breakers.open("backend-7", 0.6, Duration::from_secs(30))?;
/// assert_eq!(breakers.state("backend-7"), CircuitState::Open);
/// breakers.half_open("backend-7")?;
/// assert!(breakers.may_pass("backend-7")); // alone in its zone, this node is the one that tries
/// breakers.close("backend-7");
/// assert_eq!(breakers.state("backend-7"), CircuitState::Closed);
/// # Ok(())
/// # }
/// # example(&phalanx::Cluster::new(phalanx::Config::default())?)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone)]
pub struct CircuitBreakers(Arc<Table<Opinions<Circuits>>>);

impl fmt::Debug for CircuitBreakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakers").field("breakers", &self.0.look(Opinions::len)).finish()
    }
}

impl CircuitBreakers {
    /// Attaches a table with the default rule.
    ///
    /// # Errors
    /// [`Error::TableAttached`] if the cluster has one; [`Error::NoThread`].
    pub fn attach(cluster: &Cluster) -> Result<Self, Error> {
        Self::attach_with(cluster, CircuitRule::default())
    }

    /// Attaches a table with a rule of its own. All nodes of a cluster should have the same.
    ///
    /// # Errors
    /// [`Error::InvalidReport`] if the rule makes no sense; those of [`attach`](Self::attach).
    pub fn attach_with(cluster: &Cluster, rule: CircuitRule) -> Result<Self, Error> {
        rule.check()?;
        Ok(Self(Arc::new(Table::attach(cluster, Opinions::new(Circuits(rule), cluster.node_id()))?)))
    }

    /// Opens this node's breaker for a target, for `period`; after it the breaker is closed unless it was
    /// opened again meanwhile.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] unless the target's name has 1 to 512 bytes; [`Error::InvalidReport`] unless the
    /// rate is from 0 to 1, and neither NaN nor -0, and the period from 1 ms to 366 days.
    pub fn open(&self, target: impl AsRef<str>, error_rate: f64, period: Duration) -> Result<(), Error> {
        check::rate("the error rate", error_rate)?;
        check::period("the period", period)?;
        self.say(target.as_ref(), Breaker { state: CircuitState::Open, error_rate, period })
    }

    /// Half-opens this node's breaker for a target: time to see whether it has recovered. Stays so until it
    /// is opened or closed.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] unless the target's name has 1 to 512 bytes.
    pub fn half_open(&self, target: impl AsRef<str>) -> Result<(), Error> {
        let period = Duration::ZERO;
        self.say(target.as_ref(), Breaker { state: CircuitState::HalfOpen, error_rate: 0.0, period })
    }

    fn say(&self, target: &str, breaker: Breaker) -> Result<(), Error> {
        check::key(target)?;
        self.0.act(|heart, now, changes| {
            let ends = (breaker.state == CircuitState::Open).then(|| now + breaker.period);
            heart.report(target, breaker, ends, changes);
        });
        Ok(())
    }

    /// Closes this node's breaker for a target. Whether it was open or half-open.
    pub fn close(&self, target: impl AsRef<str>) -> bool {
        // A closed breaker has nothing to say: what is not there takes no room.
        self.0.act(|heart, _, changes| heart.withdraw(target.as_ref(), changes))
    }

    /// Whether requests to a target pass.
    #[must_use]
    pub fn state(&self, target: impl AsRef<str>) -> CircuitState {
        self.0.look(|heart| heart.view(target.as_ref()).map(|view| view.state).unwrap_or_default())
    }

    /// What the live nodes' breakers for a target amount to, and who says what.
    #[must_use]
    pub fn view(&self, target: impl AsRef<str>) -> CircuitView {
        self.0.look(|heart| {
            heart.view(target.as_ref()).map(|view| CircuitView::clone(view)).unwrap_or_default()
        })
    }

    /// Whether this node may send requests to a target: if the circuit is closed, or if it is half-open and
    /// this node is the one of its zone that tries.
    #[must_use]
    pub fn may_pass(&self, target: impl AsRef<str>) -> bool {
        self.0.look(|heart| {
            heart.view(target.as_ref()).is_none_or(|view| match view.state {
                CircuitState::Closed => true,
                CircuitState::HalfOpen => view.probers.contains(&heart.live.me),
                CircuitState::Open => false,
            })
        })
    }

    /// Where this node's own breaker for a target stands; `None` if it is closed.
    #[must_use]
    pub fn own(&self, target: impl AsRef<str>) -> Option<Breaker> {
        self.0.look(|heart| heart.own(target.as_ref()).cloned())
    }

    /// Every target for which a live node's breaker is not closed.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, CircuitView> {
        let views = self.0.look(Opinions::views).into_iter();
        views.map(|(target, view)| (target, Arc::unwrap_or_clone(view))).collect()
    }

    /// Has `callback` called with every change of a target's view, in order, on a thread of its own.
    pub fn on_change(&self, callback: impl Fn(&Change<CircuitView>) + Send + Sync + 'static) -> Subscription {
        self.0.subscribe(callback)
    }

    /// The same changes as a stream, from now on.
    pub fn changes(&self) -> ChangeStream<CircuitView> {
        self.0.changes()
    }

    /// How many values of other nodes could not be read, and were left out.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.0.look(Heart::unreadable)
    }
}
