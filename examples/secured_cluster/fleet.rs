//! The processes: starts them, hears what they note, ends them. Whatever becomes of this process, none
//! outlives it: they are killed when the fleet is dropped, and end by themselves when their input does.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::timeout,
};

use crate::{
    Fault,
    notes::{Line, Note, now},
};

pub(crate) struct Fleet {
    processes: BTreeMap<String, Process>,
    told: mpsc::Sender<(String, Line)>,
    inbox: mpsc::Receiver<(String, Line)>,
    pub(crate) journal: Journal,
}

struct Process {
    child: Child,
    input: ChildStdin,
}

/// Everything that was noted, in the order in which it was heard.
#[derive(Default)]
pub(crate) struct Journal {
    entries: Vec<Entry>,
    /// Who is alive in each node's view, and since when it sees it so.
    views: BTreeMap<String, (BTreeSet<String>, u64)>,
}

pub(crate) struct Entry {
    pub(crate) node: String,
    pub(crate) at: u64,
    pub(crate) note: Note,
}

/// A place in the journal.
#[derive(Clone, Copy)]
pub(crate) struct Mark(usize);

impl Fleet {
    pub(crate) fn new() -> Self {
        let (told, inbox) = mpsc::channel(1_024);
        Self { processes: BTreeMap::new(), told, inbox, journal: Journal::default() }
    }

    /// Starts a node in a process of its own: this program, run anew. When that was.
    pub(crate) fn start(&mut self, name: &str, config: &Path) -> Result<u64, Fault> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--node", "--control", "--config"]).arg(config);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        // The story's configuration is its own.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PHALANX_") {
                command.env_remove(variable);
            }
        }
        // Ctrl-C is for this process; it ends the others.
        #[cfg(unix)]
        command.process_group(0);
        let at = now();
        let mut child = command.spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a process without input and output".into());
        };
        self.journal.views.remove(name);
        self.processes.insert(name.into(), Process { child, input });

        let (name, told) = (name.to_owned(), self.told.clone());
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(text)) = lines.next_line().await {
                let line = serde_json::from_str(&text);
                let line = line.unwrap_or_else(|_| Line { at: now(), note: Note::Log { text } });
                if told.send((name.clone(), line)).await.is_err() {
                    return;
                }
            }
            let _ = told.send((name, Line { at: now(), note: Note::Gone })).await;
        });
        Ok(at)
    }

    /// Writes a command to a node. One that is gone will be missed elsewhere.
    pub(crate) async fn command(&mut self, name: &str, command: &str) {
        if let Some(process) = self.processes.get_mut(name) {
            let _ = process.input.write_all(format!("{command}\n").as_bytes()).await;
            let _ = process.input.flush().await;
        }
    }

    /// Ends a node with SIGKILL. When that was.
    pub(crate) fn kill(&mut self, name: &str) -> Result<u64, Fault> {
        let at = now();
        if let Some(process) = self.processes.get_mut(name) {
            process.child.start_kill()?;
        }
        Ok(at)
    }

    /// Waits until a node's process has ended; whether it ended by itself and said that all was well.
    pub(crate) async fn ended(&mut self, name: &str, limit: Duration) -> bool {
        let Some(process) = self.processes.get_mut(name) else { return false };
        match timeout(limit, process.child.wait()).await {
            Ok(Ok(status)) => status.success(),
            _ => false,
        }
    }

    /// Listens until `test` finds what it looks for in the journal, `limit` at most.
    pub(crate) async fn until<T>(
        &mut self,
        limit: Duration,
        mut test: impl FnMut(&Journal) -> Option<T>,
    ) -> Option<T> {
        timeout(limit, async {
            loop {
                if let Some(found) = test(&self.journal) {
                    return Some(found);
                }
                let (node, line) = self.inbox.recv().await?;
                self.journal.add(node, line);
            }
        })
        .await
        .ok()?
    }
}

impl Journal {
    fn add(&mut self, node: String, Line { at, note }: Line) {
        if let Note::Started { alive } | Note::Member { alive, .. } = &note {
            let view = self.views.entry(node.clone()).or_default();
            if view.0 != *alive {
                *view = (alive.clone(), at);
            }
        }
        self.entries.push(Entry { node, at, note });
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark(self.entries.len())
    }

    pub(crate) fn since(&self, mark: Mark) -> impl Iterator<Item = &Entry> {
        self.entries.iter().skip(mark.0)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Since when all of `nodes` see exactly one another alive.
    pub(crate) fn agreed(&self, nodes: &BTreeSet<String>) -> Option<u64> {
        let mut last = 0;
        for node in nodes {
            let (alive, since) = self.views.get(node)?;
            if alive != nodes {
                return None;
            }
            last = last.max(*since);
        }
        Some(last)
    }

    /// Whom a node sees alive, in words.
    pub(crate) fn view(&self, node: &str) -> Option<String> {
        let (alive, _) = self.views.get(node)?;
        Some(alive.iter().map(String::as_str).collect::<Vec<_>>().join(" "))
    }

    /// When each of `nodes` first noted what `test` looks for; `None` while one has not.
    pub(crate) fn everywhere(
        &self,
        mark: Mark,
        nodes: &BTreeSet<String>,
        test: impl Fn(&Note) -> bool,
    ) -> Option<Vec<u64>> {
        let mut first: BTreeMap<&str, u64> = BTreeMap::new();
        for entry in self.since(mark).filter(|entry| nodes.contains(&entry.node) && test(&entry.note)) {
            first.entry(&entry.node).or_insert(entry.at);
        }
        (first.len() == nodes.len()).then(|| {
            let mut times: Vec<_> = first.into_values().collect();
            times.sort_unstable();
            times
        })
    }

    /// The first note of `node` that `test` makes something of.
    pub(crate) fn first<T>(
        &self,
        mark: Mark,
        node: &str,
        test: impl Fn(&Note) -> Option<T>,
    ) -> Option<(u64, T)> {
        let mut notes = self.since(mark).filter(|entry| entry.node == node);
        notes.find_map(|entry| Some((entry.at, test(&entry.note)?)))
    }
}
