//! The exactly-once table of one shard (design part 6, "Exactly once").
//!
//! Decides whether a request that names itself is executed, answered from a kept reply, or refused;
//! and when replies, bodies and rows are forgotten. Only applied shard time forgets, a few rows an
//! apply, in the order of a time index, so that no apply does unbounded work. It leaves out what
//! the request does.
//!
//! The order of the questions is the contract. What is absent, above the acknowledged number and
//! unexpired is a first execution, because a reply is kept until it is acknowledged or expired, and
//! a row until the latest expiry that it ever held.

use std::num::NonZeroU64;

use imbl::{OrdMap, OrdSet};

use crate::{
    command::{ClientId, RequestId},
    digest,
    limits::{
        BODY_BYTES_PER_SHARD_MAX, BODY_OVERHEAD_BYTES, EXPIRES_AHEAD_MS_MAX, REPLIES_PER_ROW_MAX,
        REPLIES_PER_SHARD_MAX, ROWS_PER_SHARD_MAX,
    },
    outcome::{Answered, Outcome, Refusal, ShardTime},
    reply::{Kept, Replies, Reply},
};

/// How much a table may hold. The same on all members; other than the default only in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Unacknowledged replies of one client.
    pub replies_per_row: usize,
    /// Clients.
    pub rows: usize,
    /// Replies of all clients.
    pub replies: usize,
    /// Bytes of bodies, each with an overhead.
    pub body_bytes: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            replies_per_row: REPLIES_PER_ROW_MAX,
            rows: ROWS_PER_SHARD_MAX,
            replies: REPLIES_PER_SHARD_MAX,
            body_bytes: BODY_BYTES_PER_SHARD_MAX,
        }
    }
}

/// What is to become of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is the first: execute it, then `record` the outcome.
    Execute,
    /// It was executed before; this was the answer.
    Kept(Answered),
    /// It is not executed.
    Refused(Refusal),
}

/// What is remembered of one client.
///
/// Invariants: every reply's sequence is above `acknowledged`; no reply expires after `latest`;
/// the time index holds `(due, client)` for exactly this row; `due` is at most the earliest expiry
/// that matters (it may lag behind, which costs one look and moves it).
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The highest sequence that the client said it will never ask about again.
    pub(crate) acknowledged: u64,
    /// The latest expiry that the row ever held: it is kept until then.
    pub(crate) latest: ShardTime,
    /// When the sweep looks at it next.
    pub(crate) due: ShardTime,
    /// Its unacknowledged replies, by sequence.
    pub(crate) replies: Replies,
}

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct Sessions {
    limits: SessionLimits,
    rows: OrdMap<ClientId, Row>,
    /// Rows by the time at which the sweep looks at them.
    due: OrdSet<(ShardTime, ClientId)>,
    /// Replies with a body by age.
    bodies: OrdMap<u64, (ClientId, u64)>,
    body_bytes: u64,
    replies: usize,
    /// The age number of the next body; from 1, since 0 stands for none.
    next_order: u64,
    /// Sum over rows and replies.
    digest: u128,
}

impl Sessions {
    pub(crate) fn new(limits: SessionLimits) -> Self {
        Self {
            limits,
            rows: OrdMap::new(),
            due: OrdSet::new(),
            bodies: OrdMap::new(),
            body_bytes: 0,
            replies: 0,
            next_order: 1,
            digest: 0,
        }
    }

    pub(crate) fn limits(&self) -> &SessionLimits {
        &self.limits
    }

    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    pub(crate) fn next_order(&self) -> u64 {
        self.next_order
    }

    pub(crate) fn rows(&self) -> &OrdMap<ClientId, Row> {
        &self.rows
    }

    /// The questions, in the order of the contract.
    pub(crate) fn admit(&mut self, id: &RequestId, now: ShardTime) -> Admission {
        if id.sequence <= id.acknowledged {
            return Admission::Refused(Refusal::Acknowledged);
        }
        self.acknowledge(id);
        let row = self.rows.get(&id.client);
        if let Some(row) = row {
            if id.sequence <= row.acknowledged {
                return Admission::Refused(Refusal::Acknowledged);
            }
            if let Some(reply) = row.replies.find(id.sequence) {
                return Admission::Kept(reply.kept.recall());
            }
        }
        if now > id.expires {
            return Admission::Refused(Refusal::Expired { expires: id.expires, now });
        }
        let ahead_ms = id.expires.0 - now.0;
        if ahead_ms > EXPIRES_AHEAD_MS_MAX {
            let limit = EXPIRES_AHEAD_MS_MAX;
            return Admission::Refused(Refusal::TooFarAhead { ahead_ms, limit });
        }
        let full = match row {
            Some(row) if row.replies.len() >= self.limits.replies_per_row => {
                Some(("session_replies_per_client_max", self.limits.replies_per_row))
            }
            None if self.rows.len() >= self.limits.rows => {
                Some(("session_clients_per_shard_max", self.limits.rows))
            }
            Some(_) | None if self.replies >= self.limits.replies => {
                Some(("session_replies_per_shard_max", self.limits.replies))
            }
            Some(_) | None => None,
        };
        match full {
            Some((name, limit)) => Admission::Refused(Refusal::Limit { name, limit: limit as u64 }),
            None => Admission::Execute,
        }
    }

    /// Keeps the outcome of a request that `admit` let through.
    pub(crate) fn record(&mut self, id: &RequestId, outcome: &Outcome) {
        let client = id.client;
        let has_body = outcome.body().is_some_and(|body| body.cost() > 0);
        let order = if has_body { self.next_order } else { 0 };
        let reply = Reply {
            sequence: NonZeroU64::new(id.sequence).expect("admitted, so above the acknowledged"),
            expires: id.expires,
            kept: Kept::new(outcome.clone(), order, false),
        };
        self.digest = self.digest.wrapping_add(reply.digest(&client));
        self.replies += 1;
        if let Some(row) = self.rows.get_mut(&client) {
            let before = row.digest(&client);
            row.latest = row.latest.max(id.expires);
            if id.expires < row.due {
                self.due.remove(&(row.due, client));
                self.due.insert((id.expires, client));
                row.due = id.expires;
            }
            row.replies.insert(reply);
            let after = row.digest(&client);
            self.digest = self.digest.wrapping_sub(before).wrapping_add(after);
        } else {
            let row = Row {
                acknowledged: id.acknowledged,
                latest: id.expires,
                due: id.expires,
                replies: Replies::One(reply),
            };
            self.digest = self.digest.wrapping_add(row.digest(&client));
            self.due.insert((row.due, client));
            self.rows.insert(client, row);
        }
        if has_body {
            self.next_order += 1;
            self.bodies.insert(order, (client, id.sequence));
            self.body_bytes += body_cost(outcome);
            self.drop_oldest_bodies();
        }
    }

    /// Takes out no more than so many rows; whether some are left.
    pub(crate) fn discard(&mut self, most: usize) -> bool {
        let clients: Vec<ClientId> = self.rows.keys().take(most).copied().collect();
        for client in clients {
            let Some(row) = self.rows.remove(&client) else { continue };
            self.due.remove(&(row.due, client));
            self.digest = self.digest.wrapping_sub(row.digest(&client));
            self.forget(client, &row.replies);
        }
        !self.rows.is_empty()
    }

    /// Whether `sweep` has something to do.
    pub(crate) fn is_due(&self, now: ShardTime) -> bool {
        self.due.get_min().is_some_and(|(due, _)| *due < now)
    }

    /// Forgets what has expired, looking at no more than `rows_max` rows.
    pub(crate) fn sweep(&mut self, now: ShardTime, rows_max: usize) {
        for _ in 0..rows_max {
            let Some(&(due, client)) = self.due.get_min() else { return };
            if due >= now {
                return;
            }
            self.due.remove(&(due, client));
            let row =
                self.rows.get_mut(&client).expect("the time index names only rows that exist");
            self.digest = self.digest.wrapping_sub(row.digest(&client));
            let gone = row.replies.take(|reply| reply.expires < now);
            if row.latest < now {
                assert!(row.replies.len() == 0, "a reply outlives its row");
                self.rows.remove(&client);
            } else {
                let earliest = row.replies.as_slice().iter().map(|reply| reply.expires).min();
                row.due = earliest.unwrap_or(row.latest);
                self.due.insert((row.due, client));
                self.digest = self.digest.wrapping_add(row.digest(&client));
            }
            self.forget(client, &gone);
        }
    }

    /// Notes what the client will never ask about again, if it has a row.
    fn acknowledge(&mut self, id: &RequestId) {
        let client = id.client;
        let Some(row) = self.rows.get_mut(&client) else { return };
        if row.acknowledged >= id.acknowledged {
            return;
        }
        self.digest = self.digest.wrapping_sub(row.digest(&client));
        row.acknowledged = id.acknowledged;
        self.digest = self.digest.wrapping_add(row.digest(&client));
        let gone = row.replies.take(|reply| reply.sequence.get() <= id.acknowledged);
        self.forget(client, &gone);
    }

    /// Settles the accounts for replies that a row no longer has.
    fn forget(&mut self, client: ClientId, gone: &Replies) {
        self.replies -= gone.len();
        for reply in gone.as_slice() {
            self.digest = self.digest.wrapping_sub(reply.digest(&client));
            if let Some(order) = reply.kept.order() {
                self.bodies.remove(&order);
                self.body_bytes -= reply.kept.body_cost();
            }
        }
    }

    /// Brings the bodies under their budget, the oldest going first.
    fn drop_oldest_bodies(&mut self) {
        while self.body_bytes > self.limits.body_bytes {
            let Some(&(order, (client, sequence))) = self.bodies.get_min() else { return };
            self.bodies.remove(&order);
            let row =
                self.rows.get_mut(&client).expect("the index of bodies names only rows that exist");
            let reply = row
                .replies
                .find_mut(sequence)
                .expect("the index of bodies names only kept replies");
            self.body_bytes -= reply.kept.body_cost();
            self.digest = self.digest.wrapping_sub(reply.digest(&client));
            reply.kept = reply.kept.without_body();
            self.digest = self.digest.wrapping_add(reply.digest(&client));
        }
    }

    /// Puts a row back that a snapshot held, its replies still to come.
    pub(crate) fn restore_row(&mut self, client: ClientId, row: Row) {
        self.digest = self.digest.wrapping_add(row.digest(&client));
        self.due.insert((row.due, client));
        self.rows.insert(client, row);
    }

    /// Puts a reply back; false when its row is absent or the reply contradicts it.
    pub(crate) fn restore_reply(&mut self, client: ClientId, reply: Reply) -> bool {
        let digest = reply.digest(&client);
        let (order, cost) = (reply.kept.order(), reply.kept.body_cost());
        let sequence = reply.sequence.get();
        let Some(row) = self.rows.get_mut(&client) else { return false };
        let above =
            row.replies.as_slice().last().map_or(row.acknowledged, |last| last.sequence.get());
        if sequence <= above
            || reply.expires > row.latest
            || row.replies.len() >= self.limits.replies_per_row
        {
            return false;
        }
        row.replies.insert(reply);
        self.replies += 1;
        self.digest = self.digest.wrapping_add(digest);
        match order {
            Some(order) => {
                self.body_bytes += cost;
                order < self.next_order && self.bodies.insert(order, (client, sequence)).is_none()
            }
            None => true,
        }
    }

    /// Sets the age of the next body, from a snapshot.
    pub(crate) fn restore_next_order(&mut self, next_order: u64) {
        self.next_order = next_order;
    }
}

impl Row {
    pub(crate) fn digest(&self, client: &ClientId) -> u128 {
        digest::row(&client.0, self.acknowledged, self.latest.0, self.due.0)
    }
}

fn body_cost(outcome: &Outcome) -> u64 {
    outcome.body().map_or(0, |body| body.cost() + BODY_OVERHEAD_BYTES)
}
