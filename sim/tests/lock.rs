//! Locks and leases as the labs test them: their clients, their bounds, and the leases that their
//! earlier editions had. All invariants are looked at after every event, and in the end every lock
//! can be had.

mod depth;

use depth::{clerks_scenario, expect};
use flotilla_sim::{
    Grip, Hold, KvMix, Mix, Violation, Workload, World,
    operation::{Done, Operation, OperationName, Verdict},
};
use kvd::{
    command::{Action, Condition, Guard, LeaseId, Operation as Mutation, Txn},
    outcome::Outcome,
};
use raft::NodeId;

const SECOND_US: u64 = 1_000_000;
const ALL: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
/// Clerks that no workload has.
const ONE: u64 = 101;
const OTHER: u64 = 102;
/// How long leases live where the scenario is about that.
const TTL_MS: u64 = 2_000;
/// How long a client of the labs works.
const WORK_US: u64 = 2 * SECOND_US;
/// How long it holds the lock between its two writes.
const HOLD_US: u64 = 10_000;

fn quiet() -> Mix {
    clerks(Mix::calm())
}

fn clerks(mix: Mix) -> Mix {
    let workload = Workload::labs();
    Mix { clients: 0, think_us_max: 0, kv: Some(KvMix { workload, ..KvMix::calm() }), ..mix }
}

fn fails<T>(what: String) -> Result<T, Violation> {
    Err(Violation { invariant: "scenario", what })
}

/// Takes a lock that nobody else has.
fn acquire(world: &mut World, client: u64, lock: &str, ttl_ms: u64) -> Result<Hold, Violation> {
    match world.acquire(client, lock, ttl_ms, 0)? {
        Some(hold) => Ok(hold),
        None => fails(format!("c{client} does not get {lock}")),
    }
}

/// Gives a lock back that it has.
fn release(world: &mut World, client: u64, lock: &str, hold: Hold) -> Result<(), Violation> {
    let outcome = world.outcome_of(client, Operation::release(lock, hold.lease))?;
    expect(outcome == Outcome::Released(true), format!("{lock} is given back: {outcome:?}"))
}

fn keep_alive(world: &mut World, client: u64, lock: &str, lease: LeaseId) -> Result<(), Violation> {
    let keep = Mutation::KeepAlive { leases: vec![lease] };
    let outcome = world.outcome_of(client, Operation::of(lock.to_owned(), keep, None))?;
    let kept = matches!(&outcome, Outcome::KeptAlive(kept) if kept == &[(lease, Some(TTL_MS))]);
    expect(kept, format!("{lease} is kept alive: {outcome:?}"))
}

/// Writes while a lock is held.
fn guarded(world: &mut World, client: u64, lock: &str, hold: Hold) -> Result<Outcome, Violation> {
    let key = format!("{{{lock}}}/guarded");
    let guard = Guard { lock: lock.as_bytes(), token: hold.token };
    let (condition, value) = (Condition::Always, client.to_string());
    let (key, value) = (key.as_bytes(), value.as_bytes());
    let put = Mutation::Put { key, value, condition, lease: None };
    world.outcome_of(client, Operation::of(key.to_vec(), put, Some(guard)))
}

/// What the guarded key holds.
fn look(world: &mut World, client: u64, lock: &str) -> Result<Outcome, Violation> {
    let key = format!("{{{lock}}}/guarded");
    let then = vec![Action::Get { key: key.as_bytes() }];
    let txn = Mutation::Txn(Txn { then, ..Txn::default() });
    world.outcome_of(client, Operation::of(key.clone(), txn, None))
}

#[test]
fn reliable_basic() {
    clerks_scenario("reliable_basic", 1, &quiet(), |world| {
        let hold = acquire(world, ONE, "lock", TTL_MS)?;
        expect(world.acquire(OTHER, "lock", TTL_MS, 0)?.is_none(), "two have it")?;
        let stranger = Operation::release("lock", acquire(world, OTHER, "more", TTL_MS)?.lease);
        let outcome = world.outcome_of(OTHER, stranger)?;
        expect(outcome == Outcome::Released(false), format!("a stranger: {outcome:?}"))?;
        release(world, ONE, "lock", hold)?;
        acquire(world, OTHER, "lock", TTL_MS).map(drop)
    });
}

/// Two locks in all nestings: neither knows of the other.
#[test]
fn reliable_nested() {
    clerks_scenario("reliable_nested", 1, &quiet(), |world| {
        for [outer, inner] in [["{n}/a", "{n}/b"], ["{n}/b", "{n}/a"], ["x", "y"]] {
            for inner_first in [true, false] {
                let first = acquire(world, ONE, outer, TTL_MS)?;
                let second = acquire(world, ONE, inner, TTL_MS)?;
                let mut back = [(outer, first), (inner, second)];
                if inner_first {
                    back.reverse();
                }
                let [(one, hold), (other, kept)] = back;
                release(world, ONE, one, hold)?;
                expect(world.acquire(OTHER, other, TTL_MS, 0)?.is_none(), "both are free")?;
                let taken = acquire(world, OTHER, one, TTL_MS)?;
                release(world, OTHER, one, taken)?;
                release(world, ONE, other, kept)?;
            }
        }
        Ok(())
    });
}

/// What a client of the labs is at.
#[derive(Clone, Copy)]
enum Phase {
    /// It wants the lock, or asks how it stands.
    Acquiring,
    /// It waits for the lock, and asks again then.
    Waiting { lease: LeaseId, until_us: u64 },
    /// It has it, and looks whether nobody is there.
    Looking(Hold),
    /// It writes who it is.
    Entering(Hold),
    /// It is there, and removes then that it was.
    Working { hold: Hold, until_us: u64 },
    /// It gives the lock back.
    Leaving(Hold),
}

/// A client of the labs: takes the lock, finds that nobody is there, writes who it is, works, removes
/// that, and gives the lock back.
struct Locker {
    client: u64,
    phase: Phase,
    asked: Option<(Operation, OperationName)>,
    rounds: u64,
}

const LOCK: &str = "{l0}/lock";
const WHO: &str = "{l0}/who";
/// Longer than anything takes that a client does with the lock, however unreliable the network is.
const LAB_TTL_MS: u64 = 10_000;
const CLAIM_PAUSE_US: u64 = 5_000;

impl Locker {
    /// Whether it has something to do now.
    fn is_ready(&self, world: &World) -> bool {
        match (&self.asked, self.phase) {
            (Some((_, name)), _) => world.verdict(*name).is_some(),
            (None, Phase::Waiting { until_us, .. } | Phase::Working { until_us, .. }) => {
                world.now_us() >= until_us
            }
            (None, _) => true,
        }
    }

    /// What it asks for in its phase.
    fn wanted(&self) -> Operation {
        let mine = format!("c{}", self.client);
        let condition = Condition::Always;
        let put = |value: &[u8], hold: Hold| {
            let guard = Guard { lock: LOCK.as_bytes(), token: hold.token };
            let key = WHO.as_bytes();
            Operation::of(WHO, Mutation::Put { key, value, condition, lease: None }, Some(guard))
        };
        match self.phase {
            Phase::Acquiring => Operation::acquire(LOCK, LAB_TTL_MS, 60_000),
            Phase::Waiting { lease, .. } => Operation::claim(LOCK, lease),
            // An append of nothing tells what is there, while the lock is held.
            Phase::Looking(hold) => {
                let guard = Guard { lock: LOCK.as_bytes(), token: hold.token };
                let append = Mutation::Append { key: WHO.as_bytes(), value: b"" };
                Operation::of(WHO, append, Some(guard))
            }
            Phase::Entering(hold) => put(mine.as_bytes(), hold),
            Phase::Working { hold, .. } => put(b"", hold),
            Phase::Leaving(hold) => Operation::release(LOCK, hold.lease),
        }
    }

    /// Goes on by one step; `rests` says that it begins nothing anew.
    fn go_on(&mut self, world: &mut World, rests: bool) -> Result<(), Violation> {
        if let Some((operation, name)) = self.asked.take() {
            let verdict = world.verdict(name).cloned();
            let Some(verdict) = verdict else { return fails(format!("{name} is open")) };
            self.hear(world, &operation, &verdict)?;
        }
        let pauses = match self.phase {
            Phase::Waiting { until_us, .. } | Phase::Working { until_us, .. } => {
                world.now_us() < until_us
            }
            Phase::Acquiring => rests,
            Phase::Looking(_) | Phase::Entering(_) | Phase::Leaving(_) => false,
        };
        if !pauses {
            let operation = self.wanted();
            let name = world.want(self.client, operation.clone());
            self.asked = Some((operation, name));
        }
        Ok(())
    }

    fn hear(
        &mut self,
        world: &World,
        operation: &Operation,
        verdict: &Verdict,
    ) -> Result<(), Violation> {
        let now_us = world.now_us();
        let outcome = match verdict {
            Verdict::Done(Done::Executed(_, answered)) => Some(&answered.outcome),
            Verdict::Done(Done::Read(..) | Done::Claim(..)) => None,
            Verdict::Never | Verdict::Unknown => {
                return fails(format!("c{} gave up: {operation:?}", self.client));
            }
        };
        self.phase = match (self.phase, Grip::of(operation, verdict), outcome) {
            (Phase::Acquiring | Phase::Waiting { .. }, Grip::Held(hold), _) => Phase::Looking(hold),
            (Phase::Acquiring | Phase::Waiting { .. }, Grip::Waits(lease), _) => {
                Phase::Waiting { lease, until_us: now_us + CLAIM_PAUSE_US }
            }
            (Phase::Looking(hold), _, Some(Outcome::Appended { old, .. })) if old.is_empty() => {
                Phase::Entering(hold)
            }
            (Phase::Entering(hold), _, Some(Outcome::Written(_))) => {
                Phase::Working { hold, until_us: now_us + HOLD_US }
            }
            (Phase::Working { hold, .. }, _, Some(Outcome::Written(_))) => Phase::Leaving(hold),
            (Phase::Leaving(_), _, Some(Outcome::Released(_))) => {
                self.rounds += 1;
                Phase::Acquiring
            }
            _ => return fails(format!("c{}: {operation:?}: {verdict:?}", self.client)),
        };
        Ok(())
    }
}

/// So many clients compete for two seconds; how often the lock went round.
fn compete(world: &mut World, clients: u64) -> Result<u64, Violation> {
    world.expect_leader()?;
    for lock in ["{a}", "{b}"] {
        let hold = acquire(world, ONE, lock, LAB_TTL_MS)?;
        let back = world.outcome_of(ONE, Operation::release(lock, hold.lease))?;
        expect(matches!(back, Outcome::Released(_)), format!("{back:?}"))?;
    }
    let locker = |client| Locker { client, phase: Phase::Acquiring, asked: None, rounds: 0 };
    let mut lockers: Vec<Locker> = (201..=200 + clients).map(locker).collect();
    let rest_us = world.now_us() + WORK_US;
    loop {
        let rests = world.now_us() >= rest_us;
        for locker in &mut lockers {
            if locker.is_ready(world) {
                locker.go_on(world, rests)?;
            }
        }
        let idle =
            |locker: &Locker| locker.asked.is_none() && matches!(locker.phase, Phase::Acquiring);
        if rests && lockers.iter().all(idle) {
            return Ok(lockers.iter().map(|locker| locker.rounds).sum());
        }
        // Whoever has come to rest has nothing to do, and is ready all the same.
        let busy = |world: &World| lockers.iter().any(|it| !idle(it) && it.is_ready(world));
        if !world.run_until(SECOND_US / 100, busy)? && world.now_us() > rest_us + 120 * SECOND_US {
            return fails("clients wait in vain".to_owned());
        }
    }
}

fn lab(name: &str, mix: Mix, clients: u64, rounds_min: u64) {
    clerks_scenario(name, 1, &clerks(mix), |world| {
        let rounds = compete(world, clients)?;
        expect(rounds >= rounds_min, format!("the lock went round {rounds} times"))
    });
}

#[test]
fn one_client_reliable() {
    lab("one_client_reliable", Mix::calm(), 1, 20);
}

#[test]
fn many_clients_reliable() {
    lab("many_clients_reliable", Mix::calm(), 10, 20);
}

#[test]
fn one_client_unreliable() {
    lab("one_client_unreliable", Mix::unreliable(), 1, 1);
}

#[test]
fn many_clients_unreliable() {
    lab("many_clients_unreliable", Mix::unreliable(), 10, 10);
}

/// A release hands the lock over at once, not when its time would be over.
#[test]
fn lease_release() {
    const LONG_MS: u64 = 10_000;
    clerks_scenario("lease_release", 3, &quiet(), |world| {
        world.expect_leader()?;
        let hold = acquire(world, ONE, "lock", LONG_MS)?;
        let waiting = world.want(OTHER, Operation::acquire("lock", LONG_MS, 60_000));
        world.run_until(SECOND_US, |world| world.verdict(waiting).is_some())?;
        let queued = world.verdict(waiting).cloned();
        let operation = Operation::acquire("lock", LONG_MS, 60_000);
        let Some(Grip::Waits(lease)) = queued.map(|verdict| Grip::of(&operation, &verdict)) else {
            return fails("nobody waits".to_owned());
        };
        let released_us = world.now_us();
        release(world, ONE, "lock", hold)?;
        let claim = Operation::claim("lock", lease);
        let verdict = world.carry_out(OTHER, claim.clone())?;
        let next = Grip::of(&claim, &verdict);
        let within = world.now_us() < released_us + SECOND_US;
        let risen = matches!(next, Grip::Held(next) if next.token > hold.token);
        expect(within && risen, format!("{next:?} after {} us", world.now_us() - released_us))?;
        release(world, OTHER, "lock", Hold { lease, ..hold })
    });
}

/// The lock of who is gone is free when its time is over, not before, and soon after.
#[test]
fn lease_expire() {
    clerks_scenario("lease_expire", 3, &quiet(), |world| {
        world.expect_leader()?;
        let begun_us = world.now_us();
        acquire(world, ONE, "lock", TTL_MS)?;
        // The holder never says anything again, and half of the time the leader is another.
        if world.now_us() % 2 == 0 {
            let leader = world.expect_leader()?;
            world.kill(leader)?;
            world.run_for(SECOND_US)?;
            world.restart(leader)?;
        }
        let next = world.acquire(OTHER, "lock", TTL_MS, 60_000)?;
        let took_us = world.now_us() - begun_us;
        expect(next.is_some(), "who waits does not get it")?;
        // Shard time may stand still while there is no leader, and never goes faster.
        let (least_us, most_us) = (TTL_MS * 1_000, TTL_MS * 1_000 + 3 * SECOND_US);
        let timely = (least_us..=most_us).contains(&took_us);
        expect(timely, format!("the lock was had after {took_us} us"))
    });
}

/// Who keeps its lease alive is not deposed, however long it takes.
#[test]
fn lease_refresh() {
    clerks_scenario("lease_refresh", 3, &quiet(), |world| {
        world.expect_leader()?;
        let hold = acquire(world, ONE, "lock", TTL_MS)?;
        for _ in 0..12 {
            world.run_for(TTL_MS * 1_000 / 4)?;
            keep_alive(world, ONE, "lock", hold.lease)?;
            expect(world.acquire(OTHER, "lock", TTL_MS, 0)?.is_none(), "it is deposed")?;
        }
        let outcome = guarded(world, ONE, "lock", hold)?;
        expect(matches!(outcome, Outcome::Written(_)), format!("{outcome:?}"))?;
        release(world, ONE, "lock", hold)
    });
}

/// Four compete for five seconds, and one of them dies again and again while it has the lock.
#[test]
fn concurrent_acquire() {
    const TTL_MS: u64 = 500;
    clerks_scenario("concurrent_acquire", 3, &quiet(), |world| {
        world.expect_leader()?;
        let mut waiting: Vec<(u64, Operation, OperationName)> = Vec::new();
        let until_us = world.now_us() + 5 * SECOND_US;
        let mut holds: Vec<Hold> = Vec::new();
        for client in 1..=4 {
            let acquire = Operation::acquire("lock", TTL_MS, 60_000);
            waiting.push((client, acquire.clone(), world.want(client, acquire)));
        }
        while world.now_us() < until_us {
            world.run_for(SECOND_US / 50)?;
            for (client, operation, name) in &mut waiting {
                let Some(verdict) = world.verdict(*name).cloned() else { continue };
                let next = match Grip::of(operation, &verdict) {
                    // The first one says nothing more; the others give it back.
                    Grip::Held(hold) => {
                        holds.push(hold);
                        if *client > 1 {
                            let back = Operation::release("lock", hold.lease);
                            world.want(*client, back);
                        }
                        Operation::acquire("lock", TTL_MS, 60_000)
                    }
                    Grip::Waits(lease) => Operation::claim("lock", lease),
                    Grip::Gone => Operation::acquire("lock", TTL_MS, 60_000),
                };
                (*operation, *name) = (next.clone(), world.want(*client, next));
            }
        }
        let tokens: Vec<u64> = holds.iter().map(|hold| hold.token.0).collect();
        let times = holds.len();
        expect(times >= 8, format!("it was had {times} times in five seconds"))?;
        let mut rising = tokens.clone();
        rising.sort_unstable();
        rising.dedup();
        expect(rising.len() == times, format!("two had it under one token: {tokens:?}"))
    });
}

/// Whatever happens in between, the next holder's token is larger.
#[test]
fn fencing_token_rises() {
    clerks_scenario("fencing_token_rises", 3, &quiet(), |world| {
        world.expect_leader()?;
        let mut before = None;
        for round in 0..6 {
            let Some(hold) = world.acquire(ONE, "lock", 200, 60_000)? else {
                return fails("the lock is not had".to_owned());
            };
            expect(Some(hold.token) > before, format!("{:?} behind {before:?}", hold.token))?;
            before = Some(hold.token);
            match round % 3 {
                // It is given back, it is over, or everything is restarted.
                0 => release(world, ONE, "lock", hold)?,
                1 => world.run_for(SECOND_US)?,
                _ => {
                    ALL.into_iter().try_for_each(|id| world.kill(id))?;
                    ALL.into_iter().try_for_each(|id| world.restart(id))?;
                }
            }
        }
        Ok(())
    });
}

/// A holder stands still for longer than its time, and goes on as if nothing had happened: what it
/// writes then is refused, whether somebody else has the lock meanwhile or nobody.
#[test]
fn late_guarded_write_is_refused() {
    clerks_scenario("late_guarded_write_is_refused", 3, &quiet(), |world| {
        world.expect_leader()?;
        for successor in [false, true] {
            let hold = acquire(world, ONE, "lock", TTL_MS)?;
            let outcome = guarded(world, ONE, "lock", hold)?;
            expect(matches!(outcome, Outcome::Written(_)), format!("{outcome:?}"))?;
            let mut next = None;
            if successor {
                next = world.acquire(OTHER, "lock", 2 * TTL_MS, 60_000)?;
            } else {
                world.run_for(TTL_MS * 1_000 + SECOND_US)?;
            }
            let there = look(world, OTHER, "lock")?;
            let outcome = guarded(world, ONE, "lock", hold)?;
            let refused = Outcome::GuardRefused(next.map(|next| next.token));
            expect(outcome == refused, format!("{outcome:?}, not {refused:?}"))?;
            expect(look(world, OTHER, "lock")? == there, "it is written all the same")?;
            if let Some(next) = next {
                let outcome = guarded(world, OTHER, "lock", next)?;
                expect(matches!(outcome, Outcome::Written(_)), format!("{outcome:?}"))?;
                release(world, OTHER, "lock", next)?;
            }
        }
        Ok(())
    });
}
