//! A network in memory for whole transports on paused time: latency, loss, duplicates, a path MTU and
//! partitions, all from one seed. Test only.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fmt, io,
    io::IoSliceMut,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::time::{Instant, Sleep};

use crate::{driver::clock, net::lock};

thread_local! {
    /// The network that transports of this thread bind to, instead of the machine's.
    static CURRENT: RefCell<Option<Arc<Network>>> = const { RefCell::new(None) };
}

/// Has this thread's transports bind to the network, so that whole nodes run on it.
pub(crate) fn enter(network: &Arc<Network>) {
    CURRENT.set(Some(Arc::clone(network)));
}

pub(crate) fn current() -> Option<Arc<Network>> {
    CURRENT.with_borrow(Clone::clone)
}

/// The network: what every packet meets.
pub(crate) struct Network(Mutex<State>);

struct State {
    rng: fastrand::Rng,
    sockets: BTreeMap<SocketAddr, Arc<Mutex<Inbox>>>,
    /// Addresses of different groups do not reach one another.
    groups: BTreeMap<SocketAddr, u8>,
    weather: Weather,
    sent: u64,
    lost: u64,
}

#[derive(Clone)]
pub(crate) struct Weather {
    pub(crate) latency: Duration,
    pub(crate) jitter: Duration,
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) mtu: usize,
}

impl Default for Weather {
    fn default() -> Self {
        let (latency, jitter) = (Duration::from_millis(1), Duration::ZERO);
        Self { latency, jitter, loss: 0.0, duplication: 0.0, mtu: 1_500 }
    }
}

/// When it arrives, its number, where it came from, what it holds.
type Packet = (Instant, u64, SocketAddr, Vec<u8>);

#[derive(Default)]
struct Inbox {
    packets: BinaryHeap<Reverse<Packet>>,
    waker: Option<Waker>,
}

impl Network {
    pub(crate) fn new(seed: u64, weather: Weather) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            rng: fastrand::Rng::with_seed(seed),
            sockets: BTreeMap::new(),
            groups: BTreeMap::new(),
            weather,
            sent: 0,
            lost: 0,
        })))
    }

    pub(crate) fn socket(self: &Arc<Self>, address: SocketAddr) -> Arc<MemorySocket> {
        let inbox = Arc::default();
        lock(&self.0).sockets.insert(address, Arc::clone(&inbox));
        Arc::new(MemorySocket { network: Arc::clone(self), address, inbox, timer: Mutex::default() })
    }

    pub(crate) fn group(&self, address: SocketAddr, group: u8) {
        lock(&self.0).groups.insert(address, group);
    }

    pub(crate) fn lost(&self) -> u64 {
        lock(&self.0).lost
    }

    fn carry(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let mut state = lock(&self.0);
        let state = &mut *state;
        state.sent += 1;
        let weather = &state.weather;
        let group = |address| state.groups.get(&address).copied().unwrap_or(0);
        let cut = group(from) != group(to) || bytes.len() + 28 > weather.mtu;
        if cut || state.rng.f64() < weather.loss {
            state.lost += 1;
            return;
        }
        let copies = 1 + u32::from(state.rng.f64() < weather.duplication);
        let Some(inbox) = state.sockets.get(&to) else { return };
        for copy in 0..copies {
            let due = clock::monotonic() + weather.latency + weather.jitter.mul_f64(state.rng.f64());
            let mut inbox = lock(inbox);
            inbox.packets.push(Reverse((due, state.sent * 2 + u64::from(copy), from, bytes.to_vec())));
            if let Some(waker) = inbox.waker.take() {
                waker.wake();
            }
        }
    }
}

pub(crate) struct MemorySocket {
    network: Arc<Network>,
    address: SocketAddr,
    inbox: Arc<Mutex<Inbox>>,
    timer: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl fmt::Debug for MemorySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemorySocket({})", self.address)
    }
}

#[derive(Debug)]
struct AlwaysReady;

impl UdpPoller for AlwaysReady {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for MemorySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysReady)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(size) {
            self.network.carry(self.address, transmit.destination, packet);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = lock(&self.inbox);
        let now = clock::monotonic();
        let mut count = 0;
        while count < bufs.len().min(meta.len()) {
            match inbox.packets.peek() {
                Some(Reverse((due, ..))) if *due <= now => {}
                _ => break,
            }
            let Some(Reverse((_, _, from, bytes))) = inbox.packets.pop() else { break };
            bufs[count][..bytes.len()].copy_from_slice(&bytes);
            meta[count] =
                RecvMeta { addr: from, len: bytes.len(), stride: bytes.len(), ecn: None, dst_ip: None };
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        inbox.waker = Some(cx.waker().clone());
        let mut timer = lock(&self.timer);
        *timer = inbox.packets.peek().map(|Reverse((due, ..))| Box::pin(tokio::time::sleep_until(*due)));
        if let Some(timer) = timer.as_mut()
            && timer.as_mut().poll(cx).is_ready()
        {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
