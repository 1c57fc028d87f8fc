//! `simulate corroboration`: how short may a suspicion be, and how many must share it, before healthy nodes
//! are taken for dead? Every setting meets the same troubles and crashes; and what `fast-detection` costs at
//! several sizes.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Args, Command, Failure,
    cases::{Line, Totals, some_of},
    crew,
    plot::Figure,
    report::{Report, command_line},
    table::{Table, percentile, sorted},
};
use crate::{
    EventKind, NodeId, NodeStatus,
    proto::{ProtocolConfig, Rule},
    sim::World,
};

pub(super) const COMMAND: Command = Command {
    name: "corroboration",
    about: "how short a suspicion, shared by how many, before healthy nodes are taken for dead",
    options: &[
        ("nodes", "32", "members"),
        ("observers", "1,2,3,4", "how many must suspect a node for the shortest suspicion"),
        ("suspicions-ms", "250,500,1000,2000,3000", "shortest suspicions, in ms"),
        ("span", "60s", "for how long each trouble lasts"),
        ("seeds", "0..1", "sim seeds of each trouble"),
        ("crashes", "20", "crashes of each setting, each in a world of its own"),
        ("sizes", "8,32,64,128,256", "sizes of clusters for fast-detection"),
        ("threads", "1", "worlds at a time"),
        ("out", "docs/experiments", "the directory for the page"),
    ],
    run,
};

/// What a setting stands on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Base {
    Defaults,
    /// Defaults, and suspicions convict by time and hearsay alone.
    Unchecked,
    /// `fast-detection`.
    Fast,
}

impl Base {
    const ALL: [Self; 3] = [Self::Unchecked, Self::Defaults, Self::Fast];

    const fn name(self) -> &'static str {
        match self {
            Self::Defaults => "defaults",
            Self::Unchecked => "defaults without the self-check",
            Self::Fast => "fast-detection",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Setting {
    base: Base,
    /// Accusers, the first included, that make a suspicion as short as it gets, and how short; or the
    /// formula's.
    held_by: Option<(usize, u64)>,
}

/// What happens to a cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    /// 5 % of all datagrams are lost.
    Loss,
    /// An eighth of the members is blocked for 2 s, free for 64 ms, and so on.
    Blocked,
    /// One member loses that share of its packets, in percent.
    Half(u32),
    Crash,
}

const TROUBLES: [Trouble; 4] = [Trouble::Loss, Trouble::Blocked, Trouble::Half(50), Trouble::Half(80)];

#[derive(Clone, Copy)]
struct Job {
    setting: Setting,
    trouble: Trouble,
    nodes: usize,
    seed: u64,
}

/// What came of one world.
#[derive(Clone, Copy, Default)]
struct Outcome {
    /// Deaths of members in good health, counted once for each node that was told so.
    false_deaths: u64,
    /// Seconds from a crash until all know of it.
    known: f64,
    /// Bytes and messages per node and second, before the crash.
    sent: (f64, f64),
}

fn run(args: &Args) -> Result<(), Failure> {
    let mut settings = Vec::new();
    let (observers, waits): (Vec<usize>, Vec<u64>) = (args.list("observers")?, args.list("suspicions-ms")?);
    for base in Base::ALL {
        for observers in &observers {
            settings.extend(waits.iter().map(|wait| Setting { base, held_by: Some((*observers, *wait)) }));
        }
    }
    settings.extend([Base::Defaults, Base::Fast].map(|base| Setting { base, held_by: None }));
    let (nodes, crashes): (usize, u64) = (args.get("nodes")?, args.get("crashes")?);
    let seeds = args.seeds()?;
    let mut jobs = Vec::new();
    for setting in &settings {
        let job = |trouble, nodes, seed| Job { setting: *setting, trouble, nodes, seed };
        for trouble in TROUBLES {
            jobs.extend(seeds.clone().map(|seed| job(trouble, nodes, seed)));
        }
        let of_size = |size: usize| (12_800 / size as u64).clamp(20, 100);
        let crashes = if *setting == SHIPPED { of_size(nodes) } else { crashes };
        jobs.extend((0..crashes).map(|seed| job(Trouble::Crash, nodes, seed)));
        if *setting == SHIPPED {
            let sizes: Vec<usize> = args.list("sizes")?;
            let other = sizes.into_iter().filter(|size| *size != nodes);
            jobs.extend(
                other.flat_map(|size| (0..of_size(size)).map(move |seed| job(Trouble::Crash, size, seed))),
            );
        }
    }
    let span = args.span("span")?;
    let outcomes = crew::work("worlds", args.get("threads")?, &jobs, |job| live(*job, span));
    let outcomes: Vec<_> = jobs.into_iter().zip(outcomes).collect();
    report(args, &settings, &outcomes)?.write(&args.out())
}

/// `fast-detection` as users get it.
const SHIPPED: Setting = Setting { base: Base::Fast, held_by: None };

/// The world of a job, before its trouble.
fn world_of(job: Job) -> World {
    let mut world = World::for_counting(job.seed);
    let plain = ProtocolConfig { ..world.settings.clone() };
    let mut settings = if job.setting.base == Base::Fast { plain.detecting_fast() } else { plain };
    if job.setting.base == Base::Unchecked {
        settings.without.insert(Rule::VerifyFirst);
    }
    if let Some((observers, wait)) = job.setting.held_by {
        settings.confirmations = observers.saturating_sub(1);
        settings.suspicion = Some(Duration::from_millis(wait));
    }
    world.settings = settings;
    world.start_formed(job.nodes);
    let phase = world.rng.u64(5_000..7_000);
    world.run(Duration::from_millis(phase));
    world
}

fn live(job: Job, span: Duration) -> Outcome {
    let mut world = world_of(job);
    let sent = sent(&world);
    let (begun, mut unwell) = (world.now, BTreeSet::new());
    let mut known = f64::NAN;
    match job.trouble {
        Trouble::Loss => {
            world.link.loss = 0.05;
            world.run(span);
        }
        Trouble::Blocked => {
            unwell.extend(some_of(&mut world, job.nodes / 8));
            block_in_turns(&mut world, &unwell, span);
        }
        Trouble::Half(percent) => {
            unwell.extend(some_of(&mut world, 1));
            for node in &unwell {
                world.half_connect(node, f64::from(percent) / 100.0);
            }
            world.run(span);
        }
        Trouble::Crash => {
            unwell.extend(some_of(&mut world, 1));
            for node in &unwell {
                world.crash(node);
                let taken =
                    world.run_until(Duration::from_secs(120), |world| world.all_hold(node, NodeStatus::Dead));
                known = taken.as_secs_f64();
            }
        }
    }
    Outcome { false_deaths: deaths_of_the_well(&world, begun, &unwell), known, sent }
}

fn block_in_turns(world: &mut World, blocked: &BTreeSet<NodeId>, span: Duration) {
    let end = world.now + u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    while world.now < end {
        for node in blocked {
            world.block(node, true);
        }
        world.run(Duration::from_secs(2));
        for node in blocked {
            world.block(node, false);
        }
        world.run(Duration::from_millis(64));
    }
}

fn deaths_of_the_well(world: &World, since: u64, unwell: &BTreeSet<NodeId>) -> u64 {
    let events = world.procs.iter().flat_map(|process| &process.record.events);
    let deaths = events.filter(|(at, event)| *at >= since && event.kind == EventKind::NodeDead);
    deaths.filter(|(_, event)| event.node_id.as_ref().is_some_and(|dead| !unwell.contains(dead))).count()
        as u64
}

/// Bytes and messages per node and second.
fn sent(world: &World) -> (f64, f64) {
    let totals = Totals::of_all(world);
    let node_seconds = Duration::from_micros(world.now).as_secs_f64() * as_f64(world.names.len() as u64);
    (as_f64(totals.bytes + totals.sync_bytes) / node_seconds, as_f64(totals.messages) / node_seconds)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The worlds of one setting.
struct Sum {
    false_deaths: [u64; TROUBLES.len()],
    crash_deaths: u64,
    known: Vec<f64>,
    bytes: f64,
    messages: f64,
}

fn sum(outcomes: &[(Job, Outcome)], setting: Setting, nodes: usize) -> Sum {
    let of = |trouble: Trouble| {
        let of = move |(job, _): &&(Job, Outcome)| {
            (job.setting, job.trouble, job.nodes) == (setting, trouble, nodes)
        };
        outcomes.iter().filter(of).map(|(_, outcome)| outcome)
    };
    let deaths = |trouble| of(trouble).map(|outcome| outcome.false_deaths).sum();
    let crashes = of(Trouble::Crash).count() as u64;
    Sum {
        false_deaths: TROUBLES.map(deaths),
        crash_deaths: deaths(Trouble::Crash),
        known: sorted(of(Trouble::Crash).map(|outcome| outcome.known).collect()),
        bytes: of(Trouble::Crash).map(|outcome| outcome.sent.0).sum::<f64>() / as_f64(crashes),
        messages: of(Trouble::Crash).map(|outcome| outcome.sent.1).sum::<f64>() / as_f64(crashes),
    }
}

fn report<'a>(args: &Args, settings: &[Setting], outcomes: &[(Job, Outcome)]) -> Result<Report<'a>, Failure> {
    let nodes = args.get("nodes")?;
    let mut table = Table::new(&[
        "on",
        "observers",
        "shortest suspicion",
        "false deaths, 5 % loss",
        "an eighth blocked",
        "one loses 50 %",
        "one loses 80 %",
        "known to all p50 s",
        "p99",
        "B per node and s",
    ]);
    let mut lines: Vec<Line> = Vec::new();
    for setting in settings {
        let sum = sum(outcomes, *setting, nodes);
        let [loss, blocked, half, most] = sum.false_deaths.map(|deaths| deaths.to_string());
        let (observers, wait) = setting
            .held_by
            .map_or(("4".into(), "the formula's".into()), |(n, ms)| (n.to_string(), format!("{ms} ms")));
        table.row(vec![
            setting.base.name().into(),
            observers,
            wait,
            loss,
            blocked,
            half,
            most,
            format!("{:.2}", percentile(&sum.known, 50.0)),
            format!("{:.2}", percentile(&sum.known, 99.0)),
            format!("{:.0}", sum.bytes),
        ]);
        let Some((observers @ (1 | 4), _)) = setting.held_by else { continue };
        let name = format!("{}, {observers}", setting.base.name());
        if lines.last().is_none_or(|(last, ..)| *last != name) {
            lines.push((name, Vec::new(), false));
        }
        if let Some((_, points, _)) = lines.last_mut() {
            points.push((
                percentile(&sum.known, 50.0),
                as_f64(sum.false_deaths.iter().sum::<u64>() + sum.crash_deaths),
            ));
        }
    }
    let given = ["nodes", "observers", "suspicions-ms", "span", "seeds", "crashes", "sizes"];
    let given: Vec<_> = given.iter().map(|name| format!("--{name} {}", args.text(name))).collect();
    Ok(Report {
        name: COMMAND.name,
        title: "How short a suspicion may be, and what fast detection costs",
        command: command_line(COMMAND.name, &given.join(" ")),
        before: before(args),
        table,
        after: format!("{SIZES}\n\n{}\n{AFTER}", of_sizes(args, outcomes)?),
        figures: vec![(
            "deaths",
            Figure {
                title: "False deaths against the time to find a crash, by setting and observers",
                x: ("a crash is known to all, p50, s", false),
                y: ("false deaths under all four troubles", false),
                lines,
            },
        )],
    })
}

/// chitchat with gossip every 200 ms, by nodes: a crash known to all (median, ms), bytes per node and second.
const CHITCHAT: [(usize, &str, &str); 4] =
    [(8, "1.34", "4,612"), (32, "1.61", "9,665"), (64, "1.57", "15,000"), (128, "", "26,300")];

fn of_sizes(args: &Args, outcomes: &[(Job, Outcome)]) -> Result<String, Failure> {
    let mut table = Table::new(&[
        "nodes",
        "crashes",
        "known to all p50 s",
        "p99",
        "max",
        "false deaths",
        "B per node and s",
        "messages",
        "chitchat: known to all p50 s",
        "B per node and s",
    ]);
    for size in args.list::<usize>("sizes")? {
        let sum = sum(outcomes, SHIPPED, size);
        let peer = CHITCHAT.iter().find(|(nodes, ..)| *nodes == size).map_or(("", ""), |(_, s, b)| (s, b));
        let mut row = vec![size.to_string(), sum.known.len().to_string()];
        row.extend([50.0, 99.0, 100.0].map(|part| format!("{:.2}", percentile(&sum.known, part))));
        row.extend([sum.crash_deaths.to_string(), format!("{:.0}", sum.bytes)]);
        row.push(format!("{:.1}", sum.messages));
        row.extend([peer.0.into(), peer.1.into()]);
        table.row(row);
    }
    Ok(table.markdown())
}

fn before(args: &Args) -> String {
    format!(
        "{} members, hops of 0.2 to 0.3 ms. *Observers*: a suspicion that fewer share lasts longer, up to six times \
         the shortest (with one observer it is never longer). Each setting meets four troubles for {} s, in the worlds \
         of the sim seeds {}: 5 % of all datagrams lost; an eighth of the members unable to send or receive for 2 s, \
         free for 64 ms, and so on; one member that loses 50 % or 80 % of what it sends and is sent. A *false death* is \
         one node's event that a member is dead which runs and was neither blocked nor half connected. Then {} crashes, \
         each in a world of its own, until every other member knows; the bytes are those of the idle time before, \
         without QUIC's own. *defaults*: ping interval 1 s, time-out 500 ms. *fast-detection*: 200 ms, 100 ms. *Without \
         the self-check* a suspect is dead when its time is over or when anybody says so, and only its refutation \
         saves it.",
        args.text("nodes"),
        args.text("span").trim_end_matches('s'),
        args.text("seeds"),
        args.text("crashes"),
    )
}

const SIZES: &str = "## `fast-detection` as it ships, by size";

const AFTER: &str = "\
chitchat: version 0.13.0, gossip every 200 ms, phi 8, measured on one machine over loopback, medians of 3 to \
5 crashes; its bytes include 42 of headers a packet and its packets are not encrypted, while ours are the \
core's messages before QUIC and UDP add theirs: compare how they grow, and count the headers in by the \
messages.\n\n\
What it shows:\n\n\
- With the self-check no setting buried anybody in good health, however short the suspicion and however few \
shared it. Without it, observers do what they can: a quarter of a second shared by one buries the healthy \
under three of the four troubles, and beside a member that loses 80 % no number of observers is safe for \
sure: three that share 3 s bury 35 times.\n\
- So the wait is not what keeps the healthy alive. Observers cost next to no time: solicited, they confirm \
within one time-out.\n\
- `fast-detection` takes 200 ms, 100 ms and suspicion-mult 1. It costs 175 bytes per node and second against \
the defaults' 39, the same at every size.\n\n\
What is weak: one world of each trouble and setting, and no trouble of a real host (a scheduler that is late \
by 50 ms is not simulated). A crash takes longer to find in larger clusters, as the suspicion grows with the \
logarithm of their size. The idle time before a crash is 5 to 7 s, shorter than a push-pull interval. A \
member that stands still for longer than a suspicion lasts is called dead; such deaths are not counted \
here.";
