//! The user's providers, on real sockets: what they are handed and asked, and that one which panics, blocks or
//! holds much harms nobody.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use common::{Log, authority, fleet, id, node, started, until};
use phalanx::{Applied, EventKind, NodeId, StateKey, StateProvider, StateType, SyncableState, Value};

/// A provider that misbehaves in the ways it is told to.
struct Unruly {
    of: StateType,
    applied: Mutex<Vec<(String, u64)>>,
    panics: AtomicUsize,
    gate: Mutex<Option<mpsc::Receiver<()>>>,
    waiting: AtomicBool,
}

impl Unruly {
    fn new(of: &str) -> Self {
        Self {
            of: of.into(),
            applied: Mutex::default(),
            panics: AtomicUsize::new(0),
            gate: Mutex::new(None),
            waiting: AtomicBool::new(false),
        }
    }
}

impl StateProvider for Unruly {
    fn provider_type(&self) -> StateType {
        self.of.clone()
    }

    fn sync_state(&self) -> Vec<SyncableState> {
        Vec::new()
    }

    fn apply_remote_state(&self, states: Vec<SyncableState>) -> Applied {
        if self.panics.load(SeqCst) > 0 {
            self.panics.fetch_sub(1, SeqCst);
            panic!("on purpose");
        }
        if let Some(gate) = self.gate.lock().unwrap().take() {
            self.waiting.store(true, SeqCst);
            let _ = gate.recv();
        }
        let applied = Applied { applied: states.len(), ..Applied::default() };
        self.applied.lock().unwrap().extend(states.into_iter().map(|state| (state.key, state.version)));
        applied
    }
}

#[tokio::test]
async fn a_provider_gets_each_accepted_version_once_and_in_order() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    let provider = Arc::new(Unruly::new("routes"));
    fleet[0].register_provider(Arc::clone(&provider) as _).unwrap();
    for round in 0..50 {
        fleet[1].broadcast("routes", format!("k{}", round % 5), &round).unwrap();
        let version = fleet[1].get(&"routes".into(), &format!("k{}", round % 5)).unwrap().version;
        until("it is applied", || {
            provider.applied.lock().unwrap().last().is_some_and(|(_, applied)| *applied == version)
        })
        .await;
    }
    // A full exchange brings nothing anew.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let before = fleet[0].stats().gossip.counters.exchanges_completed;
    until("a push-pull has passed", || fleet[0].stats().gossip.counters.exchanges_completed > before).await;
    let applied = provider.applied.lock().unwrap().clone();
    assert_eq!(applied.len(), 50);
    assert!(applied.is_sorted_by_key(|(_, version)| *version));
}

#[tokio::test]
async fn a_provider_that_panics_or_blocks_harms_no_other() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    let panicking = Arc::new(Unruly::new("panicking"));
    let blocking = Arc::new(Unruly::new("blocking"));
    let good = Arc::new(Unruly::new("good"));
    panicking.panics.store(1, SeqCst);
    let (open, gate) = mpsc::channel();
    *blocking.gate.lock().unwrap() = Some(gate);
    for provider in [&panicking, &blocking, &good] {
        fleet[0].register_provider(Arc::clone(provider) as _).unwrap();
    }
    for of in ["panicking", "blocking"] {
        fleet[1].broadcast(of, "first", &1).unwrap();
    }
    until("one blocks", || blocking.waiting.load(SeqCst)).await;
    until("one has panicked", || fleet[0].stats().providers["panicking"].panics == 1).await;
    for of in ["panicking", "good"] {
        fleet[1].broadcast(of, "second", &2).unwrap();
    }
    until("the others go on", || {
        [&panicking, &good].iter().all(|p| p.applied.lock().unwrap().iter().any(|(key, _)| key == "second"))
    })
    .await;
    assert!(blocking.applied.lock().unwrap().is_empty());
    assert!(fleet[0].is_alive(&id("n1")) && fleet[1].is_alive(&id("n0")));
    drop(open);
    until("the blocked one goes on", || blocking.applied.lock().unwrap().len() == 1).await;
}

#[tokio::test]
async fn a_provider_that_comes_late_hears_of_everything_once_while_records_change() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    for key in 0..3_000 {
        fleet[1].broadcast("routes", key.to_string(), &key).unwrap();
    }
    until("all are there", || fleet[0].states(&"routes".into()).len() == 3_000).await;
    let provider = Arc::new(Unruly::new("routes"));
    let (open, gate) = mpsc::channel();
    *provider.gate.lock().unwrap() = Some(gate);
    fleet[0].register_provider(Arc::clone(&provider) as _).unwrap();
    until("it is in its first batch", || provider.waiting.load(SeqCst)).await;
    // What changes now has partly been told already, and partly not.
    for key in (0..3_000).step_by(3) {
        fleet[1].broadcast("routes", key.to_string(), &"anew").unwrap();
    }
    let newest = |key: u32| fleet[1].get(&"routes".into(), &key.to_string()).unwrap().version;
    until("it has come", || {
        fleet[0].get(&"routes".into(), "2997").is_some_and(|record| record.version == newest(2_997))
    })
    .await;
    drop(open);
    let latest = || provider.applied.lock().unwrap().iter().cloned().collect::<BTreeMap<_, _>>();
    until("all has been told", || {
        let latest = latest();
        (0..3_000).all(|key| latest.get(&key.to_string()) == Some(&newest(key)))
    })
    .await;
    let told = provider.applied.lock().unwrap().clone();
    let versions: std::collections::BTreeSet<_> = told.iter().map(|(_, version)| version).collect();
    assert_eq!(versions.len(), told.len(), "no version twice");
    assert!(told.len() < 4_000, "{} are told, though some changed before their turn", told.len());
}

/// Panics at one value, whatever comes with it.
#[derive(Default)]
struct Allergic(Mutex<BTreeMap<String, u32>>);

impl StateProvider for Allergic {
    fn provider_type(&self) -> StateType {
        "routes".into()
    }

    fn sync_state(&self) -> Vec<SyncableState> {
        Vec::new()
    }

    fn apply_remote_state(&self, states: Vec<SyncableState>) -> Applied {
        for state in &states {
            let value: u32 = state.value.decode().unwrap();
            assert_ne!(value, 13, "on purpose");
            self.0.lock().unwrap().insert(state.key.clone(), value);
        }
        Applied { applied: states.len(), ..Applied::default() }
    }
}

#[tokio::test]
async fn a_record_that_makes_a_provider_panic_is_set_aside_until_it_is_written_anew() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    let log = Log::of(&fleet[0]);
    let record = |number: u32| {
        let value = Value::encode(&number).unwrap();
        SyncableState::new("routes", format!("k{number}"), value, fleet[1].next_version(), id("n1"))
    };
    fleet[1].broadcast_many((0..30).map(record).collect()).unwrap();
    until("all are there", || fleet[0].states(&"routes".into()).len() == 30).await;
    let provider = Arc::new(Allergic::default());
    fleet[0].register_provider(Arc::clone(&provider) as _).unwrap();
    let held = |key: &str| provider.0.lock().unwrap().get(key).copied();
    until("the others are applied", || provider.0.lock().unwrap().len() == 29).await;
    until("one is named", || log.told(EventKind::RecordQuarantined, "n1") == 1).await;
    let stats = || fleet[0].stats().providers["routes"];
    assert_eq!((held("k13"), stats().quarantined, stats().panics), (None, 1, 2));
    fleet[1].broadcast("routes", "k1", &100).unwrap();
    until("it goes on", || held("k1") == Some(100)).await;
    fleet[1].broadcast("routes", "k13", &14).unwrap();
    until("written anew, it is tried again", || held("k13") == Some(14)).await;
    assert_eq!((stats().quarantined, stats().panics), (1, 2));
}

/// Holds many keys, and counts how often it is asked for what.
struct Vast {
    me: NodeId,
    versions: Mutex<Vec<u64>>,
    digests: AtomicUsize,
    syncs: AtomicUsize,
}

impl Vast {
    fn key(number: usize) -> String {
        format!("k{number:06}")
    }
}

impl StateProvider for Vast {
    fn provider_type(&self) -> StateType {
        "routes".into()
    }

    fn sync_state(&self) -> Vec<SyncableState> {
        self.syncs.fetch_add(1, SeqCst);
        let (versions, value) = (self.versions.lock().unwrap(), Value::encode(&()).unwrap());
        let record = |(number, version): (usize, &u64)| {
            SyncableState::new("routes", Self::key(number), value.clone(), *version, self.me.clone())
        };
        versions.iter().enumerate().map(record).collect()
    }

    fn state_digest(&self) -> HashMap<StateKey, u64> {
        self.digests.fetch_add(1, SeqCst);
        let versions = self.versions.lock().unwrap();
        let version = |(number, version): (usize, &u64)| {
            (StateKey { state_type: "routes".into(), key: Self::key(number) }, *version)
        };
        versions.iter().enumerate().map(version).collect()
    }

    fn apply_remote_state(&self, states: Vec<SyncableState>) -> Applied {
        Applied { rejected: states.len(), ..Applied::default() }
    }
}

#[tokio::test]
async fn a_provider_of_many_keys_that_stays_the_same_is_asked_for_its_digest_alone() {
    const KEYS: usize = 100_000;
    let mut config = node(&authority(), "n0", &[]);
    config.push_pull_interval = Duration::from_millis(200);
    let cluster = started(config).await;
    let versions = (0..KEYS).map(|_| cluster.next_version()).collect();
    let provider = Arc::new(Vast {
        me: id("n0"),
        versions: Mutex::new(versions),
        digests: AtomicUsize::default(),
        syncs: AtomicUsize::default(),
    });
    cluster.register_provider(Arc::clone(&provider) as _).unwrap();
    let held = || cluster.stats().gossip.counters.records_held;
    until("all is shared", || held() == KEYS as u64).await;
    let asked = |of: &AtomicUsize| of.load(SeqCst);
    assert_eq!(asked(&provider.syncs), 1);
    let before = asked(&provider.digests);
    until("five rounds have passed", || asked(&provider.digests) >= before + 5).await;
    assert_eq!(asked(&provider.syncs), 1, "nothing has changed");

    let version = cluster.next_version();
    provider.versions.lock().unwrap()[KEYS / 2] = version;
    let key = Vast::key(KEYS / 2);
    until("the change is shared", || {
        cluster.get(&"routes".into(), &key).is_some_and(|held| held.version == version)
    })
    .await;
    assert_eq!(asked(&provider.syncs), 2);
    until("it is as before", || asked(&provider.digests) >= before + 10).await;
    assert_eq!((asked(&provider.syncs), held()), (2, KEYS as u64));
}
