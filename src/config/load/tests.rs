//! Tests of `load`: each fault, with its words. Reads no variable of the process's own environment.

use super::*;

fn faults(result: Result<Config, Error>) -> Vec<String> {
    match result.unwrap_err() {
        Error::Config { faults } => faults.iter().map(ToString::to_string).collect(),
        other => panic!("{other}"),
    }
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn from_env(pairs: &[(&str, &str)]) -> Result<Config, Error> {
    Config::default().with_variables(variables(pairs))
}

/// The keys of a serialised table, dotted.
fn keys(prefix: &str, value: &serde_json::Value) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in value.as_object().unwrap() {
        let key = format!("{prefix}{key}");
        if key == "tls" {
            found.extend(keys("tls.", value));
        } else {
            found.push(key);
        }
    }
    found.sort();
    found
}

#[test]
fn the_keys_of_the_loader_are_those_of_serde() {
    let mut known: Vec<_> = file_keys().map(str::to_owned).collect();
    known.sort();
    assert_eq!(keys("", &serde_json::to_value(Config::default()).unwrap()), known);
}

#[test]
fn every_key_sets_its_own_field() {
    let text = r#"
        [other]
        anything = 1
        [cluster]
        enabled = true
        node-id = "lb-1"
        bind-address = "::1"
        bind-port = 1
        seeds = ["a:1", "b:2"]
        gossip-interval-ms = 2
        gossip-fanout = 3
        push-pull-interval-ms = 4
        max-batch-size = 0x05
        zone = "fra"
        advertise-address = "10.0.0.1"
        ping-interval-ms = 6
        ping-timeout-ms = 7
        ping-req-count = 8
        suspicion-mult = 9
        fast-detection = true
        sync-health = false
        sync-circuit-breaker = false
        sync-drain = false
        sync-conntrack = false
        sign = "all"
        sign-types = ["a:1", "b:2"]
        dead-node-reclaim-ms = 10
        tombstone-ttl-ms = 11
        max-connections = 12
        tags = { rack = "r1" }
        [cluster.tls]
        ca = "ca.pem"
        cert = "cert.pem"
        key = "key.pem"
        crl = "crl.pem"
        crl-required = true
        shared-certificate = true
        watch = true
        watch-interval-ms = 13
    "#;
    let expected = serde_json::json!({
        "enabled": true, "node-id": "lb-1", "bind-address": "::1", "bind-port": 1, "seeds": ["a:1", "b:2"],
        "gossip-interval-ms": 2, "gossip-fanout": 3, "push-pull-interval-ms": 4, "max-batch-size": 5,
        "zone": "fra", "advertise-address": "10.0.0.1", "ping-interval-ms": 6, "ping-timeout-ms": 7,
        "ping-req-count": 8, "suspicion-mult": 9, "fast-detection": true,
        "sync-health": false, "sync-circuit-breaker": false,
        "sync-drain": false, "sync-conntrack": false, "sign": "all", "sign-types": ["a:1", "b:2"],
        "dead-node-reclaim-ms": 10, "tombstone-ttl-ms": 11,
        "max-connections": 12, "tags": {"rack": "r1"},
        "tls": {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem", "crl": "crl.pem",
            "crl-required": true, "shared-certificate": true, "watch": true, "watch-interval-ms": 13},
    });
    assert_eq!(serde_json::to_value(Config::from_toml(text).unwrap()).unwrap(), expected);

    // The same through the environment.
    let mut pairs = Vec::new();
    for key in file_keys() {
        let value = key.split('.').fold(&expected, |value, part| &value[part]);
        let text = match value {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(_) => " a:1 , b:2,".into(),
            serde_json::Value::Object(_) => "rack=r1".into(),
            other => other.to_string(),
        };
        pairs.push((OsString::from(variable(key)), OsString::from(text)));
    }
    // The values are out of bounds for `check`, which is not asked here.
    let mut config = Config::default();
    let mut faults = Faults::default();
    read_variables(pairs, &mut config, &mut faults);
    assert_eq!(serde_json::to_value(config).unwrap(), expected);
}

#[test]
fn what_a_file_holds_wrongly_is_told_with_its_line() {
    for (line, expected) in [
        ("bind-prot = 1", "bind-prot = 1: there is no such key (line 2); did you mean bind-port?"),
        (
            "gossip-interval = 1",
            "gossip-interval = 1: there is no such key (line 2); did you mean gossip-interval-ms?",
        ),
        (
            "sign = \"some\"",
            "sign = \"some\": there is no such setting (line 2); use \"claims\" or \"all\", or leave it out and set sign-types",
        ),
        (
            "sign = true",
            "sign = true: it is true or false (line 2); use \"claims\" or \"all\", or leave it out and set sign-types",
        ),
        ("sign-types = \"drain\"", "sign-types = \"drain\": it is a string (line 2); use a list of strings"),
        ("tls-ca = \"x\"", "tls-ca = \"x\": there is no such key (line 2); did you mean tls.ca?"),
        ("tls.cret = \"x\"", "tls.cret = \"x\": there is no such key (line 2); did you mean tls.cert?"),
        ("bind_port = 1", "bind_port = 1: there is no such key (line 2); did you mean bind-port?"),
        ("\"a\\nb\" = 1", "\"a\\nb\" = 1: there is no such key (line 2); did you mean tags?"),
        (
            "identity = \"x\"",
            "identity = \"x\": it cannot be written in a file (line 2); set tls.ca, tls.cert and tls.key",
        ),
        (
            "tls = \"x\"",
            "tls = \"x\": it is a string, not a table (line 2); set tls.ca, tls.cert and tls.key",
        ),
        (
            "bind-port = \"1\"",
            "bind-port = \"1\": it is a string (line 2); use a whole number from 0 to 65535",
        ),
        (
            "bind-port = 70000",
            "bind-port = 70000: it is too large (line 2); use a whole number from 0 to 65535",
        ),
        ("bind-port = -1", "bind-port = -1: it is negative (line 2); use a whole number from 0 to 65535"),
        (
            "bind-port = 1.5",
            "bind-port = 1.5: it is a number with a fraction (line 2); use a whole number from 0 to 65535",
        ),
        (
            "bind-address = \"999.1.1.1\"",
            "bind-address = \"999.1.1.1\": it is no IP address (line 2); use an address of this host, or 0.0.0.0 or :: for all of them",
        ),
        ("enabled = 1", "enabled = 1: it is a number (line 2); use true or false"),
        ("node-id = 1", "node-id = 1: it is a number (line 2); use a string"),
        ("seeds = \"a:1\"", "seeds = \"a:1\": it is a string (line 2); use a list of strings"),
        (
            "seeds = [1]",
            "seeds = [1 items]: it is a list that holds more than strings (line 2); use a list of strings",
        ),
        (
            "tags = { a = 1 }",
            "tags = {1 keys}: it is a table that holds more than strings (line 2); use a table of strings: { rack = \"r1\" }",
        ),
        (
            "ping-interval-ms = -5",
            "ping-interval-ms = -5: it is negative (line 2); use a whole number of milliseconds",
        ),
        (
            "ping-interval-ms = 99999999999999999999",
            "ping-interval-ms = 99999999999999999999: it is too large (line 2); use a whole number of milliseconds",
        ),
        (
            "suspicion-mult = 4294967296",
            "suspicion-mult = 4294967296: it is too large (line 2); use a whole number",
        ),
        ("zone = 1979-05-27", "zone = 1979-05-27: it is a date (line 2); use a string"),
        ("tls.ca = true", "tls.ca = true: it is true or false (line 2); use the path of a file, a string"),
    ] {
        assert_eq!(faults(Config::from_toml(&format!("[cluster]\n{line}\n"))), [expected]);
    }
}

#[test]
fn bad_syntax_and_duplicate_keys_name_their_line() {
    for (text, line, fault) in [
        ("[cluster]\nbind-port = 1\nbind-port = 2", "line 3 = \"bind-port = 2\"", "duplicate key"),
        ("[cluster]\nbind-port = ", "line 2 = ", ""),
        ("[cluster]\n\nbind-port : 1", "line 3 = ", ""),
        ("[cluster\nbind-port = 1", "line 1 = \"[cluster\"", ""),
        ("[cluster]\n[cluster]", "line 2 = ", "duplicate key"),
    ] {
        let told = faults(Config::from_toml(text));
        assert!(told[0].starts_with(line) && told[0].contains(fault), "{text}: {told:?}");
        assert!(told[0].lines().count() == 1, "{told:?}");
    }
}

#[test]
fn a_text_without_the_table_is_refused() {
    for text in ["", "bind-port = 1", "[custer]\nbind-port = 1"] {
        assert_eq!(
            faults(Config::from_toml(text)),
            ["[cluster] = none: there is no such table; put the settings under [cluster]"]
        );
    }
    assert_eq!(
        faults(Config::from_toml("\ncluster = 1")),
        [
            "cluster = \"cluster = 1\": it is an integer, not a table (line 2); put the settings under [cluster]"
        ]
    );
    assert!(faults(Config::from_toml("[[cluster]]\n"))[0].contains("it is an array, not a table"));
}

#[test]
fn all_faults_of_file_and_environment_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lb.toml");
    std::fs::write(&path, "[cluster]\nzone = 1\nbind-port = 70000\n").unwrap();
    let told = faults(Config::load_with(&path, variables(&[("PHALANX_ENABLED", "yes")])));
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].contains(&format!("({} line 2)", path.display())), "{told:?}");
    assert!(told[1].starts_with("bind-port"));
    assert_eq!(told[2], "PHALANX_ENABLED = \"yes\": it is neither true nor false; use true or false");
}

#[test]
fn the_environment_goes_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lb.toml");
    std::fs::write(
        &path,
        "[cluster]\nbind-port = 1\ngossip-fanout = 5\ntls.ca = 'ca.pem'\ntls.key = '/k.pem'",
    )
    .unwrap();
    let env =
        [("PHALANX_BIND_PORT", "2"), ("PHALANX_TLS_CERT", "cert.pem"), ("HOME", "/x"), ("PHALANXES", "")];
    let config = Config::load_with(&path, variables(&env)).unwrap();
    assert_eq!((config.bind_port, config.gossip_fanout), (2, 5));
    assert_eq!(config.tls.ca, Some(dir.path().join("ca.pem")), "relative to the file");
    assert_eq!(config.tls.key, Some("/k.pem".into()));
    assert_eq!(config.tls.cert, Some("cert.pem".into()), "relative to the working directory");
}

#[test]
fn seeds_and_tags_are_lists_in_a_variable() {
    let config =
        from_env(&[("PHALANX_SEEDS", "a:1, [::1]:2,"), ("PHALANX_TAGS", "rack=r1, model=x=y,empty=")])
            .unwrap();
    assert_eq!(config.seeds, ["a:1", "[::1]:2"]);
    let tags = [("empty", ""), ("model", "x=y"), ("rack", "r1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(config.tags, BTreeMap::from(tags));
    assert_eq!(from_env(&[("PHALANX_SEEDS", "")]).unwrap().seeds, [""; 0]);
}

#[test]
fn a_bad_variable_is_named() {
    for (name, value, expected) in [
        (
            "PHALANX_BIND_PROT",
            "1",
            "PHALANX_BIND_PROT = \"1\": there is no such variable; did you mean PHALANX_BIND_PORT?",
        ),
        (
            "PHALANX_BIND_PORT",
            "70000",
            "PHALANX_BIND_PORT = \"70000\": it is too large; use a whole number from 0 to 65535",
        ),
        (
            "PHALANX_BIND_PORT",
            "x",
            "PHALANX_BIND_PORT = \"x\": it is no whole number; use a whole number from 0 to 65535",
        ),
        (
            "PHALANX_BIND_ADDRESS",
            "999.1.1.1",
            "PHALANX_BIND_ADDRESS = \"999.1.1.1\": it is no IP address; use an address of this host, or 0.0.0.0 or :: for all of them",
        ),
        ("PHALANX_TAGS", "rack", "PHALANX_TAGS = \"rack\": \"rack\" has no =; use rack=r1,model=x"),
        ("PHALANX_GOSSIP_FANOUT", "0", "PHALANX_GOSSIP_FANOUT = 0: it is zero; use 1 to 64"),
        ("PHALANX_SEEDS", "lb-1", "PHALANX_SEEDS = \"lb-1\": it has no port; write it as lb-1:7946"),
    ] {
        assert_eq!(faults(from_env(&[(name, value)])), [expected]);
    }
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = OsString::from_vec(vec![b'a', 0xff]);
    let told = faults(Config::default().with_variables([("PHALANX_ZONE".into(), bytes.clone())]));
    assert!(told[0].starts_with("PHALANX_ZONE = ") && told[0].contains("it is not UTF-8"), "{told:?}");
    let config = Config::default().with_variables([("PHALANX_TLS_CA".into(), bytes.clone())]).unwrap();
    assert_eq!(config.tls.ca, Some(PathBuf::from(bytes)), "paths may be anything");
}

#[test]
fn files_that_cannot_be_read_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let load = |path: &Path| Config::load_with(path, []).unwrap_err().to_string();
    let path = dir.path().join("lb.toml");
    assert!(load(&path).contains("there is no such file"));
    assert!(load(dir.path()).contains("it is a directory"));
    std::fs::write(&path, b"[cluster]\nzone = \"\xff\"").unwrap();
    let error = load(&path);
    assert!(error.contains("line 2 is not UTF-8 (byte 18)") && error.contains("lb.toml"), "{error}");
    std::fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    let error = load(&path);
    assert!(error.contains("it has 104857600 bytes, more than 1048576"), "{error}");
    let longest = [b"[cluster]\n#".to_vec(), vec![b'x'; (1 << 20) - 11]].concat();
    std::fs::write(&path, longest).unwrap();
    assert!(Config::load_with(&path, []).is_ok());
}

#[test]
fn the_nearest_key_takes_the_fewest_edits() {
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    assert_eq!(distance(&chars("kitten"), "sitting"), 3);
    assert_eq!(distance(&chars(""), "abc"), 3);
    assert_eq!(distance(&chars("abc"), ""), 3);
    assert_eq!(distance(&chars("zone"), "zone"), 0);
    let huge = "x".repeat(1 << 20);
    assert!(file_keys().any(|key| key == nearest(&huge, file_keys().map(str::to_owned))));
}

#[test]
fn no_text_makes_the_loader_panic() {
    use proptest::prelude::*;
    proptest!(|(text in "(\\[cluster\\]\n)?([a-z.\"-]{1,8} ?= ?[\\[\\]{}\"0-9a-z.,=\n-]{0,12}\n){0,4}")| {
        let _ = Config::from_toml(&text);
    });
}
