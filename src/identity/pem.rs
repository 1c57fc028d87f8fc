//! PEM text to certificates, keys and revocation lists, and back. The only file that uses rustls-pemfile,
//! which is unmaintained (RUSTSEC-2025-0134) but part of the given stack; it is a thin shell over
//! rustls-pki-types. Looks into nothing that it decodes.

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls_pemfile::Item;

use super::file::fault;
use crate::Error;

/// All certificates in a file that must hold at least one.
pub(super) fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let items = items(pem, what, "openssl x509 -inform DER")?;
    let held = describe(&items);
    let found: Vec<_> = items
        .into_iter()
        .filter_map(|item| if let Item::X509Certificate(der) = item { Some(der) } else { None })
        .collect();
    if found.is_empty() {
        return Err(fault(
            what,
            format!("it holds no certificate, but {held}"),
            "name a PEM certificate file",
        ));
    }
    Ok(found)
}

/// The one private key in a file.
pub(super) fn private_key(pem: &[u8], what: &str) -> Result<PrivateKeyDer<'static>, Error> {
    // Both are silently skipped by the parser, or fail in its own words.
    if contains(pem, b"BEGIN ENCRYPTED PRIVATE KEY") || contains(pem, b"Proc-Type: 4,ENCRYPTED") {
        let remedy = "decrypt it: openssl pkey -in KEY -out key.pem && chmod 600 key.pem";
        return Err(fault(what, "it is encrypted", remedy));
    }
    let items = items(pem, what, "openssl pkey -inform DER")?;
    let held = describe(&items);
    let mut keys = items.into_iter().filter_map(|item| match item {
        Item::Pkcs1Key(key) => Some(key.into()),
        Item::Pkcs8Key(key) => Some(key.into()),
        Item::Sec1Key(key) => Some(key.into()),
        _ => None,
    });
    match (keys.next(), keys.next()) {
        (Some(key), None) => Ok(key),
        (Some(_), Some(_)) => Err(fault(
            what,
            "it holds more than one private key",
            "leave the one that belongs to the certificate",
        )),
        (None, _) => Err(fault(
            what,
            format!("it holds no private key, but {held}"),
            "name the PEM file of the private key",
        )),
    }
}

/// All revocation lists in a file that must hold at least one.
pub(super) fn revocation_lists(
    pem: &[u8],
    what: &str,
) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    let items = items(pem, what, "openssl crl -inform DER")?;
    let held = describe(&items);
    let found: Vec<_> = items
        .into_iter()
        .filter_map(|item| if let Item::Crl(der) = item { Some(der) } else { None })
        .collect();
    if found.is_empty() {
        return Err(fault(
            what,
            format!("it holds no revocation list, but {held}"),
            "name a PEM file of CRLs",
        ));
    }
    Ok(found)
}

/// The one signing request in a file.
#[cfg(feature = "authority")]
pub(super) fn signing_request(pem: &[u8], what: &str) -> Result<Vec<u8>, Error> {
    let items = items(pem, what, "openssl req -inform DER")?;
    let held = describe(&items);
    let mut requests = items.into_iter().filter_map(|item| match item {
        Item::Csr(der) => Some(der.to_vec()),
        _ => None,
    });
    match (requests.next(), requests.next()) {
        (Some(request), None) => Ok(request),
        (Some(_), Some(_)) => {
            Err(fault(what, "it holds more than one signing request", "sign one at a time"))
        }
        (None, _) => Err(fault(
            what,
            format!("it holds no signing request, but {held}"),
            "name the PEM file that phalanx node csr wrote",
        )),
    }
}

/// One block of a file.
#[cfg(feature = "authority")]
pub(super) enum Block {
    Certificate(CertificateDer<'static>),
    List(CertificateRevocationListDer<'static>),
    Request(Vec<u8>),
    Key(PrivateKeyDer<'static>),
}

/// All blocks of these kinds in a file that must hold at least one.
#[cfg(feature = "authority")]
pub(super) fn blocks(pem: &[u8], what: &str) -> Result<Vec<Block>, Error> {
    let items = items(pem, what, "openssl x509 -inform DER")?;
    let held = describe(&items);
    let blocks: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            Item::X509Certificate(der) => Some(Block::Certificate(der)),
            Item::Crl(der) => Some(Block::List(der)),
            Item::Csr(der) => Some(Block::Request(der.to_vec())),
            Item::Pkcs1Key(key) => Some(Block::Key(key.into())),
            Item::Pkcs8Key(key) => Some(Block::Key(key.into())),
            Item::Sec1Key(key) => Some(Block::Key(key.into())),
            _ => None,
        })
        .collect();
    if blocks.is_empty() {
        let remedy = "name a file with a certificate, revocation list, signing request or unencrypted key";
        return Err(fault(what, format!("nothing in it can be shown, it holds {held}"), remedy));
    }
    Ok(blocks)
}

fn items(pem: &[u8], what: &str, converter: &str) -> Result<Vec<Item>, Error> {
    if pem.iter().all(u8::is_ascii_whitespace) {
        return Err(fault(what, "it is empty", "name the right file"));
    }
    if !contains(pem, b"-----BEGIN ") {
        return Err(match pem[0] {
            0x30 => {
                fault(what, "it is DER, not PEM", format!("convert it: {converter} -in FILE -out FILE.pem"))
            }
            _ => fault(what, "it is not PEM", "name a file that has a -----BEGIN line"),
        });
    }
    rustls_pemfile::read_all(&mut &*pem).collect::<Result<_, _>>().map_err(|source| Error::Identity {
        what: what.into(),
        fault: format!("its PEM is damaged ({source})"),
        remedy: "copy the file anew".into(),
        source: Some(source.into()),
    })
}

/// What a file holds that holds nothing of what was looked for.
fn describe(items: &[Item]) -> &'static str {
    match items.first() {
        None => "only blocks of other kinds",
        Some(Item::X509Certificate(_)) => "a certificate",
        Some(Item::Pkcs1Key(_) | Item::Pkcs8Key(_) | Item::Sec1Key(_)) => "a private key",
        Some(Item::SubjectPublicKeyInfo(_)) => "a public key",
        Some(Item::Crl(_)) => "a revocation list",
        Some(Item::Csr(_)) => "a signing request",
        Some(_) => "something else",
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The PEM block of a private key, in the form in which it was read. Whoever asks wipes it.
pub(crate) fn encode_key(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    encode(label, key.secret_der())
}

/// One PEM block (RFC 7468).
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // With room for all of it: a text that grows leaves copies behind, and this one may be a secret.
    let mut text =
        String::with_capacity(2 * (label.len() + 20) + der.len().div_ceil(3) * 4 + der.len() / 48 + 1);
    let room = text.capacity();
    text += "-----BEGIN ";
    text += label;
    text += "-----\n";
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for digit in 0..4 {
                let symbol = ALPHABET[(bits >> (18 - 6 * digit) & 63) as usize];
                text.push(if digit > group.len() { '=' } else { char::from(symbol) });
            }
        }
        text.push('\n');
    }
    text += "-----END ";
    text += label;
    text += "-----\n";
    debug_assert_eq!(text.capacity(), room, "it was moved");
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..200))| {
            let text = encode("CERTIFICATE", &bytes);
            prop_assert!(text.lines().all(|line| line.len() <= 64));
            let back = certificates(text.as_bytes(), "x").unwrap();
            prop_assert_eq!(back[0].as_ref(), &bytes[..]);
        });
    }

    #[test]
    fn each_wrong_file_is_refused_by_name() {
        let certificate = encode("CERTIFICATE", b"abc");
        let key = encode("PRIVATE KEY", b"abc");
        let cases: [(&[u8], &str); 9] = [
            (b"", "it is empty"),
            (b" \n", "it is empty"),
            (b"\x30\x82\x01\x00", "it is DER, not PEM; convert it: openssl pkey -inform DER"),
            (b"hello", "it is not PEM"),
            (certificate.as_bytes(), "holds no private key, but a certificate"),
            (&encode("PUBLIC KEY", b"abc").into_bytes(), "holds no private key, but a public key"),
            (
                &encode("ENCRYPTED PRIVATE KEY", b"abc").into_bytes(),
                "it is encrypted; decrypt it: openssl pkey",
            ),
            (&key.as_bytes()[..key.len() - 20], "its PEM is damaged"),
            (&key.repeat(2).into_bytes(), "more than one private key"),
        ];
        for (pem, says) in cases {
            let error = private_key(pem, "private key k.pem").unwrap_err().to_string();
            assert!(error.starts_with("private key k.pem: ") && error.contains(says), "{says}: {error}");
        }
        let error = certificates(key.as_bytes(), "CA file").unwrap_err().to_string();
        assert!(error.contains("holds no certificate, but a private key"), "{error}");
        let error = revocation_lists(certificate.as_bytes(), "CRL").unwrap_err().to_string();
        assert!(error.contains("holds no revocation list, but a certificate"), "{error}");
    }
}
