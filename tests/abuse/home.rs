//! Sections 4 and 5, as far as no other test has them: configurations, starts, and callers.

use std::{net::UdpSocket, process::Command, time::Duration};

use phalanx::{Authority, Cluster, Error, Identity, Value};

use crate::{
    common::{authority, id, node, started, still_serves, text, until},
    mint::{Mint, server},
    process::Victim,
    world::name,
};

#[tokio::test]
async fn c10_a_file_of_authorities_that_has_none_is_refused_by_name() {
    let mint = Mint::new("ours");
    let shown = mint.certificate(&name("a"), |_| {});
    let key = shown.key.serialize_pem();
    for (ca, says) in [("", "it is empty"), ("not a certificate\n", "CA file")] {
        let error = Identity::from_pem(ca.as_bytes(), shown.pem.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    // A leaf is no authority: at the latest, the node does not start with it.
    let leaf = mint.certificate(&name("b"), |_| {});
    let result = match Identity::from_pem(leaf.pem.as_bytes(), shown.pem.as_bytes(), key.as_bytes()) {
        Ok(identity) => {
            let cluster = Cluster::new(crate::common::config(identity, &[])).unwrap();
            let result = cluster.start().await.map(drop);
            assert!(!cluster.is_running());
            result
        }
        Err(error) => Err(error),
    };
    assert!(matches!(result, Err(Error::Identity { .. })), "{result:?}");
}

#[tokio::test]
async fn c11_seeds_that_are_no_nodes_keep_nobody_from_serving() {
    let authority = authority();
    // One that speaks HTTP/3, one that is silent, one that nobody serves.
    let mint = Mint::new("theirs");
    let mut tls = server(&mint.certificate(&name("web"), |_| {}));
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let web = quinn::Endpoint::server(
        quinn::ServerConfig::with_crypto(std::sync::Arc::new(crypto)),
        "127.0.0.1:0".parse().unwrap(),
    )
    .unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = node(&authority, "a", &[]);
    let address = web.local_addr().unwrap().to_string();
    config.seeds = vec![
        address.clone(),
        address,
        silent.local_addr().unwrap().to_string(),
        free.to_string(),
        "[::1]:7946".into(),
        "lb-1.invalid:7946".into(),
    ];
    let serving = tokio::spawn(async move {
        while let Some(incoming) = web.accept().await {
            let _ = incoming.await;
        }
    });
    let cluster = tokio::time::timeout(Duration::from_secs(30), started(config)).await.expect("it starts");
    until("the web server was asked", || cluster.stats().net.refused.contains_key("no_application_protocol"))
        .await;
    still_serves(&cluster, &authority, "good").await;
    assert_eq!(cluster.cluster_size(), 1);
    serving.abort();
}

#[tokio::test]
async fn c15_an_identity_that_cannot_be_written_leaves_no_half_key() {
    let authority = Authority::generate("test").unwrap();
    let identity = authority.issue(&id("a")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    for place in [file.clone(), file.join("below")] {
        let error = identity.write_to(&place).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"in the way");
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["file"]);
}

#[tokio::test]
async fn c15_a_node_serves_with_sixty_four_open_files() {
    let mut victim = Victim::start_in(|binary| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""]).arg(binary);
        shell
    })
    .await;
    let before = victim.memory();
    victim.is_unharmed(before, 64 << 20).await;
}

#[tokio::test]
async fn a01_values_up_to_the_limit_are_taken_and_one_byte_more_is_not() {
    let authority = authority();
    let fleet = crate::common::fleet(&authority, 2).await;
    // 256 KiB of MessagePack: five bytes say how long the bytes are.
    let limit = 256 * 1024;
    let bytes = |len: usize| serde_bytes::ByteBuf::from(vec![7; len - 5]);
    for (len, fits) in [(limit - 1, true), (limit, true), (limit + 1, false), (10 << 20, false)] {
        let result = fleet[0].broadcast("routes", format!("k{len}"), &bytes(len));
        match result {
            Ok(Some(record)) => assert!(fits && record.value.as_bytes().len() == len),
            Err(Error::ValueTooLarge { size, limit: told }) => {
                assert!(!fits && size > limit && told == limit, "{size} of {told}");
            }
            other => panic!("{other:?}"),
        }
    }
    let key = format!("k{limit}");
    until("the largest arrives", || fleet[1].get(&"routes".into(), &key).is_some()).await;
    for (len, fits) in [(512, true), (513, false)] {
        assert_eq!(fleet[0].broadcast("routes", "k".repeat(len), &1).is_ok(), fits);
    }
    still_serves(&fleet[0], &authority, "good").await;
}

/// Levels of nesting.
struct Deep(usize);

impl serde::Serialize for Deep {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == 0 {
            return serializer.serialize_unit();
        }
        serializer.serialize_newtype_variant("Deep", 0, "d", &Self(self.0 - 1))
    }
}

#[tokio::test]
async fn a02_a_value_deeper_than_the_limit_is_an_error() {
    let authority = authority();
    let cluster = started(node(&authority, "a", &[])).await;
    assert!(cluster.broadcast("routes", "x", &Deep(32)).unwrap().is_some());
    for depth in [33, 1_000] {
        let error = cluster.broadcast("routes", "y", &Deep(depth)).unwrap_err().to_string();
        assert!(error.contains("32 levels"), "{error}");
        assert!(Value::encode(&Deep(depth)).is_err());
    }
    assert!(cluster.get(&"routes".into(), "y").is_none());
    still_serves(&cluster, &authority, "good").await;
}

#[tokio::test]
async fn a14_no_text_makes_a_read_fail() {
    let cluster = started(node(&authority(), "a", &[])).await;
    for of in ["", "health", &"t".repeat(10_240), "a\0b", "\u{202e}"] {
        for key in ["", "\0", "\u{1f980}", &"k".repeat(100_000)] {
            assert_eq!(cluster.get(&of.into(), key), None);
        }
        assert_eq!(cluster.states(&of.into()), []);
    }
    for of in ["", &"t".repeat(65), "a\nb"] {
        let error = cluster.broadcast(of, "k", &1).unwrap_err();
        assert!(matches!(error, Error::InvalidStateType { .. }), "{error}");
    }
    cluster.broadcast("routes", "x", &"y").unwrap();
    assert_eq!(text(&cluster, &"routes".into(), "x").as_deref(), Some("y"));
}
