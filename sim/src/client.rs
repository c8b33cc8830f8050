//! Clients: each asks the member that it believes to lead, and waits for the answer or does not.
//!
//! A client of registers never sends a command twice, since there are no sessions there: what was
//! lost or is unknown stays so, and the next question is another one. Clients of the key/value store
//! are clerks ([`crate::clerk`]).

use std::sync::Arc;

use bytes::Bytes;
use raft::{Change, Index, NodeId};
use rand::RngExt;
use shardctl::{
    outcome::{Done, Refusal},
    target::Target,
};

use crate::{
    Plant, World,
    agenda::Happening,
    application::Service,
    group::{GroupId, MemberId},
    history::Wish,
    invariants::Violation,
    machine::{Answer, CommandId, Question, REGISTERS, Told},
    network::{Kind, Link, MESSAGE_BYTES, Parcel},
};

/// The client whose requests come from scripts and from the end of a run, not from the dice.
pub const OPERATOR: u64 = 0;
/// The client that asks for changes of the members.
pub const CHANGER: u64 = u64::MAX;
/// The host of a leader, when it proposes something by itself.
pub(crate) const HOST: u64 = u64::MAX - 1;

/// How long a client waits for a reply.
pub(crate) const PATIENCE_US: u64 = 1_500_000;
/// By how much later a planted bug asks again.
const ASKED_AGAIN_US_MAX: u64 = 500_000;
/// How long a ticket waits to be applied.
pub(crate) const TICKET_US: u64 = 1_000_000;

/// What a client asks.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Write { command: Bytes },
    Read { question: Question },
    Change { changes: Vec<Change> },
    Tick,
}

/// What a member answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A write was applied at this index.
    Done(Index),
    /// A write was not and will not be executed.
    Rejected,
    /// Nobody knows what became of a write.
    Unknown,
    /// A request was not taken on, or a read came to nothing.
    Refused {
        /// Who may know better.
        leader: Option<NodeId>,
    },
    /// A read of a register, with what it saw.
    Read(Answer),
    /// A command for the key/value store was applied at this index, which said this.
    Applied(Index, kvd::outcome::Response),
    /// A question to the key/value store, and as of which index this is the answer.
    Found(Index, kvd::outcome::Answer),
    /// A command for the shard controller was applied at this index, which said this.
    Configured(Index, Result<Done, Refusal>),
    /// A configuration, and as of which index this is the answer.
    Configuration(Index, Option<Arc<Target>>),
}

impl From<Told> for Reply {
    fn from(told: Told) -> Self {
        match told {
            Told::Register(answer) => Self::Read(answer),
            Told::Kv(index, answer) => Self::Found(index, answer),
            Told::Configuration(index, target) => Self::Configuration(index, target),
        }
    }
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    /// The last question.
    pub(crate) number: u64,
    /// The last question that was answered.
    pub(crate) answered: u64,
    pub(crate) target: NodeId,
}

impl Client {
    pub(crate) fn new(target: NodeId) -> Self {
        Self { number: 0, answered: 0, target }
    }
}

/// Clients sit at addresses that no member has.
const CLIENT_ADDRESSES: u64 = 1_000_000;

/// Where a client of a group sits on the network.
pub(crate) fn address(group: GroupId, client: u64) -> MemberId {
    group.member(NodeId(CLIENT_ADDRESSES + client))
}

impl World {
    /// A request arrives. The machine of a member that is down may say so.
    pub(crate) fn ask(
        &mut self,
        to: MemberId,
        client: u64,
        number: u64,
        request: Request,
    ) -> Result<(), Violation> {
        if !self.refuses(to) && self.is_made(to) {
            self.put_request(to, client, number, request);
            return Ok(());
        }
        let group = self.groups.get_mut(to.group);
        let (reply, floor) = (Reply::Refused { leader: None }, group.ghost().committed());
        group.invariants.answered_at_once(to.node, client, number, &reply, floor)?;
        self.reply(to, client, number, reply);
        Ok(())
    }

    pub(crate) fn think(&mut self, group: GroupId, id: u64) {
        if self.mix.is_sharded() && group == GroupId::FIRST {
            return self.think_of_keys(group, id, &self.mix.kv_or_calm());
        }
        match (self.groups.get(group).service, self.mix.kv) {
            (Service::Kv(_), Some(mix)) => return self.think_of_keys(group, id, &mix),
            (Service::Kv(_) | Service::Registers, _) => {}
            // Scripts do what administrators do.
            (Service::Shards { .. }, _) => return,
        }
        if self.clients_rest {
            return;
        }
        let client = self.groups.client_mut(group, id);
        client.number += 1;
        let (number, mut to) = (client.number, group.member(client.target));
        let name = CommandId { client: id, number };
        let register = self.rng.random_range(0..REGISTERS);
        let request = if self.mix.chance(&mut self.rng, self.mix.read_per_mille) {
            if self.mix.chance(&mut self.rng, self.mix.read_anywhere_per_mille) {
                to = self.draw_member(group);
            }
            self.record(group, name, register, Wish::Read);
            Request::Read { question: Question::Register(register) }
        } else {
            self.record(group, name, register, Wish::Write);
            let padding_bytes = self.rng.random_range(0..=self.mix.padding_bytes_max);
            Request::Write { command: name.write_to(register, padding_bytes) }
        };
        self.agenda.after(PATIENCE_US, Happening::LoseHope { group, client: id, number });
        if let Some(time_us) = self.client_arrival((address(group, id), to), Kind::Request) {
            if self.plant == Plant::AskTwice {
                let again_us = time_us + self.rng.random_range(1..=ASKED_AGAIN_US_MAX);
                let request = request.clone();
                self.agenda.at(again_us, Happening::Ask { to, client: id, number, request });
            }
            self.agenda.at(time_us, Happening::Ask { to, client: id, number, request });
        }
        if self.mix.clients_do_not_wait {
            self.plan_thought(group, id);
        }
    }

    /// A client makes a request, as its history tells.
    pub(crate) fn record(&mut self, group: GroupId, name: CommandId, register: u8, wish: Wish) {
        let now_us = self.agenda.now_us();
        self.groups.get_mut(group).history.ask(now_us, name, register, wish);
    }

    /// Requests and replies get lost and are late, but come once: a command is sent only once.
    pub(crate) fn client_arrival(&mut self, link: Link, kind: Kind) -> Option<u64> {
        let now_us = self.agenda.now_us();
        let parcel = Parcel { link, kind, bytes: MESSAGE_BYTES };
        self.network.arrivals(now_us, parcel, &mut self.rng, &self.mix).first().copied()
    }

    /// A member answers.
    pub(crate) fn reply(&mut self, from: MemberId, client: u64, number: u64, reply: Reply) {
        match &reply {
            Reply::Done(_) if client == CHANGER => self.tally.changes += 1,
            Reply::Done(_) | Reply::Applied(..) | Reply::Configured(..) => self.tally.done += 1,
            Reply::Rejected => self.tally.rejected += 1,
            Reply::Unknown => self.tally.unknown += 1,
            Reply::Refused { .. } => self.tally.refused += 1,
            Reply::Read(_) | Reply::Found(..) | Reply::Configuration(..) => self.tally.reads += 1,
        }
        let now_us = self.agenda.now_us();
        self.trace.line(now_us, format_args!("{from} answers c{client}.{number} {reply:?}"));
        if client == HOST {
            self.hear_as_host(from, number, &reply);
        } else if client == OPERATOR || client == CHANGER {
            let group = self.groups.get_mut(from.group);
            group.history.hear(now_us, CommandId { client, number }, &reply);
            group.replies.insert(CommandId { client, number }, reply);
        } else {
            let link = (from, address(from.group, client));
            if let Some(time_us) = self.client_arrival(link, Kind::Reply) {
                self.agenda.at(time_us, Happening::Answer { from, client, number, reply });
            } else {
                self.lose_answer(client, number);
            }
        }
    }

    /// What was asked for is done, or was refused, and the client is in the dark. Whoever reads the
    /// trace is not.
    pub(crate) fn lose_answer(&mut self, client: u64, number: u64) {
        self.tally.answers_lost += 1;
        let now_us = self.agenda.now_us();
        self.trace.line(now_us, format_args!("c{client}.{number} never hears the answer"));
    }

    pub(crate) fn hear(
        &mut self,
        group: GroupId,
        id: u64,
        number: u64,
        reply: Reply,
    ) -> Result<(), Violation> {
        let home = self.home(group);
        if self.has_clerks(home) {
            return self.hear_of_keys(home, id, number, reply);
        }
        let other = self.draw_member(group).node;
        let name = CommandId { client: id, number };
        self.groups.get_mut(group).history.hear(self.agenda.now_us(), name, &reply);
        let client = self.groups.client_mut(group, id);
        if client.answered >= number {
            return Ok(());
        }
        client.answered = number;
        if let Reply::Refused { leader } = reply {
            client.target = leader.unwrap_or(other);
        }
        if !self.mix.clients_do_not_wait {
            self.plan_thought(group, id);
        }
        Ok(())
    }

    pub(crate) fn lose_hope(
        &mut self,
        group: GroupId,
        id: u64,
        number: u64,
    ) -> Result<(), Violation> {
        if self.has_clerks(group) {
            return self.lose_hope_of_keys(group, id, number);
        }
        let other = self.draw_member(group).node;
        let client = self.groups.client_mut(group, id);
        if client.answered >= number {
            return Ok(());
        }
        client.answered = number;
        client.target = other;
        if !self.mix.clients_do_not_wait {
            self.plan_thought(group, id);
        }
        Ok(())
    }

    pub(crate) fn plan_thought(&mut self, group: GroupId, client: u64) {
        let delay_us = 1_000 + self.rng.random_range(0..=self.mix.think_us_max);
        self.agenda.after(delay_us, Happening::Think { group, client });
    }
}
