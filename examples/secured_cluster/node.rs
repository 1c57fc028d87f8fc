//! One node: a whole program around a `Cluster`. It reads its configuration, serves until it is told to end,
//! tells every event, and takes a few commands on its input. Under control it tells in JSON lines, else in
//! words.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, Write},
    path::Path,
    pin::pin,
    process::ExitCode,
    sync::Arc,
    thread,
};

use futures_util::StreamExt;
use phalanx::{
    Applied, Cluster, ClusterEvent, Config, Error, EventData, EventKind, NodeId, StateProvider, StateType,
    SyncableState,
};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

use crate::{
    notes::{Line, Note, Record, now},
    report,
};

/// The example's own type of state, beside the built-in ones.
pub(crate) const WEIGHTS: &str = "weights";

const HELP: &str = "\
commands:
  broadcast TYPE KEY VALUE   write a record: `broadcast health backend-7 up`
  members                    who is there, and why it is what it is
  records                    every record this node holds
  refused                    how many connections were refused, and why
  join ADDRESS               contact one more seed
  leave                      leave the cluster and end (or Ctrl-C)";

/// Runs one node until a signal, `leave`, or under control the end of its input.
pub(crate) async fn run(config: &Path, control: bool) -> ExitCode {
    let teller = Teller { control, begun: now() };
    log(teller);
    match serve(config, teller).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            teller.tell(Note::Failed { error: error.to_string() });
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: &Path, teller: Teller) -> Result<(), Error> {
    let cluster = Cluster::new(Config::load(config)?)?;
    let mut events = cluster.events(); // before the start, so that its event is seen too
    cluster.register_provider(Arc::new(Weights(teller)))?;
    let mut commands = read_input();
    let mut typing = true;

    let mut end = pin!(asked_to_end());
    let mut start = pin!(cluster.start());
    let mut starting = true;
    loop {
        tokio::select! {
            started = &mut start, if starting => {
                starting = false;
                if started?.is_none() {
                    eprintln!("enabled = false: this node takes no part");
                    return Ok(());
                }
                teller.tell(Note::Started { alive: alive(&cluster) });
            }
            Some(event) = events.next() => teller.tell(note(&event, &cluster)),
            line = commands.recv(), if typing => match line {
                Some(line) if line.trim() == "leave" => break,
                Some(line) => {
                    if let Err(error) = obey(&line, &cluster, teller) {
                        teller.tell(Note::Refused { error: error.to_string() });
                    }
                }
                None if teller.control => break, // nobody is left who listens
                None => typing = false,
            },
            () = &mut end => break,
        }
    }
    teller.tell(Note::Leaves);
    cluster.stop().await?;
    teller.tell(Note::Stopped);
    Ok(())
}

/// Does what a line says.
fn obey(line: &str, cluster: &Cluster, teller: Teller) -> Result<(), Error> {
    let mut words = line.splitn(4, ' ').map(str::trim);
    match (words.next().unwrap_or(""), words.next(), words.next(), words.next()) {
        ("broadcast", Some(state_type), Some(key), Some(value)) => {
            // JSON, or a text as it is.
            let value = serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::from(value));
            let at = now();
            let state = cluster.broadcast(state_type, key, &value)?.ok_or(Error::NotRunning)?;
            teller.tell_at(at, Note::Wrote { record: Record::from(&state) });
        }
        ("members", None, ..) => {
            for id in cluster.all_nodes().keys() {
                let text = cluster.explain(id).map_or_else(|| id.to_string(), |why| why.to_string());
                teller.tell(Note::Event { text });
            }
        }
        ("records", None, ..) => teller.tell(Note::Records { records: records(cluster) }),
        ("refused", None, ..) => {
            let refused = cluster.stats().net.refused;
            let refused = refused.iter().map(|(cause, count)| ((*cause).into(), *count)).collect();
            teller.tell(Note::Counted { refused });
        }
        ("join", Some(address), None, _) => {
            // Beside the loop: it waits for an answer.
            let (cluster, addresses) = (cluster.clone(), [address.to_owned()]);
            tokio::spawn(async move {
                teller.tell(match cluster.join(&addresses).await {
                    Ok(answered) => Note::Joined { answered },
                    Err(error) => Note::Refused { error: error.to_string() },
                });
            });
        }
        ("", ..) => {}
        _ => teller.tell(Note::Event { text: HELP.into() }),
    }
    Ok(())
}

fn alive(cluster: &Cluster) -> BTreeSet<String> {
    cluster.alive_nodes().iter().map(ToString::to_string).collect()
}

fn records(cluster: &Cluster) -> Vec<Record> {
    let types = [StateType::HEALTH, StateType::CIRCUIT_BREAKER, StateType::DRAIN, StateType::shared(WEIGHTS)];
    let mut records: Vec<_> = types
        .iter()
        .flat_map(|state_type| cluster.states(state_type))
        .map(|state| Record::from(&state))
        .collect();
    records.sort();
    records
}

fn note(event: &ClusterEvent, cluster: &Cluster) -> Note {
    match (&event.data, &event.node_id) {
        (EventData::Started { address }, _) => Note::Serves { address: address.to_string() },
        (EventData::Member { cause, .. }, Some(about)) => Note::Member {
            kind: event.kind.as_str().into(),
            about: about.to_string(),
            cause: cause.clone(),
            alive: alive(cluster),
        },
        (EventData::State { record, removed }, _) if event.kind == EventKind::StateChanged => {
            Note::Record { record: Record::from(&**record), removed: *removed }
        }
        _ => Note::Event { text: event.to_string() },
    }
}

/// A part of the program whose state is shared: here it only tells what it is handed.
struct Weights(Teller);

impl StateProvider for Weights {
    fn provider_type(&self) -> StateType {
        StateType::shared(WEIGHTS)
    }

    fn sync_state(&self) -> Vec<SyncableState> {
        Vec::new() // whoever sets weights broadcasts them, so there is nothing that nobody knows
    }

    fn apply_remote_state(&self, states: Vec<SyncableState>) -> Applied {
        for state in &states {
            self.0.tell(Note::Applied { record: Record::from(state) });
        }
        Applied { applied: states.len(), ..Applied::default() }
    }

    fn on_node_failure(&self, node: &NodeId) {
        tracing::info!(%node, "its weights stay in force");
    }
}

/// Resolves on Ctrl-C, SIGINT or SIGTERM.
pub(crate) async fn asked_to_end() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};

        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// The lines of the input. On a thread of its own that nobody waits for: a read cannot be called off.
fn read_input() -> mpsc::Receiver<String> {
    let (lines, input) = mpsc::channel(64);
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    input
}

/// Tells whoever listens: a program in JSON lines, a reader in words.
#[derive(Clone, Copy)]
struct Teller {
    control: bool,
    begun: u64,
}

impl Teller {
    fn tell(self, note: Note) {
        self.tell_at(now(), note);
    }

    fn tell_at(self, at: u64, note: Note) {
        let text = if self.control {
            serde_json::to_string(&Line { at, note }).unwrap_or_default()
        } else {
            let millis = at.saturating_sub(self.begun) / 1_000;
            let words = in_words(&note).replace('\n', "\n              ");
            format!("{:>6}.{:03} s  {words}", millis / 1_000, millis % 1_000)
        };
        // A reader who went away is no reason to end.
        let _ = writeln!(io::stdout().lock(), "{text}");
    }
}

fn in_words(note: &Note) -> String {
    match note {
        Note::Serves { address } => format!("serves at {address}"),
        Note::Started { alive } => format!("started; alive: {}", list(alive)),
        Note::Failed { error } => format!("failed: {error}"),
        Note::Member { kind, about, cause, alive } => {
            format!("{kind} {about}: {cause}; alive: {}", list(alive))
        }
        Note::Record { record, removed: false } => format!("state: {record}"),
        Note::Record { record, removed: true } => format!("state removed: {record}"),
        Note::Applied { record } => format!("the provider takes over {record}"),
        Note::Event { text } | Note::Log { text } => text.clone(),
        Note::Wrote { record } => format!("written: {record}"),
        Note::Refused { error } => format!("not done: {error}"),
        Note::Joined { answered } => format!("{answered} answered"),
        Note::Records { records } => match records.as_slice() {
            [] => "no records".into(),
            records => records.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        },
        Note::Counted { refused } if refused.is_empty() => "no connection was refused".into(),
        Note::Counted { refused } => format!("connections refused: {refused:?}"),
        Note::Leaves => "leaves".into(),
        Note::Stopped | Note::Gone => "has left".into(),
    }
}

fn list(ids: &BTreeSet<String>) -> String {
    ids.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// What the library logs: to the one who listens, or to the terminal.
fn log(teller: Teller) {
    let filter = EnvFilter::try_from_default_env().ok().filter(|_| !teller.control);
    let filter = filter.unwrap_or_else(|| EnvFilter::new("phalanx=warn"));
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    if teller.control {
        format.without_time().with_ansi(false).with_writer(move || Log(teller)).init();
    } else {
        let colour = report::has_colour(&io::stderr());
        format.with_ansi(colour).with_writer(io::stderr).init();
    }
}

/// Makes a note of each line of the log, which is written in one piece.
struct Log(Teller);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.tell(Note::Log { text: String::from_utf8_lossy(bytes).trim().into() });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
