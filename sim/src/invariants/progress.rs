//! H9 and H10, a move comes to its end, and leaves nothing behind: when the controller and the groups
//! are left alone, each shard is served by whom the controller says, and nothing of it is anywhere
//! else.

use kvd::{
    KvMachine,
    custody::{Custody, Phase},
    outcome::{Answer, Query},
};
use raft::StateMachine;
use shardctl::ShardMachine;

use super::Violation;
use crate::group::GroupId;

/// What is not over yet, if anything is.
pub(crate) fn check(
    controller: &ShardMachine,
    stores: &[(GroupId, &KvMachine)],
) -> Result<(), Violation> {
    for (shard, placement) in (0..).zip(controller.placements()) {
        let broken = |invariant, what: String| {
            Err(Violation::new(invariant, format!("shard {shard}: {what}: {placement:?}")))
        };
        if placement.moving.is_some() {
            return broken("H9", "it is still on its way".to_owned());
        }
        let owner = placement.owner.map(|owner| GroupId(owner.0.get().into()));
        for (group, store) in stores {
            let phase = custody(store, shard).map_or(Phase::Absent, |custody| custody.phase);
            let here = owner == Some(*group);
            let due = if here { Phase::Serving { leaving: None } } else { Phase::Absent };
            if phase != due {
                let invariant = if here { "H9" } else { "H10" };
                return broken(invariant, format!("group {} has it as {phase:?}", group.0));
            }
            let left = counts(store, shard);
            if !here && left != [0; 3] {
                let what = format!("group {} has {left:?} pairs, leases and locks", group.0);
                return broken("H10", what);
            }
        }
    }
    let owns = |group: GroupId| {
        let mut owners = controller.placements().iter().filter_map(|placement| placement.owner);
        owners.any(|owner| u64::from(owner.0.get()) == group.0)
    };
    for (group, store) in stores.iter().filter(|(group, _)| !owns(*group)) {
        let (bytes, rows) = (store.stored_bytes(), store.session_rows());
        if (bytes, rows) != (0, 0) {
            let what = format!("group {} has {bytes} bytes and {rows} rows of nothing", group.0);
            return Err(Violation::new("H10", what));
        }
    }
    Ok(())
}

fn custody(store: &KvMachine, shard: u32) -> Option<Custody> {
    match store.query(Query::Custody) {
        Answer::Custody(all) => all.get(usize::try_from(shard).ok()?).copied(),
        _ => None,
    }
}

fn counts(store: &KvMachine, shard: u32) -> [u64; 3] {
    match store.query(Query::Contents(shard)) {
        Answer::Contents(Some(contents)) => contents.counts(),
        _ => [0; 3],
    }
}
