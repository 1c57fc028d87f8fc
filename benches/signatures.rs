//! What signatures on records cost: signing and checking on one core, how one update spreads to eight nodes over
//! QUIC on loopback and how fast a node joins, each with and without.
//! `cargo bench --bench signatures [-- <records> <updates>]`; a record has a key of 16 bytes and a value of 32.

#![expect(clippy::disallowed_methods, clippy::cast_precision_loss, reason = "a benchmark measures real time")]

use std::{
    error::Error,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use phalanx::{Authority, Cluster, Config, NodeId, Sign, StateType, SyncableState, Value};

const OF: &str = "records";
const NODES: usize = 8;
const BATCH: usize = 10_000;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(600);

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let records = numbers.next().unwrap_or(100_000);
    let updates = numbers.next().unwrap_or(500);
    if records == 0 || updates == 0 {
        return Err("there must be at least one record and one update".into());
    }
    primitives()?;
    for sign in [Sign::Claims, Sign::All] {
        let authority = Authority::generate("bench")?;
        spread(&authority, sign, updates)?;
        join(&authority, sign, records)?;
    }
    Ok(())
}

/// The same key, curve and provider as certificates have by default, and a message as long as a record's.
fn primitives() -> Result<(), Box<dyn Error>> {
    let provider = provider();
    let key = rcgen::KeyPair::generate()?;
    let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der())?;
    let signing = provider.key_provider.load_private_key(der)?;
    let scheme = rustls::SignatureScheme::ECDSA_NISTP256_SHA256;
    let signer = signing.choose_scheme(&[scheme]).ok_or("the curve is P-256")?;
    let message = [7_u8; 160];
    let certificate = rcgen::CertificateParams::new(vec!["bench".into()])?.self_signed(&key)?;
    let leaf = webpki::EndEntityCert::try_from(certificate.der())?;
    let mapping = provider.signature_verification_algorithms.mapping;
    let algorithm = mapping.iter().find(|(of, _)| *of == scheme).ok_or("the curve is P-256")?.1[0];
    let signature = signer.sign(&message)?;
    let rate = |what: &str, mut work: Box<dyn FnMut() + '_>| {
        let mut best = 0.0_f64;
        for _ in 0..5 {
            let (begun, mut count) = (Instant::now(), 0_u32);
            while begun.elapsed() < Duration::from_millis(500) {
                work();
                count += 1;
            }
            best = best.max(f64::from(count) / begun.elapsed().as_secs_f64());
        }
        println!("{what}: {best:.0} a second on one core");
    };
    rate("signatures made", Box::new(|| drop(signer.sign(&message))));
    rate("signatures checked", Box::new(|| drop(leaf.verify_signature(algorithm, &message, &signature))));
    println!("a signature has {} bytes", signature.len());
    Ok(())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    #[cfg(feature = "aws-lc-rs")]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(feature = "aws-lc-rs"))]
    let provider = rustls::crypto::ring::default_provider();
    Arc::new(provider)
}

type Node = (tokio::runtime::Runtime, Cluster);

fn node(
    authority: &Authority,
    name: &str,
    seed: Option<&Cluster>,
    sign: Sign,
) -> Result<Node, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut config = Config::default();
    config.enabled = true;
    config.bind_address = Ipv4Addr::LOCALHOST.into();
    config.bind_port = 0;
    config.sign = sign;
    config.seeds = seed.iter().map(|seed| seed.local_node().address.to_string()).collect();
    config.identity = Some(authority.issue(&NodeId::new(name)?)?);
    let cluster = Cluster::new(config)?;
    runtime.block_on(cluster.start())?;
    Ok((runtime, cluster))
}

/// How long one small update takes to all of eight nodes in one process.
fn spread(authority: &Authority, sign: Sign, updates: usize) -> Result<(), Box<dyn Error>> {
    let mut fleet = vec![node(authority, "n0", None, sign)?];
    for number in 1..NODES {
        let seed = fleet[0].1.clone();
        fleet.push(node(authority, &format!("n{number}"), Some(&seed), sign)?);
    }
    wait(|| fleet.iter().all(|(_, node)| node.cluster_size() == NODES))?;
    let linked = |(_, node): &Node| {
        let peers = fleet.iter().map(|(_, peer)| peer.node_id()).filter(|peer| *peer != node.node_id());
        peers.into_iter().all(|peer| node.explain(&peer).is_some_and(|why| why.connection.is_some()))
    };
    wait(|| fleet.iter().all(linked))?;
    let of = StateType::from(OF);
    let bytes = || fleet.iter().map(|(_, node)| node.stats().gossip.counters.bytes_sent).sum::<u64>();
    let before = bytes();
    let mut times = Vec::with_capacity(updates);
    for number in 0..updates {
        let key = format!("{number:016x}");
        let begun = Instant::now();
        fleet[number % NODES].1.broadcast(of.clone(), key.as_str(), &format!("{number:031x}"))?;
        while fleet.iter().any(|(_, node)| node.get(&of, &key).is_none()) {
            if begun.elapsed() > LIMIT {
                return Err(format!("update {number} did not arrive").into());
            }
            std::thread::yield_now();
        }
        times.push(begun.elapsed());
        // What this one has set off must not be in the way of the next.
        fleet[0].0.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{sign:?}: one update to {NODES} nodes: median {:.2?}, 99 % {:.2?}, longest {:.2?}; {:.0} bytes sent in all for each",
        at(50),
        at(99),
        at(100),
        (bytes() - before) as f64 / updates as f64
    );
    Ok(())
}

/// How long a joiner takes to take over that many records.
fn join(authority: &Authority, sign: Sign, records: usize) -> Result<(), Box<dyn Error>> {
    let (runtime, seed) = node(authority, "seed", None, sign)?;
    let id = seed.node_id();
    for first in (0..records).step_by(BATCH) {
        let record = |number: usize| {
            let value = Value::encode(&format!("{number:031x}"))?; // one more byte tells the length
            Ok(SyncableState::new(OF, format!("{number:016x}"), value, seed.next_version(), id.clone()))
        };
        let batch =
            (first..records.min(first + BATCH)).map(record).collect::<Result<Vec<_>, phalanx::Error>>()?;
        runtime.block_on(seed.broadcast_many_flushed(batch, LIMIT))?;
    }
    wait(|| seed.stats().gossip.counters.records_spread >= records as u64)?;
    let begun = Instant::now();
    let (_kept, joiner) = node(authority, "joiner", Some(&seed), sign)?;
    wait(|| joiner.stats().gossip.counters.records_held >= records as u64)?;
    let took = begun.elapsed();
    let bytes = seed.stats().gossip.counters.sync_bytes_sent;
    println!(
        "{sign:?}: {records} records taken over in {took:.2?}, {:.0} a second, {:.1} bytes a record",
        records as f64 / took.as_secs_f64(),
        bytes as f64 / records as f64
    );
    Ok(())
}

fn wait(mut done: impl FnMut() -> bool) -> Result<(), Box<dyn Error>> {
    let clock = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > LIMIT {
            return Err(format!("not within {LIMIT:?}").into());
        }
        clock.block_on(async { tokio::time::sleep(Duration::from_millis(2)).await });
    }
    Ok(())
}
