//! What is to happen, in the order of its time; of one instant, in the order in which it was planned.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::sim::Step;

/// When, the how many-th to be planned, and where it lies.
type Entry = (u64, u64, usize);

/// The heap of steps.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    planned: u64,
    /// The steps themselves, which are too large to be moved about in a heap.
    steps: Vec<Option<Step>>,
    free: Vec<usize>,
}

impl Queue {
    pub(crate) fn push(&mut self, at: u64, step: Step) {
        self.planned += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.steps.push(None);
            self.steps.len() - 1
        });
        self.steps[place] = Some(step);
        self.heap.push(Reverse((at, self.planned, place)));
    }

    /// The next step, if it is due by `end`.
    pub(crate) fn pop_by(&mut self, end: u64) -> Option<(u64, Step)> {
        if self.heap.peek().is_none_or(|Reverse((at, ..))| *at > end) {
            return None;
        }
        let Reverse((at, _, place)) = self.heap.pop()?;
        self.free.push(place);
        Some((at, self.steps[place].take()?))
    }
}
