//! The mark of a member whose state is in doubt: a file in its directory.
//!
//! What is wrong with a state may be in the member's own last snapshot, too, so a start does not
//! make it right. The file is there before the doubt is old, and goes when a majority has agreed
//! with the state and the snapshot that it came from is what the log names durably.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use daemon::Failure;

use crate::store::directory::sync_directory;

/// The name of the file.
const DOUBTED: &str = "doubted";

/// Where the mark is.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    directory: PathBuf,
}

impl Mark {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Whether it is there.
    ///
    /// # Errors
    /// Machine: that can't be told.
    pub(crate) fn is_set(&self) -> Result<bool, Failure> {
        let path = self.directory.join(DOUBTED);
        path.try_exists().map_err(|error| refused(&path, error))
    }

    /// Durably makes or removes it.
    ///
    /// # Errors
    /// Machine.
    pub(crate) fn set(&self, is_set: bool) -> Result<(), Failure> {
        let path = self.directory.join(DOUBTED);
        let changed = if is_set { File::create(&path).map(drop) } else { remove(&path) };
        changed.map_err(|error| refused(&path, error))?;
        Ok(sync_directory(&self.directory)?)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn refused(path: &Path, error: io::Error) -> Failure {
    Failure::machine(format!("the mark {} can't be kept", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stays_until_it_is_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let mark = Mark::new(directory.path());
        assert!(!mark.is_set().unwrap());
        for is_set in [false, true, true, false, false] {
            mark.set(is_set).unwrap();
            assert_eq!(Mark::new(directory.path()).is_set().unwrap(), is_set);
        }
        assert!(Mark::new(&directory.path().join("absent")).set(true).is_err());
    }
}
