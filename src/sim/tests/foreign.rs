//! What a node cannot read itself it passes on as it came: values of other versions, over a node in between.

use serde_json::json;

use super::{secs, settled};
use crate::{
    Options, StateType, Value,
    lb::{
        circuit_breaker::{CircuitRule, Circuits},
        conntrack::{ConntrackRules, FlowKey, Flows},
        counters::Counted,
        drain::Drained,
        health::{HealthRules, Judge},
        opinions::Opinions,
        table::{Changes, Heart},
    },
    sim::{Fault, World, seeds},
};

/// For each type something of another kind and something with a field more than this version knows.
fn values() -> Vec<(StateType, String, Value)> {
    let value = |of: &serde_json::Value| Value::encode(of).unwrap();
    let bytes = |bytes: &[u8]| Value::encode(&serde_bytes::Bytes::new(bytes)).unwrap();
    let flow = |port| FlowKey::tcp(([192, 0, 2, 1], port).into(), ([203, 0, 113, 1], 443).into()).to_key();
    let named = |of: StateType, known: serde_json::Value| {
        let mut later = known;
        later["of_the_next_version"] = json!({ "weight": 0.5 });
        [
            (of.clone(), "odd".into(), value(&json!(["of", "another", "kind"]))),
            (of, "later".into(), value(&later)),
        ]
    };
    let mut values = Vec::new();
    values.extend(named(StateType::HEALTH, json!({ "status": "unhealthy" })));
    values.extend(named(StateType::CIRCUIT_BREAKER, json!({ "state": "open", "error_rate": 0.5 })));
    values.extend(named(StateType::DRAIN, json!({ "proxy_name": "web" })));
    values.extend(named(StateType::DRAIN_PROGRESS, json!({ "open": 7 })));
    values.extend(named(StateType::COUNTER, json!({ "value": 7 })));
    values.push((StateType::CIRCUIT_BREAKER, "nan".into(), Value::encode(&f64::NAN).unwrap()));
    values.push((StateType::CONNTRACK, flow(1), bytes(&[0xff, 1, 2, 3])));
    values.push((StateType::CONNTRACK, flow(2), bytes(&[0, 0, 0, 0, 0, 0, 7, 8, 9])));
    values
}

/// Tells a table of `reader` all that its node holds.
fn read<H: Heart>(world: &World, reader: &crate::NodeId, mut table: H) -> u64 {
    let mut changes = Changes::new(true);
    for of in table.types() {
        for new in world.process(reader).core.states(&of) {
            table.tell(&crate::StateChange::Put { new, old: None }, secs(0), &mut changes);
        }
    }
    table.unreadable()
}

#[test]
fn what_a_node_in_between_cannot_read_reaches_the_third_as_it_was_written() {
    seeds(0..4, |world| {
        let nodes = settled(world, 3);
        let [writer, between, third] = &nodes[..] else { panic!("there are three") };
        world.cut(writer, third);
        world.cut(third, writer);
        let written: Vec<_> = values()
            .into_iter()
            .map(|(of, key, value)| {
                (world.broadcast_with(writer, &of, &key, value.clone(), Options::default()), value)
            })
            .collect();
        let holds = |world: &World, node: &crate::NodeId| {
            written.iter().all(|(record, value)| {
                let states = world.process(node).core.states(&record.state_type);
                states.iter().any(|held| held == record && held.value.as_bytes() == value.as_bytes())
            })
        };
        world.run_until(secs(60), |world| holds(world, between) && holds(world, third));
        assert_eq!(world.count(Fault::Cut), 2, "nothing came straight from the writer");
        let me = || between.clone();
        let unreadable = [
            read(world, between, Opinions::new(Judge::new(HealthRules::default()), me())),
            read(world, between, Opinions::new(Circuits(CircuitRule::MostSevere), me())),
            read(world, between, Drained::new(me())),
            read(world, between, Counted::new(me())),
            read(world, between, Flows::new(ConntrackRules::default(), me(), Box::new(drop))),
        ];
        assert_eq!(unreadable, [1, 2, 2, 1, 1]);
    });
}
