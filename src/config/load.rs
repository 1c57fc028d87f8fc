//! Where a `Config` comes from: TOML and `PHALANX_*` variables. Judges form only, key by key; whether the
//! values make sense together is `check`'s business.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::de::{DeTable, DeValue};

use crate::{ConfigFault, Error};

use super::{
    Config, Sign,
    address::shown,
    check::{Faults, read_bounded},
};

/// The longest configuration file that is read, in bytes.
const FILE_LEN_MAX: u64 = 1 << 20;
/// How many syntax errors of one file are told; what follows the first few is often their echo.
const SYNTAX_FAULTS_MAX: usize = 10;

/// A fault and its remedy, in words.
type Wrong = (String, &'static str);

/// Every key, and the field it sets. The only list of keys; the environment's names are made from it.
const KEYS: [(&str, Slot); 35] = [
    ("enabled", Slot::Flag(|config| &mut config.enabled)),
    ("node-id", Slot::Text(|config| &mut config.node_id)),
    ("bind-address", Slot::Address(|config| &mut config.bind_address)),
    ("bind-port", Slot::Port(|config| &mut config.bind_port)),
    ("seeds", Slot::List(|config| &mut config.seeds)),
    ("gossip-interval-ms", Slot::Millis(|config| &mut config.gossip_interval)),
    ("gossip-fanout", Slot::Size(|config| &mut config.gossip_fanout)),
    ("push-pull-interval-ms", Slot::Millis(|config| &mut config.push_pull_interval)),
    ("max-batch-size", Slot::Size(|config| &mut config.max_batch_size)),
    ("zone", Slot::Optional(|config| &mut config.zone)),
    ("tags", Slot::Tags(|config| &mut config.tags)),
    ("advertise-address", Slot::Optional(|config| &mut config.advertise_address)),
    ("ping-interval-ms", Slot::Millis(|config| &mut config.ping_interval)),
    ("ping-timeout-ms", Slot::Millis(|config| &mut config.ping_timeout)),
    ("ping-req-count", Slot::Size(|config| &mut config.ping_req_count)),
    ("suspicion-mult", Slot::Count(|config| &mut config.suspicion_mult)),
    ("fast-detection", Slot::Flag(|config| &mut config.fast_detection)),
    ("sync-health", Slot::Flag(|config| &mut config.sync_health)),
    ("sync-circuit-breaker", Slot::Flag(|config| &mut config.sync_circuit_breaker)),
    ("sync-drain", Slot::Flag(|config| &mut config.sync_drain)),
    ("sync-conntrack", Slot::Flag(|config| &mut config.sync_conntrack)),
    ("sign", Slot::Sign(|config| &mut config.sign)),
    ("sign-types", Slot::List(|config| &mut config.sign_types)),
    ("tls.ca", Slot::File(|config| &mut config.tls.ca)),
    ("tls.cert", Slot::File(|config| &mut config.tls.cert)),
    ("tls.key", Slot::File(|config| &mut config.tls.key)),
    ("tls.crl", Slot::File(|config| &mut config.tls.crl)),
    ("tls.crl-required", Slot::Flag(|config| &mut config.tls.crl_required)),
    ("tls.shared-certificate", Slot::Flag(|config| &mut config.tls.shared_certificate)),
    ("tls.watch", Slot::Flag(|config| &mut config.tls.watch)),
    ("tls.watch-interval-ms", Slot::Millis(|config| &mut config.tls.watch_interval)),
    ("dead-node-reclaim-ms", Slot::Millis(|config| &mut config.dead_node_reclaim)),
    ("tombstone-ttl-ms", Slot::Millis(|config| &mut config.tombstone_ttl)),
    ("max-connections", Slot::Size(|config| &mut config.max_connections)),
    ("identity", Slot::Code),
];

/// A field, by what may be put into it.
#[derive(Clone, Copy)]
enum Slot {
    Flag(fn(&mut Config) -> &mut bool),
    Text(fn(&mut Config) -> &mut String),
    Optional(fn(&mut Config) -> &mut Option<String>),
    Address(fn(&mut Config) -> &mut IpAddr),
    Sign(fn(&mut Config) -> &mut Sign),
    Port(fn(&mut Config) -> &mut u16),
    Count(fn(&mut Config) -> &mut u32),
    Size(fn(&mut Config) -> &mut usize),
    Millis(fn(&mut Config) -> &mut Duration),
    List(fn(&mut Config) -> &mut Vec<String>),
    Tags(fn(&mut Config) -> &mut BTreeMap<String, String>),
    File(fn(&mut Config) -> &mut Option<PathBuf>),
    /// Set by the program only.
    Code,
}

/// A value as a file or a variable gave it.
enum Given {
    Flag(bool),
    Number(i128),
    Text(String),
    List(Vec<String>),
    Tags(BTreeMap<String, String>),
    Path(PathBuf),
    /// What no key takes, by its name.
    Other(&'static str),
}

impl Config {
    /// Reads the table `[cluster]` of a TOML text; other tables are left to others. Relative paths stay as
    /// they are, and the environment has no say.
    ///
    /// The values are checked later, by [`Cluster::new`](crate::Cluster::new).
    ///
    /// # Errors
    /// [`Error::Config`] with every fault of form: unknown keys with the nearest known one, wrong types, bad
    /// syntax, each with its line.
    ///
    /// # Examples
    /// ```
    /// let error = phalanx::Config::from_toml("[cluster]\nbind-prot = 7946").unwrap_err();
    /// assert!(error.to_string().contains("did you mean bind-port?"));
    /// ```
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        let mut faults = Faults::default();
        let mut config = Self::default();
        read_toml(text, None, &mut config, &mut faults);
        config.unless(faults)
    }

    /// Reads a file, then the `PHALANX_*` variables of the environment over it.
    ///
    /// Paths in the file are relative to the file, paths in variables to the working directory.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read, is over 1 MiB or is not UTF-8; [`Error::Config`] with
    /// every fault of the file and the environment.
    ///
    /// # Examples
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("lb.toml");
    /// std::fs::write(&path, "[cluster]\ntls.ca = 'ca.pem'")?;
    /// let config = phalanx::Config::load(&path)?;
    /// assert_eq!(config.tls.ca, Some(dir.path().join("ca.pem")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::load_with(path.as_ref(), std::env::vars_os())
    }

    /// Puts the `PHALANX_*` variables of the environment over this config.
    ///
    /// # Errors
    /// [`Error::Config`] with every fault, each with its variable: unknown ones with the nearest known one,
    /// and values that the key does not take.
    ///
    /// # Examples
    /// ```
    /// let config = phalanx::Config::default().with_env()?; // PHALANX_BIND_PORT is not set here
    /// assert_eq!(config.bind_port, 7946);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn with_env(self) -> Result<Self, Error> {
        self.with_variables(std::env::vars_os())
    }

    /// [`load`](Self::load) with an environment of the caller's.
    pub(crate) fn load_with(
        path: &Path,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Error> {
        let (config, faults) = Self::load_leniently(path, variables)?;
        config.unless(Faults(faults))
    }

    /// What a file and an environment come to, and every fault of form in them; a setting in fault has its
    /// default.
    ///
    /// # Errors
    /// [`Error::File`] if there is nothing to read.
    pub(crate) fn load_leniently(
        path: &Path,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Vec<ConfigFault>), Error> {
        let bytes = read_bounded(path, FILE_LEN_MAX)?;
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let line = line_at(&bytes, error.valid_up_to());
            let fault = format!("line {line} is not UTF-8 (byte {})", error.valid_up_to());
            Error::File {
                action: "read",
                path: path.into(),
                source: std::io::Error::new(std::io::ErrorKind::InvalidData, fault),
                remedy: "save it as UTF-8".into(),
            }
        })?;
        let mut faults = Faults::default();
        let mut config = Self::default();
        read_toml(text, Some(path), &mut config, &mut faults);
        read_variables(variables, &mut config, &mut faults);
        Ok((config, faults.0))
    }

    /// [`with_env`](Self::with_env) with an environment of the caller's.
    pub(crate) fn with_variables(
        mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Error> {
        let mut faults = Faults::default();
        read_variables(variables, &mut self, &mut faults);
        self.unless(faults)
    }

    fn unless(self, faults: Faults) -> Result<Self, Error> {
        if faults.0.is_empty() { Ok(self) } else { Err(Error::Config { faults: faults.0 }) }
    }
}

/// A TOML text and where it came from.
struct Source<'a> {
    text: &'a str,
    path: Option<&'a Path>,
}

impl Source<'_> {
    /// `lb.toml line 3`, or the line alone.
    fn place(&self, at: usize) -> String {
        let line = line_at(self.text.as_bytes(), at);
        match self.path {
            Some(path) => format!("{} line {line}", path.display()),
            None => format!("line {line}"),
        }
    }

    fn line(&self, at: usize) -> &str {
        self.text.lines().nth(line_at(self.text.as_bytes(), at) - 1).unwrap_or("").trim()
    }
}

fn line_at(text: &[u8], at: usize) -> usize {
    text[..at.min(text.len())].split(|byte| *byte == b'\n').count()
}

fn read_toml(text: &str, path: Option<&Path>, config: &mut Config, faults: &mut Faults) {
    let source = Source { text, path };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors.iter().take(SYNTAX_FAULTS_MAX) {
        let at = error.span().map_or(text.len(), |span| span.start);
        let fault = error.message().lines().collect::<Vec<_>>().join(", ");
        faults.add(source.place(at), shown(source.line(at)), fault, "correct the line");
    }
    if !errors.is_empty() {
        return; // what the parser made of the rest is a guess
    }
    match document.get_ref().get("cluster").map(|value| (value.get_ref(), value.span())) {
        Some((DeValue::Table(table), _)) => read_table(&source, "", table, config, faults),
        Some((other, span)) => {
            let fault =
                format!("it is {}, not a table ({})", article(other.type_str()), source.place(span.start));
            faults.add("cluster", shown(source.line(span.start)), fault, "put the settings under [cluster]");
        }
        None => {
            let place = path.map_or_else(String::new, |path| format!(" in {}", path.display()));
            let fault = format!("there is no such table{place}");
            faults.add("[cluster]", "none", fault, "put the settings under [cluster]");
        }
    }
}

fn read_table(
    source: &Source<'_>,
    prefix: &str,
    table: &DeTable<'_>,
    config: &mut Config,
    faults: &mut Faults,
) {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start); // faults in the order of the file
    for (key, value) in entries {
        let name = format!("{prefix}{}", key.get_ref());
        let at = key.span().start;
        match (slot(&name), value.get_ref()) {
            (Some(slot), value) => {
                let given = Given::from_toml(value).against(source.path, slot);
                if let Err((fault, remedy)) = slot.put(config, given) {
                    faults.add(name, shown_toml(value), format!("{fault} ({})", source.place(at)), remedy);
                }
            }
            (None, DeValue::Table(table)) if name == "tls" => {
                read_table(source, "tls.", table, config, faults);
            }
            (None, value) if name == "tls" => {
                let fault =
                    format!("it is {}, not a table ({})", article(value.type_str()), source.place(at));
                faults.add(name, shown_toml(value), fault, "set tls.ca, tls.cert and tls.key");
            }
            (None, value) => {
                let fault = format!("there is no such key ({})", source.place(at));
                let remedy = format!("did you mean {}?", nearest(&name, file_keys().map(str::to_owned)));
                faults.add(shown_key(&name), shown_toml(value), fault, remedy);
            }
        }
    }
}

fn read_variables(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    config: &mut Config,
    faults: &mut Faults,
) {
    let mut variables: Vec<_> = variables.into_iter().filter(|(name, _)| is_ours(name)).collect();
    variables.sort(); // the environment has no order of its own
    let mut set = Vec::new();
    for (name, value) in variables {
        let name = name.to_string_lossy();
        let text = value.to_string_lossy();
        let Some(key) = file_keys().find(|key| variable(key) == name) else {
            let remedy = format!("did you mean {}?", nearest(&name, file_keys().map(variable)));
            faults.add(shown_key(&name), shown(&text), "there is no such variable", remedy);
            continue;
        };
        let slot = slot(key).unwrap_or(Slot::Code);
        let done = match (slot, value.to_str()) {
            (Slot::File(_), _) => Ok(Given::Path(PathBuf::from(&value))),
            (_, Some(text)) => Given::from_text(text.trim(), slot),
            (_, None) => Err(("it is not UTF-8".into(), "correct the variable")),
        };
        match done.and_then(|given| slot.put(config, given)) {
            Ok(()) => set.push((key, name.into_owned())),
            Err((fault, remedy)) => faults.add(name, shown(&text), fault, remedy),
        }
    }
    // A value out of its bounds is told under the variable's name as well: that is what has to be changed.
    for ConfigFault { key, value, fault, remedy } in config.faults() {
        if let Some((_, name)) = set.iter().find(|(set, _)| *set == key) {
            faults.add(name.as_str(), value, fault, remedy);
        }
    }
}

fn is_ours(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"PHALANX_")
}

/// The environment's name of a key.
fn variable(key: &str) -> String {
    format!("PHALANX_{}", key.to_ascii_uppercase().replace(['-', '.'], "_"))
}

fn slot(name: &str) -> Option<Slot> {
    KEYS.iter().find(|(key, _)| *key == name).map(|(_, slot)| *slot)
}

/// The keys that a file may set.
fn file_keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(|(_, slot)| !matches!(slot, Slot::Code)).map(|(key, _)| *key)
}

impl Slot {
    fn put(self, config: &mut Config, given: Given) -> Result<(), Wrong> {
        match (self, given) {
            (Self::Flag(field), Given::Flag(flag)) => *field(config) = flag,
            (Self::Text(field), Given::Text(text)) => *field(config) = text,
            (Self::Optional(field), Given::Text(text)) => *field(config) = Some(text),
            (Self::Address(field), Given::Text(text)) => {
                *field(config) =
                    text.parse().map_err(|_| ("it is no IP address".to_owned(), self.remedy()))?;
            }
            (Self::Sign(field), Given::Text(text)) => {
                *field(config) = match text.as_str() {
                    "claims" => Sign::Claims,
                    "all" => Sign::All,
                    _ => return Err(("there is no such setting".into(), self.remedy())),
                };
            }
            (Self::Port(field), Given::Number(number)) => *field(config) = self.fit(number)?,
            (Self::Count(field), Given::Number(number)) => *field(config) = self.fit(number)?,
            (Self::Size(field), Given::Number(number)) => *field(config) = self.fit(number)?,
            (Self::Millis(field), Given::Number(number)) => {
                *field(config) = Duration::from_millis(self.fit(number)?);
            }
            (Self::List(field), Given::List(list)) => *field(config) = list,
            (Self::Tags(field), Given::Tags(tags)) => *field(config) = tags,
            (Self::File(field), Given::Path(path)) => *field(config) = Some(path),
            (Self::File(field), Given::Text(text)) => *field(config) = Some(text.into()),
            (Self::Code, _) => return Err(("it cannot be written in a file".into(), self.remedy())),
            (_, given) => return Err((format!("it is {}", given.kind()), self.remedy())),
        }
        Ok(())
    }

    fn fit<T: TryFrom<i128>>(self, number: i128) -> Result<T, Wrong> {
        let fault = if number < 0 { "it is negative" } else { "it is too large" };
        T::try_from(number).map_err(|_| (fault.to_owned(), self.remedy()))
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::Flag(_) => "use true or false",
            Self::Text(_) | Self::Optional(_) => "use a string",
            Self::Sign(_) => "use \"claims\" or \"all\", or leave it out and set sign-types",
            Self::Address(_) => "use an address of this host, or 0.0.0.0 or :: for all of them",
            Self::Port(_) => "use a whole number from 0 to 65535",
            Self::Count(_) | Self::Size(_) => "use a whole number",
            Self::Millis(_) => "use a whole number of milliseconds",
            Self::List(_) => "use a list of strings",
            Self::Tags(_) => "use a table of strings: { rack = \"r1\" }",
            Self::File(_) => "use the path of a file, a string",
            Self::Code => "set tls.ca, tls.cert and tls.key",
        }
    }
}

impl Given {
    fn from_toml(value: &DeValue<'_>) -> Self {
        let text = |value: &DeValue<'_>| value.as_str().map(str::to_owned);
        match value {
            DeValue::Boolean(flag) => Self::Flag(*flag),
            DeValue::String(text) => Self::Text(text.to_string()),
            // What has more digits than fit is too large for every key.
            DeValue::Integer(number) => {
                Self::Number(i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX))
            }
            DeValue::Array(list) => list
                .iter()
                .map(|item| text(item.get_ref()))
                .collect::<Option<_>>()
                .map_or(Self::Other("a list that holds more than strings"), Self::List),
            DeValue::Table(table) => table
                .iter()
                .map(|(key, value)| Some((key.get_ref().to_string(), text(value.get_ref())?)))
                .collect::<Option<_>>()
                .map_or(Self::Other("a table that holds more than strings"), Self::Tags),
            DeValue::Float(_) => Self::Other("a number with a fraction"),
            DeValue::Datetime(_) => Self::Other("a date"),
        }
    }

    /// A variable's text, read as its key wants it.
    fn from_text(text: &str, slot: Slot) -> Result<Self, Wrong> {
        let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(match slot {
            Slot::Flag(_) => match text {
                "true" => Self::Flag(true),
                "false" => Self::Flag(false),
                _ => return Err(("it is neither true nor false".into(), slot.remedy())),
            },
            Slot::Port(_) | Slot::Count(_) | Slot::Size(_) | Slot::Millis(_) => match text.parse() {
                Ok(number) => Self::Number(number),
                Err(_) => return Err(("it is no whole number".into(), slot.remedy())),
            },
            Slot::List(_) => Self::List(parts().map(str::to_owned).collect()),
            Slot::Tags(_) => {
                let mut tags = BTreeMap::new();
                for part in parts() {
                    let pair = part.split_once('=');
                    let (key, value) =
                        pair.ok_or_else(|| (format!("{} has no =", shown(part)), "use rack=r1,model=x"))?;
                    tags.insert(key.trim().to_owned(), value.trim().to_owned());
                }
                Self::Tags(tags)
            }
            Slot::Text(_)
            | Slot::Optional(_)
            | Slot::Address(_)
            | Slot::Sign(_)
            | Slot::File(_)
            | Slot::Code => Self::Text(text.to_owned()),
        })
    }

    /// A path of a file, as relative to that file.
    fn against(self, file: Option<&Path>, slot: Slot) -> Self {
        match (self, file.and_then(Path::parent), slot) {
            (Self::Text(text), Some(directory), Slot::File(_)) => Self::Path(directory.join(text)),
            (given, ..) => given,
        }
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::Flag(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Tags(_) => "a table",
            Self::Path(_) => "a path",
            Self::Other(kind) => kind,
        }
    }
}

fn shown_toml(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => shown(text),
        DeValue::Integer(number) => number.to_string().chars().take(40).collect(),
        DeValue::Float(number) => number.to_string().chars().take(40).collect(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(date) => date.to_string(),
        DeValue::Array(list) => format!("[{} items]", list.len()),
        DeValue::Table(table) => format!("{{{} keys}}", table.len()),
    }
}

/// A key of the user's: as it is if it is plain, else quoted and escaped.
fn shown_key(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if key.len() <= 64 && key.bytes().all(plain) { key.into() } else { shown(key) }
}

fn article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}

/// The candidate that takes the fewest edits to become `name`; the first of equals.
fn nearest(name: &str, candidates: impl Iterator<Item = String>) -> String {
    let name: Vec<char> = name.chars().take(128).collect();
    candidates.min_by_key(|candidate| distance(&name, candidate)).unwrap_or_default()
}

/// How many insertions, deletions and replacements make one text the other (Levenshtein).
fn distance(from: &[char], to: &str) -> usize {
    let mut row: Vec<usize> = (0..=from.len()).collect();
    for (to_index, to_char) in to.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = to_index + 1;
        for (index, from_char) in from.iter().enumerate() {
            let replaced = diagonal + usize::from(*from_char != to_char);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(diagonal + 1).min(row[index] + 1);
        }
    }
    row[from.len()]
}

#[cfg(test)]
mod tests;
