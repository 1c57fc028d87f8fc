//! Who is told what happens, and on which thread. A callback has a thread of its own and a bounded queue, a
//! stream a bounded queue: whatever a reader does, it harms no one else. Knows no rule of the protocol.

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
    vec,
};

use futures_core::Stream;

use crate::{
    ClusterEvent, EventData, EventKind, StateChange, StateType, SyncableState,
    driver::{
        clock,
        feed::{Feed, Item, Next},
        guarded, read, write,
    },
};

type Callback = dyn Fn(&ClusterEvent) + Send + Sync;

/// How long a callback's thread sleeps before it looks up; only a close that was missed would need it.
const LOOK_UP: Duration = Duration::from_secs(60);

/// Everybody who is told of events.
#[derive(Default)]
pub(crate) struct Subscribers {
    readers: RwLock<BTreeMap<u64, Reader>>,
    last_id: AtomicU64,
    panics: Arc<AtomicU64>,
    closed: AtomicBool,
}

enum Reader {
    Callback(Arc<Subscriber>),
    Stream(Arc<Feed<Arc<ClusterEvent>>>),
}

struct Subscriber {
    feed: Feed<Arc<ClusterEvent>>,
    callback: Box<Callback>,
    has_thread: AtomicBool,
}

impl Subscribers {
    pub(crate) fn publish(&self, event: ClusterEvent) {
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
                Reader::Stream(feed) => feed.push(Arc::clone(&event)),
            }
        }
    }

    pub(crate) fn subscribe(self: &Arc<Self>, callback: Box<Callback>) -> Subscription {
        let subscriber =
            Arc::new(Subscriber { feed: Feed::new(), callback, has_thread: AtomicBool::new(false) });
        self.start_thread(&subscriber);
        let id = self.add(Reader::Callback(subscriber));
        Subscription { subscribers: Arc::clone(self), id }
    }

    pub(crate) fn stream(self: &Arc<Self>) -> EventStream {
        let feed = Arc::new(Feed::new());
        let id = self.add(Reader::Stream(Arc::clone(&feed)));
        EventStream { subscribers: Arc::clone(self), feed, id }
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

    fn add(&self, reader: Reader) -> u64 {
        let id = self.last_id.fetch_add(1, SeqCst) + 1;
        write(&self.readers).insert(id, reader);
        if self.closed.load(SeqCst) {
            self.close(); // it came too late to be told
        }
        id
    }

    fn remove(&self, id: u64) -> Option<Reader> {
        // Handed out, so that what the callback holds is dropped outside the lock.
        write(&self.readers).remove(&id)
    }

    /// Has a thread serve the callback; if the system gives none, the next event tries again, and what does
    /// not fit meanwhile is counted as missed.
    fn start_thread(&self, subscriber: &Arc<Subscriber>) {
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

impl Reader {
    fn close(&self) {
        match self {
            Self::Callback(subscriber) => subscriber.feed.close(),
            Self::Stream(feed) => feed.close(),
        }
    }
}

impl Subscriber {
    fn serve(&self, panics: &AtomicU64) {
        loop {
            let event = match self.feed.next_within(LOOK_UP) {
                Next::Item(Item::Next(event)) => event,
                Next::Item(Item::Lagged(missed)) => Arc::new(lagged(missed)),
                Next::Quiet => continue,
                Next::Closed => return,
            };
            if guarded("a subscriber of events", || (self.callback)(&event)).is_none() {
                panics.fetch_add(1, SeqCst);
            }
        }
    }
}

fn lagged(missed: u64) -> ClusterEvent {
    ClusterEvent::new(EventKind::Lagged, None, clock::wall_now(), EventData::Lagged { missed })
}

/// A callback's place among those who are told of events. Dropping it leaves the callback subscribed for the
/// cluster's life.
pub struct Subscription {
    subscribers: Arc<Subscribers>,
    id: u64,
}

impl Subscription {
    /// Ends the subscription: the callback is not called again, though a call under way on another thread may
    /// still be ending. May be called from within the callback.
    pub fn unsubscribe(self) {
        if let Some(Reader::Callback(subscriber)) = self.subscribers.remove(self.id) {
            subscriber.feed.abandon();
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What happens in the cluster, as a stream: see [`Cluster::events`](crate::Cluster::events). Ends when the
/// last handle of the cluster is gone.
#[must_use = "a stream that is not polled tells nothing"]
pub struct EventStream {
    subscribers: Arc<Subscribers>,
    feed: Arc<Feed<Arc<ClusterEvent>>>,
    id: u64,
}

impl Stream for EventStream {
    type Item = ClusterEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ClusterEvent>> {
        self.feed.poll_next(cx).map(|item| {
            item.map(|item| match item {
                Item::Next(event) => Arc::unwrap_or_clone(event),
                Item::Lagged(missed) => lagged(missed),
            })
        })
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.subscribers.remove(self.id);
        self.feed.abandon();
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").field("id", &self.id).finish_non_exhaustive()
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
        let state_type = match change {
            StateChange::Put { new: record, .. }
            | StateChange::Removed { old: record }
            | StateChange::Expired { old: record } => &record.state_type,
            StateChange::Lagged { .. } => return,
        };
        let all = (state_type.clone(), 0)..=(state_type.clone(), u64::MAX);
        for feed in feeds.range(all).map(|(_, feed)| feed) {
            feed.push(change.clone());
        }
    }

    /// A stream that begins with `present`. Whoever asks holds the core's lock, or a change could come
    /// between.
    pub(crate) fn watch(
        self: &Arc<Self>,
        state_type: &StateType,
        present: Vec<SyncableState>,
    ) -> StateStream {
        let key = (state_type.clone(), self.last_id.fetch_add(1, SeqCst) + 1);
        let feed = Arc::new(Feed::new());
        write(&self.feeds).insert(key.clone(), Arc::clone(&feed));
        if self.closed.load(SeqCst) {
            self.close();
        }
        StateStream { watchers: Arc::clone(self), key, present: present.into_iter(), feed }
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
    watchers: Arc<Watchers>,
    key: (StateType, u64),
    present: vec::IntoIter<SyncableState>,
    feed: Arc<Feed<StateChange>>,
}

impl Stream for StateStream {
    type Item = StateChange;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StateChange>> {
        if let Some(new) = self.present.next() {
            return Poll::Ready(Some(StateChange::Put { new, old: None }));
        }
        self.feed.poll_next(cx).map(|item| {
            item.map(|item| match item {
                Item::Next(change) => change,
                Item::Lagged(missed) => StateChange::Lagged { missed },
            })
        })
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
