//! What is to happen, in the order of its time; of one instant, in the order in which it was planned.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use crate::sim::Step;

/// When, the how many-th to be planned, and where it lies.
type Entry = (u64, u64, usize);

/// The heap of steps.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    /// Those planned in the order in which they come, as what all connections do at one interval: a large
    /// cluster plans little else.
    regular: VecDeque<Entry>,
    planned: u64,
    /// The steps themselves, which are too large to be moved about in a heap.
    steps: Vec<Option<Step>>,
    free: Vec<usize>,
}

impl Queue {
    pub(crate) fn push(&mut self, at: u64, step: Step) {
        let entry = self.entry(at, step);
        self.heap.push(Reverse(entry));
    }

    /// The same, quicker for what mostly comes after everything that was planned so.
    pub(crate) fn push_regular(&mut self, at: u64, step: Step) {
        let entry = self.entry(at, step);
        if self.regular.back().is_none_or(|last| last.0 <= at) {
            self.regular.push_back(entry);
        } else {
            self.heap.push(Reverse(entry));
        }
    }

    fn entry(&mut self, at: u64, step: Step) -> Entry {
        self.planned += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.steps.push(None);
            self.steps.len() - 1
        });
        self.steps[place] = Some(step);
        (at, self.planned, place)
    }

    /// The next step, if it is due by `end`.
    pub(crate) fn pop_by(&mut self, end: u64) -> Option<(u64, Step)> {
        let first = self.heap.peek().map(|Reverse(entry)| *entry);
        let regular = self.regular.front().copied();
        let (at, number, place) = first.into_iter().chain(regular).min().filter(|(at, ..)| *at <= end)?;
        if regular.is_some_and(|regular| regular.1 == number) {
            self.regular.pop_front();
        } else {
            self.heap.pop();
        }
        self.free.push(place);
        Some((at, self.steps[place].take()?))
    }
}
