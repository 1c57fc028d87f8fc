//! `simulate dissemination`: one small update from one node, until every live node has it, beside the model
//! of the delegated spread and beside gossip by ticks.

use std::time::Duration;

use super::{
    Args, Command, Failure,
    cases::{Case, Line, Totals, each, peak_memory, some_of},
    crew,
    plot::Figure,
    report::{Report, command_line},
    table::{Table, percentile, sorted},
    ticks,
};
use crate::{StateType, sim::World};

pub(super) const COMMAND: Command = Command {
    name: "dissemination",
    about: "one small update to all, by size, loss and undetected dead nodes; writes dissemination.*",
    options: &[
        ("nodes", "8,32,128,512,1000,4096,10000", "sizes of the cluster"),
        ("loss", "0,1,5", "lost datagrams, in percent"),
        ("dead", "0,1,5", "nodes that crash just before, in percent"),
        ("runs", "20", "updates for each case of less than 1,000 nodes; half of them for 1,000"),
        ("goal-runs", "100", "updates for the goal's case: 1,000 nodes, 1 % lost, 1 % dead"),
        ("large-runs", "1", "updates for some cases of 4,096 nodes; one for more"),
        ("threads", "1", "worlds at a time"),
        ("out", "docs/experiments", "where the page goes"),
    ],
    run,
};

/// What was done, on the page.
const BEFORE: &str = "\
A node of a formed cluster writes one record of 16 bytes; the time is until every node that runs has it, \
looked at every 25 µs. Links: 0.25 ms ± 20 % each way, and each datagram is lost with the given chance. The \
dead crash at the same moment, and nobody knows; shares that make no whole node are left out. Connections: \
all, up to the default limit of 512; beyond it those that the core dials ahead of need (for 1,000 also a \
full mesh, links 999). Each update has a world of its own, but for those without dead nodes and at most 1 % \
loss: up to ten in one. With few runs p99 is the worst. Copies: hand-offs sent for each live node in the \
first 25 ms, repeats and those to the dead included; duplicates: those that came to a node which had it. \
Bytes: sent by each live node, less what it sends when idle, in the same 25 ms; and until all have had their \
gossip tick. Given up: hand-offs left to gossip after five tries, nearly all to the dead.

References: the *model* is the delegated spread without this core, for k = 4 and k = 8: median / 99th \
percentile or worst, copies. *Ticks* is gossip by memberlist's rule, simulated beside it with the same \
losses: 200 ms, 3 peers, each node sends 4·⌈log10(n + 1)⌉ times, then never again (never: some were not \
reached so; memberlist leaves those to its push-pull).";
/// What came of it.
const AFTER: &str = "\
The spread takes milliseconds where ticks take hundreds of them, and about one copy for each node where \
ticks take 4·⌈log10(n + 1)⌉. Bytes with digests are two thirds more than without: each node tells two others \
once what it has got. At 5 % dead the most copies in excess are those to the dead: a range of one that does \
not answer is tried five times.

Found on the way and mended, with 20 updates each (the last: 100 and 200), before and after:

| nodes | loss %, dead % | fault | before: p50, worst, within 10 ms | after |
| --- | --- | --- | --- | --- |
| 128 | 5, 5 | of two in a range the dead one was asked again and again, the live one that had lost a packet \
never; and the second try of the same node waited twice as long | 6.5 ms, 2,606 ms, 15 of 20 | 6.5 ms, 8.8 \
ms, 20 of 20 |
| 1,000 | 1, 1 | beyond 512 members connections were kept to whom a node had met first, and relays of small \
ranges had to dial | 1,002 ms, 1,052 ms, 0 of 20 | 3.2 ms, 8.7 ms, 20 of 20 |
| 1,000 | 1, 1 | a relay that knew nobody in a range had to dial; now a neighbour of the range serves it, \
who knows all in it | 4.8 ms, 208 ms, 98 of 100 | 4.8 ms, 8.7 ms, 200 of 200 |

Memory of this simulation for each node, at its peak: MEMORY.";

/// The limit of connections by default.
const LINKS: usize = 512;
/// The goal's cluster, from which on runs are fewer; where `large-runs` counts; and where one run must do.
const SIZES: [usize; 3] = [1_000, 2_000, 8_000];
/// Cases of clusters of these sizes: percent lost, percent dead.
const LARGE_CASES: &[(u32, u32)] = &[(0, 0), (1, 1), (1, 5), (5, 5)];
const HUGE_CASES: &[(u32, u32)] = &[(0, 0), (1, 1), (1, 5)];
/// Updates in one world, where nobody is dead: forming it is what takes long.
const UPDATES: u64 = 10;
/// All hand-offs between connected nodes have come to their end by then, and no suspicion has begun.
const SPREAD_OVER: Duration = Duration::from_millis(25);
/// By then every node has had a gossip tick.
const TICKS_OVER: Duration = Duration::from_millis(260);
/// An update that has not come everywhere by then counts as lost.
const LIMIT: Duration = Duration::from_secs(60);

/// The models' results: nodes, percent lost, percent dead, median and worst or 99th percentile in ms, copies.
const MODEL: &[(usize, u32, u32, &str)] = &[
    (1_000, 0, 0, "1.13 / 1.17, 1.00"),
    (1_000, 1, 0, "3.4 / 7.1, 1.04 (k = 4)"),
    (1_000, 1, 1, "3.1 / 6.7, 1.10"),
    (1_000, 1, 5, "4.8 / 8.8, 1.43"),
    (1_000, 5, 1, "5.1 / 8.8, 1.30"),
    (10_000, 0, 0, "1.43 / 1.46, 1.00"),
    (10_000, 1, 0, "5.5 / 5.6, 1.06 (k = 4)"),
    (10_000, 1, 1, "5.3 / 7.1, 1.12"),
    (10_000, 1, 5, "9.5 / 18, 1.32 (k = 4)"),
];

/// How one update fared.
struct Update {
    all_ms: f64,
    copies: f64,
    duplicates: f64,
    /// Bytes sent by each live node until the spread was over.
    bytes: f64,
    /// The same until every node has had its gossip tick, where nobody is dead.
    with_digests: Option<f64>,
    given_up: u64,
}

fn run(args: &Args) -> Result<(), Failure> {
    let runs: [u64; 3] = [args.get("runs")?, args.get("goal-runs")?, args.get("large-runs")?];
    let (losses, deads) = (args.list::<u32>("loss")?, args.list::<u32>("dead")?);
    let mut table = Table::new(&[
        "nodes",
        "links",
        "loss %",
        "dead %",
        "runs",
        "p50 ms",
        "p99 ms",
        "worst ms",
        "within 10 ms",
        "copies",
        "duplicates",
        "bytes",
        "with digests",
        "given up",
        "model",
        "ticks p50 ms",
        "ticks p99 ms",
        "ticks copies",
    ]);
    let mut lines: Vec<Line> = Vec::new();
    let mut memory = Vec::new();
    for nodes in args.list::<usize>("nodes")? {
        for (links, loss, dead) in settings(nodes, &losses, &deads) {
            let case = Case { nodes, loss: share(loss), dead: share(dead), links };
            if !case.is_possible() {
                continue;
            }
            let count = updates_of(&case, (loss, dead), runs);
            let name = format!("{nodes} nodes, loss {loss} %, dead {dead} %");
            let updates = measure(&name, &case, count, args.get("threads")?);
            let seeds: Vec<u64> = (0..count).collect();
            let ticks = crew::work("ticks", 1, &seeds, |seed| ticks::spread(&case, *seed));
            row(&mut table, &case, (loss, dead), &updates, &ticks);
            if (loss, dead) == (0, 0) || (loss, dead) == (1, 1) || (loss, dead) == (5, 5) {
                let all = sorted(updates.iter().map(|update| update.all_ms).collect());
                let by_ticks = sorted(ticks.iter().map(|spread| spread.all_ms).collect());
                let of = if links > LINKS { ", full mesh" } else { "" };
                let what = format!("loss {loss} %, dead {dead} %");
                add(&mut lines, &format!("p50, {what}{of}"), nodes, percentile(&all, 50.0), false);
                add(&mut lines, &format!("ticks, {what}{of}"), nodes, percentile(&by_ticks, 50.0), true);
            }
        }
        if let Some(peak) = peak_memory() {
            let of_each = each(peak, nodes) / 1_024.0 / args.get::<f64>("threads")?;
            memory.push(format!("{of_each:.0} KiB of {nodes}"));
        }
    }
    Report {
        name: "dissemination",
        title: "One small update to every node",
        command: command_line(COMMAND.name, &format!("--nodes {}", args.text("nodes"))),
        before: BEFORE.into(),
        table,
        after: AFTER.replace("MEMORY", &memory.join(", ")),
        figures: vec![(
            "time",
            Figure {
                title: "Until every live node has it (link delay 0.25 ms)",
                x: ("nodes", true),
                y: ("ms", true),
                lines,
            },
        )],
    }
    .write(&args.out())
}

/// Limits of connections, losses and dead nodes to be tried at that size.
fn settings(nodes: usize, losses: &[u32], deads: &[u32]) -> Vec<(usize, u32, u32)> {
    let cases = losses.iter().flat_map(|loss| deads.iter().map(|dead| (*loss, *dead)));
    let among = |case: &(u32, u32)| match nodes {
        _ if nodes >= SIZES[2] => HUGE_CASES.contains(case),
        _ if nodes >= SIZES[1] => LARGE_CASES.contains(case),
        _ => true,
    };
    let mut settings: Vec<_> = cases.filter(among).map(|(loss, dead)| (LINKS, loss, dead)).collect();
    if nodes == SIZES[0] {
        let meshed: Vec<_> = settings.iter().map(|(_, loss, dead)| (nodes, *loss, *dead)).collect();
        settings.extend(meshed.into_iter().filter(|(_, loss, dead)| loss == dead && *loss < 5));
    }
    settings
}

/// Large worlds take long.
fn updates_of(case: &Case, percent: (u32, u32), [runs, goal_runs, large_runs]: [u64; 3]) -> u64 {
    match case.nodes {
        nodes if nodes >= SIZES[2] => 1,
        nodes if nodes >= SIZES[1] => large_runs,
        nodes if nodes >= SIZES[0] && percent == (1, 1) && case.links == LINKS => goal_runs,
        nodes if nodes >= SIZES[0] => (runs / 2).max(1),
        _ => runs,
    }
}

fn share(percent: u32) -> f64 {
    f64::from(percent) / 100.0
}

/// Updates in as many worlds as are needed.
fn measure(name: &str, case: &Case, count: u64, threads: usize) -> Vec<Update> {
    // False suspicions and their refutations would be counted with it, where much is lost.
    let each = if case.dead > 0.0 || case.loss > 0.02 { 1 } else { UPDATES.min(count) };
    let seeds: Vec<u64> = (0..count.div_ceil(each)).collect();
    let updates = crew::work(name, threads, &seeds, |seed| in_one_world(case, *seed, each));
    updates.into_iter().flatten().collect()
}

fn in_one_world(case: &Case, seed: u64, updates: u64) -> Vec<Update> {
    let mut world = case.world(seed, Duration::from_millis(10));
    let begun = Totals::of(&world);
    world.run(TICKS_OVER);
    let idle = Totals::of(&world).since(&begun);
    for node in some_of(&mut world, case.dead_nodes()) {
        world.crash(&node);
    }
    (0..updates).map(|number| one_update(&mut world, number, &idle)).collect()
}

fn one_update(world: &mut World, number: u64, idle: &Totals) -> Update {
    let live = world.live();
    let origin = live[world.rng.usize(..live.len())].clone();
    let key = format!("backend-{number}");
    let before = Totals::of(world);
    let begun = world.now;
    world.broadcast(&origin, &StateType::DRAIN, &key, "draining: true  ");
    let mut missing: Vec<_> = live.iter().map(|id| world.pid_of(id)).collect();
    let mut spread = None;
    let mut all = None;
    loop {
        let passed = Duration::from_micros(world.now - begun);
        missing.retain(|pid| world.procs[*pid].core.get(&StateType::DRAIN, &key).is_none());
        if missing.is_empty() && all.is_none() {
            all = Some(passed);
        }
        if passed >= SPREAD_OVER && spread.is_none() {
            spread = Some(Totals::of(world).since(&before));
        }
        if passed >= TICKS_OVER && (all.is_some() || passed >= LIMIT) {
            break;
        }
        let look = match passed.as_micros() {
            _ if all.is_some() && spread.is_some() => TICKS_OVER.saturating_sub(passed),
            0..20_000 => Duration::from_micros(25),
            20_000..200_000 => Duration::from_micros(250),
            _ => Duration::from_millis(2),
        };
        world.run(look);
    }
    let (after, nodes) = (Totals::of(world).since(&before), live.len());
    let spread = spread.unwrap_or(after);
    let idle_bytes = each(idle.bytes, world.procs.len());
    let passed = Duration::from_micros(world.now - begun).as_secs_f64();
    let idle_for = |seconds: f64| idle_bytes * seconds / TICKS_OVER.as_secs_f64();
    let with_digests = each(after.bytes, nodes) - idle_for(passed);
    Update {
        all_ms: all.map_or(f64::INFINITY, |all| all.as_secs_f64() * 1_000.0),
        copies: each(spread.copies, nodes),
        duplicates: each(spread.duplicates, nodes),
        bytes: each(spread.bytes, nodes) - idle_for(SPREAD_OVER.as_secs_f64()),
        with_digests: (nodes == world.procs.len()).then_some(with_digests),
        given_up: after.given_up,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of runs")]
fn row(
    table: &mut Table,
    case: &Case,
    (loss, dead): (u32, u32),
    updates: &[Update],
    ticks: &[ticks::Spread],
) {
    let all = sorted(updates.iter().map(|update| update.all_ms).collect());
    let by_ticks = sorted(ticks.iter().map(|spread| spread.all_ms).collect());
    let mean = |of: &dyn Fn(&Update) -> f64| updates.iter().map(of).sum::<f64>() / updates.len() as f64;
    let model = MODEL.iter().find(|(nodes, l, d, _)| (*nodes, *l, *d) == (case.nodes, loss, dead));
    let digests: Vec<f64> = updates.iter().filter_map(|update| update.with_digests).collect();
    let digests = if digests.is_empty() {
        "–".into()
    } else {
        format!("{:.0}", digests.iter().sum::<f64>() / digests.len() as f64)
    };
    let within = all.iter().filter(|ms| **ms <= 10.0).count();
    table.row(vec![
        case.nodes.to_string(),
        case.links.min(case.nodes - 1).to_string(),
        loss.to_string(),
        dead.to_string(),
        updates.len().to_string(),
        format!("{:.2}", percentile(&all, 50.0)),
        format!("{:.2}", percentile(&all, 99.0)),
        format!("{:.2}", percentile(&all, 100.0)),
        format!("{within} of {}", all.len()),
        format!("{:.3}", mean(&|update| update.copies)),
        format!("{:.3}", mean(&|update| update.duplicates)),
        format!("{:.0}", mean(&|update| update.bytes)),
        digests,
        updates.iter().map(|update| update.given_up).sum::<u64>().to_string(),
        model.map_or("–", |(.., text)| *text).to_owned(),
        ms(percentile(&by_ticks, 50.0)),
        ms(percentile(&by_ticks, 99.0)),
        format!("{:.1}", ticks.iter().map(|spread| spread.copies).sum::<f64>() / ticks.len() as f64),
    ]);
}

/// Milliseconds, if ever.
fn ms(value: f64) -> String {
    if value.is_finite() { format!("{value:.0}") } else { "never".into() }
}

#[expect(clippy::cast_precision_loss, reason = "a count of nodes")]
fn add(lines: &mut Vec<Line>, name: &str, nodes: usize, ms: f64, reference: bool) {
    match lines.iter_mut().find(|(of, ..)| of == name) {
        Some((_, points, _)) => points.push((nodes as f64, ms)),
        None => lines.push((name.to_owned(), vec![(nodes as f64, ms)], reference)),
    }
}
