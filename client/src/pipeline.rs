//! One stream to one member, on which thousands of requests are in flight (`Kv.Pipeline`).
//!
//! Decides what is known of a request when its stream breaks or its time is over: what was never
//! handed to the stream was never executed; of the rest nobody knows. Which member is asked, and
//! whether it is tried again, is decided in [`crate::calls`].
//!
//! ```text
//!   ask --unsent--> Unsent ==Kv.Pipeline==> member
//!   ask <--answer-- receive <=============
//! ```
//!
//! The stream is opened when it is first needed, by a task that receives its replies and ends with
//! it; the next request opens another.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use prost::Message;
use proto::{
    kv::{PipelineReply, PipelineRequest, Request, forward_reply, kv_client, request},
    metadata::{EXECUTED, LEADER, MAYBE, NEVER, status},
};
use tokio::{
    sync::{Semaphore, oneshot},
    task::AbortHandle,
    time::{Instant, timeout_at},
};
use tokio_stream::Stream;
use tonic::{Code, Response, Status, metadata::AsciiMetadataValue, transport::Channel};

use crate::{MESSAGE_BYTES_MAX, REQUEST_BYTES_MAX, routed::Attempt};

/// How many requests may be in flight on one stream: as many as a member reads before it has
/// answered any. Others wait here, where it is certain that they were not sent.
const IN_FLIGHT_MAX: usize = 1_024;

/// How many numbers wait for a stream that takes none before those are dropped that were given up.
const UNSENT_MAX: usize = 2 * IN_FLIGHT_MAX;

/// What a request's number and time limit add to it on the wire, generously.
const ENVELOPE_BYTES: usize = 64;

/// A reply, with the leader that gave it beside it if that was another member.
pub(crate) type Answer = Result<Response<forward_reply::Kind>, Status>;

/// The stream to a member, open or not.
#[derive(Debug)]
pub(crate) struct Pipeline {
    channel: Channel,
    shared: Arc<Shared>,
    room: Semaphore,
}

/// What callers, the stream and the task that receives share. The lock is held for a few moves.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

/// Keeps: a number in `unsent` that is in `waiting`, too, has its request there; who waits without
/// one was handed to the stream that is open.
#[derive(Debug, Default)]
struct State {
    last: u64,
    waiting: HashMap<u64, Waiting>,
    /// In order. Those that have been given up are still in it.
    unsent: VecDeque<u64>,
    /// Wakes the stream when there is something to send.
    sender: Option<Waker>,
    /// How many streams there were; the last one is open while `receiver` is there.
    streams: u64,
    receiver: Option<AbortHandle>,
}

#[derive(Debug)]
struct Waiting {
    /// Until it is sent.
    request: Option<Request>,
    direct: bool,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

impl State {
    /// Lets the stream see what there is to send, or that it is over.
    fn wake(&mut self) {
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
    }
}

impl Pipeline {
    /// A stream over this connection, to be opened when it is needed.
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel, shared: Arc::default(), room: Semaphore::new(IN_FLIGHT_MAX) }
    }

    /// Asks, and waits for the answer for as long as the attempt may take; must be called on a runtime.
    ///
    /// # Errors
    /// The status that a call of its own would have ended with.
    pub(crate) async fn ask(&self, kind: request::Kind, attempt: Attempt) -> Answer {
        let Attempt { limit, direct } = attempt;
        let deadline = Instant::now() + limit;
        let request = Request { kind: Some(kind) };
        let bytes = request.encoded_len() + ENVELOPE_BYTES;
        if bytes > REQUEST_BYTES_MAX {
            let message =
                format!("the request has {bytes} bytes; the limit is {REQUEST_BYTES_MAX}");
            return Err(told(Code::InvalidArgument, message, NEVER));
        }
        let _room = match self.room.try_acquire() {
            Ok(room) => room,
            Err(_) => match timeout_at(deadline, self.room.acquire()).await {
                Ok(Ok(room)) => room,
                Ok(Err(_)) | Err(_) => return Err(unsent("no room on the stream in time")),
            },
        };
        let (number, mut answered) = self.submit(request, direct, deadline);
        let waits = Waits { shared: &self.shared, number };
        match timeout_at(deadline, &mut answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(lost("the stream was given up")),
            Err(_) => match (waits.give_up(), answered.try_recv()) {
                (_, Ok(answer)) => answer,
                (Some(Waiting { request: Some(_), .. }), Err(_)) => {
                    Err(unsent("the member took no more requests"))
                }
                (Some(_) | None, Err(_)) => {
                    Err(told(Code::DeadlineExceeded, "no answer in time".to_owned(), MAYBE))
                }
            },
        }
    }

    /// Queues a request for the stream, which is opened if it is not.
    fn submit(
        &self,
        request: Request,
        direct: bool,
        deadline: Instant,
    ) -> (u64, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let mut state = self.shared.state();
        state.last += 1;
        let number = state.last;
        state.waiting.insert(number, Waiting { request: Some(request), direct, deadline, answer });
        state.unsent.push_back(number);
        if state.unsent.len() > UNSENT_MAX {
            let State { waiting, unsent, .. } = &mut *state;
            unsent.retain(|number| waiting.contains_key(number));
        }
        state.wake();
        if state.receiver.is_none() {
            state.streams += 1;
            let receive = receive(self.shared.clone(), state.streams, self.channel.clone());
            state.receiver = Some(tokio::spawn(receive).abort_handle());
        }
        (number, answered)
    }
}

impl Drop for Pipeline {
    /// Nobody waits any more: both halves of the stream end, else its connection would live on.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(receiver) = state.receiver.take() {
            receiver.abort();
        }
        state.wake();
    }
}

/// Someone waits for an answer; who goes away half way leaves nothing behind.
struct Waits<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Waits<'_> {
    fn give_up(&self) -> Option<Waiting> {
        self.shared.state().waiting.remove(&self.number)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        drop(self.give_up());
    }
}

impl Shared {
    /// No code panics while it holds the lock, so poison means nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, reply: PipelineReply) {
        let PipelineReply { number, reply, leader } = reply;
        // None: it came too late.
        let Some(waiting) = self.state().waiting.remove(&number) else { return };
        let answer = match reply.and_then(|reply| reply.kind) {
            Some(forward_reply::Kind::Refusal(refusal)) => Err(status(refusal)),
            Some(kind) => Ok(beside(kind, &leader)),
            None => Err(lost("a reply of no known kind")),
        };
        // The asker may have gone.
        drop(waiting.answer.send(answer));
    }

    /// The stream has ended: nobody on it will be answered.
    fn end(&self, stream: u64, ending: &Ending) {
        let waiting = {
            let mut state = self.state();
            if state.streams != stream {
                return;
            }
            state.receiver = None;
            state.wake();
            state.unsent.clear();
            std::mem::take(&mut state.waiting)
        };
        for (_, Waiting { request, answer, .. }) in waiting {
            let status = match (ending, request) {
                (Ending::NotOpened(status), Some(_)) if !never_executed(status) => {
                    told(status.code(), status.message().to_owned(), NEVER)
                }
                (Ending::NotOpened(status), Some(_)) => status.clone(),
                (Ending::Broken(reason), Some(_)) => unsent(reason),
                (Ending::NotOpened(status), None) => lost(status.message()),
                (Ending::Broken(reason), None) => lost(reason),
            };
            // The asker may have gone.
            drop(answer.send(Err(status)));
        }
    }
}

/// How a stream ended.
enum Ending {
    /// The call was refused, or there is no connection.
    NotOpened(Status),
    /// It was open.
    Broken(String),
}

/// Opens a stream and takes its replies until it ends.
async fn receive(shared: Arc<Shared>, stream: u64, channel: Channel) {
    let mut client = kv_client::KvClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let broken = Ending::Broken("the task that received its replies is gone".to_owned());
    let mut ends = Ends { shared: shared.clone(), stream, ending: broken };
    ends.ending = match client.pipeline(Unsent { shared: shared.clone(), stream }).await {
        Ok(replies) => {
            let mut replies = replies.into_inner();
            loop {
                match replies.message().await {
                    Ok(Some(reply)) => shared.answer(reply),
                    Ok(None) => break Ending::Broken("the member ended the stream".to_owned()),
                    Err(status) => {
                        break Ending::Broken(format!("the stream broke: {}", status.message()));
                    }
                }
            }
        }
        Err(status) => Ending::NotOpened(status),
    };
}

/// Tells those who wait when a stream ends, also if its task's runtime has ended before it.
struct Ends {
    shared: Arc<Shared>,
    stream: u64,
    ending: Ending,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.shared.end(self.stream, &self.ending);
    }
}

/// The requests of one stream, as its connection has room for them.
struct Unsent {
    shared: Arc<Shared>,
    stream: u64,
}

impl Stream for Unsent {
    type Item = PipelineRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PipelineRequest>> {
        let mut state = self.shared.state();
        if state.streams != self.stream || state.receiver.is_none() {
            return Poll::Ready(None);
        }
        while let Some(number) = state.unsent.pop_front() {
            let Some(waiting) = state.waiting.get_mut(&number) else { continue };
            let left = waiting.deadline.saturating_duration_since(Instant::now());
            // Less than what the wire can say, which would mean no limit at all.
            let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
            let (request, direct) = (waiting.request.take(), waiting.direct);
            return Poll::Ready(Some(PipelineRequest { number, request, timeout_ms, direct }));
        }
        state.sender = Some(cx.waker().clone());
        Poll::Pending
    }
}

fn beside(kind: forward_reply::Kind, leader: &str) -> Response<forward_reply::Kind> {
    let mut response = Response::new(kind);
    if !leader.is_empty()
        && let Ok(leader) = leader.parse::<AsciiMetadataValue>()
    {
        response.metadata_mut().insert(LEADER, leader);
    }
    response
}

fn never_executed(status: &Status) -> bool {
    proto::metadata::was_never_executed(status)
}

/// It was not handed to the stream.
fn unsent(reason: impl Into<String>) -> Status {
    told(Code::Unavailable, reason.into(), NEVER)
}

/// It was, and there will be no answer.
fn lost(reason: impl Into<String>) -> Status {
    told(Code::Unavailable, reason.into(), MAYBE)
}

fn told(code: Code, message: String, executed: &'static str) -> Status {
    let mut status = Status::new(code, message);
    status.metadata_mut().insert(EXECUTED, AsciiMetadataValue::from_static(executed));
    status
}
