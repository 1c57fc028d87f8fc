//! Who this node is, and whom it lets in: `Identity` (here), the CA that makes them (`authority`), the name
//! in a certificate (`spiffe`), whether a peer's chain may enter (`trust`), the private key (`key`), signatures on
//! claims (`signer`). Below them: `bundle`, `file`, `pem`, `x509`, `crl`, and `examine` for a doctor. Never touches a
//! socket, and shows a key to nobody.

#[cfg(feature = "authority")]
mod authority;
mod bundle;
mod crl;
pub(crate) mod examine;
mod file;
mod key;
mod pem;
mod signer;
pub(crate) mod spiffe;
mod trust;
mod x509;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::{
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer},
    sign::CertifiedKey,
};

#[cfg(feature = "authority")]
pub use self::authority::{
    Authority, Certificate, Inspected, InspectedCertificate, InspectedKey, InspectedList, InspectedRequest,
    Issued, RequestPaths, Rotation, Shown, SigningRequest, Standing, Validity, Waiting,
};
pub use self::key::{SignatureScheme, SigningKey};
pub(crate) use self::{
    bundle::{FilePaths, Files},
    crl::ListInForce,
    signer::{Signer, digest, is_by},
    spiffe::SpiffeName,
    trust::{Peer, Policy, RejectionKind, Role, Trust, provider},
    x509::written,
};
use self::{
    file::{CRL_LEN_MAX, Draft, fault, named},
    key::Key,
};
#[cfg(any(all(test, feature = "authority"), feature = "fuzzing"))]
pub(crate) use self::{
    pem::{encode as armour, encode_key as armour_key},
    trust::unix_time,
};
use crate::{Error, NodeId};

/// The longest chain, in certificates and in bytes: it must fit into a claim.
const CHAIN_MAX: usize = 8;
const CHAIN_LEN_MAX: usize = 16 * 1024;

/// What a node proves itself with: its certificate chain and private key, and the certificate authorities and
/// revocations by which it judges others.
///
/// Cheap to clone. `Debug` shows names and dates, never the key.
///
/// # Examples
/// ```
/// # #[cfg(feature = "authority")] {
/// use phalanx::{Authority, Identity, NodeId};
///
/// let dir = tempfile::tempdir()?;
/// let paths = Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?.write_to(dir.path())?;
///
/// let identity = Identity::from_pem_files(&paths.ca, &paths.cert, &paths.key)?;
/// assert_eq!(identity.node_id(), Some(NodeId::new("lb-1")?));
/// assert_eq!(identity.cluster_name(), "edge");
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Identity {
    own: Arc<Own>,
    roots: Arc<[CertificateDer<'static>]>,
    /// Invariant: at most one list a signer, each signed by a root or by an intermediate of the chain.
    crls: Arc<[CertificateRevocationListDer<'static>]>,
}

/// What belongs to the node itself, checked once.
struct Own {
    /// The node's certificate first, then its issuers.
    chain: Vec<CertificateDer<'static>>,
    key: Key,
    name: SpiffeName,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Where [`Identity::write_to`] put its files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Paths {
    /// The certificates of the authorities.
    pub ca: PathBuf,
    /// The certificate chain.
    pub cert: PathBuf,
    /// The private key, readable to its owner only.
    pub key: PathBuf,
    /// The revocation lists, if the identity has any.
    pub crl: Option<PathBuf>,
}

impl Identity {
    /// Reads an identity from three PEM files: the certificate authorities' certificates, the node's
    /// certificate chain, and its private key.
    ///
    /// On Unix nobody but its owner may have access to the key file; one that root owns may also be readable
    /// to its group.
    ///
    /// # Errors
    /// [`Error::File`] if a file cannot be read, [`Error::Identity`] if it holds something else or the three
    /// do not belong together. Both name the file and what to do. An expired certificate is no error here; a
    /// cluster does not start with one.
    ///
    /// # Examples
    /// See [`Identity`].
    pub fn from_pem_files(
        ca: impl AsRef<Path>,
        cert: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, Error> {
        let [ca, cert, key] = [ca.as_ref(), cert.as_ref(), key.as_ref()].map(Path::to_path_buf);
        Files::read(&FilePaths { ca, cert, key, crl: None })?.load()
    }

    /// Makes an identity of three PEM texts, as [`Identity::from_pem_files`] does of files.
    ///
    /// # Errors
    /// [`Error::Identity`], as there.
    ///
    /// # Examples
    /// ```
    /// let error = phalanx::Identity::from_pem(b"", b"", b"").unwrap_err();
    /// assert_eq!(error.to_string(), "CA file: it is empty; name the right file");
    /// ```
    pub fn from_pem(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<Self, Error> {
        let labels = Labels { ca: "CA file".into(), cert: "certificate".into(), key: "private key".into() };
        Self::assemble(ca, cert, key, &labels)
    }

    /// Makes an identity of two PEM texts and a key that signs without showing itself: in an HSM, behind
    /// PKCS#11, in another process.
    ///
    /// The key signs once here, which shows that it belongs to the certificate.
    /// [`write_to`](Self::write_to) refuses such an identity, and after a crash the peers of the last process
    /// find out by their time-outs: what tells them at once otherwise is derived from the key's bytes.
    ///
    /// # Errors
    /// [`Error::Identity`], as [`Identity::from_pem`], and if the key does not sign within half a second or
    /// is not the certificate's.
    ///
    /// # Examples
    /// ```
    /// use std::sync::Arc;
    /// use phalanx::{Identity, SignatureScheme, SigningKey};
    ///
    /// /// Stands for a session with a device.
    /// struct Token;
    ///
    /// impl SigningKey for Token {
    ///     fn scheme(&self) -> SignatureScheme {
    ///         SignatureScheme::EcdsaP256Sha256
    ///     }
    ///
    ///     fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    ///         Err(format!("no token to sign {} bytes with", message.len()).into())
    ///     }
    /// }
    ///
    /// # #[cfg(feature = "authority")] {
    /// # let dir = tempfile::tempdir()?;
    /// # let paths =
    /// #     phalanx::Authority::generate("edge")?.issue(&phalanx::NodeId::new("a")?)?.write_to(dir.path())?;
    /// let (ca, cert) = (std::fs::read(&paths.ca)?, std::fs::read(&paths.cert)?);
    /// let error = Identity::from_signing_key(&ca, &cert, Arc::new(Token)).unwrap_err();
    /// assert!(error.to_string().contains("no token to sign"));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_signing_key(ca: &[u8], cert: &[u8], key: Arc<dyn SigningKey>) -> Result<Self, Error> {
        let labels = Labels { ca: "CA file".into(), cert: "certificate".into(), key: "signing key".into() };
        let (roots, chain) = (roots(ca, &labels.ca)?, pem::certificates(cert, &labels.cert)?);
        Self::from_key(roots, chain, Key::of_device(key)?, &labels)
    }

    fn assemble(ca: &[u8], cert: &[u8], key: &[u8], labels: &Labels) -> Result<Self, Error> {
        let roots = roots(ca, &labels.ca)?;
        let chain = pem::certificates(cert, &labels.cert)?;
        let key = pem::private_key(key, &labels.key)?;
        Self::from_parts(roots, chain, key, labels)
    }

    fn from_parts(
        roots: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        labels: &Labels,
    ) -> Result<Self, Error> {
        let key = Key::of_bytes(key, &labels.key)?;
        Self::from_key(roots, chain, key, labels)
    }

    fn from_key(
        roots: Vec<CertificateDer<'static>>,
        mut chain: Vec<CertificateDer<'static>>,
        key: Key,
        labels: &Labels,
    ) -> Result<Self, Error> {
        // Peers have the roots; sending them would only cost bytes.
        let leaf = chain.remove(0);
        chain.retain(|certificate| !roots.contains(certificate));
        chain.insert(0, leaf);
        let own = Own::new(chain, key, labels)?;
        Ok(Self { own: Arc::new(own), roots: roots.into(), crls: Arc::new([]) })
    }

    /// Adds revocation lists, in PEM. Of two lists of one authority the one with the greater number counts.
    ///
    /// A certificate on its issuer's list is refused; an authority without a list revokes nothing.
    ///
    /// # Errors
    /// [`Error::Identity`] if the text holds no list, one that none of the identity's authorities signed, or
    /// only one older than what the identity has already.
    ///
    /// # Examples
    /// ```
    /// # #[cfg(feature = "authority")] {
    /// # use phalanx::{Authority, NodeId};
    /// let authority = Authority::generate("edge")?;
    /// let (kept, lost) = (NodeId::new("lb-1")?, NodeId::new("lb-2")?);
    /// let identity = authority.issue(&kept)?;
    /// authority.revoke(&authority.issue(&lost)?)?;
    /// let identity = identity.with_crl_pem(&authority.crl_pem())?;
    /// # drop(identity);
    /// # }
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn with_crl_pem(self, pem: &[u8]) -> Result<Self, Error> {
        self.with_crl(pem, "revocation list")
    }

    /// Adds revocation lists from a PEM file, as [`Identity::with_crl_pem`] does.
    ///
    /// # Errors
    /// As there, and [`Error::File`] if the file cannot be read.
    ///
    /// # Examples
    /// ```
    /// # #[cfg(feature = "authority")] {
    /// # use phalanx::{Authority, NodeId};
    /// # let identity = Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?;
    /// let error = identity.with_crl_file("/no/such/file").unwrap_err();
    /// assert!(error.to_string().starts_with("cannot read /no/such/file: "));
    /// # }
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn with_crl_file(self, path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let pem = file::read(path, "revocation list", CRL_LEN_MAX)?;
        self.with_crl(&pem, &named("revocation list", path))
    }

    fn with_crl(mut self, pem: &[u8], what: &str) -> Result<Self, Error> {
        if pem.len() as u64 > CRL_LEN_MAX {
            let text = format!("it has more than {CRL_LEN_MAX} bytes");
            return Err(fault(what, text, "use certificates of a shorter life instead"));
        }
        let added = pem::revocation_lists(pem, what)?;
        self.crls = crl::merge(&self.crls, added, &self.signers(), what)?.into();
        Ok(self)
    }

    /// The node that the certificate names; `None` if several nodes share the certificate.
    ///
    /// # Examples
    /// See [`Identity`].
    #[must_use]
    pub fn node_id(&self) -> Option<NodeId> {
        self.own.name.node.clone()
    }

    /// The cluster that the certificate names.
    ///
    /// # Examples
    /// See [`Identity`].
    #[must_use]
    pub fn cluster_name(&self) -> &str {
        &self.own.name.cluster
    }

    /// The serial number of the node's certificate, in hexadecimal without leading zeros.
    ///
    /// # Examples
    /// ```
    /// # #[cfg(feature = "authority")] {
    /// # use phalanx::{Authority, NodeId};
    /// let (authority, id) = (Authority::generate("edge")?, NodeId::new("lb-1")?);
    /// assert_ne!(authority.issue(&id)?.serial(), authority.renew(&id)?.serial());
    /// # }
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.own.serial
    }

    /// When the certificate chain expires. From then on peers close their connections to the node.
    ///
    /// # Examples
    /// ```
    /// # #[cfg(feature = "authority")] {
    /// # use phalanx::{Authority, NodeId};
    /// # use std::time::{Duration, SystemTime};
    /// let identity = Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?;
    /// let left = identity.not_after().duration_since(SystemTime::now()).unwrap();
    /// assert!(left > Duration::from_secs(80 * 86_400)); // about 90 days, unless asked for otherwise
    /// # }
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.own.not_after
    }

    /// From when on the certificate chain is valid.
    pub(crate) fn not_before(&self) -> SystemTime {
        self.own.not_before
    }

    /// Writes `ca.pem`, `cert.pem`, `key.pem` and, if the identity has revocation lists, `crl.pem` into
    /// `dir`, which is made if it is missing. Only the owner may read the key.
    ///
    /// Files of these names are replaced, each at once: whoever reads meanwhile finds the old or the new one
    /// whole. A process killed between two of them may leave a new key beside an old certificate, which
    /// [`Identity::from_pem_files`] refuses.
    ///
    /// # Errors
    /// [`Error::File`] if the directory cannot be written, [`Error::Identity`] if anyone may replace files in
    /// it, or if the identity's key is a [`SigningKey`].
    ///
    /// # Examples
    /// See [`Identity`].
    pub fn write_to(&self, dir: impl AsRef<Path>) -> Result<Paths, Error> {
        let certificates = |list: &[CertificateDer<'_>]| -> Vec<u8> {
            list.iter().flat_map(|der| pem::encode("CERTIFICATE", der).into_bytes()).collect()
        };
        let Some(secret) = self.secret() else {
            let remedy = "write the two PEM texts that it was made of";
            return Err(fault("private key", "it never leaves its device", remedy));
        };
        let mut drafts = vec![
            Draft { name: "ca.pem", bytes: certificates(&self.roots), secret: false },
            Draft { name: "key.pem", bytes: pem::encode_key(secret).into_bytes(), secret: true },
            Draft { name: "cert.pem", bytes: certificates(self.chain()), secret: false },
        ];
        if !self.crls.is_empty() {
            let lists = self.crls.iter().flat_map(|der| pem::encode("X509 CRL", der).into_bytes()).collect();
            drafts.push(Draft { name: "crl.pem", bytes: lists, secret: false });
        }
        let mut paths = file::write_all(dir.as_ref(), &drafts)?.into_iter();
        let mut next = || paths.next().unwrap_or_default();
        let (ca, key, cert) = (next(), next(), next());
        Ok(Paths { ca, cert, key, crl: paths.next() })
    }

    /// The node's certificate first, then its issuers below the root.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.own.chain
    }

    /// The key, as TLS uses it.
    pub(crate) fn signing(&self) -> &Arc<dyn rustls::sign::SigningKey> {
        self.own.key.signing()
    }

    /// The key's bytes, unless a device keeps them.
    pub(crate) fn secret(&self) -> Option<&PrivateKeyDer<'static>> {
        self.own.key.secret()
    }

    #[cfg(all(test, feature = "authority"))]
    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        self.secret().expect("no device in this test")
    }

    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(crate) fn crls(&self) -> &[CertificateRevocationListDer<'static>] {
        &self.crls
    }

    /// Whose revocation lists count: the roots', and those of the chain's own issuers.
    fn signers(&self) -> Vec<&CertificateDer<'static>> {
        self.roots.iter().chain(&self.own.chain[1..]).collect()
    }

    /// Whether a node may start with this identity `now`: it is valid, and its own roots lead to it.
    pub(crate) fn check_usable(&self, policy: Policy, now: SystemTime) -> Result<(), Error> {
        let what = || format!("certificate of {}", self.own.name);
        let clock = x509::written(now);
        if now > self.own.not_after {
            let text = format!("it expired at {}; the clock says {clock}", x509::written(self.own.not_after));
            return Err(fault(what(), text, "issue a new one, or set the clock"));
        }
        if now < self.own.not_before {
            let since = x509::written(self.own.not_before);
            let text = format!("it is valid from {since} on; the clock says {clock}");
            return Err(fault(what(), text, "set the clock, or issue a new one"));
        }
        if self.roots.iter().all(|root| x509::facts(root).is_ok_and(|facts| facts.not_after < now)) {
            return Err(fault(
                "CA file",
                "all its certificates have expired",
                "name the authority's new one",
            ));
        }
        if policy.crl_required && self.crls.is_empty() {
            let remedy = "name the authority's list as tls.crl, or leave tls.crl-required off";
            return Err(fault("revocation list", "tls.crl-required is on, and there is none", remedy));
        }
        let trust = Trust::new(self, policy)?;
        for role in [Role::Dialled, Role::Dialler] {
            trust.judge(self.chain(), role, trust::unix_time(now)).map_err(|rejection| {
                fault(
                    what(),
                    format!("peers that trust the same CA file would refuse it: {}", rejection.reason),
                    "name a certificate that the CA file's authority issued for serverAuth and clientAuth",
                )
            })?;
        }
        Ok(())
    }

    /// Whether everything of `other` is in this identity: there is nothing to take over.
    pub(crate) fn holds(&self, other: &Self) -> bool {
        // Each key is its certificate's.
        self.chain() == other.chain()
            && self.roots == other.roots
            && other.crls.iter().all(|list| self.crls.contains(list))
    }

    /// Whether this identity may take the place of `current` in a running node: the same node of the same
    /// cluster, and no revocation list older than the one in force.
    pub(crate) fn check_successor(&self, current: &Self) -> Result<(), Error> {
        if self.own.name != current.own.name {
            let text = format!("it names {}, but this node runs as {}", self.own.name, current.own.name);
            return Err(fault("new certificate", text, "issue one for this node; the old one stays in use"));
        }
        crl::refuse_older(&self.crls, &current.crls)
    }
}

/// What became of a list that a peer sent.
#[derive(Debug)]
pub(crate) enum Listed {
    /// The identity with it.
    News(Box<Identity>),
    /// What is in force is as new.
    Known,
    /// No authority trusted here signed it, it cannot be read, or it is older than was promised.
    Bad(Error),
}

impl Identity {
    /// The lists in force, one an authority.
    pub(crate) fn lists(&self) -> Vec<ListInForce> {
        let signers = self.signer_facts();
        self.crls.iter().filter_map(|list| ListInForce::of(list, &signers)).collect()
    }

    /// This identity with a list that a peer sent, who had promised one of that age.
    pub(crate) fn with_list_of_peer(&self, der: &[u8], promised: &[u8]) -> Listed {
        const WHAT: &str = "revocation list of a peer";

        let list = CertificateRevocationListDer::from(der.to_vec());
        let merged = match crl::merge(&[], vec![list.clone()], &self.signers(), WHAT) {
            Ok(merged) => merged,
            Err(error) => return Listed::Bad(error),
        };
        let signers = self.signer_facts();
        let Some(told) = merged.first().and_then(|list| ListInForce::of(list, &signers)) else {
            return Listed::Known; // it was read a moment ago
        };
        if told.age.as_slice() < promised {
            let text = format!("its number {} is older than promised", told.number);
            return Listed::Bad(fault(WHAT, text, "none; the peer is not asked again for a while"));
        }
        if self.lists().iter().any(|held| held.issuer == told.issuer && held.age >= told.age) {
            return Listed::Known;
        }
        match crl::merge(&self.crls, vec![list], &self.signers(), WHAT) {
            Ok(lists) => Listed::News(Box::new(Self { crls: lists.into(), ..self.clone() })),
            Err(error) => Listed::Bad(error),
        }
    }

    fn signer_facts(&self) -> Vec<x509::Facts> {
        self.signers().into_iter().filter_map(|signer| x509::facts(signer).ok()).collect()
    }

    /// Keeps the revocation lists of `current` where this identity has none of its own, so that no reload
    /// makes a revoked certificate valid again. Those of authorities that it does not trust any more go with
    /// them.
    pub(crate) fn with_lists_of(mut self, current: &Self) -> Self {
        for list in &*current.crls {
            // Refused: this identity has a newer one, or its authority is gone.
            if let Ok(lists) = crl::merge(&self.crls, vec![list.clone()], &self.signers(), "revocation list")
            {
                self.crls = lists.into();
            }
        }
        self
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &format_args!("{}", self.own.name))
            .field("serial", &format_args!("{}", self.own.serial))
            .field("not_after", &format_args!("{}", x509::written(self.own.not_after)))
            .field("roots", &self.roots.len())
            .field("crls", &self.crls.len())
            .finish_non_exhaustive()
    }
}

/// How errors call the three parts.
struct Labels {
    ca: String,
    cert: String,
    key: String,
}

impl Own {
    fn new(chain: Vec<CertificateDer<'static>>, key: Key, labels: &Labels) -> Result<Self, Error> {
        let name = SpiffeName::from_certificate(&chain[0]).map_err(|text| {
            let remedy = "issue it with one URI name: spiffe://<cluster>/node/<node-id>";
            fault(&labels.cert, text, remedy)
        })?;
        let mut facts = Vec::with_capacity(chain.len());
        for certificate in &chain {
            let text = |text| fault(&labels.cert, text, "name a PEM certificate file");
            facts.push(x509::facts(certificate).map_err(text)?);
        }
        if let Some(weakness) = &facts[0].weakness {
            return Err(fault(&labels.cert, format!("its key is {weakness}"), "issue a new one"));
        }
        if chain.len() > CHAIN_MAX || signer::encoded_len(&chain) > CHAIN_LEN_MAX {
            let text = format!("its chain is over {CHAIN_MAX} certificates or {CHAIN_LEN_MAX} bytes");
            return Err(fault(&labels.cert, text, "leave out what peers do not need"));
        }
        match key.secret() {
            Some(_) => check_pair(&chain, &key, labels)?,
            None => signer::check_signs_for(key.signing(), &chain[0], &labels.key)?,
        }
        let not_before = facts.iter().map(|facts| facts.not_before).max().unwrap_or(SystemTime::UNIX_EPOCH);
        let not_after = facts.iter().map(|facts| facts.not_after).min().unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Self { serial: facts[0].serial.clone(), chain, key, name, not_before, not_after })
    }
}

fn check_pair(chain: &[CertificateDer<'static>], key: &Key, labels: &Labels) -> Result<(), Error> {
    let pair = CertifiedKey::new(chain.to_vec(), Arc::clone(key.signing()));
    pair.keys_match().map_err(|source| Error::Identity {
        what: labels.key.clone(),
        fault: format!("it does not belong to the {}", labels.cert),
        remedy: "name the key that the certificate was issued for".into(),
        source: Some(source.into()),
    })
}

/// The certificate authorities of a CA file.
fn roots(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let mut roots = pem::certificates(pem, what)?;
    for (at, root) in roots.iter().enumerate() {
        let refuse = |text: String| {
            let text = format!("certificate {} in it: {text}", at + 1);
            fault(what, text, "list the authorities' certificates, and nothing else")
        };
        let facts = x509::facts(root).map_err(refuse)?;
        if !facts.is_ca {
            return Err(refuse("it is not a certificate authority's".into()));
        }
        webpki::anchor_from_trusted_cert(root).map_err(|error| refuse(error.to_string()))?;
    }
    let mut seen = Vec::new();
    roots.retain(|root| {
        !seen.contains(root) && {
            seen.push(root.clone());
            true
        }
    });
    Ok(roots)
}

#[cfg(all(doctest, feature = "authority"))]
#[doc = include_str!("../../certs/README.md")]
struct CertificatesReadme;

#[cfg(all(test, feature = "authority"))]
mod tests;
#[cfg(all(test, feature = "authority"))]
mod weak_certificates;
