//! The controller's state machine: what each command does, and that duplicates, late reports and
//! what makes no sense do nothing. Every command goes through its bytes, and after every command a
//! snapshot is taken and restored.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{collections::BTreeMap, sync::Arc};

use raft::{Applied, Capture, GroupTime, Index, RECOVERY_GAP, StateMachine, Term};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use shardctl::{
    ShardMachine,
    command::{Command, Joining, Request, Step},
    ids::{GroupId, Number, RequestId, ShardId},
    limits::{
        ADDRESS_BYTES_MAX, GROUPS_MAX, HISTORY_MAX, MEMBERS_MAX, REQUESTS_KEPT_MAX, SHARDS_MAX,
        WEIGHT_MAX,
    },
    machine::{Done, Refusal, Reported},
    placement::{Move, Placement},
    target::Target,
};

const SHARDS: u32 = 10;

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

/// A machine and the log that brought it where it is.
struct Log {
    machine: ShardMachine,
    index: u64,
}

impl Log {
    fn new() -> Self {
        Self { machine: ShardMachine::new(SHARDS), index: 0 }
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
        self.apply(&Command::Request { id: None, shards: SHARDS, request })
    }

    fn ask_as(&mut self, id: u8, request: Request) -> Result<Done, Refusal> {
        let id = Some(RequestId([id; 16]));
        self.apply(&Command::Request { id, shards: SHARDS, request })
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
        self.machine.placements()[shard as usize]
    }

    /// Has every move end.
    fn settle(&mut self) {
        for shard in 0..SHARDS {
            while let Some(Move { to, number, cancelling }) = self.placement(shard).moving {
                let (shard, step) =
                    (ShardId(shard), |group| Step { group, shard: ShardId(shard), number });
                let owner = self.placement(shard.0).owner;
                let command = match owner {
                    Some(owner) if cancelling => Command::Cancelled(step(owner)),
                    _ => Command::Settled(step(to)),
                };
                self.apply(&command).unwrap();
            }
        }
    }
}

fn chunks(machine: &ShardMachine) -> Vec<bytes::Bytes> {
    machine.capture().chunks().collect()
}

/// What holds always, and that a snapshot brings it all back.
fn check(machine: &ShardMachine) {
    let mut restored = machine.empty();
    restored.restore(&mut chunks(machine).into_iter()).unwrap();
    assert_eq!(restored.digest(), machine.digest());
    assert_eq!(chunks(&restored), chunks(machine));
    let Some(latest) = machine.latest() else { return };
    let mut before: Option<&Arc<Target>> = None;
    for target in machine.history() {
        assert!(before.is_none_or(|before| before.number.0 + 1 == target.number.0));
        before = Some(target);
        for owner in &*target.owners {
            match owner {
                Some(owner) => assert!(target.weights.contains_key(owner)),
                None => assert!(target.weights.is_empty()),
            }
        }
    }
    for (shard, placement) in (0..).map(ShardId).zip(machine.placements()) {
        assert!(placement.since <= latest.number);
        let wanted = latest.owner(shard);
        match placement.moving {
            None => assert!(wanted.is_none() || placement.owner == wanted),
            Some(Move { to, number, cancelling }) => {
                assert!(number > placement.since && number <= latest.number);
                assert_ne!(placement.owner, Some(to));
                assert!(
                    cancelling || placement.owner.is_none() || wanted.is_none_or(|it| it == to)
                );
            }
        }
        let groups = placement.owner.into_iter().chain(placement.moving.map(|moving| moving.to));
        for group in groups {
            assert!(machine.rosters().contains_key(&group));
        }
    }
}

#[test]
fn leave_join() {
    let mut log = Log::new();
    assert!(log.machine.latest().is_none());
    assert_eq!(log.number(join(&[1])), 1);
    assert_eq!(log.loads(), BTreeMap::from([(1, 10)]));
    assert_eq!(log.number(join(&[2])), 2);
    assert_eq!(log.loads(), BTreeMap::from([(1, 5), (2, 5)]));
    let members = |number| log.machine.rosters()[&group(number)].members.clone();
    assert_eq!((members(1), members(2)), (vec!["kvd-1:7300".into()], vec!["kvd-2:7300".into()]));
    assert_eq!(log.number(leave(&[1])), 3);
    assert_eq!(log.loads(), BTreeMap::from([(2, 10)]));
    assert_eq!(log.number(leave(&[2])), 4);
    assert!(log.latest().owners.iter().all(Option::is_none));
}

#[test]
fn multi_leave_join() {
    let mut log = Log::new();
    assert_eq!(log.number(join(&[1, 2, 3])), 1);
    assert_eq!(log.loads(), BTreeMap::from([(1, 4), (2, 3), (3, 3)]));
    assert_eq!(log.number(leave(&[1, 3])), 2);
    assert_eq!(log.loads(), BTreeMap::from([(2, 10)]));
}

#[test]
fn historical_configurations_stay_as_they_were() {
    let mut log = Log::new();
    let mut known = Vec::new();
    for number in 1..=6 {
        log.number(join(&[number]));
        known.push(log.latest());
    }
    for (number, known) in (1..).map(Number).zip(&known) {
        assert_eq!(log.machine.configuration(number), Some(known));
    }
    assert_eq!(log.machine.configuration(Number(0)).unwrap().owners, vec![None; 10].into());
    assert_eq!(log.machine.configuration(Number(7)), None);
}

#[test]
fn move_shard() {
    let mut log = Log::new();
    log.number(join(&[1, 2]));
    let first = log.latest();
    // Each shard to the other group, one by one: all of that stays.
    for shard in 0..SHARDS {
        let other = if first.owner(ShardId(shard)) == Some(group(1)) { 2 } else { 1 };
        log.number(move_to(shard, other));
        let target = log.latest();
        assert_eq!(target.number.0, u64::from(shard) + 2);
        assert_eq!(target.owner(ShardId(shard)), Some(group(other)));
        for (pinned, owner) in &*target.pins {
            assert_eq!(target.owner(*pinned), Some(*owner));
        }
    }
    // What is asked for again changes nothing.
    let number = log.latest().number;
    let owner = log.latest().owner(ShardId(0)).unwrap().0.get();
    assert_eq!(log.number(move_to(0, owner)), number.0);
    // Pinned shards stay also when others come, until they are unpinned.
    log.number(join(&[3]));
    assert_eq!(log.loads(), BTreeMap::from([(1, 5), (2, 5), (3, 0)]));
    for shard in 0..SHARDS {
        log.ask(Request::Unpin(ShardId(shard))).unwrap();
    }
    assert_eq!(log.loads(), BTreeMap::from([(1, 4), (2, 3), (3, 3)]));
}

#[test]
fn a_group_that_leaves_takes_its_pins_along() {
    let mut log = Log::new();
    log.number(join(&[1, 2]));
    log.number(move_to(0, 2));
    log.number(leave(&[2]));
    log.number(join(&[2]));
    assert!(log.latest().pins.is_empty());
}

#[test]
fn minimal_transfer_join() {
    let mut log = Log::new();
    log.number(join(&[1, 2, 3, 4, 5]));
    let before = log.latest();
    log.number(join(&[6, 7]));
    for shard in (0..SHARDS).map(ShardId) {
        let (was, is) = (before.owner(shard), log.latest().owner(shard));
        assert!(was == is || [6, 7].map(group).contains(&is.unwrap()), "{shard}: {was:?}, {is:?}");
    }
}

#[test]
fn minimal_transfer_leave() {
    let mut log = Log::new();
    log.number(join(&[1, 2, 3, 4, 5]));
    let before = log.latest();
    log.number(leave(&[2, 4]));
    for shard in (0..SHARDS).map(ShardId) {
        let (was, is) = (before.owner(shard), log.latest().owner(shard));
        assert!(was == is || [2, 4].map(group).contains(&was.unwrap()), "{shard}: {was:?}, {is:?}");
    }
}

#[test]
fn minimal_again() {
    let mut log = Log::new();
    log.number(join(&[1, 2]));
    let before = log.latest();
    log.number(join(&[3]));
    let moved = |one: &Target, other: &Target| {
        one.owners.iter().zip(&*other.owners).filter(|(one, other)| one != other).count()
    };
    assert!(moved(&before, &log.latest()) <= SHARDS as usize / 3 + 1);
    let before = log.latest();
    log.number(leave(&[3]));
    assert!(moved(&before, &log.latest()) <= SHARDS as usize / 3 + 1);
}

#[test]
fn weights_say_how_much_each_group_has() {
    let mut log = Log::new();
    log.number(join(&[1]));
    let heavy = Joining { weight: 4, ..joining(2) };
    log.number(Request::Join(vec![heavy]));
    assert_eq!(log.loads(), BTreeMap::from([(1, 2), (2, 8)]));
    log.number(Request::Weigh { group: group(2), weight: 1 });
    assert_eq!(log.loads(), BTreeMap::from([(1, 5), (2, 5)]));
    log.number(Request::Weigh { group: group(1), weight: 0 });
    assert_eq!(log.loads(), BTreeMap::from([(1, 0), (2, 10)]));
    let nobody = log.ask(Request::Weigh { group: group(2), weight: 0 });
    assert_eq!(nobody, Err(Refusal::NoWeight));
    assert_eq!(log.ask(leave(&[2])), Err(Refusal::NoWeight));
    assert_eq!(log.ask(join(&[2])).unwrap().number, log.latest().number, "as it is already");
    let otherwise = log.ask(join(&[1]));
    assert_eq!(otherwise, Err(Refusal::Joined { group: group(1), weight: 0 }));
}

#[test]
fn a_request_that_comes_again_makes_no_other_configuration() {
    let mut log = Log::new();
    let done = |number, duplicate| Ok(Done { number: Number(number), duplicate });
    assert_eq!(log.ask_as(1, join(&[1])), done(1, false));
    assert_eq!(log.ask_as(2, join(&[2])), done(2, false));
    assert_eq!(log.ask_as(1, join(&[1])), done(1, true));
    assert_eq!(log.ask_as(3, leave(&[1])), done(3, false));
    // It is late: group 1 has gone again since.
    assert_eq!(log.ask_as(1, join(&[1])), done(1, true));
    assert_eq!(log.latest().number, Number(3));
    // What was refused stays so.
    assert_eq!(log.ask_as(4, leave(&[9])), Err(Refusal::NotJoined(group(9))));
    log.number(join(&[9]));
    assert_eq!(log.ask_as(4, leave(&[9])), Err(Refusal::RefusedBefore));
    assert!(log.latest().weights.contains_key(&group(9)));
}

#[test]
fn the_oldest_requests_are_forgotten() {
    let mut machine = ShardMachine::new(SHARDS);
    let mut ask = |number: usize, request: Request| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let command = Command::Request { id: Some(RequestId(id)), shards: SHARDS, request };
        machine.apply(Applied::default(), &command.encode())
    };
    ask(0, join(&[1])).unwrap();
    for number in 1..REQUESTS_KEPT_MAX {
        assert!(!ask(number, join(&[1])).unwrap().duplicate);
    }
    assert!(ask(0, join(&[1])).unwrap().duplicate);
    assert!(!ask(REQUESTS_KEPT_MAX, join(&[1])).unwrap().duplicate);
    assert!(!ask(0, join(&[1])).unwrap().duplicate);
    assert!(ask(REQUESTS_KEPT_MAX, join(&[1])).unwrap().duplicate);
}

#[test]
fn the_oldest_configurations_are_forgotten() {
    let mut machine = ShardMachine::new(SHARDS);
    let mut ask = |request: Request| {
        let command = Command::Request { id: None, shards: SHARDS, request };
        machine.apply(Applied::default(), &command.encode()).unwrap();
    };
    ask(join(&[1, 2]));
    for _ in 0..HISTORY_MAX / 2 {
        ask(leave(&[2]));
        ask(join(&[2]));
    }
    let numbers: Vec<_> = machine.history().map(|target| target.number.0).collect();
    assert_eq!(numbers.len(), HISTORY_MAX);
    assert_eq!((numbers[0], *numbers.last().unwrap()), (2, HISTORY_MAX as u64 + 1));
    assert_eq!(machine.configuration(Number(1)), None);
    check(&machine);
}

#[test]
fn shards_are_made_move_and_settle_one_move_at_a_time() {
    let mut log = Log::new();
    log.number(join(&[1]));
    let made = Move { to: group(1), number: Number(1), cancelling: false };
    assert_eq!(log.placement(3), Placement { moving: Some(made), ..Placement::default() });
    log.settle();
    log.number(join(&[2]));
    let gone = (0..SHARDS).find(|shard| log.placement(*shard).moving.is_some()).unwrap();
    let shard = ShardId(gone);
    let step = |number: u32, at| Step { group: group(number), shard, number: Number(at) };
    // Another wish while it moves: nothing begins, its owner shall end the move.
    log.number(join(&[3]));
    log.number(move_to(gone, 3));
    let moving = log.placement(gone).moving.unwrap();
    assert_eq!((moving.to, moving.number, moving.cancelling), (group(2), Number(2), true));
    // Reports that speak of something else change nothing.
    for stale in [step(2, 1), step(2, 3), step(1, 2), step(3, 4)] {
        assert_eq!(log.apply(&Command::Settled(stale)), Err(Refusal::Stale));
    }
    for stale in [step(2, 2), step(1, 1), step(1, 4)] {
        assert_eq!(log.apply(&Command::Cancelled(stale)), Err(Refusal::Stale));
    }
    // It ends: the next begins, under the number of the latest configuration.
    log.apply(&Command::Cancelled(step(1, 2))).unwrap();
    let moving = log.placement(gone).moving.unwrap();
    assert_eq!((moving.to, moving.number, moving.cancelling), (group(3), Number(4), false));
    assert_eq!(log.apply(&Command::Settled(step(2, 2))), Err(Refusal::Stale), "it was ended");
    log.apply(&Command::Settled(step(3, 4))).unwrap();
    log.apply(&Command::Settled(step(3, 4))).unwrap();
    let there = Placement { owner: Some(group(3)), since: Number(4), moving: None };
    assert_eq!(log.placement(gone), there);
    let nowhere = Step { group: group(3), shard: ShardId(SHARDS), number: Number(4) };
    let refused = log.apply(&Command::Settled(nowhere));
    assert_eq!(refused, Err(Refusal::NoShard { shard: ShardId(SHARDS), last: SHARDS - 1 }));
}

#[test]
fn a_move_that_was_not_ended_in_time_is_followed_by_the_next() {
    let mut log = Log::new();
    log.number(join(&[1]));
    log.settle();
    log.number(move_to(0, 1));
    log.number(join(&[2]));
    log.number(move_to(0, 2));
    log.number(move_to(0, 1));
    let step = Step { group: group(2), shard: ShardId(0), number: Number(4) };
    assert!(log.placement(0).moving.unwrap().cancelling);
    log.apply(&Command::Settled(step)).unwrap();
    let back = Move { to: group(1), number: Number(5), cancelling: false };
    let there = Placement { owner: Some(group(2)), since: Number(4), moving: Some(back) };
    assert_eq!(log.placement(0), there);
}

#[test]
fn what_nobody_shall_have_stays_where_it_is() {
    let mut log = Log::new();
    log.number(join(&[1]));
    log.settle();
    log.number(leave(&[1]));
    for shard in 0..SHARDS {
        let there = Placement { owner: Some(group(1)), since: Number(1), moving: None };
        assert_eq!(log.placement(shard), there);
    }
    log.number(join(&[2]));
    assert!(log.placement(0).moving.is_some_and(|moving| moving.to == group(2)));
}

#[test]
fn a_group_is_who_it_says() {
    let mut log = Log::new();
    let report = |identity: u8, index: u64, member: &str| Command::Report {
        group: group(1),
        identity: [identity; 32],
        index,
        members: vec![member.to_owned()],
    };
    let unknown = Joining { members: Vec::new(), ..joining(1) };
    let without = Request::Join(vec![unknown]);
    assert_eq!(log.ask(without.clone()), Err(Refusal::Unknown(group(1))));
    log.apply(&report(7, 5, "a:1")).unwrap();
    log.ask(without).unwrap();
    // What it says itself counts more than what is said of it.
    log.number(join(&[1]));
    let roster = |log: &Log| log.machine.rosters()[&group(1)].clone();
    assert_eq!(roster(&log).members, ["a:1"]);
    assert_eq!(log.apply(&report(7, 5, "b:1")), Err(Refusal::Stale));
    assert_eq!(log.apply(&report(8, 6, "b:1")), Err(Refusal::OtherIdentity(group(1))));
    log.apply(&report(7, 6, "b:1")).unwrap();
    assert_eq!(roster(&log).members, ["b:1"]);
    assert_eq!(roster(&log).reported, Some(Reported { identity: [7; 32], index: 6 }));
}

#[test]
fn a_group_with_data_is_adopted_at_the_beginning_only() {
    let mut log = Log::new();
    assert_eq!(log.ask(Request::Adopt(group(4))), Err(Refusal::Unknown(group(4))));
    let members = vec!["a:1".to_owned()];
    let report = Command::Report { group: group(4), identity: [1; 32], index: 1, members };
    log.apply(&report).unwrap();
    assert_eq!(log.number(Request::Adopt(group(4))), 1);
    let there = Placement { owner: Some(group(4)), since: Number(1), moving: None };
    assert!(log.machine.placements().iter().all(|placement| *placement == there));
    assert_eq!(log.ask(Request::Adopt(group(4))), Err(Refusal::NotEmpty));
    log.number(join(&[5]));
    assert_eq!(log.loads(), BTreeMap::from([(4, 5), (5, 5)]));
}

#[test]
fn what_is_over_a_limit_is_refused_by_name() {
    let mut log = Log::new();
    let mut refused = |request: Request| match log.ask(request) {
        Err(Refusal::Limit { name, found, limit }) => (name, found, limit),
        other => panic!("{other:?}"),
    };
    let over = |limit: usize| (limit as u64 + 1, limit as u64);
    let heavy = Joining { weight: WEIGHT_MAX + 1, ..joining(1) };
    let (found, limit) = over(WEIGHT_MAX as usize);
    assert_eq!(refused(Request::Join(vec![heavy])), ("weight_max", found, limit));
    let all = |count: u32| (1..=count).collect::<Vec<_>>();
    // A list that is longer does not even decode.
    log.number(join(&all(GROUPS_MAX as u32)));
    let (found, limit) = over(GROUPS_MAX);
    let more = log.ask(join(&[GROUPS_MAX as u32 + 1]));
    assert_eq!(more, Err(Refusal::Limit { name: "groups_max", found, limit }));

    for (members, bytes) in [(MEMBERS_MAX + 1, 1), (1, ADDRESS_BYTES_MAX + 1), (1, 0)] {
        let members = vec!["a".repeat(bytes); members];
        let request = Request::Join(vec![Joining { members, ..joining(1) }]);
        assert!(matches!(log.ask(request), Err(Refusal::Bad(_))));
    }
    for shards in [SHARDS_MAX + 1, u32::MAX] {
        let mut machine = ShardMachine::new(1);
        let command = Command::Request { id: None, shards, request: join(&[1]) };
        let refused = machine.apply(Applied::default(), &command.encode());
        let (found, limit) = (shards.into(), SHARDS_MAX.into());
        assert_eq!(refused, Err(Refusal::Limit { name: "shards_max", found, limit }));
        check(&machine);
    }
}

#[test]
fn a_group_without_shards_makes_room_for_another() {
    let mut log = Log::new();
    let report = |number: u32| Command::Report {
        group: group(number),
        identity: [0; 32],
        index: 1,
        members: Vec::new(),
    };
    log.number(join(&[7]));
    for number in 1..=GROUPS_MAX as u32 {
        log.machine.apply(Applied::default(), &report(number).encode()).unwrap();
    }
    log.apply(&report(5_000)).unwrap();
    let known = log.machine.rosters();
    assert_eq!(known.len(), GROUPS_MAX);
    assert!(!known.contains_key(&group(1)) && known.contains_key(&group(7)));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut log = Log::new();
    assert_eq!(log.ask(join(&[])), Err(Refusal::NoGroups));
    assert_eq!(log.ask(join(&[1, 2, 1])), Err(Refusal::Twice(group(1))));
    assert!(log.machine.latest().is_none(), "what is refused fixes nothing");
    log.number(join(&[1]));
    let other = Command::Request { id: None, shards: 11, request: join(&[2]) };
    let fixed = Refusal::OtherShards { created: SHARDS, proposed: 11 };
    assert_eq!(log.apply(&other), Err(fixed));
    let no_shard = Refusal::NoShard { shard: ShardId(SHARDS), last: SHARDS - 1 };
    assert_eq!(log.ask(move_to(SHARDS, 1)), Err(no_shard.clone()));
    assert_eq!(log.ask(Request::Unpin(ShardId(SHARDS))), Err(no_shard));
    for request in
        [leave(&[2]), leave(&[1, 2]), move_to(0, 2), Request::Weigh { group: group(2), weight: 1 }]
    {
        assert_eq!(log.ask(request), Err(Refusal::NotJoined(group(2))));
    }
    assert_eq!(log.latest().number, Number(1));
}

#[test]
fn a_plan_is_what_comes_and_changes_nothing() {
    let mut log = Log::new();
    log.number(join(&[1, 2]));
    let before = log.machine.digest();
    let planned = log.machine.plan(SHARDS, &join(&[3])).unwrap();
    assert_eq!(log.machine.digest(), before);
    log.number(join(&[3]));
    assert_eq!(planned.latest(), log.machine.latest());
    assert!(log.machine.plan(SHARDS, &leave(&[9])).is_err());
}

#[test]
fn a_recovered_controller_gives_no_number_twice() {
    let mut machine = ShardMachine::new(SHARDS);
    let ask = |machine: &mut ShardMachine, request: Request| {
        let command = Command::Request { id: None, shards: SHARDS, request };
        machine.apply(Applied::default(), &command.encode()).unwrap().number.0
    };
    assert_eq!(ask(&mut machine, join(&[1])), 1);
    machine.recover();
    assert_eq!(ask(&mut machine, join(&[2])), RECOVERY_GAP + 2);
}

#[test]
fn a_snapshot_that_is_cut_or_changed_is_refused_or_another_state() {
    let mut log = Log::new();
    log.number(join(&[1, 2, 3]));
    log.settle();
    log.ask_as(1, move_to(0, 3)).unwrap();
    log.number(leave(&[1]));
    let all: Vec<u8> = chunks(&log.machine).concat();
    for length in 0..all.len() {
        let cut = bytes::Bytes::copy_from_slice(&all[..length]);
        let mut machine = ShardMachine::new(SHARDS);
        if machine.restore(&mut [cut].into_iter()).is_ok() {
            assert_ne!(machine.digest(), log.machine.digest());
        }
    }
    let mut rng = StdRng::seed_from_u64(3);
    for at in 0..all.len() {
        let mut changed = all.clone();
        changed[at] ^= 1 << rng.random_range(0..8);
        let mut machine = ShardMachine::new(SHARDS);
        if machine.restore(&mut [changed.into()].into_iter()).is_ok() {
            assert_ne!(machine.digest(), log.machine.digest(), "byte {at}");
        }
    }
}

#[test]
fn whatever_comes_invariants_hold_and_all_moves_end_where_they_shall() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut log = Log::new();
        for _ in 0..300 {
            let one = rng.random_range(1..=5);
            let command = match rng.random_range(0..10) {
                0 => join(&[one]),
                1 => leave(&[one]),
                2 => move_to(rng.random_range(0..SHARDS), one),
                3 => Request::Unpin(ShardId(rng.random_range(0..SHARDS))),
                4 => Request::Weigh { group: group(one), weight: rng.random_range(0..3) },
                _ => {
                    let placements = log.machine.placements();
                    let moving: Vec<_> = (0..)
                        .map(ShardId)
                        .zip(placements)
                        .filter_map(|(shard, it)| Some((shard, it.owner, it.moving?)))
                        .collect();
                    let Some(&(shard, owner, moving)) = moving.choose(&mut rng) else { continue };
                    let number = moving.number;
                    let command = match owner {
                        Some(group) if rng.random_range(0..2) == 0 => {
                            Command::Cancelled(Step { group, shard, number })
                        }
                        _ => Command::Settled(Step { group: moving.to, shard, number }),
                    };
                    let done = log.apply(&command);
                    assert!(done.is_ok() || !moving.cancelling || done == Err(Refusal::Stale));
                    continue;
                }
            };
            // It may be refused.
            let _ = log.ask(command);
        }
        if log.machine.latest().is_none_or(|target| target.weights.is_empty()) {
            log.number(join(&[1]));
        }
        log.settle();
        let latest = log.latest();
        for (shard, placement) in (0..).map(ShardId).zip(log.machine.placements()) {
            assert_eq!(placement.owner, latest.owner(shard), "seed {seed}, shard {shard}");
        }
    }
}
