//! Lists are asked for by who lacks them, from whoever has told of them; all else is counted.

use bytes::Bytes;

use crate::{
    proto::{
        Output, Protocol,
        lists::{Judged, List},
        tests_support::*,
    },
    wire::{
        codec, limits,
        message::{ListHead, ListHeads, NeedList, TheList, kind},
    },
};

fn list(number: u8) -> List {
    List { issuer: 1, age: vec![number].into(), bytes: vec![number; 100].into() }
}

fn heads(ages: &[(u64, u8)]) -> Bytes {
    let head = |(issuer, age): &(u64, u8)| ListHead { issuer: *issuer, age: vec![*age].into() };
    message(kind::LISTS, &ListHeads { heads: ages.iter().map(head).collect() })
}

fn brought(number: u8) -> Bytes {
    message(kind::LIST, &TheList { issuer: 1, list: vec![number; 100].into() })
}

/// To whom parts of that kind were sent.
fn told(outputs: &[Output], wanted: u8) -> Vec<String> {
    let is = |bytes: &Bytes| codec::parts(bytes).unwrap().iter().any(|(kind, _)| *kind == wanted);
    sent(outputs).iter().filter(|(_, bytes)| is(bytes)).map(|(to, _)| to.to_string()).collect()
}

fn handed(outputs: &[Output]) -> Vec<List> {
    let list = |output: &Output| match output {
        Output::List { list, .. } => Some(list.clone()),
        _ => None,
    };
    outputs.iter().filter_map(list).collect()
}

/// One that is connected to two others.
fn of_three() -> Protocol {
    let (mut a, mut b, mut c) = (core("a"), core("b"), core("c"));
    connect(&mut a, &mut b, at(0));
    connect(&mut a, &mut c, at(0));
    drain(&mut a);
    a
}

#[test]
fn a_newer_list_is_told_to_all_and_sent_to_who_asks() {
    let mut a = of_three();
    a.take_lists(vec![list(7)], at(1));
    assert_eq!(told(&drain(&mut a), kind::LISTS).len(), 2);
    a.take_lists(vec![list(7)], at(2));
    assert_eq!(told(&drain(&mut a), kind::LISTS).len(), 0, "it is no news");
    a.handle_message(&id("b"), &message(kind::NEED_LIST, &NeedList { issuer: 1 }), at(3));
    assert_eq!(told(&drain(&mut a), kind::LIST), ["b"]);
    a.handle_message(&id("b"), &message(kind::NEED_LIST, &NeedList { issuer: 1 }), at(4));
    a.handle_message(&id("b"), &message(kind::NEED_LIST, &NeedList { issuer: 2 }), at(4));
    assert_eq!(told(&drain(&mut a), kind::LIST).len(), 0, "not so soon again, nor what there is not");
    assert_eq!((a.counters().lists_served, a.counters().lists_withheld), (1, 1));
    let long = List { age: vec![8].into(), bytes: vec![0; limits::LIST_LEN_MAX + 1].into(), issuer: 1 };
    a.take_lists(vec![long], at(2_000));
    a.handle_message(&id("b"), &message(kind::NEED_LIST, &NeedList { issuer: 1 }), at(2_000));
    assert_eq!(told(&drain(&mut a), kind::LIST).len(), 0, "too long to travel");
}

#[test]
fn only_a_newer_list_of_a_trusted_issuer_is_asked_for_and_of_one_peer_at_a_time() {
    let mut a = of_three();
    a.take_lists(vec![list(7)], at(1));
    drain(&mut a);
    a.handle_message(&id("b"), &heads(&[(1, 7), (1, 6), (9, 9)]), at(2));
    assert_eq!(told(&drain(&mut a), kind::NEED_LIST).len(), 0);
    a.handle_message(&id("b"), &heads(&[(1, 8)]), at(3));
    a.handle_message(&id("c"), &heads(&[(1, 8)]), at(4));
    assert_eq!(told(&drain(&mut a), kind::NEED_LIST), ["b"]);
    a.handle_message(&id("c"), &heads(&[(1, 8)]), at(600));
    assert_eq!(told(&drain(&mut a), kind::NEED_LIST), ["c"], "b has had its time");
    a.handle_message(&id("b"), &brought(8), at(700));
    let lists = handed(&drain(&mut a));
    assert_eq!(lists, [List { bytes: vec![8; 100].into(), ..list(8) }], "late, but asked for");
    a.list_judged(&id("b"), Judged::News, at(701));
    a.take_lists(vec![list(8)], at(701));
    a.handle_message(&id("c"), &brought(8), at(702));
    assert_eq!(handed(&drain(&mut a)), [], "it is there");
    assert_eq!((a.counters().lists_taken, a.counters().lists_known), (1, 1));
}

#[test]
fn a_list_that_nobody_asked_for_is_not_looked_at() {
    let mut a = of_three();
    a.handle_message(&id("b"), &brought(8), at(1));
    assert_eq!(handed(&drain(&mut a)), []);
    a.handle_message(&id("b"), &heads(&[(1, 8)]), at(2));
    a.handle_message(&id("c"), &brought(8), at(3));
    a.handle_message(&id("b"), &brought(8), at(40_000));
    assert_eq!(handed(&drain(&mut a)), [], "not of another, nor half a minute later");
    assert_eq!(a.counters().lists_unasked, 3);
}

#[test]
fn whoever_brings_a_bad_list_is_not_asked_for_a_minute_and_others_are() {
    let mut a = of_three();
    a.handle_message(&id("b"), &heads(&[(1, 8)]), at(1));
    drain(&mut a);
    a.list_judged(&id("b"), Judged::Bad, at(2));
    a.handle_message(&id("b"), &heads(&[(1, 9)]), at(1_000));
    assert_eq!(told(&drain(&mut a), kind::NEED_LIST).len(), 0);
    a.handle_message(&id("c"), &heads(&[(1, 8)]), at(1_000));
    assert_eq!(told(&drain(&mut a), kind::NEED_LIST), ["c"]);
    a.handle_message(&id("b"), &heads(&[(1, 9)]), at(62_000));
    assert_eq!(told(&drain(&mut a), kind::NEED_LIST), ["b"]);
    assert_eq!(a.counters().lists_bad, 1);
}

#[test]
fn a_question_that_brings_nothing_is_asked_again_a_few_times() {
    let mut a = of_three();
    a.handle_message(&id("b"), &heads(&[(1, 8)]), at(1));
    let mut asked = told(&drain(&mut a), kind::NEED_LIST).len();
    for ms in (2..6_000).step_by(50) {
        a.handle_timeout(at(ms));
        asked += told(&drain(&mut a), kind::NEED_LIST).len();
    }
    assert_eq!(asked, 4);
    a.handle_message(&id("b"), &brought(8), at(6_000));
    assert_eq!(handed(&drain(&mut a)).len(), 1);
}

#[test]
fn more_heads_than_there_are_issuers_end_the_connection() {
    let many: Vec<_> = (0..65).map(|issuer| (issuer, 1)).collect();
    let long = ListHeads { heads: vec![ListHead { issuer: 1, age: vec![1; 65].into() }] };
    for bad in [heads(&many), message(kind::LISTS, &long)] {
        let mut a = of_three();
        a.handle_message(&id("b"), &bad, at(1));
        assert!(drain(&mut a).iter().any(|output| matches!(output, Output::Close { .. })));
        assert_eq!(a.counters().malformed, 1);
    }
}
