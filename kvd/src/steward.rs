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

    /// Whether a group serves a shard that it does not have by the controller's word, and that is not
    /// just about to be told to it. An old map says such things, too, but not for long; else the
    /// controller may be another one than it was, the group may have been alone, or one of the two has
    /// lost what it did. The group keeps the shard, and a person has to find out.
    pub fn is_estranged(&self, group: GroupNumber, custody: &Custody) -> bool {
        let coming = self.moving.is_some_and(|moving| moving.to == group);
        let is_told = coming && self.last == custody.settled;
        custody.serves() && self.owner != Some(group) && !is_told
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

#[cfg(test)]
mod tests {
    use super::*;

    const SELF: GroupNumber = 1;
    const OTHER: GroupNumber = 2;

    fn placed(owner: GroupNumber, since: u64, last: u64) -> Placement {
        let (since, last) = (MoveNumber(since), MoveNumber(last));
        Placement { owner: Some(owner), since, last, ..Placement::default() }
    }

    fn frozen(number: u64) -> Custody {
        let (number, time) = (MoveNumber(number), crate::outcome::ShardTime(0));
        Custody { settled: MoveNumber(1), phase: Phase::Frozen { number, time } }
    }

    #[test]
    fn what_a_group_did_not_give_away_it_keeps() {
        // It was alone; or the controller is another one, and has given the shard to others since.
        for settled in [0, 2] {
            let serving = Custody::serving(MoveNumber(settled));
            let placed_elsewhere = placed(OTHER, 4, 4);
            assert_eq!(placed_elsewhere.act(SELF, &serving), None);
            assert!(placed_elsewhere.is_estranged(SELF, &serving));
            let leaving =
                Custody { phase: Phase::Serving { leaving: Some(MoveNumber(4)) }, ..serving };
            let cancel = Act::Propose(MoveNumber(4), Deed::Cancel);
            assert_eq!(placed_elsewhere.act(SELF, &leaving), Some(cancel));
        }
        let serving = Custody::serving(MoveNumber(2));
        assert!(!placed(SELF, 2, 2).is_estranged(SELF, &serving));
        assert!(placed(OTHER, 2, 2).is_estranged(SELF, &serving), "another controller has counted");
        assert!(!placed(OTHER, 4, 4).is_estranged(SELF, &frozen(4)));
        // It is to be made here, where there is data already; or was just made.
        let (owner, last) = (None, MoveNumber(1));
        let moving = Some(Move { to: SELF, cancelling: false });
        let making = Placement { owner, last, moving, ..Placement::default() };
        assert!(making.is_estranged(SELF, &Custody::serving(MoveNumber(0))));
        assert!(!making.is_estranged(SELF, &Custody::serving(last)));
        assert!(
            making.is_estranged(SELF, &Custody::serving(MoveNumber(2))),
            "not by this controller"
        );
    }

    #[test]
    fn a_frozen_shard_is_served_again_only_on_the_word_of_who_can_know() {
        let unfreeze = Some(Act::Propose(MoveNumber(3), Deed::Unfreeze));
        assert_eq!(placed(SELF, 1, 3).act(SELF, &frozen(3)), unfreeze);
        assert_eq!(placed(SELF, 1, 2).act(SELF, &frozen(3)), None);
        // The controller was recovered: it knew of move 3, or only of what was before.
        let later = RECOVERY_GAP + 1;
        let recovered = |at| Placement { recovered_at: MoveNumber(at), ..placed(SELF, 1, later) };
        assert_eq!(recovered(3).act(SELF, &frozen(3)), unfreeze);
        assert_eq!(recovered(2).act(SELF, &frozen(3)), None);
        // That the destination has it says so by itself.
        let delete = Some(Act::Propose(MoveNumber(3), Deed::Delete));
        assert_eq!(placed(OTHER, 3, later).act(SELF, &frozen(3)), delete);
    }

    #[test]
    fn what_was_installed_and_lost_is_not_thrown_away() {
        let position = crate::handoff::Position::start(crate::outcome::Revision(0));
        let phase = Phase::Incoming { number: MoveNumber(3), position };
        let incoming = Custody { settled: MoveNumber(1), phase };
        assert_eq!(placed(SELF, 3, 3).act(SELF, &incoming), None);
        let abort = Some(Act::Propose(MoveNumber(3), Deed::Abort));
        assert_eq!(placed(OTHER, 1, 3).act(SELF, &incoming), abort);
    }
}
