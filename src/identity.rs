//! Stub until the identity part lands: enough of its signatures for `net` to be tested.
#![allow(dead_code, missing_docs, clippy::all, clippy::pedantic)]
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use crate::{Error, NodeId};

#[derive(Clone)]
pub(crate) struct Identity(Arc<Inner>);
struct Inner {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
    crls: Vec<CertificateRevocationListDer<'static>>,
}
impl Identity {
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }
    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.0.key
    }
}
pub(crate) enum Role {
    Dialled,
    Dialler,
    Signer,
}
pub(crate) struct Peer {
    pub cluster: String,
    pub node: Option<NodeId>,
    pub not_after: SystemTime,
    pub serial: String,
}
pub(crate) struct Rejection {
    pub error: rustls::Error,
    pub reason: String,
}
pub(crate) struct Trust {
    verifier: Arc<dyn ClientCertVerifier>,
}
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
impl Trust {
    pub(crate) fn new(identity: &Identity, _shared: bool) -> Result<Self, Error> {
        let mut roots = rustls::RootCertStore::empty();
        for root in &identity.0.roots {
            roots.add(root.clone()).unwrap();
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        if !identity.0.crls.is_empty() {
            builder = builder
                .with_crls(identity.0.crls.clone())
                .only_check_end_entity_revocation()
                .allow_unknown_revocation_status();
        }
        Ok(Self { verifier: builder.build().unwrap() })
    }
    pub(crate) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        _role: Role,
        now: UnixTime,
    ) -> Result<Peer, Rejection> {
        let reject = |error: rustls::Error| Rejection { reason: error.to_string(), error };
        self.verifier.verify_client_cert(&chain[0], &chain[1..], now).map_err(reject)?;
        let end = webpki::EndEntityCert::try_from(&chain[0])
            .map_err(|_| reject(rustls::Error::General("leaf".into())))?;
        let names: Vec<_> = end.valid_uri_names().collect();
        let denied =
            || reject(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        let [name] = names[..] else { return Err(denied()) };
        let rest = name.strip_prefix("spiffe://").ok_or_else(denied)?;
        let (cluster, path) = rest.split_once('/').ok_or_else(denied)?;
        let node = if path == "shared" {
            None
        } else {
            Some(NodeId::new(path.strip_prefix("node/").ok_or_else(denied)?).map_err(|_| denied())?)
        };
        let (_, x) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        let not_after =
            SystemTime::UNIX_EPOCH + Duration::from_secs(x.validity().not_after.timestamp() as u64);
        Ok(Peer { cluster: cluster.into(), node, not_after, serial: x.raw_serial_as_string() })
    }
}
pub(crate) struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>, String);
#[derive(Clone, Copy)]
pub(crate) struct Validity {
    pub from: SystemTime,
    pub to: SystemTime,
}
impl Authority {
    pub(crate) fn generate(cluster: &str) -> Result<Self, Error> {
        let mut p = rcgen::CertificateParams::default();
        p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        p.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        Ok(Self(
            rcgen::CertifiedIssuer::self_signed(p, rcgen::KeyPair::generate().unwrap()).unwrap(),
            cluster.into(),
        ))
    }
    pub(crate) fn issue(&self, node: &NodeId) -> Result<Identity, Error> {
        let now = crate::driver::clock::wall_now();
        self.named(
            &format!("spiffe://{}/node/{node}", self.1),
            Validity { from: now - Duration::from_secs(3600), to: now + Duration::from_secs(86400) },
        )
    }
    pub(crate) fn issue_for(&self, node: &NodeId, validity: Validity) -> Result<Identity, Error> {
        self.named(&format!("spiffe://{}/node/{node}", self.1), validity)
    }
    pub(crate) fn named(&self, uri: &str, validity: Validity) -> Result<Identity, Error> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut p = rcgen::CertificateParams::default();
        p.not_before = validity.from.into();
        p.not_after = validity.to.into();
        p.subject_alt_names = vec![
            rcgen::SanType::URI(uri.try_into().unwrap()),
            rcgen::SanType::DnsName("phalanx.cluster".try_into().unwrap()),
        ];
        p.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        p.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let cert = p.signed_by(&key, &self.0).unwrap();
        Ok(Identity(Arc::new(Inner {
            chain: vec![cert.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            roots: vec![self.0.der().clone()],
            crls: vec![],
        })))
    }
}
