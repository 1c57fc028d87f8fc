//! The node's private key: our own copy of its bytes, or a device that signs. Shows neither to anybody, and
//! wipes what it copied.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use rustls::{
    SignatureAlgorithm,
    pki_types::PrivateKeyDer,
    sign::{Signer, SigningKey as TlsKey},
};
use tokio::time::Instant;
use zeroize::Zeroize;

use super::{file::fault, trust::provider};
use crate::{Error, driver::clock};

/// How long a signature may take. A thread of the runtime waits for it: rustls cannot be told to come again.
const SIGN_MAX: Duration = Duration::from_millis(500);
/// After a signature that took longer the key is left alone for so long, so that the runtime's threads have
/// their time for everything else.
const REST: Duration = Duration::from_secs(10);
/// Signatures that wait at most.
const WAITING_MAX: usize = 32;

/// With which algorithm a [`SigningKey`] signs: those that TLS 1.3 has (RFC 8446 §4.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SignatureScheme {
    /// Ed25519.
    Ed25519,
    /// ECDSA on P-256 with SHA-256; the signature in DER (a sequence of r and s).
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384; the signature in DER.
    EcdsaP384Sha384,
    /// RSA-PSS with SHA-256, and a salt as long as the digest.
    RsaPssSha256,
    /// RSA-PSS with SHA-384, and a salt as long as the digest.
    RsaPssSha384,
    /// RSA-PSS with SHA-512, and a salt as long as the digest.
    RsaPssSha512,
}

impl SignatureScheme {
    fn of_tls(self) -> (rustls::SignatureScheme, SignatureAlgorithm) {
        use rustls::SignatureScheme as Tls;

        match self {
            Self::Ed25519 => (Tls::ED25519, SignatureAlgorithm::ED25519),
            Self::EcdsaP256Sha256 => (Tls::ECDSA_NISTP256_SHA256, SignatureAlgorithm::ECDSA),
            Self::EcdsaP384Sha384 => (Tls::ECDSA_NISTP384_SHA384, SignatureAlgorithm::ECDSA),
            Self::RsaPssSha256 => (Tls::RSA_PSS_SHA256, SignatureAlgorithm::RSA),
            Self::RsaPssSha384 => (Tls::RSA_PSS_SHA384, SignatureAlgorithm::RSA),
            Self::RsaPssSha512 => (Tls::RSA_PSS_SHA512, SignatureAlgorithm::RSA),
        }
    }
}

/// A private key that signs without showing itself: in an HSM, behind PKCS#11, in another process. See
/// [`Identity::from_signing_key`](crate::Identity::from_signing_key).
///
/// It is asked for one signature a handshake, and for one whenever the node says something new of itself; on
/// a thread of its own, one at a time. A handshake waits half a second at most, and takes a thread of the
/// runtime that long; a signature that takes longer, an error or a panic fails that handshake and nothing
/// else. After one that took longer the key is left alone for ten seconds.
pub trait SigningKey: Send + Sync + 'static {
    /// The algorithm it signs with.
    fn scheme(&self) -> SignatureScheme;

    /// Signs `message`, which is not hashed yet.
    ///
    /// # Errors
    /// Whatever keeps it from signing. The text goes into the log; it must hold no secret.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;
}

/// The key of an identity.
pub(super) struct Key {
    secret: Option<Secret>,
    signing: Arc<dyn TlsKey>,
}

/// Our own copy of a key's bytes.
struct Secret(PrivateKeyDer<'static>);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Key {
    /// A key whose bytes are at hand; `what` is how errors call it.
    pub(super) fn of_bytes(key: PrivateKeyDer<'static>, what: &str) -> Result<Self, Error> {
        let secret = Secret(key);
        // The provider takes its copy by value; it wipes its own.
        let signing = provider().key_provider.load_private_key(secret.0.clone_key());
        let signing = signing.map_err(|source| Error::Identity {
            what: what.into(),
            fault: format!("it cannot be used ({source})"),
            remedy: "use a key for ECDSA (P-256, P-384), Ed25519 or RSA of at least 2048 bits".into(),
            source: Some(source.into()),
        })?;
        Ok(Self { secret: Some(secret), signing })
    }

    /// A key that only signs.
    pub(super) fn of_device(key: Arc<dyn SigningKey>) -> Result<Self, Error> {
        let scheme = catch_unwind(AssertUnwindSafe(|| key.scheme()))
            .map_err(|_| fault("signing key", "it panics when asked for its scheme", "mend it"))?;
        let desk = Arc::new(Desk::open(key)?);
        Ok(Self { secret: None, signing: Arc::new(Device { scheme, desk }) })
    }

    pub(super) fn signing(&self) -> &Arc<dyn TlsKey> {
        &self.signing
    }

    /// The bytes, where they are at hand.
    pub(super) fn secret(&self) -> Option<&PrivateKeyDer<'static>> {
        self.secret.as_ref().map(|secret| &secret.0)
    }
}

/// A `SigningKey` as rustls wants it.
struct Device {
    scheme: SignatureScheme,
    desk: Arc<Desk>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

impl TlsKey for Device {
    fn choose_scheme(&self, offered: &[rustls::SignatureScheme]) -> Option<Box<dyn Signer>> {
        let (scheme, desk) = (self.scheme.of_tls().0, Arc::clone(&self.desk));
        offered.contains(&scheme).then(|| Box::new(DeviceSigner { scheme, desk }) as _)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.scheme.of_tls().1
    }
}

struct DeviceSigner {
    scheme: rustls::SignatureScheme,
    desk: Arc<Desk>,
}

impl fmt::Debug for DeviceSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceSigner").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

impl Signer for DeviceSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.desk.sign(message).map_err(|fault| rustls::Error::General(format!("the signing key: {fault}")))
    }

    fn scheme(&self) -> rustls::SignatureScheme {
        self.scheme
    }
}

type Answer = Result<Vec<u8>, String>;

/// A message to be signed, and where the signature goes.
struct Job {
    message: Vec<u8>,
    answer: SyncSender<Answer>,
}

/// The user's code on a thread of its own, which ends with the last identity that has the key.
struct Desk {
    jobs: SyncSender<Job>,
    /// Until when the key is left alone.
    rests: Mutex<Option<Instant>>,
}

impl Desk {
    fn open(key: Arc<dyn SigningKey>) -> Result<Self, Error> {
        let (jobs, waiting) = sync_channel(WAITING_MAX);
        let thread = thread::Builder::new().name("phalanx-signer".into());
        thread
            .spawn(move || serve(&*key, &waiting))
            .map_err(|source| Error::System { action: "start a thread for the signing key", source })?;
        Ok(Self { jobs, rests: Mutex::new(None) })
    }

    fn sign(&self, message: &[u8]) -> Answer {
        let now = clock::monotonic();
        let rests = *self.rests.lock().unwrap_or_else(PoisonError::into_inner);
        if rests.is_some_and(|until| now < until) {
            return Err("it did not answer in time, and is left alone for a while".into());
        }
        let (answer, answered) = sync_channel(1);
        match self.jobs.try_send(Job { message: message.to_vec(), answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err("too many signatures wait for it".into()),
            Err(TrySendError::Disconnected(_)) => return Err("its thread is gone".into()),
        }
        answered.recv_timeout(SIGN_MAX).unwrap_or_else(|_| {
            *self.rests.lock().unwrap_or_else(PoisonError::into_inner) = Some(now + REST);
            Err(format!("no answer within {SIGN_MAX:?}"))
        })
    }
}

fn serve(key: &dyn SigningKey, jobs: &Receiver<Job>) {
    while let Ok(Job { message, answer }) = jobs.recv() {
        let signed = catch_unwind(AssertUnwindSafe(|| key.sign(&message).map_err(|error| error.to_string())));
        // Whoever asked may have given up.
        let _ = answer.try_send(signed.unwrap_or_else(|_| Err("it panicked".into())));
    }
}
