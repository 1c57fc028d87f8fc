//! Who a node is, as users see it: its name and what is known of it. Data only, no rule of the protocol.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
    net::SocketAddr,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de};

use crate::Error;

/// A node's name: 1 to 128 characters of `A-Z a-z 0-9 . _ -`, but not `.` or `..`.
///
/// The certificate names it, so it survives restarts and changes of address.
#[derive(Clone)]
pub struct NodeId {
    /// The first characters, so that most comparisons end here: they are what a node does most.
    head: u64,
    text: Arc<str>, // checked once, in `new`; no other code checks again
}

/// The longest name a node may have, in characters.
const NODE_ID_LEN_MAX: usize = 128;
/// Characters that are compared as one number.
const HEAD_LEN: usize = size_of::<u64>();

impl NodeId {
    /// Checks `id` and wraps it.
    ///
    /// # Errors
    /// [`Error::InvalidNodeId`] names the first fault.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(phalanx::NodeId::new("lb-1.fra")?.as_str(), "lb-1.fra");
    /// assert!(phalanx::NodeId::new("..").is_err());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn new(id: impl Into<String>) -> Result<Self, Error> {
        let id = id.into();
        match fault_in(&id) {
            None => Ok(Self::of_checked(id.into())),
            Some(fault) => Err(Error::InvalidNodeId { id: shortened(&id), fault }),
        }
    }

    /// A fresh name that nobody else has: a random UUID.
    ///
    /// # Examples
    /// ```
    /// assert_ne!(phalanx::NodeId::random(), phalanx::NodeId::random());
    /// ```
    #[must_use]
    pub fn random() -> Self {
        Self::of_checked(uuid::Uuid::new_v4().to_string().into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn of_checked(text: Arc<str>) -> Self {
        let mut head = [0; HEAD_LEN];
        let len = text.len().min(HEAD_LEN);
        head[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self { head: u64::from_be_bytes(head), text }
    }
}

/// What makes `id` no name of a node, if anything does.
fn fault_in(id: &str) -> Option<String> {
    if id.is_empty() {
        return Some("it is empty".into());
    }
    if id == "." || id == ".." {
        return Some("it is a relative path".into());
    }
    if let Some(wrong) = id.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        return Some(format!("{wrong:?} is not allowed"));
    }
    (id.len() > NODE_ID_LEN_MAX).then(|| format!("it has {} characters", id.len()))
}

/// The first characters of a text that may be of any length, for an error message.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(NODE_ID_LEN_MAX + 1) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

/// As texts are ordered.
impl Ord for NodeId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.head.cmp(&other.head).then_with(|| {
            let whole = self.text.len().max(other.text.len()) <= HEAD_LEN; // no name holds a NUL
            if whole { Ordering::Equal } else { self.text.cmp(&other.text) }
        })
    }
}

impl PartialOrd for NodeId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for NodeId {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for NodeId {}

/// As a text's, by which it can be looked up.
impl Hash for NodeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text, f)
    }
}

impl FromStr for NodeId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self, Error> {
        Self::new(id)
    }
}

impl AsRef<str> for NodeId {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Borrow<str> for NodeId {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// What a member is believed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NodeStatus {
    /// It answers, or nobody has doubted it.
    Alive,
    /// It did not answer a probe and has not yet refuted the suspicion (SWIM §4.2).
    Suspect,
    /// The suspicion was confirmed: it crashed or cannot be reached.
    Dead,
    /// It said goodbye.
    Left,
}

impl NodeStatus {
    /// `"alive"`, `"suspect"`, `"dead"` or `"left"`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Left => "left",
        }
    }
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What this node knows of a member, itself included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeInfo {
    /// The name its certificate gives it.
    pub node_id: NodeId,
    /// Where it is reached.
    pub address: SocketAddr,
    /// How often it has refuted a suspicion or changed its metadata in this life.
    pub incarnation: u64,
    /// Which life this is: the wall clock at its start, in milliseconds since 1970.
    pub epoch: u64,
    /// What it is believed to be.
    pub status: NodeStatus,
    /// When this node first saw it alive in this life.
    pub join_time: SystemTime,
    /// When this node last had proof of life from it.
    pub last_seen: SystemTime,
    /// The zone it says it is in.
    pub zone: Option<String>,
    /// Its metadata.
    pub tags: BTreeMap<String, String>,
    /// The smoothed round-trip time to it, once measured.
    pub rtt: Option<Duration>,
    /// When the certificate chain ends that it showed this node last; `None` if the two were never connected.
    #[serde(default)]
    pub certificate_end: Option<SystemTime>,
}

impl NodeInfo {
    /// Whole days from `now` until its certificate ends: 0 on the last day, negative once it has ended.
    ///
    /// # Examples
    /// ```
    /// # fn show(cluster: &phalanx::Cluster) {
    /// for (node, info) in cluster.all_nodes() {
    ///     if info.days_left(std::time::SystemTime::now()).is_some_and(|days| days < 7) {
    ///         println!("{node} must renew its certificate");
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn days_left(&self, now: SystemTime) -> Option<i64> {
        Some(days_left(self.certificate_end?, now))
    }
}

/// Whole days from `now` to `end`: 0 on the last day, -1 on the first day after it.
pub(crate) fn days_left(end: SystemTime, now: SystemTime) -> i64 {
    let days = |span: Duration| i64::try_from(span.as_secs() / 86_400).unwrap_or(i64::MAX - 1);
    match end.duration_since(now) {
        Ok(left) => days(left),
        Err(since) => -1 - days(since.duration()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_holds_only_what_a_certificate_can_carry() {
        for good in ["a", "lb-1.fra", "A_b-9", "...", &"x".repeat(128)] {
            assert_eq!(NodeId::new(good).unwrap().as_str(), good);
        }
        for (bad, says) in [
            ("", "empty"),
            (".", "relative path"),
            ("..", "relative path"),
            ("a b", "' '"),
            ("ä", "'ä'"),
            ("a/b", "'/'"),
        ] {
            let error = NodeId::new(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad:?}: {error}");
        }
        assert!(NodeId::new("x".repeat(129)).unwrap_err().to_string().contains("129 characters"));
        assert!(NodeId::new("x".repeat(1 << 20)).unwrap_err().to_string().len() < 400);
    }

    #[test]
    fn names_are_ordered_and_hashed_as_their_texts() {
        let name = "[AB.]{1,10}";
        proptest!(|(a in name, b in name)| {
            let (Ok(one), Ok(other)) = (NodeId::new(a.as_str()), NodeId::new(b.as_str())) else {
                return Ok(());
            };
            prop_assert_eq!(one.cmp(&other), a.cmp(&b));
            prop_assert_eq!(one == other, a == b);
            let known = std::collections::HashSet::from([one]);
            prop_assert!(known.contains(a.as_str()));
        });
    }

    #[test]
    fn days_are_counted_down_to_the_last_and_beyond() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 * 86_400);
        let day = Duration::from_secs(86_400);
        for (now, days) in [
            (end - 30 * day, 30),
            (end - day, 1),
            (end - day / 2, 0),
            (end, 0),
            (end + day / 2, -1),
            (end + 3 * day / 2, -2),
        ] {
            assert_eq!(days_left(end, now), days);
        }
    }

    #[test]
    fn serde_checks_what_new_checks() {
        assert!(serde_json::from_str::<NodeId>("\"..\"").is_err());
        assert_eq!(serde_json::from_str::<NodeId>("\"a\"").unwrap(), NodeId::new("a").unwrap());
    }
}
