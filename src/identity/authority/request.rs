//! Signing requests (PKCS #10): made on a node, so that its key never travels, and read by the authority,
//! which takes nothing from them but the key that they prove to hold.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair, SubjectPublicKeyInfo};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use super::make::{common_name, key_pair, new_key, refused};
use crate::{
    Error, NodeId,
    identity::{
        file::{self, Draft, PEM_LEN_MAX, fault, named},
        pem,
        trust::provider,
        x509,
    },
};

/// A request for a certificate: a node's key, and the text by which an authority signs it.
///
/// Made on the node; only the request travels. The authority takes the key from it and nothing else: for
/// which node, until when and for what use is the authority's to say ([`Authority::sign_csr`]).
///
/// [`Authority::sign_csr`]: crate::Authority::sign_csr
///
/// # Examples
/// ```
/// use phalanx::{Authority, Identity, NodeId, SigningRequest};
///
/// let (id, dir) = (NodeId::new("lb-1")?, tempfile::tempdir()?);
/// let paths = SigningRequest::generate(&id)?.write_to(dir.path())?; // on the node: key.pem, node.csr
///
/// let authority = Authority::generate("edge")?; // elsewhere
/// let request = std::fs::read(&paths.csr)?;
/// let certificate = authority.sign_csr(&request, &id)?;
///
/// let paths = certificate.write_to(dir.path())?; // back on the node: ca.pem, cert.pem
/// let identity = Identity::from_pem_files(&paths.ca, &paths.cert, &paths.key)?;
/// assert_eq!(identity.node_id(), Some(id));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SigningRequest {
    key: KeyPair,
    /// Whether the key is new, and its file not there yet.
    is_new: bool,
    der: Vec<u8>,
}

/// Where [`SigningRequest::write_to`] put its files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestPaths {
    /// The private key, readable to its owner only; it stays on the node.
    pub key: PathBuf,
    /// The request, for the authority.
    pub csr: PathBuf,
}

impl SigningRequest {
    /// Makes a new key (P-256) and a request for it. The node's id is in it for people to read.
    ///
    /// # Errors
    /// [`Error::Identity`] if the system has no randomness.
    ///
    /// # Examples
    /// See [`SigningRequest`].
    pub fn generate(node: &NodeId) -> Result<Self, Error> {
        Self::of(node, new_key()?, true)
    }

    /// Makes a request for a key that the node has already.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Identity`], as for the key of [`Identity::from_pem_files`].
    ///
    /// [`Identity::from_pem_files`]: crate::Identity::from_pem_files
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{NodeId, SigningRequest};
    /// # let (id, dir) = (NodeId::new("lb-1")?, tempfile::tempdir()?);
    /// let paths = SigningRequest::generate(&id)?.write_to(dir.path())?;
    /// let again = SigningRequest::with_key_file(&id, &paths.key)?;
    /// assert!(again.csr_pem().starts_with(b"-----BEGIN CERTIFICATE REQUEST-----"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_key_file(node: &NodeId, key: impl AsRef<Path>) -> Result<Self, Error> {
        let key = key.as_ref();
        let what = named("private key", key);
        let secret = pem::private_key(&file::read_secret(key, "private key", PEM_LEN_MAX)?, &what)?;
        Self::of(node, key_pair(&secret, &what)?, false)
    }

    fn of(node: &NodeId, key: KeyPair, is_new: bool) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(node.to_string());
        let request = params.serialize_request(&key).map_err(refused("make the request"))?;
        Ok(Self { key, is_new, der: request.der().to_vec() })
    }

    /// The request in PEM.
    ///
    /// # Examples
    /// See [`SigningRequest::with_key_file`].
    #[must_use]
    pub fn csr_pem(&self) -> Vec<u8> {
        pem::encode("CERTIFICATE REQUEST", &self.der).into_bytes()
    }

    /// Writes `node.csr` into `dir`, which is made if it is missing, and a new key as `key.pem`, which only
    /// the owner may read.
    ///
    /// # Errors
    /// [`Error::File`] if the directory cannot be written, [`Error::Identity`] if there is a `key.pem` in it
    /// already: a running node may be using that. Nothing was written then.
    ///
    /// # Examples
    /// See [`SigningRequest`].
    pub fn write_to(&self, dir: impl AsRef<Path>) -> Result<RequestPaths, Error> {
        let dir = dir.as_ref();
        let paths = RequestPaths { key: dir.join("key.pem"), csr: dir.join("node.csr") };
        let mut drafts = Vec::new();
        if self.is_new {
            // A link that leads nowhere counts too.
            if paths.key.symlink_metadata().is_ok() {
                let remedy = "name a fresh directory and swap the files once the certificate is there, or \
                              keep that key";
                return Err(fault(named("private key", &paths.key), "it is there already", remedy));
            }
            drafts.push(Draft { name: "key.pem", bytes: self.key.serialize_pem().into(), secret: true });
        }
        drafts.push(Draft { name: "node.csr", bytes: self.csr_pem(), secret: false });
        file::write_all(dir, &drafts)?;
        Ok(paths)
    }
}

impl std::fmt::Debug for SigningRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningRequest").field("bytes", &self.der.len()).finish_non_exhaustive()
    }
}

/// The key of a request in PEM that proves to hold it. Everything else in it is what a stranger wishes for.
pub(super) fn requested_key(pem: &[u8], what: &str) -> Result<SubjectPublicKeyInfo, Error> {
    const REMEDY: &str = "make it anew on the node: phalanx node csr";
    if pem.len() as u64 > PEM_LEN_MAX {
        return Err(fault(what, format!("it has more than {PEM_LEN_MAX} bytes"), REMEDY));
    }
    key_of(&pem::signing_request(pem, what)?).map_err(|text| fault(what, text, REMEDY))
}

/// As `requested_key`, of DER; `Err` says what is wrong with the request.
pub(super) fn key_of(der: &[u8]) -> Result<SubjectPublicKeyInfo, String> {
    let request = match X509CertificationRequest::from_der(der) {
        Ok(([], request)) => request,
        Ok(_) => return Err("more bytes follow the request".into()),
        Err(error) => return Err(format!("it cannot be read ({error})")),
    };
    let info = &request.certification_request_info;
    if let Some(weakness) = x509::key_weakness(&info.subject_pki) {
        return Err(format!("its key is {weakness}"));
    }
    let key = &info.subject_pki.subject_public_key.data;
    // The algorithms of handshakes, so that no key gets in that could not prove itself there.
    let proves = provider().signature_verification_algorithms.all.iter().any(|algorithm| {
        is_of(info.subject_pki.raw, algorithm.public_key_alg_id().as_ref())
            && algorithm.verify_signature(key, info.raw, &request.signature_value.data).is_ok()
    });
    if !proves {
        return Err("its signature is not of the key in it; whoever made it may not have that key".into());
    }
    SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
        .map_err(|error| format!("its key is of a kind that cannot be certified ({error})"))
}

/// Whether a public key, as DER has it, is of the algorithm `id`: mislabelled, it would still verify, and the
/// certificate would be of no use.
fn is_of(key: &[u8], id: &[u8]) -> bool {
    // The outer header: two bytes, and more if the length needs more than seven bits.
    let header = match key.get(1) {
        Some(long) if long & 0x80 != 0 => 2 + usize::from(long & 0x7f),
        _ => 2,
    };
    let Ok(len) = u8::try_from(id.len()) else { return false };
    key.get(header..)
        .and_then(|rest| rest.strip_prefix(&[0x30, len]))
        .is_some_and(|rest| rest.starts_with(id))
}
