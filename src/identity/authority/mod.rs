//! A private certificate authority: makes its own root, issues identities, renews and revokes them, moves to
//! another root. Holds the one key that guards a cluster, and nothing of a running node; a node never needs
//! it. Here is `Authority` itself; what certificates are made of is in `make`, one root in `root`, requests
//! in `request`, what was issued in `ledger`, the directory in `store`, moving in `rotate`, files in words in
//! `inspect`.

mod inspect;
mod ledger;
mod make;
mod request;
mod root;
mod rotate;
mod store;

use std::{
    fmt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use rcgen::{
    DistinguishedName, ExtendedKeyUsagePurpose, KeyUsagePurpose, PublicKeyData, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

pub use self::{
    inspect::{Inspected, InspectedCertificate, InspectedKey, InspectedList, InspectedRequest},
    ledger::{Issued, Standing},
    make::Validity,
    request::{RequestPaths, SigningRequest},
    rotate::{Rotation, Shown, Waiting},
};
use self::{
    ledger::{Leaf, Ledger},
    make::{BACKDATED, LIFE_DAYS, new_key, parameters, uri},
    root::{Root, certificates_pem, lists_pem},
};
use super::{
    Identity, Labels, Paths, SpiffeName,
    file::{self, Draft, PEM_LEN_MAX, fault, named},
    pem,
    spiffe::check_cluster_name,
    x509,
};
use crate::{Error, NodeId, driver::clock};

/// A private certificate authority: makes the identities of one cluster's nodes, renews and revokes them.
///
/// Whoever has its key can be any node. Keep its directory away from the nodes, and write it again after
/// everything that it did: what it issued is on record there, by which it renews, revokes and rotates.
///
/// # Examples
/// ```
/// use phalanx::{Authority, NodeId};
///
/// let (dir, id) = (tempfile::tempdir()?, NodeId::new("lb-1")?);
/// let authority = Authority::generate("edge")?;
/// let identity = authority.issue(&id)?;
/// assert_eq!(identity.cluster_name(), "edge");
/// authority.write_to(dir.path())?;
///
/// let authority = Authority::load(dir.path())?;
/// authority.renew(&id)?; // a new key and a new serial number
/// assert_eq!(authority.revoke_node(&id)?.len(), 2); // both certificates of lb-1
/// authority.write_to(dir.path())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Authority {
    cluster: String,
    /// The root that issues.
    current: Root,
    /// The root that a rotation is about to drop.
    previous: Option<Root>,
    /// The roots that this object has dropped: a directory that still has one may be written over.
    dropped: Vec<CertificateDer<'static>>,
    issued: Mutex<Ledger>,
}

/// A certificate without its key, and what its node needs to judge others.
///
/// # Examples
/// See [`SigningRequest`].
#[derive(Clone)]
pub struct Certificate {
    leaf: Leaf,
    ca_pem: Vec<u8>,
    /// Empty: nothing is revoked.
    crl_pem: Vec<u8>,
}

/// Making one.
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
        let current = Root::generate(&cluster)?;
        Ok(Self { cluster, current, previous: None, dropped: Vec::new(), issued: Mutex::default() })
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

    /// The authority's certificate in PEM: what nodes trust. During a rotation both, the new one first.
    ///
    /// # Examples
    /// ```
    /// let pem = phalanx::Authority::generate("edge")?.ca_pem();
    /// assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn ca_pem(&self) -> Vec<u8> {
        certificates_pem(self.roots().map(|root| &root.certificate))
    }

    /// When the root that issues ends. Begin a rotation long before.
    ///
    /// # Examples
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// let end = phalanx::Authority::generate("edge")?.not_after();
    /// assert!(end > SystemTime::now() + Duration::from_secs(3_600 * 24 * 3_649)); // ten years
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.current.not_after
    }

    /// The issuing root first.
    fn roots(&self) -> impl Iterator<Item = &Root> {
        std::iter::once(&self.current).chain(&self.previous)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // One insertion at a time, so a panic elsewhere cannot have left it half done.
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Issuing.
impl Authority {
    /// Issues an identity to a node, for about 90 days: a new key, a certificate, and what the node needs to
    /// judge others.
    ///
    /// Up to a tenth of the time is left off by chance, so that a fleet issued together does not expire
    /// together.
    ///
    /// # Errors
    /// [`Error::Identity`] if the authority itself has expired, or the system has no randomness.
    ///
    /// # Examples
    /// See [`Authority`].
    pub fn issue(&self, node: &NodeId) -> Result<Identity, Error> {
        self.issue_named(Some(node.clone()), self.validity(LIFE_DAYS)?)
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

    /// Issues an identity that several nodes may share, for about 90 days, where `tls.shared-certificate` is
    /// on. None of them can be told from another, nor be revoked alone.
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
        self.issue_named(None, self.validity(LIFE_DAYS)?)
    }

    /// Certifies the key of a signing request (PKCS #10, PEM) as `node`'s, for about 90 days: the node made
    /// the key, and keeps it.
    ///
    /// Of the request only the key counts, and that it signed the request. Names, uses and whatever else it
    /// asks for are ignored: who the node is, the caller says.
    ///
    /// # Errors
    /// As [`Authority::issue`], and [`Error::Identity`] if the request cannot be read, its signature is not
    /// of its key, or the key is too weak or of a kind that peers do not know.
    ///
    /// # Examples
    /// See [`SigningRequest`].
    pub fn sign_csr(&self, csr_pem: &[u8], node: &NodeId) -> Result<Certificate, Error> {
        self.sign_csr_for(csr_pem, node, self.validity(LIFE_DAYS)?)
    }

    /// As [`Authority::sign_csr`], for a time of the caller's choice.
    ///
    /// # Errors
    /// As there and at [`Authority::issue_for`].
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, SigningRequest, Validity};
    /// let id = NodeId::new("lb-1")?;
    /// let request = SigningRequest::generate(&id)?.csr_pem();
    /// let week = Authority::generate("edge")?.sign_csr_for(&request, &id, Validity::days(7))?;
    /// assert_eq!(week.node_id(), Some(&id));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn sign_csr_for(
        &self,
        csr_pem: &[u8],
        node: &NodeId,
        validity: Validity,
    ) -> Result<Certificate, Error> {
        self.sign_request(csr_pem, "signing request", node, validity)
    }

    /// As [`Authority::sign_csr_for`], of a file.
    ///
    /// # Errors
    /// As there, and [`Error::File`] if the file cannot be read.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, SigningRequest, Validity};
    /// # let (id, dir) = (NodeId::new("lb-1")?, tempfile::tempdir()?);
    /// let request = SigningRequest::generate(&id)?.write_to(dir.path())?;
    /// Authority::generate("edge")?.sign_csr_file(&request.csr, &id, Validity::days(90))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sign_csr_file(
        &self,
        path: impl AsRef<Path>,
        node: &NodeId,
        validity: Validity,
    ) -> Result<Certificate, Error> {
        let path = path.as_ref();
        let pem = file::read(path, "signing request", PEM_LEN_MAX)?;
        self.sign_request(&pem, &named("signing request", path), node, validity)
    }

    fn sign_request(
        &self,
        pem: &[u8],
        what: &str,
        node: &NodeId,
        validity: Validity,
    ) -> Result<Certificate, Error> {
        let key = request::requested_key(pem, what)?;
        self.certify(&key, &self.name(Some(node.clone())), validity)
    }

    /// A time for certificates: `days` from now or up to a tenth less, by chance, and never longer than the
    /// authority itself has.
    ///
    /// # Errors
    /// [`Error::Identity`] if the authority itself has expired.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId};
    /// # use std::time::{Duration, SystemTime};
    /// let authority = Authority::generate("edge")?;
    /// let month = authority.issue_for(&NodeId::new("lb-1")?, authority.validity(30)?)?;
    /// let days = month.not_after().duration_since(SystemTime::now()).unwrap().as_secs() / 86_400;
    /// assert!((26..30).contains(&days));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn validity(&self, days: u32) -> Result<Validity, Error> {
        let (validity, end) = (Validity::about_days(days), self.current.not_after);
        if validity.not_before + BACKDATED > end {
            let text = format!("it expired at {}", x509::written(end));
            return Err(fault("the authority's certificate", text, "make a new authority"));
        }
        Ok(Validity { not_after: validity.not_after.min(end), ..validity })
    }

    fn name(&self, node: Option<NodeId>) -> SpiffeName {
        SpiffeName { cluster: self.cluster.clone(), node }
    }

    fn issue_named(&self, node: Option<NodeId>, validity: Validity) -> Result<Identity, Error> {
        self.issue_as(&self.name(node), validity)
    }

    /// Issues an identity for whatever name, of another cluster too: what peers must refuse is made so in
    /// tests.
    pub(crate) fn issue_as(&self, name: &SpiffeName, validity: Validity) -> Result<Identity, Error> {
        let key = new_key()?;
        let certificate = self.certify(&key, name, validity)?;
        let secret = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let labels = Labels {
            ca: "the authority's certificate".into(),
            cert: format!("the certificate of {name}"),
            key: format!("the key of {name}"),
        };
        let roots = self.roots().map(|root| root.certificate.clone()).collect();
        let mut identity = Identity::from_parts(roots, vec![certificate.leaf.der], secret, &labels)?;
        identity.crls = self.lists_in_use().into();
        Ok(identity)
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        name: &SpiffeName,
        validity: Validity,
    ) -> Result<Certificate, Error> {
        let mut params = parameters(self.ledger().after_its_kin(name, validity))?;
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&name.to_string())?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let der = self.current.certify(&params, key)?;
        let leaf = Leaf::read(der)
            .map_err(|text| fault(format!("the certificate of {name}"), text, "choose another name"))?;
        self.ledger().add(leaf.clone());
        let crl_pem = lists_pem(self.lists_in_use().iter().map(AsRef::as_ref));
        Ok(Certificate { leaf, ca_pem: self.ca_pem(), crl_pem })
    }

    /// The lists that revoke anything: an empty one would only cost each handshake the check of its
    /// signature.
    fn lists_in_use(&self) -> Vec<CertificateRevocationListDer<'static>> {
        let lists = self.roots().map(Root::revocations);
        lists.filter(|list| !list.revoked.is_empty()).map(|list| list.list.clone()).collect()
    }
}

/// Renewing, from the record of what was issued.
impl Authority {
    /// Issues a new identity to a node that has one: a new key, a new serial number, for about 90 days. The
    /// old certificate stays valid until it expires.
    ///
    /// # Errors
    /// As [`Authority::issue`], and [`Error::Identity`] if nothing issued to the node is on record, or if its
    /// newest certificate was revoked: to let it in again is a decision, made by [`Authority::issue`].
    ///
    /// # Examples
    /// See [`Authority`].
    pub fn renew(&self, node: &NodeId) -> Result<Identity, Error> {
        self.renew_for(node, self.validity(LIFE_DAYS)?)
    }

    /// As [`Authority::renew`], for a time of the caller's choice.
    ///
    /// # Errors
    /// As there and at [`Authority::issue_for`].
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, Validity};
    /// let (authority, id) = (Authority::generate("edge")?, NodeId::new("lb-1")?);
    /// assert!(authority.renew_for(&id, Validity::days(7)).is_err()); // there is nothing to renew
    /// authority.issue(&id)?;
    /// assert!(authority.renew_for(&id, Validity::days(7)).is_ok());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn renew_for(&self, node: &NodeId, validity: Validity) -> Result<Identity, Error> {
        self.renewable(node)?;
        self.issue_for(node, validity)
    }

    /// As [`Authority::renew_for`], but for the key that the node has: only the certificate is new. For keys
    /// that cannot leave where they are; a new key is better.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, Validity};
    /// let (authority, id) = (Authority::generate("edge")?, NodeId::new("lb-1")?);
    /// authority.issue(&id)?;
    /// let old = authority.issued()[0].serial.clone();
    /// assert_ne!(authority.renew_certificate(&id, Validity::days(90))?.serial(), old);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn renew_certificate(&self, node: &NodeId, validity: Validity) -> Result<Certificate, Error> {
        let leaf = self.renewable(node)?;
        let what = || format!("certificate {} of {}", leaf.serial, leaf.name);
        let info = x509::key_info(&leaf.der).map_err(|text| fault(what(), text, "issue a new one"))?;
        let key = SubjectPublicKeyInfo::from_der(&info)
            .map_err(|error| fault(what(), error.to_string(), "renew it with a new key"))?;
        self.certify(&key, &leaf.name, validity)
    }

    /// The newest certificate of a node, if it is not revoked.
    fn renewable(&self, node: &NodeId) -> Result<Leaf, Error> {
        let name = self.name(Some(node.clone()));
        let what = || format!("node {node}");
        let newest = self.ledger().newest(&name).cloned();
        let newest = newest.ok_or_else(|| {
            fault(
                what(),
                "this authority has no record of a certificate for it",
                "issue one: phalanx node issue",
            )
        })?;
        if self.standing(&newest).0 == Standing::Revoked {
            let text = format!("its certificate {} was revoked", newest.serial);
            return Err(fault(
                what(),
                text,
                "if it shall be let in again, issue a new one: phalanx node issue",
            ));
        }
        Ok(newest)
    }

    /// Everything on record, by node and then by age.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, Standing};
    /// let authority = Authority::generate("edge")?;
    /// let identity = authority.issue(&NodeId::new("lb-1")?)?;
    /// assert_eq!(authority.issued()[0].node_id, identity.node_id());
    /// authority.revoke(&identity)?;
    /// assert_eq!(authority.issued()[0].standing, Standing::Revoked);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn issued(&self) -> Vec<Issued> {
        let mut issued: Vec<_> = self.ledger().iter().map(|leaf| self.describe(leaf)).collect();
        issued.sort_by(|a, b| {
            (&a.node_id, a.not_before, &a.serial).cmp(&(&b.node_id, b.not_before, &b.serial))
        });
        issued
    }

    fn describe(&self, leaf: &Leaf) -> Issued {
        let (standing, under_old_root) = self.standing(leaf);
        Issued {
            serial: leaf.serial.clone(),
            node_id: leaf.name.node.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            standing,
            under_old_root,
        }
    }

    /// Whether a certificate is in force, and whether the old root signed it.
    fn standing(&self, leaf: &Leaf) -> (Standing, bool) {
        let Some(root) = self.root_of(leaf) else { return (Standing::Dropped, false) };
        let standing = if root.is_revoked(&leaf.raw_serial) {
            Standing::Revoked
        } else if leaf.not_after < clock::wall_now() {
            Standing::Expired
        } else {
            Standing::Valid
        };
        (standing, self.previous.as_ref().is_some_and(|old| old.is_named(&leaf.issuer)))
    }

    fn root_of(&self, leaf: &Leaf) -> Option<&Root> {
        self.roots().find(|root| root.is_named(&leaf.issuer))
    }
}

/// Revoking.
impl Authority {
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
        let what = format!("certificate of {}", identity.own.name);
        self.revoke_leaf(&identity.chain()[0], &what).map(|_| ())
    }

    /// Revokes a certificate by its PEM text, also one that is not on record, as one made elsewhere with the
    /// authority's key. Its own certificate comes first in the text.
    ///
    /// # Errors
    /// As [`Authority::revoke`], and if the text holds no certificate of a node.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, Standing};
    /// # let dir = tempfile::tempdir()?;
    /// let authority = Authority::generate("edge")?;
    /// let paths = authority.issue(&NodeId::new("lb-1")?)?.write_to(dir.path())?;
    /// let revoked = authority.revoke_certificate(&std::fs::read(paths.cert)?)?;
    /// assert_eq!(revoked.standing, Standing::Revoked);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn revoke_certificate(&self, pem: &[u8]) -> Result<Issued, Error> {
        self.revoke_first(pem, "certificate")
    }

    /// As [`Authority::revoke_certificate`], of a file.
    ///
    /// # Errors
    /// As there, and [`Error::File`] if the file cannot be read.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId};
    /// # let dir = tempfile::tempdir()?;
    /// let authority = Authority::generate("edge")?;
    /// let paths = authority.issue(&NodeId::new("lb-1")?)?.write_to(dir.path())?;
    /// authority.revoke_certificate_file(&paths.cert)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn revoke_certificate_file(&self, path: impl AsRef<Path>) -> Result<Issued, Error> {
        let path = path.as_ref();
        let pem = file::read(path, "certificate", PEM_LEN_MAX)?;
        self.revoke_first(&pem, &named("certificate", path))
    }

    fn revoke_first(&self, pem: &[u8], what: &str) -> Result<Issued, Error> {
        let certificates = pem::certificates(pem, what)?;
        let leaf = self.revoke_leaf(&certificates[0], what)?;
        Ok(self.describe(&leaf))
    }

    fn revoke_leaf(&self, der: &CertificateDer<'static>, what: &str) -> Result<Leaf, Error> {
        let leaf = Leaf::read(der.clone()).map_err(|text| fault(what, text, "name a node's certificate"))?;
        let mut reason = String::new();
        for root in self.roots() {
            match root.check_issued(der) {
                Ok(()) => return root.revoke(std::slice::from_ref(&leaf.raw_serial)).map(|_| leaf),
                Err(error) => reason = error.to_string(),
            }
        }
        let text = format!("this authority did not issue it ({reason})");
        Err(fault(what, text, "ask the authority that did"))
    }

    /// Revokes every certificate of a node that is on record and in force, under either root. Which ones
    /// those were; none if all had expired or been revoked before.
    ///
    /// # Errors
    /// [`Error::Identity`] if nothing issued to the node is on record. Nothing was revoked then.
    ///
    /// # Examples
    /// See [`Authority`].
    pub fn revoke_node(&self, node: &NodeId) -> Result<Vec<Issued>, Error> {
        let name = self.name(Some(node.clone()));
        let known: Vec<Leaf> = self.ledger().iter().filter(|leaf| leaf.name == name).cloned().collect();
        if known.is_empty() {
            let text = "this authority has no record of a certificate for it";
            let remedy = "check the id, or revoke by its certificate: phalanx node revoke --cert FILE";
            return Err(fault(format!("node {node}"), text, remedy));
        }
        let known: Vec<_> =
            known.into_iter().filter(|leaf| self.standing(leaf).0 == Standing::Valid).collect();
        for root in self.roots() {
            let own = known.iter().filter(|leaf| root.is_named(&leaf.issuer));
            root.revoke(&own.map(|leaf| leaf.raw_serial.clone()).collect::<Vec<_>>())?;
        }
        Ok(known.iter().map(|leaf| self.describe(leaf)).collect())
    }

    /// Revokes the certificate on record with a serial number, written in hexadecimal: `4f0a`, `0x4F0A` and
    /// `4F:0A` are one.
    ///
    /// # Errors
    /// [`Error::Identity`] if it is no serial number, or none on record. Nothing was revoked then.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, Standing};
    /// let authority = Authority::generate("edge")?;
    /// authority.issue(&NodeId::new("lb-1")?)?;
    /// let serial = &authority.issued()[0].serial;
    /// assert_eq!(authority.revoke_serial(serial)?.standing, Standing::Revoked);
    /// assert!(authority.revoke_serial("4f0a").is_err());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn revoke_serial(&self, serial: &str) -> Result<Issued, Error> {
        let shown: String = serial.chars().take(64).collect();
        let what = || format!("serial number {shown:?}");
        let Some(number) = ledger::serial(serial) else {
            return Err(fault(
                what(),
                "it is none",
                "use the hexadecimal digits that phalanx node list shows",
            ));
        };
        let leaf = self.ledger().get(&number).cloned();
        let Some((leaf, root)) = leaf.as_ref().and_then(|leaf| Some((leaf, self.root_of(leaf)?))) else {
            let text = match leaf {
                Some(_) => "its root was dropped, nobody trusts it any more",
                None => "this authority has no record of it",
            };
            let remedy = "check it with phalanx node list, or revoke by the certificate: phalanx node revoke --cert FILE";
            return Err(fault(what(), text, remedy));
        };
        root.revoke(std::slice::from_ref(&leaf.raw_serial))?;
        Ok(self.describe(leaf))
    }

    /// Signs the revocation lists anew, under greater numbers, and gives them in PEM: for systems that want a
    /// fresh list now and then. phalanx itself takes a list of any age.
    ///
    /// # Errors
    /// [`Error::Identity`] if it cannot be signed.
    ///
    /// # Examples
    /// ```
    /// let authority = phalanx::Authority::generate("edge")?;
    /// let before = authority.crl_pem();
    /// assert_ne!(authority.refresh_crl()?, before);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn refresh_crl(&self) -> Result<Vec<u8>, Error> {
        for root in self.roots() {
            root.refresh()?;
        }
        Ok(self.crl_pem())
    }

    /// The newest revocation list in PEM; during a rotation the new root's and the old one's, which only
    /// nodes that have both roots take.
    ///
    /// # Examples
    /// ```
    /// let pem = phalanx::Authority::generate("edge")?.crl_pem();
    /// assert!(pem.starts_with(b"-----BEGIN X509 CRL-----"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn crl_pem(&self) -> Vec<u8> {
        let lists: Vec<_> = self.roots().map(|root| root.revocations().list.clone()).collect();
        lists_pem(lists.iter().map(AsRef::as_ref))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revocations = self.current.revocations();
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .field("not_after", &format_args!("{}", x509::written(self.current.not_after)))
            .field("crl_number", &revocations.number)
            .field("revoked", &revocations.revoked.len())
            .field("rotating", &self.previous.is_some())
            .finish_non_exhaustive()
    }
}

impl Certificate {
    /// The node that it names; `None` if several nodes share it.
    ///
    /// # Examples
    /// See [`Authority::sign_csr_for`].
    #[must_use]
    pub fn node_id(&self) -> Option<&NodeId> {
        self.leaf.name.node.as_ref()
    }

    /// Its serial number in hexadecimal, without leading zeros.
    ///
    /// # Examples
    /// See [`Authority::renew_certificate`].
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// When it expires.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, SigningRequest};
    /// let id = NodeId::new("lb-1")?;
    /// let certificate = Authority::generate("edge")?.sign_csr(&SigningRequest::generate(&id)?.csr_pem(), &id)?;
    /// assert!(certificate.not_after() > std::time::SystemTime::now());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// The certificate in PEM.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, SigningRequest};
    /// let id = NodeId::new("lb-1")?;
    /// let certificate = Authority::generate("edge")?.sign_csr(&SigningRequest::generate(&id)?.csr_pem(), &id)?;
    /// assert!(certificate.pem().starts_with(b"-----BEGIN CERTIFICATE-----"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn pem(&self) -> Vec<u8> {
        pem::encode("CERTIFICATE", &self.leaf.der).into_bytes()
    }

    /// Writes `ca.pem`, `cert.pem` and, if anything was revoked, `crl.pem` into `dir`, as
    /// [`Identity::write_to`] does. The key is the node's: `key` of the result says where it belongs.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Examples
    /// See [`SigningRequest`].
    pub fn write_to(&self, dir: impl AsRef<Path>) -> Result<Paths, Error> {
        let dir = dir.as_ref();
        let draft = |name, bytes| Draft { name, bytes, secret: false };
        let mut drafts = vec![draft("ca.pem", self.ca_pem.clone())];
        if !self.crl_pem.is_empty() {
            drafts.push(draft("crl.pem", self.crl_pem.clone()));
        }
        drafts.push(draft("cert.pem", self.pem()));
        file::write_all(dir, &drafts)?;
        let crl = (!self.crl_pem.is_empty()).then(|| dir.join("crl.pem"));
        Ok(Paths { ca: dir.join("ca.pem"), cert: dir.join("cert.pem"), key: dir.join("key.pem"), crl })
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("name", &format_args!("{}", self.leaf.name))
            .field("serial", &format_args!("{}", self.leaf.serial))
            .field("not_after", &format_args!("{}", x509::written(self.leaf.not_after)))
            .finish_non_exhaustive()
    }
}
