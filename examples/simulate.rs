//! Runs simulated clusters: long runs under drawn faults, and the experiments whose results are in
//! `docs/experiments`. `cargo run --release --features sim --example simulate -- help` says what there is.

use std::process::ExitCode;

fn main() -> ExitCode {
    phalanx::sim::simulate(std::env::args().skip(1))
}
