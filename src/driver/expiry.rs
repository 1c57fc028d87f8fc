//! The end of the node's own certificate, told in time and once more when it has come; and of the revocation
//! lists in force, when the next ones are overdue. Renews nothing, and never stops the node: peers that are
//! connected do that by themselves.

use std::{
    sync::Weak,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;

use crate::{
    ClusterEvent, EventData, EventKind, Identity,
    driver::{Driver, clock, life::Life, lock},
    identity,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long before the end it is told, in days.
const NOTICES: [u32; 3] = [30, 7, 1];
/// A certificate that lives for fewer days has notices of the same parts of its life.
const FULL_LIFE: u32 = 70;
/// How often the clock is looked at: it may jump, and a reload brings another certificate.
const LOOK: Duration = Duration::from_secs(60);

/// How near the end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Good,
    /// How many of the notices are due.
    Ending(usize),
    Ended,
}

/// Looks at the certificate and the lists in force for as long as the life lasts.
pub(super) async fn watch(life: Weak<Life>) {
    let mut told = None;
    let mut stale = Vec::new();
    loop {
        let Some(driver) = life.upgrade().and_then(|life| life.driver()) else { return };
        let now = clock::wall_now();
        let mut wait = LOOK;
        if let Some(identity) = driver.identity() {
            let (phase, next) = phase(&identity, now);
            wait = next.map_or(LOOK, |next| next.min(LOOK));
            let news = (identity.not_after(), phase);
            if phase != Phase::Good && told != Some(news) {
                let reason = reason(&identity, phase);
                tracing::warn!(reason, "the node's certificate must be renewed");
                tell(&driver, EventKind::IdentityExpiring, reason);
            }
            told = Some(news);
        }
        let lists = lock(&driver.settings).renewals.stale_lists(now);
        for list in lists.iter().filter(|list| !stale.contains(*list)) {
            let since = list.next_update.map(identity::written).unwrap_or_default();
            let number = &list.number;
            let reason = format!(
                "the list with the number {number} was to be followed by {since}, and what was revoked since \
                 is unknown here; it counts until there is a newer one: reload_identity with that"
            );
            tracing::warn!(reason, "a revocation list is past its date");
            tell(&driver, EventKind::RevocationListStale, reason);
        }
        stale = lists;
        drop(driver); // waiting must not keep it
        sleep(wait).await;
    }
}

fn tell(driver: &Driver, kind: EventKind, reason: String) {
    let (node, now) = (driver.node_id(), clock::wall_now());
    driver.publish(ClusterEvent::new(kind, Some(node), now, EventData::Reason(reason)));
}

/// How near the end is at `now`, and how long until the next phase.
fn phase(identity: &Identity, now: SystemTime) -> (Phase, Option<Duration>) {
    // Timers are not that exact, and too early is too early.
    const LATER: Duration = Duration::from_millis(10);

    let (begin, end) = (identity.not_before(), identity.not_after());
    let life = end.duration_since(begin).unwrap_or_default();
    let notices = NOTICES.map(|days| (DAY * days).min(life / FULL_LIFE * days));
    let Ok(left) = end.duration_since(now) else { return (Phase::Ended, None) };
    // A certificate is valid up to and including its last moment.
    let due = notices.iter().filter(|notice| left <= **notice).count();
    let next = notices.get(due).map_or(left, |notice| left.saturating_sub(*notice));
    (if due == 0 { Phase::Good } else { Phase::Ending(due) }, Some(next + LATER))
}

fn reason(identity: &Identity, phase: Phase) -> String {
    let end = identity::written(identity.not_after());
    match phase {
        Phase::Ended => {
            format!("the certificate expired at {end}, peers refuse it; reload_identity with a new one")
        }
        Phase::Good | Phase::Ending(_) => {
            format!("the certificate ends at {end}, then peers refuse it; reload_identity with a new one")
        }
    }
}

#[cfg(all(test, feature = "authority"))]
mod tests {
    use super::*;
    use crate::{Authority, NodeId, Validity};

    #[test]
    fn the_end_is_told_thirty_seven_and_one_days_before_and_of_a_short_life_as_much_later() {
        // Certificates count whole seconds.
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let milli = Duration::from_millis(1);
        let hour = DAY / 24;
        for (life, notices) in [
            (365 * DAY, [30 * DAY, 7 * DAY, DAY]),
            (70 * DAY, [30 * DAY, 7 * DAY, DAY]),
            (70 * hour, [30 * hour, 7 * hour, hour]),
        ] {
            let validity = Validity::between(begin, begin + life);
            // One authority would begin a second certificate of one node a second later.
            let authority = Authority::generate("edge").unwrap();
            let identity = authority.issue_for(&NodeId::new("a").unwrap(), validity).unwrap();
            let at = |left: Duration| phase(&identity, begin + life - left);
            assert_eq!(at(life), (Phase::Good, Some(life.saturating_sub(notices[0]) + 10 * milli)));
            let mut before = Phase::Good;
            for (count, notice) in notices.into_iter().enumerate() {
                assert_eq!(at(notice + milli), (before, Some(11 * milli)));
                before = Phase::Ending(count + 1);
                assert_eq!(at(notice).0, before);
            }
            assert_eq!(at(milli), (Phase::Ending(3), Some(11 * milli)));
            assert_eq!(at(Duration::ZERO).0, Phase::Ending(3));
            assert_eq!(phase(&identity, begin + life + milli), (Phase::Ended, None));
        }
    }
}
