//! Which certificate a running node shows: a handshake that ends once the node has proved that it holds the
//! key. Joins nothing, sends no certificate, believes nothing that was not signed.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use quinn::crypto::rustls::QuicClientConfig;
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs as backend;
#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
use rustls::crypto::ring as backend;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// What nodes call the protocol.
const ALPN: &[u8] = b"phalanx/1";
/// A node that does not answer within this is not asked again.
const LIMIT: Duration = Duration::from_secs(5);

/// The certificate of the node at `address`, in DER; `Err` says why there is none.
pub(crate) fn certificate(address: &str) -> Result<CertificateDer<'static>, String> {
    let addresses = address
        .to_socket_addrs()
        .map_err(|error| format!("address {address}: it cannot be resolved ({error}); use HOST:PORT"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot ask {address}: {error}; check the limits of this process"))?;
    let mut reason = "it has no address".to_owned();
    for address in addresses {
        match runtime.block_on(shown_by(address)) {
            Ok(der) => return Ok(der),
            Err(error) => reason = error,
        }
    }
    Err(format!(
        "node {address}: it showed no certificate ({reason}); check the address, the port and the firewall \
         (UDP), or give its certificate file with --shown"
    ))
}

async fn shown_by(address: SocketAddr) -> Result<CertificateDer<'static>, String> {
    let provider = Arc::new(backend::default_provider());
    let witness = Arc::new(Witness { provider: Arc::clone(&provider), shown: Mutex::default() });
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .dangerous() // nothing is sent to the node, and what it shows is judged by the authority's record
        .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let mut endpoint = quinn::Endpoint::client(local).map_err(|error| error.to_string())?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
    let dialling = endpoint.connect(address, "phalanx").map_err(|error| error.to_string())?;
    // The node turns away who has no certificate, after it has shown its own: either end will do.
    let ended = tokio::time::timeout(LIMIT, dialling).await;
    let shown = witness.shown.lock().unwrap_or_else(PoisonError::into_inner).take();
    endpoint.close(0_u32.into(), b"asked");
    shown.ok_or_else(|| match ended {
        Err(_) => format!("no answer within {LIMIT:?}"),
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(_)) => "the handshake showed none".into(),
    })
}

/// Keeps the certificate whose key the peer has proved to hold.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    shown: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid = rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)?;
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = Some(certificate.clone().into_owned());
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
