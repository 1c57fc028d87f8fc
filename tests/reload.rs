//! Certificates that live for years without a restart: renewed, revoked, expired, on real sockets and under
//! live connections.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;
#[path = "common/mint.rs"]
mod mint;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use common::{Log, authority, config, fleet, fleet_of, id, node, started, still_serves, text, until};
use mint::Mint;
use phalanx::{Authority, Cluster, Config, EventKind, Identity, SignatureScheme, SigningKey, Validity};
use rcgen::{KeyPair, SigningKey as _};
use tokio::time::timeout;

/// How soon what was revoked at one node must be out everywhere.
const OUT: Duration = Duration::from_secs(2);

/// One that does not take a busy machine for a dead peer.
fn calm(mut config: Config) -> Config {
    config.ping_interval = Duration::from_secs(1);
    config.ping_timeout = Duration::from_millis(900);
    config
}

fn connected(node: &Cluster, peer: &str) -> bool {
    node.explain(&id(peer)).is_some_and(|why| why.connection.is_some())
}

/// Every node is connected to every other.
async fn all_connected(fleet: &[Cluster]) {
    let linked = |node: &Cluster| {
        let peers = fleet.iter().map(Cluster::node_id).filter(|peer| *peer != node.node_id());
        peers.into_iter().all(|peer| connected(node, peer.as_str()))
    };
    until("all are connected", || fleet.iter().all(linked)).await;
}

/// Gives a node a fresh certificate with the newest list of its authority.
fn give_list(node: &Cluster, authority: &Authority) {
    let identity = authority.issue(&node.node_id()).unwrap();
    node.reload_identity(identity.with_crl_pem(&authority.crl_pem()).unwrap()).unwrap();
}

/// Whether nobody in the fleet has doubted another of it.
fn undisturbed(logs: &[Log], names: &[&str]) -> bool {
    let doubts = [EventKind::NodeSuspect, EventKind::NodeDead, EventKind::NodeLeave];
    logs.iter().all(|log| names.iter().all(|name| doubts.iter().all(|kind| log.told(*kind, name) == 0)))
}

#[tokio::test]
async fn a_node_revoked_at_one_is_out_everywhere_within_two_seconds_and_stays_out() {
    let ours = authority();
    let mut fleet = fleet_of(&ours, 3, calm).await;
    let lost = ours.issue(&id("lost")).unwrap();
    fleet.push(started(calm(config(lost.clone(), &[&fleet[0]]))).await);
    all_connected(&fleet).await;
    let (lost_node, rest) = fleet.split_last().unwrap();
    let logs: Vec<_> = rest.iter().map(Log::of).collect();
    let without_list = ours.issue(&id("late")).unwrap();
    ours.revoke(&lost).unwrap();
    give_list(&rest[1], &ours);
    let out = until("nobody is connected to it", || {
        rest.iter().all(|node| !connected(node, "lost"))
            && rest.iter().all(|node| !connected(lost_node, node.node_id().as_str()))
    });
    timeout(OUT, out).await.expect("out within two seconds");
    for node in rest {
        let refused = |node: &Cluster| {
            let refused = node.stats().net.refused;
            refused.get("certificate_revoked").copied().unwrap_or(0)
        };
        let before = refused(node);
        let address = node.local_node().address.to_string();
        assert_eq!(lost_node.join(&[address]).await.unwrap(), 0, "refused when it dials");
        until("it is counted", || refused(node) > before).await;
        let before = refused(node);
        assert_eq!(node.join(&[lost_node.local_node().address.to_string()]).await.unwrap(), 0);
        assert!(refused(node) > before, "refused when it is dialled");
    }
    let taken = |node: &Cluster| node.stats().gossip.counters.lists_taken;
    until("the others were brought it once", || (taken(&rest[0]), taken(&rest[2])) == (1, 1)).await;
    until("it is taken for dead", || rest.iter().all(|node| !node.is_alive(&id("lost")))).await;
    assert!(undisturbed(&logs, &["n0", "n1", "n2"]), "the others are undisturbed");
    assert!(rest.iter().all(|node| rest.iter().all(|peer| node.is_alive(&peer.node_id()))));
    // Who comes later is told as well.
    let late = started(calm(config(without_list, &[&rest[0]]))).await;
    until("it has the list", || taken(&late) == 1).await;
    assert_eq!(late.join(&[lost_node.local_node().address.to_string()]).await.unwrap(), 0);
    still_serves(&rest[0], &ours, "good").await;
}

#[tokio::test]
async fn an_older_list_is_refused_and_one_of_peers_stays_in_force_under_a_new_certificate() {
    let ours = authority();
    let fleet = fleet(&ours, 2).await;
    let before = ours.issue(&id("n1")).unwrap(); // without a list
    ours.revoke(&ours.issue(&id("x")).unwrap()).unwrap();
    let old = ours.issue(&id("n1")).unwrap();
    let lost = ours.issue(&id("lost")).unwrap();
    ours.revoke(&lost).unwrap();
    give_list(&fleet[0], &ours);
    let lists = |node: &Cluster| {
        let lists = node.stats().identity.revocation_lists;
        lists.first().map(|list| list.entries)
    };
    until("the other has it too", || lists(&fleet[1]) == Some(2)).await;
    // Its operator was never told of that list: a renewal with what he has must not fail.
    fleet[1].reload_identity(before).unwrap();
    fleet[1].reload_identity(old.clone()).unwrap();
    assert_eq!(lists(&fleet[1]), Some(2), "and takes nothing back");
    assert_eq!(fleet[1].stats().identity.renewals, 2);
    give_list(&fleet[1], &ours);
    let error = fleet[1].reload_identity(old).unwrap_err().to_string();
    assert!(error.contains("older"), "now he was: {error}");
    assert_eq!(fleet[1].stats().identity.failed_renewals, 1);
    let thief = started(config(lost, &[])).await;
    assert_eq!(thief.join(&[fleet[1].local_node().address.to_string()]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_list_past_its_date_warns_and_locks_nobody_out() {
    let mint = Mint::new("ours");
    let identity = mint.identity("spiffe://test/node/a").with_crl_pem(&mint.list(7, 2025)).unwrap();
    let cluster = Cluster::new(config(identity, &[])).unwrap();
    let log = Log::of(&cluster);
    cluster.start().await.unwrap();
    until("it is told", || log.told(EventKind::RevocationListStale, "a") == 1).await;
    assert!(cluster.stats().identity.revocation_lists[0].stale);
    let peer = started(config(mint.identity("spiffe://test/node/b"), &[&cluster])).await;
    until("a peer is let in", || cluster.cluster_size() == 2).await;
    let next = mint.identity("spiffe://test/node/a").with_crl_pem(&mint.list(8, 2999)).unwrap();
    cluster.reload_identity(next).unwrap();
    until("the peer has the list", || peer.stats().identity.revocation_lists.len() == 1).await;
    assert!(!cluster.stats().identity.revocation_lists[0].stale);
    assert!(!peer.stats().identity.revocation_lists[0].stale);
    assert_eq!(log.told(EventKind::RevocationListStale, "a"), 1);
}

#[tokio::test]
async fn where_a_list_is_required_a_node_does_not_start_without_one() {
    let ours = authority();
    let mut asked = node(&ours, "a", &[]);
    asked.tls.crl_required = true;
    let error = Cluster::new(asked.clone()).unwrap().start().await.unwrap_err().to_string();
    assert!(error.contains("tls.crl-required is on, and there is none"), "{error}");
    asked.identity = Some(ours.issue(&id("a")).unwrap().with_crl_pem(&ours.crl_pem()).unwrap());
    let cluster = started(asked).await;
    still_serves(&cluster, &ours, "good").await;
}

/// Lays a version out.
type Writes<'a> = Box<dyn Fn(&Path) + 'a>;

/// Files as Kubernetes and Vault lay them out: links through `..data`, which is replaced as one.
struct Mount {
    dir: tempfile::TempDir,
    version: u32,
}

impl Mount {
    fn new(identity: &Identity) -> Self {
        let mut mount = Self { dir: tempfile::tempdir().unwrap(), version: 0 };
        mount.swap(|dir| drop(identity.write_to(dir).unwrap()));
        for name in ["ca.pem", "cert.pem", "key.pem", "crl.pem"] {
            std::os::unix::fs::symlink(format!("..data/{name}"), mount.path(name)).unwrap();
        }
        mount
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Lays out the next version and swaps it in.
    fn swap(&mut self, write: impl FnOnce(&Path)) {
        self.version += 1;
        let (next, link) = (self.path(&format!("..v{}", self.version)), self.path("..data_tmp"));
        fs::create_dir(&next).unwrap();
        write(&next);
        std::os::unix::fs::symlink(next.file_name().unwrap(), &link).unwrap();
        fs::rename(&link, self.path("..data")).unwrap();
    }

    fn config(&self, seeds: &[&Cluster]) -> Config {
        let mut config = config(authority().issue(&id("unused")).unwrap(), seeds);
        config.identity = None;
        config.tls.ca = Some(self.path("ca.pem"));
        config.tls.cert = Some(self.path("cert.pem"));
        config.tls.key = Some(self.path("key.pem"));
        config.tls.watch = true;
        config.tls.watch_interval = Duration::from_millis(100);
        config
    }
}

#[tokio::test]
async fn watched_files_that_are_swapped_are_taken_over_and_bad_ones_are_told_once() {
    let ours = authority();
    let peer = started(calm(node(&ours, "peer", &[]))).await;
    let mut mount = Mount::new(&ours.issue(&id("a")).unwrap());
    let cluster = started(calm(mount.config(&[&peer]))).await;
    until("they are connected", || connected(&peer, "a")).await;
    let (log, peers) = (Log::of(&cluster), Log::of(&peer));
    let stats = || cluster.stats().identity;
    let failed = || log.told(EventKind::IdentityReloadFailed, "a");
    let next = ours.issue_for(&id("a"), Validity::days(30)).unwrap();
    mount.swap(|dir| drop(next.write_to(dir).unwrap()));
    until("it is taken over", || stats().renewals == 1).await;
    assert_eq!((stats().not_after, stats().days_left), (Some(next.not_after()), Some(29)));

    // Each of these is wrong in a way of its own. Each is told once, though it is looked at again and again.
    let other = ours.issue(&id("a")).unwrap();
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    let early = ours.issue_for(&id("a"), Validity::between(far, far + Duration::from_secs(60))).unwrap();
    let bad: [(&str, Writes<'_>); 6] = [
        (
            "does not belong to the",
            Box::new(|dir| {
                next.write_to(dir).unwrap();
                let from = tempfile::tempdir().unwrap();
                fs::copy(other.write_to(from.path()).unwrap().cert, dir.join("cert.pem")).unwrap();
            }),
        ),
        ("this node runs as", Box::new(|dir| drop(ours.issue(&id("b")).unwrap().write_to(dir).unwrap()))),
        ("it is valid from", Box::new(|dir| drop(early.write_to(dir).unwrap()))),
        ("check the path", Box::new(|dir| fs::remove_file(other.write_to(dir).unwrap().key).unwrap())),
        (
            "not a regular file",
            Box::new(|dir| {
                let paths = other.write_to(dir).unwrap();
                fs::remove_file(&paths.ca).unwrap();
                assert!(std::process::Command::new("mkfifo").arg(&paths.ca).status().unwrap().success());
            }),
        ),
        (
            "its PEM is damaged",
            Box::new(|dir| {
                let paths = other.write_to(dir).unwrap();
                let cert = fs::read(&paths.cert).unwrap();
                fs::write(&paths.cert, &cert[..cert.len() / 2]).unwrap();
            }),
        ),
    ];
    for (count, (says, write)) in bad.iter().enumerate() {
        mount.swap(|dir| write(dir));
        until(says, || failed() == count + 1).await;
        let reasons = log.reasons(EventKind::IdentityReloadFailed);
        assert!(reasons[count].contains(says), "{says}: {reasons:?}");
        assert_eq!(stats().not_after, Some(next.not_after()), "the old one serves on");
    }
    let looks = stats().looks;
    until("the last is looked at again and again", || stats().looks >= looks + 3).await;
    assert_eq!(failed(), bad.len());
    assert_eq!(stats().failed_renewals, bad.len() as u64);
    mount.swap(|dir| drop(other.write_to(dir).unwrap()));
    until("the next good one is taken over", || stats().renewals == 2).await;
    assert_eq!(failed(), bad.len());
    assert!(undisturbed(&[peers], &["a"]));
    still_serves(&cluster, &ours, "good").await;
}

#[tokio::test]
async fn a_list_put_beside_watched_files_reaches_the_whole_cluster() {
    let ours = authority();
    ours.revoke(&ours.issue(&id("x")).unwrap()).unwrap();
    let mut mount = Mount::new(&ours.issue(&id("a")).unwrap());
    let mut config = mount.config(&[]);
    config.tls.crl = Some(mount.path("crl.pem"));
    let cluster = started(config).await;
    let peer = started(node(&ours, "peer", &[&cluster])).await;
    until("they are connected", || connected(&peer, "a")).await;
    ours.revoke(&ours.issue(&id("y")).unwrap()).unwrap();
    let entries = |node: &Cluster| node.stats().identity.revocation_lists.first().map(|list| list.entries);
    assert_eq!((entries(&cluster), entries(&peer)), (Some(1), Some(1)));
    mount.swap(|dir| drop(ours.issue(&id("a")).unwrap().write_to(dir).unwrap()));
    until("both have it", || entries(&cluster) == Some(2) && entries(&peer) == Some(2)).await;
}

#[tokio::test]
async fn a_peers_certificate_that_ends_closes_its_connection_unless_it_is_renewed_before() {
    let ours = authority();
    let fleet = fleet_of(&ours, 2, calm).await;
    let now = clock();
    let end = now + Duration::from_secs(8);
    let short = |name: &str| {
        let validity = Validity::between(now - Duration::from_secs(60), end);
        calm(config(ours.issue_for(&id(name), validity).unwrap(), &[&fleet[0]]))
    };
    let (ends, renews) = (started(short("ends")).await, started(short("renews")).await);
    let all = ["n0", "n1", "ends", "renews"];
    let nodes = [&fleet[0], &fleet[1], &ends, &renews];
    until("all see all", || nodes.iter().all(|node| node.cluster_size() == all.len())).await;
    until("all are connected", || {
        fleet.iter().all(|node| connected(node, "ends") && connected(node, "renews"))
    })
    .await;
    let seen = fleet[0].all_nodes();
    let certificate = |name: &str| seen[&id(name)].certificate_end.unwrap();
    assert!(end.duration_since(certificate("ends")).unwrap() < Duration::from_secs(1), "in whole seconds");
    assert_eq!(seen[&id("ends")].days_left(now), Some(0));
    let own_days = seen[&id("n0")].days_left(now).unwrap();
    assert!((80..90).contains(&own_days), "this node's own: up to a tenth less than 90, by chance");
    let logs: Vec<_> = fleet.iter().map(Log::of).collect();
    let own = Log::of(&ends);
    ends.broadcast("routes", "x", "y").unwrap();
    until("it arrived", || fleet.iter().all(|node| text(node, &"routes".into(), "x").is_some())).await;
    renews.reload_identity(ours.issue(&id("renews")).unwrap()).unwrap();
    until("its end is near", || clock() >= end).await;
    let closed = until("it is out", || fleet.iter().all(|node| !connected(node, "ends")));
    timeout(Duration::from_secs(2), closed).await.expect("two seconds after the end");
    let why = fleet[0].explain(&id("ends")).unwrap().last_close.unwrap();
    assert_eq!(why.name, "no-longer-trusted", "{}", why.reason);
    until("it says so itself", || own.told(EventKind::IdentityExpiring, "ends") >= 1).await;
    assert!(ends.is_running() && text(&ends, &"routes".into(), "x").is_some(), "it keeps what it knew");
    assert_eq!(ends.stats().identity.days_left, Some(-1));
    until("it is taken for dead", || fleet.iter().all(|node| !node.is_alive(&id("ends")))).await;
    assert!(fleet.iter().all(|node| node.is_alive(&id("renews"))));
    assert!(undisturbed(&logs, &["n0", "n1", "renews"]), "who renewed in time was never doubted");
    ends.reload_identity(ours.issue(&id("ends")).unwrap()).unwrap();
    until("it is back", || fleet.iter().all(|node| node.is_alive(&id("ends")))).await;
}

fn clock() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "a certificate's time is the time of people")]
    SystemTime::now()
}

/// A device that signs, until it is told to fail.
struct Token {
    key: KeyPair,
    broken: AtomicBool,
}

impl SigningKey for Token {
    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::EcdsaP256Sha256
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        if self.broken.load(SeqCst) {
            return Err("the token was pulled out".into());
        }
        Ok(self.key.sign(message)?)
    }
}

#[tokio::test]
async fn a_node_whose_key_never_leaves_its_device_is_a_node_like_any_other() {
    let ours = authority();
    let peer = started(calm(node(&ours, "peer", &[]))).await;
    let dir = tempfile::tempdir().unwrap();
    let paths = ours.issue(&id("hsm")).unwrap().write_to(dir.path()).unwrap();
    let read = |path: &Path| fs::read(path).unwrap();
    let key = KeyPair::from_pem(&fs::read_to_string(&paths.key).unwrap()).unwrap();
    let token = Arc::new(Token { key, broken: AtomicBool::new(false) });
    let identity =
        Identity::from_signing_key(&read(&paths.ca), &read(&paths.cert), Arc::clone(&token) as _).unwrap();
    let cluster = started(calm(config(identity, &[&peer]))).await;
    until("both see both", || peer.cluster_size() == 2 && cluster.cluster_size() == 2).await;
    cluster.set_tags(BTreeMap::from([("rack".into(), "r1".into())])).unwrap();
    until("its claims are believed", || peer.all_nodes()[&id("hsm")].tags.contains_key("rack")).await;
    // Both ways: it dials, and it is dialled.
    let late = started(node(&ours, "late", &[&cluster])).await;
    until("it lets others in", || late.cluster_size() == 3).await;
    token.broken.store(true, SeqCst);
    let (log, stranger) = (Log::of(&peer), started(node(&ours, "stranger", &[])).await);
    let address = cluster.local_node().address.to_string();
    assert_eq!(stranger.join(&[address]).await.unwrap(), 0, "no signature, no handshake");
    cluster.broadcast("routes", "x", "y").unwrap();
    until("what stands goes on", || text(&peer, &"routes".into(), "x").is_some()).await;
    assert!(undisturbed(&[log], &["hsm"]));
    assert!(!format!("{:?}", cluster.config()).contains("Token"));
}
