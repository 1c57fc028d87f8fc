//! What an operator's files and a stranger's certificates hold: configuration, PEM, revocation lists, names.
//! Reads no file: what is configured by path is left out.

use std::{ffi::OsString, sync::LazyLock, time::Duration};

use rustls::pki_types::CertificateDer;

use crate::{
    Authority, Config, Error, Identity, NodeId,
    identity::{Policy, Role, SpiffeName, Trust, armour, armour_key, unix_time},
};

/// The longest text of an error: one that grows with its input would fill a log.
const ERROR_LEN_MAX: usize = 64 * 1024;

/// A TOML file, or the variables of an environment, a line each.
pub(super) fn config(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    let read = if first & 1 == 0 {
        Config::from_toml(&text)
    } else {
        let variables = text.lines().map(|line| {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            (OsString::from(name), OsString::from(value))
        });
        Config::default().with_variables(variables)
    };
    let mut config = match read {
        Ok(config) => config,
        Err(error) => return tells(&error),
    };
    // A file may name any other, and those are not here.
    config.tls = crate::TlsConfig::default();
    config.enabled = false;
    match config.check() {
        Ok(checked) => {
            assert!(config.ping_timeout < config.ping_interval && !config.gossip_interval.is_zero());
            assert!(config.tombstone_ttl <= Duration::from_secs(31_536_000));
            assert!(checked.seeds.len() <= config.seeds.len());
        }
        Err(error) => tells(&error),
    }
}

/// An authority's certificates, a certificate chain and a key, or a chain as a peer shows it.
pub(super) fn pem(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    match first % 4 {
        0 => {
            let text = String::from_utf8_lossy(bytes);
            let filled = filled(&text);
            let mut parts = filled.split('\x1c').map(str::as_bytes);
            let mut part = || parts.next().unwrap_or_default();
            assembled(part(), part(), part());
        }
        1 => assembled(&armoured("CERTIFICATE", bytes), &text_of("@CERT@"), &text_of("@KEY@")),
        2 => assembled(&text_of("@CA@"), &armoured("CERTIFICATE", bytes), &text_of("@KEY@")),
        _ => shown(bytes),
    }
}

fn assembled(ca: &[u8], cert: &[u8], key: &[u8]) {
    match Identity::from_pem(ca, cert, key) {
        Ok(identity) => {
            let name = SpiffeName::from_certificate(&identity.chain()[0]).expect("it was read before");
            assert_eq!(identity.cluster_name(), name.cluster);
            if let Err(error) = identity.check_usable(Policy::default(), OWN.now()) {
                tells(&error);
            }
        }
        Err(error) => tells(&error),
    }
}

/// A chain that a stranger shows at a handshake: each certificate behind its length. None but the authority's
/// own gets in.
fn shown(bytes: &[u8]) {
    let mut chain = Vec::new();
    let mut rest = bytes;
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let (certificate, after) = after.split_at(usize::from(u16::from_be_bytes(*len)).min(after.len()));
        chain.push(CertificateDer::from(certificate));
        rest = after;
    }
    for role in [Role::Dialler, Role::Dialled] {
        match OWN.trust.judge(&chain, role, unix_time(OWN.now())) {
            Ok(_) => assert!(chain.contains(&OWN.identity.chain()[0]), "a stranger got in"),
            Err(rejection) => assert!(rejection.reason.len() <= ERROR_LEN_MAX),
        }
    }
    if let Some(Ok(name)) = chain.first().map(SpiffeName::from_certificate) {
        assert_eq!(SpiffeName::parse(&name.to_string()), Ok(name));
    }
}

/// A revocation list, as a file holds it or inside its armour.
pub(super) fn crl(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let pem = match first % 2 {
        0 => filled(&String::from_utf8_lossy(bytes)).into_bytes(),
        _ => armoured("X509 CRL", bytes),
    };
    match OWN.identity.clone().with_crl_pem(&pem) {
        Ok(identity) => {
            assert_eq!(identity.crls().len(), 1, "one list of one authority");
            assert!(Trust::new(&identity, Policy::default()).is_ok(), "a list that was taken cannot be used");
            // The same once more is the same.
            let again = identity.clone().with_crl_pem(&pem);
            assert!(again.is_ok_and(|again| again.crls() == identity.crls()));
        }
        Err(error) => tells(&error),
    }
}

/// A name as a certificate may hold it, and bytes as a certificate.
pub(super) fn spiffe(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    if first & 1 == 1 {
        return match SpiffeName::from_certificate(&CertificateDer::from(bytes)) {
            Ok(name) => assert_eq!(SpiffeName::parse(&name.to_string()), Ok(name)),
            Err(fault) => assert!(fault.len() < 500 && !fault.contains(char::is_control), "{fault:?}"),
        };
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match SpiffeName::parse(text) {
        Ok(name) => assert_eq!(name.to_string(), text, "one name has one spelling"),
        Err(fault) => assert!(fault.len() < 500 && !fault.contains(char::is_control), "{fault:?}"),
    }
}

/// An error says something, and no more than can be read.
fn tells(error: &Error) {
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() <= ERROR_LEN_MAX, "an error of {} bytes", text.len());
}

/// Puts the node's own files where a text names them: a key in the repository would guard nothing, and would
/// still be one.
fn filled(text: &str) -> String {
    let mut filled = text.to_owned();
    for mark in ["@CA@", "@CERT@", "@KEY@", "@CRL@"] {
        if filled.contains(mark) {
            filled = filled.replacen(mark, &String::from_utf8_lossy(&text_of(mark)), 2);
        }
    }
    filled
}

fn armoured(label: &str, der: &[u8]) -> Vec<u8> {
    armour(label, der).into_bytes()
}

fn text_of(mark: &str) -> Vec<u8> {
    match mark {
        "@CA@" => OWN.ca.clone(),
        "@CERT@" => OWN.cert.clone(),
        "@KEY@" => OWN.key.clone(),
        _ => OWN.crl.clone(),
    }
}

/// An authority and a node of its own, made anew by each process: signatures differ from run to run, what comes
/// of an input does not.
pub(super) struct Own {
    pub(super) identity: Identity,
    trust: Trust,
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
    pub(super) crl: Vec<u8>,
}

pub(super) static OWN: LazyLock<Own> = LazyLock::new(|| own().expect("an authority can be made"));

impl Own {
    /// A day before the node's certificate ends.
    fn now(&self) -> std::time::SystemTime {
        self.identity.not_after() - Duration::from_secs(86_400)
    }
}

fn own() -> Result<Own, Error> {
    let authority = Authority::generate("edge")?;
    let identity = authority.issue(&NodeId::new("a")?)?;
    authority.revoke(&authority.issue(&NodeId::new("lost")?)?)?;
    let cert = identity.chain().iter().flat_map(|der| armoured("CERTIFICATE", der)).collect();
    Ok(Own {
        trust: Trust::new(&identity, Policy::default())?,
        ca: authority.ca_pem(),
        cert,
        key: identity.secret().map(armour_key).unwrap_or_default().into_bytes(),
        crl: authority.crl_pem(),
        identity,
    })
}
