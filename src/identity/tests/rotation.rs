//! From one root to the next: whom nodes of either side let in, what stands against the end, and that an
//! authority which was killed at any step still loads.

use std::path::Path;

use super::*;

/// The files of an authority, without what it issued.
const FILES: [&str; 4] = ["ca.pem", "ca.key", "next.key", "crl.pem"];

fn copied(from: &Path, to: &Path, names: &[&str]) {
    for name in names {
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        } else {
            let _ = fs::remove_file(to.join(name));
        }
    }
}

fn new_dir(root: &Path, name: &str) -> std::path::PathBuf {
    let dir = root.join(name);
    fs::create_dir(&dir).unwrap();
    dir
}

#[test]
fn old_and_new_admit_one_another_while_both_roots_are_trusted() {
    let mut authority = authority();
    let before = authority.issue(&id("before")).unwrap();
    authority.begin_rotation().unwrap();
    let (a, b) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("b")).unwrap());
    // The old certificate, beside the CA file with both.
    let cert = pem::encode("CERTIFICATE", &before.chain()[0]);
    let key = pem::encode_key(before.key());
    let both = Identity::from_pem(&authority.ca_pem(), cert.as_bytes(), key.as_bytes()).unwrap();
    for (here, there) in [(&both, &a), (&a, &both), (&a, &b)] {
        assert!(judged(&trust(here), there.chain()).is_ok());
    }
    refused(judged(&trust(&before), a.chain()), RejectionKind::UnknownIssuer, 48, &[]);

    // What the old root revoked stays revoked, and the new one revokes too.
    authority.revoke(&before).unwrap();
    authority.revoke(&b).unwrap();
    let here = trust(&authority.issue(&id("c")).unwrap());
    for revoked in [&before, &b] {
        refused(judged(&here, revoked.chain()), RejectionKind::Revoked, 44, &[]);
    }
    assert!(judged(&here, a.chain()).is_ok());
    authority.finish_rotation(&Shown::default()).unwrap();
    let here = trust(&authority.issue(&id("d")).unwrap());
    refused(judged(&here, before.chain()), RejectionKind::UnknownIssuer, 48, &[]);
    assert!(judged(&here, a.chain()).is_ok());
}

#[test]
fn an_old_certificate_that_may_be_in_use_stands_against_the_end() {
    let mut authority = authority();
    let now = clock::wall_now();
    authority.issue(&id("a")).unwrap();
    authority.issue_for(&id("expired"), Validity::between(now - DAY, now - HOUR)).unwrap();
    let gone = authority.issue(&id("gone")).unwrap();
    let shared = authority.issue_shared().unwrap();
    authority.begin_rotation().unwrap();
    authority.revoke(&gone).unwrap();
    let waiting = |authority: &Authority, shown: &Shown| -> Vec<_> {
        authority.rotation(shown).unwrap().waiting.into_iter().map(|leaf| leaf.node_id).collect()
    };
    assert_eq!(waiting(&authority, &Shown::default()), [None, Some(id("a"))]);
    let error = authority.finish_rotation(&Shown::default()).unwrap_err().to_string();
    assert!(error.contains("nodes may still show the shared ") && error.contains("a's "), "{error}");

    let renewed = authority.renew(&id("a")).unwrap();
    let mut shown = Shown::default();
    shown.add_der(&renewed.chain()[0]).unwrap();
    shown.add_pem(&authority.ca_pem()).unwrap(); // an authority's own is no node's
    assert_eq!(shown.len(), 1);
    assert_eq!(waiting(&authority, &shown), [None], "one holder says nothing of the others");
    authority.revoke(&shared).unwrap();
    assert_eq!(waiting(&authority, &Shown::default()), [Some(id("a"))], "issued is not in use");
    // A stranger's certificate with the right name in it.
    let mut forged = Shown::default();
    forged.add_der(&super::authority().issue(&id("a")).unwrap().chain()[0]).unwrap();
    assert_eq!(waiting(&authority, &forged), [Some(id("a"))]);
    authority.finish_rotation(&shown).unwrap();
    assert!(authority.rotation(&shown).is_none());
    let error = authority.finish_rotation(&shown).unwrap_err().to_string();
    assert!(error.contains("none is under way"), "{error}");
}

#[test]
fn what_is_seen_under_the_old_root_counts_even_if_it_is_not_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let first = authority();
    let unrecorded = first.issue(&id("u")).unwrap();
    first.write_to(dir.path()).unwrap();
    fs::remove_dir_all(dir.path().join("issued")).unwrap();
    let mut authority = Authority::load(dir.path()).unwrap();
    assert_eq!(authority.issued(), []);
    authority.begin_rotation().unwrap();
    let mut shown = Shown::default();
    shown.add_der(&unrecorded.chain()[0]).unwrap();
    let waiting = authority.rotation(&shown).unwrap().waiting;
    assert_eq!((waiting.len(), waiting[0].seen, &waiting[0].node_id), (1, true, &Some(id("u"))));
    assert!(authority.finish_rotation(&shown).is_err());
    authority.revoke(&unrecorded).unwrap();
    authority.finish_rotation(&shown).unwrap();
}

#[test]
fn an_authority_that_was_killed_at_any_step_loads() {
    let root = tempfile::tempdir().unwrap();
    let (old, both, new) =
        (new_dir(root.path(), "old"), new_dir(root.path(), "both"), new_dir(root.path(), "new"));
    let mut authority = authority();
    let gone = authority.issue(&id("gone")).unwrap();
    authority.revoke(&gone).unwrap();
    authority.write_to(&old).unwrap();
    copied(&old, &both, &FILES);
    authority.begin_rotation().unwrap();
    authority.write_to(&both).unwrap();
    assert!(both.join("next.key").exists());
    copied(&both, &new, &FILES);
    authority.finish_rotation(&Shown::default()).unwrap();
    authority.write_to(&new).unwrap();
    assert!(!new.join("next.key").exists());

    // The order in which `write_to` puts the files in place: `ca.pem` decides, so one root more comes last
    // and one root less comes first.
    let begun = ["next.key", "ca.key", "crl.pem", "ca.pem"];
    let finished = ["ca.pem", "ca.key", "crl.pem", "next.key"];
    for (name, from, to, order) in [("begun", &old, &both, begun), ("finished", &both, &new, finished)] {
        for done in 0..=order.len() {
            let dir = new_dir(root.path(), &format!("{name}-{done}"));
            copied(from, &dir, &FILES);
            copied(to, &dir, &order[..done]);
            let mut loaded = Authority::load(&dir).unwrap_or_else(|error| panic!("{name} {done}: {error}"));
            // It is one of the two, whole: it issues, and what it issues trusts itself.
            let roots = pem::certificates(&loaded.ca_pem(), "x").unwrap().len();
            let expected = match (name, done) {
                ("begun", 0..=3) => 1,
                ("begun", _) | (_, 0) => 2,
                _ => 1,
            };
            assert_eq!(roots, expected, "{name} {done}");
            loaded.issue(&id("n")).unwrap().check_usable(Policy::default(), clock::wall_now()).unwrap();
            // And it goes on, from there or from the start.
            loaded.write_to(&dir).unwrap();
            if loaded.rotation(&Shown::default()).is_none() {
                loaded.begin_rotation().unwrap();
                loaded.write_to(&dir).unwrap();
            }
            loaded.revoke_node(&id("n")).unwrap();
            loaded.finish_rotation(&Shown::default()).unwrap();
            loaded.write_to(&dir).unwrap();
            let mut left = fs::read_dir(&dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect::<Vec<_>>();
            left.sort();
            assert_eq!(left, ["ca.key", "ca.pem", "crl.pem", "issued"], "{name} {done}");
        }
    }
}

#[test]
fn an_older_copy_never_undoes_a_rotation_or_a_revocation() {
    let dir = tempfile::tempdir().unwrap();
    let first = authority();
    first.issue(&id("a")).unwrap();
    first.write_to(dir.path()).unwrap();
    let (stale, mut fresh) = (Authority::load(dir.path()).unwrap(), Authority::load(dir.path()).unwrap());
    fresh.revoke_node(&id("a")).unwrap();
    fresh.write_to(dir.path()).unwrap();
    let fails = |authority: &Authority, says: &str| {
        let error = authority.write_to(dir.path()).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    };
    let other = stale.issue(&id("b")).unwrap();
    stale.revoke(&other).unwrap(); // as great a number, perhaps, and another content
    fails(&stale, "holds a newer revocation list");
    fresh.begin_rotation().unwrap();
    fresh.write_to(dir.path()).unwrap();
    fails(&stale, "a rotation of this authority was begun in it");
    let stale = Authority::load(dir.path()).unwrap();
    fresh.finish_rotation(&Shown::default()).unwrap();
    fresh.write_to(dir.path()).unwrap();
    stale.revoke_node(&id("a")).unwrap();
    stale.refresh_crl().unwrap();
    fails(&stale, "the rotation of this authority was finished in it");
    assert_eq!(Authority::load(dir.path()).unwrap().ca_pem(), fresh.ca_pem());

    fs::remove_file(dir.path().join("ca.pem")).unwrap();
    fails(&fresh, "but not its certificate");
}
