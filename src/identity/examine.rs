//! The files of an identity, each looked at by itself, so that a fault in one hides none in another. Makes no
//! identity of them.

use std::path::Path;

use super::{
    SpiffeName,
    file::{self, CRL_LEN_MAX, PEM_LEN_MAX, fault, named},
    pem, provider, roots, x509,
};
use crate::Error;

/// What is wrong with a CA file.
pub(crate) fn fault_in_ca(path: &Path) -> Option<Error> {
    file::read(path, "CA file", PEM_LEN_MAX).and_then(|text| roots(&text, &named("CA file", path))).err()
}

/// What is wrong with a node's certificate file.
pub(crate) fn fault_in_certificate(path: &Path) -> Option<Error> {
    let what = named("certificate", path);
    let chain = file::read(path, "certificate", PEM_LEN_MAX).and_then(|text| pem::certificates(&text, &what));
    let chain = match chain {
        Ok(chain) => chain,
        Err(error) => return Some(error),
    };
    if let Err(text) = SpiffeName::from_certificate(&chain[0]) {
        let remedy = "issue it with one URI name: spiffe://<cluster>/node/<node-id>";
        return Some(fault(what, text, remedy));
    }
    let text = match x509::facts(&chain[0]) {
        Ok(facts) => format!("its key is {}", facts.weakness?),
        Err(text) => text,
    };
    Some(fault(what, text, "issue a new one"))
}

/// What is wrong with a private key file.
pub(crate) fn fault_in_key(path: &Path) -> Option<Error> {
    let what = named("private key", path);
    let key =
        file::read_secret(path, "private key", PEM_LEN_MAX).and_then(|text| pem::private_key(&text, &what));
    let key = match key {
        Ok(key) => key,
        Err(error) => return Some(error),
    };
    let error = provider().key_provider.load_private_key(key).err()?;
    Some(fault(what, format!("it cannot be used ({error})"), "use a key for ECDSA on P-256"))
}

/// What is wrong with a file of revocation lists.
pub(crate) fn fault_in_lists(path: &Path) -> Option<Error> {
    let text = file::read(path, "revocation list", CRL_LEN_MAX);
    text.and_then(|text| pem::revocation_lists(&text, &named("revocation list", path))).err()
}
