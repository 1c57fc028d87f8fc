//! One experiment's page: `<name>.md` with its table and figures, beside `<name>.csv` and the SVG files.

use std::{fmt::Write as _, path::Path};

use super::{
    Failure,
    plot::Figure,
    table::{self, Table},
};

/// What an experiment has to say.
pub(super) struct Report<'a> {
    /// Of the files.
    pub(super) name: &'a str,
    pub(super) title: &'a str,
    /// The command that makes the page again.
    pub(super) command: String,
    /// What was done and how to read it, in Markdown, before the table.
    pub(super) before: String,
    pub(super) table: Table,
    /// What came of it, after the figures: comparisons, sources, what is worse and why.
    pub(super) after: String,
    /// Each with the end of its file's name.
    pub(super) figures: Vec<(&'a str, Figure<'a>)>,
}

impl Report<'_> {
    /// Writes all files, and shows the table.
    pub(super) fn write(&self, directory: &Path) -> Result<(), Failure> {
        let Self { name, title, command, before, table, after, figures } = self;
        let mut page = format!("# {title}\n\n{before}\n\n{}\n", table.markdown());
        for (end, figure) in figures {
            let file = format!("{name}-{end}.svg");
            figure.write(&directory.join(&file))?;
            let _ = write!(page, "![{}]({file})\n\n", figure.title);
        }
        let _ = write!(
            page,
            "{after}\n\nMade by\n\n```sh\n{command}\n```\n\nThe numbers: [{name}.csv]({name}.csv).\n"
        );
        table::write(&directory.join(format!("{name}.md")), &page)?;
        table.write_csv(&directory.join(format!("{name}.csv")))?;
        println!("{title}\n\n{}", table.markdown());
        Ok(())
    }
}

/// The command line of an experiment, as its page quotes it.
pub(super) fn command_line(command: &str, args: &str) -> String {
    format!("cargo run --release --features sim --example simulate -- {command} {args}").trim_end().into()
}
