//! The shared probe schedule: in each period every node probes another, by an order that all derive alike, so
//! that with equal views each is probed exactly once. Keeps no state that matters: a cache only.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

/// Derives whom to probe when.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Schedule {
    key: (u64, u64),
    /// The steps of one pass, in order: for this pass, among so many nodes, up to so far.
    pass: Option<(u64, (usize, usize), Vec<u32>)>,
}

impl Schedule {
    pub(super) fn new(key: (u64, u64)) -> Self {
        Self { key, pass: None }
    }

    /// How many ranks further the target of `period` stands among `nodes`, and no more than `reach` to either
    /// side; `None` if there is no other.
    pub(super) fn step(&mut self, period: u64, nodes: usize, reach: usize) -> Option<usize> {
        let others = nodes.checked_sub(1).filter(|others| *others > 0)?;
        let reach = reach.clamp(1, others);
        let steps = others.min(2 * reach) as u64;
        let (pass, index) = (period / steps, period % steps);
        if self.pass.as_ref().is_none_or(|(of, among, ..)| (*of, *among) != (pass, (nodes, reach))) {
            let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
            hasher.write_u64(pass);
            hasher.write_u64(others as u64);
            let near = |step: &u32| *step as usize <= reach || nodes - *step as usize <= reach;
            let mut steps: Vec<u32> = (1..).take(others).filter(near).collect();
            fastrand::Rng::with_seed(hasher.finish()).shuffle(&mut steps);
            self.pass = Some((pass, (nodes, reach), steps));
        }
        let (_, _, steps) = self.pass.as_ref()?;
        steps.get(usize::try_from(index).ok()?).map(|step| *step as usize)
    }
}

/// log10, rounded up; at least 1.
pub(super) fn log10_ceil(n: usize) -> u32 {
    n.saturating_sub(1).checked_ilog10().map_or(1, |log| log + 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn with_equal_views_each_is_probed_once_a_period_and_each_pair_meets_once_a_pass() {
        let mut schedule = Schedule::new((1, 2));
        let nodes = 17;
        for period in 0..40 {
            let step = schedule.step(period, nodes, nodes).unwrap();
            let targets: BTreeSet<_> = (0..nodes).map(|rank| (rank + step) % nodes).collect();
            assert_eq!(targets.len(), nodes);
            assert!(!step.is_multiple_of(nodes));
        }
        let steps: BTreeSet<_> = (0..16).map(|period| schedule.step(period, nodes, nodes).unwrap()).collect();
        assert_eq!(steps.len(), 16);
    }

    #[test]
    fn within_reach_are_as_many_to_either_side_and_each_has_its_turn() {
        for (nodes, reach, expected) in [
            (17, 2, vec![1, 2, 15, 16]),
            (17, 8, (1..17).collect()),
            (17, 99, (1..17).collect()),
            (2, 1, vec![1]),
            (3, 0, vec![1, 2]),
        ] {
            let mut schedule = Schedule::new((1, 2));
            let first = expected.len() as u64 * 7; // where a pass begins
            let turns = first..first + expected.len() as u64;
            let mut steps: Vec<_> =
                turns.map(|period| schedule.step(period, nodes, reach).unwrap()).collect();
            steps.sort_unstable();
            assert_eq!(steps, expected, "{nodes} nodes, {reach} to either side");
        }
    }

    #[test]
    fn alone_there_is_nobody_to_probe() {
        assert_eq!(Schedule::new((1, 2)).step(5, 1, 1), None);
    }

    #[test]
    fn the_logarithm_counts_digits() {
        assert_eq!([1, 2, 10, 11, 100, 101, 1_000].map(log10_ceil), [1, 1, 1, 2, 2, 3, 3]);
    }
}
