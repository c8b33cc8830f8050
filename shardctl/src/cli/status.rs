//! `shardctl status`: where each shard is, and who the groups are, as the controller knows it.
//!
//! What only the groups know, such as keys and requests, is not here.

use std::collections::BTreeSet;

use client::{
    ShardClient,
    shards::{Configuration, Group, Placement, State},
};
use daemon::{
    Failure,
    output::{Output, Table},
};
use serde_json::{Value, json};

use super::{
    refused,
    show::{group_name, group_value, ranges, shares},
};

/// The arguments of `shardctl status`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// Ask one member for what it knows, without its leader
    #[arg(long)]
    stale: bool,
}

pub(super) async fn run(
    client: &ShardClient,
    arguments: &Arguments,
    output: Output,
) -> Result<(), Failure> {
    let state = client.query(None, arguments.stale).await.map_err(refused)?;
    output.result(&text(&state), &value(&state))
}

/// What is shown of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ShardRow {
    owner: u32,
    phase: Phase,
    pinned: bool,
}

/// What becomes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nobody has it, nor shall.
    Nowhere,
    /// Its owner has it.
    Resting,
    /// It is made by this group.
    Making(u32),
    /// It moves to this group.
    Moving(u32),
    /// Its move to this group shall end, or what was begun of making it there.
    Cancelling(u32),
}

impl Phase {
    fn of(placement: &Placement) -> Self {
        match (placement.r#move, placement.owner) {
            (None, 0) => Self::Nowhere,
            (None, _) => Self::Resting,
            (Some(moving), _) if moving.cancelling => Self::Cancelling(moving.to),
            (Some(moving), 0) => Self::Making(moving.to),
            (Some(moving), _) => Self::Moving(moving.to),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Nowhere => "nowhere".to_owned(),
            Self::Resting => "resting".to_owned(),
            Self::Making(to) => format!("being made by {to}"),
            Self::Moving(to) => format!("moving to {to}"),
            Self::Cancelling(to) => format!("no longer to {to}"),
        }
    }

    /// Its name for programs, and where the shard goes.
    fn value(self) -> (&'static str, u32) {
        match self {
            Self::Nowhere => ("nowhere", 0),
            Self::Resting => ("resting", 0),
            Self::Making(to) => ("making", to),
            Self::Moving(to) => ("moving", to),
            Self::Cancelling(to) => ("cancelling", to),
        }
    }
}

/// What is shown of a group.
#[derive(Clone, Debug)]
struct GroupRow<'a> {
    group: &'a Group,
    /// None: it does not take part.
    weight: Option<u32>,
    has: usize,
    shall_have: usize,
}

fn shard_rows(state: &State) -> Vec<ShardRow> {
    let pins = state.configuration.iter().flat_map(|configuration| &configuration.pins);
    let pins: BTreeSet<u32> = pins.map(|pin| pin.shard).collect();
    let row = |placement: &Placement| ShardRow {
        owner: placement.owner,
        phase: Phase::of(placement),
        pinned: pins.contains(&placement.shard),
    };
    state.placements.iter().map(row).collect()
}

fn group_rows(state: &State) -> Vec<GroupRow<'_>> {
    let nothing = Configuration::default();
    let configuration = state.configuration.as_ref().unwrap_or(&nothing);
    let owners: Vec<u32> = state.placements.iter().map(|placement| placement.owner).collect();
    let (now, then) = (shares(&owners), shares(&configuration.owners));
    let rows = state.groups.iter().map(|group| {
        let weight = configuration.weights.iter().find(|weight| weight.group == group.group);
        GroupRow {
            group,
            weight: weight.map(|weight| weight.weight),
            has: now.get(&group.group).map_or(0, Vec::len),
            shall_have: then.get(&group.group).map_or(0, Vec::len),
        }
    });
    rows.collect()
}

fn text(state: &State) -> String {
    let rows = shard_rows(state);
    let moving = rows.iter().filter(|row| !matches!(row.phase, Phase::Resting | Phase::Nowhere));
    let (shards, moving) = (rows.len(), moving.count());
    let mut text =
        format!("configuration {}: {shards} shards, {moving} on their way", state.latest);
    let groups = group_rows(state);
    if !groups.is_empty() {
        let mut table = Table::new(["GROUP", "WEIGHT", "HAS", "SHALL HAVE", "MEMBERS"]);
        for GroupRow { group, weight, has, shall_have } in groups {
            let weight = weight.map_or_else(|| "-".to_owned(), |weight| weight.to_string());
            let (has, shall_have) = (has.to_string(), shall_have.to_string());
            let members = group.members.join(", ");
            table.row([group.group.to_string(), weight, has, shall_have, members]);
        }
        text.push_str(&format!("\n\n{}", table.text()));
    }
    if !rows.is_empty() {
        let mut table = Table::new(["SHARDS", "OWNER", "PHASE", "PINNED"]);
        // Shards in a row that are alike are one row.
        let mut first = 0;
        for alike in rows.chunk_by(|one, other| one == other) {
            let ShardRow { owner, phase, pinned } = alike[0];
            let behind = first + u32::try_from(alike.len()).unwrap_or(u32::MAX);
            let pinned = if pinned { "yes" } else { "" }.to_owned();
            table.row([ranges(first..behind), group_name(owner), phase.text(), pinned]);
            first = behind;
        }
        text.push_str(&format!("\n\n{}", table.text()));
    }
    text
}

fn value(state: &State) -> Value {
    let shards = state.placements.iter().zip(shard_rows(state)).map(|(placement, row)| {
        let (phase, to) = row.phase.value();
        json!({
            "shard": placement.shard,
            "owner": group_value(row.owner),
            "phase": phase,
            "to": group_value(to),
            "pinned": row.pinned,
            "since": placement.since,
            "last": placement.last,
        })
    });
    let groups = group_rows(state).into_iter().map(|row| {
        let reported = row.group.reported.as_ref().map(|reported| {
            let identity: String =
                reported.identity.iter().map(|byte| format!("{byte:02x}")).collect();
            let shards = Some(reported.shards).filter(|shards| *shards > 0);
            json!({ "identity": identity, "index": reported.index, "shards": shards })
        });
        json!({
            "group": row.group.group,
            "weight": row.weight,
            "has": row.has,
            "shall_have": row.shall_have,
            "members": row.group.members,
            "reported": reported,
        })
    });
    json!({
        "number": state.latest,
        "revision": state.revision,
        "groups": groups.collect::<Vec<_>>(),
        "shards": shards.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use client::shards::{Pin, ShardMove, Weight};

    use super::*;

    fn placement(shard: u32, owner: u32, moving: Option<(u32, bool)>) -> Placement {
        let r#move = moving.map(|(to, cancelling)| ShardMove { to, cancelling });
        Placement { shard, owner, since: 1, last: 2, r#move, recovered_at: 0 }
    }

    #[test]
    fn shards_that_are_alike_are_one_row() {
        let group = |group| Group { group, members: vec!["a:1".to_owned()], reported: None };
        let state = State {
            revision: 9,
            latest: 4,
            configuration: Some(Configuration {
                number: 4,
                owners: vec![1, 1, 2, 2, 2, 2],
                weights: vec![Weight { group: 1, weight: 1 }, Weight { group: 2, weight: 2 }],
                pins: vec![Pin { shard: 5, group: 2 }],
            }),
            placements: vec![
                placement(0, 1, None),
                placement(1, 1, None),
                placement(2, 1, Some((2, false))),
                placement(3, 2, Some((1, true))),
                placement(4, 0, Some((2, false))),
                placement(5, 2, None),
            ],
            groups: vec![group(1), group(2), group(3)],
        };
        let told = "configuration 4: 6 shards, 3 on their way\n\n\
            GROUP  WEIGHT  HAS  SHALL HAVE  MEMBERS\n\
            1      1       3    2           a:1\n\
            2      2       2    4           a:1\n\
            3      -       0    0           a:1\n\n\
            SHARDS  OWNER  PHASE            PINNED\n\
            0-1     1      resting\n\
            2       1      moving to 2\n\
            3       2      no longer to 1\n\
            4       -      being made by 2\n\
            5       2      resting          yes";
        assert_eq!(text(&state), told);
        let value = value(&state);
        assert_eq!(value["shards"][4]["owner"], Value::Null);
        assert_eq!(value["shards"][4]["phase"], "making");
        assert_eq!(value["groups"][1]["shall_have"], 4);
        assert_eq!(text(&State::default()), "configuration 0: 0 shards, 0 on their way");
    }
}
