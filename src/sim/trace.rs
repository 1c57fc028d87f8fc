//! What happened in a world, line by line: the last lines for whoever reads a failure, a hash of all of them for
//! whoever compares two runs. Decides nothing.

use std::{collections::VecDeque, fmt::Write as _, hash::Hasher as _};

use siphasher::sip::SipHasher13;

/// Lines kept for a failure's report.
const LINES_KEPT: usize = 40;

/// The trace of one world.
#[derive(Debug)]
pub(crate) struct Trace {
    lines: VecDeque<String>,
    hasher: SipHasher13,
    /// Whether every line is printed: `PHALANX_SIM_TRACE=1`, with `-- --nocapture`.
    whole: bool,
}

impl Trace {
    pub(crate) fn new() -> Self {
        let whole = std::env::var_os("PHALANX_SIM_TRACE").is_some();
        Self { lines: VecDeque::new(), hasher: SipHasher13::new(), whole }
    }

    /// Adds what happened at `micros` to `who`.
    pub(crate) fn add(&mut self, micros: u64, who: &dyn std::fmt::Display, what: &str) {
        let mut line = if self.lines.len() < LINES_KEPT {
            String::new()
        } else {
            self.lines.pop_front().unwrap_or_default()
        };
        line.clear();
        let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
        let _ = write!(line, "{seconds:>5}.{rest:06} {who}: {what}");
        self.hasher.write(line.as_bytes());
        if self.whole {
            println!("{line}");
        }
        self.lines.push_back(line);
    }

    /// A number that differs as soon as one line does.
    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The last lines, oldest first.
    pub(crate) fn tail(&self) -> String {
        self.lines.iter().fold(String::new(), |text, line| text + "  " + line + "\n")
    }
}

/// A short hash of a message's bytes: enough to tell two apart in a trace.
pub(crate) fn digest(bytes: &[u8]) -> u16 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    u16::try_from(hasher.finish() & 0xffff).unwrap_or_default()
}
