//! What the core's unit tests share.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{NodeId, proto::ProtocolConfig};

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a test's name is valid")
}

/// The defaults of the public configuration.
pub(crate) fn config(name: &str) -> ProtocolConfig {
    ProtocolConfig {
        node_id: id(name),
        cluster: "edge".into(),
        epoch: 1_767_225_600_000,
        address: ([10, 0, 0, 1], 7946).into(),
        zone: None,
        tags: BTreeMap::new(),
        gossip_interval: Duration::from_millis(200),
        gossip_fanout: 2,
        push_pull_interval: Duration::from_secs(10),
        max_batch_size: 100,
        ping_interval: Duration::from_secs(1),
        ping_timeout: Duration::from_millis(500),
        ping_req_count: 3,
        suspicion_mult: 3,
        dead_node_reclaim: Duration::from_secs(86_400),
        tombstone_ttl: Duration::from_secs(86_400),
        max_connections: 512,
        disabled: BTreeSet::new(),
    }
}
