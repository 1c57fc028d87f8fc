//! Certificates that `Authority` would never issue, and bare QUIC peers that show them: what the door must
//! refuse.

#![allow(dead_code, reason = "not every test binary uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use phalanx::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose as Eku, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs as backend;
#[cfg(not(feature = "aws-lc-rs"))]
use rustls::crypto::ring as backend;
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

/// An authority that issues whatever it is asked for.
pub(crate) struct Mint(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub(crate) struct Certificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
    pub(crate) pem: String,
}

impl Mint {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A good certificate for the name, but for what `change` does to it.
    pub(crate) fn certificate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(name)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        Certificate { chain: vec![leaf.der().clone()], key, pem: leaf.pem() }
    }

    /// A revocation list with that number and one serial number on it, to be followed by another in `next`.
    #[allow(dead_code, reason = "not every test binary uses it")]
    pub(crate) fn list(&self, number: u64, next: i32) -> Vec<u8> {
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(next, 1, 1),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![rcgen::RevokedCertParams {
                serial_number: rcgen::SerialNumber::from_slice(&[1]),
                revocation_time: rcgen::date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap().into_bytes()
    }

    pub(crate) fn identity(&self, name: &str) -> Identity {
        self.identity_of(&self.certificate(name, |_| {}))
    }

    pub(crate) fn identity_of(&self, shown: &Certificate) -> Identity {
        let ca = self.0.pem();
        Identity::from_pem(ca.as_bytes(), shown.pem.as_bytes(), shown.key.serialize_pem().as_bytes()).unwrap()
    }
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// How a member's door shut on a bare client that shows `shown`, or nothing: the code, whether it is a QUIC
/// application's (else a TLS alert's), and the reason.
pub(crate) async fn knock(door: SocketAddr, shown: Option<&Certificate>, alpn: &str) -> (u64, bool, String) {
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(client(shown, &[alpn])).unwrap();
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connecting =
        endpoint.connect_with(quinn::ClientConfig::new(Arc::new(config)), door, "phalanx.cluster").unwrap();
    let ended = async {
        match connecting.await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the door stays open");
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), true, String::from_utf8_lossy(&close.reason).into_owned())
        }
        quinn::ConnectionError::ConnectionClosed(close) => {
            (close.error_code.into(), false, String::from_utf8_lossy(&close.reason).into_owned())
        }
        other => panic!("{other}"),
    }
}

/// What a bare client tells rustls: it trusts anybody, and shows `shown` or nothing.
pub(crate) fn client(shown: Option<&Certificate>, alpn: &[&str]) -> rustls::ClientConfig {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match shown {
        None => config.with_no_client_auth(),
        Some(shown) => config.with_client_auth_cert(shown.chain.clone(), secret(shown)).unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|name| (*name).into()).collect();
    config
}

/// What a bare listener tells rustls: it trusts anybody who shows something.
pub(crate) fn server(shown: &Certificate) -> rustls::ServerConfig {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_single_cert(shown.chain.clone(), secret(shown))
        .unwrap();
    config.alpn_protocols = vec![b"phalanx/1".to_vec()];
    config
}

/// A listener that shows `shown` to whoever dials, and lets everybody in.
pub(crate) fn listen(shown: &Certificate) -> (quinn::Endpoint, SocketAddr) {
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(server(shown)).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(config));
    let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = endpoint.local_addr().unwrap();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(incoming) = accepting.accept().await {
            kept.push(incoming.await);
        }
    });
    (endpoint, address)
}

pub(crate) fn secret(shown: &Certificate) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(shown.key.serialize_der().into())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(backend::default_provider())
}

/// Trusts anybody, as a bad peer may.
#[derive(Debug)]
struct Anybody;

fn checked(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
}

fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic)
}

impl ServerCertVerifier for Anybody {
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
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        checked(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        checked(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
