//! SIGKILL at any moment, the making of the directory included.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use raft::{HardState, NodeId, Payload, Term, Write};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::child;
use crate::depth::{Depth, depth};
use crate::member::Member;

/// The n-th command says n, so that what is found tells what was acknowledged.
fn command(number: u64) -> Bytes {
    let len = if number.is_multiple_of(50) { 300_000 } else { 8 + (number % 700) as usize };
    let mut command = number.to_le_bytes().to_vec();
    command.resize(len, number as u8);
    command.into()
}

/// Goes on behind what is there.
pub(crate) fn append_for_ever(member: &mut Member) {
    let term = member.model.hard_state.term.next();
    let hard_state = Some(HardState { term, vote: Some(NodeId(1)) });
    let id = member.next_id();
    member.write(Write { id, hard_state, entries: vec![], snapshot: None });
    let mut out = std::io::stdout();
    writeln!(out, "term {term}").unwrap();
    for number in member.model.last().index.0 + 1.. {
        member.append(&[command(number)]);
        if number.is_multiple_of(40) {
            let chunks =
                (0..20).map(|at| command(at * 7 + number / 80)).filter(|chunk| chunk.len() < 9_000);
            member.snapshot(chunks.collect());
        }
        // The parent counts only whole lines.
        writeln!(out, "wrote {number}").unwrap();
    }
}

/// Lets a child run for a while, kills it, and gives what it said was durable.
fn live(path: &Path, time: Duration) -> (u64, u64) {
    let mut child = child::start("appends_for_ever", path);
    std::thread::sleep(time);
    child.kill().unwrap();
    let (mut term, mut last) = (0, 0);
    let out = BufReader::new(child.stdout.take().unwrap());
    for line in out.lines() {
        let line = line.unwrap();
        let number = |word: &str| line.split(word).nth(1).and_then(|rest| rest.parse().ok());
        term = number("term ").unwrap_or(term);
        last = number("wrote ").unwrap_or(last);
    }
    let status = child.wait().unwrap();
    assert!(status.code().is_none(), "the child ended by itself: {status}");
    (term, last)
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let lives = match depth() {
        Depth::Quick => 24,
        Depth::Ci => 120,
        Depth::Deep => 1_000,
    };
    let mut rng = StdRng::seed_from_u64(3);
    let directory = tempfile::tempdir().unwrap();
    let mut number = 0;
    let mut path = directory.path().join("0");
    let (mut term, mut last) = (0, 0);
    for life in 0..lives {
        // Every few lives a new directory, killed while it is made.
        if life % 6 == 0 {
            number += 1;
            path = directory.path().join(number.to_string());
            (term, last) = (0, 0);
        }
        let micros = if life % 2 == 0 { 60_000 } else { 400_000 };
        let (told_term, told_last) =
            live(&path, Duration::from_micros(rng.random_range(0..micros)));
        (term, last) = (term.max(told_term), last.max(told_last));
        let copy = directory.path().join("copy");
        if path.exists() {
            crate::member::copy(&path, &copy);
            check(&copy, term, last, &format!("life {life}"));
            std::fs::remove_dir_all(&copy).unwrap();
        }
    }
    assert!(last > 0, "nothing was ever acknowledged");
}

fn check(path: &Path, term: u64, last: u64, context: &str) {
    let member = match Member::open(path) {
        Ok(member) => member,
        Err(error) => panic!("{context}: {error}"),
    };
    let found = &member.start.recovered;
    assert!(found.hard_state.term >= Term(term), "{context}: the term is older");
    assert!(member.model.last().index.0 >= last, "{context}: {last} is lost");
    for entry in found.log.entries() {
        assert_eq!(entry.payload, Payload::Command(command(entry.index.0)), "{context}");
    }
    if let Some(root) = &found.snapshot {
        member.start.snapshots.load(root.manifest).unwrap();
    }
}
