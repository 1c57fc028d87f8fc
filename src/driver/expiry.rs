//! The end of the node's own certificate: told in time, and once more when it has come. Renews nothing, and
//! never stops the node: peers that are connected do that by themselves.

use std::{
    sync::Weak,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;

use crate::{
    ClusterEvent, EventData, EventKind, Identity,
    driver::{clock, life::Life},
    identity,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest notice, for a certificate of 70 days and more; a shorter one has a tenth of its life.
const NOTICE_MAX: Duration = DAY.saturating_mul(7);
/// How often the clock is looked at: it may jump, and a reload brings another certificate.
const LOOK: Duration = Duration::from_secs(60);

/// How near the end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Good,
    Ending,
    Ended,
}

/// Looks at the certificate in force for as long as the life lasts.
pub(super) async fn watch(life: Weak<Life>) {
    let mut told = None;
    loop {
        let Some(driver) = life.upgrade().and_then(|life| life.driver()) else { return };
        let mut wait = LOOK;
        if let Some(identity) = driver.identity() {
            let (phase, next) = phase(&identity, clock::wall_now());
            wait = next.map_or(LOOK, |next| next.min(LOOK));
            let news = (identity.not_after(), phase);
            if phase != Phase::Good && told != Some(news) {
                let reason = reason(&identity, phase);
                tracing::warn!(reason, "the node's certificate must be renewed");
                driver.publish(ClusterEvent::new(
                    EventKind::IdentityExpiring,
                    Some(driver.node_id()),
                    clock::wall_now(),
                    EventData::Reason(reason),
                ));
            }
            told = Some(news);
        }
        drop(driver); // waiting must not keep it
        sleep(wait).await;
    }
}

/// How near the end is at `now`, and how long until the next phase.
fn phase(identity: &Identity, now: SystemTime) -> (Phase, Option<Duration>) {
    let (begin, end) = (identity.not_before(), identity.not_after());
    let life = end.duration_since(begin).unwrap_or_default();
    let notice = NOTICE_MAX.min(life / 10);
    match end.duration_since(now) {
        // A certificate is valid up to and including its last moment.
        Ok(left) if left <= notice => (Phase::Ending, Some(left + Duration::from_millis(10))),
        Ok(left) => (Phase::Good, Some(left.saturating_sub(notice) + Duration::from_millis(10))),
        Err(_) => (Phase::Ended, None),
    }
}

fn reason(identity: &Identity, phase: Phase) -> String {
    let end = identity::written(identity.not_after());
    match phase {
        Phase::Ended => {
            format!("the certificate expired at {end}, peers refuse it; reload_identity with a new one")
        }
        Phase::Good | Phase::Ending => {
            format!("the certificate ends at {end}, then peers refuse it; reload_identity with a new one")
        }
    }
}

#[cfg(all(test, feature = "authority"))]
mod tests {
    use super::*;
    use crate::{Authority, NodeId, Validity};

    #[test]
    fn the_notice_is_a_tenth_of_the_life_and_a_week_at_most() {
        let authority = Authority::generate("edge").unwrap();
        // Certificates count whole seconds.
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let milli = Duration::from_millis(1);
        for (life, notice) in [(90 * DAY, 7 * DAY), (DAY, DAY / 10)] {
            let validity = Validity::between(begin, begin + life);
            let identity = authority.issue_for(&NodeId::new("a").unwrap(), validity).unwrap();
            let at = |left: Duration| phase(&identity, begin + life - left);
            assert_eq!(at(notice + milli).0, Phase::Good);
            assert_eq!(at(notice + DAY / 100).1, Some(DAY / 100 + 10 * milli));
            assert_eq!(at(notice).0, Phase::Ending);
            assert_eq!(at(Duration::ZERO).0, Phase::Ending);
            assert_eq!(phase(&identity, begin + life + milli), (Phase::Ended, None));
        }
    }
}
