//! What the store asks of a database: atomic batches, a sync, and a look at what is there.
//!
//! Narrow on purpose, so that the simulator can have an implementation that tears writes, loses
//! syncs and "repairs" itself as a real one does. Nothing here is trusted about its own end:
//! what must be there is known from the floor.

use std::ops::ControlFlow;

use crate::store::StoreError;

/// A change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has this value from now on.
    Put(Vec<u8>, Vec<u8>),
    /// The key is gone.
    Remove(Vec<u8>),
}

/// How much was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many keys.
    pub keys: usize,
    /// How many bytes they and their values had.
    pub bytes: usize,
}

impl Removed {
    /// One key more.
    pub fn add(&mut self, bytes: usize) {
        self.keys += 1;
        self.bytes += bytes;
    }

    /// This and that together.
    #[must_use]
    pub fn and(self, that: Self) -> Self {
        Self { keys: self.keys + that.keys, bytes: self.bytes + that.bytes }
    }

    /// Takes a share of at most `keys` keys.
    #[must_use]
    pub fn take(&mut self, keys: usize) -> Self {
        let keys = keys.min(self.keys);
        let bytes = if keys == self.keys { self.bytes } else { self.bytes / self.keys * keys };
        self.keys -= keys;
        self.bytes -= bytes;
        Self { keys, bytes }
    }
}

/// An ordered set of byte keys with values, shared between threads.
pub trait Records: Send + Sync {
    /// Makes all changes or, if a crash comes before the next `sync` has returned, perhaps none;
    /// never some of them.
    ///
    /// # Errors
    /// Fatal: what is stored is unknown.
    fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError>;

    /// Everything applied before is durable when it returns.
    ///
    /// # Errors
    /// Fatal: what is durable is unknown, and asking again would not tell.
    fn sync(&self) -> Result<(), StoreError>;

    /// Does some of the work by which the database gives back what removed keys took, in
    /// proportion to what was removed. What it changes is durable when it returns.
    ///
    /// # Errors
    /// Fatal: what is stored is unknown.
    fn reclaim(&self, removed: Removed) -> Result<(), StoreError>;

    /// Keeps no more in memory of what was read and written than the next reader or writer needs, if
    /// that was much.
    ///
    /// # Errors
    /// Fatal: what is stored is unknown.
    fn let_go(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// The value of a key.
    ///
    /// # Errors
    /// Fatal: the value can't be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits the keys from `from` on in their order, until `visit` breaks.
    ///
    /// # Errors
    /// Fatal: a value can't be read.
    fn scan(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;
}

/// Takes a key and its value, and tells whether to go on.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

impl<R: Records + ?Sized> Records for std::sync::Arc<R> {
    fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        (**self).apply(changes)
    }

    fn sync(&self) -> Result<(), StoreError> {
        (**self).sync()
    }

    fn reclaim(&self, removed: Removed) -> Result<(), StoreError> {
        (**self).reclaim(removed)
    }

    fn let_go(&self) -> Result<(), StoreError> {
        (**self).let_go()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        (**self).get(key)
    }

    fn scan(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        (**self).scan(from, visit)
    }
}
