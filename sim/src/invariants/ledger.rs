//! All that was executed in a store, in the order in which it was committed, and what must hold of it:
//! of one group that has it alone, or of all groups between which its shards move.
//!
//! A shard is frozen in one log before it is installed by another, so that what was executed in both
//! comes here in one order, and who has the shard makes no difference to what must hold.

use kvd::{
    command::{Command, RequestId},
    outcome::Refusal,
    step::Step,
};
use shardctl::ShardMachine;

use super::{
    RequestName, Seen, Violation, acknowledged_numbers, at_most_once, conservation,
    controller_fencing, custodians::Custodians, exclusive_ownership, expiry, fencing,
    ghost::Executed, guards, handoff_equality, key_value, lease_life, lock_exclusion,
    lock_handover, lock_independence, lock_release, promises, rejection, same_reply, transactions,
    turn, wanted,
};
use crate::{
    group::GroupId,
    operation::{OperationName, Verdict},
};

/// What a store must be, and the checkers' memory of it.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    only: Option<&'static str>,
    executions: at_most_once::Executions,
    promises: promises::Promises,
    numbers: acknowledged_numbers::Numbers,
    expiry: expiry::Expiry,
    model: turn::Model,
    tokens: lock_exclusion::Tokens,
    custodians: Option<Custodians>,
    ownership: exclusive_ownership::Ownership,
}

impl Ledger {
    /// Of a store of one group.
    pub(crate) fn alone(only: Option<&'static str>) -> Self {
        Self { only, ..Self::default() }
    }

    /// Of a store whose shards move between groups.
    pub(crate) fn shared(only: Option<&'static str>) -> Self {
        Self { custodians: Some(Custodians::default()), ..Self::alone(only) }
    }

    /// How many shards have arrived somewhere.
    pub(crate) fn moves(&self) -> u64 {
        self.custodians.as_ref().map_or(0, Custodians::arrivals)
    }

    /// The shard controller has executed something.
    pub(super) fn decided(&mut self, controller: &ShardMachine) {
        if let Some(custodians) = &mut self.custodians {
            custodians.hear(controller);
        }
    }

    /// A command was committed by a group.
    pub(super) fn take(&mut self, group: GroupId, executed: &Executed) -> Result<(), Violation> {
        if let Some(step) = executed.step() {
            return self.stepped(group, executed, &step);
        }
        let Some(command) = executed.command() else { return Ok(()) };
        if let Some(custodians) = &self.custodians {
            self.keep(rejection::check(custodians, group, executed))?;
            let found = self.ownership.check(custodians, group, executed);
            self.keep(found)?;
        }
        // What is refused here is asked of another group, and as if it had never been asked.
        if matches!(executed.response.result, Err(Refusal::NotServed { .. })) {
            return Ok(());
        }
        self.compared(executed, &command)?;
        let Some(id) = &command.id else { return Ok(()) };
        let seen = Seen { id, group, executed };
        // What is executed although it was acknowledged may be executed twice as well: the cause
        // is told before the effect.
        let found = self.numbers.check(seen);
        self.keep(found)?;
        let found = self.executions.check(seen);
        self.keep(found)?;
        self.keep(same_reply::check(&self.executions, seen))?;
        self.keep(self.promises.check(seen))?;
        let found = self.expiry.check(&self.executions, &self.numbers, seen);
        self.keep(found)
    }

    /// A step of a move was committed by a group.
    fn stepped(
        &mut self,
        group: GroupId,
        executed: &Executed,
        step: &Step<'_>,
    ) -> Result<(), Violation> {
        let Some(custodians) = &mut self.custodians else { return Ok(()) };
        let Some(stride) = custodians.take(group, executed, step) else { return Ok(()) };
        let custodians = &*custodians;
        let found = [
            controller_fencing::check(custodians, &stride),
            fencing::check(custodians, &stride),
            exclusive_ownership::check(custodians, &stride),
            handoff_equality::check(custodians, &stride),
            conservation::check(custodians, &self.model, &stride),
        ];
        found.into_iter().try_for_each(|found| self.keep(found))
    }

    /// A command is compared with what it must come to. What it is about is told before that it
    /// differs at all.
    fn compared(&mut self, executed: &Executed, command: &Command<'_>) -> Result<(), Violation> {
        let only = self.only;
        let turn = self.model.take(executed, command);
        let found = [
            guards::check(&turn),
            lock_release::check(&turn),
            self.tokens.check(&turn),
            lock_independence::check(&turn),
            lease_life::check(&turn),
            lock_handover::check(&turn),
            transactions::check(&turn),
            key_value::check(&turn),
        ];
        found.into_iter().try_for_each(|found| wanted(only, found))
    }

    /// A clerk has come to know what became of a request.
    pub(crate) fn concluded(
        &mut self,
        name: OperationName,
        shard: u32,
        id: &RequestId,
        verdict: &Verdict,
    ) -> Result<(), Violation> {
        let request = RequestName::of(shard, id);
        let found = self.promises.conclude(&self.executions, name, request, verdict);
        self.keep(found)
    }

    /// Leaves out what nobody looks at.
    fn keep(&self, found: Result<(), Violation>) -> Result<(), Violation> {
        wanted(self.only, found)
    }
}
