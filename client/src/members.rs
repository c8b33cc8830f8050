//! The members of a group as a client sees them: where they are, who is believed to lead, and who
//! is being left alone for a while.
//!
//! Decides whom to ask next. A member that failed is left alone for a time that doubles with each
//! failure and is jittered, so that a thousand waiting requests do not come back at once.

use std::{
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{InvalidEndpoint, Options, pipeline::Pipeline};

/// How many members a client keeps connections to; hints beyond it are ignored.
const MEMBERS_MAX: usize = 16;

/// How long a member is left alone after its first failure, in milliseconds.
const BACKOFF_MS_MIN: u64 = 20;

/// How long at most.
const BACKOFF_MS_MAX: u64 = 500;

/// How long hints at a member that failed are ignored: others pass requests on meanwhile, and its
/// address may be one that only the members can reach.
const HINT_IGNORED_MS: u64 = 5_000;

/// How many requests may wait for one connection before callers wait for room.
const CHANNEL_BUFFER: usize = 8 * 1024;

/// How much a stream and a connection may bring before it is read.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// How long a quiet connection is trusted, so that a vanished machine is noticed.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// One member.
#[derive(Debug)]
pub(crate) struct Member {
    address: String,
    channel: Channel,
    /// The stream to it, if this client uses one.
    pipeline: OnceLock<Pipeline>,
    /// Failures since the last success.
    failures: AtomicU32,
    /// When it may be asked again, in milliseconds since the list was made.
    retry_at_ms: AtomicU64,
    /// When it failed last.
    failed_at_ms: AtomicU64,
}

/// All members that are known.
#[derive(Debug)]
pub(crate) struct Members {
    began: Instant,
    connect: Duration,
    list: RwLock<Vec<Arc<Member>>>,
    /// Whom to ask first, a place in the list.
    preferred: AtomicUsize,
}

/// Whom to ask.
pub(crate) enum Pick {
    /// Ask this one, at this place of the list.
    Member(usize, Arc<Member>),
    /// All are being left alone: wait, or, if there is no time to, ask the one that comes back
    /// first.
    Wait(Duration, usize, Arc<Member>),
}

impl Member {
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn pipeline(&self) -> &Pipeline {
        self.pipeline.get_or_init(|| Pipeline::new(self.channel.clone()))
    }

    /// It did not answer in time; nobody knows what became of the request.
    pub(crate) fn no_answer(&self) -> Status {
        Status::deadline_exceeded(format!("no answer from {}", self.address))
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Members {
    pub(crate) fn new(endpoints: &[String], options: &Options) -> Result<Self, InvalidEndpoint> {
        let mut list: Vec<Arc<Member>> = Vec::new();
        for text in endpoints {
            let address = strip_scheme(text);
            if list.iter().all(|member| member.address != address) {
                list.push(Arc::new(dial(address, options.connect)?));
            }
        }
        if list.is_empty() {
            return Err(InvalidEndpoint::None);
        }
        let preferred = AtomicUsize::new(rand::random_range(0..list.len()));
        let (began, connect) = (Instant::now(), options.connect);
        Ok(Self { began, connect, list: RwLock::new(list), preferred })
    }

    /// Takes over whom others know, and keeps the connections to those that are known already. What
    /// is no address is passed over; of nothing else nothing is taken.
    pub(crate) fn renew(&self, endpoints: &[String]) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        let mut renewed: Vec<Arc<Member>> = Vec::new();
        for address in endpoints.iter().take(MEMBERS_MAX) {
            let known = list.iter().find(|member| member.address == *address).cloned();
            let member = known.or_else(|| Some(Arc::new(dial(address, self.connect).ok()?)));
            renewed.extend(member);
        }
        if renewed.is_empty() {
            return;
        }
        let preferred = list.get(self.preferred.load(Relaxed)).map(|member| member.address.clone());
        let at = renewed.iter().position(|member| Some(&member.address) == preferred.as_ref());
        self.prefer(at.unwrap_or(0));
        *list = renewed;
    }

    /// The address of whom to ask first.
    pub(crate) fn address(&self) -> String {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let preferred = self.preferred.load(Relaxed) % list.len();
        list[preferred].address.clone()
    }

    /// Whom to ask next: the preferred member unless it is being left alone, then the others in
    /// turn.
    pub(crate) fn pick(&self) -> Pick {
        let now = self.now_ms();
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let preferred = self.preferred.load(Relaxed);
        let mut earliest = (u64::MAX, preferred);
        for step in 0..list.len() {
            let at = (preferred + step) % list.len();
            let retry_at = list[at].retry_at_ms.load(Relaxed);
            if retry_at <= now {
                return Pick::Member(at, Arc::clone(&list[at]));
            }
            earliest = earliest.min((retry_at, at));
        }
        let (retry_at, at) = earliest;
        let wait = retry_at - now;
        let wait = Duration::from_millis(wait + rand::random_range(0..=wait / 2 + 1));
        Pick::Wait(wait, at, Arc::clone(&list[at]))
    }

    /// A member answered; `leader` is what it says of the leader.
    pub(crate) fn answered(&self, at: usize, member: &Member, leader: Option<&str>) {
        if member.failures.load(Relaxed) != 0 {
            member.failures.store(0, Relaxed);
        }
        match leader {
            Some(leader) if leader != member.address => {
                self.hint(leader);
            }
            Some(_) | None => self.prefer(at),
        }
    }

    /// A member could not answer, but names another one that leads. Whether that one can be asked.
    pub(crate) fn redirected(&self, member: &Member, leader: Option<&str>) -> bool {
        leader.is_some_and(|leader| leader != member.address && self.hint(leader))
    }

    /// A member could not answer: it is left alone for a while.
    pub(crate) fn failed(&self, at: usize, member: &Member) {
        let failures = member.failures.fetch_add(1, Relaxed).min(16);
        let backoff = (BACKOFF_MS_MIN << failures).min(BACKOFF_MS_MAX);
        let now = self.now_ms();
        let jittered = rand::random_range(backoff / 2..=backoff);
        member.failed_at_ms.store(now, Relaxed);
        member.retry_at_ms.store(now + jittered, Relaxed);
        let members = self.list.read().unwrap_or_else(PoisonError::into_inner).len();
        // Only the one that is preferred now passes the preference on, so that requests which
        // failed together do not chase each other around the list.
        let next = (at + 1) % members;
        let _ = self.preferred.compare_exchange(at, next, Relaxed, Relaxed);
        tracing::debug!(member = member.address, backoff_ms = jittered, "member left alone");
    }

    /// Prefers the member at this address, which is added if it is new; false when the hint is of
    /// no use.
    fn hint(&self, leader: &str) -> bool {
        let known = {
            let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
            list.iter().position(|member| member.address == leader).map(|at| (at, list[at].clone()))
        };
        if let Some((at, member)) = known {
            let failed_at = member.failed_at_ms.load(Relaxed);
            let usable = member.failures.load(Relaxed) == 0
                || self.now_ms() >= failed_at.saturating_add(HINT_IGNORED_MS);
            if usable {
                self.prefer(at);
            }
            return usable;
        }
        let Ok(member) = dial(leader, self.connect) else { return false };
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        if list.len() >= MEMBERS_MAX || list.iter().any(|known| known.address == leader) {
            return false;
        }
        list.push(Arc::new(member));
        self.prefer(list.len() - 1);
        true
    }

    fn prefer(&self, at: usize) {
        if self.preferred.load(Relaxed) != at {
            self.preferred.store(at, Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        // From 1, so that 0 stays "never".
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// The address behind a scheme that people may have put before it.
pub(crate) fn strip_scheme(text: &str) -> &str {
    text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/')
}

/// A lazy connection to `host:port`; must be called on a runtime.
pub(crate) fn dial_channel(address: &str, connect: Duration) -> Result<Channel, InvalidEndpoint> {
    let malformed = || InvalidEndpoint::Malformed(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(malformed)?;
    port.parse::<u16>().map_err(|_| malformed())?;
    if host.is_empty() || address.contains(['/', '@', ' ', '?']) {
        return Err(malformed());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| malformed())?;
    Ok(endpoint
        .connect_timeout(connect)
        .tcp_nodelay(true)
        .buffer_size(CHANNEL_BUFFER)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .connect_lazy())
}

fn dial(address: &str, connect: Duration) -> Result<Member, InvalidEndpoint> {
    Ok(Member {
        address: address.to_owned(),
        channel: dial_channel(address, connect)?,
        pipeline: OnceLock::new(),
        failures: AtomicU32::new(0),
        retry_at_ms: AtomicU64::new(0),
        failed_at_ms: AtomicU64::new(0),
    })
}
