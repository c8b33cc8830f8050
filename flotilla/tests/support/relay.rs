//! A way to a coordinator on which workers' calls are lost, come twice and late, or are answered in
//! vain: what a network does to messages, call by call, since a TCP connection hides it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use proto::mapreduce::workers_client::WorkersClient;
use proto::mapreduce::workers_server::{Workers, WorkersServer};
use proto::mapreduce::{
    DeregisterReply, DeregisterRequest, HeartbeatReply, HeartbeatRequest, PollReply, PollRequest,
    RegisterReply, RegisterRequest, ReportReply, ReportRequest, TaskKind, Verdict,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

type Client = WorkersClient<Channel>;

/// What happens to calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// How many of a hundred requests never arrive, and how many replies.
    pub(crate) lost_percent: (u32, u32),
    /// Whether each call that arrives does so twice, the second one at any time.
    pub(crate) doubled: bool,
    /// How late requests and replies are at most.
    pub(crate) delay_max: Duration,
    /// Whether the first reply to each report is lost.
    pub(crate) loses_first_reports: bool,
}

/// What the coordinator said to the reports of an attempt: kind, task, epoch, sequence.
pub(crate) type Verdicts = BTreeMap<(TaskKind, u32, u64, u32), Vec<Verdict>>;

/// The way; clones are the same one.
#[derive(Clone)]
pub(crate) struct Relay {
    address: String,
    inner: Arc<Inner>,
}

struct Inner {
    weather: Weather,
    coordinator: OnceLock<Client>,
    rng: Mutex<StdRng>,
    verdicts: Mutex<Verdicts>,
}

impl Relay {
    /// Opens a way that leads nowhere yet.
    pub(crate) async fn start(weather: Weather, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let inner = Inner {
            weather,
            coordinator: OnceLock::new(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            verdicts: Mutex::default(),
        };
        let relay = Self { address, inner: Arc::new(inner) };
        let mut server = tonic::transport::Server::builder();
        let server = server.add_service(WorkersServer::new(relay.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        relay
    }

    /// The flag by which a worker goes this way.
    pub(crate) fn flag(&self) -> String {
        format!("--coordinator={}", self.address)
    }

    /// Says where the way leads.
    pub(crate) fn lead_to(&self, coordinator: &str) {
        let endpoint = Endpoint::from_shared(format!("http://{coordinator}")).unwrap();
        let client = WorkersClient::new(endpoint.connect_lazy());
        assert!(self.inner.coordinator.set(client).is_ok(), "it leads somewhere already");
    }

    /// What was said so far.
    pub(crate) fn verdicts(&self) -> Verdicts {
        self.inner.verdicts.lock().unwrap().clone()
    }

    fn happens(&self, percent: u32) -> bool {
        percent > 0 && self.inner.rng.lock().unwrap().random_range(0..100) < percent
    }

    async fn dawdle(&self) {
        let most = self.inner.weather.delay_max;
        if !most.is_zero() {
            let share: f64 = self.inner.rng.lock().unwrap().random();
            sleep(most.mul_f64(share)).await;
        }
    }

    /// Passes a call on, as often and as late as the weather wants.
    async fn pass<M, T, F, Called>(
        &self,
        request: Request<M>,
        call: F,
    ) -> Result<Response<T>, Status>
    where
        M: Clone + Send + 'static,
        T: Send + 'static,
        F: Fn(Client, M) -> Called + Clone + Send + 'static,
        Called: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let Weather { lost_percent, doubled, .. } = self.inner.weather;
        let lost = || Err(Status::unavailable("lost"));
        if self.happens(lost_percent.0) {
            return lost();
        }
        let message = request.into_inner();
        let once = |relay: Self, message: M, call: F| async move {
            let client = relay.inner.coordinator.get().expect("the way leads somewhere").clone();
            relay.dawdle().await;
            let reply = call(client, message).await;
            relay.dawdle().await;
            reply
        };
        let first = once(self.clone(), message.clone(), call.clone());
        let reply = if doubled {
            // The caller gets either answer; both calls take effect.
            let [one, other] = [first, once(self.clone(), message, call)].map(tokio::spawn);
            let heard = if self.happens(50) { one } else { other };
            heard.await.expect("passing a call on does not fail")
        } else {
            first.await
        };
        if self.happens(lost_percent.1) { lost() } else { reply }
    }
}

#[tonic::async_trait]
impl Workers for Relay {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterReply>, Status> {
        let call = |mut client: Client, message| async move { client.register(message).await };
        self.pass(request, call).await
    }

    async fn poll(&self, request: Request<PollRequest>) -> Result<Response<PollReply>, Status> {
        let call = |mut client: Client, message| async move { client.poll(message).await };
        self.pass(request, call).await
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let call = |mut client: Client, message| async move { client.heartbeat(message).await };
        self.pass(request, call).await
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportReply>, Status> {
        let id = request.get_ref().attempt.clone().unwrap();
        let key = (id.kind(), id.task, id.epoch, id.sequence);
        let relay = self.clone();
        let call = move |mut client: Client, message| {
            let relay = relay.clone();
            async move {
                let reply = client.report(message).await?;
                let mut verdicts = relay.inner.verdicts.lock().unwrap();
                let of_attempt = verdicts.entry(key).or_default();
                of_attempt.push(reply.get_ref().verdict());
                if relay.inner.weather.loses_first_reports && of_attempt.len() == 1 {
                    return Err(Status::unavailable("lost"));
                }
                Ok(reply)
            }
        };
        self.pass(request, call).await
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterReply>, Status> {
        let call = |mut client: Client, message| async move { client.deregister(message).await };
        self.pass(request, call).await
    }
}
