//! `simulate load`: what a node sends each second, idle and while the cluster writes, by the cluster's size.

use std::time::Duration;

use super::{
    Args, Command, Failure,
    cases::{Case, Totals, each},
    crew,
    plot::Figure,
    report::{Report, command_line},
    table::Table,
};
use crate::{StateType, sim::World};

pub(super) const COMMAND: Command = Command {
    name: "load",
    about: "bytes and messages of a node each second, by the cluster's size; writes load.*",
    options: &[
        ("nodes", "16,64,256,1024,4096", "sizes of the cluster"),
        ("rate", "100", "updates a second in the whole cluster, where it is not idle"),
        ("loss", "0", "lost datagrams, in percent"),
        ("settle", "4", "seconds before anything is counted"),
        ("span", "8", "seconds that are counted, for up to 1,024 nodes; a quarter of them for more"),
        ("seed", "0", "the sim seed"),
        ("threads", "1", "worlds at a time"),
        ("out", "docs/experiments", "where the page goes"),
    ],
    run,
};

/// What was done, on the page.
const BEFORE: &str = "\
Formed clusters, link delay 0.25 ms, no loss, one sim seed. After 4 s, 8 s are counted (a quarter of both \
for more than 2,000 nodes): idle, and while drawn nodes write 100 small records a second in all, one at a \
time, to 1,000 keys. Bytes are those that the core hands to the transport, in messages and on sync streams. \
QUIC, UDP and IP add to each datagram, and keep-alives of idle connections to each connection: those are not \
in.";
/// What came of it.
const AFTER: &str = "\
Idle, a node sends the same whatever n is: one ping and one answer each second, and a push-pull of hashes \
every 10 s. Beyond 512 members (the limit of connections) it probes neighbours on the ring, to whom a \
connection stands. Before, it probed anybody, and most probes needed a handshake: 0.72 a node and second \
among 1,024 (last column), some 7 kB each, which are not in the bytes here.

Under writes a node sends each update about once (copies per update), with its share of acknowledgements and \
digests: bytes do not depend on n, but on the rate of the whole cluster. memberlist sends each update \
4·⌈log10(n + 1)⌉ times from every node: 8 times at 64, 16 at 1,024 (its retransmit limit), though in packets \
filled with others. Its idle cost is about 270 B/s on plain UDP with headers.

What is worse than it could be: at 100 updates a second, one by one, each update travels in a datagram of \
its own and is acknowledged alone, 180 B in all for a key and value of some 30 B.";

/// The limit of connections by default.
const LINKS: usize = 512;
/// Keys that the writers change in turn.
const KEYS: u64 = 1_000;
/// From here on a quarter of the time must do.
const LARGE: usize = 2_000;

/// What was counted in one world, for each node and second.
struct Load {
    bytes: f64,
    sync_bytes: f64,
    messages: f64,
    records: f64,
    copies: f64,
    /// In the whole cluster.
    suspicions: u64,
    failed: u64,
    spreads: f64,
    dials: f64,
}

fn run(args: &Args) -> Result<(), Failure> {
    let (rate, seed): (u64, u64) = (args.get("rate")?, args.get("seed")?);
    let (settle, span): (u64, u64) = (args.get("settle")?, args.get("span")?);
    let loss: f64 = args.get("loss")?;
    let sizes = args.list::<usize>("nodes")?;
    let jobs: Vec<(usize, u64)> = sizes.iter().flat_map(|nodes| [(*nodes, 0), (*nodes, rate)]).collect();
    let loads = crew::work("load", args.get("threads")?, &jobs, |(nodes, rate)| {
        let part = if *nodes >= LARGE { 4 } else { 1 };
        let case = Case { nodes: *nodes, loss: loss / 100.0, dead: 0.0, links: LINKS };
        measure(&case, seed, *rate, [settle / part, span / part].map(Duration::from_secs))
    });
    let mut table = Table::new(&[
        "nodes",
        "updates/s",
        "B/s",
        "of it exchanges",
        "messages/s",
        "copies per update",
        "B per node and update",
        "suspicions",
        "failed probes",
        "spreads/s",
        "new connections/s",
    ]);
    let mut lines =
        vec![("idle".to_owned(), Vec::new(), false), (format!("{rate} updates/s"), Vec::new(), false)];
    let mut idle = 0.0;
    for ((nodes, rate), load) in jobs.iter().zip(&loads) {
        let all = load.bytes + load.sync_bytes;
        if *rate == 0 {
            idle = all;
        }
        lines[usize::from(*rate > 0)].1.push((each(*nodes as u64, 1), all));
        let of_update = |value: String| if *rate > 0 { value } else { "–".into() };
        table.row(vec![
            nodes.to_string(),
            rate.to_string(),
            format!("{all:.0}"),
            format!("{:.0}", load.sync_bytes),
            format!("{:.1}", load.messages),
            of_update(format!("{:.3}", load.copies)),
            of_update(format!("{:.0}", (all - idle) / load.records.max(1e-9))),
            load.suspicions.to_string(),
            load.failed.to_string(),
            format!("{:.2}", load.spreads),
            format!("{:.3}", load.dials),
        ]);
    }
    let goal = lines[0].1.iter().map(|(nodes, _)| (*nodes, 600.0)).collect();
    lines.push(("goal, idle: 600 B/s".into(), goal, true));
    Report {
        name: "load",
        title: "What a node sends each second",
        command: command_line(COMMAND.name, &format!("--nodes {}", args.text("nodes"))),
        before: BEFORE.into(),
        table,
        after: AFTER.into(),
        figures: vec![(
            "bytes",
            Figure {
                title: "Bytes sent by each node and second",
                x: ("nodes", true),
                y: ("B/s", true),
                lines,
            },
        )],
    }
    .write(&args.out())
}

fn measure(case: &Case, seed: u64, rate: u64, [settle, span]: [Duration; 2]) -> Load {
    let mut world = case.world(seed, Duration::ZERO);
    let mut writes = 0;
    write_for(&mut world, rate, settle, &mut writes);
    let (before, linked) = (Totals::of(&world), world.connections_made());
    writes = 0;
    write_for(&mut world, rate, span, &mut writes);
    let load = Totals::of(&world).since(&before);
    let span_s = usize::try_from(span.as_secs()).unwrap_or(1);
    let node_seconds = case.nodes * span_s;
    Load {
        bytes: each(load.bytes, node_seconds),
        sync_bytes: each(load.sync_bytes, node_seconds),
        messages: each(load.messages, node_seconds),
        records: each(writes, span_s),
        copies: each(load.copies, node_seconds) / each(writes.max(1), span_s),
        suspicions: load.suspicions,
        failed: load.failed,
        spreads: each(load.spreads, span_s),
        dials: each(world.connections_made() - linked, node_seconds),
    }
}

/// Lets time pass while drawn nodes write, at even intervals.
fn write_for(world: &mut World, rate: u64, span: Duration, writes: &mut u64) {
    if rate == 0 {
        return world.run(span);
    }
    let live = world.live();
    for _ in 0..rate * span.as_secs() {
        let node = live[world.rng.usize(..live.len())].clone();
        let key = format!("backend-{}", world.rng.u64(..KEYS));
        world.broadcast(&node, &StateType::HEALTH, &key, &format!("up, check {writes:>7}"));
        *writes += 1;
        world.run(Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX));
    }
}
