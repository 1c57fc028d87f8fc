//! `doctor`: everything for which a start would be refused.

use std::path::Path;

use phalanx::{Diagnosis, NodeId};
use serde_json::json;

use crate::report::{Report, shell, utc};

pub(crate) fn doctor(config: &Path) -> Report {
    let Diagnosis { faults, warnings, node_id, cluster, not_after, .. } = Diagnosis::of_file(config);
    let name = config.display();
    let mut report = Report::new(
        "doctor",
        match faults.len() {
            0 => format!("{name}: nothing stands against a start"),
            1 => format!("{name}: 1 fault; a node would not start"),
            many => format!("{name}: {many} faults; a node would not start"),
        },
    );
    for fault in &faults {
        report = report.line(format!("  fault    {fault}"));
    }
    for warning in &warnings {
        report = report.line(format!("  warning  {warning}"));
    }
    if let (Some(cluster), Some(end)) = (&cluster, not_after) {
        let node = node_id.as_ref().map_or("any node (shared certificate)", NodeId::as_str);
        report = report.line(format!("  {node} of cluster {cluster}, certificate valid until {}", utc(end)));
    }
    let listed: Vec<_> = faults
        .iter()
        .map(|fault| {
            let (key, value, text, remedy) = (&fault.key, &fault.value, &fault.fault, &fault.remedy);
            json!({ "key": key, "value": value, "fault": text, "remedy": remedy })
        })
        .collect();
    let report = report
        .field("config", name.to_string())
        .field("faults", listed)
        .field("warnings", warnings)
        .field("node_id", node_id.as_ref().map(NodeId::as_str))
        .field("cluster", cluster)
        .field("not_after", not_after.map(utc));
    if faults.is_empty() {
        return report.next("start the node");
    }
    report.next(format!("mend these, then: phalanx doctor --config {}", shell(config))).no()
}
