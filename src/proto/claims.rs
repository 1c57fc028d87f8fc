//! What nodes say of themselves, signed: which claim is believed, what it changes, and how this node makes
//! its own (epochs, incarnations, refutation). A claim that would change nothing is not verified.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use crate::{
    Error, EventKind, NodeId, NodeStatus,
    proto::{
        Now, Output, Protocol, Time,
        members::{MEMBERS_MAX, Member, chain_hash, rank},
        timers::Timer,
    },
    wire::{
        CloseCode, codec, limits,
        message::{ClaimBody, Forget, NeedClaim, SignedClaim, Standing, kind},
    },
};

/// How far beyond an epoch that is in use the next begins, at most.
const EPOCH_STEP_MAX_MS: u64 = 1_024;
/// How far a peer's epoch or incarnation may lie ahead of this node's wall clock.
pub(super) const AHEAD_MAX_MS: u64 = 24 * 3_600 * 1_000;
/// Conflicts are told at most so often.
const CONFLICT_EVERY: Duration = Duration::from_secs(60);
/// How often this node goes beyond a later life that others tell of. The other may be a process that lives,
/// and does the same.
const SURPASS_EVERY: Duration = Duration::from_secs(30);
/// A claim is asked for at most so often.
const NEED_EVERY: Duration = Duration::from_millis(500);
/// Claims that wait for their certificates at most.
const NEEDED_MAX: usize = 4_096;

/// How a claim came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Its node itself said it, on its own connection.
    Directly,
    /// Somebody relayed it.
    Relayed,
    /// In a push-pull, by somebody who holds the node so, for so long.
    Row(Standing, Duration),
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// It changed the table.
    News,
    /// It changed nothing, or must wait for its certificates.
    Nothing,
    /// It must not be believed.
    Refused,
}

/// What a claim's signature covers.
pub(super) fn signed_message(cluster: &str, body: &[u8]) -> Vec<u8> {
    [b"phalanx claim v1\0", cluster.as_bytes(), b"\0", body].concat()
}

fn within_bounds(body: &ClaimBody, wall_ms: u64) -> bool {
    let latest = wall_ms.saturating_add(AHEAD_MAX_MS);
    body.epoch <= latest
        && body.incarnation <= latest
        && body.zone.as_ref().is_none_or(|zone| zone.len() <= limits::ZONE_LEN_MAX)
        && limits::check_tags(&body.tags).is_ok()
}

/// Others' claims.
impl Protocol {
    /// Decodes a claim and checks it against every bound that does not need its signature.
    pub(super) fn read_claim(signed: &SignedClaim, now: Now) -> Option<ClaimBody> {
        let body: ClaimBody = codec::decode(&signed.body).ok()?;
        let chain_fits = signed.chain.as_ref().is_none_or(|chain| chain.len() <= limits::CHAIN_LEN_MAX);
        (chain_fits && within_bounds(&body, now.wall_ms)).then_some(body)
    }

    pub(super) fn is_signed(&self, body: &ClaimBody, signed: &SignedClaim, chain: &[u8]) -> bool {
        let message = signed_message(&self.config.cluster, &signed.body);
        self.vouch.verify(&body.node_id, chain, &message, &signed.signature)
    }

    /// Takes a claim, whoever told it.
    pub(super) fn hear_claim(
        &mut self,
        teller: &NodeId,
        signed: &SignedClaim,
        told: Told,
        now: Now,
    ) -> Claimed {
        let Some(body) = Self::read_claim(signed, now) else {
            self.counters.claims_refused += 1;
            return Claimed::Refused;
        };
        if body.node_id == self.me {
            self.hear_own_claim(teller, &body, signed, now);
            return Claimed::Nothing;
        }
        if !self.would_change(&body, told) {
            return Claimed::Nothing;
        }
        let Some(chain) = signed.chain.as_ref().or_else(|| self.members.chain(signed.chain_hash)).cloned()
        else {
            self.need_claim(teller, &body.node_id, now);
            return Claimed::Nothing;
        };
        // To verify a signature takes as long as a hundred pings. A push-pull tells of a whole cluster at once:
        // there only what is false counts.
        let may =
            if told == Told::Relayed { self.may_tell(teller, now) } else { self.could_tell(teller, now) };
        if told != Told::Directly && !may {
            self.counters.claims_over_budget += 1;
            return Claimed::Nothing;
        }
        if chain_hash(&chain) != signed.chain_hash || !self.is_signed(&body, signed, &chain) {
            self.counters.claims_forged += 1;
            self.may_tell(teller, now);
            return Claimed::Refused;
        }
        self.members.keep_chain(signed.chain_hash, chain);
        self.needed.remove(&body.node_id);
        let signed = SignedClaim { chain: None, ..signed.clone() };
        match self.members.get(&body.node_id) {
            Some(_) => self.believe(body, signed, told, now),
            None if self.members.len() >= MEMBERS_MAX => {
                self.counters.members_refused += 1;
                return Claimed::Refused;
            }
            None => self.admit(body, signed, told, now),
        }
        Claimed::News
    }

    /// Whether the claim, if true, changes anything.
    fn would_change(&self, body: &ClaimBody, told: Told) -> bool {
        match (self.members.get(&body.node_id), self.members.grave(&body.node_id)) {
            (Some(member), _) => rank(body) > rank(&member.body),
            // Whoever says so itself has proved itself anew.
            (None, Some(grave)) if told != Told::Directly => {
                (body.epoch, body.incarnation) > (grave.epoch, grave.incarnation)
            }
            (None, _) => true,
        }
    }

    /// Asks the teller for a claim with its certificates.
    pub(super) fn need_claim(&mut self, teller: &NodeId, node_id: &NodeId, now: Now) {
        let asked = self.needed.get(node_id);
        if asked.is_some_and(|asked| now.time.since(*asked) < NEED_EVERY) || self.needed.len() >= NEEDED_MAX {
            return;
        }
        self.needed.insert(node_id.clone(), now.time);
        self.send_part(teller, kind::NEED_CLAIM, &NeedClaim { node_id: node_id.clone() });
    }

    /// Answers who asks for a claim.
    pub(super) fn tell_claim(&mut self, to: &NodeId, node_id: &NodeId) {
        if let Some(signed) = self.claim_with_chain(node_id) {
            self.send_part(to, kind::CLAIM, &signed);
        }
    }

    /// A member's claim together with its certificates.
    pub(super) fn claim_with_chain(&self, node_id: &NodeId) -> Option<SignedClaim> {
        let signed = self.members.get(node_id)?.signed.clone();
        let chain = self.members.chain(signed.chain_hash).cloned();
        Some(SignedClaim { chain, ..signed })
    }

    /// A node enters the table.
    fn admit(&mut self, body: ClaimBody, signed: SignedClaim, told: Told, now: Now) {
        let id = body.node_id.clone();
        self.members.reopen(&id);
        let left = body.left;
        let mut member = Member::new(body, signed, self.members.place_of(&id), now.time, now.wall_ms);
        member.cause = "first heard of".into();
        let gone = match told {
            Told::Row(_, age) if left => Some((NodeStatus::Left, age)),
            _ if left => Some((NodeStatus::Left, Duration::ZERO)),
            Told::Row(Standing::Dead, age) => Some((NodeStatus::Dead, age)),
            Told::Row(Standing::Closed, age) => Some((NodeStatus::Left, age)),
            _ => None,
        };
        if let Some((status, age)) = gone {
            // It was gone before this node heard of it: no event, but it can be asked for and greeted.
            member.status = status;
            member.since = now.time - age;
            member.cause = "gone before this node heard of it".into();
            self.members.insert(member, now.time);
            return;
        }
        // What it has said before its claim came counts from now on.
        self.with_counting(&id, now, |core| core.members.insert(member, now.time));
        self.end_isolation(now);
        let cause = if told == Told::Directly { "it connected" } else { "a peer told its claim" };
        self.event(EventKind::NodeJoin, &id, cause, now);
        self.plan_dial(&id, now);
    }

    /// A known node's newer claim.
    fn believe(&mut self, body: ClaimBody, signed: SignedClaim, told: Told, now: Now) {
        let id = body.node_id.clone();
        let Some(before) = self.members.get(&id) else { return };
        let (was, old) = (before.status, before.body.clone());
        if let Told::Row(standing, age) = told
            && !body.left
            && matches!(
                (was, standing),
                (NodeStatus::Dead, Standing::Dead | Standing::Closed) | (NodeStatus::Left, Standing::Closed)
            )
        {
            // Another life of it has come and gone since this node knew it.
            self.members.update(&id, now.time, |member| {
                member.body = body;
                member.signed = signed;
                member.since = now.time - age;
            });
            if standing == Standing::Closed && was == NodeStatus::Dead {
                self.note_left(&id, "a peer saw it leave", now);
            }
            return;
        }
        let restarted = body.epoch > old.epoch;
        let left = body.left;
        let moved = body.address != old.address;
        let (status, kind, cause) = if body.left {
            (NodeStatus::Left, (was != NodeStatus::Left).then_some(EventKind::NodeLeave), "it said goodbye")
        } else {
            let kind = match was {
                NodeStatus::Dead | NodeStatus::Left => Some(EventKind::NodeJoin),
                NodeStatus::Suspect => Some(EventKind::NodeAlive),
                NodeStatus::Alive => {
                    let same =
                        (&old.address, &old.zone, &old.tags) == (&body.address, &body.zone, &body.tags);
                    (restarted || !same).then_some(EventKind::NodeUpdate)
                }
            };
            let cause = match (restarted, was) {
                (true, _) => "it restarted",
                (false, NodeStatus::Dead) => "it refuted its death",
                (false, NodeStatus::Suspect) => "it refuted the suspicion",
                (false, _) => "it changed what it says of itself",
            };
            (NodeStatus::Alive, kind, cause)
        };
        self.with_counting(&id, now, |core| {
            core.members.update(&id, now.time, |member| {
                if member.status != status || restarted {
                    member.since = now.time;
                    member.cause = cause.into();
                }
                if kind == Some(EventKind::NodeJoin) || restarted {
                    member.joined_ms = now.wall_ms;
                }
                member.status = status;
                member.suspicion = None;
                member.body = body;
                member.signed = signed;
                if restarted || moved {
                    member.failed_dials = 0;
                }
            });
        });
        self.no_longer_suspect(&id);
        if restarted || left {
            self.forget_probes_of(&id);
        }
        if let Some(kind) = kind {
            self.event(kind, &id, cause, now);
        }
        if status == NodeStatus::Alive {
            self.after_revival(&id, was, now);
            self.plan_dial(&id, now);
        }
    }

    /// Somebody tells this node's own claim: an echo, or another process under its name. That one may be long
    /// gone, while its later life is what the others believe, and nothing that this node says counts: so it
    /// goes beyond.
    fn hear_own_claim(&mut self, teller: &NodeId, body: &ClaimBody, signed: &SignedClaim, now: Now) {
        let mine = &self.members.me().body;
        let mine_epoch = mine.epoch;
        let same_life = (body.epoch, body.incarnation) == (mine.epoch, mine.incarnation);
        if rank(body) < rank(mine) && !same_life || body == mine {
            return;
        }
        let Some(chain) = signed.chain.as_ref().or_else(|| self.members.chain(signed.chain_hash)).cloned()
        else {
            return; // an echo of an earlier life that nobody can prove
        };
        if chain_hash(&chain) != signed.chain_hash || !self.is_signed(body, signed, &chain) {
            self.counters.claims_forged += 1;
            return;
        }
        if body.left && body.epoch == mine.epoch && !mine.left {
            // An earlier life began in the same millisecond, and has said goodbye: nothing follows that.
            let epoch = self.epoch_after(body.epoch, now);
            self.begin_epoch(epoch, now);
            return;
        }
        let what = if same_life {
            "two different claims were signed with its key under one incarnation: the key is used twice"
        } else {
            "another process signs as this node, with a later epoch: a second process under its id, or its clock went back"
        };
        self.report_conflict(&format!("{what} (told by {teller}, address {})", body.address), now);
        let waits = self.surpassed.is_some_and(|last| now.time.since(last) < SURPASS_EVERY);
        if body.epoch > mine_epoch && !waits {
            self.surpassed = Some(now.time);
            self.surpass(body.epoch, now);
        }
    }

    pub(super) fn report_conflict(&mut self, reason: &str, now: Now) {
        self.counters.conflicts += 1;
        if self.conflict_told.is_some_and(|told| now.time.since(told) < CONFLICT_EVERY) {
            return;
        }
        self.conflict_told = Some(now.time);
        self.event_reason(EventKind::NodeConflict, reason, now);
    }

    /// Takes a member out of the table, until it proves itself anew.
    pub(super) fn bury_forgotten(&mut self, forget: &Forget, now: Now) -> bool {
        if forget.node_id == self.me {
            return false; // also while it leaves
        }
        let Some(member) = self.members.get(&forget.node_id) else { return false };
        let known = (member.body.epoch, member.body.incarnation);
        if member.is_live() || known > (forget.epoch, forget.incarnation) {
            return false;
        }
        self.remove_member(&forget.node_id, now);
        true
    }

    /// A dead or left member goes, and leaves a grave.
    pub(super) fn remove_member(&mut self, id: &NodeId, now: Now) {
        let mut removed = None;
        self.with_counting(id, now, |core| removed = core.members.remove(id, now.time));
        if let Some(member) = removed {
            let grave = super::members::Grave {
                epoch: member.body.epoch,
                incarnation: member.body.incarnation,
                dug: now.time,
            };
            self.members.dig(id.clone(), grave);
            self.timers.clear(&Timer::Dial(id.clone()));
            if member.linked {
                // It proves itself anew by saying hello again.
                self.links -= 1;
                let (peer, code) = (id.clone(), CloseCode::UNSPECIFIED);
                self.outputs.push_back(Output::Close { peer, code, reason: "this node has forgotten you" });
            }
        }
    }
}

/// This node's own claims.
impl Protocol {
    /// Changes what this node says of itself, signs it, and spreads it.
    pub(super) fn claim_anew(&mut self, now: Now, change: impl FnOnce(&mut ClaimBody)) {
        let mut body = self.members.me().body.clone();
        change(&mut body);
        let chain = self.vouch.chain();
        let signed = self.sign(&body, &chain);
        let with_chain = SignedClaim { chain: Some(chain.clone()), ..signed.clone() };
        // Who has the certificates need not hear them again; who lacks them asks.
        let first = body.incarnation == 0 || signed.chain_hash != self.members.me().signed.chain_hash;
        self.members.keep_chain(signed.chain_hash, chain);
        self.members.update(&self.me.clone(), now.time, |member| {
            member.body = body;
            member.signed = signed.clone();
        });
        self.rumour(&self.me.clone(), kind::CLAIM, &signed);
        let told = if first { with_chain } else { signed };
        let leaves = self.members.me().body.left;
        self.spread_part(kind::CLAIM, &told, leaves, now);
    }

    pub(super) fn sign(&mut self, body: &ClaimBody, chain: &Bytes) -> SignedClaim {
        let encoded = Bytes::from(codec::encode(body));
        let message = signed_message(&self.config.cluster, &encoded);
        let signature = self.vouch.sign(&message).unwrap_or_else(|| {
            self.counters.sign_failures += 1;
            Bytes::new()
        });
        SignedClaim { body: encoded, signature, chain_hash: chain_hash(chain), chain: None }
    }

    /// Somebody holds this node suspect or dead under this or a later incarnation.
    pub(super) fn refute(&mut self, accused: u64, teller: &NodeId, now: Now) {
        let mine = self.members.me();
        if mine.body.left || accused < mine.body.incarnation {
            return;
        }
        // Nobody can have seen a later one than this node's own, and who says so must not drive it to the
        // bound.
        self.refute_above = Some(mine.body.incarnation);
        // That it is accused may be this node's own fault (Lifeguard); that one says so again and again is not.
        if self.doubter.as_ref() != Some(teller) {
            self.doubter = Some(teller.clone());
            self.doubted = true;
        }
        // At most once a gossip tick, or accusers could make this node sign and spread as fast as they talk.
        let earliest = self.refuted.map_or(Time::ZERO, |last| last + self.config.gossip_interval);
        if earliest <= now.time {
            self.refute_now(now);
        } else {
            self.timers.set_by(Timer::Refute, earliest);
        }
    }

    pub(super) fn refute_now(&mut self, now: Now) {
        let Some(above) = self.refute_above.take() else { return };
        if self.members.me().body.incarnation > above {
            return; // something else has made it say more since
        }
        self.refuted = Some(now.time);
        self.counters.refutations += 1;
        if std::mem::take(&mut self.doubted) {
            self.awareness.unwell(1);
        }
        self.claim_anew(now, |body| body.incarnation = body.incarnation.saturating_add(1));
    }

    /// A peer remembers an epoch of this node that is not below its own: this process lost its memory or its
    /// clock, and must go beyond it.
    pub(super) fn surpass(&mut self, remembered: u64, now: Now) {
        let epoch = self.members.me().body.epoch;
        if remembered <= epoch || remembered >= now.wall_ms.saturating_add(AHEAD_MAX_MS) {
            return;
        }
        let epoch = self.epoch_after(remembered, now);
        self.begin_epoch(epoch, now);
    }

    /// An epoch later than that, and no earlier than now. Not the very next: a process before this one may
    /// have gone beyond the same, and who knew of that may not be here. Two that write under one epoch make
    /// dots that mean two things.
    pub(super) fn epoch_after(&mut self, epoch: u64, now: Now) -> u64 {
        let latest = now.wall_ms.saturating_add(AHEAD_MAX_MS); // beyond it nobody would believe it
        epoch.saturating_add(self.rng.u64(1..=EPOCH_STEP_MAX_MS)).max(now.wall_ms).min(latest)
    }

    /// This node goes on under a later epoch, and republishes what it wrote.
    pub(super) fn begin_epoch(&mut self, epoch: u64, now: Now) {
        if epoch <= self.members.me().body.epoch {
            return; // its dots are used
        }
        self.counters.epochs_begun += 1;
        self.with_counting(&self.me.clone(), now, |core| {
            core.store.new_epoch(epoch, now);
            core.claim_anew(now, |body| {
                body.epoch = epoch;
                body.incarnation = 0;
            });
        });
        self.flush_soon(now);
    }

    /// This node's certificate has changed: it says the same again, signed with the new key.
    pub(crate) fn sign_anew(&mut self, now: Now) {
        self.enter(now);
        self.claim_anew(now, |body| body.incarnation = body.incarnation.saturating_add(1));
        self.sign_records_anew(now);
    }

    /// Replaces this node's tags, which the caller has checked.
    pub(crate) fn set_tags(&mut self, tags: BTreeMap<String, String>, now: Now) {
        debug_assert!(limits::check_tags(&tags).is_ok());
        if self.members.me().body.tags == tags {
            return;
        }
        self.claim_anew(now, |body| {
            body.tags = tags;
            body.incarnation = body.incarnation.saturating_add(1);
        });
        self.event(EventKind::NodeUpdate, &self.me.clone(), "its tags were set", now);
    }

    pub(crate) fn forget(&mut self, node: &NodeId, now: Now) -> Result<(), Error> {
        let status = self.members.get(node).map(|member| member.status);
        if *node == self.me || !matches!(status, Some(NodeStatus::Dead | NodeStatus::Left)) {
            let status = status.map_or("unknown", NodeStatus::as_str).into();
            return Err(Error::NotForgettable { node_id: node.clone(), status });
        }
        if let Some(member) = self.members.get(node) {
            let forget = Forget {
                node_id: node.clone(),
                epoch: member.body.epoch,
                incarnation: member.body.incarnation,
            };
            self.bury_forgotten(&forget, now);
            self.spread_part(kind::FORGET, &forget, false, now);
        }
        Ok(())
    }
}
