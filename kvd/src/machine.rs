//! The key/value store as a replicated state machine: shards in a row, and the group's time.
//!
//! Decides which shard a command belongs to and how many shards there are: the first command of a
//! cluster fixes the number. Pure: no clock, no randomness, no IO; the same commands give the same
//! state and the same digest on every member.

use std::collections::BTreeSet;

use bytes::Bytes;
use proto::shard_of;
use raft::{Applied, BadSnapshot, GroupTime, RECOVERY_GAP, StateMachine};

use crate::{
    capture::KvCapture,
    command::{self, Command, check_version},
    custody::Custody,
    digest,
    encoding::Entry,
    limits::{
        CHANGES_BYTES_MAX, CHANGES_BYTES_PER_SHARD_MIN, DISCARDED_PER_STEP, HELD_CHANGES_BYTES,
        PairLimits, SHARDS_MAX,
    },
    outcome::{Answer, Header, Outcome, Query, Refusal, Response, Revision},
    restore,
    session::SessionLimits,
    shard::{Group, Shard, ShardLimits, first},
    step::Step,
};

/// The version of the machine's semantics, part of its snapshots.
pub const MACHINE_VERSION: u32 = 1;

/// How much of some things the machine may hold. The same on all members; other than the default
/// only in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineLimits {
    /// Of each shard's exactly-once table.
    pub sessions: SessionLimits,
    /// Bytes of all shards' change logs together.
    pub changes_bytes: u64,
    /// Bytes of a shard's change log that it may have anyway.
    pub changes_bytes_per_shard_min: u64,
    /// Bytes of a shard's change log that it may have while the shard is copied.
    pub held_changes_bytes: u64,
    /// Pairs, changes, rows, locks or leases that one step removes of a shard that has gone.
    pub discarded_per_step: usize,
}

impl Default for MachineLimits {
    fn default() -> Self {
        SessionLimits::default().into()
    }
}

impl From<SessionLimits> for MachineLimits {
    fn from(sessions: SessionLimits) -> Self {
        Self {
            sessions,
            changes_bytes: CHANGES_BYTES_MAX,
            changes_bytes_per_shard_min: CHANGES_BYTES_PER_SHARD_MIN,
            held_changes_bytes: HELD_CHANGES_BYTES,
            discarded_per_step: DISCARDED_PER_STEP,
        }
    }
}

impl MachineLimits {
    /// Those of one of so many shards.
    pub(crate) fn of_shard(&self, shards: u32) -> ShardLimits {
        let part = self.changes_bytes / u64::from(shards.max(1));
        let changes_bytes = part.max(self.changes_bytes_per_shard_min);
        let Self { sessions, held_changes_bytes, discarded_per_step, .. } = *self;
        ShardLimits { sessions, changes_bytes, held_changes_bytes, discarded_per_step }
    }
}

/// The state of one group.
///
/// Invariants: `digest` and `stored_bytes` are the sums over the shards; `due` holds exactly the
/// first deadline of each shard that has leases.
#[derive(Clone, Debug)]
pub struct KvMachine {
    /// How many shards this member's settings ask for; counts only before the first command.
    wanted: u32,
    limits: MachineLimits,
    /// All shards, by number; empty until the first command.
    pub(crate) shards: Vec<Shard>,
    /// The stamp of the last applied entry.
    pub(crate) time: GroupTime,
    /// How often the group was recovered; a shard that is made later begins behind that.
    recoveries: u64,
    /// The sum of the shards' digests.
    digest: u128,
    /// What all shards store.
    stored_bytes: u64,
    /// When the first lease of each shard is over, by group time. Follows from the shards.
    pub(crate) due: BTreeSet<(u64, u32)>,
}

impl KvMachine {
    /// An empty store. `shards` (from 1 to [`SHARDS_MAX`], else brought into that range) is the
    /// number with which requests are answered until the first command fixes it.
    pub fn new(shards: u32) -> Self {
        Self::with_limits(shards, MachineLimits::default())
    }

    /// An empty store with other limits: for tests, since all members must have the same.
    pub fn with_limits(shards: u32, limits: impl Into<MachineLimits>) -> Self {
        Self {
            wanted: shards.clamp(1, SHARDS_MAX),
            limits: limits.into(),
            shards: Vec::new(),
            time: GroupTime(0),
            recoveries: 0,
            digest: 0,
            stored_bytes: 0,
            due: BTreeSet::new(),
        }
    }

    /// How many shards the cluster was created with; none before the first command.
    pub fn created(&self) -> Option<u32> {
        u32::try_from(self.shards.len()).ok().filter(|&shards| shards > 0)
    }

    /// How many pairs there are.
    pub fn pairs(&self) -> u64 {
        self.shards.iter().map(|shard| shard.pairs.map().len() as u64).sum()
    }

    /// How many rows the exactly-once tables have.
    pub fn session_rows(&self) -> u64 {
        self.shards.iter().map(|shard| shard.sessions.rows().len() as u64).sum()
    }

    /// How many leases live, those of locks among them.
    pub fn leases(&self) -> u64 {
        self.shards.iter().map(|shard| shard.leases.len() as u64).sum()
    }

    /// How many locks are held.
    pub fn locks(&self) -> u64 {
        self.shards.iter().map(|shard| shard.locks.len() as u64).sum()
    }

    /// What is stored: pairs, changes, leases and locks, each with its named overhead.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    pub(crate) fn shards(&self) -> u32 {
        self.created().unwrap_or(self.wanted)
    }

    pub(crate) fn header_of(&self, key: &[u8]) -> Header {
        self.header(shard_of(key, self.shards()))
    }

    /// Where a shard stands; all zero but its number when there is no such shard.
    pub(crate) fn header(&self, number: u32) -> Header {
        let shards = self.shards();
        if number >= shards {
            return Header { shard: number, shards, ..Header::default() };
        }
        match self.shards.get(number as usize) {
            Some(shard) => shard.header(shards, self.time.0),
            None => self.empty_shard(number).header(shards, self.time.0),
        }
    }

    pub(crate) fn group(&self) -> Group {
        let (shards, time_ms) = (self.shards(), self.time.0);
        Group { shards, time_ms, stored_bytes: self.stored_bytes }
    }

    fn execute(&mut self, command: &Command<'_>) -> Result<Response, Refusal> {
        command.check(&PairLimits::default())?;
        let proposed = command.shards;
        match self.created() {
            None if (1..=SHARDS_MAX).contains(&proposed) => self.create(proposed),
            Some(created) if created == proposed => {}
            created => {
                let created = created.unwrap_or(self.wanted);
                return Err(Refusal::OtherShards { created, proposed });
            }
        }
        let number = command.shard()?;
        self.shards[number as usize].check_served()?;
        let group = self.group();
        Ok(self.change(number, |shard| shard.apply(&group, command)))
    }

    /// Changes a shard that there is, and what is known of all of them.
    fn change<R>(&mut self, number: u32, change: impl FnOnce(&mut Shard) -> R) -> R {
        let shard = &mut self.shards[number as usize];
        let (digest, stored_bytes) = (shard.digest(), shard.stored_bytes());
        let due = shard.earliest_deadline_ms();
        let result = change(shard);
        self.digest = self.digest.wrapping_sub(digest).wrapping_add(shard.digest());
        self.stored_bytes = self.stored_bytes - stored_bytes + shard.stored_bytes();
        let due_now = shard.earliest_deadline_ms();
        if due != due_now {
            if let Some(due) = due {
                self.due.remove(&(due, number));
            }
            self.due.extend(due_now.map(|due| (due, number)));
        }
        result
    }

    /// Does a step of a shard's move. If it is the first command, the shards are those of many
    /// groups, and none is here yet.
    fn step(&mut self, step: &Step<'_>) -> Result<Response, Refusal> {
        if self.created().is_none() && (1..=SHARDS_MAX).contains(&step.shards) {
            self.create(step.shards);
            self.shards.iter_mut().for_each(|shard| shard.custody = Custody::absent());
            self.digest = sum(&self.shards);
        }
        let (created, proposed) = (self.shards(), step.shards);
        if created != proposed {
            return Err(Refusal::OtherShards { created, proposed });
        }
        let number = command::exists(step.shard, created)?;
        let group = self.group();
        let result = self.change(number, |shard| shard.step(&group, step));
        let outcome = Outcome::Stepped(result?);
        Ok(Response { header: self.header(number), result: Ok(first(outcome)) })
    }

    fn create(&mut self, shards: u32) {
        self.shards = (0..shards).map(|number| self.new_shard(number, shards)).collect();
        self.digest = sum(&self.shards);
    }

    /// A shard as it is before the first command.
    pub(crate) fn empty_shard(&self, number: u32) -> Shard {
        self.new_shard(number, self.shards())
    }

    fn new_shard(&self, number: u32, shards: u32) -> Shard {
        let mut shard = Shard::new(number, self.limits.of_shard(shards));
        shard.revision = Revision(self.recoveries * RECOVERY_GAP);
        shard
    }

    /// Notes the time, and lets one shard forget what has expired: which one follows from the
    /// index, so that every shard gets its turn on every member alike.
    fn advance(&mut self, at: Applied) {
        self.time = self.time.max(at.time);
        let time = self.time.0;
        let Some(turn) = at.index.0.checked_rem(self.shards.len() as u64) else { return };
        let turn = u32::try_from(turn).expect("a remainder is below the number of shards");
        if self.shards[turn as usize].is_due(time) {
            self.change(turn, |shard| shard.sweep(time));
        }
    }

    /// The digest by going through everything anew: for tests of the one that is kept up.
    pub fn recomputed_digest(&self) -> u128 {
        let digest =
            self.shards.iter().fold(0_u128, |sum, it| sum.wrapping_add(it.recomputed_digest()));
        whole_digest(digest, self.shards.len(), self.time, self.recoveries)
    }

    /// What is stored by going through everything anew: for tests.
    pub fn recomputed_stored_bytes(&self) -> u64 {
        self.shards.iter().map(Shard::recomputed_stored_bytes).sum()
    }
}

impl StateMachine for KvMachine {
    type Query = Query;
    type Answer = Answer;
    type Response = Response;
    type Capture = KvCapture;

    fn understands(&self, command: &Bytes) -> bool {
        check_version(command).is_ok()
    }

    fn apply(&mut self, at: Applied, command: &Bytes) -> Response {
        self.advance(at);
        let (result, shard) = match Entry::decode(command) {
            Ok(Entry::Command(command)) => {
                (self.execute(&command), command.shard_among(self.shards()).ok())
            }
            Ok(Entry::Step(step)) => (self.step(&step), Some(step.shard)),
            Err(bad) => (Err(bad.into()), None),
        };
        result.unwrap_or_else(|refusal| {
            let header = shard.map_or_else(Header::default, |number| self.header(number));
            Response { header, result: Err(refusal) }
        })
    }

    fn pass(&mut self, at: Applied) {
        self.advance(at);
    }

    /// Revisions, and with them versions and tokens, were given out that are not in the state.
    fn recover(&mut self) {
        self.recoveries += 1;
        for shard in &mut self.shards {
            shard.revision.0 = shard.revision.0.saturating_add(RECOVERY_GAP);
        }
        self.digest = sum(&self.shards);
    }

    fn query(&self, query: Query) -> Answer {
        self.answer(query)
    }

    fn capture(&self) -> KvCapture {
        KvCapture::new(self.shards.clone(), self.time, self.recoveries, self.digest())
    }

    fn empty(&self) -> Self {
        Self::with_limits(self.wanted, self.limits)
    }

    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        let restored = restore::restore(chunks, self.limits)?;
        let (digest, time) = (sum(&restored.shards), restored.time);
        let recoveries = restored.recoveries;
        let whole = whole_digest(digest, restored.shards.len(), time, recoveries);
        if whole != restored.digest {
            return Err(BadSnapshot(format!(
                "the state's digest is {whole:032x}, the snapshot says {:032x}",
                restored.digest
            )));
        }
        self.due = restored
            .shards
            .iter()
            .filter_map(|shard| Some((shard.earliest_deadline_ms()?, shard.number)))
            .collect();
        self.stored_bytes = restored.shards.iter().map(Shard::stored_bytes).sum();
        self.shards = restored.shards;
        self.time = time;
        self.recoveries = recoveries;
        self.digest = digest;
        Ok(())
    }

    fn digest(&self) -> u128 {
        whole_digest(self.digest, self.shards.len(), self.time, self.recoveries)
    }
}

fn sum(shards: &[Shard]) -> u128 {
    shards.iter().fold(0, |sum, shard| sum.wrapping_add(shard.digest()))
}

fn whole_digest(shards_digest: u128, shards: usize, time: GroupTime, recoveries: u64) -> u128 {
    shards_digest.wrapping_add(digest::machine(shards as u64, time.0, recoveries))
}
