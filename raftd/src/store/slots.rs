//! Two blocks of a small file: where the floor lives.

use crate::store::StoreError;

/// How large a block is: the unit that disks and page caches tear at.
pub const BLOCK_BYTES: usize = 4096;

/// The contents of a slot.
pub type Block = [u8; BLOCK_BYTES];

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The first block.
    First,
    /// The second block.
    Second,
}

impl Slot {
    /// The one that this is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// Two blocks that are written in place and synced together.
pub trait Slots: Send {
    /// Overwrites a block. Until the next `sync` has returned a crash may leave the old block,
    /// the new one, or a mixture.
    ///
    /// # Errors
    /// Fatal: what the block holds is unknown.
    fn write(&mut self, slot: Slot, block: &Block) -> Result<(), StoreError>;

    /// Everything written before is durable when it returns.
    ///
    /// # Errors
    /// Fatal: what is durable is unknown.
    fn sync(&mut self) -> Result<(), StoreError>;

    /// What a block holds; zeros where the file ends early.
    ///
    /// # Errors
    /// Fatal: it can't be read.
    fn read(&self, slot: Slot) -> Result<Box<Block>, StoreError>;
}
