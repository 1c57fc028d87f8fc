//! What webpki does not show of a certificate or a revocation list. Looks, but judges no chain; for a peer's
//! certificate it is asked only after webpki has found a trusted CA's signature on it, save for its name.

use std::{
    fmt::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, public_key::PublicKey,
    revocation_list::CertificateRevocationList, time::ASN1Time, x509::SubjectPublicKeyInfo,
};

/// What a certificate says of itself.
pub(super) struct Facts {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// In hexadecimal, without leading zeros.
    pub(super) serial: String,
    pub(super) is_ca: bool,
    /// Whether it may sign, as far as its key usage says anything.
    pub(super) may_sign: bool,
    /// Whether it lists purposes (extended key usage) at all.
    pub(super) has_purposes: bool,
    /// Why its key is too weak to prove anything, by name.
    pub(super) weakness: Option<String>,
    /// The bytes of its public key, as signatures are checked with it.
    pub(super) key: Vec<u8>,
    /// Its subject's name in DER.
    pub(super) subject: Vec<u8>,
    /// Its issuer's name in DER.
    #[cfg_attr(not(feature = "authority"), expect(dead_code, reason = "an authority looks for its own"))]
    pub(super) issuer: Vec<u8>,
}

/// Reads a certificate; `Err` says what is wrong with it.
pub(super) fn facts(der: &CertificateDer<'_>) -> Result<Facts, String> {
    let certificate = parse(der)?;
    let unreadable = |error| format!("it has an unreadable extension ({error})");
    let constraints = certificate.basic_constraints().map_err(unreadable)?;
    let usage = certificate.key_usage().map_err(unreadable)?;
    let purposes = certificate.extended_key_usage().map_err(unreadable)?;
    Ok(Facts {
        not_before: system_time(certificate.validity().not_before),
        not_after: system_time(certificate.validity().not_after),
        serial: certificate.serial.to_str_radix(16),
        is_ca: constraints.is_some_and(|constraints| constraints.value.ca),
        may_sign: usage.is_none_or(|usage| usage.value.digital_signature()),
        has_purposes: purposes.is_some(),
        weakness: key_weakness(certificate.public_key()),
        key: certificate.public_key().subject_public_key.data.to_vec(),
        subject: certificate.subject().as_raw().to_vec(),
        issuer: certificate.issuer().as_raw().to_vec(),
    })
}

/// A certificate's public key with its algorithm, in DER (`SubjectPublicKeyInfo`).
#[cfg(feature = "authority")]
pub(super) fn key_info(der: &CertificateDer<'_>) -> Result<Vec<u8>, String> {
    Ok(parse(der)?.public_key().raw.to_vec())
}

/// The URIs among a certificate's names, and whether any name is of a form that cannot be read.
///
/// webpki's list leaves out what is not UTF-8 and ends at what it cannot read, so that a second name could
/// hide.
pub(super) fn uris(der: &CertificateDer<'_>) -> Result<(Vec<String>, bool), String> {
    let certificate = parse(der)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| format!("its alternative names cannot be read ({error})"))?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let invalid = names.iter().any(|name| matches!(name, GeneralName::Invalid(..)));
    let uris = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None })
        .collect();
    Ok((uris, invalid))
}

pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("more bytes follow the certificate".into()),
        Err(error) => Err(format!("it cannot be read ({error})")),
    }
}

/// Keys that were once in use and prove nothing any more, or that this library cannot check.
pub(super) fn key_weakness(info: &SubjectPublicKeyInfo<'_>) -> Option<String> {
    const P224: &str = "1.3.132.0.33";
    const P192: &str = "1.2.840.10045.3.1.1";
    let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    match (info.parsed(), curve.map(|oid| oid.to_id_string()).as_deref()) {
        (Ok(PublicKey::RSA(key)), _) => {
            let modulus = key.modulus.iter().skip_while(|byte| **byte == 0).count() * 8;
            (modulus < 2048).then(|| format!("RSA of {modulus} bits; at least 2048 are needed"))
        }
        (Ok(PublicKey::EC(_)), Some(P224)) => Some("the curve P-224; use P-256".into()),
        (Ok(PublicKey::EC(_)), Some(P192)) => Some("the curve P-192; use P-256".into()),
        (Ok(PublicKey::DSA(_)), _) => Some("DSA; use ECDSA on P-256".into()),
        _ => None,
    }
}

/// What a revocation list says of itself.
pub(super) struct ListFacts {
    /// Its issuer's name in DER.
    pub(super) issuer: Vec<u8>,
    /// Which of two lists is the newer: the number (its length first, then its bytes), then the time.
    pub(super) age: (usize, Vec<u8>, i64),
    /// When the next list was to come, if it says so.
    pub(super) next_update: Option<SystemTime>,
    /// The signed part and the signature.
    pub(super) signed: Vec<u8>,
    pub(super) signature: Vec<u8>,
    /// Serial numbers, as their DER has them, with the time of revocation.
    pub(super) revoked: Vec<(Vec<u8>, i64)>,
}

impl ListFacts {
    /// The number, as people write it.
    pub(super) fn number(&self) -> String {
        if self.age.1.is_empty() { "none".into() } else { format!("0x{}", hex(&self.age.1)) }
    }

    /// The number, where it is small enough to count on from.
    #[cfg(feature = "authority")]
    pub(super) fn count(&self) -> Option<u64> {
        (self.age.0 <= 8).then(|| self.age.1.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

/// Reads a revocation list; `Err` says what is wrong with it.
pub(super) fn list_facts(der: &[u8]) -> Result<ListFacts, String> {
    let list = match CertificateRevocationList::from_der(der) {
        Ok(([], list)) => list,
        Ok(_) => return Err("more bytes follow the list".into()),
        Err(error) => return Err(format!("it cannot be read ({error})")),
    };
    let number = list.crl_number().map(x509_parser::num_bigint::BigUint::to_bytes_be).unwrap_or_default();
    Ok(ListFacts {
        issuer: list.issuer().as_raw().to_vec(),
        age: (number.len(), number, list.last_update().timestamp()),
        next_update: list.next_update().map(system_time),
        signed: list.tbs_cert_list.as_ref().to_vec(),
        signature: list.signature_value.data.to_vec(),
        revoked: list
            .iter_revoked_certificates()
            .map(|entry| (entry.raw_serial().to_vec(), entry.revocation_date.timestamp()))
            .collect(),
    })
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a `String` takes all that is written
        text
    })
}

/// A time as people read it, in UTC.
pub(crate) fn written(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    };
    ASN1Time::from_timestamp(seconds)
        .map_or_else(|_| format!("{seconds} s after 1970"), |time| time.to_string())
}

/// A time as rustls gives it, as people read it.
pub(super) fn written_unix(time: UnixTime) -> String {
    let since = Duration::from_secs(time.as_secs());
    UNIX_EPOCH.checked_add(since).map_or_else(|| format!("{since:?} after 1970"), written)
}

fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moment =
        if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    moment.unwrap_or(UNIX_EPOCH)
}
