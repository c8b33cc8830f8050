//! What no state can make acceptable: a command that breaks a limit by itself.
//!
//! Decides it for both sides alike: a member checks before it proposes, with its settings, and
//! `apply` checks again with the constants, since a log outlives settings.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    command::{Action, Command, Operand, Operation, Tenure, Txn},
    limits::{
        LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN, LOCK_OWNER_BYTES_MAX, LOCK_WAIT_MS_MAX, OutOfBounds,
        PairLimits, TXN_OPERATIONS_MAX,
    },
    outcome::Refusal,
};

impl Command<'_> {
    /// Checks it against the limits, its keys and values against these.
    ///
    /// # Errors
    /// [`Refusal::OutOfBounds`] or [`Refusal::ChangedTwice`].
    pub fn check(&self, limits: &PairLimits) -> Result<(), Refusal> {
        if let Some(guard) = &self.guard {
            limits.check_key(guard.lock)?;
        }
        match &self.operation {
            Operation::Put { key, value, .. } | Operation::Append { key, value } => {
                limits.check_key(key)?;
                Ok(limits.check_value(value)?)
            }
            Operation::Delete { key } => Ok(limits.check_key(key)?),
            Operation::Txn(txn) => check_txn(txn, limits),
            Operation::Grant { key, ttl_ms } => {
                limits.check_key(key)?;
                Ok(check_ttl(*ttl_ms)?)
            }
            Operation::Acquire { name, tenure, wait_ms, owner } => {
                limits.check_key(name)?;
                Ok(check_acquire(*tenure, *wait_ms, owner)?)
            }
            Operation::Release { name, .. } => Ok(limits.check_key(name)?),
            Operation::Compact { .. }
            | Operation::KeepAlive { .. }
            | Operation::Revoke { .. }
            | Operation::Expire { .. } => Ok(()),
        }
    }
}

fn check_txn(txn: &Txn<'_>, limits: &PairLimits) -> Result<(), Refusal> {
    let operations = txn.compares.len() + txn.then.len() + txn.otherwise.len();
    if operations > TXN_OPERATIONS_MAX {
        let limit = TXN_OPERATIONS_MAX;
        return Err(OutOfBounds::TxnTooLong { operations, limit }.into());
    }
    for compare in &txn.compares {
        limits.check_key(compare.key)?;
        match compare.operand {
            Operand::Value(value) => limits.check_value(value)?,
            Operand::Version(_)
            | Operand::CreateRevision(_)
            | Operand::ModRevision(_)
            | Operand::Lease(_) => {}
        }
    }
    for actions in [&txn.then, &txn.otherwise] {
        let mut changed = BTreeSet::new();
        for action in actions {
            limits.check_key(action.key())?;
            match action {
                Action::Put { value, .. } | Action::Append { value, .. } => {
                    limits.check_value(value)?;
                }
                Action::Get { .. } | Action::Delete { .. } => {}
            }
            if action.mutates() && !changed.insert(action.key()) {
                return Err(Refusal::ChangedTwice { key: Bytes::copy_from_slice(action.key()) });
            }
        }
    }
    Ok(())
}

fn check_ttl(ttl_ms: u64) -> Result<(), OutOfBounds> {
    let (min, max) = (LEASE_TTL_MS_MIN, LEASE_TTL_MS_MAX);
    if (min..=max).contains(&ttl_ms) {
        Ok(())
    } else {
        Err(OutOfBounds::TtlOutOfRange { ttl_ms, min, max })
    }
}

fn check_acquire(tenure: Tenure, wait_ms: u64, owner: &[u8]) -> Result<(), OutOfBounds> {
    match tenure {
        Tenure::Own { ttl_ms } => check_ttl(ttl_ms)?,
        Tenure::Lease(_) => {}
    }
    if wait_ms > LOCK_WAIT_MS_MAX {
        return Err(OutOfBounds::WaitTooLong { wait_ms, limit: LOCK_WAIT_MS_MAX });
    }
    if owner.len() > LOCK_OWNER_BYTES_MAX {
        let (bytes, limit) = (owner.len(), LOCK_OWNER_BYTES_MAX);
        return Err(OutOfBounds::OwnerTooLong { bytes, limit });
    }
    Ok(())
}
