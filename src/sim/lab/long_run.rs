//! `simulate run`: many seeds, each a cluster in a storm of drawn troubles, checked all the way. Says what it
//! cost and how well it went, and of each failure how to see it again.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{
    Args, Command, Failure, crew,
    table::{Table, percentile, sorted},
};
use crate::{
    driver::clock,
    sim::{World, mix::Trouble, storm},
};

pub(super) const COMMAND: Command = Command {
    name: "run",
    about: "worlds in a storm of troubles drawn from each seed, with every check on",
    options: &[
        ("seeds", "0..8", "sim seeds, a range or one"),
        ("nodes", "32", "nodes in each world"),
        ("span", "10m", "virtual time of the storm, such as 90s or 1h"),
        ("troubles", "drawn", "by each seed; or `all`, or a list such as Crashes,Twins"),
        ("threads", "2", "worlds at a time"),
        ("csv", "", "a file for one line of numbers per seed"),
        ("trace", "no", "yes prints every step"),
    ],
    run,
};

/// Fewer nodes have nobody to part, and in less time nothing can strike.
const NODES_MIN: usize = 3;
const SPAN_MIN: Duration = Duration::from_secs(1);

/// What one world cost, and how it went.
struct Run {
    seed: u64,
    /// Or why it failed.
    outcome: Result<storm::Outcome, String>,
    taken: Duration,
    lived: Duration,
    steps: u64,
    inputs: u64,
    messages: u64,
    bytes: u64,
    /// Node-seconds that were lived through.
    node_seconds: f64,
    faults: u64,
}

fn run(args: &Args) -> Result<(), Failure> {
    let seeds: Vec<u64> = args.seeds()?.collect();
    let (nodes, span, trace) = (args.get("nodes")?, args.span("span")?, args.text("trace") == "yes");
    if seeds.is_empty() || nodes < NODES_MIN || span < SPAN_MIN {
        return Err(
            format!("a run needs a seed, {NODES_MIN} nodes and {} s at least", SPAN_MIN.as_secs()).into()
        );
    }
    let kinds = kinds(args.text("troubles"))?;
    if !trace {
        std::panic::set_hook(Box::new(|_| {})); // a failure is told once, at the end
    }
    let begun = clock::monotonic();
    let runs = crew::work("seeds", args.get("threads")?, &seeds, |seed| {
        live_through(*seed, nodes, span, kinds.as_ref(), trace)
    });
    let taken = begun.elapsed();
    println!("{}", summary(&runs, taken));
    if !args.text("csv").is_empty() {
        series(&runs).write_csv(args.text("csv").as_ref())?;
    }
    let failed: Vec<_> = runs.iter().filter(|run| run.outcome.is_err()).collect();
    for run in &failed {
        if let Err(why) = &run.outcome {
            println!("seed {}: {why}", run.seed);
        }
    }
    match failed.first() {
        None => Ok(()),
        Some(run) => Err(format!(
            "{} of {} seeds failed; the first again, with every step: cargo run --release --features sim \
             --example simulate -- run --nodes {nodes} --span {}s --troubles {} --seeds {} --trace yes",
            failed.len(),
            runs.len(),
            span.as_secs(),
            args.text("troubles"),
            run.seed
        )
        .into()),
    }
}

/// The kinds of trouble that are asked for; none if each seed draws its own.
fn kinds(text: &str) -> Result<Option<BTreeSet<Trouble>>, Failure> {
    let named = |name: &str| {
        let found = Trouble::all().find(|trouble| format!("{trouble:?}").eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let names: Vec<_> = Trouble::all().map(|trouble| format!("{trouble:?}")).collect();
            format!("--troubles cannot hold {name}; there are {}", names.join(", ")).into()
        })
    };
    match text {
        "drawn" => Ok(None),
        "all" => Ok(Some(Trouble::all().collect())),
        list => list.split(',').map(named).collect::<Result<_, _>>().map(Some),
    }
}

fn live_through(
    seed: u64,
    nodes: usize,
    span: Duration,
    kinds: Option<&BTreeSet<Trouble>>,
    trace: bool,
) -> Run {
    let begun = clock::monotonic();
    let mut world = World::new(seed);
    if trace {
        world.print_trace();
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| storm::storm(&mut world, nodes, span, kinds)));
    let outcome = outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let why = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        format!("at {:?}: {why}", Duration::from_micros(world.now))
    });
    let counters: Vec<_> = world.procs.iter().map(|process| process.core.counters()).collect();
    let lived = Duration::from_micros(world.now);
    #[expect(clippy::cast_precision_loss, reason = "a cluster has few nodes")]
    let node_seconds = lived.as_secs_f64() * nodes as f64;
    Run {
        seed,
        outcome,
        taken: begun.elapsed(),
        lived,
        steps: world.steps,
        inputs: world.inputs,
        messages: counters.iter().map(|counters| counters.messages_sent).sum(),
        bytes: counters.iter().map(|counters| counters.bytes_sent).sum(),
        node_seconds,
        faults: world.injected(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn summary(runs: &[Run], taken: Duration) -> String {
    let sum = |of: fn(&Run) -> u64| runs.iter().map(of).sum::<u64>() as f64;
    let core_seconds: f64 = runs.iter().map(|run| run.taken.as_secs_f64()).sum();
    let lived: f64 = runs.iter().map(|run| run.lived.as_secs_f64()).sum();
    let node_seconds: f64 = runs.iter().map(|run| run.node_seconds).sum();
    let good: Vec<_> = runs.iter().filter_map(|run| run.outcome.as_ref().ok()).collect();
    let agreed = sorted(good.iter().map(|outcome| outcome.agreed_after.as_secs_f64()).collect());
    let mut drawn: BTreeMap<Trouble, u64> = BTreeMap::new();
    for trouble in good.iter().flat_map(|outcome| &outcome.troubles) {
        *drawn.entry(*trouble).or_default() += 1;
    }
    let mut table = Table::new(&["of all worlds", ""]);
    let mut row = |what: &str, value: String| table.row(vec![what.into(), value]);
    row("seeds, failed", format!("{}, {}", runs.len(), runs.len() - good.len()));
    row("virtual time", format!("{:.1} h", lived / 3_600.0));
    row("taken", format!("{:.1} s, {core_seconds:.1} s of cores", taken.as_secs_f64()));
    row("virtual to real, on one core", format!("{:.0}", lived / core_seconds));
    row("steps per second of one core", format!("{:.0}", sum(|run| run.steps) / core_seconds));
    row("inputs to cores", format!("{:.0}", sum(|run| run.inputs)));
    row("messages per node and second", format!("{:.2}", sum(|run| run.messages) / node_seconds));
    row("bytes per node and second", format!("{:.0}", sum(|run| run.bytes) / node_seconds));
    row("faults injected", format!("{:.0}", sum(|run| run.faults)));
    row("writes", good.iter().map(|outcome| outcome.writes).sum::<u64>().to_string());
    row(
        "agreement after the troubles",
        format!(
            "median {:.2} s, p99 {:.2} s, worst {:.2} s",
            percentile(&agreed, 50.0),
            percentile(&agreed, 99.0),
            percentile(&agreed, 100.0)
        ),
    );
    let drawn: Vec<_> = drawn.iter().map(|(trouble, count)| format!("{trouble:?} {count}")).collect();
    format!("{}\nworlds with each trouble: {}", table.markdown(), drawn.join(", "))
}

fn series(runs: &[Run]) -> Table {
    let mut table = Table::new(&[
        "seed",
        "failed",
        "virtual s",
        "real s",
        "steps",
        "messages",
        "bytes",
        "faults",
        "agreed after s",
        "troubles",
    ]);
    for run in runs {
        let (agreed, troubles) = match &run.outcome {
            Ok(outcome) => {
                (format!("{:.3}", outcome.agreed_after.as_secs_f64()), format!("{:?}", outcome.troubles))
            }
            Err(_) => (String::new(), String::new()),
        };
        table.row(vec![
            run.seed.to_string(),
            run.outcome.as_ref().err().cloned().unwrap_or_default(),
            format!("{:.1}", run.lived.as_secs_f64()),
            format!("{:.3}", run.taken.as_secs_f64()),
            run.steps.to_string(),
            run.messages.to_string(),
            run.bytes.to_string(),
            run.faults.to_string(),
            agreed,
            troubles,
        ]);
    }
    table
}
