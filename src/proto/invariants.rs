//! What must hold of a core between any two inputs, whoever sent them: everything that waits has a timer that
//! ends the wait, and what is counted is there. For unit tests and fuzzing; changes nothing.

use crate::{
    NodeStatus,
    proto::{Protocol, timers::Timer},
};

/// The most that may wait, by the name that `queues` gives it: somewhat above the bound in the code.
const QUEUES_MAX: [(&str, usize); 10] = [
    ("pings", 8_192),
    ("probes", 1_024),
    ("checks", 1_024),
    ("claims asked for", 4_096),
    ("rumours", 4_096),
    ("exchanges", 4),
    ("news", 65_536),
    ("hand-offs", 65_537),
    ("lists asked for", 4_096),
    ("certificates asked for", 1_024),
];

impl Protocol {
    /// Panics where the core contradicts itself.
    pub(crate) fn check(&self) {
        self.check_members();
        self.check_timers();
        self.store.check();
        for ((name, len), (_, most)) in self.queues().into_iter().zip(QUEUES_MAX) {
            assert!(len <= most, "{len} {name} wait, {most} at most");
        }
    }

    fn check_members(&self) {
        let linked = self.members.others().filter(|(_, member)| member.linked).count();
        assert_eq!(self.links, linked, "connections counted and connections marked");
        let live = self.members.iter().filter(|(_, member)| member.is_live()).count();
        assert_eq!(self.members.live(), live, "live members counted and live members in the table");
        let me = self.members.me();
        assert!(matches!(me.status, NodeStatus::Alive | NodeStatus::Left), "this node takes itself for dead");
        assert!(me.suspicion.is_none(), "this node suspects itself");
        assert_eq!(me.status == NodeStatus::Left, self.leaving, "left without leaving");
        for (id, member) in self.members.iter() {
            assert_eq!(*id, member.body.node_id, "a row under another's name");
            assert_eq!(member.suspicion.is_some(), member.status == NodeStatus::Suspect, "{id}");
            assert!(self.members.grave(id).is_none(), "{id} is a member and has a grave");
        }
    }

    /// Whatever waits is looked at again.
    fn check_timers(&self) {
        let is_set = |timer: Timer| self.timers.at(&timer).is_some();
        for timer in [Timer::Period, Timer::Gossip, Timer::PushPull, Timer::Greet, Timer::Sweep] {
            assert!(is_set(timer.clone()), "{timer:?} runs for a node's whole life");
        }
        for (id, _) in self.members.others().filter(|(_, member)| member.status == NodeStatus::Suspect) {
            let waits = is_set(Timer::Suspicion(id.clone())) || is_set(Timer::Look(id.clone()));
            assert!(waits || self.checks.contains_key(id), "{id} would be suspected for ever");
        }
        for id in self.checks.keys() {
            assert!(is_set(Timer::CheckEnd(id.clone())), "the check of {id} never ends");
            let status = self.members.get(id).map(|member| member.status);
            assert_eq!(status, Some(NodeStatus::Suspect), "{id} is checked");
        }
        for seq in self.probes.keys() {
            assert!(is_set(Timer::ProbeEnd(*seq)), "probe {seq} never ends");
        }
        for stream in self.exchanges.keys() {
            assert!(is_set(Timer::Stalled(*stream)), "an exchange that stalls is never given up");
        }
        for ticket in self.confirms.keys() {
            assert!(is_set(Timer::Confirm(*ticket)), "confirmation {ticket} never ends");
        }
        if !self.purges.is_empty() {
            assert!(is_set(Timer::Purge), "what is bygone is never dropped");
        }
        if self.refute_above.is_some() {
            assert!(is_set(Timer::Refute), "a refutation waits for ever");
        }
        if self.leaving && !self.leave_told {
            assert!(is_set(Timer::Leave), "a leave never ends");
        }
        if let Some(at) = self.store.next_expiry() {
            let set = self.timers.at(&Timer::Expire);
            assert!(set.is_some_and(|set| set <= at), "a record outlives its time: {at:?}, {set:?}");
        }
        let (handoffs, waits) = self.spreader.waits();
        let mut pending = 0;
        for number in handoffs {
            pending += 1;
            assert!(is_set(Timer::Handoff(number)), "hand-off {number} is never repeated");
        }
        if waits || self.store.has_unspread() {
            assert!(pending > 0 || is_set(Timer::Flush), "what was written is never spread");
        }
    }
}
