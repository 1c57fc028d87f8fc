//! Identities written, read, replaced, and refused.

use super::*;

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
    let error = torn.check_usable(Policy::default(), clock::wall_now()).unwrap_err().to_string();
    assert!(error.contains("no certificate authority trusted here issued it"), "{error}");
    let later = clock::wall_now() + 4_000 * DAY;
    let long = mine.issue_for(&id("a"), Validity::days(5_000)).unwrap();
    let error = long.check_usable(Policy::default(), later).unwrap_err().to_string();
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
        Signer::new(&identity),
        trust(&identity)
    );
    let secret = identity.key().secret_der();
    let base64: String = pem::encode_key(identity.key()).lines().nth(1).unwrap().into();
    assert!(!texts.contains(&base64[20..40]), "{texts}");
    let decimal = format!("{:?}", &secret[40..48]);
    assert!(!texts.contains(decimal.trim_matches(['[', ']'])), "{texts}");
    assert!(texts.contains("spiffe://edge/node/a"));
}
