//! Bytes to and from a `NodeId` over QUIC. Knows connections, streams, datagrams and certificates; knows no
//! rule of the protocol, decodes the hello and nothing else, and never lets anything of a peer through before
//! its welcome.
//!
//! `endpoint` the socket and quinn's settings · `tls` what rustls asks · `hello` admission · `pool` one
//! connection a peer · `datagram`, `stream` what travels · `close` how it ends · `budget` how much of it ·
//! `stats` what was counted

mod budget;
mod close;
mod datagram;
mod endpoint;
mod hello;
#[cfg(test)]
pub(crate) mod memory;
mod pool;
mod stats;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use quinn::{AsyncUdpSocket, Endpoint};
use rustls::pki_types::UnixTime;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    task::JoinSet,
};

pub use self::stats::NetStats;
use self::{
    budget::{Bucket, Gate, Penalties},
    endpoint::Socket,
    pool::{Conn, Pool, Tell},
    stats::Counters,
    stream::Streams,
    tls::Tls,
};
pub(crate) use self::{close::Closed, stream::StreamEvent};
#[cfg(any(all(test, feature = "authority"), feature = "fuzzing"))]
pub(crate) use self::{
    hello::decode as decode_hello,
    stream::{Fault, read_frame},
};
use crate::{
    Error, NodeId,
    driver::clock,
    identity::{Identity, Policy, Role},
    wire::{CloseCode, StreamId, hello::Introduction, limits},
};

/// How long the end of all connections may take.
const DRAIN: Duration = Duration::from_secs(1);
/// How often the clock is looked at for certificates that end: the wall clock may jump.
const EXPIRY_CHECK: Duration = Duration::from_secs(1);

/// What the transport is told at its making.
#[derive(Clone, Debug)]
pub(crate) struct NetConfig {
    pub(crate) bind: SocketAddr,
    pub(crate) cluster: String,
    pub(crate) node_id: NodeId,
    pub(crate) policy: Policy,
    pub(crate) max_connections: usize,
}

/// Who is told what happens, on the transport's own tasks; none of these may block. They may call the
/// transport: it holds no lock meanwhile, and calls back from none of its own functions.
pub(crate) trait Host: Send + Sync + 'static {
    /// What to say of ourselves to `peer`, now; `None` is a seed whose name is not known yet.
    fn introduce(&self, peer: Option<&NodeId>) -> Introduction;
    /// May this peer enter? Asked after its identity was checked.
    fn judge(&self, peer: &Introduction) -> Judgement;
    fn connected(&self, peer: &NodeId, introduction: Introduction, link: Link);
    /// The last connection to the peer is gone.
    fn disconnected(&self, peer: &NodeId, closed: &Closed);
    fn dial_failed(&self, peer: &NodeId, address: SocketAddr, why: &Error);
    /// How many records it held.
    fn message(&self, from: &NodeId, bytes: Bytes, way: Way) -> usize;
    fn stream(&self, peer: &NodeId, stream: StreamId, event: StreamEvent);
    /// A fresh number for a stream that a peer opened.
    fn stream_id(&self) -> StreamId;
    /// Two live processes have one id.
    fn conflict(&self, node: &NodeId, reason: &str);
}

/// By which way a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Datagram,
    Stream,
}

/// The host's verdict on a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    Admit,
    Refuse(CloseCode, String),
    /// The hello of a newer life of a node that is believed alive: the older one must be found silent first.
    Incumbent {
        epoch: u64,
        address: SocketAddr,
    },
}

/// A connection, as it is at its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) remote: SocketAddr,
    /// This side dialled.
    pub(crate) dialled: bool,
    pub(crate) rtt: Duration,
    pub(crate) not_after: SystemTime,
}

/// A connection, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkStats {
    pub(crate) remote: SocketAddr,
    pub(crate) dialled: bool,
    pub(crate) rtt: Duration,
    pub(crate) packets_sent: u64,
    pub(crate) packets_lost: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) not_after: SystemTime,
}

/// The transport: a cheap handle. With the last one every task ends and the socket closes, a crash to the
/// peers.
#[derive(Clone)]
pub(crate) struct Transport {
    shared: Arc<Shared>,
    _last: Arc<Last>,
}

/// What all tasks see. They hold it, so its end is not the transport's end: `Last` is.
pub(crate) struct Shared {
    config: NetConfig,
    host: Arc<dyn Host>,
    tls: Arc<Tls>,
    client: quinn::ClientConfig,
    runtime: Handle,
    local: SocketAddr,
    /// Taken at the end, or quinn's own task would never end.
    endpoint: Mutex<Option<Endpoint>>,
    /// `None` on a test's network in memory.
    socket: Option<Arc<Socket>>,
    /// `None` once the transport has stopped: nothing starts any more.
    tasks: Mutex<Option<JoinSet<()>>>,
    pool: Mutex<Pool>,
    tell: Tell,
    streams: Streams,
    counters: Counters,
    gate: Mutex<Gate>,
    penalties: Mutex<Penalties>,
    /// How often a refusal is logged, which peers can cause at will.
    log: Mutex<Bucket>,
    unwelcomed: Arc<Semaphore>,
    unvalidated: Arc<Semaphore>,
    /// Grows with each reload: who was judged before it is judged again.
    generation: AtomicU64,
    /// A connection came: its certificate may be the next to end.
    admitted: Notify,
}

struct Last(Arc<Shared>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.halt();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn unix_now() -> UnixTime {
    let since = clock::wall_now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::since_unix_epoch(since)
}

impl Transport {
    /// Binds the socket and serves. Must be called inside a tokio runtime.
    pub(crate) fn bind(config: NetConfig, identity: &Identity, host: Arc<dyn Host>) -> Result<Self, Error> {
        #[cfg(test)]
        if let Some(network) = memory::current() {
            return Self::bind_on(network.socket(config.bind), config, identity, host);
        }
        let runtime = Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let socket = Socket::bind(config.bind)?;
        Self::serve(config, identity, host, runtime, Arc::clone(&socket) as _, Some(socket))
    }

    /// As `bind`, on a network of the test's own.
    #[cfg(test)]
    pub(crate) fn bind_on(
        socket: Arc<dyn AsyncUdpSocket>,
        config: NetConfig,
        identity: &Identity,
        host: Arc<dyn Host>,
    ) -> Result<Self, Error> {
        let runtime = Handle::try_current().map_err(|_| Error::NoRuntime)?;
        Self::serve(config, identity, host, runtime, socket, None)
    }

    fn serve(
        config: NetConfig,
        identity: &Identity,
        host: Arc<dyn Host>,
        runtime: Handle,
        socket: Arc<dyn AsyncUdpSocket>,
        ours: Option<Arc<Socket>>,
    ) -> Result<Self, Error> {
        let system = |source| Error::System { action: "serve on the socket", source };
        let local = socket.local_addr().map_err(system)?;
        let tls = Tls::new(identity, config.policy)?;
        let client = endpoint::client_config(&tls)?;
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint::endpoint_config(identity),
            Some(endpoint::server_config(&tls)?),
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(system)?;
        let now = clock::monotonic();
        let shared = Arc::new(Shared {
            config,
            host,
            tls,
            client,
            runtime,
            local,
            endpoint: Mutex::new(Some(endpoint.clone())),
            socket: ours,
            tasks: Mutex::new(Some(JoinSet::new())),
            pool: Mutex::default(),
            tell: Tell::default(),
            streams: Streams::default(),
            counters: Counters::default(),
            gate: Mutex::new(Gate::new(limits::HANDSHAKES, limits::HANDSHAKES_ALL, now)),
            penalties: Mutex::default(),
            log: Mutex::new(Bucket::new(5, 20, now)),
            unwelcomed: Arc::new(Semaphore::new(limits::UNWELCOMED_MAX)),
            unvalidated: Arc::new(Semaphore::new(limits::UNVALIDATED_MAX)),
            generation: AtomicU64::new(0),
            admitted: Notify::new(),
        });
        shared.spawn(accept(Arc::clone(&shared), endpoint));
        shared.spawn(expire(Arc::clone(&shared)));
        Ok(Self { _last: Arc::new(Last(Arc::clone(&shared))), shared })
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.shared.local
    }

    /// Has a connection to the peer made in the background. Ends in `connected` or `dial_failed`; nothing
    /// happens if one stands or is being dialled.
    pub(crate) fn dial(&self, peer: &NodeId, address: SocketAddr) {
        if lock(&self.shared.pool).begin_dial(peer) {
            let (shared, peer) = (Arc::clone(&self.shared), peer.clone());
            self.shared.spawn(async move {
                let result = match shared.must_stay_away(&peer) {
                    None => hello::dial(&shared, address, Some(&peer)).await.map(drop),
                    Some(closed) => Err(closed.refusal(address)),
                };
                shared.dial_ended(&peer, address, result.err());
            });
        }
    }

    /// Dials an address whose node is not known. `Ok` only once welcomed.
    pub(crate) async fn dial_seed(&self, address: SocketAddr) -> Result<NodeId, Error> {
        hello::dial(&self.shared, address, None).await
    }

    /// Sends a message, as a datagram if the path takes it. Never blocks; `false`: dropped and counted.
    pub(crate) fn send(&self, peer: &NodeId, bytes: Bytes) -> bool {
        let shared = &self.shared;
        let sent = match lock(&shared.pool).route(peer) {
            pool::Route::Through(conn) => Some((conn, bytes)),
            pool::Route::Waits(waiting) => {
                if waiting.push(bytes) {
                    shared.counters.messages_queued.one();
                    return true;
                }
                None
            }
            pool::Route::Nowhere => None,
        };
        let sent = sent.is_some_and(|(conn, bytes)| datagram::send(shared, &conn, bytes));
        if !sent {
            shared.counters.messages_dropped.one();
        }
        sent
    }

    /// Opens a stream for an exchange. If it cannot be, `StreamEvent::Lost` follows.
    pub(crate) fn open_stream(&self, peer: &NodeId, stream: StreamId) {
        stream::open(&self.shared, peer, stream);
    }

    pub(crate) fn send_frame(&self, stream: StreamId, bytes: Bytes) {
        self.shared.streams.frame(stream, bytes);
    }

    pub(crate) fn finish(&self, stream: StreamId) {
        self.shared.streams.finish(stream);
    }

    /// Gives a stream up; nothing more is heard of it.
    pub(crate) fn reset(&self, stream: StreamId) {
        self.shared.streams.forget(stream);
    }

    /// Closes the connections to a peer; `disconnected` follows.
    pub(crate) fn close(&self, peer: &NodeId, code: CloseCode, reason: &str) {
        let conns = lock(&self.shared.pool).of(peer);
        for conn in conns {
            conn.close(Closed::ours(code, reason));
        }
    }

    /// New handshakes use the new identity at once, live peers are judged by it; how many were closed.
    pub(crate) fn reload(&self, identity: &Identity) -> Result<usize, Error> {
        let shared = &self.shared;
        shared.tls.reload(identity, &shared.config)?;
        shared.generation.fetch_add(1, Relaxed);
        let conns = lock(&shared.pool).all();
        Ok(conns.iter().filter(|conn| !shared.still_trusted(conn)).count())
    }

    pub(crate) fn link(&self, peer: &NodeId) -> Option<LinkStats> {
        let conn = lock(&self.shared.pool).current(peer)?;
        let stats = conn.connection.stats();
        Some(LinkStats {
            remote: conn.connection.remote_address(),
            dialled: conn.dialled,
            rtt: conn.connection.rtt(),
            packets_sent: stats.path.sent_packets,
            packets_lost: stats.path.lost_packets,
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            not_after: conn.not_after,
        })
    }

    pub(crate) fn counters(&self) -> NetStats {
        let mut stats = self.shared.counters.read();
        stats.socket_errors = self.shared.socket.as_ref().map_or(0, |socket| socket.errors());
        stats
    }

    /// Ends at once, a crash to the peers, whoever still holds a handle.
    pub(crate) fn halt(&self) {
        self.shared.halt();
    }

    /// Closes every connection (the host hears no `disconnected` of it), waits a second at most until the
    /// peers know, ends all tasks and frees the port.
    pub(crate) async fn shutdown(&self, code: CloseCode, reason: &str) {
        let shared = &self.shared;
        let conns = lock(&shared.pool).stop();
        let closed = Closed::ours(code, reason);
        for conn in &conns {
            conn.close(closed.clone());
        }
        drop(conns);
        let endpoint = lock(&shared.endpoint).take();
        if let Some(endpoint) = endpoint {
            endpoint.close(close::varint(code), closed.reason.as_bytes());
            let _ = tokio::time::timeout(DRAIN, endpoint.wait_idle()).await;
        }
        let tasks = lock(&shared.tasks).take();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
        shared.halt();
    }
}

impl Shared {
    /// Runs a task that ends with the transport.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = lock(&self.tasks).as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn_on(task, &self.runtime);
        }
    }

    fn endpoint(&self) -> Option<Endpoint> {
        lock(&self.endpoint).clone()
    }

    /// Ends everything at once, without a word to the peers.
    fn halt(&self) {
        let tasks = lock(&self.tasks).take();
        drop(tasks); // aborts them
        self.streams.clear();
        let conns = lock(&self.pool).stop();
        drop(conns);
        if let Some(endpoint) = lock(&self.endpoint).take() {
            endpoint.close(close::varint(CloseCode::UNSPECIFIED), b"");
        }
        if let Some(socket) = &self.socket {
            socket.close();
        }
    }

    /// Judges a live peer by the identity in force; one no longer trusted is closed.
    fn still_trusted(&self, conn: &Conn) -> bool {
        let role = if conn.dialled { Role::Dialled } else { Role::Dialler };
        match self.tls.trust().judge(&conn.chain, role, unix_now()) {
            Ok(peer) if peer.cluster == self.config.cluster => true,
            Ok(peer) => {
                let reason = format!(
                    "the certificate is of cluster {}, ours is {}",
                    peer.cluster, self.config.cluster
                );
                conn.close(Closed::ours(CloseCode::NO_LONGER_TRUSTED, reason));
                false
            }
            Err(rejection) => {
                conn.close(Closed::ours(CloseCode::NO_LONGER_TRUSTED, rejection.reason));
                false
            }
        }
    }

    /// Why a peer gets no connection yet that was closed for what it used.
    fn must_stay_away(&self, peer: &NodeId) -> Option<Closed> {
        let left = lock(&self.penalties).left(peer, clock::monotonic())?;
        let reason = format!(
            "{peer} was over its budget a moment ago; it may come back in {:.1} s",
            left.as_secs_f64()
        );
        Some(Closed::ours(CloseCode::RATE_LIMITED, reason))
    }

    /// Closes the connection of a peer that uses more than its budget, and keeps it away for a while.
    fn limit(&self, conn: &Conn, reason: String) {
        if conn.connection.close_reason().is_some() {
            return; // what it had sent by then is read yet, and must not count again
        }
        lock(&self.penalties).punish(&conn.peer, clock::monotonic());
        conn.close(Closed::ours(CloseCode::RATE_LIMITED, reason));
    }

    /// Whether one more refusal is logged now; the others are only counted.
    fn may_log(&self) -> bool {
        lock(&self.log).take(clock::monotonic())
    }
}

/// Lets peers begin handshakes, within bounds.
async fn accept(shared: Arc<Shared>, endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        shared.counters.handshakes_seen.one();
        let Ok(unwelcomed) = Arc::clone(&shared.unwelcomed).try_acquire_owned() else {
            shared.counters.handshakes_ignored.one();
            incoming.ignore();
            continue;
        };
        let mut unvalidated = None;
        if !incoming.remote_address_validated() {
            unvalidated = Arc::clone(&shared.unvalidated).try_acquire_owned().ok();
            if unvalidated.is_none() {
                shared.counters.handshakes_retried.one();
                let _ = incoming.retry();
                continue;
            }
        }
        if !lock(&shared.gate).take(incoming.remote_address().ip(), clock::monotonic()) {
            shared.counters.handshakes_ignored.one();
            incoming.ignore(); // an honest peer asks again a little later
            continue;
        }
        let task = hello::accept(Arc::clone(&shared), incoming, unvalidated);
        shared.spawn(async move {
            task.await;
            drop(unwelcomed);
        });
    }
}

/// Closes connections whose certificates have ended.
async fn expire(shared: Arc<Shared>) {
    loop {
        let now = clock::wall_now();
        let mut next = EXPIRY_CHECK;
        for conn in lock(&shared.pool).all() {
            match conn.not_after.duration_since(now) {
                Ok(left) => next = next.min(left + Duration::from_millis(10)),
                Err(_) => conn.close(Closed::ours(
                    CloseCode::NO_LONGER_TRUSTED,
                    format!("the certificate of {} has expired", conn.peer),
                )),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(next) => {}
            () = shared.admitted.notified() => {}
        }
    }
}
