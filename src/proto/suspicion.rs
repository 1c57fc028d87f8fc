//! One accused member: how long it has to refute, and how confirmations shorten that (Lifeguard,
//! LHA-Suspicion). Decides no death: when the time is over the node checks for itself (`probe`).

use std::{collections::BTreeMap, time::Duration};

use crate::{
    NodeId,
    proto::{ProtocolConfig, Rule, Time},
};

/// Lifeguard's β: the first accuser waits so many times the shortest wait.
const BETA: u32 = 6;
/// Accusers remembered, for `explain`.
const ACCUSERS_MAX: usize = 8;

/// A running suspicion.
#[derive(Clone, Debug)]
pub(crate) struct Suspicion {
    pub(crate) since: Time,
    /// Who accused it, and when.
    accusers: BTreeMap<NodeId, Time>,
    min: Duration,
    max: Duration,
    needed: usize,
    /// Whether somebody holds it dead: it is looked at at once.
    pub(crate) held_dead: bool,
}

/// How long a suspect has at least, among `members` nodes: `suspicion-mult · max(1, log10 n) ·
/// ping-interval`.
pub(crate) fn shortest(config: &ProtocolConfig, members: usize) -> Duration {
    if let Some(fixed) = config.suspicion {
        return fixed;
    }
    let members = f64::from(u32::try_from(members).unwrap_or(u32::MAX));
    let scale = members.max(1.0).log10().max(1.0);
    whole_ms((config.ping_interval * config.suspicion_mult).mul_f64(scale))
}

/// Floats are rounded to whole milliseconds before they decide, so that a seed replays anywhere.
fn whole_ms(span: Duration) -> Duration {
    let ms = (span + Duration::from_micros(500)).as_millis();
    Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
}

/// How long a suspect has at most.
pub(crate) fn longest(config: &ProtocolConfig, members: usize) -> Duration {
    shortest(config, members) * if config.has(Rule::LhaSuspicion) { BETA } else { 1 }
}

/// How many confirmations are asked for among `members` nodes: those besides the suspect and the accuser, as
/// far as they count.
pub(crate) fn confirmations_needed(config: &ProtocolConfig, members: usize) -> usize {
    members.saturating_sub(2).min(config.confirmations)
}

impl Suspicion {
    pub(crate) fn new(accuser: NodeId, config: &ProtocolConfig, members: usize, now: Time) -> Self {
        Self {
            since: now,
            accusers: BTreeMap::from([(accuser, now)]),
            min: shortest(config, members),
            max: longest(config, members),
            needed: confirmations_needed(config, members),
            held_dead: false,
        }
    }

    /// Counts one more accuser; whether it was new and shortens the wait.
    pub(crate) fn confirm(&mut self, accuser: NodeId, now: Time) -> bool {
        if self.accusers.len() >= ACCUSERS_MAX || self.accusers.contains_key(&accuser) {
            return false;
        }
        self.accusers.insert(accuser, now);
        self.confirmations() <= self.needed
    }

    /// Whether as many have confirmed it as count.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmations() >= self.needed
    }

    /// Accusers besides the first.
    pub(crate) fn confirmations(&self) -> usize {
        self.accusers.len() - 1
    }

    pub(crate) fn accusers(&self) -> impl Iterator<Item = &NodeId> {
        self.accusers.keys()
    }

    /// When the suspect's time is over: `max − (max − min)·ln(C+1)/ln(K+1)` after the first accusation.
    pub(crate) fn ends(&self) -> Time {
        self.since + self.wait()
    }

    /// When it is over if nobody confirms.
    pub(crate) fn ends_at_most(&self) -> Time {
        self.since + self.max
    }

    fn wait(&self) -> Duration {
        if self.needed == 0 {
            return self.min; // nobody is left who could confirm
        }
        let ln = |count: usize| f64::from(u32::try_from(count + 1).unwrap_or(u32::MAX)).ln();
        let share = ln(self.confirmations().min(self.needed)) / ln(self.needed);
        let shortened = self.max.saturating_sub(self.min).mul_f64(share);
        whole_ms(self.max.saturating_sub(shortened)).max(self.min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests_support::{config, id};

    #[test]
    fn a_suspicion_starts_long_and_shrinks_with_each_confirmation() {
        let mut suspicion = Suspicion::new(id("a"), &config("me"), 32, Time::ZERO);
        // 3 · log10 32 · 1 s = 4.515 s, six times that at first.
        let waits: Vec<_> = ["b", "c", "d", "e"]
            .into_iter()
            .map(|accuser| {
                let wait = suspicion.ends().since(Time::ZERO).as_millis();
                suspicion.confirm(id(accuser), Time::ZERO);
                wait
            })
            .collect();
        assert_eq!(waits, [27_090, 15_803, 9_200, 4_515]);
        assert_eq!(suspicion.ends().since(Time::ZERO).as_millis(), 4_515);
    }

    #[test]
    fn one_accuser_confirms_once() {
        let mut suspicion = Suspicion::new(id("a"), &config("me"), 32, Time::ZERO);
        assert!(!suspicion.confirm(id("a"), Time::ZERO));
        assert!(suspicion.confirm(id("b"), Time::ZERO));
        assert!(!suspicion.confirm(id("b"), Time::ZERO));
    }

    #[test]
    fn where_nobody_can_confirm_the_shortest_wait_holds() {
        let suspicion = Suspicion::new(id("a"), &config("me"), 2, Time::ZERO);
        assert_eq!(suspicion.ends().since(Time::ZERO), Duration::from_secs(3));
    }
}
