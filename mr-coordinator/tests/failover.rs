//! Three coordinators: who does not lead says who does, and a job goes on under a new leader.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]
#![allow(clippy::disallowed_types, reason = "the tests are not pure")]
#![allow(dead_code, reason = "not every test uses all of the bench")]

mod bench;

use std::{fs, path::PathBuf, time::Duration};

use bench::{LIMIT, Worker, address, names, spec};
use daemon::{Failure, Shutdown};
use mr_coordinator::Config;
use proto::mapreduce::{
    self as pb, JobState, Verdict, jobs_client::JobsClient, workers_client::WorkersClient,
};
use tokio::{task::JoinHandle, time::Instant};
use tonic::{Code, Status, transport::Channel};

struct Member {
    config: Config,
    running: Option<(JoinHandle<Result<(), Failure>>, Shutdown)>,
}

struct Group {
    _directory: tempfile::TempDir,
    root: PathBuf,
    members: Vec<Member>,
}

impl Group {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("in")).unwrap();
        for name in ["a.txt", "b.txt"] {
            fs::write(root.join("in").join(name), "some words\n").unwrap();
        }
        let addresses: Vec<String> = (0..3).map(|_| address().to_string()).collect();
        let list = addresses.iter().zip(1..).map(|(address, node)| format!("{node}={address}"));
        let list: Vec<String> = list.collect();
        let members = addresses.iter().zip(1..).map(|(address, node)| {
            let mut config = Config { listen: address.clone(), ..Config::default() };
            config.root.clone_from(&root);
            config.group.data = directory.path().join(format!("data-{node}"));
            config.group.node = node;
            config.group.members.clone_from(&list);
            let (shutdown, own) = (Shutdown::new(), config.clone());
            let wish = shutdown.clone();
            let task = tokio::spawn(async move { mr_coordinator::run(&own, wish).await });
            Member { config, running: Some((task, shutdown)) }
        });
        let members = members.collect();
        Self { _directory: directory, root, members }
    }

    fn channel(&self, member: usize) -> Channel {
        let address = format!("http://{}", self.members[member].config.listen);
        Channel::from_shared(address).unwrap().connect_lazy()
    }

    async fn ask(&self, member: usize) -> Result<(), Status> {
        let mut jobs = JobsClient::new(self.channel(member));
        jobs.list(pb::ListRequest::default()).await.map(drop)
    }

    /// The member that leads.
    async fn leader(&self) -> usize {
        let deadline = Instant::now() + LIMIT;
        loop {
            for member in 0..self.members.len() {
                if self.members[member].running.is_some() && self.ask(member).await.is_ok() {
                    return member;
                }
            }
            assert!(Instant::now() < deadline, "nobody leads");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop(&mut self, member: usize) {
        let (task, shutdown) = self.members[member].running.take().unwrap();
        shutdown.request();
        task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn who_does_not_lead_names_the_leader() {
    let group = Group::start();
    let leader = group.leader().await;
    let expected = &group.members[leader].config.listen;
    for member in (0..3).filter(|member| *member != leader) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = group.ask(member).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            let named = status.metadata().get("flotilla-leader");
            if named.is_some_and(|named| named == expected.as_str()) {
                assert_eq!(status.metadata().get("flotilla-executed").unwrap(), "never");
                break;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn job_goes_on_under_a_new_leader() {
    let mut group = Group::start();
    let first = group.leader().await;
    let client = WorkersClient::new(group.channel(first));
    let mut worker = Worker::start(client, &group.root, "one").await;
    let submit = pb::SubmitRequest { spec: Some(spec()), client_token: "t".into() };
    let mut jobs = JobsClient::new(group.channel(first));
    let id = jobs.submit(submit).await.unwrap().into_inner().job.unwrap().id;
    let work = worker.work().await;
    assert_eq!(worker.run(&work[0]).await, Verdict::Accepted);
    group.stop(first).await;
    let second = group.leader().await;
    assert_ne!(second, first);
    worker.reconnect(WorkersClient::new(group.channel(second)));
    let running = work[1].attempt.clone().unwrap();
    let reply = worker.register(std::slice::from_ref(&running)).await.unwrap();
    assert!(reply.orders[0].go_on);
    assert_eq!(worker.run(&work[1]).await, Verdict::Accepted);
    worker.run_all(2).await;
    let mut jobs = JobsClient::new(group.channel(second));
    let deadline = Instant::now() + LIMIT;
    let mut after_version = 0;
    let job = loop {
        let asked = pb::JobRef { job: id.clone(), after_version };
        let job = jobs.get(asked).await.unwrap().into_inner();
        if job.state() == JobState::Succeeded {
            break job;
        }
        assert!(Instant::now() < deadline, "{job:?}");
        after_version = job.version;
    };
    assert_eq!((job.counters["RECORDS"], job.maps.unwrap().retries), (4, 0));
    assert_eq!(names(&group.root.join("out")), ["_SUCCESS", "part-00000", "part-00001"]);
}
