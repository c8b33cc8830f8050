//! What the tests of the machine share: writing commands without ceremony.

#![allow(dead_code, missing_docs, unreachable_pub)]

use bytes::Bytes;
use kvd::{
    KvMachine,
    command::{Bounds, ClientId, Command, Condition, Guard, LeaseId, Operation, RequestId, Tenure},
    custody::MoveNumber,
    handoff::{Contents, Piece},
    outcome::{Answer, Answered, Claim, Outcome, Pair, Query, Refusal, Response, Scope, ShardTime},
    step::{Deed, Step, Stepped},
    view::View,
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
        let command = Command { id, ..Command::new(self.shards, operation) }.encode();
        self.apply_bytes(&command)
    }

    pub fn apply_bounded(
        &mut self,
        id: Option<RequestId>,
        bounds: Bounds,
        operation: Operation<'_>,
    ) -> Response {
        let command = Command { id, bounds, ..Command::new(self.shards, operation) }.encode();
        self.apply_bytes(&command)
    }

    pub fn guarded(&mut self, guard: Guard<'_>, operation: Operation<'_>) -> Response {
        let command = Command { guard: Some(guard), ..Command::new(self.shards, operation) };
        self.apply_bytes(&command.encode())
    }

    /// Does a step of a shard's move.
    pub fn step(
        &mut self,
        shard: u32,
        number: MoveNumber,
        deed: Deed<'_>,
    ) -> Result<Stepped, Refusal> {
        let step = Step { shards: self.shards, shard, number, deed };
        let response = self.apply_bytes(&step.encode());
        match response.result?.outcome {
            Outcome::Stepped(stepped) => Ok(stepped),
            other => panic!("not what comes of a step: {other:?}"),
        }
    }

    pub fn contents(&self, shard: u32) -> Contents {
        match self.machine.query(Query::Contents(shard)) {
            Answer::Contents(Some(contents)) => *contents,
            other => panic!("not the contents of a shard: {other:?}"),
        }
    }

    /// Takes in so many pieces of a shard that another group has; whether there were so many.
    pub fn pull(&mut self, source: &Self, shard: u32, number: MoveNumber, most: usize) -> bool {
        let wanted = self.contents(shard).wanted().expect("it is coming");
        let handoff = source.contents(shard).handoff(wanted, 100);
        let mut handoff = handoff.expect("the source is in the move");
        for _ in 0..most {
            let Some(Piece { at, records }) = handoff.next_piece() else { return false };
            let deed = Deed::Import { at, records: &records };
            match self.step(shard, number, deed) {
                Ok(Stepped::Position(_)) => {}
                other => panic!("a piece is not taken in: {other:?}"),
            }
        }
        true
    }

    pub fn outcome(&mut self, operation: Operation<'_>) -> Outcome {
        self.run(None, operation).outcome
    }

    pub fn grant(&mut self, key: &[u8], ttl_ms: u64) -> LeaseId {
        match self.outcome(Operation::Grant { key, ttl_ms }) {
            Outcome::Granted { lease, .. } => lease,
            other => panic!("not granted: {other:?}"),
        }
    }

    pub fn view(&self) -> View {
        match self.machine.query(Query::View(Scope::All)) {
            Answer::View(view) => view,
            other => panic!("not a view: {other:?}"),
        }
    }

    pub fn claim(&self, name: &[u8], lease: LeaseId) -> Claim {
        let name = Bytes::copy_from_slice(name);
        match self.machine.query(Query::Claim { name, lease }) {
            Answer::Claim(_, claim) => claim,
            other => panic!("not a claim: {other:?}"),
        }
    }

    /// Ends what is over, as a leader does; answers how many leases it was.
    pub fn expire_due(&mut self) -> usize {
        let query = Query::DueLeases { until: GroupTime(self.now), most: 1_000 };
        let Answer::DueLeases(told) = self.machine.query(query) else { panic!("another answer") };
        for due in &told.due {
            let (lease, renewal) = (due.lease, due.renewal);
            let outcome = self.outcome(Operation::Expire { lease, renewal });
            assert!(
                matches!(outcome, Outcome::Ended { .. } | Outcome::NoSuchLease(_)),
                "{outcome:?}"
            );
        }
        told.due.len()
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
    put_if(key, value, Condition::Always)
}

pub fn put_if<'a>(key: &'a [u8], value: &'a [u8], condition: Condition) -> Operation<'a> {
    Operation::Put { key, value, condition, lease: None }
}

pub fn append<'a>(key: &'a [u8], value: &'a [u8]) -> Operation<'a> {
    Operation::Append { key, value }
}

pub fn delete(key: &[u8]) -> Operation<'_> {
    Operation::Delete { key }
}

pub fn put_under<'a>(key: &'a [u8], value: &'a [u8], lease: LeaseId) -> Operation<'a> {
    Operation::Put { key, value, condition: Condition::Always, lease: Some(lease) }
}

/// Takes a lock under a lease of its own.
pub fn acquire(name: &[u8], ttl_ms: u64, wait_ms: u64) -> Operation<'_> {
    Operation::Acquire { name, tenure: Tenure::Own { ttl_ms }, wait_ms, owner: b"me" }
}

pub fn chunks(machine: &KvMachine) -> Vec<Bytes> {
    machine.capture().chunks().collect()
}
