//! Large clusters that begin as if they had long stood: equal tables, and the connections that the nodes'
//! limit allows. No join, no handshake.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    NodeId,
    proto::formed::Formed,
    sim::{
        Pid, Step, World, micros,
        network::{Conn, End, KEEP_ALIVE},
    },
};

impl World {
    /// Starts a cluster of `count` nodes that know one another, each with the connections that its core would
    /// dial ahead of need.
    pub(crate) fn start_formed(&mut self, count: usize) -> Vec<NodeId> {
        assert!(self.names.is_empty(), "a cluster is formed in an empty world");
        let names: Vec<_> = (0..count)
            .map(|number| {
                let id = NodeId::new(format!("n{number:05}")).expect("a short name of letters and digits");
                let [.., high, low] = (number + 1).to_be_bytes();
                self.names.push(id.clone());
                self.start_process(id.clone(), ([10, 0, high, low], 7946).into(), Vec::new());
                id
            })
            .collect();
        let mut formed = Formed::of(self.procs.iter().map(|process| &process.core), self.link.delay * 2);
        for pid in 0..count {
            formed.admit(&mut self.procs[pid].core);
        }
        let links = self.draw_links();
        for (pid, linked) in links.iter().enumerate() {
            let now = self.now_of(pid);
            formed.link(&mut self.procs[pid].core, linked, now);
        }
        self.connect_formed(&links);
        names
    }

    /// Whom each has a connection to. Names are numbered, so that ranks and processes are the same.
    fn draw_links(&self) -> Vec<BTreeSet<Pid>> {
        let count = self.procs.len();
        let meshed = count <= self.settings.max_connections;
        let places: Vec<_> = self.procs.iter().map(|process| process.core.place()).collect();
        let links = |pid: Pid| {
            let core = &self.procs[pid].core;
            let others = (0..count).filter(move |other| *other != pid);
            others.filter(|other| meshed || core.is_kept_close(places[*other])).collect()
        };
        (0..count).map(links).collect()
    }

    fn connect_formed(&mut self, links: &[BTreeSet<Pid>]) {
        for (pid, others) in links.iter().enumerate() {
            for &other in others.range(pid + 1..) {
                let number = self.conns.len();
                let mut conn = Conn::new([pid, other], self.now);
                conn.ends = [End::Open; 2];
                self.conns.push(conn);
                for (one, peer) in [(pid, other), (other, pid)] {
                    let peer = self.procs[peer].id.clone();
                    self.procs[one].conns.insert(peer, number);
                }
                let phase = Duration::from_micros(self.rng.u64(..micros(KEEP_ALIVE)));
                self.at(phase, Step::KeepAlive(number));
            }
        }
    }

    /// Connections there have been.
    pub(crate) fn connections_made(&self) -> u64 {
        self.conns.len() as u64
    }

    /// Whether all that run have the same table with each of them alive in it, and whether they have the same
    /// store.
    pub(crate) fn is_one(&self) -> (bool, bool) {
        let mut cores = self.procs.iter().filter(|process| process.is_running()).map(|process| &process.core);
        let Some(first) = cores.clone().next() else { return (true, true) };
        let (table, store) = first.fingerprint();
        let same_store = cores.clone().all(|core| core.fingerprint().1 == store);
        let same_table = cores.clone().all(|core| core.fingerprint().0 == table);
        let alive = first.alive();
        let mut complete =
            || cores.all(|core| core.alive() == alive && alive.contains(&core.local_node().node_id));
        (same_table && complete(), same_store)
    }
}
