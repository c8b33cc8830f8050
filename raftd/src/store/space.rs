//! The free-space reserve: growth is refused before the disk is full.
//!
//! A full disk would end the process at its next write, and a member that can't write can't free
//! space either. So requests that grow the store are refused while less than a threshold is free,
//! and a file of zeros is kept that can be given back when somebody else fills the disk anyway.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::store::StoreError;

const RESERVE: &str = "reserve";

/// How large the reserve file is: room for a compaction and the log meanwhile.
const RESERVE_BYTES: u64 = 16 << 20;

/// How much room is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// Enough to grow.
    Enough,
    /// Less than the threshold: nothing may grow.
    Low,
}

/// Watches the disk of a directory.
#[derive(Debug)]
pub(super) struct Reserve {
    directory: PathBuf,
    free_bytes_min: u64,
}

impl Reserve {
    pub(super) fn new(directory: &Path, free_bytes_min: u64) -> Self {
        Self { directory: directory.to_owned(), free_bytes_min }
    }

    /// Looks how much room is left; keeps or gives back the reserve file.
    pub(super) fn look(&self) -> Result<Space, StoreError> {
        let stat = statvfs(&self.directory).map_err(|error| self.refused("measured", error))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let file = self.directory.join(RESERVE);
        if free < RESERVE_BYTES && file.exists() {
            fs::remove_file(&file).map_err(|error| self.refused("freed", error))?;
        } else if free > self.free_bytes_min.saturating_add(2 * RESERVE_BYTES) && !file.exists() {
            self.fill(&file);
        }
        Ok(if free < self.free_bytes_min { Space::Low } else { Space::Enough })
    }

    /// Makes the reserve file; it is missed only when it is needed, so failing to is no failure.
    fn fill(&self, file: &Path) {
        let filled =
            OpenOptions::new().write(true).create(true).truncate(true).open(file).and_then(
                |file| match fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
                    Err(rustix::io::Errno::OPNOTSUPP) => {
                        let zeros = vec![0; 1 << 20];
                        (0..RESERVE_BYTES >> 20)
                            .try_for_each(|at| file.write_all_at(&zeros, at << 20))
                    }
                    result => result.map_err(Into::into),
                },
            );
        if let Err(error) = filled {
            tracing::warn!(%error, "the reserve of disk space can't be made");
        }
    }

    fn refused(&self, what: &str, error: impl Into<std::io::Error>) -> StoreError {
        let what = format!("the disk of {} can't be {what}", self.directory.display());
        StoreError::machine(what, error)
    }
}
