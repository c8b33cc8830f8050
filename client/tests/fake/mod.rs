//! A key/value server that misbehaves to order: it refuses, forgets to answer, executes and then
//! breaks off. It counts what it executed by request id and keeps replies as a real one does.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

pub mod controller;
pub mod line;
mod many;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use flotilla_client::metadata::{self, DIRECT, EXECUTED, LEADER, MAYBE, NEVER};
use proto::{
    kv::{
        AppendReply, AppendRequest, Appended, CompactReply, CompactRequest, DeleteReply,
        DeleteRequest, ForwardReply, GetReply, GetRequest, Pair, PipelineReply, PipelineRequest,
        PutReply, PutRequest, ReplyHeader, RequestId, ScanReply, ScanRequest, TimeReply,
        TimeRequest, TxnReply, TxnRequest, WatchReply, WatchRequest, Written, append_reply,
        forward_reply,
        kv_server::{Kv, KvServer},
        put_reply, request,
    },
    raft::{Executed, Reason, Refusal},
};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Server, server::TcpIncoming},
};

/// What becomes of one request.
#[derive(Clone, Debug)]
pub enum Act {
    /// A refusal before execution.
    Refuse(Code, Option<String>),
    /// A refusal of which nothing is said.
    Unclear(Code),
    /// Executed, then no answer in time.
    ExecuteThenHang,
    /// Executed, then a broken connection.
    ExecuteThenBreak,
    /// Not executed, no answer in time.
    Hang,
    /// Refused as expired.
    Expired,
}

/// What the servers of a test share, as members share a log.
#[derive(Debug, Default)]
pub struct State {
    pub acts: VecDeque<Act>,
    pub executions: HashMap<(Bytes, u32, u64), u32>,
    pub replies: HashMap<(Bytes, u32, u64), Written>,
    pub ids: Vec<RequestId>,
    pub values: HashMap<Bytes, (Bytes, u64)>,
    pub revision: u64,
    pub times_asked: u32,
    pub leader_on_success: Option<String>,
    pub open: u32,
    pub open_max: u32,
    /// Which group has each shard, if there are many.
    pub owners: Option<Vec<u32>>,
    /// The group that each says has what it has not; one that is not here names none.
    pub named: HashMap<u32, u32>,
    /// How often a server passed a request on to another group, and refused to.
    pub passed_on: u32,
    pub wrong_groups: u32,
    /// What was written: the shard, its revision, the key and its value.
    pub changes: Vec<(u32, u64, Bytes, Bytes)>,
    /// Groups tell changes of shards, too, that they have no more.
    pub tells_late: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    pub served: Arc<Mutex<u32>>,
    /// No request is answered before so many were open at once.
    pub together: u32,
    pub opened: Arc<Notify>,
    /// Wakes whoever waits for something to be asked or to change.
    pub happened: Arc<Notify>,
    /// Of which group it is a member.
    pub group: u32,
}

pub const SHARDS: u32 = 8;

impl Fake {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn plan(&self, acts: impl IntoIterator<Item = Act>) {
        self.state().acts.extend(acts);
    }

    /// A server of another group; what both know is one state.
    pub fn of_group(&self, group: u32) -> Self {
        Self { group, ..self.sibling() }
    }

    /// Waits until it holds, looking whenever something was asked or has changed.
    pub async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            let happened = self.happened.notified();
            if holds() {
                return;
            }
            happened.await;
        }
    }

    /// Whether this group has the shard of a key, or may pass the request on.
    fn check_shard(&self, key: &[u8], metadata: &MetadataMap) -> Result<(), Status> {
        let mut state = self.state();
        let shard = proto::shard_of(key, SHARDS);
        let Some(owner) = state.owners.as_ref().map(|owners| owners[shard as usize]) else {
            return Ok(());
        };
        if owner == self.group {
            return Ok(());
        }
        if !metadata::is_direct(metadata) {
            state.passed_on += 1;
            return Ok(());
        }
        state.wrong_groups += 1;
        self.happened.notify_waiters();
        Err(metadata::status(Refusal {
            reason: Reason::WrongGroup.into(),
            executed: Executed::Never.into(),
            message: format!("shard {shard} is elsewhere"),
            leader: "127.0.0.1:1".to_owned(),
            group: state.named.get(&self.group).copied().unwrap_or(0),
        }))
    }

    /// Another server with the same state.
    pub fn sibling(&self) -> Self {
        Self { served: Arc::default(), ..self.clone() }
    }

    pub async fn serve(&self) -> (String, JoinHandle<()>) {
        self.serve_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn serve_at(&self, address: SocketAddr) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = KvServer::new(self.clone());
        let task = tokio::spawn(async move {
            Server::builder()
                .max_concurrent_streams(1024)
                .add_service(server)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        (address, task)
    }

    fn header(&self, key: &[u8]) -> ReplyHeader {
        let revision = self.state().revision;
        ReplyHeader {
            shard: proto::shard_of(key, SHARDS),
            shards: SHARDS,
            revision,
            shard_time_ms: 5_000,
            ..ReplyHeader::default()
        }
    }

    fn respond<T>(&self, reply: T) -> Response<T> {
        *self.served.lock().unwrap() += 1;
        self.happened.notify_waiters();
        let mut response = Response::new(reply);
        if let Some(leader) = &self.state().leader_on_success {
            response.metadata_mut().insert(LEADER, leader.parse().unwrap());
        }
        response
    }

    async fn mutate(
        &self,
        key: &Bytes,
        metadata: &MetadataMap,
        id: Option<RequestId>,
        change: impl Fn(&mut State) -> Written,
    ) -> Result<(Written, bool), Status> {
        self.check_shard(key, metadata)?;
        let id = id.expect("the client names every mutation");
        let shard = proto::shard_of(key, SHARDS);
        let name = (id.client.clone(), shard, id.sequence);
        assert!(id.sequence > id.acknowledged);
        let act = {
            let mut state = self.state();
            state.ids.push(id);
            state.acts.pop_front()
        };
        match act {
            Some(Act::Refuse(code, leader)) => return Err(refusal(code, NEVER, leader)),
            Some(Act::Unclear(code)) => return Err(Status::new(code, "something broke")),
            Some(Act::Expired) => return Err(refusal(Code::Aborted, MAYBE, None)),
            Some(Act::Hang) => std::future::pending().await,
            Some(Act::ExecuteThenHang | Act::ExecuteThenBreak) | None => {}
        }
        let (written, duplicate) = {
            let mut state = self.state();
            match state.replies.get(&name) {
                Some(written) => (*written, true),
                None => {
                    let written = change(&mut state);
                    *state.executions.entry(name.clone()).or_default() += 1;
                    state.replies.insert(name, written);
                    (written, false)
                }
            }
        };
        self.count(1);
        self.wait_for_others().await;
        self.count(-1);
        match act {
            Some(Act::ExecuteThenHang) => std::future::pending().await,
            Some(Act::ExecuteThenBreak) => Err(Status::unknown("transport error")),
            _ => Ok((written, duplicate)),
        }
    }

    /// Waits until enough requests were open at once.
    async fn wait_for_others(&self) {
        loop {
            let opened = self.opened.notified();
            if self.state().open_max >= self.together {
                break;
            }
            opened.await;
        }
        self.opened.notify_waiters();
    }

    fn count(&self, change: i32) {
        let mut state = self.state();
        state.open = state.open.checked_add_signed(change).unwrap();
        state.open_max = state.open_max.max(state.open);
    }
}

fn refusal(code: Code, executed: &str, leader: Option<String>) -> Status {
    let mut status = Status::new(code, format!("{code:?} to order"));
    status.metadata_mut().insert(EXECUTED, executed.parse().unwrap());
    if let Some(leader) = leader {
        status.metadata_mut().insert(LEADER, leader.parse().unwrap());
    }
    status
}

fn write(state: &mut State, key: &Bytes, value: Bytes) -> Written {
    state.revision += 1;
    let mod_revision = state.revision;
    let shard = proto::shard_of(key, SHARDS);
    state.changes.push((shard, mod_revision, key.clone(), value.clone()));
    let entry = state.values.entry(key.clone()).or_default();
    *entry = (value, entry.1 + 1);
    Written { version: entry.1, mod_revision }
}

#[tonic::async_trait]
impl Kv for Fake {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let (metadata, _, GetRequest { key, .. }) = request.into_parts();
        self.check_shard(&key, &metadata)?;
        let act = self.state().acts.pop_front();
        match act {
            Some(Act::Refuse(code, leader)) => return Err(refusal(code, NEVER, leader)),
            Some(Act::Unclear(code)) => return Err(Status::new(code, "something broke")),
            Some(_) => std::future::pending().await,
            None => {}
        }
        let pair = self.state().values.get(&key).map(|(value, version)| Pair {
            value: value.clone(),
            version: *version,
            ..Pair::default()
        });
        Ok(self.respond(GetReply { header: Some(self.header(&key)), pair }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutReply>, Status> {
        assert!(request.metadata().get("grpc-timeout").is_some());
        let (metadata, _, PutRequest { key, value, id, .. }) = request.into_parts();
        let change = |state: &mut State| write(state, &key, value.clone());
        let (written, duplicate) = self.mutate(&key, &metadata, id, change).await?;
        let header = Some(ReplyHeader { duplicate, ..self.header(&key) });
        Ok(self.respond(PutReply { header, outcome: Some(put_reply::Outcome::Written(written)) }))
    }

    async fn append(
        &self,
        request: Request<AppendRequest>,
    ) -> Result<Response<AppendReply>, Status> {
        let (metadata, _, AppendRequest { key, value, id, .. }) = request.into_parts();
        let change = |state: &mut State| {
            let old = state.values.get(&key).map(|(value, _)| value.clone()).unwrap_or_default();
            write(state, &key, [&old[..], &value[..]].concat().into())
        };
        let (written, duplicate) = self.mutate(&key, &metadata, id, change).await?;
        let header = Some(ReplyHeader { duplicate, ..self.header(&key) });
        let appended = Appended { written: Some(written), old_value: Bytes::new() };
        let outcome = Some(append_reply::Outcome::Appended(appended));
        Ok(self.respond(AppendReply { header, outcome }))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteReply>, Status> {
        let (metadata, _, DeleteRequest { key, id, .. }) = request.into_parts();
        let change = |state: &mut State| {
            state.revision += 1;
            state.values.remove(&key);
            Written { version: 0, mod_revision: state.revision }
        };
        let (written, _) = self.mutate(&key, &metadata, id, change).await?;
        let header = Some(self.header(&key));
        let removed = Some(Pair::default());
        let written = Some(written);
        Ok(self.respond(DeleteReply { header, removed, written, ..DeleteReply::default() }))
    }

    async fn time(&self, request: Request<TimeRequest>) -> Result<Response<TimeReply>, Status> {
        self.check_shard(&request.get_ref().key, request.metadata())?;
        self.state().times_asked += 1;
        Ok(Response::new(TimeReply { header: Some(self.header(&request.into_inner().key)) }))
    }

    type PipelineStream = Replies<PipelineReply>;

    async fn pipeline(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let (replies, out) = mpsc::channel(1);
        let (fake, mut requests) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let (fake, replies) = (fake.clone(), replies.clone());
                // Nobody listens any more once the stream is broken.
                tokio::spawn(async move { drop(replies.send(fake.answer(request).await).await) });
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<ScanReply>, Status> {
        Ok(self.respond(self.page(&request.into_inner())))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnReply>, Status> {
        Err(Status::unimplemented("transactions"))
    }

    type WatchStream = Replies<WatchReply>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(self.changes(&request.into_inner())))
    }

    async fn compact(&self, _: Request<CompactRequest>) -> Result<Response<CompactReply>, Status> {
        Err(Status::unimplemented("compaction"))
    }
}

pub type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Fake {
    /// A reply as a pipeline has it. What is not said by a server itself breaks the stream.
    async fn answer(&self, request: PipelineRequest) -> Result<PipelineReply, Status> {
        let PipelineRequest { number, request, timeout_ms, direct } = request;
        assert!(timeout_ms > 0);
        let kind = request.unwrap().kind.unwrap();
        let (kind, leader) = match self.dispatch(kind, timeout_ms, direct).await {
            Ok(reply) => {
                let leader = reply.metadata().get(LEADER).map(|it| it.to_str().unwrap().to_owned());
                (reply.into_inner(), leader.unwrap_or_default())
            }
            Err(status) if status.metadata().get(EXECUTED).is_some() => {
                (forward_reply::Kind::Refusal(as_data(&status)), String::new())
            }
            Err(status) => return Err(status),
        };
        Ok(PipelineReply { number, reply: Some(ForwardReply { kind: Some(kind) }), leader })
    }

    async fn dispatch(
        &self,
        kind: request::Kind,
        timeout_ms: u32,
        direct: bool,
    ) -> Result<Response<forward_reply::Kind>, Status> {
        fn with<T>(message: T, (timeout_ms, direct): (u32, bool)) -> Request<T> {
            let mut request = Request::new(message);
            request.set_timeout(Duration::from_millis(timeout_ms.into()));
            if direct {
                request.metadata_mut().insert(DIRECT, "true".parse().unwrap());
            }
            request
        }
        let how = (timeout_ms, direct);
        use forward_reply::Kind as Reply;
        Ok(match kind {
            request::Kind::Get(it) => self.get(with(it, how)).await?.map(Reply::Get),
            request::Kind::Put(it) => self.put(with(it, how)).await?.map(Reply::Put),
            request::Kind::Append(it) => self.append(with(it, how)).await?.map(Reply::Append),
            request::Kind::Delete(it) => self.delete(with(it, how)).await?.map(Reply::Delete),
            request::Kind::Time(it) => self.time(with(it, how)).await?.map(Reply::Time),
            request::Kind::Scan(it) => self.scan(with(it, how)).await?.map(Reply::Scan),
            other => panic!("{other:?} is not asked here"),
        })
    }
}

fn as_data(status: &Status) -> Refusal {
    if metadata::is_wrong_group(status) {
        return metadata::refusal(status);
    }
    let reason = match status.code() {
        Code::Unavailable => Reason::NotLeader,
        Code::ResourceExhausted => Reason::Limit,
        Code::InvalidArgument => Reason::Invalid,
        Code::FailedPrecondition => Reason::NoSpace,
        Code::DeadlineExceeded => Reason::Deadline,
        Code::Aborted => Reason::Expired,
        other => panic!("{other:?} is not refused with here"),
    };
    let text = |name| status.metadata().get(name).map(|it| it.to_str().unwrap().to_owned());
    let never = text(EXECUTED).as_deref() == Some(NEVER);
    let executed = if never { Executed::Never } else { Executed::Maybe };
    Refusal {
        reason: reason.into(),
        executed: executed.into(),
        message: status.message().to_owned(),
        leader: text(LEADER).unwrap_or_default(),
        group: 0,
    }
}
