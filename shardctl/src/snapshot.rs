//! The state as bytes, and back: equal states give equal chunks.
//!
//! Decides the order of items: what there is one of, configurations, placements, groups, requests. A
//! configuration is told as what it changed in the one before, the first as what it changed in an
//! empty one. Reading is total: whatever the chunks hold, the result is a state that keeps every
//! invariant of its types, or an error.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroU32,
    sync::Arc,
};

use bytes::Bytes;
use raft::{BadSnapshot, Capture};
use raftd::{
    chunks::Chunks,
    codec::{Malformed, Reader, put_bytes, put_number},
};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    command::{put_group, put_members, take_group, take_members},
    ids::{GroupId, MoveNumber, Number, RequestId, ShardId},
    limits::{HISTORY_MAX, REQUESTS_KEPT_MAX, SHARDS_MAX},
    machine::{MACHINE_VERSION, Reported, Roster, ShardMachine},
    placement::{Move, Placement},
    requests::{Kept, Requests},
    target::Target,
};

/// The version of the encoding.
const SNAPSHOT_VERSION: u8 = 1;

const META: u8 = 1;
const TARGET: u8 = 2;
const PLACEMENT: u8 = 3;
const ROSTER: u8 = 4;
const REQUEST: u8 = 5;

/// A frozen state.
#[derive(Clone, Debug)]
pub struct Frozen(ShardMachine);

impl Frozen {
    pub(crate) fn of(machine: &ShardMachine) -> Self {
        Self(machine.clone())
    }
}

impl Capture for Frozen {
    fn chunks(self) -> impl Iterator<Item = Bytes> + Send {
        let mut chunks = Chunks::default();
        let mut put = |kind: u8, key: &[u8], item: Vec<u8>| {
            let mut framed = Vec::with_capacity(item.len() + 8);
            put_bytes(&mut framed, &[&[kind], &*item].concat());
            chunks.item(&[&[kind], key].concat(), &framed);
        };
        let machine = self.0;
        let mut first = meta(&machine);
        put_number(&mut first, machine.revision);
        put(META, &[], first);
        let shards = machine.latest().map_or(0, |latest| latest.shards());
        let mut before = &Arc::new(Target::empty(shards));
        for target in &machine.history {
            put(TARGET, &target.number.0.to_le_bytes(), target_item(before, target));
            before = target;
        }
        for (shard, placement) in (0_u32..).zip(&machine.placements) {
            put(PLACEMENT, &shard.to_le_bytes(), placement_item(placement));
        }
        for (group, roster) in &machine.rosters {
            put(ROSTER, &group.0.get().to_le_bytes(), roster_item(*group, roster));
        }
        for (id, kept) in machine.requests.iter() {
            put(REQUEST, &id.0, request_item(id, kept));
        }
        chunks.finish()
    }
}

fn put_owner(out: &mut Vec<u8>, owner: Option<GroupId>) {
    put_number(out, owner.map_or(0, |group| group.0.get().into()));
}

fn meta(machine: &ShardMachine) -> Vec<u8> {
    let mut out = vec![SNAPSHOT_VERSION];
    put_number(&mut out, MACHINE_VERSION.into());
    put_number(&mut out, machine.placements.len() as u64);
    put_number(&mut out, machine.next.0);
    out
}

fn target_item(before: &Target, target: &Target) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, target.number.0);
    let both = before.owners.iter().zip(target.owners.iter());
    let changed: Vec<_> = (0_u64..)
        .zip(both)
        .filter(|(_, (before, now))| before != now)
        .map(|(shard, (_, now))| (shard, *now))
        .collect();
    put_number(&mut out, changed.len() as u64);
    for (shard, owner) in changed {
        put_number(&mut out, shard);
        put_owner(&mut out, owner);
    }
    out.push(u8::from(target.weights != before.weights));
    if target.weights != before.weights {
        put_number(&mut out, target.weights.len() as u64);
        for (group, weight) in &*target.weights {
            put_group(&mut out, *group);
            put_number(&mut out, u64::from(*weight));
        }
    }
    out.push(u8::from(target.pins != before.pins));
    if target.pins != before.pins {
        put_number(&mut out, target.pins.len() as u64);
        for (shard, group) in &*target.pins {
            put_number(&mut out, u64::from(shard.0));
            put_group(&mut out, *group);
        }
    }
    out
}

fn placement_item(placement: &Placement) -> Vec<u8> {
    let mut out = Vec::new();
    put_owner(&mut out, placement.owner);
    put_number(&mut out, placement.since.0);
    put_number(&mut out, placement.last.0);
    put_number(&mut out, placement.recovered_at.0);
    put_owner(&mut out, placement.moving.map(|moving| moving.to));
    out.extend(placement.moving.map(|moving| u8::from(moving.cancelling)));
    out
}

fn roster_item(group: GroupId, roster: &Roster) -> Vec<u8> {
    let mut out = Vec::new();
    put_group(&mut out, group);
    out.push(u8::from(roster.reported.is_some()));
    if let Some(Reported { identity, index, shards }) = roster.reported {
        out.extend_from_slice(&identity);
        put_number(&mut out, index);
        put_number(&mut out, shards.map_or(0, |shards| shards.get().into()));
    }
    put_members(&mut out, &roster.members);
    out
}

fn request_item(id: RequestId, kept: Kept) -> Vec<u8> {
    let mut out = id.0.to_vec();
    match kept {
        Kept::Refused => out.push(0),
        Kept::Done(number) => {
            out.push(1);
            put_number(&mut out, number.0);
        }
    }
    out
}

/// What a configuration adds to the digest.
pub(crate) fn target_digest(target: &Target) -> u128 {
    xxh3_128(&target_item(&Target::empty(target.shards()), target))
}

/// The digest of everything but the revision, given that of all configurations.
pub(crate) fn digest(machine: &ShardMachine, history: u128) -> u128 {
    let mut bytes = meta(machine);
    bytes.extend_from_slice(&history.to_le_bytes());
    for placement in &machine.placements {
        bytes.extend(placement_item(placement));
    }
    for (group, roster) in &machine.rosters {
        bytes.extend(roster_item(*group, roster));
    }
    for (id, kept) in machine.requests.iter() {
        bytes.extend(request_item(id, kept));
    }
    xxh3_128(&bytes)
}

fn wrong<T>(why: impl Into<String>) -> Result<T, BadSnapshot> {
    Err(BadSnapshot(why.into()))
}

/// The state that the chunks encode.
pub(crate) fn restore(
    chunks: &mut dyn Iterator<Item = Bytes>,
) -> Result<ShardMachine, BadSnapshot> {
    let mut stream = Vec::new();
    for chunk in chunks {
        stream.extend_from_slice(&chunk);
    }
    let mut stream = Reader::new(&stream);
    let mut meta = item(&mut stream)?;
    let (shards, next, revision) = match meta.byte("kind of item")? {
        META => take_meta(&mut meta)?,
        _ => return wrong("it does not begin with its version"),
    };
    let mut history: VecDeque<Arc<Target>> = VecDeque::new();
    let (mut placements, mut rosters) = (Vec::new(), BTreeMap::new());
    let mut requests = Requests::default();
    let mut last = META;
    while !stream.is_empty() {
        let mut item = item(&mut stream)?;
        let kind = item.byte("kind of item")?;
        if kind < last {
            return wrong(format!("an item of kind {kind} is out of place"));
        }
        last = kind;
        match kind {
            TARGET if history.len() < HISTORY_MAX => {
                let empty = || Arc::new(Target::empty(shards));
                let before = history.back().cloned().unwrap_or_else(empty);
                history.push_back(Arc::new(take_target(&mut item, &before)?));
            }
            PLACEMENT if placements.len() < shards as usize => {
                placements.push(take_placement(&mut item)?);
            }
            ROSTER => {
                let group = take_group(&mut item)?;
                if rosters.last_key_value().is_some_and(|(last, _)| *last >= group) {
                    return wrong("groups are out of order");
                }
                rosters.insert(group, take_roster(&mut item)?);
            }
            REQUEST if requests.len() < REQUESTS_KEPT_MAX => {
                let id = RequestId(item.array("request id")?);
                let kept = match flag(&mut item)? {
                    false => Kept::Refused,
                    true => Kept::Done(Number(item.number("number")?)),
                };
                if !requests.keep(id, kept) {
                    return wrong("a request is there twice");
                }
            }
            kind => return wrong(format!("an item of kind {kind} too many")),
        }
        if !item.is_empty() {
            return wrong("an item is longer than what it holds");
        }
    }
    let machine = ShardMachine::of(history, next, placements, rosters, requests, revision);
    machine.check().map_or_else(wrong, |()| Ok(machine))
}

fn flag(item: &mut Reader<'_>) -> Result<bool, Malformed> {
    match item.byte("flag")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("flag")),
    }
}

fn item<'a>(stream: &mut Reader<'a>) -> Result<Reader<'a>, Malformed> {
    Ok(Reader::new(stream.bytes("item")?))
}

fn take_meta(item: &mut Reader<'_>) -> Result<(u32, Number, u64), BadSnapshot> {
    let version = item.byte("snapshot version")?;
    let machine = item.number32("machine version")?;
    if version != SNAPSHOT_VERSION || machine != MACHINE_VERSION {
        return wrong(format!(
            "it has version {version} of machine version {machine}; this build reads \
             {SNAPSHOT_VERSION} of {MACHINE_VERSION}"
        ));
    }
    let shards = item.number32("number of shards")?;
    let next = Number(item.number("number")?);
    let revision = item.number("revision")?;
    if shards > SHARDS_MAX || !item.is_empty() {
        return wrong(format!("{shards} shards"));
    }
    Ok((shards, next, revision))
}

fn take_owner(item: &mut Reader<'_>) -> Result<Option<GroupId>, Malformed> {
    item.number32("owner").map(GroupId::new)
}

fn take_target(item: &mut Reader<'_>, before: &Target) -> Result<Target, BadSnapshot> {
    let number = Number(item.number("number")?);
    let mut owners = before.owners.to_vec();
    for _ in 0..item.number("number of changes")? {
        let shard = item.number32("shard")?;
        let Some(owner) = owners.get_mut(shard as usize) else {
            return wrong(format!("there is no shard {shard}"));
        };
        *owner = take_owner(item)?;
    }
    let (mut weights, mut pins) = (before.weights.clone(), before.pins.clone());
    if flag(item)? {
        let mut all = BTreeMap::new();
        for _ in 0..item.number("number of groups")? {
            all.insert(take_group(item)?, item.number32("weight")?);
        }
        weights = all.into();
    }
    if flag(item)? {
        let mut all = BTreeMap::new();
        for _ in 0..item.number("number of pins")? {
            let shard = ShardId(item.number32("shard")?);
            all.insert(shard, take_group(item)?);
        }
        pins = all.into();
    }
    Ok(Target { number, owners: owners.into(), weights, pins })
}

fn take_placement(item: &mut Reader<'_>) -> Result<Placement, Malformed> {
    let owner = take_owner(item)?;
    let mut number = || item.number("number").map(MoveNumber);
    let (since, last, recovered_at) = (number()?, number()?, number()?);
    let moving = match take_owner(item)? {
        None => None,
        Some(to) => Some(Move { to, cancelling: flag(item)? }),
    };
    Ok(Placement { owner, since, last, recovered_at, moving })
}

fn take_roster(item: &mut Reader<'_>) -> Result<Roster, Malformed> {
    let reported = match flag(item)? {
        false => None,
        true => {
            let (identity, index) = (item.array("identity")?, item.number("index")?);
            let shards = NonZeroU32::new(item.number32("number of shards")?);
            Some(Reported { identity, index, shards })
        }
    };
    Ok(Roster { reported, members: take_members(item)? })
}
