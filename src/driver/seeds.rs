//! Seeds: addresses that are asked for the cluster for the node's whole life, so that halves which lost sight
//! of one another meet again. Each is resolved anew at every try. Knows no member; who answers is the
//! transport's word.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    Error, NodeId,
    config::Seed,
    driver::{clock, life::Life},
    wire::CloseCode,
};

/// The first wait after a failure, and the longest.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// How often a seed is asked that answered the last time.
const JOINED: Duration = Duration::from_secs(30);
/// How often a seed's failure is logged.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// For a name to be resolved: a resolver with two dead servers takes 20 s.
const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// How many addresses of one seed are dialled at a time.
const DIALS: usize = 16;

/// What came of a try.
pub(super) enum Outcome {
    Joined(NodeId),
    /// The seed is this node.
    Ourselves,
    Failed(Error),
}

/// Starts a task for each seed; each sends the outcome of its first try.
pub(super) fn tend(life: &Arc<Life>, seeds: &[Seed]) -> mpsc::Receiver<Outcome> {
    let (first, outcomes) = mpsc::channel(seeds.len().max(1));
    for seed in seeds.iter().collect::<BTreeSet<_>>() {
        life.spawn(tend_one(Arc::downgrade(life), seed.clone(), first.clone()));
    }
    outcomes
}

async fn tend_one(life: Weak<Life>, seed: Seed, first: mpsc::Sender<Outcome>) {
    let mut first = Some(first);
    let mut random = fastrand::Rng::with_seed(clock::entropy());
    let mut back_off = BACK_OFF_MIN;
    let mut joined = None;
    let mut logged: Option<Instant> = None;
    loop {
        let Some(alive) = life.upgrade() else { return };
        let outcome = try_seed(&alive, &seed, joined.as_ref()).await;
        drop(alive);
        let wait = match &outcome {
            Outcome::Joined(node) => {
                joined = Some(node.clone());
                back_off = BACK_OFF_MIN;
                JOINED
            }
            Outcome::Ourselves => BACK_OFF_MAX,
            Outcome::Failed(error) => {
                let now = clock::monotonic();
                if logged.is_none_or(|last| now.duration_since(last) >= LOG_EVERY) {
                    logged = Some(now);
                    let seed = shown(&seed);
                    tracing::warn!(seed, %error, "a seed does not let this node in; it is tried again and again");
                }
                let wait = back_off;
                back_off = (back_off * 2).min(BACK_OFF_MAX);
                wait
            }
        };
        if let Some(first) = first.take() {
            let _ = first.try_send(outcome); // has room for each seed's one
        }
        // Nodes that start together must not try together.
        sleep(wait.mul_f64(0.75 + random.f64() / 2.0)).await;
    }
}

/// Contacts each address once; how many answered.
pub(super) async fn join(life: &Arc<Life>, seeds: Vec<Seed>) -> usize {
    let mut tries = JoinSet::new();
    for seed in seeds {
        let life = Arc::clone(life);
        tries.spawn(async move {
            let outcome = try_seed(&life, &seed, None).await;
            if let Outcome::Failed(error) = &outcome {
                tracing::warn!(seed = %shown(&seed), %error, "joining through an address failed");
            }
            matches!(outcome, Outcome::Joined(_))
        });
    }
    let mut answered = 0;
    while let Some(result) = tries.join_next().await {
        answered += usize::from(result.unwrap_or(false));
    }
    answered
}

async fn try_seed(life: &Arc<Life>, seed: &Seed, joined: Option<&NodeId>) -> Outcome {
    let addresses = match resolve(seed).await {
        Ok(addresses) => addresses,
        Err(error) => return Outcome::Failed(error),
    };
    let found = addresses.len();
    let others: Vec<_> = addresses.into_iter().filter(|address| !is_own(life, *address)).collect();
    if others.is_empty() {
        return if found == 0 {
            Outcome::Failed(unresolved(seed, "it has no address"))
        } else {
            Outcome::Ourselves
        };
    }
    if let Some(node) = joined
        && life.remote_of(node).is_some_and(|remote| others.contains(&canonical(remote)))
    {
        return Outcome::Joined(node.clone()); // connected: nothing to ask
    }
    dial_all(life, others).await
}

/// Dials the addresses, a few at a time, until one lets us in.
async fn dial_all(life: &Arc<Life>, addresses: Vec<SocketAddr>) -> Outcome {
    let mut addresses = addresses.into_iter();
    let mut dials = JoinSet::new();
    let mut worst = Outcome::Ourselves;
    loop {
        while dials.len() < DIALS
            && let Some(address) = addresses.next()
        {
            let life = Arc::clone(life);
            dials.spawn(async move { life.dial_seed(address).await });
        }
        match dials.join_next().await {
            None => return worst,
            Some(Ok(Ok(node))) => return Outcome::Joined(node),
            Some(Ok(Err(error))) if is_ourselves(&error) => {}
            Some(Ok(Err(error))) if is_duplicate(&error) => return Outcome::Failed(error),
            Some(Ok(Err(error))) => worst = Outcome::Failed(error),
            Some(Err(_)) => {} // aborted: the node stops
        }
    }
}

async fn resolve(seed: &Seed) -> Result<BTreeSet<SocketAddr>, Error> {
    match seed {
        Seed::Address(address) => Ok(BTreeSet::from([canonical(*address)])),
        Seed::Host(host, port) => {
            match timeout(RESOLVE_MAX, tokio::net::lookup_host((host.as_str(), *port))).await {
                Ok(Ok(addresses)) => Ok(addresses.map(canonical).collect()),
                Ok(Err(error)) => Err(unresolved(seed, &error.to_string())),
                Err(_) => Err(unresolved(seed, "the name was not resolved within 5 s")),
            }
        }
    }
}

fn unresolved(seed: &Seed, reason: &str) -> Error {
    Error::Unreachable { address: shown(seed), reason: reason.into() }
}

fn shown(seed: &Seed) -> String {
    match seed {
        Seed::Address(address) => address.to_string(),
        Seed::Host(host, port) => format!("{host}:{port}"),
    }
}

/// An IPv4 address is one, however it is written.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            SocketAddr::new(address.ip().to_canonical(), address.port())
        }
        _ => address, // with its scope id
    }
}

/// Whether an address is this node's own, so that dialling it would greet ourselves.
fn is_own(life: &Life, address: SocketAddr) -> bool {
    let bound = canonical(life.bound());
    if address == bound || address == canonical(life.advertised()) {
        return true;
    }
    // Bound to every address of the host: it is ours if the host has it, which is so if it can be bound.
    bound.ip().is_unspecified()
        && address.port() == bound.port()
        && UdpSocket::bind(SocketAddr::new(address.ip(), 0)).is_ok()
}

/// The refusal of a node that dialled itself, through an address it could not know for its own.
fn is_ourselves(error: &Error) -> bool {
    matches!(error, Error::Refused { code, reason, .. }
        if *code == CloseCode::DUPLICATE_ID.0 && reason.ends_with("has dialled itself"))
}

/// Whether the peer knows a live process of our id.
pub(super) fn is_duplicate(error: &Error) -> bool {
    matches!(error, Error::Refused { code, .. } if *code == CloseCode::DUPLICATE_ID.0) && !is_ourselves(error)
}
