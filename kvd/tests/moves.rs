//! Shards that move between groups while they are written to: the real controller's machine, three real
//! stores, each group one machine without Raft, and everything that may go wrong between them, drawn
//! from a seed: old maps, steps that come twice or much later, copies that break off, leaders that
//! begin anew, machines put back from their snapshots, targets that change in the middle of a move.
//!
//! After every step no shard is served by two groups and none is lost; in the end each is served by
//! whose it is, with all that was written and no more, nothing of it is left elsewhere, and who asks
//! again is told what it was told before.

mod common;

use std::{collections::BTreeMap, num::NonZeroU32};

use bytes::Bytes;
use common::{Driven, chunks};
use kvd::{
    KvMachine, MachineLimits,
    command::{ClientId, Command, Condition, LeaseId, Operation, RequestId, Tenure},
    custody::{Custody, MoveNumber, Phase},
    handoff::Piece,
    outcome::{Answer, Claim, Outcome, Query, Refusal, Response, ShardTime},
    session::SessionLimits,
    step::{Deed, Step, Stepped},
    steward::{Act, Ended, Move, Placement},
};
use raft::{Applied, GroupTime, Index, StateMachine, Term};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use shardctl::{
    ShardMachine,
    command::{Command as Ask, Joining, Request, Step as Report},
    ids::{self, GroupId, ShardId},
};

const SHARDS: u32 = 4;
const GROUPS: usize = 3;
/// How many pieces are taken in at a time.
const PIECES: usize = 2;

/// A group, the map as it saw it last, and its steps that may come once more.
struct Group {
    store: Driven,
    map: Vec<Placement>,
    sent: Vec<Bytes>,
}

struct World {
    rng: StdRng,
    controller: ShardMachine,
    index: u64,
    groups: Vec<Group>,
    /// What each key holds.
    keys: BTreeMap<Vec<u8>, Vec<u8>>,
    sequences: BTreeMap<u32, u64>,
    /// What was executed, and what came of it.
    executed: Vec<(u32, Bytes, Response)>,
    /// The locks that are held, with their leases and tokens.
    locks: BTreeMap<Vec<u8>, (LeaseId, u64)>,
    moves: u64,
    /// Whether steps are lost.
    lossy: bool,
    /// Whether the controller was recovered, of which nothing was lost.
    recovered: bool,
    /// How often a copy began anew, since the source did not keep what it needs.
    restarts: u64,
}

fn group_id(at: usize) -> GroupId {
    GroupId::new(at as u32 + 1).expect("not 0")
}

fn identity(at: usize) -> ids::Identity {
    [at as u8; 32]
}

fn key(number: u32) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let limits = MachineLimits {
            changes_bytes_per_shard_min: 2_000,
            changes_bytes: 2_000,
            held_changes_bytes: 2_500,
            discarded_per_step: 3,
            ..SessionLimits::default().into()
        };
        let group = |_| {
            let store = Driven::around(KvMachine::with_limits(SHARDS, limits), SHARDS);
            let store = Driven { now: rng.random_range(1_000..10_000_000), ..store };
            Group { store, map: vec![Placement::default(); SHARDS as usize], sent: Vec::new() }
        };
        let groups = (0..GROUPS).map(group).collect();
        let (keys, sequences, locks) = Default::default();
        let controller = ShardMachine::default();
        let mut world = Self {
            rng,
            controller,
            index: 0,
            groups,
            keys,
            sequences,
            executed: Vec::new(),
            locks,
            moves: 0,
            lossy: true,
            recovered: false,
            restarts: 0,
        };
        for at in 0..GROUPS {
            let (group, members) = (group_id(at), vec![format!("g{at}:7300")]);
            let report =
                Ask::Report { group, identity: identity(at), index: 1, shards: None, members };
            world.ask(&report).expect("a first report");
        }
        world.configure(Request::Join(vec![joining(0)]));
        world
    }

    fn ask(
        &mut self,
        command: &Ask,
    ) -> Result<shardctl::outcome::Done, shardctl::outcome::Refusal> {
        self.index += 1;
        let at = Applied { index: Index(self.index), term: Term(1), time: GroupTime(0) };
        self.controller.apply(at, &command.encode())
    }

    fn configure(&mut self, request: Request) {
        let shards = NonZeroU32::new(SHARDS).expect("not 0");
        // What makes no sense is refused, as the last group's leave.
        drop(self.ask(&Ask::Request { id: None, shards, request }));
    }

    /// A target, as somebody may ask for.
    fn wish(&mut self) {
        let (at, shard) = (self.rng.random_range(0..GROUPS), self.rng.random_range(0..SHARDS));
        let request = match self.rng.random_range(0..4) {
            0 => Request::Join(vec![joining(at)]),
            1 => Request::Leave(vec![group_id(at)]),
            2 => Request::Move { shard: ShardId(shard), group: group_id(at) },
            _ => Request::Unpin(ShardId(shard)),
        };
        self.configure(request);
    }

    /// A group sees the map as it is.
    fn look(&mut self, at: usize) {
        let map = self.controller.placements().iter().map(|placement| Placement {
            owner: placement.owner.map(|owner| owner.0.get()),
            since: MoveNumber(placement.since.0),
            last: MoveNumber(placement.last.0),
            recovered_at: MoveNumber(placement.recovered_at.0),
            moving: placement
                .moving
                .map(|it| Move { to: it.to.0.get(), cancelling: it.cancelling }),
        });
        self.groups[at].map = map.collect();
    }

    fn custody(&self, at: usize, shard: u32) -> Custody {
        match self.groups[at].store.machine.query(Query::Custody) {
            Answer::Custody(all) => all
                .get(shard as usize)
                .copied()
                .unwrap_or(Custody { settled: MoveNumber(0), phase: Phase::Absent }),
            other => panic!("not custody: {other:?}"),
        }
    }

    fn step(
        &mut self,
        at: usize,
        shard: u32,
        number: MoveNumber,
        deed: Deed<'_>,
    ) -> Result<Stepped, Refusal> {
        let step = Step { shards: SHARDS, shard, number, deed };
        self.groups[at].sent.push(step.encode());
        // Some come only later, to a group that has gone on.
        if self.lossy && self.rng.random_range(0..10) == 0 {
            let custody = self.custody(at, shard);
            return Err(Refusal::NoSuchStep { shard, number, custody });
        }
        self.groups[at].store.step(shard, number, deed)
    }

    /// A group's leader does what is next about a shard, as far as it gets.
    fn work(&mut self, at: usize, shard: u32) {
        let custody = self.custody(at, shard);
        let group = group_id(at).0.get();
        let Some(act) =
            self.groups[at].map.get(shard as usize).and_then(|it| it.act(group, &custody))
        else {
            return;
        };
        match act {
            // One that comes too late is refused, and looked at again.
            Act::Propose(number, deed) => drop(self.step(at, shard, number, deed)),
            Act::Pull { number, from } => self.pull(at, shard, number, from as usize - 1),
            Act::Report(number, ended) => {
                let (group, identity, shard) = (group_id(at), identity(at), ShardId(shard));
                let report = Report { group, identity, shard, number: ids::MoveNumber(number.0) };
                let report = match ended {
                    Ended::Settled => Ask::Settled(report),
                    Ended::Cancelled => Ask::Cancelled(report),
                    Ended::Aborted => Ask::Aborted(report),
                };
                self.moves += u64::from(ended == Ended::Settled);
                drop(self.ask(&report));
            }
        }
    }

    /// Takes in some of a shard; and if all is there that can be while it is served, maybe the rest.
    fn pull(&mut self, to: usize, shard: u32, number: MoveNumber, from: usize) {
        if self.custody(to, shard).phase == Phase::Absent {
            if let Ok(Stepped::Held(base)) = self.step(from, shard, number, Deed::Hold) {
                drop(self.step(to, shard, number, Deed::Begin { base }));
            }
            return;
        }
        if self.copy(to, shard, number, from, PIECES) || self.rng.random_range(0..3) == 0 {
            return;
        }
        let Ok(Stepped::Frozen(frozen)) = self.step(from, shard, number, Deed::Freeze) else {
            return;
        };
        let most = self.rng.random_range(0..20);
        if !self.copy(to, shard, number, from, most) {
            let installed = self.step(to, shard, number, Deed::Install { frozen });
            assert!(!matches!(installed, Err(Refusal::HandoffDiffers { .. })), "{installed:?}");
        }
    }

    /// Whether there may be more.
    fn copy(
        &mut self,
        to: usize,
        shard: u32,
        number: MoveNumber,
        from: usize,
        most: usize,
    ) -> bool {
        let contents = self.groups[to].store.contents(shard);
        let Some(wanted) = contents.wanted() else { return true };
        let source = self.groups[from].store.contents(shard);
        let mut handoff = match source.handoff(wanted, 200) {
            Ok(handoff) => handoff,
            Err(Refusal::Compacted { .. }) => {
                drop(self.step(to, shard, number, Deed::Restart));
                self.restarts += 1;
                return true;
            }
            Err(_) => return true,
        };
        for _ in 0..most {
            let Some(Piece { at, records }) = handoff.next_piece() else { return false };
            let deed = Deed::Import { at, records: &records };
            let imported = self.step(to, shard, number, deed);
            assert!(!matches!(imported, Err(Refusal::BadHandoff { .. })), "{imported:?}");
            if imported.is_err() {
                return true;
            }
        }
        true
    }

    /// A client writes, or takes a lock, wherever its shard is served.
    fn request(&mut self) {
        let number = self.rng.random_range(0..12);
        let (name, lock) = (key(number), [&key(number)[..], b"/lock"].concat());
        let (tenure, owner) = (Tenure::Own { ttl_ms: 3_600_000 }, &b"me"[..]);
        let value = self.rng.random_range(0..1_000_u32).to_string().into_bytes();
        let acquire = self.rng.random_range(0..6) == 0 && !self.locks.contains_key(&lock);
        let operation = if acquire {
            Operation::Acquire { name: &lock, tenure, wait_ms: 0, owner }
        } else {
            match self.rng.random_range(0..3) {
                0 => Operation::Delete { key: &name },
                1 => Operation::Append { key: &name, value: &value },
                _ => {
                    let condition = Condition::Always;
                    Operation::Put { key: &name, value: &value, condition, lease: None }
                }
            }
        };
        let command = Command::new(SHARDS, operation.clone());
        let shard = command.shard().expect("one");
        let serving = (0..GROUPS).find(|at| self.custody(*at, shard).serves());
        let Some(at) = serving else { return };
        let store = &mut self.groups[at].store;
        let Answer::Time(header) = store.machine.query(Query::Time(Bytes::from(match acquire {
            true => lock.clone(),
            false => name.clone(),
        }))) else {
            panic!("its shard is served")
        };
        let sequence = self.sequences.entry(shard).or_default();
        *sequence += 1;
        let (sequence, acknowledged) = (*sequence, sequence.saturating_sub(30));
        let expires = ShardTime(header.time.0 + 200_000);
        let id = RequestId { client: ClientId([7; 16]), sequence, acknowledged, expires };
        let bytes = Command { id: Some(id), ..command }.encode();
        let response = store.apply_bytes(&bytes);
        let outcome = response.result.clone().expect("it is served").outcome;
        self.expect(&operation, &outcome);
        self.executed.push((shard, bytes, response));
    }

    fn expect(&mut self, operation: &Operation<'_>, outcome: &Outcome) {
        match (operation, outcome) {
            (Operation::Put { key, value, .. }, Outcome::Written(_)) => {
                self.keys.insert(key.to_vec(), value.to_vec());
            }
            (Operation::Append { key, value }, Outcome::Appended { old, .. }) => {
                let held = self.keys.entry(key.to_vec()).or_default();
                assert_eq!(held[..], old[..]);
                held.extend_from_slice(value);
            }
            (Operation::Delete { key }, Outcome::Removed { pair, .. }) => {
                assert_eq!(self.keys.remove(*key).expect("it was there")[..], pair.value[..]);
            }
            (Operation::Delete { key }, Outcome::Absent) => {
                assert!(!self.keys.contains_key(*key));
            }
            (Operation::Acquire { name, .. }, Outcome::Held { lease, token, .. }) => {
                self.locks.insert(name.to_vec(), (*lease, token.0));
            }
            other => panic!("{other:?}"),
        }
    }

    /// A client asks again, anybody.
    fn ask_again(&mut self) {
        if self.executed.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..GROUPS);
        // Before its first step a store would take it for one of its own.
        if self.groups[at].store.machine.created().is_none() {
            return;
        }
        let (shard, bytes, first) =
            self.executed[self.rng.random_range(0..self.executed.len())].clone();
        let serves = self.custody(at, shard).serves();
        let again = self.groups[at].store.apply_bytes(&bytes).result;
        match again {
            Ok(answered) if serves => {
                assert!(answered.duplicate, "{answered:?}");
                assert_eq!(answered.outcome, first.result.expect("it was executed").outcome);
            }
            Err(Refusal::Acknowledged) if serves => {}
            Err(Refusal::NotServed { .. }) if !serves => {}
            other => panic!("{other:?} at a group that serves: {serves}"),
        }
    }

    fn put_back(&mut self, at: usize) {
        let store = &mut self.groups[at].store;
        let mut machine = store.machine.empty();
        machine.restore(&mut chunks(&store.machine).into_iter()).expect("its own snapshot");
        assert_eq!(machine.digest(), store.machine.digest());
        assert_eq!(machine.recomputed_digest(), machine.digest());
        assert_eq!(machine.stored_bytes(), machine.recomputed_stored_bytes());
        store.machine = machine;
    }

    /// A step comes once more that was asked for earlier.
    fn come_late(&mut self, at: usize) {
        let Group { sent, store, .. } = &mut self.groups[at];
        if sent.is_empty() {
            return;
        }
        let late = sent[self.rng.random_range(0..sent.len())].clone();
        // Whatever it comes to: what must hold is looked at.
        drop(store.apply_bytes(&late));
    }

    /// What always holds.
    fn check(&self) {
        for shard in 0..SHARDS {
            let phases: Vec<_> = (0..GROUPS).map(|at| self.custody(at, shard)).collect();
            let serving = phases.iter().filter(|custody| custody.serves()).count();
            assert!(serving <= 1, "shard {shard} is served by {serving} groups: {phases:?}");
            let frozen = |custody: &&Custody| matches!(custody.phase, Phase::Frozen { .. });
            let there = serving + phases.iter().filter(frozen).count();
            let made = phases.iter().any(|custody| custody.settled.0 > 0 && custody.serves())
                || self.controller.placements()[shard as usize].owner.is_some();
            assert!(there >= 1 || !made, "shard {shard} is lost: {phases:?}");
        }
    }

    fn act(&mut self) {
        let (at, shard) = (self.rng.random_range(0..GROUPS), self.rng.random_range(0..SHARDS));
        match self.rng.random_range(0..100) {
            0..2 => self.wish(),
            2..20 => self.look(at),
            20..55 => self.work(at, shard),
            55..80 => self.request(),
            80..85 => self.ask_again(),
            85..89 => self.come_late(at),
            89..91 => self.put_back(at),
            // Of what was before two recoveries it knows no more than a person has to find out.
            91 if self.index > 100 && !self.recovered => {
                self.recovered = true;
                self.controller.recover();
            }
            92..95 => {
                self.groups[at].store.now += self.rng.random_range(0..3_000);
                self.groups[at].store.pass();
            }
            _ => {}
        }
        self.check();
    }

    /// Everybody does what there is to do until nothing is left.
    fn settle(&mut self) {
        self.lossy = false;
        for _ in 0..500 {
            for at in 0..GROUPS {
                self.look(at);
                (0..SHARDS).for_each(|shard| self.work(at, shard));
            }
            self.check();
            if self.is_settled() {
                return;
            }
        }
        let custody = |at| (0..SHARDS).map(|it| self.custody(at, it)).collect::<Vec<_>>();
        let all: Vec<_> = (0..GROUPS).map(custody).collect();
        panic!("not settled: {:?} {all:?}", self.controller.placements());
    }

    fn is_settled(&self) -> bool {
        (0..SHARDS).zip(self.controller.placements()).all(|(shard, placement)| {
            let phases = (0..GROUPS).map(|at| (group_id(at), self.custody(at, shard).phase));
            let mut here = phases.filter(|(_, phase)| *phase != Phase::Absent);
            let owner = placement.owner.map(|owner| (owner, Phase::Serving { leaving: None }));
            here.next() == owner && here.next().is_none() && placement.moving.is_none()
        })
    }

    /// What holds when nothing is left to do.
    fn conclude(&mut self) {
        let owner = |world: &Self, name: &[u8]| {
            let shard = proto::shard_of(name, SHARDS);
            let owner = world.controller.placements()[shard as usize].owner;
            owner.expect("somebody has it").0.get() as usize - 1
        };
        for number in 0..12 {
            let name = key(number);
            let held = self.groups[owner(self, &name)].store.get(&name);
            let value = held.map(|pair| pair.value.to_vec());
            assert_eq!(value, self.keys.get(&name).cloned());
        }
        for (name, (lease, token)) in &self.locks {
            match self.groups[owner(self, name)].store.claim(name, *lease) {
                Claim::Held { token: held, .. } => assert_eq!(held.0, *token),
                other => panic!("the lock is {other:?}"),
            }
        }
        for at in 0..GROUPS {
            let machine = &self.groups[at].store.machine;
            assert_eq!(machine.digest(), machine.recomputed_digest());
            let id = Some(group_id(at));
            if self.controller.placements().iter().all(|placement| placement.owner != id) {
                assert_eq!(machine.stored_bytes(), 0, "something is left");
                assert_eq!(machine.session_rows(), 0, "something is left");
            }
        }
    }
}

fn joining(at: usize) -> Joining {
    Joining { group: group_id(at), weight: 1, members: Vec::new() }
}

#[test]
fn shards_move_while_they_are_written_to() {
    let (mut moves, mut restarts, mut requests) = (0, 0, 0);
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..1_000 {
            world.act();
        }
        world.settle();
        world.conclude();
        moves += world.moves;
        restarts += world.restarts;
        requests += world.executed.len();
    }
    let figures = format!("{moves} moves, {restarts} begun anew, {requests} requests");
    assert!(moves > 2_000 && restarts > 20 && requests > 20_000, "{figures}");
    println!("{figures}");
}
