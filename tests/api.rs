//! Every function of the original API, on real sockets: one test for each row of the table that says where it
//! went. Each names the original; what happens when things go wrong is `cluster` and `security`.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{authority, id, node, started, text, until};
use phalanx::{
    Applied, Authority, Cluster, ClusterEvent, EventKind, NodeId, NodeStatus, StateKey, StateProvider,
    StateType, Status, SyncableState, Value,
};

async fn start(authority: &Authority, name: &str, seeds: &[&Cluster]) -> Cluster {
    started(node(authority, name, seeds)).await
}

/// Two nodes that see one another.
async fn pair() -> (Cluster, Cluster) {
    let authority = authority();
    let a = start(&authority, "a", &[]).await;
    let b = start(&authority, "b", &[&a]).await;
    until("they see one another", || a.cluster_size() == 2 && b.cluster_size() == 2).await;
    (a, b)
}

// original: start!
#[tokio::test]
async fn start_serves_and_tells_where_and_a_second_start_changes_nothing() {
    let authority = authority();
    let cluster = Cluster::new(node(&authority, "a", &[])).unwrap();
    assert_eq!(cluster.status(), Status::Stopped);
    let started = cluster.start().await.unwrap().expect("it is enabled");
    assert_eq!(started.node_id, id("a"));
    assert_ne!(started.address.port(), 0);
    assert_eq!(cluster.status(), Status::Running);
    assert_eq!(cluster.start().await.unwrap(), None);
    let peer = start(&authority, "b", &[&cluster]).await;
    until("it comes to pass", || cluster.cluster_size() == 2 && peer.cluster_size() == 2).await;
    let mut off = node(&authority, "c", &[]);
    off.enabled = false;
    assert_eq!(Cluster::new(off).unwrap().start().await.unwrap(), None);
}

// original: stop!
#[tokio::test]
async fn stop_leaves_and_may_be_repeated_and_followed_by_a_start() {
    let (a, b) = pair().await;
    b.stop().await.unwrap();
    b.stop().await.unwrap();
    assert_eq!(b.status(), Status::Stopped);
    until("it comes to pass", || a.all_nodes()[&id("b")].status == NodeStatus::Left).await;
    assert!(b.start().await.unwrap().is_some());
    until("it comes to pass", || a.is_alive(&id("b")) && b.cluster_size() == 2).await;
}

// original: running?
#[tokio::test]
async fn is_running_between_start_and_stop() {
    let authority = authority();
    let cluster = Cluster::new(node(&authority, "a", &[])).unwrap();
    assert!(!cluster.is_running());
    cluster.start().await.unwrap();
    assert!(cluster.is_running());
    cluster.stop().await.unwrap();
    assert!(!cluster.is_running());
}

// original: node-id, get-node-id
#[test]
fn node_id_is_the_certificates_also_before_the_start() {
    let authority = authority();
    let cluster = Cluster::new(node(&authority, "lb-1.fra", &[])).unwrap();
    assert_eq!(cluster.node_id(), id("lb-1.fra"));
}

// original: local-node
#[tokio::test]
async fn local_node_tells_of_this_node() {
    let authority = authority();
    let mut config = node(&authority, "a", &[]);
    config.zone = Some("fra".into());
    config.tags = BTreeMap::from([("role".into(), "edge".into())]);
    let cluster = Cluster::new(config).unwrap();
    let started = cluster.start().await.unwrap().unwrap();
    let node = cluster.local_node();
    assert_eq!((node.node_id, node.address, node.status), (id("a"), started.address, NodeStatus::Alive));
    assert_eq!((node.zone.as_deref(), &node.tags["role"][..]), (Some("fra"), "edge"));
    cluster.set_tags(BTreeMap::new()).unwrap();
    assert_eq!(cluster.local_node().tags, BTreeMap::new());
}

// original: all-nodes, get-all-nodes
#[tokio::test]
async fn all_nodes_has_every_known_node_the_gone_ones_too() {
    let (a, b) = pair().await;
    b.stop().await.unwrap();
    until("it comes to pass", || a.cluster_size() == 1).await;
    let nodes = a.all_nodes();
    assert_eq!(nodes.keys().cloned().collect::<Vec<_>>(), [id("a"), id("b")]);
    assert_eq!((nodes[&id("a")].status, nodes[&id("b")].status), (NodeStatus::Alive, NodeStatus::Left));
    a.forget(&id("b")).unwrap();
    assert_eq!(a.all_nodes().len(), 1);
}

// original: alive-nodes
#[tokio::test]
async fn alive_nodes_includes_this_one() {
    let (a, b) = pair().await;
    assert_eq!(a.alive_nodes(), [id("a"), id("b")].into());
    b.stop().await.unwrap();
    until("it comes to pass", || a.alive_nodes() == [id("a")].into()).await;
    assert!(b.alive_nodes().is_empty());
}

// original: cluster-size
#[tokio::test]
async fn cluster_size_counts_the_alive() {
    let (a, b) = pair().await;
    assert_eq!((a.cluster_size(), b.cluster_size()), (2, 2));
    b.stop().await.unwrap();
    until("it comes to pass", || a.cluster_size() == 1).await;
    assert_eq!(b.cluster_size(), 0);
}

// original: node-alive?
#[tokio::test]
async fn is_alive_of_those_believed_so() {
    let (a, b) = pair().await;
    assert!(a.is_alive(&id("a")) && a.is_alive(&id("b")) && !a.is_alive(&id("nobody")));
    b.stop().await.unwrap();
    until("it comes to pass", || !a.is_alive(&id("b"))).await;
}

// original: node-suspected?, node-dead?
#[tokio::test]
async fn is_suspected_then_is_dead_of_a_node_that_vanished() {
    let (a, b) = pair().await;
    let kinds = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&kinds);
    a.subscribe(move |event: &ClusterEvent| log.lock().unwrap().push(event.kind));
    assert!(!a.is_suspected(&id("b")) && !a.is_dead(&id("b")));
    drop(b); // without a word: a crash
    until("it comes to pass", || a.is_suspected(&id("b"))).await;
    assert!(!a.is_alive(&id("b")) && !a.is_dead(&id("b")));
    until("it comes to pass", || a.is_dead(&id("b"))).await;
    assert!(!a.is_suspected(&id("b")));
    until("it comes to pass", || kinds.lock().unwrap().contains(&EventKind::NodeDead)).await;
    let kinds = kinds.lock().unwrap();
    assert!(kinds.contains(&EventKind::NodeSuspect) && !kinds.contains(&EventKind::NodeLeave));
}

// original: broadcast!
#[tokio::test]
async fn broadcast_is_stored_here_and_arrives_there() {
    let (a, b) = pair().await;
    let first = a.broadcast(StateType::DRAIN, "backend-1", "draining").unwrap().expect("it runs");
    assert_eq!((first.source_node.clone(), first.key.as_str()), (id("a"), "backend-1"));
    assert_eq!(text(&a, &StateType::DRAIN, "backend-1").as_deref(), Some("draining"));
    until("it comes to pass", || text(&b, &StateType::DRAIN, "backend-1").as_deref() == Some("draining"))
        .await;
    let second = b.broadcast(StateType::DRAIN, "backend-1", "active").unwrap().unwrap();
    assert!(second.version > first.version);
    until("it comes to pass", || text(&a, &StateType::DRAIN, "backend-1").as_deref() == Some("active")).await;
    // Of a per-node type each node has a register of its own.
    a.broadcast(StateType::HEALTH, "backend-1", "up").unwrap();
    b.broadcast(StateType::HEALTH, "backend-1", "down").unwrap();
    until("it comes to pass", || {
        a.states(&StateType::HEALTH).len() == 2 && b.states(&StateType::HEALTH).len() == 2
    })
    .await;
    assert_eq!(text(&a, &StateType::HEALTH, "backend-1").as_deref(), Some("up"));
    assert!(a.remove(StateType::DRAIN, "backend-1").unwrap().is_some());
    until("it comes to pass", || b.get(&StateType::DRAIN, "backend-1").is_none()).await;
    a.stop().await.unwrap();
    assert_eq!(a.broadcast(StateType::DRAIN, "backend-1", "x").unwrap(), None);
}

// original: broadcast-many!
#[tokio::test]
async fn broadcast_many_takes_a_batch_and_counts_what_it_accepted() {
    let (a, b) = pair().await;
    let record = |number: u64, version| {
        let value = Value::encode(&number).unwrap();
        SyncableState::new("routes", format!("r{number}"), value, version, id("a"))
    };
    let states: Vec<_> = (0..500).map(|number| record(number, a.next_version())).collect();
    assert_eq!(a.broadcast_many(states).unwrap(), 500);
    assert_eq!(a.broadcast_many(vec![record(3, 1)]).unwrap(), 0, "an old version loses as anywhere");
    until("it comes to pass", || b.states(&"routes".into()).len() == 500).await;
    let mut foreign = record(7, 9);
    foreign.source_node = id("b");
    let error = a.broadcast_many(vec![record(600, a.next_version()), foreign]).unwrap_err();
    assert!(error.to_string().contains("names b as its source"), "{error}");
    assert_eq!(a.states(&"routes".into()).len(), 500, "nothing of a bad batch is taken");
}

// original: make-syncable-state
#[test]
fn a_record_is_made_of_its_parts() {
    let value = Value::encode(&("up", 3)).unwrap();
    let record = SyncableState::new("health", "backend-7", value, 4, id("a"));
    assert_eq!(record.state_type, StateType::HEALTH);
    assert_eq!((record.key.as_str(), record.version, &record.source_node), ("backend-7", 4, &id("a")));
    assert_eq!(record.value.decode::<(String, u32)>().unwrap(), ("up".into(), 3));
}

// original: next Lamport timestamp
#[tokio::test]
async fn next_version_is_above_every_version_written_or_seen() {
    let (a, b) = pair().await;
    let versions = [a.next_version(), a.next_version()];
    assert!(versions[0] < versions[1]);
    for _ in 0..100 {
        let _ = b.next_version();
    }
    let written = b.broadcast("routes", "x", &1).unwrap().unwrap();
    until("it comes to pass", || a.get(&"routes".into(), "x").is_some()).await;
    assert!(a.next_version() > written.version);
}

/// A provider that holds what it was told.
#[derive(Default)]
struct Table {
    own: Mutex<Vec<SyncableState>>,
    applied: Mutex<Vec<SyncableState>>,
    failed: Mutex<Vec<NodeId>>,
}

impl StateProvider for Table {
    fn provider_type(&self) -> StateType {
        StateType::shared("routes")
    }

    fn sync_state(&self) -> Vec<SyncableState> {
        self.own.lock().unwrap().clone()
    }

    fn apply_remote_state(&self, states: Vec<SyncableState>) -> Applied {
        let applied = Applied { applied: states.len(), ..Applied::default() };
        self.applied.lock().unwrap().extend(states);
        applied
    }

    fn on_node_failure(&self, node: &NodeId) {
        self.failed.lock().unwrap().push(node.clone());
    }
}

// original: register-provider!
#[tokio::test]
async fn a_provider_is_handed_what_is_known_and_what_comes() {
    let (a, b) = pair().await;
    b.broadcast("routes", "before", &1).unwrap();
    until("it comes to pass", || a.get(&"routes".into(), "before").is_some()).await;
    let table = Arc::new(Table::default());
    a.register_provider(Arc::clone(&table) as _).unwrap();
    let again = a.register_provider(Arc::new(Table::default())).unwrap_err();
    assert!(again.to_string().contains("routes has a provider already; unregister it first"), "{again}");
    b.broadcast("routes", "after", &2).unwrap();
    until("it comes to pass", || table.applied.lock().unwrap().len() == 2).await;
    let keys: Vec<_> = table.applied.lock().unwrap().iter().map(|record| record.key.clone()).collect();
    assert_eq!(keys, ["before", "after"]);
    b.remove("routes", "after").unwrap();
    until("it comes to pass", || table.applied.lock().unwrap().len() == 3).await;
    assert!(table.applied.lock().unwrap()[2].deleted);
    assert_eq!(a.stats().providers["routes"].applied, 3);
}

// original: unregister-provider!
#[tokio::test]
async fn an_unregistered_provider_is_handed_nothing_more() {
    let (a, b) = pair().await;
    let table = Arc::new(Table::default());
    a.register_provider(Arc::clone(&table) as _).unwrap();
    b.broadcast("routes", "x", &1).unwrap();
    until("it comes to pass", || table.applied.lock().unwrap().len() == 1).await;
    assert!(a.unregister_provider(&"routes".into()));
    assert!(!a.unregister_provider(&"routes".into()));
    b.broadcast("routes", "y", &2).unwrap();
    until("it comes to pass", || a.get(&"routes".into(), "y").is_some()).await;
    assert_eq!(table.applied.lock().unwrap().len(), 1);
    a.register_provider(table).unwrap();
}

// original: IStateProvider
#[tokio::test]
async fn what_a_provider_holds_is_shared_and_it_hears_of_deaths() {
    let authority = authority();
    let a = start(&authority, "a", &[]).await;
    let table = Arc::new(Table::default());
    let value = Value::encode("held").unwrap();
    let held = SyncableState::new("routes", "own", value, a.next_version(), id("a"));
    table.own.lock().unwrap().push(held.clone());
    let digest: HashMap<StateKey, u64> = table.state_digest();
    let key = StateKey { state_type: "routes".into(), key: "own".into() };
    assert_eq!(digest, HashMap::from([(key, held.version)]));
    a.register_provider(Arc::clone(&table) as _).unwrap();
    let b = start(&authority, "b", &[&a]).await;
    until("it comes to pass", || text(&b, &"routes".into(), "own").as_deref() == Some("held")).await;
    drop(b);
    until("it comes to pass", || *table.failed.lock().unwrap() == [id("b")]).await;
}

// original: subscribe!
#[tokio::test]
async fn subscribers_hear_of_everything_in_order() {
    let authority = authority();
    let a = Cluster::new(node(&authority, "a", &[])).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    a.subscribe(move |event: &ClusterEvent| {
        log.lock().unwrap().push((event.kind, event.node_id.clone()));
    });
    a.start().await.unwrap();
    let b = start(&authority, "b", &[&a]).await;
    until("it comes to pass", || a.cluster_size() == 2).await;
    b.broadcast("routes", "x", &1).unwrap();
    until("it comes to pass", || {
        heard.lock().unwrap().iter().any(|(kind, _)| *kind == EventKind::StateChanged)
    })
    .await;
    b.stop().await.unwrap();
    until("it comes to pass", || heard.lock().unwrap().iter().any(|(kind, _)| *kind == EventKind::NodeLeave))
        .await;
    a.stop().await.unwrap();
    until("it comes to pass", || {
        heard.lock().unwrap().last() == Some(&(EventKind::ClusterStopped, Some(id("a"))))
    })
    .await;
    let heard = heard.lock().unwrap();
    let place = |kind, node: &str| {
        heard
            .iter()
            .position(|event| *event == (kind, Some(id(node))))
            .unwrap_or_else(|| panic!("no {kind} {node}"))
    };
    let places = [
        place(EventKind::ClusterStarted, "a"),
        place(EventKind::NodeJoin, "b"),
        place(EventKind::StateChanged, "b"),
        place(EventKind::NodeLeave, "b"),
    ];
    assert!(places.is_sorted(), "{heard:?}");
}

// original: its unsubscribe function
#[tokio::test]
async fn who_unsubscribes_hears_no_more() {
    let authority = authority();
    let a = start(&authority, "a", &[]).await;
    let count = Arc::new(Mutex::new(0));
    let counts = Arc::clone(&count);
    let subscription = a.subscribe(move |_: &ClusterEvent| *counts.lock().unwrap() += 1);
    a.broadcast("routes", "x", &1).unwrap();
    until("it comes to pass", || *count.lock().unwrap() == 1).await;
    subscription.unsubscribe();
    let other = Arc::new(Mutex::new(0));
    let others = Arc::clone(&other);
    a.subscribe(move |_: &ClusterEvent| *others.lock().unwrap() += 1);
    a.broadcast("routes", "y", &2).unwrap();
    until("it comes to pass", || *other.lock().unwrap() == 1).await;
    assert_eq!(*count.lock().unwrap(), 1);
}

// original: stats
#[tokio::test]
async fn stats_count_and_serialise() {
    let (a, b) = pair().await;
    a.register_provider(Arc::new(Table::default())).unwrap();
    let stats = a.stats();
    assert_eq!(
        (stats.status, stats.membership.node_id, stats.membership.alive_count),
        (Status::Running, id("a"), 2)
    );
    assert_eq!((stats.membership.suspected_count, stats.membership.dead_count), (0, 0));
    assert!(stats.gossip.running);
    assert_eq!(stats.gossip.provider_count, 1);
    assert_eq!(stats.gossip.config.ping_interval, Duration::from_millis(200));
    let json = serde_json::to_value(a.stats()).unwrap();
    assert_eq!(json["status"], "running");
    assert_eq!(json["membership"]["alive_count"], 2);
    assert_eq!(json["gossip"]["running"], true);
    assert!(!json.to_string().contains("PRIVATE KEY"));
    b.stop().await.unwrap();
    until("it comes to pass", || a.stats().membership.left_count == 1).await;
}

// original: get-config
#[tokio::test]
async fn config_is_as_in_force_and_shows_no_secret() {
    let authority = authority();
    let a = start(&authority, "a", &[]).await;
    let config = a.config();
    assert_eq!((config.gossip_fanout, config.max_batch_size, config.suspicion_mult), (2, 100, 3));
    a.set_tags(BTreeMap::from([("role".into(), "edge".into())])).unwrap();
    assert_eq!(a.config().tags["role"], "edge");
    let shown = format!("{:?} {}", a.config(), serde_json::to_string(&a.config()).unwrap());
    assert!(!shown.contains("PRIVATE") && !shown.contains("BEGIN"), "{shown}");
}
