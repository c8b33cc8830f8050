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

/// Why a request was refused, beside a status: the name of a [`Reason`].
pub const REASON: &str = "flotilla-reason";

/// The number of the group that has the shard, beside a status whose reason is
/// [`Reason::WrongGroup`].
pub const GROUP: &str = "flotilla-group";

/// Beside a request: its caller knows the groups, and wants to be told if another one has the shard.
pub const DIRECT: &str = "flotilla-direct";

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
    let (reason, group) = (refusal.reason().as_str_name(), refusal.group);
    let leader = refusal.leader.parse::<AsciiMetadataValue>();
    let mut status = Status::new(code, refusal.message);
    let metadata = status.metadata_mut();
    metadata.insert(EXECUTED, AsciiMetadataValue::from_static(executed));
    metadata.insert(REASON, AsciiMetadataValue::from_static(reason));
    if group > 0 {
        metadata.insert(GROUP, group.into());
    }
    if let Ok(leader) = leader
        && !leader.is_empty()
    {
        metadata.insert(LEADER, leader);
    }
    status
}

/// The refusal that a status was made of; of one that came from the way, what is nearest to it.
pub fn refusal(status: &Status) -> Refusal {
    let told = |name| status.metadata().get(name).and_then(|text| text.to_str().ok());
    let reason = told(REASON).and_then(Reason::from_str_name).unwrap_or(match status.code() {
        Code::DeadlineExceeded => Reason::Deadline,
        Code::InvalidArgument | Code::Unimplemented => Reason::Invalid,
        Code::ResourceExhausted => Reason::Limit,
        _ => Reason::NotLeader,
    });
    let never = was_never_executed(status);
    let executed = if never { Executed::Never } else { Executed::Maybe };
    Refusal {
        reason: reason.into(),
        executed: executed.into(),
        message: status.message().to_owned(),
        leader: leader(status.metadata()).unwrap_or_default().to_owned(),
        group: owner(status).unwrap_or(0),
    }
}

/// Whether a status says that another group has the shard.
pub fn is_wrong_group(status: &Status) -> bool {
    status.metadata().get(REASON).is_some_and(|it| it == Reason::WrongGroup.as_str_name())
}

/// The group that a status says has the shard, if it names one.
pub fn owner(status: &Status) -> Option<u32> {
    number(status.metadata(), GROUP).and_then(|group| group.try_into().ok())
}

/// Whether a request asks for a direct answer.
pub fn is_direct(metadata: &MetadataMap) -> bool {
    metadata.get(DIRECT).is_some_and(|direct| direct == "true")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_being_a_status() {
        for (reason, executed, group) in [
            (Reason::WrongGroup, Executed::Never, 7),
            (Reason::WrongGroup, Executed::Maybe, 0),
            (Reason::Quota, Executed::Never, 0),
            (Reason::Expired, Executed::Maybe, 0),
        ] {
            let told = Refusal {
                reason: reason.into(),
                executed: executed.into(),
                message: "so it is".to_owned(),
                leader: "127.0.0.1:7310".to_owned(),
                group,
            };
            let status = status(told.clone());
            assert_eq!(is_wrong_group(&status), reason == Reason::WrongGroup);
            assert_eq!(refusal(&status), told);
        }
        let broken = refusal(&Status::unknown("transport error"));
        assert_eq!((broken.reason(), broken.executed()), (Reason::NotLeader, Executed::Maybe));
    }
}
