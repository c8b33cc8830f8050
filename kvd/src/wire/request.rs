//! From the wire to the machine: what a request asks.
//!
//! What comes from outside is checked here with this member's settings, before it is proposed.

use proto::{
    kv::{self as pb, compare, key_range, operation, put_request, request},
    lock,
    raft::{Reason, Refusal as Refused},
};
use raftd::edge::never;

use crate::{
    command::{
        Action, Bounds, ClientId, Command, Compare, Condition, Guard, LeaseId, Operand, Operation,
        Relation, RequestId, Tenure, Token, Txn,
    },
    limits::{PAGE_BYTES_MAX, PairLimits, WATCH_RANGES_MAX},
    outcome::{Query, Revision, Scope, ShardTime, Version},
    range::Range,
    view::PageRequest,
    wire::{Ask, Look, Verb, invalid, refused},
};

/// What this member's settings say about requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// How many shards there are.
    pub(crate) shards: u32,
    pub(crate) limits: PairLimits,
    /// How many bytes the group may store.
    pub(crate) stored_bytes_max: u64,
}

impl Terms {
    fn check_key(&self, key: &[u8]) -> Result<(), Refused> {
        self.limits.check_key(key).map_err(|broken| invalid(broken.to_string()))
    }

    fn command(
        &self,
        id: Option<&pb::RequestId>,
        guard: Option<&pb::Guard>,
        operation: Operation<'_>,
        verb: Verb,
    ) -> Result<Ask, Refused> {
        let id = id.map(|id| request_id(id, self.shards)).transpose()?;
        let guard = guard.map(|guard| Guard { lock: &guard.lock, token: Token(guard.token) });
        let bounds = Bounds {
            value_bytes_max: self.limits.value_bytes_max as u64,
            stored_bytes_max: self.stored_bytes_max,
        };
        let command = Command { shards: self.shards, id, guard, bounds, operation };
        command.check(&self.limits).map_err(|refusal| refused(&refusal))?;
        command.shard().map_err(|refusal| refused(&refusal))?;
        Ok(Ask::Command { command: command.encode(), verb })
    }
}

/// Checks a request and says what it asks.
pub(crate) fn ask(kind: &request::Kind, terms: &Terms) -> Result<Ask, Refused> {
    match kind {
        request::Kind::Get(get) => ask_get(get, terms),
        request::Kind::Scan(scan) => ask_scan(scan, terms),
        request::Kind::Time(time) => {
            terms.check_key(&time.key)?;
            Ok(Ask::Time(Query::Time(time.key.clone())))
        }
        request::Kind::Put(put) => {
            let operation = Operation::Put {
                key: &put.key,
                value: &put.value,
                condition: condition(put.condition),
                lease: LeaseId::new(put.lease_id),
            };
            terms.command(put.id.as_ref(), put.guard.as_ref(), operation, Verb::Put)
        }
        request::Kind::Append(append) => {
            let operation = Operation::Append { key: &append.key, value: &append.value };
            terms.command(append.id.as_ref(), append.guard.as_ref(), operation, Verb::Append)
        }
        request::Kind::Delete(delete) => {
            let operation = Operation::Delete { key: &delete.key };
            terms.command(delete.id.as_ref(), delete.guard.as_ref(), operation, Verb::Delete)
        }
        request::Kind::Txn(txn) => ask_txn(txn, terms),
        request::Kind::Compact(compact) => {
            let revision = Some(Revision(compact.revision)).filter(|revision| revision.0 > 0);
            let operation = Operation::Compact { shard: compact.shard, revision };
            terms.command(None, None, operation, Verb::Compact)
        }
        request::Kind::Grant(grant) => {
            let operation = Operation::Grant { key: &grant.key, ttl_ms: grant.ttl_ms };
            terms.command(grant.id.as_ref(), None, operation, Verb::Grant)
        }
        request::Kind::KeepAlive(keep) => Ok(Ask::KeepAlive(lease(keep.lease_id, terms)?)),
        request::Kind::Revoke(revoke) => {
            let operation = Operation::Revoke { lease: lease(revoke.lease_id, terms)? };
            terms.command(None, None, operation, Verb::Revoke)
        }
        request::Kind::TimeToLive(asked) => {
            let (lease, attached) = (lease(asked.lease_id, terms)?, asked.keys);
            Ok(Ask::Query { query: Query::Lease { lease, attached }, stale: false })
        }
    }
}

/// Checks a request about a lock and says what it asks.
pub(crate) fn ask_lock(kind: &lock::forward_request::Kind, terms: &Terms) -> Result<Ask, Refused> {
    use lock::{acquire_request::Lease, forward_request::Kind};
    match kind {
        Kind::Acquire(acquire) => {
            let tenure = match acquire.lease {
                Some(Lease::TtlMs(ttl_ms)) => Tenure::Own { ttl_ms },
                Some(Lease::LeaseId(id)) => Tenure::Lease(lease(id, terms)?),
                None => return Err(invalid("give ttl_ms or lease_id".to_owned())),
            };
            let (name, owner, wait_ms) = (&acquire.name[..], &acquire.owner[..], acquire.wait_ms);
            let operation = Operation::Acquire { name, tenure, wait_ms, owner };
            terms.command(acquire.id.as_ref(), None, operation, Verb::Acquire)
        }
        Kind::KeepAlive(keep) => Ok(Ask::KeepAlive(lease(keep.lease_id, terms)?)),
        Kind::Release(release) => {
            let lease = lease(release.lease_id, terms)?;
            let operation = Operation::Release { name: &release.name, lease };
            terms.command(None, None, operation, Verb::Release)
        }
        Kind::Inspect(inspect) => {
            terms.check_key(&inspect.name)?;
            Ok(Ask::Query { query: Query::Lock(inspect.name.clone()), stale: false })
        }
    }
}

/// The ranges of a watch.
pub(crate) fn watched(ranges: &[pb::KeyRange], terms: &Terms) -> Result<Vec<Range>, Refused> {
    if ranges.is_empty() {
        return Err(invalid(
            "a watch names no range; name one with an empty prefix for all".into(),
        ));
    }
    if ranges.len() > WATCH_RANGES_MAX {
        let count = ranges.len();
        let message =
            format!("{count} ranges are watched; the limit watch_ranges_max is {WATCH_RANGES_MAX}");
        return Err(invalid(message));
    }
    ranges.iter().map(|range| self::range(Some(range), terms)).collect()
}

fn ask_get(get: &pb::GetRequest, terms: &Terms) -> Result<Ask, Refused> {
    terms.check_key(&get.key)?;
    let key = get.key.clone();
    if get.revision == 0 {
        return Ok(Ask::Query { query: Query::Get(key), stale: get.stale });
    }
    let scope = Scope::Ranges(vec![Range::Key(key.clone())]);
    let look = Look::GetAt { key, revision: Revision(get.revision) };
    Ok(Ask::View { scope, look, stale: get.stale })
}

fn ask_scan(scan: &pb::ScanRequest, terms: &Terms) -> Result<Ask, Refused> {
    let range = range(scan.range.as_ref(), terms)?;
    let page = PageRequest {
        limit: scan.limit as usize,
        bytes_max: share_of_page(scan.shards.len(), terms.shards),
        reverse: scan.reverse,
        keys_only: scan.keys_only,
        token: Some(scan.page_token.clone()).filter(|token| !token.is_empty()),
        revision: Some(Revision(scan.revision)).filter(|revision| revision.0 > 0),
    };
    let with_shards = !scan.shards.is_empty();
    let scope = match with_shards {
        true => Scope::Served(scan.shards.clone()),
        false => Scope::Ranges(vec![range.clone()]),
    };
    let (count_only, with_revisions) = (scan.count_only, scan.with_revisions);
    let look = Look::Scan { range, page, count_only, with_revisions, with_shards };
    Ok(Ask::View { scope, look, stale: scan.stale })
}

/// How many bytes a page may have that is of so many shards, to be put together with those of the
/// others: somewhat more than its share, since shards are not equally full. 0: there are no others.
fn share_of_page(named: usize, shards: u32) -> usize {
    let share = 2 * PAGE_BYTES_MAX * named / shards as usize;
    if named == 0 { 0 } else { share.clamp(PAGE_BYTES_MAX / 16, PAGE_BYTES_MAX) }
}

fn range(range: Option<&pb::KeyRange>, terms: &Terms) -> Result<Range, Refused> {
    let Some(kind) = range.and_then(|range| range.kind.as_ref()) else { return Ok(Range::all()) };
    let within = |bound: &[u8]| -> Result<(), Refused> {
        if bound.is_empty() { Ok(()) } else { terms.check_key(bound) }
    };
    match kind {
        key_range::Kind::Key(key) => {
            terms.check_key(key)?;
            Ok(Range::Key(key.clone()))
        }
        key_range::Kind::Prefix(prefix) => {
            within(prefix)?;
            Ok(Range::Prefix(prefix.clone()))
        }
        key_range::Kind::Interval(interval) => {
            within(&interval.start)?;
            within(&interval.end)?;
            let (start, end) = (interval.start.clone(), interval.end.clone());
            Ok(Range::Interval { start, end })
        }
    }
}

fn ask_txn(txn: &pb::TxnRequest, terms: &Terms) -> Result<Ask, Refused> {
    let operation = Txn {
        compares: txn.compares.iter().map(compare).collect::<Result<_, _>>()?,
        then: txn.then.iter().map(action).collect::<Result<_, _>>()?,
        otherwise: txn.otherwise.iter().map(action).collect::<Result<_, _>>()?,
    };
    let reads_only = txn.guard.is_none() && !operation.actions().any(Action::mutates);
    let (id, guard) = (txn.id.as_ref(), txn.guard.as_ref());
    let ask = terms.command(id, guard, Operation::Txn(operation), Verb::Txn)?;
    match ask {
        Ask::Command { command, .. } if reads_only => {
            Ok(Ask::Query { query: Query::Txn(command), stale: false })
        }
        ask => Ok(ask),
    }
}

fn compare(compare: &pb::Compare) -> Result<Compare<'_>, Refused> {
    let relation = match compare.relation() {
        pb::Relation::Equal => Relation::Equal,
        pb::Relation::NotEqual => Relation::NotEqual,
        pb::Relation::Less => Relation::Less,
        pb::Relation::Greater => Relation::Greater,
        pb::Relation::Unspecified => {
            return Err(invalid("a compare has no relation that is known".to_owned()));
        }
    };
    let operand = match &compare.operand {
        Some(compare::Operand::Version(version)) => Operand::Version(Version(*version)),
        Some(compare::Operand::CreateRevision(at)) => Operand::CreateRevision(Revision(*at)),
        Some(compare::Operand::ModRevision(at)) => Operand::ModRevision(Revision(*at)),
        Some(compare::Operand::Value(value)) => Operand::Value(value),
        Some(compare::Operand::LeaseId(lease)) => Operand::Lease(LeaseId::new(*lease)),
        None => return Err(invalid("a compare has nothing to compare with".to_owned())),
    };
    Ok(Compare { key: &compare.key, relation, operand })
}

fn action(operation: &pb::Operation) -> Result<Action<'_>, Refused> {
    Ok(match &operation.kind {
        Some(operation::Kind::Get(get)) => Action::Get { key: &get.key },
        Some(operation::Kind::Put(put)) => {
            let lease = LeaseId::new(put.lease_id);
            Action::Put { key: &put.key, value: &put.value, lease }
        }
        Some(operation::Kind::Append(append)) => {
            Action::Append { key: &append.key, value: &append.value }
        }
        Some(operation::Kind::Delete(delete)) => Action::Delete { key: &delete.key },
        None => return Err(invalid("an operation is of no kind that is known".to_owned())),
    })
}

fn lease(id: u64, terms: &Terms) -> Result<LeaseId, Refused> {
    let lease = LeaseId::new(id).filter(|lease| lease.shard() < terms.shards);
    lease.ok_or_else(|| invalid(format!("lease_id {id} is none that a Grant gives")))
}

fn condition(condition: Option<put_request::Condition>) -> Condition {
    match condition {
        None => Condition::Always,
        Some(put_request::Condition::ExpectedVersion(version)) => {
            Condition::Version(Version(version))
        }
        Some(put_request::Condition::ExpectedModRevision(revision)) => {
            Condition::ModRevision(Revision(revision))
        }
    }
}

fn request_id(id: &pb::RequestId, shards: u32) -> Result<RequestId, Refused> {
    let client: [u8; 16] = id.client[..].try_into().map_err(|_| {
        invalid(format!("id.client has {} bytes; it must have 16", id.client.len()))
    })?;
    if id.sequence == 0 {
        return Err(invalid("id.sequence is 0; sequences count from 1".to_owned()));
    }
    if id.acknowledged >= id.sequence {
        return Err(invalid(format!(
            "id.acknowledged is {}, not below id.sequence, which is {}",
            id.acknowledged, id.sequence
        )));
    }
    if id.shards != 0 && id.shards != shards {
        let message = format!("there are {shards} shards; the client counts in {}", id.shards);
        return Err(never(Reason::OtherShards, message));
    }
    Ok(RequestId {
        client: ClientId(client),
        sequence: id.sequence,
        acknowledged: id.acknowledged,
        expires: ShardTime(id.expires_ms),
    })
}
