//! Confirmed broadcasts: asks every member whether it holds a record, until all have said so or the time is
//! over.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    NodeId, Spread, StateType,
    proto::{Now, Output, Protocol, Time, timers::Timer},
    wire::message::{AskHeld, Held, kind},
};

/// The spread has had its chance by then.
const FIRST_ASK: Duration = Duration::from_millis(4);
/// The longest wait between two questions.
const ASK_MAX: Duration = Duration::from_millis(500);
/// Confirmations that may run at a time; one more ends at once with what is known.
const CONFIRMS_MAX: usize = 1_024;

/// A confirmation that runs.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Confirm {
    ask: AskHeld,
    of: StateType,
    reached: BTreeSet<NodeId>,
    ends: Time,
    wait: Duration,
}

impl Protocol {
    /// Finds out which live nodes hold this node's latest record under a key. Ends in `Output::Confirmed`.
    pub(crate) fn confirm(
        &mut self,
        state_type: &StateType,
        key: &str,
        limit: Duration,
        ticket: u64,
        now: Now,
    ) {
        let held = self.store.held(state_type, key);
        let Some((source, epoch, seq, _)) = held.filter(|_| self.confirms.len() < CONFIRMS_MAX) else {
            let spread = Spread { missing: self.alive(), ..Spread::default() };
            self.outputs.push_back(Output::Confirmed { ticket, spread });
            return;
        };
        let ask = AskHeld { ticket, state_type: state_type.into(), source, epoch, seq };
        let confirm = Confirm {
            ask,
            of: state_type.clone(),
            reached: BTreeSet::from([self.me.clone()]),
            ends: now.time + limit,
            wait: FIRST_ASK,
        };
        self.timers.set(Timer::Confirm(ticket), (now.time + FIRST_ASK).min(confirm.ends));
        self.confirms.insert(ticket, confirm);
        self.end_confirm_if_all(ticket);
    }

    /// Asks those that have not said so yet; or the time is over.
    pub(super) fn ask_again(&mut self, ticket: u64, now: Now) {
        let Some(confirm) = self.confirms.get_mut(&ticket) else { return };
        if now.time >= confirm.ends {
            self.end_confirm(ticket);
            return;
        }
        confirm.wait = (confirm.wait * 2).min(ASK_MAX);
        let next = (now.time + confirm.wait).min(confirm.ends);
        let ask = confirm.ask.clone();
        self.timers.set(Timer::Confirm(ticket), next);
        for node in self.unconfirmed(ticket) {
            self.send_part(&node, kind::ASK_HELD, &ask);
        }
        self.end_confirm_if_all(ticket);
    }

    /// Live nodes that keep the type and have not said that they hold the record; a suspect may well live.
    fn unconfirmed(&self, ticket: u64) -> BTreeSet<NodeId> {
        let Some(confirm) = self.confirms.get(&ticket) else { return BTreeSet::new() };
        self.members
            .others()
            .filter(|(id, m)| {
                m.is_live() && !m.disabled.contains(&confirm.of) && !confirm.reached.contains(*id)
            })
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn end_confirm_if_all(&mut self, ticket: u64) {
        if self.confirms.contains_key(&ticket) && self.unconfirmed(ticket).is_empty() {
            self.end_confirm(ticket);
        }
    }

    fn end_confirm(&mut self, ticket: u64) {
        let missing = self.unconfirmed(ticket);
        self.timers.clear(&Timer::Confirm(ticket));
        if let Some(confirm) = self.confirms.remove(&ticket) {
            let spread = Spread { reached: confirm.reached, missing };
            self.outputs.push_back(Output::Confirmed { ticket, spread });
        }
    }

    pub(super) fn on_ask_held(&mut self, from: &NodeId, ask: &AskHeld) {
        let holds = self
            .kept_type(&ask.state_type)
            .is_some_and(|state_type| self.store.holds(&state_type, &ask.source, ask.epoch, ask.seq));
        if holds {
            self.send_part(from, kind::HELD, &Held { ticket: ask.ticket });
        }
    }

    pub(super) fn on_held(&mut self, from: &NodeId, held: Held) {
        if let Some(confirm) = self.confirms.get_mut(&held.ticket) {
            confirm.reached.insert(from.clone());
            self.end_confirm_if_all(held.ticket);
        }
    }
}
