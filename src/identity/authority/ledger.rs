//! What an authority has issued: one file a certificate, below `issued/`, named by its serial number. Nothing
//! in it is secret. Decides nothing.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::Path,
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;

use super::make::{Validity, seconds};
use crate::{
    Error, NodeId,
    identity::{
        SpiffeName,
        file::{self, Draft, PEM_LEN_MAX, fault, named},
        pem, x509,
    },
};

/// The directory below the authority's.
pub(super) const DIR: &str = "issued";

/// One certificate that an authority issued, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Issued {
    /// The serial number in hexadecimal, without leading zeros.
    pub serial: String,
    /// The node; `None` for a certificate that several nodes share.
    pub node_id: Option<NodeId>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// Whether it is in force now.
    pub standing: Standing,
    /// Whether the root that signed it is the one that a rotation is about to drop.
    pub under_old_root: bool,
}

/// Whether a certificate is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Standing {
    /// Peers admit it.
    Valid,
    /// Its time is over.
    Expired,
    /// It is on the revocation list.
    Revoked,
    /// The root that signed it was dropped by a rotation; nobody trusts it any more.
    Dropped,
}

impl Standing {
    /// `"valid"`, `"expired"`, `"revoked"` or `"dropped"`.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(phalanx::Standing::Valid.as_str(), "valid");
    /// ```
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Dropped => "dropped",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A certificate for a node, as its authority knows it.
#[derive(Clone)]
pub(super) struct Leaf {
    pub(super) der: CertificateDer<'static>,
    pub(super) name: SpiffeName,
    /// In hexadecimal, without leading zeros.
    pub(super) serial: String,
    /// As DER has it.
    pub(super) raw_serial: Vec<u8>,
    /// Its issuer's name in DER.
    pub(super) issuer: Vec<u8>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Leaf {
    /// Reads a certificate; `Err` says what is wrong with it.
    pub(super) fn read(der: CertificateDer<'static>) -> Result<Self, String> {
        let name = SpiffeName::from_certificate(&der)?;
        let facts = x509::facts(&der)?;
        let raw_serial =
            webpki::EndEntityCert::try_from(&der).map_err(|error| error.to_string())?.serial().to_vec();
        let x509::Facts { serial, issuer, not_before, not_after, .. } = facts;
        Ok(Self { der, name, serial, raw_serial, issuer, not_before, not_after })
    }
}

/// The certificates issued so far, by serial number.
#[derive(Clone, Default)]
pub(super) struct Ledger(BTreeMap<String, Leaf>);

impl Ledger {
    /// Reads the files in `dir/issued`; none if there is no such directory.
    pub(super) fn load(dir: &Path) -> Result<Self, Error> {
        let dir = dir.join(DIR);
        let unreadable = |source| Error::File {
            action: "read",
            path: dir.clone(),
            source,
            remedy: "let the user this process runs as read it".into(),
        };
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut ledger = Self::default();
        for entry in entries {
            let path = entry.map_err(unreadable)?.path();
            // What an interrupted write left begins with a dot and ends otherwise.
            if path.extension().is_some_and(|extension| extension == "pem") {
                ledger.read(&path)?;
            }
        }
        Ok(ledger)
    }

    fn read(&mut self, path: &Path) -> Result<(), Error> {
        let what = named("issued certificate", path);
        let certificate = pem::certificates(&file::read(path, "issued certificate", PEM_LEN_MAX)?, &what)?;
        let remedy = "restore it from a backup, or move it away: it then counts as never issued";
        let leaf = certificate.into_iter().next().map(Leaf::read);
        let leaf = leaf.unwrap_or_else(|| Err("it is empty".into()));
        self.add(leaf.map_err(|text| fault(what, text, remedy))?);
        Ok(())
    }

    pub(super) fn add(&mut self, leaf: Leaf) {
        self.0.insert(leaf.serial.clone(), leaf);
    }

    pub(super) fn get(&self, serial: &str) -> Option<&Leaf> {
        self.0.get(serial)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Leaf> {
        self.0.values()
    }

    /// The newest certificate with a name: the one that begins last.
    pub(super) fn newest(&self, name: &SpiffeName) -> Option<&Leaf> {
        self.iter().filter(|leaf| leaf.name == *name).max_by_key(|leaf| leaf.not_before)
    }

    /// `validity`, begun a second later for each certificate of the name that begins in the same second:
    /// certificates know no shorter time, and the newest must be told from the others.
    pub(super) fn after_its_kin(&self, name: &SpiffeName, validity: Validity) -> Validity {
        const SECOND: Duration = Duration::from_secs(1);
        let mut later = validity;
        while later.not_before + SECOND <= later.not_after
            && self
                .iter()
                .any(|leaf| leaf.name == *name && seconds(leaf.not_before) == seconds(later.not_before))
        {
            later.not_before += SECOND;
        }
        later
    }

    /// Writes what `dir` does not have yet. Files are only added, so that two programs that issue at once
    /// take nothing from one another.
    pub(super) fn write_to(&self, dir: &Path) -> Result<(), Error> {
        let dir = dir.join(DIR);
        let missing: Vec<_> = self
            .0
            .values()
            .map(|leaf| (format!("{}.pem", leaf.serial), leaf))
            .filter(|(name, _)| !dir.join(name).exists())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let drafts: Vec<_> = missing
            .iter()
            .map(|(name, leaf)| Draft {
                name,
                bytes: pem::encode("CERTIFICATE", &leaf.der).into_bytes(),
                secret: false,
            })
            .collect();
        file::write_all(&dir, &drafts).map(|_| ())
    }
}

/// A serial number as the ledger has it: `4F:0A` and `0x4f0a` are `4f0a`; `None` if it is none.
pub(super) fn serial(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase().replace(':', "");
    let digits = text.strip_prefix("0x").unwrap_or(&text).trim_start_matches('0');
    let is_serial = !digits.is_empty() && digits.len() <= 40 && digits.bytes().all(|c| c.is_ascii_hexdigit());
    is_serial.then(|| digits.to_owned())
}
