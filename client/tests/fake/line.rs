//! A key/value server that hands every stream to its test, which reads it and answers by hand.
//! Only the time is told without being asked for it.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use proto::kv::{
    AppendReply, AppendRequest, CompactReply, CompactRequest, DeleteReply, DeleteRequest,
    ForwardReply, GetReply, GetRequest, Pair, PipelineReply, PipelineRequest, PutReply, PutRequest,
    ReplyHeader, ScanReply, ScanRequest, TimeReply, TimeRequest, TxnReply, TxnRequest, WatchReply,
    WatchRequest, Written, forward_reply,
    kv_server::{Kv, KvServer},
    put_reply, request,
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::{AbortHandle, yield_now},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use super::{Replies, SHARDS};

/// One stream.
pub struct Line {
    requests: Streaming<PipelineRequest>,
    replies: mpsc::Sender<Result<PipelineReply, Status>>,
}

/// The streams of one server.
pub struct Lines {
    opened: mpsc::UnboundedReceiver<Line>,
    server: AbortHandle,
}

impl Lines {
    pub async fn next(&mut self) -> Line {
        soon(self.opened.recv()).await.unwrap()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Serves, and hands its streams over.
pub async fn serve() -> (String, Lines) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let (opening, opened) = mpsc::unbounded_channel();
    let server = KvServer::new(Exchange { opening });
    let task = tokio::spawn(async move {
        Server::builder().add_service(server).serve_with_incoming(incoming).await.unwrap();
    });
    (address, Lines { opened, server: task.abort_handle() })
}

impl Line {
    /// The next request, but for questions for the time.
    pub async fn read(&mut self) -> (u64, request::Kind) {
        loop {
            let message = soon(self.requests.message()).await.unwrap().unwrap();
            if let Some(request) = self.look(message).await {
                return request;
            }
        }
    }

    /// The next request, if it comes without waiting for anything.
    pub async fn read_now(&mut self) -> Option<(u64, request::Kind)> {
        for _ in 0..4 {
            match self.requests.message().now_or_never() {
                Some(message) => match self.look(message.unwrap().unwrap()).await {
                    Some(request) => return Some(request),
                    None => continue,
                },
                None => yield_now().await,
            }
        }
        None
    }

    /// Whether the client has ended the stream: waits for it.
    pub async fn is_over(&mut self) -> bool {
        matches!(soon(self.requests.message()).await, Ok(None) | Err(_))
    }

    pub async fn answer(&self, number: u64, kind: forward_reply::Kind) {
        let reply = Some(ForwardReply { kind: Some(kind) });
        let reply = PipelineReply { number, reply, leader: String::new() };
        self.replies.send(Ok(reply)).await.unwrap();
    }

    pub async fn break_off(self, status: Status) {
        self.replies.send(Err(status)).await.unwrap();
    }

    async fn look(&self, message: PipelineRequest) -> Option<(u64, request::Kind)> {
        assert!(message.timeout_ms > 0);
        match message.request.unwrap().kind.unwrap() {
            request::Kind::Time(time) => {
                let header = Some(header(&time.key));
                self.answer(message.number, forward_reply::Kind::Time(TimeReply { header })).await;
                None
            }
            kind => Some((message.number, kind)),
        }
    }
}

/// What a client does at once, however busy the machine is.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("the client did nothing")
}

/// The answer to a Get.
pub fn got(value: impl Into<Bytes>) -> forward_reply::Kind {
    let pair = Some(Pair { value: value.into(), version: 1, ..Pair::default() });
    forward_reply::Kind::Get(GetReply { header: None, pair })
}

/// The answer to a Put.
pub fn written() -> forward_reply::Kind {
    let outcome = Some(put_reply::Outcome::Written(Written { version: 1, mod_revision: 1 }));
    forward_reply::Kind::Put(PutReply { header: None, outcome })
}

fn header(key: &[u8]) -> ReplyHeader {
    ReplyHeader {
        shard: proto::shard_of(key, SHARDS),
        shards: SHARDS,
        shard_time_ms: 5_000,
        ..ReplyHeader::default()
    }
}

struct Exchange {
    opening: mpsc::UnboundedSender<Line>,
}

fn only_streams<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("only streams"))
}

#[tonic::async_trait]
impl Kv for Exchange {
    type PipelineStream = Replies<PipelineReply>;

    async fn pipeline(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let (replies, out) = mpsc::channel(1);
        let line = Line { requests: request.into_inner(), replies };
        self.opening.send(line).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        only_streams()
    }

    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutReply>, Status> {
        only_streams()
    }

    async fn append(&self, _: Request<AppendRequest>) -> Result<Response<AppendReply>, Status> {
        only_streams()
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteReply>, Status> {
        only_streams()
    }

    async fn scan(&self, _: Request<ScanRequest>) -> Result<Response<ScanReply>, Status> {
        only_streams()
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnReply>, Status> {
        only_streams()
    }

    async fn compact(&self, _: Request<CompactRequest>) -> Result<Response<CompactReply>, Status> {
        only_streams()
    }

    async fn time(&self, _: Request<TimeRequest>) -> Result<Response<TimeReply>, Status> {
        only_streams()
    }

    type WatchStream = Replies<WatchReply>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        only_streams()
    }
}
