//! The data of a contest: made when somebody first needs them, thrown away when nobody does any
//! more, and never on a disk that would fill up.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    pieces::{FILES_DEFAULT, Pieces},
    records::{self, RECORD_BYTES},
    sizes,
    text::{VOCABULARY_DEFAULT, Vocabulary},
};

/// What is left free on the disk, whatever is measured: others may need it.
const RESERVE_BYTES: u64 = 2 << 30;

/// The same seed gives the same data.
const SEED: u64 = 1;

/// What a directory of results and passing files is called.
const SCRATCH: &str = "contest-scratch";

/// What there is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Lines of words by Zipf's law.
    Text,
    /// Records of 100 bytes.
    Records,
    /// The same, more than memory is given to sort.
    ManyRecords,
}

/// The directory of all data.
#[derive(Debug)]
pub(super) struct Inputs {
    directory: PathBuf,
    scale: f64,
    is_kept: bool,
}

impl Inputs {
    /// Opens, or makes, the directory; what an interrupted contest left there is thrown away.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn open(directory: &Path, scale: f64, is_kept: bool) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("{} cannot be made", directory.display()))?;
        let directory = directory.canonicalize()?;
        let inputs = Self { directory, scale, is_kept };
        inputs.clear_scratch()?;
        Ok(inputs)
    }

    /// The directory that all paths are below.
    pub(super) fn root(&self) -> &Path {
        &self.directory
    }

    /// So much of what a contest asks for as the scale says.
    pub(super) fn scaled(&self, count: u64) -> u64 {
        ((count as f64 * self.scale) as u64).max(1)
    }

    /// Where results go.
    pub(super) fn scratch(&self) -> PathBuf {
        self.directory.join(SCRATCH)
    }

    /// A path in the scratch directory, as jobs name it below the root.
    pub(super) fn scratch_name(name: &str) -> String {
        format!("{SCRATCH}/{name}")
    }

    /// Throws away all results, and waits until the disk is quiet: what others left to be written
    /// would disturb who is measured next.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn clear_scratch(&self) -> Result<()> {
        let scratch = self.scratch();
        if scratch.exists() {
            fs::remove_dir_all(&scratch)
                .with_context(|| format!("{} cannot be emptied", scratch.display()))?;
        }
        fs::create_dir(&scratch)?;
        rustix::fs::sync();
        Ok(())
    }

    /// Throws away what clusters leave in their root, which no other cluster accepts.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn forget_clusters(&self) -> Result<()> {
        let (work, owner) =
            (self.directory.join(".flotilla"), self.directory.join(".flotilla-root"));
        if work.exists() {
            fs::remove_dir_all(work)?;
        }
        if owner.exists() {
            fs::remove_file(owner)?;
        }
        Ok(())
    }

    /// Makes data, unless they are there; their name below the root and their size.
    ///
    /// # Errors
    /// That there is no room, or what the file system says.
    pub(super) fn need(&self, data: Data) -> Result<(String, u64)> {
        let bytes = self.scaled(data.bytes());
        let name = format!("{}-{bytes}", data.name());
        let directory = self.directory.join(&name);
        if !directory.exists() {
            self.room_for(bytes)?;
            eprintln!("making {} of {} ...", sizes::shown(bytes), data.name());
            data.write(Pieces {
                directory: directory.clone(),
                bytes,
                files: FILES_DEFAULT,
                unit_bytes: 1,
            })?;
        }
        Ok((name, bytes))
    }

    /// Throws data away that nobody needs any more.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn release(&self, data: Data) -> Result<()> {
        let directory =
            self.directory.join(format!("{}-{}", data.name(), self.scaled(data.bytes())));
        if !self.is_kept && directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        Ok(())
    }

    /// Checks that so much can be written.
    ///
    /// # Errors
    /// Says how much room there is.
    pub(super) fn room_for(&self, bytes: u64) -> Result<()> {
        let disk = rustix::fs::statvfs(&self.directory)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        ensure!(
            free >= bytes.saturating_add(RESERVE_BYTES),
            "{} has {} free, but {} are to be written and {} stay free: take another --data, or a \
             smaller --scale",
            self.directory.display(),
            sizes::shown(free),
            sizes::shown(bytes),
            sizes::shown(RESERVE_BYTES)
        );
        Ok(())
    }
}

impl Drop for Inputs {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(self.scratch()).map_err(anyhow::Error::from);
        if let Err(error) = removed.and_then(|()| self.forget_clusters()) {
            eprintln!("something stays in {}: {error:#}", self.directory.display());
        }
    }
}

impl Data {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Records | Self::ManyRecords => "records",
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Self::Text | Self::Records => 1 << 30,
            Self::ManyRecords => 4 << 30,
        }
    }

    fn write(self, pieces: Pieces) -> Result<()> {
        match self {
            Self::Text => {
                let vocabulary = Vocabulary::new(VOCABULARY_DEFAULT, SEED);
                pieces.write(|piece, out| vocabulary.write(SEED, piece.number, piece.bytes, out))
            }
            Self::Records | Self::ManyRecords => {
                let unit_bytes = RECORD_BYTES as u64;
                Pieces { unit_bytes, ..pieces }.write(|piece, out| {
                    let (first, count) = (piece.offset / unit_bytes, piece.bytes / unit_bytes);
                    records::write(SEED, piece.number, first, count, out)
                })
            }
        }
    }
}
