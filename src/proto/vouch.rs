//! What the core needs of cryptography, as pure functions handed in: the driver gives certificates and
//! signatures, the simulator a keyed hash.

use bytes::Bytes;

use crate::NodeId;

/// Signs this node's claims and records and judges others'.
pub(crate) trait Vouch: Send + Sync {
    /// This node's certificate chain, as it travels with its first claims.
    fn chain(&self) -> Bytes;

    /// This node's signature over `message`; `None` if the key refuses, which is logged where it happens.
    fn sign(&self, message: &[u8]) -> Option<Bytes>;

    /// Whether `chain` leads to the cluster's roots, names `node`, and its key made `signature` over
    /// `message`.
    fn verify(&self, node: &NodeId, chain: &[u8], message: &[u8], signature: &[u8]) -> bool;

    /// A hash of `bytes` of which nobody can find two with the same: SHA-256.
    fn digest(&self, bytes: &[u8]) -> Bytes;

    /// Whether `chain` leads to the cluster's roots and names `node`. Whether it has ended or was revoked does
    /// not matter: what was signed stays signed, or nodes would differ for ever about it.
    fn has_issued(&self, node: &NodeId, chain: &[u8]) -> bool;

    /// Whether the key of `chain` made `signature` over `message`. The chain itself is not judged.
    fn is_by(&self, chain: &[u8], message: &[u8], signature: &[u8]) -> bool;

    /// Whether revocation lists of that issuer count here.
    fn trusts_issuer(&self, issuer: u64) -> bool;
}
