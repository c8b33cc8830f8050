//! The source's side of a move: `flotilla.kv.v1.Handoff`, which the destination's leader calls.
//!
//! Decides whose word counts: a shard is held and frozen only for a move that the shard controller told
//! this member of, so that a destination with an old map stops nothing, and only if it means this Raft
//! group by its number. What is copied is read off the task that owns the machine, from what this member
//! has applied, leader or not.

use std::{sync::Arc, time::Duration};

use futures::stream::{BoxStream, StreamExt, unfold};
use proto::{
    kv::{
        FreezeReply, HandoffEnd, HandoffRequest, HoldReply, InspectReply, InspectRequest,
        PullReply, PullRequest,
        handoff_server::{Handoff, HandoffServer},
        pull_reply,
    },
    raft::{Reason, Refusal as Refused},
};
use raftd::{
    Handle,
    edge::{self, never, refused},
    failpoint::{self, Failpoint},
    forward::Stamps,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout},
};
use tonic::{Request, Response, Status};

use crate::{
    KvMachine,
    custody::MoveNumber,
    handoff,
    mover::{Grouped, placement},
    outcome::{Answer, Outcome, Query, Refusal},
    step::{Deed, Step, Stepped},
    steward::GroupNumber,
    wire,
};

/// How many bytes of records one piece has, unless a single record has more. The entry that brings
/// it to the destination's log must have room for the largest record behind all but one byte of that.
const PIECE_BYTES: usize = 48 << 10;

const _: () = assert!(
    PIECE_BYTES + crate::limits::TXN_REPLY_BYTES_MAX as usize + (8 << 10)
        <= raftd::COMMAND_BYTES_MAX
);

/// How many pieces wait for one connection.
const PIECES_AHEAD: usize = 4;

/// How many copies this member tells at a time.
const PULLS_MAX: usize = 16;

/// How many shards leave at a time: of each a log of changes is kept.
const LEAVING_MAX: usize = 16;

/// How long a step may take.
const STEP_LIMIT: Duration = Duration::from_secs(2);

/// How long a member waits to be told of a move that its destination knows of.
const MAP_WAIT: Duration = Duration::from_secs(1);

/// The service, for the client port.
pub(crate) fn service(handle: Handle<KvMachine>, grouped: Grouped) -> HandoffServer<impl Handoff> {
    let pulls = Arc::new(Semaphore::new(PULLS_MAX));
    HandoffServer::new(Giver { handle, grouped, pulls, stamps: Stamps::default() })
        .max_encoding_message_size(2 * raftd::COMMAND_BYTES_MAX)
}

struct Giver {
    handle: Handle<KvMachine>,
    grouped: Grouped,
    pulls: Arc<Semaphore>,
    stamps: Stamps,
}

/// Which move of which shard.
#[derive(Clone, Copy)]
struct Which {
    shard: u32,
    number: MoveNumber,
}

impl Giver {
    fn which(&self, request: HandoffRequest) -> Result<Which, Refused> {
        let HandoffRequest { shards, shard, number } = request;
        let created = self.grouped.shards;
        if shards != created {
            let refusal = Refusal::OtherShards { created, proposed: shards };
            return Err(wire::refused(&refusal));
        }
        if shard >= shards {
            return Err(wire::refused(&Refusal::NoSuchShard { shard, shards }));
        }
        Ok(Which { shard, number: MoveNumber(number) })
    }

    /// Does a step as the leader, for a move that the shard controller has told of.
    async fn step(&self, request: HandoffRequest, deed: Deed<'_>) -> Result<Stepped, Refused> {
        let Which { shard, number } = self.which(request)?;
        self.check_leads()?;
        self.expect_move(shard, number).await?;
        let step = Step { shards: self.grouped.shards, shard, number, deed };
        let deadline = Instant::now() + STEP_LIMIT;
        let response =
            self.stamps.propose(&self.handle, step.encode(), deadline, "the step").await?;
        match response.result {
            Ok(answered) => match answered.outcome {
                Outcome::Stepped(stepped) => Ok(stepped),
                _ => Err(unexpected()),
            },
            Err(refusal) => Err(wire::refused(&refusal)),
        }
    }

    /// Refuses a further shard to leave when as many do as may.
    async fn check_leaving(&self, asked: u32) -> Result<(), Refused> {
        let answered = self.handle.query_stale(Query::Custody).await;
        let Answer::Custody(custodies) = answered.map_err(|refusal| refused(&refusal))? else {
            return Err(unexpected());
        };
        let others = (0..).zip(&custodies).filter(|(shard, it)| *shard != asked && it.is_leaving());
        if others.count() >= LEAVING_MAX {
            let message = format!("leaving_max shards leave the group, which is {LEAVING_MAX}");
            // Final: its destination has others to look after, and comes back.
            return Err(never(Reason::Quota, message));
        }
        Ok(())
    }

    fn check_leads(&self) -> Result<(), Refused> {
        if self.handle.leads() && self.handle.serves() {
            return Ok(());
        }
        let leader = self.handle.leader().filter(|leader| leader.node != self.handle.node());
        Err(refused(&raftd::Refused::NotLeader { leader }))
    }

    /// Waits a little until this member knows of the move, too.
    async fn expect_move(&self, shard: u32, number: MoveNumber) -> Result<(), Refused> {
        let (grouped, group) = (&self.grouped, self.grouped.group);
        let mut map = grouped.map.clone();
        let known = map.wait_for(|map| {
            let told = map.as_ref().and_then(|map| map.placements.get(shard as usize));
            told.is_some_and(|told| is_leaving(told, group, number))
        });
        match timeout(MAP_WAIT, known).await {
            Ok(Ok(map)) => {
                let message = match map.as_ref().and_then(|map| grouped.is_meant(map, &self.handle))
                {
                    Some(true) => return Ok(()),
                    Some(false) => {
                        format!("the shard controller means another Raft group by number {group}")
                    }
                    None => {
                        format!("group {group} has not told the shard controller who it is yet")
                    }
                };
                Err(never(Reason::Invalid, message))
            }
            Ok(Err(_)) | Err(_) => {
                let number = number.0;
                let message = format!(
                    "group {group} was not told that shard {shard} leaves it by move {number}"
                );
                Err(never(Reason::Invalid, message))
            }
        }
    }

    async fn begin_pull(&self, request: PullRequest) -> Result<mpsc::Receiver<PullReply>, Refused> {
        let wanted = wire::handoff::wanted(&request)
            .ok_or_else(|| wire::invalid("a position that cannot be".to_owned()))?;
        let Which { shard, .. } = self.which(request.handoff.unwrap_or_default())?;
        let Ok(turn) = self.pulls.clone().try_acquire_owned() else {
            let message =
                format!("this member tells pulls_max copies of shards, which is {PULLS_MAX}");
            return Err(never(Reason::Limit, message));
        };
        if !self.handle.serves() {
            return Err(refused(&raftd::Refused::Doubted));
        }
        let answered = self.handle.query_stale(Query::Contents(shard)).await;
        let contents = match answered.map_err(|refusal| refused(&refusal))? {
            Answer::Contents(Some(contents)) => *contents,
            Answer::Contents(None) => {
                return Err(never(Reason::NotLeader, "this member has no shards yet"));
            }
            _ => return Err(unexpected()),
        };
        let begun =
            tokio::task::spawn_blocking(|| (contents.handoff(wanted, PIECE_BYTES), turn)).await;
        let stopping = |_| never(Reason::Shutdown, "the member is stopping");
        let (handoff, turn) = begun.map_err(stopping)?;
        let handoff = match handoff {
            Ok(handoff) => handoff,
            // Another member may have applied what this one has not.
            Err(refusal @ Refusal::NoSuchStep { .. }) => {
                return Err(never(Reason::NotLeader, refusal.to_string()));
            }
            Err(refusal) => return Err(wire::refused(&refusal)),
        };
        let (tell, told) = mpsc::channel(PIECES_AHEAD);
        tokio::task::spawn_blocking(move || tell_all(handoff, &tell, turn));
        Ok(told)
    }
}

/// Tells all that there is, for as long as anybody listens.
fn tell_all(
    mut handoff: handoff::Handoff,
    tell: &mpsc::Sender<PullReply>,
    _turn: OwnedSemaphorePermit,
) {
    let reply = |kind| PullReply { kind: Some(kind) };
    while let Some(piece) = handoff.next_piece() {
        let piece = pull_reply::Kind::Piece(wire::handoff::piece(piece));
        if tell.blocking_send(reply(piece)).is_err() {
            return;
        }
    }
    let end = pull_reply::Kind::End(HandoffEnd { frozen: handoff.is_frozen() });
    // Whoever has gone does not need to know.
    drop(tell.blocking_send(reply(end)));
}

/// Whether the controller says that the shard is on its way from this group.
fn is_leaving(told: &client::shards::Placement, group: GroupNumber, number: MoveNumber) -> bool {
    let told = placement(told);
    told.owner == Some(group)
        && told.last == number
        && told.moving.is_some_and(|moving| !moving.cancelling)
}

fn unexpected() -> Refused {
    never(Reason::Invalid, "the answer is to another question")
}

#[tonic::async_trait]
impl Handoff for Giver {
    async fn hold(&self, request: Request<HandoffRequest>) -> Result<Response<HoldReply>, Status> {
        let request = request.into_inner();
        self.check_leads().map_err(edge::status)?;
        self.check_leaving(request.shard).await.map_err(edge::status)?;
        let stepped = self.step(request, Deed::Hold).await.map_err(edge::status)?;
        failpoint::reach(Failpoint::MoveHoldAfter);
        let Stepped::Held(base) = stepped else { return Err(edge::status(unexpected())) };
        Ok(Response::new(HoldReply { base: base.0 }))
    }

    async fn freeze(
        &self,
        request: Request<HandoffRequest>,
    ) -> Result<Response<FreezeReply>, Status> {
        let stepped = self.step(request.into_inner(), Deed::Freeze).await.map_err(edge::status)?;
        failpoint::reach(Failpoint::MoveFreezeAfter);
        let Stepped::Frozen(frozen) = stepped else { return Err(edge::status(unexpected())) };
        Ok(Response::new(wire::handoff::frozen_reply(&frozen)))
    }

    type PullStream = BoxStream<'static, Result<PullReply, Status>>;

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let told = self.begin_pull(request.into_inner()).await.map_err(edge::status)?;
        let next = |mut told: mpsc::Receiver<PullReply>| async move {
            Some((Ok(told.recv().await?), told))
        };
        Ok(Response::new(unfold(told, next).boxed()))
    }

    async fn inspect(
        &self,
        _request: Request<InspectRequest>,
    ) -> Result<Response<InspectReply>, Status> {
        let answered = self.handle.query_stale(Query::Standings).await;
        match answered.map_err(|refusal| edge::status(refused(&refusal)))? {
            Answer::Standings(standings) => {
                let told = (0..).zip(&standings).map(|(shard, standing)| {
                    wire::handoff::standing(standing, self.grouped.tally.of(shard))
                });
                Ok(Response::new(InspectReply { shards: told.collect() }))
            }
            _ => Err(edge::status(unexpected())),
        }
    }
}
