//! What the members of a group replicate: registers, the simulator's own and smallest, or the
//! key/value store of the daemons, the very machine that they run.
//!
//! One type that is either, so that a world may have groups of both. Every command begins with the
//! name of the attempt that brought it ([`CommandId`]); what follows is the application's.

use std::fmt;

use bytes::Bytes;
use kvd::{KvMachine, MachineLimits, session::SessionLimits};
use raft::{Applied, BadSnapshot, Capture, Index, StateMachine};
use xxhash_rust::xxh3::xxh3_128;

use crate::machine::{Answer, COMMAND_ID_BYTES, CommandId, Question, REGISTERS, Told, number_at};

/// What each chunk of a snapshot of registers holds: register, client, number.
const REGISTER_CHUNK_BYTES: usize = COMMAND_ID_BYTES + 1;

/// How a key/value store is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSettings {
    /// How many shards it has.
    pub shards: u32,
    /// How much its exactly-once tables hold.
    pub limits: SessionLimits,
}

impl Default for KvSettings {
    fn default() -> Self {
        Self { shards: 4, limits: SessionLimits::default() }
    }
}

/// What a machine holds.
#[derive(Clone, Debug)]
pub enum Application {
    /// The last command that wrote to each.
    Registers([Option<CommandId>; REGISTERS as usize]),
    /// A key/value store.
    Kv(KvMachine),
}

impl Default for Application {
    fn default() -> Self {
        Self::Registers([None; REGISTERS as usize])
    }
}

impl Application {
    pub(crate) fn of(kv: Option<&KvSettings>) -> Self {
        match kv {
            None => Self::default(),
            Some(KvSettings { shards, limits }) => {
                // Of the past as little as there can be, as the labs' bounds on snapshots want it.
                let (changes_bytes, changes_bytes_per_shard_min) = (0, 0);
                let sessions = *limits;
                let limits = MachineLimits { sessions, changes_bytes, changes_bytes_per_shard_min };
                Self::Kv(KvMachine::with_limits(*shards, limits))
            }
        }
    }

    /// The key/value store, if it is one.
    pub fn kv(&self) -> Option<&KvMachine> {
        match self {
            Self::Registers(_) => None,
            Self::Kv(machine) => Some(machine),
        }
    }

    pub(crate) fn understands(&self, command: &Bytes) -> bool {
        match self {
            Self::Registers(_) => true,
            Self::Kv(machine) => machine.understands(&inner(command)),
        }
    }

    pub(crate) fn apply(&mut self, at: Applied, command: &Bytes) -> Option<kvd::outcome::Response> {
        match self {
            Self::Registers(registers) => {
                let register = command.get(COMMAND_ID_BYTES);
                let register = register.and_then(|it| registers.get_mut(usize::from(*it)));
                if let (Some(id), Some(register)) = (CommandId::of(command), register) {
                    *register = Some(id);
                }
                None
            }
            Self::Kv(machine) => Some(machine.apply(at, &inner(command))),
        }
    }

    pub(crate) fn pass(&mut self, at: Applied) {
        match self {
            Self::Registers(_) => {}
            Self::Kv(machine) => machine.pass(at),
        }
    }

    pub(crate) fn recover(&mut self) {
        match self {
            // Nothing of them is given out.
            Self::Registers(_) => {}
            Self::Kv(machine) => machine.recover(),
        }
    }

    /// Answers a question. One for the other application finds nothing.
    pub(crate) fn query(&self, index: Index, question: Question) -> Told {
        match (self, question) {
            (Self::Registers(registers), Question::Register(register)) => {
                let value = registers.get(usize::from(register)).copied().flatten();
                Told::Register(Answer { index, value })
            }
            (Self::Kv(machine), Question::Kv(query)) => Told::Kv(index, machine.query(query)),
            (Self::Registers(_), Question::Kv(_)) => {
                Told::Kv(index, kvd::outcome::Answer::Created(None))
            }
            (Self::Kv(_), Question::Register(_)) => Told::Register(Answer { index, value: None }),
        }
    }

    pub(crate) fn empty(&self) -> Self {
        match self {
            Self::Registers(_) => Self::default(),
            Self::Kv(machine) => Self::Kv(machine.empty()),
        }
    }

    /// What the chunks of a snapshot amount to.
    pub(crate) fn restored(
        &self,
        chunks: &mut dyn Iterator<Item = Bytes>,
    ) -> Result<Self, BadSnapshot> {
        match self.empty() {
            Self::Registers(mut registers) => {
                for chunk in chunks {
                    put_register(&mut registers, &chunk)
                        .ok_or_else(|| BadSnapshot("a chunk is cut".to_owned()))?;
                }
                Ok(Self::Registers(registers))
            }
            Self::Kv(mut machine) => {
                machine.restore(chunks)?;
                Ok(Self::Kv(machine))
            }
        }
    }

    pub(crate) fn chunks(self) -> Box<dyn Iterator<Item = Bytes> + Send> {
        match self {
            Self::Registers(registers) => Box::new(
                (0..REGISTERS)
                    .zip(registers)
                    .filter_map(|(register, id)| Some(register_chunk(register, id?))),
            ),
            Self::Kv(machine) => Box::new(machine.capture().chunks()),
        }
    }

    /// A digest that goes on with what is here.
    pub(crate) fn fold_into(&self, mut digest: u128) -> u128 {
        match self {
            Self::Registers(registers) => {
                for id in registers {
                    let CommandId { client, number } = id.unwrap_or_default();
                    let mut bytes = [0; 33];
                    bytes[..16].copy_from_slice(&digest.to_le_bytes());
                    bytes[16..24].copy_from_slice(&client.to_le_bytes());
                    bytes[24..32].copy_from_slice(&number.to_le_bytes());
                    bytes[32] = u8::from(id.is_some());
                    digest = xxh3_128(&bytes);
                }
                digest
            }
            Self::Kv(machine) => {
                let mut bytes = [0; 32];
                bytes[..16].copy_from_slice(&digest.to_le_bytes());
                bytes[16..].copy_from_slice(&machine.digest().to_le_bytes());
                xxh3_128(&bytes)
            }
        }
    }
}

impl fmt::Display for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registers(_) => write!(f, "registers"),
            Self::Kv(_) => write!(f, "a key/value store"),
        }
    }
}

/// What of a command is for the key/value store; nothing, if it is too short to be one.
pub(crate) fn inner(command: &Bytes) -> Bytes {
    if command.len() < COMMAND_ID_BYTES { Bytes::new() } else { command.slice(COMMAND_ID_BYTES..) }
}

fn register_chunk(register: u8, id: CommandId) -> Bytes {
    let mut chunk = Vec::with_capacity(REGISTER_CHUNK_BYTES);
    chunk.push(register);
    chunk.extend(id.client.to_le_bytes());
    chunk.extend(id.number.to_le_bytes());
    chunk.into()
}

fn put_register(registers: &mut [Option<CommandId>], chunk: &[u8]) -> Option<()> {
    let id = CommandId { client: number_at(chunk, 1)?, number: number_at(chunk, 9)? };
    *registers.get_mut(usize::from(*chunk.first()?))? = Some(id);
    Some(())
}
