//! The changes that all groups tell, as one stream: each shard's in the order of its revisions, once,
//! wherever the shard is meanwhile.
//!
//! Decides of which group each shard is heard. One stream hears all shards of a group that were
//! assigned at a time; a shard that has moved goes on with a stream of its new owner, behind the last
//! revision that was told, since its changes move with it, and what its old stream still says of it is
//! passed over. Whoever knows one group hears everything of that one.
//!
//! ```text
//!   group 1 ==Watch==> listen --\
//!   group 2 ==Watch==> listen ----> Streams ---> whoever watches
//!   group 2 ==Watch==> listen --/
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use proto::{
    kv::{
        ShardRevision, WatchBegun, WatchCompacted, WatchEvents, WatchReply, WatchRequest,
        watch_reply::Kind,
    },
    metadata,
    raft::{Reason, Refusal},
};
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use crate::{
    routed::Place,
    router::{Router, ToldMap, owner},
    shards::ShardMap,
};

/// How long to wait after a stream that was lost, or a shard that nobody serves, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often a member tells that nothing is missing, at least.
const PROGRESS: Duration = Duration::from_secs(5);

/// How long a member may say nothing before it is taken for lost.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// How many streams of one group there may be before all its shards are heard of one.
const STREAMS_PER_GROUP_MAX: usize = 4;

/// How many messages wait for whoever watches; more wait on their way.
const WAITING_MAX: usize = 16;

/// How many changes are held back until it is known where all shards begin.
const HELD_BACK_MAX: usize = 1_024;

/// What is told next.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Comes first: where each shard begins that is watched.
    Begun {
        /// By shard.
        after: BTreeMap<u32, u64>,
        /// How many shards there are.
        shards: u32,
    },
    /// What changed in one revision of one shard: one message, or several with its parts.
    Changed(Vec<WatchEvents>),
    /// Up to here nothing is missing in these shards.
    Progress(Vec<ShardRevision>),
    /// The changes that would have to come next are forgotten, and the watch is over.
    Compacted(WatchCompacted),
}

/// What is heard of all groups.
///
/// Keeps: each shard is assigned to at most one source, and `assigned` says to which.
#[derive(Debug)]
pub struct Streams {
    router: Arc<Router>,
    /// What is asked of each group, but for shards and revisions.
    request: WatchRequest,
    /// Wakes when groups have changed; none: there is one, or nobody tells any more.
    map: Option<ToldMap>,
    /// Where each shard begins, until that is told.
    beginning: BTreeMap<u32, u64>,
    /// Up to where all has been heard, by shard.
    position: BTreeMap<u32, u64>,
    sources: BTreeMap<u64, Source>,
    assigned: BTreeMap<u32, u64>,
    last_source: u64,
    tell: mpsc::Sender<(u64, Heard)>,
    heard: mpsc::Receiver<(u64, Heard)>,
    begun: bool,
    held_back: VecDeque<Told>,
    /// When what was lost or is missing is asked for again, and how long that took last.
    again_at: Option<Instant>,
    pause: Duration,
    over: bool,
}

/// What a source says.
#[derive(Debug)]
enum Heard {
    /// A message.
    Said(WatchReply),
    /// The stream has ended before its time: all may be had from another member.
    Lost(Refusal),
    /// It can't be had: what is asked for is wrong, or nobody answered for as long as that may take.
    Refused(Refusal),
}

/// One stream of a group.
#[derive(Debug)]
struct Source {
    group: Option<u32>,
    /// The shards that are heard of it; of the one group there is, all.
    shards: BTreeSet<u32>,
    /// It has said where it begins.
    begun: bool,
    /// The beginning of a revision that has come in part.
    part: Vec<WatchEvents>,
    task: AbortHandle,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Streams {
    /// Watches what the request says; begins with the first [`Streams::next`], which must be called on
    /// a runtime.
    pub fn new(router: Arc<Router>, mut request: WatchRequest) -> Self {
        let (tell, heard) = mpsc::channel(WAITING_MAX);
        let after = std::mem::take(&mut request.after);
        let position: BTreeMap<_, _> = after.iter().map(|it| (it.shard, it.revision)).collect();
        let progress_ms = u32::try_from(PROGRESS.as_millis()).unwrap_or(u32::MAX);
        request.progress_ms = match request.progress_ms {
            0 => progress_ms,
            asked => asked.min(progress_ms),
        };
        let map = router.told_map();
        Self {
            router,
            request,
            map,
            beginning: position.clone(),
            position,
            sources: BTreeMap::new(),
            assigned: BTreeMap::new(),
            last_source: 0,
            tell,
            heard,
            begun: false,
            held_back: VecDeque::new(),
            again_at: None,
            pause: PAUSE_MIN,
            over: false,
        }
    }

    /// What is told next, however long it takes; none when the watch is over. Nothing is lost when the
    /// call is dropped.
    ///
    /// # Errors
    /// The refusal: what is asked for is wrong, or nobody answers in time. The next call tries again.
    pub async fn next(&mut self) -> Result<Option<Told>, Refusal> {
        loop {
            if self.begun
                && let Some(told) = self.held_back.pop_front()
            {
                return Ok(Some(told));
            }
            if self.over {
                return Ok(None);
            }
            self.assign();
            let again_at = self.again_at;
            tokio::select! {
                biased;
                Some((number, heard)) = self.heard.recv() => {
                    if let Some(told) = self.take(number, heard)? {
                        return Ok(Some(told));
                    }
                }
                changed = changed(&mut self.map) => if !changed { self.map = None },
                () = until(again_at) => self.again_at = None,
            }
        }
    }

    /// Sees to it that each shard is heard of the group that has it.
    fn assign(&mut self) {
        if self.router.is_one() {
            if self.sources.is_empty() && self.again_at.is_none() {
                self.listen(None, BTreeSet::new());
            }
            return;
        }
        let Some(map) = self.router.current_map() else { return };
        let mut unheard: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for shard in self.watched(&map) {
            let Some(group) = owner(&map, Place::Shard(shard)) else { continue };
            let source = self.assigned.get(&shard).and_then(|number| self.sources.get(number));
            if source.is_none_or(|source| source.group != Some(group)) {
                self.dismiss(shard);
                unheard.entry(group).or_default().insert(shard);
            }
        }
        if self.again_at.is_some() {
            return;
        }
        for (group, mut shards) in unheard {
            let of_group = |source: &Source| source.group == Some(group);
            if self.sources.values().filter(|it| of_group(it)).count() >= STREAMS_PER_GROUP_MAX {
                let sources = self.sources.values().filter(|it| of_group(it));
                let all: Vec<u32> = sources.flat_map(|it| it.shards.iter().copied()).collect();
                shards.extend(&all);
                all.into_iter().for_each(|shard| self.dismiss(shard));
            }
            self.listen(Some(group), shards);
        }
    }

    /// The shards in which keys may be that are watched.
    fn watched(&self, map: &ShardMap) -> BTreeSet<u32> {
        let shards = u32::try_from(map.placements.len()).unwrap_or(u32::MAX);
        let ranges = self.request.ranges.iter();
        let one: Option<_> =
            ranges.map(|range| Place::of_range(Some(range)).shard(shards)).collect();
        one.unwrap_or_else(|| (0..shards).collect())
    }

    /// Nothing more is heard of a shard until it is assigned again.
    fn dismiss(&mut self, shard: u32) {
        let Some(number) = self.assigned.remove(&shard) else { return };
        if let Some(source) = self.sources.get_mut(&number) {
            source.shards.remove(&shard);
            if source.shards.is_empty() {
                self.sources.remove(&number);
            }
        }
    }

    /// Hears shards of a group from now on.
    fn listen(&mut self, group: Option<u32>, shards: BTreeSet<u32>) {
        self.last_source += 1;
        let number = self.last_source;
        let heard = |shard: &u32| shards.is_empty() || shards.contains(shard);
        let after = self.position.iter().filter(|(shard, _)| heard(shard));
        let request = WatchRequest {
            after: after.map(|(&shard, &revision)| ShardRevision { shard, revision }).collect(),
            shards: shards.iter().copied().collect(),
            ..self.request.clone()
        };
        let (router, tell) = (self.router.clone(), self.tell.clone());
        let task = tokio::spawn(listen(router, group, request, number, tell)).abort_handle();
        self.assigned.extend(shards.iter().map(|&shard| (shard, number)));
        let source = Source { group, shards, begun: false, part: Vec::new(), task };
        self.sources.insert(number, source);
    }

    /// Takes in what a source says, if that is to be told.
    fn take(&mut self, number: u64, heard: Heard) -> Result<Option<Told>, Refusal> {
        let Some(source) = self.sources.get_mut(&number) else { return Ok(None) };
        let reply = match heard {
            Heard::Said(reply) => reply,
            Heard::Lost(lost) => {
                tracing::debug!(reason = lost.message, "a watch is lost");
                self.lose(number);
                return Ok(None);
            }
            Heard::Refused(refusal) => {
                self.lose(number);
                return Err(refusal);
            }
        };
        let begins = matches!(reply.kind, Some(Kind::Begun(_)));
        if !begins && !self.begun && self.held_back.len() >= HELD_BACK_MAX {
            // Nothing of it is known then, so it is told again from where it was.
            self.lose(number);
            return Ok(None);
        }
        let is_heard = |shard: u32| source.group.is_none() || source.shards.contains(&shard);
        let told = match reply.kind {
            Some(Kind::Begun(begun)) => return self.begin(number, begun),
            Some(Kind::Events(events)) => {
                let WatchEvents { shard, revision, continued, .. } = events;
                let known = self.position.get(&shard).is_some_and(|known| *known >= revision);
                if !is_heard(shard) || known {
                    // Nor is its beginning told.
                    source.part.clear();
                    return Ok(None);
                }
                source.part.push(events);
                if continued {
                    return Ok(None);
                }
                self.position.insert(shard, revision);
                self.pause = PAUSE_MIN;
                Told::Changed(std::mem::take(&mut source.part))
            }
            Some(Kind::Progress(mut progress)) => {
                progress.revisions.retain(|at| is_heard(at.shard));
                let told = progress.revisions.iter().map(|at| (at.shard, at.revision));
                self.position.extend(told);
                self.pause = PAUSE_MIN;
                Told::Progress(progress.revisions)
            }
            Some(Kind::Compacted(compacted)) if is_heard(compacted.shard) => {
                self.over = true;
                self.sources.clear();
                Told::Compacted(compacted)
            }
            // Of a shard that is heard of another now; or of a newer server.
            Some(Kind::Compacted(_)) | None => return Ok(None),
        };
        if self.begun {
            return Ok(Some(told));
        }
        self.held_back.push_back(told);
        Ok(None)
    }

    /// A source has said where it begins.
    fn begin(&mut self, number: u64, begun: WatchBegun) -> Result<Option<Told>, Refusal> {
        let WatchBegun { after, shards, served } = begun;
        let Some(source) = self.sources.get_mut(&number) else { return Ok(None) };
        source.begun = true;
        let served: BTreeSet<u32> = match source.group {
            Some(_) => served.into_iter().filter(|it| source.shards.contains(it)).collect(),
            None => (0..shards).collect(),
        };
        let missing: Vec<u32> = source.shards.difference(&served).copied().collect();
        let after: BTreeMap<u32, u64> = after.iter().map(|it| (it.shard, it.revision)).collect();
        for shard in served {
            // What is not named has revision 0, and from there everything is told.
            let at = after.get(&shard).copied().unwrap_or(0);
            self.position.entry(shard).or_insert_with(|| {
                self.beginning.insert(shard, at);
                at
            });
        }
        if !missing.is_empty() {
            missing.into_iter().for_each(|shard| self.dismiss(shard));
            self.try_again();
        }
        if self.begun || !self.has_begun() {
            return Ok(None);
        }
        self.begun = true;
        Ok(Some(Told::Begun { after: std::mem::take(&mut self.beginning), shards }))
    }

    /// Whether it is known where all shards begin that are watched.
    fn has_begun(&self) -> bool {
        if self.router.is_one() {
            return true;
        }
        let Some(map) = self.router.current_map() else { return false };
        self.watched(&map).iter().all(|shard| {
            let source = self.assigned.get(shard).and_then(|it| self.sources.get(it));
            source.is_some_and(|source| source.begun)
        })
    }

    /// A source is no more; what it had is asked for again.
    fn lose(&mut self, number: u64) {
        if let Some(source) = self.sources.remove(&number) {
            for shard in &source.shards {
                self.assigned.remove(shard);
            }
        }
        self.try_again();
    }

    fn try_again(&mut self) {
        if self.again_at.is_none() {
            self.again_at = Some(Instant::now() + self.pause);
            self.pause = (2 * self.pause).min(PAUSE_MAX);
        }
    }
}

/// Ends with a change of the map, or with the end of whoever tells it: then with false.
async fn changed(map: &mut Option<ToldMap>) -> bool {
    match map {
        Some(map) => map.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Says what a stream of a group tells, from its beginning to its end.
async fn listen(
    router: Arc<Router>,
    group: Option<u32>,
    request: WatchRequest,
    number: u64,
    tell: mpsc::Sender<(u64, Heard)>,
) {
    let ended = match router.subscribe(group, &request).await {
        Ok(stream) => hear(stream, number, &tell).await,
        Err(refusal) if refusal.reason() == Reason::WrongGroup => Heard::Lost(refusal),
        Err(refusal) => Heard::Refused(refusal),
    };
    // Who watches may have gone.
    drop(tell.send((number, ended)).await);
}

/// Says what a stream tells until it ends.
async fn hear(
    mut stream: Streaming<WatchReply>,
    number: u64,
    tell: &mpsc::Sender<(u64, Heard)>,
) -> Heard {
    let status = loop {
        match timeout(SILENCE_MAX, stream.message()).await {
            Ok(Ok(Some(reply))) => {
                if tell.send((number, Heard::Said(reply))).await.is_err() {
                    break Status::cancelled("nobody watches any more");
                }
            }
            Ok(Ok(None)) => break Status::unavailable("the stream ended"),
            Ok(Err(status)) => break status,
            Err(_) => break Status::unavailable("the member says nothing"),
        }
    };
    let refusal = metadata::refusal(&status);
    match refusal.reason() {
        Reason::OutOfRange | Reason::Invalid => Heard::Refused(refusal),
        _ => Heard::Lost(refusal),
    }
}
