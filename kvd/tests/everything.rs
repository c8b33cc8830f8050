//! All operations against a naive model, in any order, with repeated requests, jumps of time,
//! snapshots put back in the middle, recoveries, and shards that move to another group and back: every
//! outcome, every question and every sum that is kept up must be what the model says.

mod common;
mod naive;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{Driven, chunks};
use kvd::{
    KvMachine, MachineLimits,
    command::{
        Action, Bounds, ClientId, Command, Compare, Condition, Guard, LeaseId, Operand, Operation,
        Relation, RequestId, Tenure, Token, Txn,
    },
    outcome::{
        Answer, Claim, Outcome, Query, Refusal, Response, Revision, Scope, ShardTime, Version,
    },
    range::Range,
    session::SessionLimits,
    view::{PageRequest, View},
};
use naive::{
    Naive, VALUE_BYTES_MAX,
    elsewhere::Elsewhere,
    steps::{Step, Verb, steps},
};
use proptest::prelude::*;
use proptest::sample::Index;
use raft::{GroupTime, RECOVERY_GAP, StateMachine};

const SHARDS: u32 = 3;
const TAGS: [&str; 3] = ["{a}", "{b}", "{c}"];

/// A command in its own memory.
#[derive(Clone, Debug)]
struct Sent {
    id: RequestId,
    bytes: Bytes,
    response: Response,
}

struct Check {
    driven: Driven,
    shards: Vec<Naive>,
    limits: MachineLimits,
    /// Leases ever made, by shard.
    made: BTreeMap<u32, Vec<LeaseId>>,
    elsewhere: Elsewhere,
    sequences: BTreeMap<u32, u64>,
    sent: Vec<Sent>,
    counter: u8,
}

fn name(tag: usize, kind: char, number: u8) -> Vec<u8> {
    format!("{}{kind}{number}", TAGS[tag]).into_bytes()
}

/// What an `Operation` borrows.
struct Names {
    keys: Vec<Vec<u8>>,
    locks: Vec<Vec<u8>>,
    value: Vec<u8>,
}

impl Check {
    fn new(limits: MachineLimits) -> Self {
        let shards = (0..SHARDS).map(|number| Naive { number, ..Naive::default() }).collect();
        Self {
            driven: Driven::around(KvMachine::with_limits(SHARDS, limits), SHARDS),
            shards,
            limits,
            made: BTreeMap::new(),
            elsewhere: Elsewhere::new(SHARDS, limits),
            sequences: BTreeMap::new(),
            sent: Vec::new(),
            counter: 0,
        }
    }

    fn pick(&self, shard: u32, index: Index) -> LeaseId {
        let made = self.made.get(&shard).map_or(&[][..], |made| &made[..]);
        let never = LeaseId::new(u64::from(shard) | 0x7fff << 14).expect("not 0");
        // The latest ones are the most likely to live.
        let at = index.index(6.min(made.len() + 1));
        made.iter().rev().nth(at).copied().unwrap_or(never)
    }

    fn operation<'a>(&self, shard: u32, verb: &Verb, names: &'a Names) -> Operation<'a> {
        let lease = |index: &Option<Index>| index.map(|index| self.pick(shard, index));
        let key = |key: u8| &names.keys[usize::from(key)][..];
        let held = |key: u8| self.shards[shard as usize].pairs.get(&names.keys[usize::from(key)]);
        match verb {
            Verb::Put { key: at, length, condition, lease: with } => {
                let condition = match condition {
                    0 => Condition::Version(Version(0)),
                    1 => Condition::Version(held(*at).map_or(Version(3), |pair| pair.version)),
                    2 => {
                        Condition::ModRevision(held(*at).map_or(Revision(3), |it| it.mod_revision))
                    }
                    _ => Condition::Always,
                };
                let value = &names.value[..*length];
                Operation::Put { key: key(*at), value, condition, lease: lease(with) }
            }
            Verb::Append { key: at, length } => {
                Operation::Append { key: key(*at), value: &names.value[..*length] }
            }
            Verb::Delete { key: at } => Operation::Delete { key: key(*at) },
            Verb::Txn { compares, then, otherwise } => Operation::Txn(Txn {
                compares: compares.iter().map(|it| self.compare(shard, *it, names)).collect(),
                then: self.actions(shard, then, names),
                otherwise: self.actions(shard, otherwise, names),
            }),
            Verb::Compact { back } => {
                let now = self.shards[shard as usize].revision;
                Operation::Compact {
                    shard,
                    revision: back.map(|it| Revision(now.saturating_sub(it))),
                }
            }
            Verb::Grant { ttl_ms } => Operation::Grant { key: key(0), ttl_ms: *ttl_ms },
            Verb::KeepAlive { leases } => Operation::KeepAlive {
                leases: leases.iter().map(|index| self.pick(shard, *index)).collect(),
            },
            Verb::Revoke { lease } => Operation::Revoke { lease: self.pick(shard, *lease) },
            Verb::Expire { lease, renewal } => {
                Operation::Expire { lease: self.pick(shard, *lease), renewal: *renewal }
            }
            Verb::Acquire { name, lease: with, ttl_ms, wait_ms } => Operation::Acquire {
                name: &names.locks[usize::from(*name)],
                tenure: lease(with).map_or(Tenure::Own { ttl_ms: *ttl_ms }, Tenure::Lease),
                wait_ms: *wait_ms,
                owner: &names.value[..3],
            },
            Verb::Release { name, lease } => Operation::Release {
                name: &names.locks[usize::from(*name)],
                lease: self.pick(shard, *lease),
            },
        }
    }

    fn compare<'a>(
        &self,
        shard: u32,
        (at, operand, relation): (u8, u8, u8),
        names: &'a Names,
    ) -> Compare<'a> {
        let key = &names.keys[usize::from(at)][..];
        let held = self.shards[shard as usize].pairs.get(key);
        Compare {
            key,
            relation: match relation {
                0 => Relation::Equal,
                1 => Relation::NotEqual,
                2 => Relation::Less,
                _ => Relation::Greater,
            },
            operand: match operand {
                0 => Operand::Version(Version(1)),
                1 => Operand::CreateRevision(Revision(2)),
                2 => Operand::ModRevision(Revision(4)),
                3 => Operand::Value(&names.value[..1]),
                _ => Operand::Lease(held.and_then(|pair| pair.lease)),
            },
        }
    }

    /// Operations of which no two change the same key.
    fn actions<'a>(
        &self,
        shard: u32,
        drawn: &[(u8, u8, Option<Index>)],
        names: &'a Names,
    ) -> Vec<Action<'a>> {
        let mut changed = Vec::new();
        let action = |(at, kind, with): &(u8, u8, Option<Index>)| {
            let key = &names.keys[usize::from(*at)][..];
            let value = &names.value[..usize::from(*kind) * 9 + 1];
            if *kind == 0 || changed.contains(at) {
                return Action::Get { key };
            }
            changed.push(*at);
            let lease = with.map(|index| self.pick(shard, index));
            match kind {
                1 => Action::Put { key, value, lease },
                2 => Action::Append { key, value },
                _ => Action::Delete { key },
            }
        };
        drawn.iter().map(action).collect()
    }

    fn execute(
        &mut self,
        tag: usize,
        verb: &Verb,
        guard: Option<(u8, bool)>,
        named: bool,
    ) -> Result<(), TestCaseError> {
        self.counter = self.counter.wrapping_add(1);
        let names = Names {
            keys: (0..4).map(|number| name(tag, 'k', number)).collect(),
            locks: (0..2).map(|number| name(tag, 'l', number)).collect(),
            value: vec![self.counter; 40],
        };
        let shard = proto::shard_of(&names.keys[0], SHARDS);
        let operation = self.operation(shard, verb, &names);
        let guard = guard.filter(|_| operation.takes_guard()).map(|(lock, right)| {
            let lock = &names.locks[usize::from(lock)][..];
            let held = self.shards[shard as usize].locks.get(lock).map_or(7, |lock| lock.token);
            (lock, if right { held } else { held.wrapping_sub(1) })
        });
        let id = (named && operation.takes_id()).then(|| {
            let sequence = self.sequences.entry(shard).or_default();
            *sequence += 1;
            let (sequence, acknowledged) = (*sequence, sequence.saturating_sub(40));
            let expires = ShardTime(self.driven.now + 300_000);
            RequestId { client: ClientId([1; 16]), sequence, acknowledged, expires }
        });
        let bounds = Bounds { value_bytes_max: VALUE_BYTES_MAX, ..Bounds::default() };
        let command = Command {
            shards: SHARDS,
            id,
            guard: guard.map(|(lock, token)| Guard { lock, token: Token(token) }),
            bounds,
            operation,
        };
        if matches!(&command.operation, Operation::KeepAlive { leases } if leases.is_empty())
            || matches!(&command.operation, Operation::Txn(it) if it.compares.is_empty() && it.actions().count() == 0)
        {
            let response = self.driven.apply_bytes(&command.encode());
            prop_assert_eq!(response.result, Err(Refusal::NoPlace));
            return Ok(());
        }
        let bytes = command.encode();
        let response = self.driven.apply_bytes(&bytes);
        let now = self.driven.now;
        let model = &mut self.shards[shard as usize];
        let expected = model.execute(&command.operation, guard, now);
        prop_assert_eq!(response.header.shard, shard);
        prop_assert_eq!(response.header.revision.0, model.revision, "{:?}", command.operation);
        let Ok(answered) = &response.result else {
            return Err(TestCaseError::fail(format!("{response:?} to {command:?}")));
        };
        prop_assert!(!answered.duplicate && !answered.body_dropped);
        if let (Outcome::Compacted(upto), Outcome::Compacted(asked)) =
            (&answered.outcome, &expected)
        {
            // What has no room is forgotten, too.
            prop_assert!(upto == asked || upto > asked && self.limits.changes_bytes < 10_000);
            return Ok(());
        }
        prop_assert_eq!(&answered.outcome, &expected, "{:?}", &command.operation);
        match expected {
            Outcome::Granted { lease, .. }
            | Outcome::Held { lease, .. }
            | Outcome::Queued { lease } => {
                let made = self.made.entry(shard).or_default();
                if !made.contains(&lease) {
                    made.push(lease);
                }
            }
            _ => {}
        }
        if let Some(id) = id {
            self.sent.push(Sent { id, bytes, response });
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Do { tag, verb, guard, named } => self.execute(*tag, verb, *guard, *named)?,
            Step::Repeat(index) if !self.sent.is_empty() => {
                let sent = self.sent[index.index(self.sent.len())].clone();
                let again = self.driven.apply_bytes(&sent.bytes);
                match again.result {
                    Ok(answered) => {
                        prop_assert!(answered.duplicate);
                        let first = sent.response.result.expect("it was executed").outcome;
                        prop_assert_eq!(answered.outcome, first);
                    }
                    Err(Refusal::Acknowledged) => {}
                    Err(Refusal::Expired { .. }) => {
                        prop_assert!(self.driven.now > sent.id.expires.0);
                    }
                    Err(other) => prop_assert!(false, "{other:?}"),
                }
            }
            Step::Repeat(_) => {}
            Step::Sleep(ms) => {
                self.driven.now += ms;
                self.driven.pass();
            }
            Step::ExpireDue => self.expire_due()?,
            Step::PutBack => self.put_back()?,
            Step::Recover => {
                self.driven.pass();
                self.driven.machine.recover();
                for shard in &mut self.shards {
                    shard.revision += RECOVERY_GAP;
                }
            }
            Step::Ask(back) => self.ask(*back)?,
            Step::Move(shard) if self.driven.machine.created().is_some() => {
                self.elsewhere.go_on(&mut self.driven, *shard);
            }
            Step::Move(_) => {}
        }
        prop_assert_eq!(self.driven.machine.digest(), self.driven.machine.recomputed_digest());
        let stored = self.driven.machine.recomputed_stored_bytes();
        prop_assert_eq!(self.driven.machine.stored_bytes(), stored);
        Ok(())
    }

    /// Ends what is over as a leader does.
    fn expire_due(&mut self) -> Result<(), TestCaseError> {
        let now = self.driven.now;
        let until = GroupTime(now);
        let answer = self.driven.machine.query(Query::DueLeases { until, most: 1_000 });
        let Answer::DueLeases(told) = answer else { panic!("{answer:?}") };
        let mut due: Vec<_> =
            told.due.iter().map(|it| (it.lease, it.renewal, it.deadline.0)).collect();
        let leases = self.shards.iter().flat_map(|shard| &shard.leases);
        let mut over: Vec<_> = leases.map(|(id, it)| (*id, it.renewal, it.deadline)).collect();
        let next = over.iter().map(|it| it.2).filter(|at| *at > now).min().map(GroupTime);
        over.retain(|it| it.2 <= now);
        due.sort_unstable();
        over.sort_unstable();
        prop_assert_eq!(&due, &over);
        prop_assert_eq!(told.next, next);
        for (lease, renewal, _) in due {
            let operation = Operation::Expire { lease, renewal };
            let model = &mut self.shards[lease.shard() as usize];
            let expected = model.execute(&operation, None, now);
            let answered = self.driven.run(None, operation);
            prop_assert_eq!(answered.outcome, expected);
        }
        Ok(())
    }

    fn put_back(&mut self) -> Result<(), TestCaseError> {
        let taken = chunks(&self.driven.machine);
        let mut machine = KvMachine::with_limits(1, self.limits);
        prop_assert_eq!(machine.restore(&mut taken.clone().into_iter()), Ok(()));
        prop_assert_eq!(machine.digest(), self.driven.machine.digest());
        prop_assert_eq!(machine.recomputed_digest(), machine.digest());
        prop_assert_eq!(machine.stored_bytes(), self.driven.machine.stored_bytes());
        prop_assert_eq!(chunks(&machine), taken);
        self.driven.machine = machine;
        Ok(())
    }

    fn view(&self) -> View {
        match self.driven.machine.query(Query::View(Scope::All)) {
            Answer::View(view) => view,
            other => panic!("{other:?}"),
        }
    }

    /// Asks everything about one moment.
    fn ask(&self, back: u64) -> Result<(), TestCaseError> {
        if self.driven.machine.created().is_none() {
            return Ok(());
        }
        let (view, now) = (self.view(), self.driven.now);
        for tag in 0..3 {
            let model = &self.shards[proto::shard_of(&name(tag, 'k', 0), SHARDS) as usize];
            let asked = model.revision.saturating_sub(back);
            self.ask_then(&view, model, tag, asked)?;
            self.ask_changes(&view, model, asked)?;
            for number in 0..2 {
                let name = Bytes::from(name(tag, 'l', number));
                let Answer::Lock(_, state) = self.driven.machine.query(Query::Lock(name.clone()))
                else {
                    panic!("another answer")
                };
                let lock = model.locks.get(&name[..]);
                prop_assert_eq!(&state.holder, &lock.map(|lock| model.holder(lock, now)));
                let waiters = lock.map_or_else(Vec::new, |lock| lock.waiters.clone());
                prop_assert_eq!(state.waiting as usize, waiters.len());
                prop_assert_eq!(state.waiters, waiters);
            }
        }
        self.ask_leases(now)?;
        self.ask_pages(&view)
    }

    fn ask_then(
        &self,
        view: &View,
        model: &Naive,
        tag: usize,
        at: u64,
    ) -> Result<(), TestCaseError> {
        let range = Range::Prefix(Bytes::from(TAGS[tag]));
        let revision = Some(Revision(at));
        let page = view.page(&range, &PageRequest { revision, ..PageRequest::default() });
        for number in 0..4 {
            let key = name(tag, 'k', number);
            let then = view.get_at(&key, Revision(at));
            match (&then, &page) {
                (Ok(pair), Ok(page)) => {
                    prop_assert_eq!(pair, &model.at(&key, at));
                    let listed = page.pairs.iter().find(|(listed, _)| listed[..] == key[..]);
                    prop_assert_eq!(listed.map(|it| &it.1), pair.as_ref());
                }
                (Err(Refusal::Compacted { compacted, .. }), Err(Refusal::Compacted { .. })) => {
                    prop_assert!(at < compacted.0);
                    let few = self.limits.changes_bytes < 10_000;
                    prop_assert!(few || compacted.0 == model.compacted);
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        if let Ok(page) = page {
            prop_assert_eq!(view.count(&range, revision), Ok(page.pairs.len() as u64));
        }
        let later = Revision(model.revision + 1);
        let refused = matches!(view.get_at(&name(tag, 'k', 0), later), Err(Refusal::NotYet { .. }));
        prop_assert!(refused);
        Ok(())
    }

    fn ask_changes(&self, view: &View, model: &Naive, after: u64) -> Result<(), TestCaseError> {
        let ends = [model.history.first(), model.history.last()].into_iter().flatten();
        let key = |key: &[u8]| Range::Key(Bytes::copy_from_slice(key));
        let two: Vec<Range> = ends.map(|(_, change)| key(&change.key)).collect();
        Self::ask_changes_of(view, model, after, &[Range::all()])?;
        Self::ask_changes_of(view, model, after, &two)
    }

    fn ask_changes_of(
        view: &View,
        model: &Naive,
        after: u64,
        ranges: &[Range],
    ) -> Result<(), TestCaseError> {
        let mut told = Vec::new();
        let mut upto = Revision(after);
        loop {
            let page = match view.changes(model.number, upto, ranges, 50) {
                Ok(page) => page,
                Err(Refusal::Compacted { compacted, .. }) => {
                    prop_assert!(after < compacted.0 && told.is_empty());
                    return Ok(());
                }
                Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            for (revision, changes) in page.revisions {
                told.extend(changes.into_iter().map(|change| (revision.0, change)));
            }
            upto = page.upto;
            if !page.more {
                break;
            }
        }
        prop_assert_eq!(upto.0, model.revision);
        let is_asked = |key: &[u8]| ranges.iter().any(|range| range.contains(key));
        let all = model.history.iter().filter(|(at, it)| *at > after && is_asked(&it.key)).cloned();
        prop_assert_eq!(told, all.collect::<Vec<_>>());
        Ok(())
    }

    fn ask_leases(&self, now: u64) -> Result<(), TestCaseError> {
        for id in self.made.values().flatten() {
            let model = &self.shards[id.shard() as usize];
            let query = Query::Lease { lease: *id, attached: true };
            let Answer::Lease(_, state) = self.driven.machine.query(query) else {
                panic!("another answer")
            };
            let lease = model.leases.get(id);
            prop_assert_eq!(state.is_some(), lease.is_some());
            for (name, lock) in &model.locks {
                let (name, lease) = (Bytes::copy_from_slice(name), *id);
                let answer = self.driven.machine.query(Query::Claim { name: name.clone(), lease });
                let Answer::Claim(_, claim) = answer else { panic!("another answer") };
                let holder = Some(model.holder(lock, now));
                let expected = if lock.lease == *id {
                    let ttl_ms = model.leases[id].ttl_ms;
                    Claim::Held { ttl_ms, token: Token(lock.token) }
                } else if model.waits_still(*id, &name, now) {
                    Claim::Waiting
                } else {
                    Claim::Gone(holder)
                };
                prop_assert_eq!(claim, expected);
            }
            let (Some(state), Some(lease)) = (state, lease) else { continue };
            prop_assert_eq!(state.ttl_ms, lease.ttl_ms);
            prop_assert_eq!(state.remaining_ms, lease.deadline.saturating_sub(now));
            let attached = model.pairs.iter().filter(|(_, pair)| pair.lease == Some(*id));
            let attached: Vec<&[u8]> = attached.map(|(key, _)| &key[..]).collect();
            prop_assert_eq!(state.keys.iter().map(|key| &key[..]).collect::<Vec<_>>(), attached);
            let of = |(name, lock): &(&Vec<u8>, &naive::Lock)| {
                lock.lease == *id || model.waits(*id, name)
            };
            let locks: Vec<&[u8]> = model.locks.iter().filter(of).map(|it| &it.0[..]).collect();
            prop_assert_eq!(state.locks.iter().map(|name| &name[..]).collect::<Vec<_>>(), locks);
        }
        Ok(())
    }

    /// All pairs in pages of two, in both directions.
    fn ask_pages(&self, view: &View) -> Result<(), TestCaseError> {
        let pairs = self.shards.iter().flat_map(|shard| shard.pairs.clone());
        let all: BTreeMap<Vec<u8>, kvd::outcome::Pair> = pairs.collect();
        prop_assert_eq!(view.count(&Range::all(), None), Ok(all.len() as u64));
        for reverse in [false, true] {
            let mut told = Vec::new();
            let mut token = None;
            loop {
                let request = PageRequest { limit: 2, reverse, token, ..PageRequest::default() };
                let page = view.page(&Range::all(), &request).expect("now is always there");
                prop_assert!(page.pairs.len() <= 2);
                told.extend(page.pairs.into_iter().map(|(key, pair)| (key.to_vec(), pair)));
                token = page.next;
                if token.is_none() {
                    break;
                }
            }
            if reverse {
                told.reverse();
            }
            prop_assert_eq!(told, all.clone().into_iter().collect::<Vec<_>>());
        }
        Ok(())
    }
}

fn check(limits: MachineLimits, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut check = Check::new(limits);
    for step in steps {
        check.step(step)?;
    }
    check.ask(0)?;
    check.put_back()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_commands_do_what_the_model_does(steps in steps()) {
        check(MachineLimits::default(), &steps)?;
    }

    #[test]
    fn a_change_log_that_forgets_early_never_tells_anything_wrong(steps in steps()) {
        let sessions = SessionLimits::default();
        let limits = MachineLimits {
            changes_bytes: 3_000,
            changes_bytes_per_shard_min: 900,
            ..sessions.into()
        };
        check(limits, &steps)?;
    }
}
