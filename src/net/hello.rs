//! Admission: who may enter, and as whom. In TLS 1.3 a dialler's handshake ends before its certificate was
//! judged, so a connection counts only after a hello on its first stream was answered with a welcome. Both
//! are an `Introduction`; a refusal is a close with a code and a reason, which both sides log.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, Incoming, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use crate::{
    Error, NodeId,
    identity::{self, RejectionKind, Role},
    net::{
        Closed, Judgement, Shared, close, lock,
        pool::{Admission, Conn},
        stream::{self, Fault},
        tls::SERVER_NAME,
        unix_now,
    },
    wire::{
        CloseCode,
        codec::{self, Malformed},
        hello::Introduction,
        limits::{CHAIN_LEN_MAX, HANDSHAKE, HELLO, HELLO_LEN_MAX},
    },
};

/// For an older life of the newcomer to show that it lives.
const INCUMBENT: Duration = Duration::from_millis(500);
/// For the welcome: the other side may have to ask an incumbent first.
const WELCOME: Duration = Duration::from_millis(2_000 + 500);

/// Serves one handshake to its welcome or refusal.
pub(crate) async fn accept(
    shared: Arc<Shared>,
    incoming: Incoming,
    unvalidated: Option<OwnedSemaphorePermit>,
) {
    let remote = incoming.remote_address();
    let connection = match handshake(incoming).await {
        Ok(connection) => connection,
        Err(closed) => return shared.refused(remote, &closed),
    };
    drop(unvalidated); // the handshake proved the address
    if let Err(closed) = welcome(&shared, &connection).await {
        shared.refused(remote, &closed);
        close::close(&connection, &closed);
    }
}

async fn handshake(incoming: Incoming) -> Result<Connection, Closed> {
    let lost = |error: ConnectionError| Closed::from_quinn(&error);
    let connecting = incoming.accept().map_err(lost)?;
    match timeout(HANDSHAKE, connecting).await {
        Ok(result) => result.map_err(lost),
        Err(_) => Err(Closed::ours(CloseCode::TOO_SLOW, "the handshake did not end within 5 s")),
    }
}

async fn welcome(shared: &Arc<Shared>, connection: &Connection) -> Result<(), Closed> {
    let (certificate, admission) = identify(shared, connection, Role::Dialler)?;
    let (mut send, introduction) = timeout(HELLO, read_hello(shared, connection))
        .await
        .map_err(|_| Closed::ours(CloseCode::TOO_SLOW, "no hello within 2 s"))??;
    if let Some(closed) = shared.must_stay_away(certificate.node.as_ref().unwrap_or(&introduction.node_id)) {
        return Err(closed);
    }
    vet(shared, &certificate, &introduction).await?;
    if is_early(connection).await {
        return Err(Closed::ours(CloseCode::PROTOCOL_VIOLATION, "it did not wait for the welcome"));
    }
    let peer = introduction.node_id.clone();
    let answer = encode(&shared.host.introduce(Some(&peer)))?;
    let conn = Conn::new(admission, peer, introduction.epoch, false, connection.clone());
    shared.admit(&conn, introduction)?;
    shared.counters.accepted.one();
    // If it does not arrive, the connection is gone, and its task will find out.
    let _ = timeout(HELLO, stream::write_frame(&mut send, answer)).await;
    let _ = send.finish();
    shared.tell();
    Ok(())
}

/// Whether the peer has sent anything besides its hello: nothing of that may reach the core. An honest one
/// waits for the welcome.
async fn is_early(connection: &Connection) -> bool {
    let streams = tokio::select! {
        biased;
        stream = connection.accept_bi() => stream.is_ok(),
        () = std::future::ready(()) => false,
    };
    streams || connection.stats().frame_rx.datagram > 0
}

/// The hello, after any number of echoes: a node may ask whether this one lives without wanting to enter.
async fn read_hello(shared: &Shared, connection: &Connection) -> Result<(SendStream, Introduction), Closed> {
    loop {
        let stream = connection.accept_bi().await;
        let (mut send, mut recv) = stream.map_err(|error| Closed::from_quinn(&error))?;
        match stream::read_kind(&mut recv).await {
            Ok(stream::HELLO) => return Ok((send, read_introduction(connection, &mut recv).await?)),
            Ok(stream::ECHO) => stream::answer_echo(shared, None, &mut send).await,
            Ok(_) => return Err(Closed::ours(CloseCode::PROTOCOL_VIOLATION, "the first stream is no hello")),
            Err(fault) => return Err(failed(connection, &fault, "hello")),
        }
    }
}

async fn read_introduction(connection: &Connection, recv: &mut RecvStream) -> Result<Introduction, Closed> {
    match stream::read_frame(recv, WELCOME, HELLO_LEN_MAX).await {
        Ok(Some(bytes)) => decode(&bytes),
        Ok(None) => Err(Closed::ours(CloseCode::PROTOCOL_VIOLATION, "an empty hello")),
        Err(fault) => Err(failed(connection, &fault, "hello or welcome")),
    }
}

fn failed(connection: &Connection, fault: &Fault, what: &str) -> Closed {
    match (fault, connection.close_reason()) {
        (Fault::Lost, Some(error)) => Closed::from_quinn(&error),
        (Fault::Lost, None) => Closed::ours(CloseCode::PROTOCOL_VIOLATION, format!("the {what} was cut")),
        (Fault::TooLarge(size), _) => {
            let reason = format!("a {what} of {size} bytes; the limit is {HELLO_LEN_MAX}");
            Closed::ours(CloseCode::TOO_LARGE, reason)
        }
        (Fault::TooSlow | Fault::Silent, _) => {
            Closed::ours(CloseCode::TOO_SLOW, format!("the {what} was not complete in time"))
        }
    }
}

fn encode(introduction: &Introduction) -> Result<Bytes, Closed> {
    let bytes = rmp_serde::to_vec(introduction)
        .map_err(|error| Closed::ours(CloseCode::INTERNAL_ERROR, format!("no introduction: {error}")))?;
    if bytes.len() > HELLO_LEN_MAX {
        let reason = format!("our own introduction has {} bytes; the limit is {HELLO_LEN_MAX}", bytes.len());
        return Err(Closed::ours(CloseCode::INTERNAL_ERROR, reason));
    }
    Ok(bytes.into())
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Introduction, Closed> {
    codec::decode(bytes).map_err(|Malformed(fault)| {
        Closed::ours(CloseCode::PROTOCOL_VIOLATION, format!("a malformed hello: {fault}"))
    })
}

/// What the handshake proved, judged once more: the identity may have been reloaded since.
fn identify(
    shared: &Shared,
    connection: &Connection,
    role: Role,
) -> Result<(identity::Peer, Admission), Closed> {
    let generation = shared.generation.load(std::sync::atomic::Ordering::Relaxed);
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or_else(|| Closed::ours(CloseCode::IDENTITY_MISMATCH, "no certificate"))?;
    if chain.iter().map(|certificate| certificate.len()).sum::<usize>() > CHAIN_LEN_MAX {
        return Err(Closed::ours(
            CloseCode::TOO_LARGE,
            format!("a certificate chain over {CHAIN_LEN_MAX} bytes"),
        ));
    }
    let peer = shared.tls.trust().judge(&chain, role, unix_now()).map_err(|rejection| {
        let code = match rejection.kind {
            RejectionKind::Cluster => CloseCode::WRONG_CLUSTER,
            _ => CloseCode::NO_LONGER_TRUSTED,
        };
        Closed::ours(code, rejection.reason)
    })?;
    let admission = Admission { chain: *chain, not_after: peer.not_after, generation };
    Ok((peer, admission))
}

/// Whether what a peer says of itself fits its certificate and this node, and the host lets it in.
async fn vet(
    shared: &Arc<Shared>,
    certificate: &identity::Peer,
    theirs: &Introduction,
) -> Result<(), Closed> {
    let ours = shared.host.introduce(Some(&theirs.node_id));
    let ((min, max), (our_min, our_max)) = (theirs.versions, ours.versions);
    if min > max || max < our_min || min > our_max {
        let reason = format!("wire versions {min} to {max} of the one, {our_min} to {our_max} of the other");
        return Err(Closed::ours(CloseCode::VERSION_UNSUPPORTED, reason));
    }
    if theirs.cluster != certificate.cluster {
        let (said, proved) = (&theirs.cluster, &certificate.cluster);
        let reason = format!("said to be of cluster {said}, the certificate is of {proved}");
        return Err(Closed::ours(CloseCode::WRONG_CLUSTER, reason));
    }
    let node = &theirs.node_id;
    match &certificate.node {
        Some(proved) if proved != node => {
            let reason = format!("said to be {node}, the certificate is of {proved}");
            return Err(Closed::ours(CloseCode::IDENTITY_MISMATCH, reason));
        }
        None if !shared.config.policy.shared_certificate => {
            let reason = format!("{node} has a shared certificate, which is not allowed here");
            return Err(Closed::ours(CloseCode::IDENTITY_MISMATCH, reason));
        }
        _ => {}
    }
    if *node == shared.config.node_id {
        if theirs.epoch == ours.epoch {
            return Err(Closed::ours(CloseCode::DUPLICATE_ID, format!("{node} has dialled itself")));
        }
        let reason = format!("{node} is in use by a live process at {}", shared.local);
        shared.host.conflict(node, &reason);
        return Err(Closed::ours(CloseCode::DUPLICATE_ID, reason));
    }
    match shared.host.judge(theirs) {
        Judgement::Admit => Ok(()),
        Judgement::Refuse(code, reason) => Err(Closed::ours(code, reason)),
        Judgement::Incumbent { epoch, address } => {
            let answered = timeout(INCUMBENT, ask_incumbent(shared, node, epoch, address)).await;
            let Ok(Some(at)) = answered else { return Ok(()) };
            let reason = format!("{node} is in use by a live process at {at}");
            shared.host.conflict(node, &reason);
            Err(Closed::ours(CloseCode::DUPLICATE_ID, reason))
        }
    }
}

/// Where the older life of a node still answers, if it does.
async fn ask_incumbent(
    shared: &Arc<Shared>,
    node: &NodeId,
    epoch: u64,
    address: SocketAddr,
) -> Option<SocketAddr> {
    let old = lock(&shared.pool).open(node).filter(|conn| conn.epoch == epoch);
    let answer = if let Some(old) = &old {
        stream::ask_echo(&old.connection).await
    } else {
        let connecting = shared.endpoint()?.connect_with(shared.client.clone(), address, SERVER_NAME).ok()?;
        let connection = connecting.await.ok()?;
        let answer = match identify(shared, &connection, Role::Dialled) {
            Ok((peer, _)) if peer.node.as_ref().is_none_or(|proved| proved == node) => {
                stream::ask_echo(&connection).await
            }
            _ => None,
        };
        close::close(&connection, &Closed::ours(CloseCode::DUPLICATE_CONNECTION, "only asked"));
        answer
    };
    let at = old.map_or(address, |conn| conn.connection.remote_address());
    answer.is_some_and(|(who, life)| who == *node && life == epoch).then_some(at)
}

/// Dials, and has the peer in the pool once this returns `Ok`.
pub(crate) async fn dial(
    shared: &Arc<Shared>,
    address: SocketAddr,
    expected: Option<&NodeId>,
) -> Result<NodeId, Error> {
    shared.counters.dials.one();
    match dial_once(shared, address, expected).await {
        Ok(peer) => {
            shared.counters.dials_admitted.one();
            Ok(peer)
        }
        Err(closed) => {
            shared.counters.dials_failed.one();
            if closed.code == CloseCode::UNSPECIFIED {
                return Err(Error::Unreachable { address: address.to_string(), reason: closed.reason });
            }
            if closed.code != CloseCode::DUPLICATE_CONNECTION {
                shared.refused(address, &closed);
            }
            Err(closed.refusal(address))
        }
    }
}

async fn dial_once(
    shared: &Arc<Shared>,
    address: SocketAddr,
    expected: Option<&NodeId>,
) -> Result<NodeId, Closed> {
    let unreachable = |reason: String| Closed::ours(CloseCode::UNSPECIFIED, reason);
    let endpoint = shared.endpoint().ok_or_else(|| unreachable("the node is stopping".into()))?;
    let connecting = endpoint
        .connect_with(shared.client.clone(), address, SERVER_NAME)
        .map_err(|error| unreachable(error.to_string()))?;
    let connection = timeout(HANDSHAKE, connecting)
        .await
        .map_err(|_| unreachable("no handshake within 5 s".into()))?
        .map_err(|error| Closed::from_quinn(&error))?;
    let entered = enter(shared, &connection, expected).await;
    if let Err(closed) = &entered {
        close::close(&connection, closed);
    }
    entered
}

/// Says hello and reads the welcome.
async fn enter(
    shared: &Arc<Shared>,
    connection: &Connection,
    expected: Option<&NodeId>,
) -> Result<NodeId, Closed> {
    let (certificate, admission) = identify(shared, connection, Role::Dialled)?;
    if let (Some(expected), Some(proved)) = (expected, &certificate.node)
        && expected != proved
    {
        return Err(strayed(expected, proved));
    }
    // A seed that is connected already is asked for nothing more than its certificate.
    if let (None, Some(node)) = (expected, &certificate.node)
        && *node != shared.config.node_id
        && lock(&shared.pool).open(node).is_some()
    {
        close::close(connection, &Closed::ours(CloseCode::DUPLICATE_CONNECTION, "connected already"));
        return Ok(node.clone());
    }
    let introduction = timeout(WELCOME, converse(shared, connection, certificate.node.as_ref().or(expected)))
        .await
        .map_err(|_| Closed::ours(CloseCode::TOO_SLOW, "no welcome within 2.5 s"))??;
    let peer = introduction.node_id.clone();
    if let Some(expected) = expected
        && *expected != peer
    {
        return Err(strayed(expected, &peer));
    }
    vet(shared, &certificate, &introduction).await?;
    let conn = Conn::new(admission, peer.clone(), introduction.epoch, true, connection.clone());
    shared.admit(&conn, introduction)?;
    shared.tell();
    Ok(peer)
}

fn strayed(expected: &NodeId, answered: &NodeId) -> Closed {
    Closed::ours(CloseCode::IDENTITY_MISMATCH, format!("{expected} was dialled, {answered} answered"))
}

async fn converse(
    shared: &Shared,
    connection: &Connection,
    peer: Option<&NodeId>,
) -> Result<Introduction, Closed> {
    let hello = encode(&shared.host.introduce(peer))?;
    let lost = |error: ConnectionError| Closed::from_quinn(&error);
    let (mut send, mut recv) = connection.open_bi().await.map_err(lost)?;
    let written = match send.write_all(&[stream::HELLO]).await {
        Ok(()) => stream::write_frame(&mut send, hello).await,
        Err(_) => Err(Fault::Lost),
    };
    if let Err(fault) = written {
        return Err(failed(connection, &fault, "hello"));
    }
    let _ = send.finish();
    read_introduction(connection, &mut recv).await
}

impl Shared {
    /// Counts a refusal, by whichever side, and logs it within bounds.
    fn refused(&self, remote: SocketAddr, closed: &Closed) {
        if closed.code == CloseCode::DUPLICATE_CONNECTION {
            return; // a peer that only asked, or came twice
        }
        let name = close::cause(closed.code);
        self.counters.refused(name);
        if self.may_log() {
            let (code, by_peer) = (closed.code.0, closed.by_peer);
            tracing::warn!(%remote, code, name, reason = closed.reason, by_peer, "connection refused");
        }
    }
}
