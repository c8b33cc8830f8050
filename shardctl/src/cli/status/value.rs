//! `shardctl status` for programs: all that is known, nothing left away. What is not known is null.

use client::handoff::ShardStanding;
use serde_json::{Value, json};

use super::{
    text::standing_name,
    view::{GroupRow, Had, MemberRow, Numbers, Phase, ShardRow, View},
};
use crate::cli::show::group_value;

/// All of it.
pub(super) fn value(view: &View<'_>) -> Value {
    let mut totals = numbers(Some(view.totals));
    totals["shards"] = view.shards.len().into();
    totals["moving"] = view.moving().into();
    totals["pinned"] = view.pinned().into();
    json!({
        "number": view.state.latest,
        "revision": view.state.revision,
        "complete": view.complete,
        "totals": totals,
        "groups": view.groups.iter().map(group).collect::<Vec<_>>(),
        "shards": view.shards.iter().map(shard).collect::<Vec<_>>(),
    })
}

fn group(row: &GroupRow<'_>) -> Value {
    let reported = row.group.reported.as_ref().map(|reported| {
        let identity: String = reported.identity.iter().map(|byte| format!("{byte:02x}")).collect();
        let shards = Some(reported.shards).filter(|shards| *shards > 0);
        json!({ "identity": identity, "index": reported.index, "shards": shards })
    });
    let mut value = numbers(row.told.ok());
    value["group"] = row.group.group.into();
    value["weight"] = row.weight.into();
    value["has"] = row.has.into();
    value["shall_have"] = row.shall_have.into();
    value["error"] = row.told.err().into();
    value["leader"] = row.leader().into();
    value["lag"] = row.lag().into();
    value["members"] = row.members.iter().map(member).collect();
    value["reported"] = reported.into();
    value
}

fn member(row: &MemberRow<'_>) -> Value {
    let told = row.told.ok();
    json!({
        "address": row.address,
        "error": row.told.err(),
        "node": told.map(|told| told.node),
        "leads": told.map(|told| told.leads),
        "applied_index": told.map(|told| told.applied_index),
        "lag": told.and_then(|told| told.lag),
    })
}

fn shard(row: &ShardRow<'_>) -> Value {
    let ShardRow { placement, phase, pinned, standings, had } = row;
    let (phase, to) = phase_value(*phase);
    let mut value = numbers(had.map(|had| had.numbers));
    value["shard"] = placement.shard.into();
    value["owner"] = group_value(placement.owner);
    value["phase"] = phase.into();
    value["to"] = group_value(to);
    value["pinned"] = (*pinned).into();
    value["since"] = placement.since.into();
    value["last"] = placement.last.into();
    value["had_by"] = had.map(|Had { group, .. }| group).into();
    value["revision"] = had.map(|had| had.revision).into();
    value["groups"] = standings.iter().map(|(group, it)| standing(*group, it)).collect();
    value
}

fn standing(group: u32, standing: &ShardStanding) -> Value {
    let number = Some(standing.number).filter(|number| *number > 0);
    json!({
        "group": group,
        "phase": standing_name(standing.phase()),
        "settled": standing.settled,
        "number": number,
        "keys": standing.keys,
        "bytes": standing.bytes,
        "revision": standing.revision,
        "requests": standing.requests,
    })
}

fn numbers(numbers: Option<Numbers>) -> Value {
    json!({
        "keys": numbers.map(|numbers| numbers.keys),
        "bytes": numbers.map(|numbers| numbers.bytes),
        "requests_per_second": numbers.and_then(|numbers| numbers.requests_per_second),
        "changes_per_second": numbers.and_then(|numbers| numbers.changes_per_second),
    })
}

/// A phase's name, and where the shard goes.
fn phase_value(phase: Phase) -> (&'static str, u32) {
    match phase {
        Phase::Nowhere => ("nowhere", 0),
        Phase::Resting => ("resting", 0),
        Phase::Making(to) => ("making", to),
        Phase::Moving(to) => ("moving", to),
        Phase::Cancelling(to) => ("cancelling", to),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{
        super::view::{
            Look,
            tests::{state, told},
        },
        *,
    };

    #[test]
    fn what_is_known_is_told_and_what_is_not_is_null() {
        let (state, began) = (state(), Instant::now());
        let (first, second) = (told(began, 0), told(began + Duration::from_secs(1), 8));
        let value = value(&View::of(&state, &second, Some(&Look::of(&first))));
        let shards = &value["shards"];
        assert_eq!(shards[4]["owner"], Value::Null);
        assert_eq!((&shards[4]["phase"], &shards[4]["to"]), (&json!("making"), &json!(2)));
        assert_eq!((&shards[2]["keys"], &shards[2]["had_by"]), (&json!(3), &json!(1)));
        assert_eq!(shards[2]["changes_per_second"], 16.0);
        assert_eq!(shards[2]["requests_per_second"], 24.0);
        assert_eq!(shards[3]["groups"][0]["phase"], "incoming");
        assert_eq!((&shards[5]["keys"], &shards[5]["pinned"]), (&Value::Null, &json!(true)));
        let groups = &value["groups"];
        assert_eq!((&groups[0]["keys"], &groups[0]["lag"]), (&json!(9), &json!(3)));
        assert_eq!(groups[0]["leader"], "1:1");
        assert_eq!(groups[0]["members"][2]["error"], "1:3: gone");
        assert_eq!((&groups[1]["keys"], &groups[1]["shall_have"]), (&Value::Null, &json!(4)));
        assert_eq!(groups[1]["error"], "no member answers");
        assert_eq!((&value["complete"], &value["totals"]["keys"]), (&json!(false), &json!(9)));
        assert_eq!(value["totals"]["moving"], 3);
    }
}
