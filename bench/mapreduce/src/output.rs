//! Output: a new directory of files `part-00000` and so on, on the disk before anybody is told that
//! they are there, unless it is said otherwise.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc::{self, Sender},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};

/// How much is gathered before it is written: small enough to stay in a core's cache.
const BUFFER_BYTES: usize = 256 << 10;

/// After so much of a file the disk is told to begin with it.
const EARLY_BYTES: usize = 32 << 20;

/// Whether results must survive a loss of power before the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Files and their directory are synchronised, as Flotilla does it.
    Synced,
    /// The operating system writes when it likes.
    Cached,
}

/// A directory of results. A thread of its own waits for the disk, so that those who compute need
/// not.
#[derive(Debug)]
pub struct Output {
    directory: PathBuf,
    syncing: Option<Syncing>,
}

#[derive(Debug)]
struct Syncing {
    files: Sender<File>,
    thread: JoinHandle<io::Result<()>>,
}

/// One file of results. Only [`Part::finish`] writes what is left in its buffer.
#[derive(Debug)]
pub struct Part {
    file: File,
    buffer: Vec<u8>,
    unsynced: usize,
    syncing: Option<Sender<File>>,
}

impl Output {
    /// Makes `directory`, which does not exist yet.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(directory: &Path, durability: Durability) -> Result<Self> {
        fs::create_dir(directory)
            .with_context(|| format!("{} cannot be made", directory.display()))?;
        let syncing = (durability == Durability::Synced).then(|| {
            let (files, written) = mpsc::channel::<File>();
            let thread = thread::spawn(move || written.iter().try_for_each(|file| file.sync_all()));
            Syncing { files, thread }
        });
        Ok(Self { directory: directory.to_owned(), syncing })
    }

    /// The file number `number`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn part(&self, number: usize) -> io::Result<Part> {
        let file = File::create_new(self.directory.join(format!("part-{number:05}")))?;
        let syncing = self.syncing.as_ref().map(|syncing| syncing.files.clone());
        Ok(Part { file, buffer: Vec::with_capacity(BUFFER_BYTES), unsynced: 0, syncing })
    }

    /// A file for what is needed only for a while. It has no name, and its room is given back when
    /// it is closed.
    ///
    /// # Errors
    /// What the file system says.
    pub fn scratch(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.directory)
    }

    /// Waits until all parts that are finished, and their names, are on the disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn finish(self) -> Result<()> {
        let Some(Syncing { files, thread }) = self.syncing else {
            return Ok(());
        };
        drop(files);
        let synced = thread.join().expect("synchronising does not panic");
        let synced = synced.and_then(|()| File::open(&self.directory)?.sync_all());
        synced.with_context(|| format!("{} cannot be made to last", self.directory.display()))
    }
}

impl Part {
    /// Adds `bytes`.
    ///
    /// # Errors
    /// What the file system says.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
            if bytes.len() > BUFFER_BYTES {
                return self.file.write_all(bytes);
            }
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds `number` in decimal digits.
    ///
    /// # Errors
    /// What the file system says.
    #[inline]
    pub fn write_number(&mut self, mut number: u64) -> io::Result<()> {
        let mut digits = [0; 20];
        let mut begin = digits.len();
        loop {
            begin -= 1;
            digits[begin] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return self.write(&digits[begin..]);
            }
        }
    }

    /// Writes what is left; [`Output::finish`] waits for the disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        if let Some(syncing) = &self.syncing {
            // A thread that has ended has failed, and tells of it at the end.
            let _ = syncing.send(self.file);
        }
        Ok(())
    }

    #[cold]
    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.unsynced += self.buffer.len();
        self.buffer.clear();
        if let Some(syncing) = self.syncing.as_ref().filter(|_| self.unsynced >= EARLY_BYTES) {
            self.unsynced = 0;
            // As in `finish`.
            let _ = syncing.send(self.file.try_clone()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_what_was_written() {
        let scratch = tempfile::tempdir().unwrap();
        for durability in [Durability::Synced, Durability::Cached] {
            let directory = scratch.path().join(format!("{durability:?}"));
            let output = Output::create(&directory, durability).unwrap();
            let mut part = output.part(3).unwrap();
            let mut expected = Vec::new();
            let long = vec![b'x'; BUFFER_BYTES + 1];
            for number in [0, 7, 10, 999, 100_000, u64::MAX] {
                part.write(b"count ").unwrap();
                part.write_number(number).unwrap();
                part.write(&long[..long.len() - (number % 2) as usize]).unwrap();
                expected.extend_from_slice(format!("count {number}").as_bytes());
                expected.extend_from_slice(&long[..long.len() - (number % 2) as usize]);
            }
            part.finish().unwrap();
            assert!(fs::read(directory.join("part-00003")).unwrap() == expected);
            output.finish().unwrap();
            assert!(Output::create(&directory, durability).is_err());
        }
    }
}
