//! The state machine that the simulated members replicate: registers, and the history of all that
//! was ever applied, folded into one hash.
//!
//! Because the history depends on every entry, its place, its term and its stamp, two members that
//! differ anywhere in what they have applied differ in it for ever: one comparison checks a prefix.

use std::fmt;

use bytes::Bytes;
use raft::{
    Applied, BadSnapshot, Capture, Digest, Entry, GroupTime, Index, Payload, StateMachine, Term,
};
use xxhash_rust::xxh3::xxh3_128;

/// How many registers there are.
pub const REGISTERS: u8 = 8;

/// What a command begins with: client, number, register.
const COMMAND_HEADER_BYTES: usize = 17;
/// What the first chunk of a snapshot holds: index, term, time, history, number of commands.
const STATE_CHUNK_BYTES: usize = 48;
/// What each further chunk holds: register, client, number.
const REGISTER_CHUNK_BYTES: usize = 17;

/// A log up to some entry, as one hash. Nobody forges entries here, so it need not be a strong one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct History(pub u128);

impl History {
    /// The history that goes on with an entry.
    #[must_use]
    pub fn then(self, at: Applied, command: Option<&[u8]>) -> Self {
        let hashed = command.map_or(0, xxh3_128);
        let numbers = [at.index.0, at.term.0, at.time.0, u64::from(command.is_some())];
        let mut bytes = [0; 64];
        bytes[..16].copy_from_slice(&self.0.to_le_bytes());
        bytes[16..32].copy_from_slice(&hashed.to_le_bytes());
        for (place, number) in bytes[32..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        Self(xxh3_128(&bytes))
    }

    /// The same for an entry of a log.
    #[must_use]
    pub fn then_entry(self, entry: &Entry) -> Self {
        let at = Applied { index: entry.index, term: entry.term, time: entry.stamp };
        match &entry.payload {
            Payload::Noop | Payload::Tick | Payload::Membership(_) => self.then(at, None),
            Payload::Command(command) => self.then(at, Some(command)),
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 96)
    }
}

/// Names a command; no two commands of a run have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandId {
    /// Who sent it.
    pub client: u64,
    /// Which of that client's.
    pub number: u64,
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}.{}", self.client, self.number)
    }
}

impl CommandId {
    /// A command that writes its own name to a register, made longer by `padding_bytes`.
    pub fn write_to(self, register: u8, padding_bytes: usize) -> Bytes {
        let mut command = Vec::with_capacity(COMMAND_HEADER_BYTES + padding_bytes);
        command.extend(self.client.to_le_bytes());
        command.extend(self.number.to_le_bytes());
        command.push(register % REGISTERS);
        command.resize(COMMAND_HEADER_BYTES + padding_bytes, 0x2e);
        command.into()
    }

    /// The name of a command; none if it is not one of ours.
    pub fn of(command: &[u8]) -> Option<Self> {
        Some(Self { client: number_at(command, 0)?, number: number_at(command, 8)? })
    }
}

/// What a write answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Where it was applied.
    pub index: Index,
}

/// What a read answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The last entry that the state had seen.
    pub index: Index,
    /// The last write to the register.
    pub value: Option<CommandId>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(name) => write!(f, "{:?}: {name}", self.index),
            None => write!(f, "{:?}: nothing", self.index),
        }
    }
}

/// The state.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    applied: Applied,
    history: History,
    commands: u64,
    registers: [Option<CommandId>; REGISTERS as usize],
    /// A planted bug: see [`crate::Plant::SkipApply`].
    skips: bool,
}

impl Machine {
    /// A machine that forgets to execute some commands, for testing the checkers.
    pub fn skipping(skips: bool) -> Self {
        Self { skips, ..Self::default() }
    }

    /// All that it has seen.
    pub fn history(&self) -> History {
        self.history
    }

    /// The last entry that it has seen.
    pub fn last_applied(&self) -> Applied {
        self.applied
    }
}

impl StateMachine for Machine {
    type Query = u8;
    type Answer = Answer;
    type Response = Response;
    type Capture = Frozen;

    fn understands(&self, _: &Bytes) -> bool {
        true
    }

    fn apply(&mut self, at: Applied, command: &Bytes) -> Response {
        self.applied = at;
        let skipped = self.skips && at.index.0.is_multiple_of(17);
        if !skipped {
            self.history = self.history.then(at, Some(command));
            let register = command.get(16).and_then(|it| self.registers.get_mut(usize::from(*it)));
            if let (Some(id), Some(register)) = (CommandId::of(command), register) {
                self.commands += 1;
                *register = Some(id);
            }
        }
        Response { index: at.index }
    }

    fn pass(&mut self, at: Applied) {
        self.applied = at;
        self.history = self.history.then(at, None);
    }

    /// Nothing here is given out, and no group is recovered.
    fn recover(&mut self) {}

    fn query(&self, register: u8) -> Answer {
        Answer {
            index: self.applied.index,
            value: self.registers.get(usize::from(register)).copied().flatten(),
        }
    }

    fn capture(&self) -> Frozen {
        Frozen(self.clone())
    }

    fn empty(&self) -> Self {
        Self::skipping(self.skips)
    }

    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        let restored = decode(chunks).ok_or_else(|| BadSnapshot("a chunk is cut".to_owned()))?;
        *self = Self { skips: self.skips, ..restored };
        Ok(())
    }

    fn digest(&self) -> u128 {
        let Self { applied, history, commands, registers, skips: _ } = self;
        let mut digest = xxh3_128(&state_chunk(*applied, *history, *commands));
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
}

/// A frozen state.
#[derive(Clone, Debug)]
pub struct Frozen(Machine);

impl Frozen {
    /// All that the state has seen.
    pub fn history(&self) -> History {
        self.0.history
    }
}

impl Capture for Frozen {
    fn chunks(self) -> impl Iterator<Item = Bytes> + Send {
        let Machine { applied, history, commands, registers, skips: _ } = self.0;
        let state = Bytes::copy_from_slice(&state_chunk(applied, history, commands));
        let registers = (0..REGISTERS).zip(registers).filter_map(|(register, id)| {
            let CommandId { client, number } = id?;
            let mut chunk = Vec::with_capacity(REGISTER_CHUNK_BYTES);
            chunk.push(register);
            chunk.extend(client.to_le_bytes());
            chunk.extend(number.to_le_bytes());
            Some(Bytes::from(chunk))
        });
        std::iter::once(state).chain(registers)
    }
}

/// Everything but the registers.
fn state_chunk(applied: Applied, history: History, commands: u64) -> [u8; STATE_CHUNK_BYTES] {
    let mut state = [0; STATE_CHUNK_BYTES];
    let numbers = [applied.index.0, applied.term.0, applied.time.0, commands];
    for (place, number) in state.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    state[32..].copy_from_slice(&history.0.to_le_bytes());
    state
}

/// The digest of a snapshot's chunks.
pub fn manifest(chunks: &[Bytes]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for chunk in chunks {
        hasher.update(&(chunk.len() as u64).to_le_bytes());
        hasher.update(chunk);
    }
    Digest(*hasher.finalize().as_bytes())
}

fn number_at(bytes: &[u8], place: usize) -> Option<u64> {
    let bytes = bytes.get(place..place + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

fn decode(chunks: &mut dyn Iterator<Item = Bytes>) -> Option<Machine> {
    let state = chunks.next()?;
    let applied = Applied {
        index: Index(number_at(&state, 0)?),
        term: Term(number_at(&state, 8)?),
        time: GroupTime(number_at(&state, 16)?),
    };
    let commands = number_at(&state, 24)?;
    let history = state.get(32..STATE_CHUNK_BYTES)?.try_into().ok()?;
    let history = History(u128::from_le_bytes(history));
    let mut registers = [None; REGISTERS as usize];
    for chunk in chunks {
        let id = CommandId { client: number_at(&chunk, 1)?, number: number_at(&chunk, 9)? };
        *registers.get_mut(usize::from(*chunk.first()?))? = Some(id);
    }
    Some(Machine { applied, history, commands, registers, skips: false })
}
