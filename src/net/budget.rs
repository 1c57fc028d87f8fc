//! Token buckets: how much of something a peer, an address or a log line may have in a second.

use std::{collections::BTreeMap, net::IpAddr};

use tokio::time::Instant;

/// The most addresses watched at once. Beyond it those with a full bucket are forgotten: they have used
/// nothing.
const ADDRESSES_MAX: usize = 4_096;

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
        (!self.take(now)).then(|| now + std::time::Duration::from_secs_f64(1.0 / self.per_second))
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = elapsed.mul_add(self.per_second, self.left).min(self.burst);
        self.at = now;
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
    pub(crate) fn new(per_second: u32, burst: u32, all: u32, now: Instant) -> Self {
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
    use std::{net::Ipv4Addr, time::Duration};

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
    fn one_address_does_not_use_up_anothers_share() {
        let now = clock::monotonic();
        let mut gate = Gate::new(20, 20, 500, now);
        let address = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
        assert_eq!((0..99).filter(|_| gate.take(address(1), now)).count(), 20);
        assert!(gate.take(address(2), now));
        assert_eq!((10..10_000).filter(|n| gate.take(address(*n), now)).count(), 479);
        assert!(gate.addresses.len() <= ADDRESSES_MAX);
    }
}
