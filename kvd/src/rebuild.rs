//! One shard while it is read from a snapshot: what its records may say, and in which order.
//!
//! Decides which records fit together. What a snapshot leaves out, since it follows from something
//! else, is made again here: what is attached to each lease, and what each change led to.

use std::{collections::BTreeMap, num::NonZeroU64, sync::Arc};

use bytes::Bytes;
use proto::shard_of;
use raftd::codec::{Malformed, Reader};

use crate::{
    capture::change_flag,
    command::{ClientId, LeaseId, Token},
    kept,
    lease::Lease,
    limits::{
        KEY_BYTES_MAX, KEYS_PER_LEASE_MAX, LEASE_TTL_MS_MAX, LEASES_PER_SHARD_MAX,
        LOCK_OWNER_BYTES_MAX, LOCKS_PER_LEASE_MAX, LOCKS_PER_SHARD_MAX, WAITERS_PER_LOCK_MAX,
    },
    outcome::{Key, Outcome, Pair, Revision, ShardTime, Waiter},
    reply::{Kept, Replies, Reply},
    restore::{Wrong, wrong},
    session::Row,
    shard::Shard,
    view::Change,
};

/// The parts of a shard in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    Counters,
    Leases,
    Locks,
    Pairs,
    Changes,
    Rows,
}

/// A change as its record tells it.
pub(crate) struct Told {
    revision: Revision,
    key: Key,
    pub(crate) previous: Option<Pair>,
    is_there: bool,
    expired: bool,
}

/// A kept reply as its record tells it.
pub(crate) struct ReplyTold {
    sequence: NonZeroU64,
    expires: ShardTime,
    outcome: Outcome,
    /// The age of its body; 0: it has none, or it was dropped.
    order: u64,
    dropped: bool,
}

impl ReplyTold {
    /// Whether a body follows, if only an empty one.
    pub(crate) fn has_body(&self) -> bool {
        self.outcome.body().is_some()
    }

    pub(crate) fn set_body(&mut self, body: Bytes) -> Result<(), Wrong> {
        if (self.order > 0) == body.is_empty() || self.dropped && self.order > 0 {
            return wrong("a body that contradicts its order");
        }
        Ok(kept::set_body(&mut self.outcome, body)?)
    }
}

/// A shard that is being read.
pub(crate) struct Rebuild {
    pub(crate) shard: Shard,
    /// How many shards there are.
    shards: u32,
    section: Section,
    last_lock: Option<Key>,
    last_key: Option<Key>,
    changes: Vec<Told>,
    pub(crate) last_client: Option<ClientId>,
}

impl Rebuild {
    pub(crate) fn new(shard: Shard, shards: u32) -> Self {
        let section = Section::Counters;
        let (last_lock, last_key, last_client) = (None, None, None);
        Self { shard, shards, section, last_lock, last_key, changes: Vec::new(), last_client }
    }

    /// Goes on with a shard that is coming from another group, behind what is there.
    pub(crate) fn resume(shard: Shard, shards: u32) -> Self {
        let last_lock = shard.locks.map().get_max().map(|(name, _)| name.clone());
        let last_key = shard.pairs.map().get_max().map(|(key, _)| key.clone());
        let last_client = shard.sessions.rows().get_max().map(|(client, _)| *client);
        Self { last_lock, last_key, last_client, ..Self::new(shard, shards) }
    }

    /// Notes that a record of this part comes next.
    pub(crate) fn enter(&mut self, section: Section) -> Result<(), Wrong> {
        if section < self.section {
            return wrong(format!("a record of {section:?} behind {:?}", self.section));
        }
        self.section = section;
        Ok(())
    }

    pub(crate) fn lease(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        self.enter(Section::Leases)?;
        let id = kept::read_lease(reader)?;
        let ttl_ms = reader.number("time to live")?;
        let renewal = reader.number("renewal")?;
        let deadline = ShardTime(reader.number("deadline")?);
        let own = match reader.bytes("lock of the lease")? {
            [] => None,
            name => Some(self.name(name)?),
        };
        let granted = Revision(id.get() >> LeaseId::SHARD_BITS);
        let latest = self.shard.leases.map().get_max().map(|(id, _)| *id);
        if latest.is_some_and(|latest| latest >= id)
            || id.shard() != self.shard.number
            || granted > self.shard.revision
            || ttl_ms > LEASE_TTL_MS_MAX
            || self.shard.leases.len() >= LEASES_PER_SHARD_MAX
        {
            return wrong(format!("an impossible lease {id}"));
        }
        self.shard.leases.insert(id, Lease { renewal, ..Lease::new(ttl_ms, deadline, own) });
        Ok(())
    }

    pub(crate) fn lock(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        self.enter(Section::Locks)?;
        let name = reader.bytes("lock")?;
        let name = self.name(name)?;
        let lease = kept::read_lease(reader)?;
        let token = Token(reader.number("token")?);
        let owner = read_owner(reader)?;
        if self.last_lock.as_ref().is_some_and(|last| *last >= name)
            || token.0 == 0
            || token.0 > self.shard.revision.0
            || self.shard.locks.len() >= LOCKS_PER_SHARD_MAX
        {
            return wrong("an impossible lock");
        }
        self.join(lease, &name, None)?;
        self.shard.locks.insert(&name, lease, token, owner);
        self.last_lock = Some(name);
        Ok(())
    }

    pub(crate) fn waiter(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        self.enter(Section::Locks)?;
        let arrival = Revision(reader.number("arrival")?);
        let lease = kept::read_lease(reader)?;
        let until = ShardTime(reader.number("end of the wait")?);
        let owner = read_owner(reader)?;
        let Some(name) = self.last_lock.clone() else { return wrong("a waiter before its lock") };
        let waiting = self.shard.locks.get(&name).map_or(0, |lock| lock.waiters.len());
        if waiting >= WAITERS_PER_LOCK_MAX || arrival > self.shard.revision || arrival.0 == 0 {
            return wrong("an impossible waiter");
        }
        self.join(lease, &name, Some(arrival))?;
        if self.shard.locks.enqueue(&name, arrival, Waiter { lease, owner, until }) {
            Ok(())
        } else {
            wrong("waiters out of order")
        }
    }

    /// Notes at a lease that it holds a lock or waits for it.
    fn join(&mut self, id: LeaseId, name: &Key, waits: Option<Revision>) -> Result<(), Wrong> {
        let Some(lease) = self.shard.leases.get(id) else {
            return wrong(format!("a lock under lease {id}, which is not there"));
        };
        if lease.locks.contains_key(name) || lease.locks.len() >= LOCKS_PER_LEASE_MAX {
            return wrong(format!("lease {id} with a lock twice, or with too many"));
        }
        self.shard.leases.set_lock(id, name, waits);
        Ok(())
    }

    /// Reads a pair as far as its value.
    pub(crate) fn pair(&mut self, reader: &mut Reader<'_>) -> Result<(Key, Pair), Wrong> {
        self.enter(Section::Pairs)?;
        let key = reader.bytes("key")?;
        let key = self.name(key)?;
        let pair = kept::read_pair_numbers(reader)?;
        if self.last_key.as_ref().is_some_and(|last| *last >= key) {
            return wrong("keys out of order");
        }
        if !is_possible(&pair, self.shard.revision) {
            return wrong("a pair with impossible revisions");
        }
        if let Some(id) = pair.lease {
            let partial = self.shard.custody.is_partial();
            let leases = &mut self.shard.leases;
            match leases.get(id) {
                Some(_) if partial => leases.attach(id, &key),
                Some(lease) if lease.is_waiting() || lease.keys.len() >= KEYS_PER_LEASE_MAX => {
                    return wrong(format!("a pair under lease {id}, which can't have it"));
                }
                Some(_) => leases.attach(id, &key),
                None if partial => leases.expect(id, &key),
                None => return wrong(format!("a pair under lease {id}, which is not there")),
            }
        }
        self.last_key = Some(key.clone());
        Ok((key, pair))
    }

    /// Reads a change as far as the value from before.
    pub(crate) fn change(&mut self, reader: &mut Reader<'_>) -> Result<Told, Wrong> {
        self.enter(Section::Changes)?;
        let revision = Revision(reader.number("revision")?);
        let flags = reader.byte("change flags")?;
        let key = reader.bytes("key")?;
        let key = self.name(key)?;
        let is = |flag: u8| flags & flag != 0;
        let known = change_flag::PREVIOUS | change_flag::CURRENT | change_flag::EXPIRED;
        let (was_there, is_there) = (is(change_flag::PREVIOUS), is(change_flag::CURRENT));
        let last = self.changes.last().map(|last| (last.revision, &last.key));
        if flags & !known != 0
            || !(was_there || is_there)
            || is(change_flag::EXPIRED) && is_there
            || revision.0 == 0
            || revision > self.shard.revision
            || last.is_some_and(|last| last >= (revision, &key))
        {
            return wrong("an impossible change");
        }
        let previous = was_there.then(|| kept::read_pair_numbers(reader)).transpose()?;
        if previous.as_ref().is_some_and(|pair| !is_possible(pair, Revision(revision.0 - 1))) {
            return wrong("a change from what was not there yet");
        }
        Ok(Told { revision, key, previous, is_there, expired: is(change_flag::EXPIRED) })
    }

    pub(crate) fn told(&mut self, change: Told) {
        self.changes.push(change);
    }

    pub(crate) fn row(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        self.enter(Section::Rows)?;
        let client = ClientId(reader.array("client id")?);
        let row = Row {
            acknowledged: reader.number("acknowledged sequence")?,
            latest: ShardTime(reader.number("latest expiry")?),
            due: ShardTime(reader.number("due time")?),
            replies: Replies::EMPTY,
        };
        if self.last_client.is_some_and(|last| last >= client) {
            return wrong("rows out of order");
        }
        let sessions = &mut self.shard.sessions;
        if row.due > row.latest || sessions.rows().len() >= sessions.limits().rows {
            return wrong("an impossible row");
        }
        sessions.restore_row(client, row);
        self.last_client = Some(client);
        Ok(())
    }

    /// Reads a reply as far as its body.
    pub(crate) fn reply(&mut self, reader: &mut Reader<'_>) -> Result<ReplyTold, Wrong> {
        let sequence = reader.number("sequence")?;
        let Some(sequence) = NonZeroU64::new(sequence) else { return wrong("a reply to nothing") };
        let expires = ShardTime(reader.number("expiry")?);
        let outcome = kept::read_outcome(reader)?;
        let (mut order, mut dropped) = (0, false);
        if outcome.body().is_some() {
            order = reader.number("body order")?;
            dropped = match reader.byte("body flag")? {
                0 => false,
                1 => true,
                _ => return wrong("a body flag that is neither 0 nor 1"),
            };
        }
        Ok(ReplyTold { sequence, expires, outcome, order, dropped })
    }

    /// Puts a reply that is whole into the last row.
    pub(crate) fn replied(&mut self, told: ReplyTold) -> Result<(), Wrong> {
        let ReplyTold { sequence, expires, outcome, order, dropped } = told;
        let Some(client) = self.last_client else { return wrong("a reply before its row") };
        let kept = Kept::new(outcome, order, dropped);
        if self.shard.sessions.restore_reply(client, Reply { sequence, expires, kept }) {
            Ok(())
        } else {
            wrong("a reply that contradicts its row")
        }
    }

    /// The whole shard.
    pub(crate) fn finish(mut self) -> Result<Shard, Wrong> {
        let unheld = |lease: &Lease| match &lease.own {
            None => false,
            Some(own) => {
                !lease.locks.contains_key(own) || lease.is_waiting() && lease.locks.len() > 1
            }
        };
        let whole = !self.shard.custody.is_partial();
        if whole && self.shard.leases.map().values().any(unheld) {
            return wrong("a lease of a lock that is not its");
        }
        self.link()?;
        Ok(self.shard)
    }

    /// Finds what each change led to, from the last to the first, and puts them into the log.
    fn link(&mut self) -> Result<(), Wrong> {
        let mut since: BTreeMap<Key, Option<Arc<Pair>>> = BTreeMap::new();
        let mut linked: Vec<(Revision, Change)> = Vec::new();
        for told in std::mem::take(&mut self.changes).into_iter().rev() {
            let Told { revision, key, previous, is_there, expired } = told;
            let current = match since.get(&key) {
                Some(current) => current.clone(),
                None => self.shard.pairs.map().get(&key).cloned(),
            };
            let written = current.as_ref().map(|pair| pair.mod_revision);
            if is_there != written.is_some() || written.is_some_and(|at| at != revision) {
                return wrong("changes that do not follow on one another");
            }
            let previous = previous.map(Arc::new);
            since.insert(key.clone(), previous.clone());
            let change = Change { key, previous, current, expired };
            linked.push((revision, change));
        }
        for (revision, change) in linked.into_iter().rev() {
            let digests = self.shard.pairs.digests(&change);
            self.shard.changes.push(revision, change, digests);
        }
        Ok(())
    }

    /// A name that belongs to this shard.
    pub(crate) fn name(&self, name: &[u8]) -> Result<Key, Wrong> {
        if name.is_empty() || name.len() > KEY_BYTES_MAX {
            return wrong(format!("a name of {} bytes", name.len()));
        }
        if shard_of(name, self.shards) != self.shard.number {
            return wrong("a name in the wrong shard");
        }
        Ok(Key::from(name))
    }
}

pub(crate) fn is_possible(pair: &Pair, latest: Revision) -> bool {
    pair.version.0 > 0
        && pair.create_revision.0 > 0
        && pair.create_revision <= pair.mod_revision
        && pair.mod_revision <= latest
}

fn read_owner(reader: &mut Reader<'_>) -> Result<Bytes, Wrong> {
    let owner = reader.bytes("owner")?;
    if owner.len() > LOCK_OWNER_BYTES_MAX {
        return Err(Malformed("owner").into());
    }
    Ok(Bytes::copy_from_slice(owner))
}
