//! What travels on bidirectional streams: messages too large for the path, exchanges, echoes. The first byte
//! says which. Every frame's length is checked before anything is allocated, and everything has a deadline.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::{mpsc, oneshot},
    task::yield_now,
    time::timeout,
};

use crate::{
    NodeId,
    driver::clock,
    net::{Closed, Shared, Way, budget::Spent, close, lock, pool::Conn},
    wire::{
        CloseCode, StreamId,
        limits::{EXCHANGE_AGE, EXCHANGE_RATE, FRAME, FRAME_LEN_MAX, HEADER, STILL},
    },
};

/// The first byte of a stream.
pub(crate) const HELLO: u8 = 0;
pub(crate) const MESSAGES: u8 = 1;
pub(crate) const EXCHANGE: u8 = 2;
pub(crate) const ECHO: u8 = 3;

/// Frames of one exchange that wait to be written. The core has fewer on their way.
const FRAMES_MAX: usize = 32;
/// So much room is made for a frame's first bytes; then as much as has come.
const READ_MIN: usize = 4 * 1024;
/// Messages that wait on a peer's message stream.
const MESSAGES_MAX: usize = 256;
/// Bytes of them; one message larger than this goes alone.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// What happens to an exchange's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamEvent {
    /// The peer opened it.
    Opened,
    /// A frame arrived whole.
    Frame(Bytes),
    /// The oldest frame on its way was handed to the connection.
    Sent,
    /// The peer sends no more frames.
    Finished,
    /// The stream is gone. Nothing follows.
    Lost,
}

/// Why a stream cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Reset, cut, or the connection is gone.
    Lost,
    /// No frame began in time.
    Silent,
    TooSlow,
    TooLarge(usize),
}

/// Reads one frame of at most `max` bytes, for whose begin `patience` is given. `None`: there are no more.
pub(crate) async fn read_frame(
    recv: &mut (impl AsyncRead + Unpin),
    patience: Duration,
    max: usize,
) -> Result<Option<Bytes>, Fault> {
    let mut header = [0; 4];
    let begun = timeout(patience, recv.read(&mut header)).await.map_err(|_| Fault::Silent)?;
    match begun.map_err(|_| Fault::Lost)? {
        0 => return Ok(None),
        read => {
            let rest = timeout(HEADER, recv.read_exact(&mut header[read..])).await;
            rest.map_err(|_| Fault::TooSlow)?.map_err(|_| Fault::Lost)?;
        }
    }
    let size = u32::from_be_bytes(header) as usize;
    if size > max {
        return Err(Fault::TooLarge(size));
    }
    timeout(FRAME, read_body(recv, size)).await.map_err(|_| Fault::TooSlow)?.map(Some)
}

/// Memory grows with what arrived, not with what was claimed.
async fn read_body(recv: &mut (impl AsyncRead + Unpin), size: usize) -> Result<Bytes, Fault> {
    let mut body = BytesMut::new();
    while body.len() < size {
        let left = size - body.len();
        body.reserve(left.min(body.len().max(READ_MIN)));
        match recv.read_buf(&mut (&mut body).limit(left)).await {
            Ok(0) | Err(_) => return Err(Fault::Lost),
            Ok(_) => {}
        }
    }
    Ok(body.freeze())
}

pub(crate) async fn write_frame(send: &mut SendStream, bytes: Bytes) -> Result<(), Fault> {
    let size = u32::try_from(bytes.len()).map_err(|_| Fault::TooLarge(bytes.len()))?;
    let mut chunks = [Bytes::copy_from_slice(&size.to_be_bytes()), bytes];
    timeout(FRAME, send.write_all_chunks(&mut chunks))
        .await
        .map_err(|_| Fault::TooSlow)?
        .map_err(|_| Fault::Lost)
}

async fn write_kind(send: &mut SendStream, kind: u8) -> Result<(), Fault> {
    timeout(FRAME, send.write_all(&[kind])).await.map_err(|_| Fault::TooSlow)?.map_err(|_| Fault::Lost)
}

/// The first byte of a stream that the peer opened.
pub(crate) async fn read_kind(recv: &mut RecvStream) -> Result<u8, Fault> {
    let mut kind = [0];
    timeout(HEADER, recv.read_exact(&mut kind))
        .await
        .map_err(|_| Fault::TooSlow)?
        .map_err(|_| Fault::Lost)?;
    Ok(kind[0])
}

// ---- messages

/// What waits for the peer's message stream. The stream is opened at the first message.
#[derive(Default)]
pub(crate) struct MessageQueue {
    sender: OnceLock<mpsc::Sender<Bytes>>,
    bytes: Arc<AtomicUsize>,
    /// The peer has its one message stream open.
    receiving: AtomicBool,
}

/// `false`: too much waits already, or the message is too large for a frame.
pub(crate) fn send_message(shared: &Arc<Shared>, conn: &Arc<Conn>, bytes: Bytes) -> bool {
    let (size, queue) = (bytes.len(), &conn.messages);
    let waiting = queue.bytes.load(Relaxed);
    if size > FRAME_LEN_MAX || (waiting > 0 && waiting + size > MESSAGE_BYTES_MAX) {
        return false;
    }
    let sender = queue.sender.get_or_init(|| {
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        shared.spawn(write_messages(Arc::clone(shared), Arc::clone(conn), receiver));
        sender
    });
    queue.bytes.fetch_add(size, Relaxed);
    let queued = sender.try_send(bytes).is_ok();
    if !queued {
        queue.bytes.fetch_sub(size, Relaxed);
    }
    queued
}

async fn write_messages(shared: Arc<Shared>, conn: Arc<Conn>, mut messages: mpsc::Receiver<Bytes>) {
    let write = async {
        let (mut send, _) = timeout(FRAME, conn.connection.open_bi())
            .await
            .map_err(|_| Fault::TooSlow)?
            .map_err(|_| Fault::Lost)?;
        write_kind(&mut send, MESSAGES).await?;
        while let Some(bytes) = messages.recv().await {
            let size = bytes.len();
            write_frame(&mut send, bytes).await?;
            conn.messages.bytes.fetch_sub(size, Relaxed);
            shared.counters.stream_messages_sent.one();
        }
        Ok::<(), Fault>(())
    };
    tokio::select! {
        result = write => match result {
            Ok(()) => {}
            Err(Fault::TooSlow) => {
                conn.close(Closed::ours(CloseCode::TOO_SLOW, "a message was not taken within 10 s"));
            }
            Err(_) => conn.close(Closed::ours(CloseCode::PROTOCOL_VIOLATION, "the message stream was cut")),
        },
        // The queue lives as long as the connection's record; its end must not wait for a message.
        _ = conn.connection.closed() => {}
    }
}

async fn read_messages(shared: &Arc<Shared>, conn: &Conn, mut recv: RecvStream) {
    if conn.messages.receiving.swap(true, Relaxed) {
        conn.close(Closed::ours(CloseCode::PROTOCOL_VIOLATION, "a second message stream"));
        return;
    }
    loop {
        // It may be silent for as long as the connection lives; quinn's idle time-out bounds it.
        match read_frame(&mut recv, Duration::from_secs(86_400), FRAME_LEN_MAX).await {
            Ok(Some(bytes)) => {
                shared.counters.stream_messages_received.one();
                let records = shared.host.message(&conn.peer, bytes, Way::Stream);
                // Not read, the stream holds its writer back by itself: nobody has to be closed for it.
                if let Spent::Wait(until) = conn.spend_records(records) {
                    shared.counters.reads_paused.one();
                    tokio::time::sleep_until(until).await;
                }
                yield_now().await;
            }
            Ok(None) | Err(Fault::Lost) => break,
            Err(fault) => {
                shared.count_fault(&fault);
                conn.close(closed_for(&fault));
                break;
            }
        }
    }
    conn.messages.receiving.store(false, Relaxed);
}

fn closed_for(fault: &Fault) -> Closed {
    match fault {
        Fault::TooLarge(size) => Closed::ours(
            CloseCode::TOO_LARGE,
            format!("a frame of {size} bytes; the limit is {FRAME_LEN_MAX}"),
        ),
        Fault::Silent => Closed::ours(CloseCode::TOO_SLOW, "nothing came for too long"),
        Fault::TooSlow => Closed::ours(CloseCode::TOO_SLOW, "a frame was not complete in time"),
        Fault::Lost => Closed::ours(CloseCode::UNSPECIFIED, "the stream was cut"),
    }
}

// ---- exchanges

/// The exchanges in progress, ours and the peers'.
#[derive(Default)]
pub(crate) struct Streams(Mutex<BTreeMap<StreamId, Handle>>);

/// Dropping it resets the stream.
struct Handle {
    frames: mpsc::Sender<Option<Bytes>>,
    _alive: oneshot::Sender<()>,
    /// Set where more was sent than may wait: that is our own bug, and ends the stream.
    overrun: Arc<AtomicBool>,
}

/// The task's end of a `Handle`.
struct Orders {
    frames: mpsc::Receiver<Option<Bytes>>,
    dropped: oneshot::Receiver<()>,
    overrun: Arc<AtomicBool>,
}

impl Streams {
    fn begin(&self, stream: StreamId) -> Orders {
        let (frames, receiver) = mpsc::channel(FRAMES_MAX);
        let (alive, dropped) = oneshot::channel();
        let overrun = Arc::new(AtomicBool::new(false));
        lock(&self.0).insert(stream, Handle { frames, _alive: alive, overrun: Arc::clone(&overrun) });
        Orders { frames: receiver, dropped, overrun }
    }

    pub(crate) fn frame(&self, stream: StreamId, bytes: Bytes) {
        self.order(stream, Some(bytes));
    }

    pub(crate) fn finish(&self, stream: StreamId) {
        self.order(stream, None);
    }

    fn order(&self, stream: StreamId, order: Option<Bytes>) {
        if let Some(handle) = lock(&self.0).get(&stream) {
            let fits = order.as_ref().is_none_or(|bytes| bytes.len() <= FRAME_LEN_MAX);
            if !fits || handle.frames.try_send(order).is_err() {
                handle.overrun.store(true, Relaxed);
            }
        }
    }

    /// Whether it was still known.
    pub(crate) fn forget(&self, stream: StreamId) -> bool {
        lock(&self.0).remove(&stream).is_some()
    }

    pub(crate) fn clear(&self) {
        let handles = std::mem::take(&mut *lock(&self.0));
        drop(handles);
    }
}

/// Opens an exchange's stream; on failure the host hears that it is lost.
pub(crate) fn open(shared: &Arc<Shared>, peer: &NodeId, stream: StreamId) {
    let conn = lock(&shared.pool).current(peer);
    let orders = shared.streams.begin(stream);
    let (shared, peer) = (Arc::clone(shared), peer.clone());
    shared.clone().spawn(async move {
        let Some(conn) = conn else { return lost(&shared, &peer, stream) };
        let opened = async {
            let opened = timeout(FRAME, conn.connection.open_bi()).await;
            let (mut send, recv) = opened.map_err(|_| Fault::TooSlow)?.map_err(|_| Fault::Lost)?;
            write_kind(&mut send, EXCHANGE).await?;
            Ok::<_, Fault>((send, recv))
        };
        match opened.await {
            Ok((send, recv)) => {
                shared.counters.streams_opened.one();
                exchange(&shared, &conn, stream, send, recv, orders).await;
            }
            Err(_) => lost(&shared, &peer, stream),
        }
    });
}

fn lost(shared: &Shared, peer: &NodeId, stream: StreamId) {
    if shared.streams.forget(stream) {
        shared.counters.streams_lost.one();
        shared.host.stream(peer, stream, StreamEvent::Lost);
    }
}

/// How much an exchange has moved, in both directions.
#[derive(Default)]
struct Moved {
    bytes: AtomicU64,
    asked: AtomicU64,
}

impl Moved {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Whether anything has moved since this was asked last.
    fn since_asked(&self) -> bool {
        let bytes = self.bytes();
        self.asked.swap(bytes, Relaxed) < bytes
    }
}

impl Shared {
    fn count_fault(&self, fault: &Fault) {
        match fault {
            Fault::Silent | Fault::TooSlow => self.counters.streams_too_slow.one(),
            Fault::TooLarge(_) => self.counters.frames_too_large.one(),
            Fault::Lost => {}
        }
    }
}

/// Runs an exchange to its end.
async fn exchange(
    shared: &Arc<Shared>,
    conn: &Conn,
    stream: StreamId,
    mut send: SendStream,
    mut recv: RecvStream,
    orders: Orders,
) {
    let Orders { mut frames, mut dropped, overrun } = orders;
    let moved = Moved::default();
    let ended = tokio::select! {
        biased;
        _ = &mut dropped => None,
        result = async { tokio::try_join!(
            write_exchange(shared, conn, stream, &mut send, &mut frames, &moved, &overrun),
            read_exchange(shared, conn, stream, &mut recv, &moved),
        ) } => Some(result),
    };
    match ended {
        Some(Ok(_)) => {
            shared.streams.forget(stream);
        }
        Some(Err(fault)) => {
            shared.count_fault(&fault);
            let closed = closed_for(&fault);
            let _ = send.reset(close::varint(closed.code));
            let _ = recv.stop(close::varint(closed.code));
            if matches!(fault, Fault::TooLarge(_)) {
                conn.close(closed);
            }
            lost(shared, &conn.peer, stream);
        }
        None => {
            let _ = send.reset(close::varint(CloseCode::UNSPECIFIED));
            let _ = recv.stop(close::varint(CloseCode::UNSPECIFIED));
            shared.counters.streams_lost.one();
        }
    }
}

async fn write_exchange(
    shared: &Shared,
    conn: &Conn,
    stream: StreamId,
    send: &mut SendStream,
    frames: &mut mpsc::Receiver<Option<Bytes>>,
    moved: &Moved,
    overrun: &AtomicBool,
) -> Result<(), Fault> {
    while let Some(order) = frames.recv().await {
        if overrun.load(Relaxed) {
            tracing::error!(peer = %conn.peer, "more frames were sent than may wait; the stream is given up");
            return Err(Fault::Lost);
        }
        let Some(bytes) = order else {
            return send.finish().map_err(|_| Fault::Lost);
        };
        let size = bytes.len();
        write_frame(send, bytes).await?;
        moved.add(size);
        shared.counters.frames_sent.one();
        shared.counters.frame_bytes_sent.add(size);
        shared.host.stream(&conn.peer, stream, StreamEvent::Sent);
        yield_now().await;
    }
    Err(Fault::Lost)
}

async fn read_exchange(
    shared: &Shared,
    conn: &Conn,
    stream: StreamId,
    recv: &mut RecvStream,
    moved: &Moved,
) -> Result<(), Fault> {
    let begun = clock::monotonic();
    loop {
        let read = read_frame(recv, STILL, FRAME_LEN_MAX).await;
        // A frame now and then would keep others from having theirs.
        let age = clock::monotonic().saturating_duration_since(begun);
        if age > EXCHANGE_AGE && moved.bytes() < EXCHANGE_RATE * age.as_secs() {
            return Err(Fault::TooSlow);
        }
        match read {
            // The peer only listens while we write.
            Err(Fault::Silent) if moved.since_asked() => {}
            Ok(Some(bytes)) => {
                moved.add(bytes.len());
                shared.counters.frames_received.one();
                shared.counters.frame_bytes_received.add(bytes.len());
                shared.host.stream(&conn.peer, stream, StreamEvent::Frame(bytes));
                // A whole window of frames may have come: pings are answered between two of them.
                yield_now().await;
            }
            Ok(None) => {
                shared.host.stream(&conn.peer, stream, StreamEvent::Finished);
                return Ok(());
            }
            Err(fault) => return Err(fault),
        }
    }
}

// ---- what a peer opens

/// Serves one stream that an admitted peer opened.
pub(crate) async fn serve(shared: Arc<Shared>, conn: Arc<Conn>, mut send: SendStream, mut recv: RecvStream) {
    match read_kind(&mut recv).await {
        Ok(MESSAGES) => {
            let _ = send.finish();
            read_messages(&shared, &conn, recv).await;
        }
        Ok(EXCHANGE) => {
            let stream = shared.host.stream_id();
            let orders = shared.streams.begin(stream);
            shared.host.stream(&conn.peer, stream, StreamEvent::Opened);
            exchange(&shared, &conn, stream, send, recv, orders).await;
        }
        Ok(ECHO) => answer_echo(&shared, Some(&conn.peer), &mut send).await,
        Ok(HELLO) => conn.close(Closed::ours(CloseCode::PROTOCOL_VIOLATION, "a second hello")),
        Ok(_) => refuse(&shared, &mut send, &mut recv, CloseCode::PROTOCOL_VIOLATION),
        Err(Fault::TooSlow) => {
            shared.count_fault(&Fault::TooSlow);
            refuse(&shared, &mut send, &mut recv, CloseCode::TOO_SLOW);
        }
        Err(_) => shared.counters.streams_lost.one(),
    }
}

/// A stream of a kind that a later version may know, or one that never says which it is: only it is lost.
fn refuse(shared: &Shared, send: &mut SendStream, recv: &mut RecvStream, code: CloseCode) {
    shared.counters.streams_refused.one();
    let _ = send.reset(close::varint(code));
    let _ = recv.stop(close::varint(code));
}

// ---- echo: does the process still live, and in which life

/// Says who and which life this is.
pub(crate) async fn answer_echo(shared: &Shared, peer: Option<&NodeId>, send: &mut SendStream) {
    let epoch = shared.host.introduce(peer).epoch;
    let answer = [&epoch.to_be_bytes(), shared.config.node_id.as_str().as_bytes()].concat();
    let _ = write_frame(send, answer.into()).await;
    let _ = send.finish();
}

/// Asks the process at the other end who and which life it is.
pub(crate) async fn ask_echo(connection: &quinn::Connection) -> Option<(NodeId, u64)> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    write_kind(&mut send, ECHO).await.ok()?;
    let _ = send.finish();
    let answer = read_frame(&mut recv, HEADER, 256).await.ok()??;
    let (epoch, node) = answer.split_first_chunk::<8>()?;
    let node = NodeId::new(std::str::from_utf8(node).ok()?).ok()?;
    Some((node, u64::from_be_bytes(*epoch)))
}
