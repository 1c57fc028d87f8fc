//! The store against naive models: maps, sets and the greatest of a list. The models know what the rules say
//! and nothing of how the store keeps it.

use proptest::prelude::*;

use super::*;
use crate::{Value, proto::tests_support::id, wire::message::TypeName};

const WALL_MS: u64 = 1_767_225_600_000;
pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];
/// How long a tombstone is kept here.
pub(super) const TOMBSTONE_MS: u64 = 60_000;

pub(super) fn at(ms: u64) -> Now {
    Now { time: Time::from_micros(ms * 1_000), wall_ms: WALL_MS + ms }
}

pub(super) fn store(name: &str) -> Store {
    Store::new(StoreConfig {
        me: id(name),
        epoch: 1,
        tombstone_ttl: Duration::from_millis(TOMBSTONE_MS),
        max_batch_size: 3,
        disabled: BTreeSet::new(),
        signed: Signed::None,
        hash_key: (1, 2),
    })
}

pub(super) fn shared() -> StateType {
    StateType::shared("shared")
}

pub(super) fn owned() -> StateType {
    StateType::per_node("owned")
}

pub(super) fn value(number: u64) -> Bytes {
    Value::encode(&number).unwrap().into_bytes()
}

/// A type's name, a source, its epoch and the number of a write.
pub(super) type Dot = (&'static str, String, u64, u64);

/// Everything that a record says, under its dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Written {
    pub(super) dot: Dot,
    pub(super) key: String,
    pub(super) version: u64,
    pub(super) deleted: bool,
    pub(super) value: Bytes,
    /// When it ends, in ms.
    pub(super) expires: Option<u64>,
}

impl Written {
    /// Who competes with it: those of the same key, and of the same source where each has its own.
    pub(super) fn place(&self) -> (&'static str, String, Option<String>) {
        let owner = (self.dot.0 == "owned").then(|| self.dot.1.clone());
        (self.dot.0, self.key.clone(), owner)
    }

    /// The greater (version, source, deleted, value bytes); of a register with one owner its latest write.
    pub(super) fn rank(&self) -> impl Ord + use<> {
        let (of, source, epoch, seq) = self.dot.clone();
        let said = (self.version, source, self.deleted, self.value.clone());
        ((of == "shared").then_some(said), epoch, seq)
    }

    pub(super) fn is_live(&self, ms: u64) -> bool {
        !self.deleted && self.expires.is_none_or(|expires| ms < expires)
    }
}

/// The winners among those, by place.
pub(super) fn winners<'a>(all: impl IntoIterator<Item = &'a Written>) -> Vec<&'a Written> {
    let mut best: BTreeMap<_, &Written> = BTreeMap::new();
    for written in all {
        let held = best.entry(written.place()).or_insert(written);
        if written.rank() > held.rank() {
            *held = written;
        }
    }
    best.into_values().collect()
}

/// What a reader sees: the live ones, without the number of their writes.
pub(super) type View = BTreeSet<(&'static str, String, String, u64, u64, Bytes)>;

pub(super) fn view<'a>(all: impl IntoIterator<Item = &'a Written>, ms: u64) -> View {
    let live = winners(all).into_iter().filter(|written| written.is_live(ms));
    live.map(|w| (w.dot.0, w.key.clone(), w.dot.1.clone(), w.dot.2, w.version, w.value.clone())).collect()
}

pub(super) fn view_of(store: &Store) -> View {
    let of = |name, of: &StateType| -> Vec<_> {
        let row = |(state, epoch): (SyncableState, u64)| {
            let source = state.source_node.to_string();
            (name, state.key, source, epoch, state.version, state.value.into_bytes())
        };
        store.live(of).map(row).collect()
    };
    of("shared", &shared()).into_iter().chain(of("owned", &owned())).collect()
}

pub(super) fn dots_of(store: &Store) -> BTreeSet<Dot> {
    let mut dots = BTreeSet::new();
    for (name, of) in [("shared", shared()), ("owned", owned())] {
        for ((source, epoch), ranges) in store.vector(&of) {
            for seq in ranges.iter().flat_map(|(lo, hi)| lo..=hi) {
                dots.insert((name, source.to_string(), epoch, seq));
            }
        }
    }
    dots
}

pub(super) fn name_of(of: &StateType) -> &'static str {
    if of.is_per_node() { "owned" } else { "shared" }
}

/// A batch from anyone: its epoch and numbers collide, and some of it is not valid.
fn any_batch() -> impl Strategy<Value = RecordBatch> {
    let record = (
        prop_oneof![1 => Just(0), 24 => 1..9_u64, 1 => Just(SEQ_MAX + 1)],
        "[xyz]{1,2}",
        prop_oneof![24 => 1..5_u64, 1 => Just(u64::MAX)],
        any::<bool>(),
        0..3_u64,
    )
        .prop_map(|(seq, key, version, deleted, number)| WireRecord {
            seq,
            key,
            version,
            timestamp_ms: 0,
            deleted,
            ttl_ms: None,
            value: value(number),
            proof: Bytes::new(),
        });
    let carried = prop_oneof![3 => Just(Vec::new()), 1 => (1..9_u64, 0..3_u64).prop_map(|(lo, len)| vec![(lo, lo + len)])];
    // Those of `a` itself are of its present life, of one to come, or of one that is over.
    let source = (prop::sample::select(vec!["a", "b", "c"]), 0..3_u64);
    (any::<bool>(), source, prop::collection::vec(record, 0..5), carried).prop_map(
        |(per_node, (source, epoch), records, carried)| RecordBatch {
            state_type: TypeName::from(&if per_node { owned() } else { shared() }),
            source: id(source),
            epoch,
            records,
            carried,
        },
    )
}

#[test]
fn a_merge_keeps_the_greatest_record_of_each_key_and_knows_each_dot_once() {
    proptest!(ProptestConfig::with_cases(1_024), |(batches in prop::collection::vec(any_batch(), 0..16))| {
        let mut store = store("a");
        let (mut dots, mut records) = (BTreeSet::new(), Vec::<Written>::new());
        for batch in batches {
            let name = name_of(&StateType::from(&batch.state_type));
            let own = batch.source.as_str() == "a" && batch.epoch >= 1;
            let (before, mut expected, mut renumbered) = (dots.clone(), BatchOutcome::default(), 0);
            for record in &batch.records {
                let dot = (name, batch.source.to_string(), batch.epoch, record.seq);
                let valid = (1..=SEQ_MAX).contains(&record.seq) && record.version < u64::MAX;
                if own {
                    expected.forged = true;
                    expected.refused.push(record.seq);
                } else if !before.contains(&dot) && !valid {
                    expected.refused.push(record.seq);
                } else if !dots.insert(dot.clone()) {
                    expected.known += 1;
                } else {
                    expected.new_dots = true;
                    let (key, version, deleted) = (record.key.clone(), record.version, record.deleted);
                    let value = if deleted { Bytes::new() } else { record.value.clone() };
                    let written = Written { dot, key, version, deleted, value, expires: None };
                    let before = winners(&records).into_iter().find(|held| held.place() == written.place());
                    let said = |of: &Written| (of.version, of.dot.1.clone(), of.deleted, of.value.clone());
                    let same = before.is_some_and(|before| said(before) == said(&written));
                    records.push(written.clone());
                    let won = winners(&records).contains(&&written);
                    // The same said again under another dot is handed to nobody.
                    renumbered += u64::from(won && same);
                    *if won { &mut expected.accepted } else { &mut expected.superseded } += 1;
                }
            }
            if !own && expected.refused.is_empty() {
                for seq in batch.carried.iter().flat_map(|(lo, hi)| *lo..=*hi) {
                    let dot = (name, batch.source.to_string(), batch.epoch, seq);
                    expected.new_dots |= dots.insert(dot);
                }
            }
            let mut effects = Vec::new();
            let outcome = store.merge(&batch, at(0), &mut effects);
            store.check();
            prop_assert_eq!(&outcome, &expected);
            let applied = effects.iter().filter(|effect| matches!(effect, Effect::Apply(_))).count();
            prop_assert_eq!(applied as u64 + renumbered, outcome.accepted);
            prop_assert_eq!(dots_of(&store), dots.clone());
            prop_assert_eq!(view_of(&store), view(&records, 0));
            prop_assert_eq!(store.clock(), records.iter().map(|w| w.version).max().unwrap_or(0));
        }
    });
}

#[test]
fn a_claim_of_coverage_adds_its_dots_to_those_known_and_nothing_else() {
    let claim = (any::<bool>(), 0..3_usize, 0..3_u64, 1..20_u64, 0..5_u64);
    proptest!(|(batches in prop::collection::vec(any_batch(), 0..4), claims in prop::collection::vec(claim, 0..6))| {
        let mut store = store("a");
        for batch in &batches {
            store.merge(batch, at(0), &mut Vec::new());
        }
        let before = view_of(&store);
        for (per_node, source, epoch, lo, len) in claims {
            let of = if per_node { owned() } else { shared() };
            let mut dots = dots_of(&store);
            let ranges = Ranges::from_wire(&[(lo, lo + len)]).unwrap();
            let own = NAMES[source] == "a" && epoch >= 1;
            let forged = store.cover(&of, &Vector::from([((id(NAMES[source]), epoch), ranges)]), at(0));
            store.check();
            prop_assert_eq!(forged, own.then_some(epoch));
            if !own {
                dots.extend((lo..=lo + len).map(|seq| (name_of(&of), NAMES[source].to_owned(), epoch, seq)));
            }
            prop_assert_eq!(dots_of(&store), dots);
            prop_assert_eq!(view_of(&store), before.clone());
        }
    });
}
