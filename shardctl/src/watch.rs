//! Streams of where shards and groups are, as this member has applied it, wherever the leader is.
//!
//! Decides where a stream begins and ends, and what it is sent: all of it, and then the difference
//! between what was told last and what is there when its connection has room. So a slow watcher
//! misses what was only meanwhile, and holds one state. Everything that a member applies is what all
//! members apply, so a change of leaders does not matter, and a watcher goes on anywhere.

use std::{sync::Arc, time::Duration};

use daemon::Shutdown;
use futures::{
    future::BoxFuture,
    stream::{BoxStream, StreamExt, try_unfold},
};
use proto::{
    raft::{Reason, Refusal},
    shard::{WatchReply, WatchRequest},
};
use raftd::{
    Handle, Refused,
    edge::{self, cut_off, never, refused},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;

use crate::{ShardMachine, desk::Desk, wire::reply};

/// How long applied entries gather between two states that watchers are shown.
const GATHER: Duration = Duration::from_millis(1);

/// How often a watcher is told that nothing is missing, unless it says otherwise.
const PROGRESS_DEFAULT: Duration = Duration::from_secs(10);

/// The most often that it is told.
const PROGRESS_MIN: Duration = Duration::from_millis(100);

/// The most streams that a member may be told to serve.
pub(crate) const WATCHERS_LIMIT: u64 = 1_000_000;

/// A state that watchers are shown.
type State = Arc<ShardMachine>;

/// Serves watchers. Clones share the limit.
#[derive(Clone)]
pub(crate) struct Watches {
    desk: Desk,
    states: watch::Receiver<State>,
    limit: usize,
    places: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl Watches {
    /// Must be called on a runtime.
    pub(crate) fn new(desk: Desk, limit: usize, shutdown: Shutdown) -> Self {
        metrics::describe_gauge!("flotilla_shards_watchers", "streams to watchers");
        let (latest, states) = watch::channel(State::default());
        tokio::spawn(show(desk.handle.clone(), latest));
        Self { desk, states, limit, places: Arc::new(Semaphore::new(limit)), shutdown }
    }

    /// Begins a stream. It knows by `deadline` where.
    pub(crate) async fn watch(
        &self,
        request: WatchRequest,
        deadline: Instant,
    ) -> Result<BoxStream<'static, Result<WatchReply, Status>>, Status> {
        let permit = self.places.clone().try_acquire_owned();
        let place = Place::new(permit.map_err(|_| {
            let limit = self.limit;
            let message = format!("this member serves watchers_max watchers, which is {limit}");
            edge::status(never(Reason::Limit, message))
        })?);
        let first = self.first(deadline).await.map_err(edge::status)?;
        let every = match request.progress_ms {
            0 => PROGRESS_DEFAULT,
            ms => Duration::from_millis(ms.into()).max(PROGRESS_MIN),
        };
        let mut status = self.desk.handle.watch_status();
        let watcher = Watcher {
            told: first.clone(),
            whole: Some(whole(&first)),
            every,
            due: Instant::now() + every,
            states: self.states.clone(),
            cut_off: Box::pin(async move { cut_off(&mut status).await }),
            shutdown: self.shutdown.clone(),
            _place: place,
        };
        let stream =
            try_unfold(watcher, |mut watcher| async { Ok(Some((watcher.next().await?, watcher))) });
        Ok(stream.boxed())
    }
}

impl Watches {
    /// What a stream begins with: all that was acknowledged; while nobody leads, what this member has,
    /// since whoever begins anew needs a map, and an old one serves.
    async fn first(&self, deadline: Instant) -> Result<State, Refusal> {
        let handle = &self.desk.handle;
        if handle.leader().is_some() || !handle.serves() {
            return Ok(self.desk.state(deadline).await?.into());
        }
        Ok(handle.query_stale(()).await.map_err(|refusal| refused(&refusal))?.into())
    }
}

/// Shows this member's state to all watchers, whenever it has changed. Ends with the host.
async fn show(handle: Handle<ShardMachine>, latest: watch::Sender<State>) {
    let (mut applied, mut status) = (handle.watch_applied(), handle.watch_status());
    loop {
        // Noted before it is read, so that nothing that happens meanwhile is missed.
        applied.mark_unchanged();
        status.mark_unchanged();
        match handle.query_stale(()).await {
            Ok(machine) => {
                latest.send_if_modified(|shown| {
                    let changed = machine.revision() != shown.revision();
                    *shown = machine.into();
                    changed
                });
                sleep(GATHER).await;
                if applied.changed().await.is_err() {
                    return;
                }
            }
            // A member that has too much to do is asked again.
            Err(Refused::Overloaded { .. }) => sleep(GATHER).await,
            Err(Refused::Shutdown) => return,
            // It is being born, or in doubt, which sends watchers to another member.
            Err(_) => {
                if status.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// One stream.
struct Watcher {
    /// What the watcher knows.
    told: State,
    /// The first message, until it is sent.
    whole: Option<WatchReply>,
    every: Duration,
    /// When the watcher is told that nothing is missing.
    due: Instant,
    states: watch::Receiver<State>,
    /// Ends when the member has known no leader for too long.
    cut_off: BoxFuture<'static, Refusal>,
    shutdown: Shutdown,
    _place: Place,
}

impl Watcher {
    /// The next message, when there is one.
    async fn next(&mut self) -> Result<WatchReply, Status> {
        loop {
            if let Some(whole) = self.whole.take() {
                return Ok(whole);
            }
            // Noted before it is read, so that nothing shown meanwhile is missed.
            let state = self.states.borrow_and_update().clone();
            if state.revision() > self.told.revision() {
                let changes = changes(&self.told, &state);
                self.told = state;
                if let Some(changes) = changes {
                    return Ok(self.sent(changes));
                }
            }
            if Instant::now() >= self.due {
                return Ok(self.sent(progress(&self.told)));
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

    fn sent(&mut self, reply: WatchReply) -> WatchReply {
        self.due = Instant::now() + self.every;
        reply
    }
}

/// What says that nothing is missing.
fn progress(state: &ShardMachine) -> WatchReply {
    let number = state.latest_or_empty(0).number.0;
    WatchReply { revision: state.revision(), number, ..WatchReply::default() }
}

fn whole(state: &ShardMachine) -> WatchReply {
    let (placements, groups) = (reply::placements(state), reply::groups(state));
    WatchReply { whole: true, placements, groups, ..progress(state) }
}

/// What is not in the one as it is in the other, if a watcher has to know of anything.
fn changes(told: &ShardMachine, now: &ShardMachine) -> Option<WatchReply> {
    let placements = (0_u32..).zip(now.placements());
    let placements =
        placements.filter(|(shard, it)| told.placements().get(*shard as usize) != Some(it));
    let rosters = now.rosters().iter().filter(|(id, it)| told.rosters().get(id) != Some(it));
    let forgotten = told.rosters().keys().filter(|id| !now.rosters().contains_key(id));
    let changes = WatchReply {
        placements: placements.map(|(shard, it)| reply::placement(shard, *it)).collect(),
        groups: rosters.map(|(id, roster)| reply::group(*id, roster)).collect(),
        forgotten: forgotten.map(|id| id.0.get()).collect(),
        ..progress(now)
    };
    let number = told.latest_or_empty(0).number.0;
    (changes != WatchReply { number, ..progress(now) }).then_some(changes)
}

/// A watcher's place among the limited ones, counted while it is taken.
struct Place(
    #[expect(dead_code, reason = "is given back when it is dropped")] OwnedSemaphorePermit,
);

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("flotilla_shards_watchers").increment(1.0);
        Self(permit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("flotilla_shards_watchers").decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use raft::{Applied, StateMachine};

    use super::*;
    use crate::{
        command::{Command, Joining, Request},
        ids::{GroupId, RequestId},
    };

    fn apply(machine: &mut ShardMachine, command: &Command) {
        machine.apply(Applied::default(), &command.encode()).unwrap();
    }

    fn request(id: u8, request: Request) -> Command {
        let shards = NonZeroU32::new(4).unwrap();
        Command::Request { id: Some(RequestId([id; 16])), shards, request }
    }

    #[test]
    fn told_is_what_has_changed() {
        let group = |number| GroupId::new(number).unwrap();
        let join = |number| {
            let members = vec!["kvd:7300".to_owned()];
            Request::Join(vec![Joining { group: group(number), weight: 1, members }])
        };
        let mut machine = ShardMachine::default();
        let mut told = machine.clone();
        let mut change = |command: &Command| {
            apply(&mut machine, command);
            let changes = changes(&told, &machine);
            told = machine.clone();
            changes
        };
        let both = change(&request(1, join(1))).unwrap();
        assert_eq!((both.number, both.placements.len(), both.groups.len()), (1, 4, 1));
        assert!(!both.whole && both.forgotten.is_empty());
        // Group 1 shall give up two shards; they are not made yet, so those moves are to end.
        let two = change(&request(2, join(2))).unwrap();
        let shards: Vec<_> = two.placements.iter().map(|it| it.shard).collect();
        assert_eq!((two.number, shards, two.groups[0].group), (2, vec![2, 3], 2));
        let weigh = change(&request(3, Request::Weigh { group: group(2), weight: 1 }));
        assert_eq!(weigh, None, "the same weight again");
        // Nothing but the number of the configuration.
        let pinned = Request::Move { shard: crate::ids::ShardId(3), group: group(2) };
        let pinned = change(&request(4, pinned)).unwrap();
        assert_eq!((pinned.number, pinned.placements.len(), pinned.groups.len()), (3, 0, 0));
        assert_eq!(changes(&told, &told), None);
    }
}
