//! Whole nodes, certificates and QUIC included, on a network in memory and paused time: seconds of the
//! protocol cost no waiting. What needs the system's sockets is in `tests/`.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep};

use crate::{
    Authority, Cluster, Config, NodeId, NodeStatus, StateChange, StateStream, StateType, SyncableState,
    driver::clock,
    net::memory::{self, Network, Weather},
};

const PORT: u16 = 7946;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn address(number: u8) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, number), PORT).into()
}

struct World {
    network: Arc<Network>,
    authority: Authority,
}

fn world(weather: Weather) -> World {
    let network = Network::new(7, weather);
    memory::enter(&network);
    World { network, authority: Authority::generate("edge").unwrap() }
}

impl World {
    async fn node(&self, number: u8) -> Cluster {
        let config = Config {
            enabled: true,
            bind_address: address(number).ip(),
            bind_port: PORT,
            seeds: (1..number.min(3)).map(|seed| address(seed).to_string()).collect(),
            identity: Some(self.authority.issue(&id(&format!("n{number}"))).unwrap()),
            ..Config::default()
        };
        let cluster = Cluster::new(config).unwrap();
        cluster.start().await.unwrap().expect("it is enabled");
        cluster
    }

    async fn fleet(&self, size: u8) -> Vec<Cluster> {
        let mut fleet = Vec::new();
        for number in 1..=size {
            fleet.push(self.node(number).await);
        }
        until("all see all", || fleet.iter().all(|node: &Cluster| node.cluster_size() == usize::from(size)))
            .await;
        fleet
    }
}

/// Waits for a condition; how long that took of the nodes' time.
async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begun: Instant = clock::monotonic();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(600), "it does not come to pass: {what}");
        sleep(Duration::from_millis(2)).await;
    }
    begun.elapsed()
}

fn holds(cluster: &Cluster, node: &str, status: NodeStatus) -> bool {
    cluster.all_nodes().get(&id(node)).is_some_and(|node| node.status == status)
}

#[tokio::test(start_paused = true)]
async fn nodes_form_share_lose_one_and_take_it_back() {
    let world = world(Weather::default());
    let fleet = world.fleet(4).await;
    fleet[0].broadcast(StateType::DRAIN, "x", "draining").unwrap();
    let arrives =
        until("it is everywhere", || fleet.iter().all(|node| node.get(&StateType::DRAIN, "x").is_some()))
            .await;
    assert!(arrives < Duration::from_millis(100), "{arrives:?}");
    world.network.group(address(4), 1);
    let dies =
        until("it is dead", || fleet[..3].iter().all(|node| holds(node, "n4", NodeStatus::Dead))).await;
    // By default a suspect has three seconds at least, with four members.
    assert!((3..30).contains(&dies.as_secs()), "{dies:?}");
    fleet[1].broadcast(StateType::DRAIN, "y", "draining").unwrap();
    world.network.group(address(4), 0);
    until("it is back", || fleet.iter().all(|node| node.cluster_size() == 4)).await;
    until("it has what it missed", || fleet[3].get(&StateType::DRAIN, "y").is_some()).await;
    fleet[2].stop().await.unwrap();
    until("it has left", || fleet[0].all_nodes()[&id("n3")].status == NodeStatus::Left).await;
    assert!(holds(&fleet[1], "n3", NodeStatus::Left) || !fleet[1].is_dead(&id("n3")));
}

#[tokio::test(start_paused = true)]
async fn on_a_lossy_network_nobody_is_taken_for_dead_and_everything_arrives() {
    let weather =
        Weather { loss: 0.03, duplication: 0.02, jitter: Duration::from_millis(2), ..Weather::default() };
    let world = world(weather);
    let fleet = world.fleet(5).await;
    for round in 0..40_u32 {
        let writer = &fleet[round as usize % 5];
        writer.broadcast("routes", format!("k{}", round % 7), &round).unwrap();
        sleep(Duration::from_millis(500)).await;
    }
    let newest = |node: &Cluster| {
        let mut records: Vec<_> =
            node.states(&"routes".into()).into_iter().map(|record| (record.key, record.version)).collect();
        records.sort();
        records
    };
    until("all hold the same", || fleet.iter().all(|node| newest(node) == newest(&fleet[0]))).await;
    assert_eq!(newest(&fleet[0]).len(), 7);
    let deaths: u64 = fleet.iter().map(|node| node.stats().gossip.counters.deaths).sum();
    assert_eq!(deaths, 0);
}

/// Reads all that is ready, and does to `seen` what it says.
fn fold(stream: &mut StateStream, seen: &mut BTreeMap<String, SyncableState>, most: usize) {
    for change in std::iter::from_fn(|| stream.next().now_or_never()).take(most) {
        match change.expect("the cluster stands") {
            StateChange::Put { new, old } => {
                let held = seen.insert(new.key.clone(), new);
                assert!(old.is_none() || old == held, "{old:?} was told to be replaced, {held:?} is held");
            }
            StateChange::Removed { old } | StateChange::Expired { old } => _ = seen.remove(&old.key),
            lagged @ StateChange::Lagged { .. } => panic!("{lagged:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_read_while_records_change_ends_with_what_there_is() {
    let world = world(Weather::default());
    let node = world.node(1).await;
    let of = StateType::shared("routes");
    for sim_seed in 0..20 {
        let mut rng = fastrand::Rng::with_seed(sim_seed);
        for key in 0..2_000 {
            node.broadcast(of.clone(), key.to_string(), &key).unwrap();
        }
        let (mut stream, mut seen) = (node.watch(&of), BTreeMap::new());
        for step in 0..60 {
            for _ in 0..rng.usize(..20) {
                let key = rng.u32(..2_500).to_string();
                if rng.bool() {
                    node.broadcast(of.clone(), key, &(step, "anew")).unwrap();
                } else {
                    node.remove(of.clone(), key).unwrap();
                }
            }
            fold(&mut stream, &mut seen, rng.usize(..120));
        }
        fold(&mut stream, &mut seen, usize::MAX);
        let there = node.states(&of).into_iter().map(|record| (record.key.clone(), record));
        assert_eq!(seen, there.collect(), "sim seed {sim_seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_many_records_holds_no_more_than_a_page_of_them() {
    let world = world(Weather::default());
    let node = world.node(1).await;
    for key in 0..5_000 {
        node.broadcast("routes", key.to_string(), &key).unwrap();
    }
    let mut stream = node.watch(&"routes".into());
    let told = std::iter::from_fn(|| stream.next().now_or_never().map(|change| (change, stream.waiting())));
    let waiting: Vec<_> = told.map(|(_, waiting)| waiting).collect();
    assert_eq!(waiting.len(), 5_000);
    assert!(waiting.iter().all(|waiting| *waiting < 512), "{:?}", waiting.iter().max());
}
