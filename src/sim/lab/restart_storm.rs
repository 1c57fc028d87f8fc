//! `simulate restart-storm`: every node of a cluster restarts within seconds, as a rollout or a power cut
//! does it.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Args, Command, Failure,
    cases::{Case, Totals, each},
    crew,
    plot::Figure,
    report::{Report, command_line},
    table::Table,
};
use crate::{EventData, EventKind, NodeId, NodeStatus, StateType, sim::World};

pub(super) const COMMAND: Command = Command {
    name: "restart-storm",
    about: "all nodes restart within seconds, until they are one cluster again; writes restart-storm.*",
    options: &[
        ("nodes", "16,64,256,512", "sizes of the cluster"),
        ("within", "5", "seconds within which all restart"),
        ("down-ms", "500", "milliseconds for which a node is down"),
        ("runs", "2", "seeds for each size of up to 256, one for more"),
        ("threads", "1", "worlds at a time"),
        ("out", "docs/experiments", "where the page goes"),
    ],
    run,
};

/// What was done, on the page.
const BEFORE: &str = "\
Every node of a formed cluster that holds 200 records crashes once and comes back 0.5 s later as a new \
process that remembers nothing, in random order, evenly within 5 s; three of the nodes are everybody's \
seeds. Links: 0.25 ms, no loss. Times are from the last restart until all member tables are equal, in the \
new epochs and with everybody alive, and until all stores are equal. Ghosts are pairs of an observer and a \
member that is held otherwise than it is, 30 s later. False suspicions and deaths are events about a life \
that ran at that moment, summed over observers and runs. Bytes are what each node, in both of its lives, \
handed to its transport from the first crash until one view. Certificates are a name of six bytes here; real \
ones add some 450 B to each newcomer's claim.";
/// What came of it.
const AFTER: &str = "\
The goal: a mass restart within 5 s ends with all alive within 10 s. Reached at the first look, 20 ms after \
the last restart, since each newcomer's claim has gone to all by the tree when the next one comes. No ghost, \
and no false death. memberlist#311 is the same case ended otherwise: accusations that never reach the \
restarted node.

Found on the way and mended: a ping to a node that has just restarted went by the connection of its earlier \
life, was answered with a reset and lost, and so were the helpers' pings: 6,187 false suspicions with 256 \
nodes (seed 0). Now the ping is sent again when its connection turns out to be dead. And since probes give \
their helpers 150 ms instead of 500, those who are down for 0.5 s are suspected, rightly; but who was asked to \
look at such a node accused its next life of the silence, which made others look: 177,105 false suspicions \
with 256 nodes. Now a look ends with the life it was for. With 512 nodes one false accusation remains, which \
141 others hear and which is refuted a millisecond later; why its four pings were lost was not traced, nor \
were the 477 suspicions among 1,000.

What is worse than it could be: bytes and connections of each node grow with n. Each of n new claims goes to \
all, each newcomer gets the table and the store from two peers, and every pair connects anew, which costs \
real handshakes (about 0.8 ms of work and 7 kB each) that are not in the bytes.";

/// The limit of connections by default.
const LINKS: usize = 512;
/// From here on one seed must do.
const LARGE: usize = 300;
/// Records before the storm; each writer's die with it or come again from the others.
const RECORDS: usize = 200;
/// One view by then, or never.
const LIMIT: Duration = Duration::from_secs(120);
/// After one view, for so long it is watched whether it stays one.
const WATCHED: Duration = Duration::from_secs(30);

/// How one storm went.
struct Storm {
    /// From the last restart until all tables are the same and all are alive in them.
    view_s: f64,
    store_s: f64,
    /// Pairs of an observer and a member that is held otherwise than it is, at the end.
    ghosts: u64,
    /// Accusations of lives that ran: first by anyone, then deaths.
    suspected: u64,
    buried: u64,
    /// Sent by each node from the storm's beginning until one view.
    bytes: f64,
    sync_bytes: f64,
    messages: f64,
    connections: f64,
    refused: u64,
}

fn run(args: &Args) -> Result<(), Failure> {
    let (within, down, runs): (u64, u64, u64) =
        (args.get("within")?, args.get("down-ms")?, args.get("runs")?);
    let mut table = Table::new(&[
        "nodes",
        "runs",
        "one view s",
        "worst s",
        "one store s",
        "ghosts",
        "false suspicions",
        "false deaths",
        "kB per node",
        "of it exchanges",
        "messages per node",
        "connections per node",
        "dials refused",
    ]);
    let mut points = Vec::new();
    for nodes in args.list::<usize>("nodes")? {
        let seeds: Vec<u64> = (0..if nodes > LARGE { 1 } else { runs }).collect();
        let name = format!("{nodes} nodes");
        let spans = [Duration::from_secs(within), Duration::from_millis(down)];
        let storms = crew::work(&name, args.get("threads")?, &seeds, |seed| one(nodes, spans, *seed));
        let mean = |of: fn(&Storm) -> f64| storms.iter().map(of).sum::<f64>() / each(storms.len() as u64, 1);
        let sum = |of: fn(&Storm) -> u64| storms.iter().map(of).sum::<u64>().to_string();
        points.push((each(nodes as u64, 1), mean(|storm| storm.view_s)));
        table.row(vec![
            nodes.to_string(),
            storms.len().to_string(),
            format!("{:.2}", mean(|storm| storm.view_s)),
            format!("{:.2}", storms.iter().map(|storm| storm.view_s).fold(0.0, f64::max)),
            format!("{:.2}", mean(|storm| storm.store_s)),
            sum(|storm| storm.ghosts),
            sum(|storm| storm.suspected),
            sum(|storm| storm.buried),
            format!("{:.1}", mean(|storm| storm.bytes) / 1_000.0),
            format!("{:.1}", mean(|storm| storm.sync_bytes) / 1_000.0),
            format!("{:.0}", mean(|storm| storm.messages)),
            format!("{:.0}", mean(|storm| storm.connections)),
            sum(|storm| storm.refused),
        ]);
    }
    let goal = points.iter().map(|(nodes, _)| (*nodes, 10.0)).collect();
    Report {
        name: "restart-storm",
        title: "All nodes restart within seconds",
        command: command_line(COMMAND.name, &format!("--nodes {} --runs {runs}", args.text("nodes"))),
        before: BEFORE.into(),
        table,
        after: AFTER.into(),
        figures: vec![(
            "time",
            Figure {
                title: "From the last restart until one view everywhere",
                x: ("nodes", true),
                y: ("s", true),
                lines: vec![("one view".into(), points, false), ("goal: 10 s".into(), goal, true)],
            },
        )],
    }
    .write(&args.out())
}

fn one(nodes: usize, [within, down]: [Duration; 2], seed: u64) -> Storm {
    let case = Case { nodes, loss: 0.0, dead: 0.0, links: LINKS };
    let mut world = case.world(seed, Duration::from_secs(1));
    let mut names = world.live();
    for number in 0..RECORDS {
        let writer = names[world.rng.usize(..nodes)].clone();
        world.broadcast(&writer, &StateType::DRAIN, &format!("backend-{number}"), "draining");
    }
    world.run(Duration::from_secs(2));
    let (before, conns, begun) = (Totals::of_all(&world), world.connections_made(), world.now);
    world.rng.shuffle(&mut names);
    let mut plan = Vec::new();
    for (place, id) in names.iter().enumerate() {
        let share = u32::try_from(place).unwrap_or(0);
        let at = begun + micros(within * share / u32::try_from(nodes).unwrap_or(1));
        plan.push((at, false, id));
        plan.push((at + micros(down), true, id));
    }
    plan.sort_unstable();
    // When each node went down, and when its present life began.
    let mut lives: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
    for (at, comes, id) in plan {
        world.run(Duration::from_micros(at.saturating_sub(world.now)));
        if comes {
            world.restart(id);
            lives.entry(id.clone()).or_default().1 = world.now;
        } else {
            world.crash(id);
            lives.entry(id.clone()).or_default().0 = world.now;
        }
    }
    let last = world.now;
    let (mut view_s, mut store_s) = (None, None);
    while view_s.is_none() || store_s.is_none() {
        let passed = Duration::from_micros(world.now - last);
        let now = passed.as_secs_f64();
        let (members, store) = world.is_one();
        view_s = view_s.filter(|_| members).or(members.then_some(now));
        store_s = store_s.filter(|_| store).or(store.then_some(now));
        if passed > LIMIT {
            break;
        }
        world.run(Duration::from_millis(20));
    }
    let (load, made) = (Totals::of_all(&world).since(&before), world.connections_made() - conns);
    world.run(WATCHED);
    let ghosts = names.iter().map(|observer| ghosts(&world, observer, &names)).sum();
    let (suspected, buried) = accusations(&world, &lives);
    Storm {
        view_s: view_s.unwrap_or(f64::INFINITY),
        store_s: store_s.unwrap_or(f64::INFINITY),
        ghosts,
        suspected,
        buried,
        bytes: each(load.bytes + load.sync_bytes, nodes),
        sync_bytes: each(load.sync_bytes, nodes),
        messages: each(load.messages, nodes),
        connections: each(made, nodes),
        refused: world.refused.len() as u64,
    }
}

fn ghosts(world: &World, observer: &NodeId, names: &[NodeId]) -> u64 {
    let core = &world.process(observer).core;
    let right = |id: &NodeId| {
        core.node(id).is_some_and(|info| {
            info.status == NodeStatus::Alive && info.epoch == world.process(id).core.local_node().epoch
        })
    };
    names.iter().filter(|id| !right(id)).count() as u64
}

/// Events that hold a life suspect or dead which ran at that time.
fn accusations(world: &World, lives: &BTreeMap<NodeId, (u64, u64)>) -> (u64, u64) {
    let (mut suspected, mut buried) = (0, 0);
    for (at, event) in world.procs.iter().flat_map(|process| &process.record.events) {
        let EventData::Member { info, .. } = &event.data else { continue };
        let present = world.process(&info.node_id);
        let (down, up) = lives[&info.node_id];
        let ran = if info.epoch == present.epoch { *at >= up } else { *at < down };
        if ran {
            suspected += u64::from(event.kind == EventKind::NodeSuspect);
            buried += u64::from(event.kind == EventKind::NodeDead);
        }
    }
    (suspected, buried)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
