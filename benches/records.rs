//! What a store of many records costs: memory a record, and how long it takes to write, look up and go
//! through them. `cargo bench --bench records [-- <records>]`; each record has a key of 16 bytes and a value of
//! 32.
//!
//! Memory is what the process has resident, so it counts everything: the store, its indexes, the allocator's
//! waste, and what waits to be sent.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::{error::Error, fs, time::Instant};

use phalanx::{Authority, Cluster, Config, NodeId, StateType, SyncableState, Value};

/// Records of one call of `broadcast_many`.
const BATCH: usize = 10_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let count = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    if count == 0 {
        return Err("there must be at least one record to measure".into());
    }
    let authority = Authority::generate("bench")?;
    let id = NodeId::new("one")?;
    let mut config = Config::default();
    config.enabled = true;
    config.bind_address = [127, 0, 0, 1].into();
    config.bind_port = 0;
    config.identity = Some(authority.issue(&id)?);
    let cluster = Cluster::new(config)?;
    cluster.start().await?;
    let of = StateType::CONNTRACK;
    let key = |number: usize| format!("{number:016x}");

    let empty = resident()?;
    let begun = Instant::now();
    for first in (0..count).step_by(BATCH) {
        let record = |number: usize| {
            let value = Value::encode(&format!("{number:031x}"))?; // one more byte tells the length
            Ok(SyncableState::new(of.clone(), key(number), value, cluster.next_version(), id.clone()))
        };
        let batch: Result<Vec<_>, phalanx::Error> = (first..count.min(first + BATCH)).map(record).collect();
        loop {
            match cluster.broadcast_many(batch.as_ref().map_err(ToString::to_string)?.clone()) {
                Ok(_) => break,
                Err(phalanx::Error::Overloaded { .. }) => tokio::task::yield_now().await,
                Err(error) => return Err(error.into()),
            }
        }
    }
    told("written", count, begun);
    let begun = Instant::now();
    let found = (0..count).step_by(7).filter(|number| cluster.get(&of, &key(*number)).is_some()).count();
    told("looked up", found, begun);
    let begun = Instant::now();
    let (mut seen, mut bytes) = (0, 0);
    cluster.for_each(&of, |record| {
        seen += 1;
        bytes += record.key.len() + record.value.as_bytes().len();
    });
    told("gone through", seen, begun);
    println!("{} bytes of key and value a record", bytes / seen.max(1));
    println!("{} bytes resident a record", resident()?.saturating_sub(empty) / count as u64);
    cluster.stop().await?;
    Ok(())
}

fn told(what: &str, count: usize, begun: Instant) {
    let taken = begun.elapsed();
    println!("{count} {what} in {taken:.2?}: {} ns each", taken.as_nanos() / count.max(1) as u128);
}

/// What this process has in memory.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("an empty VmRSS")?.parse()?;
    Ok(kilobytes * 1_024)
}
