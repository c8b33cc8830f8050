//! What the services of every daemon with a group do the same way at their edge: how long a caller
//! waits, why there is no reply, and how both are told on the wire.
//!
//! A refusal says whether the request may have been executed: to a peer as a message, to a client
//! as the status of its call. [`status`] is the one place that maps one to the other.

use std::time::Duration;

use metrics::{Counter, Histogram};
use proto::metadata::LEADER;
pub use proto::metadata::status;
use proto::raft::{Executed, Reason, Refusal};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Response, Status};

use crate::handle::{Refused, Status as MemberState};
use crate::settings::Member;

/// The longest that any request may take, whatever its caller asks for.
pub const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// A reply, and who gave it if that was not this member.
#[derive(Clone, Debug)]
pub struct Replied<R> {
    /// The reply.
    pub reply: R,
    /// The leader that gave it.
    pub leader: Option<Member>,
}

/// What is counted of one method.
pub struct Measure {
    seconds: Histogram,
    refused: Counter,
}

impl Measure {
    /// Counts as `flotilla_SERVICE_request_seconds` and `flotilla_SERVICE_requests_refused_total`.
    pub fn new(service: &str, method: &'static str) -> Self {
        let seconds = format!("flotilla_{service}_request_seconds");
        let refused = format!("flotilla_{service}_requests_refused_total");
        metrics::describe_histogram!(seconds.clone(), "how long requests took");
        metrics::describe_counter!(refused.clone(), "requests without a reply");
        Self {
            seconds: metrics::histogram!(seconds, "method" => method),
            refused: metrics::counter!(refused, "method" => method),
        }
    }
}

/// Waits for the answer to a client's request and counts it.
///
/// # Errors
/// The refusal.
pub async fn measured<K>(
    measure: &Measure,
    answer: impl Future<Output = Result<Replied<K>, Refusal>>,
) -> Result<Replied<K>, Refusal> {
    let began = Instant::now();
    let answer = answer.await;
    measure.seconds.record(began.elapsed());
    if answer.is_err() {
        measure.refused.increment(1);
    }
    answer
}

/// Waits for the answer to a client's request, counts it, and makes it the answer to a call. `pick`
/// takes the reply out of those that the service knows.
///
/// # Errors
/// The refusal as a status.
pub async fn respond<K, R>(
    measure: &Measure,
    answer: impl Future<Output = Result<Replied<K>, Refusal>>,
    pick: impl FnOnce(K) -> Option<R>,
) -> Result<Response<R>, Status> {
    let Replied { reply, leader } = measured(measure, answer).await.map_err(status)?;
    let reply = pick(reply)
        .ok_or_else(|| status(maybe(Reason::NotLeader, "the leader answered something else")))?;
    let mut response = Response::new(reply);
    if let Some(leader) = leader
        && let Ok(address) = leader.client_address.parse::<AsciiMetadataValue>()
    {
        response.metadata_mut().insert(LEADER, address);
    }
    Ok(response)
}

/// Until when the caller waits, as gRPC's header says it; `limit` is for one that says nothing.
pub fn deadline(metadata: &MetadataMap, limit: Duration) -> Instant {
    Instant::now() + asked_timeout(metadata).unwrap_or(limit).min(DEADLINE_MAX)
}

/// At most eight digits and a unit.
fn asked_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count.saturating_mul(3600))),
        "M" => Some(Duration::from_secs(count.saturating_mul(60))),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// How long a stream waits on a member that knows no leader: it would wait for as long as the
/// member is cut off, though others may serve its reader.
const LEADERLESS_MAX: Duration = Duration::from_secs(3);

/// Ends when the member has known no leader for too long, or its state is in doubt; why a stream
/// ends then.
pub async fn cut_off(status: &mut watch::Receiver<MemberState>) -> Refusal {
    loop {
        let ends = |status: &MemberState| status.leader.is_none() || !status.trust.serves();
        let lost = match status.wait_for(ends).await {
            Ok(status) if !status.trust.serves() => return refused(&Refused::Doubted),
            lost => lost.is_ok(),
        };
        let led = status.wait_for(|status| status.leader.is_some());
        let found = timeout(LEADERLESS_MAX, led).await.map(|found| found.is_ok());
        match (lost, found) {
            (true, Err(_)) => {
                let message = "the group has no leader, as far as this member knows";
                return never(Reason::NotLeader, message);
            }
            (true, Ok(true)) => {}
            // The host has ended, which is told elsewhere.
            (true, Ok(false)) | (false, _) => std::future::pending().await,
        }
    }
}

/// A refusal of what was not executed and will not be.
pub fn never(reason: Reason, message: impl Into<String>) -> Refusal {
    refusal(reason, Executed::Never, message.into())
}

/// A refusal of what may have been executed.
pub fn maybe(reason: Reason, message: impl Into<String>) -> Refusal {
    refusal(reason, Executed::Maybe, message.into())
}

fn refusal(reason: Reason, executed: Executed, message: String) -> Refusal {
    let (reason, executed) = (reason.into(), executed.into());
    Refusal { reason, executed, message, leader: String::new(), group: 0 }
}

/// Why the host did not do it: it never will.
pub fn refused(refused: &Refused) -> Refusal {
    let message = refused.to_string();
    match refused {
        Refused::NotLeader { leader } => {
            let leader = leader.as_ref().map(|leader| leader.client_address.clone());
            Refusal { leader: leader.unwrap_or_default(), ..never(Reason::NotLeader, message) }
        }
        Refused::Overtaken | Refused::Unborn | Refused::Transferring | Refused::Doubted => {
            never(Reason::NotLeader, message)
        }
        Refused::Overloaded { .. } => never(Reason::Limit, message),
        Refused::LowSpace => never(Reason::NoSpace, message),
        Refused::TooLarge { .. } => never(Reason::Invalid, message),
        Refused::Deadline => never(Reason::Deadline, message),
        Refused::Shutdown => never(Reason::Shutdown, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            asked_timeout(&metadata)
        };
        assert_eq!(read("10S"), Some(Duration::from_secs(10)));
        assert_eq!(read("2500m"), Some(Duration::from_millis(2_500)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "10", "-1S", "+1S", "123456789S", "1 S", "10é"] {
            let mut metadata = MetadataMap::new();
            if let Ok(value) = wrong.parse() {
                metadata.insert("grpc-timeout", value);
            }
            assert_eq!(asked_timeout(&metadata), None, "{wrong}");
        }
        assert_eq!(asked_timeout(&MetadataMap::new()), None);
    }
}
