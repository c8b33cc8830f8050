//! What a worker says to its coordinator, each with its limits and what a refusal means.

use std::{io, sync::Arc, time::Duration};

use daemon::Failure;
use proto::mapreduce::{
    Abandoned, Assignment, AttemptId, DeregisterRequest, FailureReason, HeartbeatReply,
    HeartbeatRequest, PollReply, PollRequest, RegisterReply, RegisterRequest, ReportRequest,
    Success, Verdict, report_request,
};
use tokio::{sync::watch, time::sleep};
use tonic::{Code, Status};

use crate::{paths::Root, session::Lane};

/// How long a call may take; a poll waits at the coordinator for at most 20 s.
const CALL_LIMIT: Duration = Duration::from_secs(10);
const POLL_LIMIT: Duration = Duration::from_secs(30);
/// A heartbeat that takes longer is better sent again.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(2);
/// Nobody waits long for a farewell.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// The pause after a refusal that may pass.
pub(crate) const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// How often a root without a token is looked at again: a network file system may show the new file
/// late.
const TOKEN_TRIES: u32 = 5;

/// Who this worker is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) name: String,
    /// Drawn when the process started.
    pub(crate) incarnation: Vec<u8>,
    pub(crate) slots: u32,
    pub(crate) apps: Vec<String>,
}

/// How many tasks are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// To start at once.
    pub(crate) free_slots: u32,
    /// To keep ready.
    pub(crate) ready: u32,
}

impl Wants {
    pub(crate) fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// How an attempt's end is reported.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    Success(Success),
    Failure(FailureReason),
    Abandoned,
}

/// Registers, however long that takes.
///
/// # Errors
/// Configuration, when the coordinator will never take this worker as it is.
pub(crate) async fn register(
    lane: &Lane,
    identity: &Identity,
    root: &Arc<Root>,
    running: &[AttemptId],
) -> Result<RegisterReply, Failure> {
    let mut without_token = 0;
    loop {
        let root_token = token(root).await.map_err(|error| {
            Failure::machine("the shared root's token cannot be read").because(error)
        })?;
        let absent = root_token.is_empty();
        let request = RegisterRequest {
            name: identity.name.clone(),
            incarnation: identity.incarnation.clone().into(),
            slots: identity.slots,
            apps: identity.apps.clone(),
            running: running.to_vec(),
            root_token,
        };
        let call = |mut client: crate::session::Client| {
            let request = request.clone();
            async move { client.register(request).await }
        };
        let status = match lane.call(CALL_LIMIT, call).await {
            Ok(reply) => return Ok(reply),
            Err(status) => status,
        };
        if absent && status.code() == Code::FailedPrecondition && without_token < TOKEN_TRIES {
            without_token += 1;
        } else if is_final(&status) || status.code() == Code::FailedPrecondition {
            return Err(refusal(&status));
        } else {
            tracing::warn!(error = %status, "the coordinator does not register this worker");
        }
        sleep(REFUSED_PAUSE).await;
    }
}

/// The file system may block, so it is asked elsewhere.
async fn token(root: &Arc<Root>) -> io::Result<String> {
    let root = Arc::clone(root);
    tokio::task::spawn_blocking(move || root.token()).await.map_err(io::Error::other)?
}

fn refusal(status: &Status) -> Failure {
    Failure::configuration(format!("the coordinator refuses this worker: {}", status.message()))
}

/// Whether the same request would be refused for ever.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}

/// Asks for work.
pub(crate) async fn poll(
    lane: &Lane,
    identity: &Identity,
    worker: u64,
    wants: Wants,
) -> Result<PollReply, Status> {
    let incarnation = identity.incarnation.clone().into();
    let Wants { free_slots, ready: prefetch } = wants;
    let request = PollRequest { worker, incarnation, free_slots, prefetch };
    let call = |mut client: crate::session::Client| {
        let request = request.clone();
        async move { client.poll(request).await }
    };
    lane.call(POLL_LIMIT, call).await
}

/// Renews leases.
pub(crate) async fn heartbeat(
    lane: &Lane,
    request: HeartbeatRequest,
) -> Result<HeartbeatReply, Status> {
    let call = |mut client: crate::session::Client| {
        let request = request.clone();
        async move { client.heartbeat(request).await }
    };
    lane.call(HEARTBEAT_LIMIT, call).await
}

/// Reports the end of an attempt until there is a verdict; nothing if the coordinator will never
/// take this report. What the worker wants is asked for with it: the tasks that come with the
/// verdict save it a poll.
pub(crate) async fn report(
    lane: &Lane,
    identity: &Identity,
    mut registered: watch::Receiver<Option<u64>>,
    attempt: &AttemptId,
    ending: &Ending,
    wants: Wants,
) -> Option<(Verdict, Vec<Assignment>)> {
    loop {
        // The number may change when the coordinator does.
        let worker = (*registered.wait_for(Option::is_some).await.ok()?)?;
        let request = ReportRequest {
            worker,
            incarnation: identity.incarnation.clone().into(),
            attempt: Some(attempt.clone()),
            end: Some(match ending.clone() {
                Ending::Success(success) => report_request::End::Success(success),
                Ending::Failure(reason) => report_request::End::Failure(reason),
                Ending::Abandoned => report_request::End::Abandoned(Abandoned {}),
            }),
            poll_free_slots: wants.free_slots,
            poll_prefetch: wants.ready,
        };
        let call = |mut client: crate::session::Client| {
            let request = request.clone();
            async move { client.report(request).await }
        };
        match lane.call(CALL_LIMIT, call).await {
            Ok(reply) => {
                let verdict = reply.verdict();
                let work = reply.assignments.map(|work| work.assignments);
                return Some((verdict, work.unwrap_or_default()));
            }
            Err(status) if is_final(&status) => {
                tracing::error!(error = %status, ?attempt, "the coordinator refuses a report");
                return None;
            }
            Err(status) => {
                tracing::warn!(error = %status, "a report has to wait");
                sleep(REFUSED_PAUSE).await;
            }
        }
    }
}

/// Says goodbye, if somebody listens.
pub(crate) async fn deregister(lane: &Lane, identity: &Identity, worker: u64) {
    let incarnation = identity.incarnation.clone().into();
    let request = DeregisterRequest { worker, incarnation };
    let call = |mut client: crate::session::Client| {
        let request = request.clone();
        async move { client.deregister(request).await }
    };
    match tokio::time::timeout(FAREWELL_LIMIT, lane.call(FAREWELL_LIMIT, call)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the farewell is refused"),
        Err(_) => tracing::warn!("nobody takes the farewell"),
    }
}
