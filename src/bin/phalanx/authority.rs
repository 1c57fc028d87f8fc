//! `ca init` and `crl publish`.

use std::path::Path;

use phalanx::{Authority, Inspected};

use crate::report::{Failure, Of, Report, dir_option, shell, utc};

pub(crate) fn init(cluster: &str, dir: &Path) -> Result<Report, Failure> {
    const COMMAND: &str = "ca init";
    if dir.join("ca.pem").exists() || dir.join("ca.key").exists() {
        let text = format!(
            "directory {}: it holds an authority already; choose another directory, or go on with that one",
            dir.display()
        );
        return Err(Failure::new(COMMAND, text));
    }
    let authority = Authority::generate(cluster).of(COMMAND)?;
    authority.write_to(dir).of(COMMAND)?;
    let end = utc(authority.not_after());
    Ok(Report::new(COMMAND, format!("made the authority of cluster {cluster} in {}", dir.display()))
        .line(format!("  {}  its certificate, valid until {end}", dir.join("ca.pem").display()))
        .line(format!("  {}  its key: whoever has it can be any node", dir.join("ca.key").display()))
        .line(format!("  {}  what it revoked: nothing yet", dir.join("crl.pem").display()))
        .next(format!("phalanx node issue lb-1 --out certs/lb-1{}", dir_option(dir)))
        .field("cluster", cluster)
        .field("dir", dir.display().to_string())
        .field("not_after", end))
}

pub(crate) fn publish(dir: &Path, out: &Path) -> Result<Report, Failure> {
    const COMMAND: &str = "crl publish";
    let authority = Authority::load(dir).of(COMMAND)?;
    authority.refresh_crl().of(COMMAND)?;
    // In the authority's directory first: a number that nodes have seen must never be given away again.
    authority.write_to(dir).of(COMMAND)?;
    authority.write_crl(out).of(COMMAND)?;
    let mut report = Report::new(COMMAND, format!("wrote the revocation list {}", out.display()));
    let mut lists = Vec::new();
    for held in Inspected::read_file(out).of(COMMAND)? {
        let Inspected::List(list) = held else { continue };
        let (number, revoked) = (&list.number, list.revoked.len());
        report = report.line(format!("  of {}: number {number}, {revoked} revoked", list.issuer));
        lists.push(serde_json::json!({
            "issuer": list.issuer, "number": number, "revoked": revoked, "this_update": utc(list.this_update),
        }));
    }
    if lists.len() > 1 {
        let line = "  a rotation is under way: give it only to nodes whose CA file has both roots";
        report = report.line(line);
    }
    Ok(report
        .next(format!("copy {} to tls.crl of every node, and reload their identities", shell(out)))
        .field("file", out.display().to_string())
        .field("lists", lists))
}
