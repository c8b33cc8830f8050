//! Transactions within one shard.

use bytes::Bytes;
use proto::kv::{
    self, AppendOperation, Compare, DeleteOperation, GetOperation, Operation, PutOperation,
    Relation, TxnReply, TxnRequest, compare, forward_reply, operation, operation_reply, request,
    txn_reply,
};

use crate::{
    Error, KvClient, Outcome, Pair, Rejected, Written,
    calls::idempotent,
    kv::{Guard, check_key, check_value, garbled, guard_refused, no_such_lease},
};

/// Compares what keys hold, and executes one list of operations or the other, all of it or nothing.
/// All keys are in one shard: give them one `{tag}`.
///
/// ```no_run
/// # async fn example(client: flotilla_client::KvClient) -> Result<(), flotilla_client::Error> {
/// use flotilla_client::Txn;
/// let txn = Txn::new()
///     .when_version("{order}/stock", 7)
///     .put("{order}/stock", "2")
///     .put("{order}/sold", "1")
///     .otherwise(|other| other.get("{order}/stock"));
/// if !client.txn(txn).await?.succeeded {
///     // Somebody else was first.
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Txn {
    request: TxnRequest,
    /// What was given to [`Txn::otherwise`] was more than operations.
    misplaced: bool,
}

/// What came of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnDone {
    /// Whether what was compared held.
    pub succeeded: bool,
    /// What came of each operation, in order; none when it was executed at an earlier attempt and
    /// the server has dropped the replies since, to save space.
    pub replies: Option<Vec<OperationReply>>,
    /// The shard's revision of all that was changed; none: nothing was.
    pub mod_revision: Option<u64>,
}

/// What came of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationReply {
    /// Of a get.
    Got(Option<Pair>),
    /// Of a put.
    Written(Written),
    /// Of an append, with the value from before.
    Appended(Written, Bytes),
    /// Of a delete: what was there.
    Removed(Option<Pair>),
}

impl Txn {
    /// One that compares nothing and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only while the key has this version; 0: while it does not exist.
    #[must_use]
    pub fn when_version(self, key: impl Into<Bytes>, version: u64) -> Self {
        self.when(key, Relation::Equal, compare::Operand::Version(version))
    }

    /// Only while the key was last written at this revision; 0: while it does not exist.
    #[must_use]
    pub fn when_mod_revision(self, key: impl Into<Bytes>, revision: u64) -> Self {
        self.when(key, Relation::Equal, compare::Operand::ModRevision(revision))
    }

    /// Only while the key has this value.
    #[must_use]
    pub fn when_value(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.when(key, Relation::Equal, compare::Operand::Value(value.into()))
    }

    /// Only while the key exists.
    #[must_use]
    pub fn when_exists(self, key: impl Into<Bytes>) -> Self {
        self.when(key, Relation::Greater, compare::Operand::Version(0))
    }

    /// Only while this holds.
    #[must_use]
    pub fn when(
        mut self,
        key: impl Into<Bytes>,
        relation: Relation,
        operand: compare::Operand,
    ) -> Self {
        let (key, relation, operand) = (key.into(), relation.into(), Some(operand));
        self.request.compares.push(Compare { key, relation, operand });
        self
    }

    /// Reads a key.
    #[must_use]
    pub fn get(self, key: impl Into<Bytes>) -> Self {
        self.then(operation::Kind::Get(GetOperation { key: key.into() }))
    }

    /// Writes a key.
    #[must_use]
    pub fn put(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.put_leased(key, value, 0)
    }

    /// Writes a key that goes with a lease.
    #[must_use]
    pub fn put_leased(self, key: impl Into<Bytes>, value: impl Into<Bytes>, lease_id: u64) -> Self {
        let (key, value) = (key.into(), value.into());
        self.then(operation::Kind::Put(PutOperation { key, value, lease_id }))
    }

    /// Appends to a key's value.
    #[must_use]
    pub fn append(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.then(operation::Kind::Append(AppendOperation { key, value }))
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(self, key: impl Into<Bytes>) -> Self {
        self.then(operation::Kind::Delete(DeleteOperation { key: key.into() }))
    }

    /// What is done if what is compared does not hold: the operations that are added to the
    /// transaction given to `add`, which compares nothing and has no guard of its own.
    #[must_use]
    pub fn otherwise(mut self, add: impl FnOnce(Self) -> Self) -> Self {
        let TxnRequest { compares, then, otherwise, guard, .. } = add(Self::new()).request;
        self.misplaced |= !compares.is_empty() || !otherwise.is_empty() || guard.is_some();
        self.request.otherwise.extend(then);
        self
    }

    /// Only while a lock is held.
    #[must_use]
    pub fn guarded(mut self, guard: &Guard) -> Self {
        self.request.guard = Some(guard.to_wire());
        self
    }

    fn then(mut self, kind: operation::Kind) -> Self {
        self.request.then.push(Operation { kind: Some(kind) });
        self
    }

    /// The first key that it names.
    fn key(&self) -> Option<Bytes> {
        let of_compares = self.request.compares.first().map(|compare| compare.key.clone());
        let lists = self.request.then.iter().chain(&self.request.otherwise);
        of_compares.or_else(|| lists.filter_map(key_of).next().cloned())
    }

    fn check(&self) -> Result<Bytes, Rejected> {
        if self.misplaced {
            let why = "what a transaction does otherwise has operations only";
            return Err(Rejected::Invalid(why.to_owned()));
        }
        let lists = self.request.then.iter().chain(&self.request.otherwise);
        for operation in lists.clone() {
            if let Some(operation::Kind::Put(PutOperation { value, .. }))
            | Some(operation::Kind::Append(AppendOperation { value, .. })) = &operation.kind
            {
                check_value(value)?;
            }
        }
        let compared = self.request.compares.iter().map(|compare| &compare.key);
        for key in compared.chain(lists.filter_map(key_of)) {
            check_key(key)?;
        }
        self.key().ok_or_else(|| Rejected::Invalid("the transaction names no key".to_owned()))
    }

    fn changes_something(&self) -> bool {
        let mut lists = self.request.then.iter().chain(&self.request.otherwise);
        lists.any(|operation| !matches!(operation.kind, Some(operation::Kind::Get(_))))
    }
}

fn key_of(operation: &Operation) -> Option<&Bytes> {
    Some(match operation.kind.as_ref()? {
        operation::Kind::Get(GetOperation { key })
        | operation::Kind::Put(PutOperation { key, .. })
        | operation::Kind::Append(AppendOperation { key, .. })
        | operation::Kind::Delete(DeleteOperation { key }) => key,
    })
}

impl KvClient {
    /// Executes a transaction.
    ///
    /// # Errors
    /// [`Error`] says whether it may have been executed; [`Rejected::Refused`] when the lock that
    /// guards it is not held any more, or a lease has ended.
    pub async fn txn(&self, txn: Txn) -> Result<TxnDone, Error> {
        let reply = self.txn_raw(txn).await.into_result()?;
        let dropped = reply.header.is_some_and(|header| header.body_dropped);
        match reply.outcome {
            Some(txn_reply::Outcome::Done(done)) => {
                let replies = done.replies.into_iter().map(operation_reply);
                let replies = replies.collect::<Option<Vec<_>>>();
                Ok(TxnDone {
                    succeeded: done.succeeded,
                    replies: if dropped { None } else { replies },
                    mod_revision: Some(done.mod_revision).filter(|revision| *revision > 0),
                })
            }
            Some(txn_reply::Outcome::GuardRefused(refused)) => Err(guard_refused(refused).into()),
            Some(txn_reply::Outcome::NoSuchLease(lease)) => Err(no_such_lease(lease).into()),
            Some(txn_reply::Outcome::TooLarge(too_large)) => Err(Rejected::Limit(format!(
                "{} bytes would be too many; the limit is {}",
                too_large.bytes, too_large.limit
            ))
            .into()),
            None => Err(garbled("a Txn without an outcome")),
        }
    }

    /// Executes a transaction, with all that the reply says.
    pub async fn txn_raw(&self, txn: Txn) -> Outcome<TxnReply> {
        let key = match txn.check() {
            Ok(key) => key,
            Err(rejected) => return Outcome::Rejected(rejected),
        };
        let pick = |kind| match kind {
            forward_reply::Kind::Txn(reply) => Some(reply),
            _ => None,
        };
        if !txn.changes_something() && txn.request.guard.is_none() {
            let kind = request::Kind::Txn(txn.request);
            return match idempotent(self.call(self.patience(), kind, pick).await) {
                Ok(reply) => Outcome::Done(reply),
                Err(Error::Rejected(rejected)) => Outcome::Rejected(rejected),
                Err(Error::Unknown(unknown)) => Outcome::Unknown(unknown),
            };
        }
        let build = |id| request::Kind::Txn(TxnRequest { id: Some(id), ..txn.request });
        self.mutate(&key, build, pick, |reply: &TxnReply| reply.header).await
    }
}

fn operation_reply(reply: kv::OperationReply) -> Option<OperationReply> {
    Some(match reply.kind? {
        operation_reply::Kind::Get(got) => OperationReply::Got(got.pair.map(Pair::from)),
        operation_reply::Kind::Put(written) => OperationReply::Written(written.into()),
        operation_reply::Kind::Append(appended) => {
            let written = appended.written.unwrap_or_default().into();
            OperationReply::Appended(written, appended.old_value)
        }
        operation_reply::Kind::Delete(deleted) => {
            OperationReply::Removed(deleted.removed.map(Pair::from))
        }
    })
}
