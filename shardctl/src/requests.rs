//! Requests that were executed, so that one that comes again is not.
//!
//! The oldest go when there are too many: administrators are few, and give up long before.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    ids::{Number, RequestId},
    limits::REQUESTS_KEPT_MAX,
};

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// This configuration was the latest then.
    Done(Number),
    /// It was refused.
    Refused,
}

/// Requests and what came of them, the oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    order: VecDeque<RequestId>,
    kept: BTreeMap<RequestId, Kept>,
}

impl Requests {
    pub(crate) fn kept(&self, id: RequestId) -> Option<Kept> {
        self.kept.get(&id).copied()
    }

    /// Keeps what came of a request. Whether it is new.
    pub(crate) fn keep(&mut self, id: RequestId, kept: Kept) -> bool {
        if self.kept.insert(id, kept).is_some() {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > REQUESTS_KEPT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.kept.remove(&oldest);
        }
        true
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// All of them, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RequestId, Kept)> {
        self.order.iter().filter_map(|id| Some((*id, self.kept(*id)?)))
    }
}
