//! The user's providers, each on a thread of its own: a bounded queue in, records out. One that blocks delays
//! only itself, one that panics is called again. Never calls a provider under a lock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Condvar, Mutex, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::{
    ClusterEvent, Error, EventData, EventKind, NodeId, ProviderStats, StateKey, StateProvider, StateType,
    SyncableState,
    driver::{Driver, clock, guarded, lock, read, write},
    wire::limits,
};

/// From so many waiting records on, a newer version of a key that waits takes the place of the older one.
/// Below it a provider hears every version; beyond it the queue is no longer than the provider has keys.
const PENDING_MAX: usize = 4_096;
/// Records that a provider has set aside at most; beyond it the one set aside first may be handed over again.
const QUARANTINE_MAX: usize = 1_024;
/// How many of a provider's own records are handed to the core under one lock.
const OFFER_LEN: usize = 1_000;
/// How long a provider's own records wait where too much waits to be spread already.
const RETRY: Duration = Duration::from_millis(20);

/// All providers, by type.
#[derive(Default)]
pub(super) struct Providers {
    workers: RwLock<BTreeMap<StateType, Arc<Worker>>>,
}

impl Providers {
    /// Takes a provider in. What is known already its thread reads for itself.
    pub(super) fn register(&self, worker: Worker) -> Result<Arc<Worker>, Error> {
        let state_type = worker.state_type.clone();
        let mut workers = write(&self.workers);
        if workers.contains_key(&state_type) {
            return Err(Error::ProviderExists { state_type: state_type.to_string() });
        }
        worker.enqueue(|queue| queue.ask = Some(Ask::Offer));
        let worker = Arc::new(worker);
        workers.insert(state_type, Arc::clone(&worker));
        Ok(worker)
    }

    pub(super) fn unregister(&self, state_type: &StateType) -> bool {
        let worker = write(&self.workers).remove(state_type);
        worker.inspect(|worker| worker.close()).is_some()
    }

    /// A remote record was accepted.
    pub(super) fn apply(&self, record: SyncableState) {
        if let Some(worker) = read(&self.workers).get(&record.state_type) {
            worker.tell(|queue| queue.records.push(record));
        }
    }

    pub(super) fn node_failed(&self, node: &NodeId) {
        for worker in read(&self.workers).values() {
            worker.tell(|queue| _ = queue.failed.insert(node.clone()));
        }
    }

    /// A push-pull is near: has a provider something that nobody broadcast?
    pub(super) fn ask(&self) {
        for worker in read(&self.workers).values() {
            worker.tell(|queue| queue.ask = queue.ask.or(Some(Ask::IfChanged)));
        }
    }

    /// A new life has begun, whose store knows nothing.
    pub(super) fn offer(&self) {
        for worker in read(&self.workers).values() {
            worker.tell(|queue| queue.ask = Some(Ask::Offer));
        }
    }

    /// The same for the types that are meant.
    pub(super) fn offer_if(&self, meant: impl Fn(&StateType) -> bool) {
        for (_, worker) in read(&self.workers).iter().filter(|(state_type, _)| meant(state_type)) {
            worker.tell(|queue| queue.ask = Some(Ask::Offer));
        }
    }

    /// Throws away what waits and waits until no call is under way, `limit` at most for all.
    pub(super) fn rest(&self, limit: Duration) {
        let workers: Vec<_> = read(&self.workers).values().cloned().collect();
        let end = clock::monotonic() + limit;
        for worker in workers {
            if !worker.rest(end.saturating_duration_since(clock::monotonic())) {
                let state_type = &worker.state_type;
                tracing::warn!(%state_type, "a provider is still busy with its last call; its thread is left to it");
            }
        }
    }

    /// The last handle is gone: threads end after the call they are in.
    pub(super) fn close(&self) {
        for worker in std::mem::take(&mut *write(&self.workers)).values() {
            worker.close();
        }
    }

    pub(super) fn stats(&self) -> BTreeMap<String, ProviderStats> {
        let workers = read(&self.workers);
        workers.iter().map(|(state_type, worker)| (state_type.to_string(), worker.stats())).collect()
    }
}

/// One provider, its queue and its thread.
pub(super) struct Worker {
    state_type: StateType,
    provider: Arc<dyn StateProvider>,
    driver: Weak<Driver>,
    node_id: NodeId,
    batch_len: usize,
    queue: Mutex<Queue>,
    changed: Condvar,
    has_thread: AtomicBool,
    counters: Counters,
    quarantine: Mutex<Quarantine>,
    hasher: RandomState,
}

/// Records that made the provider panic: by key and source, the version that did.
#[derive(Default)]
struct Quarantine {
    versions: BTreeMap<(String, NodeId), u64>,
    /// In the order in which they were set aside.
    order: VecDeque<(String, NodeId)>,
}

impl Quarantine {
    fn holds(&self, record: &SyncableState) -> bool {
        let register = (record.key.clone(), record.source_node.clone());
        self.versions.get(&register).is_some_and(|version| *version == record.version)
    }

    fn set_aside(&mut self, record: &SyncableState) {
        let register = (record.key.clone(), record.source_node.clone());
        if self.versions.insert(register.clone(), record.version).is_none() {
            self.order.push_back(register);
        }
        if self.order.len() > QUARANTINE_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.versions.remove(&oldest);
        }
    }
}

#[derive(Default)]
struct Queue {
    records: Pending,
    failed: BTreeSet<NodeId>,
    ask: Option<Ask>,
    busy: bool,
    closed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// Hand over everything.
    Offer,
    /// Look at the digest first.
    IfChanged,
}

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    applied: AtomicU64,
    conflicts: AtomicU64,
    rejected: AtomicU64,
    panics: AtomicU64,
    quarantined: AtomicU64,
}

/// What a thread takes out of the queue at once.
struct Work {
    batch: Vec<SyncableState>,
    failed: BTreeSet<NodeId>,
    ask: Option<Ask>,
}

impl Worker {
    pub(super) fn new(
        state_type: StateType,
        provider: Arc<dyn StateProvider>,
        driver: Weak<Driver>,
        node_id: NodeId,
        batch_len: usize,
    ) -> Self {
        Self {
            state_type,
            provider,
            driver,
            node_id,
            batch_len,
            queue: Mutex::default(),
            changed: Condvar::new(),
            has_thread: AtomicBool::new(false),
            counters: Counters::default(),
            quarantine: Mutex::default(),
            hasher: RandomState::new(),
        }
    }

    fn enqueue(&self, add: impl FnOnce(&mut Queue)) {
        add(&mut lock(&self.queue));
        self.changed.notify_all();
    }

    fn tell(self: &Arc<Self>, add: impl FnOnce(&mut Queue)) {
        self.enqueue(add);
        self.start_thread();
    }

    pub(super) fn start_thread(self: &Arc<Self>) {
        if self.has_thread.swap(true, SeqCst) {
            return;
        }
        let worker = Arc::clone(self);
        let thread = std::thread::Builder::new().name("phalanx-provider".into());
        if let Err(error) = thread.spawn(move || worker.serve()) {
            self.has_thread.store(false, SeqCst);
            tracing::warn!(%error, state_type = %self.state_type, "no thread for a provider; its records wait");
        }
    }

    fn close(&self) {
        self.enqueue(|queue| queue.closed = true);
    }

    fn rest(&self, limit: Duration) -> bool {
        let mut queue = lock(&self.queue);
        queue.records = Pending::default();
        queue.failed.clear();
        queue.ask = None;
        let (queue, _) = self
            .changed
            .wait_timeout_while(queue, limit, |queue| queue.busy)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        !queue.busy
    }

    fn stats(&self) -> ProviderStats {
        let counters = &self.counters;
        ProviderStats {
            calls: counters.calls.load(SeqCst),
            applied: counters.applied.load(SeqCst),
            conflicts: counters.conflicts.load(SeqCst),
            rejected: counters.rejected.load(SeqCst),
            panics: counters.panics.load(SeqCst),
            quarantined: counters.quarantined.load(SeqCst),
            pending: lock(&self.queue).records.len(),
        }
    }

    fn serve(&self) {
        self.catch_up();
        let mut digest = None;
        while let Some(work) = self.next() {
            if !work.batch.is_empty() {
                self.apply(work.batch);
            }
            for node in &work.failed {
                self.call(|provider| provider.on_node_failure(node));
            }
            if let Some(ask) = work.ask {
                self.ask(ask, &mut digest);
            }
        }
    }

    /// Hands over what was known before, page by page, so that a large table neither holds up the protocol nor
    /// waits in memory. Of a record that changes before its page is read, the page tells.
    fn catch_up(&self) {
        lock(&self.queue).busy = true;
        let mut next = Some(0);
        while let Some(first) = next {
            let read = self.driver.upgrade().and_then(|driver| {
                driver.read(|protocol| {
                    let mut queue = lock(&self.queue);
                    queue.records.retain(|record| {
                        record.deleted || protocol.place_of(record).is_none_or(|place| place < first)
                    });
                    let (page, next) = protocol.states_from(&self.state_type, first);
                    (page, next.filter(|_| !queue.closed))
                })
            });
            let Some((page, rest)) = read else { return }; // it does not run: a start tells everything
            let theirs: Vec<_> =
                page.into_iter().filter(|record| record.source_node != self.node_id).collect();
            for batch in theirs.chunks(self.batch_len) {
                self.apply(batch.to_vec());
            }
            next = rest;
        }
    }

    /// Waits for something to do; `None` once closed.
    fn next(&self) -> Option<Work> {
        let mut queue = lock(&self.queue);
        queue.busy = false;
        self.changed.notify_all();
        while queue.is_idle() && !queue.closed {
            queue = self.changed.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if queue.closed {
            return None;
        }
        queue.busy = true;
        let batch = queue.records.take(self.batch_len);
        // What the node held when it died comes before its death, and an answer counts only after both.
        let failed =
            if queue.records.is_empty() { std::mem::take(&mut queue.failed) } else { BTreeSet::new() };
        Some(Work { batch, failed, ask: queue.ask.take() })
    }

    fn call<R>(&self, call: impl FnOnce(&dyn StateProvider) -> R) -> Option<R> {
        self.counters.calls.fetch_add(1, SeqCst);
        let result = guarded("a state provider", || call(&*self.provider));
        if result.is_none() {
            self.counters.panics.fetch_add(1, SeqCst);
        }
        result
    }

    /// Hands records over; if the provider panics, one by one, so that those which make it panic are found and
    /// set aside, and the others are not lost.
    fn apply(&self, mut batch: Vec<SyncableState>) {
        {
            let quarantine = lock(&self.quarantine);
            batch.retain(|record| !quarantine.holds(record));
        }
        if batch.is_empty() || self.try_apply(batch.clone()) {
            return;
        }
        if let [only] = &batch[..] {
            return self.set_aside(only);
        }
        for record in batch {
            if !self.try_apply(vec![record.clone()]) {
                self.set_aside(&record);
            }
        }
    }

    /// Whether the provider took them without a panic.
    fn try_apply(&self, batch: Vec<SyncableState>) -> bool {
        let Some(applied) = self.call(|provider| provider.apply_remote_state(batch)) else { return false };
        let count = |counter: &AtomicU64, by: usize| counter.fetch_add(by as u64, SeqCst);
        count(&self.counters.applied, applied.applied);
        count(&self.counters.conflicts, applied.conflicts);
        count(&self.counters.rejected, applied.rejected);
        true
    }

    /// Keeps a record from the provider until its register holds another version.
    fn set_aside(&self, record: &SyncableState) {
        self.counters.quarantined.fetch_add(1, SeqCst);
        lock(&self.quarantine).set_aside(record);
        let SyncableState { state_type, key, source_node, version, .. } = record;
        tracing::warn!(
            %state_type, key, %source_node, version,
            "a record makes its provider panic; it is set aside until it is written anew"
        );
        if let Some(driver) = self.driver.upgrade() {
            driver.publish(ClusterEvent::new(
                EventKind::RecordQuarantined,
                Some(source_node.clone()),
                clock::wall_now(),
                EventData::State { record: Box::new(record.clone()), removed: record.deleted },
            ));
        }
    }

    /// One number in place of a version a key: it is kept from one round to the next. Whatever the order.
    fn hash(&self, digest: &HashMap<StateKey, u64>) -> u64 {
        digest.iter().map(|version| self.hasher.hash_one(version)).fold(0, u64::wrapping_add)
    }

    /// Hands over what the provider holds, unless its digest is what it was when it last did.
    fn ask(&self, ask: Ask, last: &mut Option<u64>) {
        // Before the records, so that what changes in between shows the next time.
        let digest = self.call(StateProvider::state_digest).map(|digest| self.hash(&digest));
        if ask == Ask::IfChanged && (digest.is_none() || digest == *last) {
            return;
        }
        let Some(records) = self.call(StateProvider::sync_state) else { return };
        let offered = records.len();
        let ours = |record: &SyncableState| {
            record.state_type == self.state_type
                && record.source_node == self.node_id
                && (1..=limits::KEY_LEN_MAX).contains(&record.key.len())
        };
        let records: Vec<_> = records.into_iter().filter(ours).collect();
        let refused = offered - records.len();
        if refused > 0 {
            self.counters.rejected.fetch_add(refused as u64, SeqCst);
            let state_type = &self.state_type;
            tracing::debug!(%state_type, refused, "a provider offered records of other types or nodes, or no key");
        }
        if self.hand_over(records) {
            *last = digest;
        }
    }

    /// Whether a running core took them.
    fn hand_over(&self, records: Vec<SyncableState>) -> bool {
        let mut records = records.into_iter().peekable();
        let mut rejected = 0;
        while records.peek().is_some() {
            let slice: Vec<_> = records.by_ref().take(OFFER_LEN).collect();
            match self.offer(&slice) {
                Some(Ok(_)) => continue,
                Some(Err(_)) => {}
                None => return false,
            }
            // One bad record spoils its batch, not its neighbours.
            for record in slice {
                match self.offer(&[record]) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        rejected += 1;
                        if rejected == 1 {
                            let state_type = &self.state_type;
                            tracing::warn!(%state_type, %error, "a provider offered records that cannot be taken");
                        }
                    }
                    None => return false,
                }
            }
        }
        self.counters.rejected.fetch_add(rejected, SeqCst);
        true
    }

    /// Offers records to the core, as soon as there is room for them; `None` if it does not run.
    fn offer(&self, records: &[SyncableState]) -> Option<Result<usize, Error>> {
        loop {
            let result = self.driver.upgrade()?.offer(records.to_vec())?;
            if !matches!(result, Err(Error::Overloaded { .. })) {
                return Some(result);
            }
            let queue = lock(&self.queue);
            let (queue, _) = self
                .changed
                .wait_timeout_while(queue, RETRY, |queue| !queue.closed)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if queue.closed {
                return None;
            }
        }
    }
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.records.is_empty() && self.failed.is_empty() && self.ask.is_none()
    }
}

/// Records on their way to a provider, in order.
#[derive(Default)]
struct Pending {
    records: VecDeque<SyncableState>,
    /// How many have been taken out: a record's place in the queue is its number less this.
    taken: u64,
    /// The number of the newest waiting record of each register; kept only while more than `PENDING_MAX`
    /// wait.
    newest: HashMap<(String, Option<NodeId>), u64>,
}

impl Pending {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn push(&mut self, record: SyncableState) {
        if self.records.len() < PENDING_MAX {
            self.records.push_back(record);
            return;
        }
        if self.newest.is_empty() {
            let numbered = self.records.iter().zip(self.taken..);
            self.newest = numbered.map(|(record, number)| (register(record), number)).collect();
        }
        let next = self.taken + self.records.len() as u64;
        match self.newest.entry(register(&record)) {
            std::collections::hash_map::Entry::Occupied(at) => {
                let place = usize::try_from(*at.get() - self.taken).unwrap_or(usize::MAX);
                if let Some(older) = self.records.get_mut(place) {
                    *older = record;
                }
            }
            std::collections::hash_map::Entry::Vacant(at) => {
                at.insert(next);
                self.records.push_back(record);
            }
        }
    }

    fn retain(&mut self, wanted: impl FnMut(&SyncableState) -> bool) {
        self.records.retain(wanted);
        self.newest = HashMap::new(); // places have moved; it is made anew when it is needed
    }

    fn take(&mut self, most: usize) -> Vec<SyncableState> {
        let count = most.min(self.records.len());
        let batch: Vec<_> = self.records.drain(..count).collect();
        self.taken += count as u64;
        if self.records.len() < PENDING_MAX {
            self.newest = HashMap::new();
        } else {
            for record in &batch {
                let register = register(record);
                if self.newest.get(&register).is_some_and(|number| *number < self.taken) {
                    self.newest.remove(&register);
                }
            }
        }
        batch
    }
}

fn register(record: &SyncableState) -> (String, Option<NodeId>) {
    let owner = record.state_type.is_per_node().then(|| record.source_node.clone());
    (record.key.clone(), owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value;

    fn record(key: usize, version: u64) -> SyncableState {
        let value = Value::encode(&version).unwrap();
        SyncableState::new("t", format!("k{key}"), value, version, NodeId::new("a").unwrap())
    }

    #[test]
    fn a_short_queue_keeps_every_version() {
        let mut pending = Pending::default();
        for version in 1..=100 {
            pending.push(record(0, version));
        }
        let versions: Vec<_> = pending.take(200).into_iter().map(|record| record.version).collect();
        assert_eq!(versions, (1..=100).collect::<Vec<_>>());
    }

    #[test]
    fn a_long_queue_is_no_longer_than_there_are_keys() {
        let mut pending = Pending::default();
        for version in 1..=100_000_u64 {
            pending.push(record(usize::try_from(version % 5_000).unwrap(), version));
        }
        assert_eq!(pending.len(), 5_000);
        let mut newest = HashMap::new();
        while !pending.is_empty() {
            for record in pending.take(100) {
                newest.insert(record.key, record.version);
            }
        }
        assert_eq!(newest.len(), 5_000);
        assert!(newest.values().all(|version| *version > 95_000));
    }

    #[test]
    fn the_newest_version_is_never_lost_nor_overtaken_by_an_older_one() {
        use proptest::prelude::*;
        let steps = proptest::collection::vec((0_usize..6_000, 0_usize..300), 1..60);
        proptest!(ProptestConfig::with_cases(32), |(steps in steps)| {
            let (mut pending, mut version) = (Pending::default(), 0);
            let (mut written, mut heard) = (HashMap::new(), HashMap::<String, u64>::new());
            let mut hear = |batch: Vec<SyncableState>| for record in batch {
                let before = heard.insert(record.key, record.version);
                assert!(before.is_none_or(|before| before < record.version));
            };
            for (pushes, takes) in steps {
                for _ in 0..pushes {
                    version += 1;
                    let new = record(usize::try_from(version * 7_919 % 6_007).unwrap(), version);
                    written.insert(new.key.clone(), version);
                    pending.push(new);
                }
                hear(pending.take(takes));
            }
            while !pending.is_empty() {
                hear(pending.take(100));
            }
            prop_assert_eq!(written, heard);
        });
    }
}
