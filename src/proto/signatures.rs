//! Writers' signatures on records, of the types of which this node wants them: made before a record is told,
//! checked before one is taken or passed on, made anew after a new certificate. Knows no rule of who wins.
//!
//! Whether a record is good depends on the record and on the cluster's roots, on nothing else: neither on when
//! it is looked at, nor on whether its writer's certificate has ended or was revoked since.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    EventData, EventKind, NodeId, StateType,
    proto::{Now, Protocol, Time, inbox::Part, members::chain_hash, store::Alike, timers::Timer},
    wire::{
        codec::{self, Packet},
        limits,
        message::{Chain, Lease, NeedChain, Proof, RecordBatch, TypeName, WireRecord, kind},
    },
};

/// Certificates are asked for at most so often.
const NEED_EVERY: Duration = Duration::from_millis(500);
/// Those asked for at a time at most.
const NEEDED_MAX: usize = 1_024;
/// Who tells what its writer did not sign is named at most so often.
const NAMED_EVERY: Duration = Duration::from_secs(60);
/// After a new certificate the next page of own records is told again after so long, and while no more waits
/// to be spread than this, in bytes.
const AGAIN_PAUSE: Duration = Duration::from_millis(10);
const AGAIN_ROOM: usize = 64 * 1024;
/// Until a key that refused to sign is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// By which way records came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To be passed on: what is known already is vouched for as well, or others would name this node for it.
    Spread,
    /// For this node alone: what is known already is not looked at.
    Told,
    /// Told because both know the same dots and hold something else.
    Anew,
}

/// Why a record is not taken.
enum Fault {
    Unsigned,
    Forged,
    /// It cannot be told: the certificates are not at hand, or the teller has used up its share.
    Unproved,
    /// It is told as ended before it was to end.
    Early,
}

/// What the checks keep.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(super) struct Signatures {
    /// Certificates of writers, by whose and by their hash, and whether the roots in force have issued them.
    chains: BTreeMap<(NodeId, u64), (Bytes, bool)>,
    /// When those were asked for that are not at hand.
    needed: BTreeMap<(NodeId, u64), Time>,
    /// When a member was last named.
    named: BTreeMap<NodeId, Time>,
    /// Types of which own records are still to be told again, each from that place on.
    again: VecDeque<(StateType, u32)>,
}

impl Signatures {
    /// How many certificates are asked for.
    #[cfg(any(test, feature = "sim", feature = "fuzzing"))]
    pub(super) fn waiting_for(&self) -> usize {
        self.needed.len()
    }

    pub(super) fn sweep(&mut self, now: Time) {
        self.needed.retain(|_, asked| now.since(*asked) < NAMED_EVERY);
        self.named.retain(|_, named| now.since(*named) < NAMED_EVERY);
    }
}

/// What a record's signature covers: everything that is the writer's to say, and by which certificates it says
/// it. What is left of a time to live is not, but its end is.
fn signed_message(
    cluster: &str,
    batch: &RecordBatch,
    record: &WireRecord,
    proof: &Proof,
    value: &[u8],
) -> Vec<u8> {
    let ends_ms = proof.lease.as_ref().map(|lease| lease.ends_ms);
    // One that has ended was signed when it lived.
    let deleted = record.deleted && proof.lease.is_none();
    let body = codec::encode(&(
        (&batch.state_type, &batch.source, batch.epoch, record.seq, &record.key),
        (record.version, record.timestamp_ms, deleted, ends_ms, proof.chain_hash),
        serde_bytes::Bytes::new(value),
    ));
    [b"phalanx record v1\0", cluster.as_bytes(), b"\0", &body].concat()
}

/// What this node tells.
impl Protocol {
    /// Signs what this node wrote in a batch that is about to be told, and has not signed by its present
    /// certificate. Not before: a value that is replaced unseen costs nothing. `false` if the key refuses.
    pub(super) fn seal(&mut self, batch: &mut RecordBatch, now: Now) -> bool {
        if batch.source != self.me || !self.config.signed.covers(&batch.state_type.name) {
            return true;
        }
        let chain_hash = self.members.me().signed.chain_hash;
        for at in 0..batch.records.len() {
            let record = &batch.records[at];
            let before = codec::decode::<Proof>(&record.proof).ok();
            if before.as_ref().is_some_and(|proof| proof.chain_hash == chain_hash) {
                continue;
            }
            let value = self.vouch.digest(&record.value);
            let lease = before.and_then(|proof| proof.lease).or_else(|| {
                let ends_ms = now.wall_ms.saturating_add(record.ttl_ms?);
                Some(Lease { ends_ms, value: value.clone() })
            });
            let value = lease.as_ref().map_or(value, |lease| lease.value.clone());
            let mut proof = Proof { chain_hash, lease, signature: Bytes::new() };
            let message = signed_message(&self.config.cluster, batch, record, &proof, &value);
            let Some(signature) = self.vouch.sign(&message) else {
                self.counters.sign_failures += 1;
                self.tell_again_from(now.time + RETRY);
                return false;
            };
            proof.signature = signature;
            let proof = Bytes::from(codec::encode(&proof));
            let dot = (&batch.source, batch.epoch, record.seq);
            self.store.set_proof(&StateType::from(&batch.state_type), dot, &proof);
            self.counters.records_signed += 1;
            batch.records[at].proof = proof;
        }
        true
    }

    /// The certificate has changed: what this node wrote is told again, signed by it, and others' certificates
    /// are judged by the roots that came with it.
    pub(super) fn sign_records_anew(&mut self, now: Now) {
        if !self.config.signed.is_none() {
            self.signatures.chains.values_mut().for_each(|(_, issued)| *issued = false);
            self.tell_again_from(now.time);
        }
    }

    fn tell_again_from(&mut self, at: Time) {
        let types = self.store.types().into_iter().filter(|of| self.config.signed.covers(of.as_str()));
        self.signatures.again = types.map(|of| (of, 0)).collect();
        self.timers.set_by(Timer::TellAgain, at);
    }

    /// The next page of that.
    pub(super) fn tell_again(&mut self, now: Now) {
        if self.store.unspread_bytes() < AGAIN_ROOM
            && let Some((of, first)) = self.signatures.again.pop_front()
        {
            let chain_hash = self.members.me().signed.chain_hash;
            if let Some(next) = self.store.tell_again(&of, first, chain_hash) {
                self.signatures.again.push_front((of, next));
            }
            self.flush_soon(now);
        }
        if !self.signatures.again.is_empty() {
            self.timers.set(Timer::TellAgain, now.time + AGAIN_PAUSE);
        }
    }

    /// Puts before a batch of an exchange those certificates that its records were signed by and that the peer
    /// has not been told.
    pub(super) fn add_chains(
        &self,
        batch: &RecordBatch,
        told: &mut BTreeSet<(NodeId, u64)>,
        packet: &mut Packet,
    ) {
        if !self.config.signed.covers(&batch.state_type.name) {
            return;
        }
        let claimed = self.members.get(&batch.source).map(|member| member.signed.chain_hash);
        for record in &batch.records {
            let Ok(proof) = codec::decode::<Proof>(&record.proof) else { continue };
            // With its claim, and the claims went before.
            if claimed == Some(proof.chain_hash) {
                continue;
            }
            let place = (batch.source.clone(), proof.chain_hash);
            if !told.contains(&place)
                && let Some(chain) = self.chain_of(&place)
            {
                packet.push(kind::CHAIN, &Chain { node_id: batch.source.clone(), chain });
                told.insert(place);
            }
        }
    }

    fn chain_of(&self, place: &(NodeId, u64)) -> Option<Bytes> {
        let kept = self.signatures.chains.get(place).map(|(chain, _)| chain);
        kept.or_else(|| self.members.chain(place.1)).cloned()
    }
}

/// What this node is told.
impl Protocol {
    /// Whether this node and a peer both want records of a type signed, or neither does: only then do they
    /// compare what they hold of it.
    pub(super) fn signs_alike(&self, of: &StateType, peer: &NodeId) -> bool {
        let theirs = self.members.get(peer).is_some_and(|peer| peer.signed_types.covers(of.as_str()));
        self.config.signed.covers(of.as_str()) == theirs
    }

    /// The types held here of which that is not so.
    pub(super) fn types_signed_otherwise(&self, peer: &NodeId) -> Vec<StateType> {
        let theirs = self.members.get(peer).map(|peer| &peer.signed_types);
        if theirs.is_none_or(|theirs| *theirs == self.config.signed) {
            return Vec::new();
        }
        self.store.types().into_iter().filter(|of| !self.signs_alike(of, peer)).collect()
    }

    /// Takes those records out of a batch that their writer has not signed, where that is wanted; which they
    /// were. Of the rest a time to live is brought within what was signed.
    pub(super) fn vet(&mut self, from: &NodeId, batch: &mut RecordBatch, way: Way, now: Now) -> Vec<u64> {
        if !self.config.signed.covers(&batch.state_type.name) {
            return Vec::new();
        }
        let Some(of) = self.kept_type(&batch.state_type) else { return Vec::new() };
        let mut refused = Vec::new();
        for mut record in std::mem::take(&mut batch.records) {
            match self.check_record(from, &of, batch, &mut record, way, now) {
                Ok(()) => batch.records.push(record),
                Err(fault) => {
                    refused.push(record.seq);
                    self.count_fault(from, batch, &record, &fault, now);
                }
            }
        }
        if !refused.is_empty() {
            batch.carried.clear(); // what has superseded those dots may be among the refused
        }
        refused
    }

    /// Whether all records among those parts may be passed on. The rest of the parts is delivered at once: a
    /// claim may bring the certificate that the records are signed by.
    pub(super) fn vouch_for(&mut self, from: &NodeId, parts: &mut Vec<Part>, now: Now) -> bool {
        let wanted = |part: &Part| matches!(part, Part::Records(batch) if self.config.signed.covers(&batch.state_type.name));
        if self.config.signed.is_none() || !parts.iter().any(wanted) {
            return true;
        }
        let mut good = true;
        for part in std::mem::take(parts) {
            match part {
                Part::Records(mut batch) => {
                    good &= self.vet(from, &mut batch, Way::Spread, now).is_empty();
                    parts.push(Part::Records(batch));
                }
                part => self.deliver(from, part, now),
            }
        }
        good
    }

    fn check_record(
        &mut self,
        from: &NodeId,
        of: &StateType,
        batch: &RecordBatch,
        record: &mut WireRecord,
        way: Way,
        now: Now,
    ) -> Result<(), Fault> {
        let known = self.store.holds(of, &batch.source, batch.epoch, record.seq);
        let alike = if known { self.store.alike(of, batch, record) } else { Alike::No };
        // To check a signature takes as long as to take some twenty records without.
        if alike == Alike::Wholly {
            return Ok(());
        }
        if record.proof.is_empty() {
            return if known && way == Way::Told { Ok(()) } else { Err(Fault::Unsigned) };
        }
        let proof: Proof = codec::decode(&record.proof).map_err(|_| Fault::Forged)?;
        let claimed = self.members.get(&batch.source).map(|member| member.signed.chain_hash);
        let renewed = claimed == Some(proof.chain_hash)
            && matches!(alike, Alike::ButProof(signer) if signer != proof.chain_hash);
        if known && !renewed && way == Way::Told {
            return Ok(());
        }
        // What is known can be told again and again, and would be good each time.
        let may = if known && !renewed { self.may_tell(from, now) } else { self.could_tell(from, now) };
        if !may {
            return Err(Fault::Unproved);
        }
        let proved = self.prove(from, batch, record, &proof, now);
        if matches!(proved, Err(Fault::Forged)) {
            self.may_tell(from, now);
        }
        proved?;
        if renewed {
            self.store.set_proof(of, (&batch.source, batch.epoch, record.seq), &record.proof);
        }
        Ok(())
    }

    fn prove(
        &mut self,
        from: &NodeId,
        batch: &RecordBatch,
        record: &mut WireRecord,
        proof: &Proof,
        now: Now,
    ) -> Result<(), Fault> {
        let told = self.vouch.digest(&record.value);
        let value = match &proof.lease {
            None if record.ttl_ms.is_some() => return Err(Fault::Forged),
            None => &told,
            Some(_) if !record.deleted && record.ttl_ms.is_none() => return Err(Fault::Forged),
            Some(lease) if !record.deleted && lease.value != told => return Err(Fault::Forged),
            Some(lease) => &lease.value,
        };
        let chain = self.signer(from, (batch.source.clone(), proof.chain_hash), now)?;
        let message = signed_message(&self.config.cluster, batch, record, proof, value);
        if !self.vouch.is_by(&chain, &message, &proof.signature) {
            return Err(Fault::Forged);
        }
        let Some(lease) = &proof.lease else { return Ok(()) };
        let left = lease.ends_ms.saturating_sub(now.wall_ms);
        if let Some(told) = &mut record.ttl_ms {
            // Wall clocks differ, so it may end a little later here; but nobody else says when.
            *told = (*told).max(left).min(lease.ends_ms.saturating_sub(record.timestamp_ms));
        } else if left > 0 {
            return Err(Fault::Early); // which passes
        }
        Ok(())
    }

    /// The certificates that a record names.
    fn signer(&mut self, from: &NodeId, place: (NodeId, u64), now: Now) -> Result<Bytes, Fault> {
        let chain = match self.signatures.chains.get(&place) {
            Some((chain, true)) => return Ok(chain.clone()),
            Some((chain, false)) => Some(chain),
            None => self.members.chain(place.1),
        };
        if let Some(chain) = chain.cloned().filter(|chain| self.vouch.has_issued(&place.0, chain)) {
            self.keep_signer(&place, chain.clone());
            return Ok(chain);
        }
        let asked = self.signatures.needed.get(&place);
        let waits = asked.is_some_and(|asked| now.time.since(*asked) < NEED_EVERY);
        if !waits && self.signatures.needed.len() < NEEDED_MAX {
            self.signatures.needed.insert(place.clone(), now.time);
            let need = NeedChain { node_id: place.0, chain_hash: place.1 };
            self.send_part(from, kind::NEED_CHAIN, &need);
        }
        Err(Fault::Unproved)
    }

    fn keep_signer(&mut self, place: &(NodeId, u64), chain: Bytes) {
        let Self { signatures, members, store, .. } = self;
        signatures.chains.insert(place.clone(), (chain, true));
        if signatures.chains.len() > 2 * members.len() + 64 {
            signatures.chains.retain(|kept, _| {
                let claimed = members.get(&kept.0).map(|member| member.signed.chain_hash);
                kept == place || claimed == Some(kept.1) || store.has_signer(&kept.0, kept.1)
            });
        }
    }

    pub(super) fn on_need_chain(&mut self, from: &NodeId, need: NeedChain) {
        let place = (need.node_id, need.chain_hash);
        if let Some(chain) = self.chain_of(&place) {
            self.send_part(from, kind::CHAIN, &Chain { node_id: place.0, chain });
        }
    }

    /// Certificates that this node asked for, or that go before the records of an exchange.
    pub(super) fn on_chain(&mut self, from: &NodeId, told: &Chain, in_exchange: bool, now: Now) {
        let place = (told.node_id.clone(), chain_hash(&told.chain));
        let asked = self.signatures.needed.remove(&place).is_some();
        let known = self.signatures.chains.contains_key(&place);
        if self.config.signed.is_none() || known || !(asked || in_exchange) {
            return;
        }
        if told.chain.len() > limits::CHAIN_LEN_MAX || !self.may_tell(from, now) {
            self.counters.records_unproved += 1;
        } else if self.vouch.has_issued(&place.0, &told.chain) {
            self.keep_signer(&place, told.chain.clone());
            if asked {
                self.sync_early(from, now); // which brings what was refused
            }
        } else {
            self.counters.records_forged += 1;
            let what = format!("by certificates that no authority trusted here issued to {}", place.0);
            self.name_forger(from, &what, now);
        }
    }

    fn count_fault(
        &mut self,
        from: &NodeId,
        batch: &RecordBatch,
        record: &WireRecord,
        fault: &Fault,
        now: Now,
    ) {
        let what = match fault {
            Fault::Unproved | Fault::Early => {
                self.counters.records_unproved += 1;
                return;
            }
            Fault::Unsigned => {
                self.counters.records_unsigned += 1;
                "without a signature"
            }
            Fault::Forged => {
                self.counters.records_forged += 1;
                "that its writer did not sign so"
            }
        };
        let TypeName { name, .. } = &batch.state_type;
        // Who wants no signatures, or does not keep the type, has not looked.
        let of = StateType::from(&batch.state_type);
        let keeps = self.members.get(from).is_some_and(|teller| !teller.disabled.contains(&of));
        if keeps && self.signs_alike(&of, from) {
            let what = format!("a record of {}, type {name:?}, key {:?}, {what}", batch.source, record.key);
            self.name_forger(from, &what, now);
        }
    }

    fn name_forger(&mut self, teller: &NodeId, what: &str, now: Now) {
        let named = self.signatures.named.get(teller);
        if named.is_none_or(|named| now.time.since(*named) >= NAMED_EVERY) {
            self.signatures.named.insert(teller.clone(), now.time);
            let data = EventData::Reason(format!("it told {what}"));
            self.event_data(EventKind::RecordForged, Some(teller.clone()), data, now);
        }
    }
}
