//! What operators ask of workers and tasks.

use prost::Message;
use proto::mapreduce as pb;
use tonic::{Code, Status};

use super::{Desk, invalid, misfit, refuse};
use crate::{
    driver::{self, Told},
    ids::TaskKind,
    job::Job,
    limits::{LIST_BYTES_MAX, LIST_DEFAULT, LIST_MAX},
    machine::{Answer, Query},
    schedule::{Reply, TasksView},
    views,
    wire::{self, BadMessage},
};

impl Desk {
    /// A page of a job's tasks.
    pub(super) async fn list_tasks(
        &self,
        request: pb::ListTasksRequest,
    ) -> Result<pb::ListTasksReply, Status> {
        let id = wire::job_id(&request.job).map_err(|error| invalid(&error))?;
        let Answer::Job(job) = self.query(Query::Job(id)).await? else { return Err(misfit()) };
        let job = job.ok_or_else(|| {
            refuse(Code::NotFound, format!("there is no job {id}, or it was forgotten"))
        })?;
        let wanted = Wanted::of(&request, &job).map_err(|error| invalid(&error))?;
        let mut reply = pb::ListTasksReply::default();
        let mut at = wanted.from;
        let mut bytes = 0;
        // Filters may pass over many tasks: the leader is asked for a piece at a time.
        while let Some(first) = at {
            let last = first.number.saturating_add(LIST_MAX - 1);
            let last = last.min(job.total(first.kind).saturating_sub(1));
            let asked =
                driver::Request::Tasks { job: id, kind: first.kind, numbers: (first.number, last) };
            let Told::Tasks(view) = self.ask(asked).await? else { return Err(misfit()) };
            let view = view.map(|view| *view).unwrap_or_default();
            let job = view.before_end.as_ref().unwrap_or(&job);
            while let Some(task) = at.filter(|task| task.kind == first.kind && task.number <= last)
            {
                if wanted.takes(job, task, &view) {
                    let shown = views::task(job, task, &view);
                    bytes += shown.encoded_len();
                    let full = reply.tasks.len() >= wanted.limit || bytes > LIST_BYTES_MAX;
                    if full && !reply.tasks.is_empty() {
                        reply.next_page_token = views::page_token(task);
                        return Ok(reply);
                    }
                    reply.tasks.push(shown);
                }
                at = views::next_task(job, task);
            }
        }
        Ok(reply)
    }

    /// All workers, those that are registered and absent too.
    pub(super) async fn list_workers(&self) -> Result<pb::ListWorkersReply, Status> {
        let Answer::State(state) = self.query(Query::State).await? else { return Err(misfit()) };
        let Told::Workers(present) = self.ask(driver::Request::Workers).await? else {
            return Err(misfit());
        };
        let absent = state.workers().filter(|known| !present.iter().any(|is| is.id == known.id));
        let absent = absent.map(|record| views::absent_worker(record));
        let mut workers: Vec<_> = present.iter().map(views::worker).chain(absent).collect();
        workers.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(pb::ListWorkersReply { workers })
    }

    /// Tells a worker to leave.
    pub(super) async fn drain_worker(&self, name: String) -> Result<pb::DrainWorkerReply, Status> {
        let told = self.ask(driver::Request::Drain(name.clone())).await?;
        let Told::Reply(Reply::Draining(view)) = told else { return Err(misfit()) };
        let view = view.ok_or_else(|| {
            refuse(Code::NotFound, format!("no worker of the name `{name}` is registered"))
        })?;
        tracing::info!(worker = name, "an operator wants a worker to leave");
        Ok(pb::DrainWorkerReply { worker: Some(views::worker(&view)) })
    }
}

/// Which tasks a caller wants to see.
struct Wanted {
    from: Option<crate::ids::TaskId>,
    kind: Option<TaskKind>,
    states: Vec<pb::TaskState>,
    limit: usize,
}

impl Wanted {
    fn of(request: &pb::ListTasksRequest, job: &Job) -> Result<Self, BadMessage> {
        let bad = |problem: &str| BadMessage(problem.to_owned());
        let kind = match pb::TaskKind::try_from(request.kind) {
            Ok(pb::TaskKind::Unspecified) => None,
            Ok(pb::TaskKind::Map) => Some(TaskKind::Map),
            Ok(pb::TaskKind::Reduce) => Some(TaskKind::Reduce),
            Err(_) => return Err(bad("kind: it is not known")),
        };
        let states = request.states.iter().map(|state| pb::TaskState::try_from(*state));
        let states = states.collect::<Result<_, _>>().map_err(|_| bad("states: one is unknown"))?;
        let from = match request.page_token.as_str() {
            "" => views::first_task(job),
            token => {
                let from = views::page_start(token);
                let from = from.ok_or_else(|| bad("page_token: it does not come from here"))?;
                Some(from).filter(|task| task.number < job.total(task.kind))
            }
        };
        let limit = if request.limit == 0 { LIST_DEFAULT } else { request.limit.min(LIST_MAX) };
        Ok(Self { from, kind, states, limit: limit as usize })
    }

    fn takes(&self, job: &Job, task: crate::ids::TaskId, view: &TasksView) -> bool {
        self.kind.is_none_or(|kind| kind == task.kind)
            && (self.states.is_empty() || self.states.contains(&views::state(job, task, view)))
    }
}
