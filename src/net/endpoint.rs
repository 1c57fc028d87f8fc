//! One UDP socket as client and server, and who may begin a handshake on it. Knows quinn's settings and the
//! reason for each; knows no peer.

use std::{
    fmt, io,
    io::IoSliceMut,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use quinn::{
    AsyncUdpSocket, ClientConfig, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, UdpPoller,
    VarInt,
    crypto::{CryptoError, HmacKey},
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::{
    CipherSuite, SupportedCipherSuite,
    crypto::tls13::{Hkdf, OkmBlock},
};
use tokio::io::Interest;

use crate::{
    Error,
    driver::clock,
    identity::{self, Identity},
    net::tls::Tls,
    wire::limits::{STREAMS_OPEN_MAX, UNWELCOMED_MAX},
};

/// A burst of handshakes or of delegations must fit; the system may cap it lower (`net.core.rmem_max`).
const SOCKET_BUFFER: usize = 4 << 20;
const IDLE: Duration = Duration::from_secs(30);
/// By the dialler only: one side is enough.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// What a peer may send on one stream before it is read, and on all; a frame fits.
const STREAM_WINDOW: u32 = 1 << 20;
const WINDOW: u32 = 4 << 20;
/// Datagrams that nobody has read yet, in bytes: quinn drops the oldest beyond.
const DATAGRAMS_UNREAD: usize = 256 * 1024;
/// Datagrams go before streams and cannot be taken back: after an outage a large buffer is old news.
const DATAGRAMS_UNSENT: usize = 64 * 1024;
/// What quinn keeps of one handshake that nobody has looked at yet, and of all, in bytes.
const INCOMING_BYTES: u64 = 64 * 1024;
const INCOMING_BYTES_ALL: u64 = 4 << 20;

/// quinn's settings for connections that this side opened, or not.
fn transport(dialled: bool) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(
            u32::try_from(IDLE.as_millis()).unwrap_or(30_000),
        ))))
        .keep_alive_interval(dialled.then_some(KEEP_ALIVE))
        // A lost first packet waits for three of these; quinn's own 333 ms make that a second.
        .initial_rtt(Duration::from_millis(100))
        // Some cards accept it and fail later; single packets gain nothing by it.
        .enable_segmentation_offload(false)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_OPEN_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(WINDOW.into())
        .datagram_receive_buffer_size(Some(DATAGRAMS_UNREAD))
        .datagram_send_buffer_size(DATAGRAMS_UNSENT);
    Arc::new(config)
}

pub(crate) fn client_config(tls: &Arc<Tls>) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::new(Arc::new(tls.client_config()?));
    config.transport_config(transport(true));
    Ok(config)
}

pub(crate) fn server_config(tls: &Arc<Tls>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::with_crypto(Arc::new(tls.server_config()?));
    config
        .transport_config(transport(false))
        .migration(false)
        .max_incoming(UNWELCOMED_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_ALL);
    Ok(config)
}

/// The keys come from the node's private key, where its bytes are at hand, so that after a crash the next process can tell the peers of
/// the last one that their connections are gone. Both are needed: without the second no reset is ever sent.
pub(crate) fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let mut reset = [0; 32];
    let mut ids = [0; 8];
    derive(identity, b"phalanx stateless reset", &mut reset);
    derive(identity, b"phalanx connection ids", &mut ids);
    let mut config = EndpointConfig::new(Arc::new(ResetKey(OkmBlock::new(&reset))));
    let key = u64::from_be_bytes(ids);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)));
    // 20 ms, the default, would leave the last of 100 peers waiting for its time-out.
    config.min_reset_interval(Duration::from_millis(1));
    config
}

/// HKDF-SHA256 as the TLS provider has it.
fn hkdf() -> &'static dyn Hkdf {
    static HKDF: OnceLock<&'static dyn Hkdf> = OnceLock::new();
    *HKDF.get_or_init(|| {
        let provider = identity::provider();
        let wanted = CipherSuite::TLS13_AES_128_GCM_SHA256;
        let suite = provider.cipher_suites.iter().find(|suite| suite.suite() == wanted);
        suite.and_then(SupportedCipherSuite::tls13).expect("every provider of TLS 1.3 has it").hkdf_provider
    })
}

fn derive(identity: &Identity, label: &[u8], output: &mut [u8]) {
    // Where a device keeps the key nothing can be derived from it, and the next process has other keys.
    let chance = [clock::entropy(), clock::entropy()].map(u64::to_be_bytes).concat();
    let secret = identity.secret().map_or(&chance[..], |secret| secret.secret_der());
    hkdf()
        .extract_from_secret(Some(b"phalanx v1"), secret)
        .expand_slice(&[label], output)
        .expect("at most 32 bytes are asked for");
}

struct ResetKey(OkmBlock);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.copy_from_slice(hkdf().hmac_sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = hkdf().hmac_sign(&self.0, data);
        let expected = expected.as_ref();
        // No early end: the time taken tells nothing.
        let differ = expected.iter().zip(signature).fold(0, |differ, (a, b)| differ | (a ^ b));
        if differ == 0 && expected.len() == signature.len() { Ok(()) } else { Err(CryptoError) }
    }
}

/// The node's socket. Can be closed under quinn, which otherwise keeps it until the last connection has
/// drained; and an error of the system ends neither the endpoint nor a core (quinn's own socket retries in a
/// busy loop).
pub(crate) struct Socket {
    live: ArcSwapOption<Live>,
    address: SocketAddr,
    /// After an error, when to try again.
    pause: Mutex<Option<Pin<Box<tokio::time::Sleep>>>>,
    errors: std::sync::atomic::AtomicU64,
}

struct Live {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    pub(crate) fn bind(address: SocketAddr) -> Result<Arc<Self>, Error> {
        let bind = || -> io::Result<Self> {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address(address),
                socket2::Type::DGRAM,
                Some(socket2::Protocol::UDP),
            )?;
            // As large as the system allows, silently: small ones only cost speed in a burst.
            let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
            let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
            socket.bind(&address.into())?;
            socket.set_nonblocking(true)?;
            let socket: std::net::UdpSocket = socket.into();
            let state = UdpSocketState::new((&socket).into())?;
            let address = socket.local_addr()?;
            let io = tokio::net::UdpSocket::from_std(socket)?;
            let live = ArcSwapOption::from_pointee(Live { io, state });
            Ok(Self { live, address, pause: Mutex::default(), errors: std::sync::atomic::AtomicU64::new(0) })
        };
        bind().map(Arc::new).map_err(|source| {
            let remedy = match source.kind() {
                io::ErrorKind::AddrInUse => "stop whoever uses it, or take another port",
                io::ErrorKind::PermissionDenied => "take a port above 1023, or give the process the right",
                io::ErrorKind::AddrNotAvailable => "take an address that this machine has",
                _ => "check address and port",
            };
            Error::Bind { address, source, remedy: remedy.into() }
        })
    }

    /// Frees the port at once. What quinn still wants to say is dropped.
    pub(crate) fn close(&self) {
        self.live.store(None);
    }

    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.address)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(live) = &*self.live.load() else { return Ok(()) };
        live.io.try_io(Interest::WRITABLE, || live.state.send((&live.io).into(), transmit))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sleep) = pause.as_mut() {
            ready!(sleep.as_mut().poll(cx));
            *pause = None;
        }
        let Some(live) = self.live.load_full() else { return Poll::Pending };
        loop {
            if let Err(error) = ready!(live.io.poll_recv_ready(cx)) {
                return Poll::Ready(Err(error));
            }
            match live.io.try_io(Interest::READABLE, || live.state.recv((&live.io).into(), bufs, meta)) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // quinn would end the endpoint, and with it every connection.
                    if self.errors.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                        tracing::warn!(%error, "the socket fails to receive; trying again every 10 ms");
                    }
                    let mut sleep = Box::pin(tokio::time::sleep(Duration::from_millis(10)));
                    if sleep.as_mut().poll(cx).is_pending() {
                        *pause = Some(sleep);
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_receive_segments(&self) -> usize {
        self.live.load().as_ref().map_or(1, |live| live.state.gro_segments())
    }

    fn may_fragment(&self) -> bool {
        self.live.load().as_ref().is_none_or(|live| live.state.may_fragment())
    }
}

/// Waits until the socket takes another packet. Holds the socket only while it waits.
struct Poller {
    socket: Arc<Socket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(live) = self.socket.live.load_full() else { return Poll::Ready(Ok(())) };
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(async move { live.io.writable().await }));
        let result = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::limits::{
        EXCHANGE_AGE, FRAME, FRAME_LEN_MAX, HANDSHAKE, HEADER, HELLO, HELLO_LEN_MAX, OVER_BUDGET, STILL,
        UNVALIDATED_MAX,
    };

    #[test]
    fn our_limits_are_met_before_quinns() {
        for time in [HANDSHAKE, HELLO, HEADER, FRAME, OVER_BUDGET] {
            assert!(time < IDLE, "{time:?}");
        }
        assert!(KEEP_ALIVE * 2 < IDLE && STILL <= IDLE && IDLE < EXCHANGE_AGE);
        assert!(HELLO_LEN_MAX < FRAME_LEN_MAX && FRAME_LEN_MAX <= STREAM_WINDOW as usize);
        const { assert!(STREAM_WINDOW < WINDOW && DATAGRAMS_UNSENT < DATAGRAMS_UNREAD) };
        const { assert!(UNVALIDATED_MAX < UNWELCOMED_MAX) };
    }
}
