//! The exactly-once table of the log.
//!
//! Decides whether an append that names itself is executed, answered from a kept reply, or refused;
//! and when replies and rows are forgotten: replies once they are acknowledged, rows with all their
//! replies once the latest expiry that they ever held has passed in group time. A few rows at most
//! go with one applied entry, in the order of a time index, so that no apply does unbounded work.
//!
//! The order of the questions is the contract: a request that is absent, above the acknowledged
//! number and unexpired is executed for the first time.

use imbl::{OrdMap, OrdSet};
use raft::GroupTime;

use crate::log::command::{ClientId, RequestId};
use crate::log::digest;
use crate::log::limits::{
    CLIENTS_MAX, EXPIRES_AHEAD_MS_MAX, REPLIES_MAX, REPLIES_PER_CLIENT_MAX, SWEEP_ROWS_PER_APPLY,
};
use crate::log::outcome::{LogIndex, Refusal};

/// How much a table may hold. The same on all members; other than the default only in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Unacknowledged replies of one client.
    pub replies_per_client: usize,
    /// Clients.
    pub clients: usize,
    /// Replies of all clients.
    pub replies: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            replies_per_client: REPLIES_PER_CLIENT_MAX,
            clients: CLIENTS_MAX,
            replies: REPLIES_MAX,
        }
    }
}

/// What is to become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is the first: execute it, then `record` where the entries went.
    Execute,
    /// It was executed before; this is where the entries went.
    Kept(Kept),
    /// It is not executed.
    Refused(Refusal),
}

/// The reply to a request that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) sequence: u64,
    pub(crate) first: LogIndex,
    pub(crate) count: u64,
}

/// What is remembered of one client.
///
/// Invariants: the replies are in order of their sequences, all above `acknowledged`; `digest` is
/// the sum of theirs; the time index holds `(latest, client)` for exactly this row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The highest sequence that the client said it will never ask about again.
    pub(crate) acknowledged: u64,
    /// The latest expiry that the row ever held: it is kept until then.
    pub(crate) latest: GroupTime,
    replies: Vec<Kept>,
    digest: u128,
}

/// The table. The digest is the sum over rows and replies.
#[derive(Clone, Debug)]
pub(crate) struct Sessions {
    limits: SessionLimits,
    rows: OrdMap<ClientId, Row>,
    due: OrdSet<(GroupTime, ClientId)>,
    replies: usize,
    digest: u128,
}

impl Sessions {
    pub(crate) fn new(limits: SessionLimits) -> Self {
        Self { limits, rows: OrdMap::new(), due: OrdSet::new(), replies: 0, digest: 0 }
    }

    pub(crate) fn limits(&self) -> SessionLimits {
        self.limits
    }

    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    pub(crate) fn rows(&self) -> &OrdMap<ClientId, Row> {
        &self.rows
    }

    /// The questions, in the order of the contract.
    pub(crate) fn admit(&mut self, id: &RequestId, now: GroupTime) -> Admission {
        if id.sequence <= id.acknowledged {
            return Admission::Refused(Refusal::Acknowledged);
        }
        self.acknowledge(id);
        let row = self.rows.get(&id.client);
        if let Some(row) = row {
            if id.sequence <= row.acknowledged {
                return Admission::Refused(Refusal::Acknowledged);
            }
            if let Ok(at) = row.find(id.sequence) {
                return Admission::Kept(row.replies[at]);
            }
        }
        if now > id.expires {
            return Admission::Refused(Refusal::Expired { expires: id.expires, now });
        }
        let (ahead_ms, limit) = (id.expires.0 - now.0, EXPIRES_AHEAD_MS_MAX);
        if ahead_ms > limit {
            return Admission::Refused(Refusal::TooFarAhead { ahead_ms, limit });
        }
        let limits = self.limits;
        let full = match row {
            Some(row) if row.replies.len() >= limits.replies_per_client => {
                Some(("session_replies_per_client_max", limits.replies_per_client))
            }
            None if self.rows.len() >= limits.clients => {
                Some(("session_clients_max", limits.clients))
            }
            Some(_) | None if self.replies >= limits.replies => {
                Some(("session_replies_max", limits.replies))
            }
            Some(_) | None => None,
        };
        match full {
            Some((name, limit)) => Admission::Refused(Refusal::Limit { name, limit: limit as u64 }),
            None => Admission::Execute,
        }
    }

    /// Keeps where the entries of a request went that `admit` let through.
    pub(crate) fn record(&mut self, id: &RequestId, first: LogIndex, count: u64) {
        let kept = Kept { sequence: id.sequence, first, count };
        let row = self.take(id.client);
        let mut row = row.unwrap_or_else(|| Row::new(id.acknowledged, id.expires));
        row.latest = row.latest.max(id.expires);
        row.insert(id.client, kept);
        self.put(id.client, row);
    }

    /// Forgets rows whose time is over, a few at most.
    pub(crate) fn sweep(&mut self, now: GroupTime) {
        for _ in 0..SWEEP_ROWS_PER_APPLY {
            match self.due.get_min() {
                Some(&(due, client)) if due < now => drop(self.take(client)),
                Some(_) | None => return,
            }
        }
    }

    /// Puts a row back that a snapshot held; false when it is impossible or there before.
    pub(crate) fn restore(&mut self, client: ClientId, mut row: Row, replies: &[Kept]) -> bool {
        let sequences = replies.iter().map(|kept| kept.sequence);
        let ascend = std::iter::once(row.acknowledged).chain(sequences).is_sorted_by(|a, b| a < b);
        if !ascend || self.rows.contains_key(&client) {
            return false;
        }
        for kept in replies {
            row.insert(client, *kept);
        }
        self.put(client, row);
        self.rows.len() <= self.limits.clients && self.replies <= self.limits.replies
    }

    /// Notes what the client will never ask about again, if it has a row.
    fn acknowledge(&mut self, id: &RequestId) {
        if self.rows.get(&id.client).is_none_or(|row| row.acknowledged >= id.acknowledged) {
            return;
        }
        let Some(mut row) = self.take(id.client) else { return };
        row.acknowledged = id.acknowledged;
        let gone = row.replies.partition_point(|kept| kept.sequence <= id.acknowledged);
        for kept in row.replies.drain(..gone) {
            row.digest = row.digest.wrapping_sub(kept.digest(id.client));
        }
        self.put(id.client, row);
    }

    /// Takes a row out, and its part of every account.
    fn take(&mut self, client: ClientId) -> Option<Row> {
        let row = self.rows.remove(&client)?;
        self.due.remove(&(row.latest, client));
        self.replies -= row.replies.len();
        self.digest = self.digest.wrapping_sub(row.digest(client));
        Some(row)
    }

    /// Puts a row in.
    fn put(&mut self, client: ClientId, row: Row) {
        self.due.insert((row.latest, client));
        self.replies += row.replies.len();
        self.digest = self.digest.wrapping_add(row.digest(client));
        self.rows.insert(client, row);
    }
}

impl Row {
    /// A row without replies.
    pub(crate) fn new(acknowledged: u64, latest: GroupTime) -> Self {
        Self { acknowledged, latest, replies: Vec::new(), digest: 0 }
    }

    pub(crate) fn replies(&self) -> &[Kept] {
        &self.replies
    }

    fn find(&self, sequence: u64) -> Result<usize, usize> {
        self.replies.binary_search_by_key(&sequence, |kept| kept.sequence)
    }

    fn insert(&mut self, client: ClientId, kept: Kept) {
        let at = self.find(kept.sequence).expect_err("a request is executed once");
        self.replies.insert(at, kept);
        self.digest = self.digest.wrapping_add(kept.digest(client));
    }

    fn digest(&self, client: ClientId) -> u128 {
        digest::row(client.0, self.acknowledged, self.latest.0).wrapping_add(self.digest)
    }
}

impl Kept {
    fn digest(&self, client: ClientId) -> u128 {
        digest::reply(client.0, self.sequence, self.first.0, self.count)
    }
}
