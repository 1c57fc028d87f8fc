//! From one root to the next: both trusted, the new one issues, and the old one dropped only when nobody
//! shows a certificate of it any more. Moves no file.

use std::{fs, path::Path, time::SystemTime};

use rustls::pki_types::CertificateDer;

use super::{
    Authority, Issued,
    ledger::{Leaf, Standing},
    root::Root,
};
use crate::{
    Error, NodeId,
    driver::clock,
    identity::{
        file::{self, PEM_LEN_MAX, fault, named},
        pem, x509,
    },
};

/// How many certificates an error names.
const NAMED_MAX: usize = 8;
/// How deep below a directory certificates are looked for.
const DEPTH_MAX: usize = 8;

/// A rotation that is under way: what still stands against its end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rotation {
    /// Certificates under the old root that a node may still show: neither expired nor revoked, and nobody
    /// has seen the node with one of the new root instead. Empty: the rotation may be finished.
    pub waiting: Vec<Waiting>,
    /// How many certificates of the ledger are under the new root and in force.
    pub moved: usize,
    /// When the old root ends by itself.
    pub old_root_not_after: SystemTime,
}

/// A certificate under the old root that a node may still show.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// The serial number in hexadecimal.
    pub serial: String,
    /// The node; `None` for a certificate that several nodes share.
    pub node_id: Option<NodeId>,
    /// When it ends.
    pub not_after: SystemTime,
    /// The serial number of a certificate under the new root that was issued to the node: whether the node
    /// uses it already, the authority cannot know.
    pub renewed_as: Option<String>,
    /// Whether the node was seen with it, by what was given as [`Shown`].
    pub seen: bool,
}

/// Certificates that nodes were seen with: the evidence that they have moved to a new root.
///
/// An authority knows what it issued, not what is in use. Give it the certificate files of the nodes, or what
/// they show to whoever connects.
///
/// # Examples
/// ```
/// # use phalanx::{Authority, NodeId, Shown};
/// # let dir = tempfile::tempdir()?;
/// # let mut authority = Authority::generate("edge")?;
/// # authority.issue(&NodeId::new("lb-1")?)?.write_to(dir.path().join("lb-1"))?;
/// authority.begin_rotation()?;
/// authority.renew(&NodeId::new("lb-1")?)?.write_to(dir.path().join("lb-1"))?;
/// assert!(authority.finish_rotation(&Shown::default()).is_err()); // does lb-1 use its new certificate?
///
/// let mut shown = Shown::default();
/// shown.add_path(dir.path())?; // lb-1/cert.pem
/// authority.finish_rotation(&shown)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Shown(Vec<CertificateDer<'static>>);

impl Shown {
    /// Adds the certificates of a PEM text; authorities' own are left out.
    ///
    /// # Errors
    /// [`Error::Identity`] if it holds no certificate, or one that cannot be read.
    ///
    /// # Examples
    /// ```
    /// assert!(phalanx::Shown::default().add_pem(b"").is_err());
    /// ```
    pub fn add_pem(&mut self, pem: &[u8]) -> Result<(), Error> {
        self.add(pem, "certificate")
    }

    fn add(&mut self, pem: &[u8], what: &str) -> Result<(), Error> {
        pem::certificates(pem, what)?.into_iter().try_for_each(|certificate| self.add_one(certificate, what))
    }

    fn add_one(&mut self, certificate: CertificateDer<'static>, what: &str) -> Result<(), Error> {
        let facts = x509::facts(&certificate).map_err(|text| fault(what, text, "copy the file anew"))?;
        if !facts.is_ca {
            self.0.push(certificate);
        }
        Ok(())
    }

    /// Adds a certificate in DER, as a node shows it in a handshake.
    ///
    /// # Errors
    /// [`Error::Identity`] if it cannot be read.
    ///
    /// # Examples
    /// ```
    /// assert!(phalanx::Shown::default().add_der(b"").is_err());
    /// ```
    pub fn add_der(&mut self, der: &[u8]) -> Result<(), Error> {
        self.add_one(CertificateDer::from(der.to_vec()), "certificate")
    }

    /// Adds the certificates of a file, or of all `.pem` and `.crt` files in and below a directory that have
    /// any. Links are not followed.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Identity`] if one cannot be read.
    ///
    /// # Examples
    /// See [`Shown`].
    pub fn add_path(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        if path.is_dir() { self.add_directory(path, DEPTH_MAX) } else { self.add_file(path) }
    }

    fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        self.add(&file::read(path, "certificate", PEM_LEN_MAX)?, &named("certificate", path))
    }

    fn add_directory(&mut self, dir: &Path, depth: usize) -> Result<(), Error> {
        let unreadable = |source| Error::File {
            action: "read",
            path: dir.into(),
            source,
            remedy: "let the user this process runs as read it".into(),
        };
        for entry in fs::read_dir(dir).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(unreadable)?);
            let is_pem = path.extension().is_some_and(|end| end == "pem" || end == "crt");
            if kind.is_dir() && depth > 0 {
                self.add_directory(&path, depth - 1)?;
            } else if kind.is_file() && is_pem && holds_certificate(&path)? {
                self.add_file(&path)?;
            }
        }
        Ok(())
    }

    /// How many certificates were added.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(phalanx::Shown::default().len(), 0);
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none was added.
    ///
    /// # Examples
    /// ```
    /// assert!(phalanx::Shown::default().is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Keys and lists lie in the same directories.
fn holds_certificate(path: &Path) -> Result<bool, Error> {
    let text = file::read(path, "certificate", file::CRL_LEN_MAX)?;
    let mark = b"-----BEGIN CERTIFICATE-----";
    Ok(text.windows(mark.len()).any(|part| part == mark))
}

impl Authority {
    /// Makes a second root and issues under it from now on; the old one stays trusted. From here:
    ///
    /// 1. Write the authority, and give every node its [`Authority::ca_pem`], which now has both roots. A
    ///    node that has not got it would refuse the new certificates.
    /// 2. Renew the certificate of every node.
    /// 3. [`Authority::finish_rotation`], and give every node the CA file with the new root alone.
    ///
    /// # Errors
    /// [`Error::Identity`] if a rotation is under way already.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId};
    /// let mut authority = Authority::generate("edge")?;
    /// let old = authority.issue(&NodeId::new("lb-1")?)?;
    /// authority.begin_rotation()?;
    /// let waiting = authority.rotation(&Default::default()).expect("under way").waiting;
    /// assert_eq!(waiting[0].node_id, old.node_id());
    /// assert!(authority.begin_rotation().is_err());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn begin_rotation(&mut self) -> Result<(), Error> {
        if self.previous.is_some() {
            let remedy = "finish it before the next: phalanx ca rotate status tells what it waits for";
            return Err(fault("rotation", "one is under way already", remedy));
        }
        let next = Root::generate(&self.cluster)?;
        self.previous = Some(std::mem::replace(&mut self.current, next));
        Ok(())
    }

    /// The rotation that is under way, if one is, and what it waits for: the certificates that were issued
    /// under the old root, are neither expired nor revoked, and whose nodes were not `shown` with one of the
    /// new root instead; and those that were shown, issued here or not.
    ///
    /// A certificate that several nodes share waits until it is revoked or expires: one holder seen without
    /// it says nothing of the others.
    ///
    /// # Examples
    /// See [`Authority::begin_rotation`].
    #[must_use]
    pub fn rotation(&self, shown: &Shown) -> Option<Rotation> {
        let old = self.previous.as_ref()?;
        let now = clock::wall_now();
        let (mut seen_old, mut seen_new) = (Vec::new(), Vec::new());
        for certificate in &shown.0 {
            let Ok(leaf) = Leaf::read(certificate.clone()) else { continue };
            // Evidence comes from elsewhere: a name is not enough.
            if self.current.check_issued(certificate).is_ok() {
                seen_new.push(leaf);
            } else if old.check_issued(certificate).is_ok() {
                seen_old.push(leaf);
            }
        }
        let ledger = self.ledger();
        let renewed_as = |leaf: &Leaf| {
            let newer = ledger.iter().filter(|other| {
                other.name == leaf.name && self.current.is_named(&other.issuer) && other.not_after > now
            });
            newer.max_by_key(|other| other.not_before).map(|other| other.serial.clone())
        };
        let mut waiting = Vec::new();
        for leaf in ledger.iter().chain(&seen_old) {
            let counts =
                old.is_named(&leaf.issuer) && leaf.not_after > now && !old.is_revoked(&leaf.raw_serial);
            if !counts || waiting.iter().any(|other: &Waiting| other.serial == leaf.serial) {
                continue;
            }
            let has = |seen: &[Leaf]| seen.iter().any(|other| other.name == leaf.name);
            if leaf.name.node.is_some() && has(&seen_new) && !has(&seen_old) {
                continue;
            }
            waiting.push(Waiting {
                serial: leaf.serial.clone(),
                node_id: leaf.name.node.clone(),
                not_after: leaf.not_after,
                renewed_as: renewed_as(leaf),
                seen: seen_old.iter().any(|other| other.serial == leaf.serial),
            });
        }
        waiting.sort_by(|a, b| (&a.node_id, a.not_after).cmp(&(&b.node_id, b.not_after)));
        drop(ledger);
        let is_moved = |leaf: &Issued| leaf.standing == Standing::Valid && !leaf.under_old_root;
        let moved = self.issued().iter().filter(|leaf| is_moved(leaf)).count();
        Some(Rotation { waiting, moved, old_root_not_after: old.not_after })
    }

    /// Drops the old root. Write the authority afterwards, then give every node the CA file with the new root
    /// alone.
    ///
    /// # Errors
    /// [`Error::Identity`] if no rotation is under way, or if it still waits for something
    /// ([`Authority::rotation`]): a node that shows a certificate of the old root would be cut off. Nothing
    /// was changed then.
    ///
    /// # Examples
    /// See [`Shown`].
    pub fn finish_rotation(&mut self, shown: &Shown) -> Result<(), Error> {
        let Some(rotation) = self.rotation(shown) else {
            let remedy = "nothing is left to finish; begin one with phalanx ca rotate begin";
            return Err(fault("rotation", "none is under way", remedy));
        };
        if !rotation.waiting.is_empty() {
            let named: Vec<_> = rotation.waiting.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            let more = rotation.waiting.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let text =
                format!("the old root cannot be dropped, nodes may still show {}{more}", named.join(", "));
            let remedy = "renew these nodes, then show what they use, or revoke what is not in use any more";
            return Err(fault("rotation", text, remedy));
        }
        self.dropped.extend(self.previous.take().map(|old| old.certificate));
        Ok(())
    }
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.node_id {
            Some(node) => write!(f, "{node}'s {}", self.serial),
            None => write!(f, "the shared {}", self.serial),
        }
    }
}
