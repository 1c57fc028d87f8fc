//! Who is told what happens, and on which thread. A callback has a thread of its own and a bounded queue, a
//! stream a bounded queue: whatever a reader does, it harms no one else. Knows no rule of the protocol.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{
        Arc, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;

use crate::{
    ClusterEvent, EventData, EventKind, StateChange, StateType,
    driver::{
        Driver, clock,
        feed::{Feed, Item, Next},
        guarded, read, write,
    },
};

/// What readers can be told.
pub(crate) trait Told: Clone + Send + Sync + 'static {
    /// So many were left out, since the reader was too slow.
    fn lagged(missed: u64) -> Self;
}

type Callback<T> = dyn Fn(&T) + Send + Sync;
/// How long a callback's thread sleeps before it looks up; only a close that was missed would need it.
const LOOK_UP: Duration = Duration::from_secs(60);

/// Everybody who is told of events.
pub(crate) struct Subscribers<T> {
    readers: RwLock<BTreeMap<u64, Reader<T>>>,
    last_id: AtomicU64,
    panics: Arc<AtomicU64>,
    closed: AtomicBool,
}

impl<T> Default for Subscribers<T> {
    fn default() -> Self {
        Self {
            readers: RwLock::default(),
            last_id: AtomicU64::new(0),
            panics: Arc::default(),
            closed: AtomicBool::new(false),
        }
    }
}

enum Reader<T> {
    Callback(Arc<Subscriber<T>>),
    Stream {
        feed: Arc<Feed<Arc<T>>>,
        /// Which it is told.
        wants: fn(&T) -> bool,
    },
}

struct Subscriber<T> {
    feed: Feed<Arc<T>>,
    callback: Box<Callback<T>>,
    has_thread: AtomicBool,
}

impl<T: Told> Subscribers<T> {
    pub(crate) fn publish(&self, event: T) {
        let readers = read(&self.readers);
        if readers.is_empty() {
            return;
        }
        let event = Arc::new(event);
        for reader in readers.values() {
            match reader {
                Reader::Callback(subscriber) => {
                    subscriber.feed.push(Arc::clone(&event));
                    self.start_thread(subscriber);
                }
                Reader::Stream { feed, wants } if wants(&event) => feed.push(Arc::clone(&event)),
                Reader::Stream { .. } => {}
            }
        }
    }

    /// Whether somebody would be told.
    pub(crate) fn has_readers(&self) -> bool {
        !read(&self.readers).is_empty()
    }

    pub(crate) fn subscribe(self: &Arc<Self>, callback: Box<Callback<T>>) -> Subscription {
        let subscriber =
            Arc::new(Subscriber { feed: Feed::new(), callback, has_thread: AtomicBool::new(false) });
        self.start_thread(&subscriber);
        let id = self.add(Reader::Callback(subscriber));
        let subscribers = Arc::clone(self);
        Subscription { id, end: Box::new(move || subscribers.unsubscribe(id)) }
    }

    fn unsubscribe(&self, id: u64) {
        if let Some(Reader::Callback(subscriber)) = self.remove(id) {
            subscriber.feed.abandon();
        }
    }

    /// A stream of the events that it `wants`.
    pub(crate) fn stream(self: &Arc<Self>, wants: fn(&T) -> bool) -> Listening<T> {
        let feed = Arc::new(Feed::new());
        let id = self.add(Reader::Stream { feed: Arc::clone(&feed), wants });
        Listening { subscribers: Arc::clone(self), feed, id }
    }

    /// Nobody is left who could cause an event: readers end once they have read what waits.
    pub(crate) fn close(&self) {
        self.closed.store(true, SeqCst);
        let readers = std::mem::take(&mut *write(&self.readers));
        for reader in readers.values() {
            reader.close();
        }
    }

    /// How often a callback has panicked.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(SeqCst)
    }

    fn add(&self, reader: Reader<T>) -> u64 {
        let id = self.last_id.fetch_add(1, SeqCst) + 1;
        write(&self.readers).insert(id, reader);
        if self.closed.load(SeqCst) {
            self.close(); // it came too late to be told
        }
        id
    }

    fn remove(&self, id: u64) -> Option<Reader<T>> {
        // Handed out, so that what the callback holds is dropped outside the lock.
        write(&self.readers).remove(&id)
    }

    /// Has a thread serve the callback; if the system gives none, the next event tries again, and what does
    /// not fit meanwhile is counted as missed.
    fn start_thread(&self, subscriber: &Arc<Subscriber<T>>) {
        if subscriber.has_thread.swap(true, SeqCst) {
            return;
        }
        let served = Arc::clone(subscriber);
        let panics = Arc::clone(&self.panics);
        let thread = std::thread::Builder::new().name("phalanx-events".into());
        if let Err(error) = thread.spawn(move || served.serve(&panics)) {
            subscriber.has_thread.store(false, SeqCst);
            tracing::warn!(%error, "no thread for a subscriber of events; it waits, and misses what is too much");
        }
    }
}

impl<T> Reader<T> {
    fn close(&self) {
        match self {
            Self::Callback(subscriber) => subscriber.feed.close(),
            Self::Stream { feed, .. } => feed.close(),
        }
    }
}

impl<T: Told> Subscriber<T> {
    fn serve(&self, panics: &AtomicU64) {
        loop {
            let event = match self.feed.next_within(LOOK_UP) {
                Next::Item(Item::Next(event)) => event,
                Next::Item(Item::Lagged(missed)) => Arc::new(T::lagged(missed)),
                Next::Quiet => continue,
                Next::Closed => return,
            };
            if guarded("a subscriber of events", || (self.callback)(&event)).is_none() {
                panics.fetch_add(1, SeqCst);
            }
        }
    }
}

impl Told for ClusterEvent {
    fn lagged(missed: u64) -> Self {
        Self::new(EventKind::Lagged, None, clock::wall_now(), EventData::Lagged { missed })
    }
}

/// A callback's place among those who are told of events. Dropping it leaves the callback subscribed for the
/// life of the cluster or table.
pub struct Subscription {
    id: u64,
    end: Box<dyn FnOnce() + Send + Sync>,
}

impl Subscription {
    /// Ends the subscription: the callback is not called again, though a call under way on another thread may
    /// still be ending. May be called from within the callback.
    pub fn unsubscribe(self) {
        (self.end)();
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A reader's place among those who are told of events.
pub(crate) struct Listening<T: Told> {
    subscribers: Arc<Subscribers<T>>,
    feed: Arc<Feed<Arc<T>>>,
    id: u64,
}

impl<T: Told> Stream for Listening<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.feed.poll_next(cx).map(|item| {
            item.map(|item| match item {
                Item::Next(event) => Arc::unwrap_or_clone(event),
                Item::Lagged(missed) => T::lagged(missed),
            })
        })
    }
}

impl<T: Told> Drop for Listening<T> {
    fn drop(&mut self) {
        self.subscribers.remove(self.id);
        self.feed.abandon();
    }
}

/// What happens in the cluster, as a stream: see [`Cluster::events`](crate::Cluster::events). Ends when the
/// last handle of the cluster is gone.
#[must_use = "a stream that is not polled tells nothing"]
pub struct EventStream(pub(super) Listening<ClusterEvent>);

impl Stream for EventStream {
    type Item = ClusterEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ClusterEvent>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").field("id", &self.0.id).finish_non_exhaustive()
    }
}

/// A reader's queue of changes.
type Watched = Arc<Feed<StateChange>>;

/// Everybody who watches a type.
#[derive(Default)]
pub(crate) struct Watchers {
    feeds: RwLock<BTreeMap<(StateType, u64), Watched>>,
    last_id: AtomicU64,
    closed: AtomicBool,
}

impl Watchers {
    pub(crate) fn publish(&self, change: &StateChange) {
        let feeds = read(&self.feeds);
        if feeds.is_empty() {
            return;
        }
        let Some(state_type) = change.record().map(|record| &record.state_type) else { return };
        let all = (state_type.clone(), 0)..=(state_type.clone(), u64::MAX);
        for feed in feeds.range(all).map(|(_, feed)| feed) {
            feed.push(change.clone());
        }
    }

    /// A queue of a type's changes, from now on, for up to `room` of them.
    fn add(&self, state_type: &StateType, room: usize) -> (u64, Watched) {
        let id = self.last_id.fetch_add(1, SeqCst) + 1;
        let feed = Arc::new(Feed::with_room(room));
        write(&self.feeds).insert((state_type.clone(), id), Arc::clone(&feed));
        if self.closed.load(SeqCst) {
            self.close();
        }
        (id, feed)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, SeqCst);
        let feeds = std::mem::take(&mut *write(&self.feeds));
        for feed in feeds.values() {
            feed.close();
        }
    }
}

/// The records of a type, then every change: see [`Cluster::watch`](crate::Cluster::watch). Ends when the
/// last handle of the cluster is gone.
#[must_use = "a stream that is not polled tells nothing"]
pub struct StateStream {
    driver: Weak<Driver>,
    watchers: Arc<Watchers>,
    key: (StateType, u64),
    feed: Arc<Feed<StateChange>>,
    /// Where the next page of what is there begins; `None` once all of it was read.
    next_page: Option<u32>,
    /// Read, and to be told before anything else.
    ready: VecDeque<StateChange>,
}

impl StateStream {
    pub(super) fn new(driver: &Arc<Driver>, state_type: &StateType, room: usize) -> Self {
        let watchers = Arc::clone(&driver.watchers);
        let (id, feed) = watchers.add(state_type, room);
        let mut stream = Self {
            driver: Arc::downgrade(driver),
            watchers,
            key: (state_type.clone(), id),
            feed,
            next_page: Some(0),
            ready: VecDeque::new(),
        };
        stream.read_page(); // what is there now is told, whenever the reader comes to read
        stream
    }

    /// Whether some of what was there is still to be told.
    pub(crate) fn is_catching_up(&self) -> bool {
        self.next_page.is_some() || !self.ready.is_empty()
    }

    /// How many changes were read and not told yet.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// Reads a page of what is there, and what has changed since the last one.
    ///
    /// A change of a register that a later page holds is left out: the page tells it as it is by then. What
    /// has gone is told in any case, since it may have been told before from another place.
    fn read_page(&mut self) {
        let Some(first) = self.next_page.take() else { return };
        let Some(driver) = self.driver.upgrade() else { return };
        let (feed, ready, state_type) = (&self.feed, &mut self.ready, &self.key.0);
        let next = driver.read(|protocol| {
            // Under the lock that holds up all changes: none falls between the two.
            ready.extend(feed.drain().into_iter().map(told).filter(|change| match change {
                StateChange::Put { new, .. } => protocol.place_of(new).is_none_or(|place| place < first),
                StateChange::Removed { .. } | StateChange::Expired { .. } | StateChange::Lagged { .. } => {
                    true
                }
            }));
            let (page, next) = protocol.states_from(state_type, first);
            ready.extend(page.into_iter().map(|new| StateChange::Put { new, old: None }));
            next
        });
        self.next_page = next.flatten();
    }
}

fn told(item: Item<StateChange>) -> StateChange {
    match item {
        Item::Next(change) => change,
        Item::Lagged(missed) => StateChange::Lagged { missed },
    }
}

impl Stream for StateStream {
    type Item = StateChange;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StateChange>> {
        while self.ready.is_empty() && self.next_page.is_some() {
            self.read_page();
        }
        match self.ready.pop_front() {
            Some(change) => Poll::Ready(Some(change)),
            None => self.feed.poll_next(cx).map(|item| item.map(told)),
        }
    }
}

impl Drop for StateStream {
    fn drop(&mut self) {
        write(&self.watchers.feeds).remove(&self.key);
        self.feed.abandon();
    }
}

impl fmt::Debug for StateStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateStream").field("state_type", &self.key.0).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
