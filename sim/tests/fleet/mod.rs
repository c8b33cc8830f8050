//! A shard controller and groups between which shards move, as scripts see them: who joins and leaves,
//! who is down, and what clerks have written.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::{collections::BTreeMap, num::NonZeroU32};

use bytes::Bytes;
use flotilla_sim::{
    GroupId, KvMix, Mix, Violation, Wish, Workload, World,
    application::KvSettings,
    operation::{Done, OperationName, Verdict},
};
use kvd::command::{Command, Operation};
use raft::{Config, NodeId};
use shardctl::{
    command::{Joining, Request},
    ids::{self, ShardId},
};

use crate::depth::{clerks_scenario, expect};

pub(crate) const SECOND_US: u64 = 1_000_000;
/// As many as the labs have.
pub(crate) const SHARDS: u32 = 10;
/// Members of each group.
pub(crate) const MEMBERS: u64 = 3;
/// A clerk that no workload has.
pub(crate) const CLERK: u64 = 100;
/// How long moves take at most when everybody is up.
const MOVES_US_MAX: u64 = 30 * SECOND_US;
/// The groups, by the numbers under which they join.
pub(crate) const ONE: u32 = 2;
pub(crate) const TWO: u32 = 3;
pub(crate) const THREE: u32 = 4;

/// What a world is made of.
pub(crate) struct Fleet {
    groups: usize,
    clerks: u64,
    workload: Workload,
    /// How much is kept of what changes in a shard that is copied.
    held_bytes: u64,
    mix: Mix,
}

impl Fleet {
    /// So many groups, a network as it should be, and no clerks but those of scripts.
    pub(crate) fn of(groups: usize) -> Self {
        let (workload, held_bytes) = (Workload::labs(), 1_000_000);
        Self { groups, clerks: 0, workload, held_bytes, mix: Mix::calm() }
    }

    /// Clerks that do things by themselves.
    pub(crate) fn with_clerks(self, clerks: u64, workload: Workload) -> Self {
        Self { clerks, workload, ..self }
    }

    /// The labs' unreliable network, with old maps and messages that come again.
    pub(crate) fn unreliable(self) -> Self {
        let (config, map_us_max) = (self.mix.config, 1_000_000);
        let (duplicate_per_mille, replay_us_max) = (50, 500_000);
        let mix =
            Mix { config, map_us_max, duplicate_per_mille, replay_us_max, ..Mix::unreliable() };
        Self { mix, ..self }
    }

    /// The same in another world.
    pub(crate) fn with_mix(self, change: impl FnOnce(Mix) -> Mix) -> Self {
        Self { mix: change(self.mix), ..self }
    }

    /// Of changes so little is kept that copies begin anew.
    pub(crate) fn forgetful(self) -> Self {
        Self { held_bytes: 500, ..self }
    }

    /// A snapshot about every so many bytes of log, and hardly any log before it.
    pub(crate) fn with_snapshots(self, log_bytes: u64) -> Self {
        let config = Config {
            snapshot_log_bytes_min: log_bytes,
            retained_bytes: 0,
            retained_bytes_max: 0,
            ..self.mix.config
        };
        Self { mix: Mix { config, ..self.mix }, ..self }
    }

    /// Runs a scenario: the first group has joined when it begins.
    pub(crate) fn run(
        self,
        name: &str,
        script: impl Fn(&mut World, &mut Held) -> Result<(), Violation>,
    ) {
        let settings = KvSettings {
            shards: SHARDS,
            held_changes_bytes: self.held_bytes,
            discarded_per_step: 3,
            ..KvSettings::default()
        };
        let mix = Mix {
            clients: self.clerks,
            think_us_max: 10_000,
            kv: Some(KvMix {
                settings,
                workload: self.workload,
                attempt_us: SECOND_US / 5,
                ..KvMix::calm()
            }),
            controller: NonZeroU32::new(SHARDS),
            further_groups: vec![MEMBERS; self.groups],
            ..self.mix
        };
        clerks_scenario(name, MEMBERS, &mix, |world| {
            join(world, &[ONE])?;
            arrived(world)?;
            script(world, &mut Held::default())
        });
    }
}

pub(crate) fn id(number: u32) -> ids::GroupId {
    ids::GroupId::new(number).expect("groups count from 1")
}

/// Asks for something, which must be done.
pub(crate) fn done(world: &mut World, request: &Request) -> Result<u64, Violation> {
    match world.configure(request.clone())? {
        Ok(done) => Ok(done.number.0),
        Err(refusal) => expect(false, format!("{request:?}: {refusal}")).map(|()| 0),
    }
}

pub(crate) fn joining(numbers: &[u32]) -> Request {
    let joining = |&number: &u32| Joining {
        group: id(number),
        weight: 1,
        members: vec![format!("kvd-{number}:7300")],
    };
    Request::Join(numbers.iter().map(joining).collect())
}

pub(crate) fn leaving(numbers: &[u32]) -> Request {
    Request::Leave(numbers.iter().copied().map(id).collect())
}

pub(crate) fn join(world: &mut World, numbers: &[u32]) -> Result<u64, Violation> {
    done(world, &joining(numbers))
}

pub(crate) fn leave(world: &mut World, numbers: &[u32]) -> Result<u64, Violation> {
    done(world, &leaving(numbers))
}

/// A group comes or goes.
pub(crate) fn change(world: &mut World, group: u32, is_join: bool) -> Result<u64, Violation> {
    if is_join { join(world, &[group]) } else { leave(world, &[group]) }
}

pub(crate) fn pin(world: &mut World, shard: u32, group: u32) -> Result<u64, Violation> {
    done(world, &Request::Move { shard: ShardId(shard), group: id(group) })
}

/// Waits until every shard is where it shall be.
pub(crate) fn arrived(world: &mut World) -> Result<(), Violation> {
    world.run_until(MOVES_US_MAX, |world| world.moves_are_over().is_ok())?;
    world.moves_are_over()
}

/// Scripts speak of a group for as long as this takes.
fn at<T>(world: &mut World, group: u32, act: impl FnOnce(&mut World) -> T) -> T {
    world.speak_of(GroupId(group.into()));
    let come = act(world);
    world.speak_of(GroupId::FIRST);
    come
}

/// All members of a group go down.
pub(crate) fn stop(world: &mut World, group: u32) -> Result<(), Violation> {
    at(world, group, World::stop_all)
}

/// They come back.
pub(crate) fn start(world: &mut World, group: u32) -> Result<(), Violation> {
    at(world, group, World::start_all)
}

/// All of these go down, and come back.
pub(crate) fn restart(world: &mut World, groups: &[u32]) -> Result<(), Violation> {
    groups.iter().try_for_each(|&group| stop(world, group))?;
    world.run_for(SECOND_US / 5)?;
    groups.iter().try_for_each(|&group| start(world, group))
}

/// One member of a group goes down.
pub(crate) fn kill(world: &mut World, group: u32, node: u64) -> Result<(), Violation> {
    at(world, group, |world| world.kill(NodeId(node)))
}

/// It comes back.
pub(crate) fn revive(world: &mut World, group: u32, node: u64) -> Result<(), Violation> {
    at(world, group, |world| world.restart(NodeId(node)))
}

/// Who leads a group.
pub(crate) fn leader(world: &mut World, group: u32) -> Result<NodeId, Violation> {
    at(world, group, World::expect_leader)
}

/// Something of each member of a group.
pub(crate) fn of_members<T>(
    world: &mut World,
    group: u32,
    of: impl Fn(&flotilla_sim::member::Member) -> T,
) -> Vec<T> {
    at(world, group, |world| world.members().map(&of).collect())
}

/// What the store of a member has.
pub(crate) fn stored_bytes(member: &flotilla_sim::member::Member) -> u64 {
    let store = member.replica().and_then(|replica| replica.machine().application().kv());
    store.map_or(0, kvd::KvMachine::stored_bytes)
}

/// The shard of a key.
pub(crate) fn shard_of(key: &str) -> u32 {
    let named = Command::new(SHARDS, Operation::Delete { key: key.as_bytes() });
    named.shard().expect("every key has a shard")
}

/// So many keys of each shard.
pub(crate) fn keys(per_shard: usize) -> Vec<String> {
    let mut left = vec![per_shard; SHARDS as usize];
    let named = (0..).map(|number| format!("key{number}"));
    let wanted = named.filter(|key| {
        let left = &mut left[shard_of(key) as usize];
        let wanted = *left > 0;
        *left -= usize::from(wanted);
        wanted
    });
    wanted.take(per_shard * SHARDS as usize).collect()
}

/// The keys that a group shall have by the latest configuration, and the others.
pub(crate) fn owned_by(
    world: &mut World,
    group: u32,
    keys: &[String],
) -> Result<(Vec<String>, Vec<String>), Violation> {
    let target = world.configuration(None)?;
    let owner =
        |key: &String| target.as_ref().and_then(|target| target.owner(ShardId(shard_of(key))));
    Ok(keys.iter().cloned().partition(|key| owner(key) == Some(id(group))))
}

/// The keys that a group has by what some member of the controller knows, and the others.
pub(crate) fn placed_at(world: &World, group: u32, keys: &[String]) -> (Vec<String>, Vec<String>) {
    let controllers = (1..=MEMBERS).filter_map(|node| world.controller_of(NodeId(node)));
    let latest = controllers.max_by_key(|controller| controller.revision());
    let placements = latest.map(|controller| controller.placements()).unwrap_or_default();
    let owner = |key: &String| placements.get(shard_of(key) as usize).and_then(|it| it.owner);
    keys.iter().cloned().partition(|key| owner(key) == Some(id(group)))
}

/// How many of these can be read within 2 s.
pub(crate) fn readable(
    world: &mut World,
    client: u64,
    keys: &[String],
) -> Result<usize, Violation> {
    let asked: Vec<OperationName> =
        keys.iter().map(|key| world.wish(client, key, Wish::Get)).collect();
    world.run_for(2 * SECOND_US)?;
    let read = |name: &&OperationName| {
        matches!(world.verdict(**name), Some(Verdict::Done(Done::Read(..))))
    };
    Ok(asked.iter().filter(read).count())
}

/// What scripts have written.
#[derive(Default)]
pub(crate) struct Held(BTreeMap<String, Vec<u8>>);

impl Held {
    /// Writes all of these at once.
    pub(crate) fn put(&mut self, world: &mut World, keys: &[String]) -> Result<(), Violation> {
        self.write(world, keys, Wish::Put, 0)
    }

    /// Writes something long to all of these.
    pub(crate) fn fill(
        &mut self,
        world: &mut World,
        keys: &[String],
        padding_bytes: usize,
    ) -> Result<(), Violation> {
        self.write(world, keys, Wish::PutPadded(padding_bytes), padding_bytes)
    }

    /// Appends to all of these at once.
    pub(crate) fn append(&mut self, world: &mut World, keys: &[String]) -> Result<(), Violation> {
        self.write(world, keys, Wish::Append, 0)
    }

    fn write(
        &mut self,
        world: &mut World,
        keys: &[String],
        wish: Wish,
        padding_bytes: usize,
    ) -> Result<(), Violation> {
        let mut asked = Vec::new();
        for key in keys {
            let name = world.wish(CLERK, key, wish);
            asked.push(name);
            let value = self.0.entry(key.clone()).or_default();
            if wish != Wish::Append {
                value.clear();
            }
            value.extend_from_slice(&name.token(padding_bytes));
        }
        for name in asked {
            let over = |world: &World| world.verdict(name).is_some();
            world.run_until(20 * SECOND_US, over)?;
            let verdict = world.verdict(name);
            let written = matches!(verdict, Some(Verdict::Done(_)));
            expect(written, format!("{name}: {verdict:?}"))?;
        }
        Ok(())
    }

    /// All of it is there.
    pub(crate) fn check(&self, world: &mut World) -> Result<(), Violation> {
        let asked: Vec<_> =
            self.0.keys().map(|key| (key, world.wish(CLERK, key, Wish::Get))).collect();
        for (key, name) in asked {
            let over = |world: &World| world.verdict(name).is_some();
            world.run_until(20 * SECOND_US, over)?;
            let found = match world.verdict(name) {
                Some(Verdict::Done(Done::Read(_, pair))) => {
                    pair.as_ref().map(|pair| pair.value.clone())
                }
                verdict => return expect(false, format!("reading {key}: {verdict:?}")),
            };
            let value = Bytes::from(self.0[key].clone());
            expect(
                found.as_ref() == Some(&value),
                format!("{key} holds {found:?}, not {value:?}"),
            )?;
        }
        Ok(())
    }
}

/// Each clerk's appends to its own key are there once and in order, and nobody else's.
pub(crate) fn check_own(world: &mut World, clerks: u64) -> Result<(), Violation> {
    world.let_clerks_rest();
    let idle = world.run_until(12 * SECOND_US, World::clerks_are_idle)?;
    expect(idle, "clerks wait in vain")?;
    for client in 1..=clerks {
        let key = format!("own{client}");
        let pair = match world.execute(CLERK, &key, Wish::Get)? {
            Verdict::Done(Done::Read(_, pair)) => pair,
            verdict => return expect(false, format!("reading {key}: {verdict:?}")),
        };
        let value = pair.map(|pair| pair.value).unwrap_or_default();
        let tokens: Option<Vec<OperationName>> = OperationName::of_value(&value).collect();
        let right = tokens.is_some_and(|tokens| {
            tokens.iter().all(|name| name.client == client)
                && tokens.is_sorted_by(|one, other| one.number < other.number)
        });
        expect(right, format!("{key} holds {value:?}"))?;
    }
    Ok(())
}
