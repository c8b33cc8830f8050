//! The client of the MapReduce coordinator.
//!
//! Every call is idempotent (a submission by its token), so each is repeated until the deadline,
//! on whichever member leads.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proto::mapreduce::{
    BlobChunk, BlobRef, DrainWorkerReply, DrainWorkerRequest, Job, JobRef, JobSpec, ListReply,
    ListRequest, ListTasksReply, ListTasksRequest, ListWorkersReply, ListWorkersRequest,
    SubmitReply, SubmitRequest, jobs_client,
};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::{
    Error, InvalidEndpoint, MESSAGE_BYTES_MAX, Options,
    calls::{self, Patience, idempotent, request},
    members::Members,
};

/// How long a Get that waits for a change may take: the coordinator holds it for up to 10 s.
const WATCH_ATTEMPT: Duration = Duration::from_secs(15);

/// How long a submission may take: the coordinator looks at its inputs for up to 50 s. To ask
/// again meanwhile would only make it look again.
const SUBMIT_ATTEMPT: Duration = Duration::from_secs(60);

/// How long sending a file may take.
const UPLOAD_ATTEMPT: Duration = Duration::from_secs(60);

/// How much of it is sent in one piece.
const BLOB_PIECE_BYTES: usize = 512 << 10;

/// A client of one coordinator. Clones share connections.
#[derive(Clone, Debug)]
pub struct JobClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    members: Arc<Members>,
    options: Options,
}

impl JobClient {
    /// A client of the coordinator whose members are, or are among, `endpoints` (`host:port`).
    /// Connections are made when they are needed; must be called on a runtime.
    ///
    /// # Errors
    /// [`InvalidEndpoint`].
    #[expect(clippy::needless_pass_by_value, reason = "callers have just made the list")]
    pub fn connect(endpoints: Vec<String>, options: Options) -> Result<Self, InvalidEndpoint> {
        let members = Arc::new(Members::new(&endpoints, &options)?);
        Ok(Self { inner: Arc::new(Inner { members, options }) })
    }

    /// A token for [`JobClient::submit`] that nobody else has.
    pub fn token() -> String {
        format!("{:032x}", rand::random::<u128>())
    }

    /// Submits a job. Repeating it with the same token answers with the same job. No attempt
    /// begins behind the deadline; the last one may take a minute longer, since the coordinator
    /// looks at all inputs before it answers.
    ///
    /// # Errors
    /// [`Error`]; [`crate::Rejected::Exists`] when the token belongs to another spec. An unknown
    /// outcome is settled by submitting again with the same token.
    pub async fn submit(&self, spec: JobSpec, token: String) -> Result<SubmitReply, Error> {
        let message = SubmitRequest { spec: Some(spec), client_token: token };
        let mut patience = self.patience();
        patience.attempt = patience.attempt.max(SUBMIT_ATTEMPT);
        patience.overtime = SUBMIT_ATTEMPT;
        let outcome = calls::call(&self.inner.members, patience, |channel, limit| {
            let message = request(message.clone(), limit);
            async move { stub(channel).submit(message).await }
        });
        outcome.await.into_result()
    }

    /// The state of a job; waits up to 10 s for one newer than `after_version`, 0: does not wait.
    ///
    /// # Errors
    /// [`Error`]; [`crate::Rejected::NotFound`] when there is no such job.
    pub async fn get(&self, job: &str, after_version: u64) -> Result<Job, Error> {
        let message = JobRef { job: job.to_owned(), after_version };
        let mut patience = self.patience();
        if after_version > 0 {
            patience.attempt = patience.attempt.max(WATCH_ATTEMPT);
            patience.deadline += WATCH_ATTEMPT;
        }
        let outcome = calls::call(&self.inner.members, patience, |channel, limit| {
            let message = request(message.clone(), limit);
            async move { stub(channel).get(message).await }
        });
        idempotent(outcome.await)
    }

    /// All jobs, newest first, as the request limits them.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list(&self, list: ListRequest) -> Result<ListReply, Error> {
        let outcome = calls::call(&self.inner.members, self.patience(), |channel, limit| {
            let message = request(list.clone(), limit);
            async move { stub(channel).list(message).await }
        });
        idempotent(outcome.await)
    }

    /// Cancels a job; cancelling again changes nothing.
    ///
    /// # Errors
    /// [`Error`]; [`crate::Rejected::Refused`] once its outputs are being published.
    pub async fn cancel(&self, job: &str) -> Result<Job, Error> {
        let message = JobRef { job: job.to_owned(), after_version: 0 };
        let outcome = calls::call(&self.inner.members, self.patience(), |channel, limit| {
            let message = request(message.clone(), limit);
            async move { stub(channel).cancel(message).await }
        });
        outcome.await.into_result()
    }

    /// The tasks of a job with their attempts, as the request limits them.
    ///
    /// # Errors
    /// [`Error`]; [`crate::Rejected::NotFound`] when there is no such job.
    pub async fn list_tasks(&self, tasks: ListTasksRequest) -> Result<ListTasksReply, Error> {
        let outcome = calls::call(&self.inner.members, self.patience(), |channel, limit| {
            let message = request(tasks.clone(), limit);
            async move { stub(channel).list_tasks(message).await }
        });
        idempotent(outcome.await)
    }

    /// All workers, by name.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list_workers(&self) -> Result<ListWorkersReply, Error> {
        let outcome = calls::call(&self.inner.members, self.patience(), |channel, limit| {
            let message = request(ListWorkersRequest {}, limit);
            async move { stub(channel).list_workers(message).await }
        });
        idempotent(outcome.await)
    }

    /// Tells a worker to end what it runs and leave; telling it again changes nothing.
    ///
    /// # Errors
    /// [`Error`]; [`crate::Rejected::NotFound`] when there is no worker of that name.
    pub async fn drain_worker(&self, name: &str) -> Result<DrainWorkerReply, Error> {
        let message = DrainWorkerRequest { name: name.to_owned() };
        let outcome = calls::call(&self.inner.members, self.patience(), |channel, limit| {
            let message = request(message.clone(), limit);
            async move { stub(channel).drain_worker(message).await }
        });
        idempotent(outcome.await)
    }

    /// Sends a file that jobs can name by the digest that comes back; sending it again changes
    /// nothing.
    ///
    /// # Errors
    /// [`Error`]; [`crate::Rejected::Invalid`] when it is too long for the coordinator.
    pub async fn put_blob(&self, content: Bytes) -> Result<BlobRef, Error> {
        let mut patience = self.patience();
        patience.attempt = patience.attempt.max(UPLOAD_ATTEMPT);
        patience.overtime = UPLOAD_ATTEMPT;
        let outcome = calls::call(&self.inner.members, patience, |channel, limit| {
            let (content, bytes) = (content.clone(), content.len());
            let piece = move |begin: usize| BlobChunk {
                data: content.slice(begin..bytes.min(begin + BLOB_PIECE_BYTES)),
            };
            let pieces = (0..bytes).step_by(BLOB_PIECE_BYTES).map(piece);
            let message = request(tokio_stream::iter(pieces), limit);
            async move { stub(channel).put_blob(message).await }
        });
        idempotent(outcome.await)
    }

    fn patience(&self) -> Patience {
        let options = &self.inner.options;
        Patience {
            deadline: Instant::now() + options.deadline,
            attempt: options.attempt,
            overtime: Duration::ZERO,
        }
    }
}

fn stub(channel: Channel) -> jobs_client::JobsClient<Channel> {
    jobs_client::JobsClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
