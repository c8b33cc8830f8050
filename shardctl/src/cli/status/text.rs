//! `shardctl status` for people: groups, a picture of the shards, and what is not as usual.
//!
//! Decides what is left away where there is much: shards at rest are in the picture alone, unless
//! each is asked for.

use client::{handoff::ShardPhase, shards::Placement};
use daemon::{output::Table, units};

use super::view::{GroupRow, MemberRow, Numbers, Phase, ShardRow, View};
use crate::{
    cli::show::{group_name, ranges},
    picture,
};

/// How many shards are drawn; of more a picture would be longer than a screen.
const DRAWN_MAX: usize = 2_048;

/// How many rows of shards are shown that are on their way or pinned.
const ROWS_SHOWN: usize = 16;

/// All of it; `each` shard in a row of its own, if that is asked for.
pub(super) fn text(view: &View<'_>, each: bool, coloured: bool) -> String {
    let mut parts = vec![title(view)];
    if !view.groups.is_empty() {
        parts.push(groups(view));
    }
    parts.extend(silent(view));
    let placements: Vec<Placement> = view.state.placements.clone();
    match placements.len() {
        0 => {}
        1..=DRAWN_MAX => parts.push(picture::draw(&placements, coloured)),
        many => parts.push(format!("{many} shards are not drawn; --shards lists each")),
    }
    if each && !view.shards.is_empty() {
        parts.push(each_shard(view));
    } else {
        parts.extend(unusual_shards(view));
    }
    parts.join("\n\n")
}

fn title(view: &View<'_>) -> String {
    let (shards, moving) = (view.shards.len(), view.moving());
    let title =
        format!("configuration {}: {shards} shards, {moving} on their way", view.state.latest);
    match view.pinned() {
        0 => title,
        pinned => format!("{title}, {pinned} pinned"),
    }
}

fn groups(view: &View<'_>) -> String {
    let mut table = Table::new([
        "GROUP",
        "WEIGHT",
        "HAS",
        "SHALL HAVE",
        "KEYS",
        "BYTES",
        "REQUESTS/S",
        "CHANGES/S",
        "LAG",
        "MEMBERS",
    ]);
    for row in &view.groups {
        let [keys, bytes, requests, changes] = numbers(row.told.ok());
        table.row([
            row.group.group.to_string(),
            or_dash(row.weight),
            row.has.to_string(),
            row.shall_have.to_string(),
            keys,
            bytes,
            requests,
            changes,
            or_dash(row.lag()),
            members(row),
        ]);
    }
    if view.groups.len() > 1 {
        let [keys, bytes, requests, changes] = numbers(Some(view.totals));
        let has: usize = view.groups.iter().map(|row| row.has).sum();
        let all = "all".to_owned();
        table.row([
            all,
            String::new(),
            has.to_string(),
            String::new(),
            keys,
            bytes,
            requests,
            changes,
        ]);
    }
    table.text()
}

fn members(row: &GroupRow<'_>) -> String {
    if row.members.is_empty() {
        return "none known".to_owned();
    }
    let member = |member: &MemberRow<'_>| match member.told {
        Ok(told) if told.leads => format!("{} leads", member.address),
        Ok(_) => member.address.to_owned(),
        Err(_) => format!("{} silent", member.address),
    };
    row.members.iter().map(member).collect::<Vec<_>>().join(", ")
}

/// Who does not answer, and why.
fn silent(view: &View<'_>) -> Option<String> {
    let mut lines = Vec::new();
    for row in &view.groups {
        let number = row.group.group;
        if let Err(why) = row.told {
            lines.push(format!("group {number} does not tell its keys and bytes: {why}"));
        }
        let silent = row.members.iter().filter_map(|member| member.told.err());
        lines.extend(silent.map(|why| format!("group {number}: {why}")));
    }
    if !view.complete {
        lines.push("the numbers of all are without theirs".to_owned());
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// The shards that are on their way or pinned; those in a row that are alike are one row.
fn unusual_shards(view: &View<'_>) -> Option<String> {
    let alike = |one: &ShardRow<'_>, other: &ShardRow<'_>| {
        (one.placement.owner, one.phase, one.pinned)
            == (other.placement.owner, other.phase, other.pinned)
    };
    let rows: Vec<_> = view.shards.chunk_by(alike).collect();
    let unusual = |rows: &&&[ShardRow<'_>]| rows[0].pinned || rows[0].phase.is_moving();
    let unusual: Vec<_> = rows.iter().filter(unusual).collect();
    if unusual.is_empty() {
        return None;
    }
    let mut table = Table::new(["SHARDS", "OWNER", "PHASE", "PINNED"]);
    for rows in unusual.iter().take(ROWS_SHOWN) {
        let ShardRow { placement, phase, pinned, .. } = &rows[0];
        let shards = ranges(rows.iter().map(|row| row.placement.shard));
        table.row([shards, group_name(placement.owner), phase_text(*phase), pin(*pinned)]);
    }
    let left_out = unusual.len().saturating_sub(ROWS_SHOWN);
    let more = match left_out {
        0 => String::new(),
        rows => format!("\n... and {rows} rows more; --shards lists each shard"),
    };
    Some(format!("{}{more}", table.text()))
}

fn each_shard(view: &View<'_>) -> String {
    let mut table = Table::new([
        "SHARD",
        "OWNER",
        "PHASE",
        "PINNED",
        "KEYS",
        "BYTES",
        "REQUESTS/S",
        "CHANGES/S",
        "REVISION",
        "IN GROUPS",
    ]);
    for row in &view.shards {
        let [keys, bytes, requests, changes] = numbers(row.had.map(|had| had.numbers));
        let standings = row.standings.iter();
        let standings =
            standings.map(|(group, it)| format!("{group} {}", standing_name(it.phase())));
        table.row([
            row.placement.shard.to_string(),
            group_name(row.placement.owner),
            phase_text(row.phase),
            pin(row.pinned),
            keys,
            bytes,
            requests,
            changes,
            or_dash(row.had.map(|had| had.revision)),
            standings.collect::<Vec<_>>().join(", "),
        ]);
    }
    table.text()
}

/// Keys, bytes, and requests and changes a second, as far as they are known.
fn numbers(numbers: Option<Numbers>) -> [String; 4] {
    let Some(numbers) = numbers else { return ["-", "-", "-", "-"].map(str::to_owned) };
    let Numbers { keys, bytes, requests_per_second, changes_per_second } = numbers;
    let rate = |rate: Option<f64>| or_dash(rate.map(|rate| format!("{rate:.1}")));
    let (requests, changes) = (rate(requests_per_second), rate(changes_per_second));
    [units::count(keys), units::bytes(bytes), requests, changes]
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn pin(pinned: bool) -> String {
    if pinned { "yes" } else { "" }.to_owned()
}

fn phase_text(phase: Phase) -> String {
    match phase {
        Phase::Nowhere => "nowhere".to_owned(),
        Phase::Resting => "resting".to_owned(),
        Phase::Making(to) => format!("being made by {to}"),
        Phase::Moving(to) => format!("moving to {to}"),
        Phase::Cancelling(to) => format!("no longer to {to}"),
    }
}

/// How a shard stands in a group, in a word.
pub(super) fn standing_name(phase: ShardPhase) -> &'static str {
    match phase {
        ShardPhase::Unspecified => "unknown",
        ShardPhase::Absent => "absent",
        ShardPhase::Serving => "serving",
        ShardPhase::Leaving => "leaving",
        ShardPhase::Frozen => "frozen",
        ShardPhase::Incoming => "incoming",
        ShardPhase::Discarding => "discarding",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use client::shards::State;

    use super::{
        super::view::tests::{state, told},
        *,
    };

    #[test]
    fn groups_the_picture_and_what_is_not_as_usual_are_shown() {
        let (state, told) = (state(), told(Instant::now(), 0));
        let shown = "configuration 4: 6 shards, 3 on their way, 1 pinned\n\n\
            GROUP  WEIGHT  HAS  SHALL HAVE  KEYS  BYTES  REQUESTS/S  CHANGES/S  LAG  MEMBERS\n\
            1      1       3    2           9     900 B  -           -          3    1:1 leads, 1:2, 1:3 silent\n\
            2      2       2    4           -     -      -           -          -    2:1 silent\n\
            3      -       0    0           0     0 B    -           -          0    3:1 leads\n\
            all            5                9     900 B  -           -\n\n\
            group 1: 1:3: gone\n\
            group 2 does not tell its keys and bytes: no member answers\n\
            group 2: 2:1: gone\n\
            the numbers of all are without theirs\n\n\
            \u{20}   0  11>>>2\n\
            \u{20}      1 group 1: 2   2 group 2: 1   > on their way: 3\n\n\
            SHARDS  OWNER  PHASE            PINNED\n\
            2       1      moving to 2\n\
            3       2      no longer to 1\n\
            4       -      being made by 2\n\
            5       2      resting          yes";
        assert_eq!(text(&View::of(&state, &told, None), false, false), shown);
        let nothing = State::default();
        let nothing = text(&View::of(&nothing, &told, None), true, false);
        assert_eq!(nothing, "configuration 0: 0 shards, 0 on their way");
    }

    #[test]
    fn each_shard_is_listed_when_that_is_asked_for() {
        let (state, told) = (state(), told(Instant::now(), 0));
        let shown = text(&View::of(&state, &told, None), true, false);
        let (_, table) = shown.split_once("\n\nSHARD  ").unwrap();
        let rows: Vec<_> = table.lines().collect();
        assert_eq!(rows.len(), 7, "{shown}");
        let columns = |row: &str| row.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            columns(rows[2]),
            ["1", "1", "resting", "2", "200", "B", "-", "-", "20", "1", "frozen"]
        );
        assert_eq!(columns(rows[6]), ["5", "2", "resting", "yes", "-", "-", "-", "-", "-"]);
    }
}
