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
    identity::{self, Identity, Policy, RejectionKind, Role, Trust},
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
    pub(crate) fn new(identity: &Identity, policy: Policy) -> Result<Arc<Self>, Error> {
        let provider = identity::provider();
        Ok(Arc::new(Self {
            trust: ArcSwap::from_pointee(Trust::new(identity, policy)?),
            certified: ArcSwap::from_pointee(certified(identity)),
            provider,
        }))
    }

    /// Everything is made and checked before anything is swapped.
    pub(crate) fn reload(&self, identity: &Identity, config: &NetConfig) -> Result<(), Error> {
        let trust = Trust::new(identity, config.policy)?;
        let certified = certified(identity);
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
        QuicClientConfig::try_from(self.client(alpn)?).map_err(unusable)
    }

    fn client(self: &Arc<Self>, alpn: &[&[u8]]) -> Result<rustls::ClientConfig, Error> {
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
        Ok(config)
    }

    pub(crate) fn server_config(self: &Arc<Self>) -> Result<QuicServerConfig, Error> {
        QuicServerConfig::try_from(self.server()?).map_err(unusable)
    }

    fn server(self: &Arc<Self>) -> Result<rustls::ServerConfig, Error> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(Verifier(Arc::clone(self))))
            .with_cert_resolver(Arc::new(Verifier(Arc::clone(self))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }
}

/// That the key is the certificate's was seen when the identity was made.
fn certified(identity: &Identity) -> CertifiedKey {
    CertifiedKey::new(identity.chain().to_vec(), Arc::clone(identity.signing()))
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

#[cfg(test)]
mod tests {
    use rustls::{HandshakeKind, NamedGroup, quic};

    use super::*;
    use crate::{Authority, NodeId};

    fn tls(authority: &Authority, name: &str) -> Arc<Tls> {
        let identity = authority.issue(&NodeId::new(name).unwrap()).unwrap();
        Tls::new(&identity, Policy::default()).unwrap()
    }

    /// What one side has to say now, each part under the keys of its own.
    fn said(write: &mut dyn FnMut(&mut Vec<u8>) -> bool) -> Vec<Vec<u8>> {
        let mut parts = Vec::new();
        loop {
            let mut part = Vec::new();
            let has_new_keys = write(&mut part);
            let is_last = part.is_empty() && !has_new_keys;
            parts.push(part);
            if is_last {
                parts.retain(|part| !part.is_empty());
                return parts;
            }
        }
    }

    /// A handshake as QUIC has it, to its end and beyond: whatever either side still has to say is said. How
    /// many parts came from the dialled side after it.
    fn shake(
        client: &Arc<rustls::ClientConfig>,
        server: &Arc<rustls::ServerConfig>,
    ) -> (quic::ClientConnection, quic::ServerConnection, usize) {
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let mut dialler =
            quic::ClientConnection::new(Arc::clone(client), quic::Version::V1, name, vec![1]).unwrap();
        assert!(dialler.zero_rtt_keys().is_none(), "nothing is sent before the handshake");
        let mut door = quic::ServerConnection::new(Arc::clone(server), quic::Version::V1, vec![2]).unwrap();
        let mut after = 0;
        loop {
            let to_door = said(&mut |bytes| dialler.write_hs(bytes).is_some());
            for part in &to_door {
                door.read_hs(part).unwrap();
            }
            let over = !dialler.is_handshaking() && !door.is_handshaking();
            let to_dialler = said(&mut |bytes| door.write_hs(bytes).is_some());
            after += if over { to_dialler.len() } else { 0 };
            for part in &to_dialler {
                dialler.read_hs(part).unwrap();
            }
            if to_door.is_empty() && to_dialler.is_empty() {
                return (dialler, door, after);
            }
        }
    }

    #[test]
    fn no_handshake_is_resumed_and_nothing_is_there_to_resume_it_with() {
        let authority = Authority::generate("edge").unwrap();
        let client = Arc::new(tls(&authority, "a").client(&[ALPN]).unwrap());
        let server = Arc::new(tls(&authority, "b").server().unwrap());
        for _ in 0..3 {
            let (dialler, door, after) = shake(&client, &server);
            assert_eq!(dialler.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(door.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(after, 0, "no ticket follows the handshake");
            assert_eq!((dialler.tls13_tickets_received(), dialler.is_early_data_accepted()), (0, false));
        }
    }

    #[test]
    fn keys_are_exchanged_so_that_no_quantum_computer_finds_them_where_the_provider_can() {
        let authority = Authority::generate("edge").unwrap();
        let client = Arc::new(tls(&authority, "a").client(&[ALPN]).unwrap());
        let server = Arc::new(tls(&authority, "b").server().unwrap());
        let (dialler, door, _) = shake(&client, &server);
        let group = dialler.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(door.negotiated_key_exchange_group().unwrap().name(), group);
        let best = if cfg!(feature = "aws-lc-rs") { NamedGroup::X25519MLKEM768 } else { NamedGroup::X25519 };
        assert_eq!(group, best);
    }
}
