//! One call, tried on one member after another until it ends or its deadline passes.
//!
//! Decides which statuses are worth another attempt, and keeps the one fact that must not get
//! lost: whether any attempt may have been executed.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Response, Status, transport::Channel};

use crate::{
    Error, Options, Outcome, Rejected, Unknown,
    members::{Member, Members, Pick},
    metadata,
};

/// The shortest time that is worth an attempt.
const ATTEMPT_MIN: Duration = Duration::from_millis(1);

/// How many hints at a leader one call follows in a row before it pauses: two members that take
/// each other for the leader must not be asked in turn without end.
const REDIRECTS_MAX: u32 = 3;

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// All attempts together: none begins later.
    pub(crate) deadline: Instant,
    /// One attempt.
    pub(crate) attempt: Duration,
    /// How far an attempt that began before the deadline may go beyond it.
    pub(crate) overtime: Duration,
}

impl Patience {
    /// From now on, as the options of a client say.
    pub(crate) fn of(options: &Options) -> Self {
        Self {
            deadline: Instant::now() + options.deadline,
            attempt: options.attempt,
            overtime: Duration::ZERO,
        }
    }

    /// The same for a request that is answered only after a while, in attempts of at most
    /// `attempt_max`.
    pub(crate) fn waiting(self, wait: Duration, attempt_max: Duration) -> Self {
        let attempt = (self.attempt + wait).min(attempt_max);
        Self { deadline: self.deadline + wait, attempt, ..self }
    }

    /// The same, but not longer than this, in attempts no longer than that.
    pub(crate) fn until(self, deadline: Instant, attempt: Duration) -> Self {
        let attempt = self.attempt.min(attempt);
        Self { deadline: self.deadline.min(deadline), attempt, ..self }
    }
}

/// A request that carries its time limit to the server.
pub(crate) fn request<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// Calls until there is a reply, a status that no other member would change, or no time left.
/// `send` makes one attempt and must send the same request each time.
pub(crate) async fn call<R, F, Attempt>(
    members: &Members,
    patience: Patience,
    mut send: F,
) -> Outcome<R>
where
    F: FnMut(Channel, Duration) -> Attempt,
    Attempt: Future<Output = Result<Response<R>, Status>>,
{
    let send = |member: Arc<Member>, limit| {
        let attempt = timeout(limit, send(member.channel(), limit));
        async move { attempt.await.unwrap_or_else(|_| Err(member.no_answer())) }
    };
    call_members(members, patience, send).await
}

/// As [`call`]; `send` is given the member, and ends by its time limit by itself.
pub(crate) async fn call_members<R, F, Attempt>(
    members: &Members,
    patience: Patience,
    mut send: F,
) -> Outcome<R>
where
    F: FnMut(Arc<Member>, Duration) -> Attempt,
    Attempt: Future<Output = Result<Response<R>, Status>>,
{
    let mut past = Past { never: true, last: None };
    let mut redirects = 0;
    loop {
        let left = patience.deadline.saturating_duration_since(Instant::now());
        if left < ATTEMPT_MIN {
            return past.give_up();
        }
        let (at, member) = match members.pick() {
            Pick::Member(at, member) => (at, member),
            // A call does not end untried for want of time: it waits for half of what it has.
            Pick::Wait(wait, at, member) if past.last.is_none() && wait >= left / 2 => (at, member),
            Pick::Wait(wait, ..) => {
                sleep(wait.min(left)).await;
                continue;
            }
        };
        let limit = patience.attempt.min(left + patience.overtime);
        let status = match send(member.clone(), limit).await {
            Ok(reply) => {
                members.answered(at, &member, metadata::leader(reply.metadata()));
                return Outcome::Done(reply.into_inner());
            }
            Err(status) => status,
        };
        past.never &= metadata::was_never_executed(&status);
        if is_final(status.code()) {
            members.answered(at, &member, metadata::leader(status.metadata()));
            return past.end(&status);
        }
        tracing::debug!(member = member.address(), code = ?status.code(), "attempt failed");
        if redirects < REDIRECTS_MAX
            && members.redirected(&member, metadata::leader(status.metadata()))
        {
            redirects += 1;
        } else {
            redirects = 0;
            members.failed(at, &member);
        }
        past.add(status);
    }
}

/// What the attempts so far amount to.
struct Past {
    /// True while it is certain that none was or will be executed.
    never: bool,
    last: Option<Status>,
}

impl Past {
    fn add(&mut self, status: Status) {
        let limit = |last: &Status| last.code() == Code::ResourceExhausted;
        // That too little time was left to begin says less than what it was used up by.
        let too_late =
            status.code() == Code::DeadlineExceeded && metadata::was_never_executed(&status);
        if !too_late || !self.last.as_ref().is_some_and(limit) {
            self.last = Some(status);
        }
    }

    fn end<R>(&self, status: &Status) -> Outcome<R> {
        if self.never {
            Outcome::Rejected(Rejected::from_status(status))
        } else {
            Outcome::Unknown(Unknown { reason: describe(status) })
        }
    }

    fn give_up<R>(&self) -> Outcome<R> {
        match &self.last {
            Some(status) if self.never => Outcome::Rejected(match status.code() {
                Code::ResourceExhausted => Rejected::Limit(status.message().to_owned()),
                _ => Rejected::Unavailable(describe(status)),
            }),
            Some(status) => Outcome::Unknown(Unknown { reason: describe(status) }),
            None => Outcome::Rejected(Rejected::Unavailable("no time was left to try".to_owned())),
        }
    }
}

fn describe(status: &Status) -> String {
    match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    }
}

/// Whether another attempt, on whichever member, would get the same.
fn is_final(code: Code) -> bool {
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => true,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => false,
    }
}

/// For calls that change nothing, or that are idempotent by themselves: an unknown outcome only
/// means that there was no answer.
pub(crate) fn idempotent<R>(outcome: Outcome<R>) -> Result<R, Error> {
    match outcome {
        Outcome::Done(reply) => Ok(reply),
        Outcome::Rejected(rejected) => Err(rejected.into()),
        Outcome::Unknown(unknown) => Err(Rejected::Unavailable(unknown.reason).into()),
    }
}
