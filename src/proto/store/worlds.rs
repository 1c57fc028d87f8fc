//! A few stores that write, tell one another, lose, repeat and cut: after each step every store must hold
//! what the naive model says (`models`), and in the end all the same.

use std::cmp::Reverse;

use proptest::prelude::*;

use super::{models::*, *};
use crate::{Value, proto::tests_support::id};

/// One thing that happens in a small cluster of stores.
#[derive(Clone, Debug)]
enum Step {
    Put {
        node: usize,
        per_node: bool,
        key: u8,
        ttl_ms: Option<u64>,
    },
    PutAs {
        node: usize,
        per_node: bool,
        key: u8,
        version: u64,
        number: u64,
        deleted: bool,
    },
    Remove {
        node: usize,
        per_node: bool,
        key: u8,
    },
    NewEpoch {
        node: usize,
    },
    /// Takes what waits; the others get it or not.
    Spread {
        node: usize,
        to: u8,
    },
    /// Something that was sent arrives, again or at last.
    Arrive {
        sent: prop::sample::Index,
        to: usize,
    },
    Begin {
        from: usize,
        to: usize,
        per_node: bool,
    },
    /// An exchange goes on by one slice, or ends with its claims. One that never does was cut.
    Go {
        exchange: prop::sample::Index,
    },
    Pass {
        ms: u64,
    },
    /// All agree, and then nothing happens until every tombstone has been forgotten.
    Rest,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (node, key) = (|| 0..3_usize, || 0..2_u8);
    let put_as = (node(), any::<bool>(), key(), 1..12_u64, 0..3_u64, prop::bool::weighted(0.3));
    let step = prop_oneof![
        6 => (node(), any::<bool>(), key(), prop::option::weighted(0.3, 1..30_u64))
            .prop_map(|(node, per_node, key, ttl_ms)| Step::Put { node, per_node, key, ttl_ms }),
        6 => put_as.prop_map(|(node, per_node, key, version, number, deleted)| {
            Step::PutAs { node, per_node, key, version, number, deleted }
        }),
        3 => (node(), any::<bool>(), key()).prop_map(|(node, per_node, key)| Step::Remove { node, per_node, key }),
        1 => node().prop_map(|node| Step::NewEpoch { node }),
        8 => (node(), any::<u8>()).prop_map(|(node, to)| Step::Spread { node, to }),
        4 => (any::<prop::sample::Index>(), node()).prop_map(|(sent, to)| Step::Arrive { sent, to }),
        4 => (node(), node(), any::<bool>()).prop_map(|(from, to, per_node)| Step::Begin { from, to, per_node }),
        10 => any::<prop::sample::Index>().prop_map(|exchange| Step::Go { exchange }),
        2 => (1..20_u64).prop_map(|ms| Step::Pass { ms }),
        1 => Just(Step::Rest),
    ];
    prop::collection::vec(step, 0..80)
}

/// What one store tells another: slices of what that lacks, then claims.
#[derive(Debug)]
struct Exchange {
    from: usize,
    to: usize,
    of: StateType,
    theirs: Vector,
}

/// Some stores, what is on its way between them, and everything that was ever written.
struct World {
    stores: Vec<Store>,
    written: Vec<Written>,
    /// How many writes of each type, source and epoch there were.
    counts: BTreeMap<(&'static str, usize, u64), u64>,
    sent: Vec<RecordBatch>,
    exchanges: Vec<Exchange>,
    ms: u64,
}

impl World {
    fn new() -> Self {
        Self {
            stores: NAMES.into_iter().map(store).collect(),
            written: Vec::new(),
            counts: BTreeMap::new(),
            sent: Vec::new(),
            exchanges: Vec::new(),
            ms: 0,
        }
    }

    fn now(&self) -> Now {
        at(self.ms)
    }

    /// What was written and that node knows of.
    fn known(&self, node: usize) -> Vec<&Written> {
        let dots = dots_of(&self.stores[node]);
        self.written.iter().filter(|written| dots.contains(&written.dot)).collect()
    }

    /// The record that one of that node's under that key must beat.
    fn held(&self, node: usize, of: &StateType, key: &str) -> Option<&Written> {
        let owner = of.is_per_node().then(|| NAMES[node].to_owned());
        let place = (name_of(of), key.to_owned(), owner);
        winners(self.known(node)).into_iter().find(|written| written.place() == place)
    }

    fn note(
        &mut self,
        node: usize,
        of: &StateType,
        key: &str,
        (version, deleted, value): (u64, bool, Bytes),
        expires: Option<u64>,
    ) {
        let epoch = self.stores[node].config.epoch;
        let count = self.counts.entry((name_of(of), node, epoch)).or_insert(0);
        *count += 1;
        let dot = (name_of(of), NAMES[node].to_owned(), epoch, *count);
        let value = if deleted { Bytes::new() } else { value };
        self.written.push(Written { dot, key: key.into(), version, deleted, value, expires });
    }

    fn arrive(&mut self, batch: &RecordBatch, to: usize) {
        let own = batch.source.as_str() == NAMES[to];
        let outcome = self.stores[to].merge(batch, at(self.ms), &mut Vec::new());
        assert!(outcome.refused.is_empty() && !outcome.forged && !(own && outcome.new_dots), "{outcome:?}");
    }

    fn go(&mut self, exchange: usize) {
        let Exchange { from, to, of, theirs } = &mut self.exchanges[exchange];
        let (from, to, of) = (*from, *to, of.clone());
        let (batches, more) = self.stores[from].delta(&of, theirs, 40, at(self.ms));
        for batch in &batches {
            let known = theirs.entry((batch.source.clone(), batch.epoch)).or_default();
            batch.records.iter().for_each(|record| _ = known.insert(record.seq));
        }
        for batch in batches {
            self.arrive(&batch, to);
            self.sent.push(batch);
        }
        if !more {
            let claims = self.stores[from].vector(&of);
            let forged = self.stores[to].cover(&of, &claims, at(self.ms));
            assert_eq!(forged, None);
            self.exchanges.swap_remove(exchange);
        }
    }

    fn begin(&mut self, from: usize, to: usize, of: StateType) {
        let theirs = self.stores[to].vector(&of);
        self.exchanges.push(Exchange { from, to, of, theirs });
    }

    /// Each tells each, to the end, until nothing is left to tell.
    fn settle(&mut self) {
        self.exchanges.clear();
        for _ in 0..2 {
            for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)] {
                for of in [shared(), owned()] {
                    self.begin(from, to, of);
                    while !self.exchanges.is_empty() {
                        self.go(0);
                    }
                }
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        self.ms += ms;
        // What ends is not late here: it would end that much later where it arrives.
        self.sent.retain(|batch| batch.records.iter().all(|record| record.ttl_ms.is_none()));
        for store in &mut self.stores {
            store.expire(at(self.ms), &mut Vec::new());
        }
    }

    fn step(&mut self, step: &Step) {
        let now = self.now();
        let of = |per_node| if per_node { owned() } else { shared() };
        match *step {
            Step::Put { node, per_node, key, ttl_ms } => {
                let (of, key, value) = (of(per_node), key.to_string(), value(u64::from(key)));
                let ttl = ttl_ms.map(Duration::from_millis);
                let state = self.stores[node].put(&of, &key, value.clone(), ttl, false, now, &mut Vec::new());
                let latest = self.known(node).iter().map(|written| written.version).max();
                assert!(
                    latest.is_none_or(|latest| state.version > latest),
                    "it must win over all it has seen"
                );
                let expires = ttl_ms.map(|ttl| self.ms + ttl);
                self.note(node, &of, &key, (state.version, false, value), expires);
            }
            Step::PutAs { node, per_node, key, version, number, deleted } => {
                let (of, key, value) = (of(per_node), key.to_string(), value(number));
                let encoded = if deleted { Value::NIL } else { Value::from_checked(value.clone()) };
                let mut state =
                    SyncableState::new(of.clone(), key.clone(), encoded, version, id(NAMES[node]));
                state.deleted = deleted;
                let said = (
                    version,
                    NAMES[node].to_owned(),
                    deleted,
                    if deleted { Bytes::new() } else { value.clone() },
                );
                // What expires is not replaced under its own version: who had it expire by then would not
                // follow.
                let wins = self.held(node, &of, &key).is_none_or(|held| {
                    let held_said = (held.version, held.dot.1.clone(), held.deleted, held.value.clone());
                    let ends = held.expires.is_some() && held_said.1 == said.1;
                    if per_node || ends { version > held.version } else { said > held_said }
                });
                assert_eq!(self.stores[node].put_as(state, now, &mut Vec::new()), wins);
                if wins {
                    self.note(node, &of, &key, (version, deleted, value), None);
                }
            }
            Step::Remove { node, per_node, key } => {
                let (of, key) = (of(per_node), key.to_string());
                let live = self.held(node, &of, &key).is_some_and(|held| held.is_live(self.ms));
                let removed = self.stores[node].remove(&of, &key, now, &mut Vec::new());
                assert_eq!(removed.is_some(), live);
                if live {
                    let version = self.stores[node].clock();
                    self.note(node, &of, &key, (version, true, Bytes::new()), None);
                }
            }
            Step::NewEpoch { node } => {
                let old = self.stores[node].config.epoch;
                let mut own: Vec<Written> = winners(self.known(node)).into_iter().cloned().collect();
                own.retain(|written| written.dot.1 == NAMES[node] && written.dot.2 == old);
                own.sort_by_key(|written| written.dot.clone());
                self.stores[node].new_epoch(old + 1, now);
                for w in own {
                    let of = if w.dot.0 == "owned" { owned() } else { shared() };
                    self.note(node, &of, &w.key, (w.version, w.deleted, w.value), w.expires);
                }
            }
            Step::Spread { node, to } => {
                while let Some((batch, _)) = self.stores[node].take_unspread(40, now) {
                    for other in (0..NAMES.len()).filter(|other| *other != node && to >> other & 1 == 1) {
                        self.arrive(&batch, other);
                    }
                    self.sent.push(batch);
                }
            }
            Step::Arrive { sent, to } => {
                if !self.sent.is_empty() {
                    let batch = sent.get(&self.sent).clone();
                    self.arrive(&batch, to);
                }
            }
            Step::Begin { from, to, per_node } if from != to => self.begin(from, to, of(per_node)),
            Step::Begin { .. } => {}
            Step::Go { exchange } => {
                if !self.exchanges.is_empty() {
                    self.go(exchange.index(self.exchanges.len()));
                }
            }
            Step::Pass { ms } => self.pass(ms),
            Step::Rest => {
                self.settle();
                self.pass(TOMBSTONE_MS);
                self.pass(TOMBSTONE_MS);
                for store in &mut self.stores {
                    store.collect(at(self.ms));
                }
                // Of a key whose winner is no more nothing is remembered but the dots.
                let gone: BTreeSet<_> = winners(&self.written)
                    .into_iter()
                    .filter(|written| !written.is_live(self.ms))
                    .map(Written::place)
                    .collect();
                self.written.retain(|written| !gone.contains(&written.place()));
            }
        }
    }

    /// What a node shows is the greatest of what it knows: so it has whatever it says it has, or what won
    /// over it.
    fn check(&self) {
        for (node, store) in self.stores.iter().enumerate() {
            store.check();
            assert_eq!(view_of(store), view(self.known(node), self.ms), "{}", NAMES[node]);
        }
    }
}

#[test]
fn whatever_is_written_lost_cut_and_repeated_each_store_holds_the_greatest_of_what_it_knows() {
    proptest!(ProptestConfig::with_cases(1_024), |(steps in steps())| {
        let mut world = World::new();
        for step in steps {
            world.step(&step);
            world.check();
        }
        world.settle();
        world.check();
        for (node, store) in world.stores.iter().enumerate() {
            prop_assert_eq!(view_of(store), view(&world.written, world.ms));
            for ((name, source, epoch), count) in &world.counts {
                let of = if *name == "owned" { owned() } else { shared() };
                prop_assert_eq!(store.ranges(&of, &id(NAMES[*source]), *epoch).to_wire(), [(1, *count)]);
            }
            for of in [shared(), owned()] {
                prop_assert_eq!(store.digest(&of), world.stores[0].digest(&of), "{}", NAMES[node]);
            }
        }
    });
}

#[test]
fn the_same_batches_in_any_order_and_any_number_make_the_same_store() {
    let shuffle = || prop::collection::vec(any::<u64>(), 64);
    proptest!(|(steps in steps(), first in shuffle(), again in shuffle())| {
        let mut world = World::new();
        for step in steps {
            if !matches!(step, Step::Pass { .. } | Step::Rest) {
                world.step(&step);
            }
        }
        let arrived = |orders: [&Vec<u64>; 2]| {
            let mut reader = store("reader");
            for order in orders {
                let mut batches: Vec<_> = world.sent.iter().zip(order.iter().cycle()).collect();
                batches.sort_by_key(|(_, place)| Reverse(**place));
                for (batch, _) in batches {
                    reader.merge(batch, at(world.ms), &mut Vec::new());
                }
            }
            reader.check();
            reader
        };
        let (one, other) = (arrived([&first, &again]), arrived([&again, &first]));
        prop_assert_eq!(view_of(&one), view_of(&other));
        prop_assert_eq!(dots_of(&one), dots_of(&other));
        prop_assert_eq!([one.digest(&shared()), one.digest(&owned())], [other.digest(&shared()), other.digest(&owned())]);
    });
}

#[test]
fn what_expires_is_not_replaced_under_its_own_version() {
    let (mut a, mut late) = (store("a"), store("b"));
    let mut batches = Vec::new();
    let mut spread = |a: &mut Store| batches.extend(a.take_unspread(usize::MAX, at(0)));
    let ttl = Some(Duration::from_millis(5));
    let version = a.put(&shared(), "x", value(1), ttl, false, at(0), &mut Vec::new()).version;
    spread(&mut a);
    let again = SyncableState::new(shared(), "x", Value::from_checked(value(2)), version, id("a"));
    assert!(!a.put_as(again.clone(), at(0), &mut Vec::new()));
    let later = SyncableState { version: version + 1, ..again };
    assert!(a.put_as(later, at(0), &mut Vec::new()));
    spread(&mut a);
    // The first expires before the second arrives.
    for (batch, _) in &batches {
        late.merge(batch, at(0), &mut Vec::new());
        late.expire(at(5), &mut Vec::new());
    }
    assert_eq!(view_of(&late), view_of(&a));
}
