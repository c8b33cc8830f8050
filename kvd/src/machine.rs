//! The key/value store as a replicated state machine: shards in a row, and the group's time.
//!
//! Decides which shard a command belongs to and how many shards there are: the first command of a
//! cluster fixes the number. Pure: no clock, no randomness, no IO; the same commands give the same
//! state and the same digest on every member.

use bytes::Bytes;
use proto::shard_of;
use raft::{Applied, BadSnapshot, GroupTime, RECOVERY_GAP, StateMachine};

use crate::{
    capture::KvCapture,
    command::{Command, check_version},
    digest,
    limits::SHARDS_MAX,
    outcome::{Answer, Header, Query, Refusal, Response, Revision},
    restore,
    session::SessionLimits,
    shard::{self, Shard},
};

/// The version of the machine's semantics, part of its snapshots.
pub const MACHINE_VERSION: u32 = 1;

/// The state of one group.
#[derive(Clone, Debug)]
pub struct KvMachine {
    /// How many shards this member's settings ask for; counts only before the first command.
    wanted: u32,
    limits: SessionLimits,
    /// All shards, by number; empty until the first command.
    shards: Vec<Shard>,
    /// The stamp of the last applied entry.
    time: GroupTime,
    /// How often the group was recovered; a shard that is made later begins behind that.
    recoveries: u64,
    /// The sum of the shards' digests.
    digest: u128,
}

impl KvMachine {
    /// An empty store. `shards` (from 1 to [`SHARDS_MAX`], else brought into that range) is the
    /// number with which requests are answered until the first command fixes it.
    pub fn new(shards: u32) -> Self {
        Self::with_limits(shards, SessionLimits::default())
    }

    /// An empty store with other limits of its exactly-once tables: for tests, since all members
    /// must have the same.
    pub fn with_limits(shards: u32, limits: SessionLimits) -> Self {
        let wanted = shards.clamp(1, SHARDS_MAX);
        Self { wanted, limits, shards: Vec::new(), time: GroupTime(0), recoveries: 0, digest: 0 }
    }

    /// How many shards the cluster was created with; none before the first command.
    pub fn created(&self) -> Option<u32> {
        u32::try_from(self.shards.len()).ok().filter(|&shards| shards > 0)
    }

    /// How many pairs there are.
    pub fn pairs(&self) -> u64 {
        self.shards.iter().map(|shard| shard.pairs.len() as u64).sum()
    }

    /// How many rows the exactly-once tables have.
    pub fn session_rows(&self) -> u64 {
        self.shards.iter().map(|shard| shard.sessions.rows().len() as u64).sum()
    }

    fn shards(&self) -> u32 {
        self.created().unwrap_or(self.wanted)
    }

    fn header_of(&self, key: &[u8]) -> Header {
        let shards = self.shards();
        let number = shard_of(key, shards);
        match self.shards.get(number as usize) {
            Some(shard) => shard.header(shards, self.time.0),
            None => self.new_shard(number).header(shards, self.time.0),
        }
    }

    fn execute(&mut self, command: &Command<'_>) -> Result<Response, Refusal> {
        shard::check(&command.operation)?;
        let proposed = command.shards;
        match self.created() {
            None if (1..=SHARDS_MAX).contains(&proposed) => self.create(proposed),
            Some(created) if created == proposed => {}
            created => {
                let created = created.unwrap_or(self.wanted);
                return Err(Refusal::OtherShards { created, proposed });
            }
        }
        let number = shard_of(command.operation.key(), proposed) as usize;
        let time = self.time.0;
        let shard = &mut self.shards[number];
        let before = shard.digest();
        let response = shard.apply(proposed, time, command.id.as_ref(), &command.operation);
        let after = shard.digest();
        self.digest = self.digest.wrapping_sub(before).wrapping_add(after);
        Ok(response)
    }

    fn create(&mut self, shards: u32) {
        self.shards = (0..shards).map(|number| self.new_shard(number)).collect();
        self.digest = sum(&self.shards);
    }

    fn new_shard(&self, number: u32) -> Shard {
        let mut shard = Shard::new(number, self.limits);
        shard.revision = Revision(self.recoveries * RECOVERY_GAP);
        shard
    }

    /// Notes the time, and lets one shard forget what has expired: which one follows from the
    /// index, so that every shard gets its turn on every member alike.
    fn advance(&mut self, at: Applied) {
        self.time = self.time.max(at.time);
        let time = self.time.0;
        let Some(turn) = at.index.0.checked_rem(self.shards.len() as u64) else { return };
        let Some(shard) = usize::try_from(turn).ok().and_then(|turn| self.shards.get_mut(turn))
        else {
            return;
        };
        if shard.is_due(time) {
            let before = shard.digest();
            shard.sweep(time);
            let after = shard.digest();
            self.digest = self.digest.wrapping_sub(before).wrapping_add(after);
        }
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
        let command = match Command::decode(command) {
            Ok(command) => command,
            Err(bad) => return Response { header: Header::default(), result: Err(bad.into()) },
        };
        match self.execute(&command) {
            Ok(response) => response,
            Err(refusal) => {
                Response { header: self.header_of(command.operation.key()), result: Err(refusal) }
            }
        }
    }

    fn pass(&mut self, at: Applied) {
        self.advance(at);
    }

    /// Revisions, and with them versions and tokens, were given out that are not in the state.
    fn recover(&mut self) {
        self.recoveries += 1;
        for shard in &mut self.shards {
            shard.revision.0 += RECOVERY_GAP;
        }
        self.digest = sum(&self.shards);
    }

    fn query(&self, query: Query) -> Answer {
        match query {
            Query::Get(key) => {
                let header = self.header_of(&key);
                let shard = self.shards.get(header.shard as usize);
                Answer::Pair(header, shard.and_then(|shard| shard.pairs.get(&key[..])).cloned())
            }
            Query::Time(key) => Answer::Time(self.header_of(&key)),
            Query::Created => Answer::Created(self.created()),
        }
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
