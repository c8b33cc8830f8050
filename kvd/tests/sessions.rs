//! The exactly-once table, question by question (design part 6, "Exactly once").

mod common;

use common::{Driven, append, delete, put, put_if};
use kvd::{
    KvMachine,
    command::{Condition, RequestId},
    limits::{
        BODY_BYTES_PER_SHARD_MAX, EXPIRES_AHEAD_MS_MAX, KEY_BYTES_MAX, OutOfBounds,
        REPLIES_PER_ROW_MAX, VALUE_BYTES_MAX,
    },
    outcome::{Outcome, Refusal, Revision, ShardTime, Version, Written},
    session::SessionLimits,
};

#[test]
fn a_retry_gets_the_kept_reply_and_changes_nothing() {
    let mut driven = Driven::new(1);
    let id = driven.id(1, 1, 0);
    let first = driven.run(Some(id), append(b"k", b"a"));
    let again = driven.run(Some(id), append(b"k", b"a"));
    assert!(!first.duplicate && again.duplicate);
    assert_eq!(first.outcome, again.outcome);
    assert_eq!(&driven.get(b"k").unwrap().value[..], b"a");
}

#[test]
fn an_acknowledged_sequence_is_refused() {
    let mut driven = Driven::new(1);
    let first = driven.id(1, 1, 0);
    driven.run(Some(first), put(b"k", b"1"));
    driven.run(Some(driven.id(1, 3, 2)), put(b"k", b"3"));
    assert_eq!(driven.refused(first, put(b"k", b"1")), Refusal::Acknowledged);
    let given_up = driven.id(1, 2, 0);
    assert_eq!(driven.refused(given_up, put(b"k", b"2")), Refusal::Acknowledged);
    assert_eq!(&driven.get(b"k").unwrap().value[..], b"3");
}

#[test]
fn a_request_that_acknowledges_itself_is_refused() {
    let mut driven = Driven::new(1);
    assert_eq!(driven.refused(driven.id(1, 4, 4), put(b"k", b"v")), Refusal::Acknowledged);
    assert_eq!(driven.refused(driven.id(1, 0, 0), put(b"k", b"v")), Refusal::Acknowledged);
    assert_eq!(driven.get(b"k"), None);
}

#[test]
fn a_kept_reply_outranks_expiry_until_it_is_swept() {
    let mut driven = Driven::new(1);
    let id = driven.id(1, 1, 0);
    driven.run(Some(id), append(b"k", b"a"));
    driven.now += 60_000;
    assert!(driven.run(Some(id), append(b"k", b"a")).duplicate);
    driven.now += 1;
    let refused = driven.refused(id, append(b"k", b"a"));
    assert_eq!(refused, Refusal::Expired { expires: id.expires, now: ShardTime(driven.now) });
    assert_eq!(driven.machine.session_rows(), 0);
    assert_eq!(&driven.get(b"k").unwrap().value[..], b"a");
}

#[test]
fn five_minutes_ahead_is_the_limit() {
    let mut driven = Driven::new(1);
    let id = |driven: &Driven, ahead: u64| RequestId {
        expires: ShardTime(driven.now + ahead),
        ..driven.id(1, 1, 0)
    };
    let far = id(&driven, EXPIRES_AHEAD_MS_MAX + 1);
    let limit = EXPIRES_AHEAD_MS_MAX;
    let refused = driven.refused(far, put(b"k", b"v"));
    assert_eq!(refused, Refusal::TooFarAhead { ahead_ms: limit + 1, limit });
    let near = id(&driven, EXPIRES_AHEAD_MS_MAX);
    assert!(!driven.run(Some(near), put(b"k", b"v")).duplicate);
}

#[test]
fn a_row_lives_as_long_as_the_latest_expiry_it_ever_held() {
    let mut driven = Driven::new(1);
    let long = RequestId { expires: ShardTime(driven.now + 200_000), ..driven.id(1, 1, 0) };
    let delayed = RequestId { expires: ShardTime(driven.now + 190_000), ..driven.id(1, 2, 1) };
    driven.run(Some(long), put(b"k", b"1"));
    driven.run(Some(driven.id(1, 3, 2)), put(b"k", b"3"));
    driven.now += 100_000;
    driven.pass();
    assert_eq!(driven.machine.session_rows(), 1);
    assert_eq!(driven.refused(delayed, put(b"k", b"2")), Refusal::Acknowledged);
    driven.now += 100_001;
    driven.pass();
    assert_eq!(driven.machine.session_rows(), 0);
}

#[test]
fn the_257th_unacknowledged_request_is_refused_and_can_come_again() {
    let mut driven = Driven::new(1);
    let most = REPLIES_PER_ROW_MAX as u64;
    for sequence in 1..=most {
        driven.run(Some(driven.id(1, sequence, 0)), put(b"k", b"v"));
    }
    let refused = driven.refused(driven.id(1, most + 1, 0), put(b"k", b"v"));
    assert_eq!(refused, Refusal::Limit { name: "session_replies_per_client_max", limit: most });
    assert!(!driven.run(Some(driven.id(1, most + 1, 1)), put(b"k", b"v")).duplicate);
    assert!(driven.run(Some(driven.id(1, 2, 0)), put(b"k", b"v")).duplicate);
}

#[test]
fn a_full_table_refuses_new_clients_and_serves_known_ones() {
    let limits = SessionLimits { rows: 2, ..SessionLimits::default() };
    let mut driven = Driven::around(KvMachine::with_limits(1, limits), 1);
    driven.run(Some(driven.id(1, 1, 0)), put(b"k", b"1"));
    driven.run(Some(driven.id(2, 1, 0)), put(b"k", b"2"));
    let refused = driven.refused(driven.id(3, 1, 0), put(b"k", b"3"));
    assert_eq!(refused, Refusal::Limit { name: "session_clients_per_shard_max", limit: 2 });
    driven.run(Some(driven.id(1, 2, 1)), put(b"k", b"1"));
    driven.now += 60_001;
    driven.run(Some(driven.id(3, 1, 0)), put(b"k", b"3"));
}

#[test]
fn the_oldest_bodies_are_dropped_first() {
    let mut driven = Driven::new(1);
    let half = vec![b'x'; VALUE_BYTES_MAX];
    driven.run(None, put(b"k", &half));
    let fit = BODY_BYTES_PER_SHARD_MAX / (VALUE_BYTES_MAX as u64 + 128);
    for sequence in 1..=fit + 1 {
        let answered = driven.run(Some(driven.id(1, sequence, 0)), append(b"k", b""));
        assert!(!answered.body_dropped);
    }
    let first = driven.run(Some(driven.id(1, 1, 0)), append(b"k", b""));
    let written = Written { version: Version(2), revision: Revision(2) };
    assert!(first.duplicate && first.body_dropped);
    assert_eq!(first.outcome, Outcome::Appended { written, old: bytes::Bytes::new() });
    let second = driven.run(Some(driven.id(1, 2, 0)), append(b"k", b""));
    assert!(second.duplicate && !second.body_dropped);
    match second.outcome {
        Outcome::Appended { old, .. } => assert_eq!(old.len(), VALUE_BYTES_MAX),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_failed_condition_is_a_kept_outcome_with_what_is_there() {
    let mut driven = Driven::new(4);
    driven.run(None, put(b"k", b"old"));
    let id = driven.id(1, 1, 0);
    let operation = put_if(b"k", b"new", Condition::Version(Version(0)));
    let pair = driven.get(b"k");
    assert_eq!(driven.run(Some(id), operation.clone()).outcome, Outcome::Mismatch(pair.clone()));
    driven.run(None, delete(b"k"));
    let again = driven.run(Some(id), operation);
    assert!(again.duplicate, "now the condition would hold, but the request has had its answer");
    assert_eq!(again.outcome, Outcome::Mismatch(pair));
    assert_eq!(driven.get(b"k"), None);
}

#[test]
fn conditions_compare_version_and_revision() {
    let mut driven = Driven::new(1);
    let absent = put_if(b"k", b"1", Condition::ModRevision(Revision(0)));
    assert!(matches!(driven.run(None, absent.clone()).outcome, Outcome::Written(_)));
    assert!(matches!(driven.run(None, absent).outcome, Outcome::Mismatch(Some(_))));
    let by_revision = put_if(b"k", b"2", Condition::ModRevision(Revision(1)));
    let written = Written { version: Version(2), revision: Revision(2) };
    assert_eq!(driven.run(None, by_revision).outcome, Outcome::Written(written));
    let missing = put_if(b"other", b"2", Condition::Version(Version(1)));
    assert_eq!(driven.run(None, missing).outcome, Outcome::Mismatch(None));
}

#[test]
fn a_deleted_key_starts_over_under_a_new_revision() {
    let mut driven = Driven::new(1);
    driven.run(None, put(b"k", b"1"));
    driven.run(None, put(b"k", b"2"));
    assert_eq!(driven.run(None, delete(b"nothing")).outcome, Outcome::Absent);
    let pair = driven.get(b"k").unwrap();
    let written = Written { version: Version(0), revision: Revision(3) };
    assert_eq!(driven.run(None, delete(b"k")).outcome, Outcome::Removed { written, pair });
    driven.run(None, put(b"k", b"3"));
    let pair = driven.get(b"k").unwrap();
    assert_eq!((pair.version, pair.create_revision), (Version(1), Revision(4)));
}

#[test]
fn limits_have_exact_edges() {
    let mut driven = Driven::new(1);
    let (key, value) = (vec![1; KEY_BYTES_MAX + 1], vec![2; VALUE_BYTES_MAX + 1]);
    driven.run(None, put(&key[1..], &value[1..]));
    let refused = driven.apply(None, put(&key, b"")).result;
    let limit = KEY_BYTES_MAX;
    assert_eq!(refused, Err(OutOfBounds::KeyTooLong { bytes: limit + 1, limit }.into()));
    let refused = driven.apply(None, put(b"k", &value)).result;
    let limit = VALUE_BYTES_MAX;
    assert_eq!(refused, Err(OutOfBounds::ValueTooLong { bytes: limit + 1, limit }.into()));
    assert_eq!(driven.apply(None, delete(b"")).result, Err(OutOfBounds::KeyEmpty.into()));
    let grown = driven.run(None, append(&key[1..], b"x")).outcome;
    let limit = VALUE_BYTES_MAX as u64;
    assert_eq!(grown, Outcome::TooLarge { bytes: limit + 1, limit });
}

#[test]
fn the_first_command_fixes_the_number_of_shards() {
    let mut driven = Driven::new(16);
    assert_eq!(driven.machine.created(), None);
    driven.run(None, put(b"k", b"v"));
    assert_eq!(driven.machine.created(), Some(16));
    driven.shards = 8;
    let refused = driven.apply(None, put(b"k", b"other")).result;
    assert_eq!(refused, Err(Refusal::OtherShards { created: 16, proposed: 8 }));
    driven.shards = 0;
    assert!(driven.apply(None, put(b"k", b"other")).result.is_err());
    assert_eq!(&driven.get(b"k").unwrap().value[..], b"v");
}

#[test]
fn an_apply_sweeps_a_bounded_number_of_rows_and_the_rest_follows() {
    let mut driven = Driven::new(1);
    for client in 0..100 {
        driven.run(Some(driven.id(client, 1, 0)), put(b"k", b"v"));
    }
    driven.now += 60_001;
    driven.pass();
    assert_eq!(driven.machine.session_rows(), 96);
    for _ in 0..24 {
        driven.pass();
    }
    assert_eq!(driven.machine.session_rows(), 0);
}

#[test]
fn a_request_executes_up_to_the_moment_it_expires() {
    let mut driven = Driven::new(1);
    let (in_time, late) = (driven.id(1, 1, 0), driven.id(1, 2, 0));
    driven.now += 60_000;
    assert!(!driven.run(Some(in_time), put(b"k", b"1")).duplicate);
    driven.now += 1;
    let now = ShardTime(driven.now);
    let refused = driven.refused(late, put(b"k", b"2"));
    assert_eq!(refused, Refusal::Expired { expires: late.expires, now });
}

#[test]
fn a_short_lived_reply_goes_before_a_long_lived_one() {
    let mut driven = Driven::new(1);
    let long = RequestId { expires: ShardTime(driven.now + 200_000), ..driven.id(1, 1, 0) };
    let short = RequestId { expires: ShardTime(driven.now + 10_000), ..driven.id(1, 2, 0) };
    driven.run(Some(long), put(b"k", b"1"));
    driven.run(Some(short), put(b"k", b"2"));
    driven.now += 10_001;
    driven.pass();
    assert!(matches!(driven.refused(short, put(b"k", b"2")), Refusal::Expired { .. }));
    assert!(driven.run(Some(long), put(b"k", b"1")).duplicate);
}

#[test]
fn acknowledged_bodies_free_their_budget() {
    let mut driven = Driven::new(1);
    driven.run(None, put(b"k", &vec![b'x'; VALUE_BYTES_MAX]));
    for sequence in 1..=20 {
        let id = driven.id(1, sequence, sequence - 1);
        driven.run(Some(id), append(b"k", b""));
        let again = driven.run(Some(id), append(b"k", b""));
        assert!(again.duplicate && !again.body_dropped, "sequence {sequence}");
    }
}

#[test]
fn time_never_falls() {
    let mut driven = Driven::new(1);
    let id = driven.id(1, 1, 0);
    driven.now += 60_001;
    driven.pass();
    driven.now -= 60_000;
    assert!(matches!(driven.refused(id, put(b"k", b"1")), Refusal::Expired { .. }));
}
