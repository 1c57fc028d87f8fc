//! A fleet of processes lives through what an operator does to certificates over the years, while all of them write:
//! every leaf renewed, the authority's root replaced, one node revoked at one machine. How long each takes, whether
//! an update was lost, and whether anybody was suspected.
//! `cargo bench --bench rotation [-- <nodes>]`; each node is a process of its own that watches its files.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv4Addr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use phalanx::{Authority, Cluster, Config, EventKind, NodeId, Shown};

type Fallible<T> = Result<T, Box<dyn Error>>;

const OF: &str = "routes";
/// Each node writes one record so often.
const WRITES_EVERY: Duration = Duration::from_millis(20);
/// So often a node tells how it is.
const TELLS_EVERY: Duration = Duration::from_millis(50);
/// So often it looks at its files.
const LOOKS_EVERY: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> Fallible<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [role, dir, name, seed] = &arguments[..]
        && role == "node"
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(node(Path::new(dir), name, seed));
    }
    let nodes = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(16);
    if nodes < 3 {
        return Err("there must be three nodes at least, so that two are left of whom one is revoked".into());
    }
    operate(nodes)
}

/// How a node is, as one line of its output.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    alive: u64,
    connected: u64,
    doubts: u64,
    written: u64,
    held: u64,
    renewals: u64,
    roots: u64,
}

// ---- a node

async fn node(dir: &Path, name: &str, seed: &str) -> Fallible<()> {
    let mut config = Config::default();
    config.enabled = true;
    config.bind_address = Ipv4Addr::LOCALHOST.into();
    config.bind_port = 0;
    config.seeds = (seed != "-").then(|| seed.to_owned()).into_iter().collect();
    config.tls.ca = Some(dir.join("ca.pem"));
    config.tls.cert = Some(dir.join("cert.pem"));
    config.tls.key = Some(dir.join("key.pem"));
    config.tls.crl = Some(dir.join("crl.pem"));
    config.tls.watch = true;
    config.tls.watch_interval = LOOKS_EVERY;
    let cluster = Cluster::new(config)?;
    let doubts = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&doubts);
    cluster.subscribe(move |event| {
        // The one that is revoked is doubted with reason.
        let doubted =
            matches!(event.kind, EventKind::NodeSuspect | EventKind::NodeDead | EventKind::NodeLeave);
        if doubted && event.node_id.as_ref().is_none_or(|node| node.as_str() != "revoked") {
            counted.fetch_add(1, SeqCst);
            eprintln!("{event}");
        }
    });
    let started = cluster.start().await?.ok_or("it is enabled")?;
    println!("address {}", started.address);
    let writes = Arc::new(AtomicBool::new(true));
    let ordered = Arc::clone(&writes);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            ordered.store(line == "write", SeqCst);
        }
        std::process::exit(0); // whoever made it is gone
    });
    let (mut written, mut told) = (0_u64, Instant::now());
    loop {
        tokio::time::sleep(WRITES_EVERY).await;
        if writes.load(SeqCst) {
            cluster.broadcast(OF, format!("{name}-{written}"), &written)?;
            written += 1;
        }
        if told.elapsed() >= TELLS_EVERY {
            told = Instant::now();
            let stats = cluster.stats();
            let linked = |id: &NodeId| cluster.explain(id).is_some_and(|why| why.connection.is_some());
            let connected = cluster.alive_nodes().iter().filter(|id| linked(id)).count();
            println!(
                "{} {} {} {written} {} {} {}",
                cluster.cluster_size(),
                connected,
                doubts.load(SeqCst),
                stats.gossip.counters.records_held,
                stats.identity.renewals,
                fs::read_to_string(dir.join("ca.pem"))?.matches("BEGIN").count(),
            );
        }
    }
}

// ---- who operates them

struct Process {
    child: Child,
    orders: ChildStdin,
    told: Arc<Mutex<Told>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Fleet {
    /// They end before their files go.
    processes: BTreeMap<String, Process>,
    dir: tempfile::TempDir,
    /// One for each line that a node has told.
    news: Receiver<()>,
    tells: Sender<()>,
}

impl Fleet {
    fn start(&mut self, authority: &Authority, name: &str, seed: &str) -> Fallible<String> {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir)?;
        let identity = authority.issue(&NodeId::new(name)?)?;
        identity.with_crl_pem(&authority.crl_pem())?.write_to(&dir)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["node".as_ref(), dir.as_os_str(), name.as_ref(), seed.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().ok_or("its input is a pipe")?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("its output is a pipe")?).lines();
        let first = lines.next().ok_or("it ended at once")??;
        let address =
            first.strip_prefix("address ").ok_or_else(|| format!("not an address: {first}"))?.to_owned();
        let told = Arc::new(Mutex::new(Told::default()));
        let (heard, tells) = (Arc::clone(&told), self.tells.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let numbers: Vec<u64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
                if let [alive, connected, doubts, written, held, renewals, roots] = numbers[..] {
                    let now = Told { alive, connected, doubts, written, held, renewals, roots };
                    heard.lock().map(|mut told| *told = now).unwrap_or_default();
                    let _ = tells.send(());
                }
            }
        });
        self.processes.insert(name.into(), Process { child, orders, told });
        Ok(address)
    }

    fn told(&self, name: &str) -> Told {
        self.processes[name].told.lock().map(|told| *told).unwrap_or_default()
    }

    fn all(&self) -> Vec<Told> {
        self.processes.keys().map(|name| self.told(name)).collect()
    }

    /// How long it takes until that is so.
    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Fallible<Duration> {
        let begun = Instant::now();
        while !holds(self) {
            if begun.elapsed() > LIMIT {
                return Err(format!("not within {LIMIT:?}: {what}; {:?}", self.all()).into());
            }
            self.news.recv_timeout(LIMIT)?;
        }
        Ok(begun.elapsed())
    }

    /// Puts a file in the place of another as one.
    fn put(&self, name: &str, file: &str, bytes: &[u8]) -> Fallible<()> {
        let dir = self.dir.path().join(name);
        fs::write(dir.join("next"), bytes)?;
        Ok(fs::rename(dir.join("next"), dir.join(file))?)
    }

    /// A new key, certificate and roots: each file as one, the key before its certificate.
    fn renew(&self, authority: &Authority, name: &str) -> Fallible<()> {
        let made = tempfile::tempdir()?;
        authority.issue(&NodeId::new(name)?)?.write_to(made.path())?;
        let dir = self.dir.path().join(name);
        for file in ["ca.pem", "key.pem", "cert.pem"] {
            fs::rename(made.path().join(file), dir.join(file)).or_else(|_| {
                fs::copy(made.path().join(file), dir.join("next"))?;
                fs::rename(dir.join("next"), dir.join(file))
            })?;
        }
        Ok(())
    }

    fn order(&mut self, order: &str) -> Fallible<()> {
        for process in self.processes.values_mut() {
            writeln!(process.orders, "{order}")?;
        }
        Ok(())
    }

    fn renewals(&self) -> BTreeMap<String, u64> {
        self.processes.keys().map(|name| (name.clone(), self.told(name).renewals)).collect()
    }

    /// Of those who stay: the revoked one has reason to doubt everybody.
    fn doubts(&self) -> u64 {
        self.processes.keys().filter(|name| *name != "revoked").map(|name| self.told(name).doubts).sum()
    }
}

fn operate(nodes: usize) -> Fallible<()> {
    let mut authority = Authority::generate("bench")?;
    let (tells, news) = channel();
    let mut fleet = Fleet { processes: BTreeMap::new(), dir: tempfile::tempdir()?, news, tells };
    let names: Vec<String> =
        (0..nodes - 1).map(|number| format!("n{number:02}")).chain(["revoked".into()]).collect();
    let mut seed = "-".to_owned();
    for name in &names {
        let address = fleet.start(&authority, name, &seed)?;
        if seed == "-" {
            seed = address;
        }
    }
    let all = nodes as u64;
    let took = fleet.until("all see all", |fleet| fleet.all().iter().all(|told| told.alive == all))?;
    println!("{nodes} processes see one another after {took:.1?}; each writes 50 records a second");

    for name in &names {
        fleet.renew(&authority, name)?;
    }
    let took =
        fleet.until("all use their new leaves", |fleet| fleet.all().iter().all(|told| told.renewals >= 1))?;
    println!("all leaves renewed within {took:.2?}: {} doubts", fleet.doubts());

    authority.begin_rotation()?;
    let before = fleet.renewals();
    for name in &names {
        fleet.put(name, "ca.pem", &authority.ca_pem())?;
    }
    fleet.until("all trust both roots", |fleet| {
        names.iter().all(|name| fleet.told(name).roots == 2 && fleet.told(name).renewals > before[name])
    })?;
    let before = fleet.renewals();
    for name in &names {
        fleet.renew(&authority, name)?;
    }
    fleet.until("all use leaves of the new root", |fleet| {
        names.iter().all(|name| fleet.told(name).renewals > before[name])
    })?;
    let mut shown = Shown::default();
    for name in &names {
        shown.add_path(fleet.dir.path().join(name).join("cert.pem"))?;
    }
    authority.finish_rotation(&shown)?;
    let before = fleet.renewals();
    for name in &names {
        fleet.put(name, "ca.pem", &authority.ca_pem())?;
        fleet.put(name, "crl.pem", &authority.crl_pem())?;
    }
    fleet.until("all trust the new root alone", |fleet| {
        names.iter().all(|name| fleet.told(name).roots == 1 && fleet.told(name).renewals > before[name])
    })?;
    println!("the root replaced: {} doubts", fleet.doubts());

    fleet.order("rest")?;
    fleet.until("every update is everywhere", |fleet| {
        let written = fleet.all().iter().map(|told| told.written).sum::<u64>();
        fleet.all().iter().all(|told| told.held == written)
    })?;
    println!("{} records written meanwhile, and each node holds all of them", fleet.told("n00").held);
    fleet.order("write")?;

    authority.revoke_node(&NodeId::new("revoked")?)?;
    fleet.put("n00", "crl.pem", &authority.crl_pem())?;
    let out = fleet.until("the revoked one is connected to nobody", |fleet| {
        names.iter().all(|name| fleet.told(name).connected <= all - 2) && fleet.told("revoked").connected == 0
    })?;
    println!(
        "revoked at one machine, connected to nobody after {out:.2?} (up to 0.1 s until its list is looked at)"
    );
    let rest =
        |fleet: &Fleet| names.iter().all(|name| name == "revoked" || fleet.told(name).alive == all - 1);
    fleet.until("the others see one another and not the revoked one", rest)?;
    println!("{} doubts about anybody else, from first to last", fleet.doubts());
    Ok(())
}
