//! The state machine that the simulated members replicate: an application, and the history of all
//! that was ever applied to it, folded into one hash.
//!
//! Because the history depends on every entry, its place, its term and its stamp, two members that
//! differ anywhere in what they have applied differ in it for ever: one comparison checks a prefix.
//! What the application answered is folded in the same way, so that no two members may ever have
//! told different things of one entry.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use raft::{
    Applied, BadSnapshot, Capture, Digest, Entry, GroupTime, Index, Payload, StateMachine, Term,
};
use shardctl::{
    ids::Number,
    outcome::{Done, Refusal},
    target::Target,
};
use xxhash_rust::xxh3::xxh3_128;

use crate::application::{Application, Service};

/// How many registers there are.
pub const REGISTERS: u8 = 8;

/// What every command begins with: client, number.
pub(crate) const COMMAND_ID_BYTES: usize = 16;
/// What a command for a register begins with: that and the register.
const COMMAND_HEADER_BYTES: usize = COMMAND_ID_BYTES + 1;
/// What the first chunk of a snapshot holds: index, term, time, number of commands, history.
const STATE_CHUNK_BYTES: usize = 48;
/// The same of an application that answers something: and all that it answered.
const ANSWERING_CHUNK_BYTES: usize = STATE_CHUNK_BYTES + 16;

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

    /// A command for another application, under this name.
    pub(crate) fn name(self, inner: &[u8]) -> Bytes {
        let mut command = Vec::with_capacity(COMMAND_ID_BYTES + inner.len());
        command.extend(self.client.to_le_bytes());
        command.extend(self.number.to_le_bytes());
        command.extend_from_slice(inner);
        command.into()
    }

    /// The name of a command; none if it is not one of ours.
    pub fn of(command: &[u8]) -> Option<Self> {
        Some(Self { client: number_at(command, 0)?, number: number_at(command, 8)? })
    }
}

/// A read-only question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What does this register hold?
    Register(u8),
    /// One for the key/value store.
    Kv(kvd::outcome::Query),
    /// One for the shard controller: a configuration, or the latest.
    Configuration(Option<Number>),
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// What a register holds.
    Register(Answer),
    /// The key/value store's, and the last entry that the state had seen.
    Kv(Index, kvd::outcome::Answer),
    /// The shard controller's, and the last entry that the state had seen.
    Configuration(Index, Option<Arc<Target>>),
}

impl Told {
    /// The last entry that the state had seen.
    pub(crate) fn index(&self) -> Index {
        match self {
            Self::Register(Answer { index, .. })
            | Self::Kv(index, _)
            | Self::Configuration(index, _) => *index,
        }
    }
}

/// What a write answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Where it was applied.
    pub index: Index,
    /// What a daemon's machine said, if that is what was written to.
    pub said: Option<Said>,
}

/// What a daemon's machine said to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The key/value store.
    Kv(kvd::outcome::Response),
    /// The shard controller.
    Shards(Result<Done, Refusal>),
}

/// What a read of a register answers.
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
    /// All that was ever answered.
    answers: History,
    application: Application,
    /// A planted bug: see [`crate::Plant::SkipApply`].
    skips: bool,
}

impl Machine {
    /// A machine that has seen nothing.
    pub fn of(service: Service) -> Self {
        Self { application: Application::of(service), ..Self::default() }
    }

    /// The same, but it forgets to execute some commands, for testing the checkers.
    #[must_use]
    pub fn skipping(&self, skips: bool) -> Self {
        Self { skips, ..self.empty() }
    }

    /// All that it has seen.
    pub fn history(&self) -> History {
        self.history
    }

    /// All that it has answered.
    pub fn answers(&self) -> History {
        self.answers
    }

    /// The last entry that it has seen.
    pub fn last_applied(&self) -> Applied {
        self.applied
    }

    /// What it replicates.
    pub fn application(&self) -> &Application {
        &self.application
    }
}

impl StateMachine for Machine {
    type Query = Question;
    type Answer = Told;
    type Response = Response;
    type Capture = Frozen;

    fn understands(&self, command: &Bytes) -> bool {
        self.application.understands(command)
    }

    fn apply(&mut self, at: Applied, command: &Bytes) -> Response {
        self.applied = at;
        let skipped = self.skips && at.index.0.is_multiple_of(17);
        let mut said = None;
        if !skipped {
            self.history = self.history.then(at, Some(command));
            self.commands += u64::from(CommandId::of(command).is_some());
            said = self.application.apply(at, command);
            if let Some(said) = &said {
                // All of it, whatever there is to it, as people read it.
                let said = format!("{said:?}");
                self.answers = self.answers.then(at, Some(said.as_bytes()));
            }
        }
        Response { index: at.index, said }
    }

    fn pass(&mut self, at: Applied) {
        self.applied = at;
        self.history = self.history.then(at, None);
        self.application.pass(at);
    }

    fn recover(&mut self) {
        self.application.recover();
    }

    fn query(&self, question: Question) -> Told {
        self.application.query(self.applied.index, question)
    }

    fn capture(&self) -> Frozen {
        Frozen(self.clone())
    }

    fn empty(&self) -> Self {
        Self { application: self.application.empty(), skips: self.skips, ..Self::default() }
    }

    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        let cut = || BadSnapshot("a chunk is cut".to_owned());
        let state = chunks.next().ok_or_else(cut)?;
        let mut restored = decode(&state).ok_or_else(cut)?;
        restored.application = self.application.restored(chunks)?;
        *self = Self { skips: self.skips, ..restored };
        Ok(())
    }

    fn digest(&self) -> u128 {
        let Self { applied, history, commands, answers: _, application, skips: _ } = self;
        let state = state_chunk(*applied, *history, *commands, History::default());
        application.fold_into(xxh3_128(&state[..STATE_CHUNK_BYTES]))
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
        let Machine { applied, history, commands, answers, application, skips: _ } = self.0;
        let state = state_chunk(applied, history, commands, answers);
        let bytes = match &application {
            Application::Registers(_) => STATE_CHUNK_BYTES,
            Application::Kv(_) | Application::Shards(_) => ANSWERING_CHUNK_BYTES,
        };
        let state = Bytes::copy_from_slice(&state[..bytes]);
        std::iter::once(state).chain(application.chunks())
    }
}

/// Everything but the application.
fn state_chunk(
    applied: Applied,
    history: History,
    commands: u64,
    answers: History,
) -> [u8; ANSWERING_CHUNK_BYTES] {
    let mut state = [0; ANSWERING_CHUNK_BYTES];
    let numbers = [applied.index.0, applied.term.0, applied.time.0, commands];
    for (place, number) in state.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    state[32..STATE_CHUNK_BYTES].copy_from_slice(&history.0.to_le_bytes());
    state[STATE_CHUNK_BYTES..].copy_from_slice(&answers.0.to_le_bytes());
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

pub(crate) fn number_at(bytes: &[u8], place: usize) -> Option<u64> {
    let bytes = bytes.get(place..place + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

fn decode(state: &[u8]) -> Option<Machine> {
    let applied = Applied {
        index: Index(number_at(state, 0)?),
        term: Term(number_at(state, 8)?),
        time: GroupTime(number_at(state, 16)?),
    };
    let commands = number_at(state, 24)?;
    let hash = |bytes: &[u8]| Some(History(u128::from_le_bytes(bytes.try_into().ok()?)));
    let history = hash(state.get(32..STATE_CHUNK_BYTES)?)?;
    let answers = state.get(STATE_CHUNK_BYTES..ANSWERING_CHUNK_BYTES);
    let answers = answers.map_or(Some(History::default()), hash)?;
    Some(Machine { applied, history, commands, answers, ..Machine::default() })
}
