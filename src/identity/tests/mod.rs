//! Every refusal of a certificate, a key or a list, with its text; and that nothing hostile makes any of it
//! panic.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod admission;
mod authority;
mod claims;
mod commands;
mod files;
mod keys;
mod requests;
mod revocation;
mod rotation;

use std::{
    fs,
    time::{Duration, UNIX_EPOCH},
};

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose as Eku, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::AlertDescription;

use super::{
    trust::{Rejection, unix_time},
    *,
};
use crate::driver::clock;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Where nodes may share a certificate.
const SHARED: Policy = Policy { shared_certificate: true, crl_required: false };

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn authority() -> Authority {
    Authority::generate("edge").unwrap()
}

fn trust(identity: &Identity) -> Trust {
    Trust::new(identity, Policy::default()).unwrap()
}

/// The verdict now, in both directions, which must be one.
fn judged(trust: &Trust, chain: &[CertificateDer<'_>]) -> Result<Peer, Rejection> {
    let now = unix_time(clock::wall_now());
    let server = trust.judge(chain, Role::Dialled, now);
    let client = trust.judge(chain, Role::Dialler, now);
    match (&server, &client) {
        (Ok(a), Ok(b)) => assert_eq!(a, b),
        (Err(a), Err(b)) => assert_eq!((a.kind, &a.reason), (b.kind, &b.reason)),
        (a, b) => panic!("{a:?} as the server, {b:?} as the client"),
    }
    server
}

fn refused(result: Result<Peer, Rejection>, kind: RejectionKind, alert: u8, says: &[&str]) {
    let rejection = result.unwrap_err();
    assert_eq!(rejection.kind, kind, "{rejection:?}");
    let rustls::Error::InvalidCertificate(error) = rejection.error else {
        panic!("{:?}", rejection.error);
    };
    assert_eq!(u8::from(AlertDescription::from(error)), alert, "{}", rejection.reason);
    for part in says {
        assert!(rejection.reason.contains(part), "{part:?} is not in: {}", rejection.reason);
    }
    assert!(!rejection.reason.contains(char::is_control), "{:?}", rejection.reason);
}

/// An authority that issues whatever it is asked for.
struct Anything(CertifiedIssuer<'static, KeyPair>);

impl Anything {
    fn new(name: &str) -> Self {
        Self::with_key(name, KeyPair::generate().unwrap())
    }

    fn with_key(name: &str, key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        self.leaf_and_key(change).0
    }

    fn leaf_and_key(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, KeyPair) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri("spiffe://edge/node/a")];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), key)
    }

    /// A node of the cluster `edge` that trusts this authority.
    fn trust(&self) -> Trust {
        trust(&self.identity(|_| {}))
    }

    fn identity(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let (leaf, key) = self.leaf_and_key(change);
        let cert = pem::encode("CERTIFICATE", &leaf);
        let ca = pem::encode("CERTIFICATE", self.0.der());
        Identity::from_pem(ca.as_bytes(), cert.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}
