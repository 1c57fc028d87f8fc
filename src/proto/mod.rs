//! The protocol as a state machine: inputs in, outputs out. No clock, no sockets, no `async`, no order that
//! depends on a hash map. This file hands over to the parts and holds no rule itself.

pub(crate) mod config;
pub(crate) mod output;
pub(crate) mod time;
pub(crate) mod vouch;

pub(crate) use self::{
    config::ProtocolConfig,
    output::{Output, StreamInput},
    time::{Now, Time},
    vouch::Vouch,
};

mod stub; // STUB
pub use self::stub::{MemberExplanation, ProtoCounters};
pub(crate) use self::stub::{Protocol, Verdict};
