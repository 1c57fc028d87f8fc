//! Section 3, second half: what is well formed and not so. The sender is a member.

use std::time::{Duration, Instant};

use phalanx::{EventKind, NodeInfo, StateType};

use crate::{
    common::{Log, id, text, until},
    peer::{Peer, end_of, read_frame, wall_ms},
    wire::{self, Batch, ClaimBody, Record, message, packet, part},
    world::World,
};

const DIGESTS: wire::Digests = (0, 0, false);

fn routes() -> StateType {
    "routes".into()
}

fn kept() -> StateType {
    "kept".into()
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

fn accuse(whom: &str, epoch: u64, incarnation: u64, dead: bool, accuser: &str) -> Vec<u8> {
    message(wire::ACCUSATION, &(whom, epoch, incarnation, dead, accuser))
}

fn life(world: &World, node: &str) -> NodeInfo {
    world.victim().all_nodes()[&id(node)].clone()
}

fn all_alive(world: &World) -> bool {
    world.nodes.iter().all(|node| node.is_alive(&id("n0")) && node.is_alive(&id("n1")))
}

#[tokio::test]
async fn w12_lives_beyond_all_time_are_ignored_and_counted() {
    let world = World::new().await;
    let peer = world.peer("a-future").await;
    let counters = || world.stats().gossip.counters;
    let before = counters();
    let bodies = [(u64::MAX, 0), (wall_ms() + 25 * 3_600 * 1_000, 0), (peer.mask.epoch, u64::MAX)];
    let claims = bodies.map(|(epoch, incarnation)| {
        message(wire::CLAIM, &peer.mask.sign(&ClaimBody { epoch, incarnation, ..peer.mask.body() }))
    });
    send_all(&peer, claims).await;
    assert_eq!(counters().claims_refused - before.claims_refused, 3);
    let accusations = ["n0", "n1"].into_iter().flat_map(|node| {
        let epoch = life(&world, node).epoch;
        [(u64::MAX, 0), (u64::MAX, u64::MAX), (epoch, u64::MAX)]
            .into_iter()
            .flat_map(move |(epoch, incarnation)| [true, false].map(|dead| (epoch, incarnation, dead)))
            .map(move |(epoch, incarnation, dead)| accuse(node, epoch, incarnation, dead, "a-future"))
    });
    send_all(&peer, accusations).await;
    assert_eq!(counters().accusations_ignored - before.accusations_ignored, 12);
    assert_eq!((counters().refutations, life(&world, "n0").incarnation), (before.refutations, 0));
    let own = life(&world, "a-future");
    assert_eq!((own.epoch, own.incarnation), (peer.mask.epoch, 0), "of itself it is not believed either");
    assert!(all_alive(&world));
    world.is_unharmed().await;
}

#[tokio::test]
async fn w14_a_record_of_another_in_a_batch_of_its_own_ends_the_connection() {
    let world = World::new().await;
    let peer = world.peer("a-forger").await;
    let epoch = life(&world, "n1").epoch;
    let batch = Batch::new("n1", epoch, vec![Record::new(77, "forged", 5)]);
    let before = world.stats().gossip.counters.violations;
    peer.send(wire::spread(1, "a-forger", peer.mask.epoch, &[part(wire::RECORDS, &batch)])).await;
    let ended = peer.end().await;
    assert!(ended.code == 0x20 && ended.reason.contains("a record of another node"), "{ended:?}");
    assert_eq!(world.stats().gossip.counters.violations, before + 1);
    until("it is counted", || world.closed("protocol-violation") == 1).await;
    world.is_unharmed().await;
    assert!(world.nodes.iter().all(|node| node.get(&routes(), "forged").is_none()));
}

#[tokio::test]
async fn w15_a_record_forged_on_the_way_is_outlived_by_the_node_it_names() {
    let world = World::new().await;
    let peer = world.peer("a-relay").await;
    let node = &world.nodes[1];
    let log = Log::of(node);
    let epoch = life(&world, "n1").epoch;
    node.broadcast(routes(), "mine", &"true").unwrap();
    until("it is here", || text(world.victim(), &routes(), "mine").is_some()).await;
    let record = Record::new(1_000, "mine", wire::version_bound(wall_ms()) - (1 << 30));
    send_all(&peer, [message(wire::RECORDS, &Batch::new("n1", epoch, vec![record]))]).await;
    let begun = Instant::now();
    until("it hears of what it has not written", || node.stats().gossip.counters.impersonations >= 1).await;
    until("it says so", || log.told(EventKind::NodeConflict, "n1") >= 1).await;
    until("all know its new life", || life(&world, "n1").epoch > epoch).await;
    // All hold the same again, and what it writes now counts.
    until("all are equal", || text(world.victim(), &routes(), "mine") == text(node, &routes(), "mine")).await;
    node.broadcast(routes(), "mine", &"true again").unwrap();
    until("it has the last word", || {
        world.nodes.iter().all(|node| text(node, &routes(), "mine").as_deref() == Some("true again"))
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(20));
    world.is_unharmed().await;
}

#[tokio::test]
async fn w17_nobody_forgets_or_covers_what_another_has_written() {
    let world = World::new().await;
    let peer = world.peer("a-wiper").await;
    let node = &world.nodes[1];
    let info = life(&world, "n1");
    // A live member cannot be forgotten; a goodbye that it has not signed is none.
    let forget = message(wire::FORGET, &("n1", info.epoch, info.incarnation + 1));
    let left = ClaimBody {
        node_id: "n1".into(),
        epoch: info.epoch,
        incarnation: info.incarnation + 1,
        left: true,
        ..peer.mask.body()
    };
    let before = world.stats().gossip.counters.claims_forged;
    send_all(&peer, [forget, message(wire::CLAIM, &peer.mask.sign(&left))]).await;
    assert_eq!(world.stats().gossip.counters.claims_forged, before + 1);
    assert!(world.victim().is_alive(&id("n1")));
    // All its dots to come are said to be known, tombstones too: it begins a new life, and they count.
    let everything: wire::Dots = (("kept".into(), false), "n1".into(), info.epoch, vec![(1, 1 << 62)]);
    let open =
        message(wire::OPEN, &(0_u64, 0_u64, vec![(("kept", false), 1_u64)], Vec::<(String, bool)>::new()));
    let covers = message(wire::COVERS, &(vec![everything], vec![u64::MAX]));
    let (mut send, mut recv) = peer.stream(wire::EXCHANGE, &wire::frame(&open)).await;
    send.write_all(&wire::frame(&covers)).await.unwrap();
    assert!(read_frame(&mut recv).await.is_some());
    node.broadcast(kept(), "later", &"still").unwrap();
    until("what it writes later arrives", || text(world.victim(), &kept(), "later").is_some()).await;
    assert!(node.stats().gossip.counters.impersonations >= 1, "nobody noticed: nothing was shown");
    assert_eq!(text(world.victim(), &kept(), "good").as_deref(), Some("data"));
    world.is_unharmed().await;
}

// Scale: 6 rounds; 3 000 accusations in the last.
#[tokio::test]
async fn w19_who_calls_everybody_dead_buries_nobody() {
    let world = World::new().await;
    let peer = world.peer("a-undertaker").await;
    let counters = || world.stats().gossip.counters;
    let before = counters();
    let round = || {
        let of = |node: &'static str| {
            let info = life(&world, node);
            ["n0", "n1", "a-undertaker"].map(|by| accuse(node, info.epoch, info.incarnation, true, by))
        };
        [of("n0"), of("n1")].concat()
    };
    for _ in 0..5 {
        send_all(&peer, round()).await;
        tokio::time::sleep(Duration::from_millis(200)).await; // a tick
        assert!(all_alive(&world) || world.victim().is_suspected(&id("n1")));
    }
    let probes = counters().probes + counters().self_checks - before.probes - before.self_checks;
    assert!(probes < 30, "{probes} probes");
    let many = std::iter::repeat_with(round).take(500).flatten();
    send_all(&peer, many).await;
    assert!(counters().accusations_ignored - before.accusations_ignored >= 500, "{:?}", counters());
    assert!(peer.is_open());
    until("all are alive to all", || all_alive(&world)).await;
    assert_eq!(world.told(EventKind::NodeDead, "n1") + world.told(EventKind::NodeDead, "n0"), 0);
    world.is_unharmed_but_for(&[EventKind::NodeSuspect]).await;
}

// Scale: 5 000 as fast as they go, for 100 000/s.
#[tokio::test]
async fn w20_who_suspects_this_node_without_end_makes_it_neither_loud_nor_ill() {
    let world = World::new().await;
    let peer = world.peer("a-doubter").await;
    let counters = || world.stats().gossip.counters;
    let before = counters();
    let begun = Instant::now();
    let suspicions = std::iter::repeat_with(|| {
        let info = life(&world, "n0");
        accuse("n0", info.epoch, info.incarnation, false, "a-doubter")
    });
    send_all(&peer, suspicions.take(5_000)).await;
    let ticks = 2 + begun.elapsed().as_millis() / 200;
    let refuted = counters().refutations - before.refutations;
    assert!(refuted >= 1 && u128::from(refuted) <= ticks, "{refuted} refutations in {ticks} ticks");
    assert!(counters().health_score <= before.health_score.max(1), "one teller has made it doubt itself");
    assert!(counters().accusations_ignored > before.accusations_ignored);
    world.is_unharmed().await;
}

// Scale: 1 000 ghosts for a million.
#[tokio::test]
async fn w21_invented_members_are_neither_believed_nor_dialled() {
    let world = World::new().await;
    let peer = world.peer("a-inventor").await;
    let (door, other) = (world.door(), world.nodes[1].local_node().address);
    let addresses = [
        door,
        other,
        "127.0.0.1:7946".parse().unwrap(),
        "255.255.255.255:7946".parse().unwrap(),
        "224.0.0.1:1".parse().unwrap(),
        "127.0.0.1:0".parse().unwrap(),
    ];
    let before = world.stats();
    let ghosts = (0..1_000).map(|number| {
        let body = ClaimBody {
            node_id: format!("ghost-{number}"),
            address: addresses[number % addresses.len()],
            ..peer.mask.body()
        };
        message(wire::CLAIM, &peer.mask.sign(&body))
    });
    let ghosts: Vec<_> = ghosts.collect();
    send_all(&peer, ghosts).await;
    let after = world.stats();
    assert_eq!(after.gossip.counters.claims_forged - before.gossip.counters.claims_forged, 1_000);
    assert_eq!(after.net.dials, before.net.dials);
    assert!(world.nodes.iter().all(|node| node.all_nodes().len() == 3));
    // Of itself it may say any address, and nobody is dialled without end for it.
    for (number, address) in addresses.into_iter().enumerate() {
        let body = ClaimBody { incarnation: 1 + number as u64, address, ..peer.mask.body() };
        send_all(&peer, [message(wire::CLAIM, &peer.mask.sign(&body))]).await;
        until("it is believed of itself", || life(&world, "a-inventor").address == address).await;
        assert!(all_alive(&world));
    }
    assert_eq!(world.victim().local_node().address, door);
    let dials: u64 = world.nodes.iter().map(|node| node.stats().net.dials).sum();
    assert!(dials < 40, "{dials} dials");
    world.is_unharmed().await;
}

// Scale: 3 000 requests for 10 000.
#[tokio::test]
async fn w22_nobody_is_pinged_for_another_without_end_and_strangers_not_at_all() {
    let world = World::new().await;
    let peer = world.peer("a-reflector").await;
    let counters = || world.stats().gossip.counters;
    let before = counters();
    let strangers = (0..200).map(|number| message(wire::PING_REQ, &(number, format!("s{number}"), 10_u32)));
    send_all(&peer, strangers).await;
    assert_eq!(counters().helps_refused - before.helps_refused, 200);
    assert_eq!(peer.count(wire::NACK), 200, "each is told so");
    let (before, pinged) = (counters(), world.nodes[1].stats().net.datagrams_received);
    let begun = Instant::now();
    send_all(&peer, (0..3_000_u64).map(|number| message(wire::PING_REQ, &(number, "n1", 10_u32)))).await;
    // Two thousand at once, and 200 a second.
    let may = 2_000 + u64::try_from(begun.elapsed().as_millis()).unwrap() / 5 + 1;
    let refused = counters().helps_refused - before.helps_refused;
    assert!(refused > 0 && 3_000 - refused <= may, "{refused} refused, {may} were due");
    let pinged = world.nodes[1].stats().net.datagrams_received - pinged;
    assert!(pinged < may + 100, "the victim of it had {pinged} datagrams");
    assert!(peer.is_open());
    world.is_unharmed().await;
}

#[tokio::test]
async fn w23_answers_to_nothing_are_ignored_and_keep_nobody_alive() {
    let world = World::new().await;
    let (peer, silent) = (world.peer("a-false").await, world.peer("a-silent").await);
    let counters = || world.stats().gossip.counters;
    let before = counters();
    let false_answers = (0..50_u64).flat_map(|number| {
        [
            message(wire::ACK, &(number * 1_000_003, DIGESTS)),
            message(wire::NACK, &(number * 1_000_003,)),
            message(wire::REACHED, &(number * 1_000_003,)),
        ]
    });
    send_all(&peer, false_answers).await;
    // An ack of a ping of the victim's own, told twice, is one more.
    assert!((149..=152).contains(&(counters().answers_ignored - before.answers_ignored)), "{:?}", counters());
    // One that answers nobody is found out, whatever another says in its place.
    silent.connection.close(0_u32.into(), b"");
    silent.mask.endpoint.close(0_u32.into(), b"");
    let log = Log::of(world.victim());
    let begun = Instant::now();
    while log.told(EventKind::NodeSuspect, "a-silent") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "false answers have kept it alive");
        let guesses = (0..200_u64)
            .flat_map(|seq| [message(wire::REACHED, &(seq,)), message(wire::ACK, &(seq, DIGESTS))]);
        send_all(&peer, guesses).await;
    }
    world.is_unharmed().await;
}

// Scale: 1 000 types for a million.
#[tokio::test]
async fn w24_types_are_kept_by_name_by_switch_and_up_to_a_number() {
    let world = World::with(|config| config.sync_health = false).await;
    let peer = world.peer("a-typist").await;
    let epoch = peer.mask.epoch;
    let write = |of: &str, per_node| {
        let batch = Batch::new("a-typist", epoch, vec![Record::new(1, "k", 1)]);
        message(wire::RECORDS, &Batch { state_type: (of.into(), per_node), ..batch })
    };
    // What the proof of health needs, before there is no room for it.
    world.nodes[1].broadcast("proof", "first", &1).unwrap();
    until("it is here", || world.victim().get(&"proof".into(), "first").is_some()).await;
    let before = world.stats().gossip.counters;
    send_all(&peer, [write("health", true)]).await;
    let after = world.stats().gossip.counters;
    assert_eq!(after.records_accepted, before.records_accepted);
    assert_eq!(after.records_held, before.records_held, "a type that is switched off is not kept");
    let (mut send, _recv) =
        peer.stream(wire::MESSAGES, &wire::frame(&write(&"t".repeat(10_240), false))).await;
    until("a long name is refused", || {
        world.stats().gossip.counters.records_refused == before.records_refused + 1
    })
    .await;
    send.write_all(&wire::frame(&write("t-0", false))).await.unwrap();
    send_all(&peer, (1..1_000).map(|number| write(&format!("t-{number}"), false))).await;
    let after = world.stats().gossip.counters;
    let accepted = after.records_accepted - before.records_accepted;
    assert!(accepted <= 256, "{accepted} types");
    assert_eq!(after.records_refused - before.records_refused + accepted, 1_001);
    assert!(peer.is_open());
    world.is_unharmed().await;
}

#[tokio::test]
async fn w26_exchanges_are_bounded_in_number_in_time_and_in_what_they_bring() {
    let world = World::new().await;
    let peer = world.peer("a-syncer").await;
    let counters = || world.stats().gossip.counters;
    let nothing = Vec::<(String, bool)>::new();
    let open = message(wire::OPEN, &(0_u64, 0_u64, vec![(("routes", false), 1_u64)], &nothing));
    // Of one peer there is one at a time: of seven at once, six are refused.
    let before = counters();
    let (mut send, mut recv) = peer.stream(wire::EXCHANGE, &wire::frame(&open)).await;
    assert!(read_frame(&mut recv).await.is_some(), "its own opening");
    let mut refused = Vec::new();
    for _ in 0..6 {
        refused.push(peer.stream(wire::EXCHANGE, &wire::frame(&open)).await);
    }
    until("six are refused", || counters().exchanges_refused == before.exchanges_refused + 6).await;
    drop(refused);
    // More than was asked for, and another's records: taken by the rules of any record.
    let own = Batch::new("a-syncer", peer.mask.epoch, vec![Record::new(1, "own", 1), Record::new(2, "", 1)]);
    let others = Batch::new("ghost", 5, vec![Record::new(1, "ghosts", 1)]);
    let frame = packet(&[part(wire::RECORDS, &own), part(wire::RECORDS, &others)]);
    send.write_all(&wire::frame(&frame)).await.unwrap();
    until("what is valid is taken", || text(world.victim(), &routes(), "ghosts").is_some()).await;
    assert_eq!(counters().records_refused, before.records_refused + 1);
    // Then it says nothing more: after ten seconds the exchange is given up.
    let stalled = counters().exchanges_stalled;
    until("it is given up", || counters().exchanges_stalled > stalled).await;
    while read_frame(&mut recv).await.is_some() {}
    assert!(text(world.victim(), &routes(), "own").is_some(), "what arrived counts");
    // What does not belong there ends the connection, as does an opening told twice.
    let (mut send, _recv) = peer.stream(wire::EXCHANGE, &wire::frame(&open)).await;
    send.write_all(&wire::frame(&open)).await.unwrap();
    assert_eq!(peer.end().await.code, 0x20);
    let peer = world.peer("a-stray").await;
    let ping = message(wire::PING, &(7_u64, DIGESTS));
    let _kept = peer.stream(wire::EXCHANGE, &wire::frame(&ping)).await;
    assert_eq!(peer.end().await.code, 0x20);
    world.is_unharmed().await;
}

#[tokio::test]
async fn w27_a_second_hello_and_words_before_the_welcome_end_the_connection() {
    let world = World::new().await;
    let received = || world.stats().gossip.counters;
    let peer = world.peer("a-twice").await;
    let hello = wire::frame(&wire::encode(&peer.mask.introduction()));
    let _kept = peer.stream(wire::HELLO, &hello).await;
    let ended = peer.end().await;
    assert_eq!((ended.code, ended.reason.as_str()), (0x20, "a second hello"));
    // Before its welcome: a message, a datagram, a stream besides the hello's.
    let write = message(wire::RECORDS, &Batch::new("a-early", 1, vec![Record::new(1, "early", 1)]));
    let mask = world.mask("a-early");
    let before = received().records_accepted;
    let connection = mask.connect(world.door()).await;
    let _kept =
        crate::peer::Mask::say(&connection, &[&[wire::MESSAGES], &wire::frame(&write)[..]].concat()).await;
    let ended = end_of(&connection).await;
    assert_eq!((ended.code, ended.reason.as_str()), (0x20, "the first stream is no hello"));
    let hello = [&[wire::HELLO], &wire::frame(&wire::encode(&mask.introduction()))[..]].concat();
    for by_stream in [false, true] {
        let connection = mask.connect(world.door()).await;
        let mut streams = Vec::new();
        // The hello's stream is opened first and ends last.
        let (mut send, _recv) = crate::peer::Mask::say(&connection, &hello[..9]).await;
        if by_stream {
            let said = [&[wire::MESSAGES], &wire::frame(&write)[..]].concat();
            streams.push(crate::peer::Mask::say(&connection, &said).await);
        } else {
            connection.send_datagram_wait(write.clone().into()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await; // both are there before the rest of the hello
        send.write_all(&hello[9..]).await.unwrap();
        let ended = end_of(&connection).await;
        assert_eq!((ended.code, ended.reason.as_str()), (0x20, "it did not wait for the welcome"));
    }
    until("each is counted", || world.refused("protocol-violation") == 3).await;
    assert_eq!(received().records_accepted, before, "nothing of it has reached the core");
    assert!(!world.victim().all_nodes().contains_key(&id("a-early")));
    world.is_unharmed().await;
}

#[tokio::test]
async fn w28_a_hello_over_a_limit_is_refused_and_an_address_takes_nobodys_place() {
    let world = World::new().await;
    let tags =
        |count: usize, len: usize| (0..count).map(move |n| (format!("t{n}"), "x".repeat(len))).collect();
    let mut zoned = world.mask("a-zone");
    zoned.zone = Some("z".repeat(10_240));
    let mut tagged = world.mask("a-tags");
    tagged.tags = tags(65, 1);
    let mut long = world.mask("a-long");
    long.tags = tags(64, 65);
    for mask in [zoned, tagged, long] {
        let ended = mask.introduce(world.door(), &mask.introduction()).await.expect_err("over a limit");
        assert!(ended.code == 0x20 && ended.reason.contains("its claim breaks a limit"), "{ended:?}");
    }
    let mut endless = world.mask("a-endless");
    endless.tags = tags(100_000, 1);
    let connection = endless.connect(world.door()).await;
    let hello = wire::frame(&wire::encode(&endless.introduction()));
    let _kept = crate::peer::Mask::say(&connection, &[&[wire::HELLO], &hello[..5]].concat()).await;
    assert_eq!(end_of(&connection).await.code, 0x22);
    until("each is counted", || (world.refused("protocol-violation"), world.refused("too-large")) == (3, 1))
        .await;
    // The address of another: it is a member where it says, and the other stays where it is.
    let mut mask = world.mask("a-squatter");
    let taken = world.nodes[1].local_node();
    mask.listen = taken.address;
    let _peer = mask.join(world.door()).await;
    until("it is in", || world.victim().is_alive(&id("a-squatter"))).await;
    assert_eq!(life(&world, "n1").address, taken.address);
    assert_eq!(life(&world, "n1").epoch, taken.epoch);
    world.is_unharmed().await;
}
