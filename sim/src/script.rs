//! What scripted scenarios do to a world: take members off the network, kill them, propose, and
//! wait for agreement, in the words of the labs.

use std::num::NonZeroU32;

use bytes::Bytes;
use kvd::{
    command::{Command, Condition, Operation as Mutation},
    custody::MoveNumber,
    outcome::Query,
    step::Deed,
};
use raft::{Change, Index, NodeId};
use shardctl::{
    command::Step,
    ids::{self, ShardId},
};

use crate::{
    World,
    agenda::{Happening, Input},
    application::Service,
    client::{OPERATOR, Reply, Request, address},
    fault::Mix,
    group::{GroupId, MemberId},
    history::Wish,
    invariants::Violation,
    machine::{CommandId, Question},
    member::ClockRate,
    network::{Link, Pick},
};

/// How long `one` waits for a single proposal.
const AGREEMENT_US: u64 = 2_000_000;
/// How long it goes on proposing.
const AGREEMENT_US_MAX: u64 = 10_000_000;
/// How long a group may be without a leader.
const ELECTION_US_MAX: u64 = 5_000_000;

/// Where the operator writes, and no clerk.
const OPERATORS_KEY: &[u8] = b"operator";

/// What it tells a shard controller: of a move that never was, so that nothing changes.
const OPERATORS_REPORT: shardctl::command::Command = shardctl::command::Command::Settled(Step {
    group: shardctl::ids::GroupId(NonZeroU32::MIN),
    identity: [0; 32],
    shard: ShardId(0),
    number: ids::MoveNumber(0),
});

/// Whether a disk has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fullness {
    /// It has none.
    Full,
    /// It has.
    Roomy,
}

impl World {
    /// Another network, other disks, other settings for members that start from now on.
    pub fn change_mix(&mut self, mix: Mix) {
        self.mix = mix;
    }

    /// From now on scripts speak of this group.
    pub fn speak_of(&mut self, group: GroupId) {
        self.spoken_of = group;
    }

    /// Stops a whole group.
    ///
    /// # Errors
    /// A violation.
    pub fn stop_all(&mut self) -> Result<(), Violation> {
        self.stop_group(self.spoken_of)
    }

    /// Starts a group that was stopped.
    ///
    /// # Errors
    /// A violation.
    pub fn start_all(&mut self) -> Result<(), Violation> {
        self.start_group(self.spoken_of)
    }

    /// A link of the group that is spoken of.
    fn link(&self, from: NodeId, to: NodeId) -> Link {
        (self.spoken_of.member(from), self.spoken_of.member(to))
    }

    /// Takes a member off the network.
    pub fn disconnect(&mut self, id: NodeId) {
        self.trace.line(
            self.agenda.now_us(),
            format_args!("{} is disconnected", self.spoken_of.member(id)),
        );
        self.network.unplug(self.spoken_of.member(id));
    }

    /// Puts it back.
    pub fn connect(&mut self, id: NodeId) {
        self.trace
            .line(self.agenda.now_us(), format_args!("{} is connected", self.spoken_of.member(id)));
        self.network.plug_in(self.spoken_of.member(id));
    }

    /// Cuts the link from one member to another, in this direction alone.
    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        let (from, to) = self.link(from, to);
        self.trace.line(self.agenda.now_us(), format_args!("cut: {from} > {to}"));
        self.network.cut([(from, to)]);
    }

    /// Cuts what a member says to a client; the member still hears it.
    pub fn cut_answers(&mut self, from: NodeId, client: u64) {
        let from = self.spoken_of.member(from);
        self.trace.line(self.agenda.now_us(), format_args!("cut: {from} > c{client}"));
        self.network.cut([(from, address(from.group, client))]);
    }

    /// Gives back all links that were cut.
    pub fn heal(&mut self) {
        self.trace.line(self.agenda.now_us(), format_args!("healed"));
        self.network.heal();
    }

    /// Lets the clock of a member go so many times faster, or slower, than it should.
    pub fn set_clock(&mut self, id: NodeId, faster: u64, slower: u64) {
        let (id, clock_rate) = (self.spoken_of.member(id), ClockRate { faster, slower });
        self.trace.line(self.agenda.now_us(), format_args!("{id}: {clock_rate:?}"));
        self.groups.member_mut(id).clock_rate = clock_rate;
    }

    /// Leaves no room on a member's disk for anything that grows, or makes room again.
    pub fn fill_disk(&mut self, id: NodeId, full: Fullness) {
        let id = self.spoken_of.member(id);
        self.trace.line(self.agenda.now_us(), format_args!("the disk of {id}: {full:?}"));
        self.groups.member_mut(id).disk.full = full == Fullness::Full;
    }

    /// Withholds the next message from one member to another that `pick` picks.
    pub fn withhold(&mut self, from: NodeId, to: NodeId, pick: Pick) {
        self.network.withhold(self.link(from, to), pick);
    }

    /// How many messages are withheld from one member to another.
    pub fn withheld(&self, from: NodeId, to: NodeId) -> usize {
        self.network.withheld(self.link(from, to))
    }

    /// Delivers at once what was withheld.
    pub fn release(&mut self, from: NodeId, to: NodeId) {
        let (from, to) = self.link(from, to);
        for message in self.network.release((from, to)) {
            self.agenda.after(0, Happening::Deliver { from, to, message });
        }
    }

    /// Stops a member, as SIGSTOP does.
    pub fn stop(&mut self, id: NodeId) {
        self.pause(self.spoken_of.member(id));
    }

    /// Lets it go on.
    pub fn go_on(&mut self, id: NodeId) {
        self.resume(self.spoken_of.member(id));
    }

    /// The power of a member fails.
    ///
    /// # Errors
    /// A violation.
    pub fn kill(&mut self, id: NodeId) -> Result<(), Violation> {
        self.crash(self.spoken_of.member(id))
    }

    /// A member loses its power and all that is on its disk: it never starts again, since the others
    /// know that it has forgotten. When it tries, the operator has another take its place.
    ///
    /// # Errors
    /// A violation.
    pub fn wipe(&mut self, id: NodeId) -> Result<(), Violation> {
        self.kill(id)?;
        let id = self.spoken_of.member(id);
        self.trace.line(self.agenda.now_us(), format_args!("the disk of {id} is wiped"));
        self.groups.member_mut(id).disk.destroy();
        Ok(())
    }

    /// A member that is down starts.
    ///
    /// # Errors
    /// A violation.
    pub fn restart(&mut self, id: NodeId) -> Result<(), Violation> {
        self.start(self.spoken_of.member(id))
    }

    /// Asks a member to change the members. Nothing happens if it does not lead.
    pub fn change(&mut self, id: NodeId, changes: Vec<Change>) {
        self.ask_for(self.spoken_of.member(id), changes);
    }

    /// A member starts that nobody has heard of yet.
    ///
    /// # Errors
    /// A violation.
    pub fn join(&mut self, id: NodeId) -> Result<(), Violation> {
        self.add_member(self.spoken_of.member(id))
    }

    /// Proposes a command to a member; [`World::reply_to`] tells what became of it.
    pub fn propose(&mut self, to: NodeId, padding_bytes: usize) -> CommandId {
        self.propose_to(self.spoken_of.member(to), padding_bytes)
    }

    pub(crate) fn propose_to(&mut self, to: MemberId, padding_bytes: usize) -> CommandId {
        let number = self.groups.get_mut(to.group).next_operation();
        let id = CommandId { client: OPERATOR, number };
        let command = match self.groups.get(to.group).service {
            // Only steps make shards where they move.
            Service::Kv(settings) if self.mix.is_sharded() => {
                let (shards, number, deed) = (settings.shards, MoveNumber(0), Deed::Discard);
                id.name(&kvd::step::Step { shards, shard: 0, number, deed }.encode())
            }
            Service::Kv(settings) => operators_write(id, settings.shards, padding_bytes),
            Service::Shards { .. } => id.name(&OPERATORS_REPORT.encode()),
            Service::Registers => {
                self.record(to.group, id, 0, Wish::Write);
                id.write_to(0, padding_bytes)
            }
        };
        let request = Request::Write { command };
        self.give(to, Input::Ask { client: OPERATOR, number, request });
        id
    }

    /// Asks a member for a linearizable read.
    pub fn query(&mut self, to: NodeId) -> CommandId {
        let to = self.spoken_of.member(to);
        let number = self.groups.get_mut(to.group).next_operation();
        let name = CommandId { client: OPERATOR, number };
        let question = match self.groups.get(to.group).service {
            Service::Kv(_) => Question::Kv(Query::Get(Bytes::from_static(OPERATORS_KEY))),
            Service::Shards { .. } => Question::Configuration(None),
            Service::Registers => {
                self.record(to.group, name, 0, Wish::Read);
                Question::Register(0)
            }
        };
        let request = Request::Read { question };
        self.give(to, Input::Ask { client: OPERATOR, number, request });
        name
    }

    /// What became of a request; none if that is open.
    pub fn reply_to(&self, request: CommandId) -> Option<Reply> {
        self.groups.get(self.spoken_of).replies.get(&request).cloned()
    }

    /// How many members have applied what stands at `index`.
    pub fn applied(&self, index: Index) -> usize {
        let has =
            |member: &&crate::member::Member| member.is_up() && member.standing().applied >= index;
        self.groups.get(self.spoken_of).members.values().filter(has).count()
    }

    /// Waits until there is a leader, of those that are on the network.
    ///
    /// # Errors
    /// A violation; `R23` if there is none in time.
    pub fn expect_leader(&mut self) -> Result<NodeId, Violation> {
        self.run_until(ELECTION_US_MAX, |world| world.leader().is_some())?;
        self.leader().ok_or_else(|| Violation::new("R23", "there is no leader"))
    }

    /// Proposes a command, to whoever leads, until `members` have applied it. Where.
    ///
    /// # Errors
    /// A violation; `R23` if they do not agree in time.
    pub fn one(&mut self, members: usize) -> Result<Index, Violation> {
        let until_us = self.now_us() + AGREEMENT_US_MAX;
        while self.now_us() < until_us {
            let Some(leader) = self.leader() else {
                self.run_for(10_000)?;
                continue;
            };
            let command = self.propose(leader, 0);
            let agreed = |world: &Self| {
                let index = world.ghost().index_of(command);
                index.is_some_and(|index| world.applied(index) >= members)
            };
            self.run_until(AGREEMENT_US, |world| {
                let refused = matches!(world.reply_to(command), Some(Reply::Refused { .. }));
                refused || agreed(world)
            })?;
            if let Some(index) = self.ghost().index_of(command)
                && agreed(self)
            {
                return Ok(index);
            }
            self.run_for(10_000)?;
        }
        Err(Violation::new("R23", format!("no agreement of {members} members")))
    }
}

/// A write to the key/value store under no identity, as people make it: it is asked for once.
fn operators_write(id: CommandId, shards: u32, padding_bytes: usize) -> Bytes {
    let value = vec![b'.'; padding_bytes];
    let condition = Condition::Always;
    let operation = Mutation::Put { key: OPERATORS_KEY, value: &value, condition, lease: None };
    id.name(&Command::new(shards, operation).encode())
}
