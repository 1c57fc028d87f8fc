//! What the tests on real sockets share: nodes of one authority, and waiting for a condition instead of for
//! luck.

#![allow(dead_code, reason = "not every test binary uses all of it")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may fail, and waits on real time")]

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use phalanx::{Authority, Cluster, ClusterEvent, Config, EventData, EventKind, Identity, NodeId, StateType};

/// How long a condition may take to come to pass.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn authority() -> Authority {
    Authority::generate("test").unwrap()
}

/// A node's configuration, quick enough at finding the dead for a test.
pub(crate) fn config(identity: Identity, seeds: &[&Cluster]) -> Config {
    let mut config = Config::default();
    config.enabled = true;
    config.bind_address = Ipv4Addr::LOCALHOST.into();
    config.bind_port = 0;
    config.ping_interval = Duration::from_millis(200);
    config.ping_timeout = Duration::from_millis(100);
    config.push_pull_interval = Duration::from_secs(2);
    config.seeds = seeds.iter().map(|seed| seed.local_node().address.to_string()).collect();
    config.identity = Some(identity);
    config
}

pub(crate) fn node(authority: &Authority, name: &str, seeds: &[&Cluster]) -> Config {
    config(authority.issue(&id(name)).unwrap(), seeds)
}

pub(crate) async fn started(config: Config) -> Cluster {
    let cluster = Cluster::new(config).unwrap();
    cluster.start().await.unwrap().expect("it is enabled");
    cluster
}

/// That many nodes, `n0` first, which see one another.
pub(crate) async fn fleet(authority: &Authority, size: usize) -> Vec<Cluster> {
    fleet_of(authority, size, |config| config).await
}

/// The same with what `set` sets.
pub(crate) async fn fleet_of(authority: &Authority, size: usize, set: fn(Config) -> Config) -> Vec<Cluster> {
    let mut fleet: Vec<Cluster> = Vec::new();
    for number in 0..size {
        let seeds: Vec<_> = fleet.first().into_iter().collect();
        fleet.push(started(set(node(authority, &format!("n{number}"), &seeds))).await);
    }
    until("all see all", || fleet.iter().all(|node| node.cluster_size() == size)).await;
    fleet
}

/// Waits until the condition holds; says what did not come to pass if that takes too long.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A record's value as text.
pub(crate) fn text(cluster: &Cluster, of: &StateType, key: &str) -> Option<String> {
    cluster.get(of, key).map(|record| record.value.decode().unwrap())
}

/// Proof that a cluster goes on serving: one more node joins it, and what that one writes arrives.
pub(crate) async fn still_serves(cluster: &Cluster, authority: &Authority, name: &str) {
    let good = started(node(authority, name, &[cluster])).await;
    good.broadcast("proof", name, name).unwrap();
    until("the cluster goes on serving", || text(cluster, &"proof".into(), name).as_deref() == Some(name))
        .await;
    good.stop().await.unwrap();
}

/// What a cluster has told its subscribers so far.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Vec<ClusterEvent>>>);

impl Log {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let log = Self(Arc::default());
        let events = Arc::clone(&log.0);
        cluster.subscribe(move |event: &ClusterEvent| events.lock().unwrap().push(event.clone()));
        log
    }

    pub(crate) fn told(&self, kind: EventKind, node: &str) -> usize {
        let is = |event: &&ClusterEvent| {
            event.kind == kind && event.node_id.as_ref().is_some_and(|id| id.as_str() == node)
        };
        self.0.lock().unwrap().iter().filter(is).count()
    }

    /// What the events of that kind say, in words.
    pub(crate) fn reasons(&self, kind: EventKind) -> Vec<String> {
        let reason = |event: &ClusterEvent| match &event.data {
            EventData::Reason(reason) if event.kind == kind => Some(reason.clone()),
            _ => None,
        };
        self.0.lock().unwrap().iter().filter_map(reason).collect()
    }

    pub(crate) fn kinds(&self) -> Vec<EventKind> {
        self.0.lock().unwrap().iter().map(|event| event.kind).collect()
    }
}
