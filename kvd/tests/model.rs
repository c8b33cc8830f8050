//! The machine against a naive model: a plain map for the pairs and a plain list of everything
//! that was ever executed. Clients repeat requests, acknowledge late, and sleep past expiries.
//!
//! What must hold for each request: it is executed at most once in all time; a first, unexpired,
//! unacknowledged request is executed with the model's outcome unless a limit is reached; every
//! other one is answered from the kept reply or refused and changes nothing.

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{Driven, chunks};
use kvd::{
    KvMachine,
    command::{Bounds, ClientId, Condition, Operation, RequestId},
    outcome::{Outcome, Pair, Refusal, Revision, ShardTime, Version, Written},
    session::SessionLimits,
};
use proptest::prelude::*;
use raft::StateMachine;

const BUDGET_MS: u64 = 60_000;

#[derive(Clone, Debug)]
enum Verb {
    Put(usize),
    PutIfVersion(usize, u64),
    PutIfRevision(usize, u64),
    Append(usize),
    Delete,
}

#[derive(Clone, Debug)]
enum Step {
    Anonymous(u8, Verb),
    New { client: u8, key: u8, verb: Verb, unacknowledged: u64 },
    Retry(usize),
    Sleep(u64),
    TooFarAhead { client: u8, key: u8 },
}

fn verbs() -> impl Strategy<Value = Verb> {
    prop_oneof![
        4 => (0_usize..40).prop_map(Verb::Put),
        2 => (0_usize..40, 0_u64..4).prop_map(|(length, version)| Verb::PutIfVersion(length, version)),
        1 => (0_usize..40, 0_u64..9).prop_map(|(length, revision)| Verb::PutIfRevision(length, revision)),
        4 => (0_usize..40).prop_map(Verb::Append),
        2 => Just(Verb::Delete),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0_u8..5, verbs()).prop_map(|(key, verb)| Step::Anonymous(key, verb)),
        8 => (0_u8..3, 0_u8..5, verbs(), 0_u64..4).prop_map(|(client, key, verb, unacknowledged)| {
            Step::New { client, key, verb, unacknowledged }
        }),
        6 => any::<prop::sample::Index>().prop_map(|index| Step::Retry(index.index(1 << 20))),
        3 => prop_oneof![Just(1_u64), Just(20_000), Just(59_000), Just(61_000), Just(400_000)]
            .prop_map(Step::Sleep),
        1 => (0_u8..3, 0_u8..5).prop_map(|(client, key)| Step::TooFarAhead { client, key }),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A request as a client keeps it.
#[derive(Clone, Debug)]
struct Request {
    id: Option<RequestId>,
    key: Vec<u8>,
    value: Vec<u8>,
    verb: Verb,
    shard: u32,
}

impl Request {
    fn operation(&self) -> Operation<'_> {
        let (key, value) = (&self.key[..], &self.value[..]);
        let put = |condition| Operation::Put { key, value, condition, lease: None };
        match self.verb {
            Verb::Put(_) => put(Condition::Always),
            Verb::PutIfVersion(_, version) => put(Condition::Version(Version(version))),
            Verb::PutIfRevision(_, revision) => put(Condition::ModRevision(Revision(revision))),
            Verb::Append(_) => Operation::Append { key, value },
            Verb::Delete => Operation::Delete { key },
        }
    }
}

fn bounds() -> Bounds {
    Bounds { value_bytes_max: 100, ..Bounds::default() }
}

#[derive(Default)]
struct Model {
    pairs: BTreeMap<Vec<u8>, Pair>,
    revisions: BTreeMap<u32, u64>,
    executed: Vec<(ClientId, u32, u64, Outcome)>,
    acknowledged: BTreeMap<(ClientId, u32), u64>,
    sequences: BTreeMap<(ClientId, u32), u64>,
    requests: Vec<Request>,
}

impl Model {
    fn execute(&mut self, request: &Request) -> Outcome {
        let current = self.pairs.get(&request.key).cloned();
        let version = current.as_ref().map_or(0, |pair| pair.version.0);
        let modified = current.as_ref().map_or(0, |pair| pair.mod_revision.0);
        let old = current.as_ref().map_or_else(Bytes::new, |pair| pair.value.clone());
        match request.verb {
            Verb::PutIfVersion(_, expected) if expected != version => Outcome::Mismatch(current),
            Verb::PutIfRevision(_, expected) if expected != modified => Outcome::Mismatch(current),
            Verb::Put(_) | Verb::PutIfVersion(..) | Verb::PutIfRevision(..) => {
                Outcome::Written(self.write(request, request.value.clone()))
            }
            Verb::Append(_) => {
                let whole = [&old[..], &request.value[..]].concat();
                if whole.len() > 100 {
                    return Outcome::TooLarge { bytes: whole.len() as u64, limit: 100 };
                }
                Outcome::Appended { written: self.write(request, whole), old }
            }
            Verb::Delete => match self.pairs.remove(&request.key) {
                None => Outcome::Absent,
                Some(pair) => {
                    let revision = self.take_revision(request.shard);
                    Outcome::Removed { written: Written { version: Version(0), revision }, pair }
                }
            },
        }
    }

    fn take_revision(&mut self, shard: u32) -> Revision {
        let revision = self.revisions.entry(shard).or_default();
        *revision += 1;
        Revision(*revision)
    }

    fn write(&mut self, request: &Request, value: Vec<u8>) -> Written {
        let revision = self.take_revision(request.shard);
        let before = self.pairs.get(&request.key);
        let version = Version(before.map_or(0, |pair| pair.version.0) + 1);
        let create_revision = before.map_or(revision, |pair| pair.create_revision);
        let mod_revision = revision;
        let pair =
            Pair { value: value.into(), version, create_revision, mod_revision, lease: None };
        self.pairs.insert(request.key.clone(), pair);
        Written { version, revision }
    }

    fn kept(&self, id: &RequestId, shard: u32) -> Option<&Outcome> {
        self.executed
            .iter()
            .find(|(client, at, sequence, _)| {
                (*client, *at, *sequence) == (id.client, shard, id.sequence)
            })
            .map(|(.., outcome)| outcome)
    }
}

struct Check {
    driven: Driven,
    model: Model,
    limits: SessionLimits,
    counter: u8,
}

impl Check {
    fn new(shards: u32, limits: SessionLimits) -> Self {
        let driven = Driven::around(KvMachine::with_limits(shards, limits), shards);
        Self { driven, model: Model::default(), limits, counter: 0 }
    }

    fn request(&mut self, client: Option<(u8, u64)>, key: u8, verb: &Verb) -> Request {
        let key = vec![b'k', key];
        let shard = proto::shard_of(&key, self.driven.shards);
        let id = client.map(|(client, unacknowledged)| {
            let client = ClientId([client; 16]);
            let sequence = self.model.sequences.entry((client, shard)).or_default();
            *sequence += 1;
            let acknowledged = (*sequence - 1).saturating_sub(unacknowledged);
            let expires = ShardTime(self.driven.now + BUDGET_MS);
            RequestId { client, sequence: *sequence, acknowledged, expires }
        });
        self.counter = self.counter.wrapping_add(1);
        let length = match verb {
            Verb::Put(length)
            | Verb::PutIfVersion(length, _)
            | Verb::PutIfRevision(length, _)
            | Verb::Append(length) => *length,
            Verb::Delete => 0,
        };
        Request { id, key, value: vec![self.counter; length], verb: verb.clone(), shard }
    }

    fn send(&mut self, request: &Request) -> Result<(), TestCaseError> {
        let digest = self.driven.machine.digest();
        let revision = self.model.revisions.get(&request.shard).copied().unwrap_or(0);
        let response = self.driven.apply_bounded(request.id, bounds(), request.operation());
        prop_assert_eq!(response.header.shard, request.shard);
        let Some(id) = request.id else {
            let expected = self.model.execute(request);
            let answered = response.result.expect("a request without an id is always executed");
            prop_assert_eq!(answered.outcome, expected);
            return Ok(());
        };
        let now = self.driven.now;
        let told = self.model.acknowledged.get(&(id.client, request.shard)).copied().unwrap_or(0);
        let (expired, acknowledged) = (now > id.expires.0, told >= id.sequence);
        match response.result {
            Ok(answered) if answered.duplicate => {
                let kept = self.model.kept(&id, request.shard);
                let kept = kept.expect("a duplicate of something that was executed");
                if answered.body_dropped {
                    prop_assert_eq!(&answered.outcome, &kept.without_body());
                    prop_assert!(self.limits.body_bytes < 10_000);
                } else {
                    prop_assert_eq!(&answered.outcome, kept);
                }
                prop_assert!(!acknowledged);
            }
            Ok(answered) => {
                prop_assert!(self.model.kept(&id, request.shard).is_none(), "executed twice");
                prop_assert!(!expired && !acknowledged);
                let expected = self.model.execute(request);
                prop_assert_eq!(&answered.outcome, &expected);
                self.model.executed.push((id.client, request.shard, id.sequence, expected));
                let told = self.model.acknowledged.entry((id.client, request.shard)).or_default();
                *told = (*told).max(id.acknowledged);
                return Ok(());
            }
            Err(Refusal::Acknowledged) => prop_assert!(acknowledged),
            Err(Refusal::Expired { .. }) => prop_assert!(expired),
            Err(Refusal::Limit { .. }) => {
                prop_assert!(self.limits != SessionLimits::default());
                prop_assert!(self.model.kept(&id, request.shard).is_none());
            }
            Err(other) => prop_assert!(false, "{other:?}"),
        }
        prop_assert_eq!(response.header.revision.0, revision);
        let told = self.model.acknowledged.entry((id.client, request.shard)).or_default();
        if self.driven.machine.digest() == digest {
            return Ok(());
        }
        *told = (*told).max(id.acknowledged);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Anonymous(key, verb) => {
                let request = self.request(None, *key, verb);
                self.send(&request)
            }
            Step::New { client, key, verb, unacknowledged } => {
                let request = self.request(Some((*client, *unacknowledged)), *key, verb);
                self.model.requests.push(request.clone());
                self.send(&request)
            }
            Step::Retry(index) => match self.model.requests.len() {
                0 => Ok(()),
                many => {
                    let request = self.model.requests[index % many].clone();
                    self.send(&request)
                }
            },
            Step::Sleep(ms) => {
                self.driven.now += ms;
                self.driven.pass();
                Ok(())
            }
            Step::TooFarAhead { client, key } => {
                let mut request = self.request(Some((*client + 100, 0)), *key, &Verb::Put(3));
                let id = request.id.as_mut().expect("it has an id");
                id.expires = ShardTime(self.driven.now + 300_001);
                let result = self.driven.apply(request.id, request.operation()).result;
                let refused = matches!(result, Err(Refusal::TooFarAhead { ahead_ms: 300_001, .. }));
                prop_assert!(refused);
                Ok(())
            }
        }
    }

    fn finish(&self) -> Result<(), TestCaseError> {
        for key in 0_u8..5 {
            let key = [b'k', key];
            prop_assert_eq!(self.driven.get(&key), self.model.pairs.get(&key[..]).cloned());
        }
        let chunks = chunks(&self.driven.machine);
        let mut restored = KvMachine::with_limits(1, self.limits);
        prop_assert_eq!(restored.restore(&mut chunks.clone().into_iter()), Ok(()));
        prop_assert_eq!(restored.digest(), self.driven.machine.digest());
        prop_assert_eq!(common::chunks(&restored), chunks);
        Ok(())
    }
}

fn check(shards: u32, limits: SessionLimits, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut check = Check::new(shards, limits);
    for step in steps {
        check.step(step)?;
    }
    check.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn one_shard_does_what_the_model_does(steps in steps()) {
        check(1, SessionLimits::default(), &steps)?;
    }

    #[test]
    fn several_shards_do_what_the_model_does(steps in steps()) {
        check(3, SessionLimits::default(), &steps)?;
    }

    #[test]
    fn full_tables_refuse_and_never_execute_twice(steps in steps()) {
        let limits = SessionLimits { replies_per_row: 2, rows: 2, replies: 3, body_bytes: 300 };
        check(2, limits, &steps)?;
    }
}
