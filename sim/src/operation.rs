//! What a clerk wants of a key/value store, and what it knows of it in the end.
//!
//! Every value says who wrote it: it is a row of tokens, one for each operation that had a part in
//! it, so that whoever reads it knows them all.

use std::fmt;

use bytes::Bytes;
use kvd::{
    command::{Command, Condition, Guard, LeaseId, Operation as Mutation, RequestId},
    outcome::{Answered, Claim, Header, Pair, Query},
};

use crate::machine::CommandId;

/// Names what a clerk wants once, however often it asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OperationName {
    /// Whose.
    pub client: u64,
    /// Which of that clerk's.
    pub number: u64,
}

impl fmt::Display for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}/{}", self.client, self.number)
    }
}

impl OperationName {
    /// What it leaves in a value, made longer by `padding_bytes`.
    pub fn token(self, padding_bytes: usize) -> Bytes {
        format!("{self}{:.<padding_bytes$};", "").into()
    }

    /// The operations that had a part in a value, in order; none for what is no token.
    pub fn of_value(value: &[u8]) -> impl Iterator<Item = Option<Self>> {
        let tokens = value.split_inclusive(|byte| *byte == b';');
        tokens.map(|token| Self::of_token(std::str::from_utf8(token).ok()?))
    }

    fn of_token(token: &str) -> Option<Self> {
        let name = token.strip_suffix(';')?.trim_end_matches('.');
        let (client, number) = name.strip_prefix('c')?.split_once('/')?;
        Some(Self { client: client.parse().ok()?, number: number.parse().ok()? })
    }
}

/// What a clerk wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Of which key, or of which lock.
    pub key: Bytes,
    /// What.
    pub kind: Kind,
}

/// What a clerk wants of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To know it.
    Get,
    /// To write it, if something holds.
    Put {
        /// What is written.
        value: Bytes,
        /// What has to hold.
        condition: Condition,
    },
    /// To append to it.
    Append {
        /// What is appended.
        value: Bytes,
        /// How long it may become.
        value_bytes_max: u64,
    },
    /// To remove it.
    Delete,
    /// Something of transactions, leases and locks: any command. Its keys are its own: what clerks
    /// saw of them is not judged as a history of a key.
    Command(Encoded),
    /// To know how a lease stands with the lock.
    Claim(LeaseId),
}

/// A command as the log carries it, which nobody has named yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Encoded {
    command: Bytes,
    /// Executed at most once, however often it is asked for.
    once: bool,
}

impl Encoded {
    /// This, while a lock is held, if a guard says so.
    pub fn new(operation: Mutation<'_>, guard: Option<Guard<'_>>) -> Self {
        let once = operation.takes_id();
        Self { command: Command { guard, ..Command::new(1, operation) }.encode(), once }
    }

    /// The same without an identity, for which a table may have no room: done again when it is asked
    /// for again.
    pub(crate) fn anonymous(operation: Mutation<'_>) -> Self {
        Self { once: false, ..Self::new(operation, None) }
    }

    pub(crate) fn decode(&self) -> Command<'_> {
        Command::decode(&self.command).expect("what was encoded decodes")
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Command { guard, operation, .. } = self.decode();
        match guard {
            Some(guard) => write!(f, "{operation:?} under {guard:?}"),
            None => write!(f, "{operation:?}"),
        }
    }
}

impl Operation {
    /// What the log carries for it; none for what needs no log.
    pub(crate) fn command(
        &self,
        name: CommandId,
        shards: u32,
        id: Option<RequestId>,
    ) -> Option<Bytes> {
        let key = &self.key[..];
        let operation = match &self.kind {
            Kind::Get | Kind::Claim(_) => return None,
            Kind::Command(encoded) => {
                return Some(name.name(&Command { id, shards, ..encoded.decode() }.encode()));
            }
            Kind::Put { value, condition } => {
                Mutation::Put { key, value, condition: *condition, lease: None }
            }
            Kind::Append { value, .. } => Mutation::Append { key, value },
            Kind::Delete => Mutation::Delete { key },
        };
        let mut command = Command { id, ..Command::new(shards, operation) };
        if let Kind::Append { value_bytes_max, .. } = &self.kind {
            command.bounds.value_bytes_max = *value_bytes_max;
        }
        Some(name.name(&command.encode()))
    }

    /// The shard that it is about.
    pub(crate) fn shard(&self, shards: u32) -> u32 {
        let named = Command::new(shards, Mutation::Delete { key: &self.key });
        named.shard().expect("a key has a shard")
    }

    /// What is asked for it, if it changes nothing.
    pub(crate) fn query(&self) -> Option<Query> {
        match &self.kind {
            Kind::Get => Some(Query::Get(self.key.clone())),
            Kind::Claim(lease) => Some(Query::Claim { name: self.key.clone(), lease: *lease }),
            Kind::Put { .. } | Kind::Append { .. } | Kind::Delete | Kind::Command(_) => None,
        }
    }

    /// Whether it is executed at most once, however often it is asked for.
    pub(crate) fn takes_id(&self) -> bool {
        match &self.kind {
            Kind::Get | Kind::Claim(_) => false,
            Kind::Put { .. } | Kind::Append { .. } | Kind::Delete => true,
            Kind::Command(encoded) => encoded.once,
        }
    }

    /// The lock that it takes, if it takes one.
    pub(crate) fn takes_lock(&self) -> Option<&Bytes> {
        let Kind::Command(encoded) = &self.kind else { return None };
        let takes = matches!(encoded.decode().operation, Mutation::Acquire { .. });
        takes.then_some(&self.key)
    }

    /// Whether what clerks see of it is judged as a history of its key.
    pub(crate) fn is_of_one_key(&self) -> bool {
        match &self.kind {
            Kind::Get | Kind::Put { .. } | Kind::Append { .. } | Kind::Delete => true,
            Kind::Command(_) | Kind::Claim(_) => false,
        }
    }
}

/// What a clerk knows of an operation when it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was done, once.
    Done(Done),
    /// It was not and will not be done.
    Never,
    /// It was done or not, or will be, but at most once.
    Unknown,
}

/// What an operation that was done answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// A Get, and where the shard stood.
    Read(Header, Option<Pair>),
    /// How a lease stood with a lock, and where the shard stood.
    Claim(Header, Claim),
    /// All else, and where the shard stood when that was said.
    Executed(Header, Answered),
}
