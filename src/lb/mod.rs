//! Tables for load balancers over the shared state: what nodes observed, ordered, carry and count, each with
//! rules that end in one view whatever the order in which it came.
//!
//! What a node *observed* is its own register, and the view is a function of the live nodes' registers
//! ([`HealthTable`], [`CircuitBreakers`], [`Counters`]). What an operator *ordered* is shared, and outlives the
//! node through which it was given ([`Drains`]). What a node *carries* passes to another when it dies
//! ([`Conntrack`]). Values of other versions or of rogue peers that cannot be read are left out, counted and
//! reported once a node, and passed on untouched.
//!
//! `registers` what nodes have said · `opinions` tables of it · `live` whose word counts, who is chosen ·
//! `table` how a table is attached to a cluster · one file a table. Tables decide without clock, thread or
//! cluster; only `table` has those.

mod check;
pub(crate) mod circuit_breaker;
pub(crate) mod conntrack;
pub(crate) mod counters;
pub(crate) mod drain;
pub(crate) mod health;
pub(crate) mod live;
pub(crate) mod opinions;
pub(crate) mod registers;
pub(crate) mod table;
#[cfg(test)]
mod tests;

pub use self::{
    circuit_breaker::{Breaker, BreakerOpinion, CircuitBreakers, CircuitRule, CircuitState, CircuitView},
    conntrack::{Conntrack, ConntrackRules, ConntrackStats, Flow, FlowKey, FlowProtocol, FlowView},
    counters::{CounterPart, CounterView, Counters},
    drain::{Drain, DrainState, DrainView, Drains, NodeProgress, Order},
    health::{
        CheckKind, CustomRule, Health, HealthRule, HealthRules, HealthStatus, HealthTable, HealthView,
        Opinion,
    },
    table::{Change, ChangeStream},
};

/// Wall clock times as milliseconds since 1970.
mod unix_ms {
    use std::time::{Duration, SystemTime};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        serializer.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let ms = u64::deserialize(deserializer)?;
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms));
        at.ok_or_else(|| serde::de::Error::custom("a time beyond what this machine can represent"))
    }
}

/// Spans as milliseconds.
mod ms {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// Spans that may be missing, as milliseconds.
mod ms_option {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde hands it over so")]
    pub(super) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        span.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_millis))
    }
}
