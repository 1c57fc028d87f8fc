//! `phalanx`: the certificates of a cluster from the command line. Reads arguments, calls the library, tells
//! what was done; decides nothing about certificates itself.

mod ask;
mod authority;
mod doctor;
mod inspect;
mod node;
mod options;
mod report;
mod rotate;

use std::process::ExitCode;

use clap::Parser;

use self::{
    options::{Ca, Command, Crl, Node, Options, Rotate},
    report::{Failure, Report},
};

fn main() -> ExitCode {
    let options = Options::parse();
    let json = options.json;
    match run(options.command) {
        Ok(report) => report.print(json),
        Err(failure) => failure.print(json),
    }
}

fn run(command: Command) -> Result<Report, Failure> {
    match command {
        Command::Ca(Ca::Init { cluster, home }) => authority::init(&cluster, &home.dir),
        Command::Ca(Ca::Rotate(Rotate::Begin { home })) => rotate::begin(&home.dir),
        Command::Ca(Ca::Rotate(Rotate::Status { home, seen })) => rotate::status(&home.dir, &seen),
        Command::Ca(Ca::Rotate(Rotate::Finish { home, seen })) => rotate::finish(&home.dir, &seen),
        Command::Crl(Crl::Publish { out, home }) => authority::publish(&home.dir, &out),
        Command::Node(Node::Issue { id, out, days, home }) => node::issue(&home.dir, &id, &out, days),
        Command::Node(Node::Csr { id, out, keep_key }) => node::csr(&id, &out, keep_key),
        Command::Node(Node::Sign { csr, id, out, days, home }) => {
            node::sign(&home.dir, &csr, &id, &out, days)
        }
        Command::Node(Node::Renew { id, out, days, keep_key, home }) => {
            node::renew(&home.dir, &id, &out, days, keep_key)
        }
        Command::Node(Node::Revoke { what, cert, home }) => {
            node::revoke(&home.dir, what.as_deref(), cert.as_deref())
        }
        Command::Node(Node::List { home }) => node::list(&home.dir),
        Command::Inspect { file } => inspect::inspect(&file),
        Command::Doctor { config } => Ok(doctor::doctor(&config)),
    }
}
