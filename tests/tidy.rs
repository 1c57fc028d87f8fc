//! Reads the sources and holds the walls that one crate has no compiler for: which way imports go, where the
//! clock is, how long a file may be, and a few more. Runs nothing of the library. Each check has a test in
//! which it fires.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside test functions")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The vocabulary: data that every part may use.
const VOCABULARY: [&str; 5] = ["node", "state", "event", "provider", "error"];

/// What each part may use besides itself and the vocabulary; `a::b` allows that one module of `a`.
const MAY_USE: [(&str, &[&str]); 18] = [
    ("node", &[]),
    ("state", &["wire::limits", "driver::clock"]), // the bounds of a value; the stamp of a record made by hand
    ("event", &[]),
    ("provider", &[]),
    ("error", &[]),
    ("wire", &[]),
    ("identity", &["driver::clock"]), // validity dates of what the authority issues
    ("config", &["identity", "wire::limits"]),
    ("doctor", &["config", "identity", "driver::clock"]), // what a start would find, without starting
    ("net", &["wire", "identity", "driver::clock"]),
    ("proto", &["wire"]),
    ("sim", &["proto", "wire", "lb", "driver::clock"]), // its tests drive tables; how long an experiment took
    ("fuzzing", &["proto", "net", "wire", "config", "identity"]),
    ("bench", &["proto", "wire"]),
    ("driver", &["proto", "net", "wire", "config", "identity", "stats"]),
    ("stats", &["driver", "proto", "net", "config", "identity"]),
    ("cluster", &["driver", "config", "identity", "stats", "wire::limits"]),
    ("lb", &["cluster", "driver", "wire::limits"]), // attached to a cluster in `table`; the bounds of keys
];

/// Lines of code, without tests, comments and blank lines, over which a file is spoken of, and refused.
const LINES_WARN: usize = 600;
const LINES_MAX: usize = 800;

/// The lowest versions that advisories allow.
const FLOORS: [(&str, [u64; 3]); 3] =
    [("quinn-proto", [0, 11, 19]), ("rustls", [0, 23, 46]), ("rustls-webpki", [0, 103, 16])];

/// Each function of the original API, and ours. `tests/api.rs` has a test for each, under `// original:
/// name`.
const ORIGINALS: [(&str, &str); 24] = [
    ("start!", "start"),
    ("stop!", "stop"),
    ("running?", "is_running"),
    ("node-id", "node_id"),
    ("get-node-id", "node_id"),
    ("local-node", "local_node"),
    ("all-nodes", "all_nodes"),
    ("get-all-nodes", "all_nodes"),
    ("alive-nodes", "alive_nodes"),
    ("cluster-size", "cluster_size"),
    ("node-alive?", "is_alive"),
    ("node-suspected?", "is_suspected"),
    ("node-dead?", "is_dead"),
    ("broadcast!", "broadcast"),
    ("broadcast-many!", "broadcast_many"),
    ("make-syncable-state", "SyncableState::new"),
    ("next Lamport timestamp", "next_version"),
    ("register-provider!", "register_provider"),
    ("unregister-provider!", "unregister_provider"),
    ("IStateProvider", "StateProvider"),
    ("subscribe!", "subscribe"),
    ("its unsubscribe function", "unsubscribe"),
    ("stats", "stats"),
    ("get-config", "config"),
];

/// A source file, in three forms.
struct Source {
    /// Relative to the repository.
    path: String,
    raw: String,
    /// Without comments and the contents of literals; lines stay where they are.
    code: String,
    /// The code without what is compiled for tests only.
    product: String,
}

impl Source {
    fn new(path: &str, raw: &str) -> Self {
        let code = blank_comments_and_literals(raw);
        let is_test = path.ends_with("/tests.rs") || !path.starts_with("src/");
        let product = if is_test { String::new() } else { blank_tests(&code) };
        Self { path: path.into(), raw: raw.into(), code, product }
    }

    /// `net` for `src/net/tls.rs` and `src/net.rs`.
    fn part(&self) -> Option<&str> {
        let inner = self.path.strip_prefix("src/")?;
        Some(inner.split_once('/').map_or_else(|| inner.trim_end_matches(".rs"), |(part, _)| part))
    }
}

fn root() -> PathBuf {
    // Asked when the test runs, so that the same binary can look at another checkout.
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

/// Every Rust file of the repository, in order.
fn sources() -> Vec<Source> {
    let root = root();
    let mut sources = Vec::new();
    for path in files(&root) {
        let relative = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
        if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(Source::new(&relative, &fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "no sources under {}", root.display());
    sources
}

/// Every file below `directory` but those that are built or kept by git.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap_or("");
        if path.is_symlink() || matches!(name, "target" | ".git") {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn blank_comments_and_literals(raw: &str) -> String {
    let text: Vec<char> = raw.chars().collect();
    let mut code = String::with_capacity(raw.len());
    let mut at = 0;
    while at < text.len() {
        let end = literal_end(&text, at);
        if end == at {
            code.push(text[at]);
            at += 1;
        } else {
            // Something stays in its place, or `"a".b` would become `.b`.
            code.extend(text[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

/// Where the comment or literal that begins at `at` ends; `at` if none begins there.
fn literal_end(text: &[char], at: usize) -> usize {
    let starts =
        |from: usize, what: &str| what.chars().enumerate().all(|(i, c)| text.get(from + i) == Some(&c));
    let find = |from: usize, what: &str| {
        (from..text.len()).find(|at| starts(*at, what)).map_or(text.len(), |found| found + what.len())
    };
    if starts(at, "//") {
        return (at..text.len()).find(|at| text[*at] == '\n').unwrap_or(text.len());
    }
    if starts(at, "/*") {
        return find(at + 2, "*/");
    }
    let after_name = at > 0 && (text[at - 1].is_alphanumeric() || text[at - 1] == '_');
    let raw = ["r", "br", "cr"].into_iter().find(|prefix| {
        let quote = at + prefix.len() + hashes(text, at + prefix.len());
        !after_name && starts(at, prefix) && text.get(quote) == Some(&'"')
    });
    if let Some(prefix) = raw {
        let hashes = hashes(text, at + prefix.len());
        return find(at + prefix.len() + hashes + 1, &format!("\"{}", "#".repeat(hashes)));
    }
    match text[at] {
        '"' => closing(text, at, '"'),
        // A lifetime has no closing quote two characters on.
        '\'' if text.get(at + 1) == Some(&'\\') || text.get(at + 2) == Some(&'\'') => closing(text, at, '\''),
        _ => at,
    }
}

fn hashes(text: &[char], at: usize) -> usize {
    text[at.min(text.len())..].iter().take_while(|c| **c == '#').count()
}

fn closing(text: &[char], open: usize, quote: char) -> usize {
    let mut at = open + 1;
    while at < text.len() && text[at] != quote {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// Blanks every item that is compiled for tests only.
fn blank_tests(code: &str) -> String {
    let mut product = code.to_owned();
    for mark in ["#[cfg(test)]", "#[cfg(any(test", "#[cfg(all(test"] {
        while let Some(start) = product.find(mark) {
            let mut depth = 0;
            let mut end = product.len();
            for (at, c) in product[start..].char_indices() {
                match c {
                    '{' | '(' | '[' => depth += 1,
                    '}' | ')' | ']' => depth -= 1,
                    _ => {}
                }
                if depth == 0 && matches!(c, '}' | ';' | ',') {
                    end = start + at + 1;
                    break;
                }
            }
            let blank: String =
                product[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
            product.replace_range(start..end, &blank);
        }
    }
    product
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Every path that begins with `start` (`crate::`), without it, with its line.
fn paths_from(code: &str, start: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(start) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | ':')) {
            continue;
        }
        let mut paths = Vec::new();
        expand(&code[at + start.len()..], &[], &mut paths);
        found.extend(paths.into_iter().map(|path| (line_of(code, at), path)));
    }
    found
}

/// Expands the use tree at the start of `text` and gives how much of it was read.
fn expand(text: &str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut at = text.len() - text.trim_start().len();
    if text[at..].starts_with('{') {
        at += 1;
        loop {
            at += text[at..].len() - text[at..].trim_start().len();
            match text[at..].chars().next() {
                None => return at,
                Some('}') => return at + 1,
                Some(_) => {
                    let read = expand(&text[at..], prefix, paths);
                    // To the next branch, over an `as name`.
                    let rest = &text[at + read..];
                    let next = rest.find([',', '}']).unwrap_or(rest.len());
                    at += read + next + usize::from(rest[next..].starts_with(','));
                }
            }
        }
    }
    let name: String =
        text[at..].chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '*')).collect();
    at += name.len();
    let mut path = prefix.to_vec();
    if name != "self" && !name.is_empty() {
        path.push(name);
    }
    match text[at..].strip_prefix("::") {
        Some(rest) if !rest.starts_with('<') => at + 2 + expand(rest, &path, paths),
        _ => {
            paths.push(path);
            at
        }
    }
}

/// In which part each name lives that `lib.rs` re-exports.
fn exports(lib: &Source) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for (_, path) in paths_from(&lib.code, "self::") {
        if let [part, .., name] = path.as_slice() {
            exports.insert(name.clone(), part.clone());
        }
    }
    exports
}

fn faults_in_imports(source: &Source, exports: &BTreeMap<String, String>) -> Vec<String> {
    // A program is a crate of its own: it sees what is public, and the compiler holds that wall.
    let Some(part) = source.part().filter(|part| !matches!(*part, "lib" | "bin")) else { return Vec::new() };
    let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == part) else {
        return vec![format!(
            "{}: {part} is no part on the map; say in tests/tidy.rs what it may use",
            source.path
        )];
    };
    let is_part = |name: &str| MAY_USE.iter().any(|(part, _)| *part == name);
    let mut paths = paths_from(&source.product, "crate::");
    if source.path.matches('/').count() == 1 || source.path.ends_with("/mod.rs") {
        // One step up is the crate's root, and another part from there.
        paths
            .extend(paths_from(&source.product, "super::").into_iter().filter(|(_, path)| is_part(&path[0])));
    }
    let mut faults = Vec::new();
    for (line, path) in paths {
        let first = path.first().map_or("", String::as_str);
        let target = match exports.get(first) {
            Some(exported) => exported.clone(),
            None if is_part(first) => path.iter().take(2).map(String::as_str).collect::<Vec<_>>().join("::"),
            None => {
                faults.push(format!(
                    "{}:{line}: crate::{first} is neither a part nor a public name",
                    source.path
                ));
                continue;
            }
        };
        let whole = target.split("::").next().unwrap_or("");
        if whole != part
            && !VOCABULARY.contains(&whole)
            && !allowed.iter().any(|a| *a == whole || *a == target)
        {
            faults.push(format!(
                "{}:{line}: {part} must not use {target} (STYLE: which way imports go)",
                source.path
            ));
        }
    }
    faults
}

/// What must not stand in code, where, and why.
fn faults_in_words(source: &Source) -> Vec<String> {
    let of_the_library = source.path.starts_with("src/");
    let mut faults = Vec::new();
    let mut refuse = |text: &str, word: &str, why: &str| {
        for (at, _) in text.match_indices(word) {
            faults.push(format!("{}:{}: {word}: {why}", source.path, line_of(text, at)));
        }
    };
    if of_the_library && source.path != "src/driver/clock.rs" {
        refuse(&source.code, "Instant::now", "ask driver::clock");
        refuse(&source.code, "SystemTime::now", "ask driver::clock");
    }
    refuse(&source.code, "thread::sleep", "wait for a condition");
    refuse(&source.code, "unbounded_channel", "a queue has a bound and says what it does when full");
    refuse(&source.code, "todo!", "finish it");
    refuse(&source.code, "unimplemented!", "finish it");
    refuse(&source.code, "#[ignore", "a test runs or goes");
    refuse(&source.raw, concat!("FIX", "ME"), "mend it");
    faults
}

fn faults_in_form(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    if !source.raw.starts_with("//!") {
        faults.push(format!(
            "{}: it does not begin with //!: what it is for, and what it never does",
            source.path
        ));
    }
    let lines = source.product.lines().filter(|line| !line.trim().is_empty()).count();
    if lines > LINES_MAX {
        faults
            .push(format!("{}: {lines} lines of code; look for the seam (at most {LINES_MAX})", source.path));
    } else if lines > LINES_WARN {
        println!("{}: {lines} lines of code; look for the seam before {LINES_MAX}", source.path);
    }
    let mut highest = 0;
    for (index, line) in source.code.lines().enumerate() {
        let Some(path) = line.strip_prefix("use ") else { continue };
        let rank = match path.split([':', ';', ' ']).next() {
            Some("std" | "core" | "alloc") => 0,
            Some("crate" | "super" | "self") => 2,
            _ => 1,
        };
        if rank < highest {
            let fault = "imports stand in three blocks: std, crates, crate::";
            faults.push(format!("{}:{}: {fault}", source.path, index + 1));
        }
        highest = highest.max(rank);
    }
    faults
}

fn faults_in_pemfile(sources: &[Source]) -> Vec<String> {
    let users: Vec<_> = sources
        .iter()
        .filter(|source| source.code.contains("rustls_pemfile"))
        .map(|s| s.path.as_str())
        .collect();
    match users.as_slice() {
        [] | [_] => Vec::new(),
        users => {
            vec![format!("rustls_pemfile is unmaintained and stays in one file, not in {}", users.join(", "))]
        }
    }
}

fn faults_in_lock(lock: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, floor) in FLOORS {
        let mark = format!("name = \"{name}\"\nversion = \"");
        let versions: Vec<_> = lock
            .match_indices(&mark)
            .filter_map(|(at, _)| lock[at + mark.len()..].split('"').next())
            .collect();
        if versions.is_empty() {
            faults.push(format!("Cargo.lock: {name} is missing"));
        }
        for version in versions {
            let numbers: Vec<u64> =
                version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect();
            if numbers.as_slice() < floor.as_slice() {
                faults.push(format!(
                    "Cargo.lock: {name} {version} is below {floor:?}, the first without advisories"
                ));
            }
        }
    }
    faults
}

fn holds_private_key(text: &str) -> bool {
    text.match_indices("-----BEGIN ").any(|(at, _)| {
        let Some((label, body)) = text[at + 11..].split_once("-----") else { return false };
        let body: String = body.chars().filter(|c| !c.is_whitespace()).take(40).collect();
        let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
        label.ends_with("PRIVATE KEY") && body.len() == 40 && body.chars().all(is_base64)
    })
}

fn faults_in_api_tests(api: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (original, ours) in ORIGINALS {
        let marked = api.lines().any(|line| {
            let names = line.trim().strip_prefix("// original:").unwrap_or("");
            names.split(',').any(|name| name.trim() == original)
        });
        if !marked {
            faults.push(format!("tests/api.rs: no test is marked `// original: {original}`"));
        }
        if !api.contains(ours) {
            faults.push(format!("tests/api.rs: {ours} ({original}) is not used"));
        }
    }
    faults
}

#[track_caller]
fn none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn imports_go_one_way() {
    let sources = sources();
    let exports = exports(sources.iter().find(|source| source.path == "src/lib.rs").unwrap());
    none(&sources.iter().flat_map(|source| faults_in_imports(source, &exports)).collect::<Vec<_>>());
}

#[test]
fn the_clock_sleeps_and_unfinished_work_stay_out() {
    none(&sources().iter().flat_map(faults_in_words).collect::<Vec<_>>());
}

#[test]
fn files_say_what_they_are_for_and_are_not_too_long() {
    none(&sources().iter().flat_map(faults_in_form).collect::<Vec<_>>());
}

#[test]
fn the_unmaintained_parser_stays_in_one_file() {
    none(&faults_in_pemfile(&sources()));
}

#[test]
fn locked_versions_are_above_their_advisories() {
    none(&faults_in_lock(&fs::read_to_string(root().join("Cargo.lock")).unwrap().replace("\r\n", "\n")));
}

#[test]
fn no_private_key_is_in_the_repository() {
    // What the example leaves in `certs` is ignored by git, and all but these two there is.
    let kept = |path: &Path| {
        !path.starts_with(root().join("certs")) || path.ends_with("README.md") || path.ends_with(".gitignore")
    };
    let keys = files(&root())
        .into_iter()
        .filter(|path| kept(path))
        .filter(|path| fs::read(path).is_ok_and(|bytes| holds_private_key(&String::from_utf8_lossy(&bytes))));
    none(&keys.map(|path| format!("{} holds a private key", path.display())).collect::<Vec<_>>());
}

#[test]
fn every_function_of_the_original_has_a_test() {
    let path = root().join("tests/api.rs");
    none(&faults_in_api_tests(&fs::read_to_string(&path).unwrap_or_default()));
}

mod each_check_fires {
    use super::*;

    fn faults_of(path: &str, raw: &str) -> Vec<String> {
        let exports = exports(&Source::new(
            "src/lib.rs",
            "pub use self::{error::Error, identity::{Identity, Paths as P}};",
        ));
        faults_in_imports(&Source::new(path, raw), &exports)
    }

    #[test]
    fn on_an_import_through_a_wall() {
        for (path, raw, target) in [
            ("src/proto/probe.rs", "use crate::net::Transport;", "proto must not use net::Transport"),
            (
                "src/proto/mod.rs",
                "use crate::{Error, wire::{hello, limits as l}, config::Config};",
                "config::Config",
            ),
            ("src/proto/mod.rs", "fn f() { crate::driver::clock::wall_now(); }", "driver::clock"),
            ("src/proto/mod.rs", "fn f(i: &super::identity::Trust) {}", "identity::Trust"),
            ("src/net/tls.rs", "use crate::{\n    Error,\n    proto,\n};", "net must not use proto"),
            ("src/net/tls.rs", "use crate::driver;", "net must not use driver "),
            ("src/wire/codec.rs", "use crate::Identity;", "wire must not use identity"),
            ("src/node.rs", "use crate::wire::limits;", "node must not use wire::limits"),
            ("src/lb/health.rs", "use crate::wire::codec;", "lb must not use wire::codec"),
            ("src/lb/health.rs", "use crate::*;", "crate::* is neither"),
            ("src/lb/health.rs", "use crate::made_up::X;", "crate::made_up is neither"),
            ("src/misc.rs", "", "misc is no part on the map"),
            (
                "src/wire/mod.rs",
                "#[cfg(test)]\nuse crate::sim;\nuse crate::proto;",
                "wire must not use proto",
            ),
        ] {
            let faults = faults_of(path, raw);
            assert_eq!(faults.len(), 1, "{raw}: {faults:?}");
            assert!(faults[0].contains(target), "{raw}: {faults:?}");
        }
    }

    #[test]
    fn but_not_on_one_that_is_allowed() {
        for (path, raw) in [
            (
                "src/proto/probe.rs",
                "use crate::{Error, wire::{hello::{self, Introduction}, limits}, proto::time};",
            ),
            (
                "src/proto/probe.rs",
                "// crate::net\nlet x = \"crate::net\"; let y = r#\"crate::\"net\"#; macro!($crate::net);",
            ),
            ("src/proto/probe.rs", "#[cfg(test)]\nmod tests {\n    use crate::{net, driver::clock};\n}"),
            ("src/net/mod.rs", "use crate::driver::clock;"),
            ("src/net/tests.rs", "use crate::proto;"),
            ("src/config/check.rs", "use crate::{Identity, wire::limits};"),
            ("src/lib.rs", "use crate::anything;"),
            ("src/bin/phalanx/main.rs", "use crate::report;"),
        ] {
            assert_eq!(faults_of(path, raw), [""; 0], "{raw}");
        }
    }

    #[test]
    fn on_a_forbidden_word() {
        for word in [
            "Instant::now()",
            "SystemTime::now()",
            "thread::sleep(x)",
            "unbounded_channel()",
            "todo!()",
            "unimplemented!()",
            "#[ignore]",
            concat!("// FIX", "ME"),
        ] {
            assert_eq!(faults_in_words(&Source::new("src/net/x.rs", word)).len(), 1, "{word}");
        }
        for raw in [
            "let a = 'x'; // Instant::now()",
            "\"todo!()\"",
            "let c = '\"'; let l: &'a str = \"SystemTime::now\";",
        ] {
            assert_eq!(faults_in_words(&Source::new("src/net/x.rs", raw)), [""; 0]);
        }
        assert_eq!(faults_in_words(&Source::new("src/driver/clock.rs", "Instant::now()")), [""; 0]);
    }

    #[test]
    fn on_a_file_without_a_head_too_long_or_out_of_order() {
        let faults = |raw: &str| faults_in_form(&Source::new("src/net/x.rs", raw));
        assert!(faults("use std::fs;")[0].contains("does not begin with //!"));
        let long = format!("//! x\n{}", "let x;\n".repeat(LINES_MAX + 1));
        assert!(faults(&long)[0].contains("801 lines of code"));
        let tested = format!(
            "//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n{}",
            "let x;\n".repeat(900),
            "// x\n\n".repeat(900)
        );
        assert_eq!(faults(&tested), [""; 0]);
        assert!(
            faults("//! x\nuse crate::x;\nuse std::fs;")[0].contains("x.rs:3: imports stand in three blocks")
        );
        assert!(faults("//! x\nuse quinn::x;\nuse std::fs;")[0].contains("x.rs:3"));
        assert_eq!(faults("//! x\nuse std::fs;\nuse quinn::x;\nuse super::y;\nuse crate::z;"), [""; 0]);
    }

    #[test]
    fn on_a_second_user_of_the_unmaintained_parser() {
        let user = |path| Source::new(path, "use rustls_pemfile::Item;");
        assert_eq!(faults_in_pemfile(&[user("src/a.rs")]), [""; 0]);
        assert_eq!(faults_in_pemfile(&[user("src/a.rs"), user("src/b.rs")]).len(), 1);
    }

    #[test]
    fn on_a_version_below_its_floor() {
        let lock = |proto: &str| {
            format!(
                "name = \"quinn-proto\"\nversion = \"{proto}\"\n\nname = \"rustls\"\nversion = \"0.24.0\"\n\n\
                 name = \"rustls-webpki\"\nversion = \"0.103.16\"\n"
            )
        };
        assert_eq!(faults_in_lock(&lock("0.11.19")), [""; 0]);
        assert_eq!(faults_in_lock(&lock("0.11.18")).len(), 1);
        assert_eq!(faults_in_lock("").len(), 3);
    }

    #[test]
    fn on_a_private_key() {
        let body = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQ";
        for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
            assert!(holds_private_key(&format!("x\n-----BEGIN {label}-----\n{body}\n")));
        }
        assert!(!holds_private_key(&format!("-----BEGIN CERTIFICATE-----\n{body}")));
        assert!(!holds_private_key(
            "\"-----BEGIN PRIVATE KEY-----\" is how it starts, as anybody can see here"
        ));
    }

    #[test]
    fn on_an_original_function_without_a_test() {
        let all = ORIGINALS.map(|(original, ours)| format!("    // original: {original}\n{ours}\n")).concat();
        assert_eq!(faults_in_api_tests(&all), [""; 0]);
        let without = all.replace("// original: stop!\n", "");
        assert_eq!(faults_in_api_tests(&without), ["tests/api.rs: no test is marked `// original: stop!`"]);
        let grouped =
            all.replace("// original: node-id\n", "").replace(": get-node-id", ": node-id, get-node-id");
        assert_eq!(faults_in_api_tests(&grouped), [""; 0]);
        let misnamed = all.replace("is_dead", "was_dead");
        assert_eq!(faults_in_api_tests(&misnamed).len(), 1);
    }
}
