//! The floor's file: two blocks, preallocated, written in place, synced with fdatasync.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::store::StoreError;
use crate::store::slots::{BLOCK_BYTES, Block, Slot, Slots};

/// Two blocks in a file.
#[derive(Debug)]
pub struct FileSlots {
    file: File,
    path: PathBuf,
}

impl FileSlots {
    /// Opens an existing file.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| refused("opened", path, error))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Opens an existing file to look at it only.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(|error| refused("opened", path, error))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Makes a new file with both blocks zero, in place of one that may be there.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(|error| refused("created", path, error))?;
        let slots = Self { file, path: path.to_owned() };
        let zeros = [0; 2 * BLOCK_BYTES];
        slots.file.write_all_at(&zeros, 0).map_err(|error| refused("written", path, error))?;
        slots.file.sync_all().map_err(|error| refused("synced", path, error))?;
        Ok(slots)
    }
}

impl Slots for FileSlots {
    fn write(&mut self, slot: Slot, block: &Block) -> Result<(), StoreError> {
        self.file
            .write_all_at(block, offset(slot))
            .map_err(|error| refused("written", &self.path, error))
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|error| refused("synced", &self.path, error))?;
        metrics::counter!("flotilla_store_syncs_total", "file" => "floor").increment(1);
        Ok(())
    }

    fn read(&self, slot: Slot) -> Result<Box<Block>, StoreError> {
        let mut block = Box::new([0; BLOCK_BYTES]);
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.file.read_at(&mut block[filled..], offset(slot) + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(refused("read", &self.path, error)),
            }
        }
        Ok(block)
    }
}

fn offset(slot: Slot) -> u64 {
    match slot {
        Slot::First => 0,
        Slot::Second => BLOCK_BYTES as u64,
    }
}

fn refused(what: &str, path: &Path, error: io::Error) -> StoreError {
    StoreError::machine(format!("{} can't be {what}", path.display()), error)
}
