//! What the core needs of cryptography, as pure functions handed in: the driver gives certificates and
//! signatures, the simulator a keyed hash.

use bytes::Bytes;

use crate::NodeId;

/// Signs this node's claims and judges others'.
pub(crate) trait Vouch: Send + Sync {
    /// This node's certificate chain, as it travels with its first claims.
    fn chain(&self) -> Bytes;

    /// This node's signature over `message`; `None` if the key refuses, which is logged where it happens.
    fn sign(&self, message: &[u8]) -> Option<Bytes>;

    /// Whether `chain` leads to the cluster's roots, names `node`, and its key made `signature` over
    /// `message`.
    fn verify(&self, node: &NodeId, chain: &[u8], message: &[u8], signature: &[u8]) -> bool;

    /// Whether revocation lists of that issuer count here.
    fn trusts_issuer(&self, issuer: u64) -> bool;
}
