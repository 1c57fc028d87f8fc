//! One life of a node, from `start` to `stop`: the core behind its lock, the transport, the tasks. Every
//! input goes through `step`, which performs what comes of it before it lets go of the lock, so effects keep
//! their order. Nothing in here blocks while the lock is held.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, oneshot, watch},
    task::AbortHandle,
    time::{sleep_until, timeout},
};

use crate::{
    ClusterEvent, Error, EventData, EventKind, Identity, NodeId, Spread, StateType,
    driver::{
        CloseInfo, ConnectionInfo, Driver, Explanation, advertise,
        clock::{self, Clock},
        lock, renewal,
    },
    identity::{self, Policy, Signer, Trust},
    net::{Closed, Host, Judgement, Link, NetConfig, NetStats, StreamEvent, Transport, Way},
    proto::{self, Now, Output, Protocol, StreamInput, Time, Verdict, Vouch, lists::List},
    wire::{CloseCode, StreamId, hello::Introduction},
};

/// For the leave to be acknowledged; the core gives up by itself before that.
const LEAVE_MAX: Duration = Duration::from_millis(2_500);
/// Of how many nodes the end of the last connection is remembered.
const ENDS_MAX: usize = 4_096;
/// Lists of peers that wait to be judged; each has at most a megabyte.
const LISTS_WAITING_MAX: usize = 4;

pub(crate) struct Life {
    driver: Weak<Driver>,
    /// Which start of the driver this life belongs to.
    turn: u64,
    clock: Clock,
    core: Mutex<Option<Core>>,
    /// The next timeout has moved forward.
    rearmed: Notify,
    last_stream: AtomicU64,
    runtime: Handle,
    tasks: Mutex<Vec<AbortHandle>>,
    leave_spread: watch::Sender<bool>,
    synced: watch::Sender<Option<usize>>,
    /// The number of the own write that has waited longest to be spread; followed while somebody looks.
    waiting: watch::Sender<u64>,
    credentials: Arc<Credentials>,
    /// Revocation lists that peers sent, to be judged outside the lock: a long one takes its time.
    lists: mpsc::Sender<(NodeId, List)>,
    ends: Mutex<BTreeMap<NodeId, End>>,
    bound: SocketAddr,
    advertised: SocketAddr,
    node_id: NodeId,
    cluster: String,
    epoch: u64,
}

struct Core {
    protocol: Protocol,
    transport: Transport,
    /// The last time the core was told; a thread outside the runtime may read another clock in a test.
    told: Time,
    /// For when the timer task is set.
    armed: Option<Time>,
    tickets: HashMap<u64, oneshot::Sender<Spread>>,
    last_ticket: u64,
}

/// How the last connection to a node ended, and why the last dial failed.
#[derive(Clone, Default)]
struct End {
    close: Option<CloseInfo>,
    dial_error: Option<String>,
}

/// The identity in force, as the core needs it.
struct Credentials(ArcSwap<(Signer, Trust)>);

impl Credentials {
    fn load(identity: &Identity, policy: Policy) -> Result<Arc<(Signer, Trust)>, Error> {
        Ok(Arc::new((Signer::new(identity), Trust::new(identity, policy)?)))
    }
}

impl Vouch for Credentials {
    fn chain(&self) -> Bytes {
        self.0.load().0.chain()
    }

    fn sign(&self, message: &[u8]) -> Option<Bytes> {
        self.0.load().0.sign(message)
    }

    fn verify(&self, node: &NodeId, chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.0.load().1.verify_claim(node, chain, message, signature)
    }

    fn digest(&self, bytes: &[u8]) -> Bytes {
        identity::digest(bytes)
    }

    fn has_issued(&self, node: &NodeId, chain: &[u8]) -> bool {
        self.0.load().1.has_issued(node, chain)
    }

    fn is_by(&self, chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
        identity::is_by(chain, message, signature)
    }

    fn trusts_issuer(&self, issuer: u64) -> bool {
        self.0.load().1.trusts_issuer(issuer)
    }
}

impl Life {
    /// Opens the socket and serves. Must be called inside a tokio runtime.
    pub(super) fn open(
        driver: &Arc<Driver>,
        turn: u64,
        identity: &Identity,
        epoch: u64,
    ) -> Result<Arc<Self>, Error> {
        let runtime = Handle::try_current().map_err(|_| Error::NoRuntime)?;
        // There is no other way to ask whether the runtime has time enabled.
        catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).map_err(|_| Error::NoRuntime)?;
        let config = &driver.config;
        let policy = config.tls.policy();
        identity.check_usable(policy, clock::wall_now())?;
        let credentials = Credentials::load(identity, policy)?;
        let credentials = Arc::new(Credentials(ArcSwap::new(credentials)));
        let net = NetConfig {
            bind: SocketAddr::new(config.bind_address, config.bind_port),
            cluster: identity.cluster_name().into(),
            node_id: driver.checked.node_id.clone(),
            policy,
            max_connections: config.max_connections,
        };
        let clock = Clock::new();
        let relay = Arc::new(Relay(Mutex::new(None)));
        // Whoever connects before the life stands waits at this lock, for the few lines that follow.
        let mut slot = lock(&relay.0);
        let host = Arc::clone(&relay) as Arc<dyn Host>;
        let transport = catch_unwind(AssertUnwindSafe(|| Transport::bind(net.clone(), identity, host)))
            .map_err(|_| Error::NoRuntime)??;
        let bound = transport.local_address();
        let advertised = match driver.checked.advertise {
            Some(advertise) => advertise.at(bound),
            None => advertise::reachable(bound, &driver.checked.seeds),
        };
        let settings = driver.protocol_config(net.cluster.clone(), advertised, epoch);
        let vouch = Arc::clone(&credentials) as Arc<dyn Vouch>;
        let mut protocol = Protocol::new(settings, vouch, clock::entropy(), clock.now());
        protocol.take_lists(renewal::lists_of(identity), clock.now());
        protocol.note_certificate_end(&net.node_id, proto::time::wall_ms(identity.not_after()));
        let (lists, lists_of_peers) = mpsc::channel(LISTS_WAITING_MAX);
        let core = Core {
            protocol,
            transport,
            told: Time::ZERO,
            armed: None,
            tickets: HashMap::new(),
            last_ticket: 0,
        };
        let life = Arc::new(Self {
            driver: Arc::downgrade(driver),
            turn,
            clock,
            core: Mutex::new(Some(core)),
            rearmed: Notify::new(),
            last_stream: AtomicU64::new(0),
            runtime,
            tasks: Mutex::default(),
            leave_spread: watch::Sender::new(false),
            synced: watch::Sender::new(None),
            waiting: watch::Sender::new(u64::MAX),
            credentials,
            lists,
            ends: Mutex::default(),
            bound,
            advertised,
            node_id: net.node_id,
            cluster: net.cluster,
            epoch,
        });
        *slot = Some(Arc::downgrade(&life));
        drop(slot);
        life.spawn(keep_time(Orphan(Arc::downgrade(&life))));
        life.spawn(renewal::judge_lists(Arc::downgrade(driver), lists_of_peers));
        Ok(life)
    }

    pub(super) fn turn(&self) -> u64 {
        self.turn
    }

    pub(super) fn driver(&self) -> Option<Arc<Driver>> {
        self.driver.upgrade()
    }

    pub(super) fn bound(&self) -> SocketAddr {
        self.bound
    }

    pub(super) fn advertised(&self) -> SocketAddr {
        self.advertised
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs a task until the life ends.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.runtime.spawn(task).abort_handle();
        let mut tasks = lock(&self.tasks);
        tasks.retain(|task| !task.is_finished());
        tasks.push(handle);
    }

    /// Feeds the core one input and performs what comes of it. `None` once the life has ended.
    pub(super) fn step<R>(&self, input: impl FnOnce(&mut Protocol, Now) -> R) -> Option<R> {
        let mut slot = lock(&self.core);
        let core = slot.as_mut()?;
        let now = core.now(self.clock);
        let result = input(&mut core.protocol, now);
        self.settle(core);
        Some(result)
    }

    /// Performs what the core wants done, and sets the timer.
    fn settle(&self, core: &mut Core) {
        if let Some(driver) = self.driver.upgrade() {
            while let Some(output) = core.protocol.poll_output() {
                self.perform(core, &driver, output);
            }
            // Not the last one: whoever called holds a handle or the life, and a drop here would lock again.
            drop(driver);
        }
        if self.waiting.receiver_count() > 0 {
            let (_, waiting) = core.protocol.written_and_waiting();
            self.waiting.send_if_modified(|before| std::mem::replace(before, waiting) != waiting);
        }
        let next = core.protocol.poll_timeout();
        if next.is_some_and(|next| core.armed.is_none_or(|armed| next < armed)) {
            core.armed = next;
            self.rearmed.notify_one();
        }
    }

    /// Reads from the core. `None` once the life has ended.
    pub(super) fn read<R>(&self, read: impl FnOnce(&Protocol) -> R) -> Option<R> {
        lock(&self.core).as_ref().map(|core| read(&core.protocol))
    }

    fn perform(&self, core: &mut Core, driver: &Driver, output: Output) {
        let transport = &core.transport;
        match output {
            Output::Send { to, bytes } => drop(transport.send(&to, bytes)), // a drop is counted there
            Output::Dial { to, address } => transport.dial(&to, address),
            Output::OpenStream { to, stream } => transport.open_stream(&to, stream),
            Output::Frame { stream, bytes } => transport.send_frame(stream, bytes),
            Output::Finish { stream } => transport.finish(stream),
            Output::Reset { stream } => transport.reset(stream),
            Output::Close { peer, code, reason } => transport.close(&peer, code, reason),
            Output::Event(event) => driver.publish(event),
            Output::Apply(record) => driver.providers.apply(record),
            Output::Change(change) => driver.watchers.publish(&change),
            Output::NodeFailed(node) => driver.providers.node_failed(&node),
            Output::AskProviders => driver.providers.ask(),
            Output::Confirmed { ticket, spread } => {
                if let Some(waiting) = core.tickets.remove(&ticket) {
                    let _ = waiting.send(spread); // whoever asked may have gone
                }
            }
            Output::Synced { peers } => drop(self.synced.send_replace(Some(peers))),
            // Full, or ending: the next word of it brings it again.
            Output::List { from, list } => drop(self.lists.try_send((from, list))),
            Output::LeaveSpread => drop(self.leave_spread.send_replace(true)),
        }
    }

    /// Asks who has a record; the answer comes within `limit`, or never if the life ends.
    pub(super) fn confirm(
        &self,
        state_type: &StateType,
        key: &str,
        limit: Duration,
    ) -> Option<oneshot::Receiver<Spread>> {
        let mut slot = lock(&self.core);
        let core = slot.as_mut()?;
        let (send, receive) = oneshot::channel();
        core.last_ticket += 1;
        let ticket = core.last_ticket;
        core.tickets.insert(ticket, send);
        let now = core.now(self.clock);
        core.protocol.confirm(state_type, key, limit, ticket, now);
        self.settle(core);
        Some(receive)
    }

    pub(super) fn waiting(&self) -> watch::Receiver<u64> {
        self.waiting.subscribe()
    }

    pub(super) fn synced(&self) -> watch::Receiver<Option<usize>> {
        self.synced.subscribe()
    }

    /// Dials a seed. `Ok` only once welcomed.
    pub(super) async fn dial_seed(&self, address: SocketAddr) -> Result<NodeId, Error> {
        match self.transport() {
            Some(transport) => transport.dial_seed(address).await,
            None => Err(Error::NotRunning),
        }
    }

    fn transport(&self) -> Option<Transport> {
        lock(&self.core).as_ref().map(|core| core.transport.clone())
    }

    pub(super) fn remote_of(&self, node: &NodeId) -> Option<SocketAddr> {
        self.transport()?.link(node).map(|link| link.remote)
    }

    pub(super) fn net_stats(&self) -> Option<NetStats> {
        Some(self.transport()?.counters())
    }

    pub(super) fn explain(&self, node: &NodeId) -> Option<Explanation> {
        let (info, member) =
            self.read(|protocol| Some((protocol.node(node)?, protocol.explain(node)?)))??;
        let link = self.transport().and_then(|transport| transport.link(node));
        let end = lock(&self.ends).get(node).cloned().unwrap_or_default();
        let connection = link.map(|link| ConnectionInfo {
            remote: link.remote,
            dialled: link.dialled,
            rtt: link.rtt,
            packets_sent: link.packets_sent,
            packets_lost: link.packets_lost,
            bytes_sent: link.bytes_sent,
            bytes_received: link.bytes_received,
            certificate_end: link.not_after,
        });
        Some(Explanation {
            node: info,
            member,
            connection,
            last_close: end.close,
            last_dial_error: end.dial_error,
        })
    }

    /// Takes a new identity over; how many peers it made us close. On an error the old one serves on.
    pub(super) fn reload(&self, identity: &Identity, policy: Policy) -> Result<usize, Error> {
        let end = proto::time::wall_ms(identity.not_after());
        self.put_in_force(identity, policy, |protocol, now| {
            protocol.note_certificate_end(&self.node_id, end);
            protocol.sign_anew(now);
        })
    }

    /// Judges peers by an identity from now on, whose certificate is the one in force.
    pub(super) fn trust(&self, identity: &Identity, policy: Policy) -> Result<usize, Error> {
        self.put_in_force(identity, policy, |_, _| ())
    }

    fn put_in_force(
        &self,
        identity: &Identity,
        policy: Policy,
        then: impl FnOnce(&mut Protocol, Now),
    ) -> Result<usize, Error> {
        let Some(transport) = self.transport() else { return Ok(0) };
        let credentials = Credentials::load(identity, policy)?;
        let closed = transport.reload(identity)?;
        let lists = renewal::lists_of(identity);
        self.step(|protocol, now| {
            // In one step with what follows: a record signed meanwhile would name the certificate before.
            self.credentials.0.store(credentials);
            protocol.take_lists(lists, now);
            then(protocol, now);
        });
        Ok(closed)
    }

    /// Says goodbye, and closes every connection once the others know.
    pub(super) async fn leave(&self) {
        let mut spread = self.leave_spread.subscribe();
        if self.step(Protocol::leave).is_none() {
            return;
        }
        if timeout(LEAVE_MAX, spread.wait_for(|spread| *spread)).await.is_err() {
            tracing::warn!("nobody acknowledged that this node leaves; peers will find out by themselves");
        }
        if let Some(transport) = self.transport() {
            transport.shutdown(CloseCode::LEFT, "left").await;
        }
    }

    /// Ends the life at once: the socket closes, tasks end, whoever waits is told. After a `leave` nothing is
    /// left to close; without, it is a crash to the peers.
    pub(super) fn kill(&self) {
        let core = lock(&self.core).take();
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
        if let Some(core) = core {
            core.transport.halt(); // a task may still hold it
            drop(core); // outside the lock: a store of a million records takes its time
        }
    }

    fn remember(&self, node: &NodeId, change: impl FnOnce(&mut End)) {
        let mut ends = lock(&self.ends);
        if ends.len() >= ENDS_MAX && !ends.contains_key(node) {
            ends.pop_first();
        }
        change(ends.entry(node.clone()).or_default());
    }

    /// What a node that is ending says: its socket closes before anyone can act on it.
    fn last_introduction(&self) -> Introduction {
        Introduction {
            versions: (crate::wire::hello::VERSION_MIN, crate::wire::hello::VERSION_MAX),
            cluster: self.cluster.clone(),
            node_id: self.node_id.clone(),
            epoch: self.epoch,
            incarnation: 0,
            zone: None,
            listen: None,
            your_epoch: 0,
            core: Bytes::new(),
        }
    }
}

impl Core {
    fn now(&mut self, clock: Clock) -> Now {
        let now = clock.now();
        self.told = self.told.max(now.time);
        Now { time: self.told, wall_ms: now.wall_ms }
    }
}

/// Tells the driver that the runtime has dropped the task, though it may never have run: without tasks there
/// is no life.
struct Orphan(Weak<Life>);

impl Drop for Orphan {
    fn drop(&mut self) {
        if let Some(life) = self.0.upgrade()
            && let Some(driver) = life.driver.upgrade()
        {
            driver.end(life.turn);
        }
    }
}

/// The timer: asks the clock each turn, so that a busy socket cannot starve a timeout.
async fn keep_time(orphan: Orphan) {
    loop {
        let Some(alive) = orphan.0.upgrade() else { return };
        let next = {
            let mut slot = lock(&alive.core);
            let Some(core) = slot.as_mut() else { return };
            core.armed = core.protocol.poll_timeout();
            core.armed
        };
        match next.and_then(|next| alive.clock.instant(next)) {
            None => alive.rearmed.notified().await,
            Some(next) => tokio::select! {
                () = sleep_until(next) => {}
                () = alive.rearmed.notified() => continue,
            },
        }
        alive.step(Protocol::handle_timeout);
    }
}

/// What the transport talks to: the life, which must not be kept alive by its own transport.
struct Relay(Mutex<Option<Weak<Life>>>);

impl Relay {
    fn life(&self) -> Option<Arc<Life>> {
        lock(&self.0).as_ref().and_then(Weak::upgrade)
    }
}

impl Host for Relay {
    fn introduce(&self, peer: Option<&NodeId>) -> Introduction {
        match self.life() {
            Some(life) => {
                life.read(|protocol| protocol.introduction(peer)).unwrap_or_else(|| life.last_introduction())
            }
            // The transport outlives its life by moments at most, and nobody reads this any more.
            None => Introduction {
                versions: (crate::wire::hello::VERSION_MIN, crate::wire::hello::VERSION_MAX),
                cluster: String::new(),
                node_id: NodeId::random(),
                epoch: 0,
                incarnation: 0,
                zone: None,
                listen: None,
                your_epoch: 0,
                core: Bytes::new(),
            },
        }
    }

    fn judge(&self, peer: &Introduction) -> Judgement {
        let verdict = self.life().and_then(|life| {
            let now = life.clock.now();
            life.read(|protocol| protocol.judge(peer, now))
        });
        match verdict {
            Some(Verdict::Admit) => Judgement::Admit,
            Some(Verdict::Refuse(code, reason)) => Judgement::Refuse(code, reason),
            Some(Verdict::Incumbent { epoch, address }) => Judgement::Incumbent { epoch, address },
            None => Judgement::Refuse(CloseCode::LEFT, "this node is stopping".into()),
        }
    }

    fn connected(&self, peer: &NodeId, introduction: Introduction, link: Link) {
        if let Some(life) = self.life() {
            life.remember(peer, |end| end.dial_error = None);
            life.step(|protocol, now| {
                protocol.handle_connected(peer, &introduction, link.remote, link.rtt, now);
                protocol.note_certificate_end(peer, proto::time::wall_ms(link.not_after));
            });
        }
    }

    fn disconnected(&self, peer: &NodeId, closed: &Closed) {
        if let Some(life) = self.life() {
            let close = CloseInfo {
                code: closed.code.0,
                name: closed.code.name(),
                reason: closed.reason.clone(),
                by_peer: closed.by_peer,
                at: clock::wall_now(),
            };
            life.remember(peer, |end| end.close = Some(close));
            life.step(|protocol, now| protocol.handle_disconnected(peer, closed.code, closed.by_peer, now));
        }
    }

    fn dial_failed(&self, peer: &NodeId, address: SocketAddr, why: &Error) {
        if let Some(life) = self.life() {
            tracing::debug!(%peer, %address, error = %why, "dialling failed");
            life.remember(peer, |end| end.dial_error = Some(why.to_string()));
            life.step(|protocol, now| protocol.handle_dial_failed(peer, now));
        }
    }

    fn message(&self, from: &NodeId, bytes: Bytes, way: Way) -> usize {
        let taken = self.life().and_then(|life| {
            life.step(|protocol, now| {
                let before = protocol.records_taken();
                match way {
                    Way::Datagram => protocol.handle_datagram(from, &bytes, now),
                    Way::Stream => protocol.handle_message(from, &bytes, now),
                }
                protocol.records_taken() - before
            })
        });
        usize::try_from(taken.unwrap_or(0)).unwrap_or(usize::MAX)
    }

    fn stream(&self, peer: &NodeId, stream: StreamId, event: StreamEvent) {
        let input = match event {
            StreamEvent::Opened => StreamInput::Opened,
            StreamEvent::Frame(bytes) => StreamInput::Frame(bytes),
            StreamEvent::Sent => StreamInput::Sent,
            StreamEvent::Finished => StreamInput::Finished,
            StreamEvent::Lost => StreamInput::Lost,
        };
        if let Some(life) = self.life() {
            life.step(|protocol, now| protocol.handle_stream(peer, stream, input, now));
        }
    }

    fn stream_id(&self) -> StreamId {
        // Without a life nobody looks at the number.
        StreamId(self.life().map_or(0, |life| life.last_stream.fetch_add(2, Relaxed) + 2))
    }

    fn conflict(&self, node: &NodeId, reason: &str) {
        if let Some(driver) = self.life().and_then(|life| life.driver.upgrade()) {
            tracing::warn!(%node, reason, "two live processes have one node id");
            driver.publish(ClusterEvent::new(
                EventKind::NodeConflict,
                Some(node.clone()),
                clock::wall_now(),
                EventData::Reason(reason.into()),
            ));
        }
    }
}
