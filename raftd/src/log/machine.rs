//! The log as a replicated state machine: entries in a row, and who appended them lately.
//!
//! Decides what an append and a trim do, and when they are refused. The index is the machine's own:
//! it counts entries and nothing else, so neither elections nor the passing of time leave gaps. Pure:
//! no clock, no randomness, no IO; the same commands give the same state and the same digest on
//! every member.

use bytes::Bytes;
use raft::{Applied, BadSnapshot, GroupTime, StateMachine};

use crate::log::capture::LogCapture;
use crate::log::command::{Command, RequestId, check_version};
use crate::log::entries::Entries;
use crate::log::limits::ProposeLimits;
use crate::log::outcome::{Answer, Header, LogIndex, Outcome, Query, Refusal, Response};
use crate::log::sessions::{Admission, SessionLimits, Sessions};
use crate::log::{digest, restore};

/// The version of the machine's semantics, part of its snapshots.
pub const MACHINE_VERSION: u32 = 1;

/// The state of the log.
#[derive(Clone, Debug)]
pub struct LogMachine {
    pub(crate) entries: Entries,
    pub(crate) sessions: Sessions,
    /// The stamp of the last applied entry.
    pub(crate) time: GroupTime,
}

impl Default for LogMachine {
    fn default() -> Self {
        Self::with_limits(SessionLimits::default())
    }
}

impl LogMachine {
    /// An empty log with other limits of its exactly-once table: for tests, since all members must
    /// have the same.
    pub fn with_limits(limits: SessionLimits) -> Self {
        let entries = Entries::behind(LogIndex(1), 0);
        Self { entries, sessions: Sessions::new(limits), time: GroupTime(0) }
    }

    /// How many rows the exactly-once table has.
    pub fn session_rows(&self) -> u64 {
        self.sessions.rows().len() as u64
    }

    fn header(&self) -> Header {
        Header {
            first: self.entries.first(),
            last: self.entries.next().previous(),
            bytes: self.entries.bytes(),
            time: self.time,
        }
    }

    fn advance(&mut self, at: Applied) {
        self.time = self.time.max(at.time);
        self.sessions.sweep(self.time);
    }

    fn execute(&mut self, command: &Command<'_>) -> Result<Outcome, Refusal> {
        match command {
            Command::Propose { id, quota_bytes, payloads } => {
                self.propose(id.as_ref(), *quota_bytes, payloads)
            }
            Command::Trim { first } => {
                if *first > self.entries.next() {
                    let last = self.entries.next().previous();
                    return Err(Refusal::BeyondEnd { first: *first, last });
                }
                self.entries.trim(*first);
                Ok(Outcome::Trimmed)
            }
        }
    }

    fn propose(
        &mut self,
        id: Option<&RequestId>,
        quota_bytes: u64,
        payloads: &[&[u8]],
    ) -> Result<Outcome, Refusal> {
        ProposeLimits::default().check(payloads)?;
        if let Some(id) = id {
            match self.sessions.admit(id, self.time) {
                Admission::Execute => {}
                Admission::Kept(kept) => {
                    let (first, count) = (kept.first, kept.count);
                    return Ok(Outcome::Appended { first, count, duplicate: true });
                }
                Admission::Refused(refusal) => return Err(refusal),
            }
        }
        // The few bytes around each payload may go beyond the quota.
        let asked: u64 = payloads.iter().map(|payload| payload.len() as u64).sum();
        let (bytes, limit) = (self.entries.bytes(), quota_bytes);
        if bytes.saturating_add(asked) > limit {
            return Err(Refusal::Quota { bytes, asked, limit });
        }
        let (first, count) = (self.entries.next(), payloads.len() as u64);
        for payload in payloads {
            self.entries.append(payload);
        }
        if let Some(id) = id {
            self.sessions.record(id, first, count);
        }
        Ok(Outcome::Appended { first, count, duplicate: false })
    }
}

impl StateMachine for LogMachine {
    type Query = Query;
    type Answer = Answer;
    type Response = Response;
    type Capture = LogCapture;

    fn understands(&self, command: &Bytes) -> bool {
        check_version(command).is_ok()
    }

    fn apply(&mut self, at: Applied, command: &Bytes) -> Response {
        self.advance(at);
        let result = match Command::decode(command) {
            Ok(command) => self.execute(&command),
            Err(bad) => Err(bad.into()),
        };
        Response { header: self.header(), result }
    }

    fn pass(&mut self, at: Applied) {
        self.advance(at);
    }

    /// An index is a place in the row, so it can't be moved on: entries that were lost leave their
    /// indexes to others. Consumers learn of it by the group's identity.
    fn recover(&mut self) {}

    fn query(&self, query: Query) -> Answer {
        let entries = match query {
            Query::Read { from, bytes_max } if from >= self.entries.first() => {
                self.entries.read(from, bytes_max)
            }
            Query::Status | Query::Read { .. } => Vec::new(),
        };
        Answer { header: self.header(), entries }
    }

    fn capture(&self) -> LogCapture {
        LogCapture::new(self.clone(), self.digest())
    }

    fn empty(&self) -> Self {
        Self::with_limits(self.sessions.limits())
    }

    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        *self = restore::restore(chunks, self.sessions.limits())?;
        Ok(())
    }

    fn digest(&self) -> u128 {
        let (first, next) = (self.entries.first().0, self.entries.next().0);
        let (start, end) = self.entries.places();
        digest::machine(first, next, start, end, self.time.0)
            .wrapping_add(self.entries.digest())
            .wrapping_add(self.sessions.digest())
    }
}
