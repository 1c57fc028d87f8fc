//! A command's options: `--name value`, each with a default, each refused if it is unknown or cannot be read.

use std::{collections::BTreeMap, ops::Range, path::PathBuf, str::FromStr, time::Duration};

use super::Failure;

/// Options as given, over their defaults.
pub(super) struct Args {
    values: BTreeMap<&'static str, String>,
}

impl Args {
    pub(super) fn parse(
        given: &[String],
        options: &[(&'static str, &'static str, &'static str)],
    ) -> Result<Self, Failure> {
        let mut values: BTreeMap<_, _> =
            options.iter().map(|(name, default, _)| (*name, (*default).to_owned())).collect();
        let mut given = given.iter();
        while let Some(word) = given.next() {
            let known = options.iter().find(|(name, ..)| word.strip_prefix("--") == Some(name));
            let Some((name, ..)) = known else {
                let names: Vec<_> = options.iter().map(|(name, ..)| format!("--{name}")).collect();
                return Err(format!("unknown option {word}; there are {}", names.join(", ")).into());
            };
            let value = given.next().ok_or_else(|| format!("--{name} needs a value"))?;
            values.insert(name, value.clone());
        }
        Ok(Self { values })
    }

    pub(super) fn text(&self, name: &str) -> &str {
        &self.values[name]
    }

    pub(super) fn get<T: FromStr>(&self, name: &str) -> Result<T, Failure> {
        let value = self.text(name);
        value.parse().map_err(|_| format!("--{name} cannot be {value}").into())
    }

    /// Values separated by commas.
    pub(super) fn list<T: FromStr>(&self, name: &str) -> Result<Vec<T>, Failure> {
        let values = self.text(name).split(',');
        let read = |value: &str| value.parse().map_err(|_| format!("--{name} cannot hold {value}").into());
        values.map(read).collect()
    }

    /// Seeds, such as `0..200`, or one alone.
    pub(super) fn seeds(&self) -> Result<Range<u64>, Failure> {
        let text = self.text("seeds");
        let number =
            |text: &str| text.parse::<u64>().map_err(|_| format!("--seeds holds {text}, which is no number"));
        match text.split_once("..") {
            Some((from, to)) => Ok(number(from)?..number(to)?),
            None => number(text).map(|seed| Ok(seed..seed + 1))?,
        }
    }

    /// A span such as `90s`, `10m` or `1h`.
    pub(super) fn span(&self, name: &str) -> Result<Duration, Failure> {
        let text = self.text(name);
        let unit = match text.chars().last() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3_600,
            _ => return Err(format!("--{name} is a span such as 90s, 10m or 1h, not {text}").into()),
        };
        let number: u64 = text[..text.len() - 1].parse().map_err(|_| format!("--{name} cannot be {text}"))?;
        Ok(Duration::from_secs(number * unit))
    }

    /// The directory for what is written.
    pub(super) fn out(&self) -> PathBuf {
        PathBuf::from(self.text("out"))
    }
}
