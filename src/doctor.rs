//! What a start with a configuration file would be refused for, all of it and before the start. Opens the
//! node's socket for a moment to see whether it can; joins nobody, changes nothing.

use std::{
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    Config, ConfigFault, Error, Identity, NodeId, TlsConfig,
    driver::clock,
    identity::{Trust, examine, written},
};

/// Below this much of its life left a certificate is worth a word: a tenth, as a running node warns too.
const WARN_PART: u32 = 10;

/// What stands against a start with a configuration file.
///
/// # Examples
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("lb.toml");
/// std::fs::write(&path, "[cluster]\nenabled = true\nbind-port = 0\ngossip-fanout = 0")?;
/// let diagnosis = phalanx::Diagnosis::of_file(&path);
/// let keys: Vec<_> = diagnosis.faults.iter().map(|fault| fault.key.as_str()).collect();
/// assert_eq!(keys, ["gossip-fanout", "tls"]); // both at once
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Everything for which a start would be refused; empty if it would not.
    pub faults: Vec<ConfigFault>,
    /// What is allowed but unlikely to be meant, or about to become a fault.
    pub warnings: Vec<String>,
    /// The node that the certificate names.
    pub node_id: Option<NodeId>,
    /// The cluster that the certificate names.
    pub cluster: Option<String>,
    /// When the certificate ends.
    pub not_after: Option<SystemTime>,
}

impl Diagnosis {
    /// Looks at a file as [`Config::load`], `Cluster::new` and `Cluster::start` would, the `PHALANX_*`
    /// variables of the environment included, and goes on where they stop at the first refusal.
    ///
    /// Whether a seed answers, and whether another node runs under the same id, only a start can tell.
    ///
    /// # Examples
    /// See [`Diagnosis`].
    #[must_use]
    pub fn of_file(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let (config, mut faults) = match Config::load_leniently(path, std::env::vars_os()) {
            Ok(read) => read,
            Err(error) => return Self::hopeless(path, &error),
        };
        let is_readable = faults.is_empty();
        let (more, identity, mut warnings) = config.examine();
        for fault in more {
            // A value out of its bounds is told under its variable's name already.
            let is_told = |told: &ConfigFault| told.value == fault.value && told.fault == fault.fault;
            if !faults.iter().any(is_told) {
                faults.push(fault);
            }
        }
        if !config.enabled && is_readable {
            warnings.push("enabled = false: a start does nothing, and answers None".into());
        }
        if identity.is_none() && config.enabled {
            add_faults_in_files(&config.tls, &mut faults);
        }
        if let Some(identity) = &identity {
            let cert = config.tls.cert.as_deref().unwrap_or(Path::new("none")).display().to_string();
            faults.extend(refusal(identity, &config).map(|error| as_fault("tls.cert", &cert, &error)));
            warnings.extend(soon_over(identity));
        }
        if config.enabled {
            faults.extend(unbindable(SocketAddr::new(config.bind_address, config.bind_port)));
        }
        let node_id = identity.as_ref().and_then(Identity::node_id);
        let cluster = identity.as_ref().map(|identity| identity.cluster_name().to_owned());
        let not_after = identity.as_ref().map(Identity::not_after);
        Self { faults, warnings, node_id, cluster, not_after }
    }

    /// Nothing can be said of a file that cannot be read.
    fn hopeless(path: &Path, error: &Error) -> Self {
        let faults = vec![as_fault("configuration", &path.display().to_string(), error)];
        Self { faults, warnings: Vec::new(), node_id: None, cluster: None, not_after: None }
    }
}

/// A file whose fault was told already is not looked at again.
fn add_faults_in_files(tls: &TlsConfig, faults: &mut Vec<ConfigFault>) {
    type Look = fn(&Path) -> Option<Error>;
    let files: [(&str, &Option<PathBuf>, Look); 4] = [
        ("tls.ca", &tls.ca, examine::fault_in_ca),
        ("tls.cert", &tls.cert, examine::fault_in_certificate),
        ("tls.key", &tls.key, examine::fault_in_key),
        ("tls.crl", &tls.crl, examine::fault_in_lists),
    ];
    for (key, path, look) in files {
        let Some(path) = path.as_deref().filter(|_| faults.iter().all(|fault| fault.key != key)) else {
            continue;
        };
        faults.extend(look(path).map(|error| as_fault(key, &path.display().to_string(), &error)));
    }
}

/// Why a start would refuse an identity that could be loaded.
fn refusal(identity: &Identity, config: &Config) -> Option<Error> {
    let policy = config.tls.policy();
    identity
        .check_usable(policy, clock::wall_now())
        .and_then(|()| Trust::new(identity, policy).map(|_| ()))
        .err()
}

fn soon_over(identity: &Identity) -> Option<String> {
    let (begin, end) = (identity.not_before(), identity.not_after());
    let left = end.duration_since(clock::wall_now()).ok()?;
    let life = end.duration_since(begin).ok()?;
    let hours = left.as_secs() / 3_600;
    (left < life / WARN_PART)
        .then(|| format!("the certificate ends at {}, in {hours} hours: renew it", written(end)))
}

/// Why the node's socket cannot be opened.
fn unbindable(address: SocketAddr) -> Option<ConfigFault> {
    let source = UdpSocket::bind(address).err()?;
    let (key, value, remedy) = match source.kind() {
        std::io::ErrorKind::AddrInUse => (
            "bind-port",
            address.port().to_string(),
            "stop whoever uses it, perhaps this very node, or take another port",
        ),
        std::io::ErrorKind::PermissionDenied => {
            ("bind-port", address.port().to_string(), "take a port above 1023, or give the process the right")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            ("bind-address", address.ip().to_string(), "take an address that this machine has")
        }
        _ => ("bind-address", address.ip().to_string(), "check address and port"),
    };
    let fault = format!("cannot listen on {address}: {source}");
    Some(ConfigFault { key: key.into(), value, fault, remedy: remedy.into() })
}

/// An error of a later step, as one fault among the others.
fn as_fault(key: &str, value: &str, error: &Error) -> ConfigFault {
    let (fault, remedy) = match error {
        Error::Identity { what, fault, remedy, .. } => (format!("{what}: {fault}"), remedy.clone()),
        Error::File { source, remedy, .. } => (source.to_string(), remedy.clone()),
        other => (other.to_string(), "correct it".into()),
    };
    ConfigFault { key: key.into(), value: value.into(), fault, remedy }
}
