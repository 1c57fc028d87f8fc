//! `Time`, the core's only clock for waiting, and `Now`, what every input carries. Reads no clock itself.

use std::{
    fmt,
    ops::{Add, AddAssign, Sub},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Microseconds since the node was made. For waiting only: order is the Lamport version's business, and
/// people read the wall clock.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Time(u64);

impl Time {
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    #[cfg(any(test, feature = "sim"))]
    pub(crate) const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long `earlier` is past; zero if it lies ahead.
    pub(crate) const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl AddAssign<Duration> for Time {
    fn add_assign(&mut self, wait: Duration) {
        *self = *self + wait;
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    fn sub(self, wait: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// What the clocks say when an input arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// For waiting. Never goes back.
    pub(crate) time: Time,
    /// The wall clock, in milliseconds since 1970: for people, for epochs and for bounds. May jump.
    pub(crate) wall_ms: u64,
}

impl Now {
    pub(crate) fn wall(self) -> SystemTime {
        wall_time(self.wall_ms)
    }
}

/// A wall clock reading as people's time.
pub(crate) fn wall_time(wall_ms: u64) -> SystemTime {
    // A peer's number may be beyond what the platform can represent.
    UNIX_EPOCH.checked_add(Duration::from_millis(wall_ms)).unwrap_or(UNIX_EPOCH)
}

/// People's time as milliseconds since 1970; what lies before counts as 1970.
pub(crate) fn wall_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
