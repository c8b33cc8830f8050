//! What a group does about a shard, by what the shard controller says and what its own log says.
//!
//! Decides nothing that can't be repeated, and believes of the controller only what stays true: which
//! moves are over, and how they ended. So it may look at an old map, and do things twice or late. Who
//! leads a group carries it out; the order of the steps of a move is the log's business (`custody.rs`).

use raft::RECOVERY_GAP;

use crate::{
    custody::{Custody, MoveNumber, Phase},
    step::Deed,
};

/// A replica group, by its number; never 0.
pub type GroupNumber = u32;

/// Where the controller says that a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Which group has it; none: no group has made it yet.
    pub owner: Option<GroupNumber>,
    /// The move by which it came there.
    pub since: MoveNumber,
    /// The latest move that there is or was.
    pub last: MoveNumber,
    /// The latest that the controller knew of when it was recovered last.
    pub recovered_at: MoveNumber,
    /// That move, if it is under way.
    pub moving: Option<Move>,
}

/// A move that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which group shall have the shard.
    pub to: GroupNumber,
    /// It shall be given up.
    pub cancelling: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// To propose a step to the own log.
    Propose(MoveNumber, Deed<'static>),
    /// To go on taking in the shard from the group that has it.
    Pull {
        /// By which move.
        number: MoveNumber,
        /// From where.
        from: GroupNumber,
    },
    /// To tell the controller how a move has ended.
    Report(MoveNumber, Ended),
}

/// How a move has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The destination serves the shard.
    Settled,
    /// The source has given it up.
    Cancelled,
    /// The destination has given it up.
    Aborted,
}

impl Placement {
    /// Whether a move has ended, or is not wanted any more.
    fn is_over(&self, number: MoveNumber) -> bool {
        number < self.last || number == self.last && self.moving.is_none()
    }

    /// Whether the controller knows how a move that is over has ended. Of those before a recovery of
    /// its own, which shows in the numbers, it may have lost that, and that they were begun.
    fn is_known(&self, number: MoveNumber) -> bool {
        let time = |number: MoveNumber| number.0 / RECOVERY_GAP;
        time(number) == time(self.last)
            || number <= self.recovered_at && time(number) == time(self.recovered_at)
    }

    /// What a group is to do next about the shard; none: nothing for now.
    pub fn act(&self, group: GroupNumber, custody: &Custody) -> Option<Act> {
        let Self { owner, since, last, moving, .. } = *self;
        let Custody { settled, phase } = *custody;
        let coming = moving.filter(|moving| moving.to == group);
        let leaving = moving.filter(|_| owner == Some(group));
        match phase {
            Phase::Absent => {
                let Move { cancelling, .. } = coming?;
                Some(match owner {
                    _ if last <= settled => Act::Report(last, Ended::Aborted),
                    _ if cancelling => Act::Propose(last, Deed::Abort),
                    None => Act::Propose(last, Deed::Create),
                    Some(from) => Act::Pull { number: last, from },
                })
            }
            Phase::Serving { leaving: held } => {
                if coming.is_some() && last == settled {
                    return Some(Act::Report(last, Ended::Settled));
                }
                if leaving.is_some_and(|leaving| leaving.cancelling) {
                    let done = last <= settled;
                    let report = Act::Report(last, Ended::Cancelled);
                    return Some(if done { report } else { Act::Propose(last, Deed::Cancel) });
                }
                if since > settled && owner.is_some_and(|owner| owner != group) {
                    // It was given away, and a recovery of this group has lost that.
                    return Some(Act::Propose(
                        since,
                        if held == Some(since) { Deed::Freeze } else { Deed::Hold },
                    ));
                }
                let over = held.filter(|number| self.is_over(*number))?;
                Some(Act::Propose(over, Deed::Cancel))
            }
            Phase::Frozen { number, .. } => {
                let known = self.is_over(number) && self.is_known(number);
                let gone = owner != Some(group) && (since == number || since > number && known);
                match (gone, known) {
                    (true, _) => Some(Act::Propose(number, Deed::Delete)),
                    (false, true) => Some(Act::Propose(number, Deed::Unfreeze)),
                    (false, false) => None,
                }
            }
            Phase::Incoming { number, .. } => match (coming, owner) {
                (Some(Move { cancelling: false, .. }), Some(from)) if last == number => {
                    Some(Act::Pull { number, from })
                }
                (Some(_), _) if last == number => Some(Act::Propose(number, Deed::Abort)),
                // What was installed, and a recovery of this group has lost that, may be the last copy.
                _ if since == number && owner == Some(group) => None,
                _ if self.is_over(number) => Some(Act::Propose(number, Deed::Abort)),
                _ => None,
            },
            Phase::Discarding => Some(Act::Propose(settled, Deed::Discard)),
        }
    }
}
