//! A coordinator that runs, with a shared root and a worker that is played by the test.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use daemon::{Failure, Shutdown};
use mr_coordinator::Config;
use proto::mapreduce::{
    self as pb, jobs_client::JobsClient, poll_reply::Kind, workers_client::WorkersClient,
};
use tokio::{task::JoinHandle, time::Instant};
use tonic::{Code, Status, transport::Channel};

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

static NEXT: AtomicU16 = AtomicU16::new(1);

/// Coordinators that start at the same time in one process share its recorder of metrics.
static METRICS: std::sync::Once = std::sync::Once::new();

/// An address of this test alone: of its process, and of its place in it.
pub(crate) fn address() -> SocketAddr {
    METRICS.call_once(|| drop(daemon::metrics::Metrics::install("mr-coordinator").unwrap()));
    let process = std::process::id();
    let place = NEXT.fetch_add(1, Ordering::Relaxed);
    let [high, low] = (process as u16).to_be_bytes();
    SocketAddr::from(([127, 64 | (high & 63), low, (place % 250) as u8 + 1], 7400))
}

pub(crate) struct Bench {
    _directory: tempfile::TempDir,
    pub(crate) root: PathBuf,
    pub(crate) config: Config,
    running: Option<(JoinHandle<Result<(), Failure>>, Shutdown)>,
}

impl Bench {
    /// A coordinator over a root with two input files.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("in")).unwrap();
        for name in ["a.txt", "b.txt"] {
            fs::write(root.join("in").join(name), "some words\n").unwrap();
        }
        let mut config = Config { listen: address().to_string(), ..Config::default() };
        config.root.clone_from(&root);
        config.group.data = directory.path().join("data");
        config.lease_ms = 2_000;
        config.no_workers_grace_ms = 3_000;
        change(&mut config);
        let mut bench = Self { _directory: directory, root, config, running: None };
        bench.restart().await;
        bench
    }

    /// Stops the coordinator and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        let shutdown = Shutdown::new();
        let (config, wish) = (self.config.clone(), shutdown.clone());
        let task = tokio::spawn(async move { mr_coordinator::run(&config, wish).await });
        self.running = Some((task, shutdown));
        let deadline = Instant::now() + LIMIT;
        loop {
            let (task, _) = self.running.as_mut().unwrap();
            assert!(!task.is_finished(), "the coordinator ended: {:?}", task.await);
            if let Ok(mut jobs) = self.try_jobs().await
                && jobs.list(pb::ListRequest::default()).await.is_ok()
            {
                return;
            }
            assert!(Instant::now() < deadline, "the coordinator does not lead");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn stop(&mut self) {
        if let Some((task, shutdown)) = self.running.take() {
            shutdown.request();
            task.await.unwrap().unwrap();
        }
    }

    async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        Channel::from_shared(format!("http://{}", self.config.listen)).unwrap().connect().await
    }

    async fn try_jobs(&self) -> Result<JobsClient<Channel>, tonic::transport::Error> {
        Ok(JobsClient::new(self.channel().await?))
    }

    pub(crate) async fn jobs(&self) -> JobsClient<Channel> {
        self.try_jobs().await.unwrap()
    }

    pub(crate) async fn workers(&self) -> WorkersClient<Channel> {
        let client = WorkersClient::new(self.channel().await.unwrap());
        client.max_decoding_message_size(8 << 20)
    }

    pub(crate) async fn submit(
        &self,
        spec: pb::JobSpec,
        token: &str,
    ) -> Result<pb::SubmitReply, Status> {
        let request = pb::SubmitRequest { spec: Some(spec), client_token: token.to_owned() };
        Ok(self.jobs().await.submit(request).await?.into_inner())
    }

    pub(crate) async fn get(&self, job: &str) -> pb::Job {
        let job = pb::JobRef { job: job.to_owned(), after_version: 0 };
        self.jobs().await.get(job).await.unwrap().into_inner()
    }

    /// Waits, by the long poll, until a job is in a state.
    pub(crate) async fn wait(&self, job: &str, state: pb::JobState) -> pb::Job {
        let deadline = Instant::now() + LIMIT;
        let mut after_version = 0;
        let mut client = self.jobs().await;
        loop {
            let asked = pb::JobRef { job: job.to_owned(), after_version };
            let is = client.get(asked).await.unwrap().into_inner();
            if is.state() == state {
                return is;
            }
            assert!(Instant::now() < deadline, "{:?}, not {state:?}: {is:?}", is.state());
            assert!(is.ended_unix_ms == 0, "it ended otherwise: {is:?}");
            after_version = is.version;
        }
    }

    pub(crate) async fn worker(&self, name: &str) -> Worker {
        Worker::start(self.workers().await, &self.root, name).await
    }
}

pub(crate) fn spec() -> pb::JobSpec {
    pb::JobSpec {
        app: "wc".into(),
        inputs: vec!["in/*.txt".into()],
        output: "out".into(),
        reduces: 2,
        input_format: pb::InputFormat::Whole.into(),
        lease_ms: 2_000,
        ..pb::JobSpec::default()
    }
}

/// A worker, step by step.
pub(crate) struct Worker {
    client: WorkersClient<Channel>,
    root: PathBuf,
    pub(crate) id: u64,
    pub(crate) incarnation: Vec<u8>,
    name: String,
    pub(crate) token: String,
}

impl Worker {
    pub(crate) async fn start(client: WorkersClient<Channel>, root: &Path, name: &str) -> Self {
        let token = fs::read_to_string(root.join(".flotilla-root")).unwrap();
        let incarnation = uuid::Uuid::new_v4().into_bytes().to_vec();
        let (root, name) = (root.to_owned(), name.to_owned());
        let mut worker = Self { client, root, id: 0, incarnation, name, token };
        worker.register(&[]).await.unwrap();
        worker
    }
    pub(crate) async fn register(
        &mut self,
        running: &[pb::AttemptId],
    ) -> Result<pb::RegisterReply, Status> {
        let request = pb::RegisterRequest {
            name: self.name.clone(),
            incarnation: self.incarnation.clone().into(),
            slots: 2,
            apps: vec!["wc".into()],
            running: running.to_vec(),
            root_token: self.token.clone(),
        };
        let reply = self.client.register(request).await?.into_inner();
        self.id = reply.worker;
        Ok(reply)
    }

    /// Follows the coordinator.
    pub(crate) fn reconnect(&mut self, client: WorkersClient<Channel>) {
        self.client = client;
    }

    pub(crate) async fn poll(&mut self) -> Kind {
        self.poll_for(2).await
    }

    async fn poll_for(&mut self, free_slots: u32) -> Kind {
        let request = pb::PollRequest {
            worker: self.id,
            incarnation: self.incarnation.clone().into(),
            free_slots,
            prefetch: 0,
        };
        self.client.poll(request).await.unwrap().into_inner().kind.unwrap()
    }

    /// Waits for at least one task.
    pub(crate) async fn work(&mut self) -> Vec<pb::Assignment> {
        self.work_for(2).await
    }

    /// Waits for at least one task, for so many slots.
    pub(crate) async fn work_for(&mut self, free_slots: u32) -> Vec<pb::Assignment> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.poll_for(free_slots).await {
                Kind::Assignments(work) => return work.assignments,
                Kind::Idle(_) => assert!(Instant::now() < deadline, "there is no work"),
                Kind::Drain(_) => panic!("nobody asked for that"),
                Kind::Reregister(_) => {
                    self.register(&[]).await.unwrap();
                }
            }
        }
    }

    pub(crate) async fn heartbeat(&mut self, running: &[pb::AttemptId]) -> pb::HeartbeatReply {
        let progress = |attempt: &pb::AttemptId| pb::AttemptProgress {
            attempt: Some(attempt.clone()),
            records: 1,
            bytes: 1,
            queued: false,
        };
        let request = pb::HeartbeatRequest {
            worker: self.id,
            incarnation: self.incarnation.clone().into(),
            running: running.iter().map(progress).collect(),
        };
        self.client.heartbeat(request).await.unwrap().into_inner()
    }

    /// Writes what an attempt is to write.
    pub(crate) fn write(&self, work: &pb::Assignment) -> pb::Success {
        let directory = self.root.join(&work.attempt_dir);
        fs::create_dir_all(directory.parent().unwrap()).unwrap();
        fs::create_dir(&directory).expect("an attempt's directory is new");
        let (file, content) = match work.work.as_ref().unwrap() {
            pb::assignment::Work::Map(map) => {
                let paths: Vec<&str> = map.splits.iter().map(|split| split.path.as_str()).collect();
                ("data.run", paths.join("\n"))
            }
            pb::assignment::Work::Reduce(reduce) => {
                for run in &reduce.runs {
                    let length = fs::metadata(self.root.join(&run.path)).unwrap().len();
                    assert_eq!(length, run.bytes, "the run is as it was committed");
                }
                ("part", format!("part {}\n", reduce.partition))
            }
        };
        fs::write(directory.join(file), &content).unwrap();
        pb::Success {
            file: file.into(),
            bytes: content.len() as u64,
            records: 1,
            crc: crc32c::crc32c(content.as_bytes()),
            content_hash: 7,
            counters: [("RECORDS".to_owned(), 1)].into(),
        }
    }

    pub(crate) async fn report(
        &mut self,
        attempt: &pb::AttemptId,
        end: pb::report_request::End,
    ) -> Result<pb::Verdict, Status> {
        let request = pb::ReportRequest {
            worker: self.id,
            incarnation: self.incarnation.clone().into(),
            attempt: Some(attempt.clone()),
            end: Some(end),
            ..pb::ReportRequest::default()
        };
        Ok(self.client.report(request).await?.into_inner().verdict())
    }

    /// Does a task and asks for more with the report.
    pub(crate) async fn run_and_poll(
        &mut self,
        work: &pb::Assignment,
        poll_free_slots: u32,
    ) -> pb::ReportReply {
        let success = self.write(work);
        let request = pb::ReportRequest {
            worker: self.id,
            incarnation: self.incarnation.clone().into(),
            attempt: work.attempt.clone(),
            end: Some(pb::report_request::End::Success(success)),
            poll_free_slots,
            poll_prefetch: 0,
        };
        self.client.report(request).await.unwrap().into_inner()
    }

    /// Does a task.
    pub(crate) async fn run(&mut self, work: &pb::Assignment) -> pb::Verdict {
        let success = self.write(work);
        let end = pb::report_request::End::Success(success);
        self.report(work.attempt.as_ref().unwrap(), end).await.unwrap()
    }

    /// Does everything there is until a job has ended.
    pub(crate) async fn run_all(&mut self, tasks: usize) {
        let mut done = 0;
        while done < tasks {
            for work in self.work().await {
                assert_eq!(self.run(&work).await, pb::Verdict::Accepted);
                done += 1;
            }
        }
    }

    pub(crate) async fn deregister(&mut self) {
        let incarnation = self.incarnation.clone().into();
        let request = pb::DeregisterRequest { worker: self.id, incarnation };
        self.client.deregister(request).await.unwrap();
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) fn code<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.unwrap_err();
    assert_eq!(status.metadata().get("flotilla-executed").unwrap(), "never", "{status:?}");
    (status.code(), status.message().to_owned())
}
