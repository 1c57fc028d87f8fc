//! Probes: is that member there? One cycle is a direct ping, indirect pings through helpers, and a verdict
//! (SWIM §3.1, Lifeguard); a self-check is the last look before a conviction. Decides nothing on others'
//! word.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use crate::{
    NodeId, NodeStatus,
    proto::{
        Now, Protocol, Rule, Time,
        members::{Members, Place, Rtt},
        schedule,
        timers::Timer,
    },
    wire::{
        codec::Packet,
        limits,
        message::{Accusation, Ack, Digests, Nack, Ping, PingReq, Reached, Solicit, kind},
    },
};

/// The shortest direct time-out: a scheduler's delay must not pass for a death.
const DIRECT_MIN: Duration = Duration::from_millis(25);
/// The shortest time a self-check gives.
const CHECK_MIN: Duration = Duration::from_millis(50);
/// Members believed alive that a self-check asks besides the suspect.
const CHECK_OTHERS: usize = 3;
/// A wake-up later than this says that the process stood still.
const LATE: Duration = Duration::from_millis(100);
/// How many members are drawn blindly for each that is wanted, before all are looked at.
const DRAWS: usize = 4;
/// Pings of others' that this node carries at a time.
const HELPS_MAX: usize = 1_024;
/// How long both sides must have been at rest before digests that differ mean that something was missed.
const SETTLED: Duration = Duration::from_secs(1);

/// A probe that runs, by the number of its ping.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Probe {
    target: NodeId,
    since: Time,
    /// Who was asked to try, and whether it has said that it is there.
    helpers: BTreeMap<NodeId, bool>,
}

/// A ping that was not answered yet.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Pinged {
    to: NodeId,
    sent: Time,
    /// Whether no connection stood: then the answer measures the handshake, not the path.
    cold: bool,
    why: Why,
}

impl Pinged {
    pub(super) fn sent(&self) -> Time {
        self.sent
    }
}

#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
enum Why {
    Probe,
    /// For another, who numbered it so.
    Help {
        asker: NodeId,
        seq: u64,
    },
    /// Another asked this node to look.
    Solicited,
    /// The suspect of a self-check.
    Check,
    /// One believed alive, in the self-check of this suspect.
    CheckOther(NodeId),
}

/// A self-check that runs.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(super) struct Check {
    asked: usize,
    answered: usize,
}

/// One's own probes.
impl Protocol {
    /// The next protocol period.
    pub(super) fn begin_period(&mut self, now: Now) {
        let period = self.config.ping_interval * self.awareness.factor();
        self.timers.set(Timer::Period, now.time + period);
        if let Some(target) = self.next_target(now) {
            self.begin_probe(&target, now);
        }
    }

    /// Whom to probe: in the order that all nodes share, so that each is probed once a period. In a cluster
    /// with more nodes than connections a target stands near on the ring, where a connection stands too: a
    /// probe by way of a handshake costs more and takes longer to fail.
    pub(super) fn next_target(&mut self, now: Now) -> Option<NodeId> {
        let period_ms = u64::try_from(self.config.ping_interval.as_millis()).unwrap_or(1).max(1);
        let shared = self.config.has(Rule::SharedSchedule);
        let period = if shared { now.wall_ms / period_ms } else { self.counters.probes };
        let me = Place::of(self.members.me());
        let reach = self.reach();
        let others = self.members.ring();
        let rank = others.partition_point(|other| *other < me);
        let target = (rank + self.schedule.step(period, others.len() + 1, reach)?) % (others.len() + 1);
        let place = if target < rank { others.get(target) } else { others.get(target.checked_sub(1)?) };
        place.map(|place| place.node_id.clone())
    }

    /// Probes a member at once, unless a probe of it runs.
    pub(super) fn probe_now(&mut self, id: &NodeId, now: Now) {
        let runs = self.probes.values().any(|probe| probe.target == *id);
        if !runs && !self.leaving && *id != self.me && self.members.is_live(id) {
            self.begin_probe(id, now);
        }
    }

    fn begin_probe(&mut self, target: &NodeId, now: Now) {
        self.counters.probes += 1;
        let linked = self.members.get(target).is_some_and(|member| member.linked);
        let factor = self.awareness.factor();
        let direct = if linked {
            self.direct_timeout(target)
        } else {
            self.config.ping_timeout * factor // a probe never waits for a handshake in silence
        };
        let end = (direct + self.config.ping_timeout * factor).min(self.config.ping_interval * factor);
        let seq = self.ping(target, Why::Probe, None, now);
        self.probes.insert(seq, Probe { target: target.clone(), since: now.time, helpers: BTreeMap::new() });
        self.timers.set(Timer::ProbeDirect(seq), now.time + direct);
        self.timers.set(Timer::ProbeEnd(seq), now.time + end);
    }

    /// `srtt + 4·rttvar` of this path, within 25 ms and the ping time-out, stretched by local health.
    fn direct_timeout(&self, id: &NodeId) -> Duration {
        if !self.config.has(Rule::VoidProbes) {
            return self.config.ping_timeout * self.awareness.factor();
        }
        (self.path_wait(id) * self.awareness.factor()).min(self.config.ping_timeout)
    }

    /// How long an answer over this path may take: the ping time-out, unless it was measured.
    fn path_wait(&self, id: &NodeId) -> Duration {
        let path = self.members.get(id).and_then(|member| member.rtt);
        path.map_or(self.config.ping_timeout, |rtt| (rtt.smooth + rtt.var * 4).max(DIRECT_MIN))
    }

    /// The direct ping was not answered in time: others are asked to try.
    pub(super) fn probe_indirectly(&mut self, seq: u64, now: Now) {
        let Some(target) = self.probes.get(&seq).map(|probe| probe.target.clone()) else { return };
        let helpers = self.some_alive_near(&target, self.config.ping_req_count);
        if helpers.is_empty() {
            return; // nobody to ask: the target has the whole time
        }
        let wait = self.indirect_timeout(&helpers, &target);
        self.timers.set_by(Timer::ProbeEnd(seq), now.time + wait);
        for helper in &helpers {
            self.counters.indirect_probes += 1;
            // Early enough that the helper's word is here in time, and that it has tried (Lifeguard: 80 %).
            let nack = wait.saturating_sub(self.path_wait(helper)).max(wait / 2) * 4 / 5;
            let nack_ms = u32::try_from(nack.as_millis()).unwrap_or(u32::MAX);
            self.send_part(helper, kind::PING_REQ, &PingReq { seq, target: target.clone(), nack_ms });
        }
        if let Some(probe) = self.probes.get_mut(&seq) {
            probe.helpers = helpers.into_iter().map(|helper| (helper, false)).collect();
        }
    }

    /// Twice the way to the farthest helper and from there to the target, which is no longer than by way of
    /// this node: 150 ms where all are near. Stretched by local health; at most the ping time-out.
    fn indirect_timeout(&self, helpers: &[NodeId], target: &NodeId) -> Duration {
        let most = self.config.ping_timeout * self.awareness.factor();
        if !self.config.has(Rule::VoidProbes) {
            return most;
        }
        let to_helper = helpers.iter().map(|helper| self.path_wait(helper)).max().unwrap_or_default();
        let from_there = to_helper + self.path_wait(target);
        ((to_helper + from_there) * 2 * self.awareness.factor()).min(most)
    }

    /// The probe's time is over and nobody has reached the target.
    pub(super) fn end_probe(&mut self, seq: u64, now: Now) {
        let Some(probe) = self.take_probe(seq) else { return };
        let void =
            !probe.helpers.is_empty() && self.heard <= probe.since && self.config.has(Rule::VoidProbes);
        if void && !self.is_cut_off(now) {
            // No sign of life from anyone: this node is the one that cannot hear.
            self.counters.probes_void += 1;
            self.awareness.unwell(1);
            return;
        }
        self.counters.probes_failed += 1;
        let missed = probe.helpers.values().filter(|nacked| !**nacked).count();
        self.awareness.unwell(if probe.helpers.is_empty() { 1 } else { u32::try_from(missed).unwrap_or(1) });
        let cause = format!("no answer to a ping and {} indirect pings", probe.helpers.len());
        self.accuse(&probe.target, &cause, now);
    }

    fn take_probe(&mut self, seq: u64) -> Option<Probe> {
        self.timers.clear(&Timer::ProbeDirect(seq));
        self.timers.clear(&Timer::ProbeEnd(seq));
        self.pings.remove(&seq);
        self.probes.remove(&seq)
    }

    /// A probe says nothing about a node's next life, nor about a dead one; nor does a ping that a peer asked
    /// for.
    pub(super) fn forget_probes_of(&mut self, id: &NodeId) {
        let of_it: Vec<_> =
            self.probes.iter().filter(|(_, probe)| probe.target == *id).map(|(seq, _)| *seq).collect();
        for seq in of_it {
            self.take_probe(seq);
        }
        let looks = |ping: &Pinged| ping.to == *id && matches!(ping.why, Why::Solicited);
        let looks: Vec<_> = self.pings.iter().filter(|(_, ping)| looks(ping)).map(|(seq, _)| *seq).collect();
        for seq in looks {
            self.timers.clear(&Timer::SolicitEnd(seq));
            self.pings.remove(&seq);
        }
    }

    /// Up to `count` members believed alive, by chance: those that are connected, if there are any.
    pub(super) fn some_alive(&mut self, count: usize, except: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let whole = 0..self.members.ring().len();
        self.some_alive_within(whole, count, except)
    }

    /// The same of those that have a connection to that member and are not it; of all, if they are too few.
    pub(super) fn some_alive_near(&mut self, id: &NodeId, count: usize) -> Vec<NodeId> {
        let (others, reach, except) =
            (self.members.ring().len(), self.reach() / 3, BTreeSet::from([id.clone()]));
        if let Some(place) = self.members.get(id).map(Place::of).filter(|_| reach < others) {
            let rank = self.members.ring().partition_point(|other| *other < place);
            let near = rank.saturating_sub(reach)..(rank + reach).min(others);
            let some = self.some_alive_within(near, count, &except);
            if some.len() == count {
                return some;
            }
        }
        self.some_alive_within(0..others, count, &except)
    }

    /// The same of a part of the ring.
    pub(super) fn some_alive_within(
        &mut self,
        part: Range<usize>,
        count: usize,
        except: &BTreeSet<NodeId>,
    ) -> Vec<NodeId> {
        let ring = self.members.take_ring();
        let nodes = &ring[part];
        let mut some: Vec<NodeId> = Vec::new();
        let fits = |members: &Members, some: &[NodeId], id: &NodeId, linked: bool| {
            members.get(id).is_some_and(|m| m.status == NodeStatus::Alive && m.linked == linked)
                && !except.contains(id)
                && !some.contains(id)
        };
        // Mostly the first who are drawn will do, and nobody has to look at a thousand others.
        for _ in 0..nodes.len().min(DRAWS * count) {
            let drawn = &nodes[self.rng.usize(..nodes.len())].node_id;
            if some.len() < count && fits(&self.members, &some, drawn, true) {
                some.push(drawn.clone());
            }
        }
        for linked in [true, false] {
            if some.len() == count || !linked && !some.is_empty() {
                break;
            }
            let rest = nodes.iter().map(|place| &place.node_id);
            let rest = rest.filter(|id| fits(&self.members, &some, id, linked));
            let drawn = self.rng.choose_multiple(rest, count - some.len());
            some.extend(drawn.into_iter().cloned());
        }
        self.members.put_ring(ring);
        some
    }
}

/// Pings, whoever wants them.
impl Protocol {
    fn ping(&mut self, to: &NodeId, why: Why, buddy: Option<&Accusation>, now: Now) -> u64 {
        self.last_ping += 1;
        let seq = self.last_ping;
        let Some(member) = self.members.get(to) else { return seq };
        let cold = !member.linked;
        let tells = member.status == NodeStatus::Suspect && self.config.has(Rule::Buddy);
        let own = tells.then(|| self.accusation(to, false)).flatten();
        let mut packet = Packet::new();
        packet.push(kind::PING, &Ping { seq, digests: self.digests(to, now) });
        // The suspect is told first (Lifeguard's buddy).
        if let Some(accusation) = buddy.or(own.as_ref()) {
            packet.push(kind::ACCUSATION, accusation);
        }
        self.add_rumours(&mut packet, to);
        if cold {
            self.dial(to);
        }
        self.pings.insert(seq, Pinged { to: to.clone(), sent: now.time, cold, why });
        self.send(to, packet);
        seq
    }

    /// What this node holds, in hashes, as far as the peer keeps it too.
    fn digests(&self, peer: &NodeId, now: Now) -> Digests {
        let theirs = self.members.get(peer).map(|member| &member.disabled);
        let mut except: BTreeSet<_> = theirs.into_iter().flatten().cloned().collect();
        except.extend(self.types_signed_otherwise(peer));
        let rest = now.time.since(self.members.changed.max(self.state_changed));
        Digests {
            state: self.store.digest_all(&except),
            members: self.members.hash(),
            settled: rest >= SETTLED,
        }
    }

    /// Hashes that differ although neither side has changed for a while: something was missed.
    fn compare(&mut self, peer: &NodeId, theirs: &Digests, now: Now) {
        if !theirs.settled {
            return;
        }
        let mine = self.digests(peer, now);
        if mine.settled && mine != *theirs {
            self.sync_early(peer, now);
        }
    }

    pub(super) fn on_ping(&mut self, from: &NodeId, ping: &Ping, now: Now) {
        let mut packet = Packet::new();
        packet.push(kind::ACK, &Ack { seq: ping.seq, digests: self.digests(from, now) });
        self.add_rumours(&mut packet, from);
        self.send(from, packet);
        self.compare(from, &ping.digests, now);
    }

    pub(super) fn on_ack(&mut self, from: &NodeId, ack: &Ack, now: Now) {
        self.compare(from, &ack.digests, now);
        if self.pings.get(&ack.seq).is_none_or(|ping| ping.to != *from) {
            self.counters.answers_ignored += 1; // late, repeated, or made up
            return;
        }
        let Some(ping) = self.pings.remove(&ack.seq) else { return };
        if !ping.cold {
            self.measure(from, now.time.since(ping.sent));
        }
        match ping.why {
            Why::Probe => {
                self.take_probe(ack.seq);
                self.awareness.well();
            }
            Why::Help { asker, seq } => {
                self.timers.clear(&Timer::HelpNack(ack.seq));
                self.timers.clear(&Timer::HelpEnd(ack.seq));
                self.send_part(&asker, kind::REACHED, &Reached { seq });
            }
            Why::Solicited => self.timers.clear(&Timer::SolicitEnd(ack.seq)),
            Why::Check => {} // it was heard, and that ended the suspicion
            Why::CheckOther(suspect) => {
                if let Some(check) = self.checks.get_mut(&suspect) {
                    check.answered += 1;
                }
            }
        }
    }

    pub(super) fn measure(&mut self, peer: &NodeId, sample: Duration) {
        self.members.note(peer, |member| member.rtt = Some(Rtt::sampled(member.rtt, sample)));
    }

    /// Another asks this node to ping for it.
    pub(super) fn on_ping_req(&mut self, from: &NodeId, request: &PingReq, now: Now) {
        if !self.may_tell(from, now) {
            // Not even an answer: whoever asks so often would have this node ping for it without end.
            self.counters.helps_refused += 1;
            return;
        }
        if request.target == self.me || !self.members.is_live(&request.target) || self.helps() >= HELPS_MAX {
            self.counters.helps_refused += 1;
            self.send_part(from, kind::NACK, &Nack { seq: request.seq });
            return;
        }
        let why = Why::Help { asker: from.clone(), seq: request.seq };
        let seq = self.ping(&request.target, why, None, now);
        let nack = Duration::from_millis(request.nack_ms.into()).min(self.config.ping_timeout * 2);
        self.timers.set(Timer::HelpNack(seq), now.time + nack);
        self.timers.set(Timer::HelpEnd(seq), now.time + self.config.ping_timeout * 2);
    }

    fn helps(&self) -> usize {
        self.pings.values().filter(|ping| matches!(ping.why, Why::Help { .. })).count()
    }

    pub(super) fn say_nack(&mut self, ping: u64) {
        if let Some(Pinged { why: Why::Help { asker, seq }, .. }) = self.pings.get(&ping) {
            let (asker, nack) = (asker.clone(), Nack { seq: *seq });
            self.send_part(&asker, kind::NACK, &nack);
        }
    }

    pub(super) fn end_help(&mut self, ping: u64) {
        self.pings.remove(&ping);
    }

    pub(super) fn on_nack(&mut self, from: &NodeId, nack: Nack) {
        let probe = self.probes.get_mut(&nack.seq);
        if let Some(nacked) = probe.and_then(|probe| probe.helpers.get_mut(from)) {
            *nacked = true;
        } else {
            self.counters.answers_ignored += 1;
        }
    }

    /// A helper has reached the target of a probe: it lives, though not by this node's path.
    pub(super) fn on_reached(&mut self, from: &NodeId, reached: Reached, now: Now) {
        // Numbers can be guessed: only who was asked has a say.
        let asked = self.probes.get(&reached.seq).is_some_and(|probe| probe.helpers.contains_key(from));
        if !asked {
            self.counters.answers_ignored += 1;
            return;
        }
        if let Some(probe) = self.take_probe(reached.seq) {
            self.counters.probes_saved += 1;
            self.awareness.well();
            self.plan_dial(&probe.target, now);
        }
    }

    /// Another suspects a node and asks this one to look.
    pub(super) fn on_solicit(&mut self, from: &NodeId, solicit: &Solicit, now: Now) {
        if !self.may_tell(from, now) {
            self.counters.helps_refused += 1;
            return;
        }
        let accusation = Accusation {
            node_id: solicit.node_id.clone(),
            epoch: solicit.epoch,
            incarnation: solicit.incarnation,
            dead: false,
            accuser: from.clone(),
        };
        self.look_at(&accusation, now);
    }

    /// Pings an accused member, which is told so; if it is silent, this node accuses it too.
    pub(super) fn look_at(&mut self, accusation: &Accusation, now: Now) {
        let id = &accusation.node_id;
        let Some(member) = self.members.get(id).filter(|member| member.is_live()) else { return };
        let same = (member.body.epoch, member.body.incarnation) == (accusation.epoch, accusation.incarnation);
        let looking = |ping: &Pinged| ping.to == *id && matches!(ping.why, Why::Solicited);
        if *id == self.me || !same || self.pings.values().any(looking) {
            return;
        }
        let seq = self.ping(id, Why::Solicited, Some(accusation), now);
        self.timers
            .set(Timer::SolicitEnd(seq), now.time + self.config.ping_timeout * self.awareness.factor());
    }

    pub(super) fn end_solicited(&mut self, seq: u64, now: Now) {
        let Some(ping) = self.pings.remove(&seq) else { return };
        if self.heard > ping.sent {
            self.accuse(&ping.to, "no answer to a ping that a peer asked for", now);
        }
    }

    /// Tells an accused member, of whom this node has just heard, that it should refute: once a gossip tick,
    /// which is as often as it does.
    pub(super) fn tell_suspect(&mut self, accusation: &Accusation, now: Now) {
        let warned = self.members.get(&accusation.node_id).and_then(|member| member.warned);
        if warned.is_some_and(|warned| now.time.since(warned) < self.config.gossip_interval) {
            return;
        }
        self.members.note(&accusation.node_id, |member| member.warned = Some(now.time));
        self.send_part(&accusation.node_id, kind::ACCUSATION, accusation);
    }
}

/// The last look.
impl Protocol {
    /// A suspicion is over: pings the suspect once more, and some believed alive, to tell whose fault the
    /// silence is.
    pub(super) fn begin_check(&mut self, suspect: &NodeId, now: Now) {
        if self.checks.contains_key(suspect)
            || self.members.get(suspect).is_none_or(|member| member.status != NodeStatus::Suspect)
        {
            return;
        }
        if !self.config.has(Rule::VerifyFirst) {
            return self.convict(suspect, now);
        }
        self.counters.self_checks += 1;
        let linked = self.members.get(suspect).is_some_and(|member| member.linked);
        let mut wait = if linked { self.direct_timeout(suspect) } else { self.config.ping_timeout };
        self.ping(suspect, Why::Check, None, now);
        let others = self.some_alive(CHECK_OTHERS, &BTreeSet::from([suspect.clone()]));
        for other in &others {
            wait = wait.max(self.direct_timeout(other));
            self.ping(other, Why::CheckOther(suspect.clone()), None, now);
        }
        self.checks.insert(suspect.clone(), Check { asked: others.len(), answered: 0 });
        let wait = wait.max(CHECK_MIN).min(self.config.ping_timeout.max(CHECK_MIN));
        self.timers.set(Timer::CheckEnd(suspect.clone()), now.time + wait);
    }

    /// The suspect was silent to the end.
    pub(super) fn end_check(&mut self, suspect: &NodeId, now: Now) {
        let Some(check) = self.drop_check(suspect) else { return };
        let Some(suspicion) = self.members.get(suspect).and_then(|member| member.suspicion.as_ref()) else {
            return;
        };
        let sure = if check.asked == 0 {
            // Nobody is left to ask: of two or three nodes it is the silent one; of more, wait as long as may
            // be.
            self.members.live() <= 3 || suspicion.ends_at_most() <= now.time
        } else {
            check.answered >= check.asked.min(2)
        };
        if sure {
            self.convict(suspect, now);
        } else {
            self.counters.self_checks_void += 1;
            self.awareness.unwell(1);
            self.timers.set(Timer::Suspicion(suspect.clone()), now.time + self.config.ping_interval);
        }
    }
}

/// The end of a self-check, however it ends.
impl Protocol {
    pub(super) fn drop_check(&mut self, suspect: &NodeId) -> Option<Check> {
        let check = self.checks.remove(suspect)?;
        self.timers.clear(&Timer::CheckEnd(suspect.clone()));
        self.pings.retain(|_, ping| match &ping.why {
            Why::Check => ping.to != *suspect,
            Why::CheckOther(of) => of != suspect,
            _ => true,
        });
        Some(check)
    }
}

/// Time that passed without this node.
impl Protocol {
    /// Called with each input: a process that stood still must not take its own absence for others' silence.
    pub(super) fn enter(&mut self, now: Now) {
        let due = self.timers.next().map(|due| due.max(self.entered));
        self.entered = self.entered.max(now.time);
        let Some(late) = due.map(|due| now.time.since(due)).filter(|late| *late > LATE) else { return };
        if !self.config.has(Rule::VoidProbes) {
            return;
        }
        self.counters.late_wakeups += 1;
        self.awareness.unwell(1);
        self.heard = self.heard.max(now.time); // the silence is its own
        let probes: Vec<_> = self.probes.keys().copied().collect();
        for seq in probes {
            self.take_probe(seq);
        }
        let checks: Vec<_> = self.checks.keys().cloned().collect();
        for suspect in checks {
            self.drop_check(&suspect);
            self.timers.set(Timer::Suspicion(suspect), now.time + self.config.ping_interval);
        }
        let solicited: Vec<_> = self
            .pings
            .iter()
            .filter(|(_, ping)| matches!(ping.why, Why::Solicited))
            .map(|(seq, _)| *seq)
            .collect();
        for seq in solicited {
            self.pings.remove(&seq);
            self.timers.clear(&Timer::SolicitEnd(seq));
        }
        self.timers.put_off(late, |timer| matches!(timer, Timer::Suspicion(_) | Timer::Look(_)));
    }
}

/// News about members ride on pings and acks (SWIM §4.1), a net below the delegated spread.
impl Protocol {
    /// Puts a part on the pings and acks to come; one about the same node replaces it.
    pub(super) fn rumour<T: serde::Serialize>(&mut self, about: &NodeId, kind: u8, body: &T) {
        let mut packet = Packet::new();
        packet.push(kind, body);
        let part = packet.into_parts();
        let sends = 3 * schedule::log10_ceil(self.members.live() + 1);
        self.rumours.insert(about.clone(), (part, sends));
    }

    fn add_rumours(&mut self, packet: &mut Packet, to: &NodeId) {
        let mut told = Vec::new();
        for (about, (part, _)) in &self.rumours {
            if about != to && packet.len() + part.len() <= limits::DATAGRAM_LEN_MAX {
                packet.push_parts(part);
                told.push(about.clone());
            }
        }
        for about in told {
            if let Some((_, left)) = self.rumours.get_mut(&about) {
                *left -= 1;
                if *left == 0 {
                    self.rumours.remove(&about);
                }
            }
        }
    }
}
