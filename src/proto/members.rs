//! Who is known, and what of each: the member table, its hash, and the ring that dissemination walks. Holds
//! no rule of who wins; that is `claims`, `accuse` and `link`.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher as _,
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use crate::{
    NodeId, NodeInfo, NodeStatus, StateType,
    proto::{Time, suspicion::Suspicion, time::wall_time},
    wire::message::{ClaimBody, Signed, SignedClaim, Span, Standing},
};

/// A member, this node included.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// What it says of itself.
    pub(crate) body: ClaimBody,
    /// The same as it travels, without the certificates.
    pub(crate) signed: SignedClaim,
    pub(crate) status: NodeStatus,
    /// Since when it has that status.
    pub(crate) since: Time,
    /// Why it has it.
    pub(crate) cause: String,
    pub(crate) joined_ms: u64,
    /// When something arrived from it last, by its own connection.
    pub(crate) heard: Option<Time>,
    pub(crate) heard_ms: u64,
    pub(crate) rtt: Option<Rtt>,
    /// A connection to it stands.
    pub(crate) linked: bool,
    /// Types it does not keep.
    pub(crate) disabled: BTreeSet<StateType>,
    /// Of which types it wants records signed.
    pub(crate) signed_types: Signed,
    /// Its place on the ring.
    pub(crate) place: u64,
    /// Invariant: there is one exactly while the status is `Suspect`.
    pub(crate) suspicion: Option<Suspicion>,
    /// Dials that failed in a row.
    pub(crate) failed_dials: u32,
    /// When this node last told it that somebody accuses it, or that it has left.
    pub(crate) warned: Option<Time>,
    /// When the certificate ends that it showed last, in milliseconds since 1970.
    pub(crate) certificate_end_ms: Option<u64>,
    /// When a digest that differs may start the next push-pull with it, and how long the wait after that is.
    pub(crate) early_sync: (Time, Duration),
}

/// A path's round trip, smoothed (RFC 6298).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtt {
    pub(crate) smooth: Duration,
    pub(crate) var: Duration,
}

impl Rtt {
    pub(crate) fn sampled(before: Option<Self>, sample: Duration) -> Self {
        match before {
            None => Self { smooth: sample, var: sample / 2 },
            Some(Self { smooth, var }) => {
                Self { var: (var * 3 + smooth.abs_diff(sample)) / 4, smooth: (smooth * 7 + sample) / 8 }
            }
        }
    }
}

impl Member {
    pub(crate) fn new(body: ClaimBody, signed: SignedClaim, place: u64, now: Time, wall_ms: u64) -> Self {
        Self {
            body,
            signed,
            status: NodeStatus::Alive,
            since: now,
            cause: String::new(),
            joined_ms: wall_ms,
            heard: None,
            heard_ms: wall_ms,
            rtt: None,
            linked: false,
            disabled: BTreeSet::new(),
            signed_types: Signed::None,
            place,
            suspicion: None,
            failed_dials: 0,
            warned: None,
            certificate_end_ms: None,
            early_sync: (Time::ZERO, Duration::ZERO),
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.status, NodeStatus::Alive | NodeStatus::Suspect)
    }

    pub(crate) fn is_heard_within(&self, span: Duration, now: Time) -> bool {
        self.heard.is_some_and(|heard| now.since(heard) < span)
    }

    pub(crate) fn info(&self) -> NodeInfo {
        NodeInfo {
            node_id: self.body.node_id.clone(),
            address: self.body.address,
            incarnation: self.body.incarnation,
            epoch: self.body.epoch,
            status: self.status,
            join_time: wall_time(self.joined_ms),
            last_seen: wall_time(self.heard_ms),
            zone: self.body.zone.clone(),
            tags: self.body.tags.clone(),
            rtt: self.rtt.map(|rtt| rtt.smooth),
            certificate_end: self.certificate_end_ms.map(wall_time),
        }
    }

    /// Dead, or left without a signed goodbye: greeted now and then, and back as soon as it is heard.
    pub(crate) fn is_gone_unsigned(&self) -> bool {
        self.standing().is_gone_unsigned()
    }

    pub(crate) fn standing(&self) -> Standing {
        match self.status {
            NodeStatus::Alive => Standing::Alive,
            NodeStatus::Suspect => Standing::Suspect,
            NodeStatus::Dead => Standing::Dead,
            NodeStatus::Left if self.body.left => Standing::Left,
            NodeStatus::Left => Standing::Closed,
        }
    }
}

/// Which of two claims of one node counts: the later epoch, then the greater incarnation, then a goodbye.
///
/// A goodbye raises the incarnation, so nothing that its life has said follows it. It does not win over a greater
/// incarnation: it would take the member back below what is known of it, graves and accusations would be measured by
/// the lesser number, and an old claim would be news once the member was forgotten.
pub(crate) fn rank(body: &ClaimBody) -> (u64, u64, bool) {
    (body.epoch, body.incarnation, body.left)
}

/// A place on the ring.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) zone: Option<String>,
    pub(crate) hash: u64,
    pub(crate) node_id: NodeId,
}

impl Place {
    pub(crate) fn of(member: &Member) -> Self {
        let zone = member.body.zone.clone();
        Self { zone, hash: member.place, node_id: member.body.node_id.clone() }
    }
}

/// The part of a ring that lies in a range of one zone.
pub(crate) fn within<'a>(ring: &'a [Place], span: &Span) -> &'a [Place] {
    &ring[part_within(ring, span)]
}

/// Where that part is.
pub(crate) fn part_within(ring: &[Place], span: &Span) -> Range<usize> {
    let from = ring.partition_point(|at| (&at.zone, at.hash) < (&span.zone, span.lo));
    let to = ring.partition_point(|at| (&at.zone, at.hash) <= (&span.zone, span.hi));
    from..to.max(from) // a peer may say that it ends before it begins
}

/// A node that was forgotten: it is not taken back before it proves itself anew.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grave {
    pub(crate) epoch: u64,
    pub(crate) incarnation: u64,
    pub(crate) dug: Time,
}

/// Graves kept at most; the oldest go first.
const GRAVES_MAX: usize = 4_096;
/// Members at most: a bound on what certificates without names could fill.
pub(crate) const MEMBERS_MAX: usize = 65_536;

/// The member table.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Members {
    me: NodeId,
    hash_key: (u64, u64),
    /// Rows are copied when they change, so that the simulator's nodes can begin with the same ones: ten
    /// thousand tables of ten thousand rows each would not fit.
    table: BTreeMap<NodeId, Arc<Member>>,
    /// The sum of the rows' hashes.
    hash: u64,
    /// How many are alive or suspect, this node included.
    live: usize,
    graves: BTreeMap<NodeId, Grave>,
    /// Certificate chains by their hash.
    chains: Arc<BTreeMap<u64, Bytes>>,
    /// Live members but this node, in the ring's order, once anybody has asked.
    ring: Option<Vec<Place>>,
    /// When the table last changed.
    pub(crate) changed: Time,
}

impl Members {
    pub(crate) fn new(me: NodeId, hash_key: (u64, u64)) -> Self {
        Self {
            me,
            hash_key,
            table: BTreeMap::new(),
            hash: 0,
            live: 0,
            graves: BTreeMap::new(),
            chains: Arc::default(),
            ring: None,
            changed: Time::ZERO,
        }
    }

    pub(crate) fn get(&self, id: &NodeId) -> Option<&Member> {
        self.table.get(id).map(|member| &**member)
    }

    pub(crate) fn me(&self) -> &Member {
        self.table.get(&self.me).expect("this node is in its own table from the start")
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Member)> {
        self.table.iter().map(|(id, member)| (id, &**member))
    }

    /// All but this node.
    pub(crate) fn others(&self) -> impl Iterator<Item = (&NodeId, &Member)> {
        self.iter().filter(|(id, _)| **id != self.me)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// How many are alive or suspect, this node included.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn is_live(&self, id: &NodeId) -> bool {
        self.get(id).is_some_and(Member::is_live)
    }

    /// Changes what neither the hash nor the ring depends on.
    pub(crate) fn note(&mut self, id: &NodeId, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.table.get_mut(id) {
            change(Arc::make_mut(member));
        }
    }

    /// Changes a member, its claim and status included.
    pub(crate) fn update(&mut self, id: &NodeId, now: Time, change: impl FnOnce(&mut Member)) {
        let Some(member) = self.table.remove(id) else { return };
        let mut member = Arc::unwrap_or_clone(member);
        self.discount(id, &member);
        change(&mut member);
        debug_assert_eq!(member.suspicion.is_some(), member.status == NodeStatus::Suspect, "{id}");
        self.insert(member, now);
    }

    pub(crate) fn insert(&mut self, member: Member, now: Time) {
        let id = member.body.node_id.clone();
        self.hash = self.hash.wrapping_add(self.row_hash(&id, &member));
        self.live += usize::from(member.is_live());
        if let Some(ring) = self.ring.as_mut().filter(|_| id != self.me && member.is_live()) {
            let place = Place::of(&member);
            let at = ring.partition_point(|other| *other < place);
            ring.insert(at, place);
        }
        self.table.insert(id, Arc::new(member));
        self.changed = now;
    }

    pub(crate) fn remove(&mut self, id: &NodeId, now: Time) -> Option<Member> {
        debug_assert_ne!(*id, self.me);
        let member = Arc::unwrap_or_clone(self.table.remove(id)?);
        self.discount(id, &member);
        self.changed = now;
        Some(member)
    }

    fn discount(&mut self, id: &NodeId, member: &Member) {
        self.hash = self.hash.wrapping_sub(self.row_hash(id, member));
        self.live -= usize::from(member.is_live());
        if let Some(ring) = self.ring.as_mut().filter(|_| *id != self.me && member.is_live()) {
            let place = Place::of(member);
            let at = ring.partition_point(|other| *other < place);
            if ring.get(at) == Some(&place) {
                ring.remove(at);
            }
        }
    }

    /// A hash of what two nodes must agree upon; a suspicion is each node's own affair.
    fn row_hash(&self, id: &NodeId, member: &Member) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.hash_key.0, self.hash_key.1);
        hasher.write(id.as_str().as_bytes());
        hasher.write_u8(0);
        hasher.write_u64(member.body.epoch);
        hasher.write_u64(member.body.incarnation);
        hasher.write_u8(match member.standing() {
            Standing::Alive | Standing::Suspect => 0,
            Standing::Dead => 1,
            Standing::Left => 2,
            Standing::Closed => 3,
        });
        hasher.finish()
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// A hash of bytes that no outsider can aim at.
    pub(crate) fn hash_of(&self, bytes: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.hash_key.0, self.hash_key.1);
        hasher.write(bytes);
        hasher.finish()
    }

    /// Where a node stands on the ring.
    pub(crate) fn place_of(&self, id: &NodeId) -> u64 {
        self.hash_of(id.as_str().as_bytes())
    }

    /// Live members but this node, by zone and place.
    pub(crate) fn ring(&mut self) -> &[Place] {
        if self.ring.is_none() {
            let live = self.iter().filter(|(id, member)| **id != self.me && member.is_live());
            let mut ring: Vec<_> = live.map(|(_, member)| Place::of(member)).collect();
            ring.sort_unstable();
            self.ring = Some(ring);
        }
        self.ring.as_deref().unwrap_or_default()
    }

    /// Hands the ring out for a walk during which the table does not change; [`Members::put_ring`] gives it
    /// back.
    pub(crate) fn take_ring(&mut self) -> Vec<Place> {
        self.ring();
        self.ring.take().unwrap_or_default()
    }

    pub(crate) fn put_ring(&mut self, ring: Vec<Place>) {
        self.ring = Some(ring);
    }

    pub(crate) fn chain(&self, hash: u64) -> Option<&Bytes> {
        self.chains.get(&hash)
    }

    pub(crate) fn keep_chain(&mut self, hash: u64, chain: Bytes) {
        let chains = Arc::make_mut(&mut self.chains);
        chains.insert(hash, chain);
        if chains.len() > 2 * self.table.len() + 64 {
            let used: BTreeSet<_> = self.table.values().map(|member| member.signed.chain_hash).collect();
            chains.retain(|kept, _| used.contains(kept) || *kept == hash);
        }
    }

    /// Begins with the rows of a whole cluster, this node's among them.
    #[cfg(feature = "sim")]
    pub(crate) fn begin_with(
        &mut self,
        rows: impl Iterator<Item = (NodeId, Arc<Member>)>,
        chains: &Arc<BTreeMap<u64, Bytes>>,
        hash: Option<u64>,
    ) {
        self.table = rows.collect();
        self.chains = Arc::clone(chains);
        self.live = self.table.values().filter(|member| member.is_live()).count();
        let rows = self.table.iter().map(|(id, member)| self.row_hash(id, member));
        self.hash = hash.unwrap_or_else(|| rows.fold(0, u64::wrapping_add));
        self.ring = None;
    }

    /// Replaces a row by one that differs in nothing that the hash or the ring depends on.
    #[cfg(feature = "sim")]
    pub(crate) fn share(&mut self, id: &NodeId, row: &Arc<Member>) {
        if let Some(member) = self.table.get_mut(id) {
            *member = Arc::clone(row);
        }
    }

    pub(crate) fn grave(&self, id: &NodeId) -> Option<Grave> {
        self.graves.get(id).copied()
    }

    pub(crate) fn dig(&mut self, id: NodeId, grave: Grave) {
        self.graves.insert(id, grave);
        if self.graves.len() > GRAVES_MAX {
            let oldest = self.graves.iter().min_by_key(|(_, grave)| grave.dug).map(|(id, _)| id.clone());
            if let Some(oldest) = oldest {
                self.graves.remove(&oldest);
            }
        }
    }

    pub(crate) fn reopen(&mut self, id: &NodeId) {
        self.graves.remove(id);
    }

    /// Forgets graves that are older than `age`.
    pub(crate) fn level_graves(&mut self, age: Duration, now: Time) {
        self.graves.retain(|_, grave| now.since(grave.dug) < age);
    }
}

/// A hash of a certificate chain: names it, and proves nothing.
pub(crate) fn chain_hash(chain: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(chain);
    hasher.finish()
}
