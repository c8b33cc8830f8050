//! The example is a worker like any other: a coordinator gives it jobs for its own app, and for
//! built-in ones.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::{self, Child, Command},
    time::Duration,
};

use client::{JobClient, Options};
use daemon::Shutdown;
use mr_coordinator::Config;
use proto::mapreduce::{Job, JobSpec, JobState};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);

/// The example as a worker; it is killed when this goes.
struct Worker(Child);

impl Worker {
    fn start(coordinator: &str, root: &Path, ip: Ipv4Addr) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anagrams"));
        command.args(["--coordinator", coordinator, "--admin", &format!("{ip}:8500")]);
        Self(command.arg("--root").arg(root).args(["--slots", "2"]).spawn().unwrap())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A loopback address that no other process has.
fn own_ip() -> Ipv4Addr {
    let [.., high, low] = process::id().to_be_bytes();
    Ipv4Addr::new(127, 0, high, low.max(1))
}

async fn run(jobs: &JobClient, app: &str) -> Job {
    let spec = JobSpec {
        app: app.to_owned(),
        inputs: vec!["in".to_owned()],
        output: format!("{app}-out"),
        reduces: 2,
        ..JobSpec::default()
    };
    let mut job = jobs.submit(spec, JobClient::token()).await.unwrap().job.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !matches!(job.state(), JobState::Succeeded | JobState::Failed) {
        assert!(Instant::now() < deadline, "not in time: {job:?}");
        job = jobs.get(&job.id, job.version).await.unwrap();
    }
    assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.failure);
    job
}

fn lines(root: &Path, job: &Job) -> Vec<String> {
    let parts = job.outputs.iter().map(|part| fs::read_to_string(root.join(part)).unwrap());
    let text: String = parts.collect();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn a_worker_with_an_app_of_its_own_runs_that_and_the_built_in_ones() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("in")).unwrap();
    fs::write(root.join("in/one"), "Listen to the silent tide.\nNo enlist, no edit\n").unwrap();
    fs::write(root.join("in/two"), "Diet and silent edit, diet\n").unwrap();

    let ip = own_ip();
    let coordinator = format!("{ip}:7400");
    let mut config =
        Config { listen: coordinator.clone(), root: root.clone(), ..Config::default() };
    config.group.data = dir.path().join("data");
    let shutdown = Shutdown::new();
    let stop = shutdown.clone();
    let running = tokio::spawn(async move {
        mr_coordinator::run(&config, stop).await.map_err(|error| error.to_string())
    });
    let _worker = Worker::start(&coordinator, &root, ip);
    let options = Options::with_deadline(PATIENCE);
    let jobs = JobClient::connect(vec![coordinator], options).unwrap();
    // A job whose app nobody has would be refused.
    while jobs.list_workers().await.unwrap().workers.is_empty() {
        assert!(!running.is_finished(), "the coordinator ended: {:?}", running.await);
        sleep(Duration::from_millis(10)).await;
    }

    let families = ["deit\tdiet edit tide", "eilnst\tenlist listen silent"];
    assert_eq!(lines(&root, &run(&jobs, "anagrams").await), families);
    let counts = lines(&root, &run(&jobs, "wc").await);
    assert!(counts.contains(&"silent\t2".to_owned()), "{counts:?}");

    shutdown.request();
    running.await.unwrap().unwrap();
}
