//! What attaches a table to a cluster: a thread that feeds the table's heart with changes of records and of
//! membership, writes what it wants written, and tells subscribers. Knows nothing of what tables mean.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, RwLock, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::Duration,
};

use futures_core::Stream;

use super::{
    live::{Live, Moment},
    registers::Write,
};
use crate::{
    Cluster, ClusterEvent, Error, StateChange, StateStream, StateType, Subscription,
    driver::{Core, Driver, Listening, Subscribers, Told, clock, lock, read, write},
};

/// How many changes of a type wait for its table before it has to read everything anew. A node that joins
/// sends its records faster than a table takes them, and each costs about 200 bytes while it waits.
const ROOM: usize = 65_536;
/// How many changes a table takes over under one lock, so that readers are never kept waiting for long.
const SLICE: usize = 512;
/// How long a write that was refused waits.
const RETRY: Duration = Duration::from_millis(50);

/// What a table decides: a state machine without clock, thread or cluster.
pub(crate) trait Heart: Send + Sync + 'static {
    /// What readers are told of a key.
    type View: Clone + Send + Sync + 'static;

    /// The types it is made of.
    fn types(&self) -> Vec<StateType>;

    /// A record has changed.
    fn tell(&mut self, change: &StateChange, now: Moment, changes: &mut Changes<Self::View>);
    /// The nodes whose word counts are others now.
    fn set_live(&mut self, live: Arc<Live>, now: Moment, changes: &mut Changes<Self::View>);
    /// Every record that is there is told anew from now on.
    fn begin_reading(&mut self);
    /// All were told: what was not is gone.
    fn end_reading(&mut self, now: Moment, changes: &mut Changes<Self::View>);
    /// The node has stopped: all that others said is gone.
    fn unlink(&mut self, now: Moment, changes: &mut Changes<Self::View>);
    /// The node's store has lost what this table wrote.
    fn say_again(&mut self, now: Moment);

    /// Does all that is due.
    fn handle_timeout(&mut self, now: Moment, changes: &mut Changes<Self::View>);
    /// When something is due next.
    fn next_timeout(&self) -> Option<Moment>;

    fn has_writes(&self) -> bool;
    /// The first of the writes that are due, in order: as many as may be written under one lock of the core.
    fn take_writes(&mut self, now: Moment) -> Vec<Write>;
    /// A write was refused since too much waits; it is to be tried again.
    fn retry(&mut self, write: &Write);

    /// How many values could not be read.
    fn unreadable(&self) -> u64;
}

/// A change of what a table shows, as [`changes`](super::HealthTable::changes) tells it.
///
/// # Examples
/// ```
/// use phalanx::lb::{Change, Health, HealthTable};
/// # fn example(cluster: &phalanx::Cluster) -> Result<(), phalanx::Error> {
/// let table = HealthTable::attach(cluster)?;
/// table.on_change(|change| match change {
///     Change::Changed { key, new: Some(view), .. } => println!("{key} is {:?}: {}", view.status, view.reason),
///     Change::Changed { key, new: None, .. } => println!("nobody says anything of {key} any more"),
///     Change::Lagged { missed } => println!("{missed} changes were missed; look at the whole table"),
///     _ => {}
/// });
/// table.report("web-1", Health::healthy())?; // "web-1 is Healthy: 0 of 1 say it is unhealthy"
/// # Ok(())
/// # }
/// # example(&phalanx::Cluster::new(phalanx::Config::default())?)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change<V> {
    /// What a table shows under a key has changed.
    Changed {
        /// The key: a target's name, or a counter's.
        key: String,
        /// What it showed; `None` if there was nothing.
        old: Option<Arc<V>>,
        /// What it shows; `None` if there is nothing any more.
        new: Option<Arc<V>>,
    },
    /// The reader was too slow: so many changes were left out. The table itself is up to date.
    Lagged {
        /// How many.
        missed: u64,
    },
}

impl<V: Clone + Send + Sync + 'static> Told for Change<V> {
    fn lagged(missed: u64) -> Self {
        Self::Lagged { missed }
    }
}

/// Changes of what a table shows, as a stream. Ends when the table's last handle is gone.
#[must_use = "a stream that is not polled tells nothing"]
pub struct ChangeStream<V: Clone + Send + Sync + 'static>(Listening<Change<V>>);

impl<V: Clone + Send + Sync + 'static> Stream for ChangeStream<V> {
    type Item = Change<V>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Change<V>>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}

impl<V: Clone + Send + Sync + 'static> fmt::Debug for ChangeStream<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeStream").finish_non_exhaustive()
    }
}

/// What has changed in the course of one call, as far as somebody wants to know.
pub(crate) struct Changes<V> {
    wanted: bool,
    changes: Vec<Change<V>>,
}

impl<V> Changes<V> {
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, changes: Vec::new() }
    }

    /// Whether anybody is told.
    pub(super) fn wanted(&self) -> bool {
        self.wanted
    }

    pub(super) fn push(&mut self, key: &str, old: Option<Arc<V>>, new: Option<Arc<V>>) {
        if self.wanted {
            self.changes.push(Change::Changed { key: key.into(), old, new });
        }
    }
}

/// A table that is attached to a cluster. Dropping it detaches it; what it said stays said until the node
/// leaves or dies.
pub(crate) struct Table<H: Heart> {
    shared: Arc<Shared<H>>,
    types: Vec<StateType>,
}

struct Shared<H: Heart> {
    driver: Weak<Driver>,
    begun: tokio::time::Instant,
    heart: RwLock<H>,
    /// Held by who writes: what is written last is what was said last.
    turn: Mutex<()>,
    told: Arc<Subscribers<Change<H::View>>>,
    thread: OnceLock<Thread>,
    closed: AtomicBool,
}

impl<H: Heart> Table<H> {
    /// Attaches a heart to a cluster, and has it know what the cluster knows.
    pub(super) fn attach(cluster: &Cluster, heart: H) -> Result<Self, Error> {
        let driver = cluster.driver();
        let types = heart.types();
        driver.attach(&types)?;
        let shared = Arc::new(Shared {
            driver: Arc::downgrade(driver),
            begun: clock::monotonic(),
            heart: RwLock::new(heart),
            turn: Mutex::new(()),
            told: Arc::default(),
            thread: OnceLock::new(),
            closed: AtomicBool::new(false),
        });
        let table = Self { shared, types }; // from here on its drop takes everything back
        let mut feeder = Feeder::new(driver, &table);
        let mut idle = Context::from_waker(Waker::noop());
        while matches!(feeder.turn(&table.shared, &mut idle), Turn::Busy) {}
        let thread = std::thread::Builder::new().name("phalanx-table".into());
        let handle = thread.spawn(move || feeder.serve()).map_err(|source| Error::NoThread { source })?;
        let _ = table.shared.thread.set(handle.thread().clone()); // set once, here
        Ok(table)
    }

    /// Looks at the heart.
    pub(super) fn look<R>(&self, look: impl FnOnce(&H) -> R) -> R {
        look(&read(&self.shared.heart))
    }

    /// Has the heart take something over, tells who wants to know, and writes what comes of it.
    pub(super) fn act<R>(&self, act: impl FnOnce(&mut H, Moment, &mut Changes<H::View>) -> R) -> R {
        let (result, wakes, writes) = self.shared.with(|heart, now, changes| {
            let (before, busy) = (heart.next_timeout(), heart.has_writes());
            let result = act(heart, now, changes);
            let next = heart.next_timeout();
            let sooner = next.is_some_and(|next| before.is_none_or(|before| next < before));
            // Whoever made the first of them due writes what came after it, too.
            (result, sooner, heart.has_writes() && !busy)
        });
        if (writes && self.shared.flush() != Flush::Whole) || wakes {
            self.shared.wake();
        }
        result
    }

    pub(super) fn subscribe(
        &self,
        callback: impl Fn(&Change<H::View>) + Send + Sync + 'static,
    ) -> Subscription {
        self.shared.told.subscribe(Box::new(callback))
    }

    pub(super) fn changes(&self) -> ChangeStream<H::View> {
        ChangeStream(self.shared.told.stream(|_| true))
    }

    pub(super) fn driver(&self) -> Option<Arc<Driver>> {
        self.shared.driver.upgrade()
    }
}

impl<H: Heart> Drop for Table<H> {
    fn drop(&mut self) {
        self.shared.closed.store(true, SeqCst);
        self.shared.wake();
        self.shared.told.close();
        if let Some(driver) = self.shared.driver.upgrade() {
            driver.detach(&self.types);
        }
    }
}

impl<H: Heart> Shared<H> {
    fn now(&self) -> Moment {
        clock::monotonic().saturating_duration_since(self.begun)
    }

    /// Changes the heart, and tells subscribers in the order of the changes.
    fn with<R>(&self, change: impl FnOnce(&mut H, Moment, &mut Changes<H::View>) -> R) -> R {
        let mut heart = write(&self.heart);
        let mut changes = Changes::new(self.told.has_readers());
        let result = change(&mut heart, self.now(), &mut changes);
        // Under the lock, or two changes could be told the wrong way round; no user code runs in it.
        changes.changes.into_iter().for_each(|change| self.told.publish(change));
        result
    }

    /// Writes the first of what is due.
    fn flush(&self) -> Flush {
        let _turn = lock(&self.turn);
        let writes = write(&self.heart).take_writes(self.now());
        let mut refused = Vec::new();
        if let Some(driver) = self.driver.upgrade() {
            driver.command(|protocol, now| {
                for write in writes.iter().filter(|write| driver.switch_off(&write.state_type).is_none()) {
                    let (of, key) = (&write.state_type, write.key.as_str());
                    match write.value.clone() {
                        Some(value) => match protocol.broadcast(of, key, value, write.options, now) {
                            Err(Error::Overloaded { .. }) => refused.push(write),
                            Err(error) => debug_assert!(false, "{of}/{key:?} was checked: {error}"),
                            Ok(_) => {}
                        },
                        None => _ = protocol.remove(of, key, now),
                    }
                }
            });
        }
        if refused.is_empty() {
            return if read(&self.heart).has_writes() { Flush::More } else { Flush::Whole };
        }
        let mut heart = write(&self.heart);
        for write in refused {
            heart.retry(write);
        }
        Flush::Refused
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// What a table's thread reads and does.
struct Feeder<H: Heart> {
    shared: Weak<Shared<H>>,
    driver: Weak<Driver>,
    types: Vec<StateType>,
    news: Listening<ClusterEvent>,
    streams: Vec<StateStream>,
    /// The node's life whose store holds what the table wrote, unless its types were switched off since.
    life: Option<u64>,
    live: Arc<Live>,
    /// Not everything that is there was told yet.
    is_reading: bool,
    lagged: bool,
    retry_at: Option<Moment>,
}

impl<H: Heart> Feeder<H> {
    fn new(driver: &Arc<Driver>, table: &Table<H>) -> Self {
        let mut feeder = Self {
            shared: Arc::downgrade(&table.shared),
            driver: Arc::downgrade(driver),
            types: table.types.clone(),
            news: driver.news(),
            streams: Vec::new(),
            life: None,
            live: Arc::new(Live::alone(driver.node_id())),
            is_reading: false,
            lagged: false,
            retry_at: None,
        };
        feeder.begin_anew(driver, &table.shared);
        feeder
    }

    fn serve(mut self) {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            let Some(shared) = self.shared.upgrade().filter(|shared| !shared.closed.load(SeqCst)) else {
                return;
            };
            let next = match self.turn(&shared, &mut cx) {
                Turn::Busy => continue,
                Turn::Idle => self.next_timeout(&shared),
                Turn::Over => return,
            };
            let now = shared.now();
            drop(shared); // whoever sleeps must not keep it
            match next {
                Some(next) => std::thread::park_timeout(next.saturating_sub(now)),
                None => std::thread::park(),
            }
        }
    }

    fn next_timeout(&self, shared: &Shared<H>) -> Option<Moment> {
        let heart = read(&shared.heart);
        let retry_at = self.retry_at.filter(|_| heart.has_writes());
        heart.next_timeout().into_iter().chain(retry_at).min()
    }

    /// Reads a slice of what has happened, and has it taken over.
    fn turn(&mut self, shared: &Shared<H>, cx: &mut Context<'_>) -> Turn {
        let (mut anew, mut members) = (std::mem::take(&mut self.lagged), false);
        while let Poll::Ready(event) = Pin::new(&mut self.news).poll_next(cx) {
            let Some(event) = event else { return Turn::Over };
            anew |= is_turning_point(&event);
            members = true;
        }
        let Some(driver) = self.driver.upgrade() else { return Turn::Over };
        if anew {
            self.begin_anew(&driver, shared);
        } else if members {
            self.look_who_lives(&driver, shared);
        }
        let Some(slice) = self.read_slice(cx) else { return Turn::Over };
        let whole = self.is_reading && !self.streams.iter().any(StateStream::is_catching_up);
        let writes = shared.with(|heart, now, changes| {
            for change in &slice {
                heart.tell(change, now, changes);
            }
            if whole {
                heart.end_reading(now, changes);
            }
            heart.handle_timeout(now, changes);
            heart.has_writes()
        });
        self.is_reading &= !whole;
        let now = shared.now();
        let mut more = false;
        if writes && self.retry_at.is_none_or(|at| at <= now) {
            let flush = shared.flush();
            self.retry_at = (flush == Flush::Refused).then(|| now + RETRY);
            more = flush == Flush::More;
        }
        if more || self.is_reading || self.lagged || slice.len() >= SLICE { Turn::Busy } else { Turn::Idle }
    }

    /// The next changes; `None` once the cluster is gone. Has whatever comes later wake the thread, unless
    /// the slice is full.
    fn read_slice(&mut self, cx: &mut Context<'_>) -> Option<Vec<StateChange>> {
        let mut slice = Vec::new();
        for stream in &mut self.streams {
            while slice.len() < SLICE {
                match Pin::new(&mut *stream).poll_next(cx) {
                    Poll::Ready(Some(StateChange::Lagged { .. })) => self.lagged = true,
                    Poll::Ready(Some(change)) => slice.push(change),
                    Poll::Ready(None) => return None,
                    Poll::Pending => break,
                }
            }
        }
        Some(slice)
    }

    /// Reads everything from the beginning: the node has started or stopped, or some changes were missed.
    fn begin_anew(&mut self, driver: &Arc<Driver>, shared: &Shared<H>) {
        self.streams = self.types.iter().map(|state_type| driver.watch(state_type, ROOM)).collect();
        let shared_now = self.types.iter().all(|state_type| driver.switch_off(state_type).is_none());
        let life = driver.turn_of_life().filter(|_| shared_now);
        let is_new = life.is_some() && life != self.life;
        self.life = life;
        shared.with(|heart, now, changes| {
            if life.is_none() {
                heart.unlink(now, changes);
            } else {
                heart.begin_reading();
            }
            if is_new {
                heart.say_again(now);
            }
        });
        self.is_reading = life.is_some();
        if life.is_some() {
            self.look_who_lives(driver, shared);
        } else {
            self.set_live(Live::alone(driver.node_id()), shared);
        }
    }

    /// A node that has stopped knows nobody; the event which says so comes, and with it a new beginning.
    fn look_who_lives(&mut self, driver: &Driver, shared: &Shared<H>) {
        if self.life.is_none() {
            return;
        }
        if let Some(nodes) = driver.read(Core::speakers) {
            self.set_live(Live { me: driver.node_id(), nodes }, shared);
        }
    }

    fn set_live(&mut self, live: Live, shared: &Shared<H>) {
        if live != *self.live {
            self.live = Arc::new(live);
            shared.with(|heart, now, changes| heart.set_live(Arc::clone(&self.live), now, changes));
        }
    }
}

/// How far a flush came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flush {
    /// Nothing is due any more.
    Whole,
    /// There is more to write at once.
    More,
    /// Some was refused for the time being.
    Refused,
}

/// How a turn has ended.
enum Turn {
    /// There is more to do at once.
    Busy,
    Idle,
    /// The cluster is gone.
    Over,
}

/// Whether what was read before does not hold any more.
fn is_turning_point(event: &ClusterEvent) -> bool {
    use crate::EventKind::{ClusterStarted, ClusterStopped, Lagged, SyncSwitched};
    matches!(event.kind, ClusterStarted | ClusterStopped | Lagged | SyncSwitched)
}

/// Wakes a table's thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
