//! Many nodes in one process on loopback: how long they take to find one another, and how long a broadcast
//! takes to reach them all. `cargo run --release --example loopback -- 64` prints the figures; it exits 0
//! only if every node saw every other and every broadcast. Never measures more than one broadcast at a time.

#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::{
    net::Ipv4Addr,
    process::ExitCode,
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use phalanx::{Authority, Cluster, ClusterEvent, Config, EventData, EventKind, NodeId};

/// How long anything may take before the run is a failure.
const LIMIT: Duration = Duration::from_secs(120);
const BROADCASTS: usize = 100;

type Error = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter("phalanx=error").init();
    let Ok(nodes @ 2..=512) = std::env::args().nth(1).map_or(Ok(64), |nodes| nodes.parse()) else {
        eprintln!("usage: loopback [NODES], 2 to 512; default 64");
        return ExitCode::from(2);
    };
    match run(nodes).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(nodes: usize) -> Result<(), Error> {
    let begun = Instant::now();
    let (clusters, news) = start(nodes).await?;
    let started = begun.elapsed();
    let agreed = until_all_agree(&clusters).await?;
    println!("{nodes} nodes started in {started:.2?}; all see all {agreed:.2?} after the last start");
    // The mesh of connections is still being dialled; a fleet that has been up for a while has one.
    until_quiet(&clusters).await;
    let mut times = Vec::new();
    for round in 0..BROADCASTS {
        times.push(broadcast(&clusters[round % nodes], round, &news, nodes)?);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times.sort_unstable();
    let (median, p90, worst) = (times[BROADCASTS / 2], times[BROADCASTS * 9 / 10], times[BROADCASTS - 1]);
    println!(
        "{BROADCASTS} broadcasts reached all {nodes}: median {median:.2?}, p90 {p90:.2?}, worst {worst:.2?}"
    );
    let count = |of: fn(&phalanx::ProtoCounters) -> u64| -> u64 {
        clusters.iter().map(|cluster| of(&cluster.stats().gossip.counters)).sum()
    };
    println!(
        "hand-offs {}, repeated {}, duplicates {}, suspicions {}",
        count(|counters| counters.handoffs),
        count(|counters| counters.handoffs_lost),
        count(|counters| counters.duplicates),
        count(|counters| counters.suspicions),
    );
    let stops: Vec<_> =
        clusters.into_iter().map(|cluster| tokio::spawn(async move { cluster.stop().await })).collect();
    for stop in stops {
        stop.await??;
    }
    Ok(())
}

/// Starts the nodes, each with the first as its seed; whoever hears of a record says when.
async fn start(nodes: usize) -> Result<(Vec<Cluster>, Receiver<(usize, String, Instant)>), Error> {
    let authority = Authority::generate("loopback")?;
    let (send, news) = mpsc::channel();
    let mut clusters: Vec<Cluster> = Vec::new();
    let mut seeds = Vec::new();
    for number in 0..nodes {
        let mut config = Config::default();
        config.enabled = true;
        config.bind_address = Ipv4Addr::LOCALHOST.into();
        config.bind_port = 0;
        config.seeds.clone_from(&seeds);
        config.identity = Some(authority.issue(&NodeId::new(format!("node-{number:03}"))?)?);
        let cluster = Cluster::new(config)?;
        let send = send.clone();
        cluster.subscribe(move |event: &ClusterEvent| {
            if let (EventKind::StateChanged, EventData::State { record, .. }) = (event.kind, &event.data) {
                let _ = send.send((number, record.key.clone(), Instant::now()));
            }
        });
        let started = cluster.start().await?.ok_or("not enabled")?;
        if seeds.is_empty() {
            seeds.push(started.address.to_string());
        }
        clusters.push(cluster);
    }
    Ok((clusters, news))
}

async fn until_all_agree(clusters: &[Cluster]) -> Result<Duration, Error> {
    let begun = Instant::now();
    while clusters.iter().any(|cluster| cluster.cluster_size() != clusters.len()) {
        if begun.elapsed() > LIMIT {
            let sizes: Vec<_> = clusters.iter().map(Cluster::cluster_size).collect();
            return Err(format!("after {LIMIT:?} the nodes see so many alive: {sizes:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(begun.elapsed())
}

/// Until every pair is connected, or half a minute has passed.
async fn until_quiet(clusters: &[Cluster]) {
    let begun = Instant::now();
    let connected = |cluster: &Cluster| {
        let nodes = cluster.all_nodes();
        nodes.iter().all(|(id, node)| node.rtt.is_some() || *id == cluster.node_id())
    };
    while !clusters.iter().all(connected) && begun.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("connected pairwise after {:.2?} more", begun.elapsed());
}

/// Sends one record and waits until every node has told of it; how long the last took.
fn broadcast(
    from: &Cluster,
    round: usize,
    news: &Receiver<(usize, String, Instant)>,
    nodes: usize,
) -> Result<Duration, Error> {
    let key = format!("round-{round}");
    let begun = Instant::now();
    from.broadcast("loopback", key.as_str(), &round)?;
    let mut last = begun;
    for heard in 0..nodes {
        let (_, _, at) = news
            .recv_timeout(LIMIT)
            .map_err(|_| format!("broadcast {round} reached {heard} of {nodes} nodes within {LIMIT:?}"))?;
        last = last.max(at);
    }
    Ok(last - begun)
}
