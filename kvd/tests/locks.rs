//! Leases and locks by example: who gets a lock, what a token guards, and what goes with a lease.

mod common;

use common::{Driven, acquire, chunks, put, put_under};
use kvd::{
    KvMachine,
    command::{Guard, LeaseId, Operation, Tenure, Token},
    outcome::{Answer, Claim, Outcome, Query, Refusal},
};
use raft::{RECOVERY_GAP, StateMachine};

fn held(outcome: Outcome) -> (LeaseId, Token) {
    match outcome {
        Outcome::Held { lease, token, .. } => (lease, token),
        other => panic!("not held: {other:?}"),
    }
}

fn queued(outcome: Outcome) -> LeaseId {
    match outcome {
        Outcome::Queued { lease } => lease,
        other => panic!("not queued: {other:?}"),
    }
}

fn token(claim: Claim) -> Token {
    match claim {
        Claim::Held { token, .. } => token,
        other => panic!("not held: {other:?}"),
    }
}

#[test]
fn a_lock_goes_on_in_the_order_of_arrival_under_rising_tokens() {
    let mut driven = Driven::new(1);
    let (first, mut last) = held(driven.outcome(acquire(b"l", 10_000, 0)));
    let waiting: Vec<LeaseId> =
        (0..5).map(|_| queued(driven.outcome(acquire(b"l", 10_000, 60_000)))).collect();
    let mut holder = first;
    for next in waiting {
        assert_eq!(driven.claim(b"l", next), Claim::Waiting);
        let release = Operation::Release { name: b"l", lease: holder };
        assert_eq!(driven.outcome(release.clone()), Outcome::Released(true));
        assert_eq!(driven.outcome(release), Outcome::Released(false), "again");
        let token = token(driven.claim(b"l", next));
        assert!(token > last, "{token:?} after {last:?}");
        (holder, last) = (next, token);
    }
    driven.outcome(Operation::Release { name: b"l", lease: holder });
    assert_eq!((driven.machine.locks(), driven.machine.leases()), (0, 0));
    assert_eq!(driven.machine.stored_bytes(), 0);
}

#[test]
fn who_holds_a_lock_gets_it_again_under_the_same_token() {
    let mut driven = Driven::new(1);
    let lease = driven.grant(b"l", 10_000);
    let again =
        || Operation::Acquire { name: b"l", tenure: Tenure::Lease(lease), wait_ms: 0, owner: b"" };
    let first = driven.outcome(again());
    assert_eq!(driven.outcome(again()), first);
    held(first);
}

#[test]
fn a_try_that_finds_a_lock_held_changes_nothing() {
    let mut driven = Driven::new(1);
    let (lease, token) = held(driven.outcome(acquire(b"l", 10_000, 0)));
    let digest = driven.machine.digest();
    match driven.outcome(acquire(b"l", 10_000, 0)) {
        Outcome::Busy(holder) => {
            assert_eq!((holder.lease, holder.token), (lease, token));
            assert_eq!((holder.remaining_ms, &holder.owner[..]), (10_000, &b"me"[..]));
        }
        other => panic!("not busy: {other:?}"),
    }
    assert_eq!(driven.machine.digest(), digest);
}

#[test]
fn one_who_went_away_while_waiting_is_not_given_the_lock() {
    let mut driven = Driven::new(1);
    let (holder, _) = held(driven.outcome(acquire(b"l", 60_000, 0)));
    let away = queued(driven.outcome(acquire(b"l", 10_000, 1_000)));
    let stays = queued(driven.outcome(acquire(b"l", 10_000, 30_000)));
    driven.now += 1_000;
    // No Expire has come yet.
    driven.outcome(Operation::Release { name: b"l", lease: holder });
    assert_eq!(driven.machine.leases(), 1);
    assert!(matches!(driven.claim(b"l", away), Claim::Gone(Some(_))));
    token(driven.claim(b"l", stays));
    // From the grant on it has its time to live, whatever was left of its wait.
    driven.now += 9_999;
    assert_eq!(driven.expire_due(), 0);
    driven.now += 1;
    assert_eq!(driven.expire_due(), 1);
    assert_eq!(driven.claim(b"l", stays), Claim::Gone(None));
}

#[test]
fn a_wait_that_is_over_ends_by_an_expire() {
    let mut driven = Driven::new(1);
    held(driven.outcome(acquire(b"l", 60_000, 0)));
    let waits = queued(driven.outcome(acquire(b"l", 10_000, 1_000)));
    // Keeping it alive does not prolong the wait, and nobody else can use it.
    driven.now += 600;
    let kept = driven.outcome(Operation::KeepAlive { leases: vec![waits] });
    assert_eq!(kept, Outcome::KeptAlive(vec![(waits, Some(400))]));
    assert_eq!(driven.outcome(put_under(b"k", b"v", waits)), Outcome::NoSuchLease(waits));
    driven.now += 400;
    assert_eq!(driven.expire_due(), 1);
    assert!(matches!(driven.claim(b"l", waits), Claim::Gone(Some(_))));
}

#[test]
fn a_late_holder_can_not_write_any_more() {
    let mut driven = Driven::new(1);
    let (lease, token) = held(driven.outcome(acquire(b"l", 10_000, 0)));
    let guard = Guard { lock: b"l", token };
    let written = |response: kvd::outcome::Response| response.result.unwrap().outcome;
    assert!(matches!(written(driven.guarded(guard, put(b"k", b"1"))), Outcome::Written(_)));
    driven.now += 10_000;
    // Its lease is over, though no Expire has come, and nobody has the lock yet.
    let refused = Outcome::GuardRefused(Some(token));
    assert_eq!(written(driven.guarded(guard, put(b"k", b"2"))), refused);
    let next = queued(driven.outcome(acquire(b"l", 10_000, 1_000)));
    assert_eq!(driven.expire_due(), 1);
    let now = common_token(&driven, next);
    assert_eq!(written(driven.guarded(guard, put(b"k", b"2"))), Outcome::GuardRefused(Some(now)));
    let guard = Guard { lock: b"l", token: now };
    assert!(matches!(written(driven.guarded(guard, put(b"k", b"3"))), Outcome::Written(_)));
    driven.outcome(Operation::Revoke { lease: next });
    assert_eq!(written(driven.guarded(guard, put(b"k", b"4"))), Outcome::GuardRefused(None));
    assert_eq!(&driven.get(b"k").unwrap().value[..], b"3");
    assert_eq!(driven.outcome(Operation::Revoke { lease }), Outcome::NoSuchLease(lease));
}

fn common_token(driven: &Driven, lease: LeaseId) -> Token {
    token(driven.claim(b"l", lease))
}

#[test]
fn a_lease_takes_its_keys_and_its_locks_with_it_in_one_revision() {
    let mut driven = Driven::new(1);
    let lease = driven.grant(b"k", 1_000);
    for key in [&b"b"[..], b"a", b"c"] {
        driven.outcome(put_under(key, b"v", lease));
    }
    // One leaves it, one goes by itself.
    driven.outcome(put(b"b", b"stays"));
    let under = Tenure::Lease(lease);
    held(driven.outcome(Operation::Acquire { name: b"l", tenure: under, wait_ms: 0, owner: b"" }));
    let next = queued(driven.outcome(acquire(b"l", 10_000, 10_000)));
    driven.now += 1_000;
    let revision = driven.view().headers().next().unwrap().revision;
    assert_eq!(driven.expire_due(), 1);
    assert_eq!((driven.get(b"a"), driven.get(b"c")), (None, None));
    assert!(driven.get(b"b").is_some());
    let ranges = [kvd::range::Range::all()];
    let page = driven.view().changes(0, revision, &ranges, 1).unwrap();
    assert_eq!(page.revisions.len(), 1);
    let (at, changes) = &page.revisions[0];
    assert_eq!(at.0, revision.0 + 1);
    assert_eq!(changes.iter().map(|it| &it.key[..]).collect::<Vec<_>>(), [b"a", b"c"]);
    assert!(changes.iter().all(|it| it.expired && it.current.is_none() && it.previous.is_some()));
    assert_eq!(token(driven.claim(b"l", next)).0, at.0);
}

#[test]
fn an_expire_ends_only_what_was_not_renewed_and_is_over() {
    let mut driven = Driven::new(1);
    let lease = driven.grant(b"k", 1_000);
    let expire = |renewal| Operation::Expire { lease, renewal };
    driven.now += 999;
    assert_eq!(driven.outcome(expire(0)), Outcome::LivesOn);
    driven.now += 1;
    driven.outcome(Operation::KeepAlive { leases: vec![lease] });
    assert_eq!(driven.outcome(expire(0)), Outcome::LivesOn, "what the leader saw is old");
    assert_eq!(driven.outcome(expire(1)), Outcome::LivesOn);
    driven.now += 1_000;
    assert_eq!(driven.outcome(expire(1)), Outcome::Ended { keys_removed: 0 });
    assert_eq!(driven.outcome(expire(1)), Outcome::NoSuchLease(lease));
}

#[test]
fn names_are_never_given_twice_over_a_recovery() {
    let mut driven = Driven::new(1);
    let (lease, before) = held(driven.outcome(acquire(b"l", 10_000, 0)));
    let mut lost = Driven::around(driven.machine.clone(), 1);
    (lost.index, lost.now) = (driven.index, driven.now);
    lost.outcome(Operation::Release { name: b"l", lease });
    let (lost_lease, lost_token) = held(lost.outcome(acquire(b"l", 10_000, 0)));
    driven.pass();
    driven.machine.recover();
    assert_eq!(token(driven.claim(b"l", lease)), before, "what the survivor knows holds");
    driven.outcome(Operation::Release { name: b"l", lease });
    let (again, token) = held(driven.outcome(acquire(b"l", 10_000, 0)));
    assert!(token > lost_token && token.0 > RECOVERY_GAP, "{token:?}");
    assert_ne!(again, lost_lease);
}

#[test]
fn what_is_due_is_told_with_the_first_first_and_no_more_than_asked_for() {
    let mut driven = Driven::new(4);
    for (number, ttl_ms) in [3_000, 1_000, 2_000, 1_000, 9_000].into_iter().enumerate() {
        driven.grant(format!("key-{number}").as_bytes(), ttl_ms);
    }
    let mut machine = KvMachine::new(1);
    machine.restore(&mut chunks(&driven.machine).into_iter()).unwrap();
    for machine in [&driven.machine, &machine] {
        let told = |until: u64, most: usize| {
            let until = raft::GroupTime(driven.now + until);
            let Answer::DueLeases(told) = machine.query(Query::DueLeases { until, most }) else {
                panic!("another answer")
            };
            (told.due.len(), told.next.map(|next| next.0 - driven.now))
        };
        assert_eq!(told(999, 10), (0, Some(1_000)));
        assert_eq!(told(1_000, 10), (2, Some(2_000)));
        assert_eq!(told(1_000, 1), (1, Some(1_000)));
        assert_eq!(told(8_999, 10), (4, Some(9_000)));
        assert_eq!(told(9_000, 10), (5, None));
    }
}

#[test]
fn names_in_another_shard_are_refused_by_name() {
    let mut driven = Driven::new(64);
    let lease = driven.grant(b"{a}", 1_000);
    let refused = driven.apply(None, put_under(b"{b}", b"v", lease)).result.unwrap_err();
    assert!(matches!(refused, Refusal::Apart { .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("key \"{b}\"") && text.contains(&format!("lease {lease}")), "{text}");
    let guard = Guard { lock: b"{c}", token: Token(1) };
    let refused = driven.guarded(guard, put(b"{b}", b"v")).result.unwrap_err();
    assert!(refused.to_string().contains("lock \"{c}\""), "{refused}");
    let nowhere = LeaseId::new(1 << 14 | 64).unwrap();
    let refused = driven.apply(None, Operation::Revoke { lease: nowhere }).result;
    assert_eq!(refused, Err(Refusal::NoSuchShard { shard: 64, shards: 64 }));
}
