//! What rustls is told: TLS 1.3 only, both sides prove themselves, nothing is resumed. The verdict itself is
//! `identity::Trust`'s; here it is put where rustls asks. Decides nothing of its own.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use crate::{
    Error,
    identity::{self, Identity, RejectionKind, Role, Trust},
    net::{NetConfig, unix_now},
};

/// The wire version, as the handshake negotiates it.
const ALPN: &[u8] = b"phalanx/1";
/// What every dial asks for: the name checked is the certificate's own, never the dialled one.
pub(crate) const SERVER_NAME: &str = "phalanx.cluster";

/// The identity in force. A reload swaps it under live endpoints; nothing is resumed, so nothing outlives it.
pub(crate) struct Tls {
    trust: ArcSwap<Trust>,
    certified: ArcSwap<CertifiedKey>,
    provider: Arc<CryptoProvider>,
}

impl Tls {
    pub(crate) fn new(identity: &Identity, shared_certificate: bool) -> Result<Arc<Self>, Error> {
        let provider = identity::provider();
        Ok(Arc::new(Self {
            trust: ArcSwap::from_pointee(Trust::new(identity, shared_certificate)?),
            certified: ArcSwap::from_pointee(certified(identity, &provider)?),
            provider,
        }))
    }

    /// Everything is made and checked before anything is swapped.
    pub(crate) fn reload(&self, identity: &Identity, config: &NetConfig) -> Result<(), Error> {
        let trust = Trust::new(identity, config.shared_certificate)?;
        let certified = certified(identity, &self.provider)?;
        let refused = |fault: String| Error::Identity {
            what: "the new identity".into(),
            fault,
            remedy: "the old one stays in force; give one of this node that its own roots accept".into(),
            source: None,
        };
        let own = trust
            .judge(identity.chain(), Role::Dialled, unix_now())
            .map_err(|rejection| refused(rejection.reason))?;
        if own.cluster != config.cluster || own.node.as_ref().is_some_and(|node| *node != config.node_id) {
            let named = own.node.as_ref().map_or("any", |node| node.as_str());
            let (ours, cluster) = (&config.node_id, &config.cluster);
            return Err(refused(format!(
                "it names node {named} of cluster {}, this is {ours} of {cluster}",
                own.cluster
            )));
        }
        self.trust.store(Arc::new(trust));
        self.certified.store(Arc::new(certified));
        Ok(())
    }

    pub(crate) fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    pub(crate) fn client_config(self: &Arc<Self>) -> Result<QuicClientConfig, Error> {
        self.client_config_for(&[ALPN])
    }

    pub(crate) fn client_config_for(self: &Arc<Self>, alpn: &[&[u8]]) -> Result<QuicClientConfig, Error> {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier(Arc::clone(self))))
            .with_client_cert_resolver(Arc::new(Verifier(Arc::clone(self))));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        // A resumed handshake verifies nothing: a client revoked since would be let in.
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        QuicClientConfig::try_from(config).map_err(unusable)
    }

    pub(crate) fn server_config(self: &Arc<Self>) -> Result<QuicServerConfig, Error> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(Verifier(Arc::clone(self))))
            .with_cert_resolver(Arc::new(Verifier(Arc::clone(self))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        QuicServerConfig::try_from(config).map_err(unusable)
    }
}

fn certified(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    CertifiedKey::from_der(identity.chain().to_vec(), identity.key().clone_key(), provider).map_err(unusable)
}

fn unusable(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Identity {
        what: "the node's identity".into(),
        fault: source.to_string(),
        remedy: "check that certificate and key belong together and are of a supported kind".into(),
        source: Some(Box::new(source)),
    }
}

/// What rustls calls: the same for both roles.
struct Verifier(Arc<Tls>);

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(rest).cloned().collect();
        match self.0.trust.load().judge(&chain, role, now) {
            Ok(_) => Ok(()),
            // Another cluster of the same authority: an alert could not say so. Admission closes the
            // connection with a code and a reason, before anything the peer says is looked at.
            Err(rejection) if rejection.kind == RejectionKind::Cluster => Ok(()),
            Err(rejection) => {
                tracing::debug!(reason = %rejection.reason, "a certificate was refused");
                Err(rejection.error)
            }
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.0.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS 1.2 is not compiled in; this is never reached.
fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(leaf, rest, Role::Dialled, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// None: who dials knows its certificate, and the CA's name is nobody else's business.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(leaf, rest, Role::Dialler, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ResolvesServerCert for Verifier {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified.load_full())
    }
}

impl ResolvesClientCert for Verifier {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
