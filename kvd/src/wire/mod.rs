//! Between the wire and the machine: what a request asks, what a reply says, why one is refused.
//!
//! The only place beside the services that knows both vocabularies.

pub(crate) mod handoff;
pub(crate) mod reply;
pub(crate) mod request;

use bytes::Bytes;
use proto::raft::{Reason, Refusal as Refused};
use raftd::edge::{maybe, never};

use crate::{
    command::LeaseId,
    limits::{KEY_BYTES_MAX, PAGE_BYTES_MAX, PAGE_PAIRS_MAX, VALUE_BYTES_MAX},
    outcome::{Query, Refusal, Revision, Scope},
    range::Range,
    view::PageRequest,
};

const _: () = assert!(client::KEY_BYTES_MAX == KEY_BYTES_MAX);
const _: () = assert!(client::VALUE_BYTES_MAX == VALUE_BYTES_MAX);
const _: () = assert!(client::PAGE_PAIRS_MAX == PAGE_PAIRS_MAX);
const _: () = assert!(client::PAGE_BYTES_MAX == PAGE_BYTES_MAX);

/// What a request asks of the group.
#[derive(Debug)]
pub(crate) enum Ask {
    /// A question.
    Query {
        query: Query,
        /// Of this member's state, however old it is.
        stale: bool,
    },
    /// A question about the time, which must not be old.
    Time(Query),
    /// A question that takes longer: it is asked of a frozen state.
    View { scope: Scope, look: Look, stale: bool },
    /// A command.
    Command {
        /// Encoded.
        command: Bytes,
        /// Which reply it gets.
        verb: Verb,
    },
    /// A command that waits for others of its kind.
    KeepAlive(LeaseId),
}

/// What is looked for in a frozen state.
#[derive(Clone, Debug)]
pub(crate) enum Look {
    /// A key, at a revision.
    GetAt { key: Bytes, revision: Revision },
    /// A page of pairs, or how many there are.
    Scan {
        range: Range,
        page: PageRequest,
        count_only: bool,
        with_revisions: bool,
        /// Tell which shards it is of.
        with_shards: bool,
    },
}

/// The kinds of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Put,
    Append,
    Delete,
    Txn,
    Compact,
    Grant,
    Revoke,
    Acquire,
    Release,
}

impl Verb {
    /// What a refusal calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "the Put",
            Self::Append => "the Append",
            Self::Delete => "the Delete",
            Self::Txn => "the Txn",
            Self::Compact => "the Compact",
            Self::Grant => "the Grant",
            Self::Revoke => "the Revoke",
            Self::Acquire => "the Acquire",
            Self::Release => "the Release",
        }
    }

    /// Whether it may add to what is stored.
    pub(crate) fn grows(self) -> bool {
        match self {
            Self::Put | Self::Append | Self::Txn | Self::Grant | Self::Acquire => true,
            Self::Delete | Self::Compact | Self::Revoke | Self::Release => false,
        }
    }
}

/// Why the machine did not do it.
pub(crate) fn refused(refusal: &Refusal) -> Refused {
    let message = refusal.to_string();
    match refusal {
        Refusal::Acknowledged => never(Reason::Acknowledged, message),
        Refusal::Expired { .. } => {
            let message = format!("{message}, maybe executed before that");
            maybe(Reason::Expired, message)
        }
        Refusal::Limit { .. } => never(Reason::Limit, message),
        Refusal::Quota { .. } => never(Reason::Quota, message),
        Refusal::NotServed { .. } => never(Reason::WrongGroup, message),
        Refusal::OtherShards { .. } => never(Reason::OtherShards, message),
        Refusal::Compacted { .. } | Refusal::NotYet { .. } => never(Reason::OutOfRange, message),
        Refusal::TooFarAhead { .. }
        | Refusal::OutOfBounds(_)
        | Refusal::ChangedTwice { .. }
        | Refusal::Apart { .. }
        | Refusal::NoPlace
        | Refusal::NoSuchShard { .. }
        | Refusal::ManyShards
        | Refusal::BadPageToken
        | Refusal::NotReadOnly
        | Refusal::NoSuchStep { .. }
        | Refusal::BadHandoff { .. }
        | Refusal::HandoffDiffers { .. }
        | Refusal::BadCommand(_) => never(Reason::Invalid, message),
    }
}

pub(crate) fn invalid(message: String) -> Refused {
    never(Reason::Invalid, message)
}
