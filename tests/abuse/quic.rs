//! Section 2: QUIC, streams, datagrams.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{
    common::{id, text, until},
    lines::Lines,
    peer::{Mask, Peer, end_of, read_frame},
    process::Victim,
    wire::{self, Batch, Record},
    world::{World, name},
};

fn socket(last: u16) -> UdpSocket {
    let [high, low] = last.to_be_bytes();
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 9, high, low), 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// The first packets of a handshake that is never gone on with.
fn initials(config: &quinn::ClientConfig, door: SocketAddr) -> Vec<Vec<u8>> {
    let settings = Arc::new(quinn::EndpointConfig::default());
    let mut endpoint = quinn_proto::Endpoint::new(settings, None, true, None);
    let now = Instant::now();
    let (_, mut connection) = endpoint.connect(now, config.clone(), door, "phalanx.cluster").unwrap();
    let mut packets = Vec::new();
    let mut buffer = Vec::new();
    while let Some(transmit) = connection.poll_transmit(now, 1, &mut buffer) {
        packets.push(buffer[..transmit.size].to_vec());
        buffer.clear();
    }
    packets
}

/// Sends as fast as the other side's socket takes it: what does not fit would be dropped by the system, and
/// prove nothing.
async fn pour(from: &UdpSocket, to: SocketAddr, packets: impl Iterator<Item = Vec<u8>>) {
    for (number, packet) in packets.enumerate() {
        while from.send_to(&packet, to).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            tokio::task::yield_now().await;
        }
        if number % 64 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

// Scale: 50 000 random packets for the million; all else in full.
#[tokio::test]
async fn q01_packets_of_any_bytes_are_dropped_and_leave_no_memory_behind() {
    let mut victim = Victim::start().await;
    let door = victim.address;
    let mask = Mask::new("x", victim.mint.certificate(&name("x"), |_| {}));
    let initial = initials(&mask.config(), door).swap_remove(0);
    let from = socket(1);
    let mut random = fastrand::Rng::with_seed(1);
    let mut noise = |count: usize| -> Vec<Vec<u8>> {
        (0..count).map(|_| (0..random.usize(0..1_400)).map(|_| random.u8(..)).collect()).collect()
    };
    pour(&from, door, noise(1_000).into_iter()).await; // buffers that are made once
    let seen = victim.count("/net/handshakes_seen").await;
    let before = victim.memory();
    for _ in 0..50 {
        pour(&from, door, noise(1_000).into_iter()).await;
    }
    pour(&from, door, (0..initial.len()).map(|cut| initial[..cut].to_vec())).await;
    // Each answer is asked for after what came before it.
    assert_eq!(victim.count("/net/handshakes_seen").await, seen, "noise passed for handshakes");
    let flipped = |at: usize| {
        let mut packet = initial.clone();
        packet[at] ^= 0x10;
        packet
    };
    pour(&from, door, (0..initial.len()).map(flipped)).await;
    // quinn looks at the header before it decrypts: those count as begun, and none comes further.
    assert!(victim.count("/net/handshakes_seen").await - seen <= initial.len() as u64);
    assert_eq!(victim.count("/net/accepted").await, 0);
    victim.is_unharmed(before, 5 << 20).await;
}

// Scale: 1 500 Initials from 150 sources for 100 000 from 10 000.
#[tokio::test]
async fn q02_a_flood_from_spoofed_sources_is_sent_away_to_prove_its_addresses() {
    let mut victim = Victim::start().await;
    let door = victim.address;
    let mask = Mask::new("x", victim.mint.certificate(&name("x"), |_| {}));
    let before = victim.memory();
    let sources: Vec<_> = (0..150).map(|number| socket(1_000 + number)).collect();
    let mut sent = vec![0; sources.len()];
    let mut flood = async |rounds: usize| {
        for _ in 0..rounds {
            for (source, sent) in sources.iter().zip(&mut sent) {
                let packets = initials(&mask.config(), door);
                *sent += packets.iter().map(Vec::len).sum::<usize>();
                pour(source, door, packets.into_iter()).await;
            }
        }
    };
    flood(5).await;
    let begun = Instant::now();
    let (honest, ()) = tokio::join!(victim.join("meanwhile"), flood(5));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "an honest node was kept out for {took:?}");
    let (seen, retried) =
        (victim.count("/net/handshakes_seen").await, victim.count("/net/handshakes_retried").await);
    assert!(seen > 500 && retried * 10 > seen * 8, "{retried} of {seen} had to prove their address");
    for (source, sent) in sources.iter().zip(&sent) {
        let mut buffer = [0; 2_048];
        let mut came = 0;
        while let Ok((size, _)) = source.recv_from(&mut buffer) {
            came += size;
        }
        assert!(came <= 3 * sent, "{came} bytes for {sent}");
    }
    honest.stop().await.unwrap();
    victim.is_unharmed(before, 16 << 20).await;
}

// Scale: as many handshakes as this process can begin in 3 s, for 2 000/s.
#[tokio::test]
async fn q03_one_certificate_gets_no_more_handshakes_than_its_address_may_have() {
    let mut victim = Victim::start().await;
    let honest = victim.join("honest").await;
    let log = crate::common::Log::of(&honest);
    let mask = Arc::new(Mask::new("x", victim.mint.certificate(&name("x"), |_| {})));
    let done = Arc::new(AtomicUsize::new(0));
    let (begun, ticks) = (Instant::now(), victim.ticks());
    let flood = (0..32).map(|_| {
        let (mask, done, door) = (Arc::clone(&mask), Arc::clone(&done), victim.address);
        tokio::spawn(async move {
            loop {
                let connecting = mask.endpoint.connect_with(mask.config(), door, "phalanx.cluster").unwrap();
                if let Ok(Ok(connection)) = tokio::time::timeout(Duration::from_millis(100), connecting).await
                {
                    done.fetch_add(1, Relaxed);
                    connection.close(0_u32.into(), b"");
                }
            }
        })
    });
    let flood: Vec<_> = flood.collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    flood.iter().for_each(tokio::task::JoinHandle::abort);
    let (took, used) = (begun.elapsed(), victim.ticks() - ticks);
    let took_ms = u64::try_from(took.as_millis()).unwrap();
    let most = 64 + took_ms / 50 + 1;
    let done = done.load(Relaxed) as u64;
    assert!(done > 20 && done <= most, "{done} handshakes in {took:?}");
    assert!(victim.count("/net/handshakes_ignored").await > 0);
    assert!(used < took_ms / 20, "{used} hundredths of a second in {took:?}");
    assert_eq!(log.told(phalanx::EventKind::NodeSuspect, "victim"), 0, "its pings came late");
    honest.stop().await.unwrap();
}

// Scale: 200 for 5 000.
#[tokio::test]
async fn q04_handshakes_that_are_never_ended_are_given_up_after_five_seconds() {
    let world = World::new().await;
    let (mask, door) = (world.mask("x"), world.door());
    let before = world.stats().net;
    let sources: Vec<_> = (0..20).map(|number| socket(2_000 + number)).collect();
    let begun = Instant::now();
    for _ in 0..10 {
        for source in &sources {
            pour(source, door, initials(&mask.config(), door).into_iter()).await;
        }
    }
    until("they are seen", || world.stats().net.handshakes_seen >= before.handshakes_seen + 200).await;
    let net = world.stats().net;
    let retried = net.handshakes_retried - before.handshakes_retried;
    let held = net.handshakes_seen - before.handshakes_seen - retried - net.handshakes_ignored
        + before.handshakes_ignored;
    assert!((1..=64).contains(&held) && retried > 0, "{held} held, {retried} sent away");
    until("all are given up", || world.refused("too-slow") == held).await;
    assert!(begun.elapsed() >= Duration::from_secs(5), "a slow peer has its time");
    world.is_unharmed().await;
}

#[tokio::test]
async fn q05_a_connection_without_a_hello_is_closed_within_two_seconds() {
    let world = World::new().await;
    let begun = Instant::now();
    let mask = world.mask("mute");
    let connection = mask.connect(world.door()).await;
    let ended = end_of(&connection).await;
    assert_eq!((ended.code, ended.by_application), (0x24, true), "{ended:?}");
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "a slow peer has its time");
    until("it is counted", || world.refused("too-slow") == 1).await;
    // A hello that is begun and never ended is the same.
    let connection = mask.connect(world.door()).await;
    let _kept = Mask::say(&connection, &[wire::HELLO, 0, 0]).await;
    assert_eq!(end_of(&connection).await.code, 0x24);
    until("it is counted", || world.refused("too-slow") == 2).await;
    world.is_unharmed().await;
}

#[tokio::test]
async fn q06_of_ten_thousand_streams_eight_are_opened() {
    let world = World::new().await;
    let peer = world.peer("greedy").await;
    let opened = Arc::new(AtomicUsize::new(0));
    let opens = (0..10_000).map(|_| {
        let (connection, opened) = (peer.connection.clone(), Arc::clone(&opened));
        tokio::spawn(async move {
            let stream = connection.open_bi().await;
            opened.fetch_add(usize::from(stream.is_ok()), Relaxed);
            std::future::pending::<()>().await;
            drop(stream);
        })
    });
    let opens: Vec<_> = opens.collect();
    // The hello's own place comes back with the next that is given back.
    until("the credit is used up", || opened.load(Relaxed) >= 7).await;
    for _ in 0..5 {
        peer.settle().await;
    }
    assert!(opened.load(Relaxed) <= 8, "{opened:?}");
    let one_way = tokio::time::timeout(Duration::from_millis(200), peer.connection.open_uni()).await;
    assert!(one_way.is_err(), "streams of one direction are not offered at all");
    opens.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(peer.is_open());
    world.is_unharmed().await;
}

#[tokio::test]
async fn q07_streams_that_stand_still_end_by_their_deadlines() {
    let world = World::new().await;
    let header_only = async {
        let peer = world.peer("a-header").await;
        let _kept = peer.stream(wire::MESSAGES, &[0, 0]).await;
        let begun = Instant::now();
        assert_eq!(peer.end().await.code, 0x24);
        assert!(begun.elapsed() >= Duration::from_millis(1_900));
    };
    let body_never = async {
        let peer = world.peer("a-silent").await;
        let begun = Instant::now();
        let _kept = peer.stream(wire::MESSAGES, &[0, 0, 0, 100, 1]).await;
        assert_eq!(peer.end().await.code, 0x24);
        assert!(begun.elapsed() >= Duration::from_millis(9_900));
    };
    let drip = async {
        let peer = world.peer("a-drip").await;
        let (mut send, _recv) = peer.stream(wire::EXCHANGE, &[0]).await;
        let stopped = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if let Err(quinn::WriteError::Stopped(code)) = send.write_all(&[0]).await {
                    break code.into_inner();
                }
            }
        };
        assert_eq!(tokio::time::timeout(Duration::from_secs(30), stopped).await.unwrap(), 0x24);
        // Only the stream is lost, and its place is free again.
        let (mut send, mut recv) = peer.stream(wire::EXCHANGE, &wire::frame(&open(&[]))).await;
        assert!(read_frame(&mut recv).await.is_some(), "it is answered");
        send.reset(0_u32.into()).unwrap();
        assert!(peer.is_open());
    };
    tokio::join!(header_only, body_never, drip);
    assert_eq!((world.closed("too-slow"), world.stats().net.streams_too_slow), (2, 3));
    world.is_unharmed().await;
}

/// The first frame of an exchange.
fn open(types: &[((&str, bool), u64)]) -> Vec<u8> {
    wire::message(wire::OPEN, &(0_u64, 0_u64, types, Vec::<(String, bool)>::new()))
}

fn records(peer: &Peer, seq: u64, key: &str) -> Vec<u8> {
    let batch = Batch::new(peer.name(), peer.mask.epoch, vec![Record::new(seq, key, 1)]);
    wire::message(wire::RECORDS, &batch)
}

#[tokio::test]
async fn q08_an_exchange_cut_anywhere_keeps_what_arrived_whole() {
    let world = World::new().await;
    let peer = world.peer("a-cut").await;
    let has = |key: &str| text(world.victim(), &"routes".into(), key).is_some();
    let differs = open(&[(("routes", false), 1)]);
    let lost = || world.stats().net.streams_lost;
    for whole in 0..4_u64 {
        let before = lost();
        let (mut send, mut recv) = peer.stream(wire::EXCHANGE, &wire::frame(&differs)).await;
        for seq in 1..=whole {
            let key = format!("whole-{whole}-{seq}");
            send.write_all(&wire::frame(&records(&peer, whole * 100 + seq, &key))).await.unwrap();
        }
        let cut = wire::frame(&records(&peer, whole * 100 + 99, &format!("cut-{whole}")));
        send.write_all(&cut[..cut.len() / 2]).await.unwrap();
        assert!(read_frame(&mut recv).await.is_some(), "the victim's own opening");
        until("what arrived whole is there", || (1..=whole).all(|seq| has(&format!("whole-{whole}-{seq}"))))
            .await;
        // By turns: the writer gives up, the reader gives up.
        if whole % 2 == 0 {
            send.reset(7_u32.into()).unwrap();
        } else {
            recv.stop(7_u32.into()).unwrap();
            send.reset(7_u32.into()).unwrap();
        }
        until("it is counted", || lost() == before + 1).await;
        assert!(!has(&format!("cut-{whole}")));
    }
    // Told again as a whole, the rest is there, and the exchange ends as any.
    let completed = world.stats().gossip.counters.exchanges_completed;
    let wants = {
        let (types, dots) = (Vec::<(String, bool)>::new(), Vec::<wire::Dots>::new());
        wire::message(wire::WANTS, &(&types, Vec::<u64>::new(), &types, &dots, &dots, (), true))
    };
    let frames =
        [differs, records(&peer, 399, "cut-3"), wants, wire::packet(&[wire::raw_part(wire::DONE, &[])])];
    let (mut send, mut recv) = peer.stream(wire::EXCHANGE, &[]).await;
    for frame in frames {
        send.write_all(&wire::frame(&frame)).await.unwrap();
    }
    send.finish().unwrap();
    until("it has ended", || world.stats().gossip.counters.exchanges_completed > completed).await;
    while read_frame(&mut recv).await.is_some() {}
    assert!(has("cut-3") && peer.is_open());
    world.is_unharmed().await;
}

// Scale: as fast as this process can, for 200 000/s; until it is closed.
#[tokio::test]
async fn q11_a_flood_of_datagrams_ends_the_flooders_connection_and_nothing_else() {
    let world = World::new().await;
    let peer = world.peer("a-flood").await;
    let skipped = wire::packet(&[wire::raw_part(200, b"for later")]);
    let begun = Instant::now();
    for number in 0_u64.. {
        let bytes = if number % 3 == 0 { Vec::new() } else { skipped.clone() };
        if peer.connection.send_datagram_wait(bytes.into()).await.is_err() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody minds {number} datagrams");
    }
    let ended = peer.end().await;
    assert_eq!(ended.code, 0x23, "{ended:?}");
    assert!(ended.reason.contains("over 5000 datagrams a second"), "{ended:?}");
    until("it is counted", || world.closed("rate-limited") == 1).await;
    let net = world.stats().net;
    assert!(net.reads_paused > 0 && net.datagrams_over_budget > 0, "{net:?}");
    assert!(world.stats().gossip.counters.malformed > 1_000, "the empty ones were counted");
    // It must stay away for a second; then it is a member like any other.
    let hello = peer.mask.introduction();
    let ended = peer.mask.introduce(world.door(), &hello).await.expect_err("at once");
    assert!(ended.code == 0x23 && ended.reason.contains("it may come back in"), "{ended:?}");
    assert!(world.refused("rate-limited") >= 1);
    let mut tries = 0;
    while peer.mask.introduce(world.door(), &hello).await.is_err() {
        tries += 1;
        assert!(tries < 60, "it is never let in again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    world.is_unharmed().await;
}

#[tokio::test]
async fn q12_what_is_too_large_for_a_datagram_goes_by_stream_or_not_at_all() {
    let world = World::new().await;
    let peer = world.peer("a-large").await;
    let before = world.stats().net.datagrams_received;
    let most = peer.connection.max_datagram_size().unwrap();
    for size in [most + 1, 65_535, 1 << 20] {
        let refused = peer.connection.send_datagram(vec![1; size].into());
        assert_eq!(refused, Err(quinn::SendDatagramError::TooLarge), "{size}");
    }
    // Past QUIC: the largest that UDP carries, and one beyond any path's.
    let raw = socket(3_000);
    pour(&raw, world.door(), [65_507, 9_000, 1_500].into_iter().map(|size| vec![0x40; size])).await;
    peer.settle().await;
    let came = world.stats().net.datagrams_received - before;
    assert!(came < 100, "only pings and their answers have come: {came}");
    let large = "x".repeat(200_000);
    world.nodes[1].broadcast("large", "x", &large).unwrap();
    until("a large value goes by stream", || text(world.victim(), &"large".into(), "x").is_some()).await;
    assert!(world.stats().net.stream_messages_received > 0);
    world.is_unharmed().await;
}

#[tokio::test]
async fn q13_unknown_versions_and_spoofed_negotiations_change_nothing() {
    let world = World::new().await;
    let before = world.stats().net.handshakes_seen;
    let from = socket(3_100);
    let mut unknown = vec![0; 1_200];
    unknown[..15].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
    pour(&from, world.door(), std::iter::repeat_n(unknown.clone(), 100)).await;
    // A negotiation that nobody asked for, as if from a peer of a connection that stands: version 0.
    let mut negotiation = unknown[..16].to_vec();
    negotiation[1..5].fill(0);
    negotiation.extend([0, 0, 0, 9]);
    pour(&from, world.door(), std::iter::repeat_n(negotiation, 100)).await;
    let peer = world.peer("a-witness").await;
    peer.settle().await;
    // It says which versions it speaks, as RFC 9000 §6 asks, with fewer bytes than it got.
    let mut buffer = [0; 2_048];
    let mut came = 0;
    while let Ok((size, _)) = from.recv_from(&mut buffer) {
        assert_eq!(buffer[1..5], [0; 4], "a negotiation");
        came += size;
    }
    assert!(came < 100 * 1_200, "{came} bytes");
    assert_eq!(world.stats().net.handshakes_seen, before + 1, "the witness's own");
    world.is_unharmed().await;
}

#[tokio::test]
async fn q15_a_reason_full_of_escapes_is_logged_as_one_harmless_line() {
    let (lines, _kept) = Lines::keep();
    let world = World::new().await;
    let peer = world.peer("a-painter").await;
    let reason = "\u{1b}[31mred\n\r\u{202e}fake INFO line\u{0}".repeat(40);
    assert!(reason.len() > 1_000);
    peer.connection.close(77_u32.into(), reason.as_bytes());
    until("it is counted", || world.closed("unknown") == 1).await;
    let told = lines.with(&["connection closed", "a-painter", "code=77"]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("u{1b}[31mred"), "{}", told[0]);
    assert!(told[0].chars().all(|c| !c.is_control() && c != '\u{202e}'), "{:?}", told[0]);
    assert!(told[0].len() < 2_000, "{} bytes", told[0].len());
    assert!(lines.with(&["fake INFO line"]).len() == 1);
    let close = world.victim().explain(&id("a-painter")).unwrap().last_close.unwrap();
    assert!(close.by_peer && !close.reason.contains('\n'), "{close:?}");
    world.is_unharmed().await;
}

/// Passes packets on between a peer and the victim, and keeps those of the peer.
struct Tap {
    address: SocketAddr,
    outside: Arc<tokio::net::UdpSocket>,
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    async fn before(door: SocketAddr) -> Self {
        let bind = || tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let (inside, outside) = (bind().await.unwrap(), Arc::new(bind().await.unwrap()));
        let (address, kept) = (inside.local_addr().unwrap(), Arc::<Mutex<Vec<Vec<u8>>>>::default());
        let (to_victim, keep) = (Arc::clone(&outside), Arc::clone(&kept));
        tokio::spawn(async move {
            let (mut one, mut other) = (vec![0; 65_536], vec![0; 65_536]);
            let mut client = None;
            loop {
                tokio::select! {
                    Ok((size, from)) = inside.recv_from(&mut one) => {
                        client = Some(from);
                        keep.lock().unwrap().push(one[..size].to_vec());
                        let _ = to_victim.send_to(&one[..size], door).await;
                    }
                    Ok((size, _)) = to_victim.recv_from(&mut other) => if let Some(client) = client {
                        let _ = inside.send_to(&other[..size], client).await;
                    }
                }
            }
        });
        Self { address, outside, kept }
    }
}

#[tokio::test]
async fn q16_captured_packets_played_again_are_ignored_from_wherever_they_come() {
    let world = World::new().await;
    let tap = Tap::before(world.door()).await;
    let peer = world.mask("a-tapped").join(tap.address).await;
    until("it is let in", || world.victim().is_alive(&id("a-tapped"))).await;
    let write = wire::spread(
        1,
        "a-tapped",
        peer.mask.epoch,
        &[wire::part(
            wire::RECORDS,
            &Batch::new("a-tapped", peer.mask.epoch, vec![Record::new(1, "once", 1)]),
        )],
    );
    peer.send(write).await;
    until("it has arrived", || text(world.victim(), &"routes".into(), "once").is_some()).await;
    peer.settle().await;
    peer.be_silent();
    let captured = tap.kept.lock().unwrap().clone();
    assert!(captured.len() > 5);
    let link = || world.victim().explain(&id("a-tapped")).unwrap().connection.unwrap();
    let (remote, before) = (link().remote, world.stats());
    let elsewhere = socket(3_200);
    for packet in &captured {
        tap.outside.send_to(packet, world.door()).await.unwrap();
        pour(&elsewhere, world.door(), std::iter::once(packet.clone())).await;
    }
    // What follows is looked at after all of that.
    peer.settle().await;
    let after = world.stats();
    assert_eq!(after.gossip.counters.records_accepted, before.gossip.counters.records_accepted);
    assert_eq!(after.gossip.counters.duplicates, before.gossip.counters.duplicates, "nothing came twice");
    assert_eq!(link().remote, remote, "it has not moved");
    assert_eq!(after.net.accepted, before.net.accepted);
    // From a new address of its own the connection does not go on either.
    peer.mask.endpoint.rebind(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap();
    assert_eq!(link().remote, remote);
    world.is_unharmed().await;
}
