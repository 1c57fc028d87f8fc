//! One stormy stretch in the life of a cluster: it finds itself, is troubled while its users write, and must
//! come to agree once the troubles end. The long run and the storm test are this.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    NodeId, Options, StateType, Value,
    sim::{World, mix::Trouble},
};

/// How long a cluster may take to agree after the troubles.
const AGREE_WITHIN: Duration = Duration::from_secs(300);
/// Between two writes, on average: a seed draws one. Where much is written nodes have no rest in which to
/// compare their hashes, and where little is nothing overlaps.
const WRITE_EVERY_MS: [u64; 5] = [100, 300, 1_000, 3_000, 10_000];

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) troubles: BTreeSet<Trouble>,
    /// From the end of the troubles to agreement.
    pub(crate) agreed_after: Duration,
    pub(crate) writes: u64,
}

/// Lets so many nodes live through that much trouble: of these kinds, or of kinds that the seed draws.
///
/// # Panics
/// As soon as a check fails, or if they do not agree in the end.
pub(crate) fn storm(
    world: &mut World,
    nodes: usize,
    span: Duration,
    kinds: Option<&BTreeSet<Trouble>>,
) -> Outcome {
    world.start(nodes);
    world.run_to_agreement(Duration::from_secs(60));
    let troubles = match kinds {
        None => world.draw_troubles(span),
        Some(kinds) => {
            world.plan(kinds, span);
            kinds.clone()
        }
    };
    let pace = WRITE_EVERY_MS[world.rng.usize(..WRITE_EVERY_MS.len())];
    let end = world.now + super::micros(span);
    let mut writes = 0;
    while world.now < end {
        write_something(world);
        writes += 1;
        let wait = world.rng.u64(1..2 * pace);
        world.run(Duration::from_millis(wait));
    }
    world.run(Duration::from_millis(1));
    let agreed_after = world.run_to_agreement(AGREE_WITHIN);
    assert_eq!(world.all_applied(), Ok(()));
    assert!(world.injected() > 0, "{troubles:?} were drawn, and nothing was broken");
    Outcome { troubles, agreed_after, writes }
}

/// As users do: mostly few keys again and again, now and then a removal or a record that lives for a while
/// only.
fn write_something(world: &mut World) {
    let live = world.live();
    if live.is_empty() {
        return;
    }
    let writer: NodeId = live[world.rng.usize(..live.len())].clone();
    let types = [StateType::DRAIN, StateType::CONNTRACK, StateType::HEALTH, StateType::shared("routes")];
    let state_type = &types[world.rng.usize(..types.len())];
    let key = format!("k{}", world.rng.u32(..40));
    match world.rng.u32(..20) {
        0..=2 => _ = world.remove(&writer, state_type, &key),
        3 => {
            let ttl = Some(Duration::from_millis(world.rng.u64(100..20_000)));
            let value = Value::encode(&world.now).expect("a number can be encoded");
            world.broadcast_with(&writer, state_type, &key, value, Options { ttl, ..Options::default() });
        }
        _ => {
            let text = format!("{} at {}", writer, world.now);
            world.broadcast(&writer, state_type, &key, &text);
        }
    }
}
