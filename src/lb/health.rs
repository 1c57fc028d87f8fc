//! Whether targets are up: what each node observed, and what the live nodes' observations amount to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{
    Change, ChangeStream, check,
    live::Live,
    opinions::{Opinions, Rules},
    registers::Register,
    table::{Heart, Table},
};
use crate::{
    Cluster, Error, NodeId, StateType, Subscription,
    driver::{clock, guarded},
};

/// Whether a target is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HealthStatus {
    /// It answers as it should.
    Healthy,
    /// It does not.
    Unhealthy,
    /// Nobody can say: not checked yet, or what is said is of a later version of this library.
    #[default]
    #[serde(other)]
    Unknown,
}

/// How a target was observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CheckKind {
    /// By a probe of its own.
    #[default]
    Active,
    /// By the traffic that passed.
    Passive,
    /// In a way that a later version of this library knows.
    #[serde(other)]
    Other,
}

/// What a node has observed of a target.
///
/// # Examples
/// ```
/// use phalanx::lb::{Health, HealthStatus};
/// let mut health = Health::unhealthy("connection refused");
/// health.consecutive_failures = 3;
/// assert_eq!(health.status, HealthStatus::Unhealthy);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Health {
    /// What the observer makes of it.
    pub status: HealthStatus,
    /// How it was observed.
    #[serde(default)]
    pub check: CheckKind,
    /// Checks passed in a row.
    #[serde(default)]
    pub consecutive_successes: u32,
    /// Checks failed in a row.
    #[serde(default)]
    pub consecutive_failures: u32,
    /// When it was checked last, by the observer's wall clock; for people, no rule uses it.
    #[serde(default = "long_ago", with = "super::unix_ms")]
    pub last_check: SystemTime,
    /// Why, in words; 1,024 bytes at most.
    #[serde(default)]
    pub reason: String,
}

const fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH
}

impl Health {
    /// An observation by an active check, made now.
    #[must_use]
    pub fn new(status: HealthStatus, reason: impl Into<String>) -> Self {
        Self {
            status,
            check: CheckKind::Active,
            consecutive_successes: u32::from(status == HealthStatus::Healthy),
            consecutive_failures: u32::from(status == HealthStatus::Unhealthy),
            last_check: clock::wall_now(),
            reason: reason.into(),
        }
    }

    /// One check was passed, now.
    #[must_use]
    pub fn healthy() -> Self {
        Self::new(HealthStatus::Healthy, "")
    }

    /// One check was failed, now.
    #[must_use]
    pub fn unhealthy(reason: impl Into<String>) -> Self {
        Self::new(HealthStatus::Unhealthy, reason)
    }
}

/// One node's word on a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Opinion {
    /// Who says it.
    pub node: NodeId,
    /// That node's zone.
    pub zone: Option<String>,
    /// The version under which it is said: the greater, the later (Lamport).
    pub version: u64,
    /// What it observed.
    pub health: Health,
}

/// What the live nodes' observations of a target amount to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthView {
    /// Whether to use the target: the verdict, unless the table fails open.
    pub status: HealthStatus,
    /// What the rule makes of the opinions.
    pub verdict: HealthStatus,
    /// More targets are unhealthy than [`HealthRules::unhealthy_max`] allows: the fault is then more likely
    /// with the checks than with the targets, and an unhealthy one counts as healthy.
    pub fails_open: bool,
    /// What each live node says, by name of the node.
    pub opinions: Vec<Opinion>,
    /// Why the verdict is what it is, in words.
    pub reason: String,
}

/// How opinions make a verdict. Opinions `Unknown` have no say in any of them; where all are, so is the
/// verdict.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum HealthRule {
    /// Unhealthy if any node says so.
    Any,
    /// Unhealthy if more than half of the nodes with an opinion say so. The default.
    #[default]
    Majority,
    /// Unhealthy if at least so many nodes say so.
    AtLeast(usize),
    /// Unhealthy if at least this share of the nodes with an opinion says so.
    Fraction(f64),
    /// What the node says that spoke last, by version and then by name.
    Latest,
    /// The program's own rule, given a target's name and opinions. It must depend on these alone, or nodes
    /// differ. One that panics leaves the verdict `Unknown`.
    Custom(Arc<CustomRule>),
}

/// A rule of the program's own: see [`HealthRule::Custom`].
pub type CustomRule = dyn Fn(&str, &[Opinion]) -> HealthStatus + Send + Sync;

impl fmt::Debug for HealthRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("Any"),
            Self::Majority => f.write_str("Majority"),
            Self::AtLeast(count) => write!(f, "AtLeast({count})"),
            Self::Fraction(share) => write!(f, "Fraction({share})"),
            Self::Latest => f.write_str("Latest"),
            Self::Custom(_) => f.write_str("Custom(..)"),
        }
    }
}

/// How a [`HealthTable`] judges. All nodes of a cluster should have the same.
///
/// # Examples
/// ```
/// use phalanx::lb::{HealthRule, HealthRules, HealthTable};
/// # fn example(cluster: &phalanx::Cluster) -> Result<(), phalanx::Error> {
/// let mut rules = HealthRules::default();
/// rules.rule = HealthRule::AtLeast(2); // one balancer with a fault of its own takes nothing out
/// rules.unhealthy_max = 0.5; // if more than half look down, the checks are doubted instead
/// let table = HealthTable::attach_with(cluster, rules)?;
/// # Ok(())
/// # }
/// # example(&phalanx::Cluster::new(phalanx::Config::default())?)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HealthRules {
    /// How opinions make a verdict. Default: [`HealthRule::Majority`].
    pub rule: HealthRule,
    /// Judge by the opinions of this node's own zone where there are any: what is down for one zone may be up
    /// for another. Default: false.
    pub per_zone: bool,
    /// The share of targets that may be unhealthy; beyond it, unhealthy ones count as healthy (Envoy's panic
    /// threshold). 1 never fails open. Default: 1.
    pub unhealthy_max: f64,
    /// How many nodes check a target, of the cluster or, if `per_zone`, of each zone: see
    /// [`HealthTable::assigned`]. Default: 2.
    pub checkers: usize,
}

impl Default for HealthRules {
    fn default() -> Self {
        Self { rule: HealthRule::default(), per_zone: false, unhealthy_max: 1.0, checkers: 2 }
    }
}

impl HealthRules {
    fn check(&self) -> Result<(), Error> {
        match self.rule {
            HealthRule::AtLeast(least) => check::count("the rule AtLeast", least)?,
            HealthRule::Fraction(share) => check::share("the rule Fraction", share)?,
            _ => {}
        }
        check::share("unhealthy-max", self.unhealthy_max)?;
        check::count("checkers", self.checkers)
    }
}

/// The rules with what they need to count.
pub(crate) struct Judge {
    rules: HealthRules,
    targets: usize,
    unhealthy: usize,
}

impl Judge {
    pub(crate) const fn new(rules: HealthRules) -> Self {
        Self { rules, targets: 0, unhealthy: 0 }
    }

    /// Whether so many targets are unhealthy that none is taken to be.
    fn fails_open(&self) -> bool {
        // Whole numbers on both sides that a float holds exactly: the same at every node.
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 targets")]
        let share = self.unhealthy as f64 / self.targets.max(1) as f64;
        share > self.rules.unhealthy_max
    }

    fn verdict(&self, target: &str, opinions: &[Opinion]) -> (HealthStatus, String) {
        let known: Vec<_> =
            opinions.iter().filter(|opinion| opinion.health.status != HealthStatus::Unknown).collect();
        let against: Vec<_> =
            known.iter().filter(|opinion| opinion.health.status == HealthStatus::Unhealthy).collect();
        if known.is_empty() {
            return (HealthStatus::Unknown, "nobody has an opinion".into());
        }
        let unhealthy = match &self.rules.rule {
            HealthRule::Any => !against.is_empty(),
            HealthRule::Majority => against.len() * 2 > known.len(),
            HealthRule::AtLeast(least) => against.len() >= *least,
            #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 nodes")]
            HealthRule::Fraction(share) => against.len() as f64 >= share * known.len() as f64,
            HealthRule::Latest => {
                let last = known.iter().max_by_key(|opinion| (opinion.version, &opinion.node));
                let status = last.map(|last| last.health.status).unwrap_or_default();
                let who = last.map(|last| format!("{} spoke last", last.node)).unwrap_or_default();
                return (status, who);
            }
            HealthRule::Custom(rule) => {
                let status = guarded("a health table's own rule", || rule(target, opinions));
                return (status.unwrap_or_default(), "by the program's own rule".into());
            }
        };
        let status = if unhealthy { HealthStatus::Unhealthy } else { HealthStatus::Healthy };
        let mut reason = format!("{} of {} say it is unhealthy", against.len(), known.len());
        if let Some(first) = against.iter().find(|opinion| !opinion.health.reason.is_empty()) {
            reason = format!("{reason}; {}: {}", first.node, first.health.reason);
        }
        (status, reason)
    }
}

impl Rules for Judge {
    type Value = Health;
    type View = HealthView;

    const TYPE: StateType = StateType::HEALTH;
    const URGENT: bool = false;

    fn view(&self, key: &str, said: &BTreeMap<NodeId, Register<Health>>, live: &Live) -> HealthView {
        let opinions: Vec<_> = said
            .iter()
            .filter(|(node, _)| live.has(node))
            .map(|(node, register)| Opinion {
                node: node.clone(),
                zone: live.zone_of(node).map(Into::into),
                version: register.version,
                health: register.value.clone(),
            })
            .collect();
        let local = |opinion: &&Opinion| opinion.zone.as_deref() == live.my_zone();
        let near: Vec<_> =
            if self.rules.per_zone { opinions.iter().filter(local).cloned().collect() } else { Vec::new() };
        let decisive = if near.is_empty() { &opinions } else { &near };
        let (verdict, reason) = self.verdict(key, decisive);
        HealthView { status: verdict, verdict, fails_open: false, opinions, reason }
    }

    fn count(&mut self, old: Option<&HealthView>, new: Option<&HealthView>) {
        let is_bad = |view: Option<&HealthView>| {
            usize::from(view.is_some_and(|view| view.verdict == HealthStatus::Unhealthy))
        };
        self.targets = self.targets + usize::from(new.is_some()) - usize::from(old.is_some());
        self.unhealthy = self.unhealthy + is_bad(new) - is_bad(old);
    }
}

impl Opinions<Judge> {
    /// What to make of a target now.
    pub(crate) fn status(&self, target: &str) -> HealthView {
        let Some(view) = Opinions::view(self, target) else {
            return HealthView { reason: "nobody has an opinion".into(), ..HealthView::default() };
        };
        opened(&self.rules, HealthView::clone(view))
    }
}

fn opened(judge: &Judge, view: HealthView) -> HealthView {
    if view.verdict != HealthStatus::Unhealthy || !judge.fails_open() {
        return view;
    }
    let Judge { unhealthy, targets, rules } = judge;
    let reason = format!(
        "{unhealthy} of {targets} targets are unhealthy, more than the share of {}: the checks are doubted; {}",
        rules.unhealthy_max, view.reason
    );
    HealthView { status: HealthStatus::Healthy, fails_open: true, reason, ..view }
}

/// Shared health: each node reports what it observed, and all see what the live nodes' observations amount to.
///
/// A node's report replaces its earlier one of the same target and stops counting when the node dies or
/// leaves. What counts is a function of the reports of live nodes, so nodes that hold the same see the same,
/// whatever the order in which it came. The table is filled from what the cluster holds when it is attached,
/// and no reader ever waits.
///
/// A cheap handle; the table is detached when the last clone is dropped. While the cluster does not run, or
/// with `sync-health = false`, it shows this node's own reports; they are shared as soon as it can.
///
/// # Examples
/// ```
/// use phalanx::lb::{Health, HealthStatus, HealthTable};
/// # fn example(cluster: &phalanx::Cluster) -> Result<(), phalanx::Error> {
/// let table = HealthTable::attach(cluster)?;
/// table.report("10.0.0.7:8080", Health::unhealthy("connection refused"))?;
/// let view = table.status("10.0.0.7:8080");
/// assert_eq!(view.status, HealthStatus::Unhealthy);
/// println!("{}", view.reason); // 1 of 1 say it is unhealthy; lb-1: connection refused
/// # Ok(())
/// # }
/// # example(&phalanx::Cluster::new(phalanx::Config::default())?)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone)]
pub struct HealthTable(Arc<Table<Opinions<Judge>>>);

impl fmt::Debug for HealthTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthTable").field("targets", &self.0.look(|heart| heart.rules.targets)).finish()
    }
}

impl HealthTable {
    /// Attaches a table with the default rules.
    ///
    /// # Errors
    /// [`Error::TableAttached`] if the cluster has one; [`Error::NoThread`].
    pub fn attach(cluster: &Cluster) -> Result<Self, Error> {
        Self::attach_with(cluster, HealthRules::default())
    }

    /// Attaches a table with rules of its own.
    ///
    /// # Errors
    /// [`Error::InvalidReport`] if a rule makes no sense; those of [`attach`](Self::attach).
    pub fn attach_with(cluster: &Cluster, rules: HealthRules) -> Result<Self, Error> {
        rules.check()?;
        let heart = Opinions::new(Judge::new(rules), cluster.node_id());
        Ok(Self(Arc::new(Table::attach(cluster, heart)?)))
    }

    /// Shares what this node has observed of a target, instead of what it said before.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] unless the target's name has 1 to 512 bytes; [`Error::InvalidReport`] if the
    /// reason has more than 1,024.
    pub fn report(&self, target: impl AsRef<str>, health: Health) -> Result<(), Error> {
        check::key(target.as_ref())?;
        check::text("the reason", &health.reason)?;
        self.0.act(|heart, _, changes| heart.report(target.as_ref(), health, None, changes));
        Ok(())
    }

    /// Takes this node's report of a target back, as when the target is taken out of service. Whether there
    /// was one.
    pub fn withdraw(&self, target: impl AsRef<str>) -> bool {
        self.0.act(|heart, _, changes| heart.withdraw(target.as_ref(), changes))
    }

    /// What the live nodes' reports of a target amount to; `Unknown` if there are none.
    #[must_use]
    pub fn status(&self, target: impl AsRef<str>) -> HealthView {
        self.0.look(|heart| heart.status(target.as_ref()))
    }

    /// Whether a target is not known to be unhealthy: for the path of requests, where the rest of the view is
    /// not wanted.
    #[must_use]
    pub fn is_usable(&self, target: impl AsRef<str>) -> bool {
        self.0.look(|heart| {
            let view = heart.view(target.as_ref());
            view.is_none_or(|view| view.verdict != HealthStatus::Unhealthy) || heart.rules.fails_open()
        })
    }

    /// What this node itself reports of a target.
    #[must_use]
    pub fn reported(&self, target: impl AsRef<str>) -> Option<Health> {
        self.0.look(|heart| heart.own(target.as_ref()).cloned())
    }

    /// Every target of which a live node says something.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, HealthView> {
        self.0.look(|heart| {
            let views = heart.views().into_iter();
            views.map(|(target, view)| (target, opened(&heart.rules, HealthView::clone(&view)))).collect()
        })
    }

    /// Whether this node is one of those that should check a target, so that n balancers do not all check
    /// everything: one of the first [`checkers`](HealthRules::checkers) by rendezvous hashing over the live
    /// nodes.
    #[must_use]
    pub fn assigned(&self, target: impl AsRef<str>) -> bool {
        self.0.look(|heart| heart.checkers(target.as_ref()).contains(&heart.live.me))
    }

    /// The nodes that should check a target.
    #[must_use]
    pub fn checkers(&self, target: impl AsRef<str>) -> BTreeSet<NodeId> {
        self.0.look(|heart| heart.checkers(target.as_ref()))
    }

    /// Has `callback` called with every change of a verdict or of what it rests on, in order, on a thread of
    /// its own. Whether the table fails open is not told: it concerns all targets at once, and
    /// [`status`](Self::status) says it.
    pub fn on_change(&self, callback: impl Fn(&Change<HealthView>) + Send + Sync + 'static) -> Subscription {
        self.0.subscribe(callback)
    }

    /// The same changes as a stream, from now on.
    pub fn changes(&self) -> ChangeStream<HealthView> {
        self.0.changes()
    }

    /// How many values of other nodes could not be read, and were left out.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.0.look(Heart::unreadable)
    }
}

impl Opinions<Judge> {
    fn checkers(&self, target: &str) -> BTreeSet<NodeId> {
        let HealthRules { per_zone, checkers, .. } = self.rules.rules;
        let target = target.as_bytes();
        if !per_zone {
            return self.live.chosen(target, checkers).into_iter().cloned().collect();
        }
        let zones: BTreeSet<_> = self.live.nodes.values().map(Option::as_deref).collect();
        zones.into_iter().flat_map(|zone| self.live.chosen_in(zone, target, checkers)).cloned().collect()
    }
}
