//! What is said against a node, by this node's own probes or by others: a hint, never a fact. Starts
//! suspicions, counts confirmations, and convicts only who did not answer this node's own check (verify
//! before you bury).

use std::time::Duration;

use crate::{
    EventData, EventKind, NodeId, NodeStatus,
    proto::{
        Now, Output, Protocol, Rule,
        claims::AHEAD_MAX_MS,
        suspicion::{self, Suspicion},
        timers::Timer,
    },
    wire::message::{Accusation, Solicit, Standing, kind},
};

/// Deaths remembered, to tell a massacre from being cut off.
const DEATHS_MAX: usize = 65_536;

impl Protocol {
    /// Somebody accuses a node; `from` is who passed that on.
    pub(super) fn hear_accusation(&mut self, from: &NodeId, accusation: &Accusation, now: Now) {
        let said = (accusation.epoch, accusation.incarnation);
        let latest = now.wall_ms.saturating_add(AHEAD_MAX_MS);
        if said.0 > latest || said.1 > latest || !self.may_tell(from, now) {
            self.counters.accusations_ignored += 1;
            return;
        }
        if accusation.node_id == self.me {
            return self.hear_accused(from, said, now);
        }
        let Some(member) = self.members.get(&accusation.node_id) else { return };
        let known = (member.body.epoch, member.body.incarnation);
        let (status, heard) = (member.status, member.is_heard_within(self.config.ping_interval, now.time));
        if said < known {
            // The accuser has not heard the refutation yet.
            if *from == accusation.accuser {
                self.tell_claim(from, &accusation.node_id);
            }
        } else if said > known {
            self.need_claim(from, &accusation.node_id, now);
        } else if member.is_live() {
            let verify = self.config.has(Rule::VerifyFirst);
            if accusation.dead && !verify {
                self.doubt(accusation, "a peer holds it dead", now);
                self.convict(&accusation.node_id, now);
            } else if status == NodeStatus::Alive && heard && verify {
                // A third party's word never beats a packet just received; but the accused should refute it.
                self.tell_suspect(accusation, now);
            } else {
                self.doubt(accusation, "a peer suspects it", now);
            }
        }
    }

    /// Somebody accuses this node.
    fn hear_accused(&mut self, from: &NodeId, (epoch, incarnation): (u64, u64), now: Now) {
        let mine = &self.members.me().body;
        if epoch == mine.epoch && incarnation >= mine.incarnation {
            self.refute(incarnation, from, now);
        } else if epoch <= mine.epoch {
            self.tell_claim(from, &self.me.clone());
        }
    }

    /// Suspects a live member, or counts one more accuser.
    pub(super) fn doubt(&mut self, accusation: &Accusation, cause: &str, now: Now) {
        let id = &accusation.node_id;
        let members = self.members.live();
        let Some(member) = self.members.get(id).filter(|member| member.is_live()) else { return };
        if member.status == NodeStatus::Alive {
            let mut suspicion = Suspicion::new(accusation.accuser.clone(), &self.config, members, now.time);
            suspicion.held_dead = accusation.dead;
            self.timers.set(Timer::Suspicion(id.clone()), suspicion.ends());
            self.members.update(id, now.time, |member| {
                member.status = NodeStatus::Suspect;
                member.since = now.time;
                member.cause = cause.into();
                member.suspicion = Some(suspicion);
            });
            self.counters.suspicions += 1;
            self.event(EventKind::NodeSuspect, id, cause, now);
        } else {
            let mut ends = None;
            self.members.note(id, |member| {
                if let Some(suspicion) = &mut member.suspicion {
                    suspicion.held_dead |= accusation.dead;
                    if suspicion.confirm(accusation.accuser.clone(), now.time) {
                        ends = Some(suspicion.ends());
                    }
                }
            });
            // Later than a self-check that failed for want of answers may have put it.
            if let Some(ends) = ends.filter(|_| !self.checks.contains_key(id)) {
                self.timers.set(Timer::Suspicion(id.clone()), ends.max(now.time));
            }
        }
        if accusation.dead && !self.checks.contains_key(id) && self.config.has(Rule::VerifyFirst) {
            // All hear of a death at once; they must not all ask the same node at once.
            let jitter = self.jitter(self.config.ping_timeout / 4);
            self.timers.set_by(Timer::Look(id.clone()), now.time + jitter);
        }
    }

    /// This node's own probe failed.
    pub(super) fn accuse(&mut self, id: &NodeId, cause: &str, now: Now) {
        let Some(accusation) = self.accusation(id, false).filter(|_| self.members.is_live(id)) else {
            return;
        };
        let first = self.members.get(id).is_some_and(|member| member.status == NodeStatus::Alive);
        let suspicion = self.members.get(id).and_then(|member| member.suspicion.as_ref());
        // One accuser is told once, and more than the rule counts need not be told at all.
        let needless = suspicion.is_some_and(|suspicion| {
            suspicion.is_confirmed() || suspicion.accusers().any(|accuser| *accuser == self.me)
        });
        self.doubt(&accusation, cause, now);
        if needless {
            return;
        }
        self.spread_part(kind::ACCUSATION, &accusation, false, now);
        self.rumour(id, kind::ACCUSATION, &accusation);
        if first && self.config.has(Rule::Solicit) {
            self.solicit(id, now);
        }
    }

    /// What this node holds against a live member.
    pub(super) fn accusation(&self, id: &NodeId, dead: bool) -> Option<Accusation> {
        let member = self.members.get(id)?;
        Some(Accusation {
            node_id: id.clone(),
            epoch: member.body.epoch,
            incarnation: member.body.incarnation,
            dead,
            accuser: self.me.clone(),
        })
    }

    /// Asks K + 2 members to look at a suspect now, so that confirmations do not wait for their own turn.
    fn solicit(&mut self, id: &NodeId, now: Now) {
        let Some(member) = self.members.get(id) else { return };
        let solicit =
            Solicit { node_id: id.clone(), epoch: member.body.epoch, incarnation: member.body.incarnation };
        let count = suspicion::confirmations_needed(&self.config, self.members.live()) + 2;
        for peer in self.some_alive_near(id, count) {
            self.send_part(&peer, kind::SOLICIT, &solicit);
        }
        let _ = now;
    }

    /// A member is taken off every list of the suspected.
    pub(super) fn no_longer_suspect(&mut self, id: &NodeId) {
        for timer in [Timer::Suspicion(id.clone()), Timer::Look(id.clone()), Timer::CheckEnd(id.clone())] {
            self.timers.clear(&timer);
        }
        self.drop_check(id);
    }

    /// Something arrived from a member, on its own connection: it lives, whatever others say.
    pub(super) fn hear(&mut self, id: &NodeId, now: Now) {
        self.heard = now.time;
        let (mut was, mut standing) = (NodeStatus::Alive, Standing::Alive);
        self.members.note(id, |member| {
            member.heard = Some(now.time);
            member.heard_ms = now.wall_ms;
            (was, standing) = (member.status, member.standing());
        });
        match standing {
            // SWIM believes a refutation only.
            Standing::Suspect if !self.config.has(Rule::VerifyFirst) => {}
            Standing::Suspect => {
                self.set_alive(id, "it was heard", now);
                self.event(EventKind::NodeAlive, id, "it was heard", now);
            }
            Standing::Dead | Standing::Closed => {
                // Only a refutation makes the others believe it.
                if let Some(accusation) = self.accusation(id, true) {
                    self.send_part(id, kind::ACCUSATION, &accusation);
                }
                self.with_counting(id, now, |core| core.set_alive(id, "it was heard again", now));
                self.event(EventKind::NodeJoin, id, "it was heard again", now);
                self.after_revival(id, was, now);
            }
            Standing::Left => self.remind(id, now),
            Standing::Alive => {}
        }
        self.end_isolation(now);
    }

    /// Who has said goodbye speaks still: either it is on its way out, or a life that lost its memory goes on
    /// below the one that left, and must hear of that to go beyond.
    fn remind(&mut self, id: &NodeId, now: Now) {
        let reminded = self.members.get(id).and_then(|member| member.warned);
        if reminded.is_none_or(|reminded| now.time.since(reminded) >= self.config.ping_interval) {
            self.members.note(id, |member| member.warned = Some(now.time));
            self.tell_claim(id, id);
        }
    }

    fn set_alive(&mut self, id: &NodeId, cause: &str, now: Now) {
        self.members.update(id, now.time, |member| {
            member.status = NodeStatus::Alive;
            member.since = now.time;
            member.cause = cause.into();
            member.suspicion = None;
        });
        self.no_longer_suspect(id);
    }

    /// A suspect did not answer this node's own check, while others did.
    pub(super) fn convict(&mut self, id: &NodeId, now: Now) {
        let Some(suspicion) = self.members.get(id).and_then(|member| member.suspicion.clone()) else {
            return;
        };
        let accusers: Vec<_> = suspicion.accusers().map(NodeId::as_str).collect();
        let cause = format!(
            "silent for {:.1} s and at a last check; accused by {}",
            now.time.since(suspicion.since).as_secs_f64(),
            accusers.join(", ")
        );
        self.no_longer_suspect(id);
        self.forget_probes_of(id);
        self.counters.deaths += 1;
        self.note_death(now);
        self.with_counting(id, now, |core| {
            core.members.update(id, now.time, |member| {
                member.status = NodeStatus::Dead;
                member.since = now.time;
                member.cause.clone_from(&cause);
                member.suspicion = None;
            });
        });
        self.event(EventKind::NodeDead, id, &cause, now);
        self.outputs.push_back(Output::NodeFailed(id.clone()));
        if let Some(accusation) = self.accusation(id, true) {
            if !suspicion.held_dead {
                // Else somebody has told it already, and all would tell all.
                self.spread_part(kind::ACCUSATION, &accusation, false, now);
            }
            self.rumour(id, kind::ACCUSATION, &accusation);
        }
    }

    /// Fail static: where more than half of the members die within one suspicion's longest time, this node is
    /// likelier to be cut off than they to be dead; it says so and keeps what they said. Called before the
    /// table shows the death, so that no register goes and comes.
    fn note_death(&mut self, now: Now) {
        let window = suspicion::longest(&self.config, self.members.live());
        self.deaths.push_back(now.time);
        while self.deaths.front().is_some_and(|death| now.time.since(*death) > window)
            || self.deaths.len() > DEATHS_MAX
        {
            self.deaths.pop_front();
        }
        let alive = self.members.live().saturating_sub(1);
        let before = alive + self.deaths.len();
        if self.isolated.is_none() && self.deaths.len() * 2 > before {
            self.set_isolated(Some(before), now);
            self.event_data(EventKind::IsolationSuspected, None, EventData::Isolation { alive, before }, now);
        }
    }

    /// Nothing from anybody for longer than a suspicion can last: either this node is cut off, or all the
    /// others are dead. It says so, keeps what they said, and from then on its probes count, or a survivor
    /// would wait for ever.
    pub(super) fn is_cut_off(&mut self, now: Now) -> bool {
        let members = self.members.live();
        let silent = now.time.since(self.heard) >= suspicion::longest(&self.config, members);
        if silent && self.isolated.is_none() {
            self.set_isolated(Some(members), now);
            let data = EventData::Isolation { alive: 0, before: members };
            self.event_data(EventKind::IsolationSuspected, None, data, now);
        }
        silent
    }

    /// Registers of the dead count while this node takes itself to be cut off.
    fn set_isolated(&mut self, isolated: Option<usize>, now: Now) {
        let dead: Vec<_> = self
            .members
            .iter()
            .filter(|(_, m)| m.status == NodeStatus::Dead)
            .map(|(id, _)| id.clone())
            .collect();
        self.with_counting_all(&dead, now, |core| core.isolated = isolated);
    }

    /// A member lives that did not.
    pub(super) fn after_revival(&mut self, id: &NodeId, was: NodeStatus, now: Now) {
        self.end_isolation(now);
        if matches!(was, NodeStatus::Dead | NodeStatus::Left)
            && self.members.get(id).is_some_and(|member| member.linked)
        {
            self.begin_exchange(id, now);
        }
    }

    /// Half of those that were there are there again, or the lost have been forgotten: this node is not cut
    /// off.
    pub(super) fn end_isolation(&mut self, now: Now) {
        let Some(before) = self.isolated else { return };
        if self.is_cut_off(now) {
            return;
        }
        let any_dead = self.members.iter().any(|(_, member)| member.status == NodeStatus::Dead);
        if self.members.live() * 2 >= before || !any_dead {
            self.deaths.clear();
            self.set_isolated(None, now);
        }
    }

    /// A random part of `span`.
    pub(super) fn jitter(&mut self, span: Duration) -> Duration {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.u64(0..=micros))
    }
}
