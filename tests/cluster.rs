//! The life of a cluster on real sockets: starts and stops in every order, members that come and go, state
//! that follows them, and user code that misbehaves.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, UdpSocket},
    sync::{Mutex, mpsc},
    time::Duration,
};

use common::{Log, authority, fleet, id, node, started, still_serves, text, until};
use futures_util::{StreamExt as _, future::FutureExt as _};
use phalanx::{
    Cluster, ClusterEvent, Config, Error, EventData, EventKind, NodeStatus, StateChange, StateType, Status,
    SyncableState, Value,
};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_four_statuses_follow_one_another() {
    let authority = authority();
    let mut config = node(&authority, "a", &[]);
    // A seed that never answers keeps the start looking for a while.
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    config.seeds = vec![silent.local_addr().unwrap().to_string()];
    let cluster = Cluster::new(config).unwrap();
    assert_eq!(cluster.status(), Status::Stopped);
    let starting = cluster.clone();
    let start = tokio::spawn(async move { starting.start().await });
    until("it starts", || cluster.status() == Status::Starting).await;
    assert_eq!(cluster.start().await.unwrap(), None, "it is being started already");
    assert!(start.await.unwrap().unwrap().is_some(), "a silent seed is no reason not to serve");
    assert_eq!(cluster.status(), Status::Running);
    let stopping = cluster.clone();
    let stop = tokio::spawn(async move { stopping.stop().await });
    until("it stops", || cluster.status() != Status::Running).await;
    stop.await.unwrap().unwrap();
    assert_eq!(cluster.status(), Status::Stopped);
}

#[tokio::test]
async fn a_stop_ends_a_start_that_is_under_way() {
    let authority = authority();
    let mut config = node(&authority, "a", &[]);
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    config.seeds = vec![silent.local_addr().unwrap().to_string()];
    let cluster = Cluster::new(config).unwrap();
    let starting = cluster.clone();
    let start = tokio::spawn(async move { starting.start().await });
    until("it starts", || cluster.status() == Status::Starting).await;
    cluster.stop().await.unwrap();
    let error = start.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the cluster was stopped while it was starting");
    assert_eq!(cluster.status(), Status::Stopped);
    assert!(cluster.start().await.unwrap().is_some(), "it can be started again");
}

#[tokio::test]
async fn a_cluster_that_does_not_run_answers_all_the_same() {
    let authority = authority();
    let mut config = node(&authority, "a", &[]);
    config.enabled = false;
    let cluster = Cluster::new(config).unwrap();
    assert_eq!(cluster.start().await.unwrap(), None);
    cluster.stop().await.unwrap();
    assert_eq!(cluster.broadcast("routes", "x", &1).unwrap(), None);
    assert_eq!(cluster.remove("routes", "x").unwrap(), None);
    assert_eq!(cluster.broadcast_many(Vec::new()).unwrap(), 0);
    assert!(cluster.alive_nodes().is_empty() && cluster.all_nodes().is_empty());
    assert_eq!((cluster.cluster_size(), cluster.next_version()), (0, 0));
    assert!(cluster.get(&"routes".into(), "x").is_none() && cluster.states(&"routes".into()).is_empty());
    assert!(cluster.explain(&id("a")).is_none());
    assert_eq!(cluster.stats().status, Status::Stopped);
    for error in [
        cluster.wait_synced(SOON).await.unwrap_err(),
        cluster.join(&["127.0.0.1:1".into()]).await.unwrap_err(),
        cluster.broadcast_confirmed("routes", "x", &1, SOON).await.unwrap_err(),
        cluster.forget(&id("b")).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "the cluster is not running; call start first");
    }
}

#[test]
fn a_start_without_a_runtime_is_an_error_that_says_so() {
    let cluster = Cluster::new(node(&authority(), "a", &[])).unwrap();
    // Polled by hand, with no runtime around it.
    let error = cluster.start().now_or_never().expect("it ends at once").unwrap_err();
    assert!(matches!(error, Error::NoRuntime));
    assert!(error.to_string().contains("outside a tokio runtime"), "{error}");
    assert_eq!(cluster.status(), Status::Stopped);
}

#[tokio::test]
async fn a_port_in_use_is_named_and_can_be_tried_again() {
    let authority = authority();
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let mut config = node(&authority, "a", &[]);
    config.bind_port = address.port();
    let cluster = Cluster::new(config).unwrap();
    let error = cluster.start().await.unwrap_err();
    assert!(matches!(error, Error::Bind { address: told, .. } if told == address), "{error}");
    assert!(error.to_string().starts_with(&format!("cannot listen on {address}: ")), "{error}");
    assert_eq!(cluster.status(), Status::Stopped);
    drop(taken);
    assert_eq!(cluster.start().await.unwrap().unwrap().address, address);
}

#[tokio::test]
async fn the_last_handle_dropped_closes_the_socket_and_is_a_crash_to_the_peers() {
    let authority = authority();
    let mut fleet = fleet(&authority, 3).await;
    let log = Log::of(&fleet[0]);
    let gone = fleet.remove(2);
    let address = gone.local_node().address;
    let twin = gone.clone();
    drop(gone);
    assert!(twin.is_running(), "a handle is left");
    drop(twin);
    until("the port is free", || UdpSocket::bind(address).is_ok()).await;
    until("it is dead", || fleet.iter().all(|node| node.is_dead(&id("n2")))).await;
    until("the death is told", || log.told(EventKind::NodeDead, "n2") == 1).await;
    assert_eq!(log.told(EventKind::NodeLeave, "n2"), 0);
}

#[tokio::test]
async fn a_node_joins_when_its_seed_comes_up_later() {
    let authority = authority();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    let mut early = node(&authority, "early", &[]);
    early.seeds = vec![address.to_string()];
    let early = started(early).await;
    drop(socket);
    let mut late = node(&authority, "late", &[]);
    late.bind_port = address.port();
    let late = started(late).await;
    until("they meet", || early.cluster_size() == 2 && late.cluster_size() == 2).await;
    assert_eq!(early.wait_synced(SOON).await.unwrap().peers, 1);
}

#[tokio::test]
async fn the_first_node_of_a_cluster_is_synced_and_one_without_its_seeds_is_not() {
    let authority = authority();
    let first = started(node(&authority, "a", &[])).await;
    assert_eq!(first.wait_synced(SOON).await.unwrap().peers, 0);
    let mut alone = node(&authority, "b", &[]);
    alone.seeds = vec!["127.0.0.1:1".into()];
    let alone = started(alone).await;
    let error = alone.wait_synced(Duration::from_millis(50)).await.unwrap_err().to_string();
    assert!(error.contains("the first sync with peers did not happen within 50ms"), "{error}");
    assert_eq!(alone.join(&[first.local_node().address.to_string()]).await.unwrap(), 1);
    assert_eq!(alone.wait_synced(SOON).await.unwrap().peers, 1);
}

#[tokio::test]
async fn a_leave_is_a_leave_to_all_and_a_restart_is_a_new_life() {
    let authority = authority();
    let fleet = fleet(&authority, 3).await;
    let logs: Vec<_> = fleet[..2].iter().map(Log::of).collect();
    let before = fleet[2].local_node().epoch;
    fleet[2].stop().await.unwrap();
    let left = |node: &Cluster| node.all_nodes()[&id("n2")].status == NodeStatus::Left;
    until("it has left", || fleet[..2].iter().all(left)).await;
    fleet[2].start().await.unwrap().unwrap();
    until("it is back", || fleet.iter().all(|node| node.cluster_size() == 3)).await;
    assert!(fleet[2].local_node().epoch > before);
    for log in &logs {
        until("both are told", || {
            (log.told(EventKind::NodeLeave, "n2"), log.told(EventKind::NodeJoin, "n2")) == (1, 1)
        })
        .await;
        assert_eq!((log.told(EventKind::NodeSuspect, "n2"), log.told(EventKind::NodeDead, "n2")), (0, 0));
    }
}

#[tokio::test]
async fn a_crash_takes_opinions_along_and_leaves_orders() {
    let authority = authority();
    let mut fleet = fleet(&authority, 3).await;
    let crashing = fleet.remove(2);
    crashing.broadcast(StateType::HEALTH, "x", "up").unwrap();
    crashing.broadcast(StateType::DRAIN, "x", "draining").unwrap();
    until("both have arrived", || {
        fleet.iter().all(|node| {
            node.states(&StateType::HEALTH).len() == 1 && text(node, &StateType::DRAIN, "x").is_some()
        })
    })
    .await;
    drop(crashing);
    until("it is suspected", || fleet[0].is_suspected(&id("n2")) || fleet[0].is_dead(&id("n2"))).await;
    if let Some(why) = fleet[0].explain(&id("n2")).filter(|_| fleet[0].is_suspected(&id("n2"))) {
        assert!(!why.member.accusers.is_empty(), "{why}");
    }
    until("it is dead", || fleet.iter().all(|node| node.is_dead(&id("n2")))).await;
    for node in &fleet {
        assert_eq!(node.states(&StateType::HEALTH), []);
        assert_eq!(text(node, &StateType::DRAIN, "x").as_deref(), Some("draining"));
    }
    let why = fleet[0].explain(&id("n2")).unwrap().to_string();
    assert!(why.contains("is dead") && why.contains("accused by"), "{why}");
    // The same certificate, another process: it is back at once, and has what it missed.
    fleet[0].broadcast("routes", "missed", "this").unwrap();
    let back = started(node(&authority, "n2", &[&fleet[1]])).await;
    until("it is back", || fleet.iter().all(|node| node.is_alive(&id("n2")))).await;
    until("it has what it missed", || text(&back, &"routes".into(), "missed").is_some()).await;
    assert_eq!(text(&back, &StateType::DRAIN, "x").as_deref(), Some("draining"));
}

#[tokio::test]
async fn a_dead_node_can_be_forgotten_and_a_live_one_not() {
    let authority = authority();
    let mut fleet = fleet(&authority, 3).await;
    let error = fleet[0].forget(&id("n1")).unwrap_err().to_string();
    assert_eq!(error, "node n1 is alive; only dead and left nodes can be forgotten");
    drop(fleet.remove(2));
    until("it is dead", || fleet.iter().all(|node| node.is_dead(&id("n2")))).await;
    fleet[0].forget(&id("n2")).unwrap();
    until("all have forgotten it", || fleet.iter().all(|node| !node.all_nodes().contains_key(&id("n2"))))
        .await;
}

#[tokio::test]
async fn tags_and_zone_are_seen_by_all() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    let log = Log::of(&fleet[0]);
    fleet[1].set_tags(BTreeMap::from([("role".into(), "edge".into())])).unwrap();
    until("the tags are seen", || fleet[0].all_nodes()[&id("n1")].tags.contains_key("role")).await;
    until("it is told", || log.told(EventKind::NodeUpdate, "n1") == 1).await;
    let many = (0..65).map(|number| (number.to_string(), String::new())).collect();
    let error = fleet[1].set_tags(many).unwrap_err().to_string();
    assert_eq!(error, "number of tags: 65 is over the limit of 64");
    let mut zoned = node(&authority, "z", &[&fleet[0]]);
    zoned.zone = Some("fra".into());
    let _zoned = started(zoned).await;
    until("the zone is seen", || {
        fleet[1].all_nodes().get(&id("z")).is_some_and(|node| node.zone.as_deref() == Some("fra"))
    })
    .await;
}

#[tokio::test]
async fn a_confirmed_broadcast_names_who_has_it() {
    let authority = authority();
    let fleet = fleet(&authority, 3).await;
    let spread = fleet[0].broadcast_confirmed("routes", "x", &1, SOON).await.unwrap();
    assert_eq!(spread.reached, [id("n0"), id("n1"), id("n2")].into());
    assert!(spread.missing.is_empty());
    assert!(fleet[1..].iter().all(|node| node.get(&"routes".into(), "x").is_some()));
}

#[tokio::test]
async fn a_type_that_is_switched_off_disturbs_nobody() {
    let authority = authority();
    let mut quiet = node(&authority, "quiet", &[]);
    quiet.sync_health = false;
    let quiet = started(quiet).await;
    let other = started(node(&authority, "other", &[&quiet])).await;
    let third = started(node(&authority, "third", &[&quiet])).await;
    until("all see all", || [&quiet, &other, &third].iter().all(|node| node.cluster_size() == 3)).await;
    let error = quiet.broadcast(StateType::HEALTH, "x", "up").unwrap_err().to_string();
    assert_eq!(error, "state type health is switched off on this node by sync-health = false");
    other.broadcast(StateType::HEALTH, "x", "up").unwrap();
    let spread = other.broadcast_confirmed(StateType::DRAIN, "y", "draining", SOON).await.unwrap();
    assert!(spread.missing.is_empty());
    until("those who keep it have it", || third.states(&StateType::HEALTH).len() == 1).await;
    assert_eq!(quiet.states(&StateType::HEALTH), []);
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_with_its_reason_and_nothing_is_lost() {
    let authority = authority();
    let cluster = started(node(&authority, "a", &[])).await;
    let long = "k".repeat(513);
    let deep = (0..40).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
    for (result, says) in [
        (cluster.broadcast("routes", "", &1), "key of 0 bytes: a key has 1 to 512 bytes"),
        (cluster.broadcast("routes", long, &1), "key of 513 bytes"),
        (cluster.broadcast("", "x", &1), "state type \"\": it is empty"),
        (cluster.broadcast("t".repeat(65), "x", &1), "it has 65 bytes"),
        (cluster.broadcast("a\tb", "x", &1), "control character"),
        (cluster.broadcast("routes", "x", &"v".repeat(300_000)), "the limit is 262144; split it"),
        (cluster.broadcast("routes", "x", &deep), "nests deeper than 32 levels"),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(cluster.states(&"routes".into()), []);
    still_serves(&cluster, &authority, "good").await;
}

#[tokio::test]
async fn handles_work_on_any_thread_without_a_runtime() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    let (here, there) = (fleet[0].clone(), fleet[1].clone());
    let written = std::thread::spawn(move || {
        here.subscribe(|_: &ClusterEvent| ());
        assert_eq!(here.alive_nodes().len(), 2);
        here.broadcast("routes", "x", &1).unwrap().unwrap()
    });
    let version = written.join().unwrap().version;
    until("it arrives", || there.get(&"routes".into(), "x").is_some_and(|record| record.version == version))
        .await;
}

#[tokio::test]
async fn a_subscriber_that_panics_or_blocks_harms_no_other() {
    let authority = authority();
    let cluster = started(node(&authority, "a", &[])).await;
    cluster.subscribe(|_: &ClusterEvent| panic!("on purpose"));
    let (open, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    cluster.subscribe(move |_: &ClusterEvent| _ = gate.lock().unwrap().recv());
    let log = Log::of(&cluster);
    for round in 0..3 {
        cluster.broadcast("routes", "x", &round).unwrap();
    }
    until("the good one is told", || log.kinds().len() == 3).await;
    until("the panics are counted", || cluster.stats().subscriber_panics == 3).await;
    drop(open);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_is_told_how_much_it_missed_and_goes_on() {
    let authority = authority();
    let cluster = started(node(&authority, "a", &[])).await;
    let mut events = cluster.events();
    for round in 0..1_500 {
        cluster.broadcast("routes", "x", &round).unwrap();
    }
    let (mut heard, mut missed) = (0, 0);
    while heard + missed < 1_500 {
        let event = events.next().await.expect("the stream goes on");
        match event.data {
            EventData::Lagged { missed: so_many } => missed += so_many,
            _ => heard += 1,
        }
    }
    assert_eq!((heard, missed), (1_024, 476));
    cluster.broadcast("routes", "y", &1).unwrap();
    assert_eq!(events.next().await.unwrap().kind, EventKind::StateChanged);
}

#[tokio::test]
async fn a_watcher_sees_what_is_there_then_every_change() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    fleet[1].broadcast("routes", "x", &1).unwrap();
    until("it is there", || fleet[0].get(&"routes".into(), "x").is_some()).await;
    let mut changes = fleet[0].watch(&"routes".into());
    fleet[1].broadcast("routes", "x", &2).unwrap();
    until("it has changed", || {
        fleet[0].get(&"routes".into(), "x").is_some_and(|r| r.value.decode::<u8>().unwrap() == 2)
    })
    .await;
    fleet[0].remove("routes", "x").unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(match changes.next().await.unwrap() {
            StateChange::Put { new, old } => {
                (new.value.decode::<u8>().unwrap(), old.map(|old| old.value.decode::<u8>().unwrap()))
            }
            StateChange::Removed { old } => (0, Some(old.value.decode().unwrap())),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, [(1, None), (2, Some(1)), (0, Some(2))]);
}

#[test]
fn every_fault_of_a_configuration_is_told_at_once() {
    let mut config = Config::default();
    config.enabled = true;
    config.node_id = "no/id".into();
    config.seeds = vec!["nowhere".into()];
    config.gossip_fanout = 0;
    config.ping_timeout = Duration::from_secs(9);
    let Err(Error::Config { faults }) = Cluster::new(config) else { panic!("it is full of faults") };
    let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
    for key in ["node-id", "seeds", "gossip-fanout", "ping-timeout-ms"] {
        assert!(keys.contains(&key), "{keys:?}");
    }
    for fault in &faults {
        assert!(!fault.fault.is_empty() && !fault.remedy.is_empty(), "{fault}");
    }
    let error = Error::Config { faults }.to_string();
    assert!(error.starts_with("the configuration has ") && error.contains("gossip-fanout = 0: "), "{error}");
}

#[tokio::test]
async fn a_file_makes_a_node() {
    let dir = tempfile::tempdir().unwrap();
    authority().issue(&id("from-file")).unwrap().write_to(dir.path()).unwrap();
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let file =
        |part: &str| names.iter().find(|name| name.contains(part)).unwrap_or_else(|| panic!("{names:?}"));
    let toml = format!(
        "[cluster]\nenabled = true\nbind-address = \"127.0.0.1\"\nbind-port = 0\ntags = {{ role = \"edge\" }}\n\
         tls.ca = \"{}\"\ntls.cert = \"{}\"\ntls.key = \"{}\"\n",
        file("ca"),
        file("cert"),
        file("key")
    );
    let path = dir.path().join("node.toml");
    std::fs::write(&path, &toml).unwrap();
    let cluster = started(Config::load(&path).unwrap()).await;
    assert_eq!((cluster.node_id(), &cluster.local_node().tags["role"][..]), (id("from-file"), "edge"));
    std::fs::write(&path, toml.replace("bind-port", "bind-prot")).unwrap();
    let error = Config::load(&path).unwrap_err().to_string();
    assert!(error.contains("bind-prot") && error.contains("bind-port"), "{error}");
}

#[tokio::test]
async fn a_publisher_that_waits_for_room_writes_more_than_fits_at_once() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    let of = StateType::shared("blobs");
    let records = |count: usize| -> Vec<SyncableState> {
        let value = Value::encode(&"x".repeat(8_000)).unwrap();
        let record = |number: usize| {
            let version = fleet[0].next_version();
            SyncableState::new(of.clone(), number.to_string(), value.clone(), version, id("n0"))
        };
        (0..count).map(record).collect()
    };
    // 32 MB, where 16 MiB may wait: all at once is refused by and by.
    let all = records(4_000);
    let error = fleet[0].broadcast_many_flushed(all.clone(), Duration::ZERO).await.unwrap_err().to_string();
    assert!(error.contains("4000 records") && error.contains("were taken"), "{error}");
    let taken = fleet[0].broadcast_many_flushed(records(4_000), Duration::from_secs(60)).await.unwrap();
    assert_eq!(taken, 4_000);
    until("all of it has arrived", || fleet[1].states(&of).len() == 4_000).await;
    let foreign = SyncableState::new(of.clone(), "x", Value::encode(&1).unwrap(), 1, id("n1"));
    let refused = fleet[0].broadcast_many_flushed(vec![foreign], Duration::from_secs(1)).await;
    assert!(matches!(refused, Err(Error::ForeignSource { .. })));
    fleet[0].stop().await.unwrap();
    let stopped = fleet[0].broadcast_many_flushed(all, Duration::from_secs(1)).await;
    assert!(matches!(stopped, Err(Error::NotRunning)));
}
