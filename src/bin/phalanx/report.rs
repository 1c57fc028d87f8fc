//! What a command tells, for people and for programs, and with which exit code. Plain text without colours:
//! it reads the same in a terminal, a log and a pipe.

use std::{
    fmt::Display,
    io::Write,
    path::Path,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use phalanx::Error;
use serde_json::{Map, Value, json};

/// The answer is no.
const NO: u8 = 1;
/// It failed.
const FAILED: u8 = 3;

/// What a command did.
pub(crate) struct Report {
    command: &'static str,
    /// The first line says what was done.
    lines: Vec<String>,
    /// The commands to run next, or what to do by hand.
    next: Vec<String>,
    fields: Map<String, Value>,
    is_no: bool,
}

impl Report {
    pub(crate) fn new(command: &'static str, done: impl Into<String>) -> Self {
        Self { command, lines: vec![done.into()], next: Vec::new(), fields: Map::new(), is_no: false }
    }

    /// One more line for people.
    pub(crate) fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// What to run or to do next.
    pub(crate) fn next(mut self, command: impl Into<String>) -> Self {
        self.next.push(command.into());
        self
    }

    /// A field for programs. Its name stays as it is from version to version.
    pub(crate) fn field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// The answer to what was asked is no.
    pub(crate) fn no(mut self) -> Self {
        self.is_no = true;
        self
    }

    pub(crate) fn print(self, json: bool) -> ExitCode {
        let code = if self.is_no { NO } else { 0 };
        if json {
            let mut object = self.fields;
            object.insert("command".into(), self.command.into());
            object.insert("ok".into(), (!self.is_no).into());
            object.insert("message".into(), self.lines[0].clone().into());
            object.insert("next".into(), self.next.into());
            return written(&Value::Object(object).to_string(), code);
        }
        let mut text = self.lines.join("\n");
        for (at, next) in self.next.iter().enumerate() {
            text += if at == 0 { "\nnext: " } else { "\n      " };
            text += next;
        }
        written(&text, code)
    }
}

/// A command that failed.
pub(crate) struct Failure {
    command: &'static str,
    message: String,
}

impl Failure {
    pub(crate) fn new(command: &'static str, error: impl Display) -> Self {
        Self { command, message: error.to_string() }
    }

    pub(crate) fn print(self, json: bool) -> ExitCode {
        let _ = writeln!(std::io::stderr(), "error: {}", self.message); // nowhere else to tell it
        if !json {
            return ExitCode::from(FAILED);
        }
        let object = json!({
            "command": self.command, "ok": false, "message": "failed", "error": self.message, "next": [],
        });
        written(&object.to_string(), FAILED)
    }
}

/// Names the command that an error of the library belongs to.
pub(crate) trait Of<T> {
    fn of(self, command: &'static str) -> Result<T, Failure>;
}

impl<T> Of<T> for Result<T, Error> {
    fn of(self, command: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(command, error))
    }
}

fn written(text: &str, code: u8) -> ExitCode {
    // Who closed the pipe does not want to read on; the exit code still tells.
    let _ = writeln!(std::io::stdout(), "{text}");
    ExitCode::from(code)
}

/// A moment in UTC, as RFC 3339 has it.
pub(crate) fn utc(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    };
    let Ok(time) = time::OffsetDateTime::from_unix_timestamp(seconds) else {
        return format!("{seconds} s after 1970");
    };
    let (date, clock) = (time.date(), time.time());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let (hour, minute, second) = (clock.hour(), clock.minute(), clock.second());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A path in a command that can be copied into a shell.
pub(crate) fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | ',' | '=');
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// ` --dir DIR`, unless it is the one that is taken without it.
pub(crate) fn dir_option(dir: &Path) -> String {
    if dir == Path::new("ca") { String::new() } else { format!(" --dir {}", shell(dir)) }
}
