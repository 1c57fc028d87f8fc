//! Cores and certificates without a key, for unit tests and fuzzing. Never part of a node.

use std::{hash::Hasher as _, sync::Arc};

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use crate::{
    NodeId,
    proto::{
        Now, Output, Protocol, ProtocolConfig, Time, Vouch, claims::signed_message, members::chain_hash,
    },
    wire::{
        codec,
        message::{ClaimBody, SignedClaim},
    },
};

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a test's name is valid")
}

/// The defaults of the public configuration.
pub(crate) fn config(name: &str) -> ProtocolConfig {
    ProtocolConfig::of_defaults(name, WALL_MS)
}

/// Certificates for tests: a keyed hash under the node's name, or under that, `#` and a number.
pub(crate) struct Seal(pub(crate) NodeId);

pub(crate) fn seal(node: &str, message: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(7, 7);
    hasher.write(node.as_bytes());
    hasher.write(message);
    hasher.finish()
}

impl Vouch for Seal {
    fn chain(&self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_str().as_bytes())
    }

    fn sign(&self, message: &[u8]) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(&seal(self.0.as_str(), message).to_be_bytes()))
    }

    fn verify(&self, node: &NodeId, chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.has_issued(node, chain) && self.is_by(chain, message, signature)
    }

    fn digest(&self, bytes: &[u8]) -> Bytes {
        Bytes::copy_from_slice(&seal("", bytes).to_be_bytes())
    }

    fn has_issued(&self, node: &NodeId, chain: &[u8]) -> bool {
        chain.split(|byte| *byte == b'#').next() == Some(node.as_str().as_bytes())
    }

    fn is_by(&self, chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
        str::from_utf8(chain).is_ok_and(|name| signature == seal(name, message).to_be_bytes())
    }

    fn trusts_issuer(&self, issuer: u64) -> bool {
        issuer < 2
    }
}

/// What that node says of itself, signed by itself and with its certificate.
pub(crate) fn signed(body: &ClaimBody) -> SignedClaim {
    let (seal, encoded) = (Seal(body.node_id.clone()), Bytes::from(codec::encode(body)));
    let signature = seal.sign(&signed_message("edge", &encoded)).unwrap_or_default();
    let chain = seal.chain();
    SignedClaim { body: encoded, signature, chain_hash: chain_hash(&chain), chain: Some(chain) }
}

/// The wall clock of tests at their beginning: 2026-01-01.
pub(crate) const WALL_MS: u64 = 1_767_225_600_000;

pub(crate) fn at(ms: u64) -> Now {
    Now { time: Time::from_micros(ms * 1_000), wall_ms: WALL_MS + ms }
}

pub(crate) fn core_with(name: &str, change: impl FnOnce(&mut ProtocolConfig)) -> Protocol {
    made(name, name.bytes().map(u64::from).sum(), change)
}

pub(super) fn made(name: &str, seed: u64, change: impl FnOnce(&mut ProtocolConfig)) -> Protocol {
    let mut config = config(name);
    config.address.set_port(7_000 + u16::from(name.bytes().fold(0_u8, u8::wrapping_add)));
    change(&mut config);
    Protocol::new(config, Arc::new(Seal(id(name))), seed, at(0))
}

/// Everything the core wants done by now.
pub(crate) fn drain(core: &mut Protocol) -> Vec<Output> {
    std::iter::from_fn(|| core.poll_output()).collect()
}
