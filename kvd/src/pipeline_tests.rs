//! A stream between a client and answers that the test gives when it likes.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use futures::{FutureExt, channel::mpsc, stream::BoxStream};
use proto::{
    kv::{GetReply, GetRequest, PutRequest, Request},
    raft::Executed,
};
use raft::NodeId;
use raftd::Member;
use tokio::sync::oneshot;

use super::*;

const LIMITS: PipelineLimits =
    PipelineLimits { requests_max: 3, bytes_max: 1_000, deadline: Duration::from_secs(10) };

/// What was asked and not yet answered, by key.
type Asked = Rc<RefCell<HashMap<Vec<u8>, (Instant, oneshot::Sender<Answer>)>>>;

struct Line {
    requests: mpsc::UnboundedSender<Result<PipelineRequest, Status>>,
    replies: BoxStream<'static, Result<PipelineReply, Status>>,
    asked: std::sync::mpsc::Receiver<(Vec<u8>, Instant, oneshot::Sender<Answer>)>,
    known: Asked,
    shutdown: Shutdown,
}

fn line() -> Line {
    let (requests, incoming) = mpsc::unbounded();
    let (asked_in, asked) = std::sync::mpsc::channel();
    let answer = move |Wanted { kind, deadline, .. }| {
        let (answer, answered) = oneshot::channel();
        asked_in.send((key(&kind), deadline, answer)).unwrap();
        async move { answered.await.unwrap() }
    };
    let shutdown = Shutdown::new();
    let replies = replies(incoming, LIMITS, &shutdown, answer).boxed();
    Line { requests, replies, asked, known: Rc::default(), shutdown }
}

fn key(kind: &request::Kind) -> Vec<u8> {
    match kind {
        request::Kind::Get(get) => get.key.to_vec(),
        request::Kind::Put(put) => put.key.to_vec(),
        other => panic!("{other:?} is not asked here"),
    }
}

fn get(number: u64) -> PipelineRequest {
    let get = GetRequest { key: number.to_string().into(), ..GetRequest::default() };
    let request = Some(Request { kind: Some(request::Kind::Get(get)) });
    PipelineRequest { number, request, ..PipelineRequest::default() }
}

fn put(number: u64, value_bytes: usize) -> PipelineRequest {
    let (key, value) = (number.to_string().into(), vec![0; value_bytes].into());
    let put = PutRequest { key, value, ..PutRequest::default() };
    let request = Some(Request { kind: Some(request::Kind::Put(put)) });
    PipelineRequest { number, request, ..PipelineRequest::default() }
}

fn found() -> Answer {
    let reply = forward_reply::Kind::Get(GetReply::default());
    Ok(Replied { reply, leader: None })
}

impl Line {
    fn send(&self, request: PipelineRequest) {
        self.requests.unbounded_send(Ok(request)).unwrap();
    }

    /// Lets the stream do what it can: none when it waits.
    fn next(&mut self) -> Option<Option<Result<PipelineReply, Status>>> {
        let next = self.replies.next().now_or_never();
        for (key, deadline, answer) in self.asked.try_iter() {
            self.known.borrow_mut().insert(key, (deadline, answer));
        }
        next
    }

    fn waits(&mut self) {
        assert!(self.next().is_none());
    }

    fn number(&mut self) -> u64 {
        self.next().unwrap().unwrap().unwrap().number
    }

    fn refusal(&mut self) -> Refusal {
        let reply = self.next().unwrap().unwrap().unwrap().reply.unwrap().kind.unwrap();
        let forward_reply::Kind::Refusal(refusal) = reply else { panic!("{reply:?}") };
        refusal
    }

    fn asked(&self) -> Vec<String> {
        let text = |key: &Vec<u8>| String::from_utf8(key.clone()).unwrap();
        let mut asked: Vec<String> = self.known.borrow().keys().map(text).collect();
        asked.sort();
        asked
    }

    fn answer(&self, number: u64, answer: Answer) {
        let asked = self.known.borrow_mut().remove(number.to_string().as_bytes());
        assert!(asked.unwrap().1.send(answer).is_ok());
    }
}

#[tokio::test]
async fn replies_come_as_they_are_ready() {
    let mut line = line();
    for number in 1..=3 {
        line.send(get(number));
    }
    line.waits();
    for number in [3, 1, 2] {
        line.answer(number, found());
        assert_eq!(line.number(), number);
    }
    line.waits();
    line.requests.close_channel();
    assert!(line.next().unwrap().is_none());
}

#[tokio::test]
async fn beyond_the_limits_nothing_is_read() {
    let mut line = line();
    for number in 1..=5 {
        line.send(get(number));
    }
    line.waits();
    assert_eq!(line.asked(), ["1", "2", "3"]);
    line.answer(2, found());
    assert_eq!(line.number(), 2);
    line.waits();
    assert_eq!(line.asked(), ["1", "3", "4"]);
    for number in [1, 3, 4, 5] {
        line.answer(number, found());
        assert_eq!(line.number(), number);
        line.waits();
    }
    // In bytes: one that reaches the limit is the last.
    line.send(put(6, 600));
    line.send(put(7, 600));
    line.send(get(8));
    line.waits();
    assert_eq!(line.asked(), ["6", "7"]);
    line.answer(7, found());
    assert_eq!(line.number(), 7);
    line.waits();
    assert_eq!(line.asked(), ["6", "8"]);
}

#[tokio::test]
async fn a_refusal_is_a_reply_and_harms_no_other() {
    let mut line = line();
    line.send(get(1));
    let request = Some(Request { kind: None });
    line.send(PipelineRequest { number: 2, request, ..PipelineRequest::default() });
    let refusal = line.refusal();
    assert_eq!((refusal.reason(), refusal.executed()), (Reason::Invalid, Executed::Never));
    line.waits();
    let leader = "here:1".to_owned();
    line.answer(1, Err(Refusal { leader, ..never(Reason::NotLeader, "elsewhere") }));
    let refusal = line.refusal();
    assert_eq!((refusal.reason(), &*refusal.leader), (Reason::NotLeader, "here:1"));
    line.send(get(3));
    line.waits();
    let (node, client_address) = (NodeId(7), "there:1".to_owned());
    let leader = Some(Member { node, client_address, peer_address: "there:51".to_owned() });
    line.answer(3, found().map(|replied| Replied { leader, ..replied }));
    assert_eq!(line.next().unwrap().unwrap().unwrap().leader, "there:1");
}

#[tokio::test]
async fn a_request_has_its_own_deadline_within_the_longest_one() {
    let mut line = line();
    let now = Instant::now();
    line.send(get(0));
    line.send(PipelineRequest { timeout_ms: 200, ..get(1) });
    line.send(PipelineRequest { timeout_ms: u32::MAX, ..get(2) });
    line.waits();
    let read = Instant::now();
    for (key, limit) in
        [("0", LIMITS.deadline), ("1", Duration::from_millis(200)), ("2", DEADLINE_MAX)]
    {
        let deadline = line.known.borrow()[key.as_bytes()].0;
        assert!((now + limit..=read + limit).contains(&deadline), "{key}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_takes_what_waits_with_it() {
    let mut line = line();
    line.send(get(1));
    line.send(get(2));
    line.waits();
    line.requests.unbounded_send(Err(Status::cancelled("gone"))).unwrap();
    assert!(line.next().unwrap().unwrap().is_err());
    let asked = std::mem::take(&mut *line.known.borrow_mut());
    assert!(asked.into_values().all(|(_, answer)| answer.is_closed()));
    assert!(line.next().unwrap().is_none());
}

#[tokio::test]
async fn shutdown_answers_what_is_in_flight_and_refuses_what_has_come() {
    let mut line = line();
    line.send(get(1));
    line.waits();
    line.shutdown.request();
    line.send(get(2));
    let refusal = line.refusal();
    assert_eq!((refusal.reason(), refusal.executed()), (Reason::Shutdown, Executed::Never));
    line.waits();
    line.answer(1, found());
    assert_eq!(line.number(), 1);
    assert!(line.next().unwrap().is_none());
}
