//! How a kept reply lies in memory: small for the common case, an idle client whose last request
//! was a Put.

use std::sync::Arc;

use crate::{
    command::ClientId,
    digest,
    limits::BODY_OVERHEAD_BYTES,
    outcome::{Answered, Outcome, ShardTime, Written},
};

/// The kept reply of one request.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) sequence: u64,
    pub(crate) expires: ShardTime,
    pub(crate) kept: Kept,
}

impl Reply {
    pub(crate) fn digest(&self, client: &ClientId) -> u128 {
        let (sequence, expires) = (self.sequence, self.expires.0);
        match &self.kept {
            Kept::Written(written) => {
                digest::reply(&client.0, sequence, expires, &Outcome::Written(*written), 0, false)
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
    /// That of a Put, in place.
    Written(Written),
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
        if let Outcome::Written(written) = outcome {
            return Self::Written(written);
        }
        Self::Other(Arc::new(Recorded { outcome, order, body_dropped }))
    }

    /// The answer to a duplicate.
    pub(crate) fn recall(&self) -> Answered {
        let (outcome, body_dropped) = match self {
            Self::Written(written) => (Outcome::Written(*written), false),
            Self::Other(other) => (other.outcome.clone(), other.body_dropped),
        };
        Answered { outcome, duplicate: true, body_dropped }
    }

    /// The age of its body, if it has one.
    pub(crate) fn order(&self) -> Option<u64> {
        match self {
            Self::Written(_) => None,
            Self::Other(other) => (other.order > 0).then_some(other.order),
        }
    }

    /// Whether its body was dropped.
    pub(crate) fn body_dropped(&self) -> bool {
        match self {
            Self::Written(_) => false,
            Self::Other(other) => other.body_dropped,
        }
    }

    /// What its body counts in the budget.
    pub(crate) fn body_cost(&self) -> u64 {
        match self {
            Self::Other(other) if other.order > 0 => {
                other.outcome.body().map_or(0, |body| body.cost() + BODY_OVERHEAD_BYTES)
            }
            Self::Written(_) | Self::Other(_) => 0,
        }
    }

    /// The same with its body dropped.
    pub(crate) fn without_body(&self) -> Self {
        match self {
            Self::Written(written) => Self::Written(*written),
            Self::Other(other) => Self::new(other.outcome.without_body(), 0, true),
        }
    }
}

/// The replies of one row, by sequence.
#[derive(Clone, Debug)]
pub(crate) enum Replies {
    Empty,
    One(Reply),
    /// At least two. Shared with captures, copied when it changes while one is alive.
    Many(Arc<Vec<Reply>>),
}

impl Replies {
    pub(crate) fn as_slice(&self) -> &[Reply] {
        match self {
            Self::Empty => &[],
            Self::One(reply) => std::slice::from_ref(reply),
            Self::Many(replies) => replies,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub(crate) fn find(&self, sequence: u64) -> Option<&Reply> {
        let replies = self.as_slice();
        let at = replies.binary_search_by_key(&sequence, |reply| reply.sequence).ok()?;
        replies.get(at)
    }

    pub(crate) fn find_mut(&mut self, sequence: u64) -> Option<&mut Reply> {
        let replies = match self {
            Self::Empty => return None,
            Self::One(reply) => std::slice::from_mut(reply),
            Self::Many(replies) => Arc::make_mut(replies).as_mut_slice(),
        };
        let at = replies.binary_search_by_key(&sequence, |reply| reply.sequence).ok()?;
        replies.get_mut(at)
    }

    /// Adds a reply whose sequence is not there yet.
    pub(crate) fn insert(&mut self, reply: Reply) {
        let mut replies = match std::mem::replace(self, Self::Empty) {
            Self::Empty => {
                *self = Self::One(reply);
                return;
            }
            Self::One(first) => Arc::new(vec![first]),
            Self::Many(replies) => replies,
        };
        let list = Arc::make_mut(&mut replies);
        let at = list.partition_point(|other| other.sequence < reply.sequence);
        assert!(list.get(at).is_none_or(|other| other.sequence != reply.sequence), "two replies");
        list.insert(at, reply);
        *self = Self::Many(replies);
    }

    /// Takes out the replies for which `gone` holds.
    pub(crate) fn take(&mut self, gone: impl Fn(&Reply) -> bool) -> Vec<Reply> {
        if !self.as_slice().iter().any(&gone) {
            return Vec::new();
        }
        let (taken, kept): (Vec<Reply>, Vec<Reply>) = match std::mem::replace(self, Self::Empty) {
            Self::Empty => (Vec::new(), Vec::new()),
            Self::One(reply) => (vec![reply], Vec::new()),
            Self::Many(replies) => Arc::unwrap_or_clone(replies).into_iter().partition(gone),
        };
        *self = Self::from_sorted(kept);
        taken
    }

    fn from_sorted(mut replies: Vec<Reply>) -> Self {
        match replies.len() {
            0 => Self::Empty,
            1 => replies.pop().map_or(Self::Empty, Self::One),
            _ => Self::Many(Arc::new(replies)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_client_stays_small() {
        // Together with the 24 bytes of the time index, at the usual fill of a B-tree's leaves
        // (two thirds), this keeps an idle client below 200 bytes.
        let row = size_of::<(ClientId, crate::session::Row)>();
        assert!(row <= 88, "a row takes {row} bytes");
    }
}
