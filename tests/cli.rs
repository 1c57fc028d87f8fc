//! The command line, driven as people drive it: the real program, in a directory of its own, through whole
//! stories; and nodes of the library that live on the files it makes. Looks into nothing that is not public.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use phalanx::{Cluster, Config, Identity};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::Value;
use tempfile::TempDir;

use self::common::{started, until};

/// A directory in which commands run.
struct Desk(TempDir);

struct Outcome {
    code: i32,
    out: String,
    err: String,
}

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With an authority of the cluster `edge` in `ca`.
    fn with_authority() -> Self {
        let desk = Self::new();
        desk.ok("ca init edge");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn run(&self, arguments: &str) -> Outcome {
        let output = Command::new(env!("CARGO_BIN_EXE_phalanx"))
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .env_remove("PHALANX_BIND_PORT")
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    fn ok(&self, arguments: &str) -> String {
        let Outcome { code, out, err } = self.run(arguments);
        assert_eq!((code, err.as_str()), (0, ""), "{arguments}\n{out}");
        out
    }

    /// What is told of a failure.
    #[track_caller]
    fn fails(&self, arguments: &str) -> String {
        let Outcome { code, out, err } = self.run(arguments);
        assert_eq!((code, out.as_str()), (3, ""), "{arguments}\n{err}");
        assert!(err.starts_with("error: ") && err.contains("; "), "what, and what to do: {err}");
        err
    }

    /// The object that a program is told.
    #[track_caller]
    fn json(&self, arguments: &str) -> Value {
        let Outcome { code, out, err } = self.run(&format!("{arguments} --json"));
        assert_eq!((code, err.as_str()), (0, ""), "{arguments}\n{out}");
        one_object(&out)
    }

    fn identity(&self, node: &str) -> Identity {
        let file = |name: &str| self.path(node).join(name);
        Identity::from_pem_files(file("ca.pem"), file("cert.pem"), file("key.pem")).unwrap()
    }

    /// A node that lives on the files in `node/`.
    async fn start(&self, node: &str, seeds: &[&Cluster]) -> Cluster {
        started(common::config(self.identity(node), seeds)).await
    }
}

#[track_caller]
fn one_object(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(value.is_object() && value["ok"].is_boolean() && value["next"].is_array(), "{text}");
    value
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn number(list: &Value) -> u64 {
    u64::from_str_radix(list["number"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn nodes_start_from_what_was_issued_and_admit_one_another() {
    let desk = Desk::new();
    let told = desk.ok("ca init edge --dir my-ca");
    assert!(told.contains("cluster edge") && told.contains("next: phalanx node issue"), "{told}");
    assert_eq!(names(&desk.path("my-ca")), ["ca.key", "ca.pem", "crl.pem"]);
    let told = desk.ok("node issue lb-1 --out lb-1 --dir my-ca");
    assert!(told.contains("issued a certificate to lb-1") && told.contains("next: "), "{told}");
    desk.ok("node issue lb-2 --out lb-2 --dir my-ca --days 7");
    assert_eq!(names(&desk.path("lb-1")), ["ca.pem", "cert.pem", "key.pem"]);
    #[cfg(unix)]
    for secret in ["my-ca/ca.key", "lb-1/key.pem"] {
        assert_eq!(mode(&desk.path(secret)), 0o600, "{secret}");
    }
    desk.write(
        "lb-1.toml",
        "[cluster]\nenabled = true\nbind-address = \"127.0.0.1\"\nbind-port = 0\n\
         tls.ca = \"lb-1/ca.pem\"\ntls.cert = \"lb-1/cert.pem\"\ntls.key = \"lb-1/key.pem\"\n",
    );
    let told = desk.json("doctor --config lb-1.toml");
    assert_eq!(
        (&told["ok"], &told["node_id"], &told["cluster"]),
        (&true.into(), &"lb-1".into(), &"edge".into())
    );
    let one = started(Config::load(desk.path("lb-1.toml")).unwrap()).await;
    let two = desk.start("lb-2", &[&one]).await;
    until("both see both", || one.cluster_size() == 2 && two.cluster_size() == 2).await;
    one.stop().await.unwrap();
    two.stop().await.unwrap();
}

#[test]
fn a_fleet_issued_together_does_not_expire_together() {
    let desk = Desk::with_authority();
    let ends: Vec<_> = (0..5)
        .map(|at| {
            desk.json(&format!("node issue n{at} --out n{at}"))["not_after"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(ends.iter().any(|end| *end != ends[0]), "{ends:?}");
    assert!(ends[0].ends_with('Z') && ends[0].contains('T'), "{ends:?}");
    let error = desk.run("node issue n9 --out n9 --days 0");
    assert_eq!(error.code, 2, "{}", error.err);
}

#[test]
fn nothing_that_is_there_is_written_over() {
    let desk = Desk::with_authority();
    let key = desk.read("ca/ca.key");
    let error = desk.fails("ca init edge");
    assert!(
        error.contains("directory ca: it holds an authority already; choose another directory"),
        "{error}"
    );
    assert_eq!(desk.read("ca/ca.key"), key);

    desk.ok("node issue lb-1 --out lb-1");
    let key = desk.read("lb-1/key.pem");
    let error = desk.fails("node issue lb-1 --out again");
    assert!(error.contains("node lb-1: it has a certificate already"), "{error}");
    assert!(error.contains("phalanx node renew lb-1 --out again"), "{error}");
    let error = desk.fails("node issue lb-2 --out lb-1");
    assert!(error.contains("private key lb-1/key.pem: it is there already"), "{error}");
    desk.ok("node issue lb-2 --out lb-2");
    let error = desk.fails("node renew lb-2 --out lb-1");
    assert!(error.contains("directory lb-1: its cert.pem is not lb-2's"), "{error}");
    let error = desk.fails("node csr lb-1 --out lb-1");
    assert!(
        error.contains("private key lb-1/key.pem: it is there already; name a fresh directory"),
        "{error}"
    );
    assert_eq!(desk.read("lb-1/key.pem"), key);
}

#[test]
fn what_is_wrong_with_the_arguments_is_said() {
    let desk = Desk::with_authority();
    for (arguments, says) in [
        ("ca init Edge --dir x", "cluster name \"Edge\": 'E' is not allowed"),
        ("node issue a/b --out x", "node id \"a/b\""),
        ("node issue a --out x --dir none", "cannot read none/ca.pem"),
        ("node sign none.csr --id a --out x", "cannot read none.csr"),
        ("node renew a --out x", "node a: this authority has no record of a certificate for it; issue one"),
        ("node revoke a", "node a: this authority has no record of a certificate for it; check the id"),
        ("node revoke 4f0a4f0a4f0a4f0a", "serial number \"4f0a4f0a4f0a4f0a\": this authority has no record"),
        ("node revoke --cert ca/ca.pem", "certificate ca/ca.pem: "),
        ("inspect none.pem", "cannot read none.pem"),
        ("ca rotate finish", "rotation: none is under way; nothing is left to finish"),
        ("ca rotate status --shown none", "cannot read none"),
    ] {
        let error = desk.fails(arguments);
        assert!(error.contains(says), "{arguments}: {error}");
        assert!(!desk.path("x").exists(), "{arguments}");
    }
    let told = desk.run("node revoke --json");
    assert_eq!((told.code, told.out.as_str()), (2, ""), "{}", told.err);
    let told = desk.run("node renew a --out x --json");
    assert_eq!(told.code, 3);
    let object = one_object(&told.out);
    assert_eq!((&object["ok"], &object["command"]), (&false.into(), &"node renew".into()));
    assert!(told.err.contains(object["error"].as_str().unwrap()), "{}", told.err);
    let help = desk.ok("--help");
    assert!(help.contains("Exit codes:") && help.contains("--json"), "{help}");
}

#[tokio::test]
async fn a_key_that_never_leaves_its_node_is_certified() {
    let desk = Desk::with_authority();
    let told = desk.ok("node csr lb-1 --out lb-1");
    assert!(told.contains("next: phalanx node sign lb-1/node.csr --id lb-1"), "{told}");
    assert_eq!(names(&desk.path("lb-1")), ["key.pem", "node.csr"]);
    #[cfg(unix)]
    assert_eq!(mode(&desk.path("lb-1/key.pem")), 0o600);
    let key = desk.read("lb-1/key.pem");
    let told = desk.json("node sign lb-1/node.csr --id lb-1 --out signed");
    assert_eq!(told["ignored"], serde_json::json!([]));
    assert_eq!(names(&desk.path("signed")), ["ca.pem", "cert.pem"]);
    for file in ["ca.pem", "cert.pem"] {
        fs::copy(desk.path("signed").join(file), desk.path("lb-1").join(file)).unwrap();
    }
    desk.ok("node issue lb-2 --out lb-2");
    let one = desk.start("lb-1", &[]).await;
    let two = desk.start("lb-2", &[&one]).await;
    until("both see both", || one.cluster_size() == 2 && two.cluster_size() == 2).await;
    assert_eq!(desk.read("lb-1/key.pem"), key);
    one.stop().await.unwrap();
    two.stop().await.unwrap();

    let again = desk.json("node csr lb-1 --out lb-1 --keep-key");
    desk.ok("node sign lb-1/node.csr --id lb-1 --out lb-1");
    assert_eq!((desk.read("lb-1/key.pem"), &again["node_id"]), (key, &"lb-1".into()));
    desk.identity("lb-1"); // certificate and key belong together
}

#[test]
fn of_a_hostile_request_only_the_key_counts() {
    let desk = Desk::with_authority();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names = ["spiffe://edge/node/lb-9", "spiffe://core/node/lb-1"]
        .map(|name| SanType::URI(name.try_into().unwrap()))
        .to_vec();
    params.subject_alt_names.push(SanType::DnsName("example.com".try_into().unwrap()));
    let request = params.serialize_request(&key).unwrap();
    desk.write("hostile.csr", request.pem().unwrap());
    let seen = desk.json("inspect hostile.csr");
    assert_eq!(seen["items"][0]["asks_for_authority"], true);

    let told = desk.ok("node sign hostile.csr --id lb-1 --out lb-1");
    assert!(told.contains("ignored    the request asks for spiffe://edge/node/lb-9"), "{told}");
    assert!(told.contains("the rights of an authority"), "{told}");
    desk.write("lb-1/key.pem", key.serialize_pem());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(desk.path("lb-1/key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let identity = desk.identity("lb-1");
    assert_eq!((identity.cluster_name(), identity.node_id().unwrap().as_str()), ("edge", "lb-1"));
    let seen = desk.json("inspect lb-1/cert.pem");
    let seen = &seen["items"][0];
    assert_eq!((&seen["is_authority"], &seen["name"]), (&false.into(), &"spiffe://edge/node/lb-1".into()));
    assert!(seen["fault"].is_null(), "{seen}");

    // The last bytes are the signature's.
    let mut forged = request.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    desk.write("forged.csr", pem("CERTIFICATE REQUEST", &forged));
    let error = desk.fails("node sign forged.csr --id lb-2 --out lb-2");
    assert!(error.contains("signing request forged.csr: its signature is not of the key in it"), "{error}");
    // Another's key under one's own signature.
    let mut stolen = request.der().to_vec();
    let (mine, theirs) = (key.public_key_raw(), KeyPair::generate().unwrap());
    let at = stolen.windows(mine.len()).position(|part| part == mine).unwrap();
    stolen[at..at + mine.len()].copy_from_slice(theirs.public_key_raw());
    desk.write("stolen.csr", pem("CERTIFICATE REQUEST", &stolen));
    let error = desk.fails("node sign stolen.csr --id lb-2 --out lb-2");
    assert!(error.contains("whoever made it may not have that key"), "{error}");
    desk.write("cut.csr", pem("CERTIFICATE REQUEST", &request.der()[..100]));
    let error = desk.fails("node sign cut.csr --id lb-2 --out lb-2");
    assert!(error.contains("signing request cut.csr: it cannot be read"), "{error}");
    let error = desk.fails("node sign lb-1/cert.pem --id lb-2 --out lb-2");
    assert!(error.contains("it holds no signing request, but a certificate"), "{error}");
    assert!(!desk.path("lb-2").exists());
    assert_eq!(desk.json("node list")["issued"].as_array().unwrap().len(), 1, "nothing of it is on record");
}

/// One PEM block (RFC 7468), its text on one line.
fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in der.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let symbol = char::from(ALPHABET[(bits >> (18 - 6 * digit) & 63) as usize]);
            text.push(if digit > group.len() { '=' } else { symbol });
        }
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

#[test]
fn a_renewal_has_a_new_serial_number_and_a_new_key() {
    let desk = Desk::with_authority();
    let first = desk.json("node issue lb-1 --out lb-1");
    let (key, cert) = (desk.read("lb-1/key.pem"), desk.read("lb-1/cert.pem"));
    let second = desk.json("node renew lb-1 --out lb-1");
    assert_ne!(first["serial"], second["serial"]);
    assert_ne!(desk.read("lb-1/key.pem"), key);
    let third = desk.json("node renew lb-1 --out kept --keep-key --days 30");
    assert_ne!(third["serial"], second["serial"]);
    assert_eq!(names(&desk.path("kept")), ["ca.pem", "cert.pem"], "no key is written");
    let public = |file: &str| desk.json(&format!("inspect {file}"))["items"][0]["public_key_sha256"].clone();
    assert_eq!(public("kept/cert.pem"), public("lb-1/key.pem"));
    desk.write("old.pem", cert);
    assert_ne!(public("old.pem"), public("lb-1/key.pem"));

    let list = desk.json("node list");
    let serials: Vec<_> = list["issued"].as_array().unwrap().iter().map(|leaf| &leaf["serial"]).collect();
    assert_eq!(serials.len(), 3);
    desk.ok("node revoke lb-1");
    let error = desk.fails("node renew lb-1 --out lb-1");
    assert!(error.contains("was revoked; if it shall be let in again, issue a new one"), "{error}");
    desk.ok("node issue lb-1 --out lb-1-again");
}

#[tokio::test]
async fn who_was_revoked_stays_out_once_the_list_is_published() {
    let desk = Desk::with_authority();
    for node in ["lb-1", "lb-2", "lb-3"] {
        desk.ok(&format!("node issue {node} --out {node}"));
    }
    let told = desk.json("crl publish --out crl.pem");
    let before = number(&told["lists"][0]);
    let told = desk.ok("node revoke lb-2");
    assert!(told.contains("revoked 1 certificate\n") && told.contains("next: phalanx crl publish"), "{told}");
    // The third by its number, written as other tools write it.
    let list = desk.json("node list");
    let third = list["issued"].as_array().unwrap().iter().find(|leaf| leaf["node_id"] == "lb-3").unwrap();
    let serial = third["serial"].as_str().unwrap().to_uppercase();
    let told = desk.json(&format!("node revoke 0x{serial}"));
    assert_eq!(told["revoked"][0]["node_id"], "lb-3");
    assert_eq!(told["revoked"][0]["standing"], "revoked");
    let told = desk.json("node revoke lb-2");
    assert_eq!(told["revoked"], serde_json::json!([]), "to revoke twice changes nothing");

    let told = desk.json("crl publish --out crl.pem");
    let after = number(&told["lists"][0]);
    assert!(after > before && told["lists"][0]["revoked"] == 2, "{told}");
    let again = desk.json("crl publish --out crl.pem");
    assert!(number(&again["lists"][0]) > after, "{again}");
    assert_eq!(desk.json("inspect crl.pem")["items"][0]["revoked"].as_array().unwrap().len(), 2);
    assert_eq!(desk.read("ca/crl.pem"), desk.read("crl.pem"));

    let one = desk.identity("lb-1").with_crl_file(desk.path("crl.pem")).unwrap();
    let one = started(common::config(one, &[])).await;
    let mut config = common::config(desk.identity("lb-2"), &[&one]);
    config.bind_port = 0;
    let two = started(config).await;
    let refused = || one.stats().net.refused.values().sum::<u64>() > 0;
    until("lb-2 is refused", refused).await;
    assert_eq!((one.cluster_size(), two.cluster_size()), (1, 1));
    one.stop().await.unwrap();
    two.stop().await.unwrap();
}

#[test]
fn a_certificate_that_is_not_on_record_is_revoked_by_its_file() {
    let desk = Desk::with_authority();
    desk.ok("node issue lb-1 --out lb-1");
    fs::remove_dir_all(desk.path("ca/issued")).unwrap(); // made before there was a record
    assert!(desk.fails("node revoke lb-1").contains("phalanx node revoke --cert FILE"));
    let told = desk.json("node revoke --cert lb-1/cert.pem");
    assert_eq!(told["revoked"][0]["standing"], "revoked");
    assert_eq!(desk.json("crl publish --out crl.pem")["lists"][0]["revoked"], 1);
    desk.ok("ca init edge --dir other");
    desk.ok("node issue lb-2 --out lb-2 --dir other");
    let error = desk.fails("node revoke --cert lb-2/cert.pem");
    assert!(
        error.contains("this authority did not issue it") && error.contains("ask the authority that did")
    );
}

// On threads of their own, the nodes answer while the program asks them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_to_another_root_without_losing_anybody() {
    let desk = Desk::with_authority();
    for node in ["lb-1", "lb-2"] {
        desk.ok(&format!("node issue {node} --out {node}"));
    }
    let (one, two) = (desk.start("lb-1", &[]).await, desk.start("lb-2", &[]).await);
    let told = desk.json("ca rotate status");
    assert_eq!((&told["rotating"], &told["message"]), (&false.into(), &"no rotation is under way".into()));

    let told = desk.ok("ca rotate begin");
    assert!(told.contains("both roots") && told.contains("next: copy ca/ca.pem to tls.ca"), "{told}");
    assert_eq!(desk.json("inspect ca/ca.pem")["items"].as_array().unwrap().len(), 2);
    assert!(desk.fails("ca rotate begin").contains("rotation: one is under way already; finish it before"));
    let refused = desk.run("ca rotate finish --json");
    assert_eq!((refused.code, refused.err.as_str()), (1, ""));
    let object = one_object(&refused.out);
    assert_eq!((&object["ok"], object["waiting"].as_array().unwrap().len()), (&false.into(), 2));
    assert_eq!(object["next"][0], "phalanx node renew lb-1 --out certs/lb-1");

    // Both roots to both nodes; their certificates are still of the old one.
    let both = desk.read("ca/ca.pem");
    for (node, cluster) in [("lb-1", &one), ("lb-2", &two)] {
        desk.write(&format!("{node}/ca.pem"), &both);
        cluster.reload_identity(desk.identity(node)).unwrap();
    }
    // One moves: old and new admit one another, whoever dials.
    desk.ok("node renew lb-1 --out lb-1");
    one.reload_identity(desk.identity("lb-1")).unwrap();
    two.join(&[one.local_node().address.to_string()]).await.unwrap();
    until("old and new see one another", || one.cluster_size() == 2 && two.cluster_size() == 2).await;
    desk.ok("node issue lb-3 --out lb-3");
    let three = desk.start("lb-3", &[&two]).await; // new dials old
    until("all see all", || [&one, &two, &three].iter().all(|node| node.cluster_size() == 3)).await;

    let ask = |node: &Cluster| format!("--ask {}", node.local_node().address);
    let refused = desk.run(&format!("ca rotate finish {} {}", ask(&one), ask(&two)));
    assert_eq!(refused.code, 1, "{}", refused.err);
    assert!(refused.out.contains("not finished: 1 certificates of the old root"), "{}", refused.out);
    assert!(refused.out.contains("lb-2: seen in use") && !refused.out.contains("lb-1:"), "{}", refused.out);

    // The second is renewed, but has not taken it: its record alone proves nothing.
    desk.ok("node renew lb-2 --out lb-2");
    let told = desk.json("ca rotate status");
    let waiting = told["waiting"].as_array().unwrap();
    assert_eq!(waiting.len(), 2, "{told}");
    assert!(waiting.iter().all(|leaf| leaf["renewed_as"].is_string()), "{told}");
    let refused = desk.run(&format!("ca rotate finish {} {}", ask(&one), ask(&two)));
    assert_eq!(refused.code, 1, "{}", refused.out);
    two.reload_identity(desk.identity("lb-2")).unwrap();
    let told = desk.ok(&format!("ca rotate finish {} {}", ask(&one), ask(&two)));
    assert!(told.contains("dropped the old root") && told.contains("next: copy ca/ca.pem"), "{told}");
    assert_eq!(names(&desk.path("ca")), ["ca.key", "ca.pem", "crl.pem", "issued"]);
    assert_eq!(desk.json("inspect ca/ca.pem")["items"].as_array().unwrap().len(), 1);

    let new = desk.read("ca/ca.pem");
    for (node, cluster) in [("lb-1", &one), ("lb-2", &two), ("lb-3", &three)] {
        desk.write(&format!("{node}/ca.pem"), &new);
        cluster.reload_identity(desk.identity(node)).unwrap();
    }
    desk.ok("node issue lb-4 --out lb-4");
    let four = desk.start("lb-4", &[&one]).await;
    until("all four see all", || [&one, &two, &three, &four].iter().all(|node| node.cluster_size() == 4))
        .await;
    for node in [one, two, three, four] {
        node.stop().await.unwrap();
    }
}

#[test]
fn a_rotation_ends_by_files_that_are_in_use_or_by_revocation() {
    let desk = Desk::with_authority();
    for node in ["a", "b", "c"] {
        desk.ok(&format!("node issue {node} --out certs/{node}"));
    }
    desk.ok("ca rotate begin");
    desk.ok("node renew a --out certs/a");
    let told = desk.run("ca rotate finish --shown certs --json");
    let object = one_object(&told.out);
    let waiting: Vec<_> = object["waiting"].as_array().unwrap().iter().map(|leaf| &leaf["node_id"]).collect();
    assert_eq!((told.code, waiting), (1, vec![&Value::from("b"), &Value::from("c")]));
    assert_eq!(object["shown"], 3);
    desk.ok("node renew b --out certs/b");
    desk.ok("node revoke c"); // it will not come back
    fs::remove_dir_all(desk.path("certs/c")).unwrap();
    assert_eq!(desk.run("ca rotate finish").code, 1, "nobody has shown that a and b have moved");
    // A certificate of another authority proves nothing.
    desk.ok("ca init edge --dir other");
    desk.ok("node issue b --out foreign/b --dir other");
    assert_eq!(desk.run("ca rotate finish --shown certs/a --shown foreign").code, 1);
    let told = desk.json("ca rotate status --shown certs");
    assert_eq!(told["waiting"], serde_json::json!([]));
    assert!(told["next"][0].as_str().unwrap().starts_with("phalanx ca rotate finish"), "{told}");
    desk.ok("ca rotate finish --shown certs");
    let told = desk.json("node list");
    let dropped = |leaf: &&Value| leaf["standing"] == "dropped";
    assert_eq!(told["issued"].as_array().unwrap().iter().filter(dropped).count(), 3, "{told}");
    desk.ok("ca rotate begin"); // and so on
}

#[test]
fn inspect_says_what_a_file_holds_and_shows_no_secret() {
    let desk = Desk::with_authority();
    desk.ok("node issue lb-1 --out lb-1");
    desk.ok("node csr lb-2 --out lb-2");
    for (file, says) in [
        ("lb-1/cert.pem", &["a node's certificate", "spiffe://edge/node/lb-1", "ECDSA P-256"][..]),
        ("ca/ca.pem", &["an authority's certificate", "spiffe://edge", "phalanx CA"]),
        ("ca/crl.pem", &["a revocation list", "revoked      0", "phalanx CA"]),
        ("lb-2/node.csr", &["a signing request", "CN=lb-2", "ECDSA P-256"]),
        ("lb-1/key.pem", &["a private key, which is not shown", "ECDSA P-256"]),
        ("ca/ca.key", &["a private key, which is not shown"]),
    ] {
        let told = desk.ok(&format!("inspect {file}"));
        for part in says {
            assert!(told.contains(part), "{file}: {part} is not in {told}");
        }
        let object = desk.json(&format!("inspect {file}"));
        assert!(object["items"][0]["kind"].is_string(), "{object}");
        for secret in ["lb-1/key.pem", "ca/ca.key", "lb-2/key.pem"] {
            let text = desk.read(secret);
            let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).unwrap();
            // Where a PKCS #8 key on P-256 has its 32 secret bytes; in base64 and in hexadecimal.
            let secret = &der.secret_pkcs8_der()[36..68];
            let hex = secret.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
            let base64: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
            for (part, whole) in [(&base64[48..88], &told), (&base64[48..88], &object.to_string())] {
                for at in 0..=part.len() - 8 {
                    assert!(!whole.contains(&part[at..at + 8]), "{file}");
                }
                assert!(!whole.to_lowercase().contains(&hex[..16]) && !whole.contains(&hex[48..]), "{file}");
            }
            assert!(!told.contains("BEGIN"), "{told}");
        }
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(desk.path("lb-1/key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
        let told = desk.ok("inspect lb-1/key.pem");
        assert!(told.contains("others than its owner have access (mode 0644); run: chmod 600"), "{told}");
    }
    desk.write("x.pem", "hello");
    assert!(desk.fails("inspect x.pem").contains("file x.pem: it is not PEM"));
    desk.write("x.pem", "-----BEGIN PUBLIC KEY-----\nYWJj\n-----END PUBLIC KEY-----\n");
    assert!(desk.fails("inspect x.pem").contains("nothing in it can be shown, it holds a public key"));
}

#[test]
fn doctor_finds_every_fault_at_once() {
    let desk = Desk::with_authority();
    desk.ok("node issue lb-1 --out lb-1");
    desk.ok("node issue lb-2 --out lb-2");
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let files = "tls.ca = \"lb-1/ca.pem\"\ntls.cert = \"lb-1/cert.pem\"\n";
    let config = |more: &str| {
        let head = "[cluster]\nenabled = true\nbind-address = \"127.0.0.1\"\n";
        desk.write("lb.toml", format!("{head}{files}{more}"));
    };
    config(&format!(
        "bind-port = {port}\nbind-prot = 1\ngossip-fanout = 0\nseeds = [\"nowhere\"]\ntls.key = \"none.pem\"\n"
    ));
    desk.write("lb-1/ca.pem", "hello");
    let told = desk.run("doctor --config lb.toml --json");
    assert_eq!((told.code, told.err.as_str()), (1, ""));
    let object = one_object(&told.out);
    let keys: Vec<_> =
        object["faults"].as_array().unwrap().iter().map(|fault| fault["key"].as_str().unwrap()).collect();
    for key in ["bind-prot", "gossip-fanout", "seeds", "tls.key", "tls.ca", "bind-port"] {
        assert!(keys.contains(&key), "{key} is not in {keys:?}");
    }
    let told = desk.run("doctor --config lb.toml");
    assert_eq!((told.code, told.err.as_str()), (1, ""));
    for says in [
        "6 faults; a node would not start",
        "did you mean bind-port?",
        "gossip-fanout = 0: it is zero",
        "tls.key = none.pem: there is no such file",
        "tls.ca = lb-1/ca.pem: CA file lb-1/ca.pem: it is not PEM",
        &format!("bind-port = {port}: cannot listen on 127.0.0.1:{port}"),
        "next: mend these",
    ] {
        assert!(told.out.contains(says), "{says:?} is not in {}", told.out);
    }
    drop(taken);

    // What only a start would find: the certificate loads, and peers refuse it.
    fs::copy(desk.path("lb-2/ca.pem"), desk.path("lb-1/ca.pem")).unwrap();
    config("bind-port = 0\ntls.key = \"lb-1/key.pem\"\ntls.crl = \"crl.pem\"\n");
    desk.ok("node revoke lb-1");
    desk.ok("crl publish --out crl.pem");
    let told = desk.run("doctor --config lb.toml");
    assert!(told.code == 1 && told.out.contains("1 fault;") && told.out.contains("revoked"), "{}", told.out);
    config("bind-port = 0\ntls.key = \"lb-2/key.pem\"\n");
    let told = desk.run("doctor --config lb.toml");
    assert!(told.code == 1 && told.out.contains("it does not belong to the certificate"), "{}", told.out);
    config("bind-port = 0\nnode-id = \"lb-9\"\ntls.key = \"lb-1/key.pem\"\n");
    let told = desk.run("doctor --config lb.toml");
    assert!(told.code == 1 && told.out.contains("the certificate names lb-1"), "{}", told.out);
    config("bind-port = 0\ntls.key = \"lb-1/key.pem\"\n");
    assert!(desk.ok("doctor --config lb.toml").contains("nothing stands against a start"));
    desk.write("off.toml", "[cluster]\n");
    assert!(desk.ok("doctor --config off.toml").contains("warning  enabled = false"));
    let told = desk.run("doctor --config none.toml");
    assert!(told.code == 1 && told.out.contains("there is no such file"), "{}", told.out);
}

#[test]
fn the_commands_of_the_page_run_as_they_stand() {
    let page = include_str!("../certs/README.md");
    let chapter = page.split("\n## The command line\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let desk = Desk::new();
    desk.write(
        "lb-1.toml",
        "[cluster]\nenabled = true\nbind-address = \"127.0.0.1\"\nbind-port = 0\n\
         tls.ca = \"certs/lb-1/ca.pem\"\ntls.cert = \"certs/lb-1/cert.pem\"\n\
         tls.key = \"certs/lb-1/key.pem\"\ntls.crl = \"certs/lb-1/crl.pem\"\n",
    );
    let blocks =
        chapter.split("```sh\n").skip(1).flat_map(|block| block.split("```").next().unwrap().lines());
    let commands: Vec<_> = blocks
        .filter_map(|line| line.strip_prefix("phalanx "))
        .map(|line| line.split('#').next().unwrap().trim())
        .collect();
    assert_eq!(commands.len(), 14, "{commands:?}");
    for command in commands {
        desk.ok(command);
    }
}

#[test]
fn two_at_once_take_nothing_from_one_another() {
    let desk = Desk::with_authority();
    let children: Vec<_> = (0..6)
        .map(|at| {
            Command::new(env!("CARGO_BIN_EXE_phalanx"))
                .args(["node", "issue", &format!("n{at}"), "--out", &format!("n{at}")])
                .current_dir(desk.0.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    assert!(children.into_iter().all(|mut child| child.wait().unwrap().success()));
    assert_eq!(desk.json("node list")["issued"].as_array().unwrap().len(), 6);

    // Killed while it wrote: the next is told, and changes nothing.
    desk.write("ca/.lock", "1");
    let before = desk.read("ca/crl.pem");
    let error = desk.fails("node revoke n0");
    assert!(error.contains("another process is writing to it") && error.contains("rm ca/.lock"), "{error}");
    assert_eq!(desk.read("ca/crl.pem"), before);
    fs::remove_file(desk.path("ca/.lock")).unwrap();
    desk.ok("node revoke n0");
}
