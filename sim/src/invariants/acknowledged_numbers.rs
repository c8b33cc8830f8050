//! S4, nothing is executed that its client has acknowledged, and nothing else is refused for that.

use std::collections::BTreeMap;

use kvd::{command::ClientId, outcome::Refusal};

use super::{Seen, Violation};

/// The highest number that each client has acknowledged to each shard. No row's end makes it forget.
#[derive(Debug, Default)]
pub(super) struct Numbers(BTreeMap<(u32, ClientId), u64>);

impl Numbers {
    /// Whether a client has acknowledged a request.
    pub(super) fn cover(&self, seen: Seen<'_>) -> bool {
        let told = self.0.get(&(seen.response().header.shard, seen.id.client));
        told.is_some_and(|told| seen.id.sequence <= *told)
    }

    pub(super) fn check(&mut self, seen: Seen<'_>) -> Result<(), Violation> {
        let refusal = seen.response().result.as_ref().err();
        let unread = matches!(
            refusal,
            Some(Refusal::OutOfBounds(_) | Refusal::OtherShards { .. } | Refusal::BadCommand(_))
        );
        if !unread {
            let told = self.0.entry((seen.response().header.shard, seen.id.client)).or_default();
            *told = (*told).max(seen.id.acknowledged);
        }
        if seen.first().is_some() && self.cover(seen) {
            return Err(seen.broken("S4", "it was acknowledged, and is executed"));
        }
        if refusal == Some(&Refusal::Acknowledged) && !self.cover(seen) {
            return Err(seen.broken("S4", "it was not acknowledged, and is refused for that"));
        }
        Ok(())
    }
}
