//! Transactions by example: all or nothing, one revision, and what a repeated one answers.

mod common;

use bytes::Bytes;
use common::{Driven, append, chunks, put, put_under};
use kvd::{
    KvMachine,
    command::{Action, Command, Compare, LeaseId, Operand, Operation, Relation, Txn},
    limits::BODY_BYTES_PER_SHARD_MAX,
    outcome::{ActionReply, Answer, Executed, Outcome, Query, Refusal, Revision, Version},
};
use proto::shard_of;
use raft::StateMachine;

fn then<'a>(actions: &[Action<'a>]) -> Operation<'a> {
    Operation::Txn(Txn { then: actions.to_vec(), ..Txn::default() })
}

fn executed(outcome: Outcome) -> Executed {
    match outcome {
        Outcome::Txn(executed) => executed,
        other => panic!("not executed: {other:?}"),
    }
}

#[test]
fn each_operation_sees_those_before_it_and_all_share_a_revision() {
    let mut driven = Driven::new(1);
    driven.outcome(put(b"gone", b"1"));
    let done = executed(driven.outcome(then(&[
        Action::Put { key: b"k", value: b"new", lease: None },
        Action::Get { key: b"k" },
        Action::Delete { key: b"gone" },
        Action::Get { key: b"gone" },
        Action::Append { key: b"l", value: b"tail" },
    ])));
    assert!(done.succeeded);
    assert_eq!(done.revision, Some(Revision(2)));
    let (k, l) = (driven.get(b"k").unwrap(), driven.get(b"l").unwrap());
    assert_eq!((k.mod_revision, l.mod_revision), (Revision(2), Revision(2)));
    assert_eq!(done.replies[1], ActionReply::Got(Some(k)));
    assert_eq!(done.replies[3], ActionReply::Got(None));
    assert_eq!(driven.get(b"gone"), None);
}

#[test]
fn what_fails_in_the_middle_changes_nothing() {
    let mut driven = Driven::new(1);
    driven.outcome(put(b"long", &vec![0; 1 << 20]));
    let digest = driven.machine.digest();
    let put = Action::Put { key: b"k", value: b"v", lease: None };
    let outcome = driven.outcome(then(&[put, Action::Append { key: b"long", value: b"x" }]));
    assert_eq!(outcome, Outcome::TooLarge { bytes: (1 << 20) + 1, limit: 1 << 20 });
    let gone = LeaseId::new(1 << 14).unwrap();
    let under = Action::Put { key: b"l", value: b"v", lease: Some(gone) };
    assert_eq!(driven.outcome(then(&[put, under])), Outcome::NoSuchLease(gone));
    assert_eq!(driven.machine.digest(), digest);
}

#[test]
fn an_absent_value_is_not_equal_to_any_and_neither_less_nor_greater() {
    let mut driven = Driven::new(1);
    let mut holds = |relation, operand| {
        let compares = vec![Compare { key: b"k", relation, operand }];
        executed(driven.outcome(Operation::Txn(Txn { compares, ..Txn::default() }))).succeeded
    };
    let value = Operand::Value(b"");
    assert!(holds(Relation::NotEqual, value));
    assert!(!holds(Relation::Equal, value) && !holds(Relation::Less, value));
    assert!(!holds(Relation::Greater, value));
    assert!(holds(Relation::Equal, Operand::Version(Version(0))));
    assert!(holds(Relation::Less, Operand::ModRevision(Revision(1))));
    assert!(holds(Relation::Equal, Operand::Lease(None)));
}

#[test]
fn a_pair_stays_with_its_lease_over_an_append_and_leaves_it_by_a_put() {
    let mut driven = Driven::new(1);
    let lease = driven.grant(b"k", 1_000);
    driven.outcome(put_under(b"k", b"1", lease));
    driven.outcome(append(b"k", b"2"));
    driven.outcome(then(&[Action::Append { key: b"k", value: b"3" }]));
    assert_eq!(driven.get(b"k").unwrap().lease, Some(lease));
    driven.outcome(then(&[Action::Put { key: b"k", value: b"4", lease: None }]));
    assert_eq!(driven.get(b"k").unwrap().lease, None);
    driven.outcome(Operation::Revoke { lease });
    assert!(driven.get(b"k").is_some());
}

#[test]
fn a_repeated_transaction_gets_the_kept_replies_until_they_are_dropped() {
    let mut driven = Driven::new(1);
    driven.outcome(put(b"k", &vec![7; 1 << 20]));
    let read_and_write = |value| {
        then(&[Action::Get { key: b"k" }, Action::Put { key: b"other", value, lease: None }])
    };
    let first = driven.run(Some(driven.id(1, 1, 0)), read_and_write(b"1"));
    let again = driven.run(Some(driven.id(1, 1, 0)), read_and_write(b"1"));
    assert!(again.duplicate && !again.body_dropped);
    assert_eq!(again.outcome, first.outcome);
    let mut machine = KvMachine::new(1);
    machine.restore(&mut chunks(&driven.machine).into_iter()).unwrap();
    assert_eq!(machine.digest(), driven.machine.digest());
    driven.machine = machine;
    let restored = driven.run(Some(driven.id(1, 1, 0)), read_and_write(b"1"));
    assert_eq!(restored.outcome, first.outcome);
    for sequence in 2..2 + (BODY_BYTES_PER_SHARD_MAX >> 20) {
        driven.run(Some(driven.id(1, sequence, 0)), read_and_write(b"2"));
    }
    let dropped = driven.run(Some(driven.id(1, 1, 0)), read_and_write(b"1"));
    assert!(dropped.duplicate && dropped.body_dropped);
    let (dropped, first) = (executed(dropped.outcome), executed(first.outcome));
    assert!(dropped.replies.is_empty());
    assert_eq!((dropped.succeeded, dropped.revision), (first.succeeded, first.revision));
    assert_eq!(driven.machine.digest(), driven.machine.recomputed_digest());
}

#[test]
fn one_that_only_reads_can_be_asked() {
    let mut driven = Driven::new(4);
    driven.outcome(put(b"{t}k", b"v"));
    let ask = |driven: &Driven, shards: u32, operation: Operation<'_>| {
        let command: Bytes = Command::new(shards, operation).encode();
        match driven.machine.query(Query::Txn(command)) {
            Answer::Txn(response) => response.result.map(|answered| executed(answered.outcome)),
            other => panic!("{other:?}"),
        }
    };
    let gets = then(&[Action::Get { key: b"{t}k" }, Action::Get { key: b"{t}l" }]);
    let told = ask(&driven, 4, gets.clone()).unwrap();
    assert_eq!(told.revision, None);
    assert_eq!(told.replies[..], [ActionReply::Got(driven.get(b"{t}k")), ActionReply::Got(None)]);
    assert!(matches!(ask(&driven, 5, gets), Err(Refusal::OtherShards { .. })));
    let write = then(&[Action::Put { key: b"k", value: b"", lease: None }]);
    assert_eq!(ask(&driven, 4, write), Err(Refusal::NotReadOnly));
    assert_eq!(ask(&driven, 4, put(b"k", b"v")), Err(Refusal::NotReadOnly));
    let other = (b'b'..).map(|letter| [letter]);
    let other = other.into_iter().find(|key| shard_of(key, 4) != shard_of(b"a", 4)).unwrap();
    let apart = then(&[Action::Get { key: b"a" }, Action::Get { key: &other }]);
    assert!(matches!(ask(&driven, 4, apart), Err(Refusal::Apart { .. })));
    assert!(ask(&Driven::new(4), 4, then(&[Action::Get { key: b"k" }])).is_ok());
}
