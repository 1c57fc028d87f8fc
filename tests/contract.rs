//! The public API as programs may rely on it: every name with its signature, every type with its traits. It
//! is enough that this compiles; what the functions do is tested elsewhere.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    error::Error as StdError,
    fmt::{Debug, Display},
    future::Future,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::Stream;
use phalanx::{
    Applied, Authority, Cluster, ClusterEvent, Config, Error, EventData, EventKind, EventStream, Explanation,
    Identity, IdentityStats, ListStats, NodeId, NodeInfo, NodeStatus, Options, Paths, SignatureScheme,
    SigningKey, Spread, Started, StateChange, StateKey, StateProvider, StateStream, StateType, Stats, Status,
    Subscription, SyncableState, Synced, TlsConfig, Validity, Value,
};
use serde::{Serialize, de::DeserializeOwned};

type Fallible<T> = Result<T, Error>;

fn returns<T>(_: impl Future<Output = T> + Send) {}

fn returns_of(_: impl Fn(Arc<dyn SigningKey>) -> Fallible<Identity>) {}

/// Never called: the types are what is tested.
fn methods(cluster: &Cluster, id: &NodeId, of: &StateType, identity: Identity) {
    let _: fn(Config) -> Fallible<Cluster> = Cluster::new;
    returns::<Fallible<Option<Started>>>(cluster.start());
    returns::<Fallible<()>>(cluster.stop());
    let _: bool = cluster.is_running();
    let _: Status = cluster.status();
    let _: NodeId = cluster.node_id();
    let _: NodeInfo = cluster.local_node();
    let _: BTreeSet<NodeId> = cluster.alive_nodes();
    let _: BTreeMap<NodeId, NodeInfo> = cluster.all_nodes();
    let _: usize = cluster.cluster_size();
    let _: bool = cluster.is_alive(id) || cluster.is_suspected(id) || cluster.is_dead(id);
    let _: Fallible<Option<SyncableState>> = cluster.broadcast("type", "key", &"up");
    let _: Fallible<Option<SyncableState>> = cluster.broadcast(StateType::HEALTH, String::new(), &vec![1]);
    let _: Fallible<Option<SyncableState>> = cluster.broadcast(String::new(), "key", "unsized");
    let _: Fallible<usize> = cluster.broadcast_many(Vec::<SyncableState>::new());
    let _: Fallible<Option<SyncableState>> = cluster.remove("type", "key");
    let _: Fallible<Option<SyncableState>> = cluster.remove(StateType::DRAIN, String::new());
    let _: Option<SyncableState> = cluster.get(of, "key");
    let _: Vec<SyncableState> = cluster.states(of);
    let _: u64 = cluster.next_version();
    let _: fn(&Cluster, Arc<dyn StateProvider>) -> Fallible<()> = Cluster::register_provider;
    let _: bool = cluster.unregister_provider(of);
    let subscription: Subscription = cluster.subscribe(|event| println!("{event}"));
    let () = subscription.unsubscribe();
    let _: EventStream = cluster.events();
    let _: Stats = cluster.stats();
    let _: Config = cluster.config();
    let _: Fallible<()> = cluster.set_tags(BTreeMap::<String, String>::new());
    returns::<Fallible<usize>>(cluster.join(&["host:1".to_owned()]));
    let _: Fallible<()> = cluster.reload_identity(identity);
    returns::<Fallible<Synced>>(cluster.wait_synced(Duration::ZERO));
    let _: Option<Explanation> = cluster.explain(id);
    let _: Fallible<()> = cluster.forget(id);
    let _: Fallible<Option<SyncableState>> = cluster.broadcast_with(of, "key", &1, Options::default());
    returns::<Fallible<Spread>>(cluster.broadcast_confirmed("type", "key", &1, Duration::ZERO));
    let _: StateStream = cluster.watch(of);
}

fn constructors(id: &NodeId, identity: &Identity, authority: &Authority) {
    let _: Fallible<NodeId> = NodeId::new("a");
    let _: Fallible<NodeId> = NodeId::new(String::new());
    let _: NodeId = NodeId::random();
    let _: &str = id.as_str();
    let _: [StateType; 4] =
        [StateType::HEALTH, StateType::CIRCUIT_BREAKER, StateType::DRAIN, StateType::CONNTRACK];
    let _: [StateType; 2] = [StateType::shared("a"), StateType::per_node("a")];
    let _: [StateType; 2] = ["a".into(), String::from("a").into()];
    let value: Fallible<Value> = Value::encode(&1);
    let value = value.unwrap_or_default();
    let _: Fallible<u8> = value.decode::<u8>();
    let _: &[u8] = value.as_bytes();
    let _: SyncableState = SyncableState::new("type", "key", value, 1, id.clone());
    let _: Fallible<Config> = Config::from_toml("");
    let _: Fallible<Config> = Config::load("path");
    let _: Fallible<Identity> = Identity::from_pem_files("ca", "cert", "key");
    let _: Fallible<Identity> = Identity::from_pem(&[], &[], &[]);
    let load = |key: Arc<dyn SigningKey>| Identity::from_signing_key(&[], &[], key);
    returns_of(load);
    let _: SignatureScheme = SignatureScheme::EcdsaP256Sha256;
    let _: Fallible<Identity> = identity.clone().with_crl_pem(&[]);
    let _: Option<NodeId> = identity.node_id();
    let _: &str = identity.cluster_name();
    let _: SystemTime = identity.not_after();
    let _: Fallible<Paths> = identity.write_to("dir");
    let _: Fallible<Authority> = Authority::generate("edge");
    let _: Fallible<Authority> = Authority::load("dir");
    let _: Fallible<()> = authority.write_to("dir");
    let _: Fallible<Identity> = authority.issue(id);
    let _: Fallible<Identity> = authority.issue_for(id, Validity::days(1));
    let _: Fallible<()> = authority.revoke(identity);
    let _: Vec<u8> = authority.crl_pem();
}

fn fields(config: Config, node: NodeInfo, record: SyncableState, event: ClusterEvent, stats: &Stats) {
    let _: bool = config.fast_detection;
    let _: (bool, bool, bool, bool, bool) = (
        config.enabled,
        config.sync_health,
        config.sync_circuit_breaker,
        config.sync_drain,
        config.sync_conntrack,
    );
    let _: (String, IpAddr, u16, Vec<String>) =
        (config.node_id, config.bind_address, config.bind_port, config.seeds);
    let _: [Duration; 6] = [
        config.gossip_interval,
        config.push_pull_interval,
        config.ping_interval,
        config.ping_timeout,
        config.dead_node_reclaim,
        config.tombstone_ttl,
    ];
    let _: [usize; 3] = [config.gossip_fanout, config.ping_req_count, config.max_batch_size];
    let _: (u32, Option<String>, Option<String>) =
        (config.suspicion_mult, config.advertise_address, config.zone);
    let _: (BTreeMap<String, String>, Option<Identity>) = (config.tags, config.identity);
    let TlsConfig { ca, cert, key, crl, shared_certificate, .. } = config.tls;
    let _: (bool, bool, Duration) = (config.tls.crl_required, config.tls.watch, config.tls.watch_interval);
    let _: ([Option<PathBuf>; 4], bool) = ([ca, cert, key, crl], shared_certificate);
    let _: (NodeId, SocketAddr, u64, NodeStatus) =
        (node.node_id, node.address, node.incarnation, node.status);
    let _: (SystemTime, SystemTime, Option<String>) = (node.join_time, node.last_seen, node.zone);
    let _: (BTreeMap<String, String>, Option<Duration>) = (node.tags, node.rtt);
    let _: Option<SystemTime> = node.certificate_end;
    let IdentityStats { not_after, days_left, revocation_lists, .. } = &stats.identity;
    let _: (&Option<SystemTime>, &Option<i64>, &Vec<ListStats>) = (not_after, days_left, revocation_lists);
    let _: (StateType, String, Value) = (record.state_type, record.key, record.value);
    let _: (u64, NodeId, SystemTime) = (record.version, record.source_node, record.timestamp);
    let _: (EventKind, Option<NodeId>, SystemTime, EventData) =
        (event.kind, event.node_id, event.timestamp, event.data);
    let _: (Status, &NodeId) = (stats.status, &stats.membership.node_id);
    let _: [usize; 3] =
        [stats.membership.alive_count, stats.membership.suspected_count, stats.membership.dead_count];
    let _: (bool, usize, &Config, &Config) =
        (stats.gossip.running, stats.gossip.provider_count, &stats.gossip.config, &stats.config);
}

fn smaller_types(started: Started, options: &mut Options, spread: Spread, change: &StateChange) {
    let _: (NodeId, SocketAddr) = (started.node_id, started.address);
    let _: (Option<Duration>, bool) = (options.ttl.take(), options.urgent);
    let _: [BTreeSet<NodeId>; 2] = [spread.reached, spread.missing];
    let _ = [NodeStatus::Alive, NodeStatus::Suspect, NodeStatus::Dead, NodeStatus::Left];
    let _ = [Status::Stopped, Status::Starting, Status::Running, Status::Stopping];
    match change {
        StateChange::Put { new: _, old: _ }
        | StateChange::Removed { old: _ }
        | StateChange::Expired { old: _ }
        | StateChange::Lagged { missed: _ }
        | _ => {}
    }
}

/// A provider needs no more than the three functions without a default.
struct Least;

impl StateProvider for Least {
    fn provider_type(&self) -> StateType {
        StateType::HEALTH
    }

    fn sync_state(&self) -> Vec<SyncableState> {
        Vec::new()
    }

    fn apply_remote_state(&self, states: Vec<SyncableState>) -> Applied {
        Applied { applied: states.len(), conflicts: 0, rejected: 0 }
    }
}

#[test]
fn every_name_of_the_contract_is_there() {
    let _ = (methods, constructors, fields, smaller_types);
    let digest: HashMap<StateKey, u64> = Least.state_digest();
    assert!(digest.is_empty());
    Least.on_node_failure(&NodeId::random());
}

#[test]
fn every_type_has_the_traits_that_users_expect() {
    fn shared<T: Send + Sync + 'static>() {}
    fn text<T: Display + Debug>() {}
    fn data<T: Clone + Debug + PartialEq + Serialize + DeserializeOwned>() {}
    fn stream<T: Stream + Send + Unpin + Debug>() {}
    fn id<T: FromStr<Err = Error> + Ord + Hash>() {}
    fn written<T: Serialize>() {}
    fn read<T: DeserializeOwned + Default>() {}
    fn error<T: StdError>() {}
    fn cheap<T: Clone + Debug + Send + Sync>() {}
    shared::<Cluster>();
    shared::<Error>();
    shared::<Identity>();
    shared::<Authority>();
    shared::<Subscription>();
    cheap::<Cluster>();
    cheap::<Identity>();
    cheap::<Config>();
    text::<NodeId>();
    text::<StateType>();
    text::<ClusterEvent>();
    text::<Explanation>();
    text::<NodeStatus>();
    text::<Status>();
    text::<EventKind>();
    text::<Error>();
    data::<NodeId>();
    data::<NodeInfo>();
    data::<StateType>();
    data::<StateKey>();
    data::<Value>();
    data::<SyncableState>();
    data::<ClusterEvent>();
    data::<StateChange>();
    data::<Spread>();
    data::<Started>();
    data::<Synced>();
    data::<TlsConfig>();
    data::<Applied>();
    stream::<EventStream>();
    stream::<StateStream>();
    id::<NodeId>();
    written::<Config>();
    written::<Stats>();
    written::<Explanation>();
    read::<Config>();
    error::<Error>();
}

#[test]
fn events_have_the_names_of_the_contract() {
    let names = [
        (EventKind::NodeJoin, "node-join"),
        (EventKind::NodeLeave, "node-leave"),
        (EventKind::NodeSuspect, "node-suspect"),
        (EventKind::NodeAlive, "node-alive"),
        (EventKind::NodeDead, "node-dead"),
        (EventKind::NodeUpdate, "node-update"),
        (EventKind::NodeConflict, "node-conflict"),
        (EventKind::Synced, "synced"),
        (EventKind::StateChanged, "state-changed"),
        (EventKind::RecordForged, "record-forged"),
        (EventKind::IsolationSuspected, "isolation-suspected"),
        (EventKind::IdentityExpiring, "identity-expiring"),
        (EventKind::IdentityReloadFailed, "identity-reload-failed"),
        (EventKind::RevocationListStale, "revocation-list-stale"),
        (EventKind::ClusterStarted, "cluster-started"),
        (EventKind::ClusterStopped, "cluster-stopped"),
        (EventKind::Lagged, "lagged"),
    ];
    for (kind, name) in names {
        assert_eq!((kind.as_str(), kind.to_string().as_str()), (name, name));
    }
    let types = [
        (StateType::HEALTH, "health", true),
        (StateType::CIRCUIT_BREAKER, "circuit-breaker", true),
        (StateType::DRAIN, "drain", false),
        (StateType::CONNTRACK, "conntrack", true),
    ];
    for (state_type, name, per_node) in types {
        assert_eq!((state_type.as_str(), state_type.is_per_node()), (name, per_node));
        assert_eq!(StateType::from(name), state_type);
    }
}
