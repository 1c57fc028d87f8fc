//! `simulate partition`: two halves that cannot reach one another and go on writing, until they are one
//! cluster again.

use std::time::Duration;

use super::{
    Args, Command, Failure,
    cases::{Case, Line, Totals, each},
    crew,
    plot::Figure,
    report::{Report, command_line},
    table::{Table, percentile, sorted},
};
use crate::{NodeId, NodeStatus, StateType, sim::World};

pub(super) const COMMAND: Command = Command {
    name: "partition",
    about: "two halves apart, both writing, and how they become one again; writes partition.*",
    options: &[
        ("nodes", "16,64,128", "sizes of the cluster"),
        ("spans", "10,60,3600", "seconds apart; those over 600 for up to 64 nodes"),
        ("rate", "2", "updates a second on each side"),
        ("runs", "3", "seeds for each case; one for spans over 600"),
        ("threads", "1", "worlds at a time"),
        ("out", "docs/experiments", "where the page goes"),
    ],
    run,
};

/// What was done, on the page.
const BEFORE: &str = "\
A formed cluster is cut into two halves for 10 s, 60 s or an hour. On each side drawn nodes write twice a \
second to 1,000 keys of a shared type, half of which both sides write. Then the links come back, and writing \
ends. Times are from that moment until all member tables are equal with everybody alive in them, and until \
all stores are equal; bytes are what each node hands to its transport until both are so. Certificates are a \
name of six bytes here; real ones add some 450 B wherever a claim carries them. Links: 0.25 ms, no loss; \
connections survive 30 s of silence. Thirty seconds later the worlds' own check compares every table and \
every record (last column).";
/// What came of it.
const AFTER: &str = "\
The references are invariants of the design, not another library's numbers: halves of a partition of any \
length merge without an operator, and they are equal within 2 push-pull intervals (20 s) times ⌈log2 n⌉. \
Reached in every run: one membership within about a second, one store within about three, however long the \
halves were apart. memberlist forgets the dead after 30 s (`GossipToTheDeadTime`), and halves that were \
apart longer do not find one another by themselves; that was not measured here.

How it happens: each node greets a random dead member every 2.5 s, so among n nodes the first greeting comes \
after 2.5 s / n on average, and what it tells goes to all by the tree. Stores follow by the push-pull that a \
new connection starts and by digests on pings, which come once a second: that is why the store takes \
seconds.

What is worse than it could be: bytes grow with n for each node, since each of n members must refute its \
death once, and all must hear it. The cuts of 10 s, whose connections have survived, cost several times \
that: 1.5 kB for each member, against 0.7 kB after 60 s. There every node that hears again from one it holds \
dead tells it so on its own, and each such word is answered with a claim. A batch of claims for one batch of \
refutations would be cheaper.";

/// The limit of connections by default.
const LINKS: usize = 512;
/// Keys that each side changes in turn; half of them are the same on both.
const KEYS: u64 = 1_000;
/// A partition longer than this is long.
const LONG: u64 = 600;
/// Clusters that are not held apart for so long.
const LARGE: usize = 64;
/// One cluster again by then, or never.
const LIMIT: Duration = Duration::from_secs(300);

/// How one pair of halves met again.
struct Healing {
    /// Pairs of an observer and a member of the other half that it held dead when the links came back.
    buried: f64,
    /// Keys written while apart.
    keys: usize,
    members_s: f64,
    store_s: f64,
    /// Sent by each node from the healing until all was one.
    bytes: f64,
    sync_bytes: f64,
    exchanges: f64,
    agree: bool,
}

fn run(args: &Args) -> Result<(), Failure> {
    let (rate, runs): (u64, u64) = (args.get("rate")?, args.get("runs")?);
    let mut table = Table::new(&[
        "nodes",
        "apart s",
        "runs",
        "held dead",
        "keys written",
        "one membership s",
        "worst s",
        "one store s",
        "worst s ",
        "B per node",
        "of it exchanges",
        "exchanges per node",
        "all agree",
    ]);
    let mut lines: Vec<Line> = Vec::new();
    let spans = args.list::<u64>("spans")?;
    for nodes in args.list::<usize>("nodes")? {
        let mut points = [Vec::new(), Vec::new()];
        for &span in spans.iter().filter(|span| **span <= LONG || nodes <= LARGE) {
            let seeds: Vec<u64> = (0..if span > LONG { 1 } else { runs }).collect();
            let name = format!("{nodes} nodes, {span} s");
            let healings =
                crew::work(&name, args.get("threads")?, &seeds, |seed| one(nodes, span, rate, *seed));
            row(&mut table, nodes, span, &healings);
            let median =
                |of: fn(&Healing) -> f64| percentile(&sorted(healings.iter().map(of).collect()), 50.0);
            points[0].push((each(span, 1), median(|healing| healing.members_s)));
            points[1].push((each(span, 1), median(|healing| healing.store_s)));
        }
        let [members, store] = points;
        lines.push((format!("one membership, {nodes} nodes"), members, false));
        lines.push((format!("one store, {nodes} nodes"), store, false));
    }
    Report {
        name: "partition",
        title: "Two halves that become one again",
        command: command_line(COMMAND.name, &format!("--nodes {} --runs {runs}", args.text("nodes"))),
        before: BEFORE.into(),
        table,
        after: AFTER.into(),
        figures: vec![(
            "time",
            Figure {
                title: "From the healing until all nodes agree",
                x: ("seconds apart", true),
                y: ("seconds, median", true),
                lines,
            },
        )],
    }
    .write(&args.out())
}

fn one(nodes: usize, span: u64, rate: u64, seed: u64) -> Healing {
    let case = Case { nodes, loss: 0.0, dead: 0.0, links: LINKS };
    let mut world = case.world(seed, Duration::from_secs(5));
    let names = world.live();
    let halves = names.split_at(nodes / 2);
    world.partition(&[halves.0, halves.1]);
    let mut written = std::collections::BTreeSet::new();
    for number in 0..span * rate {
        for (side, half) in [(0, halves.0), (1, halves.1)] {
            let writer = half[world.rng.usize(..half.len())].clone();
            let key = format!("backend-{}", world.rng.u64(..KEYS) + side * KEYS / 2);
            world.broadcast(&writer, &StateType::DRAIN, &key, &format!("draining, order {number:>8}"));
            written.insert(key);
        }
        world.run(Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX));
    }
    let pairs = halves.0.len() * halves.1.len() * 2;
    let buried = held_dead(&world, halves.0, halves.1) + held_dead(&world, halves.1, halves.0);
    let (before, healed) = (Totals::of(&world), world.now);
    world.heal();
    let (mut members_s, mut store_s) = (None, None);
    while members_s.is_none() || store_s.is_none() {
        let passed = Duration::from_micros(world.now - healed);
        let (members, store) = world.is_one();
        let now = passed.as_secs_f64();
        members_s = members_s.filter(|_| members).or(members.then_some(now));
        store_s = store_s.filter(|_| store).or(store.then_some(now));
        if passed > LIMIT {
            break;
        }
        world.run(Duration::from_millis(if passed.as_secs() < 1 { 2 } else { 20 }));
    }
    let load = Totals::of(&world).since(&before);
    // A suspicion may be open; it must come to nothing.
    world.run(Duration::from_secs(30));
    Healing {
        buried: each(buried, pairs),
        keys: written.len(),
        members_s: members_s.unwrap_or(f64::INFINITY),
        store_s: store_s.unwrap_or(f64::INFINITY),
        bytes: each(load.bytes + load.sync_bytes, nodes),
        sync_bytes: each(load.sync_bytes, nodes),
        exchanges: each(load.exchanges, nodes),
        agree: world.all_agree(),
    }
}

fn held_dead(world: &World, observers: &[NodeId], members: &[NodeId]) -> u64 {
    let dead = |observer: &NodeId| {
        let held = members.iter().filter(|id| world.status(observer, id) == Some(NodeStatus::Dead));
        held.count() as u64
    };
    observers.iter().map(dead).sum()
}

fn row(table: &mut Table, nodes: usize, span: u64, healings: &[Healing]) {
    let of = |of: fn(&Healing) -> f64| sorted(healings.iter().map(of).collect());
    let (members, store) = (of(|healing| healing.members_s), of(|healing| healing.store_s));
    let middle = |values: &[f64]| percentile(values, 50.0);
    let agree = healings.iter().filter(|healing| healing.agree).count();
    table.row(vec![
        nodes.to_string(),
        span.to_string(),
        healings.len().to_string(),
        format!("{:.0} %", 100.0 * middle(&of(|healing| healing.buried))),
        healings[0].keys.to_string(),
        format!("{:.2}", middle(&members)),
        format!("{:.2}", percentile(&members, 100.0)),
        format!("{:.2}", middle(&store)),
        format!("{:.2}", percentile(&store, 100.0)),
        format!("{:.0}", middle(&of(|healing| healing.bytes))),
        format!("{:.0}", middle(&of(|healing| healing.sync_bytes))),
        format!("{:.1}", middle(&of(|healing| healing.exchanges))),
        format!("{agree} of {}", healings.len()),
    ]);
}
