//! A bounded queue from the protocol to one reader, who may be slow: what does not fit is left out and
//! counted, and the reader is told the exact number where the gap is. Never blocks the one who pushes.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::driver::lock;

/// How many items wait for a reader before the newest are left out.
pub(crate) const FEED_LEN_MAX: usize = 1_024;

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item<T> {
    Next(T),
    /// So many were left out here.
    Lagged(u64),
}

pub(super) struct Feed<T> {
    /// How many items wait for the reader before the newest are left out.
    room: usize,
    state: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    /// Invariant: at most `room` are `Next`, and no two `Lagged` are neighbours.
    items: VecDeque<Item<T>>,
    /// How many `items` are `Next`.
    waiting: usize,
    /// Left out since the last item of `items`.
    missed: u64,
    closed: bool,
    waker: Option<Waker>,
}

impl<T> Feed<T> {
    pub(super) fn new() -> Self {
        Self::with_room(FEED_LEN_MAX)
    }

    pub(super) fn with_room(room: usize) -> Self {
        let state = State { items: VecDeque::new(), waiting: 0, missed: 0, closed: false, waker: None };
        Self { room, state: Mutex::new(state), arrived: Condvar::new() }
    }

    pub(super) fn push(&self, item: T) {
        let mut state = lock(&self.state);
        if state.closed {
            return;
        }
        if state.waiting >= self.room {
            state.missed += 1;
            return;
        }
        // Who waits does so for an empty queue only; and each call to wake up costs, even where nobody sleeps.
        let was_empty = state.items.is_empty();
        if state.missed > 0 {
            let missed = std::mem::take(&mut state.missed);
            state.items.push_back(Item::Lagged(missed));
        }
        state.items.push_back(Item::Next(item));
        state.waiting += 1;
        let waker = state.waker.take();
        drop(state);
        if was_empty {
            self.arrived.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Nothing more will be pushed; what waits can still be read.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        self.arrived.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What waits is thrown away too: nobody wants to read it any more.
    pub(super) fn abandon(&self) {
        let thrown = {
            let mut state = lock(&self.state);
            state.closed = true;
            state.missed = 0;
            state.waiting = 0;
            std::mem::take(&mut state.items)
        };
        self.arrived.notify_all();
        drop(thrown); // user code may run in a drop: not under the lock
    }

    /// All that waits, in order.
    pub(super) fn drain(&self) -> Vec<Item<T>> {
        let mut state = lock(&self.state);
        std::iter::from_fn(|| state.pop()).collect()
    }

    /// The next item if one comes within `limit`.
    pub(super) fn next_within(&self, limit: Duration) -> Next<T> {
        let state = lock(&self.state);
        let empty = |state: &mut State<T>| state.items.is_empty() && state.missed == 0 && !state.closed;
        let mut state = match self.arrived.wait_timeout_while(state, limit, empty) {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        };
        match state.pop() {
            Some(item) => Next::Item(item),
            None if state.closed => Next::Closed,
            None => Next::Quiet,
        }
    }

    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Item<T>>> {
        let mut state = lock(&self.state);
        match state.pop() {
            Some(item) => Poll::Ready(Some(item)),
            None if state.closed => Poll::Ready(None),
            None => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    /// Whether nothing waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let state = lock(&self.state);
        state.items.is_empty() && state.missed == 0
    }
}

impl<T> State<T> {
    fn pop(&mut self) -> Option<Item<T>> {
        match self.items.pop_front() {
            Some(item) => {
                self.waiting -= usize::from(matches!(item, Item::Next(_)));
                Some(item)
            }
            None if self.missed > 0 => Some(Item::Lagged(std::mem::take(&mut self.missed))),
            None => None,
        }
    }
}

/// What a thread that waits for an item finds.
pub(super) enum Next<T> {
    Item(Item<T>),
    /// Nothing came in time.
    Quiet,
    /// Nothing will come any more.
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(feed: &Feed<u32>) -> Vec<Item<u32>> {
        std::iter::from_fn(|| match feed.next_within(Duration::ZERO) {
            Next::Item(item) => Some(item),
            Next::Quiet | Next::Closed => None,
        })
        .collect()
    }

    #[test]
    fn a_slow_reader_is_told_exactly_what_it_missed_and_where() {
        let feed = Feed::new();
        for number in 0..1_030 {
            feed.push(number);
        }
        assert!(matches!(feed.next_within(Duration::ZERO), Next::Item(Item::Next(0))));
        feed.push(5_000);
        feed.push(5_001);
        let rest = drain(&feed);
        assert_eq!(rest.len(), 1_023 + 1 + 1 + 1);
        assert_eq!(rest[1_023..], [Item::Lagged(6), Item::Next(5_000), Item::Lagged(1)]);
        assert!(feed.is_empty());
    }

    #[test]
    fn what_waits_is_read_after_the_close() {
        let feed = Feed::new();
        feed.push(1);
        feed.close();
        feed.push(2);
        assert_eq!(drain(&feed), [Item::Next(1)]);
        assert!(matches!(feed.next_within(Duration::ZERO), Next::Closed));
    }

    #[test]
    fn abandoning_throws_away_what_waits() {
        let feed = Feed::new();
        feed.push(1);
        feed.abandon();
        assert!(matches!(feed.next_within(Duration::ZERO), Next::Closed));
    }

    #[test]
    fn any_mix_of_pushes_and_reads_accounts_for_every_item() {
        use proptest::prelude::*;
        proptest!(|(steps in proptest::collection::vec((0_u32..700, 0_usize..700), 1..12))| {
            let feed = Feed::new();
            let (mut pushed, mut seen) = (0_u64, 0_u64);
            let mut take = |item| seen += match item {
                Item::Next(number) if u64::from(number) != seen => panic!("{number} after {seen}"),
                Item::Next(_) => 1,
                Item::Lagged(missed) => missed,
            };
            for (pushes, reads) in steps {
                for _ in 0..pushes {
                    feed.push(u32::try_from(pushed).unwrap());
                    pushed += 1;
                }
                for _ in 0..reads {
                    if let Next::Item(item) = feed.next_within(Duration::ZERO) {
                        take(item);
                    }
                }
            }
            drain(&feed).into_iter().for_each(&mut take);
            prop_assert_eq!(seen, pushed);
        });
    }
}
