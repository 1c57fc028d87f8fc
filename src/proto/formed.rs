//! Nodes that begin as members of a cluster which has long stood: whole tables instead of n joins. For the
//! simulator's large clusters; a real node always joins.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use crate::{
    NodeId,
    proto::{
        Now, Protocol,
        members::{Member, Rtt},
    },
};

/// The rows that all nodes of a cluster begin with, in the order of their names.
pub(crate) struct Formed {
    /// Each as those hold it that have no connection to it, and as those that have one.
    rows: Vec<(NodeId, [Arc<Member>; 2])>,
    chains: Arc<BTreeMap<u64, Bytes>>,
    hash: Option<u64>,
}

impl Formed {
    /// From what fresh nodes say of themselves.
    pub(crate) fn of<'a>(cores: impl Iterator<Item = &'a Protocol>, rtt: Duration) -> Self {
        let mut chains = BTreeMap::new();
        let mut rows: Vec<_> = cores
            .map(|core| {
                let me = core.members.me();
                if let Some(chain) = core.members.chain(me.signed.chain_hash) {
                    chains.insert(me.signed.chain_hash, chain.clone());
                }
                let mut apart = me.clone();
                apart.cause = "the cluster was formed with it".into();
                let mut linked = apart.clone();
                linked.linked = true;
                linked.heard = Some(linked.since);
                linked.rtt = Some(Rtt::sampled(None, rtt));
                (core.me.clone(), [Arc::new(apart), Arc::new(linked)])
            })
            .collect();
        rows.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Self { rows, chains: Arc::new(chains), hash: None }
    }

    /// Makes a fresh node one of the cluster.
    pub(crate) fn admit(&mut self, core: &mut Protocol) {
        let rows = self.rows.iter().map(|(id, [apart, _])| (id.clone(), Arc::clone(apart)));
        core.members.begin_with(rows, &self.chains, self.hash);
        self.hash = Some(core.members.hash());
        core.synced = Some(2);
    }

    /// Gives it connections to those of these ranks.
    pub(crate) fn link(&self, core: &mut Protocol, ranks: &BTreeSet<usize>, now: Now) {
        for (id, [_, linked]) in ranks.iter().map(|rank| &self.rows[*rank]) {
            core.members.share(id, linked);
        }
        core.links = ranks.len();
        core.heard = now.time;
    }
}

impl Protocol {
    /// Where this node stands on the ring.
    pub(crate) fn place(&self) -> u64 {
        self.members.me().place
    }
}
