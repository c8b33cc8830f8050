//! The service `Workers`.

use std::time::Duration;

use proto::mapreduce as pb;
use tonic::{Code, Request, Response, Status};

use super::{Desk, invalid, misfit, refuse};
use crate::{
    driver::{self, Told},
    ids::{AttemptId, WorkerId},
    limits::POLL_WAIT_MS,
    schedule::{Reply, Wants},
    wire::{self, BadMessage},
};

/// How much longer than the scheduler a poll waits for its answer.
const POLL_MARGIN: Duration = Duration::from_secs(3);

/// What workers call.
#[derive(Clone)]
pub struct WorkersService {
    desk: Desk,
}

impl WorkersService {
    pub(super) fn new(desk: Desk) -> Self {
        Self { desk }
    }

    async fn ask(&self, request: driver::Request) -> Result<Reply, Status> {
        match self.desk.ask(request).await? {
            Told::Reply(reply) => Ok(reply),
            Told::View(..)
            | Told::Tasks(_)
            | Told::Workers(_)
            | Told::Changed
            | Told::NotLeader
            | Told::TooMany(_) => Err(misfit()),
        }
    }
}

fn attempts(wire: Vec<pb::AttemptId>) -> Result<Vec<AttemptId>, BadMessage> {
    wire.into_iter().map(|attempt| wire::attempt(Some(attempt))).collect()
}

#[tonic::async_trait]
impl pb::workers_server::Workers for WorkersService {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterReply>, Status> {
        let message = request.into_inner();
        let incarnation = wire::check_registration(&message)
            .and_then(|()| wire::incarnation(&message.incarnation))
            .map_err(|error| invalid(&error))?;
        // The file is made by the first member that leads: before that nobody can have read it.
        let Some(group) = self.desk.handle.status().group.filter(|_| self.desk.handle.leads())
        else {
            return Err(self.desk.not_leader());
        };
        if message.root_token.trim() != driver::token(&group) {
            tracing::warn!(worker = message.name, "a worker that sees another root is refused");
            return Err(refuse(
                Code::FailedPrecondition,
                "shared root mismatch: this worker does not see the directory that the \
                 coordinator calls its root; mount the same filesystem, or set root",
            ));
        }
        let running = attempts(message.running).map_err(|error| invalid(&error))?;
        let (name, slots, apps) = (message.name, message.slots, message.apps);
        let shown = name.clone();
        let asked = driver::Request::Register { name, incarnation, slots, apps, running };
        match self.ask(asked).await? {
            Reply::Registered { worker, epoch, heartbeat_ms, orders } => {
                tracing::info!(%worker, name = shown, slots, "worker registered");
                let orders = wire::orders(&orders);
                Ok(Response::new(pb::RegisterReply {
                    worker: worker.0,
                    epoch,
                    heartbeat_ms,
                    orders,
                }))
            }
            Reply::NameInUse => {
                // Not UNAVAILABLE: the worker is to tell its operator, and to ask here again.
                let message = format!(
                    "the name `{shown}` is in use by a worker that was heard just now; each needs \
                     a name of its own"
                );
                Err(refuse(Code::AlreadyExists, message))
            }
            Reply::TooManyWorkers => {
                let message = "there are too many workers (limit workers_max)";
                Err(refuse(Code::ResourceExhausted, message))
            }
            _ => Err(misfit()),
        }
    }

    async fn poll(
        &self,
        request: Request<pb::PollRequest>,
    ) -> Result<Response<pb::PollReply>, Status> {
        use pb::poll_reply::Kind;
        let message = request.into_inner();
        let incarnation =
            wire::incarnation(&message.incarnation).map_err(|error| invalid(&error))?;
        let worker = WorkerId(message.worker);
        let wants = Wants { free_slots: message.free_slots, prefetch: message.prefetch };
        let asked = driver::Request::Poll { worker, incarnation, wants };
        let limit = Duration::from_millis(POLL_WAIT_MS) + POLL_MARGIN;
        let kind = match self.desk.ask_within(asked, limit).await? {
            Told::Reply(Reply::Assigned(given)) => Kind::Assignments(wire::assignments(&given)),
            Told::Reply(Reply::Idle) => Kind::Idle(pb::Idle {}),
            Told::Reply(Reply::Reregister) => Kind::Reregister(pb::Reregister {}),
            Told::Reply(Reply::Drain) => Kind::Drain(pb::Drain {}),
            _ => return Err(misfit()),
        };
        Ok(Response::new(pb::PollReply { kind: Some(kind) }))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatReply>, Status> {
        let message = request.into_inner();
        wire::check_running(message.running.len()).map_err(|error| invalid(&error))?;
        let incarnation =
            wire::incarnation(&message.incarnation).map_err(|error| invalid(&error))?;
        let running = message
            .running
            .into_iter()
            .map(wire::heard)
            .collect::<Result<Vec<_>, BadMessage>>()
            .map_err(|error| invalid(&error))?;
        let worker = WorkerId(message.worker);
        match self.ask(driver::Request::Heartbeat { worker, incarnation, running }).await? {
            Reply::Heartbeat { orders, reregister, drain } => {
                let orders = wire::orders(&orders);
                Ok(Response::new(pb::HeartbeatReply { orders, reregister, drain }))
            }
            _ => Err(misfit()),
        }
    }

    async fn report(
        &self,
        request: Request<pb::ReportRequest>,
    ) -> Result<Response<pb::ReportReply>, Status> {
        let message = request.into_inner();
        let incarnation =
            wire::incarnation(&message.incarnation).map_err(|error| invalid(&error))?;
        let attempt = wire::attempt(message.attempt).map_err(|error| invalid(&error))?;
        let end = wire::report_end(message.end, &attempt).map_err(|error| invalid(&error))?;
        let worker = WorkerId(message.worker);
        let wants = Wants { free_slots: message.poll_free_slots, prefetch: message.poll_prefetch };
        let poll = (!wants.is_nothing()).then_some((incarnation, wants));
        match self.ask(driver::Request::Report { worker, attempt, end, poll }).await? {
            Reply::Report { answer, given } => {
                tracing::debug!(%attempt, ?answer, "report answered");
                let verdict = wire::verdict(answer);
                let word = verdict.as_str_name();
                metrics::counter!("flotilla_mr_reports_total", "verdict" => word).increment(1);
                let assignments = (!given.is_empty()).then(|| wire::assignments(&given));
                Ok(Response::new(pb::ReportReply { verdict: verdict.into(), assignments }))
            }
            _ => Err(misfit()),
        }
    }

    async fn deregister(
        &self,
        request: Request<pb::DeregisterRequest>,
    ) -> Result<Response<pb::DeregisterReply>, Status> {
        let message = request.into_inner();
        let incarnation =
            wire::incarnation(&message.incarnation).map_err(|error| invalid(&error))?;
        let worker = WorkerId(message.worker);
        match self.ask(driver::Request::Deregister { worker, incarnation }).await? {
            Reply::Deregistered => {
                tracing::info!(%worker, "worker left");
                Ok(Response::new(pb::DeregisterReply {}))
            }
            _ => Err(misfit()),
        }
    }
}
