//! Signed claims, and hostile bytes.

use super::*;

#[test]
fn a_claim_is_believed_only_from_the_node_that_signed_it() {
    let authority = authority();
    let (a, b) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("b")).unwrap());
    let here = trust(&b);
    let signer = Signer::new(&a);
    let (chain, signature) = (signer.chain(), signer.sign(b"I am here").unwrap());
    assert_eq!(signature[..2], [0x04, 0x03]); // ecdsa_secp256r1_sha256
    assert!(here.verify_claim(&id("a"), &chain, b"I am here", &signature));
    assert!(!here.verify_claim(&id("b"), &chain, b"I am here", &signature));
    assert!(!here.verify_claim(&id("a"), &chain, b"I am gone", &signature));
    assert!(!here.verify_claim(&id("a"), &Signer::new(&b).chain(), b"I am here", &signature));
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
#[cfg(feature = "aws-lc-rs")] // ring makes no RSA keys
fn a_claim_is_signed_as_tls_1_3_signs() {
    use rustls::SignatureScheme;

    let ca = Anything::new("one");
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://edge/node/a")];
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
    let leaf = params.signed_by(&key, &ca.0).unwrap();
    let (cert, key) = (leaf.pem(), key.serialize_pem());
    let identity = Identity::from_pem(ca.0.pem().as_bytes(), cert.as_bytes(), key.as_bytes()).unwrap();
    let signer = Signer::new(&identity);
    let here = ca.trust();
    assert!(here.verify_claim(&id("a"), &signer.chain(), b"m", &signer.sign(b"m").unwrap()));

    let old = SignatureScheme::RSA_PKCS1_SHA256;
    let signature = identity.signing().choose_scheme(&[old]).unwrap().sign(b"m").unwrap();
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
        let signer = Signer::new(&other);
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
    let signer = Signer::new(&authority.issue_shared().unwrap());
    let signature = signer.sign(b"m").unwrap();
    assert!(!trust(&own).verify_claim(&id("x"), &signer.chain(), b"m", &signature));
    let open = Trust::new(&own, SHARED).unwrap();
    assert!(open.verify_claim(&id("x"), &signer.chain(), b"m", &signature));
    assert!(open.verify_claim(&id("y"), &signer.chain(), b"m", &signature));
}

#[test]
fn a_claim_of_another_cluster_is_refused() {
    let ca = Anything::new("one");
    let other = ca.identity(|leaf| leaf.subject_alt_names = vec![uri("spiffe://core/node/a")]);
    let signer = Signer::new(&other);
    assert!(!ca.trust().verify_claim(&id("a"), &signer.chain(), b"m", &signer.sign(b"m").unwrap()));
}

#[test]
fn no_bytes_make_a_parser_or_a_judge_panic() {
    let authority = authority();
    let (a, b) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("b")).unwrap());
    authority.revoke(&b).unwrap();
    let here = trust(&b.with_crl_pem(&authority.crl_pem()).unwrap());
    let signer = Signer::new(&a);
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
#[cfg(feature = "aws-lc-rs")]
fn the_first_group_offered_is_the_post_quantum_one() {
    assert_eq!(provider().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
}

#[test]
fn a_record_outlives_its_writers_certificate_and_its_revocation() {
    let authority = authority();
    let now = clock::wall_now();
    let here = authority.issue(&id("b")).unwrap();
    let stranger = trust(&Authority::generate("edge").unwrap().issue(&id("b")).unwrap());
    let strict = Policy { crl_required: true, ..Policy::default() };
    for (from, to) in [(now - 2 * DAY, now - DAY), (now - DAY, now + DAY), (now + DAY, now + 2 * DAY)] {
        let writer = authority.issue_for(&id("a"), Validity::between(from, to)).unwrap();
        let chain = Signer::new(&writer).chain();
        authority.revoke(&writer).unwrap();
        let warned = here.clone().with_crl_pem(&authority.crl_pem()).unwrap();
        for trust in [trust(&here), trust(&warned), Trust::new(&here, strict).unwrap()] {
            assert!(trust.has_issued(&id("a"), &chain));
            assert!(!trust.has_issued(&id("b"), &chain));
            assert!(!trust.has_issued(&id("a"), &chain[..chain.len() - 1]));
        }
        assert!(!stranger.has_issued(&id("a"), &chain));
    }
    let shared = Signer::new(&authority.issue_shared().unwrap()).chain();
    assert!(!Trust::new(&here, SHARED).unwrap().has_issued(&id("a"), &shared), "it names nobody");
}

#[test]
fn a_signature_is_by_the_key_of_its_chain() {
    let authority = authority();
    let [a, b] = ["a", "b"].map(|name| Signer::new(&authority.issue(&id(name)).unwrap()));
    let signature = a.sign(b"m").unwrap();
    assert!(is_by(&a.chain(), b"m", &signature));
    assert!(!is_by(&a.chain(), b"n", &signature) && !is_by(&b.chain(), b"m", &signature));
    assert!(!is_by(b"", b"m", &signature) && !is_by(&a.chain(), b"m", &[]));
}

#[test]
fn the_digest_is_sha_256() {
    // FIPS 180-2, appendix B.1.
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(x509::hex(&digest(b"abc")), expected);
}
