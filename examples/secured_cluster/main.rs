//! A secured cluster, end to end: certificates, separate processes, shared state, a crash, a return, a
//! goodbye, and two intruders who stay outside. Narrates what it sees and exits 0 only if it saw all of it.
//!
//! ```sh
//! cargo run --release --example secured_cluster
//! ```
//!
//! Where to look: `node.rs` is a whole program around a [`phalanx::Cluster`], `certificates.rs` makes the
//! authority, the identities and the configuration files, `story.rs` and `trials.rs` are the acts. The rest
//! (`fleet.rs`, `notes.rs`, `report.rs`, `options.rs`) starts processes, hears them and prints.

mod certificates;
mod fleet;
mod node;
mod notes;
mod options;
mod report;
mod story;
mod trials;

use std::{
    fs, io,
    path::PathBuf,
    process::ExitCode,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use crate::{
    certificates::Certificates,
    options::{FIRST_PORT, Task, USAGE},
    report::Report,
    story::Story,
};

/// When the story is cut short, and when the process ends whatever happens.
const STORY_MAX: Duration = Duration::from_secs(56);
const PROCESS_MAX: Duration = Duration::from_secs(59);

/// What keeps the example from doing what it was asked for, in words.
type Fault = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let task = match options::parse(std::env::args().skip(1)) {
        Ok(task) => task,
        Err(fault) => {
            eprintln!("{fault}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let result = match task {
        Task::Help => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        Task::Story { nodes, certs } => tell_story(nodes, certs),
        Task::Node { config, control } => {
            runtime().map(|runtime| runtime.block_on(node::run(&config, control))).map_err(Fault::from)
        }
        Task::MakeCerts { dir, cluster, ids } => make_certificates(dir, &cluster, &ids),
    };
    result.unwrap_or_else(|fault| {
        eprintln!("{fault}");
        ExitCode::FAILURE
    })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// For a cluster by hand: certificates, and a configuration file for each node.
fn make_certificates(dir: PathBuf, cluster: &str, ids: &[String]) -> Result<ExitCode, Fault> {
    let certificates = Certificates::open(dir, cluster)?;
    let nodes: Vec<_> = ids.iter().cloned().zip(FIRST_PORT..).collect();
    let configs = certificates.make_nodes(&nodes)?;
    println!("The authority of cluster {cluster:?} is in {}.", certificates.authority_dir().display());
    println!(
        "Start each node in a terminal of its own, end it with Ctrl-C, and type `help` in one to write state:"
    );
    for config in configs.values() {
        println!("  cargo run --release --example secured_cluster -- --node --config {}", config.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn tell_story(nodes: usize, certs: Option<PathBuf>) -> Result<ExitCode, Fault> {
    // Removed when dropped, whatever happens on the way.
    let temporary = if certs.is_none() { Some(tempfile::tempdir()?) } else { None };
    let dir = certs.or_else(|| temporary.as_ref().map(|dir| dir.path().to_path_buf())).unwrap_or_default();
    let report = Report::new(nodes, &dir, temporary.is_none());
    let ended = watch_over(report.clone(), temporary.as_ref().map(|dir| dir.path().to_path_buf()));
    let code = runtime()?.block_on(async {
        // Dropped at the end of this block, and the processes with it.
        let mut story = Story::new(report.clone(), nodes, dir);
        tokio::select! {
            told = tokio::time::timeout(STORY_MAX, story.tell()) => match told {
                Ok(Ok(())) => report.verdict(None),
                Ok(Err(fault)) => report.verdict(Some(&fault.to_string())),
                Err(_) => report.verdict(Some(&format!("it took longer than {} s", STORY_MAX.as_secs()))),
            },
            () = node::asked_to_end() => {
                eprintln!("interrupted; every process it started is ended");
                ExitCode::from(130)
            }
        }
    });
    drop(ended);
    Ok(code)
}

/// Ends the process should everything else fail to. The nodes see the end of their input and end as well.
fn watch_over(report: Report, temporary: Option<PathBuf>) -> mpsc::Sender<()> {
    let (ended, wait) = mpsc::channel();
    thread::spawn(move || {
        if wait.recv_timeout(PROCESS_MAX) == Err(RecvTimeoutError::Timeout) {
            report.verdict(Some("it hangs"));
            if let Some(dir) = temporary {
                let _ = fs::remove_dir_all(dir);
            }
            std::process::exit(1);
        }
    });
    ended
}
