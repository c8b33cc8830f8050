//! Runs a script and compares what it prints with what stands in it.
//!
//! A script is a file of lines. It begins with a paragraph that says what it shows. A line that
//! begins with `> ` is a command; what it printed stands underneath. A line that begins with `# `
//! is a remark. With UPDATE_GOLDEN=1 in the environment the printed lines are written anew.

use std::{fmt::Write as _, fs, path::Path};

use flotilla_raft::{Entry, GroupTime, HardState, Index, Position, ReadId, Term, WriteId};

use super::{
    notation::{self, parse_node, parse_number, parse_payload, parse_position},
    world::{Pick, World},
};

/// Runs one script and fails with the differences.
pub(crate) fn check(topic: &str, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/scripts")
        .join(topic)
        .join(format!("{name}.txt"));
    let script = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{} can't be read: {error}", path.display()));
    let shows = script.lines().next().unwrap_or_default();
    assert!(
        !shows.is_empty() && !shows.starts_with(['>', '#']),
        "{} begins with a paragraph that says what it shows",
        path.display()
    );
    let printed = run(&script);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &printed)
            .unwrap_or_else(|error| panic!("{} can't be written: {error}", path.display()));
    } else if printed != script {
        panic!("{}\n{}", path.display(), difference(&script, &printed));
    }
}

/// The script again, with what its commands print now.
fn run(script: &str) -> String {
    let mut world = World::new();
    let mut printed = String::new();
    let mut in_output = false;
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            printed += line;
            printed.push('\n');
            execute(&mut world, command);
            for line in world.take_output() {
                printed += &line;
                printed.push('\n');
            }
            in_output = true;
        } else if line.is_empty() || line.starts_with("# ") || !in_output {
            printed += line;
            printed.push('\n');
            in_output &= !line.is_empty() && !line.starts_with("# ");
        }
    }
    printed
}

/// Line by line: what is expected and missing, and what is there instead.
fn difference(expected: &str, printed: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) =
        (expected.lines().collect(), printed.lines().collect());
    let same = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let tail = old[same..]
        .iter()
        .rev()
        .zip(new[same..].iter().rev())
        .take_while(|(old, new)| old == new)
        .count();
    let mut text = String::new();
    let shown = |text: &mut String, mark: &str, lines: &[&str]| {
        for line in lines {
            writeln!(text, "{mark}{line}").expect("a string takes everything");
        }
    };
    shown(&mut text, "  ", &old[same.saturating_sub(3)..same]);
    shown(&mut text, "- ", &old[same..old.len() - tail]);
    shown(&mut text, "+ ", &new[same..new.len() - tail]);
    text += "UPDATE_GOLDEN=1 accepts what is printed; read it first\n";
    text
}

/// Executes a command. `quietly` before it leaves out what it prints.
fn execute(world: &mut World, command: &str) {
    if let Some(command) = command.strip_prefix("quietly ") {
        execute(world, command);
        world.take_output();
        return;
    }
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["config", settings @ ..] => {
            for setting in settings {
                configure(world, setting);
            }
        }
        ["disk", id, parts @ ..] => prepare_disk(world, id, parts),
        ["group", members] => world.start_group(parse_number(members)),
        ["advance", milliseconds] => world.now.0 += 1_000 * parse_number(milliseconds),
        ["settle"] => world.settle(),
        ["status"] => world.ids().into_iter().for_each(|id| world.status(id)),
        ["heal"] => world.heal(),
        ["inject", ..] => {
            let message = command.trim_start_matches("inject");
            let message = notation::parse_message(message, &world.founders);
            world.deliver(message);
        }
        ["deliver" | "drop" | "copy" | "cut", ..] => carry(world, &words),
        [
            "propose" | "change" | "read" | "transfer" | "compact" | "install" | "written" | "hold"
            | "release" | "gather" | "take",
            ..,
        ] => serve(world, &words),
        [verb, ids @ ..] if !ids.is_empty() => {
            for id in ids {
                command_member(world, verb, id);
            }
        }
        other => panic!("{other:?} is no command"),
    }
}

/// What is done to whole members, one after the other.
fn command_member(world: &mut World, verb: &str, id: &str) {
    let id = parse_node(id);
    match verb {
        "tick" => world.tick(id, 1),
        "heartbeat" => world.tick(id, world.config.heartbeat_ticks),
        "silence" => world.tick(id, world.config.election_ticks_min),
        "campaign" => world.campaign(id),
        "elect" => {
            world.campaign(id);
            world.settle();
        }
        "crash" => world.crash(id),
        "start" => world.start(id),
        "join" => world.join(id),
        "restart" => {
            world.crash(id);
            world.start(id);
            world.status(id);
        }
        "status" => world.status(id),
        "log" => world.log(id),
        other => panic!("{other:?} is no command"),
    }
}

fn configure(world: &mut World, setting: &str) {
    if setting == "stamps" {
        world.notation.stamps = true;
        return;
    }
    let (name, value) = setting.split_once('=').expect("a setting is written name=value");
    let number = parse_number(value);
    let config = &mut world.config;
    let small = || u32::try_from(number).expect("it fits");
    let size = || usize::try_from(number).expect("it fits");
    match name {
        "tick_us" => config.tick_us = number,
        "heartbeat_ticks" => config.heartbeat_ticks = small(),
        "append_bytes_max" => config.append_bytes_max = number,
        "inflight_messages_max" => config.inflight_messages_max = size(),
        "inflight_bytes_max" => config.inflight_bytes_max = number,
        "uncommitted_bytes_max" => config.uncommitted_bytes_max = number,
        "read_rounds_max" => config.read_rounds_max = size(),
        "read_questions_max" => config.read_questions_max = size(),
        "reads_waiting_max" => config.reads_waiting_max = size(),
        "members_max" => config.members_max = size(),
        "retained_bytes" => config.retained_bytes = number,
        "retained_bytes_max" => config.retained_bytes_max = number,
        "unheard_ticks_max" => config.unheard_ticks_max = small(),
        "log_window_bytes" => config.log_window_bytes = number,
        "slow_disk_ticks" => config.slow_disk_ticks = small(),
        "apply_bytes_max" => config.apply_bytes_max = number,
        other => panic!("{other:?} is no setting"),
    }
}

/// `disk n1 term=3 vote=n2 terms=1,1,3 snapshot=2@1`: what a member finds when it starts. `terms`
/// are those of the entries from index 1 on; what the snapshot covers is not kept.
fn prepare_disk(world: &mut World, id: &str, parts: &[&str]) {
    let disk = &mut world.members.entry(parse_node(id)).or_default().disk;
    let mut hard_state = HardState::default();
    for part in parts {
        let (name, value) = part.split_once('=').expect("a part is written name=value");
        match name {
            "term" => hard_state.term = Term(parse_number(value)),
            "vote" => hard_state.vote = Some(parse_node(value)),
            "terms" => {
                disk.entries = (1..)
                    .zip(value.split(','))
                    .map(|(index, term)| Entry {
                        index: Index(index),
                        term: Term(parse_number(term)),
                        stamp: GroupTime(0),
                        payload: parse_payload(&format!("x{index}")),
                    })
                    .collect();
            }
            "snapshot" => {
                let position: Position = parse_position(value);
                let founders = world.founders.clone();
                disk.snapshot = Some(notation::root(position, GroupTime(0), founders));
                disk.entries.retain(|entry| entry.index > position.index);
                disk.base = position;
            }
            other => panic!("{other:?} is no part of a disk"),
        }
    }
    disk.hard_state = hard_state;
}

/// What a client, a snapshot or the disk asks of one member.
fn serve(world: &mut World, words: &[&str]) {
    let id = parse_node(words[1]);
    match (words[0], &words[2..]) {
        ("propose", payloads) => {
            let now = world.now;
            for payload in payloads {
                match world.node(id).propose(now, parse_payload(payload)) {
                    Ok(position) => world.say(format!("n{id} appends {payload} at {position}")),
                    Err(refused) => world.say(format!("n{id} refuses {payload}: {refused}")),
                }
            }
        }
        ("change", changes) => world.change(id, &notation::parse_changes(changes)),
        ("read", reads) => {
            for read in reads {
                let now = world.now;
                if let Err(refused) = world.node(id).read(now, ReadId(parse_number(read))) {
                    world.say(format!("n{id} refuses read {read}: {refused}"));
                }
            }
        }
        ("transfer", [to]) => {
            if let Err(refused) = world.node(id).transfer(parse_node(to)) {
                world.say(format!("n{id} refuses: {refused}"));
            }
        }
        ("compact", [index]) => world.compact(id, Index(parse_number(index))),
        ("install", []) => world.install(id),
        ("install", ["fails"]) => world.fail_install(id),
        ("hold", []) => world.member(id).held = true,
        ("gather", []) => world.member(id).gathers = true,
        ("take", []) => world.member(id).gathers = false,
        ("written", [write]) => world.written(id, WriteId(parse_number(write))),
        ("release", []) => {
            world.member(id).held = false;
            if let Some(&last) = world.pending(id).last() {
                world.written(id, last);
            }
            world.fetched(id);
        }
        (_, _) => panic!("{words:?} is no command"),
    }
    world.flush(id);
}

/// What the network does: `deliver n1 n2 last`, `drop n1 n2 2`, `copy n1 n2`, `cut n1 n2 n3`.
fn carry(world: &mut World, words: &[&str]) {
    if words == ["deliver"] {
        return world.deliver_all();
    }
    let from = parse_node(words[1]);
    if words[0] == "cut" {
        let mut others: Vec<_> = words[2..].iter().map(|word| parse_node(word)).collect();
        if others.is_empty() {
            others = world.others(from);
        }
        return others.into_iter().for_each(|other| world.cut(from, other));
    }
    let to = parse_node(words[2]);
    let pick = match words.get(3) {
        None => Pick::All,
        Some(&"last") => Pick::Last,
        Some(number) => Pick::Nth(usize::try_from(parse_number(number)).expect("it fits")),
    };
    let taken = world.take(from, to, pick);
    match words[0] {
        "deliver" => taken.into_iter().for_each(|message| world.deliver(message)),
        "drop" => {}
        "copy" => taken.iter().chain(&taken).cloned().for_each(|message| world.put(message)),
        other => panic!("{other:?} is no command"),
    }
}
