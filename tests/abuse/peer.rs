//! The bad peer: bare quinn and rustls with a good certificate, or with whatever a test gives it. Says what it
//! is told to say; answers pings only where a test asks it to.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs as backend;
#[cfg(not(feature = "aws-lc-rs"))]
use rustls::crypto::ring as backend;

use crate::{
    mint::{Certificate, client, secret, server},
    wire::{self, ClaimBody, Introduction, SignedClaim},
};

pub(crate) const ALPN: &str = "phalanx/1";
/// How long anything that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "epochs and versions are bounded by the time of people")]
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// What the peer is, before it meets anybody.
pub(crate) struct Mask {
    pub(crate) shown: Certificate,
    pub(crate) cluster: String,
    pub(crate) name: String,
    pub(crate) epoch: u64,
    pub(crate) endpoint: Endpoint,
    pub(crate) zone: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    /// Where others are told to reach it; its own socket unless a test says otherwise.
    pub(crate) listen: SocketAddr,
}

/// A member that was let in.
pub(crate) struct Peer {
    pub(crate) mask: Mask,
    pub(crate) connection: Connection,
    /// The messages that came, while it answers.
    pub(crate) heard: Arc<Mutex<Vec<Bytes>>>,
    silent: Arc<AtomicBool>,
}

/// How a connection ended: its code, whether an application's (else a TLS alert's), and the reason.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: u64,
    pub(crate) by_application: bool,
    pub(crate) reason: String,
}

pub(crate) fn ended(error: &ConnectionError) -> Ended {
    let (code, by_application, reason) = match error {
        ConnectionError::ApplicationClosed(close) => (close.error_code.into_inner(), true, &close.reason),
        ConnectionError::ConnectionClosed(close) => (close.error_code.into(), false, &close.reason),
        other => panic!("neither closed nor refused: {other}"),
    };
    Ended { code, by_application, reason: String::from_utf8_lossy(reason).into_owned() }
}

/// How the other side ends it.
pub(crate) async fn end_of(connection: &Connection) -> Ended {
    let error = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it stays open");
    ended(&error)
}

impl Mask {
    /// A name of the cluster `test`, with that certificate, on a socket of its own.
    pub(crate) fn new(name: &str, shown: Certificate) -> Self {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self::on(socket, name, shown)
    }

    pub(crate) fn on(socket: std::net::UdpSocket, name: &str, shown: Certificate) -> Self {
        let listen = socket.local_addr().unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(
            quinn::crypto::rustls::QuicServerConfig::try_from(server(&shown)).unwrap(),
        ));
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(quinn::EndpointConfig::default(), Some(config), socket, runtime);
        Self {
            shown,
            cluster: "test".into(),
            name: name.into(),
            epoch: wall_ms(),
            endpoint: endpoint.unwrap(),
            zone: None,
            tags: BTreeMap::new(),
            listen,
        }
    }

    pub(crate) fn config(&self) -> quinn::ClientConfig {
        let config = client(Some(&self.shown), &[ALPN]);
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        quinn::ClientConfig::new(Arc::new(crypto))
    }

    /// Shakes hands, and says nothing.
    pub(crate) async fn connect(&self, door: SocketAddr) -> Connection {
        let connecting = self.endpoint.connect_with(self.config(), door, "phalanx.cluster").unwrap();
        tokio::time::timeout(PATIENCE, connecting).await.expect("no handshake").unwrap()
    }

    pub(crate) fn body(&self) -> ClaimBody {
        ClaimBody {
            node_id: self.name.clone(),
            epoch: self.epoch,
            incarnation: 0,
            left: false,
            address: self.listen,
            zone: self.zone.clone(),
            tags: self.tags.clone(),
        }
    }

    /// Signs any claim with its own key, whoever it is about.
    pub(crate) fn sign(&self, body: &ClaimBody) -> SignedClaim {
        let body = wire::encode(body);
        let message = [b"phalanx claim v1\0", self.cluster.as_bytes(), b"\0", &body].concat();
        let key = backend::sign::any_supported_type(&secret(&self.shown)).unwrap();
        let signer = key.choose_scheme(&[rustls::SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap();
        let scheme = u16::from(signer.scheme()).to_be_bytes();
        let signature = [&scheme[..], &signer.sign(&message).unwrap()].concat();
        let chain = self.chain();
        SignedClaim {
            body: body.into(),
            signature: signature.into(),
            chain_hash: wire::chain_hash(&chain),
            chain: Some(chain.into()),
        }
    }

    fn chain(&self) -> Vec<u8> {
        let length = |der: &[u8]| u16::try_from(der.len()).unwrap().to_be_bytes();
        self.shown.chain.iter().flat_map(|der| [&length(der), &der[..]].concat()).collect()
    }

    /// What an honest node of this name would say.
    pub(crate) fn introduction(&self) -> Introduction {
        let core: wire::CoreHello = (self.sign(&self.body()), 0, Vec::new());
        Introduction {
            versions: (1, 1),
            cluster: self.cluster.clone(),
            node_id: self.name.clone(),
            epoch: self.epoch,
            incarnation: 0,
            zone: self.zone.clone(),
            listen: Some(self.listen),
            your_epoch: 0,
            core: wire::encode(&core).into(),
        }
    }

    /// Says `hello` on a first stream.
    pub(crate) async fn say(connection: &Connection, hello: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(hello).await.unwrap();
        (send, recv)
    }

    /// Says that introduction; what is answered, or how it ended.
    pub(crate) async fn introduce(
        &self,
        door: SocketAddr,
        hello: &Introduction,
    ) -> Result<(Connection, Introduction), Ended> {
        let connection = self.connect(door).await;
        let said = [&[wire::HELLO][..], &wire::frame(&wire::encode(hello))].concat();
        let answer = async {
            let (mut send, mut recv) = connection.open_bi().await.ok()?;
            send.write_all(&said).await.ok()?;
            let _ = send.finish();
            recv.read_to_end(1 << 20).await.ok().filter(|bytes| bytes.len() > 4)
        };
        match tokio::time::timeout(PATIENCE, answer).await.expect("neither welcome nor refusal") {
            Some(bytes) => Ok((connection, wire::decode(&bytes[4..]))),
            None => Err(end_of(&connection).await),
        }
    }

    /// Becomes a member, which answers pings until it is told to be silent.
    pub(crate) async fn join(self, door: SocketAddr) -> Peer {
        let hello = self.introduction();
        let (connection, _) = self.introduce(door, &hello).await.expect("it is let in");
        let peer =
            Peer { mask: self, connection, heard: Arc::default(), silent: Arc::new(AtomicBool::new(false)) };
        peer.answer();
        peer
    }
}

impl Peer {
    /// Acknowledges every ping, and keeps all that comes.
    fn answer(&self) {
        let (connection, heard) = (self.connection.clone(), Arc::clone(&self.heard));
        let silent = Arc::clone(&self.silent);
        tokio::spawn(async move {
            while let Ok(bytes) = connection.read_datagram().await {
                for (kind, body) in wire::parts(&bytes) {
                    if kind == wire::PING && !silent.load(Relaxed) {
                        let (seq, digests): (u64, wire::Digests) = wire::decode(&body);
                        let ack = wire::message(wire::ACK, &(seq, (digests.0, digests.1, false)));
                        let _ = connection.send_datagram(ack.into());
                    }
                }
                let mut heard = heard.lock().unwrap();
                heard.push(bytes);
                if heard.len() > 10_000 {
                    heard.drain(..5_000);
                }
            }
        });
    }

    pub(crate) fn be_silent(&self) {
        self.silent.store(true, Relaxed);
    }

    /// Sends a datagram, whatever it holds, as soon as there is room.
    pub(crate) async fn send(&self, bytes: Vec<u8>) {
        self.connection.send_datagram_wait(bytes.into()).await.unwrap();
    }

    /// How often a part of that kind has come.
    pub(crate) fn count(&self, kind: u8) -> usize {
        let heard = self.heard.lock().unwrap();
        heard.iter().flat_map(|bytes| wire::parts(bytes)).filter(|(came, _)| *came == kind).count()
    }

    /// Proof that everything sent before was looked at: a ping that is answered. Pings of its own are numbered
    /// from the top.
    pub(crate) async fn settle(&self) {
        let seq = u64::MAX - u64::try_from(self.count(wire::ACK)).unwrap();
        let answered = || {
            let heard = self.heard.lock().unwrap();
            heard
                .iter()
                .flat_map(|bytes| wire::parts(bytes))
                .any(|(kind, body)| kind == wire::ACK && wire::decode::<(u64, wire::Digests)>(&body).0 == seq)
        };
        let ping = wire::message(wire::PING, &(seq, (0_u64, 0_u64, false)));
        let mut waited = Duration::ZERO;
        while !answered() {
            assert!(waited < PATIENCE, "a ping is not answered: {:?}", self.connection.close_reason());
            // Datagrams may be lost, also on a machine's own loop under load.
            self.send(ping.clone()).await;
            let pause = Duration::from_millis(20);
            tokio::time::sleep(pause).await;
            waited += pause;
        }
    }

    /// Opens a stream of that kind and writes the bytes.
    pub(crate) async fn stream(&self, kind: u8, bytes: &[u8]) -> (SendStream, RecvStream) {
        let opened = tokio::time::timeout(PATIENCE, self.connection.open_bi()).await;
        let (mut send, recv) = opened.expect("no credit for a stream").unwrap();
        send.write_all(&[&[kind], bytes].concat()).await.unwrap();
        (send, recv)
    }

    /// Sends one message on a message stream of its own.
    pub(crate) async fn say(&self, message: &[u8]) -> (SendStream, RecvStream) {
        self.stream(wire::MESSAGES, &wire::frame(message)).await
    }

    pub(crate) async fn end(&self) -> Ended {
        end_of(&self.connection).await
    }

    pub(crate) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    pub(crate) fn name(&self) -> &str {
        &self.mask.name
    }
}

/// The code with which the other side reset what it wrote, or stopped reading.
pub(crate) async fn stopped(send: &SendStream) -> Option<u64> {
    let stopped = tokio::time::timeout(PATIENCE, send.stopped()).await.expect("it goes on reading");
    stopped.ok().flatten().map(quinn::VarInt::into_inner)
}

/// One frame of an exchange; `None` at its end.
pub(crate) async fn read_frame(recv: &mut RecvStream) -> Option<Vec<u8>> {
    let read = async {
        let mut header = [0; 4];
        recv.read_exact(&mut header).await.ok()?;
        let mut body = vec![0; u32::from_be_bytes(header) as usize];
        recv.read_exact(&mut body).await.ok()?;
        Some(body)
    };
    tokio::time::timeout(PATIENCE, read).await.expect("no frame")
}
