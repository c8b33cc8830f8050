//! A machine that is driven as a host would: with an index and a time for every command.

use bytes::Bytes;
use raft::{Applied, Capture, GroupTime, Index, StateMachine, Term};
use raftd::log::command::{ClientId, Command, RequestId};
use raftd::log::outcome::{Answer, LogIndex, Outcome, Query, Refusal, Response};
use raftd::log::{LogMachine, SessionLimits};

/// A quota that no test reaches by chance.
pub(crate) const AMPLE: u64 = 1 << 40;

pub(crate) struct Driven {
    pub(crate) machine: LogMachine,
    pub(crate) index: u64,
    pub(crate) now: u64,
}

impl Driven {
    pub(crate) fn new() -> Self {
        Self::with_limits(SessionLimits::default())
    }

    pub(crate) fn with_limits(limits: SessionLimits) -> Self {
        Self { machine: LogMachine::with_limits(limits), index: 0, now: 1_000 }
    }

    pub(crate) fn apply(&mut self, command: &Command<'_>) -> Response {
        let at = self.at();
        self.machine.apply(at, &command.encode())
    }

    pub(crate) fn pass(&mut self) {
        let at = self.at();
        self.machine.pass(at);
    }

    fn at(&mut self) -> Applied {
        self.index += 1;
        Applied { index: Index(self.index), term: Term(1), time: GroupTime(self.now) }
    }

    pub(crate) fn propose(
        &mut self,
        id: Option<RequestId>,
        payloads: &[&[u8]],
    ) -> Result<Outcome, Refusal> {
        let payloads = payloads.to_vec();
        self.apply(&Command::Propose { id, quota_bytes: AMPLE, payloads }).result
    }

    pub(crate) fn trim(&mut self, first: u64) -> Result<Outcome, Refusal> {
        self.apply(&Command::Trim { first: LogIndex(first) }).result
    }

    /// An identity that expires in 10 s.
    pub(crate) fn id(&self, client: u8, sequence: u64, acknowledged: u64) -> RequestId {
        let expires = GroupTime(self.now + 10_000);
        RequestId { client: ClientId([client; 16]), sequence, acknowledged, expires }
    }

    pub(crate) fn status(&self) -> Answer {
        self.machine.query(Query::Status)
    }

    /// Everything that is kept from an index on.
    pub(crate) fn read(&self, from: u64) -> Vec<Bytes> {
        self.machine.query(Query::Read { from: LogIndex(from), bytes_max: usize::MAX }).entries
    }
}

pub(crate) fn appended(first: u64, count: u64) -> Outcome {
    Outcome::Appended { first: LogIndex(first), count, duplicate: false }
}

pub(crate) fn again(first: u64, count: u64) -> Outcome {
    Outcome::Appended { first: LogIndex(first), count, duplicate: true }
}

pub(crate) fn chunks(machine: &LogMachine) -> Vec<Bytes> {
    machine.capture().chunks().collect()
}

pub(crate) fn restored(chunks: &[Bytes]) -> Result<LogMachine, raft::BadSnapshot> {
    let mut machine = LogMachine::default();
    machine.restore(&mut chunks.iter().cloned()).map(|()| machine)
}
