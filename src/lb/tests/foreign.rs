//! Values that are not of a table's type, from another version or a rogue: left out, counted, reported once a
//! node, never shown. And what a later version adds: read over, and kept where this node writes it on.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use serde::Serialize;
use serde_json::json;
use tracing::Level;

use super::{
    model::id,
    rules::{flows, key, live, order, put, quiet, secs},
};
use crate::{
    StateType, Value,
    lb::{
        circuit_breaker::{Breaker, CircuitRule, CircuitState, Circuits},
        conntrack::{Claim, ConntrackRules, Flow, Flows},
        counters::Counted,
        drain::{Drain, Drained},
        health::{Health, HealthRules, Judge},
        live::Moment,
        opinions::Opinions,
        table::Heart,
    },
};

fn value(of: &(impl Serialize + ?Sized)) -> Value {
    Value::encode(of).unwrap()
}

/// What is written to the log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The warnings that come of an act.
fn warnings(act: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let bytes = log.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap().lines().map(Into::into).collect()
}

/// A table at `n0` of three nodes is told a good value of `n1`, and then bad ones of `n1` and `n2`.
fn leaves_out<H: Heart>(
    mut table: H,
    (of, key): (&StateType, &str),
    good: &Value,
    bad: &[Value],
    shows: impl Fn(&H) -> bool,
) {
    table.set_live(live(0, 3), Moment::ZERO, &mut quiet());
    let reported = warnings(|| {
        table.tell(&put(of.clone(), key, good.clone(), 1, 1), Moment::ZERO, &mut quiet());
        assert!(shows(&table) && table.unreadable() == 0);
        let mut count = 0;
        for (round, source) in [1, 2, 1].into_iter().enumerate() {
            for (number, bad) in bad.iter().enumerate() {
                let version = 2 + 100 * round as u64 + number as u64;
                let bad = put(of.clone(), key, bad.clone(), version, source);
                table.tell(&bad, Moment::ZERO, &mut quiet());
                count += 1;
                assert_eq!(table.unreadable(), count, "{bad:?} is read");
                assert!(!shows(&table), "after {bad:?} something is shown");
            }
        }
    });
    assert_eq!(reported.len(), 2, "each node once: {reported:#?}");
    for (line, node) in reported.iter().zip(["n1", "n2"]) {
        assert!(line.contains(of.as_str()) && line.contains(&format!("source_node={node}")), "{line}");
    }
    // Who writes something good again is read again.
    table.tell(&put(of.clone(), key, good.clone(), 1_000, 1), Moment::ZERO, &mut quiet());
    assert!(shows(&table));
}

/// Values that no table can read.
fn nonsense() -> Vec<Value> {
    vec![
        value("text"),
        value(&("open", 7)),
        value(&json!({})),
        value(&()),
        value(&f64::NAN),
        value(&[1, 2, 3]),
    ]
}

#[test]
fn health_that_cannot_be_read_is_left_out_counted_and_reported_once_a_node() {
    let mut bad = nonsense();
    bad.push(value(&json!({ "status": ["healthy"] })));
    bad.push(value(&json!({ "status": "healthy", "consecutive_failures": -1 })));
    bad.push(value(&BTreeMap::from([("status", "healthy"), ("last_check", "yesterday")])));
    let table = Opinions::new(Judge::new(HealthRules::default()), id(0));
    let good = value(&Health::healthy());
    leaves_out(table, (&StateType::HEALTH, "b"), &good, &bad, |table| table.view("b").is_some());
}

#[test]
fn breakers_that_cannot_be_read_are_left_out_counted_and_reported_once_a_node() {
    let breaker = |error_rate| Breaker { state: CircuitState::Open, error_rate, period: secs(1) };
    let mut bad = nonsense();
    let rates = [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, -0.1, 1.1];
    bad.extend(rates.map(|rate| value(&breaker(rate))));
    bad.push(value(&json!({ "state": "ajar" })));
    bad.push(value(&json!({ "state": "open", "period_ms": -1 })));
    let table = Opinions::new(Circuits(CircuitRule::MostSevere), id(0));
    let good = value(&breaker(0.0));
    leaves_out(table, (&StateType::CIRCUIT_BREAKER, "b"), &good, &bad, |table| table.view("b").is_some());
}

#[test]
fn orders_to_drain_that_cannot_be_read_are_left_out_counted_and_reported_once_a_node() {
    let mut bad = nonsense();
    bad.push(value(&json!({ "proxy_name": "web", "deadline_ms": "soon" })));
    bad.push(value(&json!({ "proxy_name": "web", "deadline_ms": -1 })));
    bad.push(value(&json!({ "proxy_name": 7 })));
    let good = value(&Drain::new("web", "alice", ""));
    let key = order("b", 1);
    leaves_out(Drained::new(id(0)), (&StateType::DRAIN, &key), &good, &bad, |table| {
        table.view("b").is_some()
    });
}

#[test]
fn progress_that_cannot_be_read_is_left_out_counted_and_reported_once_a_node() {
    let mut table = Drained::new(id(0));
    let given = put(StateType::DRAIN, "b", value(&Drain::new("web", "alice", "")), 1, 1);
    table.tell(&given, Moment::ZERO, &mut quiet());
    let mut bad = nonsense();
    bad.remove(2); // no field at all is progress that says nothing
    bad.push(value(&json!({ "order": "", "open": -1 })));
    bad.push(value(&json!({ "order": "", "done": "almost" })));
    let good = value(&json!({ "order": "", "open": 7, "done": false, "apart": false }));
    let shows = |table: &Drained| table.view("b").is_some_and(|view| view.open == 7);
    leaves_out(table, (&StateType::DRAIN_PROGRESS, "b"), &good, &bad, shows);
}

#[test]
fn counts_that_cannot_be_read_are_left_out_counted_and_reported_once_a_node() {
    let mut bad = nonsense();
    bad.push(value(&json!({ "value": -1 })));
    bad.push(value(&json!({ "value": 1.5 })));
    bad.push(value(&BTreeMap::from([("value", f64::INFINITY)])));
    bad.push(value(&json!({ "value": 1, "window_ms": "long" })));
    let good = value(&json!({ "value": 7 }));
    leaves_out(Counted::new(id(0)), (&StateType::COUNTER, "c"), &good, &bad, |table| {
        table.view("c").is_some()
    });
}

#[test]
fn flows_that_cannot_be_read_are_left_out_counted_and_reported_once_a_node() {
    let bytes = |bytes: &[u8]| value(serde_bytes::Bytes::new(bytes));
    let mut bad = nonsense();
    bad.extend([bytes(&[]), bytes(&[0xff, 0, 0, 0, 0, 0]), bytes(&[0; 6 + 65]), bytes(&[0x80; 40])]);
    let good = Claim { generation: 0, closed: false, flow: Flow::new(None) }.to_value().unwrap();
    let table = Flows::new(ConntrackRules::default(), id(0), Box::new(drop));
    let name = key(1).to_key();
    leaves_out(table, (&StateType::CONNTRACK, &name), &good, &bad, |table| table.view(&key(1)).is_some());
}

/// A field more than this version knows.
fn later(of: impl Serialize) -> Value {
    let mut fields = serde_json::to_value(of).unwrap();
    fields["since_the_next_version"] = json!({ "weight": 0.5 });
    value(&fields)
}

/// Tells a table something that it can read.
fn tell<H: Heart>(table: &mut H, of: StateType, value: Value) {
    table.set_live(live(0, 3), Moment::ZERO, &mut quiet());
    table.tell(&put(of, "b", value, 1, 1), Moment::ZERO, &mut quiet());
    assert_eq!(table.unreadable(), 0);
}

#[test]
fn a_field_more_than_this_version_knows_is_read_over() {
    let mut health = Opinions::new(Judge::new(HealthRules::default()), id(0));
    let mut circuits = Opinions::new(Circuits(CircuitRule::MostSevere), id(0));
    let (mut drains, mut counters) = (Drained::new(id(0)), Counted::new(id(0)));
    let breaker = Breaker { state: CircuitState::Open, error_rate: 0.5, period: secs(1) };
    tell(&mut health, StateType::HEALTH, later(Health::healthy()));
    tell(&mut circuits, StateType::CIRCUIT_BREAKER, later(breaker));
    tell(&mut drains, StateType::DRAIN, later(Drain::new("web", "alice", "")));
    tell(&mut drains, StateType::DRAIN_PROGRESS, later(json!({ "order": "", "open": 7 })));
    tell(&mut counters, StateType::COUNTER, later(json!({ "value": 7 })));
    assert!(health.view("b").is_some() && circuits.view("b").is_some());
    assert_eq!((drains.view("b").unwrap().open, counters.view("b").unwrap().sum), (7, 7));
}

#[test]
fn what_a_later_version_says_of_a_flow_stays_with_it_whoever_carries_it() {
    let mut table = flows(ConntrackRules { min_age: Moment::ZERO, ..ConntrackRules::default() });
    let flow = |extra: &[u8]| Flow { extra: extra.to_vec(), ..Flow::new(None) };
    let tell = |table: &mut Flows, number, extra: &[u8]| {
        let claim = Claim { generation: 0, closed: false, flow: flow(extra) }.to_value().unwrap();
        let told = put(StateType::CONNTRACK, &key(number).to_key(), claim, 1, 1);
        table.tell(&told, Moment::ZERO, &mut quiet());
    };
    tell(&mut table, 1, &[7, 8, 9]);
    tell(&mut table, 2, &[4, 5]);
    // One is taken by the program, the other when its node dies; then the program tells what it knows.
    assert!(table.insert(key(1), Flow::new(None), secs(1), &mut quiet()));
    let alone = crate::lb::live::Live::alone(id(0));
    table.set_live(Arc::new(alone), secs(1), &mut quiet());
    let mut written: BTreeMap<String, Claim> = BTreeMap::new();
    let mut settle = |table: &mut Flows, end: Moment| {
        while let Some(next) = table.next_timeout().filter(|next| *next <= end) {
            table.handle_timeout(next, &mut quiet());
            for write in table.take_writes(next) {
                written.insert(write.key, Claim::from_value(&write.value.unwrap()).unwrap());
            }
        }
        [1, 2].map(|number| written.get(&key(number).to_key()).cloned())
    };
    let after =
        settle(&mut table, secs(5)).map(|claim| claim.map(|claim| (claim.generation, claim.flow.extra)));
    assert_eq!(after, [Some((1, vec![7, 8, 9])), Some((1, vec![4, 5]))]);
    for number in [1, 2] {
        let replace = |held: &mut Flow| held.replace(Flow { packets: 99, ..Flow::new(None) });
        assert!(table.update(&key(number), secs(40), &mut quiet(), replace));
    }
    let after =
        settle(&mut table, secs(45)).map(|claim| claim.map(|claim| (claim.flow.packets, claim.flow.extra)));
    assert_eq!(after, [Some((99, vec![7, 8, 9])), Some((99, vec![4, 5]))]);
}
