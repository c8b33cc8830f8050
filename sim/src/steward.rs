//! What the host of a member does about shards, as kvd's does: it looks at a map of the controller,
//! decides by `kvd::steward` what its group does next, proposes that to its own log, copies what comes
//! from other groups, and reports.
//!
//! Whoever believes to lead does it, by a map that may be old; so several may at once. What hosts say
//! to each other goes over the world's network, where it is lost, late and doubled, and comes to
//! members that do not lead, or have applied little.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use kvd::{
    custody::{Custody, MoveNumber, Phase},
    handoff::{Contents, Piece, Position, Wanted},
    outcome::{Answer, Outcome, Query, Refusal},
    step::{Deed, Frozen, Step, Stepped},
    steward::{Act, Ended, Move, Placement},
};
use raft::StateMachine;
use rand::{RngExt, seq::IteratorRandom};
use shardctl::{
    ShardMachine,
    command::{Command, Step as Report},
    ids::{self, ShardId},
    machine::Reported,
};

use crate::{
    World,
    agenda::{Happening, Input, Life},
    application::Service,
    client::{HOST, Reply, Request, TICKET_US},
    group::{GroupId, MemberId},
    machine::CommandId,
    network::{Kind, MESSAGE_BYTES, Parcel},
};

/// How long a piece is at least, but for the last.
const PIECE_BYTES: usize = 200;
/// How many pieces are told at once.
const PIECES_MAX: usize = 4;
/// How long an answer of another group is waited for.
const ANSWER_US: u64 = 60_000;
/// Of so many proposals one is made again at once.
const TWICE_ONE_IN: u32 = 16;
/// One time in so many that a leader looks what is to be done, it proposes something once more that it
/// proposed before: so late comes what was stuck somewhere.
const LATE_ONE_IN: u32 = 50;
/// So many of the latest may come late.
const LATE_MAX: usize = 32;

/// What a steward knows, until its host ends.
#[derive(Debug, Default)]
pub(crate) struct Steward {
    map: Option<Arc<Map>>,
    /// Until when the map is good enough.
    map_until_us: u64,
    /// The shards about which something is under way, and until when that is waited for.
    busy_until_us: BTreeMap<u32, u64>,
    /// What was proposed, by the number of the proposal.
    proposed: BTreeMap<u64, Proposed>,
    /// The latest steps that were proposed.
    sent: VecDeque<Bytes>,
    /// What sources have frozen for moves to here.
    frozen: BTreeMap<u32, (MoveNumber, Frozen)>,
}

/// A step that was proposed.
#[derive(Clone, Copy, Debug)]
struct Proposed {
    shard: u32,
    number: MoveNumber,
    /// Who of another group wants to know what came of it.
    asker: Option<MemberId>,
}

/// What a member of the controller says of shards and groups.
#[derive(Debug)]
pub(crate) struct Map {
    placements: Vec<Placement>,
    reported: BTreeMap<GroupId, Reported>,
}

impl Map {
    fn of(controller: &ShardMachine) -> Self {
        let placements = controller.placements().iter().map(|placement| Placement {
            owner: placement.owner.map(|owner| owner.0.get()),
            since: MoveNumber(placement.since.0),
            last: MoveNumber(placement.last.0),
            recovered_at: MoveNumber(placement.recovered_at.0),
            moving: placement
                .moving
                .map(|it| Move { to: it.to.0.get(), cancelling: it.cancelling }),
        });
        let rosters = controller.rosters().iter();
        let reported = rosters
            .filter_map(|(group, roster)| Some((GroupId(group.0.get().into()), roster.reported?)));
        Self { placements: placements.collect(), reported: reported.collect() }
    }

    fn placement(&self, shard: u32) -> Option<&Placement> {
        self.placements.get(usize::try_from(shard).ok()?)
    }

    /// Whether a move of a shard is under way between these groups, as far as it says.
    fn moves(&self, shard: u32, number: MoveNumber, from: GroupId, to: GroupId) -> bool {
        self.placement(shard).is_some_and(|placement| {
            let moving = placement.moving.filter(|moving| !moving.cancelling);
            placement.last == number
                && placement.owner == Some(of(from))
                && moving.is_some_and(|moving| moving.to == of(to))
        })
    }
}

/// What hosts say to each other.
#[derive(Clone, Debug)]
pub(crate) enum Talk {
    /// To the controller: what does it look like?
    Look,
    /// It looks like this.
    Map(Arc<Map>),
    /// To the controller: a command.
    Report(Command),
    /// To a source: it is to hold a shard, or to freeze it.
    Ask { shard: u32, number: MoveNumber, freeze: bool },
    /// What came of that.
    Stepped { shard: u32, number: MoveNumber, stepped: Stepped },
    /// To any member of a source: what comes next?
    Want { shard: u32, wanted: Wanted },
    /// This.
    Pieces { shard: u32, number: MoveNumber, at: Position, told: Told },
}

/// What a source tells of what comes next.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// This, and whether that is all for now, and for ever.
    Pieces { pieces: Vec<Piece>, is_all: bool, is_frozen: bool },
    /// Nothing: it has not kept it.
    Compacted,
}

/// The number that a group goes by.
fn of(group: GroupId) -> u32 {
    u32::try_from(group.0).unwrap_or(u32::MAX)
}

fn group_of(number: u32) -> GroupId {
    GroupId(number.into())
}

/// What the Raft group under a number is known by.
fn identity(group: GroupId) -> ids::Identity {
    let mut identity = [0; 32];
    identity[..8].copy_from_slice(&group.0.to_le_bytes());
    identity
}

impl World {
    /// A member that has to do with shards looks after them from now on.
    pub(crate) fn plan_tending(&mut self, life: Life) {
        if self.mix.is_sharded() && self.groups.get(life.id.group).service.kv().is_some() {
            let pause_us = self.rng.random_range(1..=self.mix.tend_us_max);
            self.agenda.after(pause_us, Happening::Tend(life));
        }
    }

    /// A member looks what is to be done about shards, if it leads.
    pub(crate) fn tend(&mut self, life: Life) {
        self.plan_tending(life);
        let id = life.id;
        if !self.groups.leads(id) || self.groups.member(id).paused {
            return;
        }
        let now_us = self.agenda.now_us();
        let steward = &self.groups.member(id).steward;
        if steward.map.is_none() || now_us >= steward.map_until_us {
            let controller = self.draw_member(GroupId::FIRST);
            self.say(id, controller, &Talk::Look);
        }
        self.come_late(id);
        let Some(map) = self.groups.member(id).steward.map.clone() else { return };
        self.introduce(id, &map);
        for shard in 0..of_all(&map) {
            let steward = &self.groups.member(id).steward;
            if steward.busy_until_us.get(&shard).is_some_and(|until_us| now_us < *until_us) {
                continue;
            }
            let custody = self.custody(id, shard);
            let act = map.placement(shard).and_then(|it| it.act(of(id.group), &custody));
            if let Some(act) = act {
                self.act(id, shard, custody, act);
            }
        }
    }

    fn act(&mut self, id: MemberId, shard: u32, custody: Custody, act: Act) {
        match act {
            Act::Propose(number, deed) => self.propose_step(id, shard, number, deed, None),
            Act::Pull { number, from } => {
                let source = self.draw_member(group_of(from));
                let wanted = self.contents(id, shard).and_then(|contents| contents.wanted());
                let talk = match (custody.phase, wanted) {
                    (Phase::Incoming { .. }, Some(wanted)) => Talk::Want { shard, wanted },
                    _ => Talk::Ask { shard, number, freeze: false },
                };
                self.say(id, source, &talk);
                self.wait(id, shard, ANSWER_US);
            }
            Act::Report(number, ended) => {
                let group = ids::GroupId::new(of(id.group)).expect("groups count from 1");
                let number = ids::MoveNumber(number.0);
                let (identity, shard) = (identity(id.group), ShardId(shard));
                let report = Report { group, identity, shard, number };
                let command = match ended {
                    Ended::Settled => Command::Settled(report),
                    Ended::Cancelled => Command::Cancelled(report),
                    Ended::Aborted => Command::Aborted(report),
                };
                let controller = self.draw_member(GroupId::FIRST);
                self.say(id, controller, &Talk::Report(command));
                self.wait(id, shard.0, ANSWER_US);
            }
        }
    }

    /// A leader tells the controller who its group is, if that does not know.
    fn introduce(&mut self, id: MemberId, map: &Map) {
        let member = self.groups.member(id);
        let index = member.standing().membership_index.0;
        let kv = member.replica().and_then(|replica| replica.machine().application().kv());
        let shards = kv.and_then(|kv| kv.created()).and_then(std::num::NonZeroU32::new);
        let known = map.reported.get(&id.group).is_some_and(|reported| {
            reported.index >= index && (reported.shards.is_some() || shards.is_none())
        });
        if known {
            return;
        }
        let group = ids::GroupId::new(of(id.group)).expect("groups count from 1");
        let members = member.standing().membership.members().keys();
        let members = members.map(|node| format!("g{}-n{node}:7300", id.group.0)).collect();
        let identity = identity(id.group);
        let command = Command::Report { group, identity, index, shards, members };
        let controller = self.draw_member(GroupId::FIRST);
        self.say(id, controller, &Talk::Report(command));
    }

    /// A member proposes a step to the log of its group.
    fn propose_step(
        &mut self,
        id: MemberId,
        shard: u32,
        number: MoveNumber,
        deed: Deed<'_>,
        asker: Option<MemberId>,
    ) {
        let Some(settings) = self.groups.get(id.group).service.kv() else { return };
        let step = Step { shards: settings.shards, shard, number, deed }.encode();
        let times = 1 + u32::from(self.rng.random_range(0..TWICE_ONE_IN) == 0);
        for _ in 0..times {
            let name = self.give_step(id, &step);
            let proposed = Proposed { shard, number, asker };
            self.groups.member_mut(id).steward.proposed.insert(name, proposed);
        }
        let sent = &mut self.groups.member_mut(id).steward.sent;
        sent.push_back(step);
        if sent.len() > LATE_MAX {
            sent.pop_front();
        }
        self.wait(id, shard, TICKET_US);
    }

    /// Gives a member a step to propose. The number of the proposal.
    fn give_step(&mut self, id: MemberId, step: &Bytes) -> u64 {
        let number = self.groups.get_mut(id.group).next_operation();
        let command = CommandId { client: HOST, number }.name(step);
        let request = Request::Write { command };
        self.give(id, Input::Ask { client: HOST, number, request });
        number
    }

    /// A step comes once more that was proposed earlier, as long as there is something to disturb.
    fn come_late(&mut self, id: MemberId) {
        let is_late = self.rng.random_range(0..LATE_ONE_IN) == 0;
        let sent = &self.groups.member(id).steward.sent;
        if let Some(step) = sent.iter().choose(&mut self.rng).cloned()
            && is_late
            && !self.clients_rest
        {
            self.tally.late_steps += 1;
            self.give_step(id, &step);
        }
    }

    /// A steward does nothing more about a shard until it knows more, or has waited for so long.
    fn wait(&mut self, id: MemberId, shard: u32, for_us: u64) {
        let until_us = self.agenda.now_us() + for_us;
        self.groups.member_mut(id).steward.busy_until_us.insert(shard, until_us);
    }

    fn go_on_with(&mut self, id: MemberId, shard: u32) {
        self.groups.member_mut(id).steward.busy_until_us.remove(&shard);
    }

    /// A proposal of a steward has come to an end.
    pub(crate) fn hear_as_steward(&mut self, id: MemberId, name: u64, reply: &Reply) {
        let steward = &mut self.groups.member_mut(id).steward;
        let Some(Proposed { shard, number, asker }) = steward.proposed.remove(&name) else {
            return;
        };
        if !steward.proposed.values().any(|proposed| proposed.shard == shard) {
            self.go_on_with(id, shard);
        }
        let Reply::Applied(_, response) = reply else { return };
        let Ok(answered) = &response.result else { return };
        if let (Outcome::Stepped(stepped), Some(asker)) = (&answered.outcome, asker) {
            self.say(id, asker, &Talk::Stepped { shard, number, stepped: *stepped });
        }
    }

    /// A member says something to one of another group.
    fn say(&mut self, from: MemberId, to: MemberId, talk: &Talk) {
        let (now_us, kind) = (self.agenda.now_us(), talk.kind());
        self.trace.line(now_us, format_args!("{from} > {to} {}", talk.shown()));
        let parcel = Parcel { link: (from, to), kind, bytes: talk.bytes() };
        for time_us in self.network.arrivals(now_us, parcel, &mut self.rng, &self.mix) {
            self.agenda.at(time_us, Happening::Talk { from, to, talk: talk.clone() });
        }
    }

    /// Somebody of another group has said something.
    pub(crate) fn hear_talk(&mut self, from: MemberId, to: MemberId, talk: Talk) {
        let member = self.groups.member(to);
        if !self.network.is_open((from, to)) || !member.is_up() || member.paused {
            return;
        }
        self.trace.line(self.agenda.now_us(), format_args!("{to} < {from} {}", talk.shown()));
        match talk {
            Talk::Look => {
                if let Some(controller) = self.controller_at(to) {
                    let map = Arc::new(Map::of(controller));
                    self.say(to, from, &Talk::Map(map));
                }
            }
            Talk::Map(map) => {
                let until_us = self.now_us() + self.rng.random_range(0..=self.mix.map_us_max);
                let steward = &mut self.groups.member_mut(to).steward;
                (steward.map, steward.map_until_us) = (Some(map), until_us);
            }
            Talk::Report(command) => {
                let number = self.groups.get_mut(to.group).next_operation();
                let name = CommandId { client: HOST, number };
                let request = Request::Write { command: name.name(&command.encode()) };
                self.give(to, Input::Ask { client: HOST, number, request });
            }
            Talk::Ask { shard, number, freeze } => self.step_for(to, from, shard, number, freeze),
            Talk::Stepped { shard, number, stepped } => self.follow(to, shard, number, stepped),
            Talk::Want { shard, wanted } => self.hand_over(to, from, shard, wanted),
            Talk::Pieces { shard, number, at, told } => {
                self.go_on_with(to, shard);
                self.take_over((to, from), shard, (number, at), told);
            }
        }
    }

    /// A source is asked to hold or to freeze a shard: it does so only if it sees that move itself.
    fn step_for(
        &mut self,
        id: MemberId,
        asker: MemberId,
        shard: u32,
        number: MoveNumber,
        freeze: bool,
    ) {
        let map = self.groups.member(id).steward.map.clone();
        let seen = map.is_some_and(|map| map.moves(shard, number, id.group, asker.group));
        if seen && self.groups.leads(id) {
            let deed = if freeze { Deed::Freeze } else { Deed::Hold };
            self.propose_step(id, shard, number, deed, Some(asker));
        }
    }

    /// A destination hears what its source has done.
    fn follow(&mut self, id: MemberId, shard: u32, number: MoveNumber, stepped: Stepped) {
        match stepped {
            Stepped::Held(base) => {
                if self.groups.leads(id) && self.custody(id, shard).phase == Phase::Absent {
                    self.propose_step(id, shard, number, Deed::Begin { base }, None);
                }
            }
            Stepped::Frozen(frozen) => {
                let steward = &mut self.groups.member_mut(id).steward;
                steward.frozen.insert(shard, (number, frozen));
                self.go_on_with(id, shard);
            }
            Stepped::Done | Stepped::Position(_) | Stepped::Left(_) => {}
        }
    }

    /// A member of a source tells what comes next, as far as it has applied it.
    fn hand_over(&mut self, id: MemberId, asker: MemberId, shard: u32, wanted: Wanted) {
        let Some(contents) = self.contents(id, shard) else { return };
        let (number, at) = (wanted.number, wanted.position);
        let told = match contents.handoff(wanted, PIECE_BYTES) {
            Ok(mut handoff) => {
                let is_frozen = handoff.is_frozen();
                let mut pieces = Vec::new();
                let mut is_all = false;
                while !is_all && pieces.len() < PIECES_MAX {
                    match handoff.next_piece() {
                        Some(piece) => pieces.push(piece),
                        None => is_all = true,
                    }
                }
                Told::Pieces { pieces, is_all, is_frozen }
            }
            Err(Refusal::Compacted { .. }) => Told::Compacted,
            // It has not applied the Hold, or has gone on.
            Err(_) => return,
        };
        self.say(id, asker, &Talk::Pieces { shard, number, at, told });
    }

    /// A destination takes in what comes next, if it still stands where it asked for that.
    fn take_over(
        &mut self,
        (id, source): (MemberId, MemberId),
        shard: u32,
        (number, at): (MoveNumber, Position),
        told: Told,
    ) {
        let here = self.custody(id, shard).phase;
        if !self.groups.leads(id) || here != (Phase::Incoming { number, position: at }) {
            return;
        }
        let Told::Pieces { pieces, is_all, is_frozen } = told else {
            self.tally.copies_anew += 1;
            return self.propose_step(id, shard, number, Deed::Restart, None);
        };
        for Piece { at, records } in &pieces {
            self.propose_step(id, shard, number, Deed::Import { at: *at, records }, None);
        }
        let frozen = self.groups.member(id).steward.frozen.get(&shard).copied();
        let frozen = frozen.filter(|(of, _)| *of == number).map(|(_, frozen)| frozen);
        match frozen {
            Some(frozen) if is_all && is_frozen && pieces.is_empty() => {
                self.propose_step(id, shard, number, Deed::Install { frozen }, None);
            }
            // Little is left, or all is there and it is not known what it should be.
            None if is_all => {
                let leader = self.leader_of(source.group);
                let to = leader.map_or(source, |leader| source.group.member(leader));
                self.say(id, to, &Talk::Ask { shard, number, freeze: true });
                self.wait(id, shard, ANSWER_US);
            }
            Some(_) | None => {}
        }
    }

    fn controller_at(&self, id: MemberId) -> Option<&ShardMachine> {
        self.groups.member(id).replica()?.machine().application().shards()
    }

    /// How a shard stands by what a member has applied.
    fn custody(&self, id: MemberId, shard: u32) -> Custody {
        let absent = Custody { settled: MoveNumber(0), phase: Phase::Absent };
        self.contents(id, shard).map_or(absent, |contents| contents.custody())
    }

    fn contents(&self, id: MemberId, shard: u32) -> Option<Box<Contents>> {
        let kv = self.groups.member(id).replica()?.machine().application().kv()?;
        match kv.query(Query::Contents(shard)) {
            Answer::Contents(contents) => contents,
            _ => None,
        }
    }

    /// Whether a member may answer clients: where shards move, once they are made by a step.
    pub(crate) fn is_made(&self, id: MemberId) -> bool {
        match self.groups.get(id.group).service {
            Service::Kv(_) if self.mix.is_sharded() => {
                let replica = self.groups.member(id).replica();
                let kv = replica.and_then(|replica| replica.machine().application().kv());
                kv.is_none_or(|kv| kv.created().is_some())
            }
            Service::Kv(_) | Service::Registers | Service::Shards { .. } => true,
        }
    }

    /// Who has each shard, as any member of the controller that can be asked sees it.
    pub(crate) fn look_at_owners(&mut self) -> Option<Vec<Option<GroupId>>> {
        let asked = self.draw_member(GroupId::FIRST);
        let hears = self.network.is_plugged_in(asked) && !self.groups.member(asked).paused;
        let controller = self.controller_at(asked).filter(|_| hears)?;
        let owners = controller.placements().iter().map(|it| it.owner);
        Some(owners.map(|owner| owner.map(|owner| group_of(owner.0.get()))).collect())
    }

    /// Any member of any group that may have shards.
    pub(crate) fn draw_store(&mut self) -> GroupId {
        let last = self.groups.next_id().0 - 1;
        GroupId(self.rng.random_range(2..=last.max(2)))
    }
}

fn of_all(map: &Map) -> u32 {
    u32::try_from(map.placements.len()).unwrap_or(u32::MAX)
}

impl Talk {
    fn kind(&self) -> Kind {
        match self {
            Self::Look | Self::Report(_) | Self::Ask { .. } | Self::Want { .. } => Kind::Request,
            Self::Map(_) | Self::Stepped { .. } | Self::Pieces { .. } => Kind::Reply,
        }
    }

    fn bytes(&self) -> u64 {
        let records = match self {
            Self::Pieces { told: Told::Pieces { pieces, .. }, .. } => {
                pieces.iter().map(|piece| piece.records.len() as u64).sum()
            }
            _ => 0,
        };
        MESSAGE_BYTES + records
    }

    /// How the trace shows it.
    fn shown(&self) -> String {
        match self {
            Self::Look => "map?".to_owned(),
            Self::Map(map) => {
                let moving = map.placements.iter().filter(|it| it.moving.is_some()).count();
                format!("map with {moving} moves")
            }
            Self::Report(command) => format!("{command:?}"),
            Self::Ask { shard, number, freeze } => {
                let what = if *freeze { "freeze" } else { "hold" };
                format!("{what} shard {shard} for move {}", number.0)
            }
            Self::Stepped { shard, number, stepped } => {
                format!("shard {shard}, move {}: {stepped:?}", number.0)
            }
            Self::Want { shard, wanted } => {
                format!("shard {shard}, move {}: behind {:?}?", wanted.number.0, wanted.position)
            }
            Self::Pieces { shard, number, at, told } => match told {
                Told::Compacted => format!("shard {shard}, move {}: compacted", number.0),
                Told::Pieces { pieces, is_all, is_frozen } => format!(
                    "shard {shard}, move {}: {} pieces at {at:?}, all {is_all}, frozen {is_frozen}",
                    number.0,
                    pieces.len()
                ),
            },
        }
    }
}
