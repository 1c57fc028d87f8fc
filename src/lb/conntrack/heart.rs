//! Who carries which flow: claims, and what follows from them. The highest claim counts, by generation, then by
//! rendezvous rank, then by name; so claims that were made at the same time end as one everywhere.
//!
//! Never goes through all flows at once: what concerns many of them, as a death does, is done page by page, one
//! a call, so that whoever holds the lock lets readers in between.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque, hash_map::Entry as Slot},
    sync::Arc,
    time::Duration,
};

use super::{
    ConntrackRules, FlowView,
    flow::{Claim, Flow, FlowKey},
    shards::{SHARDS, Shards},
};
use crate::{
    Error, NodeId, Options, StateChange, StateType, SyncableState,
    lb::{
        live::{Live, Moment, rank},
        registers::{Unreadable, Write},
        table::{Changes, Heart},
    },
};

/// Flows are looked at on a grid as coarse as this, so that those due together are handled and sent together.
const GRID: Duration = Duration::from_millis(10);
/// How long the first in line waits before it takes an orphaned flow over: who comes back from a cut learns
/// meanwhile who has taken it over already.
const FIRST: Duration = Duration::from_millis(250);
/// How long whoever comes next waits for the one before to take an orphaned flow over: that one may have no
/// table, or be dead and not known to be.
const GRACE: Duration = Duration::from_secs(2);
/// A claim is written again, if packets were seen, after this part of its time to live.
const REFRESHES: u32 = 3;
/// Of so many flows at once is a promotion told.
const PROMOTED_MAX: usize = 1_024;
/// About how many flows are looked at in one call; each costs up to some microseconds.
const PAGE: usize = 256;

/// What is known of a flow.
#[derive(Debug, Default)]
struct Entry {
    /// What each node claims, this one included. Invariant: not empty, once the entry is in the table.
    claims: Vec<Said>,
    /// Invariant: there is one exactly if this node is among the claimants.
    own: Option<Own>,
    /// Since when the highest claim is that of a node which does not live.
    orphaned: Option<Moment>,
    /// When it is looked at next; what was planned for other moments is stale.
    due: Option<Moment>,
}

/// What a node claims.
#[derive(Debug)]
struct Said {
    node: NodeId,
    claim: Claim,
    /// In which reading of everything it was told.
    reading: u32,
}

/// What this node keeps of a flow that it claims.
#[derive(Clone, Copy, Debug)]
struct Own {
    since: Moment,
    /// When a packet was seen last.
    seen: Moment,
    /// When it was written last.
    shared: Option<Moment>,
    /// The store may hold something of this node's under its key.
    stored: bool,
    /// It waits to be written.
    wanted: bool,
    /// It comes from before this table was made, and no packet was seen since: it stands and falls with what
    /// the store says.
    resumed: bool,
}

impl Entry {
    fn claim_of(&self, node: &NodeId) -> Option<&Claim> {
        self.claims.iter().find(|said| said.node == *node).map(|said| &said.claim)
    }

    fn claim_of_mut(&mut self, node: &NodeId) -> Option<&mut Claim> {
        self.claims.iter_mut().find(|said| said.node == *node).map(|said| &mut said.claim)
    }

    fn forget(&mut self, node: &NodeId) {
        self.claims.retain(|said| said.node != *node);
    }

    /// The claim that counts, and whose it is.
    fn highest(&self, key: &FlowKey) -> Option<(&NodeId, &Claim)> {
        let said = if let [only] = &self.claims[..] {
            only
        } else {
            let bytes = key.to_bytes();
            self.claims.iter().max_by_key(|said| (said.claim.generation, rank(&said.node, &bytes)))?
        };
        Some((&said.node, &said.claim))
    }

    fn view(&self, key: &FlowKey, live: &Live) -> Option<FlowView> {
        let (owner, claim) = self.highest(key).filter(|(_, claim)| !claim.closed)?;
        Some(FlowView {
            flow: claim.flow.clone(),
            owner: owner.clone(),
            generation: claim.generation,
            is_own: *owner == live.me,
            is_orphaned: !live.has(owner),
        })
    }
}

/// Figures of a table of flows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(super) own: usize,
    pub(super) written: u64,
    pub(crate) promoted: u64,
    pub(super) yielded: u64,
    pub(crate) over_cap: u64,
}

/// Where promotions are told: flows that this node carries from now on.
pub(crate) type Sink = Box<dyn FnMut(Vec<(FlowKey, Flow)>) + Send + Sync>;

/// What is still to be done for all flows, shard by shard.
#[derive(Debug, Default)]
struct Round {
    /// The next shard. Goes round, so that a cause which comes while another is half way loses nothing.
    place: usize,
    /// How many shards are left.
    left: usize,
    since: Moment,
    /// Who came or went: what they claim is followed.
    turned: BTreeSet<NodeId>,
    /// What others said, and was not told in the last reading, goes.
    sweeps: bool,
    /// What this node carries is written again.
    says: bool,
}

/// All flows.
pub(crate) struct Flows {
    rules: ConntrackRules,
    live: Arc<Live>,
    entries: Shards<Entry>,
    round: Round,
    /// How many flows each other node claims.
    claimed: BTreeMap<NodeId, usize>,
    due: BTreeMap<Moment, Vec<FlowKey>>,
    /// Own flows to be written or removed at the next point of the grid, and that point.
    wanted: Vec<FlowKey>,
    wanted_at: Moment,
    /// Those to be written or removed now.
    writes: VecDeque<FlowKey>,
    /// Own claims that were withdrawn, until the store says so too: what it says of them before is older.
    withdrawn: HashSet<FlowKey>,
    /// Whether there is a store that says what becomes of own writes.
    linked: bool,
    /// How often everything was told anew.
    reading: u32,
    promoted: Vec<(FlowKey, Flow)>,
    sink: Sink,
    pub(crate) counts: Counts,
    unreadable: Unreadable,
}

impl Flows {
    pub(crate) fn new(rules: ConntrackRules, me: NodeId, sink: Sink) -> Self {
        Self {
            rules,
            live: Arc::new(Live::alone(me)),
            entries: Shards::new(0),
            round: Round::default(),
            claimed: BTreeMap::new(),
            due: BTreeMap::new(),
            wanted: Vec::new(),
            wanted_at: Moment::ZERO,
            writes: VecDeque::new(),
            withdrawn: HashSet::new(),
            linked: false,
            reading: 0,
            promoted: Vec::new(),
            sink,
            counts: Counts::default(),
            unreadable: Unreadable::default(),
        }
    }

    /// With flows laid out as nobody outside can foresee.
    pub(super) fn salted(self, salt: u64) -> Self {
        Self { entries: Shards::new(salt), ..self }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn view(&self, key: &FlowKey) -> Option<FlowView> {
        self.entries.get(key)?.view(key, &self.live)
    }

    /// The flows of one of the `SHARDS`.
    pub(super) fn views(&self, place: usize) -> Vec<(FlowKey, FlowView)> {
        let view = |(key, entry): (&FlowKey, &Entry)| Some((*key, entry.view(key, &self.live)?));
        self.entries.shard(place).filter_map(view).collect()
    }
}

/// What this node does.
impl Flows {
    /// This node carries a flow from now on, whoever did before. Whether it did not before.
    pub(crate) fn insert(
        &mut self,
        key: FlowKey,
        flow: Flow,
        now: Moment,
        changes: &mut Changes<FlowView>,
    ) -> bool {
        let mut flow = Some(flow);
        let replace = |held: &mut Flow| _ = flow.take().map(|flow| held.replace(flow));
        if self.update(&key, now, changes, replace) {
            return false;
        }
        let Some(mut flow) = flow else { return false };
        let before = self.entries.get(&key).and_then(|entry| entry.highest(&key));
        let generation = before.map_or(0, |(_, claim)| claim.generation.saturating_add(1));
        if let Some((_, claim)) = before.filter(|(_, claim)| !claim.closed) {
            flow.keep_extra(&claim.flow);
        }
        self.claim(key, Claim { generation, closed: false, flow }, now, changes);
        true
    }

    /// Changes what is known of a flow that this node carries; `false` if it does not.
    pub(crate) fn update(
        &mut self,
        key: &FlowKey,
        now: Moment,
        changes: &mut Changes<FlowView>,
        change: impl FnOnce(&mut Flow),
    ) -> bool {
        let refresh = self.rules.ttl / REFRESHES;
        let live = Arc::clone(&self.live);
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.own.is_some()) else { return false };
        if entry.highest(key).is_none_or(|(owner, claim)| *owner != live.me || claim.closed) {
            return false;
        }
        let old = changes.wanted().then(|| entry.view(key, &live)).flatten();
        let Some(claim) = entry.claim_of_mut(&live.me) else { return false };
        change(&mut claim.flow);
        let packets = claim.flow.packets;
        let new = changes.wanted().then(|| entry.view(key, &live)).flatten();
        if old != new {
            changes.push(&key.to_string(), old.map(Arc::new), new.map(Arc::new));
        }
        if let Some(own) = &mut entry.own {
            own.seen = now;
            own.resumed = false;
            if own.shared.map_or(packets >= self.rules.min_packets, |shared| now >= shared + refresh) {
                self.want(*key, now);
            }
        }
        true
    }

    /// A flow that this node carries has ended; `false` if it does not carry it.
    pub(crate) fn remove(&mut self, key: &FlowKey, now: Moment, changes: &mut Changes<FlowView>) -> bool {
        let me = self.live.me.clone();
        let Some(entry) = self.entries.get(key) else { return false };
        if entry.highest(key).is_none_or(|(owner, claim)| *owner != me || claim.closed) {
            return false;
        }
        if entry.claims.len() == 1 && entry.claim_of(&me).is_some_and(|claim| claim.generation == 0) {
            self.withdraw(key, now, changes);
            return true;
        }
        // Claims of those who carried it before may still stand somewhere: they must not count again.
        self.change(key, changes, |entry| {
            if let Some(claim) = entry.claim_of_mut(&me) {
                claim.closed = true;
            }
            if let Some(own) = &mut entry.own {
                own.seen = now;
            }
        });
        self.want(*key, now);
        true
    }

    /// Claims a flow for this node.
    fn claim(&mut self, key: FlowKey, claim: Claim, now: Moment, changes: &mut Changes<FlowView>) {
        let me = self.live.me.clone();
        // What others hold must change at once; what nobody has heard of can wait until it is worth telling.
        let worth_telling = claim.generation > 0 || claim.flow.packets >= self.rules.min_packets;
        let min_age = self.rules.min_age.min(self.rules.ttl);
        // A removal that is still due must not be forgotten with what it removes.
        let withdrawn = self.withdrawn.remove(&key);
        let (mut is_new, reading) = (false, self.reading);
        self.change(&key, changes, |entry| {
            entry.forget(&me);
            entry.claims.push(Said { node: me, claim, reading });
            is_new = entry.own.is_none();
            let stored = withdrawn || entry.own.is_some_and(|own| own.stored);
            let (since, seen, resumed) = (now, now, false);
            entry.own = Some(Own { since, seen, shared: None, stored, wanted: false, resumed });
            entry.orphaned = None;
        });
        self.counts.own += usize::from(is_new);
        if worth_telling {
            self.want(key, now);
        }
        self.plan(key, now + min_age);
    }

    /// Takes this node's claim of a flow back.
    fn withdraw(&mut self, key: &FlowKey, now: Moment, changes: &mut Changes<FlowView>) {
        if self.lapse(key, changes) {
            self.touch(*key, now);
        }
    }

    /// Forgets this node's claim of a flow; whether something of it is stored, which ends by itself unless it
    /// is removed.
    fn lapse(&mut self, key: &FlowKey, changes: &mut Changes<FlowView>) -> bool {
        let me = self.live.me.clone();
        let Some(own) = self.entries.get(key).and_then(|entry| entry.own) else { return false };
        self.change(key, changes, |entry| {
            entry.forget(&me);
            entry.own = None;
        });
        self.counts.own -= 1;
        let is_stored = own.stored && self.linked;
        if is_stored {
            self.withdrawn.insert(*key);
        }
        is_stored
    }

    /// Has an own flow written at the next point of the grid.
    fn want(&mut self, key: FlowKey, now: Moment) {
        let own = self.entries.get_mut(&key).and_then(|entry| entry.own.as_mut());
        if own.is_some_and(|own| !std::mem::replace(&mut own.wanted, true)) {
            self.touch(key, now);
        }
    }

    fn touch(&mut self, key: FlowKey, now: Moment) {
        if self.wanted.is_empty() {
            self.wanted_at = on_grid(now);
        }
        self.wanted.push(key);
    }

    fn plan(&mut self, key: FlowKey, at: Moment) {
        let at = on_grid(at);
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.due.is_none_or(|due| at < due)
        {
            entry.due = Some(at);
            self.due.entry(at).or_default().push(key);
        }
    }
}

/// What others do, and what follows.
impl Flows {
    /// Changes a flow's claims, and tells what that changed. An entry without claims is gone.
    fn change(&mut self, key: &FlowKey, changes: &mut Changes<FlowView>, change: impl FnOnce(&mut Entry)) {
        let live = &self.live;
        let look = |entry: &Entry| changes.wanted().then(|| entry.view(key, live)).flatten();
        let (old, new) = match self.entries.entry(*key) {
            Slot::Occupied(mut slot) => {
                let old = look(slot.get());
                change(slot.get_mut());
                let new = look(slot.get());
                if slot.get().claims.is_empty() {
                    slot.remove();
                }
                (old, new)
            }
            Slot::Vacant(slot) => {
                let mut entry = Entry::default();
                change(&mut entry);
                let new = look(&entry);
                if !entry.claims.is_empty() {
                    slot.insert(entry);
                }
                (None, new)
            }
        };
        if old != new {
            changes.push(&key.to_string(), old.map(Arc::new), new.map(Arc::new));
        }
    }

    fn take_over(&mut self, record: &SyncableState, now: Moment, changes: &mut Changes<FlowView>) {
        let node = &record.source_node;
        let key = FlowKey::from_key(&record.key);
        let no_key = || Error::Decode { source: "its key is no flow's".into() };
        let claim = key.ok_or_else(no_key).and_then(|key| Ok((key, Claim::from_value(&record.value)?)));
        match claim {
            Ok((key, claim)) if *node == self.live.me => self.resume(key, claim, now, changes),
            Ok((key, claim)) => {
                if self.put_claim(key, node, claim, changes) {
                    self.follow(&key, now, changes);
                }
            }
            Err(error) => {
                self.unreadable.note(record, &error);
                if let Some(key) = key.filter(|_| *node != self.live.me) {
                    self.drop_claim(&key, node, now, changes); // what it said before, it does not say any more
                }
            }
        }
    }

    /// Goes on with an own claim of before this node restarted, or before the table was attached.
    fn resume(&mut self, key: FlowKey, claim: Claim, now: Moment, changes: &mut Changes<FlowView>) {
        let own = self.entries.get(&key).and_then(|entry| entry.own);
        // Its claims of before may come back in any order: the store tells a later one after an earlier.
        if own.is_some_and(|own| !own.resumed) || self.withdrawn.contains(&key) {
            return;
        }
        let me = self.live.me.clone();
        self.counts.own += usize::from(own.is_none());
        let reading = self.reading;
        self.change(&key, changes, |entry| {
            entry.forget(&me);
            entry.claims.push(Said { node: me, claim, reading });
            entry.own = Some(Own {
                since: now,
                seen: now,
                shared: Some(now),
                stored: true,
                wanted: false,
                resumed: true,
            });
        });
        self.plan(key, now + self.rules.ttl / REFRESHES);
        self.follow(&key, now, changes);
    }

    /// Whether there was room for it.
    fn put_claim(
        &mut self,
        key: FlowKey,
        node: &NodeId,
        claim: Claim,
        changes: &mut Changes<FlowView>,
    ) -> bool {
        let is_known = self.entries.get(&key).is_some_and(|entry| entry.claim_of(node).is_some());
        if !is_known {
            let count = self.claimed.get(node).copied().unwrap_or(0);
            if count >= self.rules.max_per_source {
                self.counts.over_cap += 1;
                return false;
            }
            self.claimed.insert(node.clone(), count + 1);
        }
        let said = Said { node: node.clone(), claim, reading: self.reading };
        self.change(&key, changes, |entry| match entry.claims.iter_mut().find(|said| said.node == *node) {
            Some(held) => *held = said,
            None => entry.claims.push(said),
        });
        true
    }

    fn drop_claim(&mut self, key: &FlowKey, node: &NodeId, now: Moment, changes: &mut Changes<FlowView>) {
        if self.entries.get(key).is_none_or(|entry| entry.claim_of(node).is_none()) {
            return;
        }
        if let Some(count) = self.claimed.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                self.claimed.remove(node);
            }
        }
        self.change(key, changes, |entry| entry.forget(node));
        self.follow(key, now, changes);
    }

    /// Does what follows from a flow's claims: yields to a higher one, or takes an orphan over if it is this
    /// node's turn.
    fn follow(&mut self, key: &FlowKey, now: Moment, changes: &mut Changes<FlowView>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Some((owner, claim)) = entry.highest(key) else { return };
        if *owner == self.live.me {
            entry.orphaned = None;
            return;
        }
        if claim.closed || self.live.has(owner) {
            entry.orphaned = None;
            if entry.own.is_some() {
                self.counts.yielded += 1;
                self.withdraw(key, now, changes);
            }
            return;
        }
        let claim = Claim { generation: claim.generation.saturating_add(1), ..claim.clone() };
        let since = *entry.orphaned.get_or_insert(now);
        let turn = self.live.turn_of(&self.live.me, &key.to_bytes());
        let at = since + FIRST + GRACE.saturating_mul(u32::try_from(turn).unwrap_or(u32::MAX));
        if at > now {
            return self.plan(*key, at);
        }
        self.counts.promoted += 1;
        self.promoted.push((*key, claim.flow.clone()));
        self.claim(*key, claim, now, changes);
        if self.promoted.len() >= PROMOTED_MAX {
            self.tell_promoted();
        }
    }

    fn tell_promoted(&mut self) {
        if !self.promoted.is_empty() {
            (self.sink)(std::mem::take(&mut self.promoted));
        }
    }

    /// A flow's moment has come.
    fn look(&mut self, key: &FlowKey, now: Moment, changes: &mut Changes<FlowView>) {
        self.follow(key, now, changes);
        let ConntrackRules { ttl, min_age, .. } = self.rules;
        let Some(own) = self.entries.get(key).and_then(|entry| entry.own) else { return };
        let end = own.seen + ttl;
        if now >= end {
            self.lapse(key, changes);
            return;
        }
        let refresh = ttl / REFRESHES;
        let share_at = own.shared.map_or(own.since + min_age, |shared| shared + refresh);
        if now >= share_at && own.shared.is_none_or(|shared| own.seen > shared) {
            self.want(*key, now);
        }
        let next = if share_at > now { share_at } else { now + refresh };
        self.plan(*key, next.min(end));
    }
}

/// What concerns many flows at once.
impl Flows {
    /// Has all flows looked at from now on, with what `add` adds to what is done for each.
    fn begin_round(&mut self, now: Moment, add: impl FnOnce(&mut Round)) {
        if self.round.left == 0 {
            self.round.since = now;
        }
        self.round.left = SHARDS;
        add(&mut self.round);
    }

    /// Goes on with the next page.
    fn go_on(&mut self, now: Moment, changes: &mut Changes<FlowView>) {
        let mut looked = 0;
        while self.round.left > 0 && looked < PAGE {
            let shard = self.entries.shard(self.round.place);
            looked += shard.len();
            let concerned = shard.filter(|(_, entry)| self.is_concerned(entry, now));
            let mut keys: Vec<_> = concerned.map(|(key, _)| *key).collect();
            keys.sort_unstable(); // the same order in every run
            for key in &keys {
                self.revise(key, now, changes);
            }
            self.round.place = (self.round.place + 1) % SHARDS;
            self.round.left -= 1;
        }
        if self.round.left == 0 {
            self.round = Round { place: self.round.place, ..Round::default() };
        }
    }

    fn is_concerned(&self, entry: &Entry, now: Moment) -> bool {
        let Round { turned, sweeps, says, .. } = &self.round;
        let has_turned = |said: &Said| turned.contains(&said.node);
        (!turned.is_empty() && (entry.orphaned.is_some() || entry.claims.iter().any(has_turned)))
            || (*sweeps && entry.claims.iter().any(|said| self.is_stale(said)))
            || (*says && entry.own.is_some_and(|own| self.is_worth_saying(&own, now)))
    }

    fn is_stale(&self, said: &Said) -> bool {
        said.node != self.live.me && said.reading != self.reading
    }

    fn is_worth_saying(&self, own: &Own, now: Moment) -> bool {
        own.shared.is_some() || own.wanted || now >= own.since + self.rules.min_age
    }

    /// Does what the round is for.
    fn revise(&mut self, key: &FlowKey, now: Moment, changes: &mut Changes<FlowView>) {
        if self.round.sweeps
            && let Some(entry) = self.entries.get(key)
        {
            let stale = entry.claims.iter().filter(|said| self.is_stale(said));
            let mut stale: Vec<_> = stale.map(|said| said.node.clone()).collect();
            stale.sort_unstable();
            for node in &stale {
                self.drop_claim(key, node, now, changes);
            }
        }
        let own = self.entries.get(key).and_then(|entry| entry.own);
        if self.round.says && own.is_some_and(|own| self.is_worth_saying(&own, now)) {
            self.want(*key, now);
        }
        self.follow(key, now, changes);
    }

    /// Looks at the flows whose moment has come, up to a page of them.
    fn look_at_due(&mut self, now: Moment, changes: &mut Changes<FlowView>) {
        let mut room = PAGE;
        while room > 0
            && let Some(mut first) = self.due.first_entry().filter(|first| *first.key() <= now)
        {
            let (at, keys) = (*first.key(), first.get_mut());
            let page = keys.split_off(keys.len().saturating_sub(room));
            if keys.is_empty() {
                first.remove();
            }
            room -= page.len();
            for key in page {
                let entry = self.entries.get_mut(&key).filter(|entry| entry.due == Some(at));
                if let Some(entry) = entry {
                    entry.due = None;
                    self.look(&key, now, changes);
                }
            }
        }
    }
}

fn on_grid(at: Moment) -> Moment {
    let grid = GRID.as_micros();
    let points = at.as_micros().div_ceil(grid);
    Duration::from_micros(u64::try_from(points * grid).unwrap_or(u64::MAX))
}

impl Heart for Flows {
    type View = FlowView;

    fn types(&self) -> Vec<StateType> {
        vec![StateType::CONNTRACK]
    }

    fn tell(&mut self, change: &StateChange, now: Moment, changes: &mut Changes<FlowView>) {
        let Some(record) = change.record() else { return };
        if matches!(change, StateChange::Put { .. }) {
            self.take_over(record, now, changes);
        } else if let Some(key) = FlowKey::from_key(&record.key) {
            if record.source_node != self.live.me {
                return self.drop_claim(&key, &record.source_node, now, changes);
            }
            self.withdrawn.remove(&key);
            match self.entries.get_mut(&key).and_then(|entry| entry.own.as_mut()) {
                Some(own) if own.resumed => {
                    own.stored = false;
                    self.lapse(&key, changes);
                    self.follow(&key, now, changes);
                }
                // It ran out while no packets came; the next ones have it written again.
                Some(own) => (own.shared, own.stored) = (None, false),
                None => {}
            }
        }
    }

    fn set_live(&mut self, live: Arc<Live>, now: Moment, changes: &mut Changes<FlowView>) {
        let old = std::mem::replace(&mut self.live, live);
        // Who came or went matters only if it claims something.
        let has_turned = |node: &&NodeId| old.has(node) != self.live.has(node);
        let turned: Vec<_> = self.claimed.keys().filter(has_turned).cloned().collect();
        if !turned.is_empty() {
            self.begin_round(now, |round| round.turned.extend(turned));
            self.go_on(now, changes); // few flows are done with at once
        }
    }

    fn begin_reading(&mut self) {
        self.linked = true;
        self.withdrawn.clear();
        self.reading = self.reading.wrapping_add(1);
        self.round.sweeps = false; // this reading's own end does
    }

    fn end_reading(&mut self, now: Moment, changes: &mut Changes<FlowView>) {
        self.begin_round(now, |round| round.sweeps = true);
        self.go_on(now, changes);
    }

    fn unlink(&mut self, now: Moment, changes: &mut Changes<FlowView>) {
        self.begin_reading();
        self.linked = false;
        // At once: what is written in the next life must not be taken for what this one has lost.
        for own in self.entries.values_mut().filter_map(|entry| entry.own.as_mut()) {
            (own.shared, own.stored) = (None, false);
        }
        self.end_reading(now, changes);
    }

    fn say_again(&mut self, now: Moment) {
        self.begin_round(now, |round| round.says = true);
    }

    fn handle_timeout(&mut self, now: Moment, changes: &mut Changes<FlowView>) {
        self.go_on(now, changes);
        self.look_at_due(now, changes);
        if now >= self.wanted_at {
            self.writes.extend(self.wanted.drain(..));
        }
        self.tell_promoted();
    }

    fn next_timeout(&self) -> Option<Moment> {
        let wanted_at = (!self.wanted.is_empty()).then_some(self.wanted_at);
        let round = (self.round.left > 0).then_some(self.round.since);
        self.due.first_key_value().map(|(at, _)| *at).into_iter().chain(wanted_at).chain(round).min()
    }

    fn has_writes(&self) -> bool {
        !self.writes.is_empty()
    }

    fn take_writes(&mut self, now: Moment) -> Vec<Write> {
        let (me, ttl) = (self.live.me.clone(), self.rules.ttl);
        let mut writes = Vec::new();
        for key in self.writes.drain(..self.writes.len().min(PAGE)) {
            let entry = self.entries.get_mut(&key);
            let said = entry.and_then(|entry| {
                let claim = entry.claim_of(&me).cloned()?;
                Some((claim, entry.own.as_mut()?))
            });
            let value = match said {
                Some((_, own)) if !own.wanted => continue, // written with an earlier mention of its key
                Some((claim, own)) => {
                    own.wanted = false;
                    (own.shared, own.stored) = (Some(now), true);
                    claim.to_value().ok()
                }
                None => None,
            };
            self.counts.written += 1;
            let options = Options { ttl: Some(ttl), urgent: false };
            writes.push(Write { state_type: StateType::CONNTRACK, key: key.to_key(), value, options });
        }
        writes
    }

    fn retry(&mut self, write: &Write) {
        let Some(key) = FlowKey::from_key(&write.key) else { return };
        if let Some(own) = self.entries.get_mut(&key).and_then(|entry| entry.own.as_mut()) {
            own.wanted = true;
        }
        self.writes.push_back(key);
    }

    fn unreadable(&self) -> u64 {
        self.unreadable.count
    }
}
