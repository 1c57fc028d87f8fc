//! What it costs to come to the same state: by what has changed, not by what there is.

use super::{ms, secs, settled};
use crate::{
    NodeId, StateType, SyncableState, Value,
    sim::{World, seeds},
    wire::limits,
};

const OF: StateType = StateType::CONNTRACK;

fn value(number: u32) -> Value {
    Value::encode(&format!("{number:031}")).unwrap()
}

/// Writes records with keys of 16 bytes and values of 32.
fn write(world: &mut World, node: &NodeId, numbers: std::ops::Range<u32>, round: u32) {
    let pid = world.pid_of(node);
    for first in numbers.clone().step_by(1_000) {
        let taken = world.command(pid, |core, now| {
            let record = |number: u32| {
                let (key, value) = (format!("{number:016}"), value(number ^ round << 24));
                SyncableState::new(OF, key, value, core.next_version(now), core.id().clone())
            };
            let records = (first..numbers.end.min(first + 1_000)).map(record).collect();
            core.broadcast_many(records, now)
        });
        taken.unwrap();
        world.run(ms(50));
    }
}

fn held(world: &World, node: &NodeId) -> usize {
    world.process(node).core.states(&OF).len()
}

/// Bytes sent in exchanges by all, and exchanges begun.
fn sync(world: &World, nodes: &[NodeId]) -> (u64, u64) {
    nodes.iter().fold((0, 0), |(bytes, begun), id| {
        let counters = world.process(id).core.counters();
        (bytes + counters.sync_bytes_sent, begun + counters.exchanges_begun)
    })
}

#[test]
fn equal_stores_settle_in_under_200_bytes_each_way_whatever_their_size() {
    for records in [0, 1_000, 20_000] {
        seeds(0..1, |world| {
            let nodes = settled(world, 2);
            write(world, &nodes[0], 0..records, 0);
            world.run(secs(30));
            assert_eq!(held(world, &nodes[1]), records as usize);
            let (bytes, begun) = sync(world, &nodes);
            world.run(secs(100));
            let (later, more) = sync(world, &nodes);
            assert!(more >= begun + 10, "push-pulls go on");
            let each_way = (later - bytes) / (more - begun) / 2;
            assert!(each_way < 200, "{each_way} bytes each way for {records} records");
        });
    }
}

#[test]
fn changes_cost_under_1_3_times_their_records_whatever_there_is_besides() {
    for changes in [1, 10, 100, 1_000, 10_000_u32] {
        seeds(0..1, |world| {
            let nodes = settled(world, 2);
            write(world, &nodes[0], 0..20_000, 0);
            world.run(secs(15));
            assert_eq!(held(world, &nodes[1]), 20_000);
            // One record as it travels: its key and value, and 30 bytes of number, version, time and marks.
            let wire = u64::from(changes) * (16 + 32 + 30);
            world.partition(&[&nodes[..1], &nodes[1..]]);
            world.run(secs(60)); // no connection is left, on which writes would wait
            write(world, &nodes[0], 0..changes, 1);
            let newest = |world: &World| {
                let records = world.process(&nodes[1]).core.states(&OF);
                records.iter().filter(|record| record.value == value(1 << 24)).count()
            };
            assert_eq!(newest(world), 0);
            let total = |world: &World| {
                let sent = |id| world.process(id).core.counters();
                nodes.iter().map(|id| sent(id).sync_bytes_sent + sent(id).bytes_sent).sum::<u64>()
            };
            world.heal();
            let before = total(world);
            world.run_until(secs(60), World::all_agree);
            let cost = total(world) - before;
            // Membership talks on meanwhile.
            assert!(cost < wire * 13 / 10 + 1_000, "{cost} bytes for {wire} of records, {changes} changes");
        });
    }
}

/// Records that arrived in exchanges.
fn received(world: &World, node: &NodeId) -> u64 {
    world.process(node).core.counters().records_synced
}

#[test]
fn a_joiner_is_sent_each_record_once_whoever_begins() {
    const RECORDS: u32 = 20_000;
    for members in [1, 2, 4] {
        seeds(0..3, |world| {
            let nodes = settled(world, members);
            write(world, &nodes[0], 0..RECORDS, 0);
            world.run(secs(30));
            let joiner = world.start(1).remove(0);
            world.run_until(secs(60), World::all_agree);
            assert_eq!(held(world, &joiner), RECORDS as usize);
            let received = received(world, &joiner);
            assert!(received <= u64::from(RECORDS) * 105 / 100, "{received} records for {members} members");
        });
    }
}

#[test]
fn a_joiner_that_is_cut_off_half_way_does_not_begin_anew() {
    const RECORDS: u32 = 40_000;
    seeds(0..3, |world| {
        let nodes = settled(world, 1);
        write(world, &nodes[0], 0..RECORDS, 0);
        let joiner = world.start(1).remove(0);
        world.run_until(secs(10), |world| received(world, &joiner) > u64::from(RECORDS) / 2);
        assert!(received(world, &joiner) < u64::from(RECORDS) * 9 / 10, "cut half way");
        world.partition(&[&nodes[..1], std::slice::from_ref(&joiner)]);
        world.run(secs(60));
        world.heal();
        world.run_until(secs(60), World::all_agree);
        assert_eq!(held(world, &joiner), RECORDS as usize);
        let received = received(world, &joiner);
        assert!(received <= u64::from(RECORDS) * 105 / 100, "{received} records");
    });
}

#[test]
fn a_joiner_is_told_of_every_type_there_may_be() {
    seeds(0..1, |world| {
        let nodes = settled(world, 2);
        for number in 0..limits::TYPES_MAX {
            world.broadcast(&nodes[0], &StateType::shared(format!("t{number}")), "k", "v");
        }
        world.run(secs(3));
        let joiner = world.start(1).remove(0);
        world.run_to_agreement(secs(30));
        let last = StateType::shared(format!("t{}", limits::TYPES_MAX - 1));
        assert_eq!(world.text(&joiner, &last, "k").as_deref(), Some("v"));
    });
}
