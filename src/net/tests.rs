//! Whole transports against one another and against bad peers, most of them on a network in memory and
//! virtual time.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::AtomicU64,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::{
    memory::{Network, Weather},
    *,
};
use crate::identity::{Authority, SpiffeName, Validity};

struct TestHost {
    introduction: Mutex<Introduction>,
    judgement: Mutex<Judgement>,
    log: Mutex<Vec<String>>,
    messages: Mutex<Vec<(NodeId, Bytes)>>,
    events: Mutex<Vec<(StreamId, StreamEvent)>>,
    next: AtomicU64,
}

impl TestHost {
    fn said(&self, what: &str) -> usize {
        lock(&self.log).iter().filter(|line| line.contains(what)).count()
    }

    fn note(&self, line: String) {
        lock(&self.log).push(line);
    }
}

impl Host for TestHost {
    fn introduce(&self, _peer: Option<&NodeId>) -> Introduction {
        lock(&self.introduction).clone()
    }

    fn judge(&self, _peer: &Introduction) -> Judgement {
        lock(&self.judgement).clone()
    }

    fn connected(&self, peer: &NodeId, introduction: Introduction, _link: Link) {
        self.note(format!("connected {peer} {}", introduction.epoch));
    }

    fn disconnected(&self, peer: &NodeId, closed: &Closed) {
        self.note(format!("disconnected {peer} {:#x} {}", closed.code.0, closed.reason));
    }

    fn dial_failed(&self, peer: &NodeId, _address: SocketAddr, why: &Error) {
        self.note(format!("dial-failed {peer} {why}"));
    }

    fn message(&self, from: &NodeId, bytes: Bytes) {
        lock(&self.messages).push((from.clone(), bytes));
    }

    fn stream(&self, _peer: &NodeId, stream: StreamId, event: StreamEvent) {
        lock(&self.events).push((stream, event));
    }

    fn stream_id(&self) -> StreamId {
        StreamId(self.next.fetch_add(2, Relaxed))
    }

    fn conflict(&self, node: &NodeId, reason: &str) {
        self.note(format!("conflict {node} {reason}"));
    }
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn introduction(name: &str, epoch: u64) -> Introduction {
    Introduction {
        versions: (1, 1),
        cluster: "edge".into(),
        node_id: id(name),
        epoch,
        incarnation: 0,
        zone: None,
        listen: None,
        your_epoch: 0,
        core: Bytes::new(),
    }
}

struct Node {
    host: Arc<TestHost>,
    transport: Transport,
}

impl Node {
    fn address(&self) -> SocketAddr {
        self.transport.local_address()
    }

    fn admitted(&self) -> usize {
        lock(&self.transport.shared.pool).all().len()
    }
}

struct World {
    network: Arc<Network>,
    authority: Authority,
    next: std::cell::Cell<u16>,
}

fn world(weather: Weather) -> World {
    let authority = Authority::generate("edge").unwrap();
    World { network: Network::new(7, weather), authority, next: std::cell::Cell::new(1) }
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, 1), port).into()
}

fn host(introduction: Introduction) -> Arc<TestHost> {
    Arc::new(TestHost {
        introduction: Mutex::new(introduction),
        judgement: Mutex::new(Judgement::Admit),
        log: Mutex::default(),
        messages: Mutex::default(),
        events: Mutex::default(),
        next: AtomicU64::new(2),
    })
}

fn config(name: &str, cluster: &str) -> NetConfig {
    NetConfig {
        bind: (Ipv4Addr::LOCALHOST, 0).into(),
        cluster: cluster.into(),
        node_id: id(name),
        shared_certificate: false,
        max_connections: 512,
    }
}

impl World {
    fn node(&self, name: &str) -> Node {
        self.node_as(introduction(name, 1), config(name, "edge"), &self.authority.issue(&id(name)).unwrap())
    }

    fn node_as(&self, says: Introduction, config: NetConfig, identity: &Identity) -> Node {
        let port = self.next.replace(self.next.get() + 1);
        let host = host(says);
        let socket = self.network.socket(address(port));
        let transport = Transport::bind_on(socket, config, identity, Arc::clone(&host) as _).unwrap();
        Node { host, transport }
    }

    /// The refused peer's view, and proof that the refusing node goes on serving others.
    async fn refused(&self, server: &Node, bad: &Node, says: &str) {
        let error = bad.transport.dial_seed(server.address()).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
        assert_eq!(server.host.said(&format!("connected {}", bad.transport.shared.config.node_id)), 0);
        self.serves(server).await;
    }

    async fn serves(&self, server: &Node) {
        let good = self.node("good");
        assert_eq!(good.transport.dial_seed(server.address()).await.unwrap(), id("server"));
        assert!(good.transport.send(&id("server"), Bytes::from_static(b"hi")));
        until(|| lock(&server.host.messages).iter().any(|(from, _)| *from == id("good"))).await;
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    timeout(Duration::from_secs(60), async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it does not come to pass");
}

macro_rules! virtual_time {
    ($(async fn $name:ident() $body:block)+) => {
        $(#[tokio::test(start_paused = true)] async fn $name() $body)+
    };
}

virtual_time! {
    async fn messages_pass_both_ways_and_large_ones_too() {
        let world = world(Weather::default());
        let (a, b) = (world.node("a"), world.node("b"));
        a.transport.dial(&id("b"), b.address());
        assert!(a.transport.send(&id("b"), Bytes::from_static(b"waits")));
        until(|| b.host.said("connected a") == 1 && a.host.said("connected b") == 1).await;
        assert!(b.transport.send(&id("a"), Bytes::from(vec![1; 1_000])));
        assert!(b.transport.send(&id("a"), Bytes::from(vec![2; 900_000])));
        assert!(!b.transport.send(&id("a"), Bytes::from(vec![2; FRAME_OVER])));
        assert!(!b.transport.send(&id("nobody"), Bytes::new()));
        until(|| lock(&a.host.messages).len() == 2 && lock(&b.host.messages).len() == 1).await;
        assert_eq!(b.transport.counters().datagrams_sent, 1);
        assert_eq!(b.transport.counters().stream_messages_sent, 1);
        assert_eq!(b.transport.counters().messages_dropped, 2);
        assert!(a.transport.link(&id("b")).unwrap().dialled);
    }

    async fn a_flood_is_sent_or_counted_as_dropped() {
        let world = world(Weather::default());
        let (a, b) = (world.node("a"), world.node("b"));
        a.transport.dial_seed(b.address()).await.unwrap();
        let sent = (0..5_000).filter(|_| a.transport.send(&id("b"), Bytes::from(vec![0; 1_000]))).count();
        assert!(sent < 5_000 && sent > 60, "{sent}");
        assert_eq!(a.transport.counters().messages_dropped, 5_000 - sent as u64);
        until(|| lock(&b.host.messages).len() == sent).await;
    }

    async fn a_certificate_of_another_ca_is_refused() {
        let world = world(Weather::default());
        let server = world.node("server");
        let stranger = Authority::generate("edge").unwrap().issue(&id("bad")).unwrap();
        let bad = world.node_as(introduction("bad", 1), config("bad", "edge"), &stranger);
        // Whoever looks first refuses: here the dialler, which does not know the server's CA either.
        let error = bad.transport.dial_seed(server.address()).await.unwrap_err();
        // Two CAs of one name show as a bad signature.
        assert!(matches!(error, Error::Refused { code: 0x130 | 0x133, .. }), "{error}");
        let error = server.transport.dial_seed(bad.address()).await.unwrap_err();
        // Two CAs of one name show as a bad signature.
        assert!(matches!(error, Error::Refused { code: 0x130 | 0x133, .. }), "{error}");
        let refused = server.transport.counters().refused;
        assert!(refused.contains_key("unknown_ca") || refused.contains_key("decrypt_error"), "{refused:?}");
        world.serves(&server).await;
    }

    async fn an_expired_certificate_is_refused() {
        let world = world(Weather::default());
        let server = world.node("server");
        let now = clock::wall_now();
        let validity = Validity { not_before: now - Duration::from_secs(7_200), not_after: now - Duration::from_secs(60) };
        let expired = world.authority.issue_for(&id("bad"), validity).unwrap();
        let bad = world.node_as(introduction("bad", 1), config("bad", "edge"), &expired);
        world.refused(&server, &bad, "certificate_expired").await;
        assert_eq!(server.transport.counters().refused["certificate_expired"], 1);
    }

    async fn a_second_cluster_of_the_same_ca_is_refused() {
        let world = world(Weather::default());
        let server = world.node("server");
        let now = clock::wall_now();
        let validity = Validity { not_before: now - Duration::from_secs(60), not_after: now + Duration::from_secs(3_600) };
        let other = world.authority.issue_as(&SpiffeName { cluster: "core".into(), node: Some(id("bad")) }, validity).unwrap();
        let bad = world.node_as(introduction("bad", 1), config("bad", "core"), &other);
        // Each side's certificate passes the handshake, and each refuses the other by name, with the same
        // code.
        world.refused(&server, &bad, "it is of cluster \"edge\", this node of \"core\" (code 0x10)").await;
        until(|| server.transport.counters().refused.contains_key("wrong-cluster")).await;
        let error = server.transport.dial_seed(bad.address()).await.unwrap_err().to_string();
        assert!(error.contains("it is of cluster \"core\", this node of \"edge\" (code 0x10)"), "{error}");
        assert_eq!(bad.host.said("connected server"), 0);
        world.serves(&server).await;
    }

    async fn a_hello_of_another_cluster_is_refused() {
        let world = world(Weather::default());
        let server = world.node("server");
        let bad = world.node("bad");
        lock(&bad.host.introduction).cluster = "core".into();
        world.refused(&server, &bad, "said to be of cluster core, the certificate is of edge (code 0x10)").await;
    }

    async fn a_hello_of_another_node_is_refused() {
        let world = world(Weather::default());
        let server = world.node("server");
        let bad = world.node("bad");
        lock(&bad.host.introduction).node_id = id("someone");
        world.refused(&server, &bad, "said to be someone, the certificate is of bad (code 0x11)").await;
    }

    async fn versions_without_overlap_are_refused() {
        let world = world(Weather::default());
        let server = world.node("server");
        let bad = world.node("bad");
        lock(&bad.host.introduction).versions = (2, 3);
        world.refused(&server, &bad, "wire versions 2 to 3 of the one, 1 to 1 of the other (code 0x21)").await;
    }

    async fn what_the_host_refuses_is_told() {
        let world = world(Weather::default());
        let server = world.node("server");
        let bad = world.node("bad");
        *lock(&server.host.judgement) = Judgement::Refuse(CloseCode::RATE_LIMITED, "not\nnow".into());
        let error = bad.transport.dial_seed(server.address()).await.unwrap_err().to_string();
        assert!(error.contains("not\\nnow (code 0x23)") || error.contains("not\\\\nnow (code 0x23)"), "{error}");
        *lock(&server.host.judgement) = Judgement::Admit;
        world.serves(&server).await;
    }

    async fn a_node_does_not_connect_to_itself() {
        let world = world(Weather::default());
        let server = world.node("server");
        let error = server.transport.dial_seed(server.address()).await.unwrap_err().to_string();
        assert!(error.contains("dialled itself"), "{error}");
        assert_eq!(server.host.said("connected") + server.host.said("conflict"), 0);
        world.serves(&server).await;
    }

    async fn bad_hellos_are_refused() {
        let world = world(Weather::default());
        let server = world.node("server");
        for (hello, says) in [
            (&b""[..], "no hello within 2 s"),
            (b"\0\xff\xff\xff\xff", "the limit is 32768"),
            (b"\0\0\0\0\x03abc", "a malformed hello"),
            (b"\0\0\0", "hello"),
            (b"\x02\0\0\0\x01x", "the first stream is no hello"),
        ] {
            let bad = world.node("bad");
            let closed = say(&bad, &server, hello).await;
            assert!(closed.reason.contains(says), "{closed:?}");
            assert!(closed.by_peer);
        }
        let bad = world.node("bad");
        let mut hello = rmp_serde::to_vec(&introduction("bad", 1)).unwrap();
        hello.push(0xc0);
        let framed = [&b"\0"[..], &u32::try_from(hello.len()).unwrap().to_be_bytes(), &hello].concat();
        let closed = say(&bad, &server, &framed).await;
        assert!(closed.reason.contains("more bytes follow"), "{closed:?}");
        assert_eq!(server.host.said("connected"), 0);
        world.serves(&server).await;
    }

    async fn another_protocol_is_refused() {
        let world = world(Weather::default());
        let server = world.node("server");
        let bad = world.node("bad");
        for alpn in [&[&b"h3"[..]][..], &[], &[b"phalanx/2"]] {
            let tls = bad.transport.shared.tls.client_config_for(alpn).unwrap();
            let client = quinn::ClientConfig::new(Arc::new(tls));
            let endpoint = bad.transport.shared.endpoint().unwrap();
            let error = endpoint.connect_with(client, server.address(), tls::SERVER_NAME).unwrap().await.unwrap_err();
            assert_eq!(Closed::from_quinn(&error).code, CloseCode(0x178));
        }
        assert_eq!(server.transport.counters().refused["no_application_protocol"], 3);
        world.serves(&server).await;
    }

    async fn a_live_incumbent_stays() {
        let world = world(Weather::default());
        let (server, old) = (world.node("server"), world.node("x"));
        old.transport.dial_seed(server.address()).await.unwrap();
        let newer = world.node("x");
        lock(&newer.host.introduction).epoch = 2;
        let incumbent = Judgement::Incumbent { epoch: 1, address: old.address() };
        *lock(&server.host.judgement) = incumbent;
        let error = newer.transport.dial_seed(server.address()).await.unwrap_err().to_string();
        assert!(error.contains("x is in use by a live process at 10.0.0.1:2") && error.contains("0x13"), "{error}");
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
        assert!(told[0] == "connected x 1" && told[1].starts_with("disconnected x 0x2") && told[2] == "connected x 2", "{told:?}");
        *lock(&server.host.judgement) = Judgement::Admit;
        world.serves(&server).await;
        assert_eq!(server.host.said("conflict"), 0);
    }

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
            assert_eq!((lock(&a.host.log).len(), lock(&b.host.log).len()), (1, 1), "{:?} {:?}", a.host.log, b.host.log);
            assert_eq!((lock(&a.host.messages).len(), lock(&b.host.messages).len()), (50, 50), "round {round}");
        }
    }

    async fn exchanges_run_both_ways_to_their_end() {
        let world = world(Weather { loss: 0.05, duplication: 0.05, ..Weather::default() });
        let (a, b) = (world.node("a"), world.node("b"));
        a.transport.dial_seed(b.address()).await.unwrap();
        let (ours, theirs) = (StreamId(1), StreamId(2));
        a.transport.open_stream(&id("b"), ours);
        for n in 0..5 {
            a.transport.send_frame(ours, Bytes::from(vec![n; 100_000]));
        }
        a.transport.finish(ours);
        until(|| lock(&b.host.events).contains(&(theirs, StreamEvent::Finished))).await;
        b.transport.send_frame(theirs, Bytes::from_static(b"answer"));
        b.transport.finish(theirs);
        until(|| lock(&a.host.events).contains(&(ours, StreamEvent::Finished))).await;
        let seen = lock(&b.host.events).clone();
        assert_eq!(seen[0], (theirs, StreamEvent::Opened));
        for n in 0..5 {
            assert_eq!(seen[1 + usize::from(n)], (theirs, StreamEvent::Frame(Bytes::from(vec![n; 100_000]))));
        }
        let sent = lock(&a.host.events).iter().filter(|(_, event)| *event == StreamEvent::Sent).count();
        assert_eq!(sent, 5);
        assert!(world.network.lost() > 0);
        sleep(Duration::from_secs(60)).await;
        assert!(!lock(&a.host.events).contains(&(ours, StreamEvent::Lost)));
    }

    async fn a_stream_that_cannot_go_on_is_lost_once() {
        let world = world(Weather::default());
        let (a, b) = (world.node("a"), world.node("b"));
        a.transport.open_stream(&id("b"), StreamId(1));
        until(|| *lock(&a.host.events) == [(StreamId(1), StreamEvent::Lost)]).await;
        a.transport.dial_seed(b.address()).await.unwrap();
        a.transport.open_stream(&id("b"), StreamId(3));
        until(|| !lock(&b.host.events).is_empty()).await;
        a.transport.reset(StreamId(3));
        until(|| lock(&b.host.events).contains(&(StreamId(2), StreamEvent::Lost))).await;
        a.transport.open_stream(&id("b"), StreamId(5));
        until(|| lock(&b.host.events).contains(&(StreamId(4), StreamEvent::Opened))).await;
        b.transport.close(&id("a"), CloseCode::LEFT, "bye");
        until(|| lock(&a.host.events).contains(&(StreamId(5), StreamEvent::Lost))).await;
        until(|| a.host.said("disconnected b 0x1 bye") == 1).await;
        assert_eq!(lock(&a.host.events).len(), 2, "a reset of one's own is not told");
    }

    async fn slow_and_oversized_frames_are_refused() {
        let world = world(Weather::default());
        let (a, b) = (world.node("a"), world.node("b"));
        a.transport.dial_seed(b.address()).await.unwrap();
        let conn = lock(&a.transport.shared.pool).current(&id("b")).unwrap();
        let (mut send, mut recv) = conn.connection.open_bi().await.unwrap();
        send.write_all(b"\x02\0\0").await.unwrap();
        let stopped = timeout(Duration::from_secs(3), send.stopped()).await.unwrap().unwrap();
        assert_eq!(stopped, Some(close::varint(CloseCode::TOO_SLOW)));
        assert!(recv.read(&mut [0]).await.is_err());
        assert!(b.admitted() == 1, "only the stream is lost");
        let (mut send, _recv) = conn.connection.open_bi().await.unwrap();
        send.write_all(b"\x02\0\x10\0\x01").await.unwrap();
        until(|| a.host.said("disconnected b 0x22 a frame of 1048577 bytes") == 1).await;
    }

    async fn an_unknown_kind_costs_only_its_stream() {
        let world = world(Weather::default());
        let (a, b) = (world.node("a"), world.node("b"));
        a.transport.dial_seed(b.address()).await.unwrap();
        let conn = lock(&a.transport.shared.pool).current(&id("b")).unwrap();
        for _ in 0..30 {
            let (mut send, _recv) = conn.connection.open_bi().await.unwrap();
            send.write_all(b"\x63").await.unwrap();
            send.stopped().await.unwrap();
        }
        assert_eq!(b.transport.counters().streams_refused, 30);
        assert_eq!(a.admitted(), 1);
    }

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

    async fn another_node_than_the_dialled_one_is_refused() {
        let world = world(Weather::default());
        let (a, b) = (world.node("a"), world.node("b"));
        a.transport.dial(&id("c"), b.address());
        until(|| a.host.said("dial-failed c") == 1).await;
        assert_eq!(a.host.said("c was dialled, b answered (code 0x11)"), 1);
        assert_eq!(a.host.said("connected") + b.host.said("connected"), 0);
    }

    async fn the_least_recently_used_connection_goes() {
        let world = world(Weather::default());
        let mut small = config("server", "edge");
        small.max_connections = 2;
        let server = world.node_as(introduction("server", 1), small, &world.authority.issue(&id("server")).unwrap());
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

    async fn under_load_an_address_is_proved_first() {
        let world = world(Weather::default());
        let server = world.node("server");
        let load = server.transport.shared.unvalidated.try_acquire_many(64).unwrap();
        world.serves(&server).await;
        assert!(server.transport.counters().handshakes_retried > 0);
        drop(load);
        while lock(&server.transport.shared.gate).take(address(1).ip(), clock::monotonic()) {}
        world.serves(&server).await;
        assert!(server.transport.counters().handshakes_ignored > 0);
    }

    async fn the_ninth_stream_waits() {
        let world = world(Weather::default());
        let (a, b) = (world.node("a"), world.node("b"));
        a.transport.dial_seed(b.address()).await.unwrap();
        for n in 0..20 {
            a.transport.open_stream(&id("b"), StreamId(1 + 2 * n));
        }
        let opened = || lock(&b.host.events).iter().filter(|(_, event)| *event == StreamEvent::Opened).count();
        // The hello's own credit comes back with the next ones.
        until(|| opened() >= 7).await;
        sleep(Duration::from_secs(5)).await;
        assert!(opened() <= 8);
        for n in 0..20 {
            a.transport.finish(StreamId(1 + 2 * n));
            b.transport.finish(StreamId(2 + 2 * n));
        }
        until(|| opened() >= 14).await;
    }

    async fn a_reload_that_makes_it_another_node_is_refused() {
        let world = world(Weather::default());
        let a = world.node("a");
        let error = a.transport.reload(&world.authority.issue(&id("b")).unwrap()).unwrap_err().to_string();
        assert!(error.contains("it names node b of cluster edge, this is a of edge"), "{error}");
        let b = world.node("b");
        assert_eq!(b.transport.dial_seed(a.address()).await.unwrap(), id("a"), "the old one still serves");
    }

    async fn loss_and_a_small_path_stop_nobody() {
        let world = world(Weather { loss: 0.1, duplication: 0.1, mtu: 1_300, jitter: Duration::from_millis(5), ..Weather::default() });
        let (a, b) = (world.node("a"), world.node("b"));
        a.transport.dial_seed(b.address()).await.unwrap();
        for n in 0..20 {
            assert!(a.transport.send(&id("b"), Bytes::from(vec![n; 1_400 + usize::from(n) * 1_000])));
        }
        until(|| lock(&b.host.messages).len() == 20).await;
    }
}

const FRAME_OVER: usize = crate::wire::limits::FRAME_LEN_MAX + 1;

/// Shakes hands and says `hello` on the first stream; how the server ends it.
async fn say(bad: &Node, server: &Node, hello: &[u8]) -> Closed {
    let shared = &bad.transport.shared;
    let endpoint = shared.endpoint().unwrap();
    let connecting =
        endpoint.connect_with(shared.client.clone(), server.address(), tls::SERVER_NAME).unwrap();
    let connection = connecting.await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(hello).await.unwrap();
    let error =
        timeout(Duration::from_secs(4), connection.closed()).await.expect("the server waits for ever");
    Closed::from_quinn(&error)
}

fn real(name: &str, authority: &Authority, bind: SocketAddr) -> Node {
    let host = host(introduction(name, 1));
    let config = NetConfig { bind, ..config(name, "edge") };
    let transport =
        Transport::bind(config, &authority.issue(&id(name)).unwrap(), Arc::clone(&host) as _).unwrap();
    Node { host, transport }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_sockets_carry_it_and_are_freed() {
    let authority = Authority::generate("edge").unwrap();
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let (a, b) = (real("a", &authority, any), real("b", &authority, any));
    a.transport.dial_seed(b.address()).await.unwrap();
    assert!(a.transport.send(&id("b"), Bytes::from_static(b"small")));
    assert!(a.transport.send(&id("b"), Bytes::from(vec![0; 500_000])));
    until(|| lock(&b.host.messages).len() == 2).await;
    let taken = Transport::bind(
        NetConfig { bind: b.address(), ..config("c", "edge") },
        &authority.issue(&id("c")).unwrap(),
        host(introduction("c", 1)),
    );
    assert!(matches!(taken, Err(Error::Bind { .. })));
    b.transport.shutdown(CloseCode::LEFT, "bye").await;
    until(|| a.host.said("disconnected b 0x1 bye") == 1).await;
    let again = real("b", &authority, b.address());
    a.transport.dial(&id("b"), again.address());
    until(|| a.host.said("connected b 1") == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_transport_frees_its_port_and_ends_its_tasks() {
    let authority = Authority::generate("edge").unwrap();
    let a = real("a", &authority, (Ipv4Addr::LOCALHOST, 0).into());
    let b = real("b", &authority, (Ipv4Addr::LOCALHOST, 0).into());
    a.transport.dial_seed(b.address()).await.unwrap();
    let (address, shared) = (b.address(), Arc::downgrade(&b.transport.shared));
    drop(b);
    until(|| shared.strong_count() == 0).await;
    until(|| std::net::UdpSocket::bind(address).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_ends_ends_its_connection() {
    let authority = Authority::generate("edge").unwrap();
    let a = real("a", &authority, (Ipv4Addr::LOCALHOST, 0).into());
    let now = clock::wall_now();
    let validity =
        Validity { not_before: now - Duration::from_secs(60), not_after: now + Duration::from_secs(2) };
    let short = authority.issue_for(&id("b"), validity).unwrap();
    let host = host(introduction("b", 1));
    let transport = Transport::bind(config("b", "edge"), &short, Arc::clone(&host) as _).unwrap();
    transport.dial_seed(a.address()).await.unwrap();
    until(|| a.host.said("disconnected b 0x12 the certificate of b has expired") == 1).await;
    assert!(clock::wall_now() < now + Duration::from_secs(5));
    until(|| host.said("disconnected a 0x12") == 1).await;
    assert_eq!(transport.reload(&authority.issue(&id("b")).unwrap()).unwrap(), 0);
    transport.dial_seed(a.address()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_known_as_soon_as_the_next_process_has_the_port() {
    let authority = Authority::generate("edge").unwrap();
    let a = real("a", &authority, (Ipv4Addr::LOCALHOST, 0).into());
    let identity = authority.issue(&id("b")).unwrap();
    let begin = |bind| {
        let config = NetConfig { bind, ..config("b", "edge") };
        Transport::bind(config, &identity, host(introduction("b", 1)))
    };
    let b = begin((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = b.local_address();
    a.transport.dial_seed(address).await.unwrap();
    drop(b);
    let mut next = None;
    until(|| {
        next = begin(address).ok();
        next.is_some()
    })
    .await;
    let before = clock::monotonic();
    until(|| {
        a.transport.send(&id("b"), Bytes::from_static(b"are you there"));
        a.host.said("disconnected b") == 1
    })
    .await;
    assert!(before.elapsed() < Duration::from_secs(5), "a reset, not the idle time-out of 30 s");
}
