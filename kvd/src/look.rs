//! Looks at a frozen state for a request, on a thread where it may take as long as it takes.

use std::sync::Arc;

use proto::{
    kv::{GetReply, KeyPair, ReplyHeader, ScanReply, ShardRevision, forward_reply},
    raft::{Reason, Refusal},
};
use raftd::edge::never;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{
    outcome::Header,
    range::Range,
    view::{PageRequest, View},
    wire::{
        self, Look,
        reply::{header, key, pair},
    },
};

/// How many looks are taken at a time; others wait for their turn until their deadline.
const LOOKS_MAX: usize = 8;

/// Takes looks. Clones share the limit.
#[derive(Clone, Debug)]
pub(crate) struct Looks(Arc<Semaphore>);

impl Default for Looks {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKS_MAX)))
    }
}

impl Looks {
    /// What a look finds.
    pub(crate) async fn look(
        &self,
        view: View,
        look: Look,
        deadline: Instant,
    ) -> Result<forward_reply::Kind, Refusal> {
        let Ok(Ok(turn)) = timeout_at(deadline, self.0.clone().acquire_owned()).await else {
            let message = format!("looks_max looks, which is {LOOKS_MAX}, took until the deadline");
            return Err(never(Reason::Limit, message));
        };
        let looked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            take(&view, look)
        });
        looked.await.unwrap_or_else(|_| Err(never(Reason::Shutdown, "the member is stopping")))
    }
}

fn take(view: &View, look: Look) -> Result<forward_reply::Kind, Refusal> {
    match look {
        Look::GetAt { key, revision } => {
            let found = view.get_at(&key, revision).map_err(|refusal| wire::refused(&refusal))?;
            let at = view.headers().next().map(header);
            Ok(forward_reply::Kind::Get(GetReply { header: at, pair: found.map(pair) }))
        }
        Look::Scan { range, page, count_only, with_revisions, with_shards } => {
            let mut reply = if count_only {
                let count = view.count(&range, page.revision);
                let count = count.map_err(|refusal| wire::refused(&refusal))?;
                ScanReply { count, ..ScanReply::default() }
            } else {
                scan(view, &range, &page)?
            };
            reply.header = Some(header_of(view, &range));
            if with_revisions {
                reply.revisions = revisions(view);
            }
            if with_shards {
                reply.shards = view.headers().map(|header| header.shard).collect();
            }
            Ok(forward_reply::Kind::Scan(reply))
        }
    }
}

fn scan(view: &View, range: &Range, page: &PageRequest) -> Result<ScanReply, Refusal> {
    let page = view.page(range, page).map_err(|refusal| wire::refused(&refusal))?;
    let pairs = page
        .pairs
        .into_iter()
        .map(|(name, found)| KeyPair { key: key(&name), pair: Some(pair(found)) });
    let pairs: Vec<KeyPair> = pairs.collect();
    Ok(ScanReply {
        count: pairs.len() as u64,
        pairs,
        next_page_token: page.next.unwrap_or_default(),
        ..ScanReply::default()
    })
}

/// Where the shard of a range stands that lies within one.
fn header_of(view: &View, range: &Range) -> ReplyHeader {
    let whole = Header { shards: view.shards(), ..Header::default() };
    let shard = range.shard(view.shards());
    header(shard.and_then(|shard| view.header(shard)).unwrap_or(whole))
}

/// Where the shards stand, those that nothing has changed yet among them: a watch begins with what
/// comes now in a shard that it is not told of.
fn revisions(view: &View) -> Vec<ShardRevision> {
    let at = |header: Header| ShardRevision { shard: header.shard, revision: header.revision.0 };
    view.headers().map(at).collect()
}
