//! Whose a shard is, as far as this group's log says: whether it is served here, and how far a move
//! of it has come.
//!
//! Decides which step of a move may follow on what. Each carries the number of its move and is
//! refused once a move of that number or a later one is over here, so that what comes late changes
//! nothing; each may come twice. What a step does to the contents is in `handoff.rs`; who asks for it,
//! and when, is not decided in the state machine.

use raftd::codec::{Malformed, Reader};

use crate::{
    digest,
    handoff::{Part, Position},
    outcome::{Refusal, Revision, ShardTime},
    shard::{Group, Shard},
    step::{Deed, Frozen, Step, Stepped},
};

/// Counts the moves of a shard, from 1; the shard controller gives the numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MoveNumber(pub u64);

/// What a group has to do with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Custody {
    /// The latest move that is over here: by which the shard came, went, or neither.
    pub settled: MoveNumber,
    /// How it stands.
    pub phase: Phase,
}

/// How a shard stands in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of it is here.
    Absent,
    /// It is served, and copied by the destination of a move, if one is named.
    Serving {
        /// The move.
        leaving: Option<MoveNumber>,
    },
    /// It is not served any more and does not change, so that the destination gets all of it.
    Frozen {
        /// The move.
        number: MoveNumber,
        /// The shard's time, which stands still.
        time: ShardTime,
    },
    /// It is copied from another group.
    Incoming {
        /// The move.
        number: MoveNumber,
        /// How much of it is here.
        position: Position,
    },
    /// It is not needed here any more; what is left of it is removed piece by piece.
    Discarding,
}

impl Custody {
    /// Of a shard that is served since a move.
    pub(crate) fn serving(settled: MoveNumber) -> Self {
        Self { settled, phase: Phase::Serving { leaving: None } }
    }

    /// Of a shard that has never been here.
    pub(crate) fn absent() -> Self {
        Self { settled: MoveNumber(0), phase: Phase::Absent }
    }

    /// Whether it is served here and copied to another group.
    pub fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Serving { leaving: Some(_) })
    }

    /// Whether requests are executed.
    pub fn serves(&self) -> bool {
        matches!(self.phase, Phase::Serving { .. })
    }

    /// Whether not all of the shard is here: it comes, or goes.
    pub(crate) fn is_partial(&self) -> bool {
        matches!(self.phase, Phase::Incoming { .. } | Phase::Discarding)
    }

    /// All that it says, in numbers: the settled move, the phase, and what belongs to that.
    pub(crate) fn numbers(&self) -> [u64; 6] {
        let settled = self.settled.0;
        match self.phase {
            Phase::Absent => [settled, 0, 0, 0, 0, 0],
            Phase::Serving { leaving } => {
                [settled, 1, leaving.map_or(0, |number| number.0), 0, 0, 0]
            }
            Phase::Frozen { number, time } => [settled, 2, number.0, time.0, 0, 0],
            Phase::Incoming { number, position: Position { base, part, records } } => {
                [settled, 3, number.0, part as u64, records, base.0]
            }
            Phase::Discarding => [settled, 4, 0, 0, 0, 0],
        }
    }

    /// Reads the numbers back.
    pub(crate) fn take(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut numbers = [0; 6];
        for number in &mut numbers {
            *number = reader.number("custody")?;
        }
        let [settled, phase, number, more, records, base] = numbers;
        let (settled, number) = (MoveNumber(settled), MoveNumber(number));
        let leaving = (number.0 > 0).then_some(number);
        let phase = match phase {
            0 => Phase::Absent,
            1 => Phase::Serving { leaving },
            2 => Phase::Frozen { number, time: ShardTime(more) },
            3 => {
                let part = Part::of(more).ok_or(Malformed("part of a shard"))?;
                let position = Position { base: Revision(base), part, records };
                Phase::Incoming { number, position }
            }
            4 => Phase::Discarding,
            _ => return Err(Malformed("phase")),
        };
        let custody = Self { settled, phase };
        let sound = custody.numbers() == numbers && leaving.is_none_or(|number| number > settled);
        if sound { Ok(custody) } else { Err(Malformed("custody")) }
    }
}

impl Shard {
    /// Does a step.
    ///
    /// # Errors
    /// [`Refusal::NoSuchStep`] when it does not follow on how the shard stands, which it tells;
    /// [`Refusal::BadHandoff`] and [`Refusal::HandoffDiffers`] when what came is not what was sent,
    /// and all of it is discarded.
    pub(crate) fn step(&mut self, group: &Group, step: &Step<'_>) -> Result<Stepped, Refusal> {
        let Step { number, deed, .. } = *step;
        let stepped = match deed {
            Deed::Hold | Deed::Freeze | Deed::Cancel | Deed::Unfreeze | Deed::Delete => {
                self.step_of_source(group, number, deed)
            }
            Deed::Create
            | Deed::Begin { .. }
            | Deed::Import { .. }
            | Deed::Install { .. }
            | Deed::Abort
            | Deed::Restart
            | Deed::Discard => self.step_of_destination(group, number, deed)?,
        };
        let (shard, custody) = (self.number, self.custody);
        stepped.ok_or(Refusal::NoSuchStep { shard, number, custody })
    }

    /// What comes of a step at the source; none: it does not follow.
    fn step_of_source(
        &mut self,
        group: &Group,
        number: MoveNumber,
        deed: Deed<'_>,
    ) -> Option<Stepped> {
        let Custody { settled, phase } = self.custody;
        let fresh = number > settled;
        let here = match phase {
            Phase::Frozen { number: frozen, time } if frozen == number => Some(time),
            _ => None,
        };
        Some(match (deed, phase, here) {
            (Deed::Hold, Phase::Serving { leaving }, _) if fresh && leaving <= Some(number) => {
                let held = self.changes.held().filter(|_| leaving == Some(number));
                let base = held.unwrap_or(self.changes.compacted());
                self.changes.hold(Some(base));
                self.custody.phase = Phase::Serving { leaving: Some(number) };
                Stepped::Held(base)
            }
            // Its destination begins anew.
            (Deed::Hold, _, Some(_)) => Stepped::Held(self.changes.oldest()),
            (Deed::Freeze, Phase::Serving { leaving }, _)
                if leaving == Some(number) && self.changes.held().is_some() =>
            {
                let time = self.time(group.time_ms);
                self.changes.forget_unheld();
                self.custody.phase = Phase::Frozen { number, time };
                Stepped::Frozen(self.frozen(time))
            }
            (Deed::Freeze, _, Some(time)) => Stepped::Frozen(self.frozen(time)),
            // One that comes late leaves a later move alone.
            (Deed::Cancel, Phase::Serving { leaving: Some(later) }, _) if later > number => {
                self.custody.settled = settled.max(number);
                Stepped::Done
            }
            (Deed::Cancel, Phase::Serving { .. }, _) => {
                self.changes.hold(None);
                self.custody = Custody::serving(settled.max(number));
                Stepped::Done
            }
            (Deed::Unfreeze, _, Some(time)) => {
                self.changes.hold(None);
                self.custody = Custody::serving(number);
                self.set_time(time, group.time_ms);
                Stepped::Done
            }
            (Deed::Unfreeze, Phase::Serving { .. }, _) if !fresh => Stepped::Done,
            (Deed::Delete, _, Some(_)) => self.let_go(number),
            (Deed::Delete, Phase::Absent | Phase::Discarding, _) if !fresh => {
                Stepped::Left(phase == Phase::Discarding)
            }
            _ => return None,
        })
    }

    /// What comes of a step at the destination; none: it does not follow.
    fn step_of_destination(
        &mut self,
        group: &Group,
        number: MoveNumber,
        deed: Deed<'_>,
    ) -> Result<Option<Stepped>, Refusal> {
        let Custody { settled, phase } = self.custody;
        let fresh = number > settled;
        let here = match phase {
            Phase::Incoming { number: incoming, position } if incoming == number => Some(position),
            _ => None,
        };
        Ok(Some(match (deed, phase, here) {
            (Deed::Create, Phase::Absent, _) if fresh => {
                self.custody = Custody::serving(number);
                Stepped::Done
            }
            (Deed::Create | Deed::Install { .. }, Phase::Serving { .. }, _)
                if number == settled =>
            {
                Stepped::Done
            }
            (Deed::Begin { base }, Phase::Absent, _) if fresh => {
                self.begin(base);
                let position = Position::start(base);
                self.custody.phase = Phase::Incoming { number, position };
                Stepped::Position(position)
            }
            (Deed::Begin { .. }, _, Some(position)) => Stepped::Position(position),
            (Deed::Import { at, records }, _, Some(position)) if at == position => {
                let imported = self.import(group.shards, position, records);
                let position = imported.map_err(|why| {
                    self.custody.phase = Phase::Discarding;
                    Refusal::BadHandoff { shard: self.number, why: why.to_string() }
                })?;
                self.custody.phase = Phase::Incoming { number, position };
                Stepped::Position(position)
            }
            (Deed::Import { .. }, _, Some(position)) => Stepped::Position(position),
            (Deed::Install { frozen }, _, Some(_)) => {
                if self.frozen(frozen.time) != frozen || !self.leases.is_whole() {
                    self.custody.phase = Phase::Discarding;
                    return Err(Refusal::HandoffDiffers { shard: self.number });
                }
                self.custody = Custody::serving(number);
                self.set_time(frozen.time, group.time_ms);
                Stepped::Done
            }
            (Deed::Abort, _, Some(_)) => self.let_go(number),
            (Deed::Abort, Phase::Absent | Phase::Discarding, _) => {
                self.custody.settled = settled.max(number);
                Stepped::Left(phase == Phase::Discarding)
            }
            (Deed::Restart, _, Some(_)) | (Deed::Discard, Phase::Discarding, _) => {
                self.let_go(settled)
            }
            (Deed::Restart | Deed::Discard, Phase::Absent, _) => Stepped::Left(false),
            _ => return Ok(None),
        }))
    }

    /// What is said of it when it is frozen at a time.
    fn frozen(&self, time: ShardTime) -> Frozen {
        let digest = self.contents_digest().wrapping_add(digest::frozen(self.number, time.0));
        Frozen { revision: self.revision, time, digest }
    }

    /// Removes some of it; the rest follows.
    fn let_go(&mut self, settled: MoveNumber) -> Stepped {
        let left = self.discard();
        let phase = if left { Phase::Discarding } else { Phase::Absent };
        self.custody = Custody { settled, phase };
        Stepped::Left(left)
    }
}
