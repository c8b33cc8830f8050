//! A request that reached this member: what the leader does with it, and how it gets there.
//!
//! Who executes it and what may be tried again is decided in `raftd::forward`.

use std::{num::NonZeroU32, time::Duration};

use futures::future::try_join_all;
use proto::{
    raft::{Executed, Refusal},
    shard::{
        self as pb, ForwardRequest, Request, forward_client::ForwardClient, forward_reply, request,
    },
};
use raftd::{
    Handle,
    edge::{Replied, refused},
    forward::{self, Stamps},
};
use tokio::time::Instant;
use tonic::{Status, transport::Channel};

use crate::{
    ShardMachine,
    command::Command,
    ids::{GroupId, RequestId},
    machine::Roster,
    outcome::{self, Done},
    wire::{
        reply,
        request::{Ask, Read, Wish, ask},
    },
};

/// The longest request: more than a command may have, so that one that is too long is refused by
/// the name of its limit.
pub(crate) const REQUEST_BYTES_MAX: usize = 4 << 20;

/// The longest reply: a state of the most groups with the most members.
pub(crate) const REPLY_BYTES_MAX: usize = 16 << 20;

/// Serves requests with the group's replica. Clones share everything.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) handle: Handle<ShardMachine>,
    /// How many shards there are, if nobody says.
    shards: NonZeroU32,
    stamps: Stamps,
}

impl Desk {
    pub(crate) fn new(handle: Handle<ShardMachine>, shards: NonZeroU32) -> Self {
        Self { handle, shards, stamps: Stamps::default() }
    }

    /// Answers a request by `deadline`, passing it on at most `hops_left` times.
    pub(crate) async fn answer(
        &self,
        kind: request::Kind,
        deadline: Instant,
        hops_left: u32,
    ) -> Result<Replied<forward_reply::Kind>, Refusal> {
        let ask = ask(&kind)?;
        if let Ask::Read { read, stale: true } = &ask {
            let reply = self.read(&*self.here().await?, read)?;
            return Ok(Replied { reply, leader: None });
        }
        let asked = Asked { desk: self, ask, kind };
        forward::answer(&self.handle, &asked, deadline, hops_left).await
    }

    /// A state that has seen everything acknowledged before.
    pub(crate) async fn state(&self, deadline: Instant) -> Result<Box<ShardMachine>, Refusal> {
        self.handle.query((), deadline).await.map_err(|refusal| refused(&refusal))
    }

    /// What this member has applied.
    async fn here(&self) -> Result<Box<ShardMachine>, Refusal> {
        self.handle.query_stale(()).await.map_err(|refusal| refused(&refusal))
    }

    async fn propose(
        &self,
        command: &Command,
        deadline: Instant,
    ) -> Result<Result<Done, outcome::Refusal>, Refusal> {
        let what = match command {
            Command::Request { .. } => "the request",
            Command::Report { .. }
            | Command::Settled(_)
            | Command::Cancelled(_)
            | Command::Aborted(_) => "the report",
        };
        self.stamps.propose(&self.handle, command.encode(), deadline, what).await
    }

    /// Answers what changes nothing.
    fn read(&self, machine: &ShardMachine, read: &Read) -> Result<forward_reply::Kind, Refusal> {
        use forward_reply::Kind;
        match read {
            Read::Query(number) => Ok(Kind::Query(reply::queried(machine, *number))),
            Read::History { before, limit } => {
                Ok(Kind::History(reply::history(machine, *before, *limit)))
            }
            Read::Plan(wish) => {
                let before = machine.latest_or_empty(0);
                Ok(Kind::Change(match machine.plan(self.shards(machine, wish), &wish.request) {
                    Ok(after) => reply::changed(after.number, false, reply::moves(&before, &after)),
                    Err(refusal) => reply::unchanged(&refusal)?,
                }))
            }
        }
    }

    /// How many shards a request is about.
    fn shards(&self, machine: &ShardMachine, wish: &Wish) -> NonZeroU32 {
        let created = machine.latest().and_then(|latest| NonZeroU32::new(latest.shards()));
        wish.shards.or(created).unwrap_or(self.shards)
    }

    async fn change(
        &self,
        id: Option<RequestId>,
        wish: &Wish,
        deadline: Instant,
    ) -> Result<pb::ChangeReply, Refusal> {
        self.handle.check_space().map_err(|refusal| refused(&refusal))?;
        let machine = self.state(deadline).await?;
        let (before, shards) = (machine.latest_or_empty(0), self.shards(&machine, wish));
        let command = Command::Request { id, shards, request: wish.request.clone() };
        let Done { number, duplicate } = match self.propose(&command, deadline).await? {
            Ok(done) => done,
            Err(refusal) => return reply::unchanged(&refusal),
        };
        let mut moves = Vec::new();
        if !duplicate && number > before.number {
            let machine = self.here().await.map_err(certain_no_more)?;
            let after = machine.configuration(number);
            moves = after.map_or_else(Vec::new, |after| reply::moves(&before, after));
        }
        Ok(reply::changed(number, duplicate, moves))
    }

    /// Takes in what a group tells, and then what it did. What is known costs no entry.
    async fn report(
        &self,
        group: GroupId,
        roster: &Roster,
        steps: &[Command],
        deadline: Instant,
    ) -> Result<pb::ReportReply, Refusal> {
        let known = self.state(deadline).await?.rosters().get(&group) == Some(roster);
        let told = match roster.reported.filter(|_| !known) {
            None => Ok(()),
            Some(told) => {
                let (identity, index, shards) = (told.identity, told.index, told.shards);
                let members = roster.members.clone();
                let command = Command::Report { group, identity, index, shards, members };
                self.propose(&command, deadline).await?.map(|_| ())
            }
        };
        let steps = steps.iter().map(|step| self.propose(step, deadline));
        let steps = try_join_all(steps).await.map_err(certain_no_more)?;
        let steps = steps.into_iter().map(reply::result).collect::<Result<_, _>>()?;
        Ok(pb::ReportReply { group: Some(reply::result(told)?), steps })
    }
}

/// The refusal of a request of which something was executed already.
fn certain_no_more(mut refusal: Refusal) -> Refusal {
    refusal.set_executed(Executed::Maybe);
    refusal
}

/// One request.
struct Asked<'a> {
    desk: &'a Desk,
    ask: Ask,
    kind: request::Kind,
}

impl forward::Ask for Asked<'_> {
    type Reply = forward_reply::Kind;

    fn may_repeat(&self) -> bool {
        match &self.ask {
            Ask::Change { id, .. } => id.is_some(),
            Ask::Read { .. } | Ask::Report { .. } => true,
        }
    }

    fn is_read(&self) -> bool {
        matches!(self.ask, Ask::Read { .. })
    }

    async fn execute(&self, deadline: Instant) -> Result<forward_reply::Kind, Refusal> {
        let Self { desk, ask, .. } = self;
        match ask {
            Ask::Read { read, stale: _ } => desk.read(&*desk.state(deadline).await?, read),
            Ask::Change { id, wish } => {
                desk.change(*id, wish, deadline).await.map(forward_reply::Kind::Change)
            }
            Ask::Report { group, roster, steps } => {
                let reply = desk.report(*group, roster, steps, deadline).await?;
                Ok(forward_reply::Kind::Report(reply))
            }
        }
    }

    async fn send(
        &self,
        leader: Channel,
        left: Duration,
        hops_left: u32,
    ) -> Result<Option<Result<forward_reply::Kind, Refusal>>, Status> {
        let mut message = tonic::Request::new(ForwardRequest {
            request: Some(Request { kind: Some(self.kind.clone()) }),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            hops_left,
        });
        message.set_timeout(left);
        let mut client = ForwardClient::new(leader).max_decoding_message_size(REPLY_BYTES_MAX);
        let reply = client.execute(message).await?.into_inner();
        Ok(reply.kind.map(|kind| match kind {
            forward_reply::Kind::Refusal(refusal) => Err(refusal),
            kind => Ok(kind),
        }))
    }
}
