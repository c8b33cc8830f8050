//! What a store is made to do before the power fails, and what it must still hold afterwards.
//!
//! The steps of a life follow from its seed and from what the life before left, so a process that
//! opens an image can work out what was promised from a few numbers.

use std::path::Path;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use raft::{Digest, GroupTime, NodeId, Payload, Position, SnapshotRoot, Write};
use raftd::store::gathered::Gathered;
use raftd::store::{Manifest, Snapshots, StoreError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::child;
use crate::member::{Member, membership};
use crate::model::Model;

/// The lives until the power failed, and what had been told by then.
const LIVES: &str = "FLOTILLA_POWER_LIVES";
const TOLD: &str = "FLOTILLA_POWER_TOLD";

/// How long a store has nothing to do before it tidies up, and has done so.
const IDLE: Duration = Duration::from_millis(300);

/// Everything that had been told before the power failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// How many steps of this life were acknowledged.
    pub(crate) writes: u64,
    /// Whether the group is born.
    pub(crate) born: bool,
    /// How often the store was opened.
    pub(crate) boot: u64,
    pub(crate) write_sequence: u64,
    /// None: nobody knows the member yet.
    pub(crate) incarnation: Option<u128>,
}

impl Told {
    fn encode(&self) -> String {
        let incarnation = self.incarnation.map_or(String::new(), |number| number.to_string());
        let Self { writes, born, boot, write_sequence, .. } = self;
        format!("{writes},{},{boot},{write_sequence},{incarnation}", u64::from(*born))
    }

    fn decode(text: &str) -> Self {
        let fields: Vec<&str> = text.trim().split(',').collect();
        let number = |at: usize| fields[at].parse().unwrap();
        let incarnation = fields[4].parse().ok();
        let (writes, born) = (number(0), number(1) == 1);
        Self { writes, born, boot: number(2), write_sequence: number(3), incarnation }
    }

    /// What a process has just said, if it is this.
    pub(crate) fn read(said: &str) -> Option<Self> {
        said.lines()
            .rev()
            .find_map(|line| line.split_once("told "))
            .map(|(_, told)| Self::decode(told))
    }

    fn say(&self) {
        println!("told {}", self.encode());
    }
}

/// A life that ended when the power failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) seed: u64,
    /// How many of its steps were acknowledged.
    pub(crate) writes: u64,
    /// Which of the states that the power may have left was found.
    pub(crate) found: usize,
}

/// What comes next in a life.
struct Step {
    /// Submitted at once, so that the store may merge them.
    writes: Vec<Write>,
    /// Of the snapshot in the first write.
    chunks: Vec<Bytes>,
    then: Then,
}

#[derive(Clone, Copy)]
enum Then {
    Nothing,
    /// Chunks are stored beside the writes that follow, of a snapshot that is never installed.
    Fetch,
    Idle,
    Reopen,
}

/// The steps of a life.
struct Steps {
    rng: StdRng,
    model: Model,
}

impl Steps {
    /// The last of these lives, as far as it was acknowledged.
    fn of(lives: &[Life]) -> Self {
        let (last, before) = lives.split_last().unwrap();
        let mut model = Model::default();
        for life in before {
            let left = Self::begin(life, model).may_be_left().swap_remove(life.found);
            model = Model { writes: 0, ..left };
        }
        Self::begin(last, model)
    }

    fn begin(life: &Life, model: Model) -> Self {
        let mut steps = Self { rng: StdRng::seed_from_u64(life.seed), model };
        (0..life.writes).for_each(|_| drop(steps.next()));
        steps
    }

    fn next(&mut self) -> Step {
        let rng = &mut self.rng;
        let mut write = match rng.random_range(0..8) {
            0 => self.model.append_much(rng),
            1 => self.model.compact(rng),
            _ => self.model.next(rng),
        };
        let mut chunks = Vec::new();
        if let Some(snapshot) = &mut write.snapshot {
            chunks = (0..rng.random_range(0..12))
                .map(|_| vec![rng.random(); rng.random_range(1..20_000)].into())
                .collect();
            snapshot.root = root(&chunks, &snapshot.root);
        }
        let then = match rng.random_range(0..30) {
            0 => Then::Idle,
            1 => Then::Reopen,
            2..5 => Then::Fetch,
            _ => Then::Nothing,
        };
        self.model.apply(&write);
        let mut writes = vec![write];
        let second = self.model.next(rng);
        if rng.random_bool(0.4) && second.snapshot.is_none() {
            self.model.apply(&second);
            writes.push(second);
        }
        Step { writes, chunks, then }
    }

    /// Everything that a loss of power now may leave.
    fn may_be_left(mut self) -> Vec<Model> {
        let now = self.model.clone();
        let (mut merged, mut alone) = (Gathered::default(), now.clone());
        let mut left = Vec::new();
        for write in self.next().writes {
            let mut single = Gathered::default();
            single.add(write.clone());
            left.extend(alone.between(&single));
            alone.apply(&write);
            merged.add(write);
        }
        left.extend(now.between(&merged));
        left
    }
}

fn root(chunks: &[Bytes], template: &SnapshotRoot) -> SnapshotRoot {
    let digest = |bytes: &[u8]| Digest(*blake3::hash(bytes).as_bytes());
    let chunks = chunks.iter().map(|chunk| (digest(chunk), chunk.len() as u32)).collect();
    let manifest = Manifest { chunks };
    SnapshotRoot {
        manifest: digest(&manifest.encode()),
        chunks: manifest.chunks.len() as u64,
        bytes: manifest.bytes(),
        ..template.clone()
    }
}

/// A process that lives `writes` steps of the last of these lives.
pub(crate) fn living(path: &Path, lives: &[Life], told: &Told) -> std::process::Command {
    command("lives", path, lives, told)
}

/// A process that checks that the power has left all that was told.
pub(crate) fn checking(path: &Path, lives: &[Life], told: &Told) -> std::process::Command {
    command("finds_what_was_told", path, lives, told)
}

fn command(test: &str, path: &Path, lives: &[Life], told: &Told) -> std::process::Command {
    let mut command = child::command(&format!("power::life::{test}"), path);
    let lives: Vec<String> =
        lives.iter().map(|life| format!("{},{},{}", life.seed, life.writes, life.found)).collect();
    command.env(LIVES, lives.join(" ")).env(TOLD, told.encode());
    command
}

fn lives_of_environment() -> Vec<Life> {
    let text = std::env::var(LIVES).unwrap();
    let life = |text: &str| {
        let numbers: Vec<u64> = text.split(',').map(|number| number.parse().unwrap()).collect();
        Life { seed: numbers[0], writes: numbers[1], found: numbers[2] as usize }
    };
    text.split(' ').map(life).collect()
}

/// In a child: opens the directory and lives, telling what is acknowledged.
#[test]
fn lives() {
    let Some(path) = child::directory() else { return };
    let mut lives = lives_of_environment();
    let last = lives.last_mut().unwrap();
    let writes = std::mem::take(&mut last.writes);
    let mut steps = Steps::of(&lives);
    let mut told = Told { writes: 0, ..Told::decode(&std::env::var(TOLD).unwrap()) };
    let mut member = go_on(&path, &steps.model, &mut told);
    member.bear();
    told.born = true;
    told.say();
    let mut fetching: Option<JoinHandle<()>> = None;
    for _ in 0..writes {
        let step = steps.next();
        if let Some(snapshot) = &step.writes[0].snapshot {
            let (position, stamp) = (snapshot.root.position, snapshot.root.stamp);
            let chunks = step.chunks.into_iter();
            let root =
                member.start.snapshots.store_chunks(position, stamp, membership(), chunks).unwrap();
            assert_eq!(root, snapshot.root);
        }
        let written = member.write_all(step.writes);
        told.writes += 1;
        told.write_sequence = written.write_sequence;
        told.say();
        match step.then {
            Then::Nothing => {}
            Then::Fetch => {
                drop(fetching.take().map(JoinHandle::join));
                let snapshots = member.start.snapshots.clone();
                fetching = Some(std::thread::spawn(move || fetch(&snapshots, told.writes)));
            }
            // Nothing tells that the store is tidy.
            Then::Idle => {
                let (_never, nothing) = channel::<()>();
                nothing.recv_timeout(IDLE).unwrap_err();
            }
            Then::Reopen => {
                drop(fetching.take().map(JoinHandle::join));
                drop(member);
                member = go_on(&path, &steps.model, &mut told);
            }
        }
    }
    drop(fetching.map(JoinHandle::join));
}

fn fetch(snapshots: &Snapshots, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let chunks = (0..60).map(|_| vec![rng.random(); rng.random_range(1..30_000)].into());
    snapshots.store_chunks(Position::default(), GroupTime(0), membership(), chunks).unwrap();
}

/// Without the reserve of space, which promises nothing and takes time to draw.
fn open(path: &Path) -> Result<Member, StoreError> {
    Member::open_with(path, u64::MAX)
}

fn go_on(path: &Path, expected: &Model, told: &mut Told) -> Member {
    let mut member = open(path).unwrap();
    assert!(expected.is(&member.start.recovered), "something else was found");
    member.model = expected.clone();
    told.boot = member.start.state.boot;
    told.write_sequence = member.start.write_sequence;
    told.incarnation = Some(u128::from_le_bytes(member.start.state.incarnation));
    told.say();
    member
}

/// In a child: opens what the power has left, which must be what was told; then goes on with it.
#[test]
fn finds_what_was_told() {
    let Some(path) = child::directory() else { return };
    daemon::panic::install();
    let lives = lives_of_environment();
    let told = Told::decode(&std::env::var(TOLD).unwrap());
    let may_be = Steps::of(&lives).may_be_left();
    let mut member = open(&path).unwrap_or_else(|error| child::end(&error));
    let found = &member.start.recovered;
    let Some(at) = may_be.iter().position(|model| model.is(found)) else {
        let promised = &may_be[0];
        panic!(
            "found {:?}, snapshot {:?}, log from {} to {}; promised {:?}, {:?}, {} to {}",
            found.hard_state,
            found.snapshot.as_ref().map(|root| root.position),
            found.log.base(),
            found.log.last(),
            promised.hard_state,
            promised.snapshot.as_ref().map(|root| root.position),
            promised.base,
            promised.last()
        );
    };
    if let Some(root) = &found.snapshot {
        let loaded = member.start.snapshots.load(root.manifest);
        drop(loaded.unwrap_or_else(|error| child::end(&error)));
    }
    let state = &member.start.state;
    assert!(state.boot > told.boot, "boot {} after {}", state.boot, told.boot);
    let sequence = member.start.write_sequence;
    assert!(sequence >= told.write_sequence, "write {sequence} after {}", told.write_sequence);
    let incarnation = u128::from_le_bytes(state.incarnation);
    assert!(told.incarnation.is_none_or(|told| told == incarnation), "it is another member");
    assert!(state.group.is_some() || !told.born, "the group is forgotten");
    println!("found {at}");

    // It works, and what it then acknowledges is found.
    member.bear();
    let term = member.model.hard_state.term.next();
    let hard_state = Some(raft::HardState { term, vote: Some(NodeId(2)) });
    let id = member.next_id();
    member.write(Write { id, hard_state, entries: vec![], snapshot: None });
    member.append(&[vec![1; 100].into(), vec![2; 10].into()]);
    let model = member.model.clone();
    drop(member);
    let member = open(&path).unwrap_or_else(|error| child::end(&error));
    assert!(model.is(&member.start.recovered), "what came afterwards is lost");
    let last = member.start.recovered.log.entries().last().map(|entry| &entry.payload);
    assert_eq!(last, Some(&Payload::Command(vec![2; 10].into())));
}
