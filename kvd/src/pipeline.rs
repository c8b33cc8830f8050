//! `Kv.Pipeline`: many requests in flight on one stream, answered as they are ready.
//!
//! Decides when the next request is read: while fewer than `requests_max` requests and fewer than
//! `bytes_max` bytes of them are in flight. Beyond either the stream is not read, so that HTTP/2's
//! flow control holds the client, and a client that does not read its replies is held the same way.
//! What becomes of a request is not decided here: every kind goes to `answer`, which knows them.
//!
//! A stream is one state machine, polled by its connection: it has neither a task nor queues of its
//! own, so a stream that breaks takes with it what only waits to be sent back, and nothing else.
//! What was proposed by then runs on.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use daemon::Shutdown;
use futures::{Stream, StreamExt, stream::FuturesUnordered};
use prost::Message;
use proto::{
    kv::{ForwardReply, PipelineReply, PipelineRequest, forward_reply, request},
    raft::{Reason, Refusal},
};
use raftd::edge::{DEADLINE_MAX, Replied, never};
use tokio::time::Instant;
use tonic::Status;

use crate::requests::Wanted;

/// How much of one stream may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PipelineLimits {
    /// How many requests.
    pub(crate) requests_max: usize,
    /// How many bytes of them; one more request may begin below it.
    pub(crate) bytes_max: usize,
    /// How long a request may take that says nothing.
    pub(crate) deadline: Duration,
}

/// What became of a request.
type Answer = Result<Replied<forward_reply::Kind>, Refusal>;

/// The replies to the requests of `incoming`, each answered by `answer` until its deadline. After
/// shutdown what is in flight is answered, and what has come by then is refused.
pub(crate) fn replies<I, A, F>(
    incoming: I,
    limits: PipelineLimits,
    shutdown: &Shutdown,
    answer: A,
) -> impl Stream<Item = Result<PipelineReply, Status>> + Send + use<I, A, F>
where
    I: Stream<Item = Result<PipelineRequest, Status>> + Unpin + Send,
    A: Fn(Wanted<request::Kind>) -> F + Unpin + Send,
    F: Future<Output = Answer> + Send,
{
    let finish = move |request: InFlight| {
        let InFlight { number, bytes, wanted } = request;
        let answered = answer(wanted);
        async move { Finished { bytes, reply: reply(number, answered.await) } }
    };
    Pipeline {
        incoming,
        limits,
        finish,
        in_flight: FuturesUnordered::new(),
        in_flight_bytes: 0,
        is_over: false,
        stopping: Box::pin(shutdown.requested()),
        is_stopping: false,
    }
}

/// One stream.
///
/// Keeps: `in_flight_bytes` is what the requests of `in_flight` weigh.
struct Pipeline<I, A, F, W> {
    incoming: I,
    limits: PipelineLimits,
    finish: A,
    in_flight: FuturesUnordered<F>,
    in_flight_bytes: usize,
    /// The client sends nothing more.
    is_over: bool,
    /// Ends when the member is to stop.
    stopping: Pin<Box<W>>,
    is_stopping: bool,
}

/// A request that was read.
struct InFlight {
    number: u64,
    bytes: usize,
    wanted: Wanted<request::Kind>,
}

/// A request that was answered.
struct Finished {
    bytes: usize,
    reply: PipelineReply,
}

/// What reading has brought.
enum Read {
    /// A request, which is in flight now.
    Begun,
    /// A request that is answered at once.
    Refused(PipelineReply),
    /// The end of the requests.
    Over,
}

impl<I, A, F, W> Stream for Pipeline<I, A, F, W>
where
    I: Stream<Item = Result<PipelineRequest, Status>> + Unpin,
    A: Fn(InFlight) -> F + Unpin,
    F: Future<Output = Finished>,
    W: Future<Output = ()>,
{
    type Item = Result<PipelineReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            // Replies first: they go out together, and what is read after them begins together.
            if let Poll::Ready(Some(finished)) = self.in_flight.poll_next_unpin(cx) {
                self.in_flight_bytes -= finished.bytes;
                return Poll::Ready(Some(Ok(finished.reply)));
            }
            self.is_stopping = self.is_stopping || self.stopping.as_mut().poll(cx).is_ready();
            let mut has_begun = false;
            while self.has_room() {
                match self.read(cx) {
                    Poll::Ready(Ok(Read::Begun)) => has_begun = true,
                    Poll::Ready(Ok(Read::Refused(reply))) => return Poll::Ready(Some(Ok(reply))),
                    Poll::Ready(Ok(Read::Over)) => self.is_over = true,
                    // Nobody is left to tell, or nothing more can be understood.
                    Poll::Ready(Err(status)) => {
                        self.is_over = true;
                        self.in_flight.clear();
                        self.in_flight_bytes = 0;
                        return Poll::Ready(Some(Err(status)));
                    }
                    Poll::Pending => break,
                }
            }
            if !has_begun {
                let is_done = self.in_flight.is_empty() && (self.is_over || self.is_stopping);
                return if is_done { Poll::Ready(None) } else { Poll::Pending };
            }
        }
    }
}

impl<I, A, F, W> Pipeline<I, A, F, W>
where
    I: Stream<Item = Result<PipelineRequest, Status>> + Unpin,
    A: Fn(InFlight) -> F,
{
    /// Whether another request may be read.
    fn has_room(&self) -> bool {
        !self.is_over
            && self.in_flight.len() < self.limits.requests_max
            && self.in_flight_bytes < self.limits.bytes_max
    }

    /// Reads a request and begins it.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Read, Status>> {
        let Some(message) = ready!(self.incoming.poll_next_unpin(cx)) else {
            return Poll::Ready(Ok(Read::Over));
        };
        let message = message?;
        let bytes = message.encoded_len();
        let PipelineRequest { number, request, timeout_ms, direct } = message;
        let refused = |refusal| Poll::Ready(Ok(Read::Refused(reply(number, Err(refusal)))));
        if self.is_stopping {
            return refused(never(Reason::Shutdown, "the member is stopping"));
        }
        let Some(kind) = request.and_then(|request| request.kind) else {
            return refused(never(Reason::Invalid, "a request of no known kind"));
        };
        let limit = match timeout_ms {
            0 => self.limits.deadline,
            timeout_ms => Duration::from_millis(timeout_ms.into()),
        };
        let deadline = Instant::now() + limit.min(DEADLINE_MAX);
        self.in_flight_bytes += bytes;
        let wanted = Wanted { kind, deadline, direct };
        self.in_flight.push((self.finish)(InFlight { number, bytes, wanted }));
        Poll::Ready(Ok(Read::Begun))
    }
}

fn reply(number: u64, answer: Answer) -> PipelineReply {
    let (kind, leader) = match answer {
        Ok(Replied { reply, leader }) => (reply, leader),
        Err(refusal) => (forward_reply::Kind::Refusal(refusal), None),
    };
    PipelineReply {
        number,
        reply: Some(ForwardReply { kind: Some(kind) }),
        leader: leader.map_or_else(String::new, |leader| leader.client_address),
    }
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
