//! One connection a peer: which of two stays, what waits for one, which goes when there are too many. Tells
//! the host in the order in which things happened, and never while a lock is held.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use quinn::ConnectionError;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use crate::{
    Error, NodeId,
    driver::clock,
    net::{
        Closed, Link, Shared, Way,
        budget::{Bucket, Budget, Spent},
        close, datagram, lock, stream,
    },
    wire::{CloseCode, hello::Introduction, limits},
};

/// Messages that wait for one peer's connection.
const WAITING_MAX: usize = 64;
/// Bytes of them.
const WAITING_BYTES_MAX: usize = 256 * 1024;
/// How long the loser of two connections is still read.
const LINGER: Duration = Duration::from_millis(500);
/// The same, where it is the other side's duty to close it.
const LINGER_FOREIGN: Duration = Duration::from_secs(5);

/// An admitted connection.
pub(crate) struct Conn {
    /// Our own number: quinn's stable id can come again.
    pub(crate) id: u64,
    pub(crate) peer: NodeId,
    pub(crate) epoch: u64,
    pub(crate) dialled: bool,
    pub(crate) connection: quinn::Connection,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) not_after: SystemTime,
    /// The reload under which it was judged.
    pub(crate) generation: u64,
    pub(crate) messages: stream::MessageQueue,
    /// Records that it brings, by whichever way.
    records: Mutex<Budget>,
    /// Datagrams that this side sends.
    sending: Mutex<Bucket>,
    used: AtomicU64,
    /// What this side said when it closed; quinn only knows that it did.
    closing: Mutex<Option<Closed>>,
}

impl Conn {
    pub(crate) fn new(
        admission: Admission,
        peer: NodeId,
        epoch: u64,
        dialled: bool,
        connection: quinn::Connection,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let now = clock::monotonic();
        let (per_second, burst) = limits::DATAGRAMS_SENT;
        Arc::new(Self {
            id: NEXT.fetch_add(1, Relaxed),
            peer,
            epoch,
            dialled,
            connection,
            chain: admission.chain,
            not_after: admission.not_after,
            generation: admission.generation,
            messages: stream::MessageQueue::default(),
            records: Mutex::new(Budget::new(limits::RECORDS, now)),
            sending: Mutex::new(Bucket::new(per_second, burst, now)),
            used: AtomicU64::new(0),
            closing: Mutex::default(),
        })
    }

    /// Closes it, unless it is closed. The connection's task tells the host.
    pub(crate) fn close(&self, closed: Closed) {
        let closed = lock(&self.closing).get_or_insert(closed).clone();
        close::close(&self.connection, &closed);
    }

    pub(crate) fn may_send_datagram(&self) -> bool {
        lock(&self.sending).take(clock::monotonic())
    }

    /// It has brought so many records.
    pub(crate) fn spend_records(&self, records: usize) -> Spent {
        lock(&self.records).spend(records, clock::monotonic())
    }

    fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    fn link(&self) -> Link {
        Link {
            remote: self.connection.remote_address(),
            dialled: self.dialled,
            rtt: self.connection.rtt(),
            not_after: self.not_after,
        }
    }
}

/// What the handshake proved.
pub(crate) struct Admission {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) not_after: SystemTime,
    pub(crate) generation: u64,
}

#[derive(Default)]
pub(crate) struct Pool {
    slots: BTreeMap<NodeId, Slot>,
    /// Every admitted connection, those that are being closed included.
    all: BTreeMap<u64, Arc<Conn>>,
    stopped: bool,
    uses: u64,
}

#[derive(Default)]
struct Slot {
    current: Option<Arc<Conn>>,
    dialling: bool,
    waiting: Waiting,
}

/// Messages for a peer that is being dialled.
#[derive(Default)]
pub(crate) struct Waiting {
    messages: VecDeque<Bytes>,
    bytes: usize,
}

impl Waiting {
    /// `false`: full; what waits already is older, but was promised.
    pub(crate) fn push(&mut self, bytes: Bytes) -> bool {
        let total = self.bytes.saturating_add(bytes.len());
        let room = self.messages.len() < WAITING_MAX && total <= WAITING_BYTES_MAX;
        if room {
            self.bytes = total;
            self.messages.push_back(bytes);
        }
        room
    }
}

/// Where a message goes.
pub(crate) enum Route<'a> {
    Through(Arc<Conn>),
    Waits(&'a mut Waiting),
    Nowhere,
}

impl Pool {
    pub(crate) fn route(&mut self, peer: &NodeId) -> Route<'_> {
        self.uses += 1;
        match self.slots.get_mut(peer) {
            Some(Slot { current: Some(conn), .. }) => {
                conn.used.store(self.uses, Relaxed);
                Route::Through(Arc::clone(conn))
            }
            Some(Slot { dialling: true, waiting, .. }) => Route::Waits(waiting),
            _ => Route::Nowhere,
        }
    }

    pub(crate) fn current(&self, peer: &NodeId) -> Option<Arc<Conn>> {
        self.slots.get(peer)?.current.clone()
    }

    /// The peer's connection if it is not known to be dead.
    pub(crate) fn open(&self, peer: &NodeId) -> Option<Arc<Conn>> {
        self.current(peer).filter(|conn| conn.is_open())
    }

    pub(crate) fn of(&self, peer: &NodeId) -> Vec<Arc<Conn>> {
        self.all.values().filter(|conn| conn.peer == *peer).cloned().collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Conn>> {
        self.all.values().cloned().collect()
    }

    /// Whether a dial is due: neither connected nor being dialled.
    pub(crate) fn begin_dial(&mut self, peer: &NodeId) -> bool {
        if self.stopped {
            return false;
        }
        let slot = self.slots.entry(peer.clone()).or_default();
        if slot.dialling || slot.current.as_ref().is_some_and(|conn| conn.is_open()) {
            return false;
        }
        slot.dialling = true;
        true
    }

    /// Admits nobody any more; gives up everyone.
    pub(crate) fn stop(&mut self) -> Vec<Arc<Conn>> {
        self.stopped = true;
        self.slots.clear();
        std::mem::take(&mut self.all).into_values().collect()
    }

    fn tidy(&mut self, peer: &NodeId) {
        if self.slots.get(peer).is_some_and(|slot| slot.current.is_none() && !slot.dialling) {
            self.slots.remove(peer);
        }
    }

    /// The least recently used connection, if there are too many.
    fn surplus(&self, max: usize, newest: u64) -> Option<Arc<Conn>> {
        let current = || self.slots.values().filter_map(|slot| slot.current.as_ref());
        if current().count() <= max {
            return None;
        }
        current().filter(|conn| conn.id != newest).min_by_key(|conn| conn.used.load(Relaxed)).cloned()
    }
}

/// What the host is yet to be told. Whoever finds nobody at it tells it, in order.
#[derive(Default)]
pub(crate) struct Tell(Mutex<(VecDeque<News>, bool)>);

enum News {
    Connected(Arc<Conn>, Box<Introduction>),
    /// A second connection of a peer that the host knows as connected.
    Serve(Arc<Conn>),
    Disconnected(NodeId, Closed),
    DialFailed(NodeId, SocketAddr, Error),
}

impl Tell {
    fn add(&self, news: News) {
        lock(&self.0).0.push_back(news);
    }

    /// The next to tell; once there is none, nobody is at it.
    fn next(&self) -> Option<News> {
        let mut queue = lock(&self.0);
        let news = queue.0.pop_front();
        queue.1 = news.is_some();
        news
    }

    fn begin(&self) -> bool {
        !std::mem::replace(&mut lock(&self.0).1, true)
    }
}

impl Shared {
    /// Takes a connection in, whose peer was found worthy, and settles which of several to one peer stays.
    /// The host hears of it at the next `tell`.
    pub(crate) fn admit(
        self: &Arc<Self>,
        conn: &Arc<Conn>,
        introduction: Introduction,
    ) -> Result<(), Closed> {
        let mut pool = lock(&self.pool);
        if pool.stopped {
            return Err(Closed::ours(CloseCode::LEFT, "the node is stopping"));
        }
        pool.uses += 1;
        conn.used.store(pool.uses, Relaxed);
        let slot = pool.slots.entry(conn.peer.clone()).or_default();
        let mut over = None;
        match slot.current.take() {
            None => {
                slot.current = Some(Arc::clone(conn));
                self.tell.add(News::Connected(Arc::clone(conn), Box::new(introduction)));
            }
            Some(old) if old.epoch > conn.epoch => {
                let reason =
                    format!("{} lives on with epoch {}, this is {}", conn.peer, old.epoch, conn.epoch);
                slot.current = Some(old);
                return Err(Closed::ours(CloseCode::DUPLICATE_ID, reason));
            }
            Some(old) if old.epoch < conn.epoch => {
                let closed = Closed::ours(CloseCode::RESTARTING, format!("{} has started anew", conn.peer));
                slot.current = Some(Arc::clone(conn));
                self.tell.add(News::Disconnected(conn.peer.clone(), closed.clone()));
                self.tell.add(News::Connected(Arc::clone(conn), Box::new(introduction)));
                over = Some((old, closed, Duration::ZERO));
            }
            Some(old) => {
                let closed = Closed::ours(CloseCode::DUPLICATE_CONNECTION, "one connection is enough");
                let we_keep_ours = self.config.node_id < conn.peer;
                self.counters.duplicates.one();
                // Of two in one direction the dialler knew that the older is of no use.
                let newer_stays =
                    !old.is_open() || old.dialled == conn.dialled || conn.dialled == we_keep_ours;
                let (stays, goes) = if newer_stays { (conn, &old) } else { (&old, conn) };
                let wait = if we_keep_ours { LINGER } else { LINGER_FOREIGN };
                over = Some((Arc::clone(goes), closed, wait));
                slot.current = Some(Arc::clone(stays));
                self.tell.add(News::Serve(Arc::clone(conn)));
            }
        }
        pool.all.insert(conn.id, Arc::clone(conn));
        let surplus = pool.surplus(self.config.max_connections, conn.id);
        drop(pool);
        if let Some((goes, closed, wait)) = over {
            self.close_later(goes, closed, wait);
        }
        if let Some(surplus) = surplus {
            self.counters.evicted.one();
            let reason = format!("the least recently used of more than {}", self.config.max_connections);
            surplus.close(Closed::ours(CloseCode::TOO_MANY_CONNECTIONS, reason));
        }
        self.admitted.notify_one();
        // A reload between the handshake and now did not see this connection.
        if self.generation.load(Relaxed) != conn.generation {
            self.still_trusted(conn);
        }
        Ok(())
    }

    /// Closes a connection that another has replaced, unless it is needed again by then.
    fn close_later(self: &Arc<Self>, conn: Arc<Conn>, closed: Closed, wait: Duration) {
        let shared = Arc::clone(self);
        self.spawn(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let needed = lock(&shared.pool).current(&conn.peer).is_some_and(|current| current.id == conn.id);
            if !needed {
                conn.close(closed);
            }
        });
    }

    /// A dial came to its end. A peer that came by itself meanwhile makes a failure none.
    pub(crate) fn dial_ended(self: &Arc<Self>, peer: &NodeId, address: SocketAddr, failure: Option<Error>) {
        let mut pool = lock(&self.pool);
        if let Some(slot) = pool.slots.get_mut(peer) {
            slot.dialling = false;
            if let (Some(error), None) = (failure, &slot.current) {
                self.counters.messages_dropped.add(slot.waiting.messages.len());
                slot.waiting = Waiting::default();
                self.tell.add(News::DialFailed(peer.clone(), address, error));
            }
        }
        pool.tidy(peer);
        drop(pool);
        self.tell();
    }

    /// Tells the host what has happened, unless another task is at it.
    pub(crate) fn tell(self: &Arc<Self>) {
        if !self.tell.begin() {
            return;
        }
        while let Some(news) = self.tell.next() {
            if lock(&self.pool).stopped {
                continue;
            }
            match news {
                News::Connected(conn, introduction) => {
                    self.host.connected(&conn.peer, *introduction, conn.link());
                    self.begin(&conn);
                }
                News::Serve(conn) => self.begin(&conn),
                News::Disconnected(peer, closed) => self.host.disconnected(&peer, &closed),
                News::DialFailed(peer, address, error) => self.host.dial_failed(&peer, address, &error),
            }
        }
    }

    /// Sends what waited, and reads from now on.
    fn begin(self: &Arc<Self>, conn: &Arc<Conn>) {
        let waiting = match lock(&self.pool).slots.get_mut(&conn.peer) {
            Some(slot) => std::mem::take(&mut slot.waiting),
            None => Waiting::default(),
        };
        for bytes in waiting.messages {
            if !datagram::send(self, conn, bytes) {
                self.counters.messages_dropped.one();
            }
        }
        self.spawn(serve(Arc::clone(self), Arc::clone(conn)));
    }

    /// A connection has ended.
    fn gone(self: &Arc<Self>, conn: &Arc<Conn>, error: &ConnectionError) {
        let ours = lock(&conn.closing).clone();
        let closed = match (error, ours) {
            (ConnectionError::LocallyClosed, Some(closed)) => closed,
            _ => Closed::from_quinn(error),
        };
        let mut pool = lock(&self.pool);
        if pool.all.remove(&conn.id).is_none() {
            return;
        }
        let another = pool.all.values().find(|other| other.peer == conn.peer && other.is_open()).cloned();
        let slot = pool.slots.get_mut(&conn.peer).filter(|slot| slot.is(conn));
        let was_last = slot.is_some_and(|slot| {
            slot.current = another;
            slot.current.is_none()
        });
        if was_last {
            self.tell.add(News::Disconnected(conn.peer.clone(), closed.clone()));
        }
        pool.tidy(&conn.peer);
        drop(pool);
        self.counters.closed(close::cause(closed.code));
        let (peer, code, name) = (&conn.peer, closed.code.0, close::cause(closed.code));
        tracing::info!(%peer, code, name, reason = closed.reason, by_peer = closed.by_peer, "connection closed");
        self.tell();
    }
}

impl Slot {
    fn is(&self, conn: &Conn) -> bool {
        self.current.as_ref().is_some_and(|current| current.id == conn.id)
    }
}

/// Waits until then, or for ever.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// Reads a connection to its end.
async fn serve(shared: Arc<Shared>, conn: Arc<Conn>) {
    let mut datagrams = Budget::new(limits::DATAGRAMS, clock::monotonic());
    let mut streams = Bucket::new(limits::STREAMS.0, limits::STREAMS.1, clock::monotonic());
    let (mut unread, mut paused) = (None, None);
    let (mut read, mut was_over) = (0, false);
    let error = loop {
        tokio::select! {
            () = until(unread), if unread.is_some() => unread = None,
            datagram = conn.connection.read_datagram(), if unread.is_none() => match datagram {
                Ok(bytes) => {
                    read += 1;
                    unread = take_datagram(&shared, &conn, &mut datagrams, bytes);
                    was_over |= unread.is_some();
                }
                Err(error) => break error,
            },
            // Over budget its streams wait; quinn lets it open no more than eight.
            () = until(paused), if paused.is_some() => paused = streams.pause(clock::monotonic()),
            stream = conn.connection.accept_bi(), if paused.is_none() => match stream {
                Ok((send, recv)) => {
                    shared.counters.streams_accepted.one();
                    shared.spawn(stream::serve(Arc::clone(&shared), Arc::clone(&conn), send, recv));
                    paused = streams.pause(clock::monotonic());
                    shared.counters.streams_paused.add(usize::from(paused.is_some()));
                }
                Err(error) => break error,
            },
        }
    };
    // quinn keeps the newest of those that nobody reads, and drops the others.
    let came = usize::try_from(conn.connection.stats().frame_rx.datagram).unwrap_or(usize::MAX);
    if was_over {
        shared.counters.datagrams_over_budget.add(came.saturating_sub(read));
    }
    shared.gone(&conn, &error);
}

/// Hands a datagram over; until when the next is not read.
fn take_datagram(shared: &Shared, conn: &Conn, budget: &mut Budget, bytes: Bytes) -> Option<Instant> {
    shared.counters.datagrams_received.one();
    shared.counters.datagram_bytes_received.add(bytes.len());
    let records = shared.host.message(&conn.peer, bytes, Way::Datagram);
    let (rate, seconds) = (limits::DATAGRAMS.0, limits::OVER_BUDGET.as_secs());
    let wait = match (budget.spend(1, clock::monotonic()), conn.spend_records(records)) {
        (Spent::Over, _) => {
            shared.limit(conn, format!("over {rate} datagrams a second for more than {seconds} s"));
            return None;
        }
        (Spent::Wait(one), Spent::Wait(other)) => Some(one.max(other)),
        (Spent::Wait(one), _) | (_, Spent::Wait(one)) => Some(one),
        _ => None,
    };
    shared.counters.reads_paused.add(usize::from(wait.is_some()));
    wait
}
