//! The tables of load balancers between real nodes: what one says, all see; what dies with it, and what does
//! not.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside test functions")]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{authority, fleet, id, node, started, until};
use futures_util::StreamExt;
use phalanx::{
    Cluster, Error, StateType, Value,
    lb::{
        Change, CircuitBreakers, CircuitRule, CircuitState, Conntrack, ConntrackRules, Counters, Drain,
        DrainState, Drains, Flow, FlowKey, Health, HealthRule, HealthRules, HealthStatus, HealthTable,
    },
};

const LIMIT: Duration = Duration::from_secs(30);

/// A table at each node.
fn attached<T>(fleet: &[Cluster], attach: impl Fn(&Cluster) -> Result<T, Error>) -> Vec<T> {
    fleet.iter().map(|node| attach(node).unwrap()).collect()
}

fn flow_key(number: u16) -> FlowKey {
    FlowKey::tcp(([198, 51, 100, 9], number).into(), ([203, 0, 113, 1], 443).into())
}

#[tokio::test]
async fn what_the_majority_observed_all_see_and_the_dead_have_no_say() {
    let authority = authority();
    let mut fleet = fleet(&authority, 3).await;
    let mut tables = attached(&fleet, HealthTable::attach);
    tables[0].report("b7", Health::unhealthy("connection refused")).unwrap();
    assert_eq!(tables[0].status("b7").status, HealthStatus::Unhealthy, "a reader sees what it wrote");
    tables[1].report("b7", Health::healthy()).unwrap();
    tables[2].report("b7", Health::unhealthy("timeout")).unwrap();
    until("all hold three opinions", || tables.iter().all(|table| table.status("b7").opinions.len() == 3))
        .await;
    for table in &tables {
        let view = table.status("b7");
        assert_eq!(view.status, HealthStatus::Unhealthy);
        assert_eq!(view.reason, "2 of 3 say it is unhealthy; n0: connection refused");
        assert_eq!(view, tables[0].status("b7"));
    }
    let checkers = tables[0].checkers("b7");
    assert_eq!(checkers.len(), 2);
    for (table, node) in tables.iter().zip(&fleet) {
        assert_eq!(table.assigned("b7"), checkers.contains(&node.node_id()));
    }
    // A newer report of one node replaces its older one, and only that.
    tables[2].report("b7", Health::healthy()).unwrap();
    until("two of three", || tables.iter().all(|table| table.status("b7").status == HealthStatus::Healthy))
        .await;
    tables[2].report("b7", Health::unhealthy("timeout")).unwrap();
    until("again", || tables.iter().all(|table| table.status("b7").status == HealthStatus::Unhealthy)).await;
    // A crash takes its opinion along.
    drop((tables.pop(), fleet.pop()));
    until("one of two", || {
        tables.iter().all(|table| {
            let view = table.status("b7");
            view.opinions.len() == 2 && view.status == HealthStatus::Healthy
        })
    })
    .await;
}

#[tokio::test]
async fn an_opened_circuit_is_open_everywhere_until_its_period_is_over() {
    let authority = authority();
    let fleet = fleet(&authority, 3).await;
    let tables = attached(&fleet, CircuitBreakers::attach);
    let state = |of: CircuitState| tables.iter().all(|table| table.state("b7") == of);
    tables[1].open("b7", 0.6, LIMIT).unwrap();
    until("open", || state(CircuitState::Open)).await;
    assert!(tables.iter().all(|table| !table.may_pass("b7")));
    tables[1].half_open("b7").unwrap();
    until("half open", || state(CircuitState::HalfOpen)).await;
    // One zone: exactly one may try, and all agree who.
    assert_eq!(tables.iter().filter(|table| table.may_pass("b7")).count(), 1);
    tables[2].open("b7", 0.9, LIMIT).unwrap();
    until("the more severe counts", || state(CircuitState::Open)).await;
    assert!(tables[2].close("b7"));
    until("half open again", || state(CircuitState::HalfOpen)).await;
    assert!(tables[1].close("b7"));
    until("closed", || state(CircuitState::Closed)).await;
    tables[0].open("b8", 0.6, Duration::from_millis(300)).unwrap();
    until("open for a while", || tables[2].state("b8") == CircuitState::Open).await;
    until("over by itself", || tables.iter().all(|table| table.state("b8") == CircuitState::Closed)).await;
}

#[tokio::test]
async fn one_balancer_alone_opens_nothing_where_two_are_asked_for() {
    let authority = authority();
    let fleet = fleet(&authority, 3).await;
    let tables = attached(&fleet, |node| CircuitBreakers::attach_with(node, CircuitRule::AtLeast(2)));
    tables[0].open("b7", 1.0, LIMIT).unwrap();
    until("its word is known", || tables.iter().all(|table| table.view("b7").opinions.len() == 1)).await;
    assert!(tables.iter().all(|table| table.state("b7") == CircuitState::Closed));
    tables[1].open("b7", 0.7, LIMIT).unwrap();
    until("two say so", || tables.iter().all(|table| table.state("b7") == CircuitState::Open)).await;
}

#[tokio::test]
async fn a_drain_outlives_its_giver_and_ends_when_all_that_are_left_have_said_so() {
    let authority = authority();
    let mut fleet = fleet(&authority, 3).await;
    let mut tables = attached(&fleet, Drains::attach);
    assert!(matches!(tables[1].complete("b7"), Err(Error::NotDraining { .. })));
    let order = tables[2].start("b7", Drain::new("web", "alice", "kernel update")).unwrap();
    until("all drain", || tables.iter().all(|table| table.status("b7").state == DrainState::Draining)).await;
    drop((tables.pop(), fleet.pop()));
    tables[0].progress("b7", 12).unwrap();
    until("the giver is dead, and its order stands", || {
        tables.iter().all(|table| {
            let view = table.status("b7");
            view.orders == [order.clone()] && view.nodes.len() == 2 && view.open == 12
        })
    })
    .await;
    let late = tables[1].wait_drained("b7", Duration::from_millis(50)).await.unwrap_err().to_string();
    assert!(late.contains("12 connections are open; waiting for n0, n1"), "{late}");
    let waiting = tables[1].clone();
    let waiting = tokio::spawn(async move { waiting.wait_drained("b7", LIMIT).await });
    tables[0].complete("b7").unwrap();
    tables[1].complete("b7").unwrap();
    let drained = waiting.await.unwrap().unwrap();
    assert!(drained.waiting_for.is_empty() && drained.open == 0);
    until("both see it", || tables.iter().all(|table| table.status("b7").state == DrainState::Drained)).await;
    // Whoever cancels ends it for all, and what was said of it is void.
    assert!(tables[0].cancel("b7").unwrap());
    until("active", || tables.iter().all(|table| table.is_active("b7"))).await;
    tables[1].start("b7", Drain::new("web", "bob", "again")).unwrap();
    until("it drains anew", || tables[0].status("b7").waiting_for.len() == 2).await;
}

#[tokio::test]
async fn a_drain_waits_for_those_only_who_serve_and_ends_at_its_deadline() {
    let authority = authority();
    let fleet = fleet(&authority, 3).await;
    let tables = attached(&fleet, Drains::attach);
    tables[2].set_serving("b7", false).unwrap();
    let mut drain = Drain::new("web", "alice", "");
    drain.deadline = Some(Duration::from_secs(2));
    tables[0].start("b7", drain).unwrap();
    tables[0].complete("b7").unwrap();
    until("one is left", || tables.iter().all(|table| table.status("b7").waiting_for.iter().eq([&id("n1")])))
        .await;
    let waiting = tables[0].clone();
    let waiting = tokio::spawn(async move { waiting.wait_drained("b7", LIMIT).await });
    until("the deadline", || tables.iter().all(|table| table.is_active("b7"))).await;
    assert!(matches!(waiting.await.unwrap(), Err(Error::NotDraining { .. })));
}

#[tokio::test]
async fn flows_pass_from_a_dead_node_each_to_one_survivor_that_is_told() {
    const FLOWS: u16 = 100;
    let authority = authority();
    let mut fleet = fleet(&authority, 3).await;
    let mut rules = ConntrackRules::default();
    rules.min_age = Duration::ZERO;
    let mut tables = attached(&fleet, |node| Conntrack::attach_with(node, rules));
    let promoted: Arc<Mutex<BTreeMap<FlowKey, usize>>> = Arc::default();
    for table in &tables {
        let promoted = Arc::clone(&promoted);
        table.on_promote(move |key, _| *promoted.lock().unwrap().entry(*key).or_default() += 1);
    }
    let mut flow = Flow::new(Some("10.0.0.7:8080".parse().unwrap()));
    flow.bytes = 1_000;
    for number in 0..FLOWS {
        assert!(tables[2].insert(flow_key(number), flow.clone()));
    }
    until("all are known", || tables.iter().all(|table| table.all().len() == usize::from(FLOWS))).await;
    let shadow = tables[0].lookup(&flow_key(1)).unwrap();
    assert_eq!((shadow.owner, shadow.is_own, shadow.flow.bytes), (id("n2"), false, 1_000));
    assert!(!tables[0].seen(&flow_key(1), 1, 1), "it is another's");
    drop((tables.pop(), fleet.pop()));
    let own = |table: &Conntrack| table.stats().own;
    until("each has one owner", || own(&tables[0]) + own(&tables[1]) == usize::from(FLOWS)).await;
    until("all agree", || {
        tables[0].all().iter().zip(tables[1].all()).all(|((key, mine), (other, its))| {
            *key == other && mine.owner == its.owner && mine.generation == its.generation
        })
    })
    .await;
    assert!(own(&tables[0]) > 0 && own(&tables[1]) > 0, "both take some over");
    until("told", || promoted.lock().unwrap().len() == usize::from(FLOWS)).await;
    assert!(promoted.lock().unwrap().values().all(|times| *times == 1), "each once");
    // What it passed on is not lost again: the new owner counts on, the other sees it end.
    let owner = usize::from(!tables[0].lookup(&flow_key(1)).unwrap().is_own);
    assert!(tables[owner].seen(&flow_key(1), 5, 500));
    assert_eq!(tables[owner].lookup(&flow_key(1)).unwrap().flow.bytes, 1_500);
    assert!(tables[owner].remove(&flow_key(1)));
    until("gone", || tables.iter().all(|table| table.lookup(&flow_key(1)).is_none())).await;
}

#[tokio::test]
async fn counters_add_up_what_the_living_have() {
    let authority = authority();
    let mut fleet = fleet(&authority, 3).await;
    let mut tables = attached(&fleet, Counters::attach);
    for (table, connections) in tables.iter().zip([40, 7, 5]) {
        table.set("b7", connections).unwrap();
        for _ in 0..connections {
            table.add("client", 1, Duration::from_secs(60)).unwrap();
        }
    }
    until("the sum", || tables.iter().all(|table| (table.sum("b7"), table.max("b7")) == (52, 40))).await;
    drop((tables.remove(0), fleet.remove(0)));
    until("less the dead", || tables.iter().all(|table| (table.sum("b7"), table.max("b7")) == (12, 7))).await;
    tables[0].add("burst", 9, Duration::from_millis(500)).unwrap();
    until("seen", || tables[1].sum("burst") == 9).await;
    until("the window has passed", || tables.iter().all(|table| table.sum("burst") == 0)).await;
}

#[tokio::test]
async fn callbacks_and_streams_hear_each_change_in_order() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    let tables = attached(&fleet, CircuitBreakers::attach);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let subscription = tables[0].on_change(move |_| _ = counted.fetch_add(1, SeqCst));
    let mut changes = tables[0].changes();
    tables[1].open("b7", 0.5, LIMIT).unwrap();
    until("open", || tables[0].state("b7") == CircuitState::Open).await;
    tables[1].half_open("b7").unwrap();
    until("half open", || tables[0].state("b7") == CircuitState::HalfOpen).await;
    tables[1].close("b7");
    let mut states = Vec::new();
    while states.len() < 3 {
        let Change::Changed { key, old, new } = changes.next().await.unwrap() else { panic!("it lagged") };
        assert_eq!(key, "b7");
        states.push((old.map(|old| old.state), new.map(|new| new.state)));
    }
    let (open, half) = (Some(CircuitState::Open), Some(CircuitState::HalfOpen));
    assert_eq!(states, [(None, open), (open, half), (half, None)]);
    until("the callback heard them", || calls.load(SeqCst) == 3).await;
    subscription.unsubscribe();
    drop(tables);
    assert!(changes.next().await.is_none(), "it ends with the table");
}

#[tokio::test]
async fn a_cluster_has_one_table_of_a_type_and_another_once_that_is_dropped() {
    let authority = authority();
    let cluster = started(node(&authority, "a", &[])).await;
    let first = HealthTable::attach(&cluster).unwrap();
    first.report("b7", Health::unhealthy("down")).unwrap();
    let clone = first.clone();
    drop(first);
    let error = HealthTable::attach(&cluster).unwrap_err().to_string();
    assert!(error.contains("health") && error.contains("drop it first"), "{error}");
    drop(clone);
    // What was said stays said, and the next table takes it up.
    let second = HealthTable::attach(&cluster).unwrap();
    assert_eq!(second.status("b7").status, HealthStatus::Unhealthy);
    assert!(second.withdraw("b7"));
    until("taken back", || cluster.states(&StateType::HEALTH).is_empty()).await;
    // A table that is left alone neither hangs nor panics.
    drop(cluster);
    second.report("b7", Health::healthy()).unwrap();
    assert_eq!(second.status("b7").status, HealthStatus::Healthy);
}

#[tokio::test]
async fn what_was_said_before_the_start_and_before_a_stop_is_shared_after_the_start() {
    let authority = authority();
    let seed = started(node(&authority, "a", &[])).await;
    let watching = HealthTable::attach(&seed).unwrap();
    let cluster = Cluster::new(node(&authority, "b", &[&seed])).unwrap();
    let table = HealthTable::attach(&cluster).unwrap();
    table.report("b7", Health::unhealthy("down")).unwrap();
    assert_eq!(table.status("b7").status, HealthStatus::Unhealthy);
    cluster.start().await.unwrap();
    until("shared", || watching.status("b7").status == HealthStatus::Unhealthy).await;
    watching.report("b8", Health::healthy()).unwrap();
    until("and the other way", || table.status("b8").status == HealthStatus::Healthy).await;
    cluster.stop().await.unwrap();
    until("who has left has no say", || watching.status("b7").status == HealthStatus::Unknown).await;
    until("nor hears of others", || table.status("b8").status == HealthStatus::Unknown).await;
    assert_eq!(table.status("b7").status, HealthStatus::Unhealthy, "it goes on by itself");
    cluster.start().await.unwrap();
    until("shared again", || watching.status("b7").status == HealthStatus::Unhealthy).await;
    until("heard again", || table.status("b8").status == HealthStatus::Healthy).await;
}

#[tokio::test]
async fn a_type_that_is_switched_off_stays_with_its_node() {
    let authority = authority();
    let seed = started(node(&authority, "a", &[])).await;
    let mut config = node(&authority, "b", &[&seed]);
    config.sync_health = false;
    config.sync_drain = false;
    let cluster = started(config).await;
    let (mine, theirs) = (HealthTable::attach(&cluster).unwrap(), HealthTable::attach(&seed).unwrap());
    mine.report("b7", Health::unhealthy("down")).unwrap();
    theirs.report("b8", Health::healthy()).unwrap();
    let (circuits, theirs_too) =
        (CircuitBreakers::attach(&cluster).unwrap(), CircuitBreakers::attach(&seed).unwrap());
    circuits.open("b7", 1.0, LIMIT).unwrap();
    until("other types pass", || theirs_too.state("b7") == CircuitState::Open).await;
    assert_eq!(mine.status("b7").status, HealthStatus::Unhealthy);
    assert_eq!(mine.status("b8").status, HealthStatus::Unknown);
    assert_eq!(theirs.status("b7").status, HealthStatus::Unknown);
    let refused = Drains::attach(&cluster).unwrap().start("b7", Drain::new("web", "alice", "")).unwrap_err();
    assert!(refused.to_string().contains("sync-drain"), "{refused}");
}

#[tokio::test]
async fn a_type_is_switched_off_and_on_while_the_node_runs() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    let (health, drains) = (attached(&fleet, HealthTable::attach), attached(&fleet, Drains::attach));
    health[0].report("b7", Health::unhealthy("down")).unwrap();
    health[1].report("b8", Health::healthy()).unwrap();
    let order = drains[0].start("b7", Drain::new("web", "alice", "")).unwrap();
    until("shared", || {
        health[1].status("b7").status == HealthStatus::Unhealthy
            && health[0].status("b8").status == HealthStatus::Healthy
            && !drains[1].is_active("b7")
    })
    .await;
    assert!(fleet[0].set_sync(&StateType::HEALTH, false).unwrap());
    assert!(!fleet[0].set_sync(&StateType::HEALTH, false).unwrap(), "it is off already");
    assert!(fleet[0].set_sync(&StateType::DRAIN, false).unwrap());
    assert!(!fleet[0].config().sync_health && fleet[0].config().sync_conntrack);
    assert!(fleet[0].states(&StateType::HEALTH).is_empty());
    assert!(matches!(fleet[0].broadcast(StateType::HEALTH, "b7", "x"), Err(Error::TypeDisabled { .. })));
    until("its opinion is taken back", || health[1].status("b7").status == HealthStatus::Unknown).await;
    until("others' are dropped", || health[0].status("b8").status == HealthStatus::Unknown).await;
    assert_eq!(health[0].status("b7").status, HealthStatus::Unhealthy, "it has its own");
    assert_eq!(drains[1].status("b7").orders, std::slice::from_ref(&order), "what it ordered stands");
    health[1].report("b8", Health::unhealthy("down")).unwrap();
    assert!(fleet[0].set_sync(&StateType::HEALTH, true).unwrap());
    assert!(fleet[0].set_sync(&StateType::DRAIN, true).unwrap());
    until("all of it is back", || {
        health[1].status("b7").status == HealthStatus::Unhealthy
            && health[0].status("b8").status == HealthStatus::Unhealthy
            && drains[0].status("b7").orders == [order.clone()]
    })
    .await;
    let refused = fleet[0].set_sync(&"routes".into(), false).unwrap_err().to_string();
    assert!(refused.contains("routes") && refused.contains("circuit-breaker"), "{refused}");
}

/// A report of health as a later version may write it.
#[derive(serde::Serialize)]
struct Later {
    status: &'static str,
    weight: u8,
}

#[tokio::test]
async fn a_value_of_another_kind_is_left_out_counted_and_passed_on_untouched() {
    let authority = authority();
    let fleet = fleet(&authority, 3).await;
    // The one in the middle has a table, the writer and the last one do not.
    let table = HealthTable::attach(&fleet[1]).unwrap();
    fleet[0].broadcast(StateType::HEALTH, "b7", &Health::unhealthy("down")).unwrap();
    until("read", || table.status("b7").opinions.len() == 1).await;
    fleet[0].broadcast(StateType::HEALTH, "b7", &("up", 7)).unwrap();
    until("left out", || table.unreadable() == 1).await;
    assert!(table.status("b7").opinions.is_empty(), "what it said before, it does not say any more");
    let later = Value::encode(&Later { status: "unhealthy", weight: 9 }).unwrap();
    fleet[0].broadcast(StateType::HEALTH, "b8", &Later { status: "unhealthy", weight: 9 }).unwrap();
    until("a field more is no harm", || table.status("b8").status == HealthStatus::Unhealthy).await;
    let held = |key: &str| fleet[2].states(&StateType::HEALTH).into_iter().find(|record| record.key == key);
    until("passed on", || held("b8").is_some() && held("b7").is_some()).await;
    assert_eq!(held("b8").unwrap().value, later);
    assert_eq!(held("b7").unwrap().value.decode::<(String, u8)>().unwrap(), ("up".into(), 7));
}

#[tokio::test]
async fn rules_and_reports_that_make_no_sense_are_refused_and_change_nothing() {
    let authority = authority();
    let cluster = started(node(&authority, "a", &[])).await;
    let mut rules = HealthRules::default();
    rules.rule = HealthRule::Fraction(f64::NAN);
    let error = HealthTable::attach_with(&cluster, rules).unwrap_err().to_string();
    assert!(error.contains("Fraction") && error.contains("NaN"), "{error}");
    let circuits = CircuitBreakers::attach(&cluster).unwrap();
    circuits.open("b7", 0.5, LIMIT).unwrap();
    let rates = [1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0].map(|rate| (rate, LIMIT));
    for (rate, period) in rates.into_iter().chain([(0.5, Duration::ZERO), (0.5, Duration::MAX)]) {
        assert!(matches!(circuits.open("b7", rate, period), Err(Error::InvalidReport { .. })));
    }
    assert!(matches!(circuits.open("", 0.5, LIMIT), Err(Error::InvalidKey { .. })));
    assert!((circuits.own("b7").unwrap().error_rate - 0.5).abs() < f64::EPSILON);
    let drains = Drains::attach(&cluster).unwrap();
    assert!(drains.start("x".repeat(480), Drain::default()).is_err());
    assert!(drains.start("x".repeat(479), Drain::default()).is_ok());
    let long = Drain::new("web", "alice", "x".repeat(2_000));
    assert!(drains.start("b7", long).unwrap_err().to_string().contains("1,024 bytes"));
    assert!(drains.is_active("b7"));
}
