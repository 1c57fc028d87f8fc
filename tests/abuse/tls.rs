//! Section 1: TLS and certificates, as far as a bare peer is needed. The rest is in `tests/strangers.rs`,
//! `tests/security.rs` and beside the code.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rustls::client::{ClientSessionStore, Resumption};

use crate::{
    common::{authority, config, fleet, id, started, until},
    mint::{client, knock},
    peer::{ALPN, Mask, wall_ms},
    wire::{self, message},
    world::{World, name},
};

#[tokio::test]
async fn b05_a_revoked_certificate_is_refused_whoever_dials() {
    let ours = authority();
    let fleet = fleet(&ours, 2).await;
    let bad = ours.issue(&id("bad")).unwrap();
    ours.revoke(&bad).unwrap();
    let warned = ours.issue(&id("n0")).unwrap().with_crl_pem(&ours.crl_pem()).unwrap();
    fleet[0].reload_identity(warned).unwrap();
    let revoked = started(config(bad, &[])).await;
    let refused = || fleet[0].stats().net.refused.get("certificate_revoked").copied().unwrap_or(0);
    let address = |of: &phalanx::Cluster| [of.local_node().address.to_string()];
    assert_eq!(revoked.join(&address(&fleet[0])).await.unwrap(), 0);
    until("it was refused at the door", || refused() == 1).await;
    assert_eq!(fleet[0].join(&address(&revoked)).await.unwrap(), 0);
    assert_eq!(refused(), 2, "and where it listens");
    assert!(!fleet[0].all_nodes().contains_key(&id("bad")));
    assert!(fleet[0].is_alive(&id("n1")) && fleet[1].is_alive(&id("n0")));
}

#[tokio::test]
async fn b08_a_certificate_without_exactly_one_good_name_is_refused() {
    let world = World::new().await;
    let long = format!("spiffe://test/node/{}", "x".repeat(129));
    let names = [
        "spiffe://test/node/",
        "spiffe://test/node/a/b",
        "spiffe://test/node/.",
        "spiffe://test/node/%2e",
        "SPIFFE://test/node/a",
        "spiffe://TEST/node/a",
        "spiffe://test:7946/node/a",
        "spiffe://me@test/node/a",
        "spiffe://test/node/a?x",
        "spiffe://test/node/a#x",
        "spiffe://test/NODE/a",
        "spiffe:///node/a",
        "https://test/node/a",
        &long,
    ];
    for bad in names {
        let before = world.refused("access_denied");
        let shown = world.mint.certificate(bad, |_| {});
        let (code, by_application, reason) = knock(world.door(), Some(&shown), ALPN).await;
        assert_eq!((code, by_application), (0x131, false), "{bad}: {reason}");
        assert!(reason.chars().all(|c| !c.is_control()), "{reason:?}");
        until(bad, || world.refused("access_denied") == before + 1).await;
    }
    assert_eq!(world.victim().all_nodes().len(), 2);
    world.is_unharmed().await;
}

#[tokio::test]
async fn b09_whom_a_listener_refuses_after_the_handshake_has_not_joined_it() {
    let world = World::new().await;
    let mask = world.mask("a-doorman");
    let (endpoint, address) = (mask.endpoint.clone(), mask.listen);
    let doorman = tokio::spawn(async move {
        // The dialler's handshake has ended by then; its hello is never read.
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        connection.close(0x10_u32.into(), b"not here\n\x1b[31m");
        connection.closed().await;
    });
    assert_eq!(world.victim().join(&[address.to_string()]).await.unwrap(), 0);
    until("it is counted", || world.refused("wrong-cluster") == 1).await;
    doorman.await.unwrap();
    assert!(!world.victim().alive_nodes().contains(&id("a-doorman")));
    world.is_unharmed().await;
}

#[tokio::test]
async fn b10_who_says_another_name_than_its_certificate_is_refused() {
    let world = World::new().await;
    for said in ["n1", "someone", "n0"] {
        let mut mask = world.mask("a-liar");
        mask.name = said.into();
        let ended = mask.introduce(world.door(), &mask.introduction()).await.expect_err("it lies");
        assert_eq!(ended.code, 0x11, "{ended:?}");
        assert_eq!(ended.reason, format!("said to be {said}, the certificate is of a-liar"));
    }
    // A good hello around a claim of another.
    let mask = world.mask("a-liar");
    let mut other = mask.body();
    other.node_id = "n1".into();
    let core: wire::CoreHello = (mask.sign(&other), 0, Vec::new());
    let hello = wire::Introduction { core: wire::encode(&core).into(), ..mask.introduction() };
    assert_eq!(mask.introduce(world.door(), &hello).await.expect_err("it lies").code, 0x11);
    until("each is counted", || world.refused("identity-mismatch") == 4).await;
    let mut mask = world.mask("a-stray");
    mask.cluster = "core".into();
    assert_eq!(mask.introduce(world.door(), &mask.introduction()).await.expect_err("it lies").code, 0x10);
    assert_eq!(world.victim().all_nodes().len(), 2);
    world.is_unharmed().await;
}

/// Counts the tickets with which a session could be resumed.
#[derive(Debug, Default)]
struct Tickets(AtomicUsize);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: rustls::pki_types::ServerName<'static>, _: rustls::NamedGroup) {}

    fn kx_hint(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }

    fn set_tls12_session(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        _: rustls::client::Tls12ClientSessionValue,
    ) {
        self.0.fetch_add(1, Relaxed);
    }

    fn tls12_session(
        &self,
        _: &rustls::pki_types::ServerName<'_>,
    ) -> Option<rustls::client::Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &rustls::pki_types::ServerName<'static>) {}

    fn insert_tls13_ticket(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        _: rustls::client::Tls13ClientSessionValue,
    ) {
        self.0.fetch_add(1, Relaxed);
    }

    fn take_tls13_ticket(
        &self,
        _: &rustls::pki_types::ServerName<'static>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        None
    }
}

#[tokio::test]
async fn b12_nobody_gets_a_ticket_to_resume_with_nor_may_send_before_the_handshake() {
    let world = World::new().await;
    let mask = world.mask("a-returner");
    let tickets = Arc::new(Tickets::default());
    let mut tls = client(Some(&mask.shown), &[ALPN]);
    tls.resumption = Resumption::store(Arc::clone(&tickets) as _);
    tls.enable_early_data = true;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    for _ in 0..2 {
        let connecting = mask.endpoint.connect_with(config.clone(), world.door(), "phalanx.cluster").unwrap();
        let Err(connecting) = connecting.into_0rtt() else { panic!("it may not be early") };
        let connection = connecting.await.unwrap();
        // A whole exchange of words, after which tickets would have come.
        let hello = [&[wire::HELLO][..], &wire::frame(&wire::encode(&mask.introduction()))].concat();
        let (mut send, mut recv) = Mask::say(&connection, &hello).await;
        send.finish().unwrap();
        assert!(!recv.read_to_end(1 << 20).await.unwrap().is_empty());
        connection.close(0_u32.into(), b"");
    }
    assert_eq!(tickets.0.load(Relaxed), 0);
    world.is_unharmed().await;
}

#[tokio::test]
async fn b15_who_names_no_protocol_is_refused() {
    let world = World::new().await;
    let mask = world.mask("a-nameless");
    let mut tls = client(Some(&mask.shown), &[]);
    for alpn in [Vec::new(), vec![b"h3".to_vec()], vec![b"phalanx/1\0".to_vec()], vec![b"PHALANX/1".to_vec()]]
    {
        let before = world.refused("no_application_protocol");
        tls.alpn_protocols = alpn;
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls.clone()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let connecting = mask.endpoint.connect_with(config, world.door(), "phalanx.cluster").unwrap();
        let error = connecting.await.expect_err("it speaks another protocol");
        assert_eq!(crate::peer::ended(&error).code, 0x178, "{error}");
        until("it is counted", || world.refused("no_application_protocol") == before + 1).await;
    }
    world.is_unharmed().await;
}

#[tokio::test]
async fn b16_a_connection_ends_with_its_certificate_and_a_new_one_opens_the_door() {
    let world = World::new().await;
    let ends = i64::try_from(wall_ms() / 1_000).unwrap() + 4;
    let shown = world.mint.certificate(&name("a-mortal"), |leaf| {
        leaf.not_after = time::OffsetDateTime::from_unix_timestamp(ends).unwrap();
    });
    let peer = Mask::new("a-mortal", shown).join(world.door()).await;
    until("it is in", || world.victim().is_alive(&id("a-mortal"))).await;
    let ended = peer.end().await;
    let late = i64::try_from(wall_ms()).unwrap() - ends * 1_000;
    assert_eq!(ended.code, 0x12, "{ended:?}");
    assert!(ended.reason.contains("a-mortal has expired"), "{ended:?}");
    // Up to a second of a certificate's own resolution, and up to two.
    assert!((0..5_000).contains(&late), "{late} ms after");
    until("it is counted", || world.closed("no-longer-trusted") == 1).await;
    let peer = world.peer("a-mortal").await;
    peer.send(message(wire::PING, &(1_u64, (0_u64, 0_u64, false)))).await;
    peer.settle().await;
    assert!(peer.is_open());
    world.is_unharmed().await;
    tokio::time::timeout(Duration::from_millis(1), peer.connection.closed()).await.expect_err("it stays");
}
