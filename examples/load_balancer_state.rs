//! Three balancers, what they know of their backends, and one death: a story told by what was observed.
//! `cargo run --release --example load_balancer_state`
//!
//! Each line is printed once it has come to pass; if one does not within 30 s, the program ends with an error.

#![expect(clippy::disallowed_methods, reason = "a story has a beginning, told on the wall")]

use std::{
    error::Error,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use phalanx::{
    Authority, Cluster, Config, NodeId,
    lb::{
        CircuitBreakers, CircuitState, Conntrack, ConntrackRules, Counters, Drain, DrainState, Drains, Flow,
        FlowKey, Health, HealthStatus, HealthTable,
    },
};

/// A balancer: a node and its tables.
struct Balancer {
    cluster: Cluster,
    health: HealthTable,
    circuits: CircuitBreakers,
    drains: Drains,
    flows: Conntrack,
    counters: Counters,
}

impl Balancer {
    async fn start(name: &str, authority: &Authority, seed: Option<&Self>) -> Result<Self, phalanx::Error> {
        let mut config = Config::default();
        config.enabled = true;
        config.bind_address = Ipv4Addr::LOCALHOST.into();
        config.bind_port = 0;
        config.seeds = seed.iter().map(|seed| seed.cluster.local_node().address.to_string()).collect();
        config.identity = Some(authority.issue(&NodeId::new(name)?)?);
        // Quicker at finding the dead than the default, so that the story is short.
        config.ping_interval = Duration::from_millis(200);
        config.ping_timeout = Duration::from_millis(100);
        let cluster = Cluster::new(config)?;
        cluster.start().await?;
        let mut rules = ConntrackRules::default();
        rules.min_age = Duration::from_millis(50);
        Ok(Self {
            health: HealthTable::attach(&cluster)?,
            circuits: CircuitBreakers::attach(&cluster)?,
            drains: Drains::attach(&cluster)?,
            flows: Conntrack::attach_with(&cluster, rules)?,
            counters: Counters::attach(&cluster)?,
            cluster,
        })
    }
}

/// Tells the story, line by line, with the time.
struct Story(Instant);

impl Story {
    async fn tell(&self, what: &str, is_so: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
        let begun = Instant::now();
        while !is_so() {
            if begun.elapsed() > Duration::from_secs(30) {
                return Err(format!("it did not come to pass within 30 s: {what}").into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        println!("{:6.2} s  ✓ {what}", self.0.elapsed().as_secs_f64());
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let story = Story(Instant::now());
    let authority = Authority::generate("edge")?;
    let one = Balancer::start("lb-1", &authority, None).await?;
    let two = Balancer::start("lb-2", &authority, Some(&one)).await?;
    let three = Balancer::start("lb-3", &authority, Some(&one)).await?;
    let all = [&one, &two, &three];
    story
        .tell("three balancers see one another", || all.iter().all(|lb| lb.cluster.cluster_size() == 3))
        .await?;

    one.health.report("web-1", Health::unhealthy("connection refused"))?;
    two.health.report("web-1", Health::healthy())?;
    let status = |of| all.iter().all(|lb| lb.health.status("web-1").status == of);
    story
        .tell("lb-1 cannot reach web-1, lb-2 can: for all of them it is up", || {
            all.iter().all(|lb| lb.health.status("web-1").opinions.len() == 2)
                && status(HealthStatus::Healthy)
        })
        .await?;
    three.health.report("web-1", Health::unhealthy("timeout"))?;
    story.tell("lb-3 cannot either: for all it is down", || status(HealthStatus::Unhealthy)).await?;
    println!("            because {}", two.health.status("web-1").reason);

    two.circuits.open("web-2", 0.7, Duration::from_secs(60))?;
    story
        .tell("lb-2 sees 70 % of errors from web-2 and opens the circuit: open for all", || {
            all.iter().all(|lb| lb.circuits.state("web-2") == CircuitState::Open)
        })
        .await?;
    two.circuits.half_open("web-2")?;
    story
        .tell("it half-opens: one of the three may try, and all agree which", || {
            all.iter().filter(|lb| lb.circuits.may_pass("web-2")).count() == 1
        })
        .await?;

    for (lb, connections) in all.iter().zip([40, 35, 30]) {
        lb.counters.set("web-3/connections", connections)?;
    }
    story
        .tell("together they have 105 connections to web-3", || {
            all.iter().all(|lb| lb.counters.sum("web-3/connections") == 105)
        })
        .await?;

    let promoted = Arc::new(AtomicUsize::new(0));
    for lb in [&one, &two] {
        let promoted = Arc::clone(&promoted);
        lb.flows.on_promote(move |_, _| _ = promoted.fetch_add(1, SeqCst));
    }
    let client =
        |number: u16| FlowKey::tcp(([198, 51, 100, 9], number).into(), ([203, 0, 113, 1], 443).into());
    for number in 1..=500 {
        three.flows.insert(client(number), Flow::new(Some("10.0.0.3:8080".parse()?)));
    }
    story
        .tell("lb-3 carries 500 flows; the others know them", || {
            [&one, &two].iter().all(|lb| lb.flows.stats().shadows == 500)
        })
        .await?;

    three.drains.start("web-3", Drain::new("web", "alice", "kernel update"))?;
    story
        .tell("alice drains web-3 through lb-3: it drains everywhere", || {
            all.iter().all(|lb| lb.drains.status("web-3").state == DrainState::Draining)
        })
        .await?;

    println!("            lb-3 dies");
    drop(three);
    let rest = [&one, &two];
    story.tell("the others find out", || rest.iter().all(|lb| lb.cluster.cluster_size() == 2)).await?;
    story
        .tell("each of its flows is carried by one of them, which was told", || {
            let own: usize = rest.iter().map(|lb| lb.flows.stats().own).sum();
            own == 500 && promoted.load(SeqCst) == 500
        })
        .await?;
    println!("            lb-1 took {}, lb-2 took {}", one.flows.stats().own, two.flows.stats().own);
    story
        .tell("its opinion of web-1 counts no more: one of two is no majority, web-1 is up", || {
            rest.iter().all(|lb| lb.health.status("web-1").status == HealthStatus::Healthy)
        })
        .await?;
    story
        .tell("alice's order stands, though the node it was given through is dead", || {
            rest.iter().all(|lb| lb.drains.status("web-3").state == DrainState::Draining)
        })
        .await?;
    one.drains.complete("web-3")?;
    two.drains.complete("web-3")?;
    let view = one.drains.wait_drained("web-3", Duration::from_secs(30)).await?;
    story
        .tell("the two that are left have no connection to web-3 any more: it is drained", || {
            view.waiting_for.is_empty() && two.drains.status("web-3").state == DrainState::Drained
        })
        .await?;
    for lb in rest {
        lb.cluster.stop().await?;
    }
    Ok(())
}
