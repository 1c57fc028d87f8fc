//! Who is refused, at the door and at home: the text, the counter, and that the cluster goes on serving.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::time::{Duration, SystemTime};

use common::{Log, authority, config, fleet, id, node, started, still_serves, text, until};
use phalanx::{Authority, Cluster, Error, EventKind, Validity};

/// The stranger dials the cluster; nobody lets it in, and both count the refusal under that name.
async fn is_refused(stranger: &Cluster, member: &Cluster, name: &str) {
    let address = member.local_node().address.to_string();
    assert_eq!(stranger.join(&[address]).await.unwrap(), 0);
    let counts = |cluster: &Cluster| cluster.stats().net.refused.get(name).copied().unwrap_or(0);
    until("both have counted the refusal", || counts(member) >= 1 && counts(stranger) >= 1).await;
    assert!(!member.all_nodes().contains_key(&stranger.node_id()));
    assert_eq!(stranger.cluster_size(), 1);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (ours, theirs) = (authority(), Authority::generate("test").unwrap());
    let member = started(node(&ours, "a", &[])).await;
    // It trusts both, or it would turn away by itself.
    let both = [ours.ca_pem(), theirs.ca_pem()].concat();
    let dir = tempfile::tempdir().unwrap();
    theirs.issue(&id("mallory")).unwrap().write_to(dir.path()).unwrap();
    let read = |part: &str| {
        let found = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let path = found.into_iter().find(|path| path.to_string_lossy().contains(part)).unwrap();
        std::fs::read(path).unwrap()
    };
    let identity = phalanx::Identity::from_pem(both.as_ref(), &read("cert"), &read("key")).unwrap();
    let stranger = started(config(identity, &[])).await;
    let name = "unknown_ca";
    let address = member.local_node().address.to_string();
    assert_eq!(stranger.join(&[address]).await.unwrap(), 0);
    // Two authorities of one name show as a bad signature.
    until("it is counted", || {
        let refused = member.stats().net.refused;
        refused.contains_key(name) || refused.contains_key("decrypt_error")
    })
    .await;
    assert!(!member.all_nodes().contains_key(&id("mallory")));
    still_serves(&member, &ours, "good").await;
}

#[tokio::test]
async fn another_cluster_is_refused_by_its_own_authority_and_by_ours() {
    let ours = authority();
    let member = started(node(&ours, "a", &[])).await;
    let core = Authority::generate("core").unwrap();
    let stranger = started(node(&core, "b", &[])).await;
    is_refused(&stranger, &member, "unknown_ca").await;
    still_serves(&member, &ours, "good").await;
}

#[test]
fn a_node_may_not_take_a_name_that_its_certificate_does_not_give_it() {
    let mut config = node(&authority(), "guest", &[]);
    config.node_id = "admin".into();
    let error = Cluster::new(config).unwrap_err().to_string();
    assert!(error.contains("node-id = \"admin\": the certificate names guest"), "{error}");
}

#[tokio::test]
async fn a_certificate_outside_its_time_is_refused_before_it_is_used() {
    let ours = authority();
    #[expect(clippy::disallowed_methods, reason = "a certificate's time is the time of people")]
    let now = SystemTime::now();
    let hour = Duration::from_secs(3_600);
    for (from, to, says) in
        [(now - 3 * hour, now - hour, "expired"), (now + hour, now + 3 * hour, "valid from")]
    {
        let identity = ours.issue_for(&id("b"), Validity::between(from, to)).unwrap();
        let result = match Cluster::new(config(identity, &[])) {
            Ok(cluster) => cluster.start().await.map(|_| ()),
            Err(error) => Err(error),
        };
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_second_process_under_a_living_nodes_id_does_not_start() {
    let ours = authority();
    let fleet = fleet(&ours, 2).await;
    let logs: Vec<_> = fleet.iter().map(Log::of).collect();
    let incumbent = fleet[1].local_node();
    let twin = Cluster::new(node(&ours, "n1", &[&fleet[0]])).unwrap();
    let error = twin.start().await.unwrap_err();
    assert!(matches!(&error, Error::DuplicateNodeId { node_id, .. } if *node_id == id("n1")), "{error}");
    assert!(error.to_string().contains(&incumbent.address.to_string()), "{error}");
    assert!(!twin.is_running());
    until("it is told", || logs[0].told(EventKind::NodeConflict, "n1") >= 1).await;
    assert_eq!(fleet[0].all_nodes()[&id("n1")].epoch, incumbent.epoch, "the incumbent stays");
    assert!(fleet.iter().all(|node| node.cluster_size() == 2));
    fleet[1].stop().await.unwrap();
    assert!(twin.start().await.unwrap().is_some(), "once the incumbent is gone there is room");
    until("the other has its place", || fleet[0].is_alive(&id("n1"))).await;
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_its_connections_end() {
    let ours = authority();
    let fleet = fleet(&ours, 2).await;
    let bad = ours.issue(&id("bad")).unwrap();
    let revoked = started(config(bad.clone(), &[&fleet[0]])).await;
    until("it is in", || fleet.iter().all(|node| node.is_alive(&id("bad")))).await;
    ours.revoke(&bad).unwrap();
    for (node, name) in fleet.iter().zip(["n0", "n1"]) {
        let identity = ours.issue(&id(name)).unwrap().with_crl_pem(&ours.crl_pem()).unwrap();
        node.reload_identity(identity).unwrap();
    }
    until("it is out", || fleet.iter().all(|node| !node.is_alive(&id("bad")))).await;
    assert_eq!(revoked.join(&[fleet[0].local_node().address.to_string()]).await.unwrap(), 0);
    assert!(fleet[0].is_alive(&id("n1")) && fleet[1].is_alive(&id("n0")));
    fleet[0].broadcast("routes", "x", "y").unwrap();
    until("the others go on", || text(&fleet[1], &"routes".into(), "x").is_some()).await;
}

#[tokio::test]
async fn an_identity_of_another_node_cannot_be_taken_over_while_running() {
    let ours = authority();
    let cluster = started(node(&ours, "a", &[])).await;
    let error = cluster.reload_identity(ours.issue(&id("b")).unwrap()).unwrap_err().to_string();
    assert!(error.contains('a') && error.contains('b'), "{error}");
    cluster.reload_identity(ours.issue(&id("a")).unwrap()).unwrap();
    still_serves(&cluster, &ours, "good").await;
}

#[tokio::test]
async fn a_reload_without_a_list_makes_no_revoked_certificate_valid_again() {
    let ours = authority();
    let without_list = ours.issue(&id("a")).unwrap();
    let cluster = started(node(&ours, "a", &[])).await;
    let lost = ours.issue(&id("lost")).unwrap();
    ours.revoke(&lost).unwrap();
    cluster.reload_identity(ours.issue(&id("a")).unwrap()).unwrap();
    cluster.reload_identity(without_list).unwrap();
    let thief = started(config(lost, &[])).await;
    is_refused(&thief, &cluster, "certificate_revoked").await;
    still_serves(&cluster, &ours, "good").await;
}
