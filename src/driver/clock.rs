//! The clocks and the entropy: the only file that reads them, so that everything else can be replayed.
//! Decides nothing.

#![expect(clippy::disallowed_methods, reason = "this is the one place where time and chance enter")]

use std::time::SystemTime;

use tokio::time::Instant;

use crate::proto::{self, Now, Time};

/// The clock of one life of a node: the core's `Time` begins with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    // tokio's clock, not std's: tests pause it.
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(self) -> Now {
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Now { time: Time::from_micros(micros), wall_ms: proto::time::wall_ms(wall_now()) }
    }

    /// When the core's `time` is, on tokio's clock; `None` if that is beyond what it can represent.
    pub(crate) fn instant(self, time: Time) -> Option<Instant> {
        self.start.checked_add(time.since(Time::ZERO))
    }
}

/// The time of people.
pub(crate) fn wall_now() -> SystemTime {
    SystemTime::now()
}

/// For waiting and for budgets; follows tokio's paused time in tests.
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

/// A number that nobody can guess: the seed of everything random.
pub(crate) fn entropy() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    // A version 4 UUID has six fixed bits, at different places of its halves.
    high ^ low.rotate_left(32)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_cores_time_follows_a_paused_clock() {
        let clock = Clock::new();
        assert_eq!(clock.now().time, Time::ZERO);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(clock.now().time, Time::ZERO + Duration::from_secs(3));
        let later = Time::ZERO + Duration::from_secs(5);
        assert_eq!(clock.instant(later).unwrap() - monotonic(), Duration::from_secs(2));
    }

    #[test]
    fn no_two_seeds_are_the_same() {
        assert_ne!(entropy(), entropy());
    }
}
