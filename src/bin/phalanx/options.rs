//! The arguments, and what `--help` says of them. Checks form only.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// The certificates of a phalanx cluster: a private authority (CA), its nodes, revocations, and the move to
/// another root.
#[derive(Debug, Parser)]
#[command(
    name = "phalanx",
    version,
    after_help = "\
Exit codes:
  0  done
  1  the answer is no: doctor found faults, or a rotation cannot be finished yet
  2  wrong arguments
  3  it failed; the message says why, what to do, and what was left behind

With --json there is one JSON object on the standard output, also when it fails (exit codes 1 and 3):
\"command\", \"ok\", \"message\", \"next\" (commands), \"error\" (when it failed), and what the command adds.
Times are in UTC (RFC 3339). Messages for people about what failed are on the standard error."
)]
pub(crate) struct Options {
    /// One JSON object on the standard output, for other programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The authority: make it, move it to another root
    #[command(subcommand)]
    Ca(Ca),
    /// The nodes' certificates: issue, sign, renew, revoke
    #[command(subcommand)]
    Node(Node),
    /// The revocation list
    #[command(subcommand)]
    Crl(Crl),
    /// Say what is in a certificate, revocation list, signing request, CA file or key; never shows a key
    Inspect {
        /// The file, in PEM
        file: PathBuf,
    },
    /// Say everything for which a node would refuse to start with a configuration, without starting it
    ///
    /// The PHALANX_* variables of the environment count, as they do at a start. The node's port is opened
    /// for a moment: while the node itself runs, doctor says that the port is taken.
    Doctor {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Where the authority lives.
#[derive(Debug, Args)]
pub(crate) struct Home {
    /// The authority's directory; keep it away from the nodes
    #[arg(long = "dir", value_name = "DIR", default_value = "ca")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Make the authority of a cluster
    Init {
        /// The cluster's name: 1 to 255 of a-z 0-9 . _ -
        cluster: String,
        #[command(flatten)]
        home: Home,
    },
    /// Move to another root, while the cluster runs
    #[command(subcommand)]
    Rotate(Rotate),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rotate {
    /// Make the new root; from then on it issues, and nodes must trust both
    ///
    /// Give every node the CA file with both roots before any node gets a certificate of the new one.
    Begin {
        #[command(flatten)]
        home: Home,
    },
    /// Say which nodes may still show a certificate of the old root
    Status {
        #[command(flatten)]
        home: Home,
        #[command(flatten)]
        seen: Seen,
    },
    /// Drop the old root; refuses while a node may still show a certificate of it
    ///
    /// The authority's own record decides: every certificate that it issued under the old root, and that
    /// neither expired nor was revoked, counts as still in use, also after its node was given a new one:
    /// whether the node has taken it, the record does not know. --shown and --ask bring evidence: a node
    /// that is seen with a certificate of the new root, and not with one of the old, has moved. Whatever is
    /// seen under the old root counts too, recorded or not.
    Finish {
        #[command(flatten)]
        home: Home,
        #[command(flatten)]
        seen: Seen,
    },
}

/// Evidence of what nodes use.
#[derive(Debug, Args)]
pub(crate) struct Seen {
    /// A certificate file in use on a node, or a directory of such (.pem and .crt below it); may be repeated
    #[arg(long, value_name = "PATH")]
    pub(crate) shown: Vec<PathBuf>,
    /// The address of a running node: it is asked which certificate it shows; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) ask: Vec<String>,
}

/// How long a certificate lasts: at most ten years, as the authority itself.
fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=3_650)
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Make a key and a certificate for a node
    Issue {
        /// The node's id: 1 to 128 of A-Z a-z 0-9 . _ -
        id: String,
        /// Where ca.pem, cert.pem and key.pem go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// For how many days at most; up to a tenth is left off by chance, so that a fleet does not expire at once
        #[arg(long, default_value_t = 90, value_parser = days())]
        days: u32,
        #[command(flatten)]
        home: Home,
    },
    /// On the node: make a key that never leaves it, and a signing request for the authority
    Csr {
        /// The node's id
        id: String,
        /// Where key.pem and node.csr go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Make the request for the key.pem that is there
        #[arg(long)]
        keep_key: bool,
    },
    /// At the authority: certify the key of a signing request
    ///
    /// Of the request only the key counts, and that it signed the request. Whatever names and rights it asks
    /// for are ignored: whose key it is, you say with --id.
    Sign {
        /// The request
        csr: PathBuf,
        /// The id of the node that made the request
        #[arg(long, value_name = "ID")]
        id: String,
        /// Where ca.pem and cert.pem go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// For how many days at most, as for issue
        #[arg(long, default_value_t = 90, value_parser = days())]
        days: u32,
        #[command(flatten)]
        home: Home,
    },
    /// Issue a new certificate, with a new serial number and a new key, to a node that has one
    ///
    /// The old one stays valid until it expires. A node that made its own key is renewed by csr and sign, or
    /// with --keep-key.
    Renew {
        /// The node's id
        id: String,
        /// Where ca.pem, cert.pem and key.pem go; this node's own in it are replaced
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// For how many days at most, as for issue
        #[arg(long, default_value_t = 90, value_parser = days())]
        days: u32,
        /// Certify the key that the node has; no key.pem is written
        #[arg(long)]
        keep_key: bool,
        #[command(flatten)]
        home: Home,
    },
    /// Revoke all certificates of a node, or one by its serial number
    Revoke {
        /// A node's id, or a serial number in hexadecimal
        #[arg(value_name = "ID|SERIAL", required_unless_present = "cert", conflicts_with = "cert")]
        what: Option<String>,
        /// A certificate file, for one that is not on record here
        #[arg(long, value_name = "FILE")]
        cert: Option<PathBuf>,
        #[command(flatten)]
        home: Home,
    },
    /// List what was issued: node, serial number, end, and whether it is in force
    List {
        #[command(flatten)]
        home: Home,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Crl {
    /// Sign a fresh revocation list with a greater number, and write it where the nodes' copies come from
    Publish {
        /// The file: tls.crl of the nodes
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        home: Home,
    },
}
