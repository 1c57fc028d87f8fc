//! The reference: tick-based gossip with `memberlist`'s retransmit rule, as a small simulation of its own. A
//! node with the update sends it to a few random others on each of its ticks until it has sent it `mult ·
//! ⌈log10(n + 1)⌉` times. Knows nothing of this library's core.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::cases::Case;

/// `memberlist`'s settings for a local network.
const INTERVAL: u64 = 200_000;
const FANOUT: usize = 3;
const MULT: u32 = 4;
/// One way, in microseconds, and by how much it varies: as in this library's worlds.
const DELAY: u64 = 250;
const SWING: u64 = 50;

/// How one update fared.
pub(super) struct Spread {
    /// When the last live node had it, in milliseconds; infinite if the sends ran out before.
    pub(super) all_ms: f64,
    /// Payloads sent for each live node.
    pub(super) copies: f64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Tick(usize),
    Copy(usize),
}

/// Spreads one update from node 0.
#[expect(clippy::cast_precision_loss, reason = "counts of nodes and microseconds")]
pub(super) fn spread(case: &Case, seed: u64) -> Spread {
    let n = case.nodes;
    let mut rng = fastrand::Rng::with_seed(seed);
    let dead = case.dead_nodes();
    let mut order: Vec<usize> = (1..n).collect();
    rng.shuffle(&mut order);
    let mut alive = vec![true; n];
    order.iter().take(dead).for_each(|node| alive[*node] = false);
    let limit = MULT * digits(n + 1);
    let phases: Vec<u64> = (0..n).map(|_| rng.u64(..INTERVAL)).collect();
    let mut sent = vec![0; n];
    let mut has = vec![false; n];
    let mut missing = n - dead;
    let (mut copies, mut last) = (0_u64, 0_u64);
    let mut steps = BinaryHeap::from([Reverse((0_u64, Step::Copy(0)))]);
    while let Some(Reverse((now, step))) = steps.pop() {
        match step {
            Step::Copy(node) if alive[node] && !has[node] => {
                has[node] = true;
                missing -= 1;
                last = now;
                let passed = now.saturating_sub(phases[node]).div_ceil(INTERVAL);
                steps.push(Reverse((phases[node] + passed * INTERVAL, Step::Tick(node))));
            }
            Step::Copy(_) => {}
            Step::Tick(node) => {
                for other in others(n, node, &mut rng) {
                    if sent[node] < limit {
                        sent[node] += 1;
                        copies += 1;
                        if rng.f64() >= case.loss {
                            let way = DELAY - SWING + rng.u64(0..=2 * SWING);
                            steps.push(Reverse((now + way, Step::Copy(other))));
                        }
                    }
                }
                if sent[node] < limit {
                    steps.push(Reverse((now + INTERVAL, Step::Tick(node))));
                }
            }
        }
    }
    let all_ms = if missing == 0 { last as f64 / 1_000.0 } else { f64::INFINITY };
    Spread { all_ms, copies: copies as f64 / (n - dead) as f64 }
}

/// A few different others.
fn others(n: usize, me: usize, rng: &mut fastrand::Rng) -> Vec<usize> {
    let mut drawn = Vec::with_capacity(FANOUT);
    while drawn.len() < FANOUT.min(n - 1) {
        let other = rng.usize(..n);
        if other != me && !drawn.contains(&other) {
            drawn.push(other);
        }
    }
    drawn
}

/// ⌈log10⌉.
fn digits(n: usize) -> u32 {
    n.saturating_sub(1).checked_ilog10().map_or(0, |log| log + 1)
}
