//! The acts of a cluster's life: joining, sharing state, a crash, a return, a goodbye. The intruders are in
//! `trials`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::UdpSocket,
    path::PathBuf,
    time::Duration,
};

use crate::{
    Fault,
    certificates::Certificates,
    fleet::{Fleet, Journal, Mark},
    node::WEIGHTS,
    notes::{Note, Record, now, span},
    options::FIRST_PORT,
    report::{Check, Report},
};

const CLUSTER: &str = "edge";
/// For things that take milliseconds; generous, since machines may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// All nodes see one another so long after the last start.
const JOIN_MAX: Duration = Duration::from_secs(5);
/// For a death to be confirmed: with default settings the suspect has from 3 to 18 s to prove itself.
const DEATH_MAX: Duration = Duration::from_secs(22);

pub(crate) struct Story {
    pub(crate) report: Report,
    pub(crate) fleet: Fleet,
    pub(crate) dir: PathBuf,
    pub(crate) nodes: Vec<(String, u16)>,
    configs: BTreeMap<String, PathBuf>,
    /// Who should be alive now.
    pub(crate) alive: BTreeSet<String>,
    /// When the killed node was started anew: from then on nobody may die.
    pub(crate) back: Mark,
    count: usize,
}

impl Story {
    pub(crate) fn new(report: Report, count: usize, dir: PathBuf) -> Self {
        let fleet = Fleet::new();
        Self {
            report,
            back: fleet.journal.mark(),
            fleet,
            dir,
            nodes: Vec::new(),
            configs: BTreeMap::new(),
            alive: BTreeSet::new(),
            count,
        }
    }

    pub(crate) async fn tell(&mut self) -> Result<(), Fault> {
        let begun = now();
        let sockets = self.reserve_ports()?;
        let certificates = Certificates::open(self.dir.clone(), CLUSTER)?;
        self.configs = certificates.make_nodes(&self.nodes)?;
        self.report.act("The cluster starts");
        let text = format!("an authority for cluster {CLUSTER:?}, certificates for {} nodes", self.count);
        self.report.tell(&text, &span(begun, now()));

        self.join(sockets).await?;
        self.share().await;
        self.hundred().await;
        self.crash_and_return().await?;
        self.leave().await;
        self.trials(&certificates).await?;
        self.end().await;
        Ok(())
    }

    /// Free ports, held until the nodes take them.
    fn reserve_ports(&mut self) -> Result<Vec<UdpSocket>, Fault> {
        let free =
            (FIRST_PORT..FIRST_PORT + 4_000).filter_map(|port| UdpSocket::bind(("127.0.0.1", port)).ok());
        let sockets: Vec<_> = free.take(self.count).collect();
        for (socket, number) in sockets.iter().zip(1..) {
            self.nodes.push((format!("lb-{number}"), socket.local_addr()?.port()));
        }
        if self.nodes.len() < self.count {
            return Err(format!("no {} free UDP ports from {FIRST_PORT} on", self.count).into());
        }
        Ok(sockets)
    }

    async fn join(&mut self, sockets: Vec<UdpSocket>) -> Result<(), Fault> {
        let mark = self.fleet.journal.mark();
        let (mut first, mut last) = (u64::MAX, 0);
        let names: Vec<_> = self.nodes.iter().map(|(name, _)| name.clone()).collect();
        for (index, (name, socket)) in names.iter().zip(sockets).enumerate() {
            if index == 2 {
                // The two seeds first: who asks before they listen has to ask again, a second later.
                let seeds: BTreeSet<_> = names[..2].iter().cloned().collect();
                let serves = |note: &Note| matches!(note, Note::Serves { .. });
                self.fleet.until(SOON, |journal| journal.everywhere(mark, &seeds, serves)).await;
            }
            drop(socket);
            last = self.fleet.start(name, &self.configs[name])?;
            first = first.min(last);
            self.alive.insert(name.clone());
        }
        let (report, alive) = (self.report.clone(), self.alive.clone());
        let agreed = self.fleet.until(JOIN_MAX, |journal| journal.agreed(&alive)).await;
        for name in &names {
            let address = self.fleet.journal.first(mark, name, |note| match note {
                Note::Serves { address } => Some(address.clone()),
                _ => None,
            });
            match address {
                Some((at, address)) => report.tell(&format!("{name} serves at {address}"), &span(first, at)),
                None => self.quote_failure(mark, name),
            }
        }
        let measured =
            agreed.map(|at| format!("{} after the last start", span(last, at))).unwrap_or_default();
        let text = format!("all {} see one another alive", self.count);
        report.check(Check::Joined, agreed.is_some(), &text, &measured);
        if agreed.is_some() {
            return Ok(());
        }
        for name in &names {
            let view = self.fleet.journal.view(name);
            report.quote(name, &format!("sees alive: {}", view.unwrap_or_else(|| "nothing yet".into())));
        }
        Err("without a cluster there is nothing to tell".into())
    }

    /// What a node said that did not come up.
    pub(crate) fn quote_failure(&self, mark: Mark, name: &str) {
        for entry in self.fleet.journal.since(mark).filter(|entry| entry.node == name) {
            if let Note::Failed { error: text } | Note::Log { text } = &entry.note {
                self.report.quote(name, text);
            }
        }
    }

    async fn share(&mut self) {
        self.report.act("State is shared");
        for (check, origin, record, what) in [
            (Check::Health, 0, "health backend-7 up", "health: lb-1 says that backend-7 is up"),
            (
                Check::CircuitBreaker,
                1,
                "circuit-breaker backend-7 open",
                "circuit-breaker: lb-2 opens the one of backend-7",
            ),
            (Check::Drain, 2, "drain backend-3 draining", "drain: lb-3 drains backend-3"),
            (
                Check::Custom,
                0,
                "weights pool-a {\"blue\":90,\"green\":10}",
                "weights: a type of this program's own",
            ),
        ] {
            let origin = self.nodes[origin].0.clone();
            let everyone = self.alive.clone();
            let spread = self.broadcast(&origin, record, &everyone).await;
            self.tell_spread(check, what, &everyone, spread.as_ref().map(|(took, _)| *took));
        }
    }

    fn tell_spread(&self, check: Check, what: &str, everyone: &BTreeSet<String>, took: Option<u64>) {
        let measured = took.map(|took| span(0, took)).unwrap_or_default();
        self.report.check(check, took.is_some(), &format!("{what}; all {} know", everyone.len()), &measured);
    }

    /// Has a node write `TYPE KEY VALUE` and waits until all of `everyone` were told: how long that took in
    /// microseconds, from before the call to the last node's event, and the record. Of the own type the other
    /// nodes' providers must have been handed it as well.
    pub(crate) async fn broadcast(
        &mut self,
        origin: &str,
        record: &str,
        everyone: &BTreeSet<String>,
    ) -> Option<(u64, Record)> {
        let mark = self.fleet.journal.mark();
        self.fleet.command(origin, &format!("broadcast {record}")).await;
        self.fleet.until(SOON, |journal| spread(journal, mark, origin, everyone)).await
    }

    async fn hundred(&mut self) {
        let everyone = self.alive.clone();
        let names: Vec<_> = everyone.iter().cloned().collect();
        let mut times = Vec::with_capacity(100);
        for number in 0..100 {
            let origin = &names[number % names.len()];
            match self.broadcast(origin, &format!("{WEIGHTS} pool-b {number}"), &everyone).await {
                Some((took, _)) => times.push(took),
                None => break,
            }
        }
        times.sort_unstable();
        let text = format!("{} of 100 broadcasts, one after the other, each known to all", times.len());
        let measured = match times.as_slice() {
            [.., worst] => {
                let at = |percent: usize| span(0, times[(times.len() * percent / 100).min(times.len() - 1)]);
                format!("median {}, p90 {}, worst {}", at(50), at(90), span(0, *worst))
            }
            [] => String::new(),
        };
        self.report.check(Check::Hundred, times.len() == 100, &text, &measured);
    }

    async fn crash_and_return(&mut self) -> Result<(), Fault> {
        self.report.act("A node crashes, and comes back");
        let victim = self.nodes[self.count - 1].0.clone();
        let mark = self.fleet.journal.mark();
        let killed = self.fleet.kill(&victim)?;
        self.report.tell(&format!("{victim} is killed (SIGKILL)"), "");
        self.fleet.ended(&victim, SOON).await;
        self.alive.remove(&victim);
        let rest = self.alive.clone();
        let origin = self.nodes[0].0.clone();

        let mut missed = Vec::new();
        missed.extend(self.while_away(&origin, &format!("{WEIGHTS} pool-c 50")).await);
        self.mourn(mark, killed, &victim, &rest).await;
        missed.extend(self.while_away(&origin, "drain backend-9 draining").await);
        self.come_back(&victim, &missed).await
    }

    async fn while_away(&mut self, origin: &str, record: &str) -> Option<Record> {
        let rest = self.alive.clone();
        let (took, record) = self.broadcast(origin, record, &rest).await?;
        let text = format!("while it is away: {} {} = {}", record.state_type, record.key, record.value);
        self.report.tell(&text, &span(0, took));
        Some(record)
    }

    async fn mourn(&mut self, mark: Mark, killed: u64, victim: &str, rest: &BTreeSet<String>) {
        let suspects = |note: &Note| is_member(note, "node-suspect", victim);
        let suspected = self.fleet.until(DEATH_MAX / 2, |journal| {
            let suspicions = journal.since(mark).filter(|entry| suspects(&entry.note));
            suspicions.map(|entry| (entry.at, entry.node.clone())).min()
        });
        let suspected = suspected.await;
        let (who, measured) = match &suspected {
            Some((at, who)) => (who.as_str(), format!("{} after the kill", span(killed, *at))),
            None => ("anyone", String::new()),
        };
        let text = format!("{victim} is suspected, first by {who}");
        self.report.check(Check::Suspected, suspected.is_some(), &text, &measured);

        let buries = |note: &Note| is_member(note, "node-dead", victim);
        let dead = self.fleet.until(DEATH_MAX, |journal| journal.everywhere(mark, rest, buries)).await;
        let others = self.fleet.journal.since(mark).any(|entry| {
            matches!(&entry.note, Note::Member { kind, about, .. } if kind == "node-dead" && about != victim)
        });
        let measured = dead.as_ref().map(|times| match times.as_slice() {
            [first, .., last] => {
                format!("{} to {} after the kill", span(killed, *first), span(killed, *last))
            }
            _ => String::new(),
        });
        let text = format!("{victim} is dead to all {}, and nobody else is", rest.len());
        self.report.check(Check::Dead, dead.is_some() && !others, &text, &measured.unwrap_or_default());
        let cause = self.fleet.journal.since(mark).find_map(|entry| match &entry.note {
            Note::Member { cause, .. } if buries(&entry.note) => Some((entry.node.clone(), cause.clone())),
            _ => None,
        });
        if let Some((node, cause)) = cause {
            self.report.quote(&node, &cause);
        }
    }

    async fn come_back(&mut self, victim: &str, missed: &[Record]) -> Result<(), Fault> {
        let mark = self.fleet.journal.mark();
        self.back = mark;
        let started = self.fleet.start(victim, &self.configs[victim])?;
        self.alive.insert(victim.into());
        let everyone = self.alive.clone();
        let agreed = self.fleet.until(SOON * 2, |journal| journal.agreed(&everyone)).await;
        let measured = agreed.map(|at| format!("{} after its start", span(started, at))).unwrap_or_default();
        let text = format!("{victim} is back with the same certificate; all {} agree", self.count);
        self.report.check(Check::Returned, agreed.is_some(), &text, &measured);
        if agreed.is_none() {
            self.quote_failure(mark, victim);
        }

        let told = self.fleet.until(SOON * 2, |journal| {
            let when = |missed: &Record| {
                let is_it = |note: &Note| {
                    matches!(note, Note::Record { record, .. } if record == missed).then_some(())
                };
                journal.first(mark, victim, is_it).map(|(at, ())| at)
            };
            missed.iter().map(when).try_fold(0, |last, at| at.map(|at| last.max(at)))
        });
        let told = told.await.filter(|_| missed.len() == 2);
        let equal = self.equal_records().await;
        let measured = told.map(|at| format!("{} after its start", span(started, at))).unwrap_or_default();
        let count = equal.unwrap_or_default();
        let text = format!("{victim} has what it missed; all hold the same {count} records");
        self.report.check(Check::CaughtUp, told.is_some() && equal.is_some(), &text, &measured);
        Ok(())
    }

    /// Asks all nodes for their records until they are equal: how many there are.
    pub(crate) async fn equal_records(&mut self) -> Option<usize> {
        let everyone = self.alive.clone();
        for _ in 0..20 {
            let mark = self.fleet.journal.mark();
            for name in &everyone {
                self.fleet.command(name, "records").await;
            }
            let answers = self.fleet.until(SOON, |journal| {
                let records = |name: &String| {
                    journal.first(mark, name, |note| match note {
                        Note::Records { records } => Some(records.clone()),
                        _ => None,
                    })
                };
                everyone
                    .iter()
                    .map(|name| records(name).map(|(_, records)| records))
                    .collect::<Option<Vec<_>>>()
            });
            let answers = answers.await?;
            if answers.windows(2).all(|pair| pair[0] == pair[1]) {
                return answers.first().map(Vec::len).filter(|count| *count > 0);
            }
            tokio::time::sleep(SOON / 20).await;
        }
        None
    }

    async fn leave(&mut self) {
        self.report.act("A node leaves");
        let leaver = self.nodes[self.count - 2].0.clone();
        self.alive.remove(&leaver);
        let (mark, rest) = (self.fleet.journal.mark(), self.alive.clone());
        let began = now();
        self.fleet.command(&leaver, "leave").await;
        let is_leave = |note: &Note| is_member(note, "node-leave", &leaver);
        let left = self.fleet.until(SOON, |journal| journal.everywhere(mark, &rest, is_leave)).await;
        let well = self.fleet.ended(&leaver, SOON).await;
        let ended = now();
        let is_death = |note: &Note| is_member(note, "node-dead", &leaver);
        let mourned = self.fleet.journal.since(mark).any(|entry| is_death(&entry.note));
        let last = left.as_ref().and_then(|times| times.last());
        let measured = last.map(|at| span(began, *at)).unwrap_or_default();
        let text = format!(
            "{leaver} has left, say all {}; its process ended after {}",
            rest.len(),
            span(began, ended)
        );
        self.report.check(Check::Left, left.is_some() && well && !mourned, &text, &measured);
    }

    /// Everybody goes home.
    async fn end(&mut self) {
        let began = now();
        for name in self.alive.clone() {
            self.fleet.command(&name, "leave").await;
        }
        let mut well = true;
        for name in self.alive.clone() {
            well &= self.fleet.ended(&name, SOON).await;
        }
        let how = if well { "gracefully" } else { "but not all gracefully" };
        self.report.tell(&format!("the last {} leave, {how}", self.alive.len()), &span(began, now()));
    }
}

/// Whether everybody knows what `origin` wrote since the mark: see [`Story::broadcast`].
fn spread(journal: &Journal, mark: Mark, origin: &str, everyone: &BTreeSet<String>) -> Option<(u64, Record)> {
    let (began, written) = journal.first(mark, origin, |note| match note {
        Note::Wrote { record } => Some(record.clone()),
        _ => None,
    })?;
    let told = |note: &Note| matches!(note, Note::Record { record, removed: false } if *record == written);
    let times = journal.everywhere(mark, everyone, told)?;
    if written.state_type == WEIGHTS {
        let others: BTreeSet<_> = everyone.iter().filter(|name| *name != origin).cloned().collect();
        let applied = |note: &Note| matches!(note, Note::Applied { record } if *record == written);
        journal.everywhere(mark, &others, applied)?;
    }
    Some((times.last()?.saturating_sub(began), written))
}

/// Whether a note tells an event of this kind about this node.
pub(crate) fn is_member(note: &Note, wanted: &str, name: &str) -> bool {
    matches!(note, Note::Member { kind, about, .. } if kind == wanted && about == name)
}
