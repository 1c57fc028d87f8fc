//! `ca rotate …`: from one root to the next.

use std::path::Path;

use phalanx::{Authority, NodeId, Rotation, Shown, Waiting};
use serde_json::{Value, json};

use crate::{
    ask,
    options::Seen,
    report::{Failure, Of, Report, dir_option, shell, utc},
};

pub(crate) fn begin(dir: &Path) -> Result<Report, Failure> {
    const COMMAND: &str = "ca rotate begin";
    let mut authority = Authority::load(dir).of(COMMAND)?;
    authority.begin_rotation().of(COMMAND)?;
    authority.write_to(dir).of(COMMAND)?;
    let (bundle, end) = (dir.join("ca.pem"), utc(authority.not_after()));
    let waiting = authority.rotation(&Shown::default()).map_or(0, |rotation| rotation.waiting.len());
    Ok(Report::new(COMMAND, format!("made a second root for cluster {}", authority.cluster_name()))
        .line(format!("  {}  both roots, the new one first; it ends {end}", bundle.display()))
        .line(format!("  {waiting} certificates are under the old root; from now on the new one issues"))
        .next(format!("copy {} to tls.ca of every node, and reload their identities", shell(&bundle)))
        .next("only then, for each node: phalanx node renew ID --out DIR, or node csr and node sign")
        .next(format!("phalanx ca rotate status{}", dir_option(dir)))
        .field("ca", bundle.display().to_string())
        .field("waiting", waiting)
        .field("not_after", end))
}

pub(crate) fn status(dir: &Path, seen: &Seen) -> Result<Report, Failure> {
    const COMMAND: &str = "ca rotate status";
    let authority = Authority::load(dir).of(COMMAND)?;
    let shown = shown(COMMAND, seen)?;
    let Some(rotation) = authority.rotation(&shown) else {
        return Ok(Report::new(COMMAND, "no rotation is under way")
            .field("rotating", false)
            .field("waiting", Vec::<Value>::new())
            .next(format!("phalanx ca rotate begin{}", dir_option(dir))));
    };
    let done = match rotation.waiting.len() {
        0 => "a rotation is under way, and nothing stands against its end".into(),
        many => format!("a rotation is under way; {many} certificates of the old root may be in use"),
    };
    let next = next_step(&rotation, seen, dir);
    Ok(with_waiting(Report::new(COMMAND, done), &rotation, shown.len()).next(next))
}

pub(crate) fn finish(dir: &Path, seen: &Seen) -> Result<Report, Failure> {
    const COMMAND: &str = "ca rotate finish";
    let mut authority = Authority::load(dir).of(COMMAND)?;
    let shown = shown(COMMAND, seen)?;
    if let Some(rotation) = authority.rotation(&shown)
        && !rotation.waiting.is_empty()
    {
        let many = rotation.waiting.len();
        let done = format!("not finished: {many} certificates of the old root may be in use");
        let next = next_step(&rotation, seen, dir);
        return Ok(with_waiting(Report::new(COMMAND, done), &rotation, shown.len()).next(next).no());
    }
    authority.finish_rotation(&shown).of(COMMAND)?;
    authority.write_to(dir).of(COMMAND)?;
    let ca = dir.join("ca.pem");
    Ok(Report::new(COMMAND, format!("dropped the old root of cluster {}", authority.cluster_name()))
        .line(format!("  {}  the new root alone", ca.display()))
        .next(format!("copy {} to tls.ca of every node", shell(&ca)))
        .next(format!("phalanx crl publish --out crl.pem{}   (if nodes have a tls.crl)", dir_option(dir)))
        .field("ca", ca.display().to_string())
        .field("rotating", false)
        .field("waiting", Vec::<Value>::new()))
}

/// The evidence that was given.
fn shown(command: &'static str, seen: &Seen) -> Result<Shown, Failure> {
    let mut shown = Shown::default();
    for path in &seen.shown {
        shown.add_path(path).of(command)?;
    }
    for address in &seen.ask {
        let der = ask::certificate(address).map_err(|text| Failure::new(command, text))?;
        shown.add_der(&der).of(command)?;
    }
    Ok(shown)
}

fn with_waiting(report: Report, rotation: &Rotation, shown: usize) -> Report {
    let mut report = report;
    for leaf in &rotation.waiting {
        let of = leaf.node_id.as_ref().map_or("shared by nodes", NodeId::as_str);
        let how = match (leaf.seen, &leaf.renewed_as) {
            (true, _) => "seen in use".to_owned(),
            (false, Some(serial)) => format!("renewed as {serial}; nobody has seen the node with it"),
            (false, None) => "not renewed".to_owned(),
        };
        report = report.line(format!("  {}  until {}  {of}: {how}", leaf.serial, utc(leaf.not_after)));
    }
    report
        .line(format!("  {} certificates are under the new root; {shown} were shown", rotation.moved))
        .field("rotating", true)
        .field("waiting", rotation.waiting.iter().map(described).collect::<Vec<_>>())
        .field("moved", rotation.moved)
        .field("shown", shown)
        .field("old_root_not_after", utc(rotation.old_root_not_after))
}

fn described(leaf: &Waiting) -> Value {
    json!({
        "serial": leaf.serial,
        "node_id": leaf.node_id.as_ref().map(NodeId::as_str),
        "not_after": utc(leaf.not_after),
        "renewed_as": leaf.renewed_as,
        "seen": leaf.seen,
    })
}

fn next_step(rotation: &Rotation, seen: &Seen, dir: &Path) -> String {
    let option = dir_option(dir);
    match rotation.waiting.iter().find(|leaf| leaf.renewed_as.is_none()) {
        Some(Waiting { node_id: Some(id), .. }) => {
            format!("phalanx node renew {id} --out certs/{id}{option}")
        }
        Some(leaf) => format!("phalanx node revoke {}{option}   (once no node uses it)", leaf.serial),
        None if rotation.waiting.is_empty() && seen.shown.is_empty() && seen.ask.is_empty() => {
            format!("phalanx ca rotate finish{option}")
        }
        None if rotation.waiting.is_empty() => {
            format!("phalanx ca rotate finish{option}, with the same --shown and --ask")
        }
        None => format!(
            "give the nodes their new files, reload them, then: phalanx ca rotate finish --ask HOST:PORT{option} \
             (each of them; --shown PATH for their files; or revoke what is not in use any more)"
        ),
    }
}
