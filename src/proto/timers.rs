//! What is due next, and why. Holds deadlines; what comes of one is for the part that set it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::{NodeId, proto::Time, wire::StreamId};

/// Why the core wants to be woken. Each is set at most once: setting it again moves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The next protocol period.
    Period,
    /// A probe's direct ping has had its time.
    ProbeDirect(u64),
    /// A probe has had its time.
    ProbeEnd(u64),
    /// A helper says that it is there although the target is silent.
    HelpNack(u64),
    /// A helper forgets whom it helped.
    HelpEnd(u64),
    /// A solicited ping has had its time.
    SolicitEnd(u64),
    /// A suspicion has run its time.
    Suspicion(NodeId),
    /// A suspect is to be looked at, since somebody holds it dead.
    Look(NodeId),
    /// A self-check has had its time.
    CheckEnd(NodeId),
    /// A refutation that had to wait.
    Refute,
    /// A member is to be dialled.
    Dial(NodeId),
    /// A dead member is to be greeted.
    Greet,
    /// What waits to be spread.
    Flush,
    /// A hand-off was not acknowledged in time.
    Handoff(u64),
    Gossip,
    PushPull,
    /// An exchange has stalled.
    Stalled(StreamId),
    /// Another peer may have to be asked for what is missing.
    AskNext,
    /// A confirmation asks again, or ends.
    Confirm(u64),
    /// A leave has had its time.
    Leave,
    /// Something in the store lives no longer.
    Expire,
    /// More is to be dropped of what was deleted long ago.
    Purge,
    /// More own records are to be told again, signed by a new certificate.
    TellAgain,
    /// Old graves, tombstones and duplicates are forgotten.
    Sweep,
}

/// All deadlines.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeSet<(Time, Timer)>,
    /// Invariant: holds exactly the pairs of `due`.
    at: BTreeMap<Timer, Time>,
}

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Time) {
        self.clear(&timer);
        self.due.insert((at, timer.clone()));
        self.at.insert(timer, at);
    }

    /// Sets it unless it is due earlier already.
    pub(crate) fn set_by(&mut self, timer: Timer, at: Time) {
        if self.at(&timer).is_none_or(|set| at < set) {
            self.set(timer, at);
        }
    }

    pub(crate) fn clear(&mut self, timer: &Timer) {
        if let Some(at) = self.at.remove(timer) {
            self.due.remove(&(at, timer.clone()));
        }
    }

    pub(crate) fn at(&self, timer: &Timer) -> Option<Time> {
        self.at.get(timer).copied()
    }

    pub(crate) fn next(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The earliest of those due, taken out.
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.due.pop_first()?;
        self.at.remove(&timer);
        Some(timer)
    }

    /// Puts off those that `which` names, by `delay`.
    pub(crate) fn put_off(&mut self, delay: Duration, which: impl Fn(&Timer) -> bool) {
        let moved: Vec<_> =
            self.at.iter().filter(|(timer, _)| which(timer)).map(|(t, at)| (t.clone(), *at)).collect();
        for (timer, at) in moved {
            self.set(timer, at + delay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    #[test]
    fn timers_come_in_the_order_of_their_deadlines_and_each_once() {
        let mut timers = Timers::default();
        timers.set(Timer::Gossip, ms(3));
        timers.set(Timer::Period, ms(1));
        timers.set(Timer::Gossip, ms(2));
        timers.set_by(Timer::Period, ms(5));
        assert_eq!(timers.next(), Some(ms(1)));
        assert_eq!(timers.pop_due(ms(0)), None);
        assert_eq!(timers.pop_due(ms(9)), Some(Timer::Period));
        assert_eq!(timers.pop_due(ms(9)), Some(Timer::Gossip));
        assert_eq!(timers.pop_due(ms(9)), None);
    }

    #[test]
    fn only_the_named_are_put_off() {
        let mut timers = Timers::default();
        timers.set(Timer::Gossip, ms(1));
        timers.set(Timer::Leave, ms(1));
        timers.put_off(Duration::from_millis(4), |timer| *timer == Timer::Leave);
        assert_eq!((timers.at(&Timer::Gossip), timers.at(&Timer::Leave)), (Some(ms(1)), Some(ms(5))));
    }
}
