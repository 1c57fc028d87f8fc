//! Signing requests: only a key that proves itself is certified, and nothing hostile makes the reader panic.

use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use super::*;

fn request(change: impl FnOnce(&mut CertificateParams), key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

fn pem_of(der: &[u8]) -> Vec<u8> {
    pem::encode("CERTIFICATE REQUEST", der).into_bytes()
}

#[test]
fn every_kind_of_key_that_peers_know_is_certified_as_itself() {
    let authority = authority();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = authority.sign_csr(&pem_of(&request(|_| {}, &key)), &id("a")).unwrap();
        let identity =
            Identity::from_pem(&authority.ca_pem(), &certificate.pem(), key.serialize_pem().as_bytes());
        let identity = identity.unwrap();
        identity.check_usable(Policy::default(), clock::wall_now()).unwrap();
        assert_eq!(identity.serial(), certificate.serial());
    }
}

#[test]
fn a_request_whose_extensions_nobody_knows_is_signed_all_the_same() {
    let key = KeyPair::generate().unwrap();
    let der = request(
        |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.subject_alt_names = vec![uri("spiffe://other/node/b")];
            let mut odd = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            odd.set_criticality(true);
            params.custom_extensions = vec![odd];
        },
        &key,
    );
    let certificate = authority().sign_csr(&pem_of(&der), &id("a")).unwrap();
    let der = pem::certificates(&certificate.pem(), "x").unwrap().remove(0);
    let facts = x509::facts(&der).unwrap();
    assert!(!facts.is_ca && facts.may_sign && facts.has_purposes);
    assert_eq!(SpiffeName::from_certificate(&der).unwrap().to_string(), "spiffe://edge/node/a");
    assert_eq!(x509::parse(&der).unwrap().extensions().len(), 3, "two usages, the one name");
}

#[test]
fn a_changed_or_cut_request_is_refused_and_never_panics() {
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let good = request(|params| params.subject_alt_names = vec![uri("x:y")], &key);
    assert!(authority.sign_csr(&pem_of(&good), &id("a")).is_ok());
    let parsed = X509CertificationRequest::from_der(&good).unwrap().1;
    let signed = parsed.certification_request_info.raw;
    let begin = good.windows(signed.len()).position(|part| part == signed).unwrap();
    for at in 0..good.len() {
        assert!(authority.sign_csr(&pem_of(&good[..at]), &id("a")).is_err(), "cut at {at}");
        for bit in [0x01, 0x04, 0x80] {
            let mut changed = good.clone();
            changed[at] ^= bit;
            // What the signature does not cover, the frame around it, may read as it did before.
            if let Ok(certificate) = authority.sign_csr(&pem_of(&changed), &id("a")) {
                assert!(!(begin..begin + signed.len()).contains(&at), "changed at {at}");
                let der = pem::certificates(&certificate.pem(), "x").unwrap().remove(0);
                assert_eq!(x509::facts(&der).unwrap().key, key.public_key_raw(), "changed at {at}");
            }
        }
    }
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..300))| {
        prop_assert!(authority.sign_csr(&bytes, &id("a")).is_err());
        prop_assert!(authority.sign_csr(&pem_of(&bytes), &id("a")).is_err());
    });
    let error = authority.sign_csr(&vec![b' '; (1 << 20) + 1], &id("a")).unwrap_err().to_string();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
}

#[test]
#[cfg(unix)]
fn a_weak_key_is_refused_though_it_proves_itself() {
    use std::process::Command;

    let dir = tempfile::tempdir().unwrap();
    for (arguments, says) in [
        ("-newkey rsa:1024", "its key is RSA of 1024 bits"),
        ("-newkey ec -pkeyopt ec_paramgen_curve:secp224r1", "its key is the curve P-224"),
    ] {
        let csr = dir.path().join("weak.csr");
        let output = Command::new("openssl")
            .args("req -new -nodes -subj /CN=x -keyout /dev/null".split(' '))
            .args(arguments.split(' '))
            .arg("-out")
            .arg(&csr)
            .output();
        let Ok(output) = output else {
            eprintln!("skipped: no openssl here");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let error = authority().sign_csr_file(&csr, &id("a"), Validity::days(1)).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("weak.csr"), "{error}");
    }
}

#[test]
fn a_serial_number_has_many_spellings_and_one_meaning() {
    let authority = authority();
    authority.issue(&id("a")).unwrap();
    let serial = authority.issued()[0].serial.clone();
    let bytes: Vec<_> =
        serial.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).into_owned()).collect();
    for spelling in [
        serial.clone(),
        serial.to_uppercase(),
        format!("0x00{serial}"),
        bytes.join(":"),
        format!(" {serial}\n"),
    ] {
        assert_eq!(authority.revoke_serial(&spelling).unwrap().serial, serial, "{spelling}");
    }
    for bad in ["", "0", "0x", "lb-1", "4f0g", &"f".repeat(41), &"f".repeat(100_000)] {
        let error = authority.revoke_serial(bad).unwrap_err().to_string();
        assert!(error.contains("it is none") && error.len() < 300, "{error}");
    }
}

#[test]
fn a_fleets_certificates_end_within_the_last_tenth() {
    let authority = authority();
    let ends: Vec<_> =
        (0..20).map(|at| authority.issue(&id(&format!("n{at}"))).unwrap().not_after()).collect();
    let now = clock::wall_now();
    let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
    assert!(*first >= now + 81 * DAY - HOUR && *last <= now + 90 * DAY);
    assert!(last.duration_since(*first).unwrap() > HOUR, "twenty draws from nine days");
}

#[test]
fn the_newest_of_many_issued_within_a_second_is_known() {
    let authority = authority();
    for _ in 0..8 {
        authority.issue(&id("b")).unwrap();
        let identity = authority.issue(&id("a")).unwrap();
        let renewed = authority.renew_certificate(&id("a"), Validity::days(90)).unwrap();
        let key = |der: &CertificateDer<'_>| x509::facts(der).unwrap().key;
        let der = pem::certificates(&renewed.pem(), "x").unwrap().remove(0);
        assert_eq!(key(&der), key(&identity.chain()[0]));
    }
    let now = clock::wall_now();
    for leaf in authority.issued() {
        assert!(leaf.not_before < now, "valid at once");
    }
}

#[test]
fn the_record_survives_its_directory_and_a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority();
    for node in ["a", "b"] {
        authority.issue(&id(node)).unwrap();
    }
    authority.issue_shared().unwrap();
    authority.write_to(dir.path()).unwrap();
    let loaded = Authority::load(dir.path()).unwrap();
    assert_eq!(loaded.issued(), authority.issued());
    assert_eq!(loaded.revoke_node(&id("a")).unwrap().len(), 1);
    assert_eq!(loaded.revoke_node(&id("a")).unwrap(), []);
    fs::write(dir.path().join("issued/x.tmp"), "left by a killed process").unwrap();
    assert!(Authority::load(dir.path()).is_ok());
    fs::write(dir.path().join("issued/x.pem"), authority.ca_pem()).unwrap();
    let error = Authority::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("issued/x.pem") && error.contains("counts as never issued"), "{error}");
}
