//! Each checker of leases, locks and transactions can fail: the machine does something else than the
//! command that the checkers are shown.

use kvd::{
    KvMachine,
    command::{
        Action, Command, Compare, Condition, Guard, LeaseId, Operand, Operation, Relation, Tenure,
        Token, Txn,
    },
    outcome::{Response, Version},
};
use raft::{Applied, GroupTime, Index, StateMachine, Term};

use super::{
    Violation, ghost::Executed, guards, lease_life, lock_exclusion::Tokens, lock_handover,
    lock_independence, lock_release, transactions, turn::Model, turn::Turn,
};

const TTL_MS: u64 = 1_000;

/// A machine and the model of it.
#[derive(Default)]
struct Both {
    machine: Option<KvMachine>,
    model: Model,
    index: u64,
}

impl Both {
    fn apply(&mut self, command: &Command<'_>, at_ms: u64) -> Response {
        self.index += 1;
        let (index, time) = (Index(self.index), GroupTime(at_ms));
        let machine = self.machine.get_or_insert_with(|| KvMachine::new(1));
        machine.apply(Applied { index, term: Term(1), time }, &command.encode())
    }

    /// The machine does one thing, or several, and the checker is shown another.
    fn check(
        &mut self,
        shown: &Command<'_>,
        done: &[Command<'_>],
        at_ms: u64,
        check: impl FnOnce(&Turn<'_>) -> Result<(), Violation>,
    ) -> Option<&'static str> {
        let responses: Vec<Response> = done.iter().map(|it| self.apply(it, at_ms)).collect();
        let response = responses.into_iter().next_back().expect("something is done");
        let after = self.machine.clone().expect("it has done something");
        let executed = Executed::new(Index(self.index), shown.encode(), response, after);
        let turn = self.model.take(&executed, shown);
        check(&turn).err().map(|violation| violation.invariant)
    }

    /// Both do the same.
    fn go(&mut self, command: &Command<'_>, at_ms: u64) {
        let found = self.check(command, std::slice::from_ref(command), at_ms, |turn| {
            lock_release::check(turn)?;
            lock_independence::check(turn)?;
            lease_life::check(turn)?;
            lock_handover::check(turn)?;
            super::key_value::check(turn)
        });
        assert_eq!(found, None);
    }
}

fn command(operation: Operation<'_>) -> Command<'_> {
    Command::new(1, operation)
}

fn acquire(name: &[u8], wait_ms: u64) -> Command<'_> {
    let tenure = Tenure::Own { ttl_ms: TTL_MS };
    command(Operation::Acquire { name, tenure, wait_ms, owner: b"" })
}

fn release(name: &[u8], lease: LeaseId) -> Command<'_> {
    command(Operation::Release { name, lease })
}

/// The lease that was made at a revision of the only shard.
fn lease(revision: u64) -> LeaseId {
    LeaseId::new(revision << LeaseId::SHARD_BITS).expect("revisions count from 1")
}

/// Two locks that are held, of which one is waited for by two.
fn held() -> Both {
    let mut both = Both::default();
    for (name, wait_ms) in [(b"a", 0), (b"b", 0), (b"a", 5_000), (b"a", 5_000)] {
        both.go(&acquire(name, wait_ms), 10);
    }
    both
}

#[test]
fn lock_that_two_hold() {
    let shown = command(Operation::KeepAlive { leases: vec![lease(1)] });
    let found =
        held().check(&shown, &[release(b"a", lease(1))], 20, |turn| Tokens::default().check(turn));
    assert_eq!(found, Some("L1"));
}

#[test]
fn token_that_does_not_rise() {
    let mut tokens = Tokens::default();
    let (mut both, taken) = (Both::default(), acquire(b"a", 0));
    let first = both.check(&taken, std::slice::from_ref(&taken), 10, |turn| tokens.check(turn));
    assert_eq!(first, None);
    // Another history, in which the first holder of the lock comes again.
    let found =
        Both::default().check(&taken, std::slice::from_ref(&taken), 10, |turn| tokens.check(turn));
    assert_eq!(found, Some("L1"));
}

#[test]
fn lock_that_a_stranger_gives_back() {
    let found =
        held().check(&release(b"a", lease(2)), &[release(b"a", lease(1))], 20, lock_release::check);
    assert_eq!(found, Some("L2"));
}

#[test]
fn lease_that_ends_before_its_time() {
    let shown = command(Operation::Expire { lease: lease(2), renewal: 0 });
    let done = [command(Operation::Revoke { lease: lease(2) })];
    assert_eq!(held().check(&shown, &done, 20, lease_life::check), Some("L3"));
}

#[test]
fn lease_that_is_not_extended() {
    let shown = command(Operation::KeepAlive { leases: vec![lease(1)] });
    let done = [command(Operation::KeepAlive { leases: vec![lease(2)] })];
    assert_eq!(held().check(&shown, &done, 500, lock_handover::check), Some("L4"));
}

#[test]
fn lock_that_the_second_waiter_gets() {
    let done = [release(b"a", lease(3)), release(b"a", lease(1))];
    let found = held().check(&release(b"a", lease(1)), &done, 20, lock_handover::check);
    assert_eq!(found, Some("L4"));
}

#[test]
fn lock_that_goes_with_another() {
    let done = [release(b"a", lease(1)), release(b"b", lease(2))];
    let found = held().check(&release(b"a", lease(1)), &done, 20, lock_independence::check);
    assert_eq!(found, Some("L5"));
}

#[test]
fn guard_that_nobody_looks_at() {
    let put = Operation::Put { key: b"k", value: b"", condition: Condition::Always, lease: None };
    let bare = command(put.clone());
    let under = |token| {
        let guard = Some(Guard { lock: b"a", token: Token(token) });
        Command { guard, ..command(put.clone()) }
    };
    let done = std::slice::from_ref(&bare);
    assert_eq!(held().check(&under(1), done, 20, guards::check), None);
    assert_eq!(held().check(&under(2), done, 20, guards::check), Some("L7"));
    assert_eq!(held().check(&under(1), done, TTL_MS + 10, guards::check), Some("L7"));
    assert_eq!(held().check(&under(1), &[under(2)], 20, guards::check), Some("L7"));
}

#[test]
fn transaction_of_which_a_part_is_done() {
    let put = |key| Action::Put { key, value: b"", lease: None };
    let txn = |version, then| {
        let operand = Operand::Version(Version(version));
        let compare = Compare { key: b"one", relation: Relation::Equal, operand };
        command(Operation::Txn(Txn { compares: vec![compare], then, otherwise: Vec::new() }))
    };
    let shown = txn(0, vec![put(b"one"), put(b"other")]);
    let check = |done| Both::default().check(&shown, &[done], 20, transactions::check);
    assert_eq!(check(shown.clone()), None);
    assert_eq!(check(txn(0, vec![put(b"one")])), Some("K4"));
    assert_eq!(check(txn(0, vec![put(b"one"), put(b"third")])), Some("K4"));
    assert_eq!(check(txn(1, vec![put(b"one"), put(b"other")])), Some("K4"));
}

/// What a key is compared with that is not what was written.
#[test]
fn another_value() {
    let put = |value| {
        command(Operation::Put { key: b"k", value, condition: Condition::Always, lease: None })
    };
    let found = Both::default().check(&put(b"one"), &[put(b"other")], 20, super::key_value::check);
    assert_eq!(found, Some("K1"));
}
