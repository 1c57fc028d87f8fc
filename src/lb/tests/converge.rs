//! Any order, any number of deliveries, any deaths and returns: one view on all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use proptest::prelude::*;

use super::model::{Cluster, Node};
use crate::{
    Value,
    lb::{
        circuit_breaker::{Breaker, CircuitRule, CircuitState, Circuits},
        conntrack::{ConntrackRules, Flow, FlowKey, Flows},
        counters::Counted,
        drain::{Drain, Drained},
        health::{Health, HealthRule, HealthRules, HealthStatus, Judge},
        live::Moment,
        opinions::Opinions,
        table::{Changes, Heart},
    },
};

const NODES: usize = 5;

/// What happens to a cluster.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The program does something with the table of a node: which thing, and to what.
    Act {
        node: usize,
        what: u8,
        key: u8,
    },
    /// Something that a node has written reaches another.
    Deliver {
        from: usize,
        to: usize,
        which: usize,
    },
    Cut(usize),
    Heal(usize),
    Restart(usize),
    Pass {
        ms: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..NODES;
    let step = prop_oneof![
        6 => (node.clone(), any::<u8>(), 0_u8..3).prop_map(|(node, what, key)| Step::Act { node, what, key }),
        8 => (node.clone(), node.clone(), any::<usize>())
            .prop_map(|(from, to, which)| Step::Deliver { from, to, which }),
        1 => node.clone().prop_map(Step::Cut),
        1 => node.clone().prop_map(Step::Heal),
        1 => node.prop_map(Step::Restart),
        1 => (1_u64..5_000).prop_map(|ms| Step::Pass { ms }),
    ];
    proptest::collection::vec(step, 0..60)
}

fn play<H: Heart>(cluster: &mut Cluster<H>, steps: &[Step], act: impl Fn(&mut Node<H>, u8, u8, Moment)) {
    for step in steps {
        match *step {
            Step::Act { node, what, key } => {
                let now = cluster.now;
                act(&mut cluster.nodes[node], what, key, now);
                cluster.nodes[node].settle(now);
            }
            Step::Deliver { from, to, which } => cluster.deliver(from, to, which),
            Step::Cut(node) => cluster.cut(node),
            Step::Heal(node) => cluster.heal(node),
            Step::Restart(node) => cluster.restart(node),
            Step::Pass { ms } => cluster.pass(Duration::from_millis(ms)),
        }
    }
    for node in 0..NODES {
        cluster.heal(node);
    }
    cluster.repair();
}

/// What all see, if they see the same.
fn agreed<H: Heart, V: PartialEq + Debug>(
    cluster: &Cluster<H>,
    view: impl Fn(&H) -> V,
) -> Result<V, TestCaseError> {
    let first = view(&cluster.nodes[0].heart);
    for node in &cluster.nodes[1..] {
        prop_assert_eq!(&view(&node.heart), &first, "{} and {} differ", &node.id, &cluster.nodes[0].id);
    }
    Ok(first)
}

fn quiet<V>() -> Changes<V> {
    Changes::new(true)
}

fn health(what: u8) -> Option<Health> {
    let at = std::time::SystemTime::UNIX_EPOCH;
    let status = match what % 4 {
        0 => HealthStatus::Healthy,
        1 => HealthStatus::Unhealthy,
        2 => HealthStatus::Unknown,
        _ => return None,
    };
    let mut health = Health::new(status, format!("reason {}", what / 4));
    health.last_check = at;
    Some(health)
}

fn health_ends_the_same(rule: &HealthRule, steps: &[Step]) -> Result<(), TestCaseError> {
    let rules = HealthRules { rule: rule.clone(), unhealthy_max: 0.5, ..HealthRules::default() };
    let mut cluster = Cluster::new(NODES, move |me| Opinions::new(Judge::new(rules.clone()), me));
    play(&mut cluster, steps, |node, what, key, _| {
        let target = format!("t{key}");
        match health(what) {
            Some(health) => node.heart.report(&target, health, None, &mut quiet()),
            None => _ = node.heart.withdraw(&target, &mut quiet()),
        }
    });
    agreed(&cluster, |heart| (0..3).map(|key| heart.status(&format!("t{key}"))).collect::<Vec<_>>())?;
    Ok(())
}

fn every_flow_ends_with_one_owner(steps: &[Step]) -> Result<(), TestCaseError> {
    let rules = sharing_at_once();
    let mut cluster = Cluster::new(NODES, move |me| Flows::new(rules, me, Box::new(drop)));
    play(&mut cluster, steps, |node, what, key, now| {
        let key = flow_key(key);
        match what % 4 {
            0 | 1 => _ = node.heart.insert(key, flow(), now, &mut quiet()),
            2 => _ = node.heart.update(&key, now, &mut quiet(), |flow| flow.packets += 1),
            _ => _ = node.heart.remove(&key, now, &mut quiet()),
        }
    });
    for key in (0..3).map(flow_key) {
        let owners: BTreeMap<_, _> = cluster
            .nodes
            .iter()
            .map(|node| {
                let view = node.heart.view(&key);
                (node.id.clone(), view.map(|view| (view.owner, view.generation, view.is_orphaned)))
            })
            .collect();
        let first = &owners[&cluster.nodes[0].id];
        prop_assert!(owners.values().all(|owner| owner == first), "{:?}", owners);
        prop_assert!(first.as_ref().is_none_or(|(_, _, orphaned)| !orphaned), "{:?}", first);
        let own = cluster.nodes.iter().filter(|node| node.heart.view(&key).is_some_and(|view| view.is_own));
        prop_assert_eq!(own.count(), usize::from(first.is_some()));
    }
    Ok(())
}

#[test]
fn who_restarts_goes_on_with_the_last_that_it_said_of_a_flow_whatever_it_hears_first() {
    use Step::*;
    let steps = [
        Act { node: 1, what: 192, key: 0 },
        Deliver { from: 1, to: 0, which: 0 },
        Act { node: 0, what: 92, key: 0 },
        Act { node: 0, what: 51, key: 0 },
        Deliver { from: 0, to: 4, which: 1 },
        Deliver { from: 0, to: 1, which: 0 },
        Restart(0),
    ];
    every_flow_ends_with_one_owner(&steps).unwrap();
}

proptest! {
    #[test]
    fn health_ends_the_same_at_all_under_every_rule(steps in steps(), of in 0_usize..5) {
        let rules = [
            HealthRule::Any,
            HealthRule::Majority,
            HealthRule::AtLeast(2),
            HealthRule::Fraction(0.4),
            HealthRule::Latest,
        ];
        health_ends_the_same(&rules[of], &steps)?;
    }

    #[test]
    fn circuits_end_the_same_at_all_under_every_rule(steps in steps(), of in 0_usize..3) {
        let rule = [CircuitRule::MostSevere, CircuitRule::AtLeast(2), CircuitRule::Fraction(0.5)][of];
        let mut cluster = Cluster::new(NODES, move |me| Opinions::new(Circuits(rule), me));
        play(&mut cluster, &steps, |node, what, key, now| {
            let target = format!("t{key}");
            let period = Duration::from_secs(100_000);
            let breaker = |state| Breaker { state, error_rate: f64::from(what) / 256.0, period };
            match what % 3 {
                0 => node.heart.report(&target, breaker(CircuitState::Open), Some(now + period), &mut quiet()),
                1 => node.heart.report(&target, breaker(CircuitState::HalfOpen), None, &mut quiet()),
                _ => _ = node.heart.withdraw(&target, &mut quiet()),
            }
        });
        agreed(&cluster, Opinions::views)?;
    }

    #[test]
    fn counters_end_the_same_at_all(steps in steps()) {
        let mut cluster = Cluster::new(NODES, Counted::new);
        play(&mut cluster, &steps, |node, what, key, _| {
            let name = format!("c{key}");
            if what % 5 == 0 {
                node.heart.withdraw(&name, &mut quiet());
            } else {
                node.heart.set(&name, what.into(), &mut quiet());
            }
        });
        agreed(&cluster, |heart| (0..3).map(|key| heart.view(&format!("c{key}")).cloned()).collect::<Vec<_>>())?;
    }

    #[test]
    fn drains_end_the_same_at_all_and_no_order_is_lost_to_a_cancel_that_had_not_seen_it(steps in steps()) {
        let mut cluster = Cluster::new(NODES, Drained::new);
        // Every order that was given, by key, and those that some node has cancelled.
        let (given, cancelled) = (std::cell::RefCell::default(), std::cell::RefCell::default());
        play(&mut cluster, &steps, |node, what, key, now| {
            let (given, cancelled): (&mut BTreeSet<String>, &mut BTreeSet<String>) =
                (&mut given.borrow_mut(), &mut cancelled.borrow_mut());
            let target = format!("t{key}");
            let of = crate::StateType::DRAIN;
            match what % 4 {
                0 => {
                    let old = node.heart.keys(&target);
                    let key = super::rules::order(&target, given.len());
                    let drain = Value::encode(&Drain::new("web", "test", "")).unwrap();
                    let written = node.write_by_hand(of.clone(), &key, Some(drain), now);
                    node.heart.give(&written, &mut quiet());
                    given.insert(key);
                    for key in old {
                        node.write_by_hand(of.clone(), &key, None, now);
                        node.heart.take_back(&key, &mut quiet());
                        cancelled.insert(key);
                    }
                }
                1 => for key in node.heart.keys(&target) {
                    node.write_by_hand(of.clone(), &key, None, now);
                    node.heart.take_back(&key, &mut quiet());
                    cancelled.insert(key);
                },
                2 => _ = node.heart.advance(&target, what.into(), what >= 128, &mut quiet()),
                _ => node.heart.set_apart(&target, what >= 128, &mut quiet()),
            }
        });
        let view = agreed(&cluster, |heart| {
            (0..3).map(|key| heart.view(&format!("t{key}")).cloned()).collect::<Vec<_>>()
        })?;
        // What a crash took with it before anybody heard of it is gone; all else that nobody cancelled stands.
        let in_force: BTreeSet<String> =
            (0..3).flat_map(|key| cluster.nodes[0].heart.keys(&format!("t{key}"))).collect();
        let (given, cancelled) = (given.into_inner(), cancelled.into_inner());
        prop_assert!(in_force.is_subset(&given) && view.len() == 3);
        if !steps.iter().any(|step| matches!(step, Step::Restart(_))) {
            let standing: BTreeSet<_> = given.difference(&cancelled).cloned().collect();
            prop_assert_eq!(in_force, standing);
        }
    }

    #[test]
    fn every_flow_ends_with_one_owner_that_all_name(steps in steps()) {
        every_flow_ends_with_one_owner(&steps)?;
    }
    #[test]
    fn flows_of_the_dead_pass_on_each_to_one_and_none_is_lost(
        count in 1_u8..60, dead in proptest::collection::btree_set(0_usize..NODES, 1..NODES), back: bool,
    ) {
        let rules = sharing_at_once();
        let mut cluster = Cluster::new(NODES, move |me| Flows::new(rules, me, Box::new(drop)));
        for number in 0..count {
            let now = cluster.now;
            cluster.nodes[usize::from(number) % NODES].heart.insert(flow_key(number), flow(), now, &mut quiet());
        }
        cluster.repair();
        cluster.isolates = true;
        cluster.cut_all(&dead);
        cluster.repair();
        let live: Vec<_> = (0..NODES).filter(|at| !dead.contains(at)).collect();
        let mut owners = Vec::new();
        for number in 0..count {
            let of = |at: &usize| cluster.nodes[*at].heart.view(&flow_key(number)).map(|view| view.owner);
            let seen: BTreeSet<_> = live.iter().map(of).collect();
            prop_assert_eq!(seen.len(), 1);
            let owner = seen.into_iter().next().flatten().expect("it was spread");
            prop_assert!(live.iter().any(|at| cluster.nodes[*at].id == owner), "{} is dead", owner);
            let was = usize::from(number) % NODES;
            prop_assert!(dead.contains(&was) || owner == cluster.nodes[was].id, "it was taken from the living");
            owners.push(owner);
        }
        if back {
            for at in dead {
                cluster.heal(at);
            }
            cluster.repair();
            for (number, owner) in (0..count).zip(owners) {
                for node in &cluster.nodes {
                    let view = node.heart.view(&flow_key(number)).unwrap();
                    prop_assert_eq!(&view.owner, &owner, "{} took back", &node.id);
                }
            }
        }
    }
}

fn flow_key(number: u8) -> FlowKey {
    FlowKey::tcp(([192, 0, 2, number], 4_000).into(), ([203, 0, 113, 1], 443).into())
}

fn sharing_at_once() -> ConntrackRules {
    let ttl = Duration::from_secs(100_000);
    ConntrackRules { ttl, min_age: Duration::ZERO, ..ConntrackRules::default() }
}

fn flow() -> Flow {
    let mut flow = Flow::new(None);
    flow.packets = 10;
    flow
}
