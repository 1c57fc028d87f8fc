//! `Config`: every setting of a node, with its unit, its default and its price. What is wrong with one is
//! found in `check`, where one comes from in `load`, how addresses are written in `address`. Opens no socket,
//! starts nothing.

mod address;
mod check;
mod load;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub(crate) use self::{address::Seed, check::Checked};
use crate::{Identity, identity::Policy};

/// The settings of a node.
///
/// Three of them every cluster sets: [`enabled`](Self::enabled), [`seeds`](Self::seeds), and who the node is:
/// [`tls`](Self::tls) or [`identity`](Self::identity). The rest has defaults that suit a fleet in one or a
/// few data centres.
///
/// In a file the settings stand in the table `[cluster]`, under the names that serde uses too: kebab-case,
/// and intervals as whole milliseconds (`gossip-interval-ms`). Environment variables go over the file:
/// `PHALANX_BIND_PORT`, `PHALANX_TLS_CA`, `PHALANX_SEEDS` (separated by commas), `PHALANX_TAGS`
/// (`rack=r1,model=x`). [`Cluster::new`](crate::Cluster::new) checks the values and reports every fault at
/// once.
///
/// # Examples
/// ```
/// let config = phalanx::Config::from_toml(
///     r#"
///     [cluster]
///     enabled = true
///     seeds = ["lb-1.example:7946", "[2001:db8::2]:7946"]
///     gossip-interval-ms = 100
///     tls.ca = "/etc/lb/ca.pem"
///     tls.cert = "/etc/lb/cert.pem"
///     tls.key = "/etc/lb/key.pem"
///
///     [cluster.tags]
///     rack = "r1"
///     "#,
/// )?;
/// assert_eq!(config.gossip_interval, std::time::Duration::from_millis(100));
/// assert_eq!(config.bind_port, 7946);
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own, named in files")]
pub struct Config {
    /// Whether the node takes part at all. Default: `false`, so that a program which carries the library but
    /// was not configured opens no socket; `start` then answers `None`.
    pub enabled: bool,

    /// The node's id, or `"auto"`: the id in its certificate. Default: `"auto"`.
    ///
    /// An id written here must be the certificate's; write it where a swapped certificate should stop the
    /// start. With a certificate shared by many nodes (`tls.shared-certificate`), `"auto"` makes a new UUID
    /// at each start, so a restarted node is a new one to its peers; write an id to avoid that.
    pub node_id: String,

    /// The address the node's socket is bound to. Default: `0.0.0.0`, every IPv4 address of the host.
    ///
    /// One address keeps cluster traffic on one network, `::` takes IPv6 as well. On a host with several
    /// addresses set [`advertise_address`](Self::advertise_address) too, or peers may be told one they cannot
    /// reach.
    pub bind_address: IpAddr,

    /// The UDP port of the node's socket. Default: 7946. With 0 the system picks one and `start` tells it:
    /// for tests, or where every peer but a few seeds may sit on any port.
    pub bind_port: u16,

    /// Where a starting node finds others: `ip:port`, `[ipv6]:port` or `host:port`. Default: none, which
    /// starts a cluster of its own.
    ///
    /// Two or three that rarely move are enough: any one that answers names all members. Each is resolved
    /// anew and tried now and then for the node's whole life, so that halves of a cluster which lost sight of
    /// one another meet again; more seeds cost a few packets a minute each. The node's own address may be
    /// among them, so that all nodes can share one list.
    pub seeds: Vec<String>,

    /// How often news is gossiped. Unit: whole milliseconds, 1 to a day. Default: 200 ms.
    ///
    /// News spreads at once through the delegation tree; gossip finds who was missed. A shorter interval
    /// mends losses sooner and costs each node `gossip-fanout` packets an interval while there is news; a
    /// longer one delays the repair of a lost packet. Touch it on links that lose much.
    #[serde(rename = "gossip-interval-ms", with = "millis")]
    pub gossip_interval: Duration,

    /// How many random peers are told in each gossip interval. Unit: peers, 1 to 64. Default: 2.
    ///
    /// More reaches a missed node in fewer intervals and costs that many more packets; with 1 a lossy network
    /// needs about twice as long.
    pub gossip_fanout: usize,

    /// How often everything is compared with one random peer. Unit: whole milliseconds, 1 to a day. Default:
    /// 10,000 ms.
    ///
    /// A comparison of equal nodes costs under 200 bytes each way, whatever they hold. Shorter bounds how
    /// long a difference can last when all else failed; longer saves little.
    #[serde(rename = "push-pull-interval-ms", with = "millis")]
    pub push_pull_interval: Duration,

    /// The most records in one batch to a peer or a provider. Unit: records, 1 to 10,000. Default: 100.
    ///
    /// Larger batches cost less for each record under a flood of changes and make a slow provider hold its
    /// thread for longer at a time; smaller ones do the opposite.
    pub max_batch_size: usize,

    /// The failure domain the node stands in: a data centre, an availability zone. Default: none. At most 64
    /// bytes.
    ///
    /// A change crosses to each other zone once and spreads there. Set it wherever traffic between places
    /// costs money or time, on all nodes or on none: nodes without one are a zone of their own.
    pub zone: Option<String>,

    /// What others should know of the node: rack, model, version. Default: none. At most 64 tags, 4 KiB in
    /// all; every node holds the tags of all others. [`Cluster::set_tags`](crate::Cluster::set_tags) changes
    /// them later.
    pub tags: BTreeMap<String, String>,

    /// Where peers are to reach the node: `ip:port`, or an IP address alone, which means the bound port.
    /// Default: none, the bound address. If that is `0.0.0.0` or `::`: the address from which the host would
    /// reach the first `ip:port` of [`seeds`](Self::seeds) that is on another host, or else anybody.
    ///
    /// Set it behind address translation, in containers, and on hosts with several addresses.
    pub advertise_address: Option<String>,

    /// How often the node probes one member. Unit: whole milliseconds, 1 to a day. Default: 1,000 ms.
    ///
    /// Shorter finds a crash sooner, in proportion, and costs one small packet and its answer an interval for
    /// each node, whatever the cluster's size. Under about 200 ms a busy host begins to look like a dead one.
    #[serde(rename = "ping-interval-ms", with = "millis")]
    pub ping_interval: Duration,

    /// The longest a node waits for the answer before it asks others to try. Unit: whole milliseconds, less
    /// than `ping-interval-ms`. Default: 500 ms.
    ///
    /// On a path whose round trip is known the wait is shorter by itself. Raise it only if the slowest path
    /// is slower than this; too short makes indirect probes the rule, too long leaves them no time.
    #[serde(rename = "ping-timeout-ms", with = "millis")]
    pub ping_timeout: Duration,

    /// How many others are asked to try when a member does not answer. Unit: members, 0 to 64. Default: 3.
    ///
    /// More makes it less likely that one bad path accuses a healthy node, for two small packets each, only
    /// when a probe failed. With 0 every lost answer is an accusation.
    pub ping_req_count: usize,

    /// How long a suspected member has to prove itself, as a factor: the shortest wait is this times
    /// `max(1, log10 of the cluster's size)` times `ping-interval-ms`, the longest six times that. Unit:
    /// none, 1 to 100. Default: 3.
    ///
    /// Higher buries fewer nodes that only paused and reports real deaths later; lower the opposite.
    pub suspicion_mult: u32,

    /// Whether to find crashes in about a second instead of about seven. Default: `false`.
    ///
    /// It sets `ping-interval-ms` to 200, `ping-timeout-ms` to 100 and `suspicion-mult` to 1, so leave these
    /// three alone. It costs five times the probes, whatever the cluster's size. Set it on all nodes or on
    /// none, where round trips stay well below 100 ms; docs/experiments/corroboration.md shows what it does
    /// under loss and beside nodes that stand still.
    pub fast_detection: bool,

    /// Whether this node publishes and keeps backends' health. Default: `true`. Without it, records of the
    /// type cost this node nothing; the others are not disturbed. The same holds for the next three.
    pub sync_health: bool,

    /// Whether this node publishes and keeps circuit breakers. Default: `true`.
    pub sync_circuit_breaker: bool,

    /// Whether this node publishes and keeps orders to drain. Default: `true`.
    pub sync_drain: bool,

    /// Whether this node publishes and keeps tracked connections. Default: `true`. By far the most records of
    /// the four: switch it off where a connection that moves to another node may break.
    pub sync_conntrack: bool,

    /// What is signed: with [`Sign::Claims`] what nodes say of themselves, with [`Sign::All`] every record of
    /// shared state as well. Default: [`Sign::Claims`].
    ///
    /// A signed record carries its writer's signature wherever it goes: whoever is told one that was altered or
    /// made up on the way refuses it, and names who told it
    /// ([`EventKind::RecordForged`](crate::EventKind::RecordForged)). It costs some 90 bytes a record on the wire
    /// and in memory, a signature when it is first told, and one check at each node: SECURITY.md has the figures,
    /// and what a signature does not cover. A node that signs a type takes only signed records of it, so set the
    /// same on all nodes and restart them together: two that differ in a type compare nothing of it.
    pub sign: Sign,

    /// The types whose records are signed, by name, where not all are: `["circuit-breaker", "drain"]`. Default:
    /// none. At most 256.
    ///
    /// For orders and opinions, which are few and which much depends on, a signature costs a millisecond or two of
    /// delay; for tracked connections it costs more than all the rest. All that [`sign`](Self::sign) says holds here too.
    pub sign_types: Vec<String>,

    /// The files a node proves itself with. Default: none; needed unless [`identity`](Self::identity) is set.
    pub tls: TlsConfig,

    /// How long a dead or left node is remembered. Unit: whole milliseconds, 1 to a year. Default: 86,400,000
    /// ms, a day.
    ///
    /// While it is remembered it is greeted now and then, so both halves of a healed partition merge by
    /// themselves; shorter than the longest partition you expect means that seeds must do it. Longer costs
    /// some hundred bytes for each node that is gone for good.
    #[serde(rename = "dead-node-reclaim-ms", with = "millis")]
    pub dead_node_reclaim: Duration,

    /// How long the mark of a deleted record is kept. Unit: whole milliseconds, 1 to a year. Default:
    /// 86,400,000 ms, a day.
    ///
    /// What had a time to live, as tracked connections have, is kept for ten minutes beyond its end at most. Longer
    /// costs memory for every deletion. A node that was away for longer brings nothing back; but a value that
    /// reaches nobody within that time may survive a deletion that had seen it.
    #[serde(rename = "tombstone-ttl-ms", with = "millis")]
    pub tombstone_ttl: Duration,

    /// Up to so many peers every one has a standing connection; in a larger cluster each node keeps this
    /// many, least recently used first out. Unit: connections, 1 to 65,536. Default: 512.
    ///
    /// More saves handshakes in clusters beyond the number and costs memory and one keep-alive packet each 10
    /// seconds for each connection.
    pub max_connections: usize,

    /// What the node proves itself with, made by the program instead of read from files. Default: none.
    ///
    /// Wins over [`tls`](Self::tls). Not in files: serde leaves it out, and `Debug` shows no secret.
    #[serde(skip)]
    pub identity: Option<Identity>,
}

/// What nodes sign: see [`Config::sign`].
///
/// # Examples
/// ```
/// use phalanx::{Config, Sign};
///
/// assert_eq!(Config::from_toml("[cluster]\nsign = 'all'")?.sign, Sign::All);
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Sign {
    /// What a node says of itself: that it is there, where, and that it leaves.
    #[default]
    Claims,
    /// Every record of shared state as well.
    All,
}

/// The files a node proves itself with, all PEM. `ca`, `cert` and `key` belong together.
///
/// In a file: `tls.ca = "ca.pem"` under `[cluster]`, or a table `[cluster.tls]`.
/// In code, end a literal with `..TlsConfig::default()`: later versions may add to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
#[expect(
    clippy::exhaustive_structs,
    reason = "programs write it as a literal; the contract lists its fields"
)]
pub struct TlsConfig {
    /// The cluster's trust roots: one CA, or several while one replaces another. Default: none.
    pub ca: Option<PathBuf>,

    /// The node's certificate and any intermediate ones, its own first. Default: none.
    pub cert: Option<PathBuf>,

    /// The certificate's private key, readable to its owner only. Default: none.
    pub key: Option<PathBuf>,

    /// Certificates that were revoked. Default: none, which trusts every unexpired certificate of the CA.
    ///
    /// It is read at the start; [`watch`](Self::watch) and
    /// [`Cluster::reload_identity`](crate::Cluster::reload_identity) take a newer one. A newer list that any
    /// node of the cluster is given reaches all of them; none writes it to disk.
    pub crl: Option<PathBuf>,

    /// Whether peers are refused whose authority has no revocation list here. Default: `false`, which trusts
    /// every unexpired certificate of such an authority.
    ///
    /// With it a node does not start without a list. A list that is past its date still counts: it warns,
    /// since to refuse everybody would end the cluster when the authority is late.
    pub crl_required: bool,

    /// Whether nodes may share one certificate that names the cluster but no node. Default: `false`.
    ///
    /// With it, whoever holds the shared key can claim any id that no other certificate names: switch it on
    /// only where nodes cannot be given certificates of their own, and on all nodes at once.
    pub shared_certificate: bool,

    /// Whether the files are watched, and taken over when their contents change. Default: `false`. Needs `ca`,
    /// `cert` and `key`.
    ///
    /// All of them are read and checked together. Where they do not belong together, are not valid now, or
    /// name another node, the ones in force serve on, and
    /// [`EventKind::IdentityReloadFailed`](crate::EventKind::IdentityReloadFailed) says why.
    pub watch: bool,

    /// How often watched files are looked at. Unit: whole milliseconds, 100 to a day. Default: 10,000 ms.
    ///
    /// A look reads the files, some kilobytes. Shorter takes a new certificate over sooner, and longer saves
    /// little: certificates are renewed days before they end, and a revocation list reaches a node through
    /// its peers as well.
    #[serde(rename = "watch-interval-ms", with = "millis")]
    pub watch_interval: Duration,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            ca: None,
            cert: None,
            key: None,
            crl: None,
            crl_required: false,
            shared_certificate: false,
            watch: false,
            watch_interval: Duration::from_secs(10),
        }
    }
}

impl TlsConfig {
    /// What is demanded of peers.
    pub(crate) fn policy(&self) -> Policy {
        Policy { shared_certificate: self.shared_certificate, crl_required: self.crl_required }
    }
}

impl Default for Config {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self {
            enabled: false,
            node_id: AUTO.into(),
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            bind_port: 7946,
            seeds: Vec::new(),
            gossip_interval: Duration::from_millis(200),
            gossip_fanout: 2,
            push_pull_interval: Duration::from_secs(10),
            max_batch_size: 100,
            zone: None,
            tags: BTreeMap::new(),
            advertise_address: None,
            ping_interval: Duration::from_secs(1),
            ping_timeout: Duration::from_millis(500),
            ping_req_count: 3,
            suspicion_mult: 3,
            fast_detection: false,
            sync_health: true,
            sync_circuit_breaker: true,
            sync_drain: true,
            sync_conntrack: true,
            sign: Sign::Claims,
            sign_types: Vec::new(),
            tls: TlsConfig::default(),
            dead_node_reclaim: day,
            tombstone_ttl: day,
            max_connections: 512,
            identity: None,
        }
    }
}

/// The node id that means: take the certificate's.
const AUTO: &str = "auto";

/// An interval as whole milliseconds, as files write it.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(interval: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        // TOML and JSON readers take 64 bits; longer is refused by `check` anyway.
        serializer.serialize_u64(u64::try_from(interval.as_millis()).unwrap_or(i64::MAX.unsigned_abs()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct File {
        cluster: Config,
    }

    /// The defaults of API.md, key by key, and those of what was added to it.
    const DEFAULTS: &str = r#"{
        "enabled": false, "node-id": "auto", "bind-address": "0.0.0.0", "bind-port": 7946, "seeds": [],
        "gossip-interval-ms": 200, "gossip-fanout": 2, "push-pull-interval-ms": 10000, "max-batch-size": 100,
        "zone": null, "ping-interval-ms": 1000, "ping-timeout-ms": 500, "ping-req-count": 3,
        "suspicion-mult": 3, "fast-detection": false,
        "sync-health": true, "sync-circuit-breaker": true, "sync-drain": true,
        "sync-conntrack": true, "sign": "claims", "sign-types": [], "advertise-address": null, "tags": {},
        "tls": {"ca": null, "cert": null, "key": null, "crl": null, "crl-required": false,
            "shared-certificate": false, "watch": false, "watch-interval-ms": 10000},
        "dead-node-reclaim-ms": 86400000, "tombstone-ttl-ms": 86400000, "max-connections": 512
    }"#;

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let contract: serde_json::Value = serde_json::from_str(DEFAULTS).unwrap();
        assert_eq!(serde_json::to_value(Config::default()).unwrap(), contract);
    }

    #[test]
    fn the_defaults_are_free_of_faults() {
        assert_eq!(Config::default().faults(), []);
    }

    #[test]
    fn a_config_survives_toml_and_json() {
        let mut config = Config { enabled: true, ..Config::default() };
        config.node_id = "lb-1".into();
        config.bind_address = "::1".parse().unwrap();
        config.seeds = vec!["a:1".into(), "[::1]:2".into()];
        config.zone = Some("fra".into());
        config.tags = BTreeMap::from([("rack".into(), "r, 1 = \"x\"".into())]);
        config.tls.key = Some("/etc/key.pem".into());
        config.gossip_interval = Duration::from_millis(77);
        let json = serde_json::to_value(&config).unwrap();

        let from_json: Config = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(from_json).unwrap(), json);
        let text = toml::to_string(&File { cluster: config }).unwrap();
        let from_toml = Config::from_toml(&text).unwrap();
        assert_eq!(serde_json::to_value(from_toml).unwrap(), json);
        let from_serde: File = toml::from_str(&text).unwrap();
        assert_eq!(serde_json::to_value(from_serde.cluster).unwrap(), json);
    }

    #[test]
    fn serde_refuses_unknown_fields() {
        let error = serde_json::from_str::<Config>(r#"{"bind-prot": 1}"#).unwrap_err().to_string();
        assert!(error.contains("bind-prot"), "{error}");
    }
}
