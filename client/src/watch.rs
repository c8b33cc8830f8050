//! Changes as they happen: a watch that goes on elsewhere when its member is lost.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use proto::kv::{
    ShardRevision, WatchEvents, WatchReply, WatchRequest, watch_reply::Kind as ReplyKind,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status, Streaming};

use crate::{Keys, KvClient, Outcome, Pair, Rejected, calls, kv::stub};

/// How long to wait after a stream that was lost, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often a member tells that nothing is missing.
const PROGRESS: Duration = Duration::from_secs(5);

/// How long a member may say nothing before it is taken for lost.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// What is wanted of a watch beside its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Go on behind these revisions, by shard; shards that are not named begin with what comes now.
    pub after: BTreeMap<u32, u64>,
    /// Tell what was there before each change, too.
    pub previous: bool,
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Bytes,
    /// What it holds now; none: it was removed.
    pub pair: Option<Pair>,
    /// What it held before, if that was asked for.
    pub previous: Option<Pair>,
    /// It was removed since its lease ended.
    pub expired: bool,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// What changed, atomically, in one revision of one shard. Of one shard revisions rise.
    Changed {
        /// The shard.
        shard: u32,
        /// Its revision.
        revision: u64,
        /// The changes, by key; no key twice.
        events: Vec<Event>,
    },
    /// Nothing is missing: [`Watch::position`] may be kept to go on from.
    Progress,
    /// The changes that would have to come next are compacted: read what is there now. The watch is
    /// over.
    Compacted {
        /// In this shard.
        shard: u32,
        /// Up to this revision.
        revision: u64,
    },
}

/// A watch: each change is told once, in the order of its shard's revisions, without gaps, whatever
/// becomes of members meanwhile.
#[derive(Debug)]
pub struct Watch {
    client: KvClient,
    keys: Vec<Keys>,
    previous: bool,
    /// Up to where everything was told, or looked at.
    position: BTreeMap<u32, u64>,
    stream: Option<Streaming<WatchReply>>,
    /// The stream has told where it begins.
    begun: bool,
    /// The beginning of a revision that has come in part.
    part: Vec<Event>,
    ready: VecDeque<Watched>,
    over: bool,
    pause: Duration,
}

impl KvClient {
    /// Watches keys.
    pub fn watch(&self, keys: Vec<Keys>, options: WatchOptions) -> Watch {
        Watch {
            client: self.clone(),
            keys,
            previous: options.previous,
            position: options.after,
            stream: None,
            begun: false,
            part: Vec::new(),
            ready: VecDeque::new(),
            over: false,
            pause: PAUSE_MIN,
        }
    }
}

impl Watch {
    /// Begins now, not with the first [`Watch::next`]: what changes from here on is told.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn begin(&mut self) -> Result<(), Rejected> {
        while !self.begun && self.ready.is_empty() && !self.over {
            self.hear().await?;
        }
        Ok(())
    }

    /// What is told next, however long it takes; none when the watch is over. Nothing is lost when
    /// the call is dropped.
    ///
    /// # Errors
    /// [`Rejected`]: what is asked for is wrong, or no member answers within the deadline of the
    /// client's options. Whatever it is, the next call tries again.
    pub async fn next(&mut self) -> Result<Option<Watched>, Rejected> {
        loop {
            if let Some(watched) = self.ready.pop_front() {
                self.note(&watched);
                return Ok(Some(watched));
            }
            if self.over {
                return Ok(None);
            }
            self.hear().await?;
        }
    }

    /// Up to where everything has been told, by shard: what [`WatchOptions::after`] goes on from.
    pub fn position(&self) -> &BTreeMap<u32, u64> {
        &self.position
    }

    /// Takes in one message, from a new stream if there is none.
    async fn hear(&mut self) -> Result<(), Rejected> {
        if self.stream.is_none() {
            self.part.clear();
            self.begun = false;
            self.stream = Some(self.subscribe().await?);
        }
        let Some(stream) = &mut self.stream else { return Ok(()) };
        match timeout(SILENCE_MAX, stream.message()).await {
            Ok(Ok(Some(reply))) => {
                self.pause = PAUSE_MIN;
                self.take(reply);
                Ok(())
            }
            Ok(Ok(None)) => self.lost(&Status::unavailable("the stream ended")).await,
            Ok(Err(status)) => self.lost(&status).await,
            Err(_) => self.lost(&Status::unavailable("the member says nothing")).await,
        }
    }

    async fn subscribe(&self) -> Result<Streaming<WatchReply>, Rejected> {
        let after = self.position.iter();
        let message = WatchRequest {
            ranges: self.keys.iter().map(Keys::to_wire).collect(),
            after: after.map(|(&shard, &revision)| ShardRevision { shard, revision }).collect(),
            previous: self.previous,
            progress_ms: u32::try_from(PROGRESS.as_millis()).unwrap_or(u32::MAX),
        };
        let patience = self.client.patience();
        let outcome = calls::call(self.client.members(), patience, |channel, limit| {
            // The limit is for the beginning alone.
            let message = message.clone();
            async move {
                timeout(limit, stub(channel).watch(message))
                    .await
                    .unwrap_or_else(|_| Err(Status::unavailable("no answer")))
            }
        });
        match outcome.await {
            Outcome::Done(stream) => Ok(stream),
            Outcome::Rejected(rejected) => Err(rejected),
            Outcome::Unknown(unknown) => Err(Rejected::Unavailable(unknown.reason)),
        }
    }

    fn take(&mut self, reply: WatchReply) {
        match reply.kind {
            Some(ReplyKind::Begun(begun)) => {
                self.begun = true;
                // A shard that is not named has revision 0, and from there everything is told.
                for shard in 0..begun.shards {
                    self.position.entry(shard).or_insert(0);
                }
                for ShardRevision { shard, revision } in begun.after {
                    self.position.insert(shard, revision);
                }
            }
            Some(ReplyKind::Events(events)) => self.take_events(events),
            Some(ReplyKind::Progress(progress)) => {
                for ShardRevision { shard, revision } in progress.revisions {
                    self.position.insert(shard, revision);
                }
                self.ready.push_back(Watched::Progress);
            }
            Some(ReplyKind::Compacted(compacted)) => {
                let (shard, revision) = (compacted.shard, compacted.compacted_revision);
                self.ready.push_back(Watched::Compacted { shard, revision });
                self.stream = None;
                self.over = true;
            }
            // Of a newer server.
            None => {}
        }
    }

    fn take_events(&mut self, events: WatchEvents) {
        let WatchEvents { shard, revision, events, continued } = events;
        self.part.extend(events.into_iter().map(|event| Event {
            key: event.key,
            pair: event.pair.map(Pair::from),
            previous: event.previous.map(Pair::from),
            expired: event.expired,
        }));
        if !continued {
            let events = std::mem::take(&mut self.part);
            self.ready.push_back(Watched::Changed { shard, revision, events });
        }
    }

    /// The caller has it: a new stream goes on behind it.
    fn note(&mut self, watched: &Watched) {
        if let Watched::Changed { shard, revision, .. } = watched {
            self.position.insert(*shard, *revision);
        }
    }

    /// A stream has ended before its time: what is out of range stays so, all else may be had from
    /// another member.
    async fn lost(&mut self, status: &Status) -> Result<(), Rejected> {
        self.stream = None;
        if matches!(status.code(), Code::OutOfRange | Code::InvalidArgument) {
            return Err(Rejected::from_status(status));
        }
        tracing::debug!(code = ?status.code(), "a watch is lost");
        sleep(self.pause).await;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        Ok(())
    }
}
