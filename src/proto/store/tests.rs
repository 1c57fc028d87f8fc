//! Each rule of the store, and its merge against every order of arrival.

use proptest::prelude::*;

use super::*;
use crate::{Value, proto::tests_support::id};

const WALL_MS: u64 = 1_767_225_600_000;
const EPOCH: u64 = WALL_MS;

fn at(ms: u64) -> Now {
    Now { time: Time::from_micros(ms * 1_000), wall_ms: WALL_MS + ms }
}

fn config(name: &str) -> StoreConfig {
    StoreConfig {
        me: id(name),
        epoch: EPOCH,
        tombstone_ttl: Duration::from_secs(60),
        max_batch_size: 100,
        disabled: BTreeSet::from([StateType::CONNTRACK]),
        signed: Signed::None,
        hash_key: (1, 2),
    }
}

fn store(name: &str) -> Store {
    Store::new(config(name))
}

fn value(number: u64) -> Bytes {
    Value::encode(&number).unwrap().into_bytes()
}

fn put(store: &mut Store, of: &StateType, key: &str, number: u64) -> SyncableState {
    store.put(of, key, value(number), None, false, at(0), &mut Vec::new())
}

fn take(store: &mut Store) -> RecordBatch {
    store.take_unspread(usize::MAX, at(0)).expect("something waits").0
}

fn merge(store: &mut Store, batch: &RecordBatch) -> BatchOutcome {
    let outcome = store.merge(batch, at(0), &mut Vec::new());
    store.check();
    outcome
}

fn number(store: &Store, of: &StateType, key: &str) -> Option<u64> {
    store.held(of, key).map(|(.., state)| state.value.decode().unwrap())
}

fn routes() -> StateType {
    StateType::shared("routes")
}

/// One round from `from` to `to`, as a push-pull does it.
fn sync(from: &Store, to: &mut Store) {
    for of in from.types() {
        let mut theirs = to.vector(&of);
        loop {
            let (batches, more) = from.delta(&of, &theirs, 40, at(0));
            for batch in &batches {
                merge(to, batch);
                let known = theirs.entry((batch.source.clone(), batch.epoch)).or_default();
                batch.records.iter().for_each(|record| _ = known.insert(record.seq));
            }
            if !more {
                break;
            }
        }
        assert_eq!(to.cover(&of, &from.vector(&of), at(0)), None);
    }
}

#[test]
fn what_is_written_is_read_and_replaced() {
    let mut a = store("a");
    let first = put(&mut a, &routes(), "x", 1);
    let second = put(&mut a, &routes(), "x", 2);
    assert!(second.version > first.version);
    assert_eq!(number(&a, &routes(), "x"), Some(2));
    assert_eq!(a.live(&routes()).count(), 1);
    let removed = a.remove(&routes(), "x", at(0), &mut Vec::new()).unwrap();
    assert_eq!(removed.version, second.version);
    assert_eq!((number(&a, &routes(), "x"), a.len()), (None, 0));
    assert_eq!(a.remove(&routes(), "x", at(0), &mut Vec::new()), None);
    a.check();
}

#[test]
fn a_key_written_twice_before_it_is_spread_costs_one_record_and_leaves_no_hole() {
    let (mut a, mut b) = (store("a"), store("b"));
    (0..5).for_each(|number| _ = put(&mut a, &routes(), "x", number));
    put(&mut a, &routes(), "y", 7);
    let batch = take(&mut a);
    assert_eq!((batch.records.len(), &batch.carried[..]), (2, &[(1, 4)][..]));
    assert!(!a.has_unspread());
    let outcome = merge(&mut b, &batch);
    assert_eq!((outcome.accepted, outcome.new_dots), (2, true));
    assert_eq!(b.digest(&routes()), a.digest(&routes()));
}

#[test]
fn an_own_write_that_lost_before_it_was_spread_stays_a_gap_till_its_successor_comes() {
    let (mut a, mut b) = (store("a"), store("b"));
    put(&mut a, &routes(), "x", 1);
    b.witness_clock(10, at(0));
    put(&mut b, &routes(), "x", 2);
    merge(&mut a, &take(&mut b));
    assert!(a.take_unspread(usize::MAX, at(0)).is_none());
    sync(&a, &mut b);
    assert_eq!(b.digest(&routes()), a.digest(&routes()));
}

#[test]
fn urgent_keys_go_first() {
    let mut a = store("a");
    put(&mut a, &routes(), "slow", 1);
    a.put(&routes(), "fast", value(2), None, true, at(0), &mut Vec::new());
    let (batch, urgent) = a.take_unspread(1, at(0)).unwrap();
    assert_eq!((&batch.records[0].key[..], urgent), ("fast", true));
    assert!(!a.take_unspread(1, at(0)).unwrap().1);
}

#[test]
fn of_a_per_node_type_each_source_has_its_own_register() {
    let (mut a, mut b) = (store("a"), store("b"));
    put(&mut a, &StateType::HEALTH, "x", 1);
    put(&mut b, &StateType::HEALTH, "x", 2);
    merge(&mut b, &take(&mut a));
    assert_eq!(number(&b, &StateType::HEALTH, "x"), Some(2));
    assert_eq!(b.live(&StateType::HEALTH).count(), 2);
    assert_eq!(b.of_source(&StateType::HEALTH, &id("a")).len(), 1);
    assert_eq!(b.register_epoch(&StateType::HEALTH, "x", &id("a")), Some(EPOCH));
    assert_eq!(b.register_epoch(&StateType::HEALTH, "x", &id("c")), None);
}

#[test]
fn what_a_peer_may_not_send_is_refused_and_stays_unknown() {
    let mut a = store("a");
    put(&mut a, &routes(), "x", 1);
    let good = take(&mut a);
    let spoilt = |spoil: fn(&mut RecordBatch)| {
        let mut batch = good.clone();
        spoil(&mut batch);
        batch
    };
    for (what, bad) in [
        ("a key that is empty", spoilt(|batch| batch.records[0].key.clear())),
        ("a key too long", spoilt(|batch| batch.records[0].key = "k".repeat(513))),
        ("a value that is none", spoilt(|batch| batch.records[0].value = Bytes::from_static(b"\xc1"))),
        ("a value cut short", spoilt(|batch| batch.records[0].value = Bytes::from_static(b"\xa5ab"))),
        (
            "a version beyond the bound",
            spoilt(|batch| batch.records[0].version = lamport::bound(WALL_MS) + 1),
        ),
        ("an epoch days ahead", spoilt(|batch| batch.epoch = WALL_MS + EPOCH_AHEAD_MS + 1)),
        ("the dot 0", spoilt(|batch| batch.records[0].seq = 0)),
        ("a dot that could wrap", spoilt(|batch| batch.records[0].seq = u64::MAX)),
        ("a type without a name", spoilt(|batch| batch.state_type.name.clear())),
        ("a type with a control character", spoilt(|batch| batch.state_type.name = "a\nb".into())),
    ] {
        let mut b = store("b");
        let outcome = merge(&mut b, &bad);
        assert_eq!((outcome.refused.len(), outcome.accepted), (1, 0), "{what}");
        assert!(!b.holds(&routes(), &id("a"), EPOCH, bad.records[0].seq), "{what}");
        assert_eq!(merge(&mut b, &good).accepted, 1, "{what}");
    }
}

#[test]
fn a_version_refused_now_is_accepted_later() {
    let (mut a, mut b) = (store("a"), store("b"));
    put(&mut a, &routes(), "x", 1);
    let mut batch = take(&mut a);
    batch.records[0].version = lamport::bound(WALL_MS) + 1;
    assert_eq!(merge(&mut b, &batch).refused, [1]);
    assert_eq!(b.merge(&batch, at(1), &mut Vec::new()).accepted, 1);
}

#[test]
fn a_type_that_is_switched_off_is_neither_kept_nor_vouched_for() {
    let mut other = Store::new(StoreConfig { disabled: BTreeSet::new(), ..config("b") });
    put(&mut other, &StateType::CONNTRACK, "flow", 1);
    let mut a = store("a");
    assert_eq!(merge(&mut a, &take(&mut other)), BatchOutcome::default());
    assert_eq!(a.cover(&StateType::CONNTRACK, &other.vector(&StateType::CONNTRACK), at(0)), None);
    assert_eq!(a.types(), []);
}

#[test]
fn a_dot_of_ones_own_that_one_did_not_make_is_an_impersonation() {
    let (mut a, mut twin) = (store("a"), store("a"));
    put(&mut twin, &routes(), "x", 1);
    assert!(merge(&mut a, &take(&mut twin)).forged);
    assert_eq!(a.len(), 0);
    assert_eq!(a.cover(&routes(), &twin.vector(&routes()), at(0)), Some(EPOCH));
    a.new_epoch(EPOCH + 1, at(0));
    // Under another epoch it is what an earlier life wrote.
    put(&mut twin, &routes(), "x", 1);
    assert!(!merge(&mut a, &take(&mut twin)).forged);
    assert_eq!(a.len(), 1);
}

#[test]
fn nobody_writes_in_a_life_of_ones_own_that_is_yet_to_come() {
    let mut a = store("a");
    put(&mut a, &StateType::HEALTH, "x", 1);
    let mut batch = take(&mut a);
    batch.epoch = EPOCH + 12 * 3_600_000;
    batch.records[0].value = value(666);
    assert!(merge(&mut a, &batch).forged);
    // It would stand above all that this life writes.
    put(&mut a, &StateType::HEALTH, "x", 2);
    assert_eq!(number(&a, &StateType::HEALTH, "x"), Some(2));
    assert_eq!(take(&mut a).records.len(), 1);
    let claim = Vector::from([((id("a"), batch.epoch), Ranges::from_wire(&[(1, 1)]).unwrap())]);
    assert_eq!(a.cover(&StateType::HEALTH, &claim, at(0)), Some(batch.epoch));
}

#[test]
fn the_same_said_again_in_a_new_epoch_is_told_to_nobody() {
    let (mut a, mut b) = (store("a"), store("b"));
    put(&mut a, &routes(), "x", 1);
    put(&mut a, &routes(), "y", 2);
    let mut effects = Vec::new();
    b.merge(&take(&mut a), at(1), &mut effects);
    assert_eq!(effects.len(), 4, "each is a change, and handed to providers");
    effects.clear();
    a.new_epoch(EPOCH + 1, at(2));
    put(&mut a, &routes(), "y", 3);
    let outcome = b.merge(&take(&mut a), at(3), &mut effects);
    assert_eq!(outcome.accepted, 2);
    assert!(
        matches!(&effects[..], [Effect::Change(_), Effect::Apply(of_y)] if of_y.key == "y"),
        "{effects:?}"
    );
}

#[test]
fn what_is_refused_makes_no_type() {
    let (mut a, mut b) = (store("a"), store("b"));
    put(&mut a, &routes(), "x", 1);
    let good = take(&mut a);
    let mut bad = good.clone();
    bad.records[0].seq = 0;
    for number in 0..300 {
        bad.state_type.name = format!("t{number}");
        assert_eq!(merge(&mut b, &bad).refused, [0]);
    }
    assert_eq!(b.types(), []);
    assert_eq!(merge(&mut b, &good).accepted, 1);
}

#[test]
fn a_reply_cut_for_its_length_says_that_there_is_more() {
    let mut a = store("a");
    (0..5).for_each(|key| _ = put(&mut a, &routes(), &key.to_string(), key));
    let wanted = Ranges::from_wire(&[(1, 5)]).unwrap();
    let (batch, gone) = a.records_at(&routes(), &id("a"), EPOCH, &wanted, 1, at(0));
    assert_eq!((batch.unwrap().records.len(), gone), (1, true));
}

#[test]
fn a_new_epoch_republishes_what_this_life_wrote() {
    let (mut a, mut b) = (store("a"), store("b"));
    put(&mut a, &routes(), "x", 1);
    put(&mut a, &StateType::HEALTH, "y", 2);
    merge(&mut b, &take(&mut a));
    a.new_epoch(EPOCH + 5, at(0));
    a.check();
    while let Some((batch, _)) = a.take_unspread(usize::MAX, at(0)) {
        assert_eq!(batch.epoch, EPOCH + 5);
        merge(&mut b, &batch);
    }
    assert_eq!((number(&b, &routes(), "x"), b.len()), (Some(1), 2));
    assert_eq!(b.register_epoch(&StateType::HEALTH, "y", &id("a")), Some(EPOCH + 5));
}

#[test]
fn a_peer_cannot_make_more_gaps_than_the_bound() {
    let mut a = store("a");
    put(&mut a, &routes(), "x", 1);
    let mut batch = take(&mut a);
    let one = batch.records[0].clone();
    batch.records =
        (1..=34_000).map(|seq| WireRecord { seq: seq * 2, key: seq.to_string(), ..one.clone() }).collect();
    let mut b = store("b");
    let outcome = merge(&mut b, &batch);
    assert_eq!((outcome.accepted, outcome.refused.len()), (32_768, 1_232));
    let gaps = Ranges::from_wire(&(1..70_000).map(|n| (n * 2, n * 2)).collect::<Vec<_>>()).unwrap();
    let claim = Vector::from([((id("a"), EPOCH), gaps)]);
    b.cover(&routes(), &claim, at(0));
    assert_eq!(b.ranges(&routes(), &id("a"), EPOCH).len(), 32_768);
}

#[test]
fn a_record_expires_everywhere_without_a_word_and_never_comes_back() {
    let (mut a, mut b) = (store("a"), store("b"));
    a.put(&routes(), "x", value(1), Some(Duration::from_secs(5)), false, at(0), &mut Vec::new());
    let (batch, _) = a.take_unspread(usize::MAX, at(1_000)).unwrap();
    assert_eq!(batch.records[0].ttl_ms, Some(4_000));
    b.merge(&batch, at(1_000), &mut Vec::new());
    for store in [&mut a, &mut b] {
        let mut effects = Vec::new();
        store.expire(at(4_999), &mut effects);
        assert!(effects.is_empty());
        store.expire(at(5_000), &mut effects);
        assert!(matches!(&effects[..], [Effect::Change(StateChange::Expired { .. })]));
        store.check();
    }
    assert_eq!(a.digest(&routes()), b.digest(&routes()));
    assert_eq!(merge(&mut b, &batch).known, 1);
    assert_eq!((b.len(), b.next_expiry()), (0, None));
}

#[test]
fn what_has_ended_does_not_come_back_when_its_writer_numbers_it_anew() {
    for of in [StateType::HEALTH, routes()] {
        let (mut a, mut b) = (store("a"), store("b"));
        a.put(&of, "x", value(1), Some(Duration::from_secs(5)), false, at(0), &mut Vec::new());
        b.merge(&take(&mut a), at(0), &mut Vec::new());
        b.expire(at(5_000), &mut Vec::new());
        // The writer's clock is slower: to it the record lives.
        a.new_epoch(EPOCH + 1, at(4_900));
        let mut effects = Vec::new();
        let (batch, _) = a.take_unspread(usize::MAX, at(4_900)).unwrap();
        b.merge(&batch, at(5_000), &mut effects);
        assert_eq!((effects, b.len(), b.next_expiry()), (vec![], 0, None));
        a.expire(at(5_000), &mut Vec::new());
        b.check();
        sync(&a, &mut b);
        assert_eq!(a.digest(&of), b.digest(&of));
    }
}

#[test]
fn pages_tell_each_record_that_stays_once_whatever_is_written_meanwhile() {
    let mut a = store("a");
    for key in 0..2_000 {
        put(&mut a, &routes(), &format!("k{key}"), 0);
    }
    let (mut told, mut next, mut pages) = (BTreeMap::new(), Some(0), 0);
    while let Some(first) = next {
        let (page, rest) = a.page(&routes(), first);
        assert!(page.len() <= PAGE as usize);
        for (record, _) in page {
            *told.entry(record.key).or_insert(0) += 1;
        }
        // Some are written anew, some go, and some come.
        for key in (pages * 7..2_000).step_by(13) {
            if key % 3 == 0 {
                a.remove(&routes(), &format!("k{key}"), at(0), &mut Vec::new());
            } else {
                put(&mut a, &routes(), &format!("k{key}"), 1);
            }
            put(&mut a, &routes(), &format!("new {key}"), 1);
        }
        (next, pages) = (rest, pages + 1);
    }
    assert!(pages > 4, "four for those that were there, and more for what came");
    assert!((0..2_000).filter(|key| key % 3 > 0).all(|key| told.get(&format!("k{key}")) == Some(&1)));
    assert!(told.values().all(|times| *times == 1));
}

#[test]
fn a_tombstone_is_forgotten_after_its_time_and_its_dot_is_not() {
    let (mut a, mut b) = (store("a"), store("b"));
    put(&mut a, &routes(), "x", 1);
    let old = take(&mut a);
    a.remove(&routes(), "x", at(0), &mut Vec::new());
    merge(&mut b, &take(&mut a));
    assert_eq!(b.collect(at(59_999)), 0);
    assert_eq!(b.collect(at(60_000)), 1);
    b.check();
    sync(&a, &mut b);
    // The old record is covered by what `b` knows.
    assert_eq!(merge(&mut b, &old).accepted, 0);
    assert_eq!(b.len(), 0);
}

#[test]
fn what_had_a_time_to_live_is_not_remembered_long_beyond_its_end() {
    let minutes = |minutes: u64| at(minutes * 60_000);
    let (mut a, mut b) = (store("a"), store("b"));
    for store in [&mut a, &mut b] {
        store.config.tombstone_ttl = Duration::from_secs(86_400);
    }
    let ttl = Some(Duration::from_secs(120));
    for key in ["ends", "removed", "removed after its end"] {
        a.put(&routes(), key, value(1), ttl, false, at(0), &mut Vec::new());
    }
    put(&mut a, &routes(), "stays", 1);
    merge(&mut b, &take(&mut a));
    for key in ["removed", "stays"] {
        a.remove(&routes(), key, at(0), &mut Vec::new());
    }
    merge(&mut b, &take(&mut a));
    for store in [&mut a, &mut b] {
        store.expire(minutes(2), &mut Vec::new());
        assert_eq!((store.len(), store.collect(minutes(11))), (0, 0));
    }
    let key = "removed after its end";
    let again = SyncableState::new(routes(), key, Value::NIL, a.clock() + 1, id("a"));
    a.put_as(SyncableState { deleted: true, ..again }, minutes(11), &mut Vec::new());
    b.merge(&take(&mut a), minutes(11), &mut Vec::new());
    for store in [&mut a, &mut b] {
        assert_eq!(store.collect(minutes(12)), 2, "what ended or would have, ten minutes ago");
        assert_eq!(store.collect(minutes(20)), 0);
        assert_eq!(store.collect(minutes(21)), 1, "that of it which was heard of last");
        assert_eq!(store.collect(minutes(1_439)), 0);
        assert_eq!(store.collect(minutes(1_440)), 1, "what had no end is remembered for a day");
        store.check();
    }
    assert_eq!(a.digest(&routes()), b.digest(&routes()));
}

#[test]
fn records_are_found_by_their_dots_and_those_without_one_are_told() {
    let mut a = store("a");
    (0..3).for_each(|number| {
        put(&mut a, &routes(), "x", number);
        take(&mut a);
    });
    put(&mut a, &routes(), "y", 7);
    let ask = |wanted: &[(u64, u64)]| {
        let wanted = Ranges::from_wire(wanted).unwrap();
        let (batch, gone) = a.records_at(&routes(), &id("a"), EPOCH, &wanted, usize::MAX, at(0));
        (batch.map(|batch| batch.records.iter().map(|record| record.seq).collect::<Vec<_>>()), gone)
    };
    assert_eq!(ask(&[(3, 4)]), (Some(vec![3, 4]), false));
    assert_eq!(ask(&[(1, 3)]), (Some(vec![3]), true));
    assert_eq!(ask(&[(9, 9)]), (None, false));
}

#[test]
fn put_as_takes_only_what_wins() {
    let mut a = store("a");
    let state = |version, number: u64| {
        SyncableState::new(routes(), "x", Value::encode(&number).unwrap(), version, id("a"))
    };
    let mut effects = Vec::new();
    assert!(a.put_as(state(5, 1), at(0), &mut effects));
    assert!(!a.put_as(state(5, 1), at(0), &mut effects));
    assert!(!a.put_as(state(4, 2), at(0), &mut effects));
    assert!(a.put_as(state(6, 3), at(0), &mut effects));
    assert_eq!((effects.len(), number(&a, &routes(), "x")), (2, Some(3)));
    assert!(a.next_version() > 6);
    a.check();
}

#[derive(Clone, Debug)]
enum Step {
    Put { node: usize, key: u8, per_node: bool, version: u64 },
    Remove { node: usize, key: u8 },
    Spread { node: usize, to: Vec<bool> },
    Replay { batch: usize, to: usize },
    CutSync { from: usize, to: usize },
    Sync { from: usize, to: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..4_usize;
    let step = prop_oneof![
        4 => (node.clone(), 0..3_u8, any::<bool>(), 1..20_u64)
            .prop_map(|(node, key, per_node, version)| Step::Put { node, key, per_node, version }),
        1 => (node.clone(), 0..3_u8).prop_map(|(node, key)| Step::Remove { node, key }),
        4 => (node.clone(), prop::collection::vec(any::<bool>(), 4)).prop_map(|(node, to)| Step::Spread { node, to }),
        2 => (0..32_usize, node.clone()).prop_map(|(batch, to)| Step::Replay { batch, to }),
        1 => (node.clone(), node.clone()).prop_map(|(from, to)| Step::CutSync { from, to }),
        1 => (node.clone(), node).prop_map(|(from, to)| Step::Sync { from, to }),
    ];
    prop::collection::vec(step, 0..60)
}

fn run(stores: &mut [Store], steps: Vec<Step>) {
    let mut sent = Vec::new();
    for step in steps {
        match step {
            Step::Put { node, key, per_node, version } => {
                let of = if per_node { StateType::per_node("own") } else { routes() };
                let source = id(["a", "b", "c", "d"][node]);
                // Versions collide on purpose.
                let value = Value::encode(&(version % 3)).unwrap();
                let state = SyncableState::new(of, key.to_string(), value, version, source);
                stores[node].put_as(state, at(0), &mut Vec::new());
            }
            Step::Remove { node, key } => {
                stores[node].remove(&routes(), &key.to_string(), at(0), &mut Vec::new());
            }
            Step::Spread { node, to } => {
                while let Some((batch, _)) = stores[node].take_unspread(64, at(0)) {
                    for (other, gets) in to.iter().enumerate() {
                        if *gets && other != node {
                            merge(&mut stores[other], &batch);
                        }
                    }
                    sent.push(batch);
                }
            }
            Step::Replay { batch, to } => {
                if let Some(batch) = sent.get(batch).filter(|batch| batch.source != stores[to].config.me) {
                    merge(&mut stores[to], batch);
                }
            }
            Step::CutSync { from, to } if from != to => {
                // What arrived before the cut counts; the claims never came.
                for of in stores[from].types() {
                    let theirs = stores[to].vector(&of);
                    for batch in stores[from].delta(&of, &theirs, 40, at(0)).0 {
                        merge(&mut stores[to], &batch);
                    }
                }
            }
            Step::Sync { from, to } if from != to => {
                let from = std::mem::replace(&mut stores[from], store("a"));
                let place = usize::from(from.config.me.as_str().as_bytes()[0] - b'a');
                sync(&from, &mut stores[to]);
                stores[place] = from;
            }
            Step::CutSync { .. } | Step::Sync { .. } => {}
        }
    }
}

/// All pairs, until nothing is left to tell.
fn settle(stores: &mut [Store]) {
    for _ in 0..2 {
        for from in 0..stores.len() {
            for to in 0..stores.len() {
                run(stores, vec![Step::Sync { from, to }]);
            }
        }
    }
}

#[test]
fn whatever_the_order_and_the_losses_all_end_with_the_same() {
    proptest!(ProptestConfig::with_cases(512), |(steps in steps())| {
        let mut stores: Vec<_> = ["a", "b", "c", "d"].into_iter().map(store).collect();
        run(&mut stores, steps);
        settle(&mut stores);
        for of in [routes(), StateType::per_node("own")] {
            let end: Vec<_> = stores
                .iter()
                .map(|store| {
                    store.check();
                    let mut live: Vec<_> = store
                        .live(&of)
                        .map(|(state, epoch)| (state.key, state.source_node, state.version, state.value, epoch))
                        .collect();
                    live.sort();
                    (store.digest(&of), store.vector(&of), live)
                })
                .collect();
            for other in &end[1..] {
                prop_assert_eq!(&end[0], other);
            }
        }
    });
}

#[test]
fn an_accepted_version_is_applied_once() {
    proptest!(ProptestConfig::with_cases(128), |(steps in steps())| {
        let mut stores: Vec<_> = ["a", "b", "c", "d"].into_iter().map(store).collect();
        run(&mut stores, steps);
        let mut reader = store("e");
        let mut applied = BTreeSet::new();
        for _ in 0..2 {
            for from in &stores {
                for of in from.types() {
                    for batch in from.delta(&of, &Vector::new(), usize::MAX, at(0)).0 {
                        let mut effects = Vec::new();
                        reader.merge(&batch, at(0), &mut effects);
                        for effect in effects {
                            if let Effect::Apply(state) = effect {
                                let dot = (state.state_type, state.key, state.source_node, state.version, state.value, state.deleted);
                                prop_assert!(applied.insert(dot.clone()), "{dot:?}");
                            }
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn a_source_whose_live_records_are_sparse_is_taken_over_whole() {
    let (mut a, mut b) = (store("a"), store("b"));
    let count = 70_000;
    for number in (0..count).chain((0..count).step_by(2)) {
        let key = number.to_string();
        a.put(&routes(), &key, value(1), None, false, at(0), &mut Vec::new());
    }
    // Every other dot of the first writes has no record any more.
    let (batches, more) = a.delta(&routes(), &Vector::new(), usize::MAX, at(0));
    assert!(!more);
    for batch in &batches {
        for slice in batch.records.chunks(1_000) {
            let slice = RecordBatch { records: slice.to_vec(), ..batch.clone() };
            let outcome = b.merge(&slice, at(0), &mut Vec::new());
            assert_eq!((outcome.accepted, outcome.refused), (slice.records.len() as u64, Vec::new()));
        }
    }
    assert!(b.ranges(&routes(), &id("a"), EPOCH).len() > RANGES_MAX);
    b.cover(&routes(), &a.vector(&routes()), at(0));
    assert_eq!((b.len(), b.digest(&routes())), (a.len(), a.digest(&routes())));
    b.check();
}
