//! One root of an authority: its certificate, its key, its revocation list. Signs what it is handed; knows
//! neither of another root nor of files.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, PublicKeyData, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::{
    Validity,
    make::{AUTHORITY_LIFE, DAY, distinguished_name, moment, new_key, parameters, refused, seconds, uri},
};
use crate::{
    Error,
    driver::clock,
    identity::{
        crl,
        file::fault,
        pem,
        spiffe::check_cluster_name,
        trust::{provider, unix_time},
        x509,
    },
};

pub(super) struct Root {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) not_after: SystemTime,
    /// Its name in DER: by it a certificate tells who issued it.
    subject: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    /// Held while a list is signed, which is short.
    revocations: Mutex<Revocations>,
}

/// The newest revocation list of a root.
pub(super) struct Revocations {
    pub(super) list: CertificateRevocationListDer<'static>,
    pub(super) number: u64,
    /// Serial numbers, as DER has them, with the time of revocation in seconds since 1970.
    pub(super) revoked: Vec<(Vec<u8>, i64)>,
}

impl Root {
    /// A new key, a certificate of ten years, an empty revocation list.
    pub(super) fn generate(cluster: &str) -> Result<Self, Error> {
        let now = clock::wall_now();
        let mut params = parameters(Validity::between(now - DAY, now + AUTHORITY_LIFE))?;
        params.distinguished_name = distinguished_name()?;
        // An authority's own name is the trust domain (SPIFFE X.509-SVID §2); `load` finds the cluster there.
        params.subject_alt_names = vec![uri(&format!("spiffe://{cluster}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = new_key()?;
        let certificate = params.self_signed(&key).map_err(refused("make the authority's certificate"))?;
        Self::assemble(certificate.der().clone(), key, |issuer| Revocations::sign(issuer, 0, Vec::new()))
    }

    /// A root that was read: `list` is its newest revocation list.
    pub(super) fn restore(
        certificate: CertificateDer<'static>,
        key: KeyPair,
        list: CertificateRevocationListDer<'static>,
        list_name: &str,
    ) -> Result<Self, Error> {
        Self::assemble(certificate, key, |_| Revocations::read(list, list_name))
    }

    fn assemble(
        certificate: CertificateDer<'static>,
        key: KeyPair,
        revocations: impl FnOnce(&Issuer<'static, KeyPair>) -> Result<Revocations, Error>,
    ) -> Result<Self, Error> {
        let facts = x509::facts(&certificate)
            .map_err(|text| fault("the authority's certificate", text, "make a new authority"))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(refused("use the authority"))?;
        let revocations = Mutex::new(revocations(&issuer)?);
        let (not_after, subject) = (facts.not_after, facts.subject);
        Ok(Self { certificate, not_after, subject, issuer, revocations })
    }

    /// A certificate of `params` for `key`.
    pub(super) fn certify(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, Error> {
        let leaf = params.signed_by(key, &self.issuer).map_err(refused("issue a certificate"))?;
        Ok(leaf.der().clone())
    }

    /// Whether a certificate whose issuer has the name `issuer` is this root's. Names are enough among what
    /// the authority itself made: each root has one of its own.
    pub(super) fn is_named(&self, issuer: &[u8]) -> bool {
        self.subject == issuer
    }

    /// Whether this root signed `leaf` for use in a cluster, by its signature. The time does not matter.
    pub(super) fn check_issued(&self, leaf: &CertificateDer<'_>) -> Result<(), webpki::Error> {
        let end = webpki::EndEntityCert::try_from(leaf)?;
        let anchor = webpki::anchor_from_trusted_cert(&self.certificate)?;
        let inside = x509::facts(leaf).map_or(UNIX_EPOCH, |facts| facts.not_after);
        let verify = |usage| {
            let algorithms = provider().signature_verification_algorithms.all;
            let anchors = std::slice::from_ref(&anchor);
            end.verify_for_usage(algorithms, anchors, &[], unix_time(inside), usage, None, None).map(|_| ())
        };
        verify(webpki::KeyUsage::server_auth()).or_else(|_| verify(webpki::KeyUsage::client_auth()))
    }

    /// The key in PEM.
    pub(super) fn key_pem(&self) -> Vec<u8> {
        self.issuer.key().serialize_pem().into_bytes()
    }

    pub(super) fn revocations(&self) -> MutexGuard<'_, Revocations> {
        // Assigned whole, so a panic elsewhere cannot have left it half done.
        self.revocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_revoked(&self, serial: &[u8]) -> bool {
        self.revocations().revoked.iter().any(|(revoked, _)| revoked == serial)
    }

    /// Puts serial numbers on the list; those that are on it already change nothing. Whether any was new.
    pub(super) fn revoke(&self, serials: &[Vec<u8>]) -> Result<bool, Error> {
        let mut revocations = self.revocations();
        let mut revoked = revocations.revoked.clone();
        let now = seconds(clock::wall_now());
        for serial in serials {
            if revoked.iter().all(|(held, _)| held != serial) {
                revoked.push((serial.clone(), now));
            }
        }
        let grown = revoked.len() > revocations.revoked.len();
        if grown {
            *revocations = Revocations::sign(&self.issuer, revocations.number, revoked)?;
        }
        Ok(grown)
    }

    /// Signs the same list anew, under a greater number.
    pub(super) fn refresh(&self) -> Result<(), Error> {
        let mut revocations = self.revocations();
        *revocations = Revocations::sign(&self.issuer, revocations.number, revocations.revoked.clone())?;
        Ok(())
    }
}

impl Revocations {
    /// Signs a list that is newer than `previous`.
    fn sign(
        issuer: &Issuer<'static, KeyPair>,
        previous: u64,
        revoked: Vec<(Vec<u8>, i64)>,
    ) -> Result<Self, Error> {
        let now = clock::wall_now();
        let number = previous.saturating_add(1).max(seconds(now).unsigned_abs());
        let mut revoked_certs = Vec::with_capacity(revoked.len());
        for (serial, at) in &revoked {
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: moment(UNIX_EPOCH + Duration::from_secs(at.unsigned_abs()))?,
                reason_code: None,
                invalidity_date: None,
            });
        }
        let list = CertificateRevocationListParams {
            this_update: moment(now)?,
            // Not enforced by this library; others want one.
            next_update: moment(now + AUTHORITY_LIFE)?,
            crl_number: SerialNumber::from_slice(&number.to_be_bytes()),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(issuer)
        .map_err(refused("sign the revocation list"))?;
        Ok(Self { list: list.der().clone(), number, revoked })
    }

    fn read(list: CertificateRevocationListDer<'static>, what: &str) -> Result<Self, Error> {
        let facts = x509::list_facts(&list).map_err(|text| fault(what, text, "restore it"))?;
        let number = facts.count().ok_or_else(|| {
            fault(what, "its number has more than 64 bits", "restore the authority's own list")
        })?;
        Ok(Self { list, number, revoked: facts.revoked })
    }

    /// Whether `held`, a list of the same root, knows more than this one.
    pub(super) fn is_behind(&self, held: &x509::ListFacts) -> bool {
        let knows = |serial: &Vec<u8>| self.revoked.iter().any(|(mine, _)| mine == serial);
        held.count().is_none_or(|number| number > self.number)
            || held.revoked.iter().any(|(serial, _)| !knows(serial))
    }
}

/// Each root's newest list among `lists`; `None` for a root that has none there. Lists of others are left
/// out: a rotation that was interrupted leaves one behind.
pub(super) fn lists_of(
    roots: &[CertificateDer<'static>],
    lists: &[CertificateRevocationListDer<'static>],
    what: &str,
) -> Result<Vec<Option<CertificateRevocationListDer<'static>>>, Error> {
    roots
        .iter()
        .map(|root| {
            let signer = x509::facts(root).map_err(|text| fault("CA file", text, "restore it"))?;
            let signers = std::slice::from_ref(&signer);
            let own = lists.iter().filter(|list| {
                x509::list_facts(list).is_ok_and(|facts| crl::signer_of(&facts, signers).is_some())
            });
            Ok(crl::merge(&[], own.cloned().collect(), &[root], what)?.into_iter().next())
        })
        .collect()
}

/// The one cluster that all certificates of a CA file name.
pub(super) fn cluster_of(roots: &[CertificateDer<'_>], what: &str) -> Result<String, Error> {
    let remedy = "an authority's certificate has one URI name: spiffe://<cluster>";
    let mut cluster: Option<String> = None;
    for root in roots {
        let (uris, _) = x509::uris(root).map_err(|text| fault(what, text, remedy))?;
        let named = match uris.as_slice() {
            [uri] => uri.strip_prefix("spiffe://").filter(|name| check_cluster_name(name).is_ok()),
            _ => None,
        };
        let named = named.ok_or_else(|| fault(what, "it does not name its cluster", remedy))?;
        if cluster.as_ref().is_some_and(|cluster| cluster != named) {
            let remedy = "leave the certificates of one authority";
            return Err(fault(what, "its certificates name different clusters", remedy));
        }
        cluster = Some(named.to_owned());
    }
    cluster.ok_or_else(|| fault(what, "it does not name its cluster", remedy))
}

/// Lists in PEM, one after the other.
pub(super) fn lists_pem<'a>(lists: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    lists.into_iter().flat_map(|der| pem::encode("X509 CRL", der).into_bytes()).collect()
}

/// Certificates in PEM, one after the other.
pub(super) fn certificates_pem<'a>(
    certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>,
) -> Vec<u8> {
    certificates.into_iter().flat_map(|der| pem::encode("CERTIFICATE", der).into_bytes()).collect()
}
