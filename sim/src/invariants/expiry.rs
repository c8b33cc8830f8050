//! S5, only the time of a shard makes it forget: what has expired is refused and what has not is
//! remembered, until it is acknowledged. That time never goes back.

use std::collections::BTreeMap;

use kvd::{
    limits::EXPIRES_AHEAD_MS_MAX,
    outcome::{Refusal, ShardTime},
};

use super::{Seen, Violation, acknowledged_numbers::Numbers, at_most_once::Executions};

/// How late it is in each shard.
#[derive(Debug, Default)]
pub(super) struct Expiry(BTreeMap<u32, ShardTime>);

impl Expiry {
    pub(super) fn check(
        &mut self,
        executions: &Executions,
        numbers: &Numbers,
        seen: Seen<'_>,
    ) -> Result<(), Violation> {
        let response = seen.response();
        let (now, expires) = (response.header.time, seen.id.expires);
        let before = self.0.insert(response.header.shard, now);
        if before.is_some_and(|before| before > now) {
            return Err(seen.broken("S5", "the shard's time goes back"));
        }
        let too_far = expires.0.saturating_sub(now.0) > EXPIRES_AHEAD_MS_MAX;
        let refused =
            |is_it: fn(&Refusal) -> bool| response.result.as_ref().err().is_some_and(is_it);
        let refused_as_expired = refused(|it| matches!(it, Refusal::Expired { .. }));
        let refused_as_too_far = refused(|it| matches!(it, Refusal::TooFarAhead { .. }));
        let executed_before = executions.of(seen.name());
        let executed_before = executed_before
            .is_some_and(|it| (it.group, it.index) != (seen.group, seen.executed.index));
        let must_be_known = executed_before && now <= expires && !numbers.cover(seen);
        let is_known = response.result.as_ref().is_ok_and(|answered| answered.duplicate);
        let checks = [
            (seen.first().is_none() || now <= expires, "it had expired, and is executed"),
            (seen.first().is_none() || !too_far, "it goes too far ahead, and is executed"),
            (!refused_as_expired || now > expires, "it has not expired, and is refused for that"),
            (!refused_as_too_far || too_far, "it goes not too far ahead, and is refused for that"),
            (!must_be_known || is_known, "its reply was forgotten before its time"),
        ];
        match checks.into_iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(seen.broken("S5", what)),
            None => Ok(()),
        }
    }
}
