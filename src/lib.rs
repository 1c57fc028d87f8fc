//! skeleton
mod config;
mod error;
mod event;
mod identity;
mod node;
mod proto;
mod provider;
mod state;
mod wire;
mod driver {
    pub(crate) mod clock {
        pub(crate) fn wall_now() -> std::time::SystemTime {
            std::time::SystemTime::now()
        }
    }
}

#[cfg(feature = "authority")]
pub use self::identity::{Authority, Validity};
pub use self::{
    config::{Config, TlsConfig},
    error::{ConfigFault, Error},
    event::{ClusterEvent, EventData, EventKind},
    identity::{Identity, Paths},
    node::{NodeId, NodeInfo, NodeStatus},
    provider::{Applied, StateProvider},
    state::{Options, Spread, StateChange, StateKey, StateType, SyncableState, Value},
};
