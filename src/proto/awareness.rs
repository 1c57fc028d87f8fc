//! Local health (Lifeguard, LHA-Probe): a node that misses what it should have seen doubts itself before
//! others. Knows no member.

/// The greatest score: intervals and time-outs are stretched at most ninefold.
const SCORE_MAX: u32 = 8;

/// The local health multiplier.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Awareness {
    score: u32,
    most: u32,
}

impl Awareness {
    /// One that never doubts itself if the rule is switched off.
    pub(crate) fn new(on: bool) -> Self {
        Self { score: 0, most: if on { SCORE_MAX } else { 0 } }
    }

    pub(crate) fn score(&self) -> u32 {
        self.score
    }

    /// By how much to stretch intervals and time-outs.
    pub(crate) fn factor(&self) -> u32 {
        self.score + 1
    }

    /// A probe was answered.
    pub(crate) fn well(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    /// So many signs that the fault may lie here: nacks missed, suspicions refuted, late wake-ups.
    pub(crate) fn unwell(&mut self, signs: u32) {
        self.score = self.score.saturating_add(signs).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_stays_within_its_bounds() {
        let mut health = Awareness::new(true);
        health.well();
        assert_eq!(health.factor(), 1);
        health.unwell(u32::MAX);
        assert_eq!(health.factor(), 9);
        health.well();
        assert_eq!(health.score(), 7);
    }
}
