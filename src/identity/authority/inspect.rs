//! What is in a PEM file, in words: certificates, revocation lists, signing requests, keys. Shows of a key
//! what kind it is and whom it belongs to, and never the key.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{KeyPair, PublicKeyData};
use rustls::{
    CipherSuite, SupportedCipherSuite,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    public_key::PublicKey,
    revocation_list::CertificateRevocationList,
    time::ASN1Time,
    x509::SubjectPublicKeyInfo,
};

use super::request::key_of;
use crate::{
    Error,
    identity::{
        SpiffeName, crl,
        file::{self, CRL_LEN_MAX, fault, named},
        pem::{self, Block},
        provider, x509,
    },
};

/// How much of a text from a file is shown.
const SHOWN_MAX: usize = 200;

/// One thing in a PEM file.
///
/// # Examples
/// ```
/// # use phalanx::{Authority, Inspected, NodeId};
/// # let dir = tempfile::tempdir()?;
/// let paths = Authority::generate("edge")?.issue(&NodeId::new("lb-1")?)?.write_to(dir.path())?;
/// let held = Inspected::read_file(&paths.cert)?;
/// let [Inspected::Certificate(certificate)] = held.as_slice() else { panic!("{held:?}") };
/// assert_eq!(certificate.name.as_deref(), Some("spiffe://edge/node/lb-1"));
///
/// let [Inspected::Key(key)] = &Inspected::read_file(&paths.key)?[..] else { panic!() };
/// assert_eq!(key.public_key, certificate.public_key); // the two belong together
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inspected {
    /// A certificate of a node or an authority.
    Certificate(InspectedCertificate),
    /// A revocation list.
    List(InspectedList),
    /// A signing request.
    Request(InspectedRequest),
    /// A private key; nothing of the key itself.
    Key(InspectedKey),
}

/// A certificate, as it describes itself. Nothing of it has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InspectedCertificate {
    /// The one URI by which nodes know its owner, if it has one.
    pub name: Option<String>,
    /// Its subject, which this library does not look at.
    pub subject: String,
    /// Who signed it, by name.
    pub issuer: String,
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// Whether it is an authority's.
    pub is_authority: bool,
    /// The kind of its key.
    pub key: String,
    /// SHA-256 of its public key (`SubjectPublicKeyInfo`), by which keys and certificates find one another.
    pub public_key: String,
    /// SHA-256 of the whole certificate.
    pub fingerprint: String,
    /// Why no node would admit its owner whoever signed it, if that shows already.
    pub fault: Option<String>,
}

/// A revocation list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InspectedList {
    /// Who signed it, by name.
    pub issuer: String,
    /// Its number in hexadecimal; of two lists the greater counts.
    pub number: String,
    /// When it was made.
    pub this_update: SystemTime,
    /// By when another is promised; this library does not mind.
    pub next_update: Option<SystemTime>,
    /// The serial numbers on it in hexadecimal, each with the time of its revocation.
    pub revoked: Vec<(String, SystemTime)>,
}

/// A signing request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InspectedRequest {
    /// Its subject.
    pub subject: String,
    /// The names that it asks for; an [`Authority`](crate::Authority) ignores them.
    pub asks_for: Vec<String>,
    /// Whether it asks to become an authority, which is ignored too.
    pub asks_for_authority: bool,
    /// The kind of its key.
    pub key: String,
    /// SHA-256 of its public key.
    pub public_key: String,
    /// Why an authority refuses it, if one does.
    pub fault: Option<String>,
}

/// A private key, without what is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InspectedKey {
    /// Its kind.
    pub key: String,
    /// SHA-256 of its public half.
    pub public_key: String,
    /// Why a node refuses the file, if one does: others may read it, say.
    pub fault: Option<String>,
}

impl Inspected {
    /// Reads a file and says of each block in it what it is.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read; [`Error::Identity`] if it is no PEM, is damaged, or holds
    /// nothing of these kinds.
    ///
    /// # Examples
    /// See [`Inspected`].
    pub fn read_file(path: impl AsRef<Path>) -> Result<Vec<Self>, Error> {
        let path = path.as_ref();
        let what = named("file", path);
        let text = file::read(path, "file", CRL_LEN_MAX)?;
        let blocks = pem::blocks(&text, &what)?;
        let mut held = Vec::with_capacity(blocks.len());
        for block in blocks {
            let one = match block {
                Block::Certificate(der) => certificate(&der).map(Self::Certificate),
                Block::List(der) => list(&der).map(Self::List),
                Block::Request(der) => request(&der).map(Self::Request),
                Block::Key(key) => private_key(&key).map(|key| Self::Key(guarded(key, path))),
            };
            held.push(one.map_err(|text| fault(&what, text, "copy the file anew"))?);
        }
        Ok(held)
    }
}

fn certificate(der: &CertificateDer<'_>) -> Result<InspectedCertificate, String> {
    let facts = x509::facts(der)?;
    let certificate = x509::parse(der)?;
    let name = SpiffeName::from_certificate(der);
    let fault = match &name {
        _ if facts.is_ca => None,
        Err(text) => Some(text.clone()),
        Ok(_) if facts.weakness.is_some() => {
            facts.weakness.as_ref().map(|weakness| format!("its key is {weakness}"))
        }
        Ok(_) if !facts.has_purposes => Some("it has no extended key usage".into()),
        Ok(_) if !facts.may_sign => Some("its key usage lacks digitalSignature".into()),
        Ok(_) => None,
    };
    // An authority names its cluster, without a node.
    let cluster = || x509::uris(der).ok()?.0.into_iter().next();
    let name = name.map_or_else(|_| cluster(), |name| Some(name.to_string()));
    Ok(InspectedCertificate {
        name: name.map(|name| plain(&name)),
        subject: plain(&certificate.subject().to_string()),
        issuer: plain(&certificate.issuer().to_string()),
        serial: facts.serial,
        not_before: facts.not_before,
        not_after: facts.not_after,
        is_authority: facts.is_ca,
        key: kind(certificate.public_key()),
        public_key: sha256(certificate.public_key().raw),
        fingerprint: sha256(der),
        fault,
    })
}

fn list(der: &rustls::pki_types::CertificateRevocationListDer<'_>) -> Result<InspectedList, String> {
    crl::parsed(der)?;
    let facts = x509::list_facts(der)?;
    let (_, list) =
        CertificateRevocationList::from_der(der).map_err(|error| format!("it cannot be read ({error})"))?;
    let next_update = list.next_update().map(|time| moment(time.timestamp()));
    let serial = |raw: &[u8]| x509::hex(raw).trim_start_matches('0').to_owned();
    Ok(InspectedList {
        issuer: plain(&list.issuer().to_string()),
        number: facts.number(),
        this_update: moment(list.last_update().timestamp()),
        next_update,
        revoked: facts.revoked.iter().map(|(raw, at)| (serial(raw), moment(*at))).collect(),
    })
}

fn request(der: &[u8]) -> Result<InspectedRequest, String> {
    let (_, request) =
        X509CertificationRequest::from_der(der).map_err(|error| format!("it cannot be read ({error})"))?;
    let info = &request.certification_request_info;
    let (mut asks_for, mut asks_for_authority) = (Vec::new(), false);
    for extension in request.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                asks_for.extend(names.general_names.iter().map(|name| match name {
                    GeneralName::URI(uri) => plain(uri),
                    other => plain(&other.to_string()),
                }));
            }
            ParsedExtension::BasicConstraints(constraints) => asks_for_authority |= constraints.ca,
            _ => {}
        }
    }
    Ok(InspectedRequest {
        subject: plain(&info.subject.to_string()),
        asks_for,
        asks_for_authority,
        key: kind(&info.subject_pki),
        public_key: sha256(info.subject_pki.raw),
        fault: key_of(der).err(),
    })
}

fn private_key(key: &PrivateKeyDer<'_>) -> Result<InspectedKey, String> {
    let pair = KeyPair::try_from(key).map_err(|error| format!("its key cannot be used ({error})"))?;
    let public = pair.subject_public_key_info();
    let (_, info) = SubjectPublicKeyInfo::from_der(&public)
        .map_err(|error| format!("its key cannot be read ({error})"))?;
    Ok(InspectedKey { key: kind(&info), public_key: sha256(&public), fault: None })
}

/// The key, and what a node says to the mode of its file.
fn guarded(key: InspectedKey, path: &Path) -> InspectedKey {
    let fault = match file::read_secret(path, "private key", CRL_LEN_MAX) {
        Err(Error::Identity { fault, remedy, .. }) => Some(format!("{fault}; {remedy}")),
        _ => None,
    };
    InspectedKey { fault, ..key }
}

fn kind(info: &SubjectPublicKeyInfo<'_>) -> String {
    let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    let curve = curve.map(|oid| oid.to_id_string()).unwrap_or_default();
    match (info.parsed(), info.algorithm.algorithm.to_id_string().as_str(), curve.as_str()) {
        (Ok(PublicKey::RSA(key)), ..) => {
            let bits = key.modulus.iter().skip_while(|byte| **byte == 0).count() * 8;
            format!("RSA of {bits} bits")
        }
        (_, _, "1.2.840.10045.3.1.7") => "ECDSA P-256".into(),
        (_, _, "1.3.132.0.34") => "ECDSA P-384".into(),
        (_, _, "1.3.132.0.35") => "ECDSA P-521".into(),
        (_, "1.3.101.112", _) => "Ed25519".into(),
        (_, other, _) => format!("of the kind {other}"),
    }
}

/// Text from a file on one line: whoever made the file shall not write to the reader's terminal.
fn plain(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(SHOWN_MAX) {
        if c == ' ' || c.is_ascii_graphic() { shown.push(c) } else { shown.extend(c.escape_default()) }
    }
    shown
}

fn sha256(bytes: &[u8]) -> String {
    // The hash of a cipher suite that every provider has.
    let provider = provider();
    let mut suites = provider.cipher_suites.iter().filter_map(SupportedCipherSuite::tls13);
    let suite = suites.find(|suite| suite.common.suite == CipherSuite::TLS13_AES_128_GCM_SHA256);
    let hash = suite.map(|suite| suite.common.hash_provider.hash(bytes));
    hash.map_or_else(String::new, |hash| x509::hex(hash.as_ref()))
}

fn moment(seconds: i64) -> SystemTime {
    let time = ASN1Time::from_timestamp(seconds).map_or(0, |time| time.timestamp());
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time).unwrap_or(0))
}
