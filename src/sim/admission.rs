//! How connections begin in the virtual network: dials, and what is said before trust, judged on both sides
//! as the transport does. How they live and end is `network`'s.

use std::{net::SocketAddr, time::Duration};

use crate::{
    NodeId,
    proto::Verdict,
    sim::{
        Pid, Step, World,
        faults::Fault,
        micros,
        network::{Conn, End, KEEP_ALIVE, RETRY},
        process::Input,
    },
    wire::{CloseCode, hello::Introduction},
};

const DIAL_LIMIT: Duration = Duration::from_secs(3);
/// What is lost of a handshake is sent again after so long.
const HANDSHAKE_REPEAT: Duration = Duration::from_secs(1);
/// How long an older life of a newcomer has to show that it lives.
const INCUMBENT_LIMIT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Dial {
    from: Pid,
    /// `None`: whoever serves at the address.
    to: Option<NodeId>,
    address: SocketAddr,
    started: u64,
    asked_incumbent: bool,
    accepted: Option<(usize, Box<Introduction>)>,
}

impl World {
    pub(super) fn dial(&mut self, pid: Pid, to: Option<NodeId>, address: SocketAddr) {
        let process = &self.procs[pid];
        let stands = match &to {
            Some(to) => process.conns.contains_key(to) || process.dialling.contains_key(to),
            None => process.conns.values().any(|conn| {
                let conn = &self.conns[*conn];
                self.procs[conn.pids[1 - conn.end_of(pid)]].address == address
            }),
        };
        if stands {
            return;
        }
        let number = self.dials.len();
        if let Some(to) = &to {
            self.procs[pid].dialling.insert(to.clone(), (number, Vec::new()));
        }
        let started = self.now;
        self.dials.push(Dial { from: pid, to, address, started, asked_incumbent: false, accepted: None });
        let mut at = self.now;
        let (loss, limit) = (self.loss_between(self.procs[pid].address, address), at + micros(DIAL_LIMIT));
        let link = self.link_between(self.procs[pid].address, address);
        for _ in 0..3 {
            at += self.one_way(&link);
            while self.is_drawn(loss) && at < limit {
                at += micros(HANDSHAKE_REPEAT);
                self.fault(Fault::Loss);
            }
        }
        self.at_micros(at, Step::Dial(number));
    }

    /// A dialler's hello reaches the other side.
    pub(super) fn dial_arrives(&mut self, number: usize) {
        let Dial { from, address, started, .. } = self.dials[number];
        if !self.procs[from].running {
            return;
        }
        let here = self.procs[from].address;
        let cut = self.cuts.contains(&(here, address)) || self.cuts.contains(&(address, here));
        let target = self.at_address.get(&address).copied();
        let late = self.now >= started + micros(DIAL_LIMIT);
        if late || cut || self.procs[from].paused || target.is_some_and(|target| self.procs[target].paused) {
            if late {
                return self.fail_dial(number);
            }
            return self.at(RETRY, Step::Dial(number));
        }
        let Some(target) = target.filter(|target| *target != from) else { return self.fail_dial(number) };
        let wanted = self.dials[number].to.as_ref();
        if wanted.is_some_and(|wanted| *wanted != self.procs[target].id) {
            return self.fail_dial(number);
        }
        if self.both_stand(from, target) {
            return self.spare_dial(number);
        }
        let (dialler, acceptor) = (self.procs[from].id.clone(), self.procs[target].id.clone());
        let hello = self.procs[from].core.introduction(wanted);
        match self.procs[target].core.judge(&hello, self.now_of(target)) {
            Verdict::Admit => {}
            Verdict::Refuse(code, reason) => {
                self.note(&acceptor, &format!("refuses {dialler}: {}, {reason}", code.name()));
                return self.refuse_dial(number, code);
            }
            Verdict::Incumbent { epoch, address } => {
                let old = self.at_address.get(&address).map(|old| &self.procs[*old]);
                let lives = old.is_some_and(|old| {
                    let at = self.procs[target].address;
                    let reached = !self.cuts.contains(&(at, address)) && !self.cuts.contains(&(address, at));
                    old.id == dialler && old.core.local_node().epoch == epoch && !old.paused && reached
                });
                if lives {
                    self.note(&acceptor, &format!("refuses {dialler}: an older process with that id lives"));
                    return self.refuse_dial(number, CloseCode::DUPLICATE_ID);
                }
                if !std::mem::replace(&mut self.dials[number].asked_incumbent, true) {
                    return self.at(INCUMBENT_LIMIT, Step::Dial(number));
                }
            }
        }
        let welcome = self.procs[target].core.introduction(Some(&dialler));
        let conn = self.conns.len();
        self.conns.push(Conn::new([from, target], self.now));
        self.dials[number].accepted = Some((conn, Box::new(welcome)));
        self.enter(conn, 1, hello);
        self.at_regular(KEEP_ALIVE, Step::KeepAlive(conn));
        let link = self.link_between(address, here);
        let at = self.now + self.one_way(&link);
        self.at_micros(at, Step::Welcome(number));
    }

    /// The answer to a hello comes back.
    pub(super) fn welcome_arrives(&mut self, number: usize) {
        let Dial { from, started, .. } = self.dials[number];
        let Some((conn, _)) = self.dials[number].accepted else { return };
        let [_, target] = self.conns[conn].pids;
        if !self.procs[from].running || self.conns[conn].ends[0] == End::Closed {
            return;
        }
        if !self.passes(target, from) || self.procs[from].paused {
            if self.now < started + micros(DIAL_LIMIT) {
                return self.at(RETRY, Step::Welcome(number));
            }
            self.conns[conn].ends[0] = End::Closed;
            return self.fail_dial(number);
        }
        let Some((_, welcome)) = self.dials[number].accepted.take() else { return };
        if let Verdict::Refuse(code, reason) = self.procs[from].core.judge(&welcome, self.now_of(from)) {
            let name = self.procs[from].id.clone();
            self.note(&name, &format!("refuses the welcome of {}: {reason}", welcome.node_id));
            self.conns[conn].ends[0] = End::Closed;
            self.conns[conn].code = Some(code);
            let link = self.link_between(self.procs[from].address, self.procs[target].address);
            let at = self.now + self.one_way(&link);
            self.at_micros(at, Step::Closed { conn, end: 1, code });
            return self.fail_dial(number);
        }
        self.conns[conn].ends[0] = End::Open;
        self.enter(conn, 0, *welcome);
    }

    /// One end of a connection begins to count.
    fn enter(&mut self, conn: usize, end: usize, introduction: Introduction) {
        let [peer_pid, pid] = self.conns[conn].seen_from(1 - end);
        let peer = introduction.node_id.clone();
        if let Some(old) = self.procs[pid].conns.insert(peer.clone(), conn) {
            let old_end = self.conns[old].end_of(pid);
            self.conns[old].ends[old_end] = End::Closed;
            self.lose_streams(old, pid);
        }
        self.conns[conn].heard[end] = self.now;
        let remote = self.procs[peer_pid].address;
        let there = self.link_between(self.procs[pid].address, remote);
        let back = self.link_between(remote, self.procs[pid].address);
        let rtt = there.delay + back.delay;
        let input =
            Input::Connected { peer: peer.clone(), introduction: Box::new(introduction), remote, rtt };
        self.feed(pid, input);
        if end == 0 {
            for bytes in std::mem::take(&mut self.conns[conn].early) {
                self.feed(pid, Input::Message { from: peer.clone(), bytes });
            }
        }
        // The acceptor's own dial, if one is on its way, will find that a connection stands.
        let waiting = match self.procs[pid].dialling.get_mut(&peer) {
            Some((_, waiting)) => std::mem::take(waiting),
            None => Vec::new(),
        };
        if end == 0 {
            self.procs[pid].dialling.remove(&peer);
        }
        for bytes in waiting {
            self.send(pid, &peer, bytes);
        }
    }

    fn both_stand(&self, a: Pid, b: Pid) -> bool {
        let of = |pid: Pid, id: &NodeId| self.procs[pid].conns.get(id);
        let conns = [of(a, &self.procs[b].id), of(b, &self.procs[a].id)];
        conns.into_iter().flatten().any(|conn| {
            let conn = &self.conns[*conn];
            conn.pids.contains(&a) && conn.pids.contains(&b) && !conn.ends.contains(&End::Closed)
        })
    }

    fn spare_dial(&mut self, number: usize) {
        let Dial { from, ref to, .. } = self.dials[number];
        let Some(to) = to.clone() else { return };
        let waiting = self.procs[from].dialling.remove(&to).map(|(_, waiting)| waiting);
        for bytes in waiting.into_iter().flatten() {
            self.send(from, &to, bytes);
        }
    }

    fn refuse_dial(&mut self, number: usize, code: CloseCode) {
        let Dial { from, address, .. } = self.dials[number];
        self.refused.push((self.procs[from].id.clone(), from, address, code));
        self.fail_dial(number);
    }

    fn fail_dial(&mut self, number: usize) {
        let Dial { from, ref to, .. } = self.dials[number];
        let Some(peer) = to.clone() else { return };
        if let Some((_, waiting)) = self.procs[from].dialling.remove(&peer) {
            self.unsent += waiting.len() as u64;
        }
        if !self.procs[from].conns.contains_key(&peer) {
            self.at(Duration::ZERO, Step::Input(from, Input::DialFailed { peer }));
        }
    }
}
