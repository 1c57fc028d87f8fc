//! A cluster to be abused: two honest nodes with data worth keeping, and the proof that they took no harm.

use std::{sync::Mutex, time::Duration};

use phalanx::{Cluster, Config, EventKind, Identity, StateType, Stats};

use crate::{
    common::{Log, config, id, started, text, until},
    mint::{Certificate, Mint},
    peer::{Mask, Peer},
};

pub(crate) struct World {
    pub(crate) mint: Mint,
    pub(crate) nodes: Vec<Cluster>,
    logs: Vec<Log>,
    /// How often its health was proved.
    next: Mutex<u32>,
}

/// Patient enough that a machine under load makes nobody suspect: only what a bad peer does counts.
pub(crate) fn patient(identity: Identity, seeds: &[&Cluster]) -> Config {
    let mut config = config(identity, seeds);
    config.ping_interval = Duration::from_secs(2);
    config.ping_timeout = Duration::from_millis(1_500);
    config
}

pub(crate) fn name(node: &str) -> String {
    format!("spiffe://test/node/{node}")
}

fn kept() -> StateType {
    "kept".into()
}

impl World {
    /// `n0` and `n1`, which know one another and hold one good record.
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl Fn(&mut Config)) -> Self {
        let mint = Mint::new("ours");
        let mut nodes: Vec<Cluster> = Vec::new();
        for number in 0..2 {
            let seeds: Vec<_> = nodes.first().into_iter().collect();
            let mut config = patient(mint.identity(&name(&format!("n{number}"))), &seeds);
            change(&mut config);
            nodes.push(started(config).await);
        }
        until("both see both", || nodes.iter().all(|node| node.cluster_size() == 2)).await;
        nodes[1].broadcast(kept(), "good", &"data").unwrap();
        until("both have it", || nodes.iter().all(|node| text(node, &kept(), "good").is_some())).await;
        let logs = nodes.iter().map(Log::of).collect();
        Self { mint, nodes, logs, next: Mutex::new(0) }
    }

    /// The node that is abused.
    pub(crate) fn victim(&self) -> &Cluster {
        &self.nodes[0]
    }

    pub(crate) fn door(&self) -> std::net::SocketAddr {
        self.victim().local_node().address
    }

    pub(crate) fn stats(&self) -> Stats {
        self.victim().stats()
    }

    pub(crate) fn refused(&self, cause: &str) -> u64 {
        self.stats().net.refused.get(cause).copied().unwrap_or(0)
    }

    pub(crate) fn closed(&self, cause: &str) -> u64 {
        self.stats().net.closed.get(cause).copied().unwrap_or(0)
    }

    pub(crate) fn certificate(&self, node: &str) -> Certificate {
        self.mint.certificate(&name(node), |_| {})
    }

    pub(crate) fn mask(&self, node: &str) -> Mask {
        Mask::new(node, self.certificate(node))
    }

    /// A bad member of that name, which the victim has let in.
    pub(crate) async fn peer(&self, node: &str) -> Peer {
        let peer = self.mask(node).join(self.door()).await;
        until("the victim knows it", || self.victim().is_alive(&id(node))).await;
        peer
    }

    pub(crate) fn told(&self, kind: EventKind, node: &str) -> usize {
        self.logs.iter().map(|log| log.told(kind, node)).sum()
    }

    /// The victim serves, the other honest node noticed nothing, what was there is there.
    pub(crate) async fn is_unharmed(&self) {
        self.is_unharmed_but_for(&[]).await;
    }

    /// The same, where those events are what the case is about.
    pub(crate) async fn is_unharmed_but_for(&self, expected: &[EventKind]) {
        for node in ["n0", "n1"] {
            let kinds = [EventKind::NodeSuspect, EventKind::NodeDead, EventKind::NodeLeave];
            for kind in kinds.into_iter().filter(|kind| !expected.contains(kind)) {
                assert_eq!(self.told(kind, node), 0, "{kind:?} of {node}");
            }
        }
        for (node, other) in [(&self.nodes[0], "n1"), (&self.nodes[1], "n0")] {
            let explained = node.explain(&id(other)).unwrap();
            assert!(explained.connection.is_some(), "{other} has lost its connection: {explained}");
            let last = explained.last_close.filter(|last| last.name != "duplicate-connection");
            assert_eq!(last, None, "{other} was closed");
            assert_eq!(text(node, &kept(), "good").as_deref(), Some("data"), "good data is gone");
        }
        let number = {
            let mut next = self.next.lock().unwrap();
            *next += 1;
            *next
        };
        let key = format!("after-{number}");
        self.nodes[1].broadcast("proof", key.clone(), &number).unwrap();
        until("the other's writes arrive", || self.victim().get(&"proof".into(), &key).is_some()).await;
        let newcomer = format!("good-{number}");
        let good = started(patient(self.mint.identity(&name(&newcomer)), &[self.victim()])).await;
        good.broadcast("proof", newcomer.clone(), &number).unwrap();
        until("a newcomer is served", || self.victim().get(&"proof".into(), &newcomer).is_some()).await;
        until("it has the good data", || text(&good, &kept(), "good").is_some()).await;
        good.stop().await.unwrap();
    }
}
