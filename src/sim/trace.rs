//! What happened in a world, line by line: the last lines for whoever reads a failure, a hash of all of them
//! for whoever compares two runs. Lines become text only when somebody reads them. Decides nothing.

use std::{collections::VecDeque, fmt, hash::Hasher as _};

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use crate::{NodeId, proto::StreamInput};

/// Lines kept for a failure's report.
const LINES_KEPT: usize = 60;

/// What happened to whom.
#[derive(Debug)]
pub(crate) enum Line {
    Text(String),
    Message { to: NodeId, from: NodeId, bytes: Bytes },
    Stream { at: NodeId, peer: NodeId, stream: u64, input: StreamInput },
}

/// The trace of one world.
#[derive(Debug)]
pub(crate) struct Trace {
    lines: VecDeque<(u64, Line)>,
    hasher: SipHasher13,
    /// Whether every line is printed: `PHALANX_SIM_TRACE=1`, with `-- --nocapture`.
    whole: bool,
    /// Whether lines are kept and hashed at all.
    on: bool,
}

impl Trace {
    pub(crate) fn new() -> Self {
        let whole = std::env::var_os("PHALANX_SIM_TRACE").is_some();
        Self { lines: VecDeque::new(), hasher: SipHasher13::new(), whole, on: true }
    }

    /// For experiments, which compare no two runs.
    pub(crate) fn turn_off(&mut self) {
        self.on = self.whole;
    }

    pub(crate) fn print_all(&mut self) {
        (self.whole, self.on) = (true, true);
    }

    /// Whether somebody reads it all, and may be told what is too much to keep for nobody.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Adds what happened at `micros`.
    pub(crate) fn add(&mut self, micros: u64, line: Line) {
        if !self.on {
            return;
        }
        self.hasher.write_u64(micros);
        match &line {
            Line::Text(text) => self.hasher.write(text.as_bytes()),
            Line::Message { to, bytes, .. } => {
                self.hasher.write(to.as_str().as_bytes());
                self.hasher.write(bytes);
            }
            Line::Stream { at, stream, input, .. } => {
                self.hasher.write(at.as_str().as_bytes());
                self.hasher.write_u64(*stream);
                if let StreamInput::Frame(bytes) = input {
                    self.hasher.write(bytes);
                }
            }
        }
        if self.whole {
            println!("{}", Shown(micros, &line));
        }
        if self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back((micros, line));
    }

    /// A number that differs as soon as one line does.
    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The last lines, oldest first.
    pub(crate) fn tail(&self) -> String {
        let shown: Vec<_> =
            self.lines.iter().map(|(micros, line)| Shown(*micros, line).to_string()).collect();
        shown.join("\n")
    }
}

struct Shown<'a>(u64, &'a Line);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        write!(f, "{seconds:>5}.{rest:06} ")?;
        match self.1 {
            Line::Text(text) => f.write_str(text),
            Line::Message { to, from, bytes } => {
                write!(f, "{to}: {} bytes {:04x} from {from}", bytes.len(), digest(bytes))
            }
            Line::Stream { at, peer, stream, input: StreamInput::Frame(bytes) } => {
                write!(f, "{at}: stream {stream} with {peer}: frame of {}", bytes.len())
            }
            Line::Stream { at, peer, stream, input } => {
                write!(f, "{at}: stream {stream} with {peer}: {input:?}")
            }
        }
    }
}

/// A short hash of a message's bytes: enough to tell two apart in a trace.
fn digest(bytes: &[u8]) -> u16 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    u16::try_from(hasher.finish() & 0xffff).unwrap_or_default()
}
