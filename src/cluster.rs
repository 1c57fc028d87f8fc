//! `Cluster`: what programs hold. Checks arguments, hands over to the driver, reads what the core knows. No
//! rule and no thread of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use crate::{
    ClusterEvent, Config, ConfigFault, Error, EventStream, Explanation, GossipStats, Identity,
    MembershipStats, NodeId, NodeInfo, NodeStatus, Options, Spread, Started, StateProvider, StateStream,
    StateType, Stats, Status, Subscription, SyncableState, Synced, Value,
    config::Seed,
    driver::{Core, Driver, FEED_LEN_MAX},
    wire::limits,
};

/// A node of a cluster: a cheap handle, to be cloned into every part of a program.
///
/// All methods take `&self`, may be called from any thread and, but for [`start`](Self::start), with or
/// without a runtime; those that are not `async` answer at once. None of them panics.
///
/// Dropping the last handle without [`stop`](Self::stop) closes the socket and is a crash to the peers. A
/// callback or provider that holds a clone keeps the node alive.
#[derive(Clone)]
pub struct Cluster(Arc<Handle>);

/// The last of these ends the node.
struct Handle(Arc<Driver>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("node_id", &self.node_id())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// From start to stop.
impl Cluster {
    /// Makes a node that does not run yet. Reads the certificate files if `tls` names them; no other I/O.
    ///
    /// # Errors
    /// [`Error::Config`] with every fault of the configuration and of the certificate files.
    ///
    /// # Examples
    /// ```
    /// let mut config = phalanx::Config::default();
    /// config.ping_interval = std::time::Duration::ZERO;
    /// config.gossip_fanout = 0;
    /// let error = phalanx::Cluster::new(config).unwrap_err().to_string();
    /// assert!(error.contains("ping-interval-ms") && error.contains("gossip-fanout"));
    /// ```
    pub fn new(config: Config) -> Result<Self, Error> {
        Ok(Self(Arc::new(Handle(Driver::new(config)?))))
    }

    pub(crate) fn driver(&self) -> &Arc<Driver> {
        &self.0.0
    }

    /// Opens the socket, joins through the seeds, and returns as soon as the node serves: once a seed has let
    /// it in, or all have failed, or after 2 s. A seed that does not answer is tried again in the background,
    /// for ever.
    ///
    /// `None` if `enabled` is false, or if the cluster runs or starts already. After a [`stop`](Self::stop)
    /// it may be called again: subscriptions, providers and tags are the same, state comes back from the
    /// peers. Dropping the future takes everything back.
    ///
    /// # Errors
    /// [`Error::NoRuntime`] outside a tokio runtime with I/O and time; [`Error::Bind`] if the socket cannot
    /// be opened; [`Error::Identity`] if the certificate is not valid now; [`Error::DuplicateNodeId`] if a
    /// seed knows a live process of this id; [`Error::StoppedWhileStarting`]. After each of them the cluster
    /// is stopped.
    pub async fn start(&self) -> Result<Option<Started>, Error> {
        self.driver().start().await
    }

    /// Spreads the leave, flushes what was broadcast, and closes every connection; at most about 4 s.
    ///
    /// Idempotent: any number of calls, at once or one after the other, end when the node has stopped. Goes
    /// on by itself if the future is dropped. May be called on any runtime, or on none.
    ///
    /// # Errors
    /// None today.
    pub async fn stop(&self) -> Result<(), Error> {
        self.driver().stop().await;
        Ok(())
    }

    /// Whether the node serves: after `start` returned, until `stop` is called.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status() == Status::Running
    }

    /// Where the cluster stands between start and stop.
    #[must_use]
    pub fn status(&self) -> Status {
        self.driver().status()
    }

    /// Contacts more seeds now, once: `ip:port`, `[ipv6]:port` or `host:port`. How many answered; why the
    /// others did not is logged.
    ///
    /// # Errors
    /// [`Error::Config`] names every address that is none; [`Error::NotRunning`].
    pub async fn join(&self, addresses: &[String]) -> Result<usize, Error> {
        let mut faults = Vec::new();
        let mut seeds = Vec::new();
        for address in addresses {
            match Seed::parse(address) {
                Ok(seed) => seeds.push(seed),
                Err((fault, remedy)) => {
                    let value = format!("{:?}", address.chars().take(120).collect::<String>());
                    faults.push(ConfigFault { key: "address".into(), value, fault, remedy });
                }
            }
        }
        if !faults.is_empty() {
            return Err(Error::Config { faults });
        }
        self.driver().join(seeds).await
    }

    /// The readiness gate: returns once this node's state covers what at least two peers (one, in a cluster
    /// of two) held when it joined. Returns at once if that is so already, and for the first node of a
    /// cluster: one that has neither seeds nor peers.
    ///
    /// A load balancer takes its address only then. With a limit of zero it says whether that is so by now.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `limit`; [`Error::NotRunning`], also as soon as the node is stopped meanwhile.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// # use phalanx::{Authority, Cluster, Config, NodeId};
    /// # async fn example() -> Result<(), phalanx::Error> {
    /// # let mut config = Config::default();
    /// # config.enabled = true;
    /// # config.bind_address = std::net::Ipv4Addr::LOCALHOST.into();
    /// # config.bind_port = 0;
    /// # config.identity = Some(Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?);
    /// # let cluster = Cluster::new(config)?;
    /// # cluster.start().await?;
    /// let synced = cluster.wait_synced(Duration::from_secs(10)).await?;
    /// assert_eq!(synced.peers, 0); // the first of a cluster has nobody to wait for
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub async fn wait_synced(&self, limit: Duration) -> Result<Synced, Error> {
        self.driver().wait_synced(limit).await
    }

    /// Takes over a new certificate, trust roots or revocations without a restart: new handshakes use them at
    /// once, and connections of peers that are no longer trusted are closed. Where it has no revocation list
    /// of an authority that it trusts, the one in force stays. What this node wrote and signed ([`Config::sign`])
    /// is signed anew and told again, under the versions it has.
    ///
    /// # Errors
    /// [`Error::Identity`] if it is not of this node, not valid now, or has an older revocation list than this
    /// node was given before. The old identity serves on, and an event tells of it.
    pub fn reload_identity(&self, identity: Identity) -> Result<(), Error> {
        self.driver().reload_identity(identity)
    }
}

/// Who is there. While the node does not run, nobody is.
impl Cluster {
    /// This node's id: the configured one, the certificate's, or a UUID that is the same for this handle's
    /// life.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.driver().node_id()
    }

    /// This node as others see it; while it does not run, as configured, with the status `Left`.
    #[must_use]
    pub fn local_node(&self) -> NodeInfo {
        self.driver().local_node()
    }

    /// Every known node; dead and left ones until they are forgotten.
    #[must_use]
    pub fn all_nodes(&self) -> BTreeMap<NodeId, NodeInfo> {
        self.read(Core::nodes)
    }

    /// The nodes believed alive, this one included. Suspected ones are not among them.
    #[must_use]
    pub fn alive_nodes(&self) -> BTreeSet<NodeId> {
        self.read(Core::alive)
    }

    /// How many nodes are believed alive, this one included.
    #[must_use]
    pub fn cluster_size(&self) -> usize {
        self.read(|protocol| protocol.alive().len())
    }

    /// Whether a node is known and believed alive.
    #[must_use]
    pub fn is_alive(&self, node: &NodeId) -> bool {
        self.has_status(node, NodeStatus::Alive)
    }

    /// Whether a node is suspected of having died.
    #[must_use]
    pub fn is_suspected(&self, node: &NodeId) -> bool {
        self.has_status(node, NodeStatus::Suspect)
    }

    /// Whether a node's death is confirmed. A node that left is not dead.
    #[must_use]
    pub fn is_dead(&self, node: &NodeId) -> bool {
        self.has_status(node, NodeStatus::Dead)
    }

    /// Why a node has the status it has; `None` if it is not known.
    #[must_use]
    pub fn explain(&self, node: &NodeId) -> Option<Explanation> {
        self.driver().explain(node)
    }

    /// Spreads the removal of a dead or left node; it stays removed until it proves itself again.
    ///
    /// # Errors
    /// [`Error::NotForgettable`] if it is alive, suspected or unknown; [`Error::NotRunning`].
    pub fn forget(&self, node: &NodeId) -> Result<(), Error> {
        self.driver().command(|protocol, now| protocol.forget(node, now)).ok_or(Error::NotRunning)?
    }

    /// Replaces this node's tags and spreads them. While the node does not run, the next start tells them.
    ///
    /// # Errors
    /// [`Error::TooLarge`] over 64 tags or 4 KiB in all, or if a tag has no name.
    pub fn set_tags(&self, tags: BTreeMap<String, String>) -> Result<(), Error> {
        limits::check_tags(&tags)?;
        self.driver().set_tags(tags);
        Ok(())
    }

    fn has_status(&self, node: &NodeId, status: NodeStatus) -> bool {
        self.driver().read(|protocol| protocol.node(node).is_some_and(|node| node.status == status))
            == Some(true)
    }

    fn read<R: Default>(&self, read: impl FnOnce(&Core) -> R) -> R {
        self.driver().read(read).unwrap_or_default()
    }
}

/// Shared state.
impl Cluster {
    /// Writes a record: stamps the next version, stores it, and starts to spread it at once. `None` if the
    /// node does not run.
    ///
    /// A panic of `value`'s own `Serialize` passes through to the caller and leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::InvalidStateType`] unless the type's name has 1 to 64 bytes without control characters;
    /// [`Error::TypeDisabled`]; [`Error::InvalidKey`] unless the key has 1 to 512 bytes; those of
    /// [`Value::encode`]; [`Error::Overloaded`] if more than 16 MiB wait to be spread (12 MiB for
    /// `conntrack`).
    ///
    /// # Examples
    /// ```
    /// use phalanx::StateType;
    /// # use phalanx::{Authority, Cluster, Config, NodeId};
    /// # async fn example() -> Result<(), phalanx::Error> {
    /// # let mut config = Config::default();
    /// # config.enabled = true;
    /// # config.bind_address = std::net::Ipv4Addr::LOCALHOST.into();
    /// # config.bind_port = 0;
    /// # config.identity = Some(Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?);
    /// # let cluster = Cluster::new(config)?;
    /// # cluster.start().await?;
    /// let routes = StateType::shared("routes");
    /// cluster.broadcast(&routes, "/api", &["backend-7", "backend-8"])?;
    /// let record = cluster.get(&routes, "/api").expect("just written");
    /// assert_eq!(record.value.decode::<Vec<String>>()?, ["backend-7", "backend-8"]);
    /// cluster.remove(&routes, "/api")?;
    /// assert!(cluster.get(&routes, "/api").is_none());
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn broadcast(
        &self,
        state_type: impl Into<StateType>,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
    ) -> Result<Option<SyncableState>, Error> {
        self.broadcast_with(state_type, key, value, Options::default())
    }

    /// As [`broadcast`](Self::broadcast), with a time to live or ahead of other records.
    ///
    /// # Errors
    /// Those of [`broadcast`](Self::broadcast), but an urgent record is never refused as too much.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use phalanx::Options;
    /// # use phalanx::{Authority, Cluster, Config, NodeId};
    /// # async fn example() -> Result<(), phalanx::Error> {
    /// # let mut config = Config::default();
    /// # config.enabled = true;
    /// # config.bind_address = std::net::Ipv4Addr::LOCALHOST.into();
    /// # config.bind_port = 0;
    /// # config.identity = Some(Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?);
    /// # let cluster = Cluster::new(config)?;
    /// # cluster.start().await?;
    /// let mut options = Options::default();
    /// options.ttl = Some(Duration::from_secs(30)); // gone everywhere in half a minute, unless written again
    /// cluster.broadcast_with("leases", "job-1", "lb-1", options)?;
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn broadcast_with(
        &self,
        state_type: impl Into<StateType>,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
        options: Options,
    ) -> Result<Option<SyncableState>, Error> {
        let (state_type, key, value) = self.checked(state_type.into(), key.into(), value)?;
        let written =
            self.driver().command(|protocol, now| protocol.broadcast(&state_type, &key, value, options, now));
        written.transpose()
    }

    /// As [`broadcast`](Self::broadcast), and waits until every alive node that keeps the type has acknowledged
    /// the record, `limit` at most: which did, and which did not. To have run out of time is no error; with a
    /// limit of zero nobody else is waited for.
    ///
    /// # Errors
    /// Those of [`broadcast`](Self::broadcast); [`Error::NotRunning`], also as soon as the node is stopped
    /// meanwhile, and the record is then on its way all the same.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// # use phalanx::{Authority, Cluster, Config, NodeId};
    /// # async fn example() -> Result<(), phalanx::Error> {
    /// # let mut config = Config::default();
    /// # config.enabled = true;
    /// # config.bind_address = std::net::Ipv4Addr::LOCALHOST.into();
    /// # config.bind_port = 0;
    /// # config.identity = Some(Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?);
    /// # let cluster = Cluster::new(config)?;
    /// # cluster.start().await?;
    /// let spread = cluster.broadcast_confirmed("routes", "/api", "backend-7", Duration::from_secs(5)).await?;
    /// assert!(spread.reached.contains(&cluster.node_id()));
    /// assert!(spread.missing.is_empty(), "not yet known to {:?}", spread.missing);
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub async fn broadcast_confirmed(
        &self,
        state_type: impl Into<StateType>,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
        limit: Duration,
    ) -> Result<Spread, Error> {
        let (state_type, key, value) = self.checked(state_type.into(), key.into(), value)?;
        self.driver().broadcast_confirmed(&state_type, &key, value, limit).await
    }

    /// Takes records as they are, in one batch: one with an old version loses to a newer one as anywhere. How
    /// many were accepted; 0 if the node does not run.
    ///
    /// # Errors
    /// [`Error::ForeignSource`] if a record names another node as its source; [`Error::VersionTooHigh`]
    /// beyond what the wall clock allows; those of [`broadcast`](Self::broadcast). Then none of the batch was
    /// taken.
    ///
    /// # Examples
    /// ```
    /// use phalanx::{SyncableState, Value};
    /// # use phalanx::{Authority, Cluster, Config, NodeId};
    /// # async fn example() -> Result<(), phalanx::Error> {
    /// # let mut config = Config::default();
    /// # config.enabled = true;
    /// # config.bind_address = std::net::Ipv4Addr::LOCALHOST.into();
    /// # config.bind_port = 0;
    /// # config.identity = Some(Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?);
    /// # let cluster = Cluster::new(config)?;
    /// # cluster.start().await?;
    /// let me = cluster.node_id();
    /// let mut records = Vec::new();
    /// for (key, weight) in [("backend-7", 10), ("backend-8", 30)] {
    ///     let value = Value::encode(&weight)?;
    ///     records.push(SyncableState::new("weights", key, value, cluster.next_version(), me.clone()));
    /// }
    /// assert_eq!(cluster.broadcast_many(records)?, 2);
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn broadcast_many(&self, states: Vec<SyncableState>) -> Result<usize, Error> {
        self.check_many(&states)?;
        self.driver().command(|protocol, now| protocol.broadcast_many(states, now)).unwrap_or(Ok(0))
    }

    /// As [`broadcast_many`](Self::broadcast_many), for a publisher that is to write as fast as the cluster
    /// takes it: waits for room instead of returning [`Error::Overloaded`], and until all of it has been
    /// handed to the network. How many were accepted. Which nodes have it says
    /// [`broadcast_confirmed`](Self::broadcast_confirmed).
    ///
    /// Taken in slices of 512, between which others may write. Dropping the future leaves what was taken on
    /// its way, and takes no more.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `limit`, with how many were taken; [`Error::NotRunning`], also if the node
    /// stops meanwhile; those of [`broadcast_many`](Self::broadcast_many) but `Overloaded`, before the first
    /// is taken.
    pub async fn broadcast_many_flushed(
        &self,
        states: Vec<SyncableState>,
        limit: Duration,
    ) -> Result<usize, Error> {
        self.check_many(&states)?;
        self.driver().broadcast_many_flushed(states, limit).await
    }

    fn check_many(&self, states: &[SyncableState]) -> Result<(), Error> {
        let node_id = self.node_id();
        for (index, record) in states.iter().enumerate() {
            self.check_key(&record.state_type, &record.key)?;
            if record.source_node != node_id {
                let (key, source_node) = (record.key.clone(), record.source_node.clone());
                return Err(Error::ForeignSource { index, key, source_node, node_id });
            }
        }
        Ok(())
    }

    /// Removes a record and spreads the removal; of a per-node type, this node's own. What was removed;
    /// `None` if there was nothing, or if the node does not run.
    ///
    /// # Errors
    /// Those of [`broadcast`](Self::broadcast) that concern the type and the key.
    pub fn remove(
        &self,
        state_type: impl Into<StateType>,
        key: impl AsRef<str>,
    ) -> Result<Option<SyncableState>, Error> {
        let (state_type, key) = (state_type.into(), key.as_ref());
        self.check_key(&state_type, key)?;
        Ok(self.driver().command(|protocol, now| protocol.remove(&state_type, key, now)).flatten())
    }

    /// The record that counts under a key; of a per-node type, this node's own.
    #[must_use]
    pub fn get(&self, state_type: &StateType, key: &str) -> Option<SyncableState> {
        self.read(|protocol| protocol.get(state_type, key))
    }

    /// All live records of a type; of a per-node type, every node's. In no order.
    ///
    /// Read in pages, so that a large table does not hold up the protocol: what changes meanwhile is told as
    /// it was or as it is, and a record that is there throughout is told once. [`for_each`](Self::for_each)
    /// does the same without holding all of them at a time.
    #[must_use]
    pub fn states(&self, state_type: &StateType) -> Vec<SyncableState> {
        let mut states = Vec::new();
        self.for_each(state_type, |record| states.push(record));
        states
    }

    /// Calls `visit` with each live record of a type; of a per-node type, with every node's. In no order, and
    /// with no more than a page of copies at a time.
    ///
    /// The protocol goes on between pages: what changes meanwhile is told as it was or as it is, and a record
    /// that is there throughout is told once. `visit` runs outside every lock, and may call this handle.
    ///
    /// # Examples
    /// ```
    /// # fn count(cluster: &phalanx::Cluster) -> usize {
    /// let mut flows = 0;
    /// cluster.for_each(&phalanx::StateType::CONNTRACK, |_| flows += 1);
    /// # flows
    /// # }
    /// ```
    pub fn for_each(&self, state_type: &StateType, mut visit: impl FnMut(SyncableState)) {
        let mut next = Some(0);
        while let Some(first) = next {
            let (page, rest) = self.read(|protocol| protocol.states_from(state_type, first));
            page.into_iter().for_each(&mut visit);
            next = rest;
        }
    }

    /// The records of a type that are there, each as a `Put`, then every change in order.
    ///
    /// What is there is read in pages as the reader goes on, so that a large table neither holds up the
    /// protocol nor waits in memory: a record that changes meanwhile is told as it is when its page is read,
    /// one that goes meanwhile may be told by its `Removed` or `Expired` alone. Folding the stream gives
    /// what [`states`](Self::states) gives.
    ///
    /// Up to 1,024 changes wait for the reader; one that is slower is told how many it missed, and begins
    /// anew with another `watch`. The stream lasts through stops and starts, and ends when the last handle
    /// is gone; a start tells every record anew.
    ///
    /// # Examples
    /// ```
    /// use futures_util::StreamExt;
    /// use phalanx::StateChange;
    /// # use phalanx::{Authority, Cluster, Config, NodeId};
    /// # async fn example() -> Result<(), phalanx::Error> {
    /// # let mut config = Config::default();
    /// # config.enabled = true;
    /// # config.bind_address = std::net::Ipv4Addr::LOCALHOST.into();
    /// # config.bind_port = 0;
    /// # config.identity = Some(Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?);
    /// # let cluster = Cluster::new(config)?;
    /// # cluster.start().await?;
    /// let mut changes = cluster.watch(&"routes".into());
    /// cluster.broadcast("routes", "/api", "backend-7")?;
    /// match changes.next().await {
    ///     Some(StateChange::Put { new, old: None }) => assert_eq!(new.key, "/api"),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn watch(&self, state_type: &StateType) -> StateStream {
        self.driver().watch(state_type, FEED_LEN_MAX)
    }

    /// Shares one of the types `HEALTH`, `CIRCUIT_BREAKER`, `DRAIN` and `CONNTRACK` from now on, or ceases to,
    /// as `sync-health` and its kin do from the start. Whether that is a change; an event tells of it.
    ///
    /// Switched off, this node's own opinions of the type are taken back everywhere, others' records of it are
    /// dropped, and reads find none; what this node has ordered or carries stays with the others. Switched on,
    /// all of it comes back from the peers, and a provider is handed it anew. Holds through stops and starts.
    ///
    /// # Errors
    /// [`Error::NotSwitchable`] for any other type.
    ///
    /// # Examples
    /// ```
    /// use phalanx::StateType;
    /// let cluster = phalanx::Cluster::new(phalanx::Config::default())?;
    /// assert!(cluster.set_sync(&StateType::HEALTH, false)?);
    /// assert!(!cluster.config().sync_health);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn set_sync(&self, state_type: &StateType, on: bool) -> Result<bool, Error> {
        self.driver().set_sync(state_type, on)
    }

    /// Ticks the Lamport clock: a version greater than any this node has written or seen. 0 if the node does
    /// not run.
    #[must_use]
    pub fn next_version(&self) -> u64 {
        self.driver().command(Core::next_version).unwrap_or_default()
    }

    fn checked(
        &self,
        state_type: StateType,
        key: String,
        value: &(impl Serialize + ?Sized),
    ) -> Result<(StateType, String, Value), Error> {
        self.check_key(&state_type, &key)?;
        // Before any lock: it runs the caller's code.
        let value = Value::encode(value)?;
        Ok((state_type, key, value))
    }

    fn check_key(&self, state_type: &StateType, key: &str) -> Result<(), Error> {
        check_type(state_type)?;
        if let Some(switch) = self.driver().switch_off(state_type) {
            return Err(Error::TypeDisabled { state_type: state_type.to_string(), key: switch });
        }
        if key.is_empty() || key.len() > limits::KEY_LEN_MAX {
            return Err(Error::InvalidKey { size: key.len(), limit: limits::KEY_LEN_MAX });
        }
        Ok(())
    }
}

fn check_type(state_type: &StateType) -> Result<(), Error> {
    let name = state_type.as_str();
    let fault = if name.is_empty() {
        "it is empty".into()
    } else if name.len() > limits::TYPE_LEN_MAX {
        format!("it has {} bytes", name.len())
    } else if let Some(control) = name.chars().find(|character| character.is_control()) {
        format!("{control:?} is a control character")
    } else {
        return Ok(());
    };
    Err(Error::InvalidStateType { name: name.chars().take(limits::TYPE_LEN_MAX).collect(), fault })
}

/// Who is told, and what was counted.
impl Cluster {
    /// Has a part of the program share its state, before or after `start`.
    ///
    /// Records of its type that are known already are applied to it at once, then it is asked for its own.
    /// Its functions are called on a thread of its own. Types of one name are one type.
    ///
    /// # Errors
    /// [`Error::ProviderExists`] if the type has a provider; [`Error::InvalidStateType`].
    pub fn register_provider(&self, provider: Arc<dyn StateProvider>) -> Result<(), Error> {
        self.driver().register_provider(provider, check_type)
    }

    /// Ends the calls to a type's provider, but for one that is under way. Whether there was one.
    #[expect(clippy::must_use_candidate, reason = "most callers do not ask whether there was one")]
    pub fn unregister_provider(&self, state_type: &StateType) -> bool {
        self.driver().unregister_provider(state_type)
    }

    /// Has `callback` called with every event, in order, on a thread of its own: one that blocks or panics
    /// harms no one else. Up to 1,024 events wait for it; then the newest are left out, and an event of the
    /// kind `Lagged` tells how many.
    ///
    /// The callback may call anything, also [`Subscription::unsubscribe`]. It stays subscribed through stops
    /// and starts.
    ///
    /// # Examples
    /// ```
    /// let cluster = phalanx::Cluster::new(phalanx::Config::default())?;
    /// let subscription = cluster.subscribe(|event| println!("{event}"));
    /// subscription.unsubscribe();
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn subscribe(&self, callback: impl Fn(&ClusterEvent) + Send + Sync + 'static) -> Subscription {
        self.driver().subscribe(Box::new(callback))
    }

    /// The same events as a stream, from now on. Up to 1,024 wait for the reader; one that is slower gets
    /// `Lagged` with the exact number, then goes on. Ends when the last handle is gone.
    pub fn events(&self) -> EventStream {
        self.driver().events()
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let driver = self.driver();
        let (nodes, counters) = self.read(|protocol| (protocol.nodes(), Some(protocol.counters())));
        let count = |status| nodes.values().filter(|node| node.status == status).count();
        let providers = driver.provider_stats();
        Stats {
            status: self.status(),
            membership: MembershipStats {
                node_id: self.node_id(),
                alive_count: count(NodeStatus::Alive),
                suspected_count: count(NodeStatus::Suspect),
                dead_count: count(NodeStatus::Dead),
                left_count: count(NodeStatus::Left),
            },
            gossip: GossipStats {
                running: self.is_running(),
                provider_count: providers.len(),
                config: self.config(),
                counters: counters.unwrap_or_default(),
            },
            config: self.config(),
            providers,
            identity: driver.identity_stats(),
            net: driver.net_stats(),
            subscriber_panics: driver.subscriber_panics(),
        }
    }

    /// The configuration in force. Shows no secret in `Debug`, and serde leaves an identity out.
    #[must_use]
    pub fn config(&self) -> Config {
        self.driver().config()
    }
}
