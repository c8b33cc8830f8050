//! What the tests of the machine share: writing commands without ceremony.

#![allow(dead_code, missing_docs, unreachable_pub)]

use bytes::Bytes;
use kvd::{
    KvMachine,
    command::{ClientId, Command, Condition, Operation, RequestId},
    outcome::{Answer, Answered, Outcome, Pair, Query, Refusal, Response, ShardTime},
};
use raft::{Applied, Capture, GroupTime, Index, StateMachine, Term};

/// A machine with the log index and the clock that drive it.
pub struct Driven {
    pub machine: KvMachine,
    pub shards: u32,
    pub index: u64,
    pub now: u64,
}

impl Driven {
    pub fn new(shards: u32) -> Self {
        Self::around(KvMachine::new(shards), shards)
    }

    pub fn around(machine: KvMachine, shards: u32) -> Self {
        Self { machine, shards, index: 0, now: 1_000_000 }
    }

    fn next(&mut self) -> Applied {
        self.index += 1;
        Applied { index: Index(self.index), term: Term(1), time: GroupTime(self.now) }
    }

    pub fn apply_bytes(&mut self, command: &Bytes) -> Response {
        let at = self.next();
        self.machine.apply(at, command)
    }

    pub fn apply(&mut self, id: Option<RequestId>, operation: Operation<'_>) -> Response {
        let command = Command { shards: self.shards, id, operation }.encode();
        self.apply_bytes(&command)
    }

    pub fn run(&mut self, id: Option<RequestId>, operation: Operation<'_>) -> Answered {
        self.apply(id, operation).result.expect("executed or kept")
    }

    pub fn refused(&mut self, id: RequestId, operation: Operation<'_>) -> Refusal {
        self.apply(Some(id), operation).result.expect_err("refused")
    }

    pub fn pass(&mut self) {
        let at = self.next();
        self.machine.pass(at);
    }

    pub fn get(&self, key: &[u8]) -> Option<Pair> {
        match self.machine.query(Query::Get(Bytes::copy_from_slice(key))) {
            Answer::Pair(_, pair) => pair,
            other => panic!("not a pair: {other:?}"),
        }
    }

    pub fn id(&self, client: u8, sequence: u64, acknowledged: u64) -> RequestId {
        let expires = ShardTime(self.now + 60_000);
        RequestId { client: ClientId([client; 16]), sequence, acknowledged, expires }
    }
}

pub fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Operation<'a> {
    Operation::Put { key, value, condition: Condition::Always }
}

pub fn put_if<'a>(key: &'a [u8], value: &'a [u8], condition: Condition) -> Operation<'a> {
    Operation::Put { key, value, condition }
}

pub fn append<'a>(key: &'a [u8], value: &'a [u8]) -> Operation<'a> {
    Operation::Append { key, value, value_bytes_max: 1 << 20 }
}

pub fn delete(key: &[u8]) -> Operation<'_> {
    Operation::Delete { key }
}

pub fn chunks(machine: &KvMachine) -> Vec<Bytes> {
    machine.capture().chunks().collect()
}

pub fn without_body(outcome: &Outcome) -> Outcome {
    let mut bare = outcome.clone();
    match &mut bare {
        Outcome::Mismatch(Some(pair)) | Outcome::Removed { pair, .. } => pair.value = Bytes::new(),
        Outcome::Appended { old, .. } => *old = Bytes::new(),
        Outcome::Written(_)
        | Outcome::Mismatch(None)
        | Outcome::TooLarge { .. }
        | Outcome::Absent => {}
    }
    bare
}
