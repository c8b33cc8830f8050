//! The client of the shard controller against a member that forgets to answer and breaks off.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flotilla_client::shards::{Change, Changed, Refused, RefusedCode};
use flotilla_client::{Error, Options, Rejected, ShardClient};
use futures::stream::{self, BoxStream, StreamExt};
use proto::shard::shards_server::{Shards, ShardsServer};
use proto::shard::{
    AdoptRequest, ChangeReply, HistoryReply, HistoryRequest, JoinRequest, LeaveRequest,
    MoveRequest, Placement, QueryReply, QueryRequest, ReportReply, ReportRequest, UnpinRequest,
    WatchReply, WatchRequest, WeighRequest, change_reply::Outcome,
};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};
use tonic::{Request, Response, Status};

/// What was asked.
#[derive(Debug, Default)]
struct State {
    ids: Vec<Bytes>,
    streams: u64,
}

/// A controller of one server, whose first answer is late, and whose streams break.
#[derive(Clone, Debug, Default)]
struct Fake(Arc<Mutex<State>>);

impl Fake {
    async fn serve(&self) -> ShardClient {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Server::builder().add_service(ShardsServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        let options = Options {
            deadline: Duration::from_secs(5),
            attempt: Duration::from_millis(200),
            ..Options::default()
        };
        ShardClient::connect(vec![address], options).unwrap()
    }
}

fn absent<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not here"))
}

#[tonic::async_trait]
impl Shards for Fake {
    type WatchStream = BoxStream<'static, Result<WatchReply, Status>>;

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<ChangeReply>, Status> {
        let LeaveRequest { options, .. } = request.into_inner();
        let asked = {
            let mut state = self.0.lock().unwrap();
            state.ids.push(options.unwrap().id);
            state.ids.len()
        };
        if asked == 1 {
            std::future::pending::<()>().await;
        }
        let changed = Changed { number: 7, duplicate: true, moves: Vec::new() };
        Ok(Response::new(ChangeReply { outcome: Some(Outcome::Changed(changed)) }))
    }

    async fn unpin(&self, _: Request<UnpinRequest>) -> Result<Response<ChangeReply>, Status> {
        let (code, message) = (RefusedCode::NoShard.into(), "there is no shard 9".to_owned());
        let refused = Outcome::Refused(Refused { code, message });
        Ok(Response::new(ChangeReply { outcome: Some(refused) }))
    }

    /// Each stream tells the same at first, then one change, and breaks.
    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let count = {
            let mut state = self.0.lock().unwrap();
            state.streams += 1;
            state.streams
        };
        let placements = |owner| vec![Placement { shard: 0, owner, ..Placement::default() }];
        let whole = WatchReply {
            revision: count,
            whole: true,
            number: count,
            placements: placements(1),
            ..WatchReply::default()
        };
        let placements = placements(2);
        let change = WatchReply { whole: false, revision: count + 1, placements, ..whole.clone() };
        let broken = Err(Status::unavailable("broken"));
        Ok(Response::new(stream::iter([Ok(whole), Ok(change), broken]).boxed()))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<ChangeReply>, Status> {
        absent()
    }

    async fn weigh(&self, _: Request<WeighRequest>) -> Result<Response<ChangeReply>, Status> {
        absent()
    }

    async fn r#move(&self, _: Request<MoveRequest>) -> Result<Response<ChangeReply>, Status> {
        absent()
    }

    async fn adopt(&self, _: Request<AdoptRequest>) -> Result<Response<ChangeReply>, Status> {
        absent()
    }

    async fn query(&self, _: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        absent()
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryReply>, Status> {
        absent()
    }

    async fn report(&self, _: Request<ReportRequest>) -> Result<Response<ReportReply>, Status> {
        absent()
    }
}

#[tokio::test]
async fn a_change_is_asked_again_under_the_same_id() {
    let fake = Fake::default();
    let client = fake.serve().await;
    let changed = client.change(&Change::Leave(vec![1]), None).await.unwrap();
    assert_eq!((changed.number, changed.duplicate), (7, true));
    client.change(&Change::Leave(vec![1]), None).await.unwrap();
    let ids = std::mem::take(&mut fake.0.lock().unwrap().ids);
    assert_eq!((ids.len(), ids[0].len()), (3, 16));
    assert!(ids[0] == ids[1] && ids[1] != ids[2]);
}

#[tokio::test]
async fn what_the_controller_refuses_is_an_error_of_its_kind() {
    let client = Fake::default().serve().await;
    let refused = client.change(&Change::Unpin(9), None).await.unwrap_err();
    let expected = Rejected::NotFound("there is no shard 9".to_owned());
    assert_eq!(refused, Error::Rejected(expected));
}

#[tokio::test]
async fn a_watch_goes_on_when_its_stream_breaks() {
    let client = Fake::default().serve().await;
    let mut watch = client.watch();
    assert_eq!(watch.map(), None);
    for (number, owner) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)] {
        let map = watch.next().await.unwrap();
        assert_eq!((map.number, map.placements[0].owner), (number, owner));
    }
}
