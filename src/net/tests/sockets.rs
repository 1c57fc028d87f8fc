//! The same on real sockets.

use super::*;

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
