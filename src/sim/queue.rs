//! What is to happen, in the order of its time; of one instant, in the order in which it was planned.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use crate::sim::Step;

#[derive(Debug)]
struct Entry {
    at: u64,
    number: u64,
    step: Step,
}

/// The heap of steps.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    planned: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: u64, step: Step) {
        self.planned += 1;
        self.heap.push(Reverse(Entry { at, number: self.planned, step }));
    }

    /// The next step, if it is due by `end`.
    pub(crate) fn pop_by(&mut self, end: u64) -> Option<(u64, Step)> {
        if self.heap.peek().is_none_or(|Reverse(entry)| entry.at > end) {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.step))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
