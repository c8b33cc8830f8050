//! The job client and the question for a member's status, against servers that misbehave.

#![allow(clippy::unwrap_used)]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use flotilla_client::{Error, JobClient, Options, Rejected, admin, metadata};
use proto::mapreduce::{
    BlobChunk, BlobRef, DrainWorkerReply, DrainWorkerRequest, Job, JobRef, JobSpec, ListReply,
    ListRequest, ListTasksReply, ListTasksRequest, ListWorkersReply, ListWorkersRequest,
    SubmitReply, SubmitRequest,
    jobs_server::{Jobs, JobsServer},
};
use tokio::net::TcpListener;
use tonic::{
    Code, Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

#[derive(Clone, Default)]
struct Coordinator {
    /// What the next calls fail with.
    failures: Arc<Mutex<VecDeque<Status>>>,
    tokens: Arc<Mutex<Vec<String>>>,
    /// How long a submission takes.
    looks_for: Duration,
    served: Arc<Mutex<u32>>,
}

impl Coordinator {
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Server::builder().add_service(JobsServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        address
    }

    fn fail(&self) -> Result<(), Status> {
        match self.failures.lock().unwrap().pop_front() {
            Some(status) => Err(status),
            None => {
                *self.served.lock().unwrap() += 1;
                Ok(())
            }
        }
    }
}

#[tonic::async_trait]
impl Jobs for Coordinator {
    async fn submit(
        &self,
        request: Request<SubmitRequest>,
    ) -> Result<Response<SubmitReply>, Status> {
        self.tokens.lock().unwrap().push(request.into_inner().client_token);
        tokio::time::sleep(self.looks_for).await;
        self.fail()?;
        Ok(Response::new(SubmitReply::default()))
    }

    async fn get(&self, _: Request<JobRef>) -> Result<Response<Job>, Status> {
        self.fail()?;
        Ok(Response::new(Job::default()))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        self.fail()?;
        Ok(Response::new(ListReply::default()))
    }

    async fn cancel(&self, _: Request<JobRef>) -> Result<Response<Job>, Status> {
        self.fail()?;
        Ok(Response::new(Job::default()))
    }

    async fn list_tasks(
        &self,
        _: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksReply>, Status> {
        self.fail()?;
        Ok(Response::new(ListTasksReply::default()))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersReply>, Status> {
        self.fail()?;
        Ok(Response::new(ListWorkersReply::default()))
    }

    async fn put_blob(
        &self,
        request: Request<tonic::Streaming<BlobChunk>>,
    ) -> Result<Response<BlobRef>, Status> {
        let mut pieces = request.into_inner();
        let mut bytes = 0;
        while let Some(piece) = pieces.message().await? {
            bytes += piece.data.len() as u64;
        }
        self.fail()?;
        Ok(Response::new(BlobRef { bytes, ..BlobRef::default() }))
    }

    async fn drain_worker(
        &self,
        _: Request<DrainWorkerRequest>,
    ) -> Result<Response<DrainWorkerReply>, Status> {
        self.fail()?;
        Ok(Response::new(DrainWorkerReply::default()))
    }
}

fn refusal(code: Code, leader: Option<&str>) -> Status {
    let mut status = Status::new(code, "to order");
    status.metadata_mut().insert(metadata::EXECUTED, metadata::NEVER.parse().unwrap());
    if let Some(leader) = leader {
        status.metadata_mut().insert(metadata::LEADER, leader.parse().unwrap());
    }
    status
}

#[tokio::test]
async fn the_coordinator_that_leads_is_found() {
    let (leader, other) = (Coordinator::default(), Coordinator::default());
    let (leader_address, address) = (leader.serve().await, other.serve().await);
    *other.failures.lock().unwrap() =
        vec![refusal(Code::Unavailable, Some(&leader_address)); 5].into();
    let client = JobClient::connect(vec![address], Options::default()).unwrap();
    client.list(ListRequest::default()).await.unwrap();
    client.get("job", 0).await.unwrap();
    client.list_tasks(ListTasksRequest::default()).await.unwrap();
    client.list_workers().await.unwrap();
    client.drain_worker("worker").await.unwrap();
    assert_eq!((*leader.served.lock().unwrap(), *other.served.lock().unwrap()), (5, 0));
}

#[tokio::test]
async fn a_submission_is_repeated_under_its_token() {
    let coordinator = Coordinator::default();
    let client = JobClient::connect(vec![coordinator.serve().await], Options::default()).unwrap();
    *coordinator.failures.lock().unwrap() =
        vec![refusal(Code::Unavailable, None), Status::unknown("broke")].into();
    let token = JobClient::token();
    client.submit(JobSpec::default(), token.clone()).await.unwrap();
    assert_eq!(*coordinator.tokens.lock().unwrap(), vec![token; 3]);
}

#[tokio::test]
async fn a_file_is_sent_again_from_its_beginning() {
    let coordinator = Coordinator::default();
    let client = JobClient::connect(vec![coordinator.serve().await], Options::default()).unwrap();
    for bytes in [0, 1, 3_000_000] {
        coordinator.failures.lock().unwrap().push_back(refusal(Code::Unavailable, None));
        let kept = client.put_blob(vec![7; bytes].into()).await.unwrap();
        assert_eq!(kept.bytes, bytes as u64);
    }
}

#[tokio::test]
async fn a_submission_whose_inputs_take_long_to_look_at_is_asked_for_once() {
    let coordinator =
        Coordinator { looks_for: Duration::from_millis(600), ..Coordinator::default() };
    let options = Options {
        deadline: Duration::from_millis(300),
        attempt: Duration::from_millis(100),
        ..Options::default()
    };
    let client = JobClient::connect(vec![coordinator.serve().await], options).unwrap();
    client.submit(JobSpec::default(), JobClient::token()).await.unwrap();
    assert_eq!(coordinator.tokens.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_submission_to_nobody_ends_with_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let options = Options::with_deadline(Duration::from_millis(300));
    let client = JobClient::connect(vec![address], options).unwrap();
    let submitted = client.submit(JobSpec::default(), JobClient::token());
    let refused = tokio::time::timeout(Duration::from_secs(10), submitted).await.unwrap();
    assert!(matches!(refused, Err(Error::Rejected(Rejected::Unavailable(_)))), "{refused:?}");
}

#[tokio::test]
async fn refusals_are_typed_by_what_to_do() {
    let coordinator = Coordinator::default();
    let client = JobClient::connect(vec![coordinator.serve().await], Options::default()).unwrap();
    let mut refused = Vec::new();
    for code in
        [Code::NotFound, Code::FailedPrecondition, Code::AlreadyExists, Code::InvalidArgument]
    {
        coordinator.failures.lock().unwrap().push_back(refusal(code, None));
        refused.push(client.cancel("job").await.unwrap_err());
    }
    let expected = [Rejected::NotFound, Rejected::Refused, Rejected::Exists, Rejected::Invalid];
    let expected = expected.map(|reason| Error::Rejected(reason("to order".to_owned())));
    assert_eq!(refused, expected);
}

#[tokio::test]
async fn a_member_that_is_not_there_has_no_status() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let refused = admin::status(&address, Duration::from_secs(2)).await;
    assert!(matches!(refused, Err(Error::Rejected(Rejected::Unavailable(_)))), "{refused:?}");
    let refused = admin::status("nowhere", Duration::from_secs(2)).await;
    assert!(matches!(refused, Err(Error::Rejected(Rejected::Invalid(_)))), "{refused:?}");
}
