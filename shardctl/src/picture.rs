//! A map of shards as a person takes it in at a glance: one character for each shard, by its group.
//!
//! Decides which character and which colour a group has: by its number alone, so that two pictures
//! can be compared. What is behind the characters is in tables elsewhere.

use std::{collections::BTreeMap, io::IsTerminal};

use client::shards::Placement;

/// How many shards stand in a row.
const ROW: usize = 64;

/// A shard that is on its way to another group, or is just being made there.
const MOVING: char = '>';

/// A shard that nobody has, nor shall.
const NOBODY: char = '.';

/// A group whose number has no character of its own.
const OTHER: char = '#';

/// The characters of groups 1, 2, 3 and so on.
const GROUPS: &str = "123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The colours that groups take in turn: red is left to what is wrong.
const COLOURS: [u8; 5] = [32, 33, 34, 35, 36];

/// Whether a picture on stdout may have colours: on a terminal, unless `NO_COLOR` is set.
pub fn may_have_colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The picture, with what its characters mean below. A shard on its way has the colour of the group
/// that it goes to.
pub fn draw(placements: &[Placement], coloured: bool) -> String {
    let tiles: Vec<Tile> = placements.iter().map(Tile::of).collect();
    let mut lines = Vec::new();
    for (number, row) in tiles.chunks(ROW).enumerate() {
        let alike = row.chunk_by(|one, other| one == other);
        let row: String = alike.map(|alike| alike[0].text(alike.len(), coloured)).collect();
        lines.push(format!("{:>5}  {row}", number * ROW));
    }
    let legend = legend(placements, &tiles, coloured);
    if !legend.is_empty() {
        lines.push(format!("       {legend}"));
    }
    lines.join("\n")
}

/// What is drawn of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    symbol: char,
    /// The group whose colour it has; 0: none.
    group: u32,
}

impl Tile {
    fn of(placement: &Placement) -> Self {
        match (placement.r#move, placement.owner) {
            (Some(moving), _) => Self { symbol: MOVING, group: moving.to },
            (None, 0) => Self { symbol: NOBODY, group: 0 },
            (None, owner) => Self { symbol: symbol(owner), group: owner },
        }
    }

    /// So many of them.
    fn text(self, count: usize, coloured: bool) -> String {
        let symbols = self.symbol.to_string().repeat(count);
        let Some(index) = self.group.checked_sub(1).filter(|_| coloured) else { return symbols };
        let colour = COLOURS[index as usize % COLOURS.len()];
        format!("\u{1b}[{colour}m{symbols}\u{1b}[0m")
    }
}

fn symbol(group: u32) -> char {
    let index = group.checked_sub(1).and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| GROUPS.chars().nth(index)).unwrap_or(OTHER)
}

/// Each character that is drawn, and how many shards are meant by it.
fn legend(placements: &[Placement], tiles: &[Tile], coloured: bool) -> String {
    let mut groups: BTreeMap<u32, usize> = BTreeMap::new();
    for placement in placements.iter().filter(|placement| placement.r#move.is_none()) {
        *groups.entry(placement.owner).or_default() += 1;
    }
    let nobody = groups.remove(&0);
    let mut parts: Vec<String> = groups
        .into_iter()
        .map(|(group, count)| {
            let tile = Tile { symbol: symbol(group), group };
            format!("{} group {group}: {count}", tile.text(1, coloured))
        })
        .collect();
    let moving = tiles.iter().filter(|tile| tile.symbol == MOVING).count();
    if moving > 0 {
        parts.push(format!("{MOVING} on their way: {moving}"));
    }
    parts.extend(nobody.map(|count| format!("{NOBODY} nobody's: {count}")));
    parts.join("   ")
}

#[cfg(test)]
mod tests {
    use client::shards::ShardMove;

    use super::*;

    fn placement(owner: u32, to: Option<u32>) -> Placement {
        let r#move = to.map(|to| ShardMove { to, cancelling: false });
        Placement { owner, r#move, ..Placement::default() }
    }

    #[test]
    fn each_shard_is_one_character_and_rows_say_where_they_begin() {
        let mut placements = vec![placement(1, None); 60];
        placements.extend([placement(1, Some(2)), placement(0, Some(2)), placement(0, None)]);
        placements.extend(vec![placement(2, None); 3]);
        let drawn = format!(
            "    0  {}>>.2\n   64  22\n       1 group 1: 60   2 group 2: 3   > on their way: 2   \
             . nobody's: 1",
            "1".repeat(60)
        );
        assert_eq!(draw(&placements, false), drawn);
        assert_eq!(draw(&[], false), "");
    }

    #[test]
    fn a_group_keeps_its_character_and_its_colour() {
        let drawn = draw(&[placement(10, None), placement(61, None), placement(62, None)], false);
        assert!(drawn.starts_with("    0  aZ#\n"), "{drawn}");
        let alone = draw(&[placement(7, None)], true);
        let beside = draw(&[placement(1, None), placement(7, None)], true);
        assert!(alone.contains("\u{1b}[33m7\u{1b}[0m") && beside.contains("\u{1b}[33m7\u{1b}[0m"));
        // What goes to it is seen to go there.
        let moving = draw(&[placement(1, Some(7))], true);
        assert!(moving.contains("\u{1b}[33m>\u{1b}[0m"), "{moving}");
    }
}
