//! Makes what a cluster needs on disk: an authority, an identity and a configuration file for each node, and
//! what the two intruders bring. Starts nothing.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use phalanx::{Authority, NodeId};

use crate::Fault;

/// The folder of the authority below the one of the cluster. Real nodes never see it.
const AUTHORITY: &str = "authority";

pub(crate) struct Certificates {
    dir: PathBuf,
    authority: Authority,
}

impl Certificates {
    /// Makes the authority of a cluster below `dir`, or loads the one that is there.
    pub(crate) fn open(dir: PathBuf, cluster: &str) -> Result<Self, Fault> {
        let home = dir.join(AUTHORITY);
        let authority = if home.join("ca.key").exists() {
            Authority::load(&home)?
        } else {
            let authority = Authority::generate(cluster)?;
            authority.write_to(&home)?;
            authority
        };
        let held = authority.cluster_name();
        if held != cluster {
            return Err(format!(
                "{} holds the authority of cluster {held:?}, not of {cluster:?}; name another folder",
                home.display()
            )
            .into());
        }
        Ok(Self { dir, authority })
    }

    pub(crate) fn authority_dir(&self) -> PathBuf {
        self.dir.join(AUTHORITY)
    }

    /// An identity and a configuration file for each node. All of them share one list of seeds, the first
    /// two: a node's own address in it does no harm.
    pub(crate) fn make_nodes(&self, nodes: &[(String, u16)]) -> Result<BTreeMap<String, PathBuf>, Fault> {
        let seeds = seeds(nodes);
        let mut configs = BTreeMap::new();
        for (id, port) in nodes {
            if id == AUTHORITY {
                return Err(
                    format!("a node cannot be called {id:?}: the folder {id} is the authority's").into()
                );
            }
            self.authority.issue(&NodeId::new(id.as_str())?)?.write_to(self.dir.join(id))?;
            configs.insert(id.clone(), self.write_config(id, id, *port, &seeds)?);
        }
        Ok(configs)
    }

    /// A stranger: its certificate has the right cluster's name in it, but is of another authority. It trusts
    /// both authorities, or it would itself turn away from the cluster before that can refuse it.
    pub(crate) fn make_stranger(&self, id: &str) -> Result<PathBuf, Fault> {
        let other = Authority::generate(self.authority.cluster_name())?;
        let paths = other.issue(&NodeId::new(id)?)?.write_to(self.dir.join(id))?;
        fs::write(paths.ca, [other.ca_pem(), self.authority.ca_pem()].concat())?;
        self.write_config(id, id, 0, "")
    }

    /// An impostor: the cluster's own authority has issued its certificate, but it says it were another node.
    pub(crate) fn make_impostor(&self, id: &str, says: &str, seeds: &str) -> Result<PathBuf, Fault> {
        self.authority.issue(&NodeId::new(id)?)?.write_to(self.dir.join(id))?;
        self.write_config(id, says, 0, seeds)
    }

    fn write_config(&self, id: &str, says: &str, port: u16, seeds: &str) -> Result<PathBuf, Fault> {
        let path = self.dir.join(format!("{id}.toml"));
        write(
            &path,
            &format!(
                "\
# Paths are relative to this file; what is not set has its default.
[cluster]
enabled = true
node-id = \"{says}\"
bind-address = \"127.0.0.1\"
bind-port = {port}
seeds = [{seeds}]
tls.ca = \"{id}/ca.pem\"
tls.cert = \"{id}/cert.pem\"
tls.key = \"{id}/key.pem\"
"
            ),
        )?;
        Ok(path)
    }
}

/// The first two nodes, as a list in TOML.
pub(crate) fn seeds(nodes: &[(String, u16)]) -> String {
    let seeds: Vec<_> = nodes.iter().take(2).map(|(_, port)| format!("\"127.0.0.1:{port}\"")).collect();
    seeds.join(", ")
}

fn write(path: &Path, text: &str) -> Result<(), Fault> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}
