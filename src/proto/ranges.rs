//! Sets of sequence numbers as ascending, disjoint, inclusive ranges that never touch. Knows nothing of what
//! the numbers mean.

/// A set of sequence numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// From how they travel: `None` unless each begins at 1 or above, and they ascend without overlapping.
    pub(crate) fn from_wire(wire: &[(u64, u64)]) -> Option<Self> {
        let mut ranges = Self(Vec::with_capacity(wire.len()));
        let mut last = 0;
        for &(lo, hi) in wire {
            if lo <= last || lo > hi {
                return None;
            }
            last = hi;
            match ranges.0.last_mut() {
                Some(before) if before.1 + 1 == lo => before.1 = hi,
                _ => ranges.0.push((lo, hi)),
            }
        }
        Some(ranges)
    }

    /// Keeps the first so many ranges.
    pub(crate) fn truncate(&mut self, most: usize) {
        self.0.truncate(most);
    }

    pub(crate) fn to_wire(&self) -> Vec<(u64, u64)> {
        self.0.clone()
    }

    /// Where the first range is that ends at `seq` or later.
    fn place(&self, seq: u64) -> usize {
        self.0.partition_point(|(_, hi)| *hi < seq)
    }

    pub(crate) fn contains(&self, seq: u64) -> bool {
        self.0.get(self.place(seq)).is_some_and(|(lo, _)| *lo <= seq)
    }

    /// Adds one; whether it was new.
    pub(crate) fn insert(&mut self, seq: u64) -> bool {
        let new = !self.contains(seq);
        if new {
            self.insert_range(seq, seq);
        }
        new
    }

    /// Adds `lo..=hi`.
    pub(crate) fn insert_range(&mut self, lo: u64, hi: u64) {
        debug_assert!(lo <= hi);
        // All ranges that overlap or touch become one.
        let from = self.place(lo.saturating_sub(1));
        let to = from + self.0[from..].partition_point(|(start, _)| *start <= hi.saturating_add(1));
        let merged =
            self.0[from..to].iter().fold((lo, hi), |all, range| (all.0.min(range.0), all.1.max(range.1)));
        self.0.splice(from..to, [merged]);
    }

    pub(crate) fn remove(&mut self, seq: u64) {
        let at = self.place(seq);
        let Some(&(lo, hi)) = self.0.get(at).filter(|(lo, _)| *lo <= seq) else { return };
        let left = (lo < seq).then(|| (lo, seq - 1));
        let right = (seq < hi).then(|| (seq + 1, hi));
        self.0.splice(at..=at, left.into_iter().chain(right));
    }

    pub(crate) fn union(&mut self, other: &Self) {
        for &(lo, hi) in &other.0 {
            self.insert_range(lo, hi);
        }
    }

    /// What is here and not in `other`.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for &(lo, hi) in &self.0 {
            let mut rest = Some(lo);
            for &(start, end) in other.0[other.place(lo)..].iter().take_while(|(start, _)| *start <= hi) {
                if let Some(lo) = rest.filter(|lo| *lo < start) {
                    left.push((lo, start - 1));
                }
                rest = end.checked_add(1);
            }
            if let Some(lo) = rest.filter(|lo| *lo <= hi) {
                left.push((lo, hi));
            }
        }
        Self(left)
    }

    /// What is here and in `other`.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        self.minus(&self.minus(other))
    }

    /// What is here from `first` on.
    pub(crate) fn from(mut self, first: u64) -> Self {
        self.0.drain(..self.place(first));
        if let Some(range) = self.0.first_mut() {
            range.0 = range.0.max(first);
        }
        self
    }

    /// Adds ranges that lie beyond all that is here; `false`, and nothing changes, if they do not.
    pub(crate) fn append(&mut self, other: &Self) -> bool {
        let beyond = other.min().is_none_or(|first| self.max().is_none_or(|last| last < first));
        if beyond {
            self.union(other);
        }
        beyond
    }

    /// How many numbers there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().fold(0, |count: u64, (lo, hi)| count.saturating_add((hi - lo).saturating_add(1)))
    }

    /// How many ranges there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }

    pub(crate) fn min(&self) -> Option<u64> {
        self.0.first().map(|(lo, _)| *lo)
    }

    pub(crate) fn max(&self) -> Option<u64> {
        self.0.last().map(|(_, hi)| *hi)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn flat(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.iter().flat_map(|(lo, hi)| lo..=hi).collect()
    }

    fn whole(ranges: &Ranges) {
        assert!(Ranges::from_wire(&ranges.to_wire()).as_ref() == Some(ranges), "{ranges:?}");
    }

    /// Where the numbers of a test begin: at the smallest, or so that they end at the greatest.
    fn bases() -> impl Strategy<Value = u64> {
        prop_oneof![Just(1), Just(u64::MAX - 255)]
    }

    #[test]
    fn ranges_behave_as_a_set() {
        proptest!(|(base in bases(), steps: Vec<(u8, u8, u8)>)| {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            let (mut other, mut other_model) = (Ranges::default(), BTreeSet::new());
            for (what, lo, len) in steps {
                let lo = base + u64::from(lo);
                let hi = lo.saturating_add(u64::from(len % 9));
                match what % 5 {
                    0 => prop_assert_eq!(ranges.insert(lo), model.insert(lo)),
                    1 => {
                        ranges.insert_range(lo, hi);
                        model.extend(lo..=hi);
                    }
                    2 => {
                        ranges.remove(lo);
                        model.remove(&lo);
                    }
                    3 => {
                        other.insert_range(lo, hi);
                        other_model.extend(lo..=hi);
                    }
                    _ => {
                        ranges.union(&other);
                        model.extend(&other_model);
                    }
                }
                whole(&ranges);
                prop_assert_eq!(flat(&ranges), model.clone());
                for near in [lo - 1, lo, hi, hi.saturating_add(1)] {
                    prop_assert_eq!(ranges.contains(near), model.contains(&near));
                }
                prop_assert_eq!(ranges.count(), model.len() as u64);
                prop_assert_eq!(ranges.max(), model.last().copied());
                prop_assert_eq!(ranges.min(), model.first().copied());
                let late = ranges.clone().from(lo);
                whole(&late);
                prop_assert_eq!(flat(&late), model.range(lo..).copied().collect());
                let mut both = ranges.clone();
                let beyond = other.min().is_none_or(|first| ranges.max().is_none_or(|last| last < first));
                prop_assert_eq!(both.append(&other), beyond);
                if beyond {
                    prop_assert_eq!(flat(&both), &model | &other_model);
                } else {
                    prop_assert_eq!(&both, &ranges);
                }
                prop_assert_eq!(ranges.is_empty(), model.is_empty());
                let begins = model.iter().filter(|seq| !model.contains(&(**seq - 1))).count();
                prop_assert_eq!(ranges.len(), begins);
                for (a, b, in_a, in_b) in
                    [(&ranges, &other, &model, &other_model), (&other, &ranges, &other_model, &model)]
                {
                    let minus = a.minus(b);
                    whole(&minus);
                    prop_assert_eq!(flat(&minus), in_a.difference(in_b).copied().collect());
                    let both = a.intersection(b);
                    whole(&both);
                    prop_assert_eq!(flat(&both), in_a & in_b);
                }
            }
        });
    }

    #[test]
    fn what_a_peer_sends_is_taken_if_it_ascends_without_overlapping() {
        // Mostly ascending, with a fault now and then.
        let step = (0..12_u64, prop_oneof![8 => 0..6_u64, 1 => Just(u64::MAX)]);
        proptest!(ProptestConfig::with_cases(1_024), |(
            steps in prop::collection::vec(step, 0..8),
            start in prop_oneof![Just(0), Just(1), Just(u64::MAX - 40)],
        )| {
            let mut at: u64 = start;
            let mut wire = Vec::new();
            for (gap, len) in steps {
                let lo = at.wrapping_add(gap).wrapping_sub(u64::from(gap == 11) * 14);
                let hi = lo.wrapping_add(len);
                wire.push((lo, hi));
                at = hi.saturating_add(1);
            }
            let all: Vec<u64> = wire.iter().flat_map(|(lo, hi)| [*lo, *hi]).collect();
            let whole_range = |pair: &(u64, u64)| pair.0 >= 1 && pair.0 <= pair.1;
            let good = wire.iter().all(whole_range) && wire.windows(2).all(|two| two[0].1 < two[1].0);
            let taken = Ranges::from_wire(&wire);
            prop_assert_eq!(taken.is_some(), good, "{:?}", &all);
            if let Some(taken) = taken {
                whole(&taken);
                let numbers = |ranges: &[(u64, u64)]| ranges.iter().map(|(lo, hi)| hi - lo + 1).sum::<u64>();
                prop_assert_eq!(taken.count(), numbers(&wire));
                let touching = wire.windows(2).filter(|two| two[0].1 + 1 == two[1].0).count();
                prop_assert_eq!(taken.len(), wire.len() - touching);
                for seq in all.iter().flat_map(|end| [end - 1, *end, end.saturating_add(1)]) {
                    let inside = wire.iter().any(|(lo, hi)| (*lo..=*hi).contains(&seq));
                    prop_assert_eq!(taken.contains(seq), inside);
                }
            }
        });
    }

    #[test]
    fn a_peer_can_send_no_ranges_that_break_the_set() {
        for bad in [&[(0, 1)][..], &[(2, 1)], &[(1, 3), (3, 4)], &[(5, 6), (1, 2)], &[(1, u64::MAX), (1, 2)]]
        {
            assert_eq!(Ranges::from_wire(bad), None, "{bad:?}");
        }
        let all = Ranges::from_wire(&[(1, u64::MAX)]).unwrap();
        assert_eq!(all.minus(&all), Ranges::default());
        assert_eq!(Ranges::from_wire(&[(1, 2), (3, 4)]).unwrap().to_wire(), [(1, 4)]);
    }
}
