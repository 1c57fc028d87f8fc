//! Callers that do everything at once, in the wrong order, or from the wrong place; callbacks and providers
//! that call back; configurations from files and the environment. Nothing hangs, and the cluster goes on
//! serving.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, SystemTime},
};

use common::{Log, authority, config, fleet, id, node, started, still_serves, text, until};
use futures_util::{StreamExt as _, future::FutureExt as _};
use phalanx::{
    Applied, Cluster, ClusterEvent, Config, Error, EventData, EventKind, StateProvider, StateType, Status,
    Subscription, SyncableState, Validity, Value,
};

const SOON: Duration = Duration::from_secs(30);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_starts_at_once_one_starts_and_a_hundred_stops_all_end() {
    let authority = authority();
    let cluster = Cluster::new(node(&authority, "a", &[])).unwrap();
    for _ in 0..3 {
        let start = || {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.start().await.unwrap() })
        };
        let starts: Vec<_> = (0..100).map(|_| start()).collect();
        let mut begun = 0;
        for start in starts {
            begun += usize::from(start.await.unwrap().is_some());
        }
        assert_eq!((begun, cluster.status()), (1, Status::Running));
        let stop = || {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.stop().await.unwrap() })
        };
        let stops: Vec<_> = (0..100).map(|_| stop()).collect();
        for stop in stops {
            stop.await.unwrap();
            assert_eq!(cluster.status(), Status::Stopped);
        }
    }
}

#[tokio::test]
async fn a_stop_before_any_start_ends_at_once() {
    let cluster = Cluster::new(node(&authority(), "a", &[])).unwrap();
    cluster.stop().now_or_never().expect("there is nothing to wait for").unwrap();
    assert!(cluster.start().await.unwrap().is_some());
}

#[tokio::test]
async fn a_start_that_is_given_up_takes_everything_back() {
    let authority = authority();
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = free();
    let mut config = node(&authority, "a", &[]);
    config.bind_port = address.port();
    config.seeds = vec![silent.local_addr().unwrap().to_string()];
    let cluster = Cluster::new(config).unwrap();
    for patience in [0, 1, 5, 50] {
        let start = tokio::time::timeout(Duration::from_millis(patience), cluster.start());
        assert!(start.await.is_err(), "the seed is silent");
        assert_eq!(cluster.status(), Status::Stopped, "after {patience} ms");
        until("the port is free", || UdpSocket::bind(address).is_ok()).await;
    }
    assert_eq!(cluster.start().await.unwrap().unwrap().address, address);
}

#[tokio::test]
async fn dead_seeds_hold_no_start_up_for_long_and_are_tried_again() {
    let authority = authority();
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let later = free();
    let mut config = node(&authority, "a", &[]);
    config.seeds =
        vec![silent.local_addr().unwrap().to_string(), later.to_string(), "lb-1.invalid:7946".into()];
    let cluster =
        tokio::time::timeout(SOON, started(config)).await.expect("no seed holds a start up for ever");
    still_serves(&cluster, &authority, "good").await;
    let mut seed = node(&authority, "seed", &[]);
    seed.bind_port = later.port();
    let seed = started(seed).await;
    until("the seed is found", || cluster.is_alive(&id("seed")) && seed.is_alive(&id("a"))).await;
}

#[tokio::test]
async fn a_node_whose_seed_is_itself_serves_without_dialling_itself() {
    let authority = authority();
    let address = free();
    let mut config = node(&authority, "a", &[]);
    config.bind_port = address.port();
    let port = address.port();
    config.seeds =
        vec![address.to_string(), format!("localhost:{port}"), format!("[::ffff:127.0.0.1]:{port}")];
    let cluster = tokio::time::timeout(SOON, started(config)).await.expect("it does not wait for itself");
    assert_eq!(cluster.cluster_size(), 1);
    assert_eq!(cluster.join(&[address.to_string()]).await.unwrap(), 0);
    assert_eq!(cluster.stats().net.refused.get("duplicate-id"), None);
    still_serves(&cluster, &authority, "good").await;
}

#[tokio::test]
async fn every_address_that_is_none_is_named() {
    let cluster = started(node(&authority(), "a", &[])).await;
    let wrong: Vec<_> = ["", "host", "::1:7946", "host:0", "host:70000"].map(String::from).into();
    let error = cluster.join(&wrong).await.unwrap_err();
    let Error::Config { faults } = &error else { panic!("{error}") };
    assert_eq!(faults.len(), wrong.len());
    assert!(error.to_string().contains("address = \"host\": it has no port"), "{error}");
    assert!(cluster.is_running());
}

#[test]
fn a_runtime_that_goes_away_takes_the_node_along_and_another_may_carry_it() {
    let authority = authority();
    let first = runtime();
    let cluster = first.block_on(started(node(&authority, "a", &[])));
    let address = cluster.local_node().address;
    drop(first);
    assert_eq!(cluster.status(), Status::Stopped);
    drop(UdpSocket::bind(address).expect("the port is free"));
    assert_eq!(cluster.broadcast("routes", "x", &1).unwrap(), None);
    let (second, third) = (runtime(), runtime());
    second.block_on(async {
        assert!(cluster.start().await.unwrap().is_some());
        still_serves(&cluster, &authority, "good").await;
    });
    // A stop from another runtime; the one that carries the node runs on.
    let (end, ended) = mpsc::channel::<()>();
    let carrier = std::thread::spawn(move || {
        second.block_on(async move {
            while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
                tokio::task::yield_now().await;
            }
        });
    });
    third.block_on(cluster.stop()).unwrap();
    assert_eq!(cluster.status(), Status::Stopped);
    drop(end);
    carrier.join().unwrap();
}

#[test]
fn a_stop_ends_though_the_runtime_stands_still() {
    let (stalled, other) = (runtime(), runtime());
    let cluster = stalled.block_on(started(node(&authority(), "a", &[])));
    let stop = other.block_on(async { tokio::time::timeout(SOON, cluster.stop()).await });
    stop.expect("it ends without that runtime").unwrap();
    assert_eq!(cluster.status(), Status::Stopped);
}

#[test]
fn nodes_on_two_runtimes_are_one_cluster() {
    let authority = authority();
    let build =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (one, two) = (build(), build());
    let a = one.block_on(started(node(&authority, "a", &[])));
    let b = two.block_on(started(node(&authority, "b", &[&a])));
    runtime().block_on(async {
        until("they meet", || a.cluster_size() == 2 && b.cluster_size() == 2).await;
        // Futures of a handle may be awaited anywhere.
        let spread = a.broadcast_confirmed("routes", "x", &1, SOON).await.unwrap();
        assert_eq!(spread.reached.len(), 2);
        b.stop().await.unwrap();
        until("it has left", || a.cluster_size() == 1).await;
    });
}

#[tokio::test]
async fn a_callback_may_call_anything() {
    let authority = authority();
    let cluster = Cluster::new(node(&authority, "a", &[])).unwrap();
    let (told, heard) = mpsc::channel();
    let subscription: Arc<OnceLock<Mutex<Option<Subscription>>>> = Arc::default();
    let (own, handle) = (Arc::clone(&subscription), cluster.clone());
    let kept = cluster.subscribe(move |event: &ClusterEvent| {
        if event.kind == EventKind::ClusterStarted {
            let (told, again) = (told.clone(), handle.clone());
            handle.subscribe(move |event: &ClusterEvent| {
                told.send((event.kind, again.cluster_size())).unwrap();
            });
            assert!(handle.broadcast("routes", "x", &1).unwrap().is_some());
            runtime().block_on(handle.stop()).unwrap();
            own.wait().lock().unwrap().take().expect("once").unsubscribe();
        }
    });
    assert!(subscription.set(Mutex::new(Some(kept))).is_ok());
    // Whether the stop comes before or after the start is through is chance.
    let _ = cluster.start().await;
    until("it is stopped", || cluster.status() == Status::Stopped).await;
    let mut kinds = Vec::new();
    until("the inner one is told of both", || {
        kinds.extend(heard.try_iter().map(|(kind, _)| kind));
        kinds == [EventKind::StateChanged, EventKind::ClusterStopped]
    })
    .await;
    until("the outer one is gone", || subscription.get().unwrap().lock().unwrap().is_none()).await;
    assert!(cluster.start().await.unwrap().is_some());
    still_serves(&cluster, &authority, "good").await;
}

#[tokio::test]
async fn ten_thousand_streams_that_nobody_reads_are_told_what_they_missed() {
    let cluster = started(node(&authority(), "a", &[])).await;
    let mut streams: Vec<_> = (0..10_000).map(|_| cluster.events()).collect();
    for round in 0..1_100 {
        cluster.broadcast("routes", "x", &round).unwrap();
    }
    for number in [0, 9_999] {
        let stream = &mut streams[number];
        for _ in 0..1_024 {
            assert_eq!(stream.next().await.unwrap().kind, EventKind::StateChanged);
        }
        assert_eq!(stream.next().await.unwrap().data, EventData::Lagged { missed: 76 });
    }
    drop(cluster);
    assert!(streams[1].by_ref().take(2_000).count().await < 2_000, "it ends with the last handle");
}

/// A provider that offers what it should not, and calls back.
struct Meddler {
    cluster: Cluster,
    offers: Vec<SyncableState>,
    asked: AtomicUsize,
    applied: Mutex<Vec<String>>,
}

impl StateProvider for Meddler {
    fn provider_type(&self) -> StateType {
        "routes".into()
    }

    fn sync_state(&self) -> Vec<SyncableState> {
        self.asked.fetch_add(1, SeqCst);
        self.cluster.broadcast("calls", "sync", &self.cluster.cluster_size()).unwrap();
        self.offers.clone()
    }

    fn apply_remote_state(&self, states: Vec<SyncableState>) -> Applied {
        for state in &states {
            self.cluster.broadcast("calls", state.key.clone(), &state.version).unwrap();
        }
        // It may even try to make room for another, from within.
        assert!(self.cluster.register_provider(Arc::new(Silent)).is_err());
        let applied = Applied { applied: states.len(), ..Applied::default() };
        self.applied.lock().unwrap().extend(states.into_iter().map(|state| state.key));
        applied
    }
}

/// The second provider of a type.
struct Silent;

impl StateProvider for Silent {
    fn provider_type(&self) -> StateType {
        "routes".into()
    }

    fn sync_state(&self) -> Vec<SyncableState> {
        Vec::new()
    }

    fn apply_remote_state(&self, _: Vec<SyncableState>) -> Applied {
        Applied::default()
    }
}

#[tokio::test]
async fn a_providers_bad_offers_are_counted_and_its_good_ones_taken() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    let value = || Value::encode(&1).unwrap();
    let version = fleet[0].next_version();
    let record = |of: &str, key: &str, version| SyncableState::new(of, key, value(), version, id("n0"));
    let offers = vec![
        record("routes", "good", version),
        record("other", "of-another-type", version),
        SyncableState::new("routes", "of-another-node", value(), version, id("n1")),
        record("routes", "", version),
        record("routes", "from-the-future", u64::MAX),
        record("routes", "good-too", version),
    ];
    let provider = Arc::new(Meddler {
        cluster: fleet[0].clone(),
        offers,
        asked: AtomicUsize::new(0),
        applied: Mutex::default(),
    });
    fleet[0].register_provider(Arc::clone(&provider) as _).unwrap();
    until("the good ones arrive", || fleet[1].states(&"routes".into()).len() == 2).await;
    until("the bad ones are counted", || fleet[0].stats().providers["routes"].rejected >= 4).await;
    fleet[1].broadcast("routes", "remote", &2).unwrap();
    until("it is applied", || *provider.applied.lock().unwrap() == ["remote"]).await;
    until("what it wrote meanwhile arrives", || fleet[1].states(&"calls".into()).len() == 2).await;
    assert!(provider.asked.load(SeqCst) >= 1);
    let keys: Vec<_> = fleet[0].states(&"routes".into()).into_iter().map(|record| record.key).collect();
    assert_eq!(keys, ["good", "good-too", "remote"]);
    assert_eq!(fleet[0].stats().providers["routes"].panics, 0);
}

#[tokio::test]
async fn a_batch_beyond_the_clock_or_under_a_foreign_name_is_refused_as_a_whole() {
    let authority = authority();
    let cluster = started(node(&authority, "a", &[])).await;
    let record = |version, source: &str| {
        SyncableState::new("routes", "x", Value::encode(&1).unwrap(), version, id(source))
    };
    for (bad, says) in [
        (record(u64::MAX, "a"), "is over the bound"),
        (record(1, "b"), "names b as its source; a node writes only its own records (a)"),
    ] {
        let batch = vec![record(cluster.next_version(), "a"), bad];
        let error = cluster.broadcast_many(batch).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(cluster.states(&"routes".into()), []);
    }
    still_serves(&cluster, &authority, "good").await;
}

/// A value whose own code fails.
struct Failing(bool);

impl serde::Serialize for Failing {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        assert!(!self.0, "on purpose");
        Err(serde::ser::Error::custom("on purpose"))
    }
}

#[tokio::test]
async fn a_value_whose_own_code_fails_leaves_nothing_behind() {
    let authority = authority();
    let cluster = started(node(&authority, "a", &[])).await;
    let error = cluster.broadcast("routes", "x", &Failing(false)).unwrap_err().to_string();
    assert_eq!(error, "the value cannot be encoded as MessagePack: on purpose");
    let panicking = cluster.clone();
    let panicked = std::thread::spawn(move || panicking.broadcast("routes", "x", &Failing(true)));
    assert!(panicked.join().is_err(), "the caller's own panic is the caller's");
    assert_eq!(cluster.states(&"routes".into()), []);
    still_serves(&cluster, &authority, "good").await;
}

#[tokio::test]
async fn an_identity_that_cannot_be_taken_over_is_named_and_the_old_one_serves_on() {
    let (ours, theirs) = (authority(), authority());
    #[expect(clippy::disallowed_methods, reason = "a certificate's time is the time of people")]
    let now = SystemTime::now();
    let hour = Duration::from_secs(3_600);
    let cluster = started(node(&ours, "a", &[])).await;
    let log = Log::of(&cluster);
    let expired = ours.issue_for(&id("a"), Validity::between(now - 3 * hour, now - hour)).unwrap();
    ours.revoke(&ours.issue(&id("lost")).unwrap()).unwrap();
    let with_list = ours.issue(&id("a")).unwrap();
    ours.revoke(&ours.issue(&id("lost-too")).unwrap()).unwrap();
    cluster.reload_identity(ours.issue(&id("a")).unwrap()).unwrap();
    let mut failed = 0;
    for (identity, says) in [
        (ours.issue(&id("b")).unwrap(), "this node runs as"),
        (phalanx::Authority::generate("core").unwrap().issue(&id("a")).unwrap(), "this node runs as"),
        (expired, "it expired at"),
        (with_list, "older"),
    ] {
        let error = cluster.reload_identity(identity).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        failed += 1;
    }
    until("each is told", || {
        log.kinds().iter().filter(|kind| **kind == EventKind::IdentityReloadFailed).count() == failed
    })
    .await;
    still_serves(&cluster, &ours, "good").await;
    // Whose roots are others would be alone; that is the caller's to decide, and is taken over.
    cluster.reload_identity(theirs.issue(&id("a")).unwrap()).unwrap();
    still_serves(&cluster, &theirs, "theirs").await;
}

#[tokio::test]
async fn a_certificate_that_ends_is_told_before_and_after_until_a_new_one_is_there() {
    let ours = authority();
    #[expect(clippy::disallowed_methods, reason = "a certificate's time is the time of people")]
    let now = SystemTime::now();
    let validity = Validity::between(now - Duration::from_secs(3_600), now + Duration::from_secs(3));
    let cluster = Cluster::new(config(ours.issue_for(&id("a"), validity).unwrap(), &[])).unwrap();
    let log = Log::of(&cluster);
    cluster.start().await.unwrap();
    until("its end is near", || log.told(EventKind::IdentityExpiring, "a") == 1).await;
    until("its end has come", || log.told(EventKind::IdentityExpiring, "a") == 2).await;
    assert!(cluster.is_running(), "that it has ended is no reason to stop");
    cluster.reload_identity(ours.issue(&id("a")).unwrap()).unwrap();
    still_serves(&cluster, &ours, "good").await;
    assert_eq!(log.told(EventKind::IdentityExpiring, "a"), 2);
}

#[test]
fn no_secret_is_shown_by_anything() {
    let authority = authority();
    let dir = tempfile::tempdir().unwrap();
    let identity = authority.issue(&id("a")).unwrap();
    let paths = identity.write_to(dir.path()).unwrap();
    authority.write_to(dir.path().join("ca")).unwrap();
    let cluster = Cluster::new(config(identity.clone(), &[])).unwrap();
    let shown = format!(
        "{authority:?} {identity:?} {cluster:?} {:?} {:?} {} {}",
        cluster.config(),
        cluster.stats(),
        serde_json::to_string(&cluster.config()).unwrap(),
        serde_json::to_string(&cluster.stats()).unwrap()
    );
    for key in [paths.key, dir.path().join("ca/ca.key")] {
        let pem = std::fs::read_to_string(key).unwrap();
        let body: Vec<_> = pem.lines().filter(|line| !line.starts_with('-')).collect();
        assert!(body.len() > 1);
        for line in body {
            assert!(!shown.contains(line), "{shown}");
        }
    }
}

#[test]
fn a_file_with_the_environment_over_it_makes_a_node() {
    const FILE: &str = "TEST_CONFIG_FILE";
    if let Some(path) = std::env::var_os(FILE) {
        // The same test in a process of its own, whose environment nobody else shares.
        let cluster = Cluster::new(Config::load(path).unwrap()).unwrap();
        let config = cluster.config();
        println!(
            "tags {:?} fanout {} interval {:?}",
            config.tags, config.gossip_fanout, config.ping_interval
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    authority().issue(&id("a")).unwrap().write_to(dir.path()).unwrap();
    let path = dir.path().join("node.toml");
    let toml = "[cluster]\nenabled = true\ngossip-fanout = 3\nping-interval-ms = 900\ntags = { role = \"edge\" }\n\
                tls = { ca = \"ca.pem\", cert = \"cert.pem\", key = \"key.pem\" }\n";
    std::fs::write(&path, toml).unwrap();
    let with = |variable: &str, value: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_file_with_the_environment_over_it_makes_a_node", "--nocapture"])
            .env(FILE, &path)
            .env(variable, value)
            .output()
            .unwrap();
        (
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let (good, said) = with("PHALANX_TAGS", "role=core,rack=r1");
    assert!(
        good && said.contains(r#"tags {"rack": "r1", "role": "core"} fanout 3 interval 900ms"#),
        "{said}"
    );
    let (good, said) = with("PHALANX_GOSSIP_FANOUT", "many");
    assert!(!good && said.contains("PHALANX_GOSSIP_FANOUT"), "{said}");
    let (good, said) = with("PHALANX_PING_TIMEOUT_MS", "900");
    assert!(!good && said.contains("it is not below ping-interval-ms = 900"), "{said}");
    let (good, said) = with("PHALANX_BIND_PROT", "1");
    assert!(!good && said.contains("PHALANX_BIND_PORT"), "{said}");
}

#[tokio::test]
async fn text_of_any_kind_is_a_key() {
    let cluster = started(node(&authority(), "a", &[])).await;
    for key in ["\0", "a\nb", "ключ", "🜁", " ", "../../etc/passwd"] {
        cluster.broadcast("routes", key, key).unwrap();
        assert_eq!(text(&cluster, &"routes".into(), key).as_deref(), Some(key));
    }
    assert_eq!(cluster.get(&"nothing".into(), ""), None);
}
