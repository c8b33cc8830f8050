//! Streams of changes in shards of many groups, for whoever does not hear the groups himself.
//!
//! Thin: what is heard of whom is decided in [`client::Streams`].

use std::{collections::VecDeque, sync::Arc};

use client::{Router, Streams, streams::Told};
use daemon::Shutdown;
use futures::stream::{BoxStream, StreamExt, try_unfold};
use proto::{
    kv::{ShardRevision, WatchBegun, WatchProgress, WatchReply, WatchRequest, watch_reply::Kind},
    raft::{Reason, Refusal},
};
use raftd::{
    Refused,
    edge::{self, never, refused},
};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

/// One stream. `place` is what it takes up, and gives back at its end.
struct Merged<P> {
    streams: Streams,
    waiting: VecDeque<Kind>,
    shutdown: Shutdown,
    _place: P,
}

/// Begins a stream. It knows by `deadline` where.
pub(crate) async fn watch<P: Send + 'static>(
    router: Arc<Router>,
    request: WatchRequest,
    deadline: Instant,
    place: P,
    shutdown: Shutdown,
) -> Result<BoxStream<'static, Result<WatchReply, Status>>, Status> {
    let mut streams = Streams::new(router, request);
    let first = timeout_at(deadline, streams.next()).await.unwrap_or_else(|_| {
        Err(never(Reason::Deadline, "not all groups said in time where the watch begins"))
    });
    let mut merged = Merged { streams, waiting: VecDeque::new(), shutdown, _place: place };
    merged.take(first.map_err(edge::status)?);
    let stream = try_unfold(merged, |mut merged| async {
        let next = merged.next().await.map_err(edge::status)?;
        Ok(next.map(|kind| (WatchReply { kind: Some(kind) }, merged)))
    });
    Ok(stream.boxed())
}

impl<P> Merged<P> {
    /// The next message; none at the end.
    async fn next(&mut self) -> Result<Option<Kind>, Refusal> {
        loop {
            if let Some(kind) = self.waiting.pop_front() {
                return Ok(Some(kind));
            }
            let told = tokio::select! {
                biased;
                () = self.shutdown.requested() => return Err(refused(&Refused::Shutdown)),
                told = self.streams.next() => told?,
            };
            if told.is_none() {
                return Ok(None);
            }
            self.take(told);
        }
    }

    /// Makes messages of what is told.
    fn take(&mut self, told: Option<Told>) {
        match told {
            Some(Told::Begun { after, shards }) => {
                let told = after.into_iter().filter(|(_, revision)| *revision > 0);
                let after = told.map(|(shard, revision)| ShardRevision { shard, revision });
                let (after, served) = (after.collect(), Vec::new());
                self.waiting.push_back(Kind::Begun(WatchBegun { after, shards, served }));
            }
            Some(Told::Changed(parts)) => {
                self.waiting.extend(parts.into_iter().map(Kind::Events));
            }
            Some(Told::Progress(revisions)) => {
                self.waiting.push_back(Kind::Progress(WatchProgress { revisions }));
            }
            Some(Told::Compacted(compacted)) => self.waiting.push_back(Kind::Compacted(compacted)),
            None => {}
        }
    }
}
