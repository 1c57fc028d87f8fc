//! A few stores that forget tombstones whenever they like, and are away for as long as they like: what a deletion had
//! seen must not come back, what nobody deleted must not go, and in the end all hold the same. Nobody begins a new
//! epoch here: what it numbers anew counts as written anew, which no deletion has seen.

use proptest::prelude::*;

use super::{models::*, *};
use crate::proto::tests_support::id;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Put {
        node: usize,
        per_node: bool,
        key: u8,
    },
    Remove {
        node: usize,
        per_node: bool,
        key: u8,
    },
    /// What waits is told to some, and lost to the others.
    Spread {
        node: usize,
        to: u8,
    },
    Exchange {
        from: usize,
        to: usize,
        per_node: bool,
        slices: usize,
    },
    /// Every tombstone goes, once the node has learnt what its writer knew: it is kept for far longer than that
    /// takes.
    Forget {
        node: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (node, key) = (|| 0..NAMES.len(), || 0..3_u8);
    let step = prop_oneof![
        8 => (node(), any::<bool>(), key()).prop_map(|(node, per_node, key)| Step::Put { node, per_node, key }),
        6 => (node(), any::<bool>(), key()).prop_map(|(node, per_node, key)| Step::Remove { node, per_node, key }),
        4 => (node(), any::<u8>()).prop_map(|(node, to)| Step::Spread { node, to }),
        8 => (node(), node(), any::<bool>(), prop_oneof![1 => 0..3_usize, 2 => Just(99)])
            .prop_map(|(from, to, per_node, slices)| Step::Exchange { from, to, per_node, slices }),
        4 => node().prop_map(|node| Step::Forget { node }),
    ];
    prop::collection::vec(step, 0..60)
}

/// Type, key, and of a per-node type its owner.
type Place = (bool, String, Option<usize>);

/// What somebody wrote, and which values under the same place its node knew of then.
#[derive(Debug)]
struct Write {
    place: Place,
    rank: (u64, String),
    value: Option<Bytes>,
    seen: BTreeSet<Bytes>,
}

struct World {
    stores: Vec<Store>,
    writes: Vec<Write>,
    /// Under which dots each value has been known.
    values: BTreeMap<Dot, (Place, Bytes)>,
}

impl World {
    fn new() -> Self {
        let stores = NAMES.iter().map(|name| {
            let mut store = store(name);
            store.config.tombstone_ttl = Duration::ZERO;
            store
        });
        Self { stores: stores.collect(), writes: Vec::new(), values: BTreeMap::new() }
    }

    fn of(per_node: bool) -> StateType {
        if per_node { owned() } else { shared() }
    }

    /// The values of a place that a node knows of, shown or not.
    fn known(&self, node: usize, place: &Place) -> BTreeSet<Bytes> {
        let dots = dots_of(&self.stores[node]);
        let known = self.values.iter().filter(|(dot, (of, _))| of == place && dots.contains(*dot));
        known.map(|(_, (_, value))| value.clone()).collect()
    }

    /// Notes under which dots a node's own values are known by now.
    fn number(&mut self, node: usize) {
        for (per_node, of) in [(false, shared()), (true, owned())] {
            let (me, epoch) = (id(NAMES[node]), self.stores[node].config.epoch);
            let Some(table) = self.stores[node].tables.get(&of) else { continue };
            for held in table.at(&me, epoch, 0, u64::MAX).filter(|held| !held.is_deleted()) {
                let place = (per_node, held.key().to_owned(), per_node.then_some(node));
                let dot = (name_of(&of), NAMES[node].to_owned(), epoch, held.seq());
                self.values.insert(dot, (place, Bytes::copy_from_slice(held.value())));
            }
        }
    }

    fn write(&mut self, node: usize, per_node: bool, key: u8, put: bool) {
        let (of, key) = (Self::of(per_node), key.to_string());
        let place = (per_node, key.clone(), per_node.then_some(node));
        let seen = self.known(node, &place);
        let store = &mut self.stores[node];
        let value = put.then(|| value(1_000 + self.writes.len() as u64));
        let done = match &value {
            Some(value) => {
                store.put(&of, &key, value.clone(), None, false, at(0), &mut Vec::new());
                true
            }
            None => store.remove(&of, &key, at(0), &mut Vec::new()).is_some(),
        };
        if done {
            let rank = (store.clock(), NAMES[node].to_owned());
            self.writes.push(Write { place, rank, value, seen });
            self.number(node);
        }
    }

    /// One tells another what that lacks, in slices; after the last one also what is bygone, and what it knows.
    fn exchange(&mut self, from: usize, to: usize, of: &StateType, slices: usize) {
        let first = self.stores[to].vector(of);
        let mut theirs = first.clone();
        for _ in 0..slices {
            let (batches, more) = self.stores[from].delta(of, &theirs, 30, at(0));
            for batch in batches {
                let known = theirs.entry((batch.source.clone(), batch.epoch)).or_default();
                batch.records.iter().for_each(|record| _ = known.insert(record.seq));
                self.stores[to].merge(&batch, at(0), &mut Vec::new());
            }
            if !more {
                self.conclude(from, to, of, &first, &theirs);
                return;
            }
        }
    }

    fn conclude(&mut self, from: usize, to: usize, of: &StateType, first: &Vector, theirs: &Vector) {
        let mut left = BTreeSet::new();
        if self.stores[from].is_below_floor(of, theirs) {
            let (dots, next) = self.stores[from].bygone(of, first, None);
            assert_eq!(next, None);
            for dots in dots {
                // A register is its owner's.
                if of.is_per_node() && dots.source != id(NAMES[from]) {
                    left.insert(dots.source);
                    continue;
                }
                for range in Ranges::from_wire(&dots.ranges).unwrap().iter() {
                    self.stores[to].drop_bygone(of, (&dots.source, dots.epoch), range);
                }
            }
        }
        let mut claims = self.stores[from].vector(of);
        claims.retain(|(source, _), _| !left.contains(source));
        self.stores[to].cover(of, &claims, at(0));
        for (source, epoch) in claims.keys() {
            let floor = self.stores[from].floor(of, source, *epoch);
            self.stores[to].raise_floor(of, source, *epoch, floor);
        }
    }

    /// Who knows the same as another and holds something else is sent it anew.
    fn heal(&mut self, from: usize, to: usize, of: &StateType) {
        let theirs = self.stores[to].vector(of);
        if theirs == self.stores[from].vector(of)
            && self.stores[to].digest(of) != self.stores[from].digest(of)
        {
            let held = self.stores[to].held_dots(of);
            let they = (&id(NAMES[to]), self.stores[to].config.epoch);
            let unheld = self.stores[from].unheld(of, (&theirs, &held, they), 0, usize::MAX, at(0));
            assert_eq!(unheld.next, None);
            for range in unheld.withdrawn.iter() {
                self.stores[from].drop_bygone(of, they, range);
            }
            for batch in unheld.batches {
                self.stores[to].heal(&batch, at(0), &mut Vec::new());
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Put { node, per_node, key } => self.write(node, per_node, key, true),
            Step::Remove { node, per_node, key } => self.write(node, per_node, key, false),
            Step::Spread { node, to } => {
                while let Some((batch, _)) = self.stores[node].take_unspread(40, at(0)) {
                    for other in (0..NAMES.len()).filter(|other| *other != node && to >> other & 1 == 1) {
                        self.stores[other].merge(&batch, at(0), &mut Vec::new());
                    }
                }
            }
            Step::Exchange { from, to, per_node, slices } if from != to => {
                self.exchange(from, to, &Self::of(per_node), slices);
            }
            Step::Exchange { .. } => {}
            Step::Forget { node } => {
                for (from, per_node) in self.buried(node) {
                    self.exchange(from, node, &Self::of(per_node), 99);
                }
                self.stores[node].collect(at(0));
            }
        }
    }

    /// Whose tombstones a node holds, other than its own.
    fn buried(&self, node: usize) -> BTreeSet<(usize, bool)> {
        let mut buried = BTreeSet::new();
        for per_node in [false, true] {
            let Some(table) = self.stores[node].tables.get(&Self::of(per_node)) else { continue };
            for (_, held) in table.from(0).filter(|(_, held)| held.is_deleted()) {
                let writer = NAMES.iter().position(|name| *name == held.source().as_str());
                buried.extend(writer.filter(|writer| *writer != node).map(|writer| (writer, per_node)));
            }
        }
        buried
    }

    /// All meet, in any order, often enough.
    fn settle(&mut self, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..150 {
            let (from, to) = (rng.usize(..NAMES.len()), rng.usize(..NAMES.len()));
            for of in [shared(), owned()].iter().filter(|_| from != to) {
                self.exchange(from, to, of, 99);
                self.heal(from, to, of);
            }
        }
    }
}

#[test]
fn whenever_tombstones_are_forgotten_nothing_deleted_comes_back_nothing_else_goes_and_all_agree() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500);
    proptest!(ProptestConfig::with_cases(cases), |(steps in steps(), order: u64)| {
        let mut world = World::new();
        for step in steps {
            world.step(&step);
            world.stores.iter().for_each(Store::check);
        }
        world.settle(order);
        world.stores.iter().for_each(Store::check);
        for store in &world.stores {
            prop_assert_eq!(view_of(store), view_of(&world.stores[0]));
            for of in [shared(), owned()] {
                prop_assert_eq!(store.vector(&of), world.stores[0].vector(&of));
                prop_assert_eq!(store.digest(&of), world.stores[0].digest(&of));
            }
        }
        let shown: BTreeSet<Bytes> = view_of(&world.stores[0]).into_iter().map(|row| row.5).collect();
        for write in &world.writes {
            let back = write.seen.intersection(&shown).next();
            prop_assert!(back.is_none(), "{:?} came back, which {:?} had seen", back, write);
        }
        let mut last: BTreeMap<&Place, &Write> = BTreeMap::new();
        for write in &world.writes {
            let held = last.entry(&write.place).or_insert(write);
            if write.rank > held.rank {
                *held = write;
            }
        }
        for write in last.values() {
            let kept = write.value.as_ref().is_none_or(|value| shown.contains(value));
            prop_assert!(kept, "{:?} is gone", write);
        }
    });
}
