//! The tables of load balancers on real cores, through the same troubles as everything else: in the end all
//! nodes see the same, and each flow of a dead node has one owner.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use super::{ms, secs, settled};
use crate::{
    NodeId, Options, StateType, Value,
    lb::{
        circuit_breaker::{Breaker, CircuitRule, CircuitState, Circuits},
        conntrack::{ConntrackRules, Flow, FlowKey, Flows},
        counters::Counted,
        drain::{Drain, Drained, key_of, name_of},
        health::{Health, HealthRules, HealthStatus, Judge},
        live::Live,
        opinions::Opinions,
        table::{Changes, Heart},
    },
    sim::{Fault, World, process::Process, seeds},
    wire::message::WireRecord,
};

type Promoted = Arc<Mutex<Vec<FlowKey>>>;

/// A node's tables.
struct Tables {
    pid: usize,
    heard: usize,
    live: Arc<Live>,
    health: Opinions<Judge>,
    circuits: Opinions<Circuits>,
    drains: Drained,
    counters: Counted,
    flows: Flows,
    promoted: Promoted,
}

impl Tables {
    fn new(id: &NodeId, pid: usize, ttl: Duration) -> Self {
        let promoted = Promoted::default();
        let told = Arc::clone(&promoted);
        let sink = move |flows: Vec<(FlowKey, Flow)>| {
            told.lock().unwrap().extend(flows.into_iter().map(|(key, _)| key));
        };
        let rules = ConntrackRules { ttl, min_age: ms(100), ..ConntrackRules::default() };
        let mut tables = Self {
            pid,
            heard: 0,
            live: Arc::new(Live::alone(id.clone())),
            health: Opinions::new(Judge::new(HealthRules::default()), id.clone()),
            circuits: Opinions::new(Circuits(CircuitRule::AtLeast(2)), id.clone()),
            drains: Drained::new(id.clone()),
            counters: Counted::new(id.clone()),
            flows: Flows::new(rules, id.clone(), Box::new(sink)),
            promoted,
        };
        tables.health.begin_reading();
        tables.circuits.begin_reading();
        tables.drains.begin_reading();
        tables.counters.begin_reading();
        tables.flows.begin_reading();
        tables
    }

    /// Hears what its core has told since, and says what is to be written.
    fn hear(&mut self, process: &Process, now: Duration) -> Vec<crate::lb::registers::Write> {
        fn feed<H: Heart>(
            heart: &mut H,
            news: &[crate::StateChange],
            live: Option<&Arc<Live>>,
            now: Duration,
        ) -> Vec<crate::lb::registers::Write> {
            let (types, mut changes) = (heart.types(), Changes::new(true));
            for change in news {
                if change.record().is_some_and(|record| types.contains(&record.state_type)) {
                    heart.tell(change, now, &mut changes);
                }
            }
            if let Some(live) = live {
                heart.set_live(Arc::clone(live), now, &mut changes);
            }
            heart.handle_timeout(now, &mut changes);
            heart.take_writes(now)
        }
        let news = &process.record.changes[self.heard..];
        self.heard = process.record.changes.len();
        let live = Live { me: process.id.clone(), nodes: process.core.speakers() };
        let changed = live != *self.live;
        self.live = Arc::new(live);
        let live = changed.then_some(&self.live);
        let mut writes = feed(&mut self.health, news, live, now);
        writes.extend(feed(&mut self.circuits, news, live, now));
        writes.extend(feed(&mut self.drains, news, live, now));
        writes.extend(feed(&mut self.counters, news, live, now));
        writes.extend(feed(&mut self.flows, news, live, now));
        writes
    }
}

/// Everybody's tables.
struct Fleet {
    of: BTreeMap<NodeId, Tables>,
    ttl: Duration,
}

impl Fleet {
    fn new(ttl: Duration) -> Self {
        Self { of: BTreeMap::new(), ttl }
    }

    /// Lets time pass in the world, and the tables have their turn.
    fn run(&mut self, world: &mut World, span: Duration) {
        world.run(span);
        let now = Duration::from_micros(world.now);
        for id in world.live() {
            let pid = world.pid_of(&id);
            let ttl = self.ttl;
            let tables = self.of.entry(id.clone()).or_insert_with(|| Tables::new(&id, pid, ttl));
            if tables.pid != pid {
                *tables = Tables::new(&id, pid, ttl); // a new process knows nothing
            }
            for write in tables.hear(world.process(&id), now) {
                match write.value {
                    Some(value) => {
                        world.broadcast_with(&id, &write.state_type, &write.key, value, write.options);
                    }
                    None => _ = world.remove(&id, &write.state_type, &write.key),
                }
            }
        }
    }

    fn run_until(&mut self, world: &mut World, limit: Duration, done: impl Fn(&Self, &World) -> bool) {
        let end = world.now + u64::try_from(limit.as_micros()).unwrap();
        while !done(self, world) {
            assert!(world.now < end, "not within {limit:?}");
            self.run(world, ms(20));
        }
    }

    fn live<'a>(&'a self, world: &World) -> Vec<&'a Tables> {
        world.live().iter().filter_map(|id| self.of.get(id)).collect()
    }

    /// Some program does something.
    fn act(&mut self, world: &mut World) {
        let live: Vec<_> = world.live().into_iter().filter(|id| self.of.contains_key(id)).collect();
        let Some(id) = (!live.is_empty()).then(|| live[world.rng.usize(..live.len())].clone()) else {
            return;
        };
        let (what, key) = (world.rng.u32(..12), world.rng.u8(..4));
        let (now, target) = (Duration::from_micros(world.now), format!("t{key}"));
        let tables = self.of.get_mut(&id).unwrap();
        if tables.pid != world.pid_of(&id) {
            return;
        }
        match what {
            0 | 1 => {
                let mut health = Health::new(HealthStatus::Unhealthy, "refused");
                health.last_check = SystemTime::UNIX_EPOCH + now;
                if what == 1 {
                    health.status = HealthStatus::Healthy;
                }
                tables.health.report(&target, health, None, &mut Changes::new(true));
            }
            2 => _ = tables.health.withdraw(&target, &mut Changes::new(true)),
            3 | 4 => {
                let period = if what == 3 { secs(2) } else { secs(10_000) };
                let breaker = Breaker { state: CircuitState::Open, error_rate: 0.5, period };
                tables.circuits.report(&target, breaker, Some(now + period), &mut Changes::new(true));
            }
            5 => _ = tables.circuits.withdraw(&target, &mut Changes::new(true)),
            6 => {
                let key = key_of(&target, &name_of((world.rng.u64(..), 0)));
                let drain = Value::encode(&Drain::new("web", "test", "")).unwrap();
                let urgent = Options { ttl: None, urgent: true };
                let written = world.broadcast_with(&id, &StateType::DRAIN, &key, drain, urgent);
                tables.drains.give(&written, &mut Changes::new(true));
            }
            7 => {
                for key in tables.drains.keys(&target) {
                    if world.remove(&id, &StateType::DRAIN, &key).is_some() {
                        tables.drains.take_back(&key, &mut Changes::new(true));
                    }
                }
            }
            8 => _ = tables.drains.advance(&target, 0, true, &mut Changes::new(true)),
            9 => tables.counters.set(&target, world.rng.u64(..9), &mut Changes::new(true)),
            10 => _ = tables.flows.insert(flow_key(key.into()), flow(), now, &mut Changes::new(true)),
            _ => _ = tables.flows.remove(&flow_key(key.into()), now, &mut Changes::new(true)),
        }
    }
}

fn flow_key(number: u16) -> FlowKey {
    FlowKey::tcp(([192, 0, 2, 1], number).into(), ([203, 0, 113, 1], 443).into())
}

fn flow() -> Flow {
    let at = SystemTime::UNIX_EPOCH;
    Flow { packets: 10, created: at, last_seen: at, ..Flow::new(None) }
}

#[test]
fn after_any_troubles_all_see_the_same_in_every_table() {
    seeds(0..6, |world| {
        settled(world, 6);
        let mut fleet = Fleet::new(secs(10_000));
        let span = secs(40);
        world.draw_troubles(span);
        for _ in 0..400 {
            fleet.run(world, ms(100));
            for _ in 0..world.rng.u32(..4) {
                fleet.act(world);
            }
        }
        fleet.run(world, secs(2));
        world.run_to_agreement(secs(120));
        // Orphans are taken over one turn after the other; and what that writes spreads.
        for _ in 0..100 {
            fleet.run(world, ms(200));
        }
        world.run_to_agreement(secs(60));
        fleet.run(world, ms(200));
        let mut live = fleet.live(world);
        // Who takes itself to be cut off goes on with the opinions of those it holds dead.
        live.retain(|tables| !world.process(&tables.live.me).core.is_isolated());
        if live.is_empty() {
            return;
        }
        for tables in &live[1..] {
            let (a, b) = (&tables.live.me, &live[0].live.me);
            for key in 0..4_u8 {
                let target = format!("t{key}");
                let health = |tables: &Tables| tables.health.status(&target);
                assert_eq!(health(tables), health(live[0]), "{a} and {b} differ in the health of {target}");
                let circuit = |tables: &Tables| tables.circuits.view(&target).cloned();
                assert_eq!(
                    circuit(tables),
                    circuit(live[0]),
                    "{a} and {b} differ in the circuit of {target}"
                );
                let drain = |tables: &Tables| tables.drains.view(&target).cloned();
                assert_eq!(drain(tables), drain(live[0]), "{a} and {b} differ in the drain of {target}");
                let counter = |tables: &Tables| tables.counters.view(&target).cloned();
                assert_eq!(counter(tables), counter(live[0]), "{a} and {b} differ in the counter {target}");
                let owner = |tables: &Tables| {
                    let view = tables.flows.view(&flow_key(key.into()));
                    view.map(|view| (view.owner, view.generation))
                };
                assert_eq!(owner(tables), owner(live[0]), "{a} and {b} differ in flow {key}");
                assert!(
                    owner(tables).is_none_or(|(owner, _)| world.is_up(&owner)),
                    "flow {key} has no owner"
                );
            }
        }
    });
}

#[test]
fn every_flow_of_the_dead_passes_to_one_survivor_and_stays_there_when_they_return() {
    const FLOWS: u16 = 300;
    seeds(0..4, |world| {
        let nodes = settled(world, 8);
        world.link.loss = 0.02;
        let mut fleet = Fleet::new(secs(10_000));
        fleet.run(world, ms(100));
        for number in 0..FLOWS {
            let owner = &nodes[usize::from(number % 8)];
            let now = Duration::from_micros(world.now);
            let tables = fleet.of.get_mut(owner).unwrap();
            tables.flows.insert(flow_key(number), flow(), now, &mut Changes::new(true));
        }
        let all_know =
            |fleet: &Fleet, world: &World| fleet.live(world).iter().all(|tables| tables.flows.len() == 300);
        fleet.run_until(world, secs(30), all_know);
        for dead in &nodes[5..7] {
            world.crash(dead);
        }
        let is_settled = |fleet: &Fleet, world: &World| {
            let live = fleet.live(world);
            (0..FLOWS).all(|number| {
                let view = |tables: &Tables| tables.flows.view(&flow_key(number)).map(|view| view.owner);
                let owners: BTreeSet<_> = live.iter().map(|tables| view(tables)).collect();
                owners.len() == 1 && owners.iter().flatten().all(|owner| world.is_up(owner))
            })
        };
        fleet.run_until(world, secs(60), is_settled);
        fleet.run(world, secs(5));
        let owners = |fleet: &Fleet| -> Vec<_> {
            let tables = &fleet.of[&nodes[0]];
            (0..FLOWS).map(|number| tables.flows.view(&flow_key(number)).unwrap().owner).collect()
        };
        let after = owners(&fleet);
        let mut promoted: Vec<FlowKey> = Vec::new();
        for tables in fleet.live(world) {
            promoted.extend(tables.promoted.lock().unwrap().iter());
        }
        promoted.sort_unstable();
        let of_dead = (0..FLOWS).filter(|number| (5..7).contains(&(number % 8)));
        let mut expected: Vec<_> = of_dead.map(flow_key).collect();
        expected.sort_unstable();
        assert_eq!(promoted, expected, "each once, and none of the living");
        for back in &nodes[5..7] {
            world.restart(back);
        }
        fleet.run_until(world, secs(60), all_know);
        fleet.run(world, secs(10));
        assert!(is_settled(&fleet, world));
        assert_eq!(owners(&fleet), after, "they took back what had passed on");
        assert_eq!(world.count(Fault::Crash), 2);
    });
}

#[test]
fn a_flow_costs_less_than_80_bytes_on_the_wire() {
    let rules = ConntrackRules { min_packets: 0, ..ConntrackRules::default() };
    let mut table = Flows::new(rules, NodeId::new("lb-1").unwrap(), Box::new(drop));
    let mut flow = Flow::new(Some("10.0.0.7:8080".parse().unwrap()));
    (flow.packets, flow.bytes) = (100_000, 150_000_000);
    table.insert(flow_key(40_000), flow, Duration::ZERO, &mut Changes::new(true));
    table.handle_timeout(secs(1), &mut Changes::new(true));
    let write = table.take_writes(secs(1)).remove(0);
    let record = WireRecord {
        seq: 1_000_000,
        key: write.key,
        version: 1 << 47,
        timestamp_ms: 1_800_000_000_000,
        deleted: false,
        ttl_ms: Some(60_000),
        value: write.value.unwrap().as_bytes().to_vec().into(),
        proof: bytes::Bytes::new(),
    };
    let bytes = rmp_serde::to_vec(&record).unwrap();
    assert!(bytes.len() < 80, "{} bytes", bytes.len());
}
