//! One call, tried on one member after another until it ends or its deadline passes. Which group's
//! members they are may change meanwhile: a [`Route`] says so.
//!
//! Decides which statuses are worth another attempt, and keeps the one fact that must not get
//! lost: whether any attempt may have been executed.

use std::{future::Future, sync::Arc, time::Duration};

use proto::raft::{Executed, Refusal};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Request, Response, Status, transport::Channel};

use crate::{
    Error, Options, Outcome, Rejected, Unknown,
    members::{Member, Members, Pick},
    metadata,
    router::Way,
};

/// The shortest time that is worth an attempt.
const ATTEMPT_MIN: Duration = Duration::from_millis(1);

/// How many hints at a leader, or at the group that has a shard, one call follows in a row before it
/// pauses: two that take each other for it must not be asked in turn without end.
const REDIRECTS_MAX: u32 = 3;

/// How long a call waits, in milliseconds, for word of where a shard is when the group that should
/// have it does not, at first and at most.
const WRONG_GROUP_PAUSE_MIN: u64 = 10;
const WRONG_GROUP_PAUSE_MAX: u64 = 200;

/// How often a call looks again for the group that has its shard. More than fit into the longest
/// deadline at the longest pause, so that only answers that come too fast meet it.
const WRONG_GROUPS_MAX: u32 = 1_000;

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
    members: &Arc<Members>,
    patience: Patience,
    mut send: F,
) -> Outcome<R>
where
    F: FnMut(Channel, Duration) -> Attempt,
    Attempt: Future<Output = Result<Response<R>, Status>>,
{
    let send = |member: Arc<Member>, limit, _| {
        let attempt = timeout(limit, send(member.channel(), limit));
        async move { attempt.await.unwrap_or_else(|_| Err(member.no_answer())) }
    };
    match call_route(Route::To(members), patience, true, send).await {
        Ok(reply) => Outcome::Done(reply),
        Err(ended) => ended.outcome(),
    }
}

/// Whom a call may ask.
#[derive(Clone, Copy)]
pub(crate) enum Route<'a> {
    /// The members of a group.
    To(&'a Arc<Members>),
    /// Those of the group that has a shard, which may be another one the next time.
    By(Way<'a>),
}

impl Route<'_> {
    /// The group to ask now, by its number if it has one; else why there is none.
    fn group(&self) -> Result<(Option<u32>, Arc<Members>), Status> {
        match self {
            Self::To(members) => Ok((None, Arc::clone(members))),
            Self::By(way) => way.group(),
        }
    }

    /// The members of the group that has the shard as far as the one knows that was asked.
    fn named(&self, status: &Status) -> Option<(u32, Arc<Members>)> {
        match self {
            Self::To(_) => None,
            Self::By(way) => way.named(metadata::owner(status)?),
        }
    }

    /// Waits until another group is to be asked than this one, but not longer than until then.
    async fn moved(&self, from: Option<u32>, until: Instant) {
        match self {
            Self::To(_) => sleep_until(until).await,
            Self::By(way) => way.moved(from, until).await,
        }
    }
}

/// As [`call`]; `send` is given the member, how often in this call a group did not have the shard,
/// and ends by its time limit by itself. Unless it `may_repeat`, a request of unknown fate is not sent
/// again.
pub(crate) async fn call_route<R, F, Attempt>(
    route: Route<'_>,
    patience: Patience,
    may_repeat: bool,
    mut send: F,
) -> Result<R, Ended>
where
    F: FnMut(Arc<Member>, Duration, u32) -> Attempt,
    Attempt: Future<Output = Result<Response<R>, Status>>,
{
    let mut past = Past { never: true, last: None };
    let mut search = Search::default();
    let mut redirects = 0;
    loop {
        let left = patience.deadline.saturating_duration_since(Instant::now());
        if left < ATTEMPT_MIN || search.wrong_groups >= WRONG_GROUPS_MAX {
            return Err(past.give_up());
        }
        let (mapped, members) = match route.group() {
            Ok(found) => found,
            Err(nobody) => {
                past.add(nobody);
                route.moved(None, patience.deadline).await;
                continue;
            }
        };
        let (group, members) = search.choose(mapped, members);
        let Some((at, member)) = pick(&members, left, past.last.is_none()).await else { continue };
        let limit = if may_repeat { patience.attempt.min(left) } else { left };
        let sent = send(member.clone(), limit + patience.overtime, search.wrong_groups);
        let status = match sent.await {
            Ok(reply) => {
                members.answered(at, &member, metadata::leader(reply.metadata()));
                return Ok(reply.into_inner());
            }
            Err(status) => status,
        };
        past.never &= metadata::was_never_executed(&status);
        if metadata::is_wrong_group(&status) {
            // Whom it names is in another group.
            members.answered(at, &member, None);
            let named = route.named(&status);
            past.add(status);
            if !may_repeat && !past.never {
                return Err(past.give_up());
            }
            if let Some(pause) = search.note(mapped, named) {
                route.moved(mapped, (Instant::now() + pause).min(patience.deadline)).await;
            }
            continue;
        }
        if is_final(status.code()) {
            members.answered(at, &member, metadata::leader(status.metadata()));
            return Err(past.end(status));
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
        past.add(of_group(group, status));
        if !may_repeat && !past.never {
            return Err(past.give_up());
        }
    }
}

/// The search of one call for the group that has its shard.
#[derive(Default)]
struct Search {
    /// How often a group did not have it.
    wrong_groups: u32,
    /// How many groups in a row were asked because others named them.
    hints: u32,
    pauses: u32,
    /// Whom the last one named, and what the map said then.
    named: Option<(Option<u32>, u32, Arc<Members>)>,
}

impl Search {
    /// Whom to ask: the group that was named, as long as the map says what it said then.
    fn choose(&self, mapped: Option<u32>, members: Arc<Members>) -> (Option<u32>, Arc<Members>) {
        match &self.named {
            Some((then, group, named)) if *then == mapped => (Some(*group), named.clone()),
            Some(_) | None => (mapped, members),
        }
    }

    /// Takes note that a group did not have the shard, and of whom it named. How long to wait for word
    /// of the shard; none: the group that was named is asked at once.
    fn note(
        &mut self,
        mapped: Option<u32>,
        named: Option<(u32, Arc<Members>)>,
    ) -> Option<Duration> {
        self.wrong_groups += 1;
        self.named = named
            .filter(|_| self.hints < REDIRECTS_MAX)
            .map(|(group, members)| (mapped, group, members));
        if self.named.is_some() {
            self.hints += 1;
            return None;
        }
        self.hints = 0;
        let pause = (WRONG_GROUP_PAUSE_MIN << self.pauses.min(8)).min(WRONG_GROUP_PAUSE_MAX);
        self.pauses += 1;
        Some(Duration::from_millis(pause))
    }
}

/// A status that says which group gave it, if there are several.
fn of_group(group: Option<u32>, status: Status) -> Status {
    let Some(group) = group else { return status };
    let message = format!("group {group}: {}", describe(&status));
    Status::with_metadata(status.code(), message, status.metadata().clone())
}

/// Whom to ask, or none after a wait for those who are left alone. A call does not end untried for want
/// of time: at first it waits for half of what is left.
async fn pick(members: &Members, left: Duration, first: bool) -> Option<(usize, Arc<Member>)> {
    match members.pick() {
        Pick::Member(at, member) => Some((at, member)),
        Pick::Wait(wait, at, member) if first && wait >= left / 2 => Some((at, member)),
        Pick::Wait(wait, ..) => {
            sleep(wait.min(left)).await;
            None
        }
    }
}

/// What the attempts so far amount to.
struct Past {
    /// True while it is certain that none was or will be executed.
    never: bool,
    last: Option<Status>,
}

/// How a call ended that has no reply.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Whether it is certain that it was not and will not be executed.
    never: bool,
    /// What was said last.
    last: Status,
    /// No further attempt would get anything else.
    is_final: bool,
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

    fn end(self, last: Status) -> Ended {
        Ended { never: self.never, last, is_final: true }
    }

    fn give_up(self) -> Ended {
        let last = self.last.unwrap_or_else(|| Status::unavailable("no time was left to try"));
        Ended { never: self.never, last, is_final: false }
    }
}

impl Ended {
    /// Nobody could be asked, or nothing came of it.
    pub(crate) fn in_vain(last: Status) -> Self {
        Self { never: true, last, is_final: false }
    }

    /// What the caller is told.
    pub(crate) fn outcome<R>(&self) -> Outcome<R> {
        let Self { never, last, is_final } = self;
        match last.code() {
            _ if !never => Outcome::Unknown(Unknown { reason: describe(last) }),
            Code::ResourceExhausted => {
                Outcome::Rejected(Rejected::Limit(last.message().to_owned()))
            }
            _ if *is_final => Outcome::Rejected(Rejected::from_status(last)),
            _ => Outcome::Rejected(Rejected::Unavailable(describe(last))),
        }
    }

    /// What a member is told that has passed the request on.
    pub(crate) fn refusal(&self) -> Refusal {
        let executed = if self.never { Executed::Never } else { Executed::Maybe };
        Refusal { executed: executed.into(), ..metadata::refusal(&self.last) }
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
