//! The client of the log against servers that forget to answer, break off, and have trimmed.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flotilla_client::log::{Appended, LogEntry, Range};
use flotilla_client::metadata::{EXECUTED, FIRST_INDEX, LAST_INDEX, MAYBE, NEVER};
use flotilla_client::{Error, LogClient, Options, Rejected};
use futures::stream::{self, BoxStream, StreamExt};
use proto::log::log_server::{Log, LogServer};
use proto::log::{
    Entry, Header, ProposeReply, ProposeRequest, RequestId, StatusReply, StatusRequest,
    SubscribeReply, SubscribeRequest, TimeReply, TimeRequest, TrimReply, TrimRequest,
};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};
use tonic::{Code, Request, Response, Status};

/// What becomes of one Propose or one stream.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Not executed, and the answer says so.
    Never(Code),
    /// Executed, then no answer in time.
    ExecuteThenHang,
    /// Executed, then a status that says nothing of it.
    ExecuteThenBreak,
    /// The stream breaks after so many entries.
    BreakAfter(usize),
}

#[derive(Debug, Default)]
struct State {
    acts: VecDeque<Act>,
    entries: Vec<Bytes>,
    first_index: u64,
    replies: BTreeMap<u64, ProposeReply>,
    ids: Vec<RequestId>,
    subscribed_from: Vec<u64>,
}

/// A log of one server. It keeps replies as a real one does.
#[derive(Clone, Debug, Default)]
struct Fake(Arc<Mutex<State>>);

impl Fake {
    async fn serve(&self) -> LogClient {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Server::builder().add_service(LogServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        let options = Options {
            deadline: Duration::from_secs(5),
            attempt: Duration::from_millis(200),
            connect: Duration::from_millis(500),
            ..Options::default()
        };
        LogClient::connect(vec![address], options).unwrap()
    }

    fn plan(&self, acts: impl IntoIterator<Item = Act>) {
        self.0.lock().unwrap().acts.extend(acts);
    }
}

impl State {
    fn header(&self) -> Option<Header> {
        let last_index = self.entries.len() as u64;
        let first_index = self.first_index.max(1);
        Some(Header { first_index, last_index, bytes: 0, group_time_ms: 1_000 })
    }

    fn execute(&mut self, request: ProposeRequest) -> ProposeReply {
        let id = request.id.unwrap();
        self.ids.push(id.clone());
        if let Some(kept) = self.replies.get(&id.sequence) {
            return ProposeReply { duplicate: true, ..*kept };
        }
        let (first_index, count) = (self.entries.len() as u64 + 1, request.payloads.len() as u64);
        self.entries.extend(request.payloads);
        let reply = ProposeReply { header: self.header(), first_index, count, duplicate: false };
        self.replies.insert(id.sequence, reply);
        reply
    }
}

fn refused(code: Code, executed: &'static str) -> Status {
    let mut status = Status::new(code, "as planned");
    status.metadata_mut().insert(EXECUTED, executed.parse().unwrap());
    status
}

#[tonic::async_trait]
impl Log for Fake {
    type SubscribeStream = BoxStream<'static, Result<SubscribeReply, Status>>;

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeReply>, Status> {
        let (act, reply) = {
            let mut state = self.0.lock().unwrap();
            let act = state.acts.pop_front();
            if let Some(Act::Never(code)) = act {
                return Err(refused(code, NEVER));
            }
            (act, state.execute(request.into_inner()))
        };
        match act {
            Some(Act::ExecuteThenHang) => std::future::pending().await,
            Some(Act::ExecuteThenBreak) => Err(refused(Code::Unavailable, MAYBE)),
            Some(Act::Never(_) | Act::BreakAfter(_)) | None => Ok(Response::new(reply)),
        }
    }

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let from = request.into_inner().from_index;
        let mut state = self.0.lock().unwrap();
        state.subscribed_from.push(from);
        let header = state.header();
        let (first, last) = (header.unwrap().first_index, header.unwrap().last_index);
        if from > 0 && from < first {
            let mut status = refused(Code::OutOfRange, NEVER);
            status.metadata_mut().insert(FIRST_INDEX, first.into());
            status.metadata_mut().insert(LAST_INDEX, last.into());
            return Err(status);
        }
        let breaks = match state.acts.pop_front() {
            Some(Act::BreakAfter(count)) => Some(count),
            Some(Act::Never(_) | Act::ExecuteThenHang | Act::ExecuteThenBreak) | None => None,
        };
        let replies = (from.max(first)..=last).map(|index| {
            let payload = state.entries[usize::try_from(index - 1).unwrap()].clone();
            Ok(SubscribeReply { header, entries: vec![Entry { index, payload }] })
        });
        let replies: Vec<_> = replies.take(breaks.unwrap_or(usize::MAX)).collect();
        let end = match breaks {
            Some(_) => stream::iter([Err(refused(Code::Unavailable, NEVER))]).boxed(),
            None => stream::pending().boxed(),
        };
        Ok(Response::new(stream::iter(replies).chain(end).boxed()))
    }

    async fn trim(&self, request: Request<TrimRequest>) -> Result<Response<TrimReply>, Status> {
        let mut state = self.0.lock().unwrap();
        state.first_index = request.into_inner().first_index;
        Ok(Response::new(TrimReply { header: state.header() }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let header = self.0.lock().unwrap().header();
        Ok(Response::new(StatusReply { header, quota_bytes: 7 }))
    }

    async fn time(&self, _: Request<TimeRequest>) -> Result<Response<TimeReply>, Status> {
        Ok(Response::new(TimeReply { header: self.0.lock().unwrap().header() }))
    }
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_id() {
    let fake = Fake::default();
    let client = fake.serve().await;
    let acts = [Act::Never(Code::Unavailable), Act::ExecuteThenHang, Act::ExecuteThenBreak];
    fake.plan(acts);
    let appended = client.append_all(vec!["a".into(), "b".into()]).await.unwrap();
    assert_eq!(appended, Appended { first_index: 1, last_index: 2 });
    assert_eq!(client.append("c").await.unwrap(), 3);
    let state = fake.0.lock().unwrap();
    assert_eq!(state.entries, ["a", "b", "c"]);
    assert_eq!(state.ids.len(), 4);
    assert!(state.ids[..3].iter().all(|id| *id == state.ids[0]), "{:?}", state.ids);
    assert_eq!((state.ids[3].sequence, state.ids[3].acknowledged), (2, 1));
}

#[tokio::test]
async fn what_is_refused_for_good_is_told_at_once_and_what_is_unclear_stays_unknown() {
    let fake = Fake::default();
    let client = fake.serve().await;
    fake.plan([Act::Never(Code::FailedPrecondition)]);
    let refused = client.append("a").await;
    assert!(matches!(refused, Err(Error::Rejected(Rejected::Refused(_)))), "{refused:?}");
    fake.plan([Act::ExecuteThenBreak, Act::Never(Code::FailedPrecondition)]);
    let unclear = client.append("b").await;
    assert!(matches!(unclear, Err(Error::Unknown(_))), "{unclear:?}");
    for (payloads, limit) in [
        (vec![], "propose_entries_max"),
        (vec![vec![0; (1 << 20) + 1].into()], "entry_bytes_max"),
        (vec![vec![0; 1 << 20].into(); 3], "propose_bytes_max"),
    ] {
        let refused = client.append_all(payloads).await.unwrap_err();
        assert!(refused.to_string().contains(limit), "{refused}");
    }
    assert_eq!(fake.0.lock().unwrap().entries, ["b"]);
}

#[tokio::test]
async fn a_stream_that_breaks_goes_on_behind_the_last_entry() {
    let fake = Fake::default();
    let client = fake.serve().await;
    let payloads: Vec<Bytes> = (1..=6).map(|number| format!("{number}").into()).collect();
    client.append_all(payloads.clone()).await.unwrap();
    fake.plan([Act::BreakAfter(0), Act::BreakAfter(2), Act::BreakAfter(3)]);
    let mut tail = client.tail(Range { to_index: Some(6), ..Range::default() });
    for (index, payload) in (1..).zip(payloads) {
        assert_eq!(tail.next().await.unwrap(), Some(LogEntry { index, payload }));
    }
    assert_eq!(tail.next().await.unwrap(), None);
    assert_eq!(fake.0.lock().unwrap().subscribed_from, [0, 0, 3, 6]);
    // Nobody has to be asked for nothing.
    let mut nothing = client.tail(Range { to_index: Some(0), ..Range::default() });
    assert_eq!(nothing.next().await.unwrap(), None);
}

#[tokio::test]
async fn what_was_trimmed_is_out_of_range_with_what_there_is() {
    let fake = Fake::default();
    let client = fake.serve().await;
    client.append_all(vec!["a".into(), "b".into(), "c".into()]).await.unwrap();
    assert_eq!(client.trim(3).await.unwrap(), 3);
    let status = client.status().await.unwrap();
    assert_eq!((status.first_index, status.last_index, status.quota_bytes), (3, 3, 7));
    let mut tail = client.tail(Range { from_index: 2, ..Range::default() });
    match tail.next().await {
        Err(Rejected::OutOfRange { first_index, last_index, .. }) => {
            assert_eq!((first_index, last_index), (Some(3), Some(3)));
        }
        other => panic!("{other:?}"),
    }
    let kept = client.tail(Range::default()).next().await.unwrap().unwrap();
    assert_eq!(kept.index, 3);
}
