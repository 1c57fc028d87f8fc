//! Signatures on claims and records, by the key that the certificate names: made here, checked here. Knows
//! nothing of what is signed; whoever calls separates its domains.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use rustls::{
    SignatureScheme, SupportedCipherSuite,
    crypto::hash::{Hash, HashAlgorithm},
    pki_types::{CertificateDer, UnixTime},
    sign::SigningKey,
};
use webpki::EndEntityCert;

use super::{CHAIN_LEN_MAX, CHAIN_MAX, Identity, Role, Trust, file::fault};
use crate::{Error, NodeId};

/// The longest signature, in bytes, its scheme included: RSA of 8192 bits.
const SIGNATURE_LEN_MAX: usize = 2 + 1024;

/// What TLS 1.3 allows for handshakes (RFC 8446 §4.2.3), in the order of preference.
const SCHEMES: [SignatureScheme; 7] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// This node's key, as it signs claims.
#[derive(Clone, Debug)]
pub(crate) struct Signer {
    key: Arc<dyn SigningKey>,
    chain: Bytes,
}

impl Signer {
    pub(crate) fn new(identity: &Identity) -> Self {
        Self { key: Arc::clone(identity.signing()), chain: encode_chain(identity.chain()) }
    }

    /// The certificate chain as it travels: for each certificate its length (two bytes, big endian) and DER.
    pub(crate) fn chain(&self) -> Bytes {
        self.chain.clone()
    }

    /// The TLS signature scheme (two bytes, big endian), then the signature; `None` if the key refuses.
    pub(crate) fn sign(&self, message: &[u8]) -> Option<Bytes> {
        let signer = self.key.choose_scheme(&SCHEMES)?;
        let signature = match signer.sign(message) {
            Ok(signature) => signature,
            Err(error) => {
                tracing::warn!(%error, "the private key refuses to sign");
                return None;
            }
        };
        let mut bytes = BytesMut::with_capacity(2 + signature.len());
        bytes.put_u16(u16::from(signer.scheme()));
        bytes.put_slice(&signature);
        Some(bytes.freeze())
    }
}

impl Trust {
    /// Whether `chain` leads to the roots, names `node` and is not revoked, and its key made `signature` over
    /// `message`. A shared certificate speaks for any node, where shared certificates are on.
    ///
    /// When the certificate expires is not looked at: a claim stays what it was when it was signed.
    pub(crate) fn verify_claim(&self, node: &NodeId, chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let Some(chain) = decode_chain(chain) else {
            return false;
        };
        // Any time will do; where it does not fit, `judge` finds one that does.
        let time = UnixTime::since_unix_epoch(std::time::Duration::ZERO);
        let Ok(peer) = self.judge(&chain, Role::Signer, time) else {
            return false;
        };
        peer.node.is_none_or(|named| named == *node) && verify_signature(&chain[0], message, signature)
    }

    /// Whether `chain` leads to the roots and names `node`. Neither its end nor a revocation is looked at: a
    /// record stays what it was when it was signed. A shared certificate names nobody.
    pub(crate) fn has_issued(&self, node: &NodeId, chain: &[u8]) -> bool {
        let Some(chain) = decode_chain(chain) else {
            return false;
        };
        let time = UnixTime::since_unix_epoch(std::time::Duration::ZERO);
        self.judge(&chain, Role::Writer, time).is_ok_and(|peer| peer.node.as_ref() == Some(node))
    }
}

/// Whether the key of a chain, which was judged before, made `signature` over `message`.
pub(crate) fn is_by(chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
    decode_chain(chain).is_some_and(|chain| verify_signature(&chain[0], message, signature))
}

/// SHA-256, by the provider in use.
pub(crate) fn digest(bytes: &[u8]) -> Bytes {
    static SHA_256: OnceLock<&'static dyn Hash> = OnceLock::new();
    let hash = SHA_256.get_or_init(|| {
        let suites = super::trust::provider();
        let suites = suites.cipher_suites.iter().filter_map(SupportedCipherSuite::tls13);
        let mut hashes = suites.map(|suite| suite.common.hash_provider);
        // RFC 8446 §9.1 demands it of every implementation.
        hashes
            .find(|hash| hash.algorithm() == HashAlgorithm::SHA256)
            .expect("TLS_AES_128_GCM_SHA256 is there")
    });
    Bytes::copy_from_slice(hash.hash(bytes).as_ref())
}

/// Has a key that shows nothing of itself sign something, to see that the certificate is about it.
pub(super) fn check_signs_for(
    key: &Arc<dyn SigningKey>,
    leaf: &CertificateDer<'_>,
    what: &str,
) -> Result<(), Error> {
    const MESSAGE: &[u8] = b"phalanx: is this the certificate's key?";

    let signer = key.choose_scheme(&SCHEMES);
    let signer = signer.ok_or_else(|| fault(what, "its scheme is not one of TLS 1.3", "use another key"))?;
    let mut signature = u16::from(signer.scheme()).to_be_bytes().to_vec();
    signature.extend(signer.sign(MESSAGE).map_err(|error| {
        fault(what, format!("it does not sign ({error})"), "look at the device and the session with it")
    })?);
    if verify_signature(leaf, MESSAGE, &signature) {
        return Ok(());
    }
    let text = "what it signs does not fit the certificate";
    Err(fault(
        what,
        text,
        "use the key that the certificate was issued for, and the scheme that it signs with",
    ))
}

fn verify_signature(leaf: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> bool {
    let (Some((scheme, signature)), Ok(leaf)) =
        (signature.split_first_chunk::<2>(), EndEntityCert::try_from(leaf))
    else {
        return false;
    };
    let scheme = SignatureScheme::from(u16::from_be_bytes(*scheme));
    if !SCHEMES.contains(&scheme) || signature.len() + 2 > SIGNATURE_LEN_MAX {
        return false;
    }
    // The first of a scheme's algorithms is the one that TLS 1.3 means: P-256 with SHA-256, not with others.
    let mapping = super::trust::provider().signature_verification_algorithms.mapping;
    let algorithm = mapping.iter().find(|(mapped, _)| *mapped == scheme).and_then(|(_, all)| all.first());
    algorithm.is_some_and(|algorithm| leaf.verify_signature(*algorithm, message, signature).is_ok())
}

/// How long a chain is when it travels.
pub(super) fn encoded_len(chain: &[CertificateDer<'_>]) -> usize {
    chain.iter().map(|certificate| 2 + certificate.len()).sum()
}

fn encode_chain(chain: &[CertificateDer<'_>]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(encoded_len(chain));
    for certificate in chain {
        // An identity's chain is checked at loading to be no longer than `CHAIN_LEN_MAX`.
        debug_assert!(certificate.len() <= CHAIN_LEN_MAX);
        bytes.put_u16(u16::try_from(certificate.len()).unwrap_or(0));
        bytes.put_slice(certificate);
    }
    bytes.freeze()
}

fn decode_chain(mut bytes: &[u8]) -> Option<Vec<CertificateDer<'_>>> {
    if bytes.is_empty() || bytes.len() > CHAIN_LEN_MAX {
        return None;
    }
    let mut chain = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (certificate, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        if chain.len() == CHAIN_MAX {
            return None;
        }
        chain.push(CertificateDer::from(certificate));
        bytes = rest;
    }
    Some(chain)
}
