//! Revocation lists on their way through the cluster. A node with a newer list tells its number, and who lacks
//! it asks for it: so a list crosses to each node once, and nobody can press one on a node that did not ask.
//! To this file a list is opaque bytes: whose it is, and whether it is what it seems, the host judges.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    NodeId,
    proto::{Now, Output, Protocol, Time, schedule::log10_ceil},
    wire::{
        codec::{Malformed, Packet},
        limits,
        message::{ListHead, ListHeads, NeedList, TheList, kind},
    },
};

/// Peers that are told at once; each of them tells as many.
const TOLD_AT_ONCE: usize = 8;
/// Issuers a node keeps lists of, and asks for at most at a time.
const ISSUERS_MAX: usize = 64;
/// A list's age is its number and its date; a number has at most 20 bytes (RFC 5280 §5.2.3).
const AGE_LEN_MAX: usize = 64;
/// For so long another peer is not asked for the same list.
const WAIT: Duration = Duration::from_millis(500);
/// How often one peer is asked for a list, on gossip ticks so far apart.
const TIMES_MAX: u32 = 4;
/// An answer later than that was not asked for.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Whoever promised a list and brought a bad one or an older one is not asked again for so long.
const DISTRUST: Duration = Duration::from_secs(60);
/// A peer is sent the same list at most so often: it costs a few bytes to ask for a megabyte.
const SERVE_EVERY: Duration = Duration::from_millis(200);

/// A revocation list in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct List {
    /// Which authority made it.
    pub(crate) issuer: u64,
    /// Of two lists of one issuer the one with the greater age is the newer, compared byte by byte.
    pub(crate) age: Bytes,
    pub(crate) bytes: Bytes,
}

/// What the host found of a list that a peer sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// It is in force now; `take_lists` follows or has followed.
    News,
    /// As good as what is in force, which stays.
    Known,
    /// Nobody trusted here signed it, or it is older than was promised.
    Bad,
}

/// A list that a peer was asked for.
#[derive(Clone, Debug)]
struct Asked {
    /// Its age, as the peer told it.
    promised: Bytes,
    first: Time,
    last: Time,
    times: u32,
}

impl Asked {
    /// Whether the answer may still come.
    fn is_open(&self, now: Now) -> bool {
        now.time.since(self.first) < ANSWER_MAX
    }
}

/// The lists in force, and who was asked for newer ones.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(super) struct Lists {
    held: BTreeMap<u64, List>,
    asked: BTreeMap<(u64, NodeId), Asked>,
    distrusted: BTreeMap<NodeId, Time>,
    /// Which list each peer was sent last, and when.
    served: BTreeMap<(u64, NodeId), (Bytes, Time)>,
    /// Gossip ticks on which the heads are still told: the first word of them may have been lost.
    ticks: u32,
}

impl Lists {
    fn heads(&self) -> Option<ListHeads> {
        let head = |list: &List| ListHead { issuer: list.issuer, age: list.age.clone() };
        (!self.held.is_empty()).then(|| ListHeads { heads: self.held.values().map(head).collect() })
    }

    fn is_newer(&self, issuer: u64, age: &Bytes) -> bool {
        self.held.get(&issuer).is_none_or(|held| held.age < *age)
    }
}

/// What the host does.
impl Protocol {
    /// These lists are in force now, and no others; what is newer than before is told on.
    pub(crate) fn take_lists(&mut self, lists: Vec<List>, now: Now) {
        let news = lists.iter().any(|list| self.lists.is_newer(list.issuer, &list.age));
        self.lists.held = lists.into_iter().take(ISSUERS_MAX).map(|list| (list.issuer, list)).collect();
        if !news || self.leaving {
            return;
        }
        self.lists.ticks = 2 * log10_ceil(self.members.live() + 1);
        self.lists.asked.retain(|_, asked| asked.is_open(now));
        self.tell_lists(TOLD_AT_ONCE);
    }

    /// What became of an `Output::List`.
    pub(crate) fn list_judged(&mut self, from: &NodeId, judged: Judged, now: Now) {
        match judged {
            Judged::News => self.counters.lists_taken += 1,
            Judged::Known => self.counters.lists_known += 1,
            Judged::Bad => {
                self.counters.lists_bad += 1;
                if self.members.get(from).is_some() {
                    self.lists.distrusted.insert(from.clone(), now.time);
                }
            }
        }
    }

    fn tell_lists(&mut self, count: usize) {
        let Some(heads) = self.lists.heads() else { return };
        for peer in self.some_alive(count, &BTreeSet::new()) {
            self.send_part(&peer, kind::LISTS, &heads);
        }
    }
}

/// What peers say.
impl Protocol {
    /// The gossip tick.
    pub(super) fn repeat_lists(&mut self, now: Now) {
        self.ask_for_lists_again(now);
        if let Some(left) = self.lists.ticks.checked_sub(1) {
            self.lists.ticks = left;
            self.tell_lists(self.config.gossip_fanout);
        }
    }

    /// A question or its answer may have been lost.
    fn ask_for_lists_again(&mut self, now: Now) {
        let lists = &mut self.lists;
        let held = &lists.held;
        let mut again = Vec::new();
        for ((issuer, peer), asked) in &mut lists.asked {
            let is_lacking = held.get(issuer).is_none_or(|held| held.age < asked.promised);
            if is_lacking && asked.times < TIMES_MAX && now.time.since(asked.last) >= WAIT {
                (asked.last, asked.times) = (now.time, asked.times + 1);
                again.push((*issuer, peer.clone()));
            }
        }
        for (issuer, peer) in again {
            self.send_part(&peer, kind::NEED_LIST, &NeedList { issuer });
        }
    }

    /// A peer has just connected: it may have been away.
    pub(super) fn tell_lists_to(&mut self, peer: &NodeId) {
        if let Some(heads) = self.lists.heads() {
            self.send_part(peer, kind::LISTS, &heads);
        }
    }

    /// The heads go along with the opening of a push-pull, for who missed every other word of them.
    pub(super) fn add_lists(&self, packet: &mut Packet) {
        if let Some(heads) = self.lists.heads() {
            packet.push(kind::LISTS, &heads);
        }
    }

    /// A peer tells which lists it has: what is newer is asked for.
    pub(super) fn on_lists(&mut self, from: &NodeId, told: &ListHeads, now: Now) -> Result<(), Malformed> {
        if told.heads.len() > ISSUERS_MAX || told.heads.iter().any(|head| head.age.len() > AGE_LEN_MAX) {
            return Err(Malformed(
                "more revocation lists than a node may have, or one with too long a number",
            ));
        }
        for head in &told.heads {
            if self.lists.is_newer(head.issuer, &head.age) && self.vouch.trusts_issuer(head.issuer) {
                self.need_list(from, head, now);
            }
        }
        Ok(())
    }

    fn need_list(&mut self, from: &NodeId, head: &ListHead, now: Now) {
        let lists = &mut self.lists;
        lists.asked.retain(|_, asked| asked.is_open(now));
        let is_awaited = |((issuer, _), asked): (&(u64, NodeId), &Asked)| {
            *issuer == head.issuer && now.time.since(asked.first) < WAIT
        };
        let is_distrusted = lists.distrusted.get(from).is_some_and(|at| now.time.since(*at) < DISTRUST);
        if is_distrusted || lists.asked.iter().any(is_awaited) || lists.asked.len() >= ISSUERS_MAX {
            return;
        }
        let asked = Asked { promised: head.age.clone(), first: now.time, last: now.time, times: 1 };
        lists.asked.insert((head.issuer, from.clone()), asked);
        self.send_part(from, kind::NEED_LIST, &NeedList { issuer: head.issuer });
    }

    /// A peer lacks a list.
    pub(super) fn on_need_list(&mut self, from: &NodeId, need: NeedList, now: Now) {
        let Some(list) = self.lists.held.get(&need.issuer) else { return };
        let key = (need.issuer, from.clone());
        let is_repeated = |(age, at): &(Bytes, Time)| *age == list.age && now.time.since(*at) < SERVE_EVERY;
        if self.lists.served.get(&key).is_some_and(is_repeated) {
            self.counters.lists_withheld += 1;
            return;
        }
        if list.bytes.len() > limits::LIST_LEN_MAX {
            self.counters.lists_withheld += 1; // each node must be given it by its operator
            return;
        }
        let answer = TheList { issuer: list.issuer, list: list.bytes.clone() };
        self.lists.served.insert(key, (list.age.clone(), now.time));
        self.counters.lists_served += 1;
        self.send_part(from, kind::LIST, &answer);
    }

    /// A list: looked at only if this peer was asked for it.
    pub(super) fn on_list(&mut self, from: &NodeId, told: TheList, now: Now) {
        let asked = self.lists.asked.remove(&(told.issuer, from.clone()));
        let Some(Asked { promised, .. }) = asked.filter(|asked| asked.is_open(now)) else {
            self.counters.lists_unasked += 1;
            return;
        };
        if told.list.len() > limits::LIST_LEN_MAX {
            return self.list_judged(from, Judged::Bad, now);
        }
        // Another may have brought it meanwhile.
        if self.lists.is_newer(told.issuer, &promised) {
            let list = List { issuer: told.issuer, age: promised, bytes: told.list };
            self.outputs.push_back(Output::List { from: from.clone(), list });
        } else {
            self.counters.lists_known += 1;
        }
    }

    /// Forgets who was asked or served long ago.
    pub(super) fn sweep_lists(&mut self, now: Now) {
        let lists = &mut self.lists;
        lists.asked.retain(|_, asked| asked.is_open(now));
        lists.distrusted.retain(|_, at| now.time.since(*at) < DISTRUST);
        lists.served.retain(|_, (_, at)| now.time.since(*at) < SERVE_EVERY);
    }

    /// The lists in force.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn lists(&self) -> Vec<List> {
        self.lists.held.values().cloned().collect()
    }

    /// How many lists are asked for, and peers remembered for one.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn lists_waiting(&self) -> usize {
        self.lists.asked.len() + self.lists.distrusted.len()
    }
}
