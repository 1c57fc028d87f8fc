//! Section 3, first half: bytes that are no message, and messages that break a bound. The sender is a member.

use bytes::Bytes;
use phalanx::{EventKind, StateType, lb::CircuitBreakers};

use crate::{
    common::{Log, id, text, until},
    peer::{Ended, Mask, Peer, end_of, wall_ms},
    process::Victim,
    wire::{self, Batch, Record, message, packet, part, raw_part},
    world::{World, name},
};

const DIGESTS: wire::Digests = (1, 2, false);
/// A node that nobody knows.
const GHOST: &str = "ghost";

fn routes() -> StateType {
    "routes".into()
}

/// One message of each kind, none of which does harm, nor if one bit of it is another.
fn one_of_each() -> Vec<Vec<u8>> {
    let dots: wire::Dots = (("routes".into(), false), GHOST.into(), 1, vec![(1, 2)]);
    let batch = Batch::new(GHOST, 1, vec![Record::new(1, "k", 1)]);
    vec![
        message(wire::PING, &(7_u64, DIGESTS)),
        message(wire::ACK, &(7_u64, DIGESTS)),
        message(wire::PING_REQ, &(7_u64, GHOST, 100_u32)),
        message(wire::NACK, &(7_u64,)),
        message(wire::REACHED, &(7_u64,)),
        message(wire::NEED_CLAIM, &(GHOST,)),
        message(wire::ACCUSATION, &(GHOST, 1_u64, 0_u64, false, GHOST)),
        message(wire::SOLICIT, &(GHOST, 1_u64, 0_u64)),
        message(wire::TOOK, &(vec![1_u64],)),
        message(wire::NEWS, &(vec![dots.clone()],)),
        message(wire::PULL, &(vec![dots],)),
        message(wire::RECORDS, &batch),
        message(wire::FORGET, &(GHOST, 1_u64, 0_u64)),
        message(wire::ASK_HELD, &(1_u64, ("routes", false), GHOST, 1_u64, 1_u64)),
        message(wire::HELD, &(1_u64,)),
        packet(&[raw_part(wire::GONE, &[])]),
        wire::spread(1, GHOST, 1, &[part(wire::RECORDS, &batch)]),
    ]
}

/// Sends datagrams at a pace at which none is lost.
async fn send_all(peer: &Peer, messages: impl IntoIterator<Item = Vec<u8>>) {
    for (number, message) in messages.into_iter().enumerate() {
        peer.send(message).await;
        if number % 40 == 39 {
            peer.settle().await;
        }
    }
    peer.settle().await;
}

/// A member that says one thing on a message stream; how that ends.
async fn says(world: &World, node: &str, bytes: &[u8]) -> Ended {
    let peer = world.peer(node).await;
    let _kept = peer.say(bytes).await;
    peer.end().await
}

#[tokio::test]
async fn w01_what_is_cut_or_flipped_is_dropped_by_datagram_and_ends_a_stream() {
    let world = World::new().await;
    let peer = world.peer("a-cutter").await;
    let counted = || world.stats().gossip.counters.malformed;
    let before = counted();
    let whole = one_of_each();
    send_all(&peer, whole.clone()).await;
    assert_eq!(counted(), before, "whole they can be read");
    // Cut after the version byte it has no parts, which is a message; cut anywhere else it is none.
    let cuts = whole.iter().flat_map(|whole| (0..whole.len()).map(|cut| whole[..cut].to_vec()));
    send_all(&peer, cuts).await;
    let bad: usize = whole.iter().map(|whole| whole.len() - 1).sum();
    assert_eq!(counted() - before, bad as u64);
    let flips = whole.iter().flat_map(|whole| {
        (0..whole.len() * 8).map(|bit| {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            flipped
        })
    });
    send_all(&peer, flips).await;
    let flipped = counted() - before - bad as u64;
    assert!(flipped > 1_000, "only {flipped} were bad");
    assert!(peer.is_open(), "a datagram closes nothing: {:?}", peer.connection.close_reason());
    let before = counted();
    for (number, cut) in [0, 2, 5].into_iter().enumerate() {
        let ended = says(&world, &format!("a-stream-{number}"), &whole[0][..cut]).await;
        assert_eq!((ended.code, ended.by_application), (0x20, true), "{ended:?}");
    }
    assert_eq!(counted(), before + 3);
    until("each is counted", || world.closed("protocol-violation") == 3).await;
    assert_eq!(world.victim().get(&routes(), "k").map(|record| record.version), Some(1));
    world.is_unharmed().await;
}

#[tokio::test]
async fn w02_a_length_over_the_limit_is_refused_before_anything_is_allocated() {
    let world = World::new().await;
    let claims = [1_u32 << 31, u32::MAX, (1 << 20) + 1];
    for (number, claim) in claims.into_iter().enumerate() {
        let bytes = [&claim.to_be_bytes()[..], b"abc"].concat();
        for kind in [wire::MESSAGES, wire::EXCHANGE] {
            let peer = world.peer(&format!("a-{number}-{kind}")).await;
            let _kept = peer.stream(kind, &bytes).await;
            let ended = peer.end().await;
            assert_eq!(ended.code, 0x22, "{ended:?}");
            assert!(ended.reason.contains(&format!("a frame of {claim} bytes")), "{ended:?}");
        }
        let connection = world.mask("a-hello").connect(world.door()).await;
        let _kept = Mask::say(&connection, &[&[wire::HELLO], &bytes[..]].concat()).await;
        assert_eq!(end_of(&connection).await.code, 0x22);
    }
    until("each is counted", || world.closed("too-large") == 6 && world.refused("too-large") == 3).await;
    assert_eq!(world.stats().net.frames_too_large, 6);
    // Nothing at all is not too large, but it is no message either.
    let ended = says(&world, "a-nothing", &[]).await;
    assert_eq!((ended.code, ended.reason.as_str()), (0x20, "empty"));
    world.is_unharmed().await;
}

#[tokio::test]
async fn w03_claims_of_four_billion_elements_cost_nothing() {
    let mut victim = Victim::start().await;
    let mask = |victim: &Victim, node: &str| Mask::new(node, victim.mint.certificate(&name(node), |_| {}));
    let peer = mask(&victim, "a-claimer").join(victim.address).await;
    let claims: [&[u8]; 5] = [
        b"\xdd\xff\xff\xff\xff\0\0\0",
        b"\xdf\xff\xff\xff\xff\0\0\0",
        b"\xc6\xff\xff\xff\xff\0\0\0",
        b"\xdb\xff\xff\xff\xff\0\0\0",
        b"\xc9\xff\xff\xff\xff\x01\0\0",
    ];
    let mut bad = Vec::new();
    for kind in (wire::PING..=wire::HELD).filter(|kind| *kind != wire::SPREAD) {
        for claim in claims {
            bad.push(packet(&[raw_part(kind, claim)]));
            // And where a list is expected.
            bad.push(packet(&[raw_part(kind, &[b"\x91", claim].concat())]));
        }
    }
    for claim in claims {
        bad.push(packet(&[raw_part(wire::SPREAD, &[&wire::varint(claim.len()), claim].concat())]));
    }
    send_all(&peer, bad.clone()).await; // whatever is made once is made now
    let (before, counted) = (victim.memory(), victim.count("/gossip/malformed").await);
    assert_eq!(counted, bad.len() as u64);
    for _ in 0..10 {
        send_all(&peer, bad.clone()).await;
    }
    let grown = victim.memory().saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes");
    assert_eq!(victim.count("/gossip/malformed").await, 11 * bad.len() as u64);
    for (number, kind) in [wire::OPEN, wire::WANTS, wire::COVERS].into_iter().enumerate() {
        let peer = mask(&victim, &format!("a-sync-{number}")).join(victim.address).await;
        let frame = wire::frame(&packet(&[raw_part(kind, claims[0])]));
        let _kept = peer.stream(wire::EXCHANGE, &frame).await;
        assert_eq!(peer.end().await.code, 0x20);
    }
    let connection = mask(&victim, "a-hello").connect(victim.address).await;
    let hello = [&[wire::HELLO][..], &wire::frame(claims[0])].concat();
    let _kept = Mask::say(&connection, &hello).await;
    let ended = end_of(&connection).await;
    assert_eq!((ended.code, ended.reason.as_str()), (0x20, "a malformed hello: it claims more than follows"));
    victim.is_unharmed(before, 8 << 20).await;
}

fn nested(with: &[u8], depth: usize) -> Bytes {
    [with.repeat(depth), vec![0xc0]].concat().into()
}

/// What encloses one value: an array, a map, a variant by its name.
const SHELLS: [&[u8]; 3] = [b"\x91", b"\x81\x00", b"\x81\xa1A"];

#[tokio::test]
async fn w04_nesting_beyond_the_limit_is_refused_without_stack() {
    let world = World::new().await;
    let peer = world.peer("a-deep").await;
    let epoch = peer.mask.epoch;
    let mut seq = 0;
    let mut write = |value: Bytes| {
        seq += 1;
        let record = Record { value, ..Record::new(seq, &format!("deep-{seq}"), 1) };
        message(wire::RECORDS, &Batch::new("a-deep", epoch, vec![record]))
    };
    let counters = || world.stats().gossip.counters;
    let before = counters();
    // Small ones by datagram, large ones on the stream.
    let small = SHELLS.map(|shell| write(nested(shell, 33)));
    send_all(&peer, small).await;
    let (mut send, _recv) = peer.stream(wire::MESSAGES, &[]).await;
    let mut refused = 3;
    for shell in SHELLS {
        for depth in [1_025, 80_000] {
            refused += 1;
            send.write_all(&wire::frame(&write(nested(shell, depth)))).await.unwrap();
        }
    }
    until("each is counted", || counters().records_refused == before.records_refused + refused).await;
    let good = SHELLS.map(|shell| write(nested(shell, 32)));
    send_all(&peer, good).await;
    assert_eq!(counters().records_accepted, before.records_accepted + 3, "the limit itself is allowed");
    assert!(peer.is_open());
    // A message of a million levels, and a hello.
    for (number, shell) in SHELLS.into_iter().enumerate() {
        let body = nested(shell, 1_000_000 / shell.len());
        let ended = says(&world, &format!("a-{number}"), &packet(&[raw_part(wire::PING, &body)])).await;
        assert_eq!((ended.code, ended.reason.as_str()), (0x20, "it nests deeper than 32 levels"));
        let connection = world.mask("a-hello").connect(world.door()).await;
        let hello = [&[wire::HELLO][..], &wire::frame(&nested(shell, 10_000))].concat();
        let _kept = Mask::say(&connection, &hello).await;
        assert_eq!(end_of(&connection).await.code, 0x20);
    }
    world.is_unharmed().await;
}

#[tokio::test]
async fn w05_more_bytes_and_double_fields_are_refused_and_wide_numbers_are_not() {
    let world = World::new().await;
    let peer = world.peer("a-sloppy").await;
    let before = world.stats().gossip.counters.malformed;
    let trailing = [wire::encode(&(7_u64, DIGESTS)), vec![0xc0]].concat();
    let twice = b"\x83\xa3seq\x01\xa7digests\x93\x01\x02\xc2\xa3seq\x02";
    send_all(&peer, [trailing, twice.to_vec()].map(|body| packet(&[raw_part(wire::PING, &body)]))).await;
    assert_eq!(world.stats().gossip.counters.malformed, before + 2);
    // Numbers in more bytes than they need, and a struct by the names of its fields: both mean what they say.
    let acks = peer.count(wire::ACK);
    let wide = b"\x92\xcf\0\0\0\0\0\0\0\x05\x93\xcd\0\x01\xce\0\0\0\x02\xc2";
    let named = b"\x82\xa3seq\x06\xa7digests\x93\x01\x02\xc2";
    send_all(&peer, [&wide[..], named].map(|body| packet(&[raw_part(wire::PING, body)]))).await;
    let answered = |number: u64| {
        let heard = peer.heard.lock().unwrap();
        heard
            .iter()
            .flat_map(|bytes| wire::parts(bytes))
            .any(|(kind, body)| kind == wire::ACK && wire::decode::<(u64, wire::Digests)>(&body).0 == number)
    };
    assert!(peer.count(wire::ACK) > acks && answered(5) && answered(6));
    assert_eq!(world.stats().gossip.counters.malformed, before + 2);
    world.is_unharmed().await;
}

#[tokio::test]
async fn w06_what_a_later_version_says_is_skipped_where_it_may_be_and_refused_where_not() {
    let world = World::new().await;
    let peer = world.peer("a-later").await;
    let before = world.stats().gossip.counters;
    let optional = packet(&[raw_part(200, b"hi"), part(wire::PING, &(7_u64, DIGESTS)), raw_part(128, b"")]);
    send_all(&peer, [optional.clone(), vec![255, 1, 0], packet(&[raw_part(99, b"")])]).await;
    let after = world.stats().gossip.counters;
    assert_eq!(after.parts_skipped - before.parts_skipped, 2);
    assert_eq!(after.malformed - before.malformed, 2);
    let ended = says(&world, "a-version", &[255, 1, 0]).await;
    assert_eq!((ended.code, ended.reason.as_str()), (0x20, "a packet version this build does not speak"));
    let ended = says(&world, "a-kind", &packet(&[raw_part(99, b"")])).await;
    assert!(ended.code == 0x20 && ended.reason.contains("may not skip"), "{ended:?}");
    // A kind of stream that it does not know costs only that stream.
    let (send, _recv) = peer.stream(99, b"x").await;
    assert_eq!(crate::peer::stopped(&send).await, Some(0x20));
    assert_eq!(world.stats().net.streams_refused, 1);
    for versions in [(2, 3), (0, 0), (3, 2)] {
        let mask = world.mask("a-new");
        let hello = wire::Introduction { versions, ..mask.introduction() };
        let ended = mask.introduce(world.door(), &hello).await.expect_err("no common version");
        let (min, max) = versions;
        assert_eq!(ended.code, 0x21, "{ended:?}");
        assert!(
            ended.reason.contains(&format!("{min} to {max} of the one, 1 to 1 of the other")),
            "{ended:?}"
        );
    }
    until("each is counted", || world.refused("version-unsupported") == 3).await;
    assert!(peer.is_open());
    world.is_unharmed().await;
}

#[tokio::test]
async fn w07_names_that_are_none_are_refused_and_odd_ones_kept_as_they_are() {
    let world = World::new().await;
    let peer = world.peer("a-namer").await;
    let epoch = peer.mask.epoch;
    let write = |seq, of: &str, key: &str| {
        let batch = Batch::new("a-namer", epoch, vec![Record::new(seq, key, 1)]);
        message(wire::RECORDS, &Batch { state_type: (of.into(), false), ..batch })
    };
    let before = world.stats().gossip.counters;
    // No text at all: not even a record.
    let no_text = |bytes: Vec<u8>| {
        let at = bytes.windows(4).position(|four| four == b"HERE").unwrap();
        [&bytes[..at], b"\xff\xfe\xc0\x80", &bytes[at + 4..]].concat()
    };
    let texts = [write(1, "routes", "HERE"), write(1, "HERE", "k")].map(no_text);
    let ids = ["a b", "", "..", "a/b", "\u{202e}a", &"x".repeat(129)]
        .map(|node| message(wire::PING_REQ, &(7_u64, node, 100_u32)));
    let bad = texts.len() + ids.len();
    send_all(&peer, texts.into_iter().chain(ids)).await;
    let after = world.stats().gossip.counters;
    assert_eq!(after.malformed - before.malformed, bad as u64);
    // Text, but no key or no name of a type.
    let long = "k".repeat(513);
    let refused = [write(1, "routes", ""), write(2, "routes", &long), write(3, "", "k")];
    let types = ["t".repeat(65), "a\nb".into(), "a\0".into()];
    let types = types.iter().map(|of| write(4, of, "k"));
    let count = (refused.len() + types.len()) as u64;
    send_all(&peer, refused.into_iter().chain(types)).await;
    let after = world.stats().gossip.counters;
    assert_eq!(after.records_refused - before.records_refused, count);
    assert_eq!(after.records_accepted, before.records_accepted);
    // Any text is a key.
    let odd = ["\0", "a\nb", "\u{202e}gpj.exe", "\u{1f980}", "\u{1b}[31m", &"k".repeat(512)];
    let writes = odd.iter().zip(10..).map(|(key, seq)| write(seq, "routes", key));
    send_all(&peer, writes).await;
    for key in odd {
        let here = || text(world.victim(), &routes(), key).as_deref() == Some("bad");
        until("it is stored as it is", here).await;
        until("and passed on", || text(&world.nodes[1], &routes(), key).as_deref() == Some("bad")).await;
    }
    world.is_unharmed().await;
}

#[tokio::test]
async fn w08_numbers_that_are_none_are_kept_as_bytes_and_shown_by_no_table() {
    let world = World::new().await;
    let peer = world.peer("a-number").await;
    let epoch = peer.mask.epoch;
    let circuits = CircuitBreakers::attach(world.victim()).unwrap();
    let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e300];
    for (number, seq) in numbers.into_iter().zip(1..) {
        let key = format!("n{seq}");
        let plain = Record { value: wire::encode(&number).into(), ..Record::new(seq, &key, 1) };
        let breaker = b"\x83\xa5state\xa4open\xaaerror_rate";
        let value = [&breaker[..], &wire::encode(&number), b"\xa9period_ms\xcd\xff\xff"].concat();
        let breaker = Record { value: value.into(), ..Record::new(seq, &key, 1) };
        let breakers = Batch::new("a-number", epoch, vec![breaker]);
        let breakers = Batch { state_type: ("circuit-breaker".into(), true), ..breakers };
        send_all(
            &peer,
            [
                message(wire::RECORDS, &Batch::new("a-number", epoch, vec![plain])),
                message(wire::RECORDS, &breakers),
            ],
        )
        .await;
        until("it is kept", || world.victim().get(&routes(), &key).is_some()).await;
        let kept = world.victim().get(&routes(), &key).unwrap().value.decode::<f64>().unwrap();
        assert_eq!(kept.to_bits(), number.to_bits());
    }
    until("each is left out", || circuits.unreadable() == 5).await;
    for seq in 1..=5 {
        let view = circuits.view(format!("n{seq}"));
        assert!((0.0..=1.0).contains(&view.error_rate), "{view:?}");
        assert!(view.opinions.is_empty(), "{view:?}");
    }
    world.is_unharmed().await;
}

// Scale: 5 000 times for a million; and not a day later, but the same batch under another hand-off.
#[tokio::test]
async fn w09_a_record_told_again_and_again_is_told_to_nobody_else() {
    let world = World::new().await;
    let peer = world.peer("a-parrot").await;
    let log = Log::of(world.victim());
    let before = world.stats().gossip.counters;
    let batch = Batch::new("a-parrot", peer.mask.epoch, vec![Record::new(1, "again", 1)]);
    send_all(&peer, std::iter::repeat_n(message(wire::RECORDS, &batch), 5_000)).await;
    let spreads = (1..=100).map(|number| wire::spread(number, "a-parrot", 1, &[part(wire::RECORDS, &batch)]));
    send_all(&peer, spreads).await;
    let after = world.stats().gossip.counters;
    assert_eq!(after.records_accepted - before.records_accepted, 1);
    assert!(after.records_known - before.records_known >= 5_000, "{after:?}");
    let changes = log.kinds().iter().filter(|kind| **kind == EventKind::StateChanged).count();
    assert_eq!(changes, 1);
    assert_eq!(world.victim().get(&routes(), "again").unwrap().source_node, id("a-parrot"));
    world.is_unharmed().await;
}

#[tokio::test]
async fn w10_a_version_from_the_future_is_refused_and_one_at_the_bound_is_beaten_by_the_next_write() {
    let world = World::new().await;
    let write = |peer: &Peer, seq, key: &str, version| {
        let batch = Batch::new(peer.name(), peer.mask.epoch, vec![Record::new(seq, key, version)]);
        message(wire::RECORDS, &batch)
    };
    let counters = || world.stats().gossip.counters;
    let before = counters();
    for (node, version) in
        [("a-max", u64::MAX), ("a-far", wire::version_bound(wall_ms() + 2 * 3_600 * 1_000))]
    {
        let peer = world.peer(node).await;
        peer.send(write(&peer, 1, "future", version)).await;
        let ended = peer.end().await;
        assert_eq!(ended.code, 0x20, "{ended:?}");
        assert!(ended.reason.contains("a version that no clock"), "{ended:?}");
    }
    assert_eq!(counters().violations - before.violations, 2);
    // A little beyond is refused too, but an honest node whose clock is ahead may have written it.
    let peer = world.peer("a-bit").await;
    send_all(&peer, [write(&peer, 1, "future", wire::version_bound(wall_ms() + 60_000))]).await;
    assert_eq!(counters().records_refused - before.records_refused, 3);
    assert!(peer.is_open() && world.victim().get(&routes(), "future").is_none());
    send_all(&peer, [write(&peer, 2, "bound", wire::version_bound(wall_ms()))]).await;
    for node in &world.nodes {
        until("the last that may be is there", || text(node, &routes(), "bound").as_deref() == Some("bad"))
            .await;
    }
    world.nodes[1].broadcast(routes(), "bound", &"honest").unwrap();
    for node in &world.nodes {
        until("the next write wins", || text(node, &routes(), "bound").as_deref() == Some("honest")).await;
    }
    world.is_unharmed().await;
}
