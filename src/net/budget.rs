//! Token buckets: how much of something a peer, an address or a log line may have in a second; and who was
//! over its budget, and may not come back yet. Counts, never waits.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use tokio::time::Instant;

use crate::{NodeId, wire::limits};

/// The most addresses watched at once. Beyond it those with a full bucket are forgotten: they have used
/// nothing.
const ADDRESSES_MAX: usize = 4_096;
/// The most peers remembered that were over a budget; beyond it the one that may come back first is forgotten.
const PENALTIES_MAX: usize = 4_096;
/// A peer that is not read is looked at again so much later: less often than its datagrams come.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// So many a second, so many at once.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    per_second: f64,
    burst: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { per_second: per_second.into(), burst: burst.into(), left: burst.into(), at: now }
    }

    /// Takes one if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }

    /// Takes one, or says when there may be one.
    pub(crate) fn pause(&mut self, now: Instant) -> Option<Instant> {
        (!self.take(now)).then(|| now + Duration::from_secs_f64(1.0 / self.per_second))
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = elapsed.mul_add(self.per_second, self.left).min(self.burst);
        self.at = now;
    }
}

/// What a peer's use of something means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spent {
    Fine,
    /// It is not read before that.
    Wait(Instant),
    /// It has been over its budget for so long that it is not slow to learn, but bad.
    Over,
}

/// What one peer may use. It may go into debt by one message, since nobody knows what is in one before.
pub(crate) struct Budget {
    bucket: Bucket,
    /// Since when it has not had half its burst.
    dry: Option<Instant>,
}

impl Budget {
    pub(crate) fn new((per_second, burst): (u32, u32), now: Instant) -> Self {
        Self { bucket: Bucket::new(per_second, burst, now), dry: None }
    }

    pub(crate) fn spend(&mut self, amount: usize, now: Instant) -> Spent {
        self.bucket.refill(now);
        self.bucket.left -= u32::try_from(amount).map_or(f64::from(u32::MAX), f64::from);
        if self.bucket.left >= self.bucket.burst / 2.0 {
            self.dry = None;
        }
        if self.bucket.left >= 0.0 {
            return Spent::Fine;
        }
        if now.saturating_duration_since(*self.dry.get_or_insert(now)) > limits::OVER_BUDGET {
            return Spent::Over;
        }
        let debt = Duration::from_secs_f64(-self.bucket.left / self.bucket.per_second);
        Spent::Wait(now + debt.max(PAUSE_MIN))
    }
}

/// Peers that were closed for what they used: how often, and until when they are not let in.
#[derive(Default)]
pub(crate) struct Penalties(BTreeMap<NodeId, (u32, Instant)>);

impl Penalties {
    pub(crate) fn punish(&mut self, peer: &NodeId, now: Instant) {
        let (shortest, longest) = limits::PENALTY;
        // Who has behaved for as long as the longest begins anew.
        self.0.retain(|_, (_, until)| now < *until + longest);
        if self.0.len() >= PENALTIES_MAX
            && let Some(first) = self.0.iter().min_by_key(|(_, (_, until))| *until).map(|(id, _)| id.clone())
        {
            self.0.remove(&first);
        }
        let (times, until) = self.0.entry(peer.clone()).or_insert((0, now));
        *until = now + shortest.saturating_mul(1 << (*times).min(16)).min(longest);
        *times += 1;
    }

    /// How long the peer must stay away yet.
    pub(crate) fn left(&self, peer: &NodeId, now: Instant) -> Option<Duration> {
        let (_, until) = self.0.get(peer)?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

/// A bucket for each address, and one for all.
pub(crate) struct Gate {
    per_second: u32,
    burst: u32,
    all: Bucket,
    addresses: BTreeMap<IpAddr, Bucket>,
}

impl Gate {
    pub(crate) fn new((per_second, burst): (u32, u32), all: u32, now: Instant) -> Self {
        Self { per_second, burst, all: Bucket::new(all, all, now), addresses: BTreeMap::new() }
    }

    /// Whether `address` may begin another handshake now.
    pub(crate) fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.addresses.len() >= ADDRESSES_MAX {
            self.addresses.retain(|_, bucket| {
                bucket.refill(now);
                bucket.left < bucket.burst
            });
        }
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&address) {
            return false;
        }
        let bucket =
            self.addresses.entry(address).or_insert_with(|| Bucket::new(self.per_second, self.burst, now));
        bucket.take(now) && self.all.take(now)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::driver::clock;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let now = clock::monotonic();
        let mut bucket = Bucket::new(10, 3, now);
        assert_eq!((0..9).filter(|_| bucket.take(now)).count(), 3);
        assert_eq!((0..9).filter(|_| bucket.take(now + Duration::from_millis(201))).count(), 2);
        assert!(!bucket.take(now), "a clock that goes back gives nothing");
    }

    #[test]
    fn a_budget_pauses_who_is_over_it_and_ends_who_stays_so() {
        let now = clock::monotonic();
        let after = |ms| now + Duration::from_millis(ms);
        let mut budget = Budget::new((100, 200), now);
        assert_eq!(budget.spend(200, now), Spent::Fine);
        assert_eq!(budget.spend(1, now), Spent::Wait(after(50)));
        assert_eq!(budget.spend(100, after(1_000)), Spent::Wait(after(1_050)), "one over, for a second");
        assert_eq!(budget.spend(300, after(2_001)), Spent::Over);
        // Long enough without anything, and it begins anew.
        assert_eq!(budget.spend(1, after(9_000)), Spent::Fine);
        assert_eq!(budget.spend(300, after(9_000)), Spent::Wait(after(10_010)), "a debt is paid in full");
    }

    #[test]
    fn who_was_over_its_budget_stays_away_twice_as_long_each_time_up_to_a_minute() {
        let now = clock::monotonic();
        let (a, b) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let mut penalties = Penalties::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            penalties.punish(&a, now);
            waits.push(penalties.left(&a, now).unwrap().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(penalties.left(&b, now), None);
        assert_eq!(penalties.left(&a, now + Duration::from_secs(60)), None);
        penalties.punish(&a, now + Duration::from_secs(120));
        assert_eq!(penalties.left(&a, now + Duration::from_secs(120)), Some(Duration::from_secs(1)));
        for number in 0..5_000 {
            penalties.punish(&NodeId::new(format!("n{number}")).unwrap(), now + Duration::from_secs(120));
        }
        assert!(penalties.0.len() <= PENALTIES_MAX);
    }

    #[test]
    fn one_address_does_not_use_up_anothers_share() {
        let now = clock::monotonic();
        let mut gate = Gate::new((20, 20), 500, now);
        let address = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
        assert_eq!((0..99).filter(|_| gate.take(address(1), now)).count(), 20);
        assert!(gate.take(address(2), now));
        assert_eq!((10..10_000).filter(|n| gate.take(address(*n), now)).count(), 479);
        assert!(gate.addresses.len() <= ADDRESSES_MAX);
    }
}
