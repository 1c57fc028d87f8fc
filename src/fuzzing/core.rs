//! Bytes from one peer into a core that has others, and state: a message, a stream's bytes in pieces, a hello. The
//! bytes are the peer's own; what came before them is not.

use std::{
    cell::OnceCell,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, ReadBuf},
    runtime::{Builder, Runtime},
};

use super::{input::Input, node::Node};
use crate::{
    Options, StateType, Value,
    net::{Fault, decode_hello, read_frame},
    proto::{
        Now, StreamInput, Verdict,
        fixtures::{WALL_MS, at, id, signed},
    },
    wire::{
        StreamId, codec,
        hello::Introduction,
        limits,
        message::{ClaimBody, CoreHello, Signed},
    },
};

/// A message from one of the peers, twice: what comes again changes nothing that the first did not.
pub(super) fn message(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let mut node = settled();
    let peer = id(["b", "c", "d", "stranger", "a"][usize::from(first & 0x7f) % 5]);
    let bytes = Bytes::copy_from_slice(bytes);
    for ms in [100, 150] {
        node.core.handle_message(&peer, &bytes, at(ms));
        node.settle();
    }
    node.walk(at(150), at(2_000), drop);
    is_well(&mut node, at(2_000));
}

/// A stream's bytes, which arrive in pieces of any length: frames of an exchange.
pub(super) fn frames(bytes: &[u8]) {
    let Some((cuts, bytes)) = bytes.split_first_chunk::<8>() else { return };
    let mut node = settled();
    let (peer, stream) = (id("b"), StreamId(2));
    let mut now = at(100);
    node.stream(&peer, stream, StreamInput::Opened, now);
    node.settle();
    let mut pieces = Pieces { bytes, cuts: *cuts, next: 0, waits: false };
    let mut whole = 0;
    let end = wait_for(async {
        loop {
            match read_frame(&mut pieces, Duration::from_secs(1), limits::FRAME_LEN_MAX).await {
                Ok(Some(frame)) => {
                    assert_eq!(
                        &bytes[whole + 4..whole + 4 + frame.len()],
                        &frame[..],
                        "other bytes than came"
                    );
                    whole += 4 + frame.len();
                    node.stream(&peer, stream, StreamInput::Frame(frame), now);
                    node.settle();
                    node.stream(&peer, stream, StreamInput::Sent, now);
                    node.settle();
                    now.time += Duration::from_millis(20);
                    node.wake(now);
                    node.settle();
                }
                Ok(None) => break StreamInput::Finished,
                Err(Fault::Lost) => {
                    let rest = &bytes[whole..];
                    assert!(rest.len() < 4 || claimed(rest) > rest.len() - 4, "a whole frame was lost");
                    break StreamInput::Lost;
                }
                Err(Fault::TooLarge(size)) => {
                    assert!(size > limits::FRAME_LEN_MAX && size == claimed(&bytes[whole..]));
                    break StreamInput::Lost;
                }
                Err(fault) => panic!("{fault:?}, though nothing is slow"),
            }
        }
    });
    node.stream(&peer, stream, end, now);
    node.settle();
    let later = Now { time: now.time + Duration::from_secs(2), wall_ms: now.wall_ms + 2_000 };
    node.walk(now, later, drop);
    is_well(&mut node, later);
}

/// A hello or welcome: as it comes off the wire, or one that is well formed and says anything.
pub(super) fn hello(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let mut input = Input::new(rest);
    let introduction = if first & 1 == 0 {
        let Ok(introduction) = decode_hello(rest) else { return };
        let again = codec::encode(&introduction);
        assert!(again.len() <= rest.len() + 16, "{} bytes out of {}", again.len(), rest.len());
        assert_eq!(decode_hello(&again).ok().as_ref(), Some(&introduction), "it does not go round");
        introduction
    } else {
        let of = input.node();
        input.introduction(&of)
    };
    let mut node = settled();
    let now = at(100);
    let verdict = node.core.judge(&introduction, now);
    if let Verdict::Refuse(_, reason) = &verdict {
        assert!(!reason.is_empty());
    }
    // The transport lets nobody in who was refused; the core must bear it all the same.
    let peer = introduction.node_id.clone();
    if peer == id("a") {
        return assert!(verdict != Verdict::Admit, "it would let itself in");
    }
    let before = unbelieved(&node);
    node.connect(&peer, &introduction, now);
    node.settle();
    if verdict == Verdict::Admit {
        let counted = unbelieved(&node) > before;
        assert!(
            counted || node.core.node(&peer).is_some(),
            "it was let in, is not known, and nobody counted why"
        );
    }
    node.walk(now, at(2_000), drop);
    is_well(&mut node, at(2_000));
}

/// Claims that were not believed. A peer may be let in whose claim is one of these; it is no member then.
fn unbelieved(node: &Node) -> u64 {
    let counters = node.core.counters();
    counters.claims_refused + counters.claims_forged + counters.members_refused + counters.malformed
}

/// A core with three peers, of which two are connected, and some records.
pub(super) fn settled() -> Node {
    let mut node = Node::new("a", |config| config.push_pull_interval = Duration::from_secs(1));
    for name in ["b", "c", "d"] {
        node.connect(&id(name), &introduction(name, 0), at(0));
    }
    node.disconnect(&id("d"), at(1));
    let routes = StateType::shared("routes");
    for (state_type, key) in [(&routes, "k0"), (&routes, "k1"), (&StateType::HEALTH, "k0")] {
        let value = Value::from_checked(Bytes::from_static(b"\x01"));
        let written = node.core.broadcast(state_type, key, value, Options::default(), at(2));
        assert!(written.is_ok(), "{written:?}");
    }
    node.settle();
    node
}

/// What a peer says whose life is as fresh as the core's.
pub(super) fn introduction(name: &str, incarnation: u64) -> Introduction {
    let body = ClaimBody {
        node_id: id(name),
        epoch: WALL_MS,
        incarnation,
        left: false,
        address: ([10, 0, 0, 2], 7_000).into(),
        zone: None,
        tags: std::collections::BTreeMap::new(),
    };
    let hello = CoreHello { claim: signed(&body), clock: 0, disabled: Vec::new(), signed: Signed::None };
    Introduction {
        versions: (1, 1),
        cluster: "edge".into(),
        node_id: id(name),
        epoch: WALL_MS,
        incarnation,
        zone: None,
        listen: None,
        your_epoch: 0,
        core: codec::encode(&hello).into(),
    }
}

/// The node does what its user asks, whatever it has heard.
pub(super) fn is_well(node: &mut Node, now: Now) {
    let (state_type, value) = (StateType::shared("still"), Value::from_checked(Bytes::from_static(b"\x01")));
    let written = node.core.broadcast(&state_type, "here", value, Options::default(), now);
    let held = node.core.get(&state_type, "here");
    assert_eq!(written.ok(), held, "what was written is not there");
    node.settle();
}

fn claimed(frame: &[u8]) -> usize {
    frame.first_chunk().map_or(0, |size| u32::from_be_bytes(*size) as usize)
}

/// Bytes that arrive in pieces.
struct Pieces<'a> {
    bytes: &'a [u8],
    /// The lengths of the pieces, less one, again and again.
    cuts: [u8; 8],
    next: usize,
    /// Whether the reader has just been made to wait.
    waits: bool,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let cut = self.cuts[self.next % self.cuts.len()];
        if cut >= 0xf0 && !std::mem::replace(&mut self.waits, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.waits = false;
        self.next += 1;
        let len = (usize::from(cut) + 1).min(self.bytes.len()).min(into.remaining());
        let (piece, rest) = self.bytes.split_at(len);
        into.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

fn wait_for<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
    }
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            Builder::new_current_thread().enable_time().build().expect("a runtime without sockets")
        });
        runtime.block_on(future)
    })
}
