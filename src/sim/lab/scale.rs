//! `simulate scale`: how large a cluster this program can live through, how fast, and in how much memory.

use std::time::Duration;

use super::{
    Args, Command, Failure,
    cases::{Case, Totals, each, peak_memory},
    plot::Figure,
    report::{Report, command_line},
    table::Table,
};
use crate::{StateType, driver::clock, sim::World};

pub(super) const COMMAND: Command = Command {
    name: "scale",
    about: "how fast large clusters live, and in how much memory; one core, one world at a time",
    options: &[
        (
            "nodes",
            "128,1000,4096,10000",
            "sizes of the cluster, the smallest first: memory counts by its peak",
        ),
        ("span", "30", "virtual seconds for 1,000 nodes; fewer for more, and at most four times as many"),
        ("writes", "10", "updates that the second half of that time brings, one by one"),
        ("seed", "0", "the sim seed"),
        ("out", "docs/experiments", "where the page goes"),
    ],
    run,
};

const BEFORE: &str = "\
Formed clusters with the limit of 512 connections, link delay 0.25 ms, no loss, one core. First nothing \
happens but probes, push-pulls, gossip ticks and keep-alives; then a drawn node writes now and then. \
*Virtual to real*: seconds of the cluster's life for one of this machine's, without the forming. *Memory*: \
the program's peak for each node.";

const AFTER: &str = "\
Goal: 1,000 nodes at ten times real time or better, and 10,000 nodes at all.\n\n\
Memory for each node grows with the number of nodes, since each has a table of all and its connections; \
rows that say the same are one in memory.";

/// A connection limit, and where `span` counts in full.
const LINKS: usize = 512;
const FULL: usize = 1_000;

/// One half of a world's life.
struct Part {
    ratio: f64,
    messages: f64,
    steps: f64,
}

fn run(args: &Args) -> Result<(), Failure> {
    let (span, writes, seed): (u64, u64, u64) = (args.get("span")?, args.get("writes")?, args.get("seed")?);
    let mut table = Table::new(&[
        "nodes",
        "formed in s",
        "idle: virtual to real",
        "messages per node and s",
        "steps/s",
        "with writes: virtual to real",
        "messages per node and s",
        "memory per node, kB",
    ]);
    let mut lines = [("idle", Vec::new()), ("with writes", Vec::new())];
    for nodes in args.list::<usize>("nodes")? {
        let begun = clock::monotonic();
        let case = Case { nodes, loss: 0.0, dead: 0.0, links: LINKS };
        let mut world = case.world(seed, Duration::ZERO);
        let formed = begun.elapsed();
        // Whoever forms a cluster starts all timers at once: the first period is not counted.
        world.run(Duration::from_secs(1));
        let half = (span * FULL as u64 / nodes as u64).clamp(2, span * 4);
        let idle = live(&mut world, half, 0);
        let busy = live(&mut world, half, writes);
        let memory = peak_memory().map_or_else(String::new, |peak| format!("{:.0}", each(peak, nodes) / 1e3));
        for ((_, points), part) in lines.iter_mut().zip([&idle, &busy]) {
            points.push((each(nodes as u64, 1), part.ratio));
        }
        table.row(vec![
            nodes.to_string(),
            format!("{:.1}", formed.as_secs_f64()),
            format!("{:.1}", idle.ratio),
            format!("{:.1}", idle.messages),
            format!("{:.0}", idle.steps),
            format!("{:.1}", busy.ratio),
            format!("{:.1}", busy.messages),
            memory,
        ]);
        eprintln!("{nodes} nodes: done");
    }
    let lines = lines.into_iter().map(|(name, points)| (name.to_owned(), points, false)).collect();
    Report {
        name: "scale",
        title: "How large a simulated cluster may be",
        command: command_line(COMMAND.name, &format!("--nodes {} --span {span}", args.text("nodes"))),
        before: BEFORE.into(),
        table,
        after: AFTER.into(),
        figures: vec![(
            "speed",
            Figure {
                title: "Virtual seconds for one real second, on one core",
                x: ("nodes", true),
                y: ("virtual to real", true),
                lines,
            },
        )],
    }
    .write(&args.out())
}

/// Lets so many seconds pass with so many writes, evenly.
fn live(world: &mut World, seconds: u64, writes: u64) -> Part {
    let (before, steps, begun) = (Totals::of(world), world.steps, clock::monotonic());
    let wait = Duration::from_secs(seconds) / u32::try_from(writes).unwrap_or(u32::MAX).max(1);
    for number in 0..writes.max(1) {
        if writes > 0 {
            let node = world.names[world.rng.usize(..world.names.len())].clone();
            world.broadcast(&node, &StateType::HEALTH, &format!("backend-{number}"), "up");
        }
        world.run(wait);
    }
    let (taken, nodes) = (begun.elapsed().as_secs_f64(), world.names.len());
    let messages = Totals::of(world).since(&before).messages;
    let seconds = Duration::from_secs(seconds).as_secs_f64();
    Part {
        ratio: seconds / taken,
        messages: each(messages, nodes) / seconds,
        steps: each(world.steps - steps, 1) / taken,
    }
}
