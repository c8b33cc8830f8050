//! Streams of changes: each reads the change logs of its shards as this member has applied them,
//! wherever the leader is.
//!
//! Decides where a stream begins and ends, and what it is sent. A stream holds no changes but those
//! of the message that its connection takes next: what it has not read stays in the change logs of
//! the shards, so a slow watcher costs nothing, loses nothing in silence, and is told when the
//! changes that it would need next are compacted. Everything that a member applies is what all
//! members apply, so a change of leaders does not matter, and a watcher goes on anywhere.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use daemon::Shutdown;
use futures::{
    future::BoxFuture,
    stream::{BoxStream, StreamExt, try_unfold},
};
use proto::{
    kv::{
        ShardRevision, WatchBegun, WatchCompacted, WatchEvents, WatchProgress, WatchReply,
        WatchRequest, watch_reply::Kind,
    },
    raft::Reason,
};
use raftd::{
    Handle, Refused,
    edge::{self, cut_off, never, refused},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;

use crate::{
    KvMachine,
    outcome::{Answer, Pair, Query, Refusal, Revision, Scope},
    range::Range,
    requests::Requests,
    view::{Change, ChangesPage, View},
    wire,
};

/// How much one look at a change log gathers, unless a single revision has more.
const PAGE_BYTES: usize = 256 << 10;

/// How much one message carries, unless a single change has more.
const MESSAGE_BYTES: usize = 1 << 20;

/// How many revisions are read on the thread that serves everybody; more are read on another.
const REVISIONS_AT_ONCE: u64 = 256;

/// How long applied entries gather between two states that watchers are shown.
const GATHER: Duration = Duration::from_millis(1);

/// How often a watcher is told that nothing is missing, unless it says otherwise.
const PROGRESS_DEFAULT: Duration = Duration::from_secs(10);

/// The most often that it is told.
const PROGRESS_MIN: Duration = Duration::from_millis(100);

/// Serves watchers. Clones share everything.
#[derive(Clone)]
pub(crate) struct Watches {
    requests: Requests,
    states: States,
    shutdown: Shutdown,
}

/// The places of watchers. Clones share the limit.
#[derive(Clone)]
pub(crate) struct Places {
    limit: usize,
    free: Arc<Semaphore>,
}

impl Places {
    pub(crate) fn new(limit: usize) -> Self {
        metrics::describe_gauge!("flotilla_kv_watchers", "streams to watchers");
        Self { limit, free: Arc::new(Semaphore::new(limit)) }
    }

    /// Takes one, while there is one.
    pub(crate) fn take(&self) -> Result<Place, Status> {
        let permit = self.free.clone().try_acquire_owned().map_err(|_| {
            let limit = self.limit;
            let message = format!("this member serves watchers_max watchers, which is {limit}");
            edge::status(never(Reason::Limit, message))
        });
        permit.map(Place::new)
    }
}

impl Watches {
    /// Must be called on a runtime.
    pub(crate) fn new(requests: Requests, shutdown: Shutdown) -> Self {
        let states = States::new(requests.handle().clone());
        Self { requests, states, shutdown }
    }

    /// Begins a stream, which takes up a place. It knows by `deadline` where.
    pub(crate) async fn watch(
        &self,
        request: WatchRequest,
        deadline: Instant,
        place: Place,
    ) -> Result<BoxStream<'static, Result<WatchReply, Status>>, Status> {
        let ranges = wire::request::watched(&request.ranges, self.requests.terms());
        let ranges = ranges.map_err(edge::status)?;
        let scope = match request.shards.is_empty() {
            true => Scope::Ranges(ranges.clone()),
            false => Scope::Served(request.shards.clone()),
        };
        let view = self.requests.view(scope, false, deadline).await.map_err(edge::status)?;
        let cursors = begin(&view, &request.after)?;
        let told = cursors.iter().filter(|(_, at)| at.0 > 0);
        let after = told.map(|(&shard, at)| ShardRevision { shard, revision: at.0 }).collect();
        let is_part = !request.shards.is_empty();
        let served = if is_part { cursors.keys().copied().collect() } else { Vec::new() };
        let begun = Kind::Begun(WatchBegun { after, shards: view.shards(), served });
        // Told by this view: a state that watchers are shown may be older.
        let gone = cursors.iter().find_map(|(&shard, &at)| match view.check(shard, at) {
            Err(Refusal::Compacted { compacted, .. }) => Some((shard, compacted)),
            Ok(()) | Err(_) => None,
        });
        let mut waiting = VecDeque::from([begun]);
        waiting.extend(gone.map(|(shard, upto)| compacted(shard, upto)));
        let every = match request.progress_ms {
            0 => PROGRESS_DEFAULT,
            ms => Duration::from_millis(ms.into()).max(PROGRESS_MIN),
        };
        let mut status = self.requests.handle().watch_status();
        let watcher = Watcher {
            told: cursors.clone(),
            cursors,
            ranges: ranges.into(),
            is_part,
            previous: request.previous,
            every,
            due: Instant::now() + every,
            served: 0,
            waiting,
            over: gone.is_some(),
            states: self.states.join(),
            cut_off: Box::pin(async move { cut_off(&mut status).await }),
            shutdown: self.shutdown.clone(),
            _place: place,
        };
        let stream = try_unfold(watcher, |mut watcher| async {
            let next = watcher.next().await?;
            Ok(next.map(|kind| (WatchReply { kind: Some(kind) }, watcher)))
        });
        Ok(stream.boxed())
    }
}

/// Up to where nothing is to be told, for each shard that is watched.
fn begin(view: &View, after: &[ShardRevision]) -> Result<BTreeMap<u32, Revision>, Status> {
    let mut cursors: BTreeMap<u32, Revision> =
        view.headers().map(|header| (header.shard, header.revision)).collect();
    for ShardRevision { shard, revision } in after {
        let asked = Revision(*revision);
        let refusal = match cursors.get_mut(shard) {
            // Of a shard that can't hold what is watched.
            None if *shard < view.shards() => continue,
            None => Refusal::NoSuchShard { shard: *shard, shards: view.shards() },
            Some(now) if asked > *now => Refusal::NotYet { shard: *shard, now: *now, asked },
            Some(now) => {
                *now = asked;
                continue;
            }
        };
        return Err(edge::status(wire::refused(&refusal)));
    }
    Ok(cursors)
}

/// A shard that is watched and not served here any more.
fn missing(state: &View, cursors: &BTreeMap<u32, Revision>) -> Option<u32> {
    if state.is_whole() {
        return None;
    }
    cursors.keys().copied().find(|shard| state.header(*shard).is_none())
}

/// One stream.
struct Watcher {
    /// Everything up to here has been looked at.
    cursors: BTreeMap<u32, Revision>,
    /// What the watcher knows of that.
    told: BTreeMap<u32, Revision>,
    ranges: Arc<[Range]>,
    /// Its watcher knows that shards may go, and come back.
    is_part: bool,
    previous: bool,
    every: Duration,
    /// When the watcher is told that nothing is missing.
    due: Instant,
    /// The shard that was read last.
    served: u32,
    /// What is sent next.
    waiting: VecDeque<Kind>,
    /// Nothing follows what waits.
    over: bool,
    states: watch::Receiver<Option<Arc<View>>>,
    /// Ends when the member has known no leader for too long.
    cut_off: BoxFuture<'static, proto::raft::Refusal>,
    shutdown: Shutdown,
    _place: Place,
}

impl Watcher {
    /// The next message, when there is one; none at the end.
    async fn next(&mut self) -> Result<Option<Kind>, Status> {
        loop {
            if let Some(kind) = self.waiting.pop_front() {
                self.note(&kind);
                return Ok(Some(kind));
            }
            if self.over {
                return Ok(None);
            }
            if Instant::now() >= self.due {
                self.waiting.push_back(self.progress());
                continue;
            }
            // Noted before it is read, so that nothing applied meanwhile is missed.
            let state = self.states.borrow_and_update().clone();
            if let Some(state) = state {
                if let Some(shard) = missing(&state, &self.cursors).filter(|_| !self.is_part) {
                    return Err(edge::status(wire::refused(&Refusal::NotServed { shard })));
                }
                if self.read(state).await? {
                    continue;
                }
            }
            let stopping = || edge::status(refused(&Refused::Shutdown));
            tokio::select! {
                biased;
                () = self.shutdown.requested() => return Err(stopping()),
                refusal = &mut self.cut_off => return Err(edge::status(refusal)),
                () = sleep_until(self.due) => {}
                changed = self.states.changed() => changed.map_err(|_| stopping())?,
            }
        }
    }

    /// Reads on in a shard that has moved, if there is one: each gets its turn.
    async fn read(&mut self, state: Arc<View>) -> Result<bool, Status> {
        let served = self.served;
        let behind = self.cursors.range(served.saturating_add(1)..);
        let moved = behind.chain(self.cursors.range(..=served)).find_map(|(&shard, &at)| {
            let header = state.header(shard)?;
            (header.revision > at).then_some((header, at))
        });
        let Some((header, after)) = moved else { return Ok(false) };
        let (shard, ranges) = (header.shard, self.ranges.clone());
        self.served = shard;
        let look = move || state.changes(shard, after, &ranges, PAGE_BYTES);
        let page = if header.revision.0 - after.0 <= REVISIONS_AT_ONCE {
            look()
        } else {
            let looked = tokio::task::spawn_blocking(look).await;
            looked.map_err(|_| edge::status(refused(&Refused::Shutdown)))?
        };
        match page {
            Ok(page) => self.take(shard, page),
            Err(Refusal::Compacted { compacted: upto, .. }) => {
                self.waiting.push_back(compacted(shard, upto));
                self.over = true;
            }
            Err(refusal) => return Err(edge::status(wire::refused(&refusal))),
        }
        Ok(true)
    }

    fn take(&mut self, shard: u32, page: ChangesPage) {
        for (revision, changes) in page.revisions {
            self.tell(shard, revision, changes);
        }
        self.cursors.insert(shard, page.upto);
    }

    /// The messages of one revision: one, unless it has more than a message carries.
    fn tell(&mut self, shard: u32, revision: Revision, changes: Vec<Change>) {
        let (revision, mut bytes) = (revision.0, 0);
        let mut events = Vec::with_capacity(changes.len());
        for change in changes {
            let more = size(&change, self.previous);
            if bytes > 0 && bytes + more > MESSAGE_BYTES {
                let events = std::mem::take(&mut events);
                let part = WatchEvents { shard, revision, events, continued: true };
                self.waiting.push_back(Kind::Events(part));
                bytes = 0;
            }
            bytes += more;
            events.push(wire::reply::event(change, self.previous));
        }
        if !events.is_empty() {
            let last = WatchEvents { shard, revision, events, continued: false };
            self.waiting.push_back(Kind::Events(last));
        }
    }

    fn progress(&self) -> Kind {
        let moved = self.cursors.iter().filter(|(shard, at)| self.told.get(shard) != Some(at));
        let revisions = moved.map(|(&shard, at)| ShardRevision { shard, revision: at.0 }).collect();
        Kind::Progress(WatchProgress { revisions })
    }

    /// Notes what the watcher knows when it has this.
    fn note(&mut self, kind: &Kind) {
        match kind {
            Kind::Events(events) if !events.continued => {
                self.told.insert(events.shard, Revision(events.revision));
            }
            Kind::Progress(_) => {
                self.told.clone_from(&self.cursors);
                self.due = Instant::now() + self.every;
            }
            Kind::Begun(_) | Kind::Events(_) | Kind::Compacted(_) => {}
        }
    }
}

fn compacted(shard: u32, upto: Revision) -> Kind {
    Kind::Compacted(WatchCompacted { shard, compacted_revision: upto.0 })
}

fn size(change: &Change, previous: bool) -> usize {
    let value = |pair: &Option<Arc<Pair>>| pair.as_ref().map_or(0, |pair| pair.value.len());
    let before = if previous { value(&change.previous) } else { 0 };
    change.key.len() + value(&change.current) + before + 64
}

/// What this member has applied, for everybody who watches: one task looks, and only while there is
/// somebody.
#[derive(Clone)]
struct States {
    latest: Arc<watch::Sender<Option<Arc<View>>>>,
    joined: Arc<Notify>,
}

impl States {
    fn new(handle: Handle<KvMachine>) -> Self {
        let states = Self { latest: Arc::new(watch::Sender::new(None)), joined: Arc::default() };
        let (latest, joined) = (Arc::downgrade(&states.latest), states.joined.clone());
        tokio::spawn(async move {
            let (mut applied, mut status) = (handle.watch_applied(), handle.watch_status());
            // Ends with the service, or with the host.
            while let Some(latest) = latest.upgrade() {
                if latest.receiver_count() == 0 {
                    // An old state would keep what has gone since.
                    latest.send_replace(None);
                    drop(latest);
                    joined.notified().await;
                    continue;
                }
                applied.mark_unchanged();
                let answer = handle.query_stale(Query::View(Scope::All)).await;
                let shown = match answer {
                    Ok(Answer::View(view)) => {
                        latest.send_replace(Some(Arc::new(view)));
                        true
                    }
                    // A member that has too much to do is asked again.
                    Ok(_) | Err(Refused::Overloaded { .. }) => false,
                    // Who watches is sent to another member meanwhile.
                    Err(Refused::Doubted) => {
                        if status.wait_for(|status| status.trust.serves()).await.is_err() {
                            return;
                        }
                        false
                    }
                    // The host has ended.
                    Err(_) => return,
                };
                drop(latest);
                sleep(GATHER).await;
                if shown && applied.changed().await.is_err() {
                    return;
                }
            }
        });
        states
    }

    fn join(&self) -> watch::Receiver<Option<Arc<View>>> {
        let receiver = self.latest.subscribe();
        self.joined.notify_one();
        receiver
    }
}

/// A watcher's place among the limited ones, counted while it is taken.
pub(crate) struct Place(
    #[expect(dead_code, reason = "is given back when it is dropped")] OwnedSemaphorePermit,
);

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("flotilla_kv_watchers").increment(1.0);
        Self(permit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("flotilla_kv_watchers").decrement(1.0);
    }
}
