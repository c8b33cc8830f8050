//! What travels beside a gRPC status or reply: whether a request may have been executed, and who
//! leads. The contract of every service that a Raft group answers; servers use these names too.

use std::error::Error;

use tonic::{
    Code, ConnectError, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};

use crate::raft::{Executed, Reason, Refusal};

/// Says [`NEVER`] or [`MAYBE`] beside every status that is not OK.
pub const EXECUTED: &str = "flotilla-executed";

/// The leader's client address, `host:port`, as far as it is known. Also beside replies that
/// another member than the leader passed on.
pub const LEADER: &str = "flotilla-leader";

/// The first index that a log keeps, beside an `OUT_OF_RANGE`.
pub const FIRST_INDEX: &str = "flotilla-first-index";

/// The last index of a log, beside an `OUT_OF_RANGE`.
pub const LAST_INDEX: &str = "flotilla-last-index";

/// The request was not executed and will not be.
pub const NEVER: &str = "never";

/// The request was executed, or not, or will be.
pub const MAYBE: &str = "maybe";

/// Whether it is certain that the request which got this status was not and will not be executed.
/// A status from a connection that never came about counts; anything unclear does not.
pub fn was_never_executed(status: &Status) -> bool {
    match status.metadata().get(EXECUTED) {
        Some(executed) => executed == NEVER,
        None => never_sent(status),
    }
}

/// A refusal as the status of a call.
pub fn status(refusal: Refusal) -> Status {
    let code = match refusal.reason() {
        Reason::NotLeader | Reason::Shutdown | Reason::WrongGroup => Code::Unavailable,
        Reason::Deadline => Code::DeadlineExceeded,
        Reason::Invalid => Code::InvalidArgument,
        Reason::Limit => Code::ResourceExhausted,
        Reason::Expired => Code::Aborted,
        Reason::Acknowledged | Reason::OtherShards | Reason::NoSpace | Reason::Quota => {
            Code::FailedPrecondition
        }
        Reason::OutOfRange => Code::OutOfRange,
        Reason::Unspecified => Code::Unknown,
    };
    let executed = match refusal.executed() {
        Executed::Never => NEVER,
        Executed::Maybe | Executed::Unspecified => MAYBE,
    };
    let leader = refusal.leader.parse::<AsciiMetadataValue>();
    let mut status = Status::new(code, refusal.message);
    status.metadata_mut().insert(EXECUTED, AsciiMetadataValue::from_static(executed));
    if let Ok(leader) = leader
        && !leader.is_empty()
    {
        status.metadata_mut().insert(LEADER, leader);
    }
    status
}

/// The leader that is named, if one is.
pub fn leader(metadata: &MetadataMap) -> Option<&str> {
    metadata.get(LEADER)?.to_str().ok().filter(|address| !address.is_empty())
}

/// The number that is named, if one is.
pub fn number(metadata: &MetadataMap, name: &str) -> Option<u64> {
    metadata.get(name)?.to_str().ok()?.parse().ok()
}

fn never_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
