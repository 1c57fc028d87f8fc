//! A process' clocks: a monotonic one that may run fast or slow, and a wall clock that may be off and jump.
//! Nothing here knows what they are used for.

use crate::proto::{Now, Time};

/// Parts of a million.
const MILLION: i128 = 1_000_000;

/// The monotonic clock of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// A moment of the world, and what this clock showed then.
    world: u64,
    shown: u64,
    /// By how many parts of a million it runs fast.
    fast_ppm: i64,
}

impl Clock {
    pub(crate) fn started(at: u64) -> Self {
        Self { world: at, shown: 0, fast_ppm: 0 }
    }

    /// What it shows at a moment of the world.
    pub(crate) fn at(&self, world: u64) -> u64 {
        let passed = i128::from(world.saturating_sub(self.world));
        self.shown + u64::try_from(passed * (MILLION + i128::from(self.fast_ppm)) / MILLION).unwrap_or(0)
    }

    /// The first moment of the world at which it shows that, or later.
    pub(crate) fn when(&self, shown: u64) -> u64 {
        let rate = MILLION + i128::from(self.fast_ppm);
        let wait = (i128::from(shown.saturating_sub(self.shown)) * MILLION + rate - 1) / rate;
        self.world.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// From now on it runs so much fast, or slow if negative.
    pub(crate) fn drift(&mut self, world: u64, fast_ppm: i64) {
        *self = Self { world, shown: self.at(world), fast_ppm };
    }

    pub(crate) fn now(&self, world: u64, wall_ms: u64) -> Now {
        Now { time: Time::from_micros(self.at(world)), wall_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn a_clock_that_drifts_shows_its_hour_when_it_says() {
        for ppm in [-100_000, -300, 0, 7, 100_000] {
            let mut clock = Clock::started(1_000);
            assert_eq!((clock.at(1_000), clock.at(501_000)), (0, 500_000));
            clock.drift(501_000, ppm);
            for shown in [500_001, 777_777, 900_000_000] {
                let when = clock.when(shown);
                assert!(clock.at(when) >= shown && clock.at(when - 1) < shown, "{ppm} {shown}");
            }
        }
    }
}
