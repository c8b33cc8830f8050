//! How a kept reply lies in memory: small for the common case, an idle client whose last request
//! was a Put.

use std::num::NonZeroU64;
use std::sync::Arc;

use crate::{
    command::ClientId,
    digest,
    limits::BODY_OVERHEAD_BYTES,
    outcome::{Answered, Outcome, Revision, ShardTime, Version, Written},
};

/// The kept reply of one request.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// Above what was acknowledged, so never 0.
    pub(crate) sequence: NonZeroU64,
    pub(crate) expires: ShardTime,
    pub(crate) kept: Kept,
}

impl Reply {
    pub(crate) fn digest(&self, client: &ClientId) -> u128 {
        let (sequence, expires) = (self.sequence.get(), self.expires.0);
        match &self.kept {
            Kept::Written(version, revision) => {
                let outcome = written(*version, *revision);
                digest::reply(&client.0, sequence, expires, &outcome, 0, false)
            }
            Kept::Other(other) => {
                let (order, dropped) = (other.order, other.body_dropped);
                digest::reply(&client.0, sequence, expires, &other.outcome, order, dropped)
            }
        }
    }
}

/// An outcome as it is kept.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// That of a Put, in place. That the version can't be 0 saves eight bytes.
    Written(NonZeroU64, Revision),
    /// Any other.
    Other(Arc<Recorded>),
}

/// An outcome that is not a plain write.
#[derive(Debug)]
pub(crate) struct Recorded {
    outcome: Outcome,
    /// The age of its body; 0 when it has none.
    order: u64,
    body_dropped: bool,
}

impl Kept {
    /// Keeps an outcome whose body has this age; 0: it has no body to drop.
    pub(crate) fn new(outcome: Outcome, order: u64, body_dropped: bool) -> Self {
        if let Outcome::Written(Written { version, revision }) = outcome
            && let Some(version) = NonZeroU64::new(version.0)
        {
            return Self::Written(version, revision);
        }
        Self::Other(Arc::new(Recorded { outcome, order, body_dropped }))
    }

    /// The answer to a duplicate.
    pub(crate) fn recall(&self) -> Answered {
        let (outcome, body_dropped) = match self {
            Self::Written(version, revision) => (written(*version, *revision), false),
            Self::Other(other) => (other.outcome.clone(), other.body_dropped),
        };
        Answered { outcome, duplicate: true, body_dropped }
    }

    /// The age of its body, if it has one.
    pub(crate) fn order(&self) -> Option<u64> {
        match self {
            Self::Written(..) => None,
            Self::Other(other) => (other.order > 0).then_some(other.order),
        }
    }

    /// Whether its body was dropped.
    pub(crate) fn body_dropped(&self) -> bool {
        match self {
            Self::Written(..) => false,
            Self::Other(other) => other.body_dropped,
        }
    }

    /// What its body counts in the budget.
    pub(crate) fn body_cost(&self) -> u64 {
        match self {
            Self::Other(other) if other.order > 0 => {
                other.outcome.body().map_or(0, |body| body.cost() + BODY_OVERHEAD_BYTES)
            }
            Self::Written(..) | Self::Other(_) => 0,
        }
    }

    /// The same with its body dropped.
    pub(crate) fn without_body(&self) -> Self {
        match self {
            Self::Written(..) => self.clone(),
            Self::Other(other) => Self::new(other.outcome.without_body(), 0, true),
        }
    }
}

fn written(version: NonZeroU64, revision: Revision) -> Outcome {
    Outcome::Written(Written { version: Version(version.get()), revision })
}

/// The replies of one row, by sequence.
#[derive(Clone, Debug)]
pub(crate) enum Replies {
    One(Reply),
    /// None, or at least two. Shared with captures, copied when it changes while one is alive.
    NotOne(Option<Arc<Vec<Reply>>>),
}

impl Replies {
    pub(crate) const EMPTY: Self = Self::NotOne(None);

    pub(crate) fn as_slice(&self) -> &[Reply] {
        match self {
            Self::One(reply) => std::slice::from_ref(reply),
            Self::NotOne(None) => &[],
            Self::NotOne(Some(replies)) => replies,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub(crate) fn find(&self, sequence: u64) -> Option<&Reply> {
        let replies = self.as_slice();
        let at = replies.binary_search_by_key(&sequence, |reply| reply.sequence.get()).ok()?;
        replies.get(at)
    }

    pub(crate) fn find_mut(&mut self, sequence: u64) -> Option<&mut Reply> {
        let replies = match self {
            Self::One(reply) => std::slice::from_mut(reply),
            Self::NotOne(None) => return None,
            Self::NotOne(Some(replies)) => Arc::make_mut(replies).as_mut_slice(),
        };
        let at = replies.binary_search_by_key(&sequence, |reply| reply.sequence.get()).ok()?;
        replies.get_mut(at)
    }

    /// Adds a reply whose sequence is not there yet.
    pub(crate) fn insert(&mut self, reply: Reply) {
        let mut replies = match std::mem::replace(self, Self::EMPTY) {
            Self::NotOne(None) => {
                *self = Self::One(reply);
                return;
            }
            Self::One(first) => Arc::new(vec![first]),
            Self::NotOne(Some(replies)) => replies,
        };
        let list = Arc::make_mut(&mut replies);
        let at = list.partition_point(|other| other.sequence < reply.sequence);
        assert!(list.get(at).is_none_or(|other| other.sequence != reply.sequence), "two replies");
        list.insert(at, reply);
        *self = Self::NotOne(Some(replies));
    }

    /// Takes out the replies for which `gone` holds.
    pub(crate) fn take(&mut self, gone: impl Fn(&Reply) -> bool) -> Self {
        if !self.as_slice().iter().any(&gone) {
            return Self::EMPTY;
        }
        match std::mem::replace(self, Self::EMPTY) {
            Self::NotOne(Some(replies)) => {
                let replies = Arc::unwrap_or_clone(replies).into_iter();
                let (taken, kept) = replies.partition(gone);
                *self = Self::from_sorted(kept);
                Self::from_sorted(taken)
            }
            all @ (Self::One(_) | Self::NotOne(None)) => all,
        }
    }

    fn from_sorted(mut replies: Vec<Reply>) -> Self {
        match replies.len() {
            0 => Self::EMPTY,
            1 => replies.pop().map_or(Self::EMPTY, Self::One),
            _ => Self::NotOne(Some(Arc::new(replies))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_client_stays_small() {
        // Together with the 24 bytes of the time index, at the usual fill of a B-tree's leaves
        // (two thirds), this keeps an idle client below 200 bytes: 16 of them are a little less than
        // one of the allocator's sizes.
        let row = size_of::<(ClientId, crate::session::Row)>();
        assert!(row <= 72, "a row takes {row} bytes");
    }
}
