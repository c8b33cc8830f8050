//! The database: the only file that names sled, and what it takes to use it safely.
//!
//! Its source (0.34.7) says: `flush` never calls fsync on Linux, so every sync here is a flush
//! and then fdatasync on a descriptor of our own. Pages over a quarter of a segment go to files
//! of their own, which it never syncs; segments of 8 MiB and records of at most 32 KiB keep all
//! pages below that (a leaf splits at 17 records), and a file there is an error. A snapshot of its
//! page table that a crash cut short carries another name but is read all the same; it is removed
//! before opening. When the write of a buffer fails on one of its threads, `flush` may wait for
//! ever; [`SledRecords::failure`] tells whoever watches. The file shrinks only when its last
//! segments hold nothing, not even the few bytes that say that a page is free, and such bytes are
//! moved only when some page is replaced: one for each. [`Records::reclaim`] replaces a page that
//! is good for nothing else. Its cache keeps much more than it may: a part of it looks at what it
//! holds only once in 64 accesses, and pages of a snapshot's chunks are large and accessed a few
//! times each. [`Records::let_go`] accesses small pages until all parts have looked. Segments are
//! used again before a sync only if more than one of them was written since, so no more than a few
//! megabytes are. What it takes for a torn tail, or for an empty database, it drops silently; that
//! is what the floor is for.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::store::StoreError;
use crate::store::directory::sync_directory;
use crate::store::records::{Change, Records, Removed, Visit};

/// Of every database, for ever: sled stores it and refuses another.
const SEGMENT_BYTES: usize = 8 << 20;

/// What sled may keep in memory. The log is read once, at open; its tail is what is written to.
const CACHE_BYTES: u64 = 8 << 20;

/// A page is replaced after so many changes to it.
const CHANGES_A_REPLACEMENT: usize = 11;

/// How many changes move what one removed key leaves behind, in the long run: one in eight keys
/// frees a page, which is moved a few times.
const CHANGES_A_REMOVAL: usize = 8;

/// Only when new segments are begun are old ones looked at, so a part of what was removed is
/// written once more to fill them: one byte of so many.
const REMOVED_BYTES_A_BYTE: usize = 5;

/// The largest change.
const CHANGE_BYTES_MAX: usize = 1 << 10;

/// How many pages are replaced before what that wrote is looked at.
const REPLACEMENTS_AT_ONCE: usize = 4;

/// How much is written between two syncs while space is reclaimed.
const RECLAIM_SYNC_BYTES: usize = 1 << 20;

/// What the cache is in: each part counts the accesses to its pages, whose numbers are a part's in
/// turn, and looks at what it holds once in so many.
const CACHE_PARTS: u32 = 256;
const ACCESSES_A_LOOK: u32 = 65;

/// How much is read and written before it is worth to let go of it.
const LET_GO_BYTES: usize = 32 << 20;

/// How many keys share a page at least, where they come in their order.
const KEYS_A_PAGE: u32 = 8;

/// How long a database that this process has just closed may stay locked by its threads.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// A sled database and a descriptor to sync it with.
#[derive(Debug)]
pub(crate) struct SledRecords {
    database: sled::Db,
    /// Holds one key, whose changes drive the cleaning of segments.
    cleaner: sled::Tree,
    /// Holds small pages, twice as many as the cache has parts, whose accesses drive the cache.
    ballast: sled::Tree,
    /// How many bytes of values were read and written since they were last let go of.
    touched: AtomicUsize,
    config: sled::Config,
    file: File,
    path: PathBuf,
}

impl SledRecords {
    /// Opens the database in `path`, or makes one there, and makes all of it durable.
    ///
    /// # Errors
    /// Damaged: sled can't make sense of what is there. The machine refuses.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        remove_unfinished(path)?;
        // Opening removes some of them.
        check_blobs(path)?;
        let config = sled::Config::new()
            .path(path)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .use_compression(false);
        let (database, cleaner, ballast) = open_unlocked(&config, path)?;
        let file = File::open(path.join("db")).map_err(|error| refused("opened", path, error))?;
        let touched = AtomicUsize::new(0);
        let records =
            Self { database, cleaner, ballast, touched, config, file, path: path.to_owned() };
        // Opening has written over what only the page table before it needed, so the name of the
        // new one has to be durable first.
        sync_directory(path)?;
        records.sync()?;
        let conf = path.join("conf");
        File::open(&conf)
            .and_then(|conf| conf.sync_all())
            .map_err(|error| refused("synced", &conf, error))?;
        sync_directory(path)?;
        if let Some(parent) = path.parent() {
            sync_directory(parent)?;
        }
        records.check()?;
        Ok(records)
    }

    /// Checks that no page is in a file of its own.
    ///
    /// # Errors
    /// Damaged: there is one, and it was never synced.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        check_blobs(&self.path)
    }

    /// What went wrong on a thread of sled's, if something did.
    pub(super) fn failure(&self) -> Option<StoreError> {
        self.config.global_error().err().map(|error| self.failed("written", error))
    }

    fn failed(&self, what: &str, error: sled::Error) -> StoreError {
        explain(&format!("{} can't be {what}", self.path.display()), error)
    }
}

impl Records for SledRecords {
    fn apply(&self, mut changes: Vec<Change>) -> Result<(), StoreError> {
        let bytes = |change: &Change| match change {
            Change::Put(_, value) => value.len(),
            Change::Remove(_) => 0,
        };
        self.touched.fetch_add(changes.iter().map(bytes).sum(), Relaxed);
        // A batch takes a lock of the whole process; a single change needs none.
        let applied = match (changes.len(), changes.pop()) {
            (_, None) => Ok(()),
            (1, Some(Change::Put(key, value))) => self.database.insert(key, value).map(drop),
            (1, Some(Change::Remove(key))) => self.database.remove(key).map(drop),
            (_, Some(last)) => {
                let mut batch = sled::Batch::default();
                for change in changes.into_iter().chain([last]) {
                    match change {
                        Change::Put(key, value) => batch.insert(key, value),
                        Change::Remove(key) => batch.remove(key),
                    }
                }
                self.database.apply_batch(batch)
            }
        };
        applied.map_err(|error| self.failed("written", error))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.database.flush().map_err(|error| self.failed("flushed", error))?;
        self.file.sync_data().map_err(|error| refused("synced", &self.path, error))?;
        metrics::counter!("flotilla_store_syncs_total", "file" => "database").increment(1);
        Ok(())
    }

    fn reclaim(&self, removed: Removed) -> Result<(), StoreError> {
        let mut left = removed.keys * CHANGES_A_REMOVAL;
        let bytes = removed.bytes / REMOVED_BYTES_A_BYTE / left.max(1);
        let bytes = bytes.clamp(1, CHANGE_BYTES_MAX);
        let mut written = 0;
        while left > 0 {
            let changes = left.min(CHANGES_A_REPLACEMENT * REPLACEMENTS_AT_ONCE);
            for change in 0..changes {
                self.cleaner
                    .insert(b"", vec![change as u8; bytes])
                    .map_err(|error| self.failed("written", error))?;
            }
            left -= changes;
            written += self.database.flush().map_err(|error| self.failed("flushed", error))?;
            if written >= RECLAIM_SYNC_BYTES {
                self.sync()?;
                written = 0;
            }
        }
        self.sync()
    }

    fn let_go(&self) -> Result<(), StoreError> {
        if self.touched.load(Relaxed) < LET_GO_BYTES {
            return Ok(());
        }
        self.touched.store(0, Relaxed);
        let keys = 2 * CACHE_PARTS * KEYS_A_PAGE;
        let last = (keys - 1).to_be_bytes();
        let filled = self.ballast.contains_key(last).map_err(|error| self.failed("read", error))?;
        if !filled {
            for key in 0..keys {
                let put = self.ballast.insert(key.to_be_bytes(), &[]);
                put.map_err(|error| self.failed("written", error))?;
            }
        }
        for page in 0..keys / KEYS_A_PAGE {
            let key = (page * KEYS_A_PAGE).to_be_bytes();
            for _ in 0..ACCESSES_A_LOOK {
                self.ballast.get(key).map_err(|error| self.failed("read", error))?;
            }
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.database.get(key).map_err(|error| self.failed("read", error))?;
        Ok(value.map(|value| {
            self.touched.fetch_add(value.len(), Relaxed);
            value.to_vec()
        }))
    }

    fn scan(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        for pair in self.database.range(from..) {
            let (key, value) = pair.map_err(|error| self.failed("read", error))?;
            if let ControlFlow::Break(()) = visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }
}

/// Opens it; waits while threads of a database that this process has closed still hold the lock.
fn open_unlocked(
    config: &sled::Config,
    path: &Path,
) -> Result<(sled::Db, sled::Tree, sled::Tree), StoreError> {
    let began = Instant::now();
    loop {
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = config.open()?;
            let (cleaner, ballast) =
                (database.open_tree("cleaner")?, database.open_tree("ballast")?);
            Ok((database, cleaner, ballast))
        }));
        return match opened {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(error)) if is_locked(&error) && began.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            Ok(Err(error)) => Err(explain(&format!("{} can't be opened", path.display()), error)),
            Err(_) => Err(StoreError::Damaged(format!(
                "{} is damaged: its database panics when it is opened",
                path.display()
            ))),
        };
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error)
        if error.raw_os_error().is_none() && error.to_string().contains("could not acquire lock"))
}

/// What the operating system says is the machine's; all else is the data's.
fn explain(what: &str, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) if is_the_machines(&error) => StoreError::machine(what, error),
        error if is_locked(&error) => StoreError::machine(what, io::Error::other(error)),
        error => StoreError::Damaged(format!("{what}: {error}")),
    }
}

/// Whether the operating system said it. What sled tells from its threads is a copy, in which the
/// number of the error has become a part of the text.
fn is_the_machines(error: &io::Error) -> bool {
    error.raw_os_error().is_some() || error.to_string().contains("Os { code: ")
}

fn check_blobs(path: &Path) -> Result<(), StoreError> {
    let blobs = path.join("blobs");
    let mut files = match fs::read_dir(&blobs) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused("listed", &blobs, error)),
    };
    match files.next() {
        None => Ok(()),
        Some(_) => Err(StoreError::Damaged(format!(
            "{} holds a file, which sled never syncs: the database is not to be trusted",
            blobs.display()
        ))),
    }
}

/// Removes snapshots of the page table that a crash cut short.
fn remove_unfinished(path: &Path) -> Result<(), StoreError> {
    let files = match fs::read_dir(path) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused("listed", path, error)),
    };
    for file in files {
        let file = file.map_err(|error| refused("listed", path, error))?.path();
        if file.extension().is_some_and(|extension| extension == "generating") {
            fs::remove_file(&file).map_err(|error| refused("removed", &file, error))?;
        }
    }
    Ok(())
}

fn refused(what: &str, path: &Path, error: io::Error) -> StoreError {
    StoreError::machine(format!("{} can't be {what}", path.display()), error)
}
