//! `node …`: issue, csr, sign, renew, revoke, list.

use std::{path::Path, time::SystemTime};

use phalanx::{Authority, Inspected, InspectedRequest, Issued, NodeId, SigningRequest, Standing};
use serde_json::{Value, json};

use crate::report::{Failure, Of, Report, dir_option, shell, utc};

pub(crate) fn issue(dir: &Path, id: &str, out: &Path, days: u32) -> Result<Report, Failure> {
    const COMMAND: &str = "node issue";
    let id = NodeId::new(id).of(COMMAND)?;
    let authority = Authority::load(dir).of(COMMAND)?;
    let in_force = |leaf: &Issued| leaf.node_id.as_ref() == Some(&id) && leaf.standing == Standing::Valid;
    if let Some(leaf) = authority.issued().iter().find(|leaf| in_force(leaf)) {
        let (serial, out, dir) = (&leaf.serial, shell(out), dir_option(dir));
        return Err(Failure::new(
            COMMAND,
            format!(
                "node {id}: it has a certificate already ({serial}, valid until {}); to replace it: phalanx \
                 node renew {id} --out {out}{dir}; two nodes may not share an id",
                utc(leaf.not_after)
            ),
        ));
    }
    refuse_strangers_key(COMMAND, out, None)?;
    let identity = authority.issue_for(&id, authority.validity(days).of(COMMAND)?).of(COMMAND)?;
    let leaf = Fresh::new(&id, identity.serial(), identity.not_after());
    authority.write_to(dir).of(COMMAND)?;
    identity.write_to(out).map_err(|error| leaf.unwritten(COMMAND, &error))?;
    let report = leaf
        .report(COMMAND, format!("issued a certificate to {id}"), out)
        .line("  key.pem    its key: move it, do not leave a copy here");
    Ok(report.next(to_node(out)).next("phalanx doctor --config FILE   (on the node, before it starts)"))
}

pub(crate) fn csr(id: &str, out: &Path, keep_key: bool) -> Result<Report, Failure> {
    const COMMAND: &str = "node csr";
    let id = NodeId::new(id).of(COMMAND)?;
    let request = if keep_key {
        SigningRequest::with_key_file(&id, out.join("key.pem"))
    } else {
        SigningRequest::generate(&id)
    };
    let paths = request.of(COMMAND)?.write_to(out).of(COMMAND)?;
    let made = if keep_key { "the key that was there" } else { "a new key" };
    Ok(Report::new(COMMAND, format!("made a signing request for {made} of {id}"))
        .line(format!("  {}  the key; it stays here", paths.key.display()))
        .line(format!("  {}  the request, for the authority", paths.csr.display()))
        .next(format!(
            "phalanx node sign {} --id {id} --out certs/{id}   (where the authority is)",
            shell(&paths.csr)
        ))
        .field("node_id", id.as_str())
        .field("key", paths.key.display().to_string())
        .field("csr", paths.csr.display().to_string()))
}

pub(crate) fn sign(dir: &Path, csr: &Path, id: &str, out: &Path, days: u32) -> Result<Report, Failure> {
    const COMMAND: &str = "node sign";
    let id = NodeId::new(id).of(COMMAND)?;
    let authority = Authority::load(dir).of(COMMAND)?;
    let validity = authority.validity(days).of(COMMAND)?;
    let certificate = authority.sign_csr_file(csr, &id, validity).of(COMMAND)?;
    let leaf = Fresh::new(&id, certificate.serial(), certificate.not_after());
    authority.write_to(dir).of(COMMAND)?;
    certificate.write_to(out).map_err(|error| leaf.unwritten(COMMAND, &error))?;
    let mut report = leaf.report(COMMAND, format!("certified the key of {} as {id}'s", csr.display()), out);
    let ignored = wishes(csr);
    if !ignored.is_empty() {
        report = report.line(format!("  ignored    the request asks for {}", ignored.join(", ")));
    }
    Ok(report
        .field("ignored", ignored)
        .next(format!("copy ca.pem and cert.pem from {} to the node, beside its key.pem", shell(out))))
}

/// What a request asks for and does not get.
fn wishes(csr: &Path) -> Vec<String> {
    let held = Inspected::read_file(csr).unwrap_or_default();
    let Some(Inspected::Request(InspectedRequest { asks_for, asks_for_authority, .. })) =
        held.into_iter().find(|held| matches!(held, Inspected::Request(_)))
    else {
        return Vec::new();
    };
    let mut wishes = asks_for;
    if asks_for_authority {
        wishes.push("the rights of an authority".into());
    }
    wishes
}

pub(crate) fn renew(dir: &Path, id: &str, out: &Path, days: u32, keep_key: bool) -> Result<Report, Failure> {
    const COMMAND: &str = "node renew";
    let id = NodeId::new(id).of(COMMAND)?;
    let authority = Authority::load(dir).of(COMMAND)?;
    let validity = authority.validity(days).of(COMMAND)?;
    refuse_strangers_key(COMMAND, out, Some(&id))?;
    let leaf = if keep_key {
        let certificate = authority.renew_certificate(&id, validity).of(COMMAND)?;
        let leaf = Fresh::new(&id, certificate.serial(), certificate.not_after());
        authority.write_to(dir).of(COMMAND)?;
        certificate.write_to(out).map_err(|error| leaf.unwritten(COMMAND, &error))?;
        leaf
    } else {
        let identity = authority.renew_for(&id, validity).of(COMMAND)?;
        let leaf = Fresh::new(&id, identity.serial(), identity.not_after());
        authority.write_to(dir).of(COMMAND)?;
        identity.write_to(out).map_err(|error| leaf.unwritten(COMMAND, &error))?;
        leaf
    };
    let with = if keep_key { "the key that it has" } else { "a new key" };
    let report = leaf.report(COMMAND, format!("renewed the certificate of {id}, with {with}"), out);
    Ok(report.field("key_kept", keep_key).next(to_node(out)).next("reload the node's identity"))
}

pub(crate) fn revoke(dir: &Path, what: Option<&str>, cert: Option<&Path>) -> Result<Report, Failure> {
    const COMMAND: &str = "node revoke";
    let authority = Authority::load(dir).of(COMMAND)?;
    let revoked = match (what, cert) {
        (_, Some(cert)) => vec![authority.revoke_certificate_file(cert).of(COMMAND)?],
        (Some(what), None) => {
            let known = authority.issued();
            let is_node =
                known.iter().any(|leaf| leaf.node_id.as_ref().is_some_and(|id| id.as_str() == what));
            // A serial number is also a possible id; what is on record decides.
            match NodeId::new(what) {
                Ok(id) if is_node => authority.revoke_node(&id).of(COMMAND)?,
                Ok(id) => match authority.revoke_serial(what) {
                    Ok(leaf) => vec![leaf],
                    Err(_) if !looks_like_serial(what) => authority.revoke_node(&id).of(COMMAND)?,
                    Err(error) => return Err(Failure::new(COMMAND, error)),
                },
                Err(_) => vec![authority.revoke_serial(what).of(COMMAND)?],
            }
        }
        (None, None) => Vec::new(), // clap asks for one of the two
    };
    authority.write_to(dir).of(COMMAND)?;
    let mut report = match revoked.len() {
        0 => Report::new(COMMAND, format!("{}: no certificate of it is in force", what.unwrap_or_default())),
        1 => Report::new(COMMAND, "revoked 1 certificate"),
        many => Report::new(COMMAND, format!("revoked {many} certificates")),
    };
    for leaf in &revoked {
        report = report.line(format!("  {}  {}", leaf.serial, of_whom(leaf)));
    }
    Ok(report
        .field("revoked", revoked.iter().map(described).collect::<Vec<_>>())
        .next(format!("phalanx crl publish --out crl.pem{}", dir_option(dir))))
}

/// Whether people would take a text for a serial number rather than for a node's id.
fn looks_like_serial(text: &str) -> bool {
    text.len() >= 16 && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b':' || c == b'x')
}

pub(crate) fn list(dir: &Path) -> Result<Report, Failure> {
    const COMMAND: &str = "node list";
    let authority = Authority::load(dir).of(COMMAND)?;
    let issued = authority.issued();
    let count = issued.len();
    let mut report =
        Report::new(COMMAND, format!("{count} on record for cluster {}", authority.cluster_name()));
    for leaf in &issued {
        let old = if leaf.under_old_root { "  under the old root" } else { "" };
        let (standing, end) = (leaf.standing, utc(leaf.not_after));
        report =
            report.line(format!("  {}  {standing:<7}  until {end}  {}{old}", leaf.serial, of_whom(leaf)));
    }
    Ok(report
        .field("cluster", authority.cluster_name())
        .field("issued", issued.iter().map(described).collect::<Vec<_>>()))
}

pub(crate) fn of_whom(leaf: &Issued) -> String {
    leaf.node_id.as_ref().map_or_else(|| "shared by nodes".into(), ToString::to_string)
}

pub(crate) fn described(leaf: &Issued) -> Value {
    json!({
        "serial": leaf.serial,
        "node_id": leaf.node_id.as_ref().map(NodeId::as_str),
        "not_before": utc(leaf.not_before),
        "not_after": utc(leaf.not_after),
        "standing": leaf.standing.as_str(),
        "under_old_root": leaf.under_old_root,
    })
}

/// What was just issued.
struct Fresh<'a> {
    id: &'a NodeId,
    serial: String,
    end: String,
}

impl<'a> Fresh<'a> {
    fn new(id: &'a NodeId, serial: &str, not_after: SystemTime) -> Self {
        Self { id, serial: serial.to_owned(), end: utc(not_after) }
    }

    fn report(&self, command: &'static str, done: String, out: &Path) -> Report {
        let (serial, end) = (self.serial.as_str(), self.end.as_str());
        Report::new(command, done)
            .line(format!("  in {}", out.display()))
            .line(format!("  cert.pem   serial number {serial}, valid until {end}"))
            .line("  ca.pem     what the node trusts")
            .field("dir", out.display().to_string())
            .field("node_id", self.id.as_str())
            .field("serial", serial)
            .field("not_after", end)
    }

    /// A certificate is on record before its files are written, never the other way round.
    fn unwritten(&self, command: &'static str, error: &phalanx::Error) -> Failure {
        let (id, serial) = (self.id, &self.serial);
        Failure::new(
            command,
            format!(
                "{error}; certificate {serial} is on record, but nobody has it: once that is mended, phalanx \
                 node renew {id}, and phalanx node revoke {serial}"
            ),
        )
    }
}

/// Refuses to write over a key: any, or any but `id`'s own.
fn refuse_strangers_key(command: &'static str, out: &Path, id: Option<&NodeId>) -> Result<(), Failure> {
    let (key, cert) = (out.join("key.pem"), out.join("cert.pem"));
    let Some(id) = id else {
        return if key.symlink_metadata().is_ok() {
            let text =
                format!("private key {}: it is there already; choose another directory", key.display());
            Err(Failure::new(command, text))
        } else {
            Ok(())
        };
    };
    if !cert.exists() {
        return Ok(());
    }
    let wanted = format!("/node/{id}");
    let is_own = Inspected::read_file(&cert).of(command)?.iter().any(|held| {
        matches!(held, Inspected::Certificate(held) if held.name.as_ref().is_some_and(|name| name.ends_with(&wanted)))
    });
    if is_own {
        return Ok(());
    }
    let text = format!("directory {}: its cert.pem is not {id}'s; choose another directory", out.display());
    Err(Failure::new(command, text))
}

fn to_node(out: &Path) -> String {
    format!("copy the files in {} to the node, and keep key.pem readable to its owner only", shell(out))
}
