//! Where a shard is, and the move that it is in.
//!
//! Decides when a move begins and ends: one at a time, from who has the shard to who shall have it by
//! the latest configuration. What a move does to data is the groups' business; they tell the
//! controller what has become of it. The moves of a shard are counted, those that came to nothing
//! too, so that groups know old from new.

use crate::{
    ids::{GroupId, MoveNumber, ShardId},
    limits::NUMBER_MAX,
    target::Target,
};

/// Where a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Who has it; none: it was never made.
    pub owner: Option<GroupId>,
    /// The move that brought it there.
    pub since: MoveNumber,
    /// The move that it is in, or was in last.
    pub last: MoveNumber,
    /// The latest move that the controller knew of when it was recovered last. Of those behind it with
    /// numbers of that time nothing is known.
    pub recovered_at: MoveNumber,
    /// The move that it is in.
    pub moving: Option<Move>,
}

/// A shard on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where to.
    pub to: GroupId,
    /// Another wish has come since: who has the shard shall end the move, if it still serves it. One
    /// that nobody has yet is a promise of its destination never to make it under this number.
    pub cancelling: bool,
}

/// A report that speaks of no move that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

impl Placement {
    /// Begins the move that a configuration asks for, or asks to end the one that it does not. Its
    /// number is above `floor`, so that none is given twice that a recovery has lost.
    pub fn follow(&mut self, shard: ShardId, target: &Target, floor: MoveNumber) {
        // A shard without a wish stays where it is: nobody takes part, and its data is not lost.
        let Some(wanted) = target.owner(shard) else { return };
        match &mut self.moving {
            Some(moving) => moving.cancelling |= moving.to != wanted,
            None if self.owner == Some(wanted) => {}
            None => {
                self.last = MoveNumber(self.last.max(floor).0 + 1);
                self.moving = Some(Move { to: wanted, cancelling: false });
            }
        }
    }

    /// A group has installed the shard and serves it. Said twice it is the same.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn settle(&mut self, group: GroupId, number: MoveNumber) -> Result<(), Stale> {
        let arrives = self.moving.is_some_and(|moving| moving.to == group);
        if arrives && number == self.last {
            *self = Self { owner: Some(group), since: number, moving: None, ..*self };
            Ok(())
        } else if (self.owner, self.since) == (Some(group), number) {
            Ok(())
        } else {
            Err(Stale)
        }
    }

    /// Who has the shard, or who was to make it, has ended the move as it was asked to.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn cancel(&mut self, group: GroupId, number: MoveNumber) -> Result<(), Stale> {
        self.end(number, |owner, moving| moving.cancelling && owner.unwrap_or(moving.to) == group)
    }

    /// The destination has given up the move, and will never install the shard under this number.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn abort(&mut self, group: GroupId, number: MoveNumber) -> Result<(), Stale> {
        self.end(number, |_, moving| moving.to == group)
    }

    /// What always holds of one whose shard shall have this owner.
    pub(crate) fn check(&self, wanted: Option<GroupId>) -> Result<(), &'static str> {
        if self.since > self.last || self.recovered_at > self.last || self.last.0 > NUMBER_MAX {
            return Err("the number of a move cannot be");
        }
        match self.moving {
            Some(moving) if self.owner == Some(moving.to) || self.since == self.last => {
                Err("a shard moves to where it is, or without a number of its own")
            }
            Some(Move { to, cancelling }) if !cancelling && wanted.is_some_and(|it| it != to) => {
                Err("a shard moves where it shall not")
            }
            None if wanted.is_some() && self.owner != wanted => {
                Err("a shard does not move where it shall")
            }
            Some(_) | None => Ok(()),
        }
    }

    fn end(
        &mut self,
        number: MoveNumber,
        may: impl FnOnce(Option<GroupId>, Move) -> bool,
    ) -> Result<(), Stale> {
        let owner = self.owner;
        if number != self.last || !self.moving.is_some_and(|moving| may(owner, moving)) {
            return Err(Stale);
        }
        self.moving = None;
        Ok(())
    }
}
