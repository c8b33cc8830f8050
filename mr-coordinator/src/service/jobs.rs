//! The service `Jobs`.

use std::time::Duration;

use prost::Message;
use proto::mapreduce as pb;
use tonic::{Code, Request, Response, Status};

use super::{Desk, invalid, maybe, misfit, never, refuse, stopping};
use crate::{
    blobs,
    driver::{self, Told},
    ids::JobId,
    job::{Job, Verdict},
    limits::{GET_WAIT_MS, LIST_BYTES_MAX, LIST_DEFAULT, LIST_MAX, TOKEN_BYTES_MAX},
    machine::{Answer, Query},
    output::{self, OutputError},
    plan::{self, PlanError},
    root::PathError,
    schedule::Reply,
    spec::{BadSpec, Spec},
    streaming::nobody_runs,
    wire,
};

/// How long checking a submission's files may take; clients wait a little longer.
const CHECK_LIMIT: Duration = Duration::from_secs(50);

/// What users call.
#[derive(Clone)]
pub struct JobsService {
    desk: Desk,
}

impl JobsService {
    /// The service at this desk.
    #[must_use]
    pub fn new(desk: Desk) -> Self {
        Self { desk }
    }

    async fn job(&self, id: JobId) -> Result<std::sync::Arc<Job>, Status> {
        match self.desk.query(Query::Job(id)).await? {
            Answer::Job(Some(job)) => Ok(job),
            Answer::Job(None) => {
                Err(refuse(Code::NotFound, format!("there is no job {id}, or it was forgotten")))
            }
            Answer::State(_) | Answer::Page(_) => Err(misfit()),
        }
    }

    /// Jobs as callers see them.
    async fn views(&self, jobs: &[std::sync::Arc<Job>]) -> Result<Vec<pb::Job>, Status> {
        let ids = jobs.iter().map(|job| job.id).collect();
        match self.desk.ask(driver::Request::View(ids)).await? {
            Told::View(progress, workers) => Ok(jobs
                .iter()
                .zip(&progress)
                .map(|(job, progress)| wire::job(job, progress.as_ref(), workers))
                .collect()),
            Told::Reply(_)
            | Told::Tasks(_)
            | Told::Workers(_)
            | Told::Changed
            | Told::NotLeader
            | Told::TooMany(_) => Err(misfit()),
        }
    }

    async fn view(&self, job: std::sync::Arc<Job>) -> Result<pb::Job, Status> {
        let mut views = self.views(&[job]).await?;
        views.pop().ok_or_else(misfit)
    }

    /// Checks a submission's files; the output in normal form.
    async fn check(&self, spec: &Spec) -> Result<String, Status> {
        let (root, can_exchange, spec) =
            (self.desk.root.clone(), self.desk.can_exchange, spec.clone());
        let asked =
            self.desk.lanes.submissions.ask(move || check_files(&root, &spec, can_exchange));
        let answered = asked.map_err(|full| refuse(Code::ResourceExhausted, full.to_string()))?;
        match tokio::time::timeout(CHECK_LIMIT, answered).await {
            Ok(Ok(checked)) => checked,
            Ok(Err(_)) => Err(never(stopping())),
            // Final: to ask again at once would only make it look at everything again.
            Err(_) => Err(refuse(
                Code::FailedPrecondition,
                "looking at the inputs on the shared filesystem takes too long; is it in trouble, \
                 or are there too many files?",
            )),
        }
    }

    /// The job that a token belongs to.
    async fn known(&self, token: &str, spec: &Spec) -> Result<Option<pb::SubmitReply>, Status> {
        match self.desk.query(Query::Token(token.to_owned())).await? {
            Answer::Job(None) => Ok(None),
            Answer::Job(Some(job)) if *job.spec == *spec => {
                let job = Some(self.view(job).await?);
                Ok(Some(pb::SubmitReply { job, existed: true }))
            }
            Answer::Job(Some(job)) => Err(token_conflict(&job)),
            Answer::State(_) | Answer::Page(_) => Err(misfit()),
        }
    }
}

fn token_conflict(job: &Job) -> Status {
    let message = format!("client_token: it belongs to job {}, which has another spec", job.id);
    refuse(Code::AlreadyExists, message)
}

fn check_files(
    root: &crate::root::Root,
    spec: &Spec,
    can_exchange: bool,
) -> Result<String, Status> {
    if let Some(streaming) = &spec.streaming {
        blobs::check(root, streaming).map_err(|error| bad_spec(&error))?;
    }
    let key = output::check(root, spec, can_exchange).map_err(|error| bad_output(&error))?;
    if !spec.scheduling.after.is_empty() {
        // Its inputs may not be there yet; when it is planned they are checked.
        plan::check_names(root, spec).map_err(|error| bad_inputs(&error))?;
        output::check_apart(root, spec, &key, &[]).map_err(|error| bad_output(&error))?;
        return Ok(key);
    }
    let inputs = plan::inputs(root, spec).map_err(|error| bad_inputs(&error))?;
    // Cut as for one slot: what is impossible shows in any case.
    plan::split(spec, &inputs, 1).map_err(|error| bad_spec(&error))?;
    output::check_apart(root, spec, &key, &inputs).map_err(|error| bad_output(&error))?;
    Ok(key)
}

fn bad_spec(error: &BadSpec) -> Status {
    refuse(Code::InvalidArgument, error.to_string())
}

fn bad_path(error: &PathError, message: String) -> Status {
    match error {
        PathError::Refused { .. } => refuse(Code::InvalidArgument, message),
        PathError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            refuse(Code::NotFound, message)
        }
        PathError::Io { .. } => refuse(Code::FailedPrecondition, message),
    }
}

fn bad_output(error: &OutputError) -> Status {
    match error {
        OutputError::Spec(error) => bad_spec(error),
        OutputError::Path(path) => bad_path(path, error.to_string()),
        OutputError::Exists { .. } => refuse(Code::AlreadyExists, error.to_string()),
    }
}

fn bad_inputs(error: &PlanError) -> Status {
    match error {
        PlanError::NoMatch(_) => refuse(Code::NotFound, error.to_string()),
        PlanError::Spec(error) => bad_spec(error),
        PlanError::Path(path) => bad_path(path, error.to_string()),
        PlanError::Store(_) | PlanError::Damaged(_) => {
            refuse(Code::FailedPrecondition, error.to_string())
        }
    }
}

#[tonic::async_trait]
impl pb::jobs_server::Jobs for JobsService {
    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitReply>, Status> {
        let pb::SubmitRequest { spec, client_token: token } = request.into_inner();
        if !(1..=TOKEN_BYTES_MAX).contains(&token.len()) {
            let message =
                format!("client_token: it has {} bytes, not 1 to {TOKEN_BYTES_MAX}", token.len());
            return Err(refuse(Code::InvalidArgument, message));
        }
        let spec = spec.ok_or_else(|| refuse(Code::InvalidArgument, "spec: it is missing"))?;
        let spec = wire::spec(spec).map_err(|error| bad_spec(&error))?;
        if let Some(known) = self.known(&token, &spec).await? {
            return Ok(Response::new(known));
        }
        let output_key = self.check(&spec).await?;
        let space = self.desk.handle.check_space();
        space.map_err(|refused| refuse(Code::FailedPrecondition, refused.to_string()))?;
        let app = spec.app.clone();
        let job = JobId(uuid::Uuid::now_v7().as_u128());
        let asked = driver::Request::Submit { job, token, spec, output_key };
        let (verdict, job) = match self.desk.ask(asked).await? {
            Told::Reply(Reply::Submitted { verdict, job }) => (verdict, job),
            Told::Reply(Reply::UnknownApp { known }) => {
                let message = format!("app: {}", nobody_runs(&app, &known));
                return Err(refuse(Code::InvalidArgument, message));
            }
            _ => return Err(misfit()),
        };
        let existed = match (verdict, &job) {
            (Verdict::Accepted, _) => false,
            (Verdict::AlreadyAccepted, _) => true,
            (Verdict::TokenConflict, Some(job)) => return Err(token_conflict(job)),
            (Verdict::OutputBusy, Some(job)) => {
                let message = format!("output: job {} writes to `{}`", job.id, job.spec.output);
                return Err(refuse(Code::AlreadyExists, message));
            }
            (Verdict::AfterUnknown, _) => {
                let message = "after: a job is not known, or was forgotten";
                return Err(refuse(Code::NotFound, message));
            }
            (Verdict::TooMany, _) => {
                let message = "there are too many jobs that have not ended (limit jobs_active_max)";
                return Err(refuse(Code::ResourceExhausted, message));
            }
            _ => return Err(misfit()),
        };
        let job = job.ok_or_else(misfit)?;
        if !existed {
            tracing::info!(job = %job.id, app = job.spec.app, output = job.spec.output, "job submitted");
        }
        // It is in the log: from here on nothing is certain but that.
        let view = self.view(job).await.map_err(maybe)?;
        Ok(Response::new(pb::SubmitReply { job: Some(view), existed }))
    }

    async fn get(&self, request: Request<pb::JobRef>) -> Result<Response<pb::Job>, Status> {
        let pb::JobRef { job, after_version: after } = request.into_inner();
        let id = wire::job_id(&job).map_err(|error| invalid(&error))?;
        let view = self.view(self.job(id).await?).await?;
        let ended = view.ended_unix_ms > 0;
        if after == 0 || ended || view.version > after {
            return Ok(Response::new(view));
        }
        let watch = driver::Request::Watch { job: id, after };
        let changed = self.desk.ask_within(watch, Duration::from_millis(GET_WAIT_MS)).await;
        match changed {
            Ok(_) => {}
            Err(status) if status.code() == Code::DeadlineExceeded => {}
            Err(status) => return Err(status),
        }
        Ok(Response::new(self.view(self.job(id).await?).await?))
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListReply>, Status> {
        let pb::ListRequest { limit, page_token } = request.into_inner();
        let limit = if limit == 0 { LIST_DEFAULT } else { limit.min(LIST_MAX) };
        let behind = match page_token.as_str() {
            "" => None,
            token => Some(wire::job_id(token).map_err(|error| invalid(&error))?),
        };
        let page = self.desk.query(Query::Page { limit: limit as usize, behind }).await?;
        let Answer::Page(page) = page else { return Err(misfit()) };
        let Some((jobs, mut more)) = page else {
            return Err(refuse(Code::NotFound, "page_token: the job was forgotten; begin again"));
        };
        let mut views = self.views(&jobs).await?;
        let mut bytes = 0;
        let fits = |view: &&pb::Job| {
            bytes += view.encoded_len();
            bytes <= LIST_BYTES_MAX
        };
        let fitting = views.iter().take_while(fits).count().max(1);
        more |= fitting < views.len();
        views.truncate(fitting);
        let last = views.last().filter(|_| more).map(|job| job.id.clone());
        let next_page_token = last.unwrap_or_default();
        Ok(Response::new(pb::ListReply { jobs: views, next_page_token }))
    }

    async fn cancel(&self, request: Request<pb::JobRef>) -> Result<Response<pb::Job>, Status> {
        let id = wire::job_id(&request.into_inner().job).map_err(|error| invalid(&error))?;
        // A job that is unknown leaves no trace in the log.
        self.job(id).await?;
        let told = self.desk.ask(driver::Request::Cancel(id)).await?;
        let Told::Reply(Reply::Cancelled { verdict, job }) = told else { return Err(misfit()) };
        match (verdict, job) {
            (Verdict::Accepted | Verdict::AlreadyAccepted | Verdict::Stale, Some(job)) => {
                Ok(Response::new(self.view(job).await.map_err(maybe)?))
            }
            (Verdict::TooLate, Some(job)) => {
                let message = format!("job {id} is {:?} and can no longer be cancelled", job.state);
                Err(refuse(Code::FailedPrecondition, message))
            }
            (Verdict::JobGone, _) => {
                Err(refuse(Code::NotFound, format!("there is no job {id}, or it was forgotten")))
            }
            _ => Err(misfit()),
        }
    }

    async fn list_tasks(
        &self,
        request: Request<pb::ListTasksRequest>,
    ) -> Result<Response<pb::ListTasksReply>, Status> {
        self.desk.list_tasks(request.into_inner()).await.map(Response::new)
    }

    async fn list_workers(
        &self,
        _: Request<pb::ListWorkersRequest>,
    ) -> Result<Response<pb::ListWorkersReply>, Status> {
        self.desk.list_workers().await.map(Response::new)
    }

    async fn put_blob(
        &self,
        request: Request<tonic::Streaming<pb::BlobChunk>>,
    ) -> Result<Response<pb::BlobRef>, Status> {
        self.desk.put_blob(request.into_inner()).await.map(Response::new)
    }

    async fn drain_worker(
        &self,
        request: Request<pb::DrainWorkerRequest>,
    ) -> Result<Response<pb::DrainWorkerReply>, Status> {
        self.desk.drain_worker(request.into_inner().name).await.map(Response::new)
    }
}
