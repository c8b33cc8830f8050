//! A coordinator that does what a test says: it hands out the assignments that it is given, and
//! remembers what it is told.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its share")]

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use proto::mapreduce::{
    Assignment, Assignments, AttemptId, AttemptOrder, DeregisterReply, DeregisterRequest,
    HeartbeatReply, HeartbeatRequest, Idle, PollReply, PollRequest, RegisterReply, RegisterRequest,
    ReportReply, ReportRequest, Verdict, poll_reply,
    workers_server::{Workers, WorkersServer},
};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// No wait of a test is longer.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What the coordinator knows and does.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// What it hands out next.
    pub pending: VecDeque<Assignment>,
    /// Attempts that are to stop.
    pub stop: Vec<AttemptId>,
    /// What it answers to reports; accepted, if nothing is said.
    pub verdict: Option<Verdict>,
    /// Whether it hands them out with verdicts only.
    pub only_with_reports: bool,
    /// Whether workers are to leave.
    pub drain: bool,
    /// Whether it has forgotten its workers.
    pub forgetful: bool,
    /// Where the coordinator that leads is, if this is not it.
    pub leader: Option<String>,
    /// The token that workers must have read.
    pub token: String,
    pub registered: Vec<RegisterRequest>,
    pub refused: usize,
    pub heartbeats: Vec<HeartbeatRequest>,
    pub reports: Vec<ReportRequest>,
    pub deregistered: usize,
}

/// A running coordinator; clones are the same one.
#[derive(Clone)]
pub struct Coordinator {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

impl Coordinator {
    /// Starts one.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { token: "token".to_owned(), ..State::default() }));
        let coordinator = Self { address, state, changed: watch::Sender::new(()) };
        let service = WorkersServer::new(coordinator.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        coordinator
    }

    /// Changes what it does.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.send_replace(());
    }

    /// What it knows now.
    pub fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }

    /// Waits until what it knows is as wanted.
    pub async fn wait(&self, what: &str, wanted: impl Fn(&State) -> bool) -> State {
        let mut changed = self.changed.subscribe();
        let reached = async {
            loop {
                let state = self.state();
                if wanted(&state) {
                    return state;
                }
                changed.changed().await.unwrap();
            }
        };
        match timeout(WAIT_MAX, reached).await {
            Ok(state) => state,
            Err(_) => panic!("never came: {what}; {:?}", self.state()),
        }
    }

    fn leads(&self) -> Result<(), Status> {
        let Some(leader) = self.state().leader else { return Ok(()) };
        let mut status = Status::unavailable("another one leads");
        status.metadata_mut().insert("flotilla-leader", leader.parse().unwrap());
        Err(status)
    }
}

#[tonic::async_trait]
impl Workers for Coordinator {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterReply>, Status> {
        self.leads()?;
        let request = request.into_inner();
        if request.root_token != self.state().token {
            self.change(|state| state.refused += 1);
            return Err(Status::failed_precondition("shared root mismatch"));
        }
        let stop = self.state().stop;
        let order = |attempt: &AttemptId| AttemptOrder {
            attempt: Some(attempt.clone()),
            go_on: !stop.contains(attempt),
            reason: "as the test says".to_owned(),
        };
        let orders = request.running.iter().map(order).collect();
        self.change(|state| {
            state.registered.push(request);
            state.forgetful = false;
        });
        Ok(Response::new(RegisterReply { worker: 7, epoch: 1, heartbeat_ms: 50, orders }))
    }

    async fn poll(&self, request: Request<PollRequest>) -> Result<Response<PollReply>, Status> {
        self.leads()?;
        let wants = request.into_inner();
        let free = (wants.free_slots + wants.prefetch) as usize;
        let mut changed = self.changed.subscribe();
        let mut assignments = Vec::new();
        let work = async {
            while assignments.is_empty() {
                changed.mark_unchanged();
                self.state
                    .lock()
                    .map(|mut state| {
                        let none = state.only_with_reports;
                        let count = if none { 0 } else { free.min(state.pending.len()) };
                        assignments.extend(state.pending.drain(..count));
                    })
                    .unwrap();
                if assignments.is_empty() {
                    changed.changed().await.unwrap();
                }
            }
        };
        let _ = timeout(Duration::from_secs(1), work).await;
        let kind = match assignments.is_empty() {
            true => poll_reply::Kind::Idle(Idle {}),
            false => poll_reply::Kind::Assignments(Assignments { assignments }),
        };
        Ok(Response::new(PollReply { kind: Some(kind) }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        self.leads()?;
        let request = request.into_inner();
        let State { stop, forgetful, .. } = self.state();
        let orders = request.running.iter().map(|progress| AttemptOrder {
            attempt: progress.attempt.clone(),
            go_on: !progress.attempt.as_ref().is_some_and(|attempt| stop.contains(attempt)),
            reason: "as the test says".to_owned(),
        });
        let orders = orders.collect();
        self.change(|state| state.heartbeats.push(request));
        Ok(Response::new(HeartbeatReply {
            orders,
            reregister: forgetful,
            drain: self.state().drain,
        }))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportReply>, Status> {
        self.leads()?;
        let verdict = self.state().verdict.unwrap_or(Verdict::Accepted);
        let request = request.into_inner();
        let wants = (request.poll_free_slots + request.poll_prefetch) as usize;
        let mut assignments = Vec::new();
        self.change(|state| {
            let count = wants.min(state.pending.len());
            assignments.extend(state.pending.drain(..count));
            state.reports.push(request);
        });
        let assignments = Some(Assignments { assignments });
        Ok(Response::new(ReportReply { verdict: verdict.into(), assignments }))
    }

    async fn deregister(
        &self,
        _request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterReply>, Status> {
        self.leads()?;
        self.change(|state| state.deregistered += 1);
        Ok(Response::new(DeregisterReply {}))
    }
}
