//! What the members of a group replicate: registers, the simulator's own and smallest, or the
//! machine of a daemon, the very one that it runs: the key/value store or the shard controller.
//!
//! One type that is any of them, so that a world may have groups of each. Every command begins with the
//! name of the attempt that brought it ([`CommandId`]); what follows is the application's.

use std::{fmt, num::NonZeroU32};

use bytes::Bytes;
use kvd::{KvMachine, MachineLimits, session::SessionLimits};
use raft::{Applied, BadSnapshot, Capture, Index, StateMachine};
use shardctl::ShardMachine;
use xxhash_rust::xxh3::xxh3_128;

use crate::machine::{
    Answer, COMMAND_ID_BYTES, CommandId, Question, REGISTERS, Said, Told, number_at,
};

/// What each chunk of a snapshot of registers holds: register, client, number.
const REGISTER_CHUNK_BYTES: usize = COMMAND_ID_BYTES + 1;

/// How a key/value store is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSettings {
    /// How many shards it has.
    pub shards: u32,
    /// How much its exactly-once tables hold.
    pub limits: SessionLimits,
    /// How many bytes of changes are kept of a shard that is copied.
    pub held_changes_bytes: u64,
    /// How much of a shard that has gone is removed by one entry.
    pub discarded_per_step: usize,
}

impl Default for KvSettings {
    fn default() -> Self {
        let limits = SessionLimits::default();
        let MachineLimits { held_changes_bytes, discarded_per_step, .. } = limits.into();
        Self { shards: 4, limits, held_changes_bytes, discarded_per_step }
    }
}

/// What a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Registers.
    Registers,
    /// A key/value store.
    Kv(KvSettings),
    /// The shard controller.
    Shards {
        /// Of so many shards, as administrators ask for.
        shards: NonZeroU32,
    },
}

impl Service {
    /// How the key/value store is made, if it is one.
    pub fn kv(&self) -> Option<KvSettings> {
        match self {
            Self::Kv(settings) => Some(*settings),
            Self::Registers | Self::Shards { .. } => None,
        }
    }
}

/// What a machine holds.
#[derive(Clone, Debug)]
pub enum Application {
    /// The last command that wrote to each.
    Registers([Option<CommandId>; REGISTERS as usize]),
    /// A key/value store.
    Kv(KvMachine),
    /// The shard controller.
    Shards(Box<ShardMachine>),
}

impl Default for Application {
    fn default() -> Self {
        Self::Registers([None; REGISTERS as usize])
    }
}

impl Application {
    pub(crate) fn of(service: Service) -> Self {
        match service {
            Service::Registers => Self::default(),
            Service::Shards { .. } => Self::Shards(Box::default()),
            Service::Kv(settings) => {
                let KvSettings { shards, limits, held_changes_bytes, discarded_per_step } =
                    settings;
                let limits = MachineLimits {
                    sessions: limits,
                    // Of the past as little as there can be, as the labs' bounds on snapshots want it.
                    changes_bytes: 0,
                    changes_bytes_per_shard_min: 0,
                    held_changes_bytes,
                    discarded_per_step,
                };
                Self::Kv(KvMachine::with_limits(shards, limits))
            }
        }
    }

    /// The key/value store, if it is one.
    pub fn kv(&self) -> Option<&KvMachine> {
        match self {
            Self::Kv(machine) => Some(machine),
            Self::Registers(_) | Self::Shards(_) => None,
        }
    }

    /// The shard controller, if it is one.
    pub fn shards(&self) -> Option<&ShardMachine> {
        match self {
            Self::Shards(machine) => Some(machine),
            Self::Registers(_) | Self::Kv(_) => None,
        }
    }

    pub(crate) fn understands(&self, command: &Bytes) -> bool {
        match self {
            Self::Registers(_) => true,
            Self::Kv(machine) => machine.understands(&inner(command)),
            Self::Shards(machine) => machine.understands(&inner(command)),
        }
    }

    pub(crate) fn apply(&mut self, at: Applied, command: &Bytes) -> Option<Said> {
        match self {
            Self::Registers(registers) => {
                let register = command.get(COMMAND_ID_BYTES);
                let register = register.and_then(|it| registers.get_mut(usize::from(*it)));
                if let (Some(id), Some(register)) = (CommandId::of(command), register) {
                    *register = Some(id);
                }
                None
            }
            Self::Kv(machine) => Some(Said::Kv(machine.apply(at, &inner(command)))),
            Self::Shards(machine) => Some(Said::Shards(machine.apply(at, &inner(command)))),
        }
    }

    pub(crate) fn pass(&mut self, at: Applied) {
        match self {
            Self::Registers(_) => {}
            Self::Kv(machine) => machine.pass(at),
            Self::Shards(machine) => machine.pass(at),
        }
    }

    pub(crate) fn recover(&mut self) {
        match self {
            // Nothing of them is given out.
            Self::Registers(_) => {}
            Self::Kv(machine) => machine.recover(),
            Self::Shards(machine) => machine.recover(),
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
            (Self::Shards(machine), Question::Configuration(number)) => {
                let latest = || machine.latest();
                let told = number.map_or_else(latest, |number| machine.configuration(number));
                Told::Configuration(index, told.cloned())
            }
            (Self::Registers(_) | Self::Shards(_), Question::Kv(_)) => {
                Told::Kv(index, kvd::outcome::Answer::Created(None))
            }
            (Self::Kv(_) | Self::Shards(_), Question::Register(_)) => {
                Told::Register(Answer { index, value: None })
            }
            (Self::Registers(_) | Self::Kv(_), Question::Configuration(_)) => {
                Told::Configuration(index, None)
            }
        }
    }

    pub(crate) fn empty(&self) -> Self {
        match self {
            Self::Registers(_) => Self::default(),
            Self::Kv(machine) => Self::Kv(machine.empty()),
            Self::Shards(machine) => Self::Shards(Box::new(machine.empty())),
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
            Self::Shards(mut machine) => {
                machine.restore(chunks)?;
                Ok(Self::Shards(machine))
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
            Self::Shards(machine) => Box::new(machine.capture().chunks()),
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
            Self::Kv(machine) => folded(digest, machine.digest()),
            Self::Shards(machine) => folded(digest, machine.digest()),
        }
    }
}

impl fmt::Display for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registers(_) => write!(f, "registers"),
            Self::Kv(_) => write!(f, "a key/value store"),
            Self::Shards(_) => write!(f, "a shard controller"),
        }
    }
}

fn folded(digest: u128, with: u128) -> u128 {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&digest.to_le_bytes());
    bytes[16..].copy_from_slice(&with.to_le_bytes());
    xxh3_128(&bytes)
}

/// What of a command is for a daemon's machine; nothing, if it is too short to be one.
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
