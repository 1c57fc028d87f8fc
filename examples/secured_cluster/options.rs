//! What the command line asks for. Starts nothing.

use std::path::PathBuf;

/// The port of the first node; the next ones follow it. Below the range from which systems pick ports
/// themselves.
pub(crate) const FIRST_PORT: u16 = 7946;

pub(crate) const USAGE: &str = "\
usage:
  secured_cluster [--nodes N] [--certs DIR]
      Tells the story of a secured cluster of N processes (3 to 32, default 5); takes under a minute.
      Certificates and configuration files go to a temporary folder, or are kept in DIR.
  secured_cluster --make-certs DIR [--cluster NAME] ID...
      Makes an authority (cluster NAME, default \"edge\"), and for each node its certificate and configuration.
  secured_cluster --node --config FILE
      Runs one node until Ctrl-C (SIGINT or SIGTERM), which leaves gracefully. Type `help` for what it takes.
      PHALANX_* variables go over the file; RUST_LOG chooses what is logged.
  secured_cluster --help";

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Task {
    Help,
    Story { nodes: usize, certs: Option<PathBuf> },
    Node { config: PathBuf, control: bool },
    MakeCerts { dir: PathBuf, cluster: String, ids: Vec<String> },
}

/// What was written, before it is known whether it belongs together.
#[derive(Default)]
struct Given {
    help: bool,
    node: bool,
    control: bool,
    nodes: Option<usize>,
    certs: Option<PathBuf>,
    config: Option<PathBuf>,
    make_certs: Option<PathBuf>,
    cluster: Option<String>,
    ids: Vec<String>,
}

pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Task, String> {
    let mut given = Given::default();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value"));
        match argument.as_str() {
            "--help" | "-h" => given.help = true,
            "--node" => given.node = true,
            // Hidden: speak JSON lines, and end with the input.
            "--control" => given.control = true,
            "--nodes" => {
                let text = value()?;
                let nodes = text.parse().ok().filter(|nodes| (3..=32).contains(nodes));
                given.nodes = Some(nodes.ok_or(format!("--nodes {text}: use 3 to 32"))?);
            }
            "--certs" => given.certs = Some(value()?.into()),
            "--config" => given.config = Some(value()?.into()),
            "--make-certs" => given.make_certs = Some(value()?.into()),
            "--cluster" => given.cluster = Some(value()?),
            id if !id.starts_with('-') => given.ids.push(id.into()),
            unknown => return Err(format!("there is no argument {unknown}")),
        }
    }
    given.task()
}

impl Given {
    fn task(self) -> Result<Task, String> {
        let task = match self {
            Self { help: true, .. } => Task::Help,
            Self {
                node: true,
                config: Some(config),
                control,
                nodes: None,
                certs: None,
                make_certs: None,
                cluster: None,
                ids,
                ..
            } if ids.is_empty() => Task::Node { config, control },
            Self { node: true, config: None, .. } => return Err("--node wants --config FILE".into()),
            Self {
                node: false,
                control: false,
                nodes: None,
                certs: None,
                config: None,
                make_certs: Some(dir),
                cluster,
                ids,
                ..
            } => {
                if ids.is_empty() {
                    return Err("--make-certs wants the ids of the nodes".into());
                }
                Task::MakeCerts { dir, cluster: cluster.unwrap_or_else(|| "edge".into()), ids }
            }
            Self {
                node: false,
                control: false,
                nodes,
                certs,
                config: None,
                make_certs: None,
                cluster: None,
                ids,
                ..
            } if ids.is_empty() => Task::Story { nodes: nodes.unwrap_or(5), certs },
            Self { make_certs: None, ids, .. } if !ids.is_empty() => {
                return Err(format!("{}: the ids of nodes go with --make-certs DIR", ids.join(" ")));
            }
            _ => return Err("these arguments do not belong together".into()),
        };
        Ok(task)
    }
}
