//! What scripted scenarios do with a key/value store: have clerks want something and wait for what
//! becomes of it, part the members, and ask members directly, under any identity.

use bytes::Bytes;
use kvd::{
    KvMachine,
    command::{Condition, RequestId},
};
use raft::NodeId;

use crate::{
    World,
    agenda::Input,
    clerk::Clerk,
    client::{OPERATOR, Request},
    group::{Group, GroupId},
    invariants::Violation,
    machine::CommandId,
    member::Member,
    operation::{Kind, Operation, OperationName, Verdict},
};

/// The clerk that looks at every key when all is over.
pub(crate) const AUDITOR: u64 = 900_000;

/// What a script has a clerk want; what is written is the clerk's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To know a key.
    Get,
    /// To write it.
    Put,
    /// To write it, with so many bytes more.
    PutPadded(usize),
    /// To write it if something holds.
    PutIf(Condition),
    /// To append to it.
    Append,
    /// To remove it.
    Delete,
}

impl World {
    /// A clerk that does nothing by itself wants something from now on; [`World::verdict`] tells
    /// what became of it. Its number is above those of the clerks that the mix has.
    pub fn wish(&mut self, client: u64, key: &str, wish: Wish) -> OperationName {
        assert!(client > self.mix.clients, "clerk {client} has things of its own to do");
        self.wish_in(
            self.home(self.spoken_of),
            client,
            Bytes::copy_from_slice(key.as_bytes()),
            wish,
        )
    }

    fn wish_in(&mut self, group: GroupId, client: u64, key: Bytes, wish: Wish) -> OperationName {
        let clerk = self.clerk(group, client);
        let padding_bytes = if let Wish::PutPadded(bytes) = wish { bytes } else { 0 };
        let value = clerk.next_name().token(padding_bytes);
        let kind = match wish {
            Wish::Get => Kind::Get,
            Wish::Put | Wish::PutPadded(_) => Kind::Put { value, condition: Condition::Always },
            Wish::PutIf(condition) => Kind::Put { value, condition },
            Wish::Append => Kind::Append { value, value_bytes_max: 1 << 20 },
            Wish::Delete => Kind::Delete,
        };
        self.begin_operation(group, client, Operation { key, kind })
    }

    fn clerk(&mut self, group: GroupId, client: u64) -> &mut Clerk {
        let Group { clerks, .. } = self.groups.get_mut(group);
        clerks.entry(client).or_insert_with(|| Clerk::scripted(group, client))
    }

    /// What became of what a script's clerk wanted; none while that is open.
    pub fn verdict(&self, name: OperationName) -> Option<&Verdict> {
        self.groups.get(self.home(self.spoken_of)).verdicts.get(&name)
    }

    /// Has a clerk want something and waits until it knows what became of it.
    ///
    /// # Errors
    /// A violation.
    pub fn execute(&mut self, client: u64, key: &str, wish: Wish) -> Result<Verdict, Violation> {
        let name = self.wish(client, key, wish);
        self.verdict_of(name)
    }

    /// Waits until a clerk knows what became of what it wants.
    pub(crate) fn verdict_of(&mut self, name: OperationName) -> Result<Verdict, Violation> {
        // A clerk gives up at its deadline.
        let limit_us = 2 * self.mix.kv_or_calm().deadline_us;
        self.run_until(limit_us, |world| world.verdict(name).is_some())?;
        let verdict = self.verdict(name).cloned();
        verdict.ok_or_else(|| Violation::new("R23", format!("{name} has no end")))
    }

    /// From now on a clerk knows of these members only.
    pub fn confine(&mut self, client: u64, members: &[NodeId]) {
        self.clerk(self.home(self.spoken_of), client).confine(members);
    }

    /// From now on a clerk takes a group for the owner of all shards, whatever it is told.
    pub fn mislead(&mut self, client: u64, group: GroupId) {
        self.clerk(self.home(self.spoken_of), client).mislead(group);
    }

    /// The clerks do nothing more by themselves.
    pub fn let_clerks_rest(&mut self) {
        self.clients_rest = true;
    }

    /// Whether no clerk waits for anything.
    pub fn clerks_are_idle(&self) -> bool {
        self.groups.get(self.home(self.spoken_of)).clerks.values().all(Clerk::is_idle)
    }

    /// The clerks go on.
    pub fn wake_clerks(&mut self) {
        self.clients_rest = false;
        for client in 1..=self.mix.clients {
            self.plan_thought(self.home(self.spoken_of), client);
        }
    }

    /// Parts the members into these and the others, who hear nothing of each other.
    pub fn part_off(&mut self, some: &[NodeId]) {
        let ids: Vec<NodeId> = self.members().map(|member| member.id).collect();
        self.heal();
        for &one in ids.iter().filter(|id| some.contains(id)) {
            for &other in ids.iter().filter(|id| !some.contains(id)) {
                self.cut(one, other);
                self.cut(other, one);
            }
        }
    }

    /// Asks one member directly, once, under any identity; [`World::reply_to`] tells what became of
    /// it. What clerks saw says nothing of such requests, so that no clerk should use their keys.
    pub fn submit(
        &mut self,
        to: NodeId,
        id: Option<RequestId>,
        operation: &Operation,
    ) -> CommandId {
        let to = self.spoken_of.member(to);
        let shards = self.mix.kv_or_calm().settings.shards;
        let number = self.groups.get_mut(to.group).next_operation();
        let name = CommandId { client: OPERATOR, number };
        if let Some(command) = operation.command(name, shards, id) {
            let request = Request::Write { command };
            self.give(to, Input::Ask { client: OPERATOR, number, request });
        }
        name
    }

    /// The store of a member that is up.
    pub fn store_of(&self, id: NodeId) -> Option<&KvMachine> {
        self.member(id).replica()?.machine().application().kv()
    }

    /// Looks at every key that a clerk ever used.
    pub(crate) fn audit(&mut self, group: GroupId) -> Result<(), Violation> {
        if self.home(group) != group || !self.has_clerks(group) {
            return Ok(());
        }
        let keys = self.groups.get(group).kv_history.keys();
        let names: Vec<OperationName> =
            keys.into_iter().map(|key| self.wish_in(group, AUDITOR, key, Wish::Get)).collect();
        let limit_us = self.mix.kv_or_calm().deadline_us;
        let done = |world: &Self| {
            let verdicts = &world.groups.get(group).verdicts;
            names.iter().all(|name| matches!(verdicts.get(name), Some(Verdict::Done(_))))
        };
        if self.run_until(limit_us, done)? {
            return Ok(());
        }
        Err(Violation::new("R23", "a clerk is not answered when all is at rest").of(group))
    }
}

impl Member {
    /// How many bytes of log are on its disk.
    pub fn log_bytes(&self) -> u64 {
        self.disk().image().entries().map(raft::Entry::size).sum()
    }

    /// How many bytes its last snapshot has.
    pub fn snapshot_bytes(&self) -> Option<u64> {
        self.disk().image().snapshot.as_ref().map(|root| root.bytes)
    }
}
