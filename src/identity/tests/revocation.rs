//! What a revocation list refuses, and which list counts.

use super::*;

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
    here.check_usable(Policy::default(), clock::wall_now()).unwrap();
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

#[test]
fn where_a_list_is_required_an_authority_without_one_is_not_trusted() {
    const REQUIRED: Policy = Policy { shared_certificate: false, crl_required: true };

    let (one, two) = (authority(), authority());
    let ca = [one.ca_pem(), two.ca_pem()].concat();
    let own = one.issue(&id("a")).unwrap();
    let cert = pem::encode("CERTIFICATE", &own.chain()[0]);
    let here = Identity::from_pem(&ca, cert.as_bytes(), pem::encode_key(own.key()).as_bytes()).unwrap();
    let error = here.check_usable(REQUIRED, clock::wall_now()).unwrap_err().to_string();
    assert!(error.contains("tls.crl-required is on, and there is none"), "{error}");
    let none = Trust::new(&here, REQUIRED).unwrap();
    let peer = one.issue(&id("b")).unwrap();
    refused(judged(&none, peer.chain()), RejectionKind::NoList, 48, &["has no revocation list here"]);
    let here = here.with_crl_pem(&one.crl_pem()).unwrap();
    here.check_usable(REQUIRED, clock::wall_now()).unwrap();
    let here_trust = Trust::new(&here, REQUIRED).unwrap();
    assert!(judged(&here_trust, peer.chain()).is_ok());
    let stranger = two.issue(&id("c")).unwrap();
    refused(judged(&here_trust, stranger.chain()), RejectionKind::NoList, 48, &[]);
    let both = here.with_crl_pem(&two.crl_pem()).unwrap();
    assert!(judged(&Trust::new(&both, REQUIRED).unwrap(), stranger.chain()).is_ok());
}

/// Reads what a peer sent.
fn told(identity: &Identity, der: &[u8], promised: &[u8]) -> Listed {
    identity.with_list_of_peer(der, promised)
}

#[test]
fn a_list_of_a_peer_is_taken_only_if_it_is_newer_and_good() {
    let authority = authority();
    let (a, b) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("b")).unwrap());
    let first = pem::revocation_lists(&authority.crl_pem(), "x").unwrap().remove(0);
    authority.revoke(&b).unwrap();
    let second = pem::revocation_lists(&authority.crl_pem(), "x").unwrap().remove(0);
    let Listed::News(with_first) = told(&a, &first, &[]) else { panic!("a had none") };
    let Listed::News(with_second) = told(&with_first, &second, &[]) else { panic!("it is newer") };
    refused(judged(&trust(&with_second), b.chain()), RejectionKind::Revoked, 44, &[]);
    assert!(matches!(told(&with_second, &first, &[]), Listed::Known));
    assert!(matches!(told(&with_second, &second, &[]), Listed::Known));
    let age = with_second.lists()[0].age.clone();
    assert!(matches!(told(&with_first, &second, &age), Listed::News(_)));
    assert!(matches!(told(&a, &first, &age), Listed::Bad(_)), "a newer one was promised");
    let foreign = pem::revocation_lists(&Authority::generate("edge").unwrap().crl_pem(), "x").unwrap();
    assert!(matches!(told(&a, &foreign[0], &[]), Listed::Bad(_)));
    for cut in 0..second.len() {
        let mut changed = second.to_vec();
        changed[cut] ^= 0x04;
        assert!(matches!(told(&with_first, &changed, &[]), Listed::Bad(_)), "changed at {cut}");
        assert!(matches!(told(&with_first, &second[..cut], &[]), Listed::Bad(_)), "cut at {cut}");
    }
    proptest!(|(bytes: Vec<u8>)| prop_assert!(matches!(told(&a, &bytes, &[]), Listed::Bad(_))));
}

#[test]
fn ages_are_ordered_as_numbers_and_all_nodes_name_an_authority_alike() {
    let ca = Anything::new("one");
    let (here, there) = (ca.identity(|_| {}), ca.identity(|_| {}));
    let mut before: Vec<u8> = Vec::new();
    for number in [0, 1, 9, 255, 256, 65_535, 1 << 40, u64::MAX] {
        let list = numbered(&ca, number);
        let here = here.clone().with_crl_pem(list.as_bytes()).unwrap().lists().remove(0);
        let there = there.clone().with_crl_pem(list.as_bytes()).unwrap().lists().remove(0);
        assert_eq!((here.issuer, &here.age), (there.issuer, &there.age));
        assert!(here.age > before, "{number}: {:?} after {before:?}", here.age);
        before = here.age;
    }
    let other = Anything::new("one").identity(|_| {});
    assert!(!trust(&other).trusts_issuer(here_issuer(&ca)), "another key is another authority");
    assert!(trust(&there).trusts_issuer(here_issuer(&ca)));
}

fn here_issuer(ca: &Anything) -> u64 {
    ca.identity(|_| {}).with_crl_pem(list(ca, &[1]).as_bytes()).unwrap().lists()[0].issuer
}

fn numbered(ca: &Anything, number: u64) -> String {
    let params = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2027, 1, 1),
        crl_number: number.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    params.signed_by(&ca.0).unwrap().pem().unwrap()
}
