//! A victim in a process of its own: this test binary once more, so that its memory and its processor time can
//! be told from the bad peer's.

use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use phalanx::{Cluster, Config};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{
    common::{started, until},
    mint::Mint,
    world::{name, patient},
};

/// Names the directory of the child's configuration. Not `PHALANX_…`, or it would be one of its settings.
const VARIABLE: &str = "ABUSE_VICTIM_DIR";
/// What the child's lines begin with, among those of the test harness.
const MARK: &str = "victim ";

pub(crate) struct Victim {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _dir: tempfile::TempDir,
    pub(crate) mint: Mint,
    pub(crate) address: SocketAddr,
}

impl Victim {
    pub(crate) async fn start() -> Self {
        Self::start_in(std::process::Command::new).await
    }

    /// The same, by a command that runs the binary it is given.
    pub(crate) async fn start_in(command: impl FnOnce(PathBuf) -> std::process::Command) -> Self {
        let mint = Mint::new("ours");
        let dir = tempfile::tempdir().unwrap();
        let paths = mint.identity(&name("victim")).write_to(dir.path()).unwrap();
        let file = format!(
            "[cluster]\nenabled = true\nbind-address = \"127.0.0.1\"\nbind-port = 0\n\
             ping-interval-ms = 2000\nping-timeout-ms = 1500\n\
             [cluster.tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            paths.ca.display().to_string(),
            paths.cert.display().to_string(),
            paths.key.display().to_string()
        );
        std::fs::write(dir.path().join("phalanx.toml"), file).unwrap();
        let mut child = Command::from(command(std::env::current_exe().unwrap()))
            .args(["--exact", "process::harness_a_victim_serves_in_a_process_of_its_own", "--nocapture"])
            .env(VARIABLE, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let mut victim = Self { child, stdin, lines, _dir: dir, mint, address };
        victim.address = victim.line().await.parse().unwrap();
        victim
    }

    async fn line(&mut self) -> String {
        let next = async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("the victim has died");
                // The harness of the tests writes on the same line before ours.
                if let Some((_, ours)) = line.split_once(MARK) {
                    return ours.to_owned();
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), next).await.expect("the victim says nothing")
    }

    /// One of its counters, by the path in the statistics.
    pub(crate) async fn count(&mut self, pointer: &str) -> u64 {
        self.stdin.write_all(b"stats\n").await.unwrap();
        let stats: serde_json::Value = serde_json::from_str(&self.line().await).unwrap();
        stats.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or(0)
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id().unwrap())).unwrap()
    }

    /// Resident memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let pages: u64 = self.file("statm").split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4_096
    }

    /// Processor time used, in hundredths of a second.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = self.file("stat");
        let after = stat.rsplit_once(')').unwrap().1;
        let fields: Vec<&str> = after.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// An honest node that joins it now.
    pub(crate) async fn join(&self, node: &str) -> Cluster {
        let mut config = patient(self.mint.identity(&name(node)), &[]);
        config.seeds = vec![self.address.to_string()];
        let honest = started(config).await;
        until("it meets the victim", || honest.cluster_size() >= 2).await;
        honest
    }

    /// It lives, serves, and has not grown by more than that.
    pub(crate) async fn is_unharmed(&mut self, before: u64, growth_max: u64) {
        let grown = self.memory().saturating_sub(before);
        assert!(grown < growth_max, "it has grown by {grown} bytes, from {before}");
        let honest = self.join("good").await;
        honest.broadcast("proof", "x", &1).unwrap();
        let mut waited = 0;
        while self.count("/gossip/records_held").await == 0 {
            waited += 1;
            assert!(waited < 3_000, "what is written does not arrive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        honest.stop().await.unwrap();
    }
}

/// The child: a node that tells its address, and its counters whenever it is asked.
async fn serve(dir: &std::path::Path) {
    let cluster = started(Config::load(dir.join("phalanx.toml")).unwrap()).await;
    println!("{MARK}{}", cluster.local_node().address);
    let mut asked = BufReader::new(tokio::io::stdin()).lines();
    while asked.next_line().await.unwrap().is_some() {
        println!("{MARK}{}", serde_json::to_string(&cluster.stats()).unwrap());
    }
}

#[tokio::test]
async fn harness_a_victim_serves_in_a_process_of_its_own() {
    if let Some(dir) = std::env::var_os(VARIABLE) {
        return serve(dir.as_ref()).await;
    }
    let mut victim = Victim::start().await;
    let before = victim.memory();
    assert!(before > 1 << 20, "that cannot be: {before}");
    victim.is_unharmed(before, 64 << 20).await;
    assert_eq!(victim.count("/net/accepted").await, 1);
}
