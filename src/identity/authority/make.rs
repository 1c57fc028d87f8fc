//! What every certificate and list of an authority is made of: validity, serial numbers, names, keys. Signs
//! nothing, keeps nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, SerialNumber};
use rustls::pki_types::PrivateKeyDer;
use time::OffsetDateTime;

use crate::{
    Error,
    driver::clock,
    identity::{file::fault, trust::provider, x509},
};

pub(super) const DAY: Duration = Duration::from_secs(86_400);
/// How long an authority's own certificate lasts.
pub(super) const AUTHORITY_LIFE: Duration = Duration::from_secs(3_650 * 86_400);
/// How long an identity lasts: short enough that few need to be revoked, long enough for a monthly renewal to
/// fail twice.
pub(super) const LIFE_DAYS: u32 = 90;
/// More than the calendar of certificates has; `moment` refuses it. Any system's clock can add it.
const DAYS_MAX: u32 = 3_000_000;
/// How far back validity begins, for hosts whose clocks run behind.
pub(super) const BACKDATED: Duration = Duration::from_secs(300);
/// What part of its life a certificate may end early, so that a fleet issued together is not renewed, or
/// forgotten, within one minute.
const JITTER_PART: u32 = 10;

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// From five minutes ago, for hosts whose clocks run behind, to that many days from now.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, Validity};
    /// let authority = Authority::generate("edge")?;
    /// let short = authority.issue_for(&NodeId::new("lb-1")?, Validity::days(7))?;
    /// # drop(short);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn days(days: u32) -> Self {
        let now = clock::wall_now();
        Self { not_before: now - BACKDATED, not_after: now + DAY * days.min(DAYS_MAX) }
    }

    /// From one moment to another.
    ///
    /// # Examples
    /// ```
    /// # use phalanx::{Authority, NodeId, Validity};
    /// # use std::time::{Duration, UNIX_EPOCH};
    /// let year = |year: u64| UNIX_EPOCH + Duration::from_secs((year - 1970) * 31_556_952);
    /// let authority = Authority::generate("edge")?;
    /// let past = authority.issue_for(&NodeId::new("lb-1")?, Validity::between(year(2000), year(2001)))?;
    /// assert!(past.not_after() < year(2002));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn between(not_before: SystemTime, not_after: SystemTime) -> Self {
        Self { not_before, not_after }
    }

    /// As [`Validity::days`], but up to a tenth shorter, by chance.
    pub(super) fn about_days(days: u32) -> Self {
        let validity = Self::days(days);
        let jitter_max = (DAY * days.min(DAYS_MAX) / JITTER_PART).as_secs();
        let jitter = Duration::from_secs(clock::entropy() % (jitter_max + 1));
        Self { not_after: validity.not_after - jitter, ..validity }
    }
}

/// What every certificate has: rcgen's own defaults are valid from 1975 to 4096, and number a certificate by
/// its public key.
pub(super) fn parameters(validity: Validity) -> Result<CertificateParams, Error> {
    if validity.not_after < validity.not_before {
        return Err(fault("validity", "it ends before it begins", "exchange its two ends"));
    }
    let mut params = CertificateParams::default();
    params.not_before = moment(validity.not_before)?;
    params.not_after = moment(validity.not_after)?;
    // Positive and of one length: the highest bit is off, the next on.
    let mut serial = random::<16>()?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// A name of its own for every authority: webpki finds an issuer by name, so two of one name would be
/// confused while a cluster moves from one to the other.
pub(super) fn distinguished_name() -> Result<DistinguishedName, Error> {
    Ok(common_name(format!("phalanx CA {}", x509::hex(&random::<8>()?))))
}

pub(super) fn common_name(text: String) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

pub(super) fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(refused("make a key"))
}

/// A key that was read from the file `what`.
pub(super) fn key_pair(secret: &PrivateKeyDer<'_>, what: &str) -> Result<KeyPair, Error> {
    KeyPair::try_from(secret).map_err(|error| {
        fault(what, format!("it cannot be used ({error})"), "use a P-256 key, or restore it from a backup")
    })
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| fault("random number", "the system gives none", "check the system's random source"))?;
    Ok(bytes)
}

pub(super) fn uri(name: &str) -> Result<SanType, Error> {
    name.try_into().map(SanType::URI).map_err(refused("put the name into a certificate"))
}

/// A time as rcgen wants it, cut to seconds.
pub(super) fn moment(time: SystemTime) -> Result<OffsetDateTime, Error> {
    let out_of_range = || fault("validity", "it leaves the years 1970 to 9999", "choose a time in between");
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| out_of_range())?;
    let seconds = i64::try_from(since.as_secs()).map_err(|_| out_of_range())?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| out_of_range())
}

pub(super) fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

pub(super) fn refused<E: std::error::Error + Send + Sync + 'static>(
    action: &'static str,
) -> impl Fn(E) -> Error {
    move |source| Error::Identity {
        what: "authority".into(),
        fault: format!("it cannot {action} ({source})"),
        remedy: "check its files".into(),
        source: Some(Box::new(source)),
    }
}
