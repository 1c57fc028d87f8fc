//! Tests of `check`: each fault, with its words. Reads no variable of the process's own environment.

use std::collections::BTreeMap;

use super::*;

/// Each fault of the config, as its user reads it.
fn told(config: &Config) -> Vec<String> {
    config.faults().iter().map(ToString::to_string).collect()
}

fn with(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

fn ms(interval: u64) -> Duration {
    Duration::from_millis(interval)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_fault_is_told_with_key_value_fault_and_remedy() {
    type Case = (fn(&mut Config), &'static str);
    let cases: &[Case] = &[
        (
            |c| c.gossip_interval = ms(0),
            "gossip-interval-ms = 0: it is zero; use at least 1 and at most 86400000 (a day)",
        ),
        (
            |c| c.gossip_interval = Duration::from_micros(9),
            "gossip-interval-ms = 0: it is under a millisecond; use at least 1 and at most 86400000 (a day)",
        ),
        (
            |c| c.push_pull_interval = ms(0),
            "push-pull-interval-ms = 0: it is zero; use at least 1 and at most 86400000 (a day)",
        ),
        (
            |c| c.push_pull_interval = ms(86_400_001),
            "push-pull-interval-ms = 86400001: it is too long; use at least 1 and at most 86400000 (a day)",
        ),
        (
            |c| c.ping_interval = ms(1_000_000_000_000),
            "ping-interval-ms = 1000000000000: it is too long; use at least 1 and at most 86400000 (a day)",
        ),
        (
            |c| c.ping_timeout = ms(0),
            "ping-timeout-ms = 0: it is zero; use at least 1 and at most 86400000 (a day)",
        ),
        (
            |c| c.ping_timeout = ms(1000),
            "ping-timeout-ms = 1000: it is not below ping-interval-ms = 1000; use about half of the interval",
        ),
        (
            |c| c.dead_node_reclaim = ms(0),
            "dead-node-reclaim-ms = 0: it is zero; use at least 1 and at most 31536000000 (a year)",
        ),
        (
            |c| c.dead_node_reclaim = Duration::MAX,
            "dead-node-reclaim-ms = 18446744073709551615999: it is too long; use at least 1 and at most 31536000000 (a year)",
        ),
        (
            |c| c.tombstone_ttl = ms(0),
            "tombstone-ttl-ms = 0: it is zero; use at least 1 and at most 31536000000 (a year)",
        ),
        (
            |c| c.tombstone_ttl = ms(1_000_000_000_000),
            "tombstone-ttl-ms = 1000000000000: it is too long; use at least 1 and at most 31536000000 (a year)",
        ),
        (|c| c.gossip_fanout = 0, "gossip-fanout = 0: it is zero; use 1 to 64"),
        (|c| c.gossip_fanout = 65, "gossip-fanout = 65: it is too large; use 1 to 64"),
        (|c| c.max_batch_size = 0, "max-batch-size = 0: it is zero; use 1 to 10000"),
        (|c| c.max_batch_size = 10_001, "max-batch-size = 10001: it is too large; use 1 to 10000"),
        (|c| c.ping_req_count = 65, "ping-req-count = 65: it is too large; use 0 to 64"),
        (|c| c.suspicion_mult = 0, "suspicion-mult = 0: it is zero; use 1 to 100"),
        (|c| c.suspicion_mult = 101, "suspicion-mult = 101: it is too large; use 1 to 100"),
        (|c| c.max_connections = 0, "max-connections = 0: it is zero; use 1 to 65536"),
        (|c| c.max_connections = 65_537, "max-connections = 65537: it is too large; use 1 to 65536"),
        (
            |c| c.node_id = "..".into(),
            "node-id = \"..\": it is a relative path; use \"auto\" or 1 to 128 of A-Z a-z 0-9 . _ -",
        ),
        (
            |c| c.node_id = "a b".into(),
            "node-id = \"a b\": ' ' is not allowed; use \"auto\" or 1 to 128 of A-Z a-z 0-9 . _ -",
        ),
        (
            |c| c.node_id = String::new(),
            "node-id = \"\": it is empty; use \"auto\" or 1 to 128 of A-Z a-z 0-9 . _ -",
        ),
        (|c| c.zone = Some(String::new()), "zone = \"\": it is empty; name a zone or leave the key out"),
        (|c| c.zone = Some("z".repeat(65)), "it has 65 bytes; use at most 64 bytes"),
        (
            |c| c.tags = (0..65).map(|i| (i.to_string(), String::new())).collect(),
            "tags = 65 tags: there are too many; use at most 64 tags",
        ),
        (
            |c| c.tags = BTreeMap::from([("k".into(), "v".repeat(4096))]),
            "tags = 4097 bytes: they are too long; use at most 4096 bytes in all, keys and values",
        ),
        (
            |c| c.tags = BTreeMap::from([(String::new(), "v".into())]),
            "tags = \"\" = \"v\": a tag has no name; name it",
        ),
        (
            |c| c.bind_address = "224.0.0.1".parse().unwrap(),
            "bind-address = 224.0.0.1: no socket can be bound to it; use an address of this host, or 0.0.0.0 or :: for all of them",
        ),
        (
            |c| c.bind_address = "255.255.255.255".parse().unwrap(),
            "bind-address = 255.255.255.255: no socket can be bound to it; use an address of this host, or 0.0.0.0 or :: for all of them",
        ),
        (|c| c.seeds = vec!["lb-1".into()], "seeds = \"lb-1\": it has no port; write it as lb-1:7946"),
        (
            |c| c.seeds = vec!["lb-1:99999".into()],
            "seeds = \"lb-1:99999\": \"99999\" is no port; use a port from 1 to 65535",
        ),
        (
            |c| c.seeds = vec!["::1:7946".into()],
            "seeds = \"::1:7946\": an IPv6 address needs brackets and a port; write it as [::1]:7946",
        ),
        (
            |c| c.advertise_address = Some("0.0.0.0:7946".into()),
            "advertise-address = \"0.0.0.0:7946\": 0.0.0.0 is unspecified: no node can be reached there; use an address of one host",
        ),
        (
            |c| c.advertise_address = Some("[ff02::1]:1".into()),
            "advertise-address = \"[ff02::1]:1\": ff02::1 is multicast: no node can be reached there; use an address of one host",
        ),
        (
            |c| c.advertise_address = Some("255.255.255.255".into()),
            "advertise-address = \"255.255.255.255\": 255.255.255.255 is the broadcast address: no node can be reached there; use an address of one host",
        ),
        (
            |c| c.advertise_address = Some("10.0.0.1:0".into()),
            "advertise-address = \"10.0.0.1:0\": 0 is no port; use a port from 1 to 65535",
        ),
        (
            |c| c.advertise_address = Some("lb-1:7946".into()),
            "advertise-address = \"lb-1:7946\": it is no IP address; use ip:port, or an IP address alone for the bound port; names are not resolved",
        ),
        (
            |c| c.enabled = true,
            "tls = none: the node has nothing to prove itself with; set tls.ca, tls.cert and tls.key, or give the config an identity",
        ),
    ];
    for (change, expected) in cases {
        let told = told(&with(change));
        assert_eq!(told.len(), 1, "{expected}: {told:#?}");
        assert!(told[0].ends_with(expected), "{expected}\n{}", told[0]);
    }
}

#[test]
fn fast_detection_contradicts_what_it_sets() {
    assert_eq!(told(&with(|c| c.fast_detection = true)), [""; 0]);
    let config = with(|c| {
        c.fast_detection = true;
        (c.ping_interval, c.ping_timeout, c.suspicion_mult) = (ms(900), ms(300), 2);
    });
    let said = |key: &str| format!("{key}: fast-detection = true sets it; leave one of the two out");
    let expected = ["ping-interval-ms = 900", "ping-timeout-ms = 300", "suspicion-mult = 2"].map(said);
    let told = told(&config);
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    assert!(told.iter().zip(&expected).all(|(told, expected)| told.ends_with(expected)), "{told:#?}");
}

#[test]
fn what_is_signed_is_named_once_and_by_names_that_types_can_have() {
    type Case = (fn(&mut Config), &'static [&'static str]);
    let cases: [Case; 7] = [
        (|c| c.sign = Sign::All, &[]),
        (|c| c.sign_types = vec!["drain".into(), "own".into()], &[]),
        (
            |c| (c.sign, c.sign_types) = (Sign::All, vec!["drain".into()]),
            &["sign-types = 1 types: sign = \"all\" signs every type; leave one of the two out"],
        ),
        (
            |c| c.sign_types = vec![String::new(), "a\nb".into()],
            &[
                "sign-types = \"\": no type can have that name; use names of 1 to 64 bytes without control characters",
                "sign-types = \"a\\nb\": no type can have that name; use names of 1 to 64 bytes without control characters",
            ],
        ),
        (
            |c| c.sign_types = vec!["x".into(); 257],
            &["sign-types = 257 types: there are too many; use at most 256, or sign = \"all\""],
        ),
        (
            |c| (c.sign, c.tls.shared_certificate) = (Sign::All, true),
            &[
                "sign = all: with tls.shared-certificate = true any node could sign as any other; give each node a \
               certificate of its own, or leave signing off",
            ],
        ),
        (
            |c| (c.sign_types, c.tls.shared_certificate) = (vec!["x".into()], true),
            &[
                "sign-types = 1 types: with tls.shared-certificate = true any node could sign as any other; give each \
               node a certificate of its own, or leave signing off",
            ],
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(told(&with(change)), expected);
    }
}

#[test]
fn the_bounds_themselves_are_allowed() {
    let low = with(|c| {
        (c.gossip_interval, c.push_pull_interval, c.ping_timeout, c.ping_interval) =
            (ms(1), ms(1), ms(1), ms(2));
        (c.dead_node_reclaim, c.tombstone_ttl) = (ms(1), ms(1));
        (c.gossip_fanout, c.max_batch_size, c.ping_req_count, c.suspicion_mult, c.max_connections) =
            (1, 1, 0, 1, 1);
    });
    assert_eq!(told(&low), [""; 0]);
    let high = with(|c| {
        (c.gossip_interval, c.push_pull_interval, c.ping_interval) = (DAY, DAY, DAY);
        c.ping_timeout = ms(86_399_999);
        (c.dead_node_reclaim, c.tombstone_ttl) = (YEAR, YEAR);
        (c.gossip_fanout, c.max_batch_size, c.ping_req_count) = (64, 10_000, 64);
        (c.suspicion_mult, c.max_connections) = (100, 65_536);
        c.zone = Some("z".repeat(64));
        c.tags = BTreeMap::from([("k".into(), "v".repeat(4095))]);
        c.node_id = "n".repeat(128);
        c.bind_port = 0;
    });
    assert_eq!(told(&high), [""; 0]);
}

#[test]
fn all_faults_are_told_at_once() {
    let config = with(|c| {
        c.enabled = true;
        c.gossip_fanout = 0;
        c.ping_interval = ms(0);
        c.seeds = vec!["a".into(), "b:1".into(), "c:0".into()];
    });
    let Error::Config { faults } = config.check().unwrap_err() else { panic!() };
    let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["ping-interval-ms", "ping-timeout-ms", "gossip-fanout", "seeds", "seeds", "tls"]);
}

#[test]
fn tls_given_in_part_names_what_is_missing() {
    let config = with(|c| c.tls.cert = Some("cert.pem".into()));
    assert_eq!(
        told(&config),
        [
            "tls.ca = none: it is missing beside tls.cert; tls.ca, tls.cert and tls.key belong together",
            "tls.key = none: it is missing beside tls.cert; tls.ca, tls.cert and tls.key belong together",
        ]
    );
    let config = with(|c| {
        (c.enabled, c.tls.ca, c.tls.cert) = (true, Some("ca.pem".into()), Some("cert.pem".into()));
    });
    assert_eq!(
        told(&config),
        [
            "tls.key = none: it is missing beside tls.ca and tls.cert; tls.ca, tls.cert and tls.key belong together"
        ]
    );
    let config = with(|c| c.tls.crl = Some("crl.pem".into()));
    assert_eq!(told(&config).len(), 3, "{:#?}", told(&config));
}

#[test]
fn a_config_that_is_not_enabled_reads_no_file() {
    let config = with(|c| {
        let missing = Some("/does/not/exist".into());
        (c.tls.ca, c.tls.cert, c.tls.key) = (missing.clone(), missing.clone(), missing);
    });
    assert!(config.check().unwrap().identity.is_none());
}

#[test]
fn missing_files_and_other_faults_are_told_together() {
    let dir = tempfile::tempdir().unwrap();
    let config = with(|c| {
        c.enabled = true;
        c.gossip_fanout = 0;
        c.tls.ca = Some(dir.path().join("ca.pem"));
        c.tls.cert = Some(dir.path().into());
        c.tls.key = Some(dir.path().join("key.pem"));
    });
    let Error::Config { faults } = config.check().unwrap_err() else { panic!() };
    let told: Vec<_> = faults.iter().map(|fault| (fault.key.as_str(), fault.fault.as_str())).collect();
    assert_eq!(
        told,
        [
            ("gossip-fanout", "it is zero"),
            ("tls.ca", "there is no such file"),
            ("tls.cert", "it is a directory"),
            ("tls.key", "there is no such file"),
        ]
    );
    assert!(faults[1].value.ends_with("ca.pem"));
}

#[cfg(feature = "authority")]
mod with_an_authority {
    use super::*;
    use crate::Authority;

    fn enabled(identity: Option<Identity>) -> Config {
        with(|c| (c.enabled, c.identity) = (true, identity))
    }

    fn issued(id: &str) -> Identity {
        Authority::generate("edge").unwrap().issue(&NodeId::new(id).unwrap()).unwrap()
    }

    fn only_fault(config: &Config) -> ConfigFault {
        let Error::Config { faults } = config.check().unwrap_err() else { panic!() };
        assert_eq!(faults.len(), 1, "{faults:#?}");
        faults[0].clone()
    }

    #[test]
    fn auto_takes_the_id_of_the_certificate() {
        let checked = enabled(Some(issued("lb-1"))).check().unwrap();
        assert_eq!(checked.node_id.as_str(), "lb-1");
        assert!(checked.identity.is_some());
    }

    #[test]
    fn an_id_that_the_certificate_does_not_name_is_refused() {
        let mut config = enabled(Some(issued("lb-1")));
        config.node_id = "lb-1".into();
        assert!(config.check().is_ok());
        config.node_id = "lb-2".into();
        assert_eq!(
            only_fault(&config).to_string(),
            "node-id = \"lb-2\": the certificate names lb-1; use \"auto\", or give the node its own certificate"
        );
    }

    #[test]
    fn a_shared_certificate_needs_the_switch_and_makes_an_id() {
        let shared = Authority::generate("edge").unwrap().issue_shared().unwrap();
        let mut config = enabled(Some(shared));
        let fault = only_fault(&config);
        assert_eq!((fault.key.as_str(), fault.value.as_str()), ("tls.shared-certificate", "false"));
        config.tls.shared_certificate = true;
        let id = |config: &Config| config.check().unwrap().node_id;
        assert_ne!(id(&config), id(&config), "a UUID each time");
        config.node_id = "lb-9".into();
        assert_eq!(id(&config).as_str(), "lb-9");
    }

    #[test]
    fn the_identity_is_loaded_from_files_with_its_list() {
        let authority = Authority::generate("edge").unwrap();
        let dir = tempfile::tempdir().unwrap();
        authority.issue(&NodeId::new("lb-1").unwrap()).unwrap().write_to(dir.path()).unwrap();
        std::fs::write(dir.path().join("list.pem"), authority.crl_pem()).unwrap();
        let mut config = enabled(None);
        let file = |name: &str| Some(dir.path().join(name));
        (config.tls.ca, config.tls.cert, config.tls.key) =
            (file("ca.pem"), file("cert.pem"), file("key.pem"));
        config.tls.crl = file("list.pem");
        assert_eq!(config.check().unwrap().node_id.as_str(), "lb-1");

        std::fs::write(dir.path().join("list.pem"), "garbage").unwrap();
        assert_eq!(only_fault(&config).key, "tls.crl");
        config.tls.crl = None;
        std::fs::write(dir.path().join("key.pem"), "garbage").unwrap();
        assert_eq!(only_fault(&config).key, "tls.key");
        std::fs::write(dir.path().join("ca.pem"), "").unwrap();
        assert_eq!(only_fault(&config).key, "tls.ca");
    }

    #[test]
    fn an_identity_of_the_programs_own_wins_over_the_files() {
        let mut config = enabled(Some(issued("lb-1")));
        config.tls.ca = Some("/does/not/exist".into());
        let checked = config.check().unwrap();
        assert_eq!(checked.node_id.as_str(), "lb-1");
        assert_eq!(checked.warnings.len(), 1, "{:?}", checked.warnings);
    }

    #[test]
    fn neither_debug_nor_serde_shows_the_key() {
        let identity = issued("lb-1");
        let dir = tempfile::tempdir().unwrap();
        identity.write_to(dir.path()).unwrap();
        let pem = std::fs::read_to_string(dir.path().join("key.pem")).unwrap();
        let config = enabled(Some(identity));
        let shown = format!("{config:?} {config:#?} {}", serde_json::to_string(&config).unwrap());
        for line in pem.lines().filter(|line| !line.starts_with("--")) {
            assert!(!shown.contains(line));
        }
        assert!(!serde_json::to_string(&config).unwrap().contains("identity"));
    }
}

#[test]
fn an_address_that_others_cannot_reach_is_warned_of() {
    let config = with(|c| {
        c.advertise_address = Some("127.0.0.1".into());
        c.seeds = vec!["10.0.0.1:7946".into()];
    });
    let warnings = config.check().unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("advertise-address = 127.0.0.1: "), "{warnings:?}");
    let config = with(|c| c.seeds = vec!["10.0.0.1:7946".into(), "lb-1:1".into()]);
    assert_eq!(config.check().unwrap().warnings, [""; 0]);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_without_waiting_for_its_writer() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert_eq!(fault_in_file(&pipe).unwrap().0, "it is not a regular file");
    assert!(read_bounded(&pipe, 10).is_err());
}
