//! skeleton
mod error;
mod event;
mod identity;
mod net;
mod node;
mod proto;
mod provider;
mod state;
mod wire;
mod driver {
    pub(crate) mod clock {
        #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
        pub(crate) fn wall_now() -> std::time::SystemTime {
            std::time::SystemTime::now()
        }
        /// For waiting and for budgets; follows tokio's paused time in tests.
        #[expect(clippy::disallowed_methods, reason = "the one place where the clock is read")]
        pub(crate) fn monotonic() -> tokio::time::Instant {
            tokio::time::Instant::now()
        }
    }
}

pub use self::{
    error::{ConfigFault, Error},
    event::{ClusterEvent, EventData, EventKind},
    net::NetStats,
    node::{NodeId, NodeInfo, NodeStatus},
    provider::{Applied, StateProvider},
    state::{Options, Spread, StateChange, StateKey, StateType, SyncableState, Value},
};
