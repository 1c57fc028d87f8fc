//! One shared, secure mind for a fleet of load balancers: who is alive, and what each of them knows, over
//! mutual TLS and QUIC.
//!
//! # A tour
//!
//! ```
//! use phalanx::{Authority, Cluster, Config, NodeId, StateType};
//!
//! # async fn tour() -> Result<(), phalanx::Error> {
//! let authority = Authority::generate("edge")?; // a private CA; "edge" is the cluster's name
//! let mut config = Config::default();
//! config.enabled = true;
//! config.bind_address = std::net::Ipv4Addr::LOCALHOST.into();
//! config.bind_port = 0; // 0: the system picks; Started tells
//! config.identity = Some(authority.issue(&NodeId::new("lb-1")?)?);
//! // config.seeds = vec!["lb-2.example:7946".into()]; // where to find the others
//!
//! let cluster = Cluster::new(config)?; // validates; no I/O but reading certificate files
//! let events = cluster.subscribe(|event| println!("{event}")); // before start, so ClusterStarted is seen too
//! let started = cluster.start().await?.expect("enabled");
//! cluster.broadcast("health", "backend-7", "up")?;
//! let record = cluster.get(&StateType::HEALTH, "backend-7").expect("just written");
//! assert_eq!(record.value.decode::<String>()?, "up");
//! assert!(cluster.alive_nodes().contains(&started.node_id));
//! events.unsubscribe();
//! cluster.stop().await?; // leaves gracefully
//! # Ok(())
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(tour())?;
//! # Ok::<(), phalanx::Error>(())
//! ```
//!
//! [`Cluster`] is the way in; [`Config`] says what can be set; a certificate says who a node is
//! ([`Identity`],
//! [`Authority`]). State is shared as [`SyncableState`] of a [`StateType`], written by
//! [`Cluster::broadcast`] or offered by a [`StateProvider`].

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("phalanx needs one of the features `aws-lc-rs` (the default) and `ring`");

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod cluster;
mod config;
mod doctor;
mod driver;
mod error;
mod event;
#[cfg(any(all(test, feature = "authority"), feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod identity;
pub mod lb;
mod net;
mod node;
mod proto;
mod provider;
#[cfg(any(test, feature = "sim"))]
#[cfg_attr(not(all(test, feature = "sim")), allow(dead_code, reason = "what experiments leave, tests use"))]
#[doc(hidden)]
pub mod sim;
mod state;
mod stats;
mod wire;

#[cfg(feature = "authority")]
pub use self::identity::{
    Authority, Certificate, Inspected, InspectedCertificate, InspectedKey, InspectedList, InspectedRequest,
    Issued, RequestPaths, Rotation, Shown, SigningRequest, Standing, Validity, Waiting,
};
pub use self::{
    cluster::Cluster,
    config::{Config, Sign, TlsConfig},
    doctor::Diagnosis,
    driver::{
        CloseInfo, ConnectionInfo, EventStream, Explanation, Started, StateStream, Status, Subscription,
        Synced,
    },
    error::{ConfigFault, Error},
    event::{ClusterEvent, EventData, EventKind},
    identity::{Identity, Paths, SignatureScheme, SigningKey},
    net::NetStats,
    node::{NodeId, NodeInfo, NodeStatus},
    proto::{MemberExplanation, ProtoCounters},
    provider::{Applied, StateProvider},
    state::{Options, Spread, StateChange, StateKey, StateType, SyncableState, Value},
    stats::{GossipStats, IdentityStats, ListStats, MembershipStats, ProviderStats, Stats},
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
