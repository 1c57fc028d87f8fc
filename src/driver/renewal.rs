//! What takes the place of the identity in force: a new one, or newer revocation lists that peers sent. Checked
//! whole before anything changes; on any fault the old one serves on. Writes nothing to disk.

use std::{sync::Weak, time::SystemTime};

use bytes::Bytes;
use tokio::{sync::mpsc, task::spawn_blocking};

use crate::{
    ClusterEvent, Error, EventData, EventKind, Identity, IdentityStats, ListStats, NodeId,
    driver::{Driver, clock, lock},
    identity::Listed,
    node::days_left,
    proto::lists::{Judged, List},
};

/// What became of identities since the handle was made, and the lists in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Renewals {
    taken: u64,
    failed: u64,
    last: Option<SystemTime>,
    /// Read once, when they came in force: to find whose a long list is takes its time.
    lists: Vec<ListStats>,
    /// A list that this node cannot go by, since its own certificate is on it. Told once.
    refused: Option<Bytes>,
}

impl Renewals {
    pub(super) fn of(identity: Option<&Identity>) -> Self {
        Self { lists: identity.map(list_stats).unwrap_or_default(), ..Self::default() }
    }

    /// The lists whose successors are overdue.
    pub(super) fn stale_lists(&self, now: SystemTime) -> Vec<ListStats> {
        let lists = self.lists.iter().map(|list| list.at(now));
        lists.filter(|list| list.stale).collect()
    }
}

fn list_stats(identity: &Identity) -> Vec<ListStats> {
    let lists = identity.lists().into_iter();
    lists.map(|list| ListStats::new(list.number, list.entries, list.next_update)).collect()
}

impl Driver {
    pub(crate) fn reload_identity(&self, identity: Identity) -> Result<(), Error> {
        let result = self.take_over(identity);
        if let Err(error) = &result {
            self.tell_failed_renewal(error);
        }
        result
    }

    /// Checks a new identity and has the life use it.
    pub(super) fn take_over(&self, new: Identity) -> Result<(), Error> {
        // Held all the while: two reloads at once must not end half in each.
        let mut settings = lock(&self.settings);
        if let Some(given) = &settings.given {
            new.check_successor(given)?;
        }
        let identity = match &settings.identity {
            // Lists that came from peers may be newer than those that the operator has; they stay.
            Some(current) => new.clone().with_lists_of(current),
            None => new.clone(),
        };
        let policy = self.config.tls.policy();
        identity.check_usable(policy, clock::wall_now())?;
        let closed = self.life().map_or(Ok(0), |life| life.reload(&identity, policy))?;
        tracing::info!(closed, ?identity, "a new identity is in force");
        settings.given = Some(match &settings.given {
            Some(given) => new.with_lists_of(given),
            None => new,
        });
        settings.renewals.lists = list_stats(&identity);
        settings.identity = Some(identity);
        settings.renewals.taken += 1;
        settings.renewals.last = Some(clock::wall_now());
        Ok(())
    }

    pub(super) fn renewal_stats(&self, now: SystemTime) -> IdentityStats {
        let settings = lock(&self.settings);
        let end = settings.identity.as_ref().map(Identity::not_after);
        let Renewals { taken, failed, last, lists, .. } = &settings.renewals;
        IdentityStats {
            not_after: end,
            days_left: end.map(|end| days_left(end, now)),
            looks: settings.watched.looks,
            renewals: *taken,
            failed_renewals: *failed,
            last_renewal: *last,
            revocation_lists: lists.iter().map(|list| list.at(now)).collect(),
        }
    }

    pub(super) fn tell_failed_renewal(&self, error: &Error) {
        lock(&self.settings).renewals.failed += 1;
        tracing::warn!(%error, "the new identity cannot be taken over; the old one serves on");
        self.publish(ClusterEvent::new(
            EventKind::IdentityReloadFailed,
            Some(self.node_id()),
            clock::wall_now(),
            EventData::Reason(error.to_string()),
        ));
    }

    /// Looks at a revocation list that a peer sent, and puts it in force if it is news.
    fn take_list(&self, from: &NodeId, list: &List) {
        let Some(life) = self.life() else { return };
        let mut settings = lock(&self.settings);
        let Some(current) = &settings.identity else { return };
        let (judged, failure) = match current.with_list_of_peer(&list.bytes, &list.age) {
            Listed::Known => (Judged::Known, None),
            Listed::Bad(error) => {
                tracing::debug!(%from, %error, "a revocation list was refused");
                (Judged::Bad, None)
            }
            Listed::News(identity) => match life.trust(&identity, self.config.tls.policy()) {
                Ok(closed) => {
                    tracing::info!(%from, closed, ?identity, "a newer revocation list is in force");
                    settings.renewals.lists = list_stats(&identity);
                    settings.identity = Some(*identity);
                    (Judged::News, None)
                }
                // Its own certificate is on it. Nobody will talk to this node any more, so say why.
                Err(error) => (Judged::Known, Some(error)),
            },
        };
        let is_new = settings.renewals.refused.as_ref() != Some(&list.bytes);
        let failure = failure.filter(|_| is_new);
        if failure.is_some() {
            settings.renewals.refused = Some(list.bytes.clone());
        }
        drop(settings);
        life.step(|protocol, now| protocol.list_judged(from, judged, now));
        if let Some(error) = failure {
            self.tell_failed_renewal(&error);
        }
    }
}

/// Judges the lists of peers one by one, for as long as the life lasts. Outside the runtime's own threads: a
/// long list takes its time.
pub(super) async fn judge_lists(driver: Weak<Driver>, mut lists: mpsc::Receiver<(NodeId, List)>) {
    while let Some((from, list)) = lists.recv().await {
        let driver = driver.clone();
        let judging = spawn_blocking(move || {
            if let Some(driver) = driver.upgrade() {
                driver.take_list(&from, &list);
            }
        });
        if judging.await.is_err() {
            return; // the runtime ends
        }
    }
}

/// The lists in force, as the core wants them.
pub(super) fn lists_of(identity: &Identity) -> Vec<List> {
    let list = |list: crate::identity::ListInForce| List {
        issuer: list.issuer,
        age: list.age.into(),
        bytes: list.der.into(),
    };
    identity.lists().into_iter().map(list).collect()
}
