//! The client of a group that gives a shard away, for the group that takes it over.
//!
//! Everything here may be asked twice: whoever asks repeats what was not answered.

use std::{sync::Arc, time::Duration};

pub use proto::kv::{
    FreezeReply, HandoffEnd, HandoffPiece, HandoffPosition, HandoffRequest, HoldReply,
    InspectReply, PullReply, PullRequest, ShardPhase, ShardStanding, pull_reply,
};
use proto::kv::{InspectRequest, handoff_client};
use tokio::time::timeout;
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    Error, InvalidEndpoint, MESSAGE_BYTES_MAX, Options, Outcome, Rejected,
    calls::{self, Patience, idempotent, request},
    members::Members,
};

/// How long a stream may say nothing before its member is taken for lost.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// A client of one group.
#[derive(Debug)]
pub struct HandoffClient {
    members: Arc<Members>,
    options: Options,
}

/// What a member of the source tells, a piece at a time.
#[derive(Debug)]
pub struct Pulled(Streaming<PullReply>);

impl HandoffClient {
    /// A client of the group whose members are, or are among, `endpoints` (`host:port` of their
    /// client ports). Connections are made when they are needed; must be called on a runtime.
    ///
    /// # Errors
    /// [`InvalidEndpoint`].
    pub fn connect(endpoints: &[String], options: Options) -> Result<Self, InvalidEndpoint> {
        Ok(Self { members: Arc::new(Members::new(endpoints, &options)?), options })
    }

    /// Asks that the changes of a shard be kept.
    ///
    /// # Errors
    /// [`Rejected::Refused`]: the group does not know of this move, or can't do it now.
    pub async fn hold(&self, handoff: HandoffRequest) -> Result<HoldReply, Error> {
        let outcome = calls::call(&self.members, self.patience(), |channel, limit| async move {
            stub(channel).hold(request(handoff, limit)).await
        });
        idempotent(outcome.await)
    }

    /// Asks that a shard be served no more.
    ///
    /// # Errors
    /// As [`HandoffClient::hold`].
    pub async fn freeze(&self, handoff: HandoffRequest) -> Result<FreezeReply, Error> {
        let outcome = calls::call(&self.members, self.patience(), |channel, limit| async move {
            stub(channel).freeze(request(handoff, limit)).await
        });
        idempotent(outcome.await)
    }

    /// Asks for what follows on what is there, of whichever member can tell.
    ///
    /// # Errors
    /// [`Rejected::OutOfRange`]: the changes are not there any more, the copy must begin anew.
    pub async fn pull(&self, pull: &PullRequest) -> Result<Pulled, Rejected> {
        let outcome = calls::call(&self.members, self.patience(), |channel, limit| {
            let pull = pull.clone();
            async move {
                // The limit is for the beginning alone.
                timeout(limit, stub(channel).pull(pull))
                    .await
                    .unwrap_or_else(|_| Err(Status::unavailable("no answer")))
            }
        });
        match outcome.await {
            Outcome::Done(stream) => Ok(Pulled(stream)),
            Outcome::Rejected(rejected) => Err(rejected),
            Outcome::Unknown(unknown) => Err(Rejected::Unavailable(unknown.reason)),
        }
    }

    /// Asks a member how the group's shards stand.
    ///
    /// # Errors
    /// [`Rejected`]: nobody answers.
    pub async fn inspect(&self) -> Result<InspectReply, Error> {
        let outcome = calls::call(&self.members, self.patience(), |channel, limit| async move {
            stub(channel).inspect(request(InspectRequest {}, limit)).await
        });
        idempotent(outcome.await)
    }

    fn patience(&self) -> Patience {
        Patience::of(&self.options)
    }
}

impl Pulled {
    /// What comes next; none: the stream ended without saying that all was told.
    ///
    /// # Errors
    /// [`Rejected`]: the rest must be asked for anew.
    pub async fn next(&mut self) -> Result<Option<PullReply>, Rejected> {
        match timeout(SILENCE_MAX, self.0.message()).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(status)) => Err(Rejected::from_status(&status)),
            Err(_) => Err(Rejected::Unavailable("the member says nothing".to_owned())),
        }
    }
}

fn stub(channel: Channel) -> handoff_client::HandoffClient<Channel> {
    handoff_client::HandoffClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
