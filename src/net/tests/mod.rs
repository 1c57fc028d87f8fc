//! Whole transports against one another and against bad peers, most of them on a network in memory and
//! virtual time.

mod admission;
mod connections;
mod messages;
mod sockets;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::AtomicU64,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::{
    memory::{Network, Weather},
    *,
};
use crate::identity::{Authority, SpiffeName, Validity};

struct TestHost {
    introduction: Mutex<Introduction>,
    judgement: Mutex<Judgement>,
    log: Mutex<Vec<String>>,
    messages: Mutex<Vec<(NodeId, Bytes)>>,
    events: Mutex<Vec<(StreamId, StreamEvent)>>,
    next: AtomicU64,
}

impl TestHost {
    fn said(&self, what: &str) -> usize {
        lock(&self.log).iter().filter(|line| line.contains(what)).count()
    }

    fn note(&self, line: String) {
        lock(&self.log).push(line);
    }
}

impl Host for TestHost {
    fn introduce(&self, _peer: Option<&NodeId>) -> Introduction {
        lock(&self.introduction).clone()
    }

    fn judge(&self, _peer: &Introduction) -> Judgement {
        lock(&self.judgement).clone()
    }

    fn connected(&self, peer: &NodeId, introduction: Introduction, _link: Link) {
        self.note(format!("connected {peer} {}", introduction.epoch));
    }

    fn disconnected(&self, peer: &NodeId, closed: &Closed) {
        self.note(format!("disconnected {peer} {:#x} {}", closed.code.0, closed.reason));
    }

    fn dial_failed(&self, peer: &NodeId, _address: SocketAddr, why: &Error) {
        self.note(format!("dial-failed {peer} {why}"));
    }

    fn message(&self, from: &NodeId, bytes: Bytes, _way: Way) -> usize {
        lock(&self.messages).push((from.clone(), bytes));
        0
    }

    fn stream(&self, _peer: &NodeId, stream: StreamId, event: StreamEvent) {
        lock(&self.events).push((stream, event));
    }

    fn stream_id(&self) -> StreamId {
        StreamId(self.next.fetch_add(2, Relaxed))
    }

    fn conflict(&self, node: &NodeId, reason: &str) {
        self.note(format!("conflict {node} {reason}"));
    }
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn introduction(name: &str, epoch: u64) -> Introduction {
    Introduction {
        versions: (1, 1),
        cluster: "edge".into(),
        node_id: id(name),
        epoch,
        incarnation: 0,
        zone: None,
        listen: None,
        your_epoch: 0,
        core: Bytes::new(),
    }
}

struct Node {
    host: Arc<TestHost>,
    transport: Transport,
}

impl Node {
    fn address(&self) -> SocketAddr {
        self.transport.local_address()
    }

    fn admitted(&self) -> usize {
        lock(&self.transport.shared.pool).all().len()
    }
}

struct World {
    network: Arc<Network>,
    authority: Authority,
    next: std::cell::Cell<u16>,
}

fn world(weather: Weather) -> World {
    let authority = Authority::generate("edge").unwrap();
    World { network: Network::new(7, weather), authority, next: std::cell::Cell::new(1) }
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, 1), port).into()
}

fn host(introduction: Introduction) -> Arc<TestHost> {
    Arc::new(TestHost {
        introduction: Mutex::new(introduction),
        judgement: Mutex::new(Judgement::Admit),
        log: Mutex::default(),
        messages: Mutex::default(),
        events: Mutex::default(),
        next: AtomicU64::new(2),
    })
}

fn config(name: &str, cluster: &str) -> NetConfig {
    NetConfig {
        bind: (Ipv4Addr::LOCALHOST, 0).into(),
        cluster: cluster.into(),
        node_id: id(name),
        policy: Policy::default(),
        max_connections: 512,
    }
}

impl World {
    fn node(&self, name: &str) -> Node {
        self.node_as(introduction(name, 1), config(name, "edge"), &self.authority.issue(&id(name)).unwrap())
    }

    fn node_as(&self, says: Introduction, config: NetConfig, identity: &Identity) -> Node {
        let port = self.next.replace(self.next.get() + 1);
        let host = host(says);
        let socket = self.network.socket(address(port));
        let transport = Transport::bind_on(socket, config, identity, Arc::clone(&host) as _).unwrap();
        Node { host, transport }
    }

    /// The refused peer's view, and proof that the refusing node goes on serving others.
    async fn refused(&self, server: &Node, bad: &Node, says: &str) {
        let error = bad.transport.dial_seed(server.address()).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
        assert_eq!(server.host.said(&format!("connected {}", bad.transport.shared.config.node_id)), 0);
        self.serves(server).await;
    }

    async fn serves(&self, server: &Node) {
        let good = self.node("good");
        assert_eq!(good.transport.dial_seed(server.address()).await.unwrap(), id("server"));
        assert!(good.transport.send(&id("server"), Bytes::from_static(b"hi")));
        until(|| lock(&server.host.messages).iter().any(|(from, _)| *from == id("good"))).await;
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    timeout(Duration::from_secs(60), async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it does not come to pass");
}
