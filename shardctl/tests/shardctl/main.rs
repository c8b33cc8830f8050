//! The controller's state machine: what each command does, and that duplicates, late reports and
//! what makes no sense do nothing. Every command goes through its bytes, and after every command a
//! snapshot is taken and restored.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod configurations;
mod placements;
mod requests;
mod rosters;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use raft::Applied;
use raft::Capture;
use raft::GroupTime;
use raft::Index;
use raft::StateMachine;
use raft::Term;
use shardctl::ShardMachine;
use shardctl::command::Command;
use shardctl::command::Joining;
use shardctl::command::Request;
use shardctl::command::Step;
use shardctl::ids::GroupId;
use shardctl::ids::Identity;
use shardctl::ids::MoveNumber;
use shardctl::ids::RequestId;
use shardctl::ids::ShardId;
use shardctl::outcome::Done;
use shardctl::outcome::Refusal;
use shardctl::placement::Placement;
use shardctl::target::Target;

const SHARDS: u32 = 10;
const SOME: NonZeroU32 = NonZeroU32::new(SHARDS).unwrap();
/// Groups up to this number have reported.
const REPORTED: u32 = 8;

fn group(number: u32) -> GroupId {
    GroupId::new(number).unwrap()
}

fn joining(number: u32) -> Joining {
    Joining { group: group(number), weight: 1, members: vec![format!("kvd-{number}:7300")] }
}

fn join(numbers: &[u32]) -> Request {
    Request::Join(numbers.iter().copied().map(joining).collect())
}

fn leave(numbers: &[u32]) -> Request {
    Request::Leave(numbers.iter().copied().map(group).collect())
}

fn move_to(shard: u32, number: u32) -> Request {
    Request::Move { shard: ShardId(shard), group: group(number) }
}

fn identity(number: u32) -> Identity {
    [number as u8; 32]
}

/// What a group says of itself that has no data.
fn report(number: u32, index: u64) -> Command {
    let (group, identity) = (group(number), identity(number));
    let members = vec![format!("kvd-{number}:7300")];
    Command::Report { group, identity, index, shards: None, members }
}

fn step(number: u32, shard: u32, at: u64) -> Step {
    let (group, identity) = (group(number), identity(number));
    Step { group, identity, shard: ShardId(shard), number: MoveNumber(at) }
}

/// A machine and the log that brought it where it is.
struct Log {
    machine: ShardMachine,
    index: u64,
}

impl Log {
    fn new() -> Self {
        let mut log = Self { machine: ShardMachine::default(), index: 0 };
        for number in 1..=REPORTED {
            log.apply(&report(number, 1)).unwrap();
        }
        log
    }

    fn apply(&mut self, command: &Command) -> Result<Done, Refusal> {
        self.index += 1;
        let at = Applied { index: Index(self.index), term: Term(1), time: GroupTime(self.index) };
        let bytes = command.encode();
        let before = (self.machine.digest(), chunks(&self.machine));
        let done = self.machine.apply(at, &bytes);
        if Command::decode(&bytes).as_ref() == Ok(command) && done.is_err() {
            let only_noted = matches!(command, Command::Request { id: Some(_), .. });
            assert!(only_noted || before == (self.machine.digest(), chunks(&self.machine)));
        }
        check(&self.machine);
        done
    }

    fn ask(&mut self, request: Request) -> Result<Done, Refusal> {
        self.apply(&Command::Request { id: None, shards: SOME, request })
    }

    fn ask_as(&mut self, id: u8, request: Request) -> Result<Done, Refusal> {
        let id = Some(RequestId([id; 16]));
        self.apply(&Command::Request { id, shards: SOME, request })
    }

    /// The number of the configuration that comes of it.
    fn number(&mut self, request: Request) -> u64 {
        self.ask(request).unwrap().number.0
    }

    fn latest(&self) -> Arc<Target> {
        self.machine.latest().unwrap().clone()
    }

    fn loads(&self) -> BTreeMap<u32, usize> {
        let target = self.latest();
        let load =
            |group: GroupId| target.owners.iter().filter(|owner| **owner == Some(group)).count();
        target.weights.keys().map(|&group| (group.0.get(), load(group))).collect()
    }

    fn placement(&self, shard: u32) -> Placement {
        self.machine.placements().get(shard as usize).copied().unwrap_or_default()
    }

    /// Has every move end.
    fn settle(&mut self) {
        for shard in 0..SHARDS {
            while let Placement { owner, last, moving: Some(moving), .. } = self.placement(shard) {
                let step = |group: GroupId| step(group.0.get(), shard, last.0);
                let command = match moving.cancelling {
                    true => Command::Cancelled(step(owner.unwrap_or(moving.to))),
                    false => Command::Settled(step(moving.to)),
                };
                self.apply(&command).unwrap();
            }
        }
    }
}

fn chunks(machine: &ShardMachine) -> Vec<bytes::Bytes> {
    machine.capture().chunks().collect()
}

/// Where numbers go on after a recovery.
const GAP: u64 = raft::RECOVERY_GAP;

/// What holds always, and that a snapshot brings it all back.
fn check(machine: &ShardMachine) {
    assert_eq!(machine.check(), Ok(()));
    let mut restored = machine.empty();
    restored.restore(&mut chunks(machine).into_iter()).unwrap();
    assert_eq!(restored.digest(), machine.digest());
    assert_eq!(chunks(&restored), chunks(machine));
    let numbers: Vec<_> = machine.history().map(|target| target.number.0).collect();
    let follows = |pair: &[u64]| pair[0] + 1 == pair[1] || pair[0] < GAP && pair[1] > GAP;
    assert!(numbers.windows(2).all(follows), "{numbers:?}");
}
