//! H3, nothing that was executed is lost: once a shard was made some group serves it or has it frozen,
//! its source lets go of it only when its destination has installed it, and whoever begins to serve it
//! has what all before it made of it.

use kvd::custody::Phase;

use super::{
    Violation,
    custodians::{Custodians, Stride, serves},
    turn::Model,
};

pub(super) fn check(
    custodians: &Custodians,
    model: &Model,
    stride: &Stride<'_>,
) -> Result<(), Violation> {
    let shard = stride.step.shard;
    let frozen_for = match stride.before.custody.phase {
        Phase::Frozen { number, .. } => Some(number),
        Phase::Absent | Phase::Serving { .. } | Phase::Incoming { .. } | Phase::Discarding => None,
    };
    let stays = matches!(stride.after.custody.phase, Phase::Frozen { .. } | Phase::Serving { .. });
    if let Some(number) = frozen_for.filter(|_| !stays) {
        let arrived = custodians.arrived(shard, number);
        if arrived.is_none_or(|group| group == stride.group) {
            return stride.broken("H3", "its source lets go of it, and nobody has installed it");
        }
    } else if serves(stride.before.custody) && !stays {
        return stride.broken("H3", "who serves it lets go of it");
    }
    if stride.moved() && !has_holder(custodians, shard) && was_made(custodians, shard) {
        return stride.broken("H3", "nobody has it");
    }
    if stride.begins_to_serve() {
        return has_all(model, stride);
    }
    Ok(())
}

/// Whether a group serves it, or has it frozen.
fn has_holder(custodians: &Custodians, shard: u32) -> bool {
    let mut all = custodians.of(shard);
    all.any(|(_, custody)| serves(custody) || matches!(custody.phase, Phase::Frozen { .. }))
}

fn was_made(custodians: &Custodians, shard: u32) -> bool {
    let mut all = custodians.of(shard);
    all.any(|(_, custody)| custodians.arrived(shard, custody.settled).is_some())
}

/// Whether the shard is what the commands amount to that were executed.
fn has_all(model: &Model, stride: &Stride<'_>) -> Result<(), Violation> {
    let (shard, executed) = (stride.step.shard, stride.executed);
    let Some(expected) = model.shard(shard) else { return Ok(()) };
    for (key, pair) in &expected.pairs {
        let found = executed.pair(key);
        if found.as_ref() != Some(pair) {
            let key = key.escape_ascii();
            return stride.broken("H3", &format!("{key} holds {found:?} instead of {pair:?}"));
        }
    }
    for (name, lock) in &expected.tenancy.locks {
        let held = executed.lock(name).holder.map(|holder| (holder.lease, holder.token));
        if held != Some((lock.lease, lock.token)) {
            let name = name.escape_ascii();
            return stride.broken("H3", &format!("{name} is held by {held:?} instead of {lock:?}"));
        }
    }
    let (found, due) = (executed.counts_of(shard), expected.counts());
    if found != due {
        let what = format!("{found:?} pairs, leases and locks, expected {due:?}");
        return stride.broken("H3", &what);
    }
    if executed.response.header.revision != expected.revision {
        return stride.broken("H3", &format!("it should be at {:?}", expected.revision));
    }
    Ok(())
}
