//! The only place where clock, entropy, sockets, threads and the core meet. Holds no rule of the protocol.
//!
//! `life` from start to stop: core, transport, tasks · `clock` time and chance · `seeds` who is asked for the
//! cluster · `advertise` where peers reach this node · `expiry` the end of its certificate · `renewal` what
//! takes its place, and newer revocation lists · `watcher` its files · `events`, `providers` threads for user code · `feed` their
//! queues · `view` what readers are shown
//!
//! This file holds what outlives a life, and sees to it that there is one at most.

mod advertise;
pub(crate) mod clock;
mod events;
mod expiry;
mod feed;
mod life;
mod providers;
mod renewal;
mod seeds;
#[cfg(test)]
mod tests;
mod view;
mod watcher;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, SystemTime},
};

use tokio::{runtime::Handle, sync::watch, time::timeout};

use self::{
    events::Watchers,
    life::Life,
    providers::{Providers, Worker},
    renewal::Renewals,
    seeds::Outcome,
    watcher::Watched,
};
pub use self::{
    events::{EventStream, StateStream, Subscription},
    view::{CloseInfo, ConnectionInfo, Explanation, Started, Status, Synced},
};
pub(crate) use self::{
    events::{Listening, Subscribers, Told},
    feed::FEED_LEN_MAX,
};
/// What a handle asks and commands.
pub(crate) use crate::proto::Protocol as Core;
use crate::{
    ClusterEvent, Config, Error, EventData, EventKind, Identity, IdentityStats, NetStats, NodeId, NodeInfo,
    NodeStatus, Options, ProviderStats, Sign, Spread, StateProvider, StateType, SyncableState, Value,
    config::{Checked, Seed},
    proto::{self, Now, Protocol, ProtocolConfig, Signed, config::CONFIRMATIONS},
};

/// How long `start` waits for a seed to answer.
const FIRST_ROUND: Duration = Duration::from_secs(2);
/// How long a stop may take: the leave, the drain, and some for a machine under load.
const STOP_MAX: Duration = Duration::from_secs(4);
/// How many records are taken under one lock while others may write too.
const FLUSH_LEN: usize = 512;
/// How long a stop waits for providers to come back from their last call.
const REST: Duration = Duration::from_millis(500);

/// What switches built-in types off and on.
struct Switch {
    key: &'static str,
    /// The first names the switch, the rest follows it.
    types: &'static [StateType],
    get: fn(&mut Config) -> &mut bool,
}

const SWITCHES: [Switch; 4] = [
    Switch { key: "sync-health", types: &[StateType::HEALTH], get: |config| &mut config.sync_health },
    Switch {
        key: "sync-circuit-breaker",
        types: &[StateType::CIRCUIT_BREAKER],
        get: |config| &mut config.sync_circuit_breaker,
    },
    Switch {
        key: "sync-drain",
        types: &[StateType::DRAIN, StateType::DRAIN_PROGRESS],
        get: |config| &mut config.sync_drain,
    },
    Switch {
        key: "sync-conntrack",
        types: &[StateType::CONNTRACK],
        get: |config| &mut config.sync_conntrack,
    },
];

/// A lock that no panic can break: what a panicking thread leaves behind is whole, since everything is
/// checked before the first change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Calls user code; `None` if it panicked, which is logged.
pub(crate) fn guarded<R>(what: &str, call: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => Some(result),
        Err(payload) => {
            let said = payload.downcast_ref::<&str>().map(|said| (*said).to_owned());
            let said = said.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
            tracing::warn!(said, "{what} panicked; it is called again the next time");
            // The payload's own drop may panic too, and then that one's.
            if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(second);
            }
            None
        }
    }
}

/// What all handles of a cluster share.
pub(crate) struct Driver {
    config: Config,
    checked: Checked,
    subscribers: Arc<Subscribers<ClusterEvent>>,
    /// The built-in types that this node does not share.
    off: RwLock<BTreeSet<StateType>>,
    /// Held by who switches one.
    switching: Mutex<()>,
    /// The types to which a table is attached.
    tables: Mutex<BTreeSet<StateType>>,
    watchers: Arc<Watchers>,
    providers: Providers,
    settings: Mutex<Settings>,
    stage: Mutex<Stage>,
    /// Follows the stage, for whoever waits.
    progress: watch::Sender<(u64, Status)>,
    made: SystemTime,
}

/// What a running node may change and a later start goes on with.
struct Settings {
    /// The identity in force, with the newest revocation lists, whoever brought them.
    identity: Option<Identity>,
    /// As the operator gave it last: no later one may have older lists.
    given: Option<Identity>,
    renewals: Renewals,
    watched: Watched,
    tags: BTreeMap<String, String>,
    last_epoch: u64,
}

/// Which life there is. At most one: whoever moves `status` away from `Stopped` owns the turn.
#[derive(Default)]
struct Stage {
    status: Status,
    /// Grows with each start.
    turn: u64,
    life: Option<Arc<Life>>,
    /// Somebody is bringing the turn to its end.
    ending: bool,
}

/// A start under way. Dropped before it is through, it takes everything back.
struct Attempt<'a> {
    driver: &'a Arc<Driver>,
    turn: u64,
    through: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.through {
            self.driver.end(self.turn);
        }
    }
}

impl Driver {
    pub(crate) fn new(config: Config) -> Result<Arc<Self>, Error> {
        let checked = config.check()?;
        for warning in &checked.warnings {
            tracing::warn!("{warning}");
        }
        let settings = Settings {
            identity: checked.identity.clone(),
            given: checked.identity.clone(),
            renewals: Renewals::of(checked.identity.as_ref()),
            watched: Watched::new(),
            tags: config.tags.clone(),
            last_epoch: 0,
        };
        let mut asked = config.clone();
        let off = SWITCHES.iter().filter(|switch| !*(switch.get)(&mut asked));
        let off = RwLock::new(off.flat_map(|switch| switch.types).cloned().collect());
        Ok(Arc::new(Self {
            off,
            switching: Mutex::default(),
            config,
            checked,
            subscribers: Arc::default(),
            tables: Mutex::default(),
            watchers: Arc::default(),
            providers: Providers::default(),
            settings: Mutex::new(settings),
            stage: Mutex::default(),
            progress: watch::Sender::new((0, Status::Stopped)),
            made: clock::wall_now(),
        }))
    }

    // From start to stop.

    pub(crate) async fn start(self: &Arc<Self>) -> Result<Option<Started>, Error> {
        if !self.config.enabled {
            return Ok(None);
        }
        Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let turn = loop {
            match self.claim() {
                Claim::Ours(turn) => break turn,
                Claim::Taken => return Ok(None),
                Claim::After(turn) => self.ended(turn).await,
            }
        };
        let mut attempt = Attempt { driver: self, turn, through: false };
        let (identity, epoch) = self.begin_epoch()?;
        let life = Life::open(self, turn, &identity, epoch)?;
        if !self.install(turn, &life) {
            life.kill();
            return Err(Error::StoppedWhileStarting);
        }
        let address = life.bound();
        let (node_id, cluster) = (self.node_id(), identity.cluster_name());
        tracing::info!(%node_id, %address, cluster, epoch, "the node serves");
        self.publish(ClusterEvent::new(
            EventKind::ClusterStarted,
            Some(self.node_id()),
            clock::wall_now(),
            EventData::Started { address },
        ));
        life.spawn(expiry::watch(Arc::downgrade(&life)));
        if self.config.identity.is_none()
            && let Some(files) = watcher::watched_files(&self.config.tls)
        {
            life.spawn(watcher::watch(Arc::downgrade(self), files, self.config.tls.watch_interval));
        }
        self.providers.offer();
        let first = self.first_round(&life);
        let mut progress = self.progress.subscribe();
        tokio::select! {
            biased;
            _ = progress.wait_for(|now| *now != (turn, Status::Starting)) => {}
            result = first => result?,
        }
        // Whoever stopped it meanwhile has taken it over.
        attempt.through = true;
        if !self.become_running(turn) {
            return Err(Error::StoppedWhileStarting);
        }
        Ok(Some(Started { node_id: self.node_id(), address }))
    }

    /// Leaves the cluster; returns once everything is closed.
    pub(crate) async fn stop(self: &Arc<Self>) {
        if let Some(turn) = self.begin_stop() {
            self.ended(turn).await;
        }
    }

    /// The last handle is gone: a crash to the peers, the end to readers.
    pub(crate) fn abandon(&self) {
        let turn = lock(&self.stage).turn;
        self.end(turn);
        self.subscribers.close();
        self.watchers.close();
        self.providers.close();
    }

    fn claim(&self) -> Claim {
        let mut stage = lock(&self.stage);
        match stage.status {
            Status::Stopped => {
                let turn = stage.turn + 1;
                *stage = Stage { status: Status::Starting, turn, life: None, ending: false };
                self.progress.send_replace((turn, Status::Starting));
                Claim::Ours(turn)
            }
            Status::Starting | Status::Running => Claim::Taken,
            Status::Stopping => Claim::After(stage.turn),
        }
    }

    /// Waits until a turn's life takes no more commands.
    async fn stopping(&self, turn: u64) {
        let mut progress = self.progress.subscribe();
        let over = |now: &(u64, Status)| now.0 != turn || matches!(now.1, Status::Stopping | Status::Stopped);
        let _ = progress.wait_for(over).await; // the sender is ours: it cannot be gone
    }

    /// Waits until a turn has ended.
    async fn ended(&self, turn: u64) {
        let mut progress = self.progress.subscribe();
        let over = |now: &(u64, Status)| now.0 != turn || now.1 == Status::Stopped;
        let _ = progress.wait_for(over).await; // the sender is ours: it cannot be gone
    }

    /// The identity to start with, and an epoch beyond every earlier one.
    fn begin_epoch(&self) -> Result<(Identity, u64), Error> {
        let mut settings = lock(&self.settings);
        let identity = settings.identity.clone().ok_or_else(|| Error::Identity {
            what: "identity".into(),
            fault: "the node has none".into(),
            remedy: "set tls.ca, tls.cert and tls.key, or give the config an identity".into(),
            source: None,
        })?;
        let epoch = proto::time::wall_ms(clock::wall_now()).max(settings.last_epoch + 1);
        settings.last_epoch = epoch;
        Ok((identity, epoch))
    }

    fn install(&self, turn: u64, life: &Arc<Life>) -> bool {
        let mut stage = lock(&self.stage);
        let ours = stage.turn == turn && stage.status == Status::Starting;
        if ours {
            stage.life = Some(Arc::clone(life));
        }
        ours
    }

    fn become_running(&self, turn: u64) -> bool {
        let mut stage = lock(&self.stage);
        let ours = stage.turn == turn && stage.status == Status::Starting && !stage.ending;
        if ours {
            stage.status = Status::Running;
            self.progress.send_replace((turn, Status::Running));
        }
        ours
    }

    /// Waits until one seed let us in, or all have failed, or for two seconds.
    async fn first_round(&self, life: &Arc<Life>) -> Result<(), Error> {
        let mut outcomes = seeds::tend(life, &self.checked.seeds);
        let round = async {
            while let Some(outcome) = outcomes.recv().await {
                match outcome {
                    Outcome::Joined(_) => break,
                    Outcome::Failed(error) if seeds::is_duplicate(&error) => {
                        return Err(self.duplicate(&error));
                    }
                    Outcome::Ourselves | Outcome::Failed(_) => {}
                }
            }
            Ok(())
        };
        timeout(FIRST_ROUND, round).await.unwrap_or(Ok(()))
    }

    fn duplicate(&self, error: &Error) -> Error {
        let reason = match error {
            Error::Refused { reason, .. } => reason.as_str(),
            _ => "",
        };
        let incumbent = reason.rsplit_once(" at ").map_or("an unknown address", |(_, at)| at);
        Error::DuplicateNodeId { node_id: self.node_id(), incumbent: incumbent.into() }
    }

    /// Begins to stop, unless that has begun; the turn whose end is to be waited for.
    fn begin_stop(self: &Arc<Self>) -> Option<u64> {
        let mut stage = lock(&self.stage);
        let turn = stage.turn;
        match stage.status {
            Status::Stopped => return None,
            Status::Stopping => return Some(turn),
            Status::Starting | Status::Running => {
                stage.status = Status::Stopping;
                self.progress.send_replace((turn, Status::Stopping));
            }
        }
        let life = stage.life.clone();
        drop(stage);
        if let Some(life) = life {
            self.close_down(turn, life);
        } // else the start that owns the turn finds out when it installs its life
        Some(turn)
    }

    /// Has the leave spread on the life's own runtime, and the end come from a thread: neither a dropped
    /// future nor a runtime that is gone or stands still can keep a stop from ending.
    fn close_down(self: &Arc<Self>, turn: u64, life: Arc<Life>) {
        let (alive, gone) = mpsc::channel::<()>();
        let leaving = Arc::clone(&life);
        life.runtime().spawn(async move {
            leaving.leave().await;
            drop(alive);
        });
        let driver = Arc::clone(self);
        let thread = std::thread::Builder::new().name("phalanx-stop".into()).spawn(move || {
            let _ = gone.recv_timeout(STOP_MAX); // ends when the sender does
            life.kill();
            driver.providers.rest(REST);
            driver.end(turn);
        });
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread to stop the node with; it stops without saying goodbye");
            self.end(turn);
        }
    }

    /// Brings a turn to its end, however far it came. Whatever is still open is closed as a crash would.
    fn end(&self, turn: u64) {
        let life = {
            let mut stage = lock(&self.stage);
            if stage.turn != turn || stage.status == Status::Stopped || stage.ending {
                return;
            }
            stage.ending = true;
            stage.life.take()
        };
        // Closed before the status says so, or a start that follows finds the port in use.
        if let Some(life) = &life {
            life.kill();
            tracing::info!(node_id = %self.node_id(), "the node has stopped");
            self.publish(ClusterEvent::new(
                EventKind::ClusterStopped,
                Some(self.node_id()),
                clock::wall_now(),
                EventData::None,
            ));
        }
        let mut stage = lock(&self.stage);
        stage.status = Status::Stopped;
        stage.ending = false;
        self.progress.send_replace((turn, Status::Stopped));
    }

    fn protocol_config(&self, cluster: String, address: SocketAddr, epoch: u64) -> ProtocolConfig {
        let config = &self.config;
        let settings = ProtocolConfig {
            node_id: self.node_id(),
            cluster,
            epoch,
            address,
            zone: config.zone.clone(),
            tags: lock(&self.settings).tags.clone(),
            gossip_interval: config.gossip_interval,
            gossip_fanout: config.gossip_fanout,
            push_pull_interval: config.push_pull_interval,
            max_batch_size: config.max_batch_size,
            ping_interval: config.ping_interval,
            ping_timeout: config.ping_timeout,
            ping_req_count: config.ping_req_count,
            suspicion_mult: config.suspicion_mult,
            suspicion: None,
            confirmations: CONFIRMATIONS,
            dead_node_reclaim: config.dead_node_reclaim,
            tombstone_ttl: config.tombstone_ttl,
            max_connections: config.max_connections,
            disabled: self.disabled(),
            signed: match config.sign {
                Sign::All => Signed::All,
                Sign::Claims if config.sign_types.is_empty() => Signed::None,
                Sign::Claims => Signed::Types(config.sign_types.iter().cloned().collect()),
            },
            without: BTreeSet::new(),
        };
        if config.fast_detection { settings.detecting_fast() } else { settings }
    }

    fn disabled(&self) -> BTreeSet<StateType> {
        read(&self.off).clone()
    }

    /// The configuration key that switches a type off here, if it is off.
    pub(crate) fn switch_off(&self, state_type: &StateType) -> Option<&'static str> {
        let off = read(&self.off);
        if off.is_empty() || !off.contains(state_type) {
            return None;
        }
        SWITCHES.iter().find(|switch| switch.types.contains(state_type)).map(|switch| switch.key)
    }

    /// Shares a built-in type from now on, or ceases to; whether that is a change.
    pub(crate) fn set_sync(&self, state_type: &StateType, on: bool) -> Result<bool, Error> {
        let switch = SWITCHES.iter().find(|switch| switch.types.first() == Some(state_type));
        let switch = switch.ok_or_else(|| Error::NotSwitchable { state_type: state_type.to_string() })?;
        let _turn = lock(&self.switching);
        if read(&self.off).contains(state_type) != on {
            return Ok(false);
        }
        for of in switch.types {
            if on {
                write(&self.off).remove(of);
            } else {
                write(&self.off).insert(of.clone());
            }
            self.command(|protocol, now| protocol.set_sync(of, on, now));
            // Page by page, so that a million records do not hold up the protocol.
            let mut next = (!on).then_some(0);
            while let Some(first) = next {
                next = self.command(|protocol, now| protocol.drop_page(of, first, now)).flatten();
            }
        }
        self.publish(ClusterEvent::new(
            EventKind::SyncSwitched,
            Some(self.node_id()),
            clock::wall_now(),
            EventData::Switched { state_type: state_type.to_string(), on },
        ));
        self.providers.offer_if(|of| on && switch.types.contains(of));
        Ok(true)
    }

    // Reading.

    pub(crate) fn status(&self) -> Status {
        lock(&self.stage).status
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.checked.node_id.clone()
    }

    /// The identity in force, or to start with.
    fn identity(&self) -> Option<Identity> {
        lock(&self.settings).identity.clone()
    }

    /// The life that takes commands and answers questions.
    fn life(&self) -> Option<Arc<Life>> {
        let stage = lock(&self.stage);
        stage.life.clone().filter(|_| matches!(stage.status, Status::Starting | Status::Running))
    }

    /// Which life it is that takes commands; each has a number of its own.
    pub(crate) fn turn_of_life(&self) -> Option<u64> {
        self.life().map(|life| life.turn())
    }

    /// Asks the core; `None` if the node does not run.
    pub(crate) fn read<R>(&self, read: impl FnOnce(&Protocol) -> R) -> Option<R> {
        self.life()?.read(read)
    }

    /// As it was given, but for what was changed since.
    pub(crate) fn config(&self) -> Config {
        let settings = lock(&self.settings);
        let mut config = self.config.clone();
        for switch in &SWITCHES {
            *(switch.get)(&mut config) = !switch.types.iter().any(|of| read(&self.off).contains(of));
        }
        config.tags.clone_from(&settings.tags);
        config.identity = config.identity.and(settings.identity.clone());
        config
    }

    pub(crate) fn local_node(&self) -> NodeInfo {
        self.read(Protocol::local_node).unwrap_or_else(|| NodeInfo {
            node_id: self.node_id(),
            address: SocketAddr::new(self.config.bind_address, self.config.bind_port),
            incarnation: 0,
            epoch: 0,
            status: NodeStatus::Left,
            join_time: self.made,
            last_seen: self.made,
            zone: self.config.zone.clone(),
            tags: lock(&self.settings).tags.clone(),
            rtt: None,
            certificate_end: self.identity().map(|identity| identity.not_after()),
        })
    }

    pub(crate) fn explain(&self, node: &NodeId) -> Option<Explanation> {
        self.life()?.explain(node)
    }

    pub(crate) fn net_stats(&self) -> NetStats {
        self.life().and_then(|life| life.net_stats()).unwrap_or_default()
    }

    pub(crate) fn identity_stats(&self) -> IdentityStats {
        self.renewal_stats(clock::wall_now())
    }

    pub(crate) fn provider_stats(&self) -> BTreeMap<String, ProviderStats> {
        self.providers.stats()
    }

    pub(crate) fn subscriber_panics(&self) -> u64 {
        self.subscribers.panics()
    }

    // Commands.

    /// Gives the core a command; `None` if the node does not run.
    pub(crate) fn command<R>(&self, command: impl FnOnce(&mut Protocol, Now) -> R) -> Option<R> {
        self.life()?.step(command)
    }

    /// Records that a provider holds.
    fn offer(&self, records: Vec<SyncableState>) -> Option<Result<usize, Error>> {
        if records.first().is_some_and(|record| self.switch_off(&record.state_type).is_some()) {
            return Some(Ok(0)); // it holds them for itself
        }
        self.command(|protocol, now| protocol.broadcast_many(records, now))
    }

    pub(crate) async fn broadcast_confirmed(
        &self,
        state_type: &StateType,
        key: &str,
        value: Value,
        limit: Duration,
    ) -> Result<Spread, Error> {
        let life = self.life().ok_or(Error::NotRunning)?;
        let written =
            life.step(|protocol, now| protocol.broadcast(state_type, key, value, Options::default(), now));
        written.ok_or(Error::NotRunning)??;
        let spread = life.confirm(state_type, key, limit).ok_or(Error::NotRunning)?;
        let turn = life.turn();
        drop(life); // waiting must not keep it
        tokio::select! {
            spread = spread => spread.map_err(|_| Error::NotRunning),
            () = self.stopping(turn) => Err(Error::NotRunning),
        }
    }

    /// Has records taken as there is room for them, and waits until they have left the outbox.
    pub(crate) async fn broadcast_many_flushed(
        self: &Arc<Self>,
        states: Vec<SyncableState>,
        limit: Duration,
    ) -> Result<usize, Error> {
        let checked = self.command(|protocol, now| protocol.check_many(&states, now));
        checked.ok_or(Error::NotRunning)??;
        let (count, taken) = (states.len(), Arc::new(AtomicUsize::new(0)));
        let (driver, counted) = (Arc::downgrade(self), Arc::clone(&taken));
        let mut waiting = self.life().ok_or(Error::NotRunning)?.waiting();
        let flushing = async move {
            let mut written = 0;
            for slice in states.chunks(FLUSH_LEN) {
                loop {
                    waiting.borrow_and_update();
                    let write = |protocol: &mut Protocol, now| {
                        (protocol.broadcast_many(slice.to_vec(), now), protocol.written_and_waiting())
                    };
                    let result = driver.upgrade().and_then(|driver| driver.command(write));
                    match result.ok_or(Error::NotRunning)? {
                        (Ok(accepted), (last, _)) => {
                            counted.fetch_add(accepted, SeqCst);
                            written = last;
                            break;
                        }
                        (Err(Error::Overloaded { .. }), _) => {
                            waiting.changed().await.map_err(|_| Error::NotRunning)?;
                        }
                        (Err(error), _) => return Err(error),
                    }
                }
            }
            let oldest = waiting.wait_for(|oldest| *oldest > written).await;
            oldest.map(|_| counted.load(SeqCst)).map_err(|_| Error::NotRunning)
        };
        self.within(limit, flushing).await?.unwrap_or_else(|| {
            let taken = taken.load(SeqCst);
            let remedy =
                format!("{taken} were taken and are on their way; write more slowly, or wait longer");
            Err(Error::Timeout { what: format!("the flush of {count} records"), limit, remedy })
        })
    }

    pub(crate) async fn wait_synced(&self, limit: Duration) -> Result<Synced, Error> {
        let life = self.life().ok_or(Error::NotRunning)?;
        if self.checked.seeds.is_empty() && life.read(|protocol| protocol.nodes().len()) == Some(1) {
            return Ok(Synced { peers: 0 }); // the first of a cluster has nobody to wait for
        }
        let mut synced = life.synced();
        drop(life); // waiting must not keep it
        let waiting = async move { synced.wait_for(Option::is_some).await.ok().and_then(|peers| *peers) };
        match self.within(limit, waiting).await? {
            Some(Some(peers)) => Ok(Synced { peers }),
            Some(None) => Err(Error::NotRunning),
            None => Err(Error::Timeout {
                what: "the first sync with peers".into(),
                limit,
                remedy: "check that the seeds answer, or wait longer".into(),
            }),
        }
    }

    /// Waits for something, `limit` at most: `None` after it. On the life's own runtime, since the caller may
    /// be on another, or on none; an error as soon as the node is stopped, however long that takes.
    pub(crate) async fn within<R: Send + 'static>(
        &self,
        limit: Duration,
        waiting: impl Future<Output = R> + Send + 'static,
    ) -> Result<Option<R>, Error> {
        let life = self.life().ok_or(Error::NotRunning)?;
        let turn = life.turn();
        let mut waiting =
            AbortOnDrop(life.runtime().spawn(async move { timeout(limit, waiting).await.ok() }));
        drop(life);
        tokio::select! {
            result = &mut waiting.0 => result.map_err(|_| Error::NotRunning),
            () = self.stopping(turn) => Err(Error::NotRunning),
        }
    }

    pub(crate) async fn join(&self, seeds: Vec<Seed>) -> Result<usize, Error> {
        let life = self.life().ok_or(Error::NotRunning)?;
        let runtime = life.runtime().clone();
        let joining = runtime.spawn(async move { seeds::join(&life, seeds).await });
        let mut joining = AbortOnDrop(joining);
        (&mut joining.0).await.map_err(|_| Error::NotRunning)
    }

    pub(crate) fn set_tags(&self, tags: BTreeMap<String, String>) {
        let told = tags.clone();
        // If the node does not run, the next start tells them.
        self.command(|protocol, now| protocol.set_tags(told, now));
        lock(&self.settings).tags = tags;
    }

    // Readers and user code.

    fn publish(&self, event: ClusterEvent) {
        if event.kind != EventKind::StateChanged {
            tracing::info!(%event, "cluster event");
        }
        self.subscribers.publish(event);
    }

    pub(crate) fn subscribe(&self, callback: Box<dyn Fn(&ClusterEvent) + Send + Sync>) -> Subscription {
        self.subscribers.subscribe(callback)
    }

    pub(crate) fn events(&self) -> EventStream {
        EventStream(self.subscribers.stream(|_| true))
    }

    /// What happens, but for changes of records: those a table watches.
    pub(crate) fn news(&self) -> Listening<ClusterEvent> {
        self.subscribers.stream(|event| event.kind != EventKind::StateChanged)
    }

    /// Keeps a table's types for it alone.
    pub(crate) fn attach(&self, types: &[StateType]) -> Result<(), Error> {
        let mut tables = lock(&self.tables);
        if let Some(state_type) = types.iter().find(|state_type| tables.contains(state_type)) {
            return Err(Error::TableAttached { state_type: state_type.to_string() });
        }
        tables.extend(types.iter().cloned());
        Ok(())
    }

    pub(crate) fn detach(&self, types: &[StateType]) {
        lock(&self.tables).retain(|state_type| !types.contains(state_type));
    }

    /// Watches a type; up to `room` changes wait for the reader.
    pub(crate) fn watch(self: &Arc<Self>, state_type: &StateType, room: usize) -> StateStream {
        StateStream::new(self, state_type, room)
    }

    pub(crate) fn register_provider(
        self: &Arc<Self>,
        provider: Arc<dyn StateProvider>,
        check: impl FnOnce(&StateType) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let state_type = provider.provider_type(); // the user's code: before any lock
        check(&state_type)?;
        let batch = self.config.max_batch_size;
        let worker = Worker::new(state_type, provider, Arc::downgrade(self), self.node_id(), batch);
        self.providers.register(worker)?.start_thread();
        Ok(())
    }

    pub(crate) fn unregister_provider(&self, state_type: &StateType) -> bool {
        self.providers.unregister(state_type)
    }
}

/// Who may start.
enum Claim {
    Ours(u64),
    /// It runs, or another start is under way.
    Taken,
    /// Whoever waits for the end of this turn.
    After(u64),
}

/// A task that ends with whoever waits for it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
