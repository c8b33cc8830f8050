//! Pages over the shards of many groups: each group is asked for those of its shards, and what they
//! tell is put together.
//!
//! Decides that each shard is told by exactly one group. Each is asked of one group at a time, by the
//! map; the answer says which of them it is of, since a shard may be on its way; those that are missing
//! are asked for again, of whoever has them then. A page ends where the first group's page ends that has
//! more, since nothing is known behind that. The part of each shard is one state of it; what different
//! groups tell may be of different moments.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::stream::{FuturesUnordered, StreamExt};
use proto::{
    kv::{KeyPair, ReplyHeader, ScanReply, ScanRequest, ShardRevision, forward_reply, request},
    page_token,
};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    PAGE_BYTES_MAX, PAGE_PAIRS_MAX,
    calls::{Ended, Patience},
    routed::Place,
    router::{Groups, Router, nobody, owner},
    shards::ShardMap,
};

/// How long to wait, in milliseconds, before shards are asked for again that nobody told of, at first
/// and at most.
const PAUSE_MIN: u64 = 10;
const PAUSE_MAX: u64 = 200;

/// How many pairs more than its share a group is asked for, since shards are not equally full.
const SPARE_PAIRS: u32 = 32;

/// Whether a request is answered by putting together what many groups tell.
pub fn is_gathered(kind: &request::Kind) -> bool {
    match kind {
        request::Kind::Scan(scan) => {
            scan.shards.is_empty() && !Place::of_range(scan.range.as_ref()).is_one()
        }
        _ => false,
    }
}

/// What has been told of a page.
struct Gathered {
    reverse: bool,
    limit: usize,
    shards: u32,
    /// The shards that nobody has told of yet.
    missing: BTreeSet<u32>,
    pairs: Vec<KeyPair>,
    /// Where the first page ends that goes on, in the order of the page.
    end: Option<bytes::Bytes>,
    count: u64,
    revisions: BTreeMap<u32, u64>,
}

impl Router {
    /// Asks all groups for a page.
    pub(crate) async fn gather(
        &self,
        groups: &Groups,
        scan: &ScanRequest,
        patience: Patience,
    ) -> Result<ScanReply, Ended> {
        let mut gathered: Option<Gathered> = None;
        let mut pause = PAUSE_MIN;
        loop {
            let why = match groups.map().filter(|map| !map.placements.is_empty()) {
                None => nobody("no shard has been given to a group, as far as is known"),
                Some(map) => {
                    let gathered = gathered.get_or_insert_with(|| Gathered::new(scan, &map));
                    self.ask_missing(&map, scan, gathered, patience).await?;
                    match gathered.missing.first() {
                        None => break,
                        Some(shard) => nobody(&format!("shard {shard} is not served now")),
                    }
                }
            };
            let until = Instant::now() + Duration::from_millis(pause);
            if until >= patience.deadline {
                return Err(Ended::in_vain(why));
            }
            groups.changed(until).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
        Ok(gathered.map(Gathered::page).unwrap_or_default())
    }

    /// Asks each group for those of the missing shards that it has.
    async fn ask_missing(
        &self,
        map: &ShardMap,
        scan: &ScanRequest,
        gathered: &mut Gathered,
        patience: Patience,
    ) -> Result<(), Ended> {
        let mut wanted: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for &shard in &gathered.missing {
            if let Some(group) = owner(map, Place::Shard(shard)) {
                wanted.entry(group).or_default().push(shard);
            }
        }
        let mut asked: FuturesUnordered<_> = wanted
            .into_values()
            .map(|shards| {
                let part = gathered.part(scan, shards.clone());
                async move { (shards, self.call(&request::Kind::Scan(part), patience).await) }
            })
            .collect();
        while let Some((shards, told)) = asked.next().await {
            match told? {
                forward_reply::Kind::Scan(reply) => gathered.take(&shards, reply)?,
                _ => return Err(nonsense("something else than a page")),
            }
        }
        Ok(())
    }
}

impl Gathered {
    fn new(scan: &ScanRequest, map: &ShardMap) -> Self {
        let shards = u32::try_from(map.placements.len()).unwrap_or(u32::MAX);
        let limit = scan.limit as usize;
        Self {
            reverse: scan.reverse,
            limit: if limit == 0 { PAGE_PAIRS_MAX } else { limit.min(PAGE_PAIRS_MAX) },
            shards,
            missing: (0..shards).collect(),
            pairs: Vec::new(),
            end: None,
            count: 0,
            revisions: BTreeMap::new(),
        }
    }

    /// What a group is asked that has these shards: for its share of a page, and somewhat more.
    fn part(&self, scan: &ScanRequest, shards: Vec<u32>) -> ScanRequest {
        let share = (3 * self.limit * shards.len()).div_ceil(2 * self.shards as usize);
        let limit = u32::try_from(share.min(self.limit)).unwrap_or(u32::MAX);
        let limit = (limit + SPARE_PAIRS).min(u32::try_from(self.limit).unwrap_or(u32::MAX));
        ScanRequest { shards, limit, ..scan.clone() }
    }

    /// Takes in what a group tells that was asked for these shards.
    fn take(&mut self, asked: &[u32], reply: ScanReply) -> Result<(), Ended> {
        let told: BTreeSet<u32> = reply.shards.iter().copied().collect();
        let is_asked = |shard| asked.binary_search(shard).is_ok() && self.missing.contains(shard);
        if told.len() < reply.shards.len() || !told.iter().all(is_asked) {
            return Err(nonsense("shards that it was not asked for"));
        }
        self.missing.retain(|shard| !told.contains(shard));
        self.count += reply.count;
        if !reply.next_page_token.is_empty() {
            let Some(last) = reply.pairs.last().map(|last| last.key.clone()) else {
                return Err(nonsense("a page without pairs that goes on"));
            };
            let sooner = |end: &bytes::Bytes| if self.reverse { last > *end } else { last < *end };
            if self.end.as_ref().is_none_or(sooner) {
                self.end = Some(last);
            }
        }
        self.pairs.extend(reply.pairs);
        let at = |it: ShardRevision| (it.shard, it.revision);
        self.revisions.extend(reply.revisions.into_iter().map(at));
        Ok(())
    }

    /// All of it, as one page.
    fn page(self) -> ScanReply {
        let Self { reverse, limit, shards, mut pairs, end, count, revisions, .. } = self;
        pairs.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        if reverse {
            pairs.reverse();
        }
        let mut more = end.is_some();
        let (mut bytes, mut most) = (0, 0);
        for pair in &pairs {
            let behind =
                |end: &bytes::Bytes| if reverse { pair.key < *end } else { pair.key > *end };
            bytes += pair.key.len() + pair.pair.as_ref().map_or(0, |pair| pair.value.len());
            if end.as_ref().is_some_and(behind)
                || most == limit
                || most > 0 && bytes > PAGE_BYTES_MAX
            {
                more = true;
                break;
            }
            most += 1;
        }
        pairs.truncate(most);
        let last = pairs.last().filter(|_| more);
        let next_page_token = last.map(|last| page_token(&last.key).into()).unwrap_or_default();
        let revision = |(shard, revision)| ShardRevision { shard, revision };
        ScanReply {
            header: Some(ReplyHeader { shards, ..ReplyHeader::default() }),
            // Who only counts was told no pairs.
            count: if pairs.is_empty() { count } else { pairs.len() as u64 },
            pairs,
            next_page_token,
            revisions: revisions.into_iter().map(revision).collect(),
            shards: Vec::new(),
        }
    }
}

/// A group tells what makes no sense.
fn nonsense(what: &str) -> Ended {
    Ended::in_vain(Status::unavailable(format!("a group answered with {what}")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::kv::Pair;
    use proto::shard::Placement;

    use super::*;

    const SHARDS: u32 = 6;

    fn map() -> Arc<ShardMap> {
        let placements = (0..SHARDS).map(|shard| Placement { shard, ..Placement::default() });
        Arc::new(ShardMap { placements: placements.collect(), ..ShardMap::default() })
    }

    fn gathered(scan: &ScanRequest) -> Gathered {
        Gathered::new(scan, &map())
    }

    fn told(shards: &[u32], keys: &[&str], goes_on: bool) -> ScanReply {
        let pair = |&key: &&str| KeyPair {
            key: key.to_owned().into(),
            pair: Some(Pair { value: "v".into(), ..Pair::default() }),
        };
        ScanReply {
            pairs: keys.iter().map(pair).collect(),
            count: keys.len() as u64,
            next_page_token: if goes_on { "more".into() } else { bytes::Bytes::new() },
            shards: shards.to_vec(),
            ..ScanReply::default()
        }
    }

    fn keys(page: &ScanReply) -> Vec<&str> {
        page.pairs.iter().map(|pair| std::str::from_utf8(&pair.key).unwrap()).collect()
    }

    #[test]
    fn a_page_ends_where_the_first_group_has_more() {
        let mut forwards = gathered(&ScanRequest::default());
        forwards.take(&[0, 1], told(&[0, 1], &["a", "d"], true)).unwrap();
        forwards.take(&[2, 3], told(&[2, 3], &["b", "e"], false)).unwrap();
        forwards.take(&[4, 5], told(&[4, 5], &["c", "f"], true)).unwrap();
        let page = forwards.page();
        assert_eq!((keys(&page), page.count), (vec!["a", "b", "c", "d"], 4));
        assert_eq!(page.next_page_token, page_token(b"d"));
        let mut backwards = gathered(&ScanRequest { reverse: true, ..ScanRequest::default() });
        backwards.take(&[0, 1], told(&[0, 1], &["d", "a"], false)).unwrap();
        backwards.take(&[2, 3, 4, 5], told(&[2, 3, 4, 5], &["e", "b"], true)).unwrap();
        let page = backwards.page();
        assert_eq!(keys(&page), ["e", "d", "b"]);
        assert_eq!(page.next_page_token, page_token(b"b"));
    }

    #[test]
    fn the_last_page_holds_all_and_a_limited_one_goes_on() {
        let all: Vec<u32> = (0..SHARDS).collect();
        let mut last = gathered(&ScanRequest::default());
        last.take(&all, told(&all, &["a", "b"], false)).unwrap();
        let page = last.page();
        assert_eq!((keys(&page).len(), page.next_page_token.len()), (2, 0));
        assert_eq!(page.header.unwrap().shards, SHARDS);
        let mut limited = gathered(&ScanRequest { limit: 1, ..ScanRequest::default() });
        limited.take(&all, told(&all, &["a", "b"], false)).unwrap();
        let page = limited.page();
        assert_eq!(keys(&page), ["a"]);
        assert_eq!(page.next_page_token, page_token(b"a"));
    }

    #[test]
    fn each_shard_is_told_by_one_group() {
        let mut gathered = gathered(&ScanRequest { count_only: true, ..ScanRequest::default() });
        let count = |shards: &[u32], count| ScanReply { count, ..told(shards, &[], false) };
        // Shard 2 is on its way: whoever was asked does not tell of it, and is asked again.
        gathered.take(&[0, 1, 2], count(&[0, 1], 10)).unwrap();
        assert!(gathered.missing.contains(&2));
        gathered.take(&[3, 4, 5], count(&[3, 4, 5], 5)).unwrap();
        // Told twice, or not asked for.
        assert!(gathered.take(&[2], count(&[1, 2], 1)).is_err());
        assert!(gathered.take(&[2], count(&[2, 2], 1)).is_err());
        gathered.take(&[2], count(&[2], 1)).unwrap();
        assert!(gathered.missing.is_empty());
        assert_eq!(gathered.page().count, 16);
    }

    #[test]
    fn a_group_is_asked_for_its_share_and_somewhat_more() {
        let scan = ScanRequest::default();
        let all = gathered(&scan);
        assert_eq!(all.part(&scan, vec![0, 1]).limit, 532);
        assert_eq!(all.part(&scan, (0..SHARDS).collect()).limit, 1_000);
        let few = ScanRequest { limit: 10, ..ScanRequest::default() };
        assert_eq!(gathered(&few).part(&few, vec![0]).limit, 10);
    }
}
