//! The abuse battery: a bad peer on bare quinn and rustls, and what must come of everything it tries. Each
//! test is named by its case in `docs/abuse.md`; the library is used as the victim and as honest nodes only.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may fail, and waits on real time")]

#[path = "../common/mod.rs"]
mod common;
mod home;
mod lies;
#[path = "../common/lines.rs"]
mod lines;
mod messages;
#[path = "../common/mint.rs"]
mod mint;
mod peer;
mod process;
mod quic;
mod table;
mod tls;
mod wire;
mod world;
