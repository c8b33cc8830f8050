//! A shard controller that tells what its test says, and can't be asked for anything.

use std::collections::BTreeMap;

use futures::stream::{BoxStream, StreamExt};
use proto::shard::{
    AdoptRequest, ChangeReply, Group, HistoryReply, HistoryRequest, JoinRequest, LeaveRequest,
    MoveRequest, Placement, QueryReply, QueryRequest, ReportReply, ReportRequest, UnpinRequest,
    WatchReply, WatchRequest, WeighRequest,
    shards_server::{Shards, ShardsServer},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::WatchStream;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// Tells maps.
pub struct Controller {
    pub address: String,
    told: watch::Sender<WatchReply>,
}

impl Controller {
    /// One that has not told anything yet.
    pub async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let told = watch::Sender::new(WatchReply::default());
        let server = ShardsServer::new(Exchange { told: told.subscribe() });
        let server = Server::builder().add_service(server);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self { address, told }
    }

    /// Who has each shard, and where the groups are.
    pub fn tell(&self, owners: &[u32], groups: &BTreeMap<u32, Vec<String>>) {
        let placement = |(shard, &owner)| Placement { shard, owner, ..Placement::default() };
        let group = |(&group, members): (&u32, &Vec<String>)| Group {
            group,
            members: members.clone(),
            ..Group::default()
        };
        self.told.send_modify(|told| {
            told.revision += 1;
            told.whole = true;
            told.placements = (0..).zip(owners).map(placement).collect();
            told.groups = groups.iter().map(group).collect();
        });
    }
}

struct Exchange {
    told: watch::Receiver<WatchReply>,
}

fn absent<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not here"))
}

#[tonic::async_trait]
impl Shards for Exchange {
    type WatchStream = BoxStream<'static, Result<WatchReply, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let told = WatchStream::new(self.told.clone());
        let told = told.filter(|reply| futures::future::ready(reply.revision > 0));
        Ok(Response::new(told.map(Ok).boxed()))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<ChangeReply>, Status> {
        absent()
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<ChangeReply>, Status> {
        absent()
    }

    async fn weigh(&self, _: Request<WeighRequest>) -> Result<Response<ChangeReply>, Status> {
        absent()
    }

    async fn r#move(&self, _: Request<MoveRequest>) -> Result<Response<ChangeReply>, Status> {
        absent()
    }

    async fn unpin(&self, _: Request<UnpinRequest>) -> Result<Response<ChangeReply>, Status> {
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
