//! Every refusal of a certificate, a key or a list, with its text; and that nothing hostile makes any of it
//! panic.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    fs,
    time::{Duration, UNIX_EPOCH},
};

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose as Eku, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::AlertDescription;

use super::{
    trust::{Rejection, unix_time},
    *,
};
use crate::driver::clock;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn authority() -> Authority {
    Authority::generate("edge").unwrap()
}

fn trust(identity: &Identity) -> Trust {
    Trust::new(identity, false).unwrap()
}

/// The verdict now, in both directions, which must be one.
fn judged(trust: &Trust, chain: &[CertificateDer<'_>]) -> Result<Peer, Rejection> {
    let now = unix_time(clock::wall_now());
    let server = trust.judge(chain, Role::Dialled, now);
    let client = trust.judge(chain, Role::Dialler, now);
    match (&server, &client) {
        (Ok(a), Ok(b)) => assert_eq!(a, b),
        (Err(a), Err(b)) => assert_eq!((a.kind, &a.reason), (b.kind, &b.reason)),
        (a, b) => panic!("{a:?} as the server, {b:?} as the client"),
    }
    server
}

fn refused(result: Result<Peer, Rejection>, kind: RejectionKind, alert: u8, says: &[&str]) {
    let rejection = result.unwrap_err();
    assert_eq!(rejection.kind, kind, "{rejection:?}");
    let rustls::Error::InvalidCertificate(error) = rejection.error else {
        panic!("{:?}", rejection.error);
    };
    assert_eq!(u8::from(AlertDescription::from(error)), alert, "{}", rejection.reason);
    for part in says {
        assert!(rejection.reason.contains(part), "{part:?} is not in: {}", rejection.reason);
    }
    assert!(!rejection.reason.contains(char::is_control), "{:?}", rejection.reason);
}

/// An authority that issues whatever it is asked for.
struct Anything(CertifiedIssuer<'static, KeyPair>);

impl Anything {
    fn new(name: &str) -> Self {
        Self::with_key(name, KeyPair::generate().unwrap())
    }

    fn with_key(name: &str, key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        self.leaf_and_key(change).0
    }

    fn leaf_and_key(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, KeyPair) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri("spiffe://edge/node/a")];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), key)
    }

    /// A node of the cluster `edge` that trusts this authority.
    fn trust(&self) -> Trust {
        trust(&self.identity(|_| {}))
    }

    fn identity(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let (leaf, key) = self.leaf_and_key(change);
        let cert = pem::encode("CERTIFICATE", &leaf);
        let ca = pem::encode("CERTIFICATE", self.0.der());
        Identity::from_pem(ca.as_bytes(), cert.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

// --- Who is let in

#[test]
fn what_an_authority_issues_is_let_in_in_both_roles() {
    let authority = authority();
    let (a, b) = (authority.issue(&id("lb-1")).unwrap(), authority.issue(&id("lb-2.fra")).unwrap());
    let peer = judged(&trust(&a), b.chain()).unwrap();
    assert_eq!((peer.cluster.as_str(), peer.node), ("edge", Some(id("lb-2.fra"))));
    assert_eq!(peer.not_after, b.not_after());
    assert_eq!(peer.serial.len(), 32);
    a.check_usable(false, clock::wall_now()).unwrap();
}

#[test]
fn serial_numbers_and_keys_are_never_used_twice() {
    let authority = authority();
    let (a, b) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("a")).unwrap());
    assert_ne!(a.own.serial, b.own.serial);
    assert_ne!(a.key().secret_der(), b.key().secret_der());
}

#[test]
fn no_certificate_is_refused() {
    let rejection = judged(&authority().issue(&id("a")).map(|a| trust(&a)).unwrap(), &[]).unwrap_err();
    assert_eq!(rejection.kind, RejectionKind::NoCertificate);
    assert!(matches!(rejection.error, rustls::Error::NoCertificatesPresented));
}

#[test]
fn expired_and_not_yet_valid_certificates_are_refused_with_both_clocks() {
    let authority = authority();
    let now = clock::wall_now();
    let here = trust(&authority.issue(&id("a")).unwrap());
    let at = |from, to| authority.issue_for(&id("b"), Validity::between(from, to)).unwrap();

    let old = at(now - 2 * DAY, now - DAY);
    let says = [x509::written(now - DAY), x509::written(now)].map(|time| time[..14].to_owned());
    refused(
        judged(&here, old.chain()),
        RejectionKind::Expired,
        45,
        &["spiffe://edge/node/b", "expired at", &says[0], "the clock here says", &says[1]],
    );
    let early = at(now + HOUR, now + DAY);
    refused(
        judged(&here, early.chain()),
        RejectionKind::NotYetValid,
        45,
        &["is valid from", "the clock here says"],
    );

    let error = old.check_usable(false, now).unwrap_err().to_string();
    assert!(error.contains("it expired at") && error.contains("the clock says"), "{error}");
    let error = early.check_usable(false, now).unwrap_err().to_string();
    assert!(error.contains("valid from"), "{error}");
}

#[test]
fn an_expired_issuer_below_the_root_is_refused() {
    let root = Anything::new("root");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "below");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let below = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &root.0).unwrap();
    let below_der = below.der().clone();
    let leaf = Anything(below).leaf(|_| {});
    refused(
        judged(&root.trust(), &[leaf.clone(), below_der]),
        RejectionKind::Expired,
        45,
        &["or an issuer of it"],
    );
    refused(judged(&root.trust(), &[leaf]), RejectionKind::UnknownIssuer, 48, &[]);
}

#[test]
fn another_authority_is_refused_even_under_the_same_name() {
    let (a, b) = (Anything::new("one"), Anything::new("two"));
    refused(
        judged(&a.trust(), &[b.leaf(|_| {})]),
        RejectionKind::UnknownIssuer,
        48,
        &["certificate of spiffe://edge/node/a", "no certificate authority trusted here"],
    );
    let twin = Anything::new("one");
    refused(judged(&a.trust(), &[twin.leaf(|_| {})]), RejectionKind::UnknownIssuer, 51, &["did not sign it"]);
    let stranger = Authority::generate("edge").unwrap().issue(&id("b")).unwrap();
    let here = trust(&authority().issue(&id("a")).unwrap());
    refused(judged(&here, stranger.chain()), RejectionKind::UnknownIssuer, 48, &[]);
}

#[test]
fn a_self_signed_certificate_is_refused() {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://edge/node/a")];
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
    let own = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    refused(
        judged(&Anything::new("one").trust(), &[own.der().clone()]),
        RejectionKind::UnknownIssuer,
        48,
        &[],
    );
}

#[test]
fn another_cluster_is_refused_by_both_names() {
    let ca = Anything::new("one");
    for other in ["core", "edge2", "edg", "edge.", "e"] {
        let leaf = ca.leaf(|leaf| leaf.subject_alt_names = vec![uri(&format!("spiffe://{other}/node/a"))]);
        let other = format!("{other:?}");
        refused(judged(&ca.trust(), &[leaf]), RejectionKind::Cluster, 49, &[&other, "this node of \"edge\""]);
    }
}

#[test]
fn exactly_one_readable_uri_names_a_node() {
    let ca = Anything::new("one");
    let named = |names: Vec<SanType>| ca.leaf(|leaf| leaf.subject_alt_names = names);
    let dns = || SanType::DnsName("phalanx.cluster".try_into().unwrap());
    let node = || uri("spiffe://edge/node/a");
    assert!(judged(&ca.trust(), &[named(vec![dns(), node()])]).is_ok());
    for (leaf, says) in [
        (named(vec![]), "no URI"),
        (named(vec![dns()]), "no URI"),
        (named(vec![node(), node()]), "2 URIs"),
        (named(vec![node(), uri("https://example.com/")]), "2 URIs"),
        (named(vec![uri("SPIFFE://edge/node/a")]), "does not begin with spiffe://"),
        (named(vec![uri("spiffe://edge/node/")]), "node id"),
        (named(vec![uri("spiffe://edge/node/..")]), "node id"),
        (named(vec![uri("spiffe://EDGE/node/a")]), "'E' is not allowed"),
        (named(vec![uri("spiffe://edge/node/a\n\u{7f}")]), r"\n\u{7f}"),
        (named(vec![uri("spiffe://edge")]), "names no node"),
    ] {
        refused(judged(&ca.trust(), &[leaf]), RejectionKind::Name, 49, &[says]);
    }
}

#[test]
fn a_second_name_cannot_hide_behind_bytes_that_one_parser_skips() {
    let ca = Anything::new("one");
    let hidden = b"spiffe://edge/node/\xff".to_vec();
    for (tag, says) in [(0x86, "cannot be read"), (0x82, "cannot be read"), (0xa9, "")] {
        let mut names = vec![0x86, 20];
        names.extend(b"spiffe://edge/node/a");
        names.extend([tag, u8::try_from(hidden.len()).unwrap()]);
        names.extend(&hidden);
        let mut content = vec![0x30, u8::try_from(names.len()).unwrap()];
        content.extend(names);
        let leaf = ca.leaf(|leaf| {
            leaf.subject_alt_names.clear();
            leaf.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], content)];
        });
        assert!(SpiffeName::from_certificate(&leaf).unwrap_err().contains(says), "{tag:x}");
        assert!(judged(&ca.trust(), &[leaf]).is_err(), "{tag:x}");
    }
}

#[test]
fn a_shared_certificate_enters_only_where_that_is_on() {
    let authority = authority();
    let shared = authority.issue_shared().unwrap();
    assert_eq!((shared.node_id(), shared.cluster_name()), (None, "edge"));
    let own = authority.issue(&id("a")).unwrap();
    refused(
        judged(&trust(&own), shared.chain()),
        RejectionKind::Name,
        49,
        &["tls.shared-certificate is off here"],
    );
    let open = Trust::new(&own, true).unwrap();
    assert_eq!(judged(&open, shared.chain()).unwrap().node, None);
    assert!(shared.check_usable(true, clock::wall_now()).is_ok());
    let error = shared.check_usable(false, clock::wall_now()).unwrap_err().to_string();
    assert!(error.contains("tls.shared-certificate"), "{error}");
}

#[test]
fn a_certificate_serves_only_the_purposes_it_names() {
    let ca = Anything::new("one");
    let here = ca.trust();
    let now = unix_time(clock::wall_now());
    let with = |purposes: Vec<Eku>| [ca.leaf(|leaf| leaf.extended_key_usages = purposes)];

    let server = with(vec![Eku::ServerAuth]);
    assert!(here.judge(&server, Role::Dialled, now).is_ok());
    assert!(here.judge(&server, Role::Signer, now).is_ok());
    refused(here.judge(&server, Role::Dialler, now), RejectionKind::Purpose, 43, &["lacks clientAuth"]);

    let client = with(vec![Eku::ClientAuth]);
    assert!(here.judge(&client, Role::Dialler, now).is_ok());
    assert!(here.judge(&client, Role::Signer, now).is_ok());
    refused(here.judge(&client, Role::Dialled, now), RejectionKind::Purpose, 43, &["lacks serverAuth"]);

    for purposes in [vec![], vec![Eku::CodeSigning], vec![Eku::Any]] {
        let leaf = with(purposes);
        for role in [Role::Dialled, Role::Dialler, Role::Signer] {
            refused(here.judge(&leaf, role, now), RejectionKind::Purpose, 43, &["extended key usage"]);
        }
    }
    let mute = ca.leaf(|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
    refused(judged(&here, &[mute]), RejectionKind::Purpose, 43, &["digitalSignature"]);
}

#[test]
fn an_authority_is_no_node() {
    let ca = Anything::new("one");
    let leaf = ca.leaf(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    refused(judged(&ca.trust(), &[leaf]), RejectionKind::Malformed, 46, &["breaks a rule of X.509"]);
}

#[test]
fn weak_keys_and_signatures_are_refused_by_name() {
    use super::weak_certificates::{CA, P224, RSA1024, SHA1};

    let own = Anything::new("one").identity(|_| {});
    let cert = pem::encode("CERTIFICATE", &own.chain()[0]);
    let here = Identity::from_pem(CA, cert.as_bytes(), pem::encode_key(own.key()).as_bytes()).unwrap();
    let here = trust(&here);
    for (pem_text, alert, says) in
        [(RSA1024, 46, "RSA of 1024 bits"), (P224, 46, "P-224"), (SHA1, 51, "SHA-1 and ECDSA")]
    {
        let chain = pem::certificates(pem_text, "x").unwrap();
        refused(judged(&here, &chain), RejectionKind::Algorithm, alert, &[says]);
    }
    let error =
        Identity::from_pem(CA, RSA1024, pem::encode_key(own.key()).as_bytes()).unwrap_err().to_string();
    assert!(error.contains("RSA of 1024 bits"), "{error}");
}

#[test]
fn a_chain_of_any_length_is_bounded() {
    let ca = Anything::new("one");
    let leaf = ca.leaf(|_| {});
    refused(judged(&ca.trust(), &vec![leaf; 1000]), RejectionKind::Malformed, 48, &["more than 8"]);
}

// --- Revocation

#[test]
fn a_revoked_certificate_is_refused_in_every_role() {
    let authority = authority();
    let (a, b, c) = (
        authority.issue(&id("a")).unwrap(),
        authority.issue(&id("b")).unwrap(),
        authority.issue(&id("c")).unwrap(),
    );
    assert!(judged(&trust(&a), b.chain()).is_ok());
    authority.revoke(&b).unwrap();
    assert!(judged(&trust(&a), b.chain()).is_ok(), "a has no list");
    let a = a.with_crl_pem(&authority.crl_pem()).unwrap();
    refused(judged(&trust(&a), b.chain()), RejectionKind::Revoked, 44, &["spiffe://edge/node/b", "revoked"]);
    refused(
        trust(&a).judge(b.chain(), Role::Signer, unix_time(clock::wall_now())),
        RejectionKind::Revoked,
        44,
        &[],
    );
    assert!(judged(&trust(&a), c.chain()).is_ok());
    let d = authority.issue(&id("d")).unwrap();
    refused(judged(&trust(&d), b.chain()), RejectionKind::Revoked, 44, &[]); // its list came with it
}

#[test]
fn an_older_list_never_takes_the_place_of_a_newer_one() {
    let authority = authority();
    let (a, b) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("b")).unwrap());
    let old = authority.crl_pem();
    authority.revoke(&b).unwrap();
    let new = authority.crl_pem();

    let error = a.clone().with_crl_pem(&new).unwrap().with_crl_pem(&old).unwrap_err().to_string();
    assert!(error.contains("is older than"), "{error}");
    for both in [[&old[..], &new].concat(), [&new[..], &old].concat()] {
        let a = a.clone().with_crl_pem(&both).unwrap();
        assert_eq!(a.crls().len(), 1);
        refused(judged(&trust(&a), b.chain()), RejectionKind::Revoked, 44, &[]);
    }
    let a_new = a.clone().with_crl_pem(&old).unwrap().with_crl_pem(&new).unwrap().with_crl_pem(&new).unwrap();
    refused(judged(&trust(&a_new), b.chain()), RejectionKind::Revoked, 44, &[]);

    let error = a.clone().with_crl_pem(&old).unwrap().check_successor(&a_new).unwrap_err().to_string();
    assert!(error.contains("is older than"), "{error}");
    assert!(a_new.check_successor(&a).is_ok());
}

#[test]
fn an_authority_without_a_list_revokes_nothing_while_another_has_one() {
    let (old, new) = (authority(), authority());
    let ca = [old.ca_pem(), new.ca_pem()].concat();
    let mine = old.issue(&id("a")).unwrap();
    let (bad, good) = (old.issue(&id("bad")).unwrap(), new.issue(&id("good")).unwrap());
    old.revoke(&bad).unwrap();
    let cert = pem::encode("CERTIFICATE", &mine.chain()[0]);
    let bundle = Identity::from_pem(&ca, cert.as_bytes(), pem::encode_key(mine.key()).as_bytes()).unwrap();
    let here = trust(&bundle.with_crl_pem(&old.crl_pem()).unwrap());
    refused(judged(&here, bad.chain()), RejectionKind::Revoked, 44, &[]);
    assert!(judged(&here, good.chain()).is_ok());
}

#[test]
fn the_list_of_an_issuer_below_the_root_counts() {
    let root = Anything::new("root");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "below");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let below = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &root.0).unwrap();
    let below_der = below.der().clone();
    let below = Anything(below);
    let (leaf, key) = below.leaf_and_key(serial(1));
    let cert: String = [&leaf, &below_der, root.0.der()].map(|der| pem::encode("CERTIFICATE", der)).concat();
    let here =
        Identity::from_pem(root.0.pem().as_bytes(), cert.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    assert_eq!(here.chain(), [leaf, below_der.clone()], "the root is not sent");
    here.check_usable(false, clock::wall_now()).unwrap();
    let here = trust(&here.with_crl_pem(list(&below, &[2]).as_bytes()).unwrap());
    let gone = [below.leaf(serial(2)), below_der.clone()];
    refused(judged(&here, &gone), RejectionKind::Revoked, 44, &[]);
    assert!(judged(&here, &[below.leaf(serial(3)), below_der]).is_ok());
    assert!(judged(&here, &[root.leaf(serial(2))]).is_ok(), "another issuer's number");
}

fn serial(n: u8) -> impl FnOnce(&mut CertificateParams) {
    move |leaf| leaf.serial_number = Some(vec![n].into())
}

/// A revocation list with one entry.
fn list(ca: &Anything, serial: &[u8]) -> String {
    let params = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2027, 1, 1),
        crl_number: 7_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(serial),
            revocation_time: rcgen::date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    params.signed_by(&ca.0).unwrap().pem().unwrap()
}

#[test]
fn two_keys_of_one_authority_name_each_have_their_list() {
    let (old, new) = (Anything::new("one"), Anything::new("one"));
    let (own, key) = old.leaf_and_key(serial(9));
    let ca = [old.0.pem(), new.0.pem()].concat();
    let cert = pem::encode("CERTIFICATE", &own);
    let here = Identity::from_pem(ca.as_bytes(), cert.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let lists = [list(&old, &[1]), list(&new, &[2])];
    for lists in [lists.concat(), lists.iter().rev().cloned().collect()] {
        let here = here.clone().with_crl_pem(lists.as_bytes()).unwrap();
        assert_eq!(here.crls().len(), 2);
        let here = trust(&here);
        for (ca, revoked, kept) in [(&old, 1, 2), (&new, 2, 1)] {
            refused(judged(&here, &[ca.leaf(serial(revoked))]), RejectionKind::Revoked, 44, &[]);
            assert!(judged(&here, &[ca.leaf(serial(kept))]).is_ok());
        }
    }
}

#[test]
fn a_list_under_another_name_is_refused_though_the_key_is_the_same() {
    let key = KeyPair::generate().unwrap();
    let twin = KeyPair::try_from(key.serialize_der()).unwrap();
    let (ca, renamed) = (Anything::with_key("one", key), Anything::with_key("two", twin));
    let error = ca.identity(|_| {}).with_crl_pem(list(&renamed, &[1]).as_bytes()).unwrap_err().to_string();
    assert!(error.contains("signed it"), "webpki would never find it: {error}");
}

#[test]
fn a_list_that_cannot_be_used_is_refused_at_loading() {
    let authority = authority();
    let a = authority.issue(&id("a")).unwrap();
    let good = pem::revocation_lists(&authority.crl_pem(), "x").unwrap().remove(0).to_vec();
    let load = |der: &[u8]| a.clone().with_crl_pem(pem::encode("X509 CRL", der).as_bytes());
    for cut in 0..good.len() {
        assert!(load(&good[..cut]).is_err(), "cut at {cut}");
        let mut changed = good.clone();
        changed[cut] ^= 0x04;
        assert!(load(&changed).is_err(), "changed at {cut}");
    }
    assert!(load(&good).is_ok());
    let foreign = Authority::generate("edge").unwrap().crl_pem();
    let error = a.clone().with_crl_pem(&foreign).unwrap_err().to_string();
    assert!(error.contains("none of the identity's certificate authorities signed it"), "{error}");
    let error = a.clone().with_crl_pem(&vec![b' '; (16 << 20) + 1]).unwrap_err().to_string();
    assert!(error.contains("more than 16777216 bytes"), "{error}");
}

#[test]
fn a_list_with_empty_reasons_is_refused_without_panic() {
    // onlySomeReasons [3] as an empty BIT STRING has made parsers panic.
    let ca = Anything::new("one");
    let params = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2027, 1, 1),
        crl_number: 7_u64.into(),
        issuing_distribution_point: Some(rcgen::CrlIssuingDistributionPoint {
            distribution_point: rcgen::CrlDistributionPoint { uris: vec!["http://x/".into()] },
            scope: Some(rcgen::CrlScope::UserCertsOnly),
        }),
        revoked_certs: vec![],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let der = params.signed_by(&ca.0).unwrap().der().to_vec();
    let scope = der.windows(3).position(|part| part == [0x81, 0x01, 0xff]).unwrap();
    for reasons in [[0x83, 0x01, 0x00], [0x83, 0x01, 0xff], [0xa3, 0x01, 0x00]] {
        let mut der = der.clone();
        der[scope..scope + 3].copy_from_slice(&reasons);
        assert!(ca.identity(|_| {}).with_crl_pem(pem::encode("X509 CRL", &der).as_bytes()).is_err());
    }
}

// --- Identity from files

#[test]
fn an_identity_written_is_the_identity_read() {
    let authority = authority();
    authority.revoke(&authority.issue(&id("gone")).unwrap()).unwrap();
    let identity = authority.issue(&id("lb-1")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let paths = identity.write_to(dir.path().join("new/dir")).unwrap();
    let back = Identity::from_pem_files(&paths.ca, &paths.cert, &paths.key).unwrap();
    let back = back.with_crl_file(paths.crl.unwrap()).unwrap();
    assert_eq!(back.key().secret_der(), identity.key().secret_der());
    assert_eq!(
        (back.chain(), back.roots(), back.crls()),
        (identity.chain(), identity.roots(), identity.crls())
    );
    assert_eq!(back.node_id(), Some(id("lb-1")));
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let authority = authority();
    let parts = |identity: &Identity| {
        (
            pem::encode("CERTIFICATE", &identity.chain()[0]).into_bytes(),
            pem::encode_key(identity.key()).into_bytes(),
        )
    };
    let ((cert_a, key_a), (cert_b, _)) =
        (parts(&authority.issue(&id("a")).unwrap()), parts(&authority.issue(&id("b")).unwrap()));
    let ca = authority.ca_pem();
    let no_name = Anything::new("one");
    let (no_name_cert, no_name_key) = no_name.leaf_and_key(|leaf| leaf.subject_alt_names.clear());
    let no_name_cert = pem::encode("CERTIFICATE", &no_name_cert).into_bytes();
    for (ca, cert, key, says) in [
        (&ca, &cert_b, &key_a, "private key: it does not belong to the certificate"),
        (&cert_a, &cert_a, &key_a, "CA file: certificate 1 in it: it is not a certificate authority's"),
        (&[&ca[..], &cert_a].concat(), &cert_a, &key_a, "CA file: certificate 2 in it: it is not"),
        (&key_a, &cert_a, &key_a, "CA file: it holds no certificate, but a private key"),
        (&ca, &key_a, &key_a, "certificate: it holds no certificate, but a private key"),
        (&ca, &cert_a, &cert_a, "private key: it holds no private key, but a certificate"),
        (&ca, &no_name_cert, &no_name_key.serialize_pem().into_bytes(), "certificate: it has no URI"),
        (
            &ca,
            &pem::encode("CERTIFICATE", b"x").into_bytes(),
            &key_a,
            "certificate: it is no readable certificate",
        ),
        (
            &pem::encode("CERTIFICATE", b"x").into_bytes(),
            &cert_a,
            &key_a,
            "CA file: certificate 1 in it: it cannot",
        ),
        (&ca, &cert_a, &pem::encode("PRIVATE KEY", b"x").into_bytes(), "private key: it cannot be used"),
    ] {
        let error = Identity::from_pem(ca, cert, key).unwrap_err().to_string();
        assert!(error.starts_with(says), "{says}: {error}");
        assert!(error.contains("; "), "a remedy: {error}");
    }
}

#[test]
#[cfg(unix)]
fn a_key_file_that_is_none_or_open_to_others_is_refused() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let paths = authority().issue(&id("a")).unwrap().write_to(dir.path()).unwrap();
    let load = || Identity::from_pem_files(&paths.ca, &paths.cert, &paths.key);
    let says = |text: &str| {
        let error = load().unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(&paths.key.display().to_string()), "{text}: {error}");
    };
    assert_eq!(fs::metadata(&paths.key).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&paths.key, fs::Permissions::from_mode(0o644)).unwrap();
    says(&format!("run: chmod 600 {}", paths.key.display()));
    fs::set_permissions(&paths.key, fs::Permissions::from_mode(0o600)).unwrap();
    load().unwrap();
    fs::write(&paths.key, "").unwrap();
    says("it is empty");
    fs::write(&paths.key, pem::encode("ENCRYPTED PRIVATE KEY", b"x")).unwrap();
    says("it is encrypted; decrypt it: openssl pkey");
    fs::write(&paths.key, [0x30, 0x82, 0x01, 0x00]).unwrap();
    says("it is DER, not PEM");
    fs::write(&paths.key, pem::encode("PUBLIC KEY", b"x")).unwrap();
    says("it holds no private key, but a public key");
    fs::remove_file(&paths.key).unwrap();
    says("cannot read");
    fs::create_dir(&paths.key).unwrap();
    says("it is a directory");
    fs::remove_dir(&paths.key).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&paths.key).status().unwrap().success());
    says("it is not a regular file");
}

#[test]
fn a_node_does_not_start_where_its_own_roots_refuse_it() {
    let (mine, theirs) = (authority(), authority());
    let own = mine.issue(&id("a")).unwrap();
    let cert = pem::encode("CERTIFICATE", &own.chain()[0]);
    let key = pem::encode_key(own.key());
    let torn = Identity::from_pem(&theirs.ca_pem(), cert.as_bytes(), key.as_bytes()).unwrap();
    let error = torn.check_usable(false, clock::wall_now()).unwrap_err().to_string();
    assert!(error.contains("no certificate authority trusted here issued it"), "{error}");
    let later = clock::wall_now() + 4_000 * DAY;
    let long = mine.issue_for(&id("a"), Validity::days(5_000)).unwrap();
    let error = long.check_usable(false, later).unwrap_err().to_string();
    assert!(error.contains("all its certificates have expired"), "{error}");
}

#[test]
fn another_node_or_cluster_is_no_successor() {
    let authority = authority();
    let a = authority.issue(&id("a")).unwrap();
    assert!(authority.issue(&id("a")).unwrap().check_successor(&a).is_ok());
    let other = Authority::generate("core").unwrap();
    for wrong in [authority.issue(&id("b")), authority.issue_shared(), other.issue(&id("a"))] {
        let error = wrong.unwrap().check_successor(&a).unwrap_err().to_string();
        assert!(error.contains("runs as spiffe://edge/node/a"), "{error}");
    }
}

#[test]
fn no_debug_text_holds_a_key() {
    let authority = authority();
    let identity = authority.issue(&id("a")).unwrap();
    let error = Identity::from_pem(&authority.ca_pem(), b"x", &pem::encode_key(identity.key()).into_bytes());
    let texts = format!(
        "{identity:?} {identity:#?} {authority:?} {error:?} {:?} {:?}",
        Signer::new(&identity).unwrap(),
        trust(&identity)
    );
    let secret = identity.key().secret_der();
    let base64: String = pem::encode_key(identity.key()).lines().nth(1).unwrap().into();
    assert!(!texts.contains(&base64[20..40]), "{texts}");
    let decimal = format!("{:?}", &secret[40..48]);
    assert!(!texts.contains(decimal.trim_matches(['[', ']'])), "{texts}");
    assert!(texts.contains("spiffe://edge/node/a"));
}

// --- Authority

#[test]
fn an_authority_survives_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = authority();
    let gone = first.issue(&id("gone")).unwrap();
    first.revoke(&gone).unwrap();
    first.write_to(dir.path()).unwrap();

    let second = Authority::load(dir.path()).unwrap();
    assert_eq!(second.cluster_name(), "edge");
    assert_eq!(second.crl_pem(), first.crl_pem());
    let kept = second.issue(&id("kept")).unwrap();
    refused(judged(&trust(&kept), gone.chain()), RejectionKind::Revoked, 44, &[]);
    second.revoke(&kept).unwrap();
    second.write_to(dir.path()).unwrap();

    let here = trust(&Authority::load(dir.path()).unwrap().issue(&id("here")).unwrap());
    for revoked in [&gone, &kept] {
        refused(judged(&here, revoked.chain()), RejectionKind::Revoked, 44, &[]);
    }
    let error = first.write_to(dir.path()).unwrap_err().to_string();
    assert!(error.contains("holds a newer revocation list"), "{error}");
    let error = authority().write_to(dir.path()).unwrap_err().to_string();
    assert!(error.contains("holds the key of another authority"), "{error}");
}

#[test]
fn list_numbers_only_grow() {
    let number = |authority: &Authority| {
        let list = pem::revocation_lists(&authority.crl_pem(), "x").unwrap().remove(0);
        x509::list_facts(&list).unwrap().count().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut authority = authority();
    let mut before = number(&authority);
    let now = clock::wall_now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(before <= now && now - before < 60, "begins at the clock");
    for at in 0..4 {
        let identity = authority.issue(&id(&format!("n{at}"))).unwrap();
        authority.revoke(&identity).unwrap();
        let after = number(&authority);
        assert!(after > before);
        authority.revoke(&identity).unwrap();
        assert_eq!(number(&authority), after, "revoking twice changes nothing");
        before = after;
        authority.write_to(dir.path()).unwrap();
        authority = Authority::load(dir.path()).unwrap();
    }
}

#[test]
fn an_authority_revokes_only_its_own() {
    let error = authority().revoke(&authority().issue(&id("a")).unwrap()).unwrap_err().to_string();
    assert!(error.contains("this authority did not issue it"), "{error}");
}

#[test]
fn a_damaged_directory_is_no_authority() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let write = || {
        let _ = fs::remove_dir_all(&ours);
        authority().write_to(&ours).unwrap();
    };
    authority().write_to(&theirs).unwrap();
    let fails = |says: &str| {
        let error = Authority::load(&ours).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    };
    for file in ["ca.pem", "ca.key", "crl.pem"] {
        write();
        fs::remove_file(ours.join(file)).unwrap();
        fails("cannot read");
    }
    write();
    fs::copy(theirs.join("ca.key"), ours.join("ca.key")).unwrap();
    fails("it does not belong to the CA file");
    write();
    fs::copy(theirs.join("crl.pem"), ours.join("crl.pem")).unwrap();
    fails("signed it");
    write();
    fs::write(ours.join("ca.pem"), Anything::new("one").0.pem()).unwrap();
    fails("does not name its cluster");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        write();
        assert_eq!(fs::metadata(ours.join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(ours.join("ca.key"), fs::Permissions::from_mode(0o604)).unwrap();
        fails("run: chmod 600");
    }
}

#[test]
fn a_validity_that_no_certificate_can_carry_is_refused() {
    let authority = authority();
    let now = clock::wall_now();
    for (validity, says) in [
        (Validity::between(now, now - HOUR), "ends before it begins"),
        (Validity::between(UNIX_EPOCH - HOUR, now), "1970 to 9999"),
        (Validity::days(u32::MAX), "1970 to 9999"),
    ] {
        let error = authority.issue_for(&id("a"), validity).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let week = authority.issue_for(&id("a"), Validity::days(7)).unwrap();
    assert!(week.not_after() < now + 8 * DAY);
    week.check_usable(false, now).unwrap();
}

#[test]
fn cluster_names_are_checked() {
    for bad in ["", "Edge", "a/b", "a b", &"c".repeat(256)] {
        assert!(matches!(Authority::generate(bad), Err(Error::InvalidClusterName { .. })), "{bad:?}");
    }
    assert!(Authority::generate("c".repeat(255)).unwrap().issue(&id("a")).is_ok());
}

// --- certs/README.md

#[test]
#[cfg(unix)]
fn the_openssl_commands_of_the_readme_make_identities_that_trust_one_another() {
    use std::process::Command;

    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("skipped: no openssl here");
        return;
    }
    let readme = include_str!("../../certs/README.md");
    let chapter = readme.split("\n## openssl\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let blocks: Vec<_> =
        chapter.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
    let [ca, node, list] = blocks[..] else { panic!("{} blocks", blocks.len()) };
    let dir = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        let output = Command::new("sh").arg("-ec").arg(script).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    };
    run(ca);
    run(node);
    run(&node.replace("lb-1", "lb-2"));
    let path = |name: &str| dir.path().join(name);
    let load = |node: &str| {
        let (cert, key) = (path(&format!("{node}.pem")), path(&format!("{node}.key")));
        Identity::from_pem_files(path("ca.pem"), cert, key).unwrap()
    };
    let (a, b) = (load("lb-1"), load("lb-2"));
    assert_eq!((a.cluster_name(), a.node_id()), ("edge", Some(id("lb-1"))));
    for (here, there) in [(&a, &b), (&b, &a)] {
        here.check_usable(false, clock::wall_now()).unwrap();
        assert_eq!(judged(&trust(here), there.chain()).unwrap().node, there.node_id());
    }
    run(list);
    let a = a.with_crl_file(path("crl.pem")).unwrap();
    refused(judged(&trust(&a), b.chain()), RejectionKind::Revoked, 44, &[]);

    let taken_over = Authority::load(dir.path()).unwrap();
    let c = taken_over.issue(&id("lb-3")).unwrap();
    assert!(judged(&trust(&a), c.chain()).is_ok());
    refused(judged(&trust(&c), b.chain()), RejectionKind::Revoked, 44, &[]);
    taken_over.revoke(&c).unwrap();
    let a = a.with_crl_pem(&taken_over.crl_pem()).unwrap();
    refused(judged(&trust(&a), c.chain()), RejectionKind::Revoked, 44, &[]);
    refused(judged(&trust(&a), b.chain()), RejectionKind::Revoked, 44, &[]);
}

// --- Claims

#[test]
fn a_claim_is_believed_only_from_the_node_that_signed_it() {
    let authority = authority();
    let (a, b) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("b")).unwrap());
    let here = trust(&b);
    let signer = Signer::new(&a).unwrap();
    let (chain, signature) = (signer.chain(), signer.sign(b"I am here").unwrap());
    assert_eq!(signature[..2], [0x04, 0x03]); // ecdsa_secp256r1_sha256
    assert!(here.verify_claim(&id("a"), &chain, b"I am here", &signature));
    assert!(!here.verify_claim(&id("b"), &chain, b"I am here", &signature));
    assert!(!here.verify_claim(&id("a"), &chain, b"I am gone", &signature));
    assert!(!here.verify_claim(&id("a"), &Signer::new(&b).unwrap().chain(), b"I am here", &signature));
    for cut in 0..chain.len() {
        assert!(!here.verify_claim(&id("a"), &chain[..cut], b"I am here", &signature));
    }
    for cut in 0..signature.len() {
        assert!(!here.verify_claim(&id("a"), &chain, b"I am here", &signature[..cut]));
    }
    let other_scheme = [&[0x08, 0x07], &signature[2..]].concat();
    assert!(!here.verify_claim(&id("a"), &chain, b"I am here", &other_scheme));
    let stranger = trust(&Authority::generate("edge").unwrap().issue(&id("b")).unwrap());
    assert!(!stranger.verify_claim(&id("a"), &chain, b"I am here", &signature));
    // What follows the chain is not looked at, but its length is.
    let longer = |length: u16| {
        let zeros = vec![0; usize::from(length)];
        [&chain[..], &length.to_be_bytes(), &zeros].concat()
    };
    assert!(here.verify_claim(&id("a"), &longer(10), b"I am here", &signature));
    assert!(!here.verify_claim(&id("a"), &longer(16 * 1024), b"I am here", &signature));
    assert!(!here.verify_claim(&id("a"), &vec![0; 20_000], b"I am here", &signature));
}

#[test]
fn a_claim_is_signed_as_tls_1_3_signs() {
    use rustls::{SignatureScheme, crypto::aws_lc_rs};

    let ca = Anything::new("one");
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://edge/node/a")];
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
    let leaf = params.signed_by(&key, &ca.0).unwrap();
    let (cert, key) = (leaf.pem(), key.serialize_pem());
    let identity = Identity::from_pem(ca.0.pem().as_bytes(), cert.as_bytes(), key.as_bytes()).unwrap();
    let signer = Signer::new(&identity).unwrap();
    let here = ca.trust();
    assert!(here.verify_claim(&id("a"), &signer.chain(), b"m", &signer.sign(b"m").unwrap()));

    let old = SignatureScheme::RSA_PKCS1_SHA256;
    let key = aws_lc_rs::sign::any_supported_type(identity.key()).unwrap();
    let signature = key.choose_scheme(&[old]).unwrap().sign(b"m").unwrap();
    let signature = [&u16::from(old).to_be_bytes()[..], &signature].concat();
    assert!(!here.verify_claim(&id("a"), &signer.chain(), b"m", &signature));
}

#[test]
fn a_claim_outlives_its_certificate_but_not_its_revocation() {
    let authority = authority();
    let now = clock::wall_now();
    let here = authority.issue(&id("b")).unwrap();
    for (from, to) in [(now - 2 * DAY, now - DAY), (now + DAY, now + 2 * DAY)] {
        let other = authority.issue_for(&id("a"), Validity::between(from, to)).unwrap();
        let signer = Signer::new(&other).unwrap();
        let signature = signer.sign(b"m").unwrap();
        assert!(trust(&here).verify_claim(&id("a"), &signer.chain(), b"m", &signature));
        authority.revoke(&other).unwrap();
        let warned = here.clone().with_crl_pem(&authority.crl_pem()).unwrap();
        assert!(!trust(&warned).verify_claim(&id("a"), &signer.chain(), b"m", &signature));
    }
}

#[test]
fn a_shared_certificate_speaks_for_any_node_only_where_that_is_on() {
    let authority = authority();
    let own = authority.issue(&id("b")).unwrap();
    let signer = Signer::new(&authority.issue_shared().unwrap()).unwrap();
    let signature = signer.sign(b"m").unwrap();
    assert!(!trust(&own).verify_claim(&id("x"), &signer.chain(), b"m", &signature));
    let open = Trust::new(&own, true).unwrap();
    assert!(open.verify_claim(&id("x"), &signer.chain(), b"m", &signature));
    assert!(open.verify_claim(&id("y"), &signer.chain(), b"m", &signature));
}

#[test]
fn a_claim_of_another_cluster_is_refused() {
    let ca = Anything::new("one");
    let other = ca.identity(|leaf| leaf.subject_alt_names = vec![uri("spiffe://core/node/a")]);
    let signer = Signer::new(&other).unwrap();
    assert!(!ca.trust().verify_claim(&id("a"), &signer.chain(), b"m", &signer.sign(b"m").unwrap()));
}

#[test]
fn no_bytes_make_a_parser_or_a_judge_panic() {
    let authority = authority();
    let (a, b) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("b")).unwrap());
    authority.revoke(&b).unwrap();
    let here = trust(&b.with_crl_pem(&authority.crl_pem()).unwrap());
    let signer = Signer::new(&a).unwrap();
    let (chain, signature) = (signer.chain(), signer.sign(b"m").unwrap());
    let leaf = a.chain()[0].to_vec();
    let now = unix_time(clock::wall_now());
    let edits = || proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let edited = |bytes: &[u8], edits: &[(prop::sample::Index, u8)]| {
        let mut bytes = bytes.to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        bytes
    };
    proptest!(ProptestConfig::with_cases(512), |(e in edits(), f in edits(), junk: Vec<u8>)| {
        let changed = edited(&leaf, &e);
        let untouched = changed == leaf;
        let certificate = CertificateDer::from(changed);
        let _ = SpiffeName::from_certificate(&certificate);
        let _ = x509::facts(&certificate);
        let verdict = here.judge(std::slice::from_ref(&certificate), Role::Dialler, now);
        prop_assert_eq!(verdict.is_ok(), untouched);
        if let Err(rejection) = verdict {
            prop_assert!(!rejection.reason.contains(char::is_control) && rejection.reason.len() < 2_000);
        }
        let (c, s) = (edited(&chain, &e), edited(&signature, &f));
        let same = c == chain[..] && s == signature[..];
        prop_assert_eq!(here.verify_claim(&id("a"), &c, b"m", &s), same);
        prop_assert!(!here.verify_claim(&id("a"), &junk, b"m", &signature));
        prop_assert!(!here.verify_claim(&id("a"), &chain, b"m", &junk));
        let _ = SpiffeName::from_certificate(&CertificateDer::from(junk.clone()));
        let _ = x509::list_facts(&junk);
        let _ = Identity::from_pem(&junk, &junk, &junk);
    });
}

#[test]
fn the_first_group_offered_is_the_post_quantum_one() {
    assert_eq!(provider().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
}
