//! Shared state as users see it: types, keys, values and records. Data without rules: which record wins is
//! decided in `proto::store`.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, NodeId, wire::limits};

/// The name of a kind of state, and whose its keys are.
///
/// A *shared* type has one register a key for the whole cluster: the last writer wins, by
/// `(version, source)`. A *per-node* type has one register for each node under a key, which only that node
/// writes.
///
/// # Examples
/// ```
/// use phalanx::StateType;
/// assert!(StateType::HEALTH.is_per_node());
/// assert!(!StateType::DRAIN.is_per_node());
/// assert_eq!(StateType::from("health"), StateType::HEALTH);
/// assert_eq!(StateType::from("routes"), StateType::shared("routes"));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StateType {
    name: Name,
    per_node: bool,
}

/// A type's name; the built-in ones are known at compile time.
#[derive(Clone)]
enum Name {
    Static(&'static str),
    Owned(Arc<str>),
}

impl StateType {
    /// Whether a backend is up, in each node's own opinion. Per-node; a dead node's opinion stops counting.
    pub const HEALTH: Self = Self { name: Name::Static("health"), per_node: true };
    /// Circuit breakers, one a node. Per-node; a dead node's breaker stops counting.
    pub const CIRCUIT_BREAKER: Self = Self { name: Name::Static("circuit-breaker"), per_node: true };
    /// Orders to drain a backend. Shared: an order outlives the node through which it was given.
    pub const DRAIN: Self = Self { name: Name::Static("drain"), per_node: false };
    /// Tracked connections. Per-node; a dead node's connections are kept, to be passed on.
    pub const CONNTRACK: Self = Self { name: Name::Static("conntrack"), per_node: true };

    /// How far each node has come with a drain. Per-node; a dead node's progress stops counting.
    pub const DRAIN_PROGRESS: Self = Self { name: Name::Static("drain-progress"), per_node: true };
    /// Shared counters, a part of each at every node. Per-node; a dead node's part stops counting.
    pub const COUNTER: Self = Self { name: Name::Static("counter"), per_node: true };

    /// The built-in types.
    pub(crate) const BUILT_IN: [Self; 6] = [
        Self::HEALTH,
        Self::CIRCUIT_BREAKER,
        Self::DRAIN,
        Self::CONNTRACK,
        Self::DRAIN_PROGRESS,
        Self::COUNTER,
    ];

    /// A type with one register a key for the whole cluster.
    ///
    /// A built-in name gives the built-in type, whatever its kind.
    #[must_use]
    pub fn shared(name: impl Into<String>) -> Self {
        Self::with_kind(name.into(), false)
    }

    /// A type with one register for each node under a key. A node's registers stay when it dies.
    ///
    /// A built-in name gives the built-in type, whatever its kind.
    #[must_use]
    pub fn per_node(name: impl Into<String>) -> Self {
        Self::with_kind(name.into(), true)
    }

    fn with_kind(name: String, per_node: bool) -> Self {
        match Self::BUILT_IN.into_iter().find(|built_in| built_in.as_str() == name) {
            Some(built_in) => built_in,
            None => Self { name: Name::Owned(name.into()), per_node },
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.name.as_str()
    }

    /// Whether each node has a register of its own under a key.
    #[must_use]
    pub const fn is_per_node(&self) -> bool {
        self.per_node
    }

    /// Whether a dead node's registers stop counting: opinions do, and what it counted itself.
    pub(crate) fn stops_counting_at_death(&self) -> bool {
        [Self::HEALTH, Self::CIRCUIT_BREAKER, Self::DRAIN_PROGRESS, Self::COUNTER].contains(self)
    }
}

impl Name {
    fn as_str(&self) -> &str {
        match self {
            Self::Static(name) => name,
            Self::Owned(name) => name,
        }
    }
}

impl Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::Owned(String::deserialize(deserializer)?.into()))
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl std::hash::Hash for Name {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl From<&str> for StateType {
    fn from(name: &str) -> Self {
        Self::shared(name)
    }
}

impl From<String> for StateType {
    fn from(name: String) -> Self {
        Self::shared(name)
    }
}

impl From<&Self> for StateType {
    fn from(state_type: &Self) -> Self {
        state_type.clone()
    }
}

impl fmt::Display for StateType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for StateType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{}", self.as_str(), if self.per_node { " (per node)" } else { "" })
    }
}

/// A key of a type: what a provider's digest is indexed by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_structs,
    reason = "users build it in `state_digest`; a key is these two and nothing more"
)]
pub struct StateKey {
    /// The type.
    pub state_type: StateType,
    /// The key within the type.
    pub key: String,
}

/// A value as it travels: MessagePack bytes.
///
/// # Examples
/// ```
/// use phalanx::Value;
/// let value = Value::encode(&("up", 3))?;
/// assert_eq!(value.decode::<(String, u32)>()?, ("up".into(), 3));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Bytes);

impl Value {
    /// Encodes `value` as MessagePack with named fields.
    ///
    /// # Errors
    /// [`Error::Encode`] if `value` cannot be encoded, [`Error::ValueTooLarge`] over 256 KiB,
    /// [`Error::MalformedValue`] if it nests deeper than 32 levels.
    pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Self, Error> {
        let mut sink = limits::Capped::new(limits::VALUE_LEN_MAX);
        let mut serializer = rmp_serde::Serializer::new(&mut sink).with_struct_map();
        let result = value.serialize(&mut serializer);
        if let Some(size) = sink.overflow() {
            return Err(Error::ValueTooLarge { size, limit: limits::VALUE_LEN_MAX });
        }
        result.map_err(|source| Error::Encode { source: source.into() })?;
        Self::from_bytes(sink.into_bytes())
    }

    /// Wraps bytes that must be one whole MessagePack value.
    ///
    /// # Errors
    /// [`Error::ValueTooLarge`] over 256 KiB; [`Error::MalformedValue`] if the bytes are not exactly one
    /// MessagePack value of at most 32 levels.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let bytes = bytes.into();
        limits::check_value(&bytes)?;
        Ok(Self(bytes))
    }

    /// Bytes that were checked before.
    pub(crate) const fn from_checked(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The value of a removal: nil.
    pub(crate) const NIL: Self = Self(Bytes::from_static(&[0xc0]));

    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }

    /// Decodes the value.
    ///
    /// # Errors
    /// [`Error::Decode`] if the bytes are not a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        rmp_serde::from_slice(&self.0).map_err(|source| Error::Decode { source: source.into() })
    }

    /// The MessagePack bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            len @ 0..=64 => write!(f, "Value({len} bytes: {})", self.0.escape_ascii()),
            len => write!(f, "Value({len} bytes)"),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        Self::from_bytes(bytes.into_vec()).map_err(serde::de::Error::custom)
    }
}

/// One record of shared state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SyncableState {
    /// The type it belongs to.
    pub state_type: StateType,
    /// The key within the type.
    pub key: String,
    /// The value, as it travels.
    pub value: Value,
    /// The Lamport version: a later write has a greater one.
    pub version: u64,
    /// The node that wrote it.
    pub source_node: NodeId,
    /// The writer's wall clock, for people: no comparison uses it.
    pub timestamp: SystemTime,
    /// Whether this tells of a removal; the value is then nil. Only a provider is handed such a record, since
    /// readers see no removed ones.
    #[serde(default)]
    pub deleted: bool,
}

impl SyncableState {
    /// A record with these parts, stamped with the present wall clock.
    ///
    /// # Examples
    /// ```
    /// use phalanx::{NodeId, StateType, SyncableState, Value};
    /// let record = SyncableState::new(StateType::HEALTH, "backend-7", Value::encode("up")?, 1, NodeId::new("lb-1")?);
    /// assert_eq!(record.key, "backend-7");
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn new(
        state_type: impl Into<StateType>,
        key: impl Into<String>,
        value: Value,
        version: u64,
        source_node: NodeId,
    ) -> Self {
        let timestamp = crate::driver::clock::wall_now();
        Self {
            state_type: state_type.into(),
            key: key.into(),
            value,
            version,
            source_node,
            timestamp,
            deleted: false,
        }
    }
}

/// How a record is to be broadcast.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// let mut options = phalanx::Options::default();
/// options.ttl = Some(Duration::from_secs(30));
/// options.urgent = true;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How long the record lives unless it is written again; `None`: until it is removed. Zero: it is told, and
    /// ends at once. Default: none.
    pub ttl: Option<Duration>,
    /// Goes ahead of other records and takes two relays a range. Default: false.
    pub urgent: bool,
}

/// A change that [`watch`](crate::Cluster::watch) tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StateChange {
    /// A record is there, or was replaced.
    Put {
        /// The record that counts now.
        new: SyncableState,
        /// What it replaced.
        old: Option<SyncableState>,
    },
    /// A record was removed.
    Removed {
        /// The record that counted until now.
        old: SyncableState,
    },
    /// A record's time to live ended.
    Expired {
        /// The record that counted until now.
        old: SyncableState,
    },
    /// The reader was too slow: so many changes were left out. Ask [`states`](crate::Cluster::states) or
    /// watch anew.
    Lagged {
        /// How many changes were left out.
        missed: u64,
    },
}

impl StateChange {
    /// The record of which it tells: the new one, or the one that is gone.
    pub(crate) const fn record(&self) -> Option<&SyncableState> {
        match self {
            Self::Put { new: record, .. } | Self::Removed { old: record } | Self::Expired { old: record } => {
                Some(record)
            }
            Self::Lagged { .. } => None,
        }
    }
}

/// How far a [`broadcast_confirmed`](crate::Cluster::broadcast_confirmed) came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Spread {
    /// The alive nodes that said they hold the record, this node included.
    pub reached: std::collections::BTreeSet<NodeId>,
    /// The alive nodes that did not say so within the limit.
    pub missing: std::collections::BTreeSet<NodeId>,
}
