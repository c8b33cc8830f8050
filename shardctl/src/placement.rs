//! Where a shard is, and the move that it is in.
//!
//! Decides when a move begins and ends: one at a time, from who has the shard to who shall have it by
//! the latest configuration. What a move does to data is the groups' business; they tell the
//! controller what has become of it. A move has the number of the configuration that asked for it,
//! and the next move of the shard a higher one, since it follows another wish; so groups know old
//! from new.

use crate::{
    ids::ShardId,
    ids::{GroupId, Number},
    target::Target,
};

/// Where a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Who has it; none: it was never made.
    pub owner: Option<GroupId>,
    /// The number of the move that brought it there.
    pub since: Number,
    /// The move that it is in.
    pub moving: Option<Move>,
}

/// A shard on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where to.
    pub to: GroupId,
    /// The configuration that asked for it.
    pub number: Number,
    /// Another wish has come since: its owner shall end it, if it still serves the shard.
    pub cancelling: bool,
}

/// A report that speaks of no move that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

impl Placement {
    /// Begins the move that a configuration asks for, or asks to end the one that it does not.
    pub fn follow(&mut self, shard: ShardId, target: &Target) {
        // A shard without a wish stays where it is: nobody takes part, and its data is not lost.
        let Some(wanted) = target.owner(shard) else { return };
        match &mut self.moving {
            // One that is made anew has nobody who could end that.
            Some(moving) => moving.cancelling |= moving.to != wanted && self.owner.is_some(),
            None if self.owner == Some(wanted) => {}
            None => {
                let number = target.number;
                self.moving = Some(Move { to: wanted, number, cancelling: false });
            }
        }
    }

    /// A group has installed the shard and serves it. Said twice it is the same.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn settle(&mut self, group: GroupId, number: Number) -> Result<(), Stale> {
        match self.moving {
            Some(moving) if (moving.to, moving.number) == (group, number) => {
                *self = Self { owner: Some(group), since: number, moving: None };
                Ok(())
            }
            _ if (self.owner, self.since) == (Some(group), number) => Ok(()),
            _ => Err(Stale),
        }
    }

    /// Its owner has ended a move before it froze the shard, as it was asked to.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn cancel(&mut self, group: GroupId, number: Number) -> Result<(), Stale> {
        match self.moving {
            Some(Move { number: moving, cancelling: true, .. })
                if (self.owner, moving) == (Some(group), number) =>
            {
                self.moving = None;
                Ok(())
            }
            _ => Err(Stale),
        }
    }
}
