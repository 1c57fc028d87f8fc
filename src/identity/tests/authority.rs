//! The authority that lives in a directory.

use super::*;

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
    fails("one of the authority's roots has signed none of the lists in it");
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
    week.check_usable(Policy::default(), now).unwrap();
}

#[test]
fn cluster_names_are_checked() {
    for bad in ["", "Edge", "a/b", "a b", &"c".repeat(256)] {
        assert!(matches!(Authority::generate(bad), Err(Error::InvalidClusterName { .. })), "{bad:?}");
    }
    assert!(Authority::generate("c".repeat(255)).unwrap().issue(&id("a")).is_ok());
}
