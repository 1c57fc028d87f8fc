//! What a cluster of an experiment looks like, and what is asked of its nodes' counters.

use std::time::Duration;

use crate::{NodeId, proto::ProtoCounters, sim::World};

/// One setting of an experiment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Case {
    pub(super) nodes: usize,
    /// The chance that a datagram is lost.
    pub(super) loss: f64,
    /// The share of nodes that crash before anything happens.
    pub(super) dead: f64,
    /// How many connections a node keeps ahead of need.
    pub(super) links: usize,
}

impl Case {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(super) fn dead_nodes(&self) -> usize {
        (self.nodes as f64 * self.dead).round() as usize
    }

    /// Whether the share of dead nodes makes one node at least, if it is not zero.
    pub(super) fn is_possible(&self) -> bool {
        self.dead == 0.0 || self.dead_nodes() > 0
    }

    /// A formed cluster, some time after its forming.
    pub(super) fn world(&self, seed: u64, idle: Duration) -> World {
        let mut world = World::for_counting(seed);
        world.settings.max_connections = self.links;
        world.link.loss = self.loss;
        world.start_formed(self.nodes);
        world.run(idle);
        world
    }
}

/// Sums over the nodes that run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) bytes: u64,
    pub(super) sync_bytes: u64,
    pub(super) messages: u64,
    pub(super) copies: u64,
    pub(super) duplicates: u64,
    pub(super) given_up: u64,
    pub(super) suspicions: u64,
    pub(super) failed: u64,
    /// Batches begun.
    pub(super) spreads: u64,
    pub(super) exchanges: u64,
}

impl Totals {
    pub(super) fn of(world: &World) -> Self {
        let mut totals = Self::default();
        for process in world.procs.iter().filter(|process| process.is_running()) {
            totals.add(&process.core.counters());
        }
        totals
    }

    /// Over all processes that ever ran.
    pub(super) fn of_all(world: &World) -> Self {
        let mut totals = Self::default();
        world.procs.iter().for_each(|process| totals.add(&process.core.counters()));
        totals
    }

    fn add(&mut self, counters: &ProtoCounters) {
        self.bytes += counters.bytes_sent;
        self.sync_bytes += counters.sync_bytes_sent;
        self.messages += counters.messages_sent;
        self.copies += counters.handoffs + counters.pulls_served;
        self.duplicates += counters.duplicates;
        self.given_up += counters.handoffs_given_up;
        self.suspicions += counters.suspicions;
        self.failed += counters.probes_failed;
        self.spreads += counters.batches_spread;
        self.exchanges += counters.exchanges_completed;
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            bytes: self.bytes - before.bytes,
            sync_bytes: self.sync_bytes - before.sync_bytes,
            messages: self.messages - before.messages,
            copies: self.copies - before.copies,
            duplicates: self.duplicates - before.duplicates,
            given_up: self.given_up - before.given_up,
            suspicions: self.suspicions - before.suspicions,
            failed: self.failed - before.failed,
            spreads: self.spreads - before.spreads,
            exchanges: self.exchanges - before.exchanges,
        }
    }
}

/// A line of a figure: its name, its points, and whether it is a reference.
pub(super) type Line = (String, Vec<(f64, f64)>, bool);

/// A share for one node.
#[expect(clippy::cast_precision_loss, reason = "sums of counters")]
pub(super) fn each(sum: u64, nodes: usize) -> f64 {
    sum as f64 / nodes as f64
}

/// Some of the nodes, drawn by the world's seed.
pub(super) fn some_of(world: &mut World, count: usize) -> Vec<NodeId> {
    let mut names = world.live();
    world.rng.shuffle(&mut names);
    names.truncate(count);
    names
}

/// The most memory this program has had so far, in bytes, where the system tells.
pub(super) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}
