//! Pages of pairs, keys as they were, and the end of the past.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::kv::{
    CompactRequest, GetRequest, KeyInterval, ScanReply, ScanRequest, forward_reply, key_range,
    request,
};

use crate::{
    Error, KvClient, Pair,
    calls::idempotent,
    kv::{check_key, garbled},
};

/// Some keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// This one.
    One(Bytes),
    /// Those that begin with this; empty: all.
    Prefix(Bytes),
    /// Those from the first to before the last; either may be empty, for none.
    Interval(Bytes, Bytes),
}

impl Keys {
    /// All keys.
    pub fn all() -> Self {
        Self::Prefix(Bytes::new())
    }

    pub(crate) fn to_wire(&self) -> proto::kv::KeyRange {
        let kind = match self.clone() {
            Self::One(key) => key_range::Kind::Key(key),
            Self::Prefix(prefix) => key_range::Kind::Prefix(prefix),
            Self::Interval(start, end) => key_range::Kind::Interval(KeyInterval { start, end }),
        };
        proto::kv::KeyRange { kind: Some(kind) }
    }
}

/// What is wanted of a scan beside its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// At most so many pairs in all; none: all of them.
    pub limit: Option<u64>,
    /// Leave the values out.
    pub keys_only: bool,
    /// From the last key to the first.
    pub reverse: bool,
    /// As of this revision, for keys of one shard; none: now.
    pub revision: Option<u64>,
    /// From whatever the member that is asked knows, however old.
    pub stale: bool,
    /// Tell with the first page where a watch goes on that misses nothing: [`Scan::position`].
    pub position: bool,
}

/// A scan: pages are fetched as they are needed. Each page is one state of the store; the next is a
/// later one, unless a revision is named.
#[derive(Debug)]
pub struct Scan {
    client: KvClient,
    keys: Keys,
    options: ScanOptions,
    token: Bytes,
    /// How many pairs were told.
    told: u64,
    position: Option<BTreeMap<u32, u64>>,
    over: bool,
}

impl KvClient {
    /// Reads a key as it was after a revision of its shard.
    ///
    /// # Errors
    /// [`crate::Rejected::OutOfRange`]: the shard's past begins later, or it has not got that far.
    pub async fn get_at(
        &self,
        key: impl Into<Bytes>,
        revision: u64,
    ) -> Result<Option<Pair>, Error> {
        Ok(self.get_of(key.into(), revision, false).await?.map(Pair::from))
    }

    /// Reads a key from whatever the member that is asked knows, however old.
    ///
    /// # Errors
    /// As [`KvClient::get`].
    pub async fn get_stale(&self, key: impl Into<Bytes>) -> Result<Option<Pair>, Error> {
        Ok(self.get_of(key.into(), 0, true).await?.map(Pair::from))
    }

    async fn get_of(
        &self,
        key: Bytes,
        revision: u64,
        stale: bool,
    ) -> Result<Option<proto::kv::Pair>, Error> {
        check_key(&key)?;
        let get = request::Kind::Get(GetRequest { key, revision, stale });
        let pick = |kind| match kind {
            forward_reply::Kind::Get(reply) => Some(reply),
            _ => None,
        };
        Ok(idempotent(self.call(self.patience(), get, pick).await)?.pair)
    }

    /// Reads pairs in the order of their keys.
    pub fn scan(&self, keys: Keys, options: ScanOptions) -> Scan {
        let over = options.limit == Some(0);
        let (client, token) = (self.clone(), Bytes::new());
        Scan { client, keys, options, token, told: 0, position: None, over }
    }

    /// How many shards the cluster has.
    ///
    /// # Errors
    /// As [`KvClient::get`].
    pub async fn shards(&self) -> Result<u32, Error> {
        // Any key's shard knows.
        let key = Bytes::from_static(b"0");
        let get = request::Kind::Get(GetRequest { key, ..GetRequest::default() });
        let pick = |kind| match kind {
            forward_reply::Kind::Get(reply) => Some(reply),
            _ => None,
        };
        let reply = idempotent(self.call(self.patience(), get, pick).await)?;
        Ok(reply.header.map_or(0, |header| header.shards))
    }

    /// How many pairs there are.
    ///
    /// # Errors
    /// As [`KvClient::get`].
    pub async fn count(&self, keys: Keys) -> Result<u64, Error> {
        let request =
            ScanRequest { range: Some(keys.to_wire()), count_only: true, ..ScanRequest::default() };
        Ok(self.scan_raw(request).await?.count)
    }

    /// Reads one page, with all that the reply says.
    ///
    /// # Errors
    /// As [`KvClient::get`].
    pub async fn scan_raw(&self, scan: ScanRequest) -> Result<ScanReply, Error> {
        let scan = request::Kind::Scan(scan);
        let pick = |kind| match kind {
            forward_reply::Kind::Scan(reply) => Some(reply),
            _ => None,
        };
        idempotent(self.call(self.patience(), scan, pick).await)
    }

    /// Forgets the changes of a shard up to a revision; none: all there are. Reads and watches from
    /// earlier revisions end. Up to where they are forgotten now.
    ///
    /// # Errors
    /// As [`KvClient::get`], since nothing is lost by asking again.
    pub async fn compact(&self, shard: u32, revision: Option<u64>) -> Result<u64, Error> {
        let revision = revision.unwrap_or(0);
        let compact = request::Kind::Compact(CompactRequest { shard, revision });
        let pick = |kind| match kind {
            forward_reply::Kind::Compact(reply) => Some(reply),
            _ => None,
        };
        Ok(idempotent(self.call(self.patience(), compact, pick).await)?.compacted_revision)
    }
}

impl Scan {
    /// Where the shards stood at the first page, if that was asked for and has come: what
    /// [`crate::WatchOptions::after`] goes on from, so that nothing is missed that changes while the
    /// pages are read.
    pub fn position(&self) -> Option<&BTreeMap<u32, u64>> {
        self.position.as_ref()
    }

    /// The next page; none behind the last.
    ///
    /// # Errors
    /// As [`KvClient::get`]; the next call tries again.
    pub async fn next(&mut self) -> Result<Option<Vec<(Bytes, Pair)>>, Error> {
        if self.over {
            return Ok(None);
        }
        let ScanOptions { limit, keys_only, reverse, revision, stale, position } = self.options;
        let left = limit.map_or(0, |limit| limit - self.told);
        let reply = self
            .client
            .scan_raw(ScanRequest {
                range: Some(self.keys.to_wire()),
                limit: u32::try_from(left).unwrap_or(u32::MAX),
                keys_only,
                reverse,
                page_token: self.token.clone(),
                revision: revision.unwrap_or(0),
                stale,
                with_revisions: position && self.position.is_none(),
                ..ScanRequest::default()
            })
            .await?;
        if position && self.position.is_none() {
            let revisions = reply.revisions.iter();
            self.position = Some(revisions.map(|it| (it.shard, it.revision)).collect());
        }
        self.told += reply.pairs.len() as u64;
        self.over = reply.next_page_token.is_empty() || limit.is_some_and(|it| self.told >= it);
        self.token = reply.next_page_token;
        let pairs = reply.pairs.into_iter().map(|found| {
            let pair = found.pair.ok_or_else(|| garbled("a key without what it holds"))?;
            Ok((found.key, Pair::from(pair)))
        });
        pairs.collect::<Result<Vec<_>, Error>>().map(Some)
    }
}
