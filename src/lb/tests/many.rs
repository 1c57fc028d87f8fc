//! What concerns many flows at once is done page by page, so that no reader waits for all of them, and loses none
//! when another such thing happens half way.

use std::collections::BTreeSet;

use super::{
    model::id,
    rules::{flows, key, live, put, quiet, secs},
};
use crate::{
    NodeId, StateChange, StateType,
    lb::{
        conntrack::{Claim, ConntrackRules, Flow, Flows},
        live::{Live, Moment},
        table::Heart,
    },
};

/// More than a few pages of them.
const FLOWS: u16 = 5_000;
/// What one call may do, at most: two pages, one of a round and one of what is due.
const STEP_MAX: u64 = 512;

fn told(number: u16, node: usize) -> StateChange {
    let claim = Claim { generation: 0, closed: false, flow: Flow::new(None) };
    put(StateType::CONNTRACK, &key(number).to_key(), claim.to_value().unwrap(), 1, node)
}

/// A table at `n0` of three nodes, which knows flows of `n1` (even ones) and of `n2`.
fn filled() -> Flows {
    let mut table = flows(ConntrackRules::default());
    for number in 0..FLOWS {
        table.tell(&told(number, 1 + usize::from(number % 2)), Moment::ZERO, &mut quiet());
    }
    table
}

fn only(names: &[usize]) -> std::sync::Arc<Live> {
    let nodes = names.iter().map(|number| (id(*number), None)).collect();
    std::sync::Arc::new(Live { me: id(0), nodes })
}

/// Does all that is due up to `end`, one call after the other; the most that one call has done.
fn settle(table: &mut Flows, end: Moment) -> u64 {
    let mut most = 0;
    while let Some(next) = table.next_timeout().filter(|next| *next <= end) {
        let before = table.counts.promoted;
        table.handle_timeout(next, &mut quiet());
        most = most.max(table.counts.promoted - before);
        while table.has_writes() {
            most = most.max(table.take_writes(next).len() as u64);
        }
    }
    most
}

fn owners(table: &Flows) -> BTreeSet<NodeId> {
    (0..FLOWS).filter_map(|number| table.view(&key(number))).map(|view| view.owner).collect()
}

#[test]
fn a_death_is_followed_page_by_page_and_no_flow_is_left_behind() {
    let mut table = filled();
    table.set_live(only(&[0]), secs(1), &mut quiet());
    assert!(table.next_timeout() <= Some(secs(1)), "there is more to do at once");
    let most = settle(&mut table, secs(30));
    assert_eq!((table.counts.promoted, owners(&table)), (FLOWS.into(), [id(0)].into()));
    assert!((1..=STEP_MAX).contains(&most), "{most} at once");
}

#[test]
fn a_second_death_half_way_loses_nothing_and_a_return_takes_back_what_is_not_done() {
    let mut table = filled();
    table.set_live(only(&[0, 2]), secs(1), &mut quiet());
    table.handle_timeout(secs(1), &mut quiet());
    table.set_live(only(&[0]), secs(1), &mut quiet());
    table.handle_timeout(secs(1), &mut quiet());
    table.set_live(only(&[0, 1]), secs(1), &mut quiet());
    settle(&mut table, secs(30));
    assert_eq!(table.counts.promoted, u64::from(FLOWS) / 2, "those of n2");
    assert_eq!(owners(&table), [id(0), id(1)].into());
}

#[test]
fn what_is_not_told_anew_goes_page_by_page_and_the_rest_stays() {
    let mut table = filled();
    let again = |table: &mut Flows, kept: fn(u16) -> bool| {
        table.begin_reading();
        for number in (0..FLOWS).filter(|number| kept(*number)) {
            table.tell(&told(number, 1 + usize::from(number % 2)), secs(1), &mut quiet());
        }
        table.end_reading(secs(1), &mut quiet());
    };
    again(&mut table, |number| number % 4 != 0);
    assert!(table.len() > usize::from(FLOWS) / 4 * 3, "not all at once");
    // Read anew before that has come to its end: only the last reading counts.
    again(&mut table, |number| number % 5 != 0);
    settle(&mut table, secs(1));
    let left: Vec<_> = (0..FLOWS).filter(|number| table.view(&key(*number)).is_some()).collect();
    assert!(left.iter().all(|number| number % 5 != 0));
    assert_eq!(left.len(), usize::from(FLOWS) / 5 * 4);
}

#[test]
fn what_is_carried_is_said_again_page_by_page() {
    let mut table = flows(ConntrackRules::default());
    table.set_live(live(0, 3), Moment::ZERO, &mut quiet());
    for number in 0..FLOWS {
        table.insert(key(number), Flow::new(None), Moment::ZERO, &mut quiet());
    }
    table.say_again(secs(2));
    let mut written = BTreeSet::new();
    for _ in 0..FLOWS {
        table.handle_timeout(secs(2), &mut quiet());
        let writes = table.take_writes(secs(2));
        assert!(writes.len() as u64 <= STEP_MAX);
        written.extend(writes.into_iter().map(|write| write.key));
    }
    assert_eq!(written.len(), usize::from(FLOWS));
}
