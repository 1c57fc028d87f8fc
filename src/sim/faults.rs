//! What can be done to a world: links that are cut or bad, processes that crash, pause, lag, leave or come
//! back, clocks that go wrong. Counts each fault, since a run that broke nothing proves nothing. When, and to
//! whom, is `mix`'s.

use std::time::Duration;

use crate::{
    NodeId,
    proto::Protocol,
    sim::{LinkSettings, Pid, Step, World},
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
    /// A link that behaves otherwise than the rest.
    BadLink,
    Crash,
    Restart,
    Pause,
    /// A process that takes long for each input.
    Lag,
    Join,
    Leave,
    Twin,
    Forget,
    /// A host that loses much of what it sends and is sent.
    HalfConnected,
    ClockJump,
    ClockDrift,
    /// A datagram met a process that had stood still or lagged for too long.
    Overflow,
}

impl World {
    /// Packets from `from` to `to` are lost; the other direction stays.
    pub(crate) fn cut(&mut self, from: &NodeId, to: &NodeId) {
        let (from, to) = (self.address_of(from), self.address_of(to));
        self.cuts.insert((from, to));
        self.fault(Fault::Cut);
    }

    /// That direction works again.
    pub(crate) fn mend(&mut self, from: &NodeId, to: &NodeId) {
        let link = (self.address_of(from), self.address_of(to));
        self.cuts.remove(&link);
        self.links.remove(&link);
    }

    /// Packets from `from` to `to` fare otherwise than the rest.
    pub(crate) fn bad_link(&mut self, from: &NodeId, to: &NodeId, link: LinkSettings) {
        self.links.insert((self.address_of(from), self.address_of(to)), link);
        self.note(from, &format!("its link to {to} turns bad: {link:?}"));
        self.fault(Fault::BadLink);
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

    /// The node's monotonic clock runs so much fast from now on, or slow if negative.
    pub(crate) fn drift_clock(&mut self, node: &NodeId, fast_ppm: i64) {
        let (pid, now) = (self.pid_of(node), self.now);
        self.procs[pid].clock.drift(now, fast_ppm);
        self.procs[pid].wake_at = None;
        self.wake(pid);
        self.note(node, &format!("its clock runs {fast_ppm} ppm fast"));
        self.fault(Fault::ClockDrift);
    }

    /// Each input takes the process so long from now on; zero makes it keep up again.
    pub(crate) fn lag(&mut self, node: &NodeId, cost: Duration) {
        let pid = self.pid_of(node);
        self.procs[pid].cost = cost;
        self.note(node, &format!("takes {cost:?} for each input"));
        self.fault(Fault::Lag);
    }

    /// The process is gone, without a word.
    pub(crate) fn crash(&mut self, node: &NodeId) {
        let pid = self.pid_of(node);
        self.note(node, "crashes");
        self.stop_process(pid);
        self.checks.crashed(node, self.procs[pid].core.local_node().epoch);
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

    /// The node can neither send nor receive, though its timers run, as in the Lifeguard paper's experiment;
    /// or it can again, and works through what has waited.
    pub(crate) fn block(&mut self, node: &NodeId, blocked: bool) {
        let pid = self.pid_of(node);
        if blocked {
            self.procs[pid].held.get_or_insert_default();
            self.fault(Fault::Pause);
        } else if let Some(held) = self.procs[pid].held.take() {
            for (to, bytes) in held {
                self.send(pid, &to, bytes);
            }
            self.work_on(pid);
        }
    }

    /// Has the node say goodbye; its process stops when the core says that it was heard.
    pub(crate) fn leave(&mut self, node: &NodeId) {
        let pid = self.pid_of(node);
        self.note(node, "leaves");
        self.fault(Fault::Leave);
        self.checks.leaves(node);
        self.procs[pid].leaving = true;
        self.command(pid, Protocol::leave);
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
