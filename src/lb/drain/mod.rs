//! Orders to drain a target: shared, so that they outlive the node through which they were given, and followed
//! by every node until none has a connection left.
//!
//! `heart` what is in force and how far it has come

mod heart;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_core::Stream as _;
use serde::{Deserialize, Serialize};

pub(crate) use self::heart::Drained;
#[cfg(test)]
pub(crate) use self::heart::{key_of, name_of};
use super::{
    Change, ChangeStream, check,
    table::{Heart, Table},
};
use crate::{Cluster, Error, NodeId, Options, StateType, Subscription, SyncableState, Value, driver::clock};

/// An order to drain a target.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use phalanx::lb::Drain;
/// let mut drain = Drain::new("web", "alice", "kernel update");
/// drain.deadline = Some(Duration::from_secs(3_600));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Drain {
    /// The proxy or service that the target belongs to.
    pub proxy_name: String,
    /// Who gave the order.
    #[serde(default)]
    pub who: String,
    /// Why, in words.
    #[serde(default)]
    pub why: String,
    /// How long the order stands, from when it was given; the target is active again after it. `None`: until
    /// it is cancelled.
    #[serde(default, rename = "deadline_ms", with = "super::ms_option")]
    pub deadline: Option<Duration>,
}

impl Drain {
    /// An order without a deadline.
    #[must_use]
    pub fn new(proxy_name: impl Into<String>, who: impl Into<String>, why: impl Into<String>) -> Self {
        Self { proxy_name: proxy_name.into(), who: who.into(), why: why.into(), deadline: None }
    }

    fn check(&self) -> Result<(), Error> {
        check::text("the proxy's name", &self.proxy_name)?;
        check::text("who orders it", &self.who)?;
        check::text("the reason", &self.why)?;
        self.deadline.map_or(Ok(()), |deadline| check::period("the deadline", deadline))
    }
}

/// Where a target stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DrainState {
    /// No order is in force: it takes new connections.
    #[default]
    Active,
    /// It takes no new connections, and some node still has open ones, or has not said that it has none.
    Draining,
    /// Every live node that serves it has said that it has none left.
    Drained,
}

/// An order in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Order {
    /// Its name: unlike any other's.
    pub id: String,
    /// The node through which it was given.
    pub given_through: NodeId,
    /// When, by that node's wall clock.
    pub given_at: SystemTime,
    /// What was ordered.
    pub drain: Drain,
}

/// How far a node has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeProgress {
    /// The node's zone.
    pub zone: Option<String>,
    /// The open connections it has left; `None` if it has said nothing yet.
    pub open: Option<u64>,
    /// It has none left, and takes no new ones.
    pub done: bool,
    /// It sends the target requests, so that it must be waited for.
    pub serves: bool,
}

/// A target's orders and what the live nodes have made of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DrainView {
    /// Where it stands.
    pub state: DrainState,
    /// The orders in force, the latest last. More than one only if they were given at the same time.
    pub orders: Vec<Order>,
    /// The open connections left, of all live nodes.
    pub open: u64,
    /// Who has not said that it is done.
    pub waiting_for: BTreeSet<NodeId>,
    /// How far each live node has come.
    pub nodes: BTreeMap<NodeId, NodeProgress>,
}

/// Shared drains: a target drained through any node is drained at every node.
///
/// An order stands until it is cancelled or its deadline has passed, also when the node that gave it dies. Of
/// orders and cancels given at the same time the order wins: a cancel ends only the orders that its giver has
/// seen. The target is drained once every live node has said so with [`complete`](Self::complete); one that is
/// suspected is waited for, one that is dead or has left is not. A node that never sends the target anything
/// says so with [`set_serving`](Self::set_serving), or keeps the drain waiting.
///
/// A cheap handle; the table is detached when the last clone is dropped.
///
/// # Examples
/// ```
/// use phalanx::lb::{Drain, DrainState, Drains};
/// # use phalanx::{Authority, Cluster, Config, NodeId};
/// # async fn example() -> Result<(), phalanx::Error> {
/// # let mut config = Config::default();
/// # config.enabled = true;
/// # config.bind_address = std::net::Ipv4Addr::LOCALHOST.into();
/// # config.bind_port = 0;
/// # config.identity = Some(Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?);
/// # let cluster = Cluster::new(config)?;
/// # cluster.start().await?;
/// let drains = Drains::attach(&cluster)?;
/// drains.start("backend-7", Drain::new("web", "alice", "kernel update"))?;
/// drains.progress("backend-7", 12)?; // twelve connections left here
/// assert_eq!(drains.status("backend-7").state, DrainState::Draining);
/// drains.complete("backend-7")?;
/// assert_eq!(drains.status("backend-7").state, DrainState::Drained);
/// drains.cancel("backend-7")?;
/// assert_eq!(drains.status("backend-7").state, DrainState::Active);
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example())?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone)]
pub struct Drains(Arc<Table<Drained>>);

impl fmt::Debug for Drains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets = self.0.look(|heart| heart.views().into_keys().collect::<Vec<_>>());
        f.debug_struct("Drains").field("targets", &targets).finish()
    }
}

impl Drains {
    /// Attaches a table.
    ///
    /// # Errors
    /// [`Error::TableAttached`] if the cluster has one; [`Error::NoThread`].
    pub fn attach(cluster: &Cluster) -> Result<Self, Error> {
        Ok(Self(Arc::new(Table::attach(cluster, Drained::new(cluster.node_id()))?)))
    }

    /// Orders a target to be drained, instead of what was ordered for it before; progress that was made
    /// stays. The order as the others will see it.
    ///
    /// # Errors
    /// [`Error::NotRunning`] and [`Error::TypeDisabled`]: an order that is not shared is none;
    /// [`Error::InvalidKey`] unless the target's name has 1 to 479 bytes; [`Error::InvalidReport`] if a text
    /// has more than 1,024 bytes or the deadline is not between 1 ms and 366 days.
    pub fn start(&self, target: impl AsRef<str>, drain: Drain) -> Result<Order, Error> {
        let target = target.as_ref();
        check::key_within(target, heart::TARGET_LEN_MAX)?;
        drain.check()?;
        let value = Value::encode(&drain)?;
        let options = Options { ttl: drain.deadline, urgent: true };
        let driver = self.0.driver().ok_or(Error::NotRunning)?;
        self.refuse_disabled()?;
        let id = heart::name_of((clock::entropy(), clock::entropy()));
        let (key, old) = (heart::key_of(target, &id), self.0.look(|heart| heart.keys(target)));
        let written = driver
            .command(|protocol, now| protocol.broadcast(&StateType::DRAIN, &key, value, options, now))
            .ok_or(Error::NotRunning)??;
        self.0.act(|heart, _, changes| heart.give(&written, changes));
        // Only now: at no moment is none in force, so that nobody begins to serve the target again.
        self.remove(&old)?;
        let SyncableState { source_node, timestamp, .. } = written;
        Ok(Order { id, given_through: source_node, given_at: timestamp, drain })
    }

    /// Cancels the orders for a target that this node has seen: it is active again. Whether there were any.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::TypeDisabled`].
    pub fn cancel(&self, target: impl AsRef<str>) -> Result<bool, Error> {
        self.refuse_disabled()?;
        let keys = self.0.look(|heart| heart.keys(target.as_ref()));
        self.remove(&keys)?;
        Ok(!keys.is_empty())
    }

    fn refuse_disabled(&self) -> Result<(), Error> {
        let driver = self.0.driver().ok_or(Error::NotRunning)?;
        match driver.switch_off(&StateType::DRAIN) {
            None => Ok(()),
            Some(key) => Err(Error::TypeDisabled { state_type: StateType::DRAIN.to_string(), key }),
        }
    }

    fn remove(&self, keys: &[String]) -> Result<(), Error> {
        let driver = self.0.driver().ok_or(Error::NotRunning)?;
        for key in keys {
            let removed = driver.command(|protocol, now| protocol.remove(&StateType::DRAIN, key, now));
            if removed.ok_or(Error::NotRunning)?.is_some() {
                self.0.act(|heart, _, changes| heart.take_back(key, changes));
            }
        }
        Ok(())
    }

    /// Tells how many connections to a target this node has left.
    ///
    /// # Errors
    /// [`Error::NotDraining`] if no order is in force.
    pub fn progress(&self, target: impl AsRef<str>, open: u64) -> Result<(), Error> {
        self.advance(target.as_ref(), open, false)
    }

    /// Tells that this node has no connection to a target left, and takes no new ones.
    ///
    /// Holds as long as the target stays ordered to drain without a break, also by another order.
    ///
    /// # Errors
    /// [`Error::NotDraining`] if no order is in force.
    pub fn complete(&self, target: impl AsRef<str>) -> Result<(), Error> {
        self.advance(target.as_ref(), 0, true)
    }

    fn advance(&self, target: &str, open: u64, done: bool) -> Result<(), Error> {
        let is_ordered = self.0.act(|heart, _, changes| heart.advance(target, open, done, changes));
        if is_ordered { Ok(()) } else { Err(Error::NotDraining { target: target.into() }) }
    }

    /// Tells whether this node sends a target requests at all; nodes do unless they say otherwise. May be
    /// said before there is an order.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] unless the target's name has 1 to 479 bytes.
    pub fn set_serving(&self, target: impl AsRef<str>, serves: bool) -> Result<(), Error> {
        check::key_within(target.as_ref(), heart::TARGET_LEN_MAX)?;
        self.0.act(|heart, _, changes| heart.set_apart(target.as_ref(), !serves, changes));
        Ok(())
    }

    /// Where a target stands, who ordered it and who is waited for.
    #[must_use]
    pub fn status(&self, target: impl AsRef<str>) -> DrainView {
        self.0
            .look(|heart| heart.view(target.as_ref()).map(|view| DrainView::clone(view)).unwrap_or_default())
    }

    /// Whether a target takes new connections: for the path of requests.
    #[must_use]
    pub fn is_active(&self, target: impl AsRef<str>) -> bool {
        self.0.look(|heart| heart.view(target.as_ref()).is_none())
    }

    /// Every target for which an order is in force.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, DrainView> {
        let views = self.0.look(Drained::views).into_iter();
        views.map(|(target, view)| (target, Arc::unwrap_or_clone(view))).collect()
    }

    /// Waits until a target is drained. An order that is only on its way here is waited for too. With a limit of
    /// zero it says whether the target is drained by now.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `limit`, with who is waited for; [`Error::NotDraining`] if the orders in force
    /// are cancelled or run out meanwhile; [`Error::NotRunning`], also as soon as the node is stopped
    /// meanwhile.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use phalanx::lb::{Drain, Drains};
    /// # use phalanx::{Authority, Cluster, Config, NodeId};
    /// # async fn example() -> Result<(), phalanx::Error> {
    /// # let mut config = Config::default();
    /// # config.enabled = true;
    /// # config.bind_address = std::net::Ipv4Addr::LOCALHOST.into();
    /// # config.bind_port = 0;
    /// # config.identity = Some(Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?);
    /// # let cluster = Cluster::new(config)?;
    /// # cluster.start().await?;
    /// let drains = Drains::attach(&cluster)?;
    /// drains.start("backend-7", Drain::new("web", "alice", "kernel update"))?;
    /// drains.complete("backend-7")?; // each node says so once its last connection has ended
    /// let view = drains.wait_drained("backend-7", Duration::from_secs(600)).await?;
    /// assert!(view.waiting_for.is_empty());
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub async fn wait_drained(&self, target: impl AsRef<str>, limit: Duration) -> Result<DrainView, Error> {
        let target = target.as_ref().to_owned();
        let mut changes = self.changes(); // before the first look, so that nothing falls between
        let driver = self.0.driver().ok_or(Error::NotRunning)?;
        let table = self.clone();
        let wanted = target.clone();
        let waiting = async move {
            let mut was_ordered = false;
            loop {
                let view = table.status(&wanted);
                match view.state {
                    DrainState::Drained => return Ok(view),
                    DrainState::Draining => was_ordered = true,
                    DrainState::Active if was_ordered => return Err(Error::NotDraining { target: wanted }),
                    DrainState::Active => {}
                }
                let next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut changes).poll_next(cx)).await;
                next.ok_or(Error::NotRunning)?;
            }
        };
        match driver.within(limit, waiting).await? {
            Some(drained) => drained,
            None => Err(self.too_late(&target, limit)),
        }
    }

    fn too_late(&self, target: &str, limit: Duration) -> Error {
        let view = self.status(target);
        let names: Vec<_> = view.waiting_for.iter().map(NodeId::as_str).collect();
        let remedy = match view.state {
            DrainState::Active => "no order is in force; start one".into(),
            _ => format!("{} connections are open; waiting for {}", view.open, names.join(", ")),
        };
        Error::Timeout { what: format!("draining {target:?}"), limit, remedy }
    }

    /// Has `callback` called with every change of a target's view, in order, on a thread of its own.
    pub fn on_change(&self, callback: impl Fn(&Change<DrainView>) + Send + Sync + 'static) -> Subscription {
        self.0.subscribe(callback)
    }

    /// The same changes as a stream, from now on.
    pub fn changes(&self) -> ChangeStream<DrainView> {
        self.0.changes()
    }

    /// How many values of other nodes could not be read, and were left out.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.0.look(Heart::unreadable)
    }
}
