//! Whatever waits ends: at once without a node, at once with a limit of zero, and as soon as the node stops.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside test functions")]

mod common;

use std::{future::Future, time::Duration};

use common::{authority, fleet, id, node, started, until};
use futures_util::{FutureExt as _, StreamExt as _};
use phalanx::{
    Cluster, Error, Options, StateChange, StateType,
    lb::{Drain, Drains},
};

/// Nobody waits that long.
const HOURS: Duration = Duration::from_secs(100_000);
const SOON: Duration = Duration::from_secs(30);

/// The result of what must not wait at all.
fn at_once<T>(waiting: impl Future<Output = T>) -> T {
    waiting.now_or_never().expect("it must not wait")
}

fn assert_nobody_waits_at(cluster: &Cluster, drains: &Drains) {
    for limit in [Duration::ZERO, HOURS, Duration::MAX] {
        let errors = [
            at_once(cluster.wait_synced(limit)).unwrap_err(),
            at_once(cluster.broadcast_confirmed("routes", "x", &1, limit)).unwrap_err(),
            at_once(cluster.broadcast_many_flushed(Vec::new(), limit)).unwrap_err(),
            at_once(drains.wait_drained("b7", limit)).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.to_string(), "the cluster is not running; call start first");
        }
    }
    let mut options = Options::default();
    for ttl in [None, Some(Duration::ZERO), Some(Duration::MAX)] {
        options.ttl = ttl;
        assert_eq!(cluster.broadcast_with("routes", "x", &1, options).unwrap(), None);
    }
}

#[tokio::test]
async fn without_a_node_nobody_waits_before_the_start_nor_after_the_stop() {
    let cluster = Cluster::new(node(&authority(), "a", &[])).unwrap();
    let drains = Drains::attach(&cluster).unwrap();
    assert_nobody_waits_at(&cluster, &drains);
    cluster.start().await.unwrap();
    cluster.stop().await.unwrap();
    assert_nobody_waits_at(&cluster, &drains);
}

#[tokio::test]
async fn a_limit_of_zero_is_answered_with_what_is_known() {
    let authority = authority();
    let fleet = fleet(&authority, 3).await;
    fleet[0].wait_synced(SOON).await.unwrap();
    assert!(fleet[0].wait_synced(Duration::ZERO).await.is_ok(), "it is synced already");
    let mut lost = node(&authority, "lost", &[]);
    lost.seeds = vec!["127.0.0.1:1".into()];
    let lost = started(lost).await;
    let late = lost.wait_synced(Duration::ZERO).await.unwrap_err();
    assert!(matches!(&late, Error::Timeout { limit, .. } if limit.is_zero()), "{late}");

    let spread = fleet[0].broadcast_confirmed("routes", "x", &1, Duration::ZERO).await.unwrap();
    assert!(spread.reached.contains(&id("n0")));
    assert_eq!(&spread.reached | &spread.missing, fleet[0].alive_nodes(), "each is in one of the two");
    assert!(fleet[0].get(&"routes".into(), "x").is_some(), "it was written all the same");
    let alone = lost.broadcast_confirmed("routes", "x", &1, Duration::ZERO).await.unwrap();
    assert!(alone.reached.iter().eq([&id("lost")]) && alone.missing.is_empty());

    let drains: Vec<_> = fleet.iter().map(|node| Drains::attach(node).unwrap()).collect();
    let wait = async || drains[0].wait_drained("b7", Duration::ZERO).await;
    let late = wait().await.unwrap_err().to_string();
    assert!(late.contains("within 0ns; no order is in force; start one"), "{late}");
    drains[0].start("b7", Drain::new("web", "alice", "")).unwrap();
    let late = wait().await.unwrap_err().to_string();
    assert!(late.contains("waiting for n0, n1, n2"), "{late}");
    until("all know", || drains.iter().all(|table| !table.is_active("b7"))).await;
    for table in &drains {
        table.complete("b7").unwrap();
    }
    until("all are done", || drains[0].status("b7").waiting_for.is_empty()).await;
    assert!(wait().await.is_ok(), "it is drained already");
}

#[tokio::test]
async fn the_longest_limit_is_no_mistake() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    assert!(fleet[1].wait_synced(Duration::MAX).await.is_ok());
    let spread = fleet[0].broadcast_confirmed("routes", "x", &1, Duration::MAX).await.unwrap();
    assert_eq!((spread.reached.len(), spread.missing.len()), (2, 0));
    assert_eq!(fleet[0].broadcast_many_flushed(Vec::new(), Duration::MAX).await.unwrap(), 0);
}

/// What waits at a node that nobody answers.
fn waiting_at(
    cluster: &Cluster,
    drains: &Drains,
) -> Vec<(&'static str, tokio::task::JoinHandle<Result<(), Error>>)> {
    let (synced, confirmed, drained) = (cluster.clone(), cluster.clone(), drains.clone());
    vec![
        ("wait_synced", tokio::spawn(async move { synced.wait_synced(HOURS).await.map(drop) })),
        (
            "broadcast_confirmed",
            tokio::spawn(
                async move { confirmed.broadcast_confirmed("routes", "x", &1, HOURS).await.map(drop) },
            ),
        ),
        ("wait_drained", tokio::spawn(async move { drained.wait_drained("b7", HOURS).await.map(drop) })),
    ]
}

#[tokio::test]
async fn whoever_waits_is_told_that_the_node_stops_and_need_not_wait_for_its_end() {
    let authority = authority();
    let seed = started(node(&authority, "seed", &[])).await;
    // One that is never synced, since there is always a peer of which it knows nothing yet.
    let mut config = node(&authority, "a", &[&seed]);
    config.seeds.push("127.0.0.1:1".into());
    let cluster = started(config).await;
    until("they meet", || cluster.cluster_size() == 2).await;
    let drains = Drains::attach(&cluster).unwrap();
    // Nobody answers any more, and nobody has found that out yet.
    drop(seed);
    let waiting = waiting_at(&cluster, &drains);
    until("it is written", || cluster.get(&"routes".into(), "x").is_some()).await;
    let stopping = cluster.clone();
    let stop = tokio::spawn(async move { stopping.stop().await });
    for (what, waiting) in waiting.into_iter().filter(|(what, _)| *what != "wait_synced") {
        let result = tokio::time::timeout(SOON, waiting).await.expect(what).unwrap();
        assert!(matches!(result, Err(Error::NotRunning)), "{what}: {result:?}");
        assert!(!stop.is_finished(), "{what} waited for the end of a stop that nobody answers");
    }
    stop.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_sync_that_is_waited_for_ends_with_the_node() {
    let authority = authority();
    let mut config = node(&authority, "a", &[]);
    config.seeds = vec!["127.0.0.1:1".into()];
    let cluster = started(config).await;
    let waiting = cluster.clone();
    let waiting = tokio::spawn(async move { waiting.wait_synced(HOURS).await });
    tokio::task::yield_now().await;
    cluster.stop().await.unwrap();
    let result = tokio::time::timeout(SOON, waiting).await.expect("it is told").unwrap();
    assert!(matches!(result, Err(Error::NotRunning)), "{result:?}");
}

#[tokio::test]
async fn a_drain_that_is_waited_for_ends_with_the_last_handle() {
    let cluster = started(node(&authority(), "a", &[])).await;
    let drains = Drains::attach(&cluster).unwrap();
    drains.start("b7", Drain::new("web", "alice", "")).unwrap();
    let waiting = drains.clone();
    let waiting = tokio::spawn(async move { waiting.wait_drained("b7", HOURS).await });
    tokio::task::yield_now().await;
    drop(cluster);
    let result = tokio::time::timeout(SOON, waiting).await.expect("it is told").unwrap();
    assert!(matches!(result, Err(Error::NotRunning)), "{result:?}");
}

#[tokio::test]
async fn a_record_that_is_to_live_for_no_time_is_told_and_ends_everywhere() {
    let authority = authority();
    let fleet = fleet(&authority, 2).await;
    let of = StateType::shared("routes");
    let mut changes = fleet[0].watch(&of);
    let mut options = Options::default();
    options.ttl = Some(Duration::ZERO);
    let written = fleet[0].broadcast_with(&of, "x", &1, options).unwrap().unwrap();
    let told = [changes.next().await.unwrap(), changes.next().await.unwrap()];
    assert!(matches!(&told[0], StateChange::Put { new, .. } if *new == written), "{told:?}");
    assert!(matches!(&told[1], StateChange::Expired { old } if *old == written), "{told:?}");
    // What comes after it has come, and it has not stayed.
    options.ttl = Some(Duration::MAX);
    fleet[0].broadcast_with(&of, "y", &1, options).unwrap();
    until("the next one arrives", || fleet[1].get(&of, "y").is_some()).await;
    until("it has ended", || fleet.iter().all(|node| node.get(&of, "x").is_none())).await;
    assert!(fleet.iter().all(|node| node.get(&of, "y").is_some()));
}
