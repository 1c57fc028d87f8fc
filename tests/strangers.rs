//! Peers that `Authority` would never have made: bare QUIC clients and listeners with a certificate that is
//! wrong in one way. For each: the code it is told, the counter, the log, and that the cluster goes on
//! serving.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;
#[path = "common/lines.rs"]
mod lines;
#[path = "common/mint.rs"]
mod mint;

use common::{config, started, text, until};
use lines::Lines;
use mint::{Certificate, Mint, knock, listen, uri};
use phalanx::{Cluster, Config, Error, Identity};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose as Eku, date_time_ymd};

const NODE: &str = "spiffe://test/node/mallory";
const ALPN: &str = "phalanx/1";

fn refusals(cluster: &Cluster, cause: &str) -> u64 {
    cluster.stats().net.refused.get(cause).copied().unwrap_or(0)
}

/// One more node of the same mint joins, and what it writes arrives.
async fn still_serves(member: &Cluster, mint: &Mint) {
    let good = started(config(mint.identity("spiffe://test/node/good"), &[member])).await;
    good.broadcast("proof", "good", "yes").unwrap();
    until("the cluster goes on serving", || text(member, &"proof".into(), "good").is_some()).await;
    good.stop().await.unwrap();
}

/// In which direction a fault counts.
#[derive(Clone, Copy, PartialEq)]
enum When {
    Dialling,
    Listening,
    Both,
}

/// What is wrong with a certificate, the code it earns, its counter, and when.
fn faults(mint: &Mint, other: &Mint) -> Vec<(&'static str, Certificate, u64, &'static str, When)> {
    let with = |change: fn(&mut CertificateParams)| mint.certificate(NODE, change);
    let named = |name: &str| mint.certificate(name, |_| {});
    vec![
        ("another authority", other.certificate(NODE, |_| {}), 0x130, "unknown_ca", When::Both),
        (
            "expired",
            with(|leaf| leaf.not_after = date_time_ymd(2024, 1, 1)),
            0x12d,
            "certificate_expired",
            When::Both,
        ),
        (
            "not valid yet",
            with(|leaf| leaf.not_before = date_time_ymd(2090, 1, 1)),
            0x12d,
            "certificate_expired",
            When::Both,
        ),
        (
            "no purpose",
            with(|leaf| leaf.extended_key_usages.clear()),
            0x12b,
            "unsupported_certificate",
            When::Both,
        ),
        (
            "for servers only",
            with(|leaf| leaf.extended_key_usages = vec![Eku::ServerAuth]),
            0x12b,
            "unsupported_certificate",
            When::Dialling,
        ),
        (
            "for clients only",
            with(|leaf| leaf.extended_key_usages = vec![Eku::ClientAuth]),
            0x12b,
            "unsupported_certificate",
            When::Listening,
        ),
        ("no name", with(|leaf| leaf.subject_alt_names.clear()), 0x131, "access_denied", When::Both),
        (
            "two names",
            with(|leaf| leaf.subject_alt_names.push(uri("spiffe://test/node/second"))),
            0x131,
            "access_denied",
            When::Both,
        ),
        ("a name of no node", named("spiffe://test/node/.."), 0x131, "access_denied", When::Both),
        ("a cluster in capitals", named("spiffe://TEST/node/mallory"), 0x131, "access_denied", When::Both),
        ("a shared name", named("spiffe://test/shared"), 0x131, "access_denied", When::Both),
    ]
}

#[tokio::test]
async fn whoever_dials_with_a_bad_certificate_is_told_why_and_counted() {
    let (mint, other) = (Mint::new("ours"), Mint::new("theirs"));
    let member = started(config(mint.identity("spiffe://test/node/a"), &[])).await;
    let door = member.local_node().address;
    for (fault, shown, code, cause, when) in faults(&mint, &other) {
        if when == When::Listening {
            continue;
        }
        let before = refusals(&member, cause);
        let (told, by_application, reason) = knock(door, Some(&shown), ALPN).await;
        assert_eq!((told, by_application), (code, false), "{fault}: {reason}");
        until(fault, || refusals(&member, cause) == before + 1).await;
    }
    let (code, _, reason) = knock(door, None, ALPN).await;
    assert_eq!(code, 0x174, "no certificate: {reason}");
    until("it is counted", || refusals(&member, "certificate_required") == 1).await;
    for alpn in ["h3", "phalanx/2"] {
        let good = mint.certificate("spiffe://test/node/b", |_| {});
        let (code, _, reason) = knock(door, Some(&good), alpn).await;
        assert_eq!(code, 0x178, "{alpn}: {reason}");
    }
    until("both are counted", || refusals(&member, "no_application_protocol") == 2).await;
    assert_eq!(member.all_nodes().len(), 1);
    still_serves(&member, &mint).await;
}

#[tokio::test]
async fn whoever_is_dialled_and_shows_a_bad_certificate_is_turned_away_and_counted() {
    let (mint, other) = (Mint::new("ours"), Mint::new("theirs"));
    let member = started(config(mint.identity("spiffe://test/node/a"), &[])).await;
    for (fault, shown, _, cause, when) in faults(&mint, &other) {
        if when == When::Dialling {
            continue;
        }
        let before = refusals(&member, cause);
        let (_listener, address) = listen(&shown);
        assert_eq!(member.join(&[address.to_string()]).await.unwrap(), 0, "{fault}");
        assert_eq!(refusals(&member, cause), before + 1, "{fault}: {:?}", member.stats().net.refused);
    }
    assert_eq!(member.all_nodes().len(), 1);
    still_serves(&member, &mint).await;
}

#[tokio::test]
async fn another_cluster_of_the_same_authority_is_refused_by_name_in_both_directions() {
    let (lines, _kept) = Lines::keep();
    let mint = Mint::new("ours");
    let ours = started(config(mint.identity("spiffe://test/node/a"), &[])).await;
    let theirs = started(config(mint.identity("spiffe://core/node/b"), &[])).await;
    for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
        let before = (refusals(from, "wrong-cluster"), refusals(to, "wrong-cluster"));
        assert_eq!(from.join(&[to.local_node().address.to_string()]).await.unwrap(), 0);
        until("both have counted it", || {
            (refusals(from, "wrong-cluster"), refusals(to, "wrong-cluster")) == (before.0 + 1, before.1 + 1)
        })
        .await;
    }
    let refused = ["connection refused", "wrong-cluster", r#"\"test\""#, r#"\"core\""#];
    until("both name both clusters, both times", || lines.with(&refused).len() == 4).await;
    assert_eq!((ours.cluster_size(), theirs.cluster_size()), (1, 1));
    // One that believes nobody's hello hears the same.
    let (code, by_application, reason) =
        knock(ours.local_node().address, Some(&mint.certificate("spiffe://core/node/c", |_| {})), ALPN).await;
    assert_eq!((code, by_application), (0x10, true), "{reason}");
    assert!(reason.contains("of cluster \"core\", this node of \"test\""), "{reason}");
    still_serves(&ours, &mint).await;
}

#[tokio::test]
async fn a_node_does_not_start_with_a_certificate_that_peers_would_refuse() {
    let mint = Mint::new("ours");
    for (purpose, says) in [
        (vec![Eku::ServerAuth], "lacks clientAuth"),
        (vec![Eku::ClientAuth], "lacks serverAuth"),
        (vec![], "no extended key usage"),
    ] {
        let shown = mint.certificate(NODE, |leaf| leaf.extended_key_usages = purpose);
        let cluster = Cluster::new(config(mint.identity_of(&shown), &[])).unwrap();
        let error = cluster.start().await.unwrap_err().to_string();
        assert!(error.contains("peers that trust the same CA file would refuse it"), "{error}");
        assert!(error.contains(says), "{error}");
        assert!(!cluster.is_running());
    }
}

fn shared(identity: Identity, name: &str, seeds: &[&Cluster]) -> Config {
    let mut config = config(identity, seeds);
    config.node_id = name.into();
    config.tls.shared_certificate = true;
    config
}

#[tokio::test]
async fn a_shared_certificate_makes_nodes_but_takes_no_nodes_place() {
    let mint = Mint::new("ours");
    let identity = mint.identity("spiffe://test/shared");
    let error = Cluster::new(config(identity.clone(), &[])).unwrap_err().to_string();
    assert!(error.contains("tls.shared-certificate = false: the certificate names no node"), "{error}");
    let mut owner = config(mint.identity("spiffe://test/node/owner"), &[]);
    owner.tls.shared_certificate = true;
    let owner = started(owner).await;
    let one = started(shared(identity.clone(), "one", &[&owner])).await;
    let two = started(shared(identity.clone(), "auto", &[&owner])).await;
    let all = [&owner, &one, &two];
    until("all see all", || all.iter().all(|node| node.cluster_size() == 3)).await;
    assert_eq!(two.node_id().as_str().len(), 36, "a UUID");
    for taken in ["owner", "one"] {
        let thief = Cluster::new(shared(identity.clone(), taken, &[&owner])).unwrap();
        let error = thief.start().await.unwrap_err();
        assert!(matches!(error, Error::DuplicateNodeId { .. }), "{error}");
    }
    assert!(all.iter().all(|node| node.cluster_size() == 3), "nobody has lost its place");
}
