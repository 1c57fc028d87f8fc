//! The version clock (Lamport 1978), and how far a peer may pull it. Never looks at a wall clock by itself.

/// 2020-01-01 in milliseconds since 1970: versions count from there.
const BEGIN_MS: u64 = 1_577_836_800_000;
/// How far a version may lie ahead of the wall clock.
const AHEAD_MS: u64 = 24 * 3_600 * 1_000;
/// Versions a millisecond: far more than anyone writes, so that the bound never stands in an honest node's
/// way.
const PER_MS: u64 = 1 << 20;

/// The greatest version that is accepted now. It only loosens with time: what is refused now may be accepted
/// later.
pub(crate) const fn bound(wall_ms: u64) -> u64 {
    wall_ms.saturating_sub(BEGIN_MS).saturating_add(AHEAD_MS).saturating_mul(PER_MS)
}

/// The clock: greater than every version this node has written or accepted.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(crate) struct Lamport(u64);

impl Lamport {
    pub(crate) fn last(&self) -> u64 {
        self.0
    }

    pub(crate) fn tick(&mut self) -> u64 {
        self.0 = self.0.saturating_add(1);
        self.0
    }

    /// Takes a version into account. The caller has checked it against [`bound`].
    pub(crate) fn witness(&mut self, version: u64) {
        self.0 = self.0.max(version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_leaves_a_day_and_never_wraps() {
        assert_eq!(bound(0), AHEAD_MS * PER_MS);
        assert_eq!(bound(BEGIN_MS), AHEAD_MS * PER_MS);
        assert!(bound(BEGIN_MS + 1) > bound(BEGIN_MS));
        assert_eq!(bound(u64::MAX), u64::MAX);
    }

    #[test]
    fn the_clock_passes_all_it_has_seen_and_never_wraps() {
        let mut clock = Lamport::default();
        assert_eq!(clock.tick(), 1);
        clock.witness(41);
        clock.witness(7);
        assert_eq!(clock.tick(), 42);
        clock.witness(u64::MAX);
        assert_eq!(clock.tick(), u64::MAX);
    }
}
