//! The files of an identity as they were at one moment: read together, compared by their contents, loaded
//! together. Looks into none of them itself.

use std::{
    hash::Hasher as _,
    path::{Path, PathBuf},
};

use siphasher::sip128::{Hasher128, SipHasher13};
use zeroize::Zeroizing;

use super::{
    Identity, Labels,
    file::{self, CRL_LEN_MAX, PEM_LEN_MAX, named},
};
use crate::Error;

/// Where they are.
#[derive(Clone, Debug)]
pub(crate) struct FilePaths {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) crl: Option<PathBuf>,
}

/// What they held.
pub(crate) struct Files<'a> {
    paths: &'a FilePaths,
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    crl: Option<Vec<u8>>,
}

impl<'a> Files<'a> {
    pub(crate) fn read(paths: &'a FilePaths) -> Result<Self, Error> {
        let crl = |path: &Path| file::read(path, "revocation list", CRL_LEN_MAX);
        Ok(Self {
            paths,
            ca: file::read(&paths.ca, "CA file", PEM_LEN_MAX)?,
            cert: file::read(&paths.cert, "certificate", PEM_LEN_MAX)?,
            key: file::read_secret(&paths.key, "private key", PEM_LEN_MAX)?,
            crl: paths.crl.as_deref().map(crl).transpose()?,
        })
    }

    /// Whether two readings held the same: a number that says nothing of the contents.
    pub(crate) fn fingerprint(&self, secret: (u64, u64)) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(secret.0, secret.1);
        for part in [&self.ca, &self.cert, &*self.key, self.crl.as_ref().unwrap_or(&Vec::new())] {
            hasher.write(&(part.len() as u64).to_be_bytes());
            hasher.write(part);
        }
        hasher.finish128().as_u128()
    }

    pub(crate) fn load(&self) -> Result<Identity, Error> {
        let FilePaths { ca, cert, key, crl } = self.paths;
        let labels = Labels {
            ca: named("CA file", ca),
            cert: named("certificate", cert),
            key: named("private key", key),
        };
        let identity = Identity::assemble(&self.ca, &self.cert, &self.key, &labels)?;
        match (&self.crl, crl) {
            (Some(list), Some(path)) => identity.with_crl(list, &named("revocation list", path)),
            _ => Ok(identity),
        }
    }
}
