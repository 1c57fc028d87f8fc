//! The files of the node's identity, looked at again and again: what is new in them is taken over, what is
//! wrong with them is told once. Changes no file, and waits for none.
//!
//! It reads and compares contents instead of asking the system what changed. The system's notices stay away on
//! network file systems and where a directory is replaced by a link to another (as Kubernetes and Vault do),
//! so the reading would be needed below them anyway; and a look costs a few kilobytes in ten seconds.

use std::{sync::Weak, time::Duration};

use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    Error, Identity,
    config::TlsConfig,
    driver::{Driver, clock, lock},
    identity::{FilePaths, Files},
};

/// The files must be the same for so long before they are taken over: whoever writes them is done then.
const DEBOUNCE: Duration = Duration::from_millis(250);
/// How often files that keep changing are read again before the next look.
const READINGS_MAX: usize = 20;

/// What was found at earlier looks.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    /// By which contents are told apart; nobody outside can make two that look the same.
    secret: (u64, u64),
    /// The contents that were dealt with, and need no second look.
    settled: Option<u128>,
    /// The contents that were found wanting and told of, or the words in which reading them failed.
    told: Option<Told>,
    pub(super) looks: u64,
}

impl Watched {
    pub(super) fn new() -> Self {
        Self { secret: (clock::entropy(), clock::entropy()), settled: None, told: None, looks: 0 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Contents(u128),
    Unreadable(String),
}

/// What a reading found: the contents, and what they make if they are new and were the same before.
type Reading = Result<(u128, Option<Result<Identity, Error>>), Error>;

/// The files to be watched, if the configuration asks for that.
pub(super) fn watched_files(tls: &TlsConfig) -> Option<FilePaths> {
    let TlsConfig { ca, cert, key, crl, watch: true, .. } = tls else { return None };
    Some(FilePaths { ca: ca.clone()?, cert: cert.clone()?, key: key.clone()?, crl: crl.clone() })
}

/// Looks at the files for as long as the driver lives and the task runs.
pub(super) async fn watch(driver: Weak<Driver>, paths: FilePaths, interval: Duration) {
    loop {
        let Some(known) = driver.upgrade().map(|driver| lock(&driver.settings).watched.clone()) else {
            return;
        };
        let Some(reading) = steady(&paths, &known).await else { return };
        let Some(driver) = driver.upgrade() else { return };
        driver.look_at(reading);
        drop(driver); // waiting must not keep it
        sleep(interval).await;
    }
}

/// Reads until two readings in a row are the same. `None` once the runtime ends.
async fn steady(paths: &FilePaths, known: &Watched) -> Option<Reading> {
    let (secret, settled) = (known.secret, known.settled);
    let mut last = None;
    for _ in 0..READINGS_MAX {
        let (paths, before) = (paths.clone(), last.clone());
        // Not on the runtime's own threads: a disk may take its time.
        let reading = spawn_blocking(move || {
            let files = Files::read(&paths)?;
            let contents = files.fingerprint(secret);
            let is_steady = before == Some(Ok(contents)) && settled != Some(contents);
            Ok((contents, is_steady.then(|| files.load())))
        });
        let reading: Reading = reading.await.ok()?;
        let seen = reading.as_ref().map(|(contents, _)| *contents).map_err(ToString::to_string);
        if last.as_ref() == Some(&seen) || seen.as_ref().ok() == settled.as_ref() {
            return Some(reading);
        }
        last = Some(seen);
        sleep(DEBOUNCE).await;
    }
    let source = std::io::Error::other("they keep changing");
    Some(Err(Error::System { action: "read the identity's files", source }))
}

impl Driver {
    /// Takes over what is new in the files. A set that is wrong is tried again at each look, since a
    /// certificate may become valid by itself, but told of once.
    fn look_at(&self, reading: Reading) {
        lock(&self.settings).watched.looks += 1;
        let (told, result) =
            match reading {
                Err(error) => (Told::Unreadable(error.to_string()), Err(error)),
                Ok((_, None)) => return,
                Ok((contents, Some(loaded))) => {
                    let result = loaded.and_then(|identity| {
                        if self.is_given(&identity) { Ok(()) } else { self.take_over(identity) }
                    });
                    if result.is_ok() {
                        let mut settings = lock(&self.settings);
                        settings.watched.settled = Some(contents);
                        settings.watched.told = None;
                        return;
                    }
                    (Told::Contents(contents), result)
                }
            };
        let Err(error) = result else { return };
        let mut settings = lock(&self.settings);
        // What was good before must be looked at again when it comes back.
        settings.watched.settled = None;
        let is_new = settings.watched.told.as_ref() != Some(&told);
        settings.watched.told = Some(told);
        drop(settings);
        if is_new {
            self.tell_failed_renewal(&error);
        }
    }

    /// Whether the operator has given that identity already.
    fn is_given(&self, identity: &Identity) -> bool {
        lock(&self.settings).given.as_ref().is_some_and(|given| given.holds(identity))
    }
}
