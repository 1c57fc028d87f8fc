//! Every fault of a `Config` at once, and what is left when there is none: addresses parsed, the id known,
//! the identity loaded. Reads certificate files and nothing else; resolves no name, asks no clock.

use std::{
    fmt::Display,
    io::Read,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

use crate::{ConfigFault, Error, Identity, NodeId, wire::limits};

use super::{
    AUTO, Config, Sign, TlsConfig,
    address::{Advertise, Seed, is_loopback, shown},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Files are read no more often than that.
const WATCH_MIN: Duration = Duration::from_millis(100);

/// What a `Config` without faults comes to.
#[derive(Debug)]
pub(crate) struct Checked {
    /// The id: as configured, as certified, or a new UUID under a shared certificate.
    pub(crate) node_id: NodeId,
    /// `None` only if the config is not enabled.
    pub(crate) identity: Option<Identity>,
    pub(crate) seeds: Vec<Seed>,
    pub(crate) advertise: Option<Advertise>,
    /// What is allowed but unlikely to be meant, a line each: for the log, at warn.
    pub(crate) warnings: Vec<String>,
}

impl Config {
    /// Checks everything and loads the identity.
    ///
    /// # Errors
    /// [`Error::Config`] with every fault, those of the certificate files included.
    pub(crate) fn check(&self) -> Result<Checked, Error> {
        let mut faults = Faults::default();
        self.find_faults(&mut faults);
        let identity = if self.enabled || self.identity.is_some() {
            self.find_identity(&mut faults)
        } else {
            None // a program that is not configured needs no certificate files
        };
        let node_id = self.find_node_id(identity.as_ref(), &mut faults);
        let (seeds, advertise) = (self.parsed_seeds(), self.parsed_advertise());
        match (node_id, faults.0.is_empty()) {
            (Some(node_id), true) => {
                Ok(Checked { node_id, identity, seeds, advertise, warnings: self.warnings() })
            }
            _ => Err(Error::Config { faults: faults.0 }),
        }
    }

    /// Every fault, the identity if it could be loaded, and warnings: for who wants to know all of it and not
    /// to start.
    pub(crate) fn examine(&self) -> (Vec<ConfigFault>, Option<Identity>, Vec<String>) {
        let mut faults = Faults::default();
        self.find_faults(&mut faults);
        let identity = if self.enabled { self.find_identity(&mut faults) } else { None };
        self.find_node_id(identity.as_ref(), &mut faults);
        (faults.0, identity, self.warnings())
    }

    /// Every fault that shows without reading a file.
    pub(super) fn faults(&self) -> Vec<ConfigFault> {
        let mut faults = Faults::default();
        self.find_faults(&mut faults);
        faults.0
    }

    fn find_faults(&self, faults: &mut Faults) {
        self.find_faulty_intervals(faults);
        self.find_faulty_numbers(faults);
        self.find_contradictions(faults);
        self.find_faulty_signing(faults);
        self.find_faulty_metadata(faults);
        self.find_faulty_addresses(faults);
        if self.identity.is_none() {
            self.tls.find_faults(self.enabled, faults);
        }
    }

    fn find_faulty_intervals(&self, faults: &mut Faults) {
        let day = "at most 86400000 (a day)";
        let year = "at most 31536000000 (a year)";
        for (key, interval, max, bound) in [
            ("gossip-interval-ms", self.gossip_interval, DAY, day),
            ("push-pull-interval-ms", self.push_pull_interval, DAY, day),
            ("ping-interval-ms", self.ping_interval, DAY, day),
            ("ping-timeout-ms", self.ping_timeout, DAY, day),
            ("dead-node-reclaim-ms", self.dead_node_reclaim, YEAR, year),
            ("tombstone-ttl-ms", self.tombstone_ttl, YEAR, year),
            ("tls.watch-interval-ms", self.tls.watch_interval, DAY, day),
        ] {
            let fault = if interval.is_zero() {
                "it is zero"
            } else if interval < Duration::from_millis(1) {
                "it is under a millisecond"
            } else if interval > max {
                "it is too long"
            } else {
                continue;
            };
            faults.add(key, interval.as_millis(), fault, format!("use at least 1 and {bound}"));
        }
        let watch = self.tls.watch_interval;
        if watch >= Duration::from_millis(1) && watch < WATCH_MIN {
            let remedy = "use at least 100 and at most 86400000 (a day)";
            faults.add(
                "tls.watch-interval-ms",
                watch.as_millis(),
                "it is too short to read files in",
                remedy,
            );
        }
        if self.ping_timeout >= self.ping_interval {
            let interval = self.ping_interval.as_millis();
            faults.add(
                "ping-timeout-ms",
                self.ping_timeout.as_millis(),
                format!("it is not below ping-interval-ms = {interval}"),
                "use about half of the interval",
            );
        }
    }

    fn find_faulty_numbers(&self, faults: &mut Faults) {
        let mult = usize::try_from(self.suspicion_mult).unwrap_or(usize::MAX);
        for (key, number, min, max) in [
            ("gossip-fanout", self.gossip_fanout, 1, 64),
            ("max-batch-size", self.max_batch_size, 1, 10_000),
            ("ping-req-count", self.ping_req_count, 0, 64),
            ("suspicion-mult", mult, 1, 100),
            ("max-connections", self.max_connections, 1, 65_536),
        ] {
            if !(min..=max).contains(&number) {
                let fault = if number == 0 { "it is zero" } else { "it is too large" };
                faults.add(key, number, fault, format!("use {min} to {max}"));
            }
        }
    }

    /// What `fast-detection` sets must not be set as well.
    fn find_contradictions(&self, faults: &mut Faults) {
        let plain = Self::default();
        for (key, value, set) in [
            ("ping-interval-ms", self.ping_interval.as_millis(), self.ping_interval != plain.ping_interval),
            ("ping-timeout-ms", self.ping_timeout.as_millis(), self.ping_timeout != plain.ping_timeout),
            ("suspicion-mult", self.suspicion_mult.into(), self.suspicion_mult != plain.suspicion_mult),
        ] {
            if self.fast_detection && set {
                faults.add(key, value, "fast-detection = true sets it", "leave one of the two out");
            }
        }
    }

    fn find_faulty_signing(&self, faults: &mut Faults) {
        let types = self.sign_types.len();
        if types > limits::TYPES_MAX {
            let remedy = format!("use at most {}, or sign = \"all\"", limits::TYPES_MAX);
            faults.add("sign-types", format_args!("{types} types"), "there are too many", remedy);
        }
        for name in &self.sign_types {
            if !(1..=limits::TYPE_LEN_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
                let remedy =
                    format!("use names of 1 to {} bytes without control characters", limits::TYPE_LEN_MAX);
                faults.add("sign-types", shown(name), "no type can have that name", remedy);
            }
        }
        let all = self.sign == Sign::All;
        if all && types > 0 {
            let remedy = "leave one of the two out";
            faults.add(
                "sign-types",
                format_args!("{types} types"),
                "sign = \"all\" signs every type",
                remedy,
            );
        }
        if (all || types > 0) && self.tls.shared_certificate {
            faults.add(
                if all { "sign" } else { "sign-types" },
                if all { "all".into() } else { format!("{types} types") },
                "with tls.shared-certificate = true any node could sign as any other",
                "give each node a certificate of its own, or leave signing off",
            );
        }
    }

    fn find_faulty_metadata(&self, faults: &mut Faults) {
        if self.node_id != AUTO
            && let Err(Error::InvalidNodeId { fault, .. }) = NodeId::new(self.node_id.as_str())
        {
            let remedy = "use \"auto\" or 1 to 128 of A-Z a-z 0-9 . _ -";
            faults.add("node-id", shown(&self.node_id), fault, remedy);
        }
        if let Some(zone) = &self.zone {
            if zone.is_empty() {
                faults.add("zone", shown(zone), "it is empty", "name a zone or leave the key out");
            } else if zone.len() > limits::ZONE_LEN_MAX {
                let fault = format!("it has {} bytes", zone.len());
                faults.add("zone", shown(zone), fault, format!("use at most {} bytes", limits::ZONE_LEN_MAX));
            }
        }
        let tags = self.tags.len();
        if tags > limits::TAGS_MAX {
            let remedy = format!("use at most {} tags", limits::TAGS_MAX);
            faults.add("tags", format_args!("{tags} tags"), "there are too many", remedy);
        }
        let size: usize = self.tags.iter().map(|(key, value)| key.len() + value.len()).sum();
        if size > limits::TAGS_LEN_MAX {
            let remedy = format!("use at most {} bytes in all, keys and values", limits::TAGS_LEN_MAX);
            faults.add("tags", format_args!("{size} bytes"), "they are too long", remedy);
        }
        if let Some(value) = self.tags.get("") {
            faults.add("tags", format_args!("\"\" = {}", shown(value)), "a tag has no name", "name it");
        }
    }

    fn find_faulty_addresses(&self, faults: &mut Faults) {
        let bind = self.bind_address;
        if bind.is_multicast() || bind == IpAddr::V4(Ipv4Addr::BROADCAST) {
            let remedy = "use an address of this host, or 0.0.0.0 or :: for all of them";
            faults.add("bind-address", bind, "no socket can be bound to it", remedy);
        }
        for seed in &self.seeds {
            if let Err((fault, remedy)) = Seed::parse(seed) {
                faults.add("seeds", shown(seed), fault, remedy);
            }
        }
        if let Some(text) = &self.advertise_address
            && let Err((fault, remedy)) = Advertise::parse(text)
        {
            faults.add("advertise-address", shown(text), fault, remedy);
        }
    }

    fn find_identity(&self, faults: &mut Faults) -> Option<Identity> {
        match (&self.identity, &self.tls) {
            (Some(identity), _) => Some(identity.clone()),
            (None, TlsConfig { ca: Some(ca), cert: Some(cert), key: Some(key), crl, .. }) => {
                let files = [("tls.ca", ca.as_path()), ("tls.cert", cert), ("tls.key", key)];
                load(files, crl.as_deref(), faults)
            }
            (None, _) => None, // a fault that `TlsConfig::find_faults` has told
        }
    }

    fn find_node_id(&self, identity: Option<&Identity>, faults: &mut Faults) -> Option<NodeId> {
        let configured = (self.node_id != AUTO).then_some(self.node_id.as_str());
        let Some(identity) = identity else {
            // Not enabled, or in fault already.
            return configured.map_or_else(|| Some(NodeId::random()), |id| NodeId::new(id).ok());
        };
        match (configured, identity.node_id()) {
            (None, Some(certified)) => Some(certified),
            (Some(id), Some(certified)) if id == certified.as_str() => Some(certified),
            (Some(id), Some(certified)) => {
                let remedy = "use \"auto\", or give the node its own certificate";
                faults.add("node-id", shown(id), format!("the certificate names {certified}"), remedy);
                None
            }
            (configured, None) => {
                if !self.tls.shared_certificate {
                    faults.add(
                        "tls.shared-certificate",
                        false,
                        "the certificate names no node",
                        "give the node a certificate of its own, or set it to true on every node",
                    );
                }
                configured.map_or_else(|| Some(NodeId::random()), |id| NodeId::new(id).ok())
            }
        }
    }

    fn parsed_seeds(&self) -> Vec<Seed> {
        self.seeds.iter().filter_map(|seed| Seed::parse(seed).ok()).collect()
    }

    fn parsed_advertise(&self) -> Option<Advertise> {
        Advertise::parse(self.advertise_address.as_deref()?).ok()
    }

    /// What is allowed but unlikely to be meant.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let elsewhere = |seed: &Seed| matches!(seed, Seed::Address(seed) if !is_loopback(seed.ip()));
        if let Some(advertise) = self.parsed_advertise()
            && is_loopback(advertise.ip)
            && self.parsed_seeds().iter().any(elsewhere)
        {
            let ip = advertise.ip;
            warnings.push(format!(
                "advertise-address = {ip}: the seeds are on other hosts, which cannot reach it"
            ));
        }
        if self.bind_address.is_loopback() && self.parsed_seeds().iter().any(elsewhere) {
            let ip = self.bind_address;
            warnings
                .push(format!("bind-address = {ip}: the seeds are on other hosts, which it cannot reach"));
        }
        let TlsConfig { ca, cert, key, crl, .. } = &self.tls;
        if self.identity.is_some() && self.tls.watch {
            warnings
                .push("tls.watch = true: nothing is watched, the program gave an identity of its own".into());
        }
        if self.identity.is_some() && [ca, cert, key, crl].into_iter().any(Option::is_some) {
            warnings.push("tls: its files are not read, the program gave an identity of its own".into());
        }
        warnings
    }
}

impl TlsConfig {
    fn find_faults(&self, enabled: bool, faults: &mut Faults) {
        let files = [("tls.ca", &self.ca), ("tls.cert", &self.cert), ("tls.key", &self.key)];
        let given = |wanted: bool| {
            let keys = files.iter().filter(move |(_, path)| path.is_some() == wanted);
            keys.map(|(key, _)| *key).collect::<Vec<_>>()
        };
        match (given(true).as_slice(), self.crl.is_some()) {
            ([], false) if self.watch => faults.add(
                "tls.watch",
                true,
                "there are no files to be watched",
                "set tls.ca, tls.cert and tls.key, or leave it out",
            ),
            ([], false) if enabled => faults.add(
                "tls",
                "none",
                "the node has nothing to prove itself with",
                "set tls.ca, tls.cert and tls.key, or give the config an identity",
            ),
            ([], false) | ([_, _, _], _) => {}
            (present, _) => {
                let present = if present.is_empty() { "tls.crl".into() } else { present.join(" and ") };
                for key in given(false) {
                    let fault = format!("it is missing beside {present}");
                    faults.add(key, "none", fault, "tls.ca, tls.cert and tls.key belong together");
                }
            }
        }
    }
}

/// Loads the identity; what is wrong becomes a fault of the key whose file it is in.
fn load(files: [(&'static str, &Path); 3], crl: Option<&Path>, faults: &mut Faults) -> Option<Identity> {
    let before = faults.0.len();
    for (key, path) in files.into_iter().chain(crl.map(|crl| ("tls.crl", crl))) {
        // Each file by itself first, so that two missing ones are told at once.
        if let Some((fault, remedy)) = fault_in_file(path) {
            faults.add(key, path.display(), fault, remedy);
        }
    }
    if faults.0.len() > before {
        return None;
    }
    let [(_, ca), (_, cert), (_, key)] = files;
    let identity = Identity::from_pem_files(ca, cert, key)
        .map_err(|error| {
            let (name, path) = blamed(&error, &files);
            faults.add_error(name, path, &error);
        })
        .ok()?;
    match crl {
        None => Some(identity),
        Some(path) => {
            identity.with_crl_file(path).map_err(|error| faults.add_error("tls.crl", path, &error)).ok()
        }
    }
}

/// Which of `files` an error is about: the one it names, else the certificate, which everything must match.
fn blamed<'a>(error: &Error, files: &[(&'static str, &'a Path); 3]) -> (&'static str, &'a Path) {
    let [_, cert, _] = *files;
    let is_about = |path: &Path| match error {
        Error::File { path: named, .. } => named == path,
        Error::Identity { what, .. } => what.contains(&path.display().to_string()),
        _ => false,
    };
    // The longest path first: one may be the beginning of another.
    let mut named: Vec<_> = files.iter().copied().filter(|(_, path)| is_about(path)).collect();
    named.sort_by_key(|(_, path)| std::cmp::Reverse(path.as_os_str().len()));
    named.first().copied().unwrap_or(cert)
}

/// What makes a path no file to read, if anything does. Opens nothing: a FIFO would wait for its writer.
pub(super) fn fault_in_file(path: &Path) -> Option<(String, &'static str)> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => None,
        Ok(metadata) if metadata.is_dir() => Some(("it is a directory".into(), "name a file")),
        Ok(_) => Some(("it is not a regular file".into(), "name a regular file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some(("there is no such file".into(), "check the path; in a file it is relative to that file"))
        }
        Err(error) => Some((error.to_string(), "check the path and its permissions")),
    }
}

/// A file's contents, read no further than one byte beyond `max`.
pub(super) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, Error> {
    let fail = |source, remedy: &str| Error::File {
        action: "read",
        path: path.into(),
        source,
        remedy: remedy.into(),
    };
    if let Some((fault, remedy)) = fault_in_file(path) {
        return Err(fail(std::io::Error::other(fault), remedy));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|source| fail(source, "check the permissions"))?;
    // Refused by its length before anything is read; read with a bound, as it may grow meanwhile.
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    if length <= max {
        file.take(max + 1).read_to_end(&mut bytes).map_err(|source| fail(source, "try again"))?;
    }
    if length > max || bytes.len() as u64 > max {
        let fault = format!("it has {} bytes, more than {max}", length.max(bytes.len() as u64));
        return Err(fail(std::io::Error::other(fault), "name the right file"));
    }
    Ok(bytes)
}

/// The faults found so far.
#[derive(Default)]
pub(super) struct Faults(pub(super) Vec<ConfigFault>);

impl Faults {
    pub(super) fn add(
        &mut self,
        key: impl Into<String>,
        value: impl Display,
        fault: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.0.push(ConfigFault {
            key: key.into(),
            value: value.to_string(),
            fault: fault.into(),
            remedy: remedy.into(),
        });
    }

    /// A fault of a file, in the words of the part that read it.
    fn add_error(&mut self, key: &str, path: &Path, error: &Error) {
        match error {
            Error::Identity { what, fault, remedy, source } => {
                let cause = source.as_ref().map_or_else(String::new, |source| format!(" ({source})"));
                self.add(key, path.display(), format!("{what}: {fault}{cause}"), remedy.as_str());
            }
            Error::File { source, remedy, .. } => {
                self.add(key, path.display(), source.to_string(), remedy.as_str());
            }
            other => self.add(key, path.display(), other.to_string(), "correct the file"),
        }
    }
}

#[cfg(test)]
mod tests;
