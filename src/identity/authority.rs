//! A private certificate authority: makes its own root, issues identities, revokes them. Holds the one key
//! that guards a cluster, and nothing of a running node; a node never needs it.

use std::{
    fmt, fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use time::OffsetDateTime;

use super::{
    Identity, Labels, SpiffeName, crl,
    file::{self, CRL_LEN_MAX, Draft, PEM_LEN_MAX, fault, named},
    pem,
    spiffe::check_cluster_name,
    trust::provider,
    x509,
};
use crate::{Error, NodeId, driver::clock};

const DAY: Duration = Duration::from_secs(86_400);
/// How long an authority's own certificate lasts.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3_650 * 86_400);
/// How long an identity lasts: short enough that few need to be revoked, long enough for a monthly renewal to
/// fail twice.
const LIFE_DAYS: u32 = 90;
/// More than the calendar of certificates has; `moment` refuses it. Any system's clock can add it.
const DAYS_MAX: u32 = 3_000_000;
/// How far back validity begins, for hosts whose clocks run behind.
const BACKDATED: Duration = Duration::from_secs(300);

/// A private certificate authority: makes the identities of one cluster's nodes, and revokes them.
///
/// Whoever has its key can be any node. Keep its directory away from the nodes, and write it again after each
/// [`Authority::revoke`].
///
/// # Examples
/// ```
/// use phalanx::{Authority, NodeId};
///
/// let authority = Authority::generate("edge")?;
/// let identity = authority.issue(&NodeId::new("lb-1")?)?;
/// assert_eq!(identity.cluster_name(), "edge");
///
/// let dir = tempfile::tempdir()?;
/// authority.write_to(dir.path())?;
/// Authority::load(dir.path())?.revoke(&identity)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Authority {
    cluster: String,
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
    /// Held while a list is signed, which is short.
    revocations: Mutex<Revocations>,
}

/// The newest revocation list.
struct Revocations {
    list: CertificateRevocationListDer<'static>,
    number: u64,
    /// Serial numbers, as DER has them, with the time of revocation in seconds since 1970.
    revoked: Vec<(Vec<u8>, i64)>,
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// From five minutes ago, for hosts whose clocks run behind, to that many days from now.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, Validity};
    /// let authority = Authority::generate("edge")?;
    /// let short = authority.issue_for(&NodeId::new("lb-1")?, Validity::days(7))?;
    /// # drop(short);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn days(days: u32) -> Self {
        let now = clock::wall_now();
        Self { not_before: now - BACKDATED, not_after: now + DAY * days.min(DAYS_MAX) }
    }

    /// From one moment to another.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, Validity};
    /// # use std::time::{Duration, UNIX_EPOCH};
    /// let year = |year: u64| UNIX_EPOCH + Duration::from_secs((year - 1970) * 31_556_952);
    /// let authority = Authority::generate("edge")?;
    /// let past = authority.issue_for(&NodeId::new("lb-1")?, Validity::between(year(2000), year(2001)))?;
    /// assert!(past.not_after() < year(2002));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn between(not_before: SystemTime, not_after: SystemTime) -> Self {
        Self { not_before, not_after }
    }
}

impl Authority {
    /// Makes a new authority for a cluster: a key, a certificate of ten years, an empty revocation list.
    ///
    /// # Errors
    /// [`Error::InvalidClusterName`] if no certificate can carry the name, which has 1 to 255 characters of
    /// `a-z 0-9 . _ -`.
    ///
    /// # Examples
    /// ```
    /// assert!(phalanx::Authority::generate("edge").is_ok());
    /// assert!(phalanx::Authority::generate("Edge").is_err());
    /// ```
    pub fn generate(cluster_name: impl Into<String>) -> Result<Self, Error> {
        let cluster = cluster_name.into();
        check_cluster_name(&cluster)?;
        let now = clock::wall_now();
        let mut params = parameters(Validity::between(now - DAY, now + AUTHORITY_LIFE))?;
        params.distinguished_name = distinguished_name()?;
        // An authority's own name is the trust domain (SPIFFE X.509-SVID §2); `load` finds the cluster there.
        params.subject_alt_names = vec![uri(&format!("spiffe://{cluster}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = new_key()?;
        let certificate = params.self_signed(&key).map_err(refused("make the authority's certificate"))?;
        let revocations = |issuer: &_| Revocations::sign(issuer, 0, Vec::new());
        Self::assemble(cluster, certificate.der().clone(), key, revocations)
    }

    /// Reads an authority that [`Authority::write_to`] wrote: `ca.pem`, `ca.key` and `crl.pem` in `dir`.
    ///
    /// # Errors
    /// [`Error::File`] if one of them cannot be read, [`Error::Identity`] if it holds something else, if they
    /// do not belong together, or if others than its owner may read the key.
    ///
    /// # Examples
    /// See [`Authority`].
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let (ca, key, list) = (dir.join("ca.pem"), dir.join("ca.key"), dir.join("crl.pem"));
        let (ca_name, key_name) = (named("CA file", &ca), named("CA key", &key));
        let certificate = sole_root(&file::read(&ca, "CA file", PEM_LEN_MAX)?, &ca_name)?;
        let cluster = cluster_of(&certificate, &ca_name)?;
        let secret = pem::private_key(&file::read_secret(&key, "CA key", PEM_LEN_MAX)?, &key_name)?;
        let pair = KeyPair::try_from(&secret).map_err(|error| {
            fault(&key_name, format!("it cannot be used ({error})"), "restore it from a backup")
        })?;
        let facts = x509::facts(&certificate).map_err(|text| fault(&ca_name, text, "restore it"))?;
        if pair.public_key_raw() != facts.key {
            let text = format!("it does not belong to the {ca_name}");
            return Err(fault(key_name, text, "restore the key and the certificate of one authority"));
        }
        // Without the list all that was revoked would be valid again, so its absence is an error.
        let list_name = named("revocation list", &list);
        let lists = pem::revocation_lists(&file::read(&list, "revocation list", CRL_LEN_MAX)?, &list_name)?;
        let newest = crl::merge(&[], lists, &[&certificate], &list_name)?.into_iter().next();
        let newest = newest.ok_or_else(|| fault(&list_name, "it is empty", "restore it"))?;
        Self::assemble(cluster, certificate, pair, |_| Revocations::read(newest, &list_name))
    }

    fn assemble(
        cluster: String,
        certificate: CertificateDer<'static>,
        key: KeyPair,
        revocations: impl FnOnce(&Issuer<'static, KeyPair>) -> Result<Revocations, Error>,
    ) -> Result<Self, Error> {
        let facts = x509::facts(&certificate)
            .map_err(|text| fault("the authority's certificate", text, "make a new authority"))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(refused("use the authority"))?;
        let revocations = Mutex::new(revocations(&issuer)?);
        Ok(Self { cluster, certificate, not_after: facts.not_after, issuer, revocations })
    }

    /// Writes the authority into `dir`, which is made if it is missing: `ca.pem`, `crl.pem`, and `ca.key`,
    /// which only the owner may read. Each file is replaced at once; whoever reads meanwhile finds one whole.
    ///
    /// # Errors
    /// [`Error::File`] if the directory cannot be written; [`Error::Identity`] if it holds another authority,
    /// or a newer revocation list of this one. Nothing was written then.
    ///
    /// # Examples
    /// See [`Authority`].
    pub fn write_to(&self, dir: impl AsRef<Path>) -> Result<(), Error> {
        let dir = dir.as_ref();
        let revocations = self.revocations();
        self.refuse_to_destroy(dir, &revocations)?;
        let drafts = [
            // The key first: a certificate without its key would be lost, a key without a certificate is not
            // used.
            Draft { name: "ca.key", bytes: self.issuer.key().serialize_pem().into_bytes(), secret: true },
            Draft { name: "crl.pem", bytes: revocations.pem(), secret: false },
            Draft { name: "ca.pem", bytes: self.ca_pem(), secret: false },
        ];
        file::write_all(dir, &drafts).map(|_| ())
    }

    /// What was revoked would be valid again, and another authority's key would be gone for good.
    fn refuse_to_destroy(&self, dir: &Path, mine: &Revocations) -> Result<(), Error> {
        if !dir.join("ca.key").exists() {
            return Ok(());
        }
        let theirs = fs::read(dir.join("ca.pem")).unwrap_or_default();
        let same = pem::certificates(&theirs, "CA file").is_ok_and(|held| held[0] == self.certificate);
        if !same {
            let text = "it holds the key of another authority";
            return Err(fault(
                named("directory", dir),
                text,
                "choose another directory, or load that authority",
            ));
        }
        let held = fs::read(dir.join("crl.pem")).unwrap_or_default();
        let newer = pem::revocation_lists(&held, "revocation list").is_ok_and(|lists| {
            lists
                .iter()
                .filter_map(|list| x509::list_facts(list).ok()?.count())
                .any(|held| held > mine.number)
        });
        if newer {
            let text = "it holds a newer revocation list of this authority";
            return Err(fault(
                named("directory", dir),
                text,
                "load the authority from there and revoke again",
            ));
        }
        Ok(())
    }

    /// The name of the authority's cluster.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(phalanx::Authority::generate("edge")?.cluster_name(), "edge");
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn cluster_name(&self) -> &str {
        &self.cluster
    }

    /// The authority's certificate in PEM: what nodes trust.
    ///
    /// # Examples
    /// ```
    /// let pem = phalanx::Authority::generate("edge")?.ca_pem();
    /// assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn ca_pem(&self) -> Vec<u8> {
        pem::encode("CERTIFICATE", &self.certificate).into_bytes()
    }

    /// Issues an identity to a node, for 90 days: a new key, a certificate, and what the node needs to judge
    /// others.
    ///
    /// # Errors
    /// [`Error::Identity`] if the authority itself has expired, or the system has no randomness.
    ///
    /// # Examples
    /// See [`Authority`].
    pub fn issue(&self, node: &NodeId) -> Result<Identity, Error> {
        self.issue_named(Some(node.clone()), self.default_validity()?)
    }

    /// Issues an identity to a node, for a time of the caller's choice.
    ///
    /// # Errors
    /// As [`Authority::issue`], and if the time ends before it begins or leaves the years 1970 to 9999.
    ///
    /// # Examples
    /// See [`Validity`].
    pub fn issue_for(&self, node: &NodeId, validity: Validity) -> Result<Identity, Error> {
        self.issue_named(Some(node.clone()), validity)
    }

    /// Issues an identity that several nodes may share, for 90 days, where `tls.shared-certificate` is on.
    /// None of them can be told from another, nor be revoked alone.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    ///
    /// # Examples
    /// ```
    /// let shared = phalanx::Authority::generate("edge")?.issue_shared()?;
    /// assert_eq!(shared.node_id(), None);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn issue_shared(&self) -> Result<Identity, Error> {
        self.issue_named(None, self.default_validity()?)
    }

    fn default_validity(&self) -> Result<Validity, Error> {
        let validity = Validity::days(LIFE_DAYS);
        if validity.not_before + BACKDATED > self.not_after {
            let text = format!("it expired at {}", x509::written(self.not_after));
            return Err(fault("the authority's certificate", text, "make a new authority"));
        }
        Ok(Validity { not_after: validity.not_after.min(self.not_after), ..validity })
    }

    fn issue_named(&self, node: Option<NodeId>, validity: Validity) -> Result<Identity, Error> {
        self.issue_as(&SpiffeName { cluster: self.cluster.clone(), node }, validity)
    }

    /// Issues an identity for whatever name, of another cluster too: what peers must refuse is made so in
    /// tests.
    pub(crate) fn issue_as(&self, name: &SpiffeName, validity: Validity) -> Result<Identity, Error> {
        let mut params = parameters(validity)?;
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&name.to_string())?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = new_key()?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(refused("issue a certificate"))?;
        let secret = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let labels = Labels {
            ca: "the authority's certificate".into(),
            cert: format!("the certificate of {name}"),
            key: format!("the key of {name}"),
        };
        let mut identity =
            Identity::from_parts(vec![self.certificate.clone()], vec![leaf.der().clone()], secret, &labels)?;
        // An empty list would only cost each handshake the check of its signature.
        let revocations = self.revocations();
        if !revocations.revoked.is_empty() {
            identity.crls = vec![revocations.list.clone()].into();
        }
        Ok(identity)
    }

    /// Revokes an identity: its certificate is on the authority's list from now on. Peers refuse it once they
    /// have that list ([`Authority::crl_pem`], [`Identity::with_crl_pem`]). To revoke twice changes nothing.
    ///
    /// The list's number grows with each revocation and never falls behind the wall clock, so that even a
    /// list begun anew is newer than the old one.
    ///
    /// # Errors
    /// [`Error::Identity`] if another authority issued the identity. Nothing was revoked then.
    ///
    /// # Examples
    /// See [`Identity::with_crl_pem`].
    pub fn revoke(&self, identity: &Identity) -> Result<(), Error> {
        let leaf = &identity.chain()[0];
        let what = || format!("certificate of {}", identity.own.name);
        let end = webpki::EndEntityCert::try_from(leaf)
            .map_err(|error| fault(what(), error.to_string(), "load the identity anew"))?;
        self.check_issued(identity, &end).map_err(|reason| {
            let text = format!("this authority did not issue it ({reason})");
            fault(what(), text, "ask the authority that did")
        })?;
        let mut revocations = self.revocations();
        if revocations.revoked.iter().any(|(serial, _)| serial == end.serial()) {
            return Ok(());
        }
        let mut revoked = revocations.revoked.clone();
        revoked.push((end.serial().to_vec(), seconds(clock::wall_now())));
        *revocations = Revocations::sign(&self.issuer, revocations.number, revoked)?;
        Ok(())
    }

    fn check_issued(
        &self,
        identity: &Identity,
        leaf: &webpki::EndEntityCert<'_>,
    ) -> Result<(), webpki::Error> {
        let anchor = webpki::anchor_from_trusted_cert(&self.certificate)?;
        let inside = super::trust::unix_time(identity.own.not_after);
        let verify = |usage| {
            let algorithms = provider().signature_verification_algorithms.all;
            leaf.verify_for_usage(algorithms, std::slice::from_ref(&anchor), &[], inside, usage, None, None)
                .map(|_| ())
        };
        verify(webpki::KeyUsage::server_auth()).or_else(|_| verify(webpki::KeyUsage::client_auth()))
    }

    /// The newest revocation list in PEM.
    ///
    /// # Examples
    /// ```
    /// let pem = phalanx::Authority::generate("edge")?.crl_pem();
    /// assert!(pem.starts_with(b"-----BEGIN X509 CRL-----"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn crl_pem(&self) -> Vec<u8> {
        self.revocations().pem()
    }

    fn revocations(&self) -> MutexGuard<'_, Revocations> {
        // Assigned whole, so a panic elsewhere cannot have left it half done.
        self.revocations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revocations = self.revocations();
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .field("not_after", &format_args!("{}", x509::written(self.not_after)))
            .field("crl_number", &revocations.number)
            .field("revoked", &revocations.revoked.len())
            .finish_non_exhaustive()
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

    fn pem(&self) -> Vec<u8> {
        pem::encode("X509 CRL", &self.list).into_bytes()
    }
}

/// What every certificate has: rcgen's own defaults are valid from 1975 to 4096, and number a certificate by
/// its public key.
fn parameters(validity: Validity) -> Result<CertificateParams, Error> {
    if validity.not_after < validity.not_before {
        return Err(fault("validity", "it ends before it begins", "exchange its two ends"));
    }
    let mut params = CertificateParams::default();
    params.not_before = moment(validity.not_before)?;
    params.not_after = moment(validity.not_after)?;
    // Positive and of one length: the highest bit is off, the next on.
    let mut serial = random::<16>()?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// A name of its own for every authority: webpki finds an issuer by name, so two of one name would be
/// confused while a cluster moves from one to the other.
fn distinguished_name() -> Result<DistinguishedName, Error> {
    let tag = x509::hex(&random::<8>()?);
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("phalanx CA {tag}"));
    Ok(name)
}

fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(refused("make a key"))
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| fault("random number", "the system gives none", "check the system's random source"))?;
    Ok(bytes)
}

fn uri(name: &str) -> Result<SanType, Error> {
    name.try_into().map(SanType::URI).map_err(refused("put the name into a certificate"))
}

/// A time as rcgen wants it, cut to seconds.
fn moment(time: SystemTime) -> Result<OffsetDateTime, Error> {
    let out_of_range = || fault("validity", "it leaves the years 1970 to 9999", "choose a time in between");
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| out_of_range())?;
    let seconds = i64::try_from(since.as_secs()).map_err(|_| out_of_range())?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| out_of_range())
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn refused<E: std::error::Error + Send + Sync + 'static>(action: &'static str) -> impl Fn(E) -> Error {
    move |source| Error::Identity {
        what: "authority".into(),
        fault: format!("it cannot {action} ({source})"),
        remedy: "check its files".into(),
        source: Some(Box::new(source)),
    }
}

/// The one certificate of an authority's own CA file.
fn sole_root(pem: &[u8], what: &str) -> Result<CertificateDer<'static>, Error> {
    let mut roots = super::roots(pem, what)?;
    match (roots.pop(), roots.is_empty()) {
        (Some(root), true) => Ok(root),
        _ => Err(fault(what, "it holds more than one certificate", "leave the authority's own")),
    }
}

/// The cluster that an authority's certificate names.
fn cluster_of(certificate: &CertificateDer<'_>, what: &str) -> Result<String, Error> {
    let remedy = "an authority's certificate has one URI name: spiffe://<cluster>";
    let (uris, _) = x509::uris(certificate).map_err(|text| fault(what, text, remedy))?;
    let cluster = match uris.as_slice() {
        [uri] => uri.strip_prefix("spiffe://").filter(|name| check_cluster_name(name).is_ok()),
        _ => None,
    };
    cluster.map(str::to_owned).ok_or_else(|| fault(what, "it does not name its cluster", remedy))
}
