//! What a group tells of some of its shards: pages, and changes.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::{
    kv::{
        Event, KeyPair, Pair, ScanReply, ScanRequest, ShardRevision, WatchBegun, WatchEvents,
        WatchReply, WatchRequest, watch_reply::Kind,
    },
    page_token, shard_of,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Fake, Replies, SHARDS};

impl Fake {
    /// Those of these shards that this group has.
    fn served(&self, asked: &[u32]) -> Vec<u32> {
        assert!(!asked.is_empty(), "a group is asked for shards");
        let state = self.state();
        let owners = state.owners.as_ref().unwrap();
        asked.iter().copied().filter(|shard| owners[*shard as usize] == self.group).collect()
    }

    /// A page of the pairs in shards that were asked for.
    pub(super) fn page(&self, scan: &ScanRequest) -> ScanReply {
        let shards = self.served(&scan.shards);
        let last = scan.page_token.get(1..).unwrap_or_default();
        let mut values: Vec<(Bytes, Bytes)> = {
            let state = self.state();
            let values = state.values.iter();
            values.map(|(key, (value, _))| (key.clone(), value.clone())).collect()
        };
        values.retain(|(key, _)| shards.contains(&shard_of(key, SHARDS)) && key[..] > *last);
        values.sort();
        let count = values.len() as u64;
        let limit = if scan.limit == 0 { values.len() } else { scan.limit as usize };
        let more = values.len() > limit;
        values.truncate(limit);
        let token = values.last().filter(|_| more).map(|(key, _)| page_token(key).into());
        let pair = |(key, value)| KeyPair {
            key,
            pair: Some(Pair { value, version: 1, ..Pair::default() }),
        };
        ScanReply {
            count: if scan.count_only { count } else { values.len() as u64 },
            pairs: values.into_iter().filter(|_| !scan.count_only).map(pair).collect(),
            next_page_token: token.unwrap_or_default(),
            shards,
            ..ScanReply::default()
        }
    }

    /// The changes in shards that were asked for, as long as somebody listens.
    pub(super) fn changes(&self, request: &WatchRequest) -> Replies<WatchReply> {
        let served = self.served(&request.shards);
        let (tell, told) = mpsc::channel(1);
        let now = self.state().revision;
        let asked: BTreeMap<u32, u64> =
            request.after.iter().map(|it| (it.shard, it.revision)).collect();
        let at = |shard: &u32| (*shard, asked.get(shard).copied().unwrap_or(now));
        let mut cursors: BTreeMap<u32, u64> = served.iter().map(at).collect();
        let after = cursors.iter().map(|(&shard, &revision)| ShardRevision { shard, revision });
        let begun = WatchBegun { after: after.collect(), shards: SHARDS, served };
        let fake = self.clone();
        tokio::spawn(async move {
            let mut next = Some(Kind::Begun(begun));
            while !tell.is_closed() {
                let happened = fake.happened.notified();
                if let Some(kind) = next.take() {
                    // Who listened may have gone.
                    drop(tell.send(Ok::<_, Status>(WatchReply { kind: Some(kind) })).await);
                }
                next = fake.next_change(&mut cursors).map(Kind::Events);
                if next.is_none() {
                    tokio::select! { () = happened => {} () = tell.closed() => {} }
                }
            }
        });
        Box::pin(ReceiverStream::new(told))
    }

    fn next_change(&self, cursors: &mut BTreeMap<u32, u64>) -> Option<WatchEvents> {
        let state = self.state();
        let owners = state.owners.as_ref().unwrap();
        let is_told = |shard: u32, revision| {
            let has = state.tells_late || owners[shard as usize] == self.group;
            has && cursors.get(&shard).is_some_and(|at| *at < revision)
        };
        let mut changes = state.changes.iter();
        let (shard, revision, key, value) = changes.find(|it| is_told(it.0, it.1))?.clone();
        cursors.insert(shard, revision);
        let pair = Some(Pair { value, version: 1, ..Pair::default() });
        let events = vec![Event { key, pair, ..Event::default() }];
        Some(WatchEvents { shard, revision, events, continued: false })
    }
}
