//! Writes generated data: a directory of files of nearly equal size, as Flotilla and its peers take
//! their input.
//!
//! A directory that bears its final name is whole: it is written under another one and renamed.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};

use crate::THREADS;

/// How many files the data are spread over.
pub const FILES_DEFAULT: u64 = 8;

/// How much is gathered before it is written.
const BUFFER_BYTES: usize = 1 << 20;

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// The directory, which does not exist yet.
    pub directory: PathBuf,
    /// How many bytes all files have together.
    pub bytes: u64,
    /// How many files there are.
    pub files: u64,
    /// The size of each file is a multiple of this.
    pub unit_bytes: u64,
}

/// One file that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its number, from 0.
    pub number: u64,
    /// Where it begins in the data as a whole.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

impl Pieces {
    /// Has `fill` write every file, two at a time.
    ///
    /// # Errors
    /// What the file system says, or that the directory exists.
    pub fn write<F>(&self, fill: F) -> Result<()>
    where
        F: Fn(Piece, &mut dyn Write) -> io::Result<()> + Sync,
    {
        ensure!(self.files > 0 && self.unit_bytes > 0, "there is nothing to write");
        let directory = &self.directory;
        ensure!(!directory.exists(), "{} exists already", directory.display());
        let unfinished = unfinished(directory)?;
        let next = AtomicU64::new(0);
        thread::scope(|scope| {
            let work = || -> Result<()> {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= self.files {
                        return Ok(());
                    }
                    self.write_one(&unfinished, self.piece(number), &fill)?;
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("generators do not panic"))
        })?;
        fs::rename(&unfinished, directory)
            .with_context(|| format!("{} cannot be named", directory.display()))
    }

    fn write_one<F>(&self, directory: &Path, piece: Piece, fill: &F) -> Result<()>
    where
        F: Fn(Piece, &mut dyn Write) -> io::Result<()>,
    {
        let path = directory.join(format!("piece-{:03}", piece.number));
        let write = || {
            let mut out = BufWriter::with_capacity(BUFFER_BYTES, File::create_new(&path)?);
            fill(piece, &mut out)?;
            // Data that still wait for the disk would disturb who is measured next.
            out.into_inner()?.sync_all()
        };
        write().with_context(|| format!("{} cannot be written", path.display()))
    }

    fn piece(&self, number: u64) -> Piece {
        let units = self.bytes.div_ceil(self.unit_bytes);
        let begin = |number: u64| {
            let unit = u128::from(units) * u128::from(number) / u128::from(self.files);
            unit as u64 * self.unit_bytes
        };
        Piece { number, offset: begin(number), bytes: begin(number + 1) - begin(number) }
    }
}

/// An empty directory beside `directory`; what an interrupted run left there is thrown away.
fn unfinished(directory: &Path) -> Result<PathBuf> {
    let mut name = directory.as_os_str().to_owned();
    name.push(".unfinished");
    let unfinished = PathBuf::from(name);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)
        .with_context(|| format!("{} cannot be made", unfinished.display()))?;
    Ok(unfinished)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_data_without_a_gap() {
        let pieces =
            Pieces { directory: PathBuf::new(), bytes: 1_234_567, files: 7, unit_bytes: 100 };
        let mut offset = 0;
        for number in 0..7 {
            let piece = pieces.piece(number);
            assert_eq!((piece.number, piece.offset), (number, offset));
            assert_eq!(piece.bytes % 100, 0);
            offset += piece.bytes;
        }
        assert_eq!(offset, 1_234_600);
    }

    #[test]
    fn a_directory_appears_only_when_it_is_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("data");
        let pieces = Pieces { directory: directory.clone(), bytes: 10, files: 2, unit_bytes: 1 };
        let broken = pieces.write(|piece, _| match piece.number {
            0 => Ok(()),
            _ => Err(io::Error::other("a full disk")),
        });
        assert!(broken.is_err() && !directory.exists());
        pieces.write(|piece, out| out.write_all(&vec![b'x'; piece.bytes as usize])).unwrap();
        let sizes = fs::read_dir(&directory).unwrap().map(|it| it.unwrap().metadata().unwrap());
        assert_eq!(sizes.map(|it| it.len()).sum::<u64>(), 10);
        assert!(pieces.write(|_, _| Ok(())).is_err());
    }
}
