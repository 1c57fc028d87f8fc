//! What passes between two that are connected: datagrams, large messages, exchanges.

use super::*;

const FRAME_OVER: usize = crate::wire::limits::FRAME_LEN_MAX + 1;

#[tokio::test(start_paused = true)]
async fn messages_pass_both_ways_and_large_ones_too() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial(&id("b"), b.address());
    assert!(a.transport.send(&id("b"), Bytes::from_static(b"waits")));
    until(|| b.host.said("connected a") == 1 && a.host.said("connected b") == 1).await;
    assert!(b.transport.send(&id("a"), Bytes::from(vec![1; 1_000])));
    assert!(b.transport.send(&id("a"), Bytes::from(vec![2; 900_000])));
    assert!(!b.transport.send(&id("a"), Bytes::from(vec![2; FRAME_OVER])));
    assert!(!b.transport.send(&id("nobody"), Bytes::new()));
    until(|| lock(&a.host.messages).len() == 2 && lock(&b.host.messages).len() == 1).await;
    assert_eq!(b.transport.counters().datagrams_sent, 1);
    assert_eq!(b.transport.counters().stream_messages_sent, 1);
    assert_eq!(b.transport.counters().messages_dropped, 2);
    assert!(a.transport.link(&id("b")).unwrap().dialled);
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_sent_or_counted_as_dropped() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial_seed(b.address()).await.unwrap();
    let sent = (0..5_000).filter(|_| a.transport.send(&id("b"), Bytes::from(vec![0; 1_000]))).count();
    assert!(sent < 5_000 && sent > 60, "{sent}");
    assert_eq!(a.transport.counters().messages_dropped, 5_000 - sent as u64);
    until(|| lock(&b.host.messages).len() == sent).await;
}

#[tokio::test(start_paused = true)]
async fn exchanges_run_both_ways_to_their_end() {
    let world = world(Weather { loss: 0.05, duplication: 0.05, ..Weather::default() });
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial_seed(b.address()).await.unwrap();
    let (ours, theirs) = (StreamId(1), StreamId(2));
    a.transport.open_stream(&id("b"), ours);
    for n in 0..5 {
        a.transport.send_frame(ours, Bytes::from(vec![n; 100_000]));
    }
    a.transport.finish(ours);
    until(|| lock(&b.host.events).contains(&(theirs, StreamEvent::Finished))).await;
    b.transport.send_frame(theirs, Bytes::from_static(b"answer"));
    b.transport.finish(theirs);
    until(|| lock(&a.host.events).contains(&(ours, StreamEvent::Finished))).await;
    let seen = lock(&b.host.events).clone();
    assert_eq!(seen[0], (theirs, StreamEvent::Opened));
    for n in 0..5 {
        assert_eq!(seen[1 + usize::from(n)], (theirs, StreamEvent::Frame(Bytes::from(vec![n; 100_000]))));
    }
    let sent = lock(&a.host.events).iter().filter(|(_, event)| *event == StreamEvent::Sent).count();
    assert_eq!(sent, 5);
    assert!(world.network.lost() > 0);
    sleep(Duration::from_secs(60)).await;
    assert!(!lock(&a.host.events).contains(&(ours, StreamEvent::Lost)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_cannot_go_on_is_lost_once() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.open_stream(&id("b"), StreamId(1));
    until(|| *lock(&a.host.events) == [(StreamId(1), StreamEvent::Lost)]).await;
    a.transport.dial_seed(b.address()).await.unwrap();
    a.transport.open_stream(&id("b"), StreamId(3));
    until(|| !lock(&b.host.events).is_empty()).await;
    a.transport.reset(StreamId(3));
    until(|| lock(&b.host.events).contains(&(StreamId(2), StreamEvent::Lost))).await;
    a.transport.open_stream(&id("b"), StreamId(5));
    until(|| lock(&b.host.events).contains(&(StreamId(4), StreamEvent::Opened))).await;
    b.transport.close(&id("a"), CloseCode::LEFT, "bye");
    until(|| lock(&a.host.events).contains(&(StreamId(5), StreamEvent::Lost))).await;
    until(|| a.host.said("disconnected b 0x1 bye") == 1).await;
    assert_eq!(lock(&a.host.events).len(), 2, "a reset of one's own is not told");
}

#[tokio::test(start_paused = true)]
async fn slow_and_oversized_frames_are_refused() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial_seed(b.address()).await.unwrap();
    let conn = lock(&a.transport.shared.pool).current(&id("b")).unwrap();
    let (mut send, mut recv) = conn.connection.open_bi().await.unwrap();
    send.write_all(b"\x02\0\0").await.unwrap();
    let stopped = timeout(Duration::from_secs(3), send.stopped()).await.unwrap().unwrap();
    assert_eq!(stopped, Some(close::varint(CloseCode::TOO_SLOW)));
    assert!(recv.read(&mut [0]).await.is_err());
    assert!(b.admitted() == 1, "only the stream is lost");
    let (mut send, _recv) = conn.connection.open_bi().await.unwrap();
    send.write_all(b"\x02\0\x10\0\x01").await.unwrap();
    until(|| a.host.said("disconnected b 0x22 a frame of 1048577 bytes") == 1).await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_kind_costs_only_its_stream() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial_seed(b.address()).await.unwrap();
    let conn = lock(&a.transport.shared.pool).current(&id("b")).unwrap();
    for _ in 0..30 {
        let (mut send, _recv) = conn.connection.open_bi().await.unwrap();
        send.write_all(b"\x63").await.unwrap();
        send.stopped().await.unwrap();
    }
    assert_eq!(b.transport.counters().streams_refused, 30);
    assert_eq!(a.admitted(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_ninth_stream_waits() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial_seed(b.address()).await.unwrap();
    for n in 0..20 {
        a.transport.open_stream(&id("b"), StreamId(1 + 2 * n));
    }
    let opened = || lock(&b.host.events).iter().filter(|(_, event)| *event == StreamEvent::Opened).count();
    // The hello's own credit comes back with the next ones.
    until(|| opened() >= 7).await;
    sleep(Duration::from_secs(5)).await;
    assert!(opened() <= 8);
    for n in 0..20 {
        a.transport.finish(StreamId(1 + 2 * n));
        b.transport.finish(StreamId(2 + 2 * n));
    }
    until(|| opened() >= 14).await;
}

#[tokio::test(start_paused = true)]
async fn loss_and_a_small_path_stop_nobody() {
    let world = world(Weather {
        loss: 0.1,
        duplication: 0.1,
        mtu: 1_300,
        jitter: Duration::from_millis(5),
        ..Weather::default()
    });
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial_seed(b.address()).await.unwrap();
    for n in 0..20 {
        assert!(a.transport.send(&id("b"), Bytes::from(vec![n; 1_400 + usize::from(n) * 1_000])));
    }
    until(|| lock(&b.host.messages).len() == 20).await;
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_drips_is_ended() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("server"));
    a.transport.dial_seed(b.address()).await.unwrap();
    let conn = lock(&a.transport.shared.pool).current(&id("server")).unwrap();
    let (mut send, _recv) = conn.connection.open_bi().await.unwrap();
    send.write_all(&[stream::EXCHANGE]).await.unwrap();
    let begun = clock::monotonic();
    // Each frame is whole and in time, and all of them bring nothing.
    while send.write_all(b"\0\0\0\x01x").await.is_ok() {
        sleep(Duration::from_secs(5)).await;
        assert!(begun.elapsed() < Duration::from_secs(120), "it goes on for ever");
    }
    assert!(begun.elapsed() >= crate::wire::limits::EXCHANGE_AGE);
    assert_eq!(send.stopped().await.unwrap(), Some(close::varint(CloseCode::TOO_SLOW)));
    assert_eq!((b.transport.counters().streams_too_slow, b.admitted()), (1, 1));
    world.serves(&b).await;
}

#[tokio::test(start_paused = true)]
async fn who_sends_faster_than_its_budget_is_not_read_then_closed_then_kept_away() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("server"));
    a.transport.dial_seed(b.address()).await.unwrap();
    let conn = lock(&a.transport.shared.pool).current(&id("server")).unwrap();
    while conn.connection.close_reason().is_none() {
        for _ in 0..200 {
            let _ = conn.connection.send_datagram(Bytes::from_static(b"x"));
        }
        sleep(Duration::from_millis(10)).await;
    }
    until(|| a.host.said("disconnected server 0x23 over 5000 datagrams a second") == 1).await;
    let counters = b.transport.counters();
    assert!(counters.reads_paused > 0 && counters.datagrams_received >= 10_000, "{counters:?}");
    assert_eq!(counters.closed["rate-limited"], 1);
    let error = a.transport.dial_seed(b.address()).await.unwrap_err().to_string();
    assert!(error.contains("it may come back in") && error.contains("0x23"), "{error}");
    // Nor is it dialled from here.
    b.transport.dial(&id("a"), a.address());
    until(|| b.host.said("dial-failed a") == 1).await;
    sleep(Duration::from_secs(1)).await;
    a.transport.dial_seed(b.address()).await.unwrap();
    world.serves(&b).await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_that_the_peer_would_not_read_goes_on_the_stream() {
    let world = world(Weather::default());
    let (a, b) = (world.node("a"), world.node("b"));
    a.transport.dial_seed(b.address()).await.unwrap();
    let mut sent = 0;
    for round in 0..400 {
        for _ in 0..100 {
            sent += usize::from(a.transport.send(&id("b"), Bytes::from_static(b"x")));
        }
        sleep(Duration::from_millis(if round < 300 { 10 } else { 100 })).await;
    }
    until(|| lock(&b.host.messages).len() == sent).await;
    assert!(a.transport.counters().datagrams_held_back > 0);
    assert_eq!((b.transport.counters().reads_paused, a.admitted()), (0, 1));
}
