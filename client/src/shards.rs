//! The client of the shard controller.
//!
//! A change is asked for under one random id, however often it has to be asked, so it is executed
//! once; all else may be repeated. What the controller refuses, as it is expected to, is told as
//! [`Rejected`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proto::shard::{
    AdoptRequest, ChangeOptions, JoinRequest, LeaveRequest, MoveRequest, QueryRequest,
    UnpinRequest, WatchReply, WatchRequest, WeighRequest, change_reply, query_reply, shards_client,
};
pub use proto::shard::{
    Changed, Configuration, Group, HistoryReply, HistoryRequest, Joining, Pin, Placement,
    Reassigned, Refused, RefusedCode, ReportReply, ReportRequest, ReportResult, Reported,
    ShardMove, State, Step, StepKind, Weight,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    Error, InvalidEndpoint, MESSAGE_BYTES_MAX, Options, Outcome, Rejected, Unknown,
    calls::{self, Patience, idempotent, request},
    members::Members,
};

/// The longest state: of the most shards, and of the most groups with the most members.
const STATE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long to wait after a stream that was lost, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often a member tells that nothing is missing.
const PROGRESS: Duration = Duration::from_secs(5);

/// How long a member may say nothing before it is taken for lost.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// A client of one shard controller. Clones share connections.
#[derive(Clone, Debug)]
pub struct ShardClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    members: Arc<Members>,
    options: Options,
}

/// What is to change of which group shall have which shard.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Groups take part.
    Join(Vec<Joining>),
    /// Groups take part no more.
    Leave(Vec<u32>),
    /// A group gets another weight.
    Weigh {
        /// Which.
        group: u32,
        /// Its weight.
        weight: u32,
    },
    /// A shard goes to a group and stays there.
    Move {
        /// Which.
        shard: u32,
        /// Where to.
        group: u32,
    },
    /// A shard need not stay where it was moved to.
    Unpin(u32),
    /// A group that has been alone takes part, with all that it has.
    Adopt(u32),
}

impl ShardClient {
    /// A client of the controller whose members are, or are among, `endpoints` (`host:port` of their
    /// client ports). Connections are made when they are needed; must be called on a runtime.
    ///
    /// # Errors
    /// [`InvalidEndpoint`].
    #[expect(clippy::needless_pass_by_value, reason = "callers have just made the list")]
    pub fn connect(endpoints: Vec<String>, options: Options) -> Result<Self, InvalidEndpoint> {
        let members = Arc::new(Members::new(&endpoints, &options)?);
        Ok(Self { inner: Arc::new(Inner { members, options }) })
    }

    /// Asks for a change, once whatever is lost on the way. `shards` is how many there are, which the
    /// first change fixes; without it the controller knows.
    ///
    /// # Errors
    /// [`Error`] says whether it may have been executed. [`Rejected::NotFound`]: a group or a shard
    /// that it is about is not there; [`Rejected::Exists`]: a group has joined, otherwise;
    /// [`Rejected::Refused`]: the state of things does not allow it.
    pub async fn change(&self, change: &Change, shards: Option<u32>) -> Result<Changed, Error> {
        let id = rand::random::<[u8; 16]>().to_vec().into();
        let options = ChangeOptions { id, shards: shards.unwrap_or(0), dry_run: false };
        self.ask(change, &options).await.into_result()?
    }

    /// What would come of a change.
    ///
    /// # Errors
    /// As [`ShardClient::change`].
    pub async fn plan(&self, change: &Change, shards: Option<u32>) -> Result<Changed, Error> {
        let shards = shards.unwrap_or(0);
        let options = ChangeOptions { shards, dry_run: true, ..ChangeOptions::default() };
        idempotent(self.ask(change, &options).await)?
    }

    /// A configuration, or the latest, and where shards and groups are now. `stale` is what the asked
    /// member knows of it, without asking its leader.
    ///
    /// # Errors
    /// [`Rejected::NotFound`]: there is no such configuration (yet, or any more).
    pub async fn query(&self, number: Option<u64>, stale: bool) -> Result<State, Error> {
        let outcome = calls::call(&self.inner.members, self.patience(), |channel, limit| {
            let message = request(QueryRequest { number, stale }, limit);
            async move { stub(channel).query(message).await }
        });
        match idempotent(outcome.await)?.outcome {
            Some(query_reply::Outcome::State(state)) => Ok(state),
            Some(query_reply::Outcome::Refused(refused)) => Err(rejected(refused).into()),
            None => Err(Rejected::Unavailable(NEWER.to_owned()).into()),
        }
    }

    /// A page of the configurations that are kept, the newest first.
    ///
    /// # Errors
    /// [`Rejected`], since a read changes nothing.
    pub async fn history(&self, page: HistoryRequest) -> Result<HistoryReply, Error> {
        let outcome = calls::call(&self.inner.members, self.patience(), |channel, limit| {
            let message = request(page, limit);
            async move { stub(channel).history(message).await }
        });
        idempotent(outcome.await)
    }

    /// Tells of a group, as its leader. What came of each part is in the reply.
    ///
    /// # Errors
    /// [`Rejected`]: tell it again.
    pub async fn report(&self, report: &ReportRequest) -> Result<ReportReply, Error> {
        let outcome = calls::call(&self.inner.members, self.patience(), |channel, limit| {
            let message = request(report.clone(), limit);
            async move { stub(channel).report(message).await }
        });
        idempotent(outcome.await)
    }

    /// Watches where shards and groups are.
    pub fn watch(&self) -> ShardWatch {
        let map = ShardMap::default();
        ShardWatch { client: self.clone(), stream: None, map, begun: false, pause: PAUSE_MIN }
    }

    /// The map as it was told last, kept up by a task that ends when nobody looks at it any more;
    /// none: it was not told yet. Must be called on a runtime.
    pub fn follow(&self) -> watch::Receiver<Option<Arc<ShardMap>>> {
        let (tell, told) = watch::channel(None);
        let mut watching = self.watch();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    () = tell.closed() => return,
                    next = watching.next() => next,
                };
                match next {
                    Ok(map) => drop(tell.send_replace(Some(Arc::new(map.clone())))),
                    Err(lost) => {
                        tracing::warn!(reason = %lost, "no shard controller tells where shards are");
                        tokio::select! {
                            biased;
                            () = tell.closed() => return,
                            () = sleep(PAUSE_MAX) => {}
                        }
                    }
                }
            }
        });
        told
    }

    /// What came of a request, as the controller tells it.
    async fn ask(
        &self,
        change: &Change,
        options: &ChangeOptions,
    ) -> Outcome<Result<Changed, Error>> {
        let outcome = calls::call(&self.inner.members, self.patience(), |channel, limit| {
            let (change, options) = (change.clone(), Some(options.clone()));
            async move {
                let mut stub = stub(channel);
                match change {
                    Change::Join(groups) => {
                        stub.join(request(JoinRequest { options, groups }, limit)).await
                    }
                    Change::Leave(groups) => {
                        stub.leave(request(LeaveRequest { options, groups }, limit)).await
                    }
                    Change::Weigh { group, weight } => {
                        let message = WeighRequest { options, group, weight };
                        stub.weigh(request(message, limit)).await
                    }
                    Change::Move { shard, group } => {
                        stub.r#move(request(MoveRequest { options, shard, group }, limit)).await
                    }
                    Change::Unpin(shard) => {
                        stub.unpin(request(UnpinRequest { options, shard }, limit)).await
                    }
                    Change::Adopt(group) => {
                        stub.adopt(request(AdoptRequest { options, group }, limit)).await
                    }
                }
            }
        });
        match outcome.await {
            Outcome::Done(reply) => Outcome::Done(match reply.outcome {
                Some(change_reply::Outcome::Changed(changed)) => Ok(changed),
                Some(change_reply::Outcome::Refused(refused)) => Err(rejected(refused).into()),
                None => Err(Unknown { reason: NEWER.to_owned() }.into()),
            }),
            Outcome::Rejected(rejected) => Outcome::Rejected(rejected),
            Outcome::Unknown(unknown) => Outcome::Unknown(unknown),
        }
    }

    async fn subscribe(&self) -> Result<Streaming<WatchReply>, Rejected> {
        let progress_ms = u32::try_from(PROGRESS.as_millis()).unwrap_or(u32::MAX);
        let outcome =
            calls::call(&self.inner.members, self.patience(), |channel, limit| async move {
                // The limit is for the beginning alone.
                timeout(limit, stub(channel).watch(WatchRequest { progress_ms }))
                    .await
                    .unwrap_or_else(|_| Err(Status::unavailable("no answer")))
            });
        match outcome.await {
            Outcome::Done(stream) => Ok(stream),
            Outcome::Rejected(rejected) => Err(rejected),
            Outcome::Unknown(unknown) => Err(Rejected::Unavailable(unknown.reason)),
        }
    }

    fn patience(&self) -> Patience {
        Patience::of(&self.inner.options)
    }
}

/// What is told of an answer without a part that is known.
const NEWER: &str = "the controller gave an answer that this client does not know";

/// Where shards and groups are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardMap {
    /// Of two maps the one with the higher revision is the later one.
    pub revision: u64,
    /// The number of the latest configuration.
    pub number: u64,
    /// Where each shard is, by number; none before the first configuration.
    pub placements: Vec<Placement>,
    /// The groups that are known, by number.
    pub groups: BTreeMap<u32, Group>,
}

/// A watch: the map as it changes, from whichever member. What was so only for a moment may be
/// skipped.
#[derive(Debug)]
pub struct ShardWatch {
    client: ShardClient,
    stream: Option<Streaming<WatchReply>>,
    map: ShardMap,
    /// The map was told once.
    begun: bool,
    pause: Duration,
}

impl ShardWatch {
    /// The map, the first time as it is, then when it has changed, however long that takes. Nothing
    /// is lost when the call is dropped.
    ///
    /// # Errors
    /// [`Rejected`]: no member answers within the deadline of the client's options. The next call
    /// tries again.
    pub async fn next(&mut self) -> Result<&ShardMap, Rejected> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    let stream = self.client.subscribe().await?;
                    self.stream.insert(stream)
                }
            };
            let lost = match timeout(SILENCE_MAX, stream.message()).await {
                Ok(Ok(Some(reply))) => {
                    self.pause = PAUSE_MIN;
                    let news = self.map.take(reply);
                    if news || !self.begun {
                        self.begun = true;
                        return Ok(&self.map);
                    }
                    continue;
                }
                Ok(Ok(None)) => Status::unavailable("the stream ended"),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable("the member says nothing"),
            };
            self.stream = None;
            if lost.code() == Code::InvalidArgument {
                return Err(Rejected::from_status(&lost));
            }
            tracing::debug!(code = ?lost.code(), "a watch is lost");
            sleep(self.pause).await;
            self.pause = (2 * self.pause).min(PAUSE_MAX);
        }
    }

    /// The map as it was told last, if it was.
    pub fn map(&self) -> Option<&ShardMap> {
        self.begun.then_some(&self.map)
    }
}

impl ShardMap {
    /// Takes in a message. Whether it tells anything new.
    fn take(&mut self, reply: WatchReply) -> bool {
        // A member that knows no leader tells what it has, which may be less than was told before.
        if reply.whole && reply.revision < self.revision {
            return false;
        }
        let before = if reply.whole { Some(std::mem::take(self)) } else { None };
        let named = !reply.placements.is_empty()
            || !reply.groups.is_empty()
            || !reply.forgotten.is_empty()
            || reply.number != self.number;
        (self.revision, self.number) = (reply.revision, reply.number);
        for placement in reply.placements {
            let at = placement.shard as usize;
            // They come by number, and all of them when there are any.
            if at < self.placements.len() {
                self.placements[at] = placement;
            } else if at == self.placements.len() {
                self.placements.push(placement);
            }
        }
        self.groups.extend(reply.groups.into_iter().map(|group| (group.group, group)));
        self.groups.retain(|group, _| !reply.forgotten.contains(group));
        match before {
            // A stream that goes on elsewhere begins with what may be known.
            Some(before) => before != Self { revision: before.revision, ..self.clone() },
            None => named,
        }
    }
}

/// What a refusal means for its caller.
fn rejected(refused: Refused) -> Rejected {
    let code = refused.code();
    let message = refused.message;
    match code {
        RefusedCode::NoShard
        | RefusedCode::NotJoined
        | RefusedCode::UnknownGroup
        | RefusedCode::NotKept => Rejected::NotFound(message),
        RefusedCode::Joined => Rejected::Exists(message),
        RefusedCode::Limit => Rejected::Limit(message),
        RefusedCode::NoGroups | RefusedCode::Twice => Rejected::Invalid(message),
        RefusedCode::Unspecified
        | RefusedCode::RefusedBefore
        | RefusedCode::OtherShards
        | RefusedCode::NoMembers
        | RefusedCode::NoWeight
        | RefusedCode::NotEmpty
        | RefusedCode::NothingToAdopt
        | RefusedCode::OtherIdentity
        | RefusedCode::Stale => Rejected::Refused(message),
    }
}

fn stub(channel: Channel) -> shards_client::ShardsClient<Channel> {
    shards_client::ShardsClient::new(channel)
        .max_decoding_message_size(STATE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(shard: u32, owner: u32) -> Placement {
        Placement { shard, owner, ..Placement::default() }
    }

    fn group(group: u32) -> Group {
        Group { group, ..Group::default() }
    }

    #[test]
    fn a_map_takes_in_what_is_new() {
        let whole = WatchReply {
            revision: 5,
            whole: true,
            number: 1,
            placements: vec![placement(0, 1), placement(1, 1)],
            groups: vec![group(1), group(2)],
            forgotten: Vec::new(),
        };
        let mut map = ShardMap::default();
        assert!(map.take(whole.clone()));
        assert!(!map.take(WatchReply { revision: 6, number: 1, ..WatchReply::default() }));
        let moved = WatchReply {
            revision: 7,
            number: 1,
            placements: vec![placement(1, 2)],
            forgotten: vec![2],
            ..WatchReply::default()
        };
        assert!(map.take(moved));
        let owners: Vec<_> = map.placements.iter().map(|it| it.owner).collect();
        assert_eq!((owners, map.groups.len(), map.revision), (vec![1, 2], 1, 7));
        assert!(map.take(WatchReply { revision: 8, number: 2, ..WatchReply::default() }));
        // Another member begins anew.
        assert!(map.take(WatchReply { revision: 9, number: 2, ..whole.clone() }));
        assert!(!map.take(WatchReply { revision: 10, number: 2, ..whole.clone() }));
        assert_eq!((map.revision, map.placements.len()), (10, 2));
        // What makes no sense is passed over.
        let beyond = vec![placement(u32::MAX, 1)];
        map.take(WatchReply { revision: 11, placements: beyond, ..whole.clone() });
        assert!(map.placements.is_empty());
        // A member that has less is not believed.
        assert!(!map.take(whole));
        assert!(map.placements.is_empty());
    }
}
