//! May this chain enter, and as whom: chain, validity, purpose and revocation through webpki, then the name.
//! Never reads a clock, never talks to a peer; what it refuses it explains in one line for the log.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs as backend;
#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
use rustls::crypto::ring as backend;
use rustls::{
    CertificateError, ExtendedKeyPurpose, OtherError,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, TrustAnchor, UnixTime},
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::{
    CHAIN_MAX, Identity, SpiffeName, crl,
    file::fault,
    x509::{self, Facts},
};
use crate::{Error, NodeId};

/// The cryptography of every handshake and signature: aws-lc-rs, the post-quantum hybrid X25519MLKEM768
/// first; or ring, which has no such hybrid, where that feature is on and aws-lc-rs is off.
///
/// Handed to every builder: rustls' process-wide default depends on what else the program links.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(backend::default_provider())))
}

/// What the operator demands of peers besides a good chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Nodes may share a certificate that names none.
    pub(crate) shared_certificate: bool,
    /// An authority without a revocation list is not trusted.
    pub(crate) crl_required: bool,
}

/// What a certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The peer was dialled: it is the server.
    Dialled,
    /// The peer dialled us: it is the client.
    Dialler,
    /// The peer signed a claim that reached us, perhaps long ago: either purpose, whatever the time. Whether
    /// a claim is valid must not depend on when it is checked, or nodes would differ for ever.
    Signer,
    /// The same of a record, which a revocation does not take back either: those who have it would differ for
    /// ever from those who come later.
    Writer,
}

/// Who was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) cluster: String,
    /// `None`: a shared certificate; the hello tells the id.
    pub(crate) node: Option<NodeId>,
    /// When the first certificate of its chain expires.
    pub(crate) not_after: SystemTime,
    pub(crate) serial: String,
}

/// Why a chain may not enter.
#[derive(Debug)]
pub(crate) struct Rejection {
    pub(crate) kind: RejectionKind,
    /// What rustls must return, so that the right alert goes out.
    pub(crate) error: rustls::Error,
    /// One line for logs, escaped; both names, both clocks.
    pub(crate) reason: String,
}

/// What a rejection is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RejectionKind {
    NoCertificate,
    UnknownIssuer,
    Expired,
    NotYetValid,
    Revoked,
    /// The certificate may not be used in this role.
    Purpose,
    /// A key or signature too weak, or of an unknown kind.
    Algorithm,
    /// All is well but the cluster is another.
    Cluster,
    /// Its authority has no revocation list, where one is required.
    NoList,
    /// It names no node, or is shared where that is off.
    Name,
    /// It cannot be read, or breaks another rule of X.509.
    Malformed,
}

/// By which chains are judged. Immutable; a reload makes a new one.
pub(crate) struct Trust {
    anchors: Vec<Anchor>,
    crls: Vec<CertRevocationList<'static>>,
    /// The authorities whose lists count, by number.
    issuers: Vec<u64>,
    cluster: String,
    policy: Policy,
    provider: Arc<CryptoProvider>,
}

/// One root. Each is tried with its own lists: webpki looks for a list by the issuer's name alone, and two
/// roots of one name (an authority with a new key) would be mixed up.
struct Anchor {
    anchor: TrustAnchor<'static>,
    /// Places in `Trust::crls`.
    crls: Vec<usize>,
}

impl Trust {
    pub(crate) fn new(identity: &Identity, policy: Policy) -> Result<Self, Error> {
        let unusable = |what: &'static str| move |text| fault(what, text, "load the identity anew");
        let mut anchors = Vec::with_capacity(identity.roots().len());
        for root in identity.roots() {
            let anchor = webpki::anchor_from_trusted_cert(root)
                .map_err(|error| unusable("CA file")(error.to_string()))?
                .to_owned();
            anchors.push(Anchor { anchor, crls: Vec::new() });
        }
        let signers: Vec<Facts> = identity.signer_facts();
        debug_assert_eq!(signers.len(), identity.signers().len(), "both were read at loading");
        let mut crls = Vec::with_capacity(identity.crls().len());
        for (at, list) in identity.crls().iter().enumerate() {
            crls.push(crl::parsed(list).map_err(unusable("revocation list"))?.into());
            let facts = x509::list_facts(list).map_err(unusable("revocation list"))?;
            match crl::signer_of(&facts, &signers).and_then(|signer| anchors.get_mut(signer)) {
                Some(anchor) => anchor.crls.push(at),
                // An intermediate's: it counts below whatever root leads to it.
                None => anchors.iter_mut().for_each(|anchor| anchor.crls.push(at)),
            }
        }
        let cluster = identity.cluster_name().into();
        let issuers = signers.iter().map(crl::issuer_id).collect();
        Ok(Self { anchors, crls, issuers, cluster, policy, provider: provider() })
    }

    /// Whether revocation lists of that authority count here.
    pub(crate) fn trusts_issuer(&self, issuer: u64) -> bool {
        self.issuers.contains(&issuer)
    }

    /// Whether `chain`, the peer's certificate first, may enter in this role at `now`, and as whom.
    pub(crate) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Peer, Rejection> {
        let Some((leaf, issuers)) = chain.split_first() else {
            return Err(Rejection {
                kind: RejectionKind::NoCertificate,
                error: rustls::Error::NoCertificatesPresented,
                reason: "the peer sent no certificate".into(),
            });
        };
        let name = SpiffeName::from_certificate(leaf);
        self.judge_as(leaf, issuers, role, now, &name).map_err(|refusal| {
            let whose = match &name {
                Ok(name) => format!("certificate of {name}"),
                Err(_) => "certificate without a node's name".into(),
            };
            Rejection {
                kind: refusal.kind,
                error: rustls::Error::InvalidCertificate(refusal.error),
                reason: format!("{whose}: {}", refusal.reason),
            }
        })
    }

    fn judge_as(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
        name: &Result<SpiffeName, String>,
    ) -> Result<Peer, Refusal> {
        if issuers.len() >= CHAIN_MAX {
            let reason = format!("its chain has more than {CHAIN_MAX} certificates");
            return Err(Refusal::new(RejectionKind::Malformed, CertificateError::UnknownIssuer, reason));
        }
        let end = EndEntityCert::try_from(leaf).map_err(|error| Refusal::from_webpki(error, role))?;
        let chain_end = match role {
            Role::Dialled => self.verify(&end, issuers, now, KeyUsage::server_auth(), true),
            Role::Dialler => self.verify(&end, issuers, now, KeyUsage::client_auth(), true),
            Role::Signer => self.verify_signer(&end, issuers, now, true),
            Role::Writer => self.verify_signer(&end, issuers, now, false),
        }
        .map_err(|error| Refusal::from_webpki(error, role))?;
        // A trusted authority signed it: now the second parser may look.
        let malformed = |text| Refusal::new(RejectionKind::Malformed, CertificateError::BadEncoding, text);
        let facts = x509::facts(leaf).map_err(malformed)?;
        check_purpose(&facts, role)?;
        if let Some(weakness) = &facts.weakness {
            let reason = format!("its key is {weakness}");
            return Err(Refusal::new(RejectionKind::Algorithm, other(&reason), reason));
        }
        let name = self.check_name(name)?;
        Ok(Peer {
            cluster: name.cluster,
            node: name.node,
            not_after: chain_end.min(facts.not_after),
            serial: facts.serial,
        })
    }

    /// Chain, validity, purpose and, if it is `revocable`, revocation. Gives the end of the first issuer on the path to expire.
    fn verify(
        &self,
        end: &EndEntityCert<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
        revocable: bool,
    ) -> Result<SystemTime, webpki::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let mut worst = webpki::Error::UnknownIssuer;
        for Anchor { anchor, crls } in &self.anchors {
            let crls: Vec<_> = crls.iter().filter_map(|at| self.crls.get(*at)).collect();
            let required = revocable && self.policy.crl_required;
            let unknown = if required { UnknownStatusPolicy::Deny } else { UnknownStatusPolicy::Allow };
            let lists = RevocationOptionsBuilder::new(&crls).ok().filter(|_| revocable);
            let revocation = lists.map(|options| {
                options
                    .with_depth(RevocationCheckDepth::EndEntity)
                    .with_status_policy(unknown)
                    // A list past its date would lock every peer out at once.
                    .with_expiration_policy(ExpirationPolicy::Ignore)
                    .build()
            });
            let anchor = std::slice::from_ref(anchor);
            let unlisted = required && revocation.is_none(); // with no list at all webpki cannot be asked to deny
            match end.verify_for_usage(algorithms, anchor, issuers, now, usage, revocation, None) {
                Ok(_) if unlisted => worst = webpki::Error::UnknownRevocationStatus,
                Ok(path) => {
                    let ends = path
                        .intermediate_certificates()
                        .filter_map(|issuer| x509::facts(&issuer.der()).ok().map(|facts| facts.not_after));
                    return Ok(ends.fold(far_future(), SystemTime::min));
                }
                Err(webpki::Error::UnknownIssuer) => {}
                Err(webpki::Error::CertRevoked) => return Err(webpki::Error::CertRevoked),
                Err(error) => worst = error,
            }
        }
        Err(worst)
    }

    /// As `verify`, for either purpose and whatever the time: where a certificate was not valid at the time
    /// tried, the next try is at the edge of its validity.
    fn verify_signer(
        &self,
        end: &EndEntityCert<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
        revocable: bool,
    ) -> Result<SystemTime, webpki::Error> {
        let mut time = now;
        let mut usage = KeyUsage::server_auth();
        let mut result = self.verify(end, issuers, time, usage, revocable);
        for _ in 0..CHAIN_MAX {
            match &result {
                Err(webpki::Error::CertExpired { not_after, .. }) => time = *not_after,
                Err(webpki::Error::CertNotValidYet { not_before, .. }) => time = *not_before,
                Err(webpki::Error::RequiredEkuNotFoundContext(_)) => usage = KeyUsage::client_auth(),
                _ => break,
            }
            result = self.verify(end, issuers, time, usage, revocable);
        }
        result
    }

    fn check_name(&self, name: &Result<SpiffeName, String>) -> Result<SpiffeName, Refusal> {
        let refuse =
            |kind, reason| Err(Refusal::new(kind, CertificateError::ApplicationVerificationFailure, reason));
        let name = match name {
            Ok(name) => name.clone(),
            Err(fault) => return refuse(RejectionKind::Name, fault.clone()),
        };
        if name.cluster != self.cluster {
            let reason = format!("it is of cluster {:?}, this node of {:?}", name.cluster, self.cluster);
            return refuse(RejectionKind::Cluster, reason);
        }
        if name.node.is_none() && !self.policy.shared_certificate {
            let reason = "it is shared by nodes, and tls.shared-certificate is off here".into();
            return refuse(RejectionKind::Name, reason);
        }
        Ok(name)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("cluster", &self.cluster)
            .field("anchors", &self.anchors.len())
            .field("crls", &self.crls.len())
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// A wall-clock time as rustls counts it.
pub(crate) fn unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

/// The end of the year 9999, after which no certificate can name a time.
fn far_future() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

/// webpki lets a leaf without any purpose pass in every role.
fn check_purpose(facts: &Facts, role: Role) -> Result<(), Refusal> {
    let required = match role {
        Role::Dialled | Role::Signer | Role::Writer => ExtendedKeyPurpose::ServerAuth,
        Role::Dialler => ExtendedKeyPurpose::ClientAuth,
    };
    let refuse = |reason: &str| {
        let error = CertificateError::InvalidPurposeContext { required, presented: Vec::new() };
        Err(Refusal::new(RejectionKind::Purpose, error, reason.into()))
    };
    if !facts.has_purposes {
        return refuse("it has no extended key usage; serverAuth and clientAuth are needed");
    }
    if !facts.may_sign {
        return refuse("its key usage lacks digitalSignature");
    }
    Ok(())
}

/// A rejection before it is known whose.
struct Refusal {
    kind: RejectionKind,
    error: CertificateError,
    reason: String,
}

impl Refusal {
    fn new(kind: RejectionKind, error: CertificateError, reason: String) -> Self {
        Self { kind, error, reason }
    }

    /// webpki's verdict as rustls would put it, so that the alerts are the same as from its own verifiers.
    fn from_webpki(error: webpki::Error, role: Role) -> Self {
        use webpki::Error as E;

        let (kind, error, reason) = match error {
            E::CertExpired { time, not_after } => (
                RejectionKind::Expired,
                CertificateError::ExpiredContext { time, not_after },
                clocks("expired at", not_after, time),
            ),
            E::CertNotValidYet { time, not_before } => (
                RejectionKind::NotYetValid,
                CertificateError::NotValidYetContext { time, not_before },
                clocks("is valid from", not_before, time),
            ),
            E::InvalidCertValidity => (
                RejectionKind::Expired,
                CertificateError::Expired,
                "its validity, or an issuer's, ends before it begins".into(),
            ),
            E::UnknownIssuer => (
                RejectionKind::UnknownIssuer,
                CertificateError::UnknownIssuer,
                "no certificate authority trusted here issued it".into(),
            ),
            E::CertRevoked => {
                (RejectionKind::Revoked, CertificateError::Revoked, "its authority has revoked it".into())
            }
            E::UnknownRevocationStatus => (
                RejectionKind::NoList,
                CertificateError::UnknownRevocationStatus,
                "its authority has no revocation list here, and tls.crl-required is on".into(),
            ),
            E::InvalidSignatureForPublicKey => (
                RejectionKind::UnknownIssuer,
                CertificateError::BadSignature,
                "it names an authority trusted here, which did not sign it".into(),
            ),
            E::RequiredEkuNotFoundContext(context) => purpose(&context, role),
            E::UnsupportedSignatureAlgorithmContext(context) => {
                let reason = format!("it is signed with {}", algorithm(&context.signature_algorithm_id));
                let error = CertificateError::UnsupportedSignatureAlgorithmContext {
                    signature_algorithm_id: context.signature_algorithm_id,
                    supported_algorithms: context.supported_algorithms,
                };
                (RejectionKind::Algorithm, error, reason)
            }
            E::UnsupportedSignatureAlgorithmForPublicKeyContext(context) => {
                let reason = format!(
                    "its issuer's key is of a kind not accepted for {}",
                    algorithm(&context.signature_algorithm_id)
                );
                let error = CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
                    signature_algorithm_id: context.signature_algorithm_id,
                    public_key_algorithm_id: context.public_key_algorithm_id,
                };
                (RejectionKind::Algorithm, error, reason)
            }
            error @ (E::BadDer | E::BadDerTime | E::TrailingData(_)) => (
                RejectionKind::Malformed,
                CertificateError::BadEncoding,
                format!("it cannot be read ({error})"),
            ),
            error => {
                let reason = format!("it breaks a rule of X.509 ({error})");
                (RejectionKind::Malformed, CertificateError::Other(OtherError(Arc::new(error))), reason)
            }
        };
        Self { kind, error, reason }
    }
}

fn clocks(what: &str, edge: UnixTime, now: UnixTime) -> String {
    let (edge, now) = (x509::written_unix(edge), x509::written_unix(now));
    format!("it, or an issuer of it, {what} {edge}; the clock here says {now}")
}

fn purpose(
    context: &webpki::RequiredEkuNotFoundContext,
    role: Role,
) -> (RejectionKind, CertificateError, String) {
    let (required, name) = match role {
        Role::Dialled => (ExtendedKeyPurpose::ServerAuth, "serverAuth"),
        Role::Dialler => (ExtendedKeyPurpose::ClientAuth, "clientAuth"),
        Role::Signer | Role::Writer => (ExtendedKeyPurpose::ServerAuth, "serverAuth or clientAuth"),
    };
    let presented = context
        .present
        .iter()
        .map(|purpose| match purpose.as_slice() {
            [1, 3, 6, 1, 5, 5, 7, 3, 1] => ExtendedKeyPurpose::ServerAuth,
            [1, 3, 6, 1, 5, 5, 7, 3, 2] => ExtendedKeyPurpose::ClientAuth,
            other => ExtendedKeyPurpose::Other(other.to_vec()),
        })
        .collect();
    let error = CertificateError::InvalidPurposeContext { required, presented };
    (RejectionKind::Purpose, error, format!("its extended key usage lacks {name}"))
}

/// A signature algorithm by name, where it is one that was common once.
fn algorithm(identifier: &[u8]) -> String {
    const OLD: [(&[u8], &str); 5] = [
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05], "SHA-1 and RSA"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01], "SHA-1 and ECDSA"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04], "MD5 and RSA"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x01], "SHA-224 and ECDSA"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0e], "SHA-224 and RSA"),
    ];
    let found = OLD.iter().find(|(oid, _)| identifier.windows(oid.len()).any(|part| part == *oid));
    let name = match found {
        Some((_, name)) => (*name).to_owned(),
        None => format!("the algorithm {}", x509::hex(&identifier[..identifier.len().min(32)])),
    };
    format!("{name}, which is not accepted")
}

fn other(reason: &str) -> CertificateError {
    CertificateError::Other(OtherError(Arc::new(std::io::Error::other(reason.to_owned()))))
}
