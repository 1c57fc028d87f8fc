//! A deterministic simulation of many nodes in one thread: virtual time, one heap of events, all randomness
//! from one sim seed. What fails once fails again with the same seed.
//!
//! `World` here · `queue` what is to happen · `process` one node's core, fed and drained · `clock` its time ·
//! `admission` how connections begin · `network` how they live and end · `faults` what can go wrong · `mix`
//! what does, drawn from the seed · `check` what must hold all the same · `trace` what happened · `view` what
//! tests do and ask · `lab` long runs and experiments

mod admission;
mod check;
mod clock;
mod faults;
#[cfg(feature = "sim")]
mod formed;
#[cfg(feature = "sim")]
mod lab;
mod mix;
mod network;
mod process;
mod queue;
mod storm;
#[cfg(test)]
mod tests;
mod trace;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::SocketAddr,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

pub(crate) use self::faults::Fault;
#[cfg(feature = "sim")]
pub use self::lab::simulate;
use self::{
    admission::Dial,
    check::Checks,
    mix::Planned,
    network::{Conn, Lane, LaneKey},
    process::{Input, Process},
    queue::Queue,
    trace::{Line, Trace},
};
use crate::{NodeId, StateType, SyncableState, proto::ProtocolConfig, wire::CloseCode};

/// A process, by its place in the world's list; never used twice.
pub(crate) type Pid = usize;

/// The virtual wall clock at the world's beginning: 2026-01-01.
const WALL_BASE_MS: u64 = 1_767_225_600_000;
/// How often a process looks for seeds that it is not connected to.
const SEED_INTERVAL: Duration = Duration::from_secs(30);

/// How links behave. Loss, duplication and reordering are chances of one datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkSettings {
    pub(crate) delay: Duration,
    /// By how much of itself the delay varies, up and down; 100 at most.
    pub(crate) jitter_percent: u64,
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) reorder: f64,
}

/// What happens next.
#[derive(Debug)]
pub(crate) enum Step {
    /// A process is woken; stale unless the moment is still the one it waits for.
    Wake(Pid),
    Resume(Pid),
    /// A process that lags takes the next thing from its inbox.
    Work(Pid),
    Input(Pid, Input),
    /// A process looks for its seeds.
    Seeds(Pid),
    Datagram {
        conn: usize,
        to: usize,
        bytes: bytes::Bytes,
    },
    /// The next parcel of a stream is due.
    Parcel(LaneKey),
    Dial(usize),
    Welcome(usize),
    /// A close frame reaches that end.
    Closed {
        conn: usize,
        end: usize,
        code: CloseCode,
    },
    /// That end hears from a host which knows nothing of the connection.
    StatelessReset {
        conn: usize,
        end: usize,
    },
    KeepAlive(usize),
    Fault(Planned),
}

/// Many nodes, the network between them, and what has become of both.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) rng: fastrand::Rng,
    /// Microseconds since the world's beginning.
    pub(crate) now: u64,
    queue: Queue,
    secret: u64,
    /// Whether everything is recorded and checked; experiments only count.
    checked: bool,
    /// Steps taken, and inputs that cores were fed.
    pub(crate) steps: u64,
    pub(crate) inputs: u64,
    /// What nodes are started with; id, address and epoch are set for each.
    pub(crate) settings: ProtocolConfig,
    pub(crate) link: LinkSettings,
    /// How far nodes' wall clocks are off, by name.
    pub(crate) wall_offsets: BTreeMap<NodeId, i64>,

    /// Every name that was started, in order.
    pub(crate) names: Vec<NodeId>,
    current: BTreeMap<NodeId, Pid>,
    at_address: BTreeMap<SocketAddr, Pid>,
    pub(crate) procs: Vec<Process>,
    conns: Vec<Conn>,
    dials: Vec<Dial>,
    lanes: BTreeMap<LaneKey, Lane>,
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    /// The chance that a host loses a packet, in or out, besides what the network loses.
    lossy: BTreeMap<SocketAddr, f64>,
    /// Nodes that say something else than their cores do, and what becomes of it.
    pub(crate) alters: BTreeMap<NodeId, fn(&NodeId, &bytes::Bytes) -> bytes::Bytes>,
    /// Links that behave otherwise than the rest, by direction.
    links: BTreeMap<(SocketAddr, SocketAddr), LinkSettings>,
    /// Dials that were refused: the dialler's name and process, whom it dialled, and why.
    pub(crate) refused: Vec<(NodeId, Pid, SocketAddr, CloseCode)>,
    /// Messages that had no connection to go by.
    pub(crate) unsent: u64,

    faults: BTreeMap<Fault, u64>,
    /// Whether the drawn troubles are over.
    calm: bool,
    /// How many nodes there were before any joined in between.
    founders: usize,
    checks: Checks,
    trace: Trace,
    types: BTreeSet<StateType>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x7068_616c_616e_7801);
        let secret = rng.u64(..);
        let delay = Duration::from_micros(250);
        Self {
            seed,
            rng,
            now: 0,
            queue: Queue::default(),
            secret,
            checked: true,
            steps: 0,
            inputs: 0,
            settings: ProtocolConfig::of_defaults("n00", WALL_BASE_MS),
            link: LinkSettings { delay, jitter_percent: 20, loss: 0.0, duplicate: 0.0, reorder: 0.0 },
            wall_offsets: BTreeMap::new(),
            names: Vec::new(),
            current: BTreeMap::new(),
            at_address: BTreeMap::new(),
            procs: Vec::new(),
            conns: Vec::new(),
            dials: Vec::new(),
            lanes: BTreeMap::new(),
            cuts: BTreeSet::new(),
            lossy: BTreeMap::new(),
            alters: BTreeMap::new(),
            links: BTreeMap::new(),
            refused: Vec::new(),
            unsent: 0,
            faults: BTreeMap::new(),
            calm: true,
            founders: 0,
            checks: Checks::default(),
            trace: Trace::new(),
            types: BTreeSet::new(),
        }
    }

    /// Lets virtual time pass.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + micros(span);
        while self.step_before(end) {}
        self.now = end;
    }

    /// Runs until `done`, and says how long that took.
    pub(crate) fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Duration {
        let (begin, end) = (self.now, self.now + micros(limit));
        // A glance at everything is dear; a few times a millisecond is often enough.
        let mut next_look = self.now;
        loop {
            if self.now >= next_look {
                if done(self) {
                    return Duration::from_micros(self.now - begin);
                }
                next_look = self.now + if self.now - begin < 1_000_000 { 500 } else { 20_000 };
            }
            if !self.step_before(end) {
                self.now = end;
                if done(self) {
                    return limit;
                }
                let differ = self.disagreement().unwrap_or_else(|| "all agree, though".into());
                panic!("not within {limit:?}; {differ}");
            }
        }
    }

    fn step_before(&mut self, end: u64) -> bool {
        let Some((at, step)) = self.queue.pop_by(end) else { return false };
        self.now = at;
        self.steps += 1;
        let checked = self.checks.step(at);
        self.require("world", checked);
        match step {
            Step::Wake(pid) => {
                let process = &mut self.procs[pid];
                if process.wake_at == Some(at) {
                    process.wake_at = None;
                    // Who lags comes to its timers with the next thing it takes in.
                    if process.inbox.is_empty() || process.held.is_some() {
                        self.wake(pid);
                    }
                }
            }
            Step::Resume(pid) => self.resume(pid),
            Step::Work(pid) => self.work(pid),
            Step::Input(pid, input) => self.feed(pid, input),
            Step::Seeds(pid) => self.look_for_seeds(pid),
            Step::Datagram { conn, to, bytes } => self.datagram_arrives(conn, to, bytes),
            Step::Parcel(key) => self.parcel_arrives(&key),
            Step::Dial(dial) => self.dial_arrives(dial),
            Step::Welcome(dial) => self.welcome_arrives(dial),
            Step::Closed { conn, end, code } => self.close_arrives(conn, end, code),
            Step::StatelessReset { conn, end } => self.lose_end(conn, end),
            Step::KeepAlive(conn) => self.keep_alive(conn),
            Step::Fault(planned) => self.carry_out(planned),
        }
        true
    }

    fn at(&mut self, delay: Duration, step: Step) {
        self.at_micros(self.now + micros(delay), step);
    }

    fn at_regular(&mut self, delay: Duration, step: Step) {
        self.queue.push_regular(self.now + micros(delay), step);
    }

    fn at_micros(&mut self, at: u64, step: Step) {
        self.queue.push(at.max(self.now), step);
    }

    fn note(&mut self, who: &dyn Display, what: &str) {
        self.trace.add(self.now, Line::Text(format!("{who}: {what}")));
    }

    /// Only for who reads every step: there are many, and a text of each costs time.
    fn note_record(&mut self, who: &NodeId, what: &str, record: &SyncableState) {
        if self.trace.is_whole() {
            let SyncableState { state_type, key, version, source_node, value, .. } = record;
            let value = if record.deleted { "removed".into() } else { format!("{value:?}") };
            self.note(
                who,
                &format!("{what} {state_type}/{key} of {source_node}, version {version}: {value}"),
            );
        }
    }

    /// Ends the run if a check has failed.
    fn require(&mut self, who: &str, checked: Result<(), String>) {
        if let Err(fault) = checked {
            self.note(&who, &fault);
            panic!("{who}: {fault}");
        }
    }

    /// A world that only counts: nothing is recorded, traced or checked but what costs nothing.
    pub(crate) fn for_counting(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.checked = false;
        world.trace.turn_off();
        world
    }

    /// How many faults were injected.
    pub(crate) fn injected(&self) -> u64 {
        self.faults.values().sum()
    }

    pub(crate) fn print_trace(&mut self) {
        self.trace.print_all();
    }

    pub(crate) fn trace_hash(&self) -> u64 {
        self.trace.hash()
    }
}

/// Runs `test` in one world for each sim seed of the band. `PHALANX_SIM_SEED` runs one seed,
/// `PHALANX_SIM_SEEDS=0..200` another band.
pub(crate) fn seeds(band: Range<u64>, test: impl Fn(&mut World)) {
    for seed in band_asked_for().unwrap_or(band) {
        let mut world = World::new(seed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&mut world))) {
            report(&world);
            resume_unwind(panic);
        }
    }
}

#[expect(clippy::print_stderr, reason = "a failed run tells how to repeat it")]
fn report(world: &World) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("sim");
    let at = Duration::from_micros(world.now);
    eprintln!(
        "sim seed {} failed at {at:?} of virtual time; the last lines:\n{}\nfaults: {:?}\n\
         replay: PHALANX_SIM_SEED={} cargo test --lib {name}",
        world.seed,
        world.trace.tail(),
        world.faults,
        world.seed,
    );
}

fn band_asked_for() -> Option<Range<u64>> {
    if let Ok(seed) = std::env::var("PHALANX_SIM_SEED") {
        let seed: u64 = seed.parse().expect("PHALANX_SIM_SEED is a number");
        return Some(seed..seed + 1);
    }
    let band = std::env::var("PHALANX_SIM_SEEDS").ok()?;
    let (from, to) = band.split_once("..").expect("PHALANX_SIM_SEEDS is a range such as 0..200");
    let number = |text: &str| text.parse().expect("PHALANX_SIM_SEEDS is a range of numbers");
    Some(number(from)..number(to))
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
