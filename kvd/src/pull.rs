//! Takes one shard in: what is asked of its source, and what becomes of it in the own log.
//!
//! Decides when enough is copied for the source to freeze the shard. Begins with what the log has, so
//! whoever leads goes on where another has stopped; and leaves whatever goes wrong to be looked at anew.

use std::{
    collections::BTreeMap,
    sync::Arc,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use client::{
    Options, Rejected,
    handoff::{HandoffClient, HandoffRequest, Pulled, pull_reply},
};
use futures::stream::{FuturesOrdered, StreamExt};
use raftd::{
    Handle, Outcome as Proposed,
    failpoint::{self, Failpoint},
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    KvMachine,
    custody::{Custody, MoveNumber, Phase},
    handoff::{Piece, Position, Wanted},
    mover::{Grouped, STEP_LIMIT},
    outcome::{Answer, Outcome, Query, Refusal, Revision},
    step::{Deed, Frozen, Step, Stepped},
    steward::GroupNumber,
    wire,
};

/// How little must have been left to copy for the source to freeze the shard: what has come since
/// takes less time than it.
const LITTLE_BYTES: u64 = 256 << 10;

/// How often the rest is copied before the source freezes the shard however much that is: under a
/// load that is as fast as the copy there is always more.
const ROUNDS_MAX: u32 = 10;

/// How many pieces are on their way through the log at a time.
const IMPORTS_AHEAD: usize = 4;

/// How long to wait for a member of the source that has not applied the Freeze.
const FREEZE_PAUSE: Duration = Duration::from_millis(2);

/// How long shards were served by nobody.
const FROZEN_SECONDS: &str = "flotilla_kv_move_frozen_seconds";

/// How long the source has to answer.
const SOURCE_DEADLINE: Duration = Duration::from_secs(3);

/// Takes shards in. Shared by all copies of a leader.
pub(crate) struct Puller {
    handle: Handle<KvMachine>,
    grouped: Grouped,
    sources: Mutex<BTreeMap<GroupNumber, Known>>,
    /// When the next piece may come.
    next: Mutex<Instant>,
}

/// A source, with the addresses by which it is known.
type Known = (Vec<String>, Arc<HandoffClient>);

/// Why a copy has stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stopped {
    /// The source does not answer, or not so.
    #[error("the source: {0}")]
    Source(String),
    /// What came makes no sense, and was thrown away.
    #[error("{0}")]
    Damaged(Refusal),
    /// This group can't go on now.
    #[error("this group: {0}")]
    Here(String),
}

/// How a round of copying has ended.
enum Round {
    /// All was told that a member had that serves the shard: so many bytes.
    Served(u64),
    /// All was told.
    Frozen,
}

impl Puller {
    pub(crate) fn new(handle: Handle<KvMachine>, grouped: Grouped) -> Self {
        metrics::describe_histogram!(FROZEN_SECONDS, "how long shards that came were not served");
        let (sources, next) = (Mutex::default(), Mutex::new(Instant::now()));
        Self { handle, grouped, sources, next }
    }

    /// Takes a shard in until this group serves it, or there is nothing to do any more.
    ///
    /// # Errors
    /// [`Stopped`]: it is to be tried again.
    pub(crate) async fn pull(
        &self,
        shard: u32,
        number: MoveNumber,
        from: GroupNumber,
    ) -> Result<(), Stopped> {
        let source =
            Source { client: self.source(from)?, shards: self.grouped.shards, shard, number };
        let (custody, _) = self.look(shard).await?;
        if custody.phase == Phase::Absent && custody.settled < number {
            self.check_space()?;
            let base = source.hold().await?;
            self.step(shard, number, Deed::Begin { base }).await?;
            failpoint::reach(Failpoint::MoveBeginAfter);
        }
        self.copy(&source).await
    }

    /// Copies what is missing, has the shard frozen, and installs it.
    async fn copy(&self, source: &Source) -> Result<(), Stopped> {
        let (shard, number) = (source.shard, source.number);
        let mut frozen: Option<(Frozen, Instant)> = None;
        let freeze = async || {
            let asked = Instant::now();
            Ok::<_, Stopped>((source.freeze().await?, asked))
        };
        for round in 0.. {
            let (_, wanted) = self.look(shard).await?;
            let Some(wanted) = wanted.filter(|wanted| wanted.number == number) else {
                return Ok(());
            };
            let paced = frozen.is_none();
            match (self.round(source, &wanted, paced).await?, frozen) {
                (Some(Round::Frozen), Some(frozen)) => return self.install(source, frozen).await,
                // It was frozen before, and what was said of it is not known here.
                (Some(Round::Frozen), None) => frozen = Some(freeze().await?),
                // The member has not applied the Freeze.
                (Some(Round::Served(_)), Some(_)) => sleep(FREEZE_PAUSE).await,
                (Some(Round::Served(bytes)), None)
                    if bytes < LITTLE_BYTES || round >= ROUNDS_MAX =>
                {
                    frozen = Some(freeze().await?);
                }
                (Some(Round::Served(_)), None) => {}
                (None, _) => {
                    self.step(shard, number, Deed::Restart).await?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Copies what a member of the source has; none: the changes that are needed next are gone.
    async fn round(
        &self,
        source: &Source,
        wanted: &Wanted,
        paced: bool,
    ) -> Result<Option<Round>, Stopped> {
        let Some(mut pulled) = source.pull(wanted).await? else { return Ok(None) };
        let (mut bytes, mut imports) = (0, FuturesOrdered::new());
        let mut position = wanted.position;
        let end = loop {
            let piece = match source.next(&mut pulled).await? {
                pull_reply::Kind::Piece(piece) => piece,
                pull_reply::Kind::End(end) => break end,
            };
            let at = piece.at.as_ref().and_then(wire::handoff::position);
            let at = at.ok_or_else(|| Stopped::Source("a piece of nowhere".to_owned()))?;
            bytes += piece.records.len() as u64;
            if paced {
                self.pace(piece.records.len()).await;
            }
            imports.push_back(self.import(source, Piece { at, records: piece.records }));
            if imports.len() >= IMPORTS_AHEAD
                && let Some(imported) = imports.next().await
            {
                position = follow(position, imported?)?;
            }
        };
        while let Some(imported) = imports.next().await {
            position = follow(position, imported?)?;
        }
        Ok(Some(if end.frozen { Round::Frozen } else { Round::Served(bytes) }))
    }

    /// Where a piece belonged, and where the copy stands behind it.
    async fn import(&self, source: &Source, piece: Piece) -> Result<(Position, Position), Stopped> {
        self.check_space()?;
        let Piece { at, records } = piece;
        let deed = Deed::Import { at, records: &records };
        match self.step(source.shard, source.number, deed).await? {
            Stepped::Position(position) => {
                failpoint::reach(Failpoint::MoveImportAfter);
                Ok((at, position))
            }
            other => Err(Stopped::Here(format!("{other:?} instead of a position"))),
        }
    }

    /// Serves the shard, which nobody has served since it was asked to be frozen.
    async fn install(
        &self,
        source: &Source,
        (frozen, asked): (Frozen, Instant),
    ) -> Result<(), Stopped> {
        failpoint::reach(Failpoint::MoveInstallBefore);
        self.step(source.shard, source.number, Deed::Install { frozen }).await?;
        failpoint::reach(Failpoint::MoveInstallAfter);
        let (shard, number, frozen) = (source.shard, source.number.0, asked.elapsed());
        metrics::histogram!(FROZEN_SECONDS).record(frozen);
        tracing::info!(shard, number, ?frozen, "serving a shard that has come");
        Ok(())
    }

    fn check_space(&self) -> Result<(), Stopped> {
        self.handle.check_space().map_err(|refused| Stopped::Here(refused.to_string()))
    }

    /// How the shard stands, and where its source is to go on.
    async fn look(&self, shard: u32) -> Result<(Custody, Option<Wanted>), Stopped> {
        match self.handle.query_stale(Query::Contents(shard)).await {
            Ok(Answer::Contents(Some(contents))) => Ok((contents.custody(), contents.wanted())),
            Ok(Answer::Contents(None)) => Ok((Custody::absent(), None)),
            Ok(other) => Err(Stopped::Here(format!("{other:?} instead of a shard"))),
            Err(refused) => Err(Stopped::Here(refused.to_string())),
        }
    }

    async fn step(
        &self,
        shard: u32,
        number: MoveNumber,
        deed: Deed<'_>,
    ) -> Result<Stepped, Stopped> {
        let step = Step { shards: self.grouped.shards, shard, number, deed };
        let deadline = Instant::now() + STEP_LIMIT;
        let response = match self.handle.propose(step.encode(), deadline).await {
            Proposed::Done(response) => response,
            Proposed::Rejected(refused) => return Err(Stopped::Here(refused.to_string())),
            Proposed::Unknown => return Err(Stopped::Here("a step was not confirmed".to_owned())),
        };
        match response.result {
            Ok(answered) => match answered.outcome {
                Outcome::Stepped(stepped) => Ok(stepped),
                other => Err(Stopped::Here(format!("{other:?} instead of a step"))),
            },
            Err(refusal @ (Refusal::BadHandoff { .. } | Refusal::HandoffDiffers { .. })) => {
                Err(Stopped::Damaged(refusal))
            }
            Err(refusal) => Err(Stopped::Here(refusal.to_string())),
        }
    }

    /// Waits until so many bytes may come.
    async fn pace(&self, bytes: usize) {
        let per_second = self.grouped.bytes_per_second;
        if per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / per_second as f64);
        let until = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let from = (*next).max(Instant::now());
            *next = from + cost;
            from
        };
        sleep_until(until).await;
    }

    /// The group that has the shard, by the addresses that the controller tells now.
    fn source(&self, from: GroupNumber) -> Result<Arc<HandoffClient>, Stopped> {
        let map = self.grouped.map.borrow().clone();
        let group = map.as_ref().and_then(|map| map.groups.get(&from));
        let members = group.map_or(&[][..], |group| &group.members);
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = sources.get(&from)
            && known == members
        {
            return Ok(client.clone());
        }
        let options = Options::with_deadline(SOURCE_DEADLINE);
        let client = HandoffClient::connect(members, options);
        let client = client.map_err(|error| Stopped::Source(error.to_string()))?;
        let client = Arc::new(client);
        sources.insert(from, (members.to_vec(), client.clone()));
        Ok(client)
    }
}

/// Where the copy stands behind a piece; each must have belonged where the one before it ended.
fn follow(before: Position, (at, behind): (Position, Position)) -> Result<Position, Stopped> {
    if at.records == before.records && at.base == before.base && behind.records > at.records {
        return Ok(behind);
    }
    Err(Stopped::Here("somebody else copies this shard, too".to_owned()))
}

/// The group that has the shard, as it is asked about it.
struct Source {
    client: Arc<HandoffClient>,
    shards: u32,
    shard: u32,
    number: MoveNumber,
}

impl Source {
    fn handoff(&self) -> HandoffRequest {
        HandoffRequest { shards: self.shards, shard: self.shard, number: self.number.0 }
    }

    async fn hold(&self) -> Result<Revision, Stopped> {
        let held = self.client.hold(self.handoff()).await;
        Ok(Revision(held.map_err(|error| Stopped::Source(error.to_string()))?.base))
    }

    async fn freeze(&self) -> Result<Frozen, Stopped> {
        let reply = self.client.freeze(self.handoff()).await;
        let reply = reply.map_err(|error| Stopped::Source(error.to_string()))?;
        let frozen = wire::handoff::frozen(&reply);
        frozen.ok_or_else(|| Stopped::Source("a digest of another length".to_owned()))
    }

    /// Asks for what follows; none: the changes are gone.
    async fn pull(&self, wanted: &Wanted) -> Result<Option<Pulled>, Stopped> {
        let request = wire::handoff::pull_request(self.shards, self.shard, wanted);
        match self.client.pull(&request).await {
            Ok(pulled) => Ok(Some(pulled)),
            Err(Rejected::OutOfRange { .. }) => Ok(None),
            Err(rejected) => Err(Stopped::Source(rejected.to_string())),
        }
    }

    async fn next(&self, pulled: &mut Pulled) -> Result<pull_reply::Kind, Stopped> {
        let next = pulled.next().await;
        let next = next.map_err(|rejected| Stopped::Source(rejected.to_string()))?;
        let kind = next.and_then(|reply| reply.kind);
        kind.ok_or_else(|| Stopped::Source("a copy broke off".to_owned()))
    }
}
