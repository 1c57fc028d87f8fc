//! Records with their writers' signatures on real sockets: a new certificate, a revoked one, and a node that was
//! not told to sign.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::time::Duration;

use common::{Log, authority, config, fleet_of, id, node, started, text, until};
use phalanx::{Cluster, Config, EventKind, Identity, Options, Shown, Sign, StateType};

fn routes() -> StateType {
    StateType::shared("routes")
}

fn signing(mut config: Config) -> Config {
    config.sign = Sign::All;
    config
}

fn is_clean(node: &Cluster) -> bool {
    let counters = node.stats().gossip.counters;
    counters.records_forged + counters.records_unsigned == 0
}

#[tokio::test]
async fn after_a_renewal_records_are_signed_anew_and_a_joiner_takes_them_from_others() {
    let ours = authority();
    let fleet = fleet_of(&ours, 3, signing).await;
    let logs: Vec<_> = fleet.iter().map(Log::of).collect();
    for number in 0..700 {
        fleet[0].broadcast(routes(), format!("k{number}"), &number.to_string()).unwrap();
    }
    fleet[0].remove(routes(), "k3").unwrap();
    let mut lease = Options::default();
    lease.ttl = Some(Duration::from_secs(600));
    fleet[0].broadcast_with(routes(), "lease", &"held", lease).unwrap();
    let has_all = |node: &Cluster| {
        node.states(&routes()).len() == 700 && text(node, &routes(), "lease").as_deref() == Some("held")
    };
    until("all have all", || fleet.iter().all(has_all)).await;
    let version = fleet[2].get(&routes(), "k5").unwrap().version;
    let signed = fleet[0].stats().gossip.counters.records_signed;
    fleet[0].reload_identity(ours.renew(&id("n0")).unwrap()).unwrap();
    // The live ones, and the mark of the removed one.
    until("each is signed anew", || fleet[0].stats().gossip.counters.records_signed >= signed + 701).await;
    fleet[0].broadcast(routes(), "after", &"it").unwrap();
    until("new ones are taken", || {
        fleet.iter().all(|node| text(node, &routes(), "after").as_deref() == Some("it"))
    })
    .await;
    assert_eq!(fleet[2].get(&routes(), "k5").unwrap().version, version);
    // Its writer is gone: others tell, and prove it.
    fleet[0].stop().await.unwrap();
    let late = started(signing(node(&ours, "late", &[&fleet[1]]))).await;
    until("the joiner has all", || late.states(&routes()).len() == 701).await;
    assert!(text(&late, &routes(), "k3").is_none());
    assert!(fleet.iter().chain([&late]).all(is_clean));
    assert!(logs.iter().all(|log| log.kinds().iter().all(|kind| *kind != EventKind::RecordForged)));
}

#[tokio::test]
async fn what_a_revoked_node_wrote_is_the_same_for_who_comes_later() {
    let ours = authority();
    let mut fleet = fleet_of(&ours, 2, signing).await;
    let lost = ours.issue(&id("lost")).unwrap();
    let gone = started(signing(config(lost.clone(), &[&fleet[0]]))).await;
    gone.broadcast(routes(), "x", &"of the lost").unwrap();
    let has = |node: &Cluster| text(node, &routes(), "x").as_deref() == Some("of the lost");
    until("all have it", || fleet.iter().all(has)).await;
    ours.revoke(&lost).unwrap();
    let listed = |name: &str| ours.issue(&id(name)).unwrap().with_crl_pem(&ours.crl_pem()).unwrap();
    fleet[0].reload_identity(listed("n0")).unwrap();
    until("it is out", || fleet.iter().all(|node| !node.is_alive(&id("lost")))).await;
    let late = started(signing(config(listed("late"), &[&fleet[0]]))).await;
    until("the joiner has it too", || has(&late)).await;
    fleet.push(late);
    assert!(fleet.iter().all(is_clean));
}

#[tokio::test]
async fn a_node_that_was_not_told_to_sign_is_a_member_and_its_records_are_not_taken() {
    let ours = authority();
    let fleet = fleet_of(&ours, 2, signing).await;
    let plain = started(node(&ours, "plain", &[&fleet[0]])).await;
    until("it is a member", || fleet.iter().all(|node| node.cluster_size() == 3)).await;
    plain.broadcast(routes(), "x", &"unsigned").unwrap();
    until("it is refused", || fleet.iter().any(|node| node.stats().gossip.counters.records_unsigned > 0))
        .await;
    fleet[1].broadcast(routes(), "y", &"signed").unwrap();
    until("it takes theirs", || text(&plain, &routes(), "y").as_deref() == Some("signed")).await;
    assert!(fleet.iter().all(|node| text(node, &routes(), "x").is_none()));
}

/// The same certificate beside other roots.
fn beside(identity: &Identity, roots: &[u8]) -> Identity {
    let dir = tempfile::tempdir().unwrap();
    let paths = identity.write_to(dir.path()).unwrap();
    let [cert, key] = [paths.cert, paths.key].map(|path| std::fs::read(path).unwrap());
    Identity::from_pem(roots, &cert, &key).unwrap()
}

#[tokio::test]
async fn who_trusts_only_the_new_root_takes_what_was_written_under_the_old_one() {
    let mut ours = authority();
    let old = ["n0", "n1"].map(|name| ours.issue(&id(name)).unwrap());
    let first = started(signing(config(old[0].clone(), &[]))).await;
    let fleet = [started(signing(config(old[1].clone(), &[&first]))).await, first];
    let [other, writer] = &fleet;
    for number in 0..100 {
        writer.broadcast(routes(), format!("k{number}"), &number.to_string()).unwrap();
    }
    until("both have all", || other.states(&routes()).len() == 100).await;
    ours.begin_rotation().unwrap();
    for (node, identity) in fleet.iter().zip(old.iter().rev()) {
        node.reload_identity(beside(identity, &ours.ca_pem())).unwrap();
    }
    let known = other.stats().gossip.counters.records_known;
    for (node, identity) in fleet.iter().zip(old.iter().rev()) {
        node.reload_identity(ours.renew(&node.node_id()).unwrap()).unwrap();
        ours.revoke(identity).unwrap();
    }
    until("all were told anew", || other.stats().gossip.counters.records_known >= known + 100).await;
    ours.finish_rotation(&Shown::default()).unwrap();
    writer.stop().await.unwrap();
    other.reload_identity(ours.renew(&other.node_id()).unwrap()).unwrap();
    let late = started(signing(node(&ours, "late", &[other]))).await;
    until("the joiner has all", || late.states(&routes()).len() == 100).await;
    assert!(is_clean(&late) && is_clean(other));
}
