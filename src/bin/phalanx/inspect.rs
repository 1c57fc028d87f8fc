//! `inspect`: what is in a file, in words.

use std::path::Path;

use phalanx::{Inspected, InspectedCertificate, InspectedKey, InspectedList, InspectedRequest};
use serde_json::{Value, json};

use crate::report::{Failure, Of, Report, utc};

/// How many revoked serial numbers people are shown; programs get all.
const REVOKED_SHOWN: usize = 20;

pub(crate) fn inspect(file: &Path) -> Result<Report, Failure> {
    const COMMAND: &str = "inspect";
    let held = Inspected::read_file(file).of(COMMAND)?;
    let things = if held.len() == 1 { "1 thing" } else { &format!("{} things", held.len()) };
    let mut report = Report::new(COMMAND, format!("{}: {things}", file.display()));
    let mut items = Vec::with_capacity(held.len());
    for one in &held {
        let (lines, item) = match one {
            Inspected::Certificate(certificate) => of_certificate(certificate),
            Inspected::List(list) => of_list(list),
            Inspected::Request(request) => of_request(request),
            Inspected::Key(key) => of_key(key),
            _ => continue,
        };
        report = lines.into_iter().fold(report, Report::line);
        items.push(item);
    }
    Ok(report.field("file", file.display().to_string()).field("items", items))
}

fn of_certificate(held: &InspectedCertificate) -> (Vec<String>, Value) {
    let InspectedCertificate { name, subject, issuer, serial, not_before, not_after, .. } = held;
    let InspectedCertificate { is_authority, key, public_key, fingerprint, fault, .. } = held;
    let (not_before, not_after) = (utc(*not_before), utc(*not_after));
    let whose = if *is_authority { "an authority's certificate" } else { "a node's certificate" };
    let mut lines = vec![
        format!("  {whose}"),
        format!("    name         {}", name.as_deref().unwrap_or("none that nodes know")),
        format!("    subject      {subject}"),
        format!("    issuer       {issuer}"),
        format!("    serial       {serial}"),
        format!("    valid        {not_before} to {not_after}"),
        format!("    key          {key}"),
        format!("    public key   {public_key}"),
        format!("    fingerprint  {fingerprint}"),
    ];
    lines.extend(fault.as_ref().map(|fault| format!("    fault        {fault}; no node would admit it")));
    let item = json!({
        "kind": "certificate", "name": name, "subject": subject, "issuer": issuer, "serial": serial,
        "not_before": not_before, "not_after": not_after, "is_authority": is_authority, "key": key,
        "public_key_sha256": public_key, "sha256": fingerprint, "fault": fault,
    });
    (lines, item)
}

fn of_list(held: &InspectedList) -> (Vec<String>, Value) {
    let InspectedList { issuer, number, this_update, next_update, revoked, .. } = held;
    let made = utc(*this_update);
    let mut lines = vec![
        "  a revocation list".to_owned(),
        format!("    issuer       {issuer}"),
        format!("    number       {number}"),
        format!("    made         {made}"),
        format!("    revoked      {}", revoked.len()),
    ];
    lines.extend(
        revoked.iter().take(REVOKED_SHOWN).map(|(serial, at)| format!("      {serial}  at {}", utc(*at))),
    );
    if revoked.len() > REVOKED_SHOWN {
        lines.push(format!("      and {} more", revoked.len() - REVOKED_SHOWN));
    }
    let revoked: Vec<_> =
        revoked.iter().map(|(serial, at)| json!({ "serial": serial, "revoked_at": utc(*at) })).collect();
    let item = json!({
        "kind": "revocation-list", "issuer": issuer, "number": number, "this_update": made,
        "next_update": next_update.map(utc), "revoked": revoked,
    });
    (lines, item)
}

fn of_request(held: &InspectedRequest) -> (Vec<String>, Value) {
    let InspectedRequest { subject, asks_for, asks_for_authority, key, public_key, fault, .. } = held;
    let mut lines = vec![
        "  a signing request".to_owned(),
        format!("    subject      {subject}"),
        format!("    key          {key}"),
        format!("    public key   {public_key}"),
    ];
    if !asks_for.is_empty() {
        lines.push(format!("    asks for     {} (ignored when it is signed)", asks_for.join(", ")));
    }
    if *asks_for_authority {
        lines.push("    asks for     the rights of an authority (ignored when it is signed)".into());
    }
    lines.extend(fault.as_ref().map(|fault| format!("    fault        {fault}")));
    let item = json!({
        "kind": "signing-request", "subject": subject, "asks_for": asks_for,
        "asks_for_authority": asks_for_authority, "key": key, "public_key_sha256": public_key, "fault": fault,
    });
    (lines, item)
}

fn of_key(held: &InspectedKey) -> (Vec<String>, Value) {
    let InspectedKey { key, public_key, fault, .. } = held;
    let mut lines = vec![
        "  a private key, which is not shown".to_owned(),
        format!("    key          {key}"),
        format!("    public key   {public_key}"),
    ];
    lines.extend(fault.as_ref().map(|fault| format!("    fault        {fault}")));
    let item = json!({ "kind": "private-key", "key": key, "public_key_sha256": public_key, "fault": fault });
    (lines, item)
}
