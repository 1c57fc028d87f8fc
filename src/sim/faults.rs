//! What can be done to a world: links that are cut, processes that crash, pause, leave or come back, by hand or by
//! a schedule drawn from the sim seed. Counts each fault, since a run that broke nothing proves nothing.

use std::time::Duration;

use crate::{
    NodeId,
    proto::Protocol,
    sim::{Pid, Step, World, micros},
};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Loss,
    Duplicate,
    Reorder,
    Cut,
    Partition,
    Heal,
    Crash,
    Restart,
    Pause,
    Leave,
    /// A host that loses much of what it sends and is sent.
    HalfConnected,
    ClockJump,
    /// A datagram met a process that had stood still for too long.
    Overflow,
}

/// A fault that a schedule has drawn; whom it hits is drawn when its time has come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Planned {
    Crash,
    Restart,
    Partition,
    Heal,
    Leave,
}

/// No partition begins so soon after a leave, and nobody leaves in a partition: half a cluster that cannot hear a
/// goodbye must take it for a death.
const LEAVE_APART: Duration = Duration::from_secs(10);

impl World {
    /// Packets from `from` to `to` are lost; the other direction stays.
    pub(crate) fn cut(&mut self, from: &NodeId, to: &NodeId) {
        let (from, to) = (self.address_of(from), self.address_of(to));
        self.cuts.insert((from, to));
        self.fault(Fault::Cut);
    }

    /// No packet passes between nodes of different groups. A node in no group reaches everybody.
    pub(crate) fn partition(&mut self, groups: &[&[NodeId]]) {
        for (index, group) in groups.iter().enumerate() {
            for other in groups.iter().skip(index + 1) {
                for (a, b) in group.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
                    let (a, b) = (self.address_of(a), self.address_of(b));
                    self.cuts.insert((a, b));
                    self.cuts.insert((b, a));
                }
            }
        }
        let sizes: Vec<_> = groups.iter().map(|group| group.len()).collect();
        self.note(&"world", &format!("partition {sizes:?}"));
        self.fault(Fault::Partition);
    }

    /// Every link works again.
    pub(crate) fn heal(&mut self) {
        if !self.cuts.is_empty() {
            self.cuts.clear();
            self.note(&"world", "healed");
            self.fault(Fault::Heal);
        }
    }

    /// The node's host loses that share of its packets, in and out; 0 mends it.
    pub(crate) fn half_connect(&mut self, node: &NodeId, loss: f64) {
        let address = self.address_of(node);
        self.lossy.insert(address, loss);
        self.note(node, &format!("loses {loss} of its packets"));
        self.fault(Fault::HalfConnected);
    }

    /// The node's wall clock jumps.
    pub(crate) fn jump_clock(&mut self, node: &NodeId, by_ms: i64) {
        *self.wall_offsets.entry(node.clone()).or_default() += by_ms;
        self.note(node, &format!("its clock jumps by {by_ms} ms"));
        self.fault(Fault::ClockJump);
    }

    /// The process is gone, without a word.
    pub(crate) fn crash(&mut self, node: &NodeId) {
        let pid = self.pid_of(node);
        self.note(node, "crashes");
        self.stop_process(pid);
        self.checks.crashed(node);
        self.fault(Fault::Crash);
    }

    /// A fresh process of that name at that address: a new epoch, nothing remembered.
    pub(crate) fn restart(&mut self, node: &NodeId) {
        let pid = self.pid_of(node);
        if self.procs[pid].is_running() {
            self.crash(node);
        }
        let (address, seeds) = (self.procs[pid].address, self.seed_addresses());
        self.fault(Fault::Restart);
        self.checks.restarted(node);
        let seeds = seeds.into_iter().filter(|seed| *seed != address).collect();
        self.start_process(node.clone(), address, seeds);
    }

    /// The process stands still: what reaches it queues, its timers come late.
    pub(crate) fn pause(&mut self, node: &NodeId, span: Duration) {
        let pid = self.pid_of(node);
        self.procs[pid].paused = true;
        self.note(node, "pauses");
        self.fault(Fault::Pause);
        self.at(span, Step::Resume(pid));
    }

    /// Has the node say goodbye; its process stops when the core says that it was heard.
    pub(crate) fn leave(&mut self, node: &NodeId) {
        let pid = self.pid_of(node);
        self.note(node, "leaves");
        self.fault(Fault::Leave);
        self.checks.leaves(node);
        self.last_leave = self.now;
        self.procs[pid].leaving = true;
        self.command(pid, Protocol::leave);
    }

    /// Draws faults for the next `span` from the sim seed, each kind but a leave at least once; at its end all links
    /// are whole.
    pub(crate) fn random_faults(&mut self, span: Duration) {
        self.at(span / 200, Step::Fault(Planned::Partition));
        self.at(span / 100, Step::Fault(Planned::Crash));
        self.at(span / 2, Step::Fault(Planned::Restart));
        let mut at = Duration::ZERO;
        loop {
            at += Duration::from_millis(self.rng.u64(1_000..6_000));
            if at >= span {
                break;
            }
            let planned = match self.rng.u32(..10) {
                0..=2 => Planned::Crash,
                3..=6 => Planned::Restart,
                7..=8 => Planned::Partition,
                _ => Planned::Leave,
            };
            self.at(at, Step::Fault(planned));
        }
        self.at(span, Step::Fault(Planned::Heal));
    }

    pub(crate) fn carry_out(&mut self, planned: Planned) {
        let live = self.live();
        let most_live = live.len() * 2 > self.names.len();
        match planned {
            Planned::Crash if most_live => {
                let victim = self.any_of(&live);
                self.crash(&victim);
            }
            Planned::Leave if most_live && self.cuts.is_empty() => {
                let victim = self.any_of(&live);
                self.leave(&victim);
            }
            Planned::Restart => {
                let down: Vec<NodeId> = self.names.iter().filter(|name| !self.is_up(name)).cloned().collect();
                if !down.is_empty() {
                    let back = self.any_of(&down);
                    self.restart(&back);
                }
            }
            Planned::Partition if self.cuts.is_empty() && self.goodbyes_are_over() => {
                let mut names = self.names.clone();
                self.rng.shuffle(&mut names);
                let at = self.rng.usize(1..names.len());
                self.partition(&[&names[..at], &names[at..]]);
                let heals = Duration::from_millis(self.rng.u64(2_000..40_000));
                self.at(heals, Step::Fault(Planned::Heal));
            }
            Planned::Heal => self.heal(),
            Planned::Crash | Planned::Leave | Planned::Partition => {}
        }
    }

    fn goodbyes_are_over(&self) -> bool {
        self.count(Fault::Leave) == 0 || self.now > self.last_leave + micros(LEAVE_APART)
    }

    fn any_of(&mut self, names: &[NodeId]) -> NodeId {
        names[self.rng.usize(..names.len())].clone()
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// How often a fault was injected.
    pub(crate) fn count(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or(0)
    }

    /// A paused process goes on: first with its clock, as the driver does, then with what waited.
    pub(crate) fn resume(&mut self, pid: Pid) {
        if !std::mem::replace(&mut self.procs[pid].paused, false) || !self.procs[pid].running {
            return;
        }
        let name = self.procs[pid].id.clone();
        self.note(&name, "goes on");
        self.wake(pid);
        for input in std::mem::take(&mut self.procs[pid].inbox) {
            self.feed(pid, input);
        }
    }
}
