//! Writers' signatures on records: what is taken with one, what is refused without, and who is named for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;

use crate::{
    EventKind, NodeId, Options, StateType, Value,
    proto::{Output, Protocol, Signed, StreamInput, Vouch, fixtures::seal, tests_support::*},
    wire::{
        StreamId,
        codec::{self, Packet},
        message::{Chain, Lease, NeedChain, Open, Proof, RecordBatch, Span, SpreadHead, WireRecord, kind},
    },
};

/// Certificates that can be renewed, and that count what they are asked to verify.
struct Renewable {
    seal: Seal,
    generation: AtomicU64,
    verified: AtomicU64,
    judged: AtomicU64,
    refuses: AtomicU64,
}

impl Renewable {
    fn name(&self) -> String {
        format!("{}#{}", self.seal.0, self.generation.load(SeqCst))
    }
}

impl Vouch for Renewable {
    fn chain(&self) -> Bytes {
        self.name().into()
    }

    fn sign(&self, message: &[u8]) -> Option<Bytes> {
        let willing = self.refuses.load(SeqCst) == 0;
        willing.then(|| Bytes::copy_from_slice(&seal(&self.name(), message).to_be_bytes()))
    }

    fn verify(&self, node: &NodeId, chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.seal.verify(node, chain, message, signature)
    }

    fn digest(&self, bytes: &[u8]) -> Bytes {
        self.seal.digest(bytes)
    }

    fn has_issued(&self, node: &NodeId, chain: &[u8]) -> bool {
        self.judged.fetch_add(1, SeqCst);
        self.seal.has_issued(node, chain)
    }

    fn is_by(&self, chain: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.verified.fetch_add(1, SeqCst);
        self.seal.is_by(chain, message, signature)
    }

    fn trusts_issuer(&self, issuer: u64) -> bool {
        self.seal.trusts_issuer(issuer)
    }
}

fn renewable(name: &str, signed: Signed) -> (Protocol, Arc<Renewable>) {
    renewable_in("edge", name, signed)
}

fn renewable_in(cluster: &str, name: &str, signed: Signed) -> (Protocol, Arc<Renewable>) {
    let keys = Renewable {
        seal: Seal(id(name)),
        generation: AtomicU64::new(0),
        verified: AtomicU64::new(0),
        judged: AtomicU64::new(0),
        refuses: AtomicU64::new(0),
    };
    let keys = Arc::new(keys);
    let mut config = config(name);
    config.address.set_port(7_000 + u16::from(name.bytes().fold(0_u8, u8::wrapping_add)));
    config.push_pull_interval = Duration::from_secs(3_600);
    config.signed = signed;
    config.cluster = cluster.into();
    (Protocol::new(config, Arc::clone(&keys) as Arc<dyn Vouch>, 7, at(0)), keys)
}

fn signing(name: &str) -> Protocol {
    renewable(name, Signed::All).0
}

fn routes() -> StateType {
    StateType::shared("routes")
}

fn put(core: &mut Protocol, key: &str, number: u64, ms: u64) {
    core.broadcast(&routes(), key, Value::encode(&number).unwrap(), Options::default(), at(ms)).unwrap();
}

fn number(core: &Protocol, key: &str) -> Option<u64> {
    core.get(&routes(), key).map(|record| record.value.decode().unwrap())
}

/// The records among the messages that a core wants sent, hand-offs opened.
fn batches(outputs: &[Output]) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    for (_, bytes) in sent(outputs) {
        for (part, body) in codec::parts(&bytes).unwrap() {
            let parts = match part {
                kind::SPREAD => codec::bare_parts(&codec::head_and_rest(&body).unwrap().1).unwrap(),
                part => vec![(part, body)],
            };
            let records = parts.into_iter().filter(|(part, _)| *part == kind::RECORDS);
            batches.extend(records.map(|(_, body)| codec::decode(&body).unwrap()));
        }
    }
    batches
}

/// What `a` spreads when it writes that.
fn written(a: &mut Protocol, key: &str, number: u64, ms: u64) -> RecordBatch {
    a.handle_timeout(at(ms));
    drain(a);
    put(a, key, number, ms);
    a.handle_timeout(at(ms + 2));
    batches(&drain(a)).into_iter().next().expect("it is told at once")
}

fn tell(to: &mut Protocol, from: &str, batch: &RecordBatch, ms: u64) {
    to.handle_message(&id(from), &message(kind::RECORDS, batch), at(ms));
}

fn named(core: &mut Protocol) -> Vec<String> {
    let events = events(&drain(core)).into_iter();
    events.filter(|(kind, _)| *kind == EventKind::RecordForged).map(|(_, node)| node).collect()
}

/// `a` and `b` want signatures, and so does `m`, who relays.
fn three() -> (Protocol, Protocol, Protocol) {
    let (mut a, mut b, mut m) = (signing("a"), signing("b"), signing("m"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut m, at(0));
    connect(&mut b, &mut m, at(0));
    for core in [&mut a, &mut b, &mut m] {
        drain(core);
    }
    (a, b, m)
}

#[test]
fn what_its_writer_signed_is_taken_from_anybody_and_what_is_altered_in_any_way_from_nobody() {
    type Alter = fn(&mut RecordBatch);
    let alterations: [(&str, Alter); 12] = [
        ("type", |batch| batch.state_type.name.push('x')),
        ("kind of type", |batch| batch.state_type.per_node = true),
        ("source", |batch| batch.source = id("m")),
        ("epoch", |batch| batch.epoch -= 1),
        ("seq", |batch| batch.records[0].seq += 1),
        ("key", |batch| batch.records[0].key.push('x')),
        ("version", |batch| batch.records[0].version += 1),
        ("timestamp", |batch| batch.records[0].timestamp_ms += 1),
        ("deleted", |batch| (batch.records[0].deleted, batch.records[0].value) = (true, Bytes::new())),
        ("ttl", |batch| batch.records[0].ttl_ms = Some(1)),
        ("value", |batch| batch.records[0].value = Value::encode(&6).unwrap().into_bytes()),
        ("signature", |batch| {
            let mut proof: Proof = codec::decode(&batch.records[0].proof).unwrap();
            proof.lease = Some(Lease { ends_ms: 1, value: Bytes::new() });
            batch.records[0].proof = codec::encode(&proof).into();
        }),
    ];
    for (what, alter) in alterations {
        let (mut a, mut b, _) = three();
        let good = written(&mut a, "x", 5, 10);
        let mut bad = good.clone();
        alter(&mut bad);
        tell(&mut b, "m", &bad, 20);
        let counters = b.counters();
        assert_eq!(counters.records_accepted, 0, "{what}");
        if what == "source" {
            // The certificate that it names is not the other's: that one's is asked for.
            assert_eq!((counters.records_unproved, counters.records_forged), (1, 0));
        } else {
            assert_eq!((counters.records_unproved, counters.records_forged), (0, 1), "{what}");
            assert_eq!(named(&mut b), ["m"], "{what}");
        }
        assert_eq!(number(&b, "x"), None, "{what}");
        tell(&mut b, "m", &good, 21);
        assert_eq!(number(&b, "x"), Some(5), "{what}: its dot stayed unknown");
        b.check();
    }
}

#[test]
fn one_cluster_s_records_are_not_another_s() {
    let (mut a, mut b, _) = three();
    let [mut other, mut peer] = ["a", "z"].map(|name| renewable_in("other", name, Signed::All).0);
    connect(&mut other, &mut peer, at(0));
    let batch = written(&mut other, "x", 5, 10);
    tell(&mut b, "a", &batch, 20);
    assert_eq!((b.counters().records_forged, number(&b, "x")), (1, None));
    tell(&mut b, "a", &written(&mut a, "x", 5, 10), 21);
    assert_eq!(number(&b, "x"), Some(5));
}

#[test]
fn a_record_without_a_signature_is_refused_only_of_a_type_that_wants_one() {
    let signed = Signed::Types(["routes".to_owned()].into());
    let ((mut a, _), (mut b, _)) = (renewable("a", signed.clone()), renewable("b", signed));
    connect(&mut a, &mut b, at(0));
    drain(&mut b);
    let mut bare = written(&mut a, "x", 5, 10);
    assert!(!bare.records[0].proof.is_empty());
    bare.records[0].proof = Bytes::new();
    bare.carried = vec![(7, 9)];
    tell(&mut b, "a", &bare, 20);
    assert_eq!((b.counters().records_unsigned, number(&b, "x")), (1, None));
    assert!(b.store.ranges(&routes(), &id("a"), bare.epoch).is_empty(), "nor is what it carries known");
    assert_eq!(named(&mut b), ["a"]);
    a.handle_timeout(at(30));
    drain(&mut a);
    a.broadcast(&StateType::DRAIN, "x", Value::encode(&1).unwrap(), Options::default(), at(30)).unwrap();
    let plain = batches(&drain(&mut a)).remove(0);
    assert!(plain.records[0].proof.is_empty());
    tell(&mut b, "a", &plain, 31);
    assert!(b.get(&StateType::DRAIN, "x").is_some());
    assert_eq!(
        b.store.alike(&StateType::DRAIN, &plain, &plain.records[0]),
        crate::proto::store::Alike::Wholly
    );
}

#[test]
fn nothing_is_paid_for_what_is_not_signed() {
    let record = WireRecord {
        seq: 1,
        key: "k".into(),
        version: 2,
        timestamp_ms: 3,
        deleted: false,
        ttl_ms: None,
        value: Bytes::from_static(b"\x01"),
        proof: Bytes::new(),
    };
    let before = (1_u64, "k", 2_u64, 3_u64, false, None::<u64>, Bytes::from_static(b"\x01"));
    assert_eq!(codec::encode(&record), codec::encode(&before));
    assert_eq!(codec::decode::<WireRecord>(&codec::encode(&before)), Ok(record));
    let (a, _) = renewable("a", Signed::None);
    let hello: crate::wire::message::CoreHello = codec::decode(&a.introduction(None).core).unwrap();
    let before = (hello.claim.clone(), hello.clock, hello.disabled.clone());
    assert_eq!(codec::encode(&hello), codec::encode(&before));
}

#[test]
fn what_is_known_is_not_verified_and_who_tells_much_that_is_false_is_not_listened_to() {
    let (mut a, mut b, _) = three();
    let (mut c, keys) = renewable("c", Signed::All);
    connect(&mut a, &mut c, at(1));
    connect(&mut b, &mut c, at(1));
    let good = written(&mut a, "x", 5, 10);
    tell(&mut c, "a", &good, 20);
    let verified = keys.verified.load(SeqCst);
    let mut again = good.clone();
    again.records[0].value = Bytes::from_static(b"\x06");
    for ms in 21..40 {
        tell(&mut c, "a", &good, ms);
        tell(&mut c, "a", &again, ms);
    }
    assert_eq!((keys.verified.load(SeqCst), c.counters().records_forged), (verified, 0));
    // Dots that nobody knows, all of them false.
    for round in 0..5_000 {
        let mut bad = good.clone();
        bad.records[0].seq = 100 + round;
        tell(&mut c, "b", &bad, 50);
    }
    assert_eq!(keys.verified.load(SeqCst) - verified, 2_000, "the burst of its share");
    assert_eq!((c.counters().records_forged, c.counters().records_unproved), (2_000, 3_000));
    assert_eq!(named(&mut c), ["b"], "once, though it told many");
    tell(&mut c, "a", &written(&mut a, "y", 6, 60), 60);
    assert_eq!(number(&c, "y"), Some(6), "who tells the truth is listened to");
}

#[test]
fn a_chain_is_judged_once_and_again_under_another_identity() {
    let (mut a, _, _) = three();
    let (mut c, keys) = renewable("c", Signed::All);
    connect(&mut a, &mut c, at(1));
    let judged = |keys: &Renewable| keys.judged.swap(0, SeqCst);
    judged(&keys);
    for number in 0..9 {
        tell(&mut c, "a", &written(&mut a, &format!("k{number}"), number, 10 + 5 * number), 100);
    }
    assert_eq!((judged(&keys), c.counters().records_accepted), (1, 9));
    c.sign_anew(at(101));
    judged(&keys);
    for number in 0..9 {
        tell(&mut c, "a", &written(&mut a, &format!("k{number}"), number, 110 + 5 * number), 200);
    }
    assert_eq!((judged(&keys), c.counters().records_accepted), (1, 18));
}

/// A hand-off of those batches by `m`.
fn handoff(batches: &[&RecordBatch], number: u64) -> Bytes {
    let span = Span { zone: None, lo: 0, hi: u64::MAX };
    let head = SpreadHead { handoff: number, origin: id("a"), epoch: WALL_MS, number, span };
    let head = codec::encode(&head);
    let mut payload = Packet::new();
    for batch in batches {
        payload.push(kind::RECORDS, batch);
    }
    let mut packet = Packet::new();
    packet.push_raw(kind::SPREAD, &[&codec::prefix(head.len()), &head, &payload.into_parts()]);
    packet.into_bytes()
}

#[test]
fn who_cannot_vouch_for_a_record_does_not_pass_it_on() {
    let (mut a, mut b, _) = three();
    connect(&mut b, &mut signing("c"), at(1));
    drain(&mut b);
    let kinds = |outputs: &[Output]| -> Vec<u8> {
        let sent = sent(outputs);
        sent.iter().flat_map(|(_, bytes)| codec::parts(bytes).unwrap()).map(|(kind, _)| kind).collect()
    };
    let (good, other) = (written(&mut a, "x", 5, 10), written(&mut a, "y", 6, 20));
    let mut bad = other.clone();
    bad.records[0].version += 1;
    b.handle_message(&id("m"), &handoff(&[&good, &bad], 1), at(30));
    let outputs = drain(&mut b);
    assert_eq!(kinds(&outputs), [0_u8; 0], "neither passed on nor acknowledged");
    assert_eq!(events(&outputs).iter().filter(|(kind, _)| *kind == EventKind::RecordForged).count(), 1);
    assert_eq!((number(&b, "x"), number(&b, "y")), (Some(5), None), "what is good of it is taken");
    assert_eq!(b.counters().batches_withheld, 1);
    b.handle_message(&id("m"), &handoff(&[&good, &other], 1), at(31));
    let outputs = drain(&mut b);
    assert!(kinds(&outputs).contains(&kind::SPREAD) && kinds(&outputs).contains(&kind::TOOK));
    // What it knows, altered, it does not pass on either, or others would name it for that.
    b.handle_message(&id("m"), &handoff(&[&bad], 2), at(32));
    assert_eq!(kinds(&drain(&mut b)), [0_u8; 0]);
    assert_eq!((b.counters().records_forged, b.counters().batches_withheld), (2, 2));
}

#[test]
fn after_a_new_certificate_live_records_are_signed_anew_under_the_same_dots() {
    let ((mut a, keys), mut b) = (renewable("a", Signed::All), signing("b"));
    connect(&mut a, &mut b, at(0));
    wire(&mut a, &mut b, &[]).run(0, 50);
    for key in 0..1_500 {
        put(&mut a, &format!("k{key}"), key, 50);
    }
    wire(&mut a, &mut b, &[]).run(50, 400);
    let before = (b.store.vector(&routes()), b.store.digest(&routes()), b.get(&routes(), "k7"));
    let (held, signed) = (b.counters().records_held, a.counters().records_signed);
    assert_eq!((held, signed), (1_500, 1_500));
    let old = chain_of(&a);
    keys.generation.fetch_add(1, SeqCst);
    a.sign_anew(at(400));
    assert_ne!(chain_of(&a), old);
    wire(&mut a, &mut b, &[]).run(400, 2_000);
    assert_eq!(a.counters().records_signed, 3_000);
    for core in [&a, &b] {
        assert!(core.store.has_signer(&id("a"), chain_of(&a)));
        assert!(!core.store.has_signer(&id("a"), old), "nothing is left that was signed by the old one");
    }
    assert_eq!((b.store.vector(&routes()), b.store.digest(&routes()), b.get(&routes(), "k7")), before);
    assert_eq!(b.counters().records_forged + b.counters().records_unsigned, 0);
    b.check();
}

#[test]
fn what_waits_to_be_told_when_the_certificate_changes_is_told_once_by_the_new_one() {
    let ((mut a, keys), mut b) = (renewable("a", Signed::All), signing("b"));
    connect(&mut a, &mut b, at(0));
    written(&mut a, "x", 5, 10);
    put(&mut a, "w", 7, 12); // leaves at once, and what follows waits
    put(&mut a, "y", 6, 12);
    keys.generation.fetch_add(1, SeqCst);
    a.sign_anew(at(12));
    a.handle_timeout(at(12));
    a.handle_timeout(at(14));
    let mut told: Vec<RecordBatch> = Vec::new();
    for batch in batches(&drain(&mut a)) {
        // Nobody acknowledges, so the same is handed over again.
        if !told.contains(&batch) {
            told.push(batch);
        }
    }
    let records: Vec<_> = told.iter().flat_map(|batch| &batch.records).collect();
    assert_eq!(records.iter().filter(|record| record.key == "y").count(), 1);
    let by_new =
        |record: &&&WireRecord| codec::decode::<Proof>(&record.proof).unwrap().chain_hash == chain_of(&a);
    assert_eq!(
        records.iter().filter(by_new).count(),
        3,
        "the other two were told before, and are told again"
    );
    assert!(told.iter().all(|batch| batch.carried.is_empty()), "no dot was superseded: {told:?}");
}

fn chain_of(core: &Protocol) -> u64 {
    core.members.me().signed.chain_hash
}

#[test]
fn who_joins_is_told_the_certificates_of_a_writer_that_is_gone() {
    let ((mut a, keys), mut b) = (renewable("a", Signed::All), signing("b"));
    connect(&mut a, &mut b, at(0));
    wire(&mut a, &mut b, &[]).run(0, 50);
    put(&mut a, "x", 5, 50);
    wire(&mut a, &mut b, &[]).run(50, 100);
    // What it said of itself last it signed by another certificate, and of the record's nobody else has heard.
    keys.generation.fetch_add(1, SeqCst);
    a.sign_anew(at(100));
    wire(&mut a, &mut b, &[kind::SPREAD]).run(100, 101);
    b.handle_message(&id("a"), &message(kind::CLAIM, &a.claim_with_chain(&id("a")).unwrap()), at(101));
    b.handle_disconnected(&id("a"), crate::wire::CloseCode::LEFT, true, at(102));
    assert!(!b.store.has_signer(&id("a"), chain_of(&a)), "the record is signed by the one before");
    let mut c = signing("c");
    connect(&mut b, &mut c, at(110));
    wire(&mut b, &mut c, &[kind::NEED_CHAIN]).run(110, 200);
    assert_eq!(number(&c, "x"), Some(5));
    assert_eq!(c.counters().records_unproved, 0);
}

#[test]
fn certificates_that_are_not_at_hand_are_asked_for_and_no_others_are_taken() {
    let (mut a, mut b, _) = three();
    let (mut c, _) = renewable("c", Signed::All);
    connect(&mut b, &mut c, at(1));
    wire(&mut b, &mut c, &[]).run(1, 9);
    c.members.remove(&id("a"), at(9).time); // as if it had never heard of it
    c.members.keep_chain(chain_of(&a), Bytes::from_static(b"b#0"));
    drain(&mut c);
    drain(&mut b);
    let batch = written(&mut a, "x", 5, 10);
    let chain = Chain { node_id: id("a"), chain: Bytes::from_static(b"a#0") };
    c.handle_message(&id("b"), &message(kind::CHAIN, &chain), at(15));
    tell(&mut c, "b", &batch, 20);
    tell(&mut c, "b", &batch, 21);
    let need = NeedChain { node_id: id("a"), chain_hash: chain_of(&a) };
    let asked: Vec<_> = sent(&drain(&mut c));
    assert_eq!(asked, [(id("b"), message(kind::NEED_CHAIN, &need))], "the one not asked for was not kept");
    assert_eq!((c.counters().records_unproved, number(&c, "x")), (2, None));
    tell(&mut b, "a", &batch, 22);
    drain(&mut b);
    b.handle_message(&id("c"), &asked[0].1, at(22));
    let answer = sent(&drain(&mut b));
    assert_eq!(answer, [(id("c"), message(kind::CHAIN, &chain))]);
    c.handle_message(&id("b"), &answer[0].1, at(23));
    assert_eq!(c.counters().early_syncs, 1, "what was refused is brought");
    tell(&mut c, "b", &batch, 24);
    assert_eq!(number(&c, "x"), Some(5));
}

#[test]
fn certificates_that_no_authority_issued_are_refused_and_their_teller_is_named() {
    let (mut a, _, mut m) = three();
    let (mut c, _) = renewable("c", Signed::All);
    connect(&mut m, &mut c, at(1));
    let mut batch = written(&mut a, "x", 5, 10);
    let chain = Bytes::from_static(b"mallory");
    let mut proof: Proof = codec::decode(&batch.records[0].proof).unwrap();
    proof.chain_hash = crate::proto::members::chain_hash(&chain);
    batch.records[0].proof = codec::encode(&proof).into();
    tell(&mut c, "m", &batch, 20);
    drain(&mut c);
    c.handle_message(&id("m"), &message(kind::CHAIN, &Chain { node_id: id("a"), chain }), at(21));
    assert_eq!((c.counters().records_forged, number(&c, "x")), (1, None));
    assert_eq!(named(&mut c), ["m"]);
}

/// A write of `a` that ends after so long, as it is told.
fn leased(a: &mut Protocol, ttl: Duration, ms: u64) -> RecordBatch {
    a.handle_timeout(at(ms));
    drain(a);
    let options = Options { ttl: Some(ttl), ..Options::default() };
    a.broadcast(&routes(), "x", Value::encode(&5).unwrap(), options, at(ms)).unwrap();
    a.handle_timeout(at(ms + 2));
    batches(&drain(a)).remove(0)
}

#[test]
fn a_relay_cannot_have_a_record_live_longer_than_its_writer_said_nor_end_sooner() {
    let (mut a, mut b, _) = three();
    let batch = leased(&mut a, Duration::from_secs(10), 100);
    for (told, lives_until) in [(u64::MAX, 10_200), (10_000, 10_200), (1, 10_100)] {
        let mut b = b.clone();
        let mut batch = batch.clone();
        batch.records[0].ttl_ms = Some(told);
        tell(&mut b, "m", &batch, 200);
        b.handle_timeout(at(lives_until - 1));
        assert_eq!(number(&b, "x"), Some(5), "{told}");
        b.handle_timeout(at(lives_until));
        assert_eq!(number(&b, "x"), None, "{told}");
    }
    let mut bad = batch.clone();
    bad.records[0].value = Value::encode(&6).unwrap().into_bytes();
    tell(&mut b, "m", &bad, 200);
    assert_eq!((number(&b, "x"), b.counters().records_forged), (None, 1), "nor say anything else");
    // What has ended has no value any more, and is proved all the same, once its time has come.
    a.handle_timeout(at(10_150));
    drain(&mut a);
    let ranges = a.store.ranges(&routes(), &id("a"), batch.epoch);
    let ended = a.store.records_at(&routes(), &id("a"), batch.epoch, &ranges, 9_999, at(10_150)).0.unwrap();
    assert!(ended.records[0].deleted && ended.records[0].value.is_empty());
    tell(&mut b, "m", &ended, 10_099);
    assert!(b.store.ranges(&routes(), &id("a"), batch.epoch).is_empty(), "not yet");
    assert_eq!((b.counters().records_unproved, b.counters().records_forged), (1, 1));
    tell(&mut b, "m", &ended, 10_100);
    assert_eq!(b.store.ranges(&routes(), &id("a"), batch.epoch), ranges);
    let mut other = ended.clone();
    other.records[0].key = "y".into();
    other.records[0].seq += 1;
    tell(&mut b, "m", &other, 10_200);
    assert_eq!(b.counters().records_forged, 2);
}

#[test]
fn two_that_differ_in_what_they_sign_compare_nothing_of_it_and_all_the_rest() {
    let ((mut a, _), (mut b, _)) = (renewable("a", Signed::All), renewable("b", Signed::None));
    for core in [&mut a, &mut b] {
        core.config.push_pull_interval = Duration::from_secs(1);
    }
    connect(&mut a, &mut b, at(0));
    wire(&mut a, &mut b, &[kind::SPREAD]).run(0, 50);
    put(&mut a, "of a", 1, 50);
    put(&mut b, "of b", 2, 50);
    wire(&mut a, &mut b, &[kind::SPREAD]).run(50, 5_000);
    assert_eq!((number(&a, "of b"), number(&b, "of a")), (None, None));
    assert_eq!(a.counters().early_syncs + b.counters().early_syncs, 0, "nor does it trouble them");
    assert_eq!(a.counters().records_unsigned, 0);
    // What is spread, a node without the demand takes; one with it does not, and does not name who never looked.
    drain(&mut a);
    put(&mut a, "x", 3, 5_000);
    put(&mut b, "y", 4, 5_000);
    wire(&mut a, &mut b, &[]).run(5_000, 5_100);
    assert_eq!((number(&b, "x"), number(&a, "y")), (Some(3), None));
    assert!(a.counters().records_unsigned > 0);
    assert_eq!(named(&mut a), [""; 0]);
}

#[test]
fn who_does_not_keep_a_type_passes_it_on_unseen_and_is_not_named_for_it() {
    let (mut a, mut b, _) = three();
    let (mut c, keys) = renewable("c", Signed::All);
    c.set_sync(&routes(), false, at(1));
    connect(&mut a, &mut c, at(1));
    connect(&mut b, &mut c, at(1));
    let mut bad = written(&mut a, "x", 5, 10);
    bad.records[0].version += 1;
    for core in [&mut b, &mut c] {
        drain(core);
    }
    let verified = keys.verified.load(SeqCst);
    c.handle_message(&id("a"), &handoff(&[&bad], 1), at(20));
    let passed = sent(&drain(&mut c)).into_iter().filter(|(to, _)| *to == id("b"));
    assert_eq!(keys.verified.load(SeqCst), verified);
    for (_, bytes) in passed {
        b.handle_message(&id("c"), &bytes, at(21));
    }
    assert_eq!((b.counters().records_forged, named(&mut b)), (1, Vec::new()));
}

#[test]
fn a_key_that_refuses_for_a_while_delays_what_is_written_and_loses_nothing() {
    let ((mut a, keys), mut b) = (renewable("a", Signed::All), signing("b"));
    connect(&mut a, &mut b, at(0));
    wire(&mut a, &mut b, &[]).run(0, 50);
    keys.refuses.store(1, SeqCst);
    put(&mut a, "x", 5, 50);
    wire(&mut a, &mut b, &[]).run(50, 3_000);
    assert_eq!((number(&a, "x"), number(&b, "x")), (Some(5), None));
    assert!(a.counters().sign_failures > 0);
    assert_eq!(b.counters().records_unsigned, 0, "it was not told unsigned");
    assert!(b.store.ranges(&routes(), &id("a"), a.local_node().epoch).is_empty(), "nor claimed to be told");
    keys.refuses.store(0, SeqCst);
    wire(&mut a, &mut b, &[]).run(3_000, 6_000);
    assert_eq!(number(&b, "x"), Some(5));
}

#[test]
fn a_lie_about_this_node_that_it_did_not_sign_does_not_drive_it_into_another_life() {
    let (mut a, _, _) = three();
    let before = a.local_node().epoch;
    let good = written(&mut a, "x", 5, 10);
    let mut lie = good.clone();
    lie.records[0].seq += 7;
    tell(&mut a, "m", &lie, 20);
    assert_eq!((a.local_node().epoch, a.counters().impersonations), (before, 0));
    assert_eq!((a.counters().records_forged, named(&mut a)), (1, vec!["m".to_owned()]));
}

#[test]
fn after_another_epoch_own_records_are_signed_under_their_new_dots() {
    let (mut a, mut b, _) = three();
    tell(&mut b, "a", &written(&mut a, "x", 5, 10), 11);
    a.begin_epoch(WALL_MS + 500, at(20));
    drain(&mut a);
    let ranges = a.store.ranges(&routes(), &id("a"), WALL_MS + 500);
    let mut batch = a.store.records_at(&routes(), &id("a"), WALL_MS + 500, &ranges, 9_999, at(30)).0.unwrap();
    assert!(a.seal(&mut batch, at(30)));
    tell(&mut b, "m", &batch, 31);
    assert_eq!((b.counters().records_accepted, b.counters().records_forged), (2, 0));
}

#[test]
fn what_is_told_anew_is_verified_though_its_dot_is_known() {
    let (mut a, mut b, _) = three();
    let batch = written(&mut a, "x", 5, 10);
    b.store.cover(&routes(), &a.store.vector(&routes()), at(20));
    let compares = |b: &mut Protocol, batch: &RecordBatch, stream: u64| {
        b.handle_stream(&id("m"), StreamId(stream), StreamInput::Opened, at(30));
        let open = Open { clock: 0, members: 0, types: Vec::new(), disabled: Vec::new() };
        let open = StreamInput::Frame(message(kind::OPEN, &open));
        b.handle_stream(&id("m"), StreamId(stream), open, at(30));
        b.expect_anew(StreamId(stream), &routes());
        let anew = StreamInput::Frame(message(kind::ANEW, batch));
        b.handle_stream(&id("m"), StreamId(stream), anew, at(30));
        b.handle_stream(&id("m"), StreamId(stream), StreamInput::Lost, at(31));
    };
    let mut bad = batch.clone();
    bad.records[0].value = Bytes::from_static(b"\x06");
    compares(&mut b, &bad, 2_001);
    assert_eq!((b.counters().records_healed, b.counters().records_forged), (0, 1));
    compares(&mut b, &batch, 2_003);
    assert_eq!((b.counters().records_healed, number(&b, "x")), (1, Some(5)));
}

#[test]
fn no_bytes_prove_a_record() {
    let (mut a, b, _) = three();
    let good = written(&mut a, "x", 5, 10);
    let cut = good.records[0].proof.clone();
    proptest!(ProptestConfig::with_cases(64), |(bytes: Vec<u8>, at in 0..cut.len(), with: u8)| {
        let mut b = b.clone();
        let mut flipped = cut.to_vec();
        flipped[at] ^= with;
        for (proof, is_good) in [(bytes, false), (cut[..at].to_vec(), false), (flipped, with == 0)] {
            let mut batch = good.clone();
            batch.records[0].proof = proof.into();
            tell(&mut b, "m", &batch, 20);
            prop_assert_eq!(number(&b, "x").is_some(), is_good);
        }
    });
}
