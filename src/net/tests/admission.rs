//! Who is refused, with which words, and that the node that refused goes on serving.

use super::*;

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

#[tokio::test(start_paused = true)]
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

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_refused() {
    let world = world(Weather::default());
    let server = world.node("server");
    let now = clock::wall_now();
    let validity =
        Validity { not_before: now - Duration::from_secs(7_200), not_after: now - Duration::from_secs(60) };
    let expired = world.authority.issue_for(&id("bad"), validity).unwrap();
    let bad = world.node_as(introduction("bad", 1), config("bad", "edge"), &expired);
    world.refused(&server, &bad, "certificate_expired").await;
    assert_eq!(server.transport.counters().refused["certificate_expired"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_cluster_of_the_same_ca_is_refused() {
    let world = world(Weather::default());
    let server = world.node("server");
    let now = clock::wall_now();
    let validity =
        Validity { not_before: now - Duration::from_secs(60), not_after: now + Duration::from_secs(3_600) };
    let other = world
        .authority
        .issue_as(&SpiffeName { cluster: "core".into(), node: Some(id("bad")) }, validity)
        .unwrap();
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

#[tokio::test(start_paused = true)]
async fn a_hello_of_another_cluster_is_refused() {
    let world = world(Weather::default());
    let server = world.node("server");
    let bad = world.node("bad");
    lock(&bad.host.introduction).cluster = "core".into();
    world.refused(&server, &bad, "said to be of cluster core, the certificate is of edge (code 0x10)").await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_of_another_node_is_refused() {
    let world = world(Weather::default());
    let server = world.node("server");
    let bad = world.node("bad");
    lock(&bad.host.introduction).node_id = id("someone");
    world.refused(&server, &bad, "said to be someone, the certificate is of bad (code 0x11)").await;
}

#[tokio::test(start_paused = true)]
async fn versions_without_overlap_are_refused() {
    let world = world(Weather::default());
    let server = world.node("server");
    let bad = world.node("bad");
    lock(&bad.host.introduction).versions = (2, 3);
    world.refused(&server, &bad, "wire versions 2 to 3 of the one, 1 to 1 of the other (code 0x21)").await;
}

#[tokio::test(start_paused = true)]
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

#[tokio::test(start_paused = true)]
async fn a_node_does_not_connect_to_itself() {
    let world = world(Weather::default());
    let server = world.node("server");
    let error = server.transport.dial_seed(server.address()).await.unwrap_err().to_string();
    assert!(error.contains("dialled itself"), "{error}");
    assert_eq!(server.host.said("connected") + server.host.said("conflict"), 0);
    world.serves(&server).await;
}

#[tokio::test(start_paused = true)]
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

#[tokio::test(start_paused = true)]
async fn another_protocol_is_refused() {
    let world = world(Weather::default());
    let server = world.node("server");
    let bad = world.node("bad");
    for alpn in [&[&b"h3"[..]][..], &[], &[b"phalanx/2"]] {
        let tls = bad.transport.shared.tls.client_config_for(alpn).unwrap();
        let client = quinn::ClientConfig::new(Arc::new(tls));
        let endpoint = bad.transport.shared.endpoint().unwrap();
        let error =
            endpoint.connect_with(client, server.address(), tls::SERVER_NAME).unwrap().await.unwrap_err();
        assert_eq!(Closed::from_quinn(&error).code, CloseCode(0x178));
    }
    assert_eq!(server.transport.counters().refused["no_application_protocol"], 3);
    world.serves(&server).await;
}

#[tokio::test(start_paused = true)]
async fn another_node_than_the_dialled_one_is_refused() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial(&id("c"), b.address());
    until(|| a.host.said("dial-failed c") == 1).await;
    assert_eq!(a.host.said("c was dialled, b answered (code 0x11)"), 1);
    assert_eq!(a.host.said("connected") + b.host.said("connected"), 0);
}

#[tokio::test(start_paused = true)]
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
