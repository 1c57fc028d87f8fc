//! The laboratory: one command for long runs and for experiments, whose tables and figures go to
//! `docs/experiments`. Experiments use worlds as tests do; no rule of the protocol is here.
//!
//! `args` what was asked for · `crew` many worlds on several threads · `table`, `plot` what is written ·
//! `long_run` and the rest: one file for each command

mod args;
mod cases;
mod corroboration;
mod crew;
mod detection;
mod dissemination;
mod lifeguard;
mod load;
mod long_run;
mod partition;
mod plot;
mod report;
mod restart_storm;
mod scale;
mod table;
mod ticks;

use std::{fmt::Write as _, process::ExitCode};

use self::args::Args;

/// Why a command did not do what it was asked for.
pub(super) type Failure = Box<dyn std::error::Error>;

/// A command: its name, what it does, its options with their defaults, and the function.
struct Command {
    name: &'static str,
    about: &'static str,
    options: &'static [(&'static str, &'static str, &'static str)],
    run: fn(&Args) -> Result<(), Failure>,
}

const COMMANDS: &[Command] = &[
    long_run::COMMAND,
    detection::COMMAND,
    lifeguard::COMMAND,
    corroboration::COMMAND,
    dissemination::COMMAND,
    load::COMMAND,
    partition::COMMAND,
    restart_storm::COMMAND,
    scale::COMMAND,
];

/// Carries out one command line of the `simulate` example.
pub fn simulate(args: impl Iterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.collect();
    let name = args.first().map_or("help", String::as_str);
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        print!("{}", help());
        return ExitCode::from(if name == "help" || name == "--help" { 0 } else { 2 });
    };
    if args[1..].iter().any(|word| word == "--help") {
        print!("{}", command.help());
        return ExitCode::SUCCESS;
    }
    let outcome = Args::parse(&args[1..], command.options).and_then(|args| (command.run)(&args));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("simulate {name}: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn help() -> String {
    let intro = "simulate <command> [--option value …]\n";
    COMMANDS.iter().fold(intro.to_owned(), |text, command| text + "\n" + &command.help())
}

impl Command {
    fn help(&self) -> String {
        let mut text = format!("{}\n    {}\n", self.name, self.about);
        for (name, default, meaning) in self.options {
            let _ = writeln!(text, "      --{name:<13} {meaning} [{default}]");
        }
        text
    }
}
