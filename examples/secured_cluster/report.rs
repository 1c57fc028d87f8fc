//! The timeline, and what has to be seen before the example may say that all is well. Prints, decides nothing
//! else.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use crate::notes::{now, span};

/// How wide the text of a line is, before what was measured.
const TEXT: usize = 68;

/// What has to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Check {
    Joined,
    Health,
    CircuitBreaker,
    Drain,
    Custom,
    Hundred,
    Suspected,
    Dead,
    Returned,
    CaughtUp,
    Left,
    Stranger,
    Impostor,
    Whole,
}

impl Check {
    const ALL: [(Self, &str); 14] = [
        (Self::Joined, "every node joins, and all agree on who is alive"),
        (Self::Health, "a health record arrives everywhere"),
        (Self::CircuitBreaker, "a circuit-breaker record arrives everywhere"),
        (Self::Drain, "a drain order arrives everywhere"),
        (Self::Custom, "a record of a type of the program's own arrives everywhere, at its provider too"),
        (Self::Hundred, "each of 100 broadcasts arrives everywhere"),
        (Self::Suspected, "the killed node is suspected"),
        (Self::Dead, "the rest see the killed node's death, and only its"),
        (Self::Returned, "the killed node comes back with the same certificate"),
        (Self::CaughtUp, "it catches up, with what was written while it was away"),
        (Self::Left, "a node that leaves is seen as left, never as dead"),
        (Self::Stranger, "a stranger with a certificate of another authority is refused by the members"),
        (Self::Impostor, "an impostor whose certificate names another node is refused"),
        (Self::Whole, "the cluster is whole afterwards, and still spreads news"),
    ];
}

/// Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Report {
    begun: u64,
    colour: bool,
    seen: Arc<Mutex<BTreeSet<Check>>>,
}

impl Report {
    pub(crate) fn new(nodes: usize, dir: &Path, kept: bool) -> Self {
        let colour =
            io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let report = Self { begun: now(), colour, seen: Arc::default() };
        let fate = if kept { "kept" } else { "removed at the end" };
        print(&format!(
            "{}: {nodes} processes, mutual TLS over QUIC on 127.0.0.1, default settings\n{}\n\n",
            report.paint("1", "A secured cluster"),
            report.paint("2", &format!("certificates and configuration in {} ({fate})", dir.display())),
        ));
        report
    }

    /// The beginning of an act.
    pub(crate) fn act(&self, title: &str) {
        print(&format!("{}\n", self.paint("1", title)));
    }

    /// Something that happened, now.
    pub(crate) fn tell(&self, text: &str, measured: &str) {
        self.line(" ", text, measured);
    }

    /// Something that has to be seen: it was, or it was not.
    pub(crate) fn check(&self, check: Check, seen: bool, text: &str, measured: &str) {
        if seen {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(check);
            self.line(&self.paint("32", "✓"), text, measured);
        } else {
            self.line(&self.paint("31", "✗"), &format!("not seen: {text}"), measured);
        }
    }

    /// Words that are not this program's: a reason, an error.
    pub(crate) fn quote(&self, who: &str, words: &str) {
        for line in wrapped(words, 96) {
            print(&format!("{:11}{}\n", "", self.paint("2", &format!("{who:>8} │ {line}"))));
        }
    }

    fn line(&self, mark: &str, text: &str, measured: &str) {
        let time = now().saturating_sub(self.begun) / 10_000;
        let time = self.paint("2", &format!("{:>3}.{:02} s", time / 100, time % 100));
        let measured = if measured.is_empty() { String::new() } else { self.paint("36", measured) };
        let text = format!("{text:<TEXT$}");
        print(&format!("{}\n", format!("{time}  {mark} {text}  {measured}").trim_end()));
    }

    /// The end: whether everything was seen, and what was not.
    pub(crate) fn verdict(&self, fault: Option<&str>) -> ExitCode {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let missing: Vec<_> = Check::ALL.iter().filter(|(check, _)| !seen.contains(check)).collect();
        let took = span(self.begun, now());
        if let Some(fault) = fault {
            print(&format!("\n{} {fault}\n", self.paint("31", "the story broke off:")));
        }
        if missing.is_empty() && fault.is_none() {
            print(&format!(
                "\n{} in {took}\n",
                self.paint("1;32", &format!("all {} seen", Check::ALL.len()))
            ));
            return ExitCode::SUCCESS;
        }
        let count = format!("{} of {} not seen", missing.len(), Check::ALL.len());
        print(&format!("\n{} in {took}:\n", self.paint("1;31", &count)));
        for (_, text) in missing {
            print(&format!("  ✗ {text}\n"));
        }
        ExitCode::FAILURE
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.into() }
    }
}

/// Whether colours are wanted: on a terminal, unless `NO_COLOR` is set.
pub(crate) fn has_colour(out: &impl IsTerminal) -> bool {
    out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A reader who went away is no reason to leave processes behind.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].chars().count() + word.chars().count() >= width {
            lines.push(word.into());
        } else {
            if !lines[last].is_empty() {
                lines[last].push(' ');
            }
            lines[last].push_str(word);
        }
    }
    lines
}
