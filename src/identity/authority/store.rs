//! The directory of an authority: read whole, and written so that whoever is killed at any step leaves one
//! that still loads. Signs nothing.
//!
//! `ca.pem` lists the roots, the issuing one first, and is what decides: a root that is not in it is not in
//! use, whatever else lies there. `ca.key` is the key of the only root; while a rotation is under way it is
//! the old root's, and `next.key` the new one's. Which key belongs to which root is told by the keys
//! themselves, so an interrupted rename confuses nobody. `crl.pem` has each root's list, `issued/` the ledger.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Mutex,
};

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::{
    Authority,
    ledger::Ledger,
    make::key_pair,
    root::{Root, cluster_of, lists_of},
};
use crate::{
    Error,
    identity::{
        file::{self, CRL_LEN_MAX, Draft, PEM_LEN_MAX, fault, named},
        pem, roots, x509,
    },
};

const CA: &str = "ca.pem";
const KEY: &str = "ca.key";
const NEXT_KEY: &str = "next.key";
const LISTS: &str = "crl.pem";
const LOCK: &str = ".lock";

impl Authority {
    /// Reads an authority that [`Authority::write_to`] wrote: `ca.pem`, `ca.key`, `crl.pem` in `dir`, during
    /// a rotation `next.key` too, and below `issued` what it issued.
    ///
    /// # Errors
    /// [`Error::File`] if one of them cannot be read, [`Error::Identity`] if it holds something else, if they
    /// do not belong together, or if others than its owner may read the key.
    ///
    /// # Examples
    /// See [`Authority`].
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let (ca, list) = (dir.join(CA), dir.join(LISTS));
        let (ca_name, list_name) = (named("CA file", &ca), named("revocation list", &list));
        let certificates = roots(&file::read(&ca, "CA file", PEM_LEN_MAX)?, &ca_name)?;
        if certificates.len() > 2 {
            let text = format!("it holds {} certificates", certificates.len());
            let remedy = "leave the authority's own, and in a rotation the new root before the old one";
            return Err(fault(ca_name, text, remedy));
        }
        let cluster = cluster_of(&certificates, &ca_name)?;
        let keys = Keys::read(dir)?;
        let lists = pem::revocation_lists(&file::read(&list, "revocation list", CRL_LEN_MAX)?, &list_name)?;
        let lists = lists_of(&certificates, &lists, &list_name)?;
        let mut loaded = Vec::new();
        for (certificate, list) in certificates.into_iter().zip(lists) {
            let key = keys.of(&certificate, &ca_name)?;
            // Without the list all that was revoked would be valid again, so its absence is an error.
            let list = list.ok_or_else(|| {
                let text = "one of the authority's roots has signed none of the lists in it";
                fault(&list_name, text, "restore it from a backup")
            })?;
            loaded.push(Root::restore(certificate, key, list, &list_name)?);
        }
        let previous = if loaded.len() > 1 { loaded.pop() } else { None };
        let current = loaded.pop().ok_or_else(|| fault(ca_name, "it is empty", "restore it"))?;
        let issued = Mutex::new(Ledger::load(dir)?);
        Ok(Self { cluster, current, previous, dropped: Vec::new(), issued })
    }

    /// Writes the authority into `dir`, which is made if it is missing: `ca.pem`, `crl.pem`, `ca.key`, which
    /// only the owner may read, and below `issued` the certificates that it issued. Each file is replaced at
    /// once; whoever reads meanwhile, or is left with what a killed process wrote, finds a whole authority:
    /// the one before or the one after.
    ///
    /// # Errors
    /// [`Error::File`] if the directory cannot be written; [`Error::Identity`] if it holds another authority,
    /// a newer revocation list or a newer rotation of this one, or if another process is writing there.
    /// Nothing was written then.
    ///
    /// # Examples
    /// See [`Authority`].
    pub fn write_to(&self, dir: impl AsRef<Path>) -> Result<(), Error> {
        let dir = dir.as_ref();
        let ledger = self.ledger().clone();
        if self.is_in(dir) {
            return ledger.write_to(dir);
        }
        file::write_all(dir, &[])?; // the lock needs the directory
        let _lock = Lock::take(dir)?;
        let held = Held::read(dir);
        self.refuse_to_destroy(dir, &held)?;
        // A certificate is on record before anybody can have it.
        ledger.write_to(dir)?;
        let (ca, lists) = (self.ca_pem(), self.crl_pem());
        let (issuing, old) = (self.current.key_pem(), self.previous.as_ref().map(Root::key_pem));
        let draft = |name, bytes, secret| Draft { name, bytes, secret };
        let ca = draft(CA, ca, false);
        let lists = draft(LISTS, lists, false);
        let drafts = match old {
            // A root more: its key and list first, as a certificate without its key would be lost.
            Some(old) => vec![draft(NEXT_KEY, issuing, true), draft(KEY, old, true), lists, ca],
            // A root less: the certificate first, as then nobody looks for that root's key any more.
            None if held.roots.len() > 1 => vec![ca, draft(KEY, issuing, true), lists],
            None => vec![draft(KEY, issuing, true), lists, ca],
        };
        file::write_all(dir, &drafts)?;
        if self.previous.is_none() {
            remove(&dir.join(NEXT_KEY))?;
        }
        Ok(())
    }

    /// Writes [`Authority::crl_pem`] to a file, replaced at once, for the nodes' `tls.crl`. Write the
    /// authority first: nodes must not see a list that it could forget.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Identity`] if its directory cannot be written.
    ///
    /// # Examples
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let authority = phalanx::Authority::generate("edge")?;
    /// authority.write_crl(dir.path().join("crl.pem"))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_crl(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Err(fault(named("revocation list", path), "that is no name of a file", "name a file"));
        };
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        file::write_all(dir, &[Draft { name, bytes: self.crl_pem(), secret: false }]).map(|_| ())
    }

    /// Whether `dir` has these very roots, keys and lists.
    fn is_in(&self, dir: &Path) -> bool {
        let same = |name: &str, mine: &[u8]| fs::read(dir.join(name)).is_ok_and(|held| held == mine);
        same(CA, &self.ca_pem())
            && same(LISTS, &self.crl_pem())
            && match &self.previous {
                None => same(KEY, &self.current.key_pem()) && !dir.join(NEXT_KEY).exists(),
                Some(old) => same(KEY, &old.key_pem()) && same(NEXT_KEY, &self.current.key_pem()),
            }
    }

    /// What was revoked would be valid again, and another authority's key would be gone for good.
    fn refuse_to_destroy(&self, dir: &Path, held: &Held) -> Result<(), Error> {
        let refuse = |text: &str, remedy: &str| Err(fault(named("directory", dir), text, remedy));
        let own: Vec<_> = self.roots().map(|root| &root.certificate).collect();
        if !held.has_key {
            return Ok(()); // nothing there that could be lost for good
        }
        if held.roots.is_empty() {
            let remedy =
                "restore its ca.pem; if its making was interrupted, nothing was issued: remove ca.key";
            return refuse("it holds the key of an authority, but not its certificate", remedy);
        }
        let knows = |root: &CertificateDer<'static>| own.contains(&root) || self.dropped.contains(root);
        if held.roots.first().is_some_and(|newest| !knows(newest)) {
            if held.roots.iter().any(knows) {
                return refuse("a rotation of this authority was begun in it", "load it from there");
            }
            let remedy = "choose another directory, or load that authority";
            return refuse("it holds the key of another authority", remedy);
        }
        let was_finished = held.roots.first() == own.first().copied() && held.roots.len() < own.len();
        if was_finished {
            return refuse("the rotation of this authority was finished in it", "load it from there");
        }
        let behind = held.lists.iter().filter_map(|list| x509::list_facts(list).ok()).any(|list| {
            self.roots().any(|root| root.is_named(&list.issuer) && root.revocations().is_behind(&list))
        });
        if behind {
            let text = "it holds a newer revocation list of this authority";
            return refuse(text, "load the authority from there and revoke again");
        }
        Ok(())
    }
}

/// What lies in a directory already, as far as it can be read.
struct Held {
    roots: Vec<CertificateDer<'static>>,
    has_key: bool,
    lists: Vec<CertificateRevocationListDer<'static>>,
}

impl Held {
    fn read(dir: &Path) -> Self {
        let bytes = |name: &str| fs::read(dir.join(name)).unwrap_or_default();
        Self {
            roots: pem::certificates(&bytes(CA), "CA file").unwrap_or_default(),
            has_key: dir.join(KEY).exists(),
            lists: pem::revocation_lists(&bytes(LISTS), "revocation list").unwrap_or_default(),
        }
    }
}

/// The keys in a directory.
struct Keys(Vec<(String, KeyPair)>);

impl Keys {
    fn read(dir: &Path) -> Result<Self, Error> {
        let mut keys = Vec::new();
        for file in [KEY, NEXT_KEY] {
            let path = dir.join(file);
            if file == NEXT_KEY && !path.exists() {
                continue;
            }
            let name = named("CA key", &path);
            let secret = pem::private_key(&file::read_secret(&path, "CA key", PEM_LEN_MAX)?, &name)?;
            let pair = key_pair(&secret, &name)?;
            keys.push((name, pair));
        }
        Ok(Self(keys))
    }

    /// The key of a root, read again: a key cannot be copied, and two roots may not share one.
    fn of(&self, certificate: &CertificateDer<'_>, ca_name: &str) -> Result<KeyPair, Error> {
        let facts = x509::facts(certificate).map_err(|text| fault(ca_name, text, "restore it"))?;
        let found = self.0.iter().find(|(_, key)| key.der_bytes() == facts.key);
        let Some((name, key)) = found else {
            let name = self.0.first().map_or("CA key", |(name, _)| name);
            let text = format!("it does not belong to the {ca_name}");
            return Err(fault(name, text, "restore the key and the certificate of one authority"));
        };
        key_pair(&rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(), name)
    }
}

/// Held while a directory is written, so that of two processes none takes from the other what it wrote.
struct Lock(PathBuf);

impl Lock {
    fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(LOCK);
        match File::options().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                let _ = write!(file, "{}", std::process::id()); // for people; the file alone is the lock
                Ok(Self(path))
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let text =
                    format!("another process is writing to it, or was killed at it ({})", path.display());
                let remedy = format!("try again; if none runs: rm {}", path.display());
                Err(fault(named("directory", dir), text, remedy))
            }
            Err(source) => {
                let remedy = "check the directory, its owner and the free space; nothing was written".into();
                Err(Error::File { action: "write", path, source, remedy })
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // if it stays, the next writer is told what to do
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::File {
            action: "remove",
            path: path.into(),
            source,
            remedy: "remove it by hand; the key in it is in ca.key too".into(),
        }),
        _ => Ok(()),
    }
}
