//! H1, one group at a time has a shard: no two serve it by what is committed, and in the order of all
//! that was executed the moves by which it came to those who executed it never fall, and each is one
//! group's.

use std::collections::BTreeMap;

use kvd::custody::MoveNumber;

use super::{
    Violation,
    custodians::{Custodians, Stride, serves},
    ghost::Executed,
};
use crate::group::GroupId;

/// Who executed something of each shard last, and since which move it had it.
#[derive(Debug, Default)]
pub(super) struct Ownership(BTreeMap<u32, (MoveNumber, GroupId)>);

pub(super) fn check(custodians: &Custodians, stride: &Stride<'_>) -> Result<(), Violation> {
    if !stride.begins_to_serve() {
        return Ok(());
    }
    let mut others = custodians.of(stride.step.shard).filter(|(group, _)| *group != stride.group);
    match others.find(|(_, custody)| serves(*custody)) {
        Some((other, custody)) => {
            stride.broken("H1", &format!("group {} serves it, too: {custody:?}", other.0))
        }
        None => Ok(()),
    }
}

impl Ownership {
    /// A command was executed, or refused.
    pub(super) fn check(
        &mut self,
        custodians: &Custodians,
        group: GroupId,
        executed: &Executed,
    ) -> Result<(), Violation> {
        if executed.response.result.is_err() {
            return Ok(());
        }
        let shard = executed.response.header.shard;
        let since = custodians.standing(shard, group).custody.settled;
        let before = self.0.insert(shard, (since, group));
        match before {
            Some((last, by)) if last > since || last == since && by != group => {
                let what = format!(
                    "group {} executes at {} on shard {shard}, which it has since move {}, behind \
                     group {}, which had it since move {}",
                    group.0, executed.index, since.0, by.0, last.0
                );
                Err(Violation::new("H1", what))
            }
            Some(_) | None => Ok(()),
        }
    }
}
