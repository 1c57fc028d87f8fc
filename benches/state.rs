//! The hot paths of shared state: a record's way into a store, out of it, over the wire and into another, and what
//! readers pay. `cargo bench --features bench --bench state [-- <part of a name>]`; a record has a key of 16 bytes
//! and a value of 32.

use std::{hint::black_box, time::Duration};

use divan::{Bencher, counter::ItemsCount};
use futures_util::StreamExt as _;
use phalanx::{
    Authority, Cluster, Config, NodeId, StateType, Value,
    bench::{Batch, Records},
    lb::{Conntrack, ConntrackRules, Flow, FlowKey, Health, HealthTable},
};
use tokio::runtime::Runtime;

/// Records that are there already.
const HELD: [usize; 3] = [1_000, 100_000, 1_000_000];
/// Records of one frame.
const FRAME: usize = 1_000;
/// Records that are written, read or told in a row.
const ROW: usize = 1_000;

fn main() {
    divan::main();
}

#[divan::bench(args = HELD, sample_count = 20)]
fn insert(bencher: Bencher<'_, '_>, held: usize) {
    let mut records = Records::with("one", held);
    bencher.counter(ItemsCount::new(ROW)).bench_local(|| (0..ROW).for_each(|_| records.insert()));
}

#[divan::bench(args = HELD, sample_count = 20)]
fn overwrite(bencher: Bencher<'_, '_>, held: usize) {
    let mut records = Records::with("one", held);
    bencher
        .counter(ItemsCount::new(ROW))
        .bench_local(|| (0..ROW).for_each(|at| records.write(at * held / ROW)));
}

#[divan::bench(args = HELD)]
fn get(bencher: Bencher<'_, '_>, held: usize) {
    let records = Records::with("one", held);
    let keys: Vec<_> = (0..ROW).map(|at| format!("{:016x}", at * held / ROW)).collect();
    bencher
        .counter(ItemsCount::new(ROW))
        .bench_local(|| keys.iter().filter(|key| records.get(black_box(key))).count());
}

/// What changed of a million.
#[divan::bench(args = [0, 100, 10_000], sample_count = 20)]
fn delta_of_a_million(bencher: Bencher<'_, '_>, changed: usize) {
    let mut records = Records::with("one", 1_000_000);
    let theirs = records.known();
    (0..changed).for_each(|at| records.write(at * 97));
    assert_eq!(records.delta(&theirs).len(), changed);
    bencher.counter(ItemsCount::new(changed)).bench_local(|| records.delta(&theirs).len());
}

fn frame() -> Batch {
    Records::with("one", FRAME).delta(&Records::of("two").known())
}

#[divan::bench]
fn encode(bencher: Bencher<'_, '_>) {
    let batch = frame();
    bencher.counter(ItemsCount::new(FRAME)).bench_local(|| batch.encode());
}

#[divan::bench]
fn decode(bencher: Bencher<'_, '_>) {
    let bytes = frame().encode();
    bencher.counter(ItemsCount::new(FRAME)).bench_local(|| Batch::decode(&bytes));
}

/// Another's records, none of which is known.
#[divan::bench(args = HELD, sample_count = 20)]
fn apply(bencher: Bencher<'_, '_>, held: usize) {
    // Each sample takes the next thousand.
    let mut source = Records::with("one", held);
    let mut records = Records::of("two");
    records.apply(&source.delta(&records.known()));
    bencher
        .counter(ItemsCount::new(FRAME))
        .with_inputs(|| {
            let before = source.known();
            (0..FRAME).for_each(|_| source.insert());
            source.delta(&before)
        })
        .bench_local_values(|batch| assert_eq!(records.apply(&batch), FRAME as u64));
}

/// Another's records, all of which are known: what a repeated batch costs.
#[divan::bench]
fn apply_known(bencher: Bencher<'_, '_>) {
    let (batch, mut records) = (frame(), Records::of("two"));
    records.apply(&batch);
    bencher.counter(ItemsCount::new(FRAME)).bench_local(|| records.apply(&batch));
}

fn cluster(runtime: &Runtime) -> Cluster {
    let authority = Authority::generate("bench").expect("a CA");
    let mut config = Config::default();
    config.enabled = true;
    config.bind_address = [127, 0, 0, 1].into();
    config.bind_port = 0;
    config.identity = NodeId::new("one").and_then(|id| authority.issue(&id)).ok();
    let cluster = Cluster::new(config).expect("a valid configuration");
    runtime.block_on(cluster.start()).expect("a started node");
    cluster
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// From the write to the watcher's hand.
#[divan::bench(sample_count = 20)]
fn feed(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let cluster = cluster(&runtime);
    let of = StateType::from("records");
    let mut changes = cluster.watch(&of);
    let value = Value::encode(&format!("{:031x}", 1)).expect("a value");
    bencher.counter(ItemsCount::new(ROW)).bench_local(|| {
        runtime.block_on(async {
            for at in 0..ROW {
                cluster.broadcast(of.clone(), at.to_string(), &value).expect("room");
                changes.next().await;
            }
        });
    });
}

/// What a balancer asks for each request.
#[divan::bench]
fn health_status(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let cluster = cluster(&runtime);
    let _inside = runtime.enter();
    let table = HealthTable::attach(&cluster).expect("a table");
    let targets: Vec<_> = (0..ROW).map(|at| format!("backend-{at}")).collect();
    for target in &targets {
        table.report(target, Health::healthy()).expect("room");
    }
    bencher
        .counter(ItemsCount::new(ROW))
        .bench_local(|| targets.iter().filter(|target| table.is_usable(black_box(target))).count());
}

#[divan::bench]
fn conntrack_lookup(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let cluster = cluster(&runtime);
    let _inside = runtime.enter();
    // Nothing of it is told: only the lookup is measured.
    let mut rules = ConntrackRules::default();
    rules.min_age = Duration::from_secs(600);
    let table = Conntrack::attach_with(&cluster, rules).expect("a table");
    let key =
        |at: u32| FlowKey::tcp((std::net::Ipv4Addr::from(at), 4_000).into(), ([203, 0, 113, 1], 443).into());
    for at in 0..100_000 {
        table.insert(key(at), Flow::new(None));
    }
    let keys: Vec<_> = (0..100_000).step_by(100).map(key).collect();
    bencher
        .counter(ItemsCount::new(keys.len()))
        .bench_local(|| keys.iter().filter(|key| table.lookup(black_box(key)).is_some()).count());
}
