//! Several nodes join one that holds many records, at once, over QUIC on loopback: how fast each takes them
//! over, what that costs on the wire, and whether membership stays calm meanwhile.
//! `cargo bench --bench joiners [-- <records> <joiners>]`; a record has a key of 16 bytes and a value of 32.

#![expect(clippy::disallowed_methods, clippy::cast_precision_loss, reason = "a benchmark measures real time")]

use std::{
    error::Error,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use phalanx::{Authority, Cluster, Config, EventKind, NodeId, SyncableState, Value};

/// Not bulk by type, so that nothing is held back for the sake of the figure.
const OF: &str = "records";
const BATCH: usize = 10_000;
/// How long the joiners may take.
const LIMIT: Duration = Duration::from_secs(600);

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let records = numbers.next().unwrap_or(1_000_000);
    let joiners = numbers.next().unwrap_or(5);
    if records == 0 || joiners == 0 {
        return Err("there must be at least one record and one joiner".into());
    }
    // Each node has a runtime of its own, as it would have a process.
    let authority = Authority::generate("bench")?;
    let alarms = Arc::new(AtomicU64::new(0));
    let (runtime, seed) = node(&authority, "seed", None, &alarms)?;
    runtime.block_on(fill(&seed, records))?;
    println!("{records} records written");

    let begun = Instant::now();
    let mut fleet = Vec::new();
    for number in 0..joiners {
        fleet.push(node(&authority, &format!("joiner-{number}"), Some(&seed), &alarms)?);
    }
    let mut done = vec![None; joiners];
    while done.iter().any(Option::is_none) {
        if begun.elapsed() > LIMIT {
            return Err(format!("not within {LIMIT:?}: {done:?}").into());
        }
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
        for (done, (_, node)) in done.iter_mut().zip(&fleet).filter(|(done, _)| done.is_none()) {
            if node.stats().gossip.counters.records_held >= records as u64 {
                *done = Some(begun.elapsed());
            }
        }
    }
    let last = done.iter().flatten().max().copied().unwrap_or_default();
    let total = (records * joiners) as f64;
    println!(
        "{joiners} joiners took them over within {last:.1?}: {:.0} records a second in all",
        total / last.as_secs_f64()
    );
    let nodes = || std::iter::once(&seed).chain(fleet.iter().map(|(_, node)| node));
    let sum = |of: fn(&Cluster) -> u64| nodes().map(of).sum::<u64>();
    let bytes = sum(|node| node.stats().gossip.counters.sync_bytes_sent);
    let came = sum(|node| node.stats().gossip.counters.records_synced);
    println!(
        "{:.1} bytes sent a record and joiner, {:.3} copies of each",
        bytes as f64 / total,
        came as f64 / total
    );
    println!(
        "{} suspicions, {} deaths, {} alarms told",
        sum(|n| n.stats().gossip.counters.suspicions),
        sum(|n| n.stats().gossip.counters.deaths),
        alarms.load(SeqCst)
    );
    Ok(())
}

type Node = (tokio::runtime::Runtime, Cluster);

fn node(
    authority: &Authority,
    name: &str,
    seed: Option<&Cluster>,
    alarms: &Arc<AtomicU64>,
) -> Result<Node, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut config = Config::default();
    config.enabled = true;
    config.bind_address = Ipv4Addr::LOCALHOST.into();
    config.bind_port = 0;
    config.seeds = seed.iter().map(|seed| seed.local_node().address.to_string()).collect();
    config.identity = Some(authority.issue(&NodeId::new(name)?)?);
    let cluster = Cluster::new(config)?;
    let alarms = Arc::clone(alarms);
    cluster.subscribe(move |event| {
        if matches!(event.kind, EventKind::NodeSuspect | EventKind::NodeDead) {
            alarms.fetch_add(1, SeqCst);
            println!("{event}");
        }
    });
    runtime.block_on(cluster.start())?;
    Ok((runtime, cluster))
}

async fn fill(cluster: &Cluster, records: usize) -> Result<(), Box<dyn Error>> {
    let id = cluster.node_id();
    for first in (0..records).step_by(BATCH) {
        let record = |number: usize| {
            let value = Value::encode(&format!("{number:031x}"))?; // one more byte tells the length
            Ok(SyncableState::new(OF, format!("{number:016x}"), value, cluster.next_version(), id.clone()))
        };
        let batch =
            (first..records.min(first + BATCH)).map(record).collect::<Result<Vec<_>, phalanx::Error>>()?;
        cluster.broadcast_many_flushed(batch, LIMIT).await?;
    }
    Ok(())
}
