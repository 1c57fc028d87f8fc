//! Files of an identity: read only what is a plain file of bounded size, and a key only if nobody else can
//! read it; written whole or not at all. Knows nothing of what the files hold.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use zeroize::{Zeroize, Zeroizing};

use crate::Error;

/// The longest certificate or key file, in bytes: a bundle of hundreds of certificates fits.
pub(super) const PEM_LEN_MAX: u64 = 1 << 20;
/// The longest revocation list, in bytes: some 200,000 entries. Every handshake checks the list's signature,
/// so a longer one would stall them all.
pub(super) const CRL_LEN_MAX: u64 = 16 << 20;

/// A fault of a certificate, key or list that the caller named `what`.
pub(super) fn fault(what: impl Into<String>, fault: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Identity { what: what.into(), fault: fault.into(), remedy: remedy.into(), source: None }
}

/// The contents of a public file.
pub(super) fn read(path: &Path, what: &str, len_max: u64) -> Result<Vec<u8>, Error> {
    let (file, _) = open(path, what)?;
    read_open(file, path, what, len_max, Vec::new())
}

/// The contents of a file that only its owner may read, wiped when they are dropped.
pub(super) fn read_secret(path: &Path, what: &str, len_max: u64) -> Result<Zeroizing<Vec<u8>>, Error> {
    let (file, metadata) = open(path, what)?;
    // The mode of the opened file, not of the path: a symbolic link is followed, its target counts.
    refuse_open_mode(path, what, &metadata)?;
    // All of it at once: a buffer that grows leaves copies behind.
    let room = usize::try_from(metadata.len().min(len_max) + 1).unwrap_or(0);
    read_open(file, path, what, len_max, Vec::with_capacity(room)).map(Zeroizing::new)
}

/// How an error message calls the file: `private key /etc/lb/key.pem`.
pub(super) fn named(what: &str, path: &Path) -> String {
    format!("{what} {}", path.display())
}

fn open(path: &Path, what: &str) -> Result<(File, Metadata), Error> {
    // Looked at before it is opened: opening some devices does something.
    let metadata = fs::metadata(path).map_err(|source| unreadable(path, source))?;
    refuse_irregular(path, what, &metadata)?;
    let mut options = File::options();
    options.read(true);
    // And once more after it: a FIFO may have taken its place, and to open that waits for its writer.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(|source| unreadable(path, source))?;
    let metadata = file.metadata().map_err(|source| unreadable(path, source))?;
    refuse_irregular(path, what, &metadata)?;
    Ok((file, metadata))
}

fn read_open(
    file: File,
    path: &Path,
    what: &str,
    len_max: u64,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>, Error> {
    file.take(len_max + 1).read_to_end(&mut bytes).map_err(|source| unreadable(path, source))?;
    if bytes.len() as u64 > len_max {
        let fault_text = format!("it has more than {len_max} bytes");
        return Err(fault(named(what, path), fault_text, "name the right file"));
    }
    Ok(bytes)
}

fn refuse_irregular(path: &Path, what: &str, metadata: &Metadata) -> Result<(), Error> {
    if metadata.is_file() {
        return Ok(());
    }
    let kind = if metadata.is_dir() { "it is a directory" } else { "it is not a regular file" };
    Err(fault(named(what, path), kind, "name a PEM file"))
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    let remedy = match source.kind() {
        io::ErrorKind::NotFound => "check the path; relative paths are relative to the configuration file",
        io::ErrorKind::PermissionDenied => "let the user this process runs as read it",
        _ => "check the path",
    };
    Error::File { action: "read", path: path.into(), source, remedy: remedy.into() }
}

#[cfg(unix)]
fn refuse_open_mode(path: &Path, what: &str, metadata: &Metadata) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;

    match mode_fault(metadata.mode(), metadata.uid()) {
        None => Ok(()),
        Some(text) => Err(fault(named(what, path), text, format!("run: chmod 600 {}", path.display()))),
    }
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "the signature of the Unix twin")]
fn refuse_open_mode(_: &Path, _: &str, _: &Metadata) -> Result<(), Error> {
    Ok(())
}

/// What is wrong with the mode of a key file, if anything is.
///
/// Only the owner may have access; but a key that root owns may be readable to its group (0640, 0440), as
/// secret stores hand out keys to services that way.
#[cfg(unix)]
fn mode_fault(mode: u32, uid: u32) -> Option<String> {
    let allowed = if uid == 0 { 0o740 } else { 0o700 };
    (mode & 0o777 & !allowed != 0)
        .then(|| format!("others than its owner have access (mode {:04o})", mode & 0o777))
}

/// A file to be written.
pub(super) struct Draft<'a> {
    pub(super) name: &'a str,
    pub(super) bytes: Vec<u8>,
    /// Only the owner may read it. Wiped from memory once it is written.
    pub(super) secret: bool,
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.secret {
            self.bytes.zeroize();
        }
    }
}

/// Writes files into `dir`, which is made if it is missing. Each is whole or as it was before, whenever the
/// process is killed: all are written beside their targets first, then renamed in the order given.
pub(super) fn write_all(dir: &Path, drafts: &[Draft<'_>]) -> Result<Vec<PathBuf>, Error> {
    prepare(dir)?;
    let mut pending = Vec::with_capacity(drafts.len());
    for draft in drafts {
        pending.push(Pending::write(dir, draft)?);
    }
    let mut paths = Vec::with_capacity(pending.len());
    for mut file in pending {
        paths.push(file.publish()?);
    }
    #[cfg(unix)] // the renames themselves; other systems cannot open a directory
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| unwritable(dir, source))?;
    Ok(paths)
}

fn prepare(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|source| unwritable(dir, source))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;

        let mode = fs::metadata(dir).map_err(|source| unwritable(dir, source))?.mode();
        // With the sticky bit, as in /tmp, nobody else can replace what we put there.
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            let text = format!("anyone may replace the files in it (mode {:04o})", mode & 0o7777);
            return Err(fault(named("directory", dir), text, format!("run: chmod o-w {}", dir.display())));
        }
    }
    Ok(())
}

fn unwritable(path: &Path, source: io::Error) -> Error {
    let remedy = "check the directory, its owner and the free space; existing files were left as they were";
    Error::File { action: "write", path: path.into(), source, remedy: remedy.into() }
}

/// A file written beside its target; dropped unpublished, it is removed.
struct Pending {
    temporary: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Pending {
    fn write(dir: &Path, draft: &Draft<'_>) -> Result<Self, Error> {
        let target = dir.join(draft.name);
        let temporary = dir.join(format!(".{}.{}.tmp", draft.name, uuid::Uuid::new_v4().simple()));
        // `create_new`: never through a link that someone else put there.
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, if draft.secret { 0o600 } else { 0o644 });
        let mut file = options.open(&temporary).map_err(|source| unwritable(&target, source))?;
        let pending = Self { temporary, target, published: false };
        file.write_all(&draft.bytes)
            .and_then(|()| file.sync_all())
            .map_err(|source| unwritable(&pending.target, source))?;
        Ok(pending)
    }

    fn publish(&mut self) -> Result<PathBuf, Error> {
        fs::rename(&self.temporary, &self.target).map_err(|source| unwritable(&self.target, source))?;
        self.published = true;
        Ok(self.target.clone())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.temporary); // what was wrong is already on its way to the caller
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_the_owner_may_read_a_key_and_roots_group() {
        for (mode, uid, good) in [
            (0o100_600, 1000, true),
            (0o100_400, 1000, true),
            (0o100_640, 1000, false),
            (0o100_604, 1000, false),
            (0o100_644, 0, false),
            (0o100_640, 0, true),
            (0o100_440, 0, true),
            (0o100_660, 0, false),
            (0o100_601, 0, false),
        ] {
            assert_eq!(mode_fault(mode, uid).is_none(), good, "{mode:o} of {uid}");
        }
    }

    #[test]
    fn a_link_to_an_open_key_is_refused_by_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let (key, link) = (dir.path().join("key.pem"), dir.path().join("link.pem"));
        fs::write(&key, "x").unwrap();
        symlink(&key, &link).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read_secret(&link, "private key", 10).unwrap_err().to_string();
        assert!(error.contains("mode 0644") && error.contains("run: chmod 600"), "{error}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(**read_secret(&link, "private key", 10).unwrap(), *b"x");
    }

    #[test]
    fn what_is_no_plain_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for (path, says) in [
            (fifo.as_path(), "it is not a regular file"),
            (dir.path(), "it is a directory"),
            (Path::new("/dev/zero"), "it is not a regular file"),
            (&dir.path().join("none"), "check the path"),
        ] {
            let error = read(path, "certificate", 10).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        fs::write(dir.path().join("long"), "12345678901").unwrap();
        let error = read(&dir.path().join("long"), "certificate", 10).unwrap_err().to_string();
        assert!(error.contains("more than 10 bytes"), "{error}");
    }

    #[test]
    fn files_are_replaced_whole_and_leave_nothing_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        for bytes in ["old", "new"] {
            let draft = |name, secret| Draft { name, bytes: bytes.into(), secret };
            let paths = write_all(&below, &[draft("ca.pem", false), draft("key.pem", true)]).unwrap();
            assert_eq!(fs::read_to_string(&paths[1]).unwrap(), bytes);
            assert_eq!(fs::metadata(&paths[1]).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::read_dir(&below).unwrap().count(), 2);
        }
    }

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), "old").unwrap();
        fs::create_dir(dir.path().join("key.pem")).unwrap(); // a rename over a directory fails
        let draft = |name| Draft { name, bytes: b"new".to_vec(), secret: true };
        let error = write_all(dir.path(), &[draft("key.pem"), draft("ca.pem")]).unwrap_err().to_string();
        assert!(error.contains("cannot write"), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("ca.pem")).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_directory_that_anyone_may_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = write_all(dir.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("mode 0777") && error.contains("chmod o-w"), "{error}");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(write_all(dir.path(), &[]).is_ok());
    }
}
