//! `Error`: one enum, one voice. Each message says what was wrong, with what value, what to do, and what
//! state it leaves behind.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::NodeId;

/// The cause of an error, kept for `source()`.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, and what to do about it.
///
/// Nothing was changed where a variant does not say otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A node id that no certificate can carry.
    #[error("node id {id:?}: {fault}; use 1 to 128 of A-Z a-z 0-9 . _ -")]
    InvalidNodeId {
        /// The beginning of what was given.
        id: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A cluster name that no certificate can carry.
    #[error("cluster name {name:?}: {fault}; use 1 to 255 of a-z 0-9 . _ -")]
    InvalidClusterName {
        /// The beginning of what was given.
        name: String,
        /// What is wrong with it.
        fault: String,
    },
    /// The configuration has faults; all of them are listed.
    #[error("the configuration has {}", listed(faults))]
    Config {
        /// Every fault found.
        faults: Vec<ConfigFault>,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}; {remedy}", path.display())]
    File {
        /// What was tried: `"read"`, `"write"` …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What to do.
        remedy: String,
    },
    /// A certificate, key or revocation list that cannot be used.
    #[error("{what}: {fault}; {remedy}")]
    Identity {
        /// Which part, with its path where it has one.
        what: String,
        /// What is wrong with it.
        fault: String,
        /// What to do.
        remedy: String,
        /// The parser's own words, where it had some.
        #[source]
        source: Option<Cause>,
    },
    /// The node's socket could not be opened.
    #[error("cannot listen on {address}: {source}; {remedy}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
        /// What to do.
        remedy: String,
    },
    /// Another live process already runs under this node's id. The node was stopped again.
    #[error(
        "node id {node_id} is in use by a live process at {incumbent}; stop that one, or give this node an id and certificate of its own"
    )]
    DuplicateNodeId {
        /// The id.
        node_id: NodeId,
        /// Where the other answers, as far as the refusing peer told.
        incumbent: String,
    },
    /// A peer turned this node away, or this node turned the peer away.
    #[error("{address} refused: {reason} (code {code:#x})")]
    Refused {
        /// The address that was dialled.
        address: String,
        /// The QUIC application close code; TLS alerts are 0x100 + the alert.
        code: u64,
        /// The reason given.
        reason: String,
    },
    /// Nobody answered at an address in time.
    #[error("{address} did not answer: {reason}; check the address, the port and the firewall (UDP)")]
    Unreachable {
        /// The address that was dialled.
        address: String,
        /// What happened.
        reason: String,
    },
    /// `start` needs a tokio runtime to run its tasks on.
    #[error("start was called outside a tokio runtime with I/O and time enabled; call it from one")]
    NoRuntime,
    /// The cluster must run for this.
    #[error("the cluster is not running; call start first")]
    NotRunning,
    /// The cluster was stopped while it was starting.
    #[error("the cluster was stopped while it was starting")]
    StoppedWhileStarting,
    /// Something did not happen in time.
    #[error("{what} did not happen within {limit:?}; {remedy}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What to do.
        remedy: String,
    },
    /// A key that cannot be stored.
    #[error("key of {size} bytes: a key has 1 to {limit} bytes")]
    InvalidKey {
        /// Its length.
        size: usize,
        /// The longest allowed.
        limit: usize,
    },
    /// A type that has no switch. Nothing was changed.
    #[error(
        "{state_type} cannot be switched off or on; health, circuit-breaker, drain and conntrack can, and what \
         nobody writes needs no switch"
    )]
    NotSwitchable {
        /// The type.
        state_type: String,
    },
    /// A second table of one type. Nothing was changed.
    #[error("a table of {state_type} is attached to this cluster; clone that one, or drop it first")]
    TableAttached {
        /// The type.
        state_type: String,
    },
    /// The system gives no thread to a table. Nothing was changed.
    #[error("no thread for a table: {source}; raise the limit of threads, or drop tables")]
    NoThread {
        /// Why.
        source: std::io::Error,
    },
    /// A table's rule or a value given to a table that makes no sense. Nothing was changed.
    #[error("{what} of {value}: {fault}")]
    InvalidReport {
        /// What was given: a rule, a rate, a period.
        what: String,
        /// Its value.
        value: String,
        /// What is wrong with it, and what would be right.
        fault: String,
    },
    /// A target that nobody has ordered to drain, or no longer.
    #[error("no drain of {target:?} is in force; start one, or look whether it was cancelled or ran out")]
    NotDraining {
        /// The target.
        target: String,
    },
    /// A name of a state type that cannot be used.
    #[error("state type {name:?}: {fault}; use 1 to 64 bytes without control characters")]
    InvalidStateType {
        /// The beginning of what was given.
        name: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A value over the limit.
    #[error("value of at least {size} bytes: the limit is {limit}; split it, or share a reference to it")]
    ValueTooLarge {
        /// How many bytes it had when the limit was passed.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Bytes that are not one MessagePack value.
    #[error("not a MessagePack value, at byte {at}: {fault}")]
    MalformedValue {
        /// Where.
        at: usize,
        /// What is wrong.
        fault: &'static str,
    },
    /// A value could not be encoded.
    #[error("the value cannot be encoded as MessagePack: {source}")]
    Encode {
        /// The serialiser's words.
        source: Cause,
    },
    /// A value could not be decoded.
    #[error("the value does not decode into the type asked for: {source}")]
    Decode {
        /// The deserialiser's words.
        source: Cause,
    },
    /// A record that names another node as its writer. None of its batch was accepted.
    #[error(
        "record {index} of the batch ({key:?}) names {source_node} as its source; a node writes only its own records ({node_id})"
    )]
    ForeignSource {
        /// Its place in the batch.
        index: usize,
        /// Its key.
        key: String,
        /// The node it names.
        source_node: NodeId,
        /// This node.
        node_id: NodeId,
    },
    /// A version too far ahead of the wall clock. None of its batch was accepted.
    #[error(
        "version {version} is over the bound {bound} that the wall clock allows; take versions from next_version"
    )]
    VersionTooHigh {
        /// The version.
        version: u64,
        /// The greatest allowed now.
        bound: u64,
    },
    /// More was broadcast than the cluster takes. The record was not taken.
    #[error("{waiting} bytes wait to be spread, over the limit of {limit}; slow down, or wait and try again")]
    Overloaded {
        /// How many bytes wait.
        waiting: usize,
        /// How many may wait.
        limit: usize,
    },
    /// The type is switched off here.
    #[error("state type {state_type} is switched off on this node by {key} = false")]
    TypeDisabled {
        /// The type.
        state_type: String,
        /// The configuration key.
        key: &'static str,
    },
    /// The node's metadata is over a limit.
    #[error("{what}: {size} is over the limit of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A type has a provider already.
    #[error("state type {state_type} has a provider already; unregister it first")]
    ProviderExists {
        /// The type.
        state_type: String,
    },
    /// Only dead and left nodes can be forgotten.
    #[error("node {node_id} is {status}; only dead and left nodes can be forgotten")]
    NotForgettable {
        /// The node.
        node_id: NodeId,
        /// What it is believed to be, or `unknown`.
        status: String,
    },
    /// The system refused a resource.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// How many faults there are, and each on a line of its own.
fn listed(faults: &[ConfigFault]) -> String {
    let count = format!("{} fault{}:", faults.len(), if faults.len() == 1 { "" } else { "s" });
    faults.iter().fold(count, |text, fault| text + "\n  " + &fault.to_string())
}

/// One fault of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigFault {
    /// The key, as it stands in a file: `bind-port`, `tls.key`.
    pub key: String,
    /// The value it had, as text; secrets are left out.
    pub value: String,
    /// What is wrong.
    pub fault: String,
    /// What to do.
    pub remedy: String,
}

impl std::fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} = {}: {}; {}", self.key, self.value, self.fault, self.remedy)
    }
}
