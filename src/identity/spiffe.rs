//! The name in a certificate: `spiffe://<cluster>/node/<node-id>`, or `spiffe://<cluster>/shared`. Compared
//! byte for byte: nothing is decoded, folded or normalised, so one name has one spelling.

use std::fmt;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::x509;
use crate::{Error, NodeId};

/// The longest cluster name, in bytes.
const CLUSTER_LEN_MAX: usize = 255;
/// How much of a name that is refused an error shows.
const SHOWN_MAX: usize = 80;

/// Who a certificate says its owner is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpiffeName {
    pub(crate) cluster: String,
    /// `None`: a certificate that several nodes share.
    pub(crate) node: Option<NodeId>,
}

impl SpiffeName {
    /// The name of the node that `der` names in exactly one URI; `Err` says in one line why there is none.
    pub(crate) fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, String> {
        let certificate = EndEntityCert::try_from(der)
            .map_err(|error| format!("it is no readable certificate ({error})"))?;
        let (uris, invalid) = x509::uris(der)?;
        if invalid {
            return Err("one of its alternative names cannot be read".into());
        }
        let uri = match uris.as_slice() {
            [uri] => uri,
            [] => return Err("it has no URI among its alternative names".into()),
            more => return Err(format!("it has {} URIs among its alternative names", more.len())),
        };
        // Two readers of hostile bytes: where they differ, neither is believed.
        if certificate.valid_uri_names().collect::<Vec<_>>() != [uri.as_str()] {
            return Err("its alternative names read differently by two parsers".into());
        }
        Self::parse(uri)
    }

    /// Takes a URI apart.
    pub(crate) fn parse(uri: &str) -> Result<Self, String> {
        let fault = |fault: &str| format!("{} {fault}", shown(uri));
        let name = uri.strip_prefix("spiffe://").ok_or_else(|| fault("does not begin with spiffe://"))?;
        let (cluster, path) = name.split_once('/').ok_or_else(|| fault("names no node"))?;
        if let Some(wrong) = cluster_fault(cluster) {
            return Err(fault(&format!("has a cluster name that cannot be: {wrong}")));
        }
        let node = match path.strip_prefix("node/") {
            Some(id) => Some(NodeId::new(id).map_err(|_| fault("has a node id that cannot be"))?),
            None if path == "shared" => None,
            None => return Err(fault("is neither /node/<id> nor /shared")),
        };
        Ok(Self { cluster: cluster.into(), node })
    }
}

impl fmt::Display for SpiffeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "spiffe://{}/node/{node}", self.cluster),
            None => write!(f, "spiffe://{}/shared", self.cluster),
        }
    }
}

/// Checks the name of a cluster.
#[cfg_attr(not(feature = "authority"), expect(dead_code, reason = "only an authority is given a bare name"))]
pub(crate) fn check_cluster_name(name: &str) -> Result<(), Error> {
    match cluster_fault(name) {
        None => Ok(()),
        Some(fault) => Err(Error::InvalidClusterName { name: name.chars().take(SHOWN_MAX).collect(), fault }),
    }
}

fn cluster_fault(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("it is empty".into());
    }
    let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    if let Some(wrong) = name.chars().find(|c| !allowed(c)) {
        return Some(format!("{wrong:?} is not allowed"));
    }
    (name.len() > CLUSTER_LEN_MAX).then(|| format!("it has {} characters", name.len()))
}

/// The beginning of a text from a peer, on one line, without control characters.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_MAX).collect();
    if cut.len() == text.len() { format!("{cut:?}") } else { format!("{cut:?}…") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        for good in ["spiffe://edge/node/lb-1.fra", "spiffe://e_d.g-9/shared", "spiffe://node/node/node"] {
            assert_eq!(SpiffeName::parse(good).unwrap().to_string(), good);
        }
        let longest = format!("spiffe://{}/node/{}", "c".repeat(255), "n".repeat(128));
        assert_eq!(SpiffeName::parse(&longest).unwrap().to_string(), longest);
    }

    #[test]
    fn every_other_form_is_refused_in_one_escaped_line() {
        let long_id = format!("spiffe://c/node/{}", "n".repeat(129));
        let long_cluster = format!("spiffe://{}/node/n", "c".repeat(256));
        for (bad, says) in [
            ("", "does not begin"),
            ("https://c/node/n", "does not begin"),
            ("SPIFFE://c/node/n", "does not begin"),
            (" spiffe://c/node/n", "does not begin"),
            ("spiffe://c", "names no node"),
            ("spiffe:///node/n", "it is empty"),
            ("spiffe://C/node/n", "'C' is not allowed"),
            ("spiffe://c:443/node/n", "':' is not allowed"),
            ("spiffe://u@c/node/n", "'@' is not allowed"),
            ("spiffe://с/node/n", "is not allowed"), // a Cyrillic letter
            ("spiffe://c/node/", "node id"),
            ("spiffe://c/node/.", "node id"),
            ("spiffe://c/node/..", "node id"),
            ("spiffe://c/node/a/b", "node id"),
            ("spiffe://c/node/a%2eb", "node id"),
            ("spiffe://c/node/a?q", "node id"),
            ("spiffe://c/node/a#f", "node id"),
            ("spiffe://c/node/a\n\u{1b}[31m\u{202e}", r"\n\u{1b}[31m\u{202e}"),
            ("spiffe://c/Node/a", "neither"),
            ("spiffe://c//node/a", "neither"),
            ("spiffe://c/shared/", "neither"),
            ("spiffe://c/shared/a", "neither"),
            (&long_id, "node id"),
            (&long_cluster, "256 characters"),
        ] {
            let fault = SpiffeName::parse(bad).unwrap_err();
            assert!(fault.contains(says), "{bad:?}: {fault}");
            assert!(!fault.contains(char::is_control) && fault.len() < 500, "{fault:?}");
        }
    }
}
