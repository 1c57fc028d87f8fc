//! The table of `docs/abuse.md`: which test shows what comes of a case. Compared with the functions that there
//! are and with the page, so that neither can go stale; `ABUSE_TABLE=write` writes the page anew.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

/// A case, what comes of it, and the tests that show it: a name alone is one of this target's.
struct Case(&'static str, &'static str, &'static [&'static str]);

fn cases() -> Vec<Case> {
    include!("cases.in")
}

fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

/// The functions of a source file that are tests.
fn tests_in(path: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut found = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let name = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
        if let Some((name, _)) = name.and_then(|rest| rest.split_once('('))
            && std::mem::take(&mut is_test)
        {
            found.insert(name.to_owned());
        }
    }
    found
}

/// The tests of this target that are named by a case.
fn own() -> BTreeSet<String> {
    let files = ["home", "lies", "messages", "quic", "tls"];
    files.iter().flat_map(|file| tests_in(&format!("tests/abuse/{file}.rs"))).collect()
}

fn page(cases: &[Case]) -> String {
    let mut page = include_str!("head.md").to_owned();
    page.push_str("\n| case | what comes of it | shown by |\n|---|---|---|\n");
    for Case(case, outcome, tests) in cases {
        let shown: Vec<_> = tests.iter().map(|test| format!("`{test}`")).collect();
        let shown = if shown.is_empty() { "–".into() } else { shown.join("<br>") };
        writeln!(page, "| {case} | {outcome} | {shown} |").unwrap();
    }
    page.push_str(include_str!("tail.md"));
    page
}

#[test]
fn table_names_every_test_and_every_named_test_is_there() {
    let cases = cases();
    let (own, mut named) = (own(), BTreeSet::new());
    assert!(own.len() > 40, "{own:?}");
    for Case(case, _, tests) in &cases {
        for test in *tests {
            match test.split_once("::") {
                None => {
                    assert!(own.contains(*test), "{case}: there is no test {test}");
                    // `w01` for W1.
                    let (number, _) = test.split_once('_').unwrap();
                    let number =
                        format!("{}{}", &number[..1].to_uppercase(), number[1..].trim_start_matches('0'));
                    assert_eq!(number, *case, "{test}");
                    named.insert((*test).to_owned());
                }
                Some((file, test)) => {
                    assert!(tests_in(file).contains(test), "{case}: there is no test {test} in {file}");
                }
            }
        }
    }
    assert_eq!(named, own, "each test of this target stands at its case");
    let page = page(&cases);
    let path = root().join("docs/abuse.md");
    if std::env::var_os("ABUSE_TABLE").is_some_and(|what| what == "write") {
        fs::write(&path, &page).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == page, "docs/abuse.md is stale: ABUSE_TABLE=write cargo test --test abuse table_");
}
