//! One over each limit gets its named refusal, and nothing changes.

mod common;

use common::{Driven, acquire, append, chunks, delete, put, put_under};
use kvd::{
    KvMachine,
    command::{Action, Bounds, Command, Compare, Operand, Operation, Relation, Tenure, Txn},
    limits::{
        KEYS_PER_LEASE_MAX, LEASE_TTL_MS_MAX, LOCK_OWNER_BYTES_MAX, LOCK_WAIT_MS_MAX,
        LOCKS_PER_LEASE_MAX, OutOfBounds, PAIR_OVERHEAD_BYTES, TXN_OPERATIONS_MAX,
        TXN_REPLY_BYTES_MAX, VALUE_BYTES_MAX, WAITERS_PER_LOCK_MAX,
    },
    outcome::{Outcome, Refusal},
};
use raft::StateMachine;

/// Applies what must be refused, and checks that it changed nothing.
fn refused(driven: &mut Driven, operation: Operation<'_>) -> Refusal {
    let digest = driven.machine.digest();
    let refusal = driven.apply(None, operation).result.expect_err("it is over a limit");
    assert_eq!(driven.machine.digest(), digest, "{refusal}");
    refusal
}

#[test]
fn a_transaction_has_so_many_operations_and_changes_a_key_once() {
    let mut driven = Driven::new(1);
    let keys: Vec<Vec<u8>> =
        (0..=TXN_OPERATIONS_MAX).map(|it| it.to_string().into_bytes()).collect();
    let compare = |key| Compare { key, relation: Relation::Equal, operand: Operand::Lease(None) };
    let txn = |operations: usize| {
        let puts =
            keys[1..operations].iter().map(|key| Action::Put { key, value: b"v", lease: None });
        let compares = vec![compare(&keys[0][..])];
        Operation::Txn(Txn { compares, then: puts.collect(), otherwise: Vec::new() })
    };
    driven.outcome(txn(TXN_OPERATIONS_MAX));
    assert_eq!(driven.machine.pairs(), TXN_OPERATIONS_MAX as u64 - 1);
    let (operations, limit) = (TXN_OPERATIONS_MAX + 1, TXN_OPERATIONS_MAX);
    let refusal = refused(&mut driven, txn(operations));
    assert_eq!(refusal, OutOfBounds::TxnTooLong { operations, limit }.into());
    assert!(refusal.to_string().contains("txn_operations_max is 128"));

    let put = Action::Put { key: b"k", value: b"v", lease: None };
    let actions = vec![put, Action::Get { key: b"k" }, Action::Delete { key: b"k" }];
    let twice = Txn { then: actions.clone(), ..Txn::default() };
    let refusal = refused(&mut driven, Operation::Txn(twice));
    assert_eq!(refusal, Refusal::ChangedTwice { key: b"k"[..].into() });
    let each_once =
        Txn { then: actions[..2].into(), otherwise: actions[2..].into(), ..Txn::default() };
    assert!(matches!(driven.outcome(Operation::Txn(each_once)), Outcome::Txn(_)));
}

#[test]
fn the_replies_of_a_transaction_fit_one_message() {
    let mut driven = Driven::new(1);
    let value = vec![b'v'; VALUE_BYTES_MAX];
    driven.outcome(put(b"k", &value));
    let gets = |many: usize| {
        Operation::Txn(Txn { then: vec![Action::Get { key: b"k" }; many], ..Txn::default() })
    };
    driven.outcome(gets(1));
    let limit = TXN_REPLY_BYTES_MAX;
    let refusal = refused(&mut driven, gets(2));
    assert_eq!(refusal, Refusal::Limit { name: "txn_reply_bytes_max", limit });
}

#[test]
fn a_lease_lives_between_two_bounds() {
    let mut driven = Driven::new(1);
    driven.grant(b"k", 100);
    driven.grant(b"k", LEASE_TTL_MS_MAX);
    for ttl_ms in [0, 99, LEASE_TTL_MS_MAX + 1, u64::MAX] {
        let refusal = refused(&mut driven, Operation::Grant { key: b"k", ttl_ms });
        assert!(matches!(refusal, Refusal::OutOfBounds(OutOfBounds::TtlOutOfRange { .. })));
        refused(&mut driven, acquire(b"l", ttl_ms, 0));
    }
}

#[test]
fn a_wait_and_an_owner_have_their_limits() {
    let mut driven = Driven::new(1);
    driven.outcome(acquire(b"l", 1_000, LOCK_WAIT_MS_MAX));
    let refusal = refused(&mut driven, acquire(b"l", 1_000, LOCK_WAIT_MS_MAX + 1));
    assert!(refusal.to_string().contains("lock_wait_ms_max is 300000"), "{refusal}");
    let owner = vec![b'o'; LOCK_OWNER_BYTES_MAX + 1];
    let tenure = Tenure::Own { ttl_ms: 1_000 };
    let acquire = |owner| Operation::Acquire { name: b"m", tenure, wait_ms: 0, owner };
    let refusal = refused(&mut driven, acquire(&owner[..]));
    assert!(refusal.to_string().contains("lock_owner_bytes_max is 1024"), "{refusal}");
    assert!(matches!(driven.outcome(acquire(&owner[1..])), Outcome::Held { .. }));
}

#[test]
fn a_lease_has_so_many_keys() {
    let mut driven = Driven::new(1);
    let lease = driven.grant(b"k", 1_000);
    for number in 0..KEYS_PER_LEASE_MAX {
        driven.outcome(put_under(number.to_string().as_bytes(), b"v", lease));
    }
    let refusal = refused(&mut driven, put_under(b"one more", b"v", lease));
    let limit = KEYS_PER_LEASE_MAX as u64;
    assert_eq!(refusal, Refusal::Limit { name: "keys_per_lease_max", limit });
    driven.outcome(put_under(b"7", b"again", lease));
    driven.outcome(delete(b"7"));
    driven.outcome(put_under(b"one more", b"v", lease));
    let both = [b"x", b"y"].map(|key| Action::Put { key, value: b"v", lease: Some(lease) });
    driven.outcome(delete(b"8"));
    refused(&mut driven, Operation::Txn(Txn { then: both.into(), ..Txn::default() }));
    let ended = driven.outcome(Operation::Revoke { lease });
    assert_eq!(ended, Outcome::Ended { keys_removed: limit as u32 - 1 });
    assert_eq!(driven.machine.pairs(), 0);
}

#[test]
fn a_lease_has_so_many_locks() {
    let mut driven = Driven::new(1);
    let lease = driven.grant(b"k", 1_000);
    let names: Vec<String> = (0..=LOCKS_PER_LEASE_MAX).map(|number| format!("l{number}")).collect();
    let under = |number: usize| Operation::Acquire {
        name: names[number].as_bytes(),
        tenure: Tenure::Lease(lease),
        wait_ms: 0,
        owner: b"",
    };
    for number in 0..LOCKS_PER_LEASE_MAX {
        assert!(matches!(driven.outcome(under(number)), Outcome::Held { .. }));
    }
    let refusal = refused(&mut driven, under(LOCKS_PER_LEASE_MAX));
    let limit = LOCKS_PER_LEASE_MAX as u64;
    assert_eq!(refusal, Refusal::Limit { name: "locks_per_lease_max", limit });
    driven.outcome(Operation::Revoke { lease });
    assert_eq!(driven.machine.locks(), 0);
}

#[test]
fn a_lock_has_so_many_who_wait_and_those_who_gave_up_make_room() {
    let mut driven = Driven::new(1);
    driven.outcome(acquire(b"l", 60_000, 0));
    for _ in 0..WAITERS_PER_LOCK_MAX {
        assert!(matches!(driven.outcome(acquire(b"l", 1_000, 1_000)), Outcome::Queued { .. }));
    }
    let limit = WAITERS_PER_LOCK_MAX as u64;
    let refusal = refused(&mut driven, acquire(b"l", 1_000, 1_000));
    assert_eq!(refusal, Refusal::Limit { name: "waiters_per_lock_max", limit });
    driven.now += 1_000;
    assert!(matches!(driven.outcome(acquire(b"l", 1_000, 1_000)), Outcome::Queued { .. }));
    assert_eq!(driven.machine.leases(), 2);
}

#[test]
fn beyond_the_quota_only_what_does_not_grow_is_done() {
    let mut driven = Driven::new(2);
    let tight = Bounds { stored_bytes_max: 4 * (PAIR_OVERHEAD_BYTES + 101), ..Bounds::default() };
    let under = |driven: &mut Driven, operation: Operation<'_>| {
        let bounds = tight;
        let command = Command { bounds, ..Command::new(2, operation) }.encode();
        driven.apply_bytes(&command).result.map(|answered| answered.outcome)
    };
    let quota = |result: Result<Outcome, Refusal>| match result {
        Err(refusal @ Refusal::Quota { .. }) => {
            let text = refusal.to_string();
            assert!(text.contains("stored_bytes_max") && text.contains("compact"), "{text}");
        }
        other => panic!("not refused: {other:?}"),
    };
    let value = [b'v'; 100];
    // Pairs may fill it to the last byte: a change of what was not there costs only its overhead.
    let mut written = 0;
    for key in [b"a", b"b", b"c", b"d"] {
        match under(&mut driven, put(key, &value)) {
            Ok(_) => written += 1,
            Err(refused) => {
                quota(Err(refused));
                break;
            }
        }
    }
    assert!(written >= 1, "nothing fits");
    let digest = driven.machine.digest();
    quota(under(&mut driven, put(b"z", &value)));
    quota(under(&mut driven, append(b"a", &value)));
    quota(under(&mut driven, Operation::Grant { key: b"a", ttl_ms: 1_000 }));
    quota(under(&mut driven, acquire(b"l", 1_000, 0)));
    let txn = Txn { then: vec![Action::Append { key: b"a", value: &value }], ..Txn::default() };
    quota(under(&mut driven, Operation::Txn(txn)));
    assert_eq!(driven.machine.digest(), digest);

    assert!(matches!(under(&mut driven, put(b"a", b"short")), Ok(Outcome::Written(_))));
    assert!(matches!(under(&mut driven, delete(b"a")), Ok(Outcome::Removed { .. })));
    for shard in 0..2 {
        let compact = Operation::Compact { shard, revision: None };
        assert!(matches!(under(&mut driven, compact), Ok(Outcome::Compacted(_))));
    }
    driven.pass();
    driven.pass();
    let full = driven.machine.stored_bytes();
    assert_eq!(full, (written - 1) * (PAIR_OVERHEAD_BYTES + 101));
    assert!(matches!(under(&mut driven, put(b"z", &value)), Ok(Outcome::Written(_))));
}

#[test]
fn what_was_refused_for_want_of_room_is_not_done_by_a_copy_that_comes_later() {
    let mut driven = Driven::new(1);
    let lease = driven.grant(b"k", 60_000);
    for number in 0..KEYS_PER_LEASE_MAX {
        driven.outcome(put_under(number.to_string().as_bytes(), b"v", lease));
    }
    let (named, full) = (driven.id(1, 1, 0), driven.id(1, 2, 0));
    let over = driven.refused(named, put_under(b"one more", b"v", lease));
    let bounds = Bounds { stored_bytes_max: 1, ..Bounds::default() };
    let quota = driven.apply_bounded(Some(full), bounds, put(b"k", b"v")).result.unwrap_err();
    assert!(matches!((&over, &quota), (Refusal::Limit { .. }, Refusal::Quota { .. })));
    // There is room again, but the clients were told that it never happens.
    driven.outcome(delete(b"7"));
    let mut machine = KvMachine::new(1);
    machine.restore(&mut chunks(&driven.machine).into_iter()).unwrap();
    assert_eq!(machine.digest(), driven.machine.digest());
    driven.machine = machine;
    assert_eq!(driven.refused(named, put_under(b"one more", b"v", lease)), over);
    assert_eq!(driven.refused(full, put(b"k", b"v")), quota);
    assert_eq!((driven.get(b"one more"), driven.get(b"k")), (None, None));
    driven.run(Some(driven.id(1, 3, 2)), put_under(b"one more", b"v", lease));
    assert_eq!(driven.machine.digest(), driven.machine.recomputed_digest());
}

#[test]
fn a_repeated_request_gets_its_reply_beyond_the_quota() {
    let mut driven = Driven::new(1);
    let id = driven.id(1, 1, 0);
    driven.run(Some(id), put(b"k", b"v"));
    let bounds = Bounds { stored_bytes_max: 1, ..Bounds::default() };
    let again = driven.apply_bounded(Some(id), bounds, put(b"k", b"v")).result.unwrap();
    assert!(again.duplicate);
    let refused = driven.apply_bounded(Some(driven.id(1, 2, 1)), bounds, put(b"l", b"v")).result;
    assert!(matches!(refused, Err(Refusal::Quota { limit: 1, .. })), "{refused:?}");
}
