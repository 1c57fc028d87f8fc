//! What tracked connections cost: three balancers on loopback, one of which takes new flows at a rate, of which
//! a share is worth telling. How fast flows are taken, how long until the others see one that is told, and what
//! a flow costs on the wire. `cargo bench --bench conntrack [-- <flows a second> <seconds> <percent told>]`

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::{
    error::Error,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use phalanx::{
    Authority, Cluster, Config, NodeId,
    lb::{Conntrack, Flow, FlowKey},
};

/// How long to rest between two looks.
const STEP: Duration = Duration::from_millis(1);
/// What makes a flow worth telling at once: more packets than the table waits for.
const PACKETS: u64 = 16;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u32>().ok());
    let rate = numbers.next().unwrap_or(100_000).max(1_000);
    let seconds = numbers.next().unwrap_or(5).max(1);
    let percent = numbers.next().unwrap_or(5).clamp(1, 100);

    let fleet = fleet().await?;
    let tables = fleet.iter().map(Conntrack::attach).collect::<Result<Vec<_>, _>>()?;
    let sent = |node: &Cluster| node.stats().gossip.counters.bytes_sent;
    let sent_before: u64 = fleet.iter().map(sent).sum();

    let backend: SocketAddr = "10.0.0.7:8080".parse()?;
    let flows = rate * seconds;
    let is_told = |number: u32| number % 100 < percent;
    let mut told: Vec<(FlowKey, Instant)> = Vec::new();
    let mut delays: Vec<Duration> = Vec::new();
    let (mut taken, mut ended, mut waiting) = (0, 0, 0);
    let (mut taking, begun) = (Duration::ZERO, Instant::now());
    while taken < flows {
        let from = Instant::now();
        let due = from.duration_since(begun).as_secs_f64() * f64::from(rate);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of flows, capped"
        )]
        let due = due.min(f64::from(flows)) as u32;
        for number in taken..due {
            let mut flow = Flow::new(Some(backend));
            if is_told(number) {
                flow.packets = PACKETS;
                told.push((key_of(number), Instant::now()));
            }
            tables[0].insert(key_of(number), flow);
        }
        taken = due;
        // Young flows end young, after half a second: all but those that are told.
        let old = taken.saturating_sub(rate / 2);
        for number in (ended..old).filter(|number| !is_told(*number)) {
            tables[0].remove(&key_of(number));
        }
        ended = old;
        taking += from.elapsed();
        while let Some((key, since)) = told.get(waiting)
            && tables[1..].iter().all(|table| table.lookup(key).is_some())
        {
            delays.push(since.elapsed());
            waiting += 1;
        }
        tokio::time::sleep(STEP).await;
    }
    let lasted = begun.elapsed();
    while let Some((key, since)) = told.get(waiting) {
        if tables[1..].iter().all(|table| table.lookup(key).is_some()) {
            delays.push(since.elapsed());
            waiting += 1;
        } else if since.elapsed() > Duration::from_secs(30) {
            return Err(format!(
                "{} of {} flows were not seen within 30 s",
                told.len() - waiting,
                told.len()
            )
            .into());
        } else {
            tokio::time::sleep(STEP).await;
        }
    }
    let sent_after: u64 = fleet.iter().map(sent).sum();
    delays.sort();
    let at = |share: usize| delays[(delays.len() - 1) * share / 1_000];
    let per_second = f64::from(flows) / lasted.as_secs_f64();
    println!("{flows} new flows in {lasted:.1?}: {per_second:.0} a second, {:.2?} each", taking / flows);
    println!(
        "{} told; seen by both others after {:.1?}, 99 % {:.1?}, worst {:.1?}",
        told.len(),
        at(500),
        at(990),
        at(1_000)
    );
    println!(
        "{} bytes sent in all a flow told and node",
        (sent_after - sent_before) / (told.len() as u64 * 2)
    );
    println!("{:?}", tables[1].stats());
    for node in &fleet {
        let stats = node.stats();
        println!(
            "{}: {} suspicions, {} deaths",
            node.node_id(),
            stats.gossip.counters.suspicions,
            stats.gossip.counters.deaths
        );
    }
    Ok(())
}

/// Three nodes that see one another.
async fn fleet() -> Result<Vec<Cluster>, Box<dyn Error>> {
    let authority = Authority::generate("bench")?;
    let mut fleet: Vec<Cluster> = Vec::new();
    for name in ["a", "b", "c"] {
        let mut config = Config::default();
        config.enabled = true;
        config.bind_address = Ipv4Addr::LOCALHOST.into();
        config.bind_port = 0;
        config.seeds = fleet.first().iter().map(|seed| seed.local_node().address.to_string()).collect();
        config.identity = Some(authority.issue(&NodeId::new(name)?)?);
        let cluster = Cluster::new(config)?;
        cluster.start().await?;
        fleet.push(cluster);
    }
    while fleet.iter().any(|node| node.cluster_size() < 3) {
        tokio::time::sleep(STEP).await;
    }
    Ok(fleet)
}

fn key_of(number: u32) -> FlowKey {
    let [a, b, c, d] = number.to_be_bytes();
    FlowKey::tcp(([10, a, b, c], 1_024 + u16::from(d)).into(), ([203, 0, 113, 1], 443).into())
}
