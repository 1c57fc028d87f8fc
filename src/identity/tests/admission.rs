//! Who is let in, and each refusal with its text.

use super::*;

#[test]
fn what_an_authority_issues_is_let_in_in_both_roles() {
    let authority = authority();
    let (a, b) = (authority.issue(&id("lb-1")).unwrap(), authority.issue(&id("lb-2.fra")).unwrap());
    let peer = judged(&trust(&a), b.chain()).unwrap();
    assert_eq!((peer.cluster.as_str(), peer.node), ("edge", Some(id("lb-2.fra"))));
    assert_eq!(peer.not_after, b.not_after());
    assert_eq!(peer.serial.len(), 32);
    a.check_usable(Policy::default(), clock::wall_now()).unwrap();
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

    let error = old.check_usable(Policy::default(), now).unwrap_err().to_string();
    assert!(error.contains("it expired at") && error.contains("the clock says"), "{error}");
    let error = early.check_usable(Policy::default(), now).unwrap_err().to_string();
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
    let open = Trust::new(&own, SHARED).unwrap();
    assert_eq!(judged(&open, shared.chain()).unwrap().node, None);
    assert!(shared.check_usable(SHARED, clock::wall_now()).is_ok());
    let error = shared.check_usable(Policy::default(), clock::wall_now()).unwrap_err().to_string();
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
