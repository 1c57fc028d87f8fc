//! The rules of the tables, one by one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::model::{Cluster, id};
use crate::{
    NodeId, StateChange, StateType, SyncableState, Value,
    lb::{
        circuit_breaker::{Breaker, CircuitRule, CircuitState, Circuits},
        conntrack::{ConntrackRules, Flow, FlowKey, Flows},
        counters::Counted,
        drain::{Drain, DrainState, Drained, key_of, name_of},
        health::{Health, HealthRule, HealthRules, HealthStatus, Judge},
        live::{Live, Moment},
        opinions::Opinions,
        table::{Changes, Heart},
    },
};

pub(super) fn order(target: &str, number: usize) -> String {
    key_of(target, &name_of((number as u64, 0)))
}

pub(super) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) fn quiet<V>() -> Changes<V> {
    Changes::new(true)
}

/// Nodes `n0` to that number, of which every third is in each of three zones.
pub(super) fn live(me: usize, count: usize) -> Arc<Live> {
    let zone = |number: usize| Some(format!("z{}", number % 3));
    Arc::new(Live { me: id(me), nodes: (0..count).map(|number| (id(number), zone(number))).collect() })
}

pub(super) fn put(of: StateType, key: &str, value: Value, version: u64, source: usize) -> StateChange {
    StateChange::Put { new: SyncableState::new(of, key, value, version, id(source)), old: None }
}

pub(super) fn breaker(state: CircuitState) -> Value {
    Value::encode(&Breaker { state, error_rate: 0.5, period: secs(1) }).unwrap()
}

fn circuits(rule: CircuitRule, said: &[(usize, CircuitState)]) -> CircuitState {
    let mut table = Opinions::new(Circuits(rule), id(0));
    table.set_live(live(0, 4), Moment::ZERO, &mut quiet());
    for (version, (node, state)) in said.iter().enumerate() {
        let change = put(StateType::CIRCUIT_BREAKER, "b", breaker(*state), version as u64, *node);
        table.tell(&change, Moment::ZERO, &mut quiet());
    }
    table.view("b").map(|view| view.state).unwrap_or_default()
}

#[test]
fn the_more_severe_of_two_breakers_counts_whichever_came_first() {
    use CircuitState::{Closed, HalfOpen, Open};
    for (a, b, both) in [(Open, Closed, Open), (HalfOpen, Closed, HalfOpen), (Open, HalfOpen, Open)] {
        assert_eq!(circuits(CircuitRule::MostSevere, &[(1, a), (2, b)]), both);
        assert_eq!(circuits(CircuitRule::MostSevere, &[(2, b), (1, a)]), both);
    }
}

#[test]
fn so_many_or_such_a_share_must_say_that_a_circuit_is_open() {
    use CircuitState::{Closed, HalfOpen, Open};
    let two = CircuitRule::AtLeast(2);
    assert_eq!(circuits(two, &[(1, Open)]), Closed);
    assert_eq!(circuits(two, &[(1, Open), (2, HalfOpen)]), HalfOpen);
    assert_eq!(circuits(two, &[(1, Open), (2, Open)]), Open);
    assert_eq!(circuits(CircuitRule::Fraction(0.5), &[(1, Open)]), Closed, "one of four");
    assert_eq!(circuits(CircuitRule::Fraction(0.5), &[(1, Open), (3, Open)]), Open, "two of four");
}

#[test]
fn an_own_breaker_ends_with_its_period_and_a_late_word_of_it_does_not_open_it_again() {
    let mut table = Opinions::new(Circuits(CircuitRule::MostSevere), id(0));
    table.begin_reading();
    let open = Breaker { state: CircuitState::Open, error_rate: 0.5, period: secs(5) };
    table.report("b", open.clone(), Some(secs(5)), &mut quiet());
    let writes = table.take_writes(secs(1));
    assert_eq!((writes.len(), writes[0].options.ttl, writes[0].options.urgent), (1, Some(secs(4)), true));
    table.handle_timeout(secs(5), &mut quiet());
    assert!(table.view("b").is_none());
    let late = put(StateType::CIRCUIT_BREAKER, "b", breaker(CircuitState::Open), 1, 0);
    table.tell(&late, secs(5), &mut quiet());
    assert!(table.view("b").is_none(), "its store tells late of what has ended");
    // The same after a close.
    table.report("c", open, Some(secs(9)), &mut quiet());
    table.withdraw("c", &mut quiet());
    let late = put(StateType::CIRCUIT_BREAKER, "c", breaker(CircuitState::Open), 2, 0);
    table.tell(&late, secs(6), &mut quiet());
    assert!(table.view("c").is_none());
    let writes = table.take_writes(secs(6));
    assert!(writes.iter().all(|write| write.value.is_none()), "nothing but removals: {writes:?}");
}

#[test]
fn in_half_open_one_of_each_zone_may_try_and_all_agree_who() {
    let mut chosen = Vec::new();
    for me in 0..9 {
        let mut table = Opinions::new(Circuits(CircuitRule::MostSevere), id(me));
        let half = put(StateType::CIRCUIT_BREAKER, "b", breaker(CircuitState::HalfOpen), 1, 5);
        table.set_live(live(me, 9), Moment::ZERO, &mut quiet());
        table.tell(&half, Moment::ZERO, &mut quiet());
        chosen.push(table.view("b").map(|view| view.probers.clone()));
    }
    let probers = chosen[0].clone().unwrap();
    assert!(chosen.iter().flatten().all(|others| *others == probers || others.len() == 3));
    let zones: Vec<_> = probers.iter().map(|node| live(0, 9).nodes[node].clone()).collect();
    assert_eq!(zones, ["z0", "z1", "z2"].map(|zone| Some(zone.to_owned())));
}

#[test]
fn a_rate_that_is_none_makes_a_peers_value_unreadable() {
    let mut table = Opinions::new(Circuits(CircuitRule::MostSevere), id(0));
    table.set_live(live(0, 3), Moment::ZERO, &mut quiet());
    let good = put(StateType::CIRCUIT_BREAKER, "b", breaker(CircuitState::Open), 1, 1);
    table.tell(&good, Moment::ZERO, &mut quiet());
    for (version, rate) in [(2, f64::NAN), (3, 7.0)] {
        let bad = BTreeMap::from([("error_rate", rate)]);
        let bad = Value::encode(&(bad, "open")).unwrap();
        table.tell(&put(StateType::CIRCUIT_BREAKER, "b", bad, version, 1), Moment::ZERO, &mut quiet());
    }
    let bad = Breaker { state: CircuitState::Open, error_rate: f64::NAN, period: secs(1) };
    let bad = put(StateType::CIRCUIT_BREAKER, "b", Value::encode(&bad).unwrap(), 4, 1);
    table.tell(&bad, Moment::ZERO, &mut quiet());
    assert_eq!((table.view("b").is_none(), table.unreadable()), (true, 3));
}

fn judged(rules: HealthRules, said: &[(usize, HealthStatus)]) -> HealthStatus {
    let mut table = Opinions::new(Judge::new(rules), id(0));
    table.set_live(live(0, 6), Moment::ZERO, &mut quiet());
    for (version, (node, status)) in said.iter().enumerate() {
        let value = Value::encode(&Health::new(*status, "why")).unwrap();
        let change = put(StateType::HEALTH, "b", value, version as u64, *node);
        table.tell(&change, Moment::ZERO, &mut quiet());
    }
    table.status("b").status
}

#[test]
fn each_rule_judges_the_same_opinions_in_its_own_way() {
    use HealthStatus::{Healthy, Unhealthy, Unknown};
    let rules = |rule| HealthRules { rule, ..HealthRules::default() };
    let said = [(1, Unhealthy), (2, Healthy), (3, Unknown), (4, Healthy)];
    assert_eq!(judged(rules(HealthRule::Any), &said), Unhealthy);
    assert_eq!(judged(rules(HealthRule::Majority), &said), Healthy);
    assert_eq!(judged(rules(HealthRule::AtLeast(1)), &said), Unhealthy);
    assert_eq!(judged(rules(HealthRule::AtLeast(2)), &said), Healthy);
    assert_eq!(
        judged(rules(HealthRule::Fraction(0.33)), &said),
        Unhealthy,
        "who does not know is not counted"
    );
    assert_eq!(judged(rules(HealthRule::Fraction(0.34)), &said), Healthy);
    assert_eq!(judged(rules(HealthRule::Latest), &said), Healthy);
    assert_eq!(judged(rules(HealthRule::Latest), &[(4, Healthy), (1, Unhealthy)]), Unhealthy);
    assert_eq!(judged(rules(HealthRule::Majority), &[(3, Unknown)]), Unknown);
    assert_eq!(judged(rules(HealthRule::Majority), &[(1, Unhealthy), (2, Healthy)]), Healthy, "a draw");
    let custom = HealthRule::Custom(Arc::new(|_, opinions| match opinions.len() {
        4 => Unhealthy,
        _ => panic!("on purpose"),
    }));
    assert_eq!(judged(rules(custom.clone()), &said), Unhealthy);
    assert_eq!(judged(rules(custom), &said[..2]), Unknown, "a rule that panics");
}

#[test]
fn a_zone_judges_for_itself_if_anybody_in_it_has_an_opinion() {
    use HealthStatus::{Healthy, Unhealthy};
    let rules = || HealthRules { per_zone: true, ..HealthRules::default() };
    // n0 and n3 are in one zone; n1, n4 and n2 are not.
    assert_eq!(judged(rules(), &[(3, Healthy), (1, Unhealthy), (4, Unhealthy)]), Healthy);
    assert_eq!(judged(rules(), &[(1, Unhealthy), (2, Unhealthy)]), Unhealthy);
}

#[test]
fn beyond_its_share_of_unhealthy_targets_a_table_fails_open_and_says_so() {
    let rules = HealthRules { unhealthy_max: 0.5, ..HealthRules::default() };
    let mut table = Opinions::new(Judge::new(rules), id(0));
    for (number, target) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let health = if number < 2 { Health::unhealthy("down") } else { Health::healthy() };
        table.report(target, health, None, &mut quiet());
    }
    assert_eq!(table.status("a").status, HealthStatus::Unhealthy, "half of them is allowed");
    table.report("c", Health::unhealthy("down"), None, &mut quiet());
    let view = table.status("a");
    assert_eq!(
        (view.status, view.verdict, view.fails_open),
        (HealthStatus::Healthy, HealthStatus::Unhealthy, true)
    );
    assert!(
        view.reason.starts_with("3 of 4 targets are unhealthy, more than the share of 0.5"),
        "{}",
        view.reason
    );
    table.withdraw("c", &mut quiet());
    table.report("b", Health::healthy(), None, &mut quiet());
    assert!(!table.status("a").fails_open);
}

#[test]
fn the_opinions_of_the_dead_stop_counting_and_come_back_with_them() {
    let rules = HealthRules { rule: HealthRule::Any, ..HealthRules::default() };
    let mut cluster = Cluster::new(3, move |me| Opinions::new(Judge::new(rules.clone()), me));
    cluster.isolates = true;
    cluster.nodes[2].heart.report("b", Health::unhealthy("down"), None, &mut quiet());
    cluster.repair();
    let before = cluster.nodes[0].heart.status("b");
    assert_eq!(before.status, HealthStatus::Unhealthy);
    cluster.cut(2);
    assert_eq!(cluster.nodes[0].heart.status("b").status, HealthStatus::Unknown);
    cluster.heal(2);
    assert_eq!(cluster.nodes[0].heart.status("b"), before);
}

/// A table of drains at `n0`, of three nodes.
fn drains() -> Drained {
    let mut table = Drained::new(id(0));
    table.begin_reading();
    table.set_live(live(0, 3), Moment::ZERO, &mut quiet());
    table
}

fn given(number: usize, version: u64) -> StateChange {
    let drain = Value::encode(&Drain::new("web", "alice", "")).unwrap();
    put(StateType::DRAIN, &order("b", number), drain, version, 1)
}

fn state(table: &Drained) -> DrainState {
    table.view("b").map(|view| view.state).unwrap_or_default()
}

/// That node says it is done with that order.
fn done(number: usize, node: usize, version: u64) -> StateChange {
    #[derive(serde::Serialize)]
    struct Progress {
        order: Option<String>,
        open: u64,
        done: bool,
        apart: bool,
    }
    let order = Some(name_of((number as u64, 0)));
    let value = Value::encode(&Progress { order, open: 0, done: true, apart: false }).unwrap();
    put(StateType::DRAIN_PROGRESS, "b", value, version, node)
}

#[test]
fn drained_is_only_what_all_live_nodes_have_said_of_an_order_in_force() {
    let mut table = drains();
    table.tell(&given(1, 1), Moment::ZERO, &mut quiet());
    assert_eq!(state(&table), DrainState::Draining);
    table.tell(&done(1, 1, 2), Moment::ZERO, &mut quiet());
    table.tell(&done(9, 2, 3), Moment::ZERO, &mut quiet()); // of an order that is not in force
    assert!(table.advance("b", 0, true, &mut quiet()));
    assert_eq!(table.view("b").unwrap().waiting_for, [id(2)].into());
    table.tell(&done(1, 2, 4), Moment::ZERO, &mut quiet());
    assert_eq!(state(&table), DrainState::Drained);
    // A newcomer has to say so too; the dead need not.
    table.set_live(live(0, 4), Moment::ZERO, &mut quiet());
    assert_eq!(state(&table), DrainState::Draining);
    table.set_live(live(0, 2), Moment::ZERO, &mut quiet());
    assert_eq!(state(&table), DrainState::Drained);
}

#[test]
fn what_was_completed_holds_while_the_target_is_ordered_to_drain_without_a_break() {
    let mut table = drains();
    table.set_live(live(0, 1), Moment::ZERO, &mut quiet());
    table.tell(&given(1, 1), Moment::ZERO, &mut quiet());
    assert!(table.advance("b", 0, true, &mut quiet()));
    let gone = |number| {
        let StateChange::Put { new, .. } = given(number, 1) else { panic!("it is one") };
        StateChange::Removed { old: new }
    };
    table.tell(&given(2, 2), Moment::ZERO, &mut quiet());
    table.tell(&gone(1), Moment::ZERO, &mut quiet());
    assert_eq!(state(&table), DrainState::Drained, "another order took its place");
    table.tell(&gone(2), Moment::ZERO, &mut quiet());
    assert_eq!(state(&table), DrainState::Active);
    table.tell(&given(3, 3), Moment::ZERO, &mut quiet());
    assert_eq!(state(&table), DrainState::Draining, "it served in between");
}

#[test]
fn a_window_slides_and_a_steady_rate_stays_in_sight() {
    let mut table = Counted::new(id(0));
    table.begin_reading();
    let mut now = Moment::ZERO;
    let mut written: u32 = 0;
    // One each 100 ms, ten windows long.
    for _ in 0..100 {
        table.add("c", 1, secs(1), now, &mut quiet());
        now += Duration::from_millis(100);
        table.handle_timeout(now, &mut quiet());
        for write in table.take_writes(now) {
            assert!(
                write.options.ttl >= Some(Duration::from_millis(500)),
                "it ends before it is written again"
            );
            written += 1;
        }
    }
    let sum = table.view("c").unwrap().sum;
    assert!((9..=11).contains(&sum), "{sum} in a second");
    assert!((15..=110).contains(&written), "{written} writes in ten seconds");
    for _ in 0..20 {
        now += Duration::from_millis(100);
        table.handle_timeout(now, &mut quiet());
    }
    assert!(table.view("c").is_none(), "nothing was counted for two windows");
    assert_eq!(table.next_timeout(), None, "and nothing is planned");
}

pub(super) fn flows(rules: ConntrackRules) -> Flows {
    let mut table = Flows::new(rules, id(0), Box::new(drop));
    table.begin_reading();
    table.end_reading(Moment::ZERO, &mut quiet());
    table.set_live(live(0, 3), Moment::ZERO, &mut quiet());
    table
}

pub(super) fn key(number: u16) -> FlowKey {
    FlowKey::tcp(([192, 0, 2, 1], number).into(), ([203, 0, 113, 1], 443).into())
}

/// What is written up to `end`, looking as often as the table wants.
fn written(table: &mut Flows, end: Moment) -> usize {
    let mut count = 0;
    while let Some(next) = table.next_timeout().filter(|next| *next <= end) {
        table.handle_timeout(next, &mut quiet());
        count += table.take_writes(next).len();
    }
    count
}

#[test]
fn a_flow_is_told_once_it_is_old_or_busy_enough_and_then_only_now_and_then() {
    let rules =
        ConntrackRules { ttl: secs(60), min_age: secs(2), min_packets: 8, ..ConntrackRules::default() };
    let mut table = flows(rules);
    for number in 0..100 {
        table.insert(key(number), Flow::new(None), Moment::ZERO, &mut quiet());
    }
    for number in 0..97 {
        table.remove(&key(number), Duration::from_millis(500), &mut quiet());
    }
    table.update(&key(97), secs(1), &mut quiet(), |flow| flow.packets = 8);
    assert_eq!(written(&mut table, Duration::from_millis(1_500)), 1, "the busy one");
    assert_eq!(written(&mut table, secs(3)), 2, "those that live on; not a word of the 97 that did not");
    // A thousand packets in one time to live cost a few words.
    let mut words = 0;
    for packet in 0..1_000_u64 {
        let now = secs(3) + Duration::from_millis(packet * 60);
        words += written(&mut table, now);
        table.update(&key(97), now, &mut quiet(), |flow| flow.packets += 1);
    }
    assert!((2..=3).contains(&words), "{words}");
    // The two silent ones have ended meanwhile.
    assert_eq!(table.len(), 1);
}

#[test]
fn a_flow_that_ended_at_its_new_owner_does_not_come_back_through_the_old_one() {
    let rules = ConntrackRules { min_age: Duration::ZERO, ..ConntrackRules::default() };
    let mut cluster = Cluster::new(3, move |me| Flows::new(rules, me, Box::new(drop)));
    cluster.isolates = true;
    cluster.nodes[2].heart.insert(key(1), Flow::new(None), Moment::ZERO, &mut quiet());
    cluster.repair();
    cluster.cut(2);
    cluster.repair();
    let owner = cluster.nodes[0].heart.view(&key(1)).unwrap().owner;
    let at = usize::from(owner == id(1));
    let now = cluster.now;
    assert!(cluster.nodes[at].heart.remove(&key(1), now, &mut quiet()));
    cluster.repair();
    cluster.heal(2);
    cluster.repair();
    for node in &cluster.nodes {
        assert_eq!(node.heart.view(&key(1)), None, "{}", node.id);
    }
}

#[test]
fn a_source_has_so_many_flows_and_no_more() {
    let mut table = flows(ConntrackRules { max_per_source: 10, ..ConntrackRules::default() });
    let claim = |number: u16| {
        let mut theirs = flows(ConntrackRules { min_age: Duration::ZERO, ..ConntrackRules::default() });
        theirs.insert(key(number), Flow::new(None), Moment::ZERO, &mut quiet());
        theirs.handle_timeout(secs(1), &mut quiet());
        theirs.handle_timeout(secs(2), &mut quiet());
        theirs.take_writes(secs(2)).remove(0)
    };
    let tell = |table: &mut Flows, number, source| {
        let write = claim(number);
        let change = put(StateType::CONNTRACK, &write.key, write.value.unwrap(), 1, source);
        table.tell(&change, Moment::ZERO, &mut quiet());
    };
    for number in 0..15 {
        tell(&mut table, number, 1);
    }
    tell(&mut table, 100, 2);
    assert_eq!((table.len(), table.counts.over_cap), (11, 5));
}

#[test]
fn what_is_not_a_flow_is_left_out_and_counted() {
    let mut table = flows(ConntrackRules::default());
    let bytes = |bytes: &[u8]| Value::encode(&serde_bytes::Bytes::new(bytes)).unwrap();
    let good = key(1).to_key();
    for (name, value) in [
        ("no-flow", bytes(&[0, 0, 0, 0, 0, 0])),
        (good.as_str(), Value::encode("text").unwrap()),
        (good.as_str(), bytes(&[])),
        (good.as_str(), bytes(&[0xff, 0, 0, 0, 0, 0])),
        (good.as_str(), bytes(&[0; 6 + 65])),
    ] {
        table.tell(&put(StateType::CONNTRACK, name, value, 1, 1), Moment::ZERO, &mut quiet());
    }
    assert_eq!((table.len(), table.unreadable()), (0, 5));
    let more = put(StateType::CONNTRACK, &good, bytes(&[0, 0, 0, 0, 0, 0, 7, 7]), 1, 1);
    table.tell(&more, Moment::ZERO, &mut quiet());
    assert_eq!(table.len(), 1, "what a later version adds is no harm");
    let owner: Option<NodeId> = table.view(&key(1)).map(|view| view.owner);
    assert_eq!(owner, Some(id(1)));
}
