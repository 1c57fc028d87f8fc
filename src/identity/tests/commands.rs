//! The openssl commands that certs/README.md tells.

use super::*;

#[test]
#[cfg(unix)]
fn the_openssl_commands_of_the_readme_make_identities_that_trust_one_another() {
    use std::process::Command;

    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("skipped: no openssl here");
        return;
    }
    let readme = include_str!("../../../certs/README.md");
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
        here.check_usable(Policy::default(), clock::wall_now()).unwrap();
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
