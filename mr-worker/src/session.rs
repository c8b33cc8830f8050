//! Calls to the coordinator: finds the one that leads, and tries again for as long as that makes
//! sense.
//!
//! A lane is a connection of its own, so that heartbeats never wait behind a poll. What fails for
//! want of a coordinator is tried again with growing pauses, at the address that the answer hints
//! at or else at the next configured one; what a coordinator refuses is the caller's to judge.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use proto::mapreduce::workers_client::WorkersClient;
use rand::RngExt;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

/// The metadata in which a coordinator names the one that leads.
const LEADER: &str = "flotilla-leader";

/// The longest message, in both directions, in bytes: beyond what the coordinator sends.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often an idle connection is checked, and how long the check may take.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The pauses between tries.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The coordinators, and the one that is believed to lead.
#[derive(Debug)]
pub(crate) struct Coordinators {
    configured: Vec<String>,
    believed: Mutex<Believed>,
    started: Instant,
    /// When a coordinator last answered, in milliseconds since the start.
    heard_ms: AtomicU64,
}

#[derive(Debug)]
struct Believed {
    address: String,
    /// The place in `configured` to try when that fails.
    next: usize,
}

/// What calls are made with.
pub(crate) type Client = WorkersClient<Channel>;

/// A connection to whichever coordinator leads. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    coordinators: Arc<Coordinators>,
    open: Arc<Mutex<Option<Open>>>,
}

#[derive(Debug)]
struct Open {
    address: String,
    client: WorkersClient<Channel>,
}

impl Coordinators {
    /// The coordinators at these addresses (`host:port`), at least one.
    pub(crate) fn new(configured: Vec<String>) -> Arc<Self> {
        let address = configured.first().cloned().unwrap_or_default();
        let believed = Mutex::new(Believed { address, next: 1 });
        Arc::new(Self { configured, believed, started: Instant::now(), heard_ms: 0.into() })
    }

    /// For how long no coordinator has answered.
    pub(crate) fn silence(&self) -> Duration {
        let heard = Duration::from_millis(self.heard_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(heard)
    }

    /// A new connection.
    pub(crate) fn lane(self: &Arc<Self>) -> Lane {
        Lane { coordinators: Arc::clone(self), open: Arc::default() }
    }

    fn heard(&self) {
        let elapsed = self.started.elapsed().as_millis() as u64;
        self.heard_ms.fetch_max(elapsed, Ordering::Relaxed);
    }

    fn address(&self) -> String {
        self.believed.lock().unwrap_or_else(PoisonError::into_inner).address.clone()
    }

    /// `failed` does not lead: go where it says, or to the next one. Another lane may have moved on
    /// already.
    fn leave(&self, failed: &str, hint: Option<&str>) {
        let mut believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        if believed.address != failed {
            return;
        }
        let hint = hint.filter(|hint| *hint != failed && endpoint(hint).is_some());
        if let Some(hint) = hint {
            tracing::info!(leader = hint, "following the coordinator that leads");
            believed.address = hint.to_owned();
        } else if let Some(address) =
            self.configured.get(believed.next % self.configured.len().max(1))
        {
            believed.address.clone_from(address);
            believed.next = (believed.next + 1) % self.configured.len();
        }
    }
}

impl Lane {
    /// Calls until a coordinator answers or refuses. Each try may take `limit`.
    pub(crate) async fn call<T, F, Called>(&self, limit: Duration, call: F) -> Result<T, Status>
    where
        F: Fn(WorkersClient<Channel>) -> Called,
        Called: Future<Output = Result<Response<T>, Status>>,
    {
        let mut pause = PAUSE_FIRST;
        loop {
            let address = self.coordinators.address();
            let status = match self.client(&address) {
                Some(client) => {
                    let called = tokio::time::timeout(limit, call(client)).await;
                    match called.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
                        Ok(response) => {
                            self.coordinators.heard();
                            return Ok(response.into_inner());
                        }
                        Err(status) => status,
                    }
                }
                None => Status::unavailable("the address is not one"),
            };
            if !is_absence(&status) {
                self.coordinators.heard();
                return Err(status);
            }
            tracing::debug!(coordinator = address, error = %status, "the coordinator is away");
            self.close(&address);
            let hint = status.metadata().get(LEADER).and_then(|hint| hint.to_str().ok());
            self.coordinators.leave(&address, hint);
            let share: f64 = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(share)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn client(&self, address: &str) -> Option<WorkersClient<Channel>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*open
            && open.address == address
        {
            return Some(open.client.clone());
        }
        let client = WorkersClient::new(endpoint(address)?.connect_lazy())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        *open = Some(Open { address: address.to_owned(), client: client.clone() });
        Some(client)
    }

    /// The next call to `address` connects anew.
    fn close(&self, address: &str) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.take_if(|open| open.address == address);
    }
}

/// Whether `address` can be connected to at all.
pub(crate) fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let is_host = !host.is_empty() && !host.contains(['/', '@', '?', '#']);
    is_host && port.parse::<u16>().is_ok_and(|port| port != 0) && endpoint(address).is_some()
}

fn endpoint(address: &str) -> Option<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    Some(
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true),
    )
}

/// Whether nobody answered who could: trying again, elsewhere perhaps, may help.
fn is_absence(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::ResourceExhausted
        | Code::Aborted => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_hint_is_followed_and_otherwise_the_next_in_turn() {
        let coordinators = Coordinators::new(addresses(&["a:1", "b:1", "c:1"]));
        coordinators.leave("a:1", None);
        assert_eq!(coordinators.address(), "b:1");
        coordinators.leave("b:1", Some("x:9"));
        assert_eq!(coordinators.address(), "x:9");
        // News about one that was left already changes nothing.
        coordinators.leave("b:1", None);
        assert_eq!(coordinators.address(), "x:9");
        coordinators.leave("x:9", Some("not an address"));
        assert_eq!(coordinators.address(), "c:1");
        coordinators.leave("c:1", Some("c:1"));
        assert_eq!(coordinators.address(), "a:1");
    }

    #[test]
    fn addresses_have_a_port() {
        assert!(is_address("localhost:7400") && is_address("[::1]:7400"));
        assert!(!is_address("localhost") && !is_address("a b:1") && !is_address("a:0"));
    }
}
