//! What a node under control tells the process that started it: one JSON line each, with the time at which it
//! happened. Data only, and the one clock of the example.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// A note, and when: microseconds since 1970. All processes are on one machine, so their times can be
/// compared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) at: u64,
    #[serde(flatten)]
    pub(crate) note: Note,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "kebab-case")]
pub(crate) enum Note {
    /// The socket is open; peers are served.
    Serves { address: String },
    /// `start` has returned: a seed let the node in, or none did.
    Started { alive: BTreeSet<String> },
    /// The node could not be made or started.
    Failed { error: String },
    /// Something happened to a member; who is alive in this node's view since.
    Member { kind: String, about: String, cause: String, alive: BTreeSet<String> },
    /// A record of shared state is there, or went.
    Record { record: Record, removed: bool },
    /// The provider took a record over.
    Applied { record: Record },
    /// Any other event.
    Event { text: String },
    /// A record was written here; the time is from before the call.
    Wrote { record: Record },
    /// What a command asked for could not be done.
    Refused { error: String },
    /// How many of the addresses let the node in.
    Joined { answered: usize },
    /// Every record the node holds.
    Records { records: Vec<Record> },
    /// How many connections were refused, by cause.
    Counted { refused: BTreeMap<String, u64> },
    /// `stop` was called.
    Leaves,
    /// `stop` has returned.
    Stopped,
    /// The library logged something.
    Log { text: String },
    /// Noted by the one who listens: the process has ended.
    Gone,
}

/// A record of shared state; its value as JSON.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) state_type: String,
    pub(crate) key: String,
    pub(crate) source: String,
    pub(crate) version: u64,
    pub(crate) value: String,
}

impl From<&phalanx::SyncableState> for Record {
    fn from(state: &phalanx::SyncableState) -> Self {
        let value = state.value.decode::<serde_json::Value>();
        Self {
            state_type: state.state_type.to_string(),
            key: state.key.clone(),
            source: state.source_node.to_string(),
            version: state.version,
            value: value.map_or_else(|_| format!("{:?}", state.value), |value| value.to_string()),
        }
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} = {} (by {}, version {})",
            self.state_type, self.key, self.value, self.source, self.version
        )
    }
}

/// Microseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the example's one clock")]
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// From one time to another, for people: `0.84 ms`, `183 ms`, `7.21 s`.
pub(crate) fn span(from: u64, to: u64) -> String {
    let span = Duration::from_micros(to.saturating_sub(from));
    match span.as_micros() {
        0..10_000 => format!("{:.2} ms", span.as_secs_f64() * 1e3),
        10_000..1_000_000 => format!("{:.0} ms", span.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", span.as_secs_f64()),
    }
}
