//! What single requests come to: indexes, repetitions, refusals.

use raft::{GroupTime, StateMachine};
use raftd::log::SessionLimits;
use raftd::log::command::{Command, RequestId};
use raftd::log::limits::{ENTRY_BYTES_MAX, OutOfBounds, PROPOSE_BYTES_MAX, PROPOSE_ENTRIES_MAX};
use raftd::log::outcome::{LogIndex, Outcome, Query, Refusal};

use crate::driven::{Driven, again, appended};

#[test]
fn indexes_count_entries_and_nothing_else() {
    let mut driven = Driven::new();
    assert_eq!(driven.propose(None, &[b"a"]), Ok(appended(1, 1)));
    driven.pass();
    driven.pass();
    assert_eq!(driven.propose(None, &[b"b", b"", b"d"]), Ok(appended(2, 3)));
    assert!(driven.propose(None, &[]).is_err());
    assert_eq!(driven.propose(None, &[b"e"]), Ok(appended(5, 1)));
    assert_eq!(driven.read(2), [&b"b"[..], b"", b"d", b"e"]);
    let header = driven.status().header;
    assert_eq!(
        (header.first, header.last, header.time),
        (LogIndex(1), LogIndex(5), GroupTime(1_000))
    );
}

#[test]
fn a_repeated_request_is_answered_with_where_it_went() {
    let mut driven = Driven::new();
    let id = driven.id(1, 1, 0);
    assert_eq!(driven.propose(Some(id), &[b"a", b"b"]), Ok(appended(1, 2)));
    assert_eq!(driven.propose(Some(driven.id(2, 1, 0)), &[b"c"]), Ok(appended(3, 1)));
    // Whatever a repetition carries, and though the entries are gone.
    driven.trim(3).unwrap();
    assert_eq!(driven.propose(Some(id), &[b"other"]), Ok(again(1, 2)));
    assert_eq!(driven.status().header.last, LogIndex(3));
    // What is acknowledged is forgotten, and never executed again.
    assert_eq!(driven.propose(Some(driven.id(1, 2, 1)), &[b"d"]), Ok(appended(4, 1)));
    assert_eq!(driven.propose(Some(id), &[b"a"]), Err(Refusal::Acknowledged));
    assert_eq!(driven.propose(Some(driven.id(1, 2, 2)), &[b"a"]), Err(Refusal::Acknowledged));
}

#[test]
fn requests_may_arrive_in_any_order() {
    let mut driven = Driven::new();
    for (sequence, index) in [(3, 1), (1, 2), (2, 3)] {
        assert_eq!(
            driven.propose(Some(driven.id(1, sequence, 0)), &[b"x"]),
            Ok(appended(index, 1))
        );
    }
    for (sequence, index) in [(1, 2), (2, 3), (3, 1)] {
        assert_eq!(driven.propose(Some(driven.id(1, sequence, 0)), &[b"x"]), Ok(again(index, 1)));
    }
}

#[test]
fn an_expired_request_is_not_executed_and_its_row_goes_in_time() {
    let mut driven = Driven::new();
    let id = driven.id(1, 1, 0);
    driven.propose(Some(id), &[b"a"]).unwrap();
    driven.now = id.expires.0;
    driven.pass();
    assert_eq!(driven.propose(Some(id), &[b"a"]), Ok(again(1, 1)));
    driven.now += 1;
    driven.pass();
    assert_eq!(driven.machine.session_rows(), 0);
    let expired = Err(Refusal::Expired { expires: id.expires, now: GroupTime(driven.now) });
    assert_eq!(driven.propose(Some(id), &[b"a"]), expired);
    let far = RequestId { expires: GroupTime(driven.now + 300_001), ..id };
    let limit = 300_000;
    let refused = Err(Refusal::TooFarAhead { ahead_ms: 300_001, limit });
    assert_eq!(driven.propose(Some(far), &[b"a"]), refused);
}

#[test]
fn one_apply_forgets_few_rows_but_more_than_it_adds() {
    let mut driven = Driven::new();
    for client in 0..10 {
        driven.propose(Some(driven.id(client, 1, 0)), &[b"a"]).unwrap();
    }
    driven.now += 20_000;
    driven.pass();
    assert_eq!(driven.machine.session_rows(), 6);
    driven.pass();
    driven.pass();
    assert_eq!(driven.machine.session_rows(), 0);
}

#[test]
fn the_table_has_limits_with_names() {
    let limits = SessionLimits { replies_per_client: 2, clients: 2, replies: 3 };
    let mut driven = Driven::with_limits(limits);
    let refused = |name, limit| Err(Refusal::Limit { name, limit });
    driven.propose(Some(driven.id(1, 1, 0)), &[b"a"]).unwrap();
    driven.propose(Some(driven.id(1, 2, 0)), &[b"a"]).unwrap();
    let third = driven.propose(Some(driven.id(1, 3, 0)), &[b"a"]);
    assert_eq!(third, refused("session_replies_per_client_max", 2));
    driven.propose(Some(driven.id(2, 1, 0)), &[b"a"]).unwrap();
    assert_eq!(
        driven.propose(Some(driven.id(3, 1, 0)), &[b"a"]),
        refused("session_clients_max", 2)
    );
    assert_eq!(
        driven.propose(Some(driven.id(2, 2, 0)), &[b"a"]),
        refused("session_replies_max", 3)
    );
    assert_eq!(driven.propose(Some(driven.id(1, 3, 1)), &[b"a"]), Ok(appended(4, 1)));
}

#[test]
fn a_quota_refuses_until_there_is_room_again() {
    let mut driven = Driven::new();
    let propose = |driven: &mut Driven, payloads: &[&[u8]]| {
        let payloads = payloads.to_vec();
        driven.apply(&Command::Propose { id: None, quota_bytes: 100, payloads }).result
    };
    assert_eq!(propose(&mut driven, &[&[0; 60]]), Ok(appended(1, 1)));
    let refused = Err(Refusal::Quota { bytes: 61, asked: 40, limit: 100 });
    assert_eq!(propose(&mut driven, &[&[0; 40]]), refused);
    assert_eq!(propose(&mut driven, &[&[0; 39]]), Ok(appended(2, 1)));
    assert!(propose(&mut driven, &[b""]).is_err(), "a full log takes nothing, not even nothing");
    driven.trim(2).unwrap();
    assert_eq!(driven.status().header.bytes, 40);
    assert_eq!(propose(&mut driven, &[&[0; 60]]), Ok(appended(3, 1)));
}

#[test]
fn a_trim_may_be_repeated_and_goes_no_further_than_the_end() {
    let mut driven = Driven::new();
    assert_eq!(driven.trim(1), Ok(Outcome::Trimmed));
    for number in 1..=10_u8 {
        driven.propose(None, &[&[number; 5_000]]).unwrap();
    }
    for first in [4, 4, 2, 0] {
        assert_eq!(driven.trim(first), Ok(Outcome::Trimmed));
        assert_eq!(driven.status().header.first, LogIndex(4));
    }
    let beyond = Refusal::BeyondEnd { first: LogIndex(12), last: LogIndex(10) };
    assert_eq!(driven.trim(12), Err(beyond));
    assert_eq!(driven.read(4).len(), 7);
    assert_eq!(driven.read(3), [&[0_u8; 0][..]; 0]);
    driven.trim(11).unwrap();
    let header = driven.status().header;
    assert_eq!((header.first, header.last, header.bytes), (LogIndex(11), LogIndex(10), 0));
    assert_eq!(driven.propose(None, &[b"next"]), Ok(appended(11, 1)));
}

#[test]
fn entries_have_bounds() {
    let mut driven = Driven::new();
    let long = vec![7; ENTRY_BYTES_MAX + 1];
    let (bytes, limit) = (long.len(), ENTRY_BYTES_MAX);
    let refused = Err(OutOfBounds::EntryTooLong { bytes, limit }.into());
    assert_eq!(driven.propose(None, &[b"a", &long]), refused);
    let longest = &long[1..];
    assert_eq!(driven.propose(None, &[longest, longest]), Ok(appended(1, 2)));
    let (bytes, limit) = (PROPOSE_BYTES_MAX + 1, PROPOSE_BYTES_MAX);
    let refused = Err(OutOfBounds::TooLong { bytes, limit }.into());
    assert_eq!(driven.propose(None, &[longest, longest, b"a"]), refused);
    let most = vec![&b"x"[..]; PROPOSE_ENTRIES_MAX];
    assert_eq!(driven.propose(None, &most), Ok(appended(3, 1_024)));
    let refused = Err(OutOfBounds::Entries { entries: 0, limit: PROPOSE_ENTRIES_MAX }.into());
    assert_eq!(driven.propose(None, &[]), refused);
}

#[test]
fn a_read_is_bounded_but_never_empty_where_there_is_something() {
    let mut driven = Driven::new();
    for _ in 0..100 {
        driven.propose(None, &[&[1; 1_000]]).unwrap();
    }
    let read = |from, bytes_max| {
        driven.machine.query(Query::Read { from: LogIndex(from), bytes_max }).entries.len()
    };
    assert_eq!((read(1, 10_030), read(50, 10_030), read(95, 10_030)), (10, 10, 6));
    assert_eq!((read(30, 1), read(100, 0), read(101, 1_000), read(0, 1_000)), (1, 1, 0, 0));
}

#[test]
fn garbage_is_answered_and_newer_commands_are_not_understood() {
    let mut driven = Driven::new();
    let before = driven.machine.digest();
    let at = raft::Applied { time: GroupTime(0), ..raft::Applied::default() };
    let response = driven.machine.apply(at, &bytes::Bytes::from_static(&[1, 77]));
    assert!(matches!(response.result, Err(Refusal::BadCommand(_))));
    assert_eq!(driven.machine.digest(), before);
    assert!(driven.machine.understands(&bytes::Bytes::from_static(&[1, 77])));
    assert!(!driven.machine.understands(&bytes::Bytes::from_static(&[2])));
}
