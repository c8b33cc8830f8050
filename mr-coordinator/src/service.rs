//! The services `Jobs` and `Workers`.
//!
//! Decides what a caller is told: every refusal says whether the request may have been executed,
//! and who leads when this member does not. A submission is checked whole, files included, before
//! anything is proposed.

mod jobs;
mod uploads;
mod views;
mod workers;

use std::{sync::Arc, time::Duration};

use client::metadata::{EXECUTED, LEADER, MAYBE, NEVER};
use proto::mapreduce::{jobs_server::JobsServer, workers_server::WorkersServer};
use raftd::{Handle, Refused};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};
use tonic::{Code, Status, metadata::AsciiMetadataValue};

pub use self::jobs::JobsService;
use self::workers::WorkersService;
use crate::{
    driver::{Call, Request, Told},
    lanes::Lanes,
    machine::{Answer, Machine, Query},
    root::Root,
    schedule::Reply,
    wire::BadMessage,
};

/// The longest request: a spec of [`crate::limits::INPUT_PATTERN_BYTES_MAX`], a worker's list of
/// attempts, with room to say what is too long.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest reply: assignments of [`crate::limits::RUNS_PER_REPLY_MAX`] runs.
const REPLY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a call may take that waits for nothing but the log.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long a question to the replicated state may take.
const QUERY_LIMIT: Duration = Duration::from_secs(5);

/// What both services work with.
#[derive(Clone)]
pub struct Desk {
    /// The replica.
    pub handle: Handle<Machine>,
    /// The task that owns the scheduler.
    pub calls: mpsc::Sender<Call>,
    /// The threads for files.
    pub lanes: Lanes,
    /// The shared root.
    pub root: Arc<Root>,
    /// Whether an output can be replaced.
    pub can_exchange: bool,
    /// Room for files that are being taken in.
    pub uploads: Arc<Semaphore>,
    /// How long such a file may be, in bytes.
    pub blob_bytes_max: u64,
}

/// The service that users call.
#[must_use]
pub fn jobs(desk: Desk) -> JobsServer<JobsService> {
    JobsServer::new(JobsService::new(desk))
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(REPLY_BYTES_MAX)
}

/// The service that workers call.
#[must_use]
pub fn workers(desk: Desk) -> WorkersServer<WorkersService> {
    WorkersServer::new(WorkersService::new(desk))
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(REPLY_BYTES_MAX)
}

impl Desk {
    /// Asks the task that owns the scheduler.
    async fn ask(&self, request: Request) -> Result<Told, Status> {
        self.ask_within(request, CALL_LIMIT).await
    }

    async fn ask_within(&self, request: Request, limit: Duration) -> Result<Told, Status> {
        let (answer, answered) = oneshot::channel();
        self.calls.try_send(Call { request, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => never(Status::resource_exhausted(
                "too many calls wait for the coordinator (limit calls_max)",
            )),
            mpsc::error::TrySendError::Closed(_) => never(stopping()),
        })?;
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(Told::NotLeader)) => Err(self.not_leader()),
            Ok(Ok(Told::TooMany(limit))) => {
                let message = format!("too many callers wait (limit {limit})");
                Err(never(Status::resource_exhausted(message)))
            }
            Ok(Ok(Told::Reply(Reply::Busy))) => Err(maybe(Status::unavailable(
                "the record was not confirmed; the request can be repeated",
            ))),
            Ok(Ok(
                told @ (Told::Reply(_)
                | Told::View(..)
                | Told::Tasks(_)
                | Told::Workers(_)
                | Told::Changed),
            )) => Ok(told),
            // The leadership or the daemon ended meanwhile.
            Ok(Err(_)) => Err(self.with_leader(maybe(Status::unavailable(
                "this member stopped leading before it could answer",
            )))),
            Err(_) => {
                Err(maybe(Status::deadline_exceeded("the coordinator gave no answer in time")))
            }
        }
    }

    /// Asks the replicated state.
    async fn query(&self, query: Query) -> Result<Answer, Status> {
        let deadline = Instant::now() + QUERY_LIMIT;
        self.handle.query(query, deadline).await.map_err(|refused| match refused {
            Refused::NotLeader { .. } => self.not_leader(),
            Refused::Unborn
            | Refused::Overtaken
            | Refused::Transferring
            | Refused::Doubted
            | Refused::Overloaded { .. }
            | Refused::Shutdown
            | Refused::Deadline
            | Refused::LowSpace
            | Refused::TooLarge { .. } => never(Status::unavailable(refused.to_string())),
        })
    }

    fn not_leader(&self) -> Status {
        self.with_leader(never(Status::unavailable("this member does not lead the coordinators")))
    }

    /// Names the leader, if it is another member.
    fn with_leader(&self, mut status: Status) -> Status {
        let leader = self.handle.leader().filter(|leader| leader.node != self.handle.node());
        let address =
            leader.and_then(|leader| AsciiMetadataValue::try_from(leader.client_address).ok());
        if let Some(address) = address {
            status.metadata_mut().insert(LEADER, address);
        }
        status
    }
}

/// The request was not executed and will not be.
fn never(mut status: Status) -> Status {
    status.metadata_mut().insert(EXECUTED, AsciiMetadataValue::from_static(NEVER));
    status
}

/// Nobody knows whether it was.
fn maybe(mut status: Status) -> Status {
    status.metadata_mut().insert(EXECUTED, AsciiMetadataValue::from_static(MAYBE));
    status
}

fn refuse(code: Code, message: impl Into<String>) -> Status {
    never(Status::new(code, message))
}

fn invalid(error: &BadMessage) -> Status {
    refuse(Code::InvalidArgument, error.to_string())
}

fn stopping() -> Status {
    Status::unavailable("the coordinator is stopping")
}

/// An answer that does not fit the question, which only a defect can bring about.
fn misfit() -> Status {
    maybe(Status::internal("the coordinator gave an answer to another question"))
}
