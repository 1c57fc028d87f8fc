//! Whether readers of tracked connections wait while a balancer takes over the flows of a dead one: three nodes on
//! loopback, of which one carries many flows and crashes, and one of the others has a table too. How long lookups
//! took there, while it heard of the flows and while it took them over.
//! `cargo bench --bench promotion [-- <flows>]`

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::{
    error::Error,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use phalanx::{
    Authority, Cluster, Config, NodeId,
    lb::{Conntrack, ConntrackRules, Flow, FlowKey},
};

/// How long to rest between two looks.
const STEP: Duration = Duration::from_millis(1);
/// How long a reader rests between two lookups.
const PAUSE: Duration = Duration::from_micros(50);
/// How long any part may take.
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> Result<(), Box<dyn Error>> {
    let flows = std::env::args().skip(1).find_map(|arg| arg.parse::<u32>().ok()).unwrap_or(1_000_000);
    if flows == 0 {
        return Err("there must be at least one flow".into());
    }
    let authority = Authority::generate("bench")?;
    let mut fleet: Vec<Node> = Vec::new();
    for name in ["a", "b", "c"] {
        let seed = fleet.first().map(|(_, seed)| seed);
        fleet.push(node(&authority, name, seed)?);
    }
    until(|| fleet.iter().all(|(_, node)| node.cluster_size() == 3))?;
    let mut rules = ConntrackRules::default();
    rules.ttl = Duration::from_secs(3_600); // no packets come, and no flow is to end meanwhile
    rules.max_per_source = flows as usize;
    let owner = Conntrack::attach_with(&fleet[0].1, rules)?;
    let heir = Conntrack::attach_with(&fleet[1].1, rules)?;

    let backend: SocketAddr = "10.0.0.7:8080".parse()?;
    watched("heard of", &heir, flows, || {
        for number in 0..flows {
            let mut flow = Flow::new(Some(backend));
            flow.packets = 16; // enough to be told at once
            owner.insert(key_of(number), flow);
        }
        until(|| heir.stats().shadows == flows as usize)
    })?;
    let (runtime, gone) = fleet.remove(0);
    watched("taken over, from the crash on,", &heir, flows, || {
        drop((owner, gone)); // nothing is said
        until(|| heir.stats().own == flows as usize)
    })?;
    println!("{:?}", heir.stats());
    drop(runtime);
    Ok(())
}

/// Does something, and tells how long lookups took meanwhile.
fn watched(
    what: &str,
    table: &Conntrack,
    flows: u32,
    act: impl FnOnce() -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let (over, begun) = (AtomicBool::new(false), Instant::now());
    let (result, mut took) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut took, mut number) = (Vec::new(), 0_u32);
            while !over.load(SeqCst) {
                number = (number + 7_919) % flows;
                let from = Instant::now();
                std::hint::black_box(table.lookup(&key_of(number)));
                took.push(from.elapsed());
                thread::park_timeout(PAUSE);
            }
            took
        });
        let result = act();
        over.store(true, SeqCst);
        (result, reader.join().unwrap_or_default())
    });
    result?;
    let lasted = begun.elapsed();
    took.sort();
    let at = |share: usize| took.get((took.len().max(1) - 1) * share / 10_000).copied().unwrap_or_default();
    println!(
        "{flows} flows {what} in {lasted:.1?}; {} lookups: median {:.1?}, 99 % {:.1?}, 99.9 % {:.1?}, worst {:.1?}",
        took.len(),
        at(5_000),
        at(9_900),
        at(9_990),
        at(10_000)
    );
    Ok(())
}

fn until(condition: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > LIMIT {
            return Err(format!("not within {LIMIT:?}").into());
        }
        thread::park_timeout(STEP);
    }
    Ok(())
}

type Node = (tokio::runtime::Runtime, Cluster);

/// A node with a runtime of its own, as it would have in a process of its own.
fn node(authority: &Authority, name: &str, seed: Option<&Cluster>) -> Result<Node, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut config = Config::default();
    config.enabled = true;
    config.bind_address = Ipv4Addr::LOCALHOST.into();
    config.bind_port = 0;
    config.seeds = seed.iter().map(|seed| seed.local_node().address.to_string()).collect();
    config.identity = Some(authority.issue(&NodeId::new(name)?)?);
    let cluster = Cluster::new(config)?;
    runtime.block_on(cluster.start())?;
    Ok((runtime, cluster))
}

fn key_of(number: u32) -> FlowKey {
    let [a, b, c, d] = number.to_be_bytes();
    FlowKey::tcp(([10, a, b, c], 1_024 + u16::from(d)).into(), ([203, 0, 113, 1], 443).into())
}
