//! A schedule of faults, drawn from the sim seed: first which kinds there are at all, so that rare
//! combinations get room (swarm testing, Groce et al., 2012), then when each strikes, and in its moment whom.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    NodeId, NodeStatus,
    sim::{LinkSettings, Step, World},
};

/// A kind of trouble that a seed may draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    /// Every link loses, doubles and overtakes some.
    BadNetwork,
    /// Single links, in one direction, lose much, are slow, or jump between fast and slow.
    BadLinks,
    /// A link that loses all for moments, again and again.
    Flapping,
    OneWayCuts,
    /// A sees B, B sees C, A and C do not see one another.
    PartialCuts,
    Partitions,
    HalfConnected,
    Crashes,
    /// Many processes restart one after the other.
    RestartStorms,
    /// Processes that come back with a clock that is behind, and so without memory of their last epoch.
    LostEpochs,
    Pauses,
    Lags,
    ClockDrift,
    ClockJumps,
    Joins,
    Leaves,
    /// A second process with an id that is in use.
    Twins,
    /// An operator has the dead forgotten.
    Forgets,
}

/// All kinds, with how many seconds lie between two strikes on average.
const TROUBLES: [(Trouble, u64); 18] = [
    (Trouble::BadNetwork, 60),
    (Trouble::BadLinks, 10),
    (Trouble::Flapping, 20),
    (Trouble::OneWayCuts, 15),
    (Trouble::PartialCuts, 20),
    (Trouble::Partitions, 40),
    (Trouble::HalfConnected, 40),
    (Trouble::Crashes, 10),
    (Trouble::RestartStorms, 60),
    (Trouble::LostEpochs, 30),
    (Trouble::Pauses, 10),
    (Trouble::Lags, 20),
    (Trouble::ClockDrift, 30),
    (Trouble::ClockJumps, 30),
    (Trouble::Joins, 30),
    (Trouble::Leaves, 20),
    (Trouble::Twins, 60),
    (Trouble::Forgets, 30),
];

/// Those in whose company a goodbye may not be heard by anybody, and then looks like a death.
const DEAFENING: [Trouble; 10] = [
    Trouble::BadNetwork,
    Trouble::BadLinks,
    Trouble::Flapping,
    Trouble::OneWayCuts,
    Trouble::PartialCuts,
    Trouble::Partitions,
    Trouble::HalfConnected,
    Trouble::Crashes,
    Trouble::Pauses,
    Trouble::Lags,
];

/// New nodes in one world at most.
const JOINS_MAX: usize = 8;

/// What a schedule holds.
#[derive(Clone, Debug)]
pub(crate) enum Planned {
    Strike(Trouble),
    /// A cut or bad link works again.
    Mend(NodeId, NodeId),
    Flap {
        from: NodeId,
        to: NodeId,
        left: u32,
    },
    Heal,
    Whole(NodeId),
    KeepUp(NodeId),
    RightClock(NodeId),
    Restart(NodeId),
    /// A process that runs gives way to a fresh one.
    Bounce(NodeId),
    StopTwin(usize),
    /// The network is what it was.
    GoodNetwork(LinkSettings),
    End,
}

impl Trouble {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        TROUBLES.into_iter().map(|(trouble, _)| trouble)
    }
}

impl World {
    /// Draws kinds of trouble, and plans them for the next `span`; at its end all links are whole, all
    /// processes that run keep up, and all clocks run as they should. Says which were drawn.
    pub(crate) fn draw_troubles(&mut self, span: Duration) -> BTreeSet<Trouble> {
        let mut drawn = BTreeSet::new();
        while drawn.len() < 2 {
            let chance = self.rng.u32(15..60);
            drawn = Trouble::all().filter(|_| self.rng.u32(..100) < chance).collect();
        }
        self.plan(&drawn, span);
        drawn
    }

    /// Plans these kinds of trouble.
    pub(crate) fn plan(&mut self, drawn: &BTreeSet<Trouble>, span: Duration) {
        if DEAFENING.iter().any(|trouble| drawn.contains(trouble)) {
            self.checks.may_lose_goodbyes();
        }
        let end = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        for (trouble, seconds) in TROUBLES.into_iter().filter(|(trouble, _)| drawn.contains(trouble)) {
            // Each at least once, and soon.
            let mut at = self.rng.u64(..end / 4);
            while at < end {
                self.at(Duration::from_millis(at), Step::Fault(Planned::Strike(trouble)));
                at += self.rng.u64(1..seconds * 2_000);
            }
        }
        (self.calm, self.founders) = (false, self.names.len());
        self.note(&"world", &format!("troubles: {drawn:?}"));
        self.at(span, Step::Fault(Planned::End));
    }

    pub(crate) fn carry_out(&mut self, planned: Planned) {
        match planned {
            Planned::Strike(_) | Planned::Flap { .. } | Planned::Restart(_) | Planned::Bounce(_)
                if self.calm => {}
            Planned::Strike(trouble) => self.strike(trouble),
            Planned::Mend(from, to) => self.mend(&from, &to),
            Planned::Flap { from, to, left } => self.flap(&from, &to, left),
            Planned::Heal => self.heal(),
            Planned::Whole(node) => self.half_connect(&node, 0.0),
            Planned::KeepUp(node) => self.lag(&node, Duration::ZERO),
            Planned::RightClock(node) => self.drift_clock(&node, 0),
            Planned::Restart(node) => {
                if !self.is_up(&node) {
                    self.restart(&node);
                }
            }
            Planned::Bounce(node) => {
                if self.is_up(&node) && !self.process(&node).leaving {
                    self.restart(&node);
                }
            }
            Planned::StopTwin(pid) => {
                if self.procs[pid].is_running() {
                    self.stop_process(pid);
                }
            }
            Planned::GoodNetwork(link) => self.link = link,
            Planned::End => self.end_troubles(),
        }
    }

    fn strike(&mut self, trouble: Trouble) {
        let live = self.live();
        let many = live.len() * 2 > self.names.len() && live.len() > 2;
        let Some((a, b)) = self.any_two(&live) else { return };
        match trouble {
            Trouble::Crashes | Trouble::LostEpochs | Trouble::Leaves if many => self.strike_down(trouble, a),
            Trouble::Pauses | Trouble::Lags | Trouble::ClockDrift | Trouble::ClockJumps => {
                self.strike_slow(trouble, a);
            }
            Trouble::BadNetwork => self.turn_network_bad(),
            Trouble::BadLinks => {
                let link = self.any_bad_link();
                self.bad_link(&a, &b, link);
                self.soon(1..40_000, Planned::Mend(a, b));
            }
            Trouble::Flapping => {
                let left = self.rng.u32(3..20);
                self.flap(&a, &b, left);
            }
            Trouble::OneWayCuts => {
                self.cut(&a, &b);
                self.soon(500..40_000, Planned::Mend(a, b));
            }
            Trouble::PartialCuts => {
                self.cut(&a, &b);
                self.cut(&b, &a);
                let (from, to) = (b.clone(), a.clone());
                self.soon(500..60_000, Planned::Mend(a, b));
                self.soon(500..60_000, Planned::Mend(from, to));
            }
            Trouble::Partitions if self.cuts.is_empty() => {
                let mut names = self.names.clone();
                self.rng.shuffle(&mut names);
                let at = self.rng.usize(1..names.len());
                self.partition(&[&names[..at], &names[at..]]);
                self.soon(2_000..60_000, Planned::Heal);
            }
            Trouble::HalfConnected => {
                let loss = f64::from(self.rng.u32(20..95)) / 100.0;
                self.half_connect(&a, loss);
                self.soon(1_000..60_000, Planned::Whole(a));
            }
            Trouble::RestartStorms => {
                for node in live {
                    if self.rng.u32(..10) < 7 {
                        self.soon(0..5_000, Planned::Bounce(node));
                    }
                }
            }
            Trouble::Joins if self.names.len() < self.founders + JOINS_MAX => {
                self.start(1);
                self.fault(super::Fault::Join);
            }
            Trouble::Twins => {
                let twin = self.start_twin(&a);
                self.fault(super::Fault::Twin);
                self.soon(1_000..30_000, Planned::StopTwin(twin));
            }
            Trouble::Forgets => {
                let dead = self
                    .names
                    .iter()
                    .find(|name| !self.is_up(name) && self.status(&a, name) == Some(NodeStatus::Dead));
                if let Some(dead) = dead.cloned() {
                    self.forget(&a, &dead);
                    self.fault(super::Fault::Forget);
                }
            }
            Trouble::Partitions
            | Trouble::Crashes
            | Trouble::LostEpochs
            | Trouble::Joins
            | Trouble::Leaves => {}
        }
    }
}

/// What strikes one process.
impl World {
    fn strike_down(&mut self, trouble: Trouble, a: NodeId) {
        match trouble {
            Trouble::Crashes => {
                self.crash(&a);
                if self.rng.u32(..10) > 0 {
                    self.soon(100..60_000, Planned::Restart(a));
                }
            }
            Trouble::LostEpochs => {
                self.crash(&a);
                let behind = self.rng.i64(1..7_200_000);
                self.jump_clock(&a, -behind);
                self.soon(100..20_000, Planned::Restart(a));
            }
            _ => {
                self.leave(&a);
                if self.rng.bool() {
                    self.soon(3_000..60_000, Planned::Restart(a));
                }
            }
        }
    }

    fn strike_slow(&mut self, trouble: Trouble, a: NodeId) {
        match trouble {
            Trouble::Pauses => {
                let span = if self.rng.u32(..4) == 0 { 20_000 } else { 3_000 };
                let span = Duration::from_millis(self.rng.u64(50..span));
                self.pause(&a, span);
            }
            Trouble::Lags => {
                let cost = Duration::from_micros(self.rng.u64(500..30_000));
                self.lag(&a, cost);
                self.soon(1_000..20_000, Planned::KeepUp(a));
            }
            Trouble::ClockDrift => {
                let ppm = if self.rng.u32(..4) == 0 { 100_000 } else { 500 };
                let ppm = self.rng.i64(-ppm..ppm);
                self.drift_clock(&a, ppm);
                self.soon(1_000..120_000, Planned::RightClock(a));
            }
            _ => {
                let by = self.rng.i64(-3_600_000..3_600_000);
                self.jump_clock(&a, by);
            }
        }
    }
}

/// What strikes are made of.
impl World {
    fn turn_network_bad(&mut self) {
        let before = self.link;
        let percent = |world: &mut Self, most: u32| f64::from(world.rng.u32(..most)) / 100.0;
        self.link = LinkSettings {
            delay: Duration::from_micros(self.rng.u64(100..20_000)),
            jitter_percent: self.rng.u64(..100),
            loss: percent(self, 15),
            duplicate: percent(self, 10),
            reorder: percent(self, 20),
        };
        self.note(&"world", &format!("the network turns bad: {:?}", self.link));
        self.fault(super::Fault::BadLink);
        self.soon(2_000..60_000, Planned::GoodNetwork(before));
    }

    fn any_bad_link(&mut self) -> LinkSettings {
        let percent = f64::from(self.rng.u32(..100)) / 100.0;
        let mut link = self.link;
        match self.rng.u32(..4) {
            0 => link.loss = percent,
            1 => link.delay = Duration::from_millis(self.rng.u64(1..400)),
            2 => (link.delay, link.jitter_percent) = (Duration::from_millis(self.rng.u64(1..100)), 100),
            _ => (link.duplicate, link.reorder) = (percent, percent),
        }
        link
    }

    /// The link loses all for a moment, works for a moment, and so on.
    fn flap(&mut self, from: &NodeId, to: &NodeId, left: u32) {
        if left.is_multiple_of(2) {
            self.mend(from, to);
        } else {
            self.cut(from, to);
        }
        if left > 0 {
            let next = Planned::Flap { from: from.clone(), to: to.clone(), left: left - 1 };
            self.soon(20..4_000, next);
        }
    }

    /// Plans it for one of so many milliseconds from now.
    fn soon(&mut self, span: std::ops::Range<u64>, planned: Planned) {
        let wait = Duration::from_millis(self.rng.u64(span));
        self.at(wait, Step::Fault(planned));
    }

    fn any_two(&mut self, names: &[NodeId]) -> Option<(NodeId, NodeId)> {
        if names.len() < 2 {
            return None;
        }
        let first = self.rng.usize(..names.len());
        let second = (first + self.rng.usize(1..names.len())) % names.len();
        Some((names[first].clone(), names[second].clone()))
    }

    fn end_troubles(&mut self) {
        self.note(&"world", "troubles end");
        self.calm = true;
        self.heal();
        self.links.clear();
        self.lossy.clear();
        for pid in 0..self.procs.len() {
            let name = self.procs[pid].id.clone();
            if self.pid_of(&name) != pid && self.procs[pid].is_running() {
                self.stop_process(pid); // a twin
            }
        }
        for name in self.names.clone() {
            if self.is_up(&name) {
                self.lag(&name, Duration::ZERO);
                self.drift_clock(&name, 0);
            }
        }
    }
}
