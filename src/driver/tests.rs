//! Whole nodes, certificates and QUIC included, on a network in memory and paused time: seconds of the
//! protocol cost no waiting. What needs the system's sockets is in `tests/`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    Authority, Cluster, Config, NodeId, NodeStatus, StateType,
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
