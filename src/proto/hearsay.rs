//! How much a peer may tell of others: claims, accusations, requests to look. One that tells without end makes
//! nobody work without end. Decides nothing about what is told.

use std::collections::BTreeMap;

use crate::{
    NodeId,
    proto::{Now, Protocol, Time},
    wire::limits,
};

/// What is left to whom, in thousandths; who is not in it has all.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(super) struct Hearsay(BTreeMap<NodeId, (Time, u64)>);

impl Hearsay {
    fn left(&self, teller: &NodeId, now: Time) -> u64 {
        let (rate, burst) = (u64::from(limits::HEARSAY.0), u64::from(limits::HEARSAY.1) * 1_000);
        self.0.get(teller).map_or(burst, |(at, left)| {
            let ms = u64::try_from(now.since(*at).as_millis()).unwrap_or(u64::MAX);
            ms.saturating_mul(rate).saturating_add(*left).min(burst)
        })
    }

    /// Takes one, if there is one.
    fn take(&mut self, teller: &NodeId, now: Time) -> bool {
        let left = self.left(teller, now);
        if left >= 1_000 {
            self.0.insert(teller.clone(), (now, left - 1_000));
        }
        left >= 1_000
    }

    /// Forgets who has all again.
    pub(super) fn sweep(&mut self, now: Time) {
        let full: Vec<_> = self
            .0
            .keys()
            .filter(|teller| self.left(teller, now) >= u64::from(limits::HEARSAY.1) * 1_000)
            .cloned()
            .collect();
        for teller in full {
            self.0.remove(&teller);
        }
    }
}

impl Protocol {
    /// Whether a peer may tell one thing more of others. Only members are asked after, so they bound the table.
    pub(super) fn may_tell(&mut self, teller: &NodeId, now: Now) -> bool {
        self.hearsay.take(teller, now.time)
    }

    /// The same, without taking anything from it.
    pub(super) fn could_tell(&self, teller: &NodeId, now: Now) -> bool {
        self.hearsay.left(teller, now.time) >= 1_000
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_teller_has_its_burst_then_its_rate_and_takes_nothing_from_others() {
        let (a, b) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let at = |ms| Time::ZERO + Duration::from_millis(ms);
        let mut hearsay = Hearsay::default();
        let mut told = |teller: &NodeId, ms| (0..9_999).filter(|_| hearsay.take(teller, at(ms))).count();
        assert_eq!([told(&a, 0), told(&b, 0), told(&a, 500)], [2_000, 2_000, 100]);
        assert_eq!(told(&a, 4), 0, "a clock that goes back gives nothing");
        hearsay.sweep(at(10_000));
        assert_eq!(hearsay.0.len(), 1, "b has all again");
    }
}
