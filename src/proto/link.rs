//! Connections as the core sees them: what is said at their beginning, who may enter, whom to dial and when,
//! and what their ends tell. A lost connection is evidence that triggers a probe; it never convicts.

use std::{net::SocketAddr, time::Duration};

use crate::{
    EventKind, NodeId, NodeStatus,
    proto::{
        Now, Output, Protocol,
        claims::{Claimed, Told},
        members::Rtt,
        timers::Timer,
    },
    wire::{
        CloseCode, codec,
        hello::{Introduction, VERSION_MAX, VERSION_MIN},
        message::{CoreHello, kind},
    },
};

/// Nodes that learn of one another at once must not all dial at once: a handshake costs both about a
/// millisecond.
const DIAL_SPREAD_PER_MEMBER: Duration = Duration::from_millis(10);
const DIAL_SPREAD_MAX: Duration = Duration::from_secs(2);
/// The greater id waits so long for the smaller to dial.
const DIAL_WAIT: Duration = Duration::from_secs(1);
/// The longest wait before the next dial of a member that does not answer.
const DIAL_BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// The part of the connections that goes to the nearest on each side of the ring, in larger clusters.
const CLOSE_PART: usize = 12;
/// Spreads the bits of a sum (Knuth's multiplicative hash).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// What becomes of a peer that introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Admit,
    Refuse(CloseCode, String),
    /// A node of that name is believed alive in another life: it must be found silent first.
    Incumbent {
        epoch: u64,
        address: SocketAddr,
    },
}

impl Protocol {
    /// What this node says of itself in a hello or a welcome.
    pub(crate) fn introduction(&self, peer: Option<&NodeId>) -> Introduction {
        let me = self.members.me();
        // With the certificates whose key signed it: those in force may be newer.
        let claim = self.claim_with_chain(&self.me).unwrap_or_else(|| me.signed.clone());
        let core = CoreHello {
            claim,
            clock: self.store.clock(),
            disabled: self.config.disabled.iter().map(Into::into).collect(),
            signed: self.config.signed.clone(),
        };
        Introduction {
            versions: (VERSION_MIN, VERSION_MAX),
            cluster: self.config.cluster.clone(),
            node_id: self.me.clone(),
            epoch: me.body.epoch,
            incarnation: me.body.incarnation,
            zone: me.body.zone.clone(),
            listen: Some(me.body.address),
            your_epoch: peer.and_then(|peer| self.remembered_epoch(peer)).unwrap_or(0),
            core: codec::encode(&core).into(),
        }
    }

    fn remembered_epoch(&self, node: &NodeId) -> Option<u64> {
        let known = self.members.get(node).map(|member| member.body.epoch);
        known.or_else(|| self.members.grave(node).map(|grave| grave.epoch))
    }

    /// Whether a peer may enter. The transport has settled who it is.
    pub(crate) fn judge(&self, peer: &Introduction, now: Now) -> Verdict {
        let refuse = |code, reason: &str| Verdict::Refuse(code, reason.into());
        if peer.node_id == self.me {
            let reason =
                format!("node id {} is in use by a live process at {}", self.me, self.config.address);
            return Verdict::Refuse(CloseCode::DUPLICATE_ID, reason);
        }
        let Ok(hello) = codec::decode::<CoreHello>(&peer.core) else {
            return refuse(CloseCode::PROTOCOL_VIOLATION, "its introduction cannot be read");
        };
        let Some(body) = Self::read_claim(&hello.claim, now) else {
            return refuse(
                CloseCode::PROTOCOL_VIOLATION,
                "its claim breaks a limit: an epoch over a day ahead of this node's clock, or too many tags",
            );
        };
        if body.node_id != peer.node_id || body.epoch != peer.epoch {
            return refuse(
                CloseCode::IDENTITY_MISMATCH,
                "its claim names another node or epoch than its hello",
            );
        }
        let chain = hello.claim.chain.as_ref().or_else(|| self.members.chain(hello.claim.chain_hash));
        if !chain.is_some_and(|chain| self.is_signed(&body, &hello.claim, chain)) {
            return refuse(CloseCode::IDENTITY_MISMATCH, "its claim is not signed by its certificate");
        }
        match self.members.get(&peer.node_id) {
            // One address holds one process: who serves there now is the only one left.
            Some(known)
                if known.is_live()
                    && known.body.epoch != body.epoch
                    && known.body.address != body.address =>
            {
                Verdict::Incumbent { epoch: known.body.epoch, address: known.body.address }
            }
            _ => Verdict::Admit,
        }
    }

    /// A connection stands, and both sides have admitted one another.
    pub(crate) fn handle_connected(
        &mut self,
        peer: &NodeId,
        introduction: &Introduction,
        _remote: SocketAddr,
        rtt: Duration,
        now: Now,
    ) {
        self.enter(now);
        let Ok(hello) = codec::decode::<CoreHello>(&introduction.core) else {
            self.counters.malformed += 1;
            return;
        };
        let known = self.members.get(peer).is_some();
        let buried = self.members.grave(peer).is_some();
        let claimed = self.hear_claim(peer, &hello.claim, Told::Directly, now);
        if claimed == Claimed::News {
            let claim = self.claim_with_chain(peer).unwrap_or(hello.claim);
            // Who knows it already has heard of it from elsewhere; of a newcomer only this node knows.
            self.spread_part(kind::CLAIM, &claim, false, now);
        }
        if self.members.get(peer).is_none() {
            return; // its claim was refused, which was counted
        }
        let linked = self.members.get(peer).is_some_and(|member| member.linked);
        self.links += usize::from(!linked);
        self.members.note(peer, |member| {
            member.linked = true;
            member.failed_dials = 0;
            member.rtt = Some(member.rtt.unwrap_or(Rtt::sampled(None, rtt)));
            member.disabled = hello.disabled.iter().map(Into::into).collect();
            member.signed_types = hello.signed;
        });
        self.timers.clear(&Timer::Dial(peer.clone()));
        self.expect_handoffs_from(peer, now);
        self.hear(peer, now);
        self.surpass(introduction.your_epoch, now);
        if buried && let Some(accusation) = self.accusation(peer, true) {
            // The others have buried it too: only by refuting does it rise above all graves.
            self.send_part(peer, kind::ACCUSATION, &accusation);
        }
        self.store.witness_clock(hello.clock, now);
        self.tell_lists_to(peer);
        // Of two that meet for the first time one asks; who is not synced yet asks anyway.
        if self.synced.is_none() || (!known && self.me < *peer) {
            self.begin_exchange(peer, now);
        }
    }

    /// When the certificate ends that a node has shown, this one included.
    pub(crate) fn note_certificate_end(&mut self, node: &NodeId, end_ms: u64) {
        self.members.note(node, |member| member.certificate_end_ms = Some(end_ms));
    }

    /// The last connection to a peer is gone.
    pub(crate) fn handle_disconnected(&mut self, peer: &NodeId, code: CloseCode, by_peer: bool, now: Now) {
        self.enter(now);
        self.lose_exchanges_with(peer);
        self.hurry_handoffs_to(peer, now);
        let Some(member) = self.members.get(peer) else { return };
        let (linked, live) = (member.linked, member.is_live());
        self.links -= usize::from(linked);
        self.members.note(peer, |member| member.linked = false);
        if !live || self.leaving {
            return;
        }
        if by_peer && code == CloseCode::LEFT {
            return self.note_left(peer, "it closed its connection with the code left", now);
        }
        // A ping that went into a dead connection proves nothing: who has reset it may have just come back.
        self.forget_probes_of(peer);
        if code == CloseCode::RATE_LIMITED {
            // It was there; and a dial at once would be refused.
            self.members.note(peer, |member| member.failed_dials = member.failed_dials.saturating_add(1));
        } else {
            self.probe_now(peer, now);
        }
        self.plan_dial(peer, now);
    }

    /// A member is gone, and has said so by its close code alone. Who did not see that finds it silent and
    /// holds it dead until a push-pull tells: what is told of the dead need not be proved, since they are
    /// greeted and return either way.
    pub(super) fn note_left(&mut self, id: &NodeId, cause: &str, now: Now) {
        self.no_longer_suspect(id);
        self.forget_probes_of(id);
        self.with_counting(id, now, |core| {
            core.members.update(id, now.time, |member| {
                member.status = NodeStatus::Left;
                member.since = now.time;
                member.cause = cause.into();
                member.suspicion = None;
            });
        });
        self.event(EventKind::NodeLeave, id, cause, now);
    }

    /// A dial ended without a connection.
    pub(crate) fn handle_dial_failed(&mut self, peer: &NodeId, now: Now) {
        self.enter(now);
        self.members.note(peer, |member| member.failed_dials = member.failed_dials.saturating_add(1));
        self.plan_dial(peer, now);
    }

    /// Sees to it that a live member gets a connection ahead of need, as long as there is room.
    pub(super) fn plan_dial(&mut self, id: &NodeId, now: Now) {
        if self.links >= self.config.max_connections || self.leaving {
            return;
        }
        let Some(member) = self.members.get(id).filter(|member| member.is_live() && !member.linked) else {
            return;
        };
        if self.members.live() > self.config.max_connections && !self.is_kept_close(member.place) {
            return;
        }
        let back_off = match member.failed_dials {
            0 if self.me < *id => Duration::ZERO,
            0 => DIAL_WAIT,
            failed => DIAL_WAIT.saturating_mul(1 << failed.min(6)).min(DIAL_BACK_OFF_MAX),
        };
        let members = u32::try_from(self.members.live()).unwrap_or(u32::MAX);
        let spread = DIAL_SPREAD_PER_MEMBER.saturating_mul(members).min(DIAL_SPREAD_MAX);
        let jitter = self.jitter(spread.max(back_off / 4));
        self.timers.set(Timer::Dial(id.clone()), now.time + back_off + jitter);
    }

    /// In a cluster larger than `max_connections` a node is connected ahead of need to all that stand close
    /// to it on the ring, and to ever fewer farther away, about as many at each scale. A relay serves a range
    /// around its own place, whatever its size: so it finds somebody connected in every part of it, where
    /// among as many drawn at random it would have to dial in most of the small ones, and a lost handshake
    /// costs a second.
    ///
    /// Both sides come to the same result. Some 300 of 1,000 and 490 of 10,000 with a limit of 512; the rest
    /// of the limit is left for probes and gossip.
    pub(crate) fn is_kept_close(&self, place: u64) -> bool {
        let mine = self.members.me().place;
        let distance = mine.wrapping_sub(place).min(place.wrapping_sub(mine));
        let rank = (u128::from(distance) * self.members.live() as u128) >> 64;
        let close = (self.config.max_connections / CLOSE_PART) as u128;
        rank <= close || u128::from(mine.wrapping_add(place).wrapping_mul(MIX) >> 32) % rank < close
    }

    /// Of how many neighbours on the ring, to either side, a connection stands for sure. Ranks are guessed
    /// from distances, so a quarter is left out.
    pub(super) fn reach(&self) -> usize {
        if self.members.live() > self.config.max_connections {
            (self.config.max_connections / CLOSE_PART) * 3 / 4
        } else {
            usize::MAX
        }
    }

    /// A member's turn to be dialled.
    pub(super) fn dial_planned(&mut self, id: &NodeId) {
        if self.members.get(id).is_some_and(|member| member.is_live() && !member.linked) {
            self.dial(id);
        }
    }

    pub(super) fn dial(&mut self, id: &NodeId) {
        if let Some(member) = self.members.get(id) {
            let address = member.body.address;
            self.outputs.push_back(Output::Dial { to: id.clone(), address });
        }
    }

    /// Now and then a dead member is greeted: so both halves of a healed partition meet. So is one that left
    /// without a signed goodbye, or a false word of that would keep the halves apart. A connection may have
    /// outlived the partition; then a word on it is enough.
    pub(super) fn greet(&mut self, now: Now) {
        self.timers.set(Timer::Greet, now.time + self.config.push_pull_interval / 4);
        let dead: Vec<_> = self
            .members
            .others()
            .filter(|(_, member)| member.is_gone_unsigned())
            .map(|(id, member)| (id.clone(), member.linked))
            .collect();
        if dead.is_empty() || self.leaving {
            return;
        }
        let (id, linked) = &dead[self.rng.usize(..dead.len())];
        if !linked {
            self.dial(id);
        } else if let Some(accusation) = self.accusation(id, true) {
            self.send_part(id, kind::ACCUSATION, &accusation);
        }
    }
}
