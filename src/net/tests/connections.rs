//! Which connection stays, which gives way, and what ends one.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_live_incumbent_stays() {
    let world = world(Weather::default());
    let (server, old) = (world.node("server"), world.node("x"));
    old.transport.dial_seed(server.address()).await.unwrap();
    let newer = world.node("x");
    lock(&newer.host.introduction).epoch = 2;
    let incumbent = Judgement::Incumbent { epoch: 1, address: old.address() };
    *lock(&server.host.judgement) = incumbent;
    let error = newer.transport.dial_seed(server.address()).await.unwrap_err().to_string();
    assert!(
        error.contains("x is in use by a live process at 10.0.0.1:2") && error.contains("0x13"),
        "{error}"
    );
    assert_eq!(server.host.said("conflict x"), 1);
    // Without a connection to it, its address is asked.
    server.transport.close(&id("x"), CloseCode::RATE_LIMITED, "test");
    until(|| server.host.said("disconnected x") == 1).await;
    let error = newer.transport.dial_seed(server.address()).await.unwrap_err().to_string();
    assert!(error.contains("live process at 10.0.0.1:2"), "{error}");
    assert_eq!(old.host.said("connected"), 2, "connected, disconnected; asking is neither");
    *lock(&server.host.judgement) = Judgement::Admit;
    world.serves(&server).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_incumbent_gives_way() {
    let world = world(Weather::default());
    let (server, old) = (world.node("server"), world.node("x"));
    old.transport.dial_seed(server.address()).await.unwrap();
    world.network.group(old.address(), 9);
    let newer = world.node("x");
    lock(&newer.host.introduction).epoch = 2;
    *lock(&server.host.judgement) = Judgement::Incumbent { epoch: 1, address: old.address() };
    newer.transport.dial_seed(server.address()).await.unwrap();
    let told = lock(&server.host.log).clone();
    assert!(
        told[0] == "connected x 1" && told[1].starts_with("disconnected x 0x2") && told[2] == "connected x 2",
        "{told:?}"
    );
    *lock(&server.host.judgement) = Judgement::Admit;
    world.serves(&server).await;
    assert_eq!(server.host.said("conflict"), 0);
}

#[tokio::test(start_paused = true)]
async fn two_that_dial_at_once_end_with_one_connection() {
    for round in 0..50 {
        let latency = Duration::from_millis(round % 7);
        let world = world(Weather { latency, jitter: latency / 2, ..Weather::default() });
        let (a, b) = (world.node("a"), world.node("b"));
        a.transport.dial(&id("b"), b.address());
        sleep(Duration::from_millis(round / 7)).await;
        b.transport.dial(&id("a"), a.address());
        until(|| a.host.said("connected b") == 1 && b.host.said("connected a") == 1).await;
        for _ in 0..50 {
            assert!(a.transport.send(&id("b"), Bytes::from_static(b"x")));
            assert!(b.transport.send(&id("a"), Bytes::from_static(b"x")));
            sleep(Duration::from_millis(20)).await;
        }
        sleep(Duration::from_secs(6)).await;
        assert_eq!((a.admitted(), b.admitted()), (1, 1), "round {round}");
        assert_eq!(
            (lock(&a.host.log).len(), lock(&b.host.log).len()),
            (1, 1),
            "{:?} {:?}",
            a.host.log,
            b.host.log
        );
        assert_eq!((lock(&a.host.messages).len(), lock(&b.host.messages).len()), (50, 50), "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_ends_in_a_time_out() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial_seed(b.address()).await.unwrap();
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!((a.admitted(), b.admitted()), (1, 1), "keep-alive keeps it");
    world.network.group(a.address(), 1);
    sleep(Duration::from_secs(45)).await;
    assert_eq!(a.host.said("disconnected b") + b.host.said("disconnected a"), 2);
    a.transport.dial(&id("b"), b.address());
    until(|| a.host.said("dial-failed b 10.0.0.1:2 did not answer") == 1).await;
    world.network.group(a.address(), 0);
    a.transport.dial(&id("b"), b.address());
    until(|| a.host.said("connected b 1") == 2).await;
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_connection_goes() {
    let world = world(Weather::default());
    let mut small = config("server", "edge");
    small.max_connections = 2;
    let server =
        world.node_as(introduction("server", 1), small, &world.authority.issue(&id("server")).unwrap());
    let peers = ["a", "b", "c"].map(|name| world.node(name));
    for peer in &peers[..2] {
        peer.transport.dial_seed(server.address()).await.unwrap();
    }
    assert!(server.transport.send(&id("a"), Bytes::from_static(b"used")));
    peers[2].transport.dial_seed(server.address()).await.unwrap();
    until(|| peers[1].host.said("disconnected server 0x25") == 1).await;
    until(|| server.host.said("disconnected b 0x25") == 1).await;
    assert_eq!(server.admitted(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_reload_closes_whom_it_no_longer_trusts() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial_seed(b.address()).await.unwrap();
    assert_eq!(a.transport.reload(&world.authority.issue(&id("a")).unwrap()).unwrap(), 0);
    let other = Authority::generate("edge").unwrap();
    assert_eq!(a.transport.reload(&other.issue(&id("a")).unwrap()).unwrap(), 1);
    until(|| a.host.said("disconnected b 0x12") == 1 && b.host.said("disconnected a 0x12") == 1).await;
    assert!(a.transport.dial_seed(b.address()).await.is_err());
    let c = world.node_as(introduction("c", 1), config("c", "edge"), &other.issue(&id("c")).unwrap());
    c.transport.dial_seed(a.address()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_comes_again_in_the_same_life_stays_connected() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial_seed(b.address()).await.unwrap();
    world.network.group(a.address(), 1);
    a.transport.close(&id("b"), CloseCode::RATE_LIMITED, "unheard");
    sleep(Duration::from_secs(5)).await;
    world.network.group(a.address(), 0);
    a.transport.dial_seed(b.address()).await.unwrap();
    assert!(b.transport.send(&id("a"), Bytes::from_static(b"x")));
    until(|| lock(&a.host.messages).len() == 1).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!((a.admitted(), b.admitted()), (1, 1));
    assert_eq!(*lock(&b.host.log), ["connected a 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_seed_that_is_connected_is_not_connected_twice() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    for _ in 0..3 {
        assert_eq!(a.transport.dial_seed(b.address()).await.unwrap(), id("b"));
        assert_eq!(b.transport.dial_seed(a.address()).await.unwrap(), id("a"));
    }
    sleep(Duration::from_secs(6)).await;
    assert_eq!((a.admitted(), b.admitted()), (1, 1));
    assert_eq!((lock(&a.host.log).len(), lock(&b.host.log).len()), (1, 1));
    assert_eq!(b.transport.counters().duplicates, 0);
    assert!(b.transport.counters().refused.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_makes_it_another_node_is_refused() {
    let world = world(Weather::default());
    let a = world.node("a");
    let error = a.transport.reload(&world.authority.issue(&id("b")).unwrap()).unwrap_err().to_string();
    assert!(error.contains("it names node b of cluster edge, this is a of edge"), "{error}");
    let b = world.node("b");
    assert_eq!(b.transport.dial_seed(a.address()).await.unwrap(), id("a"), "the old one still serves");
}
