//! What is removed when a job has ended, and what a look at a map's run can tell.
//!
//! Decides which directories below the work root are nobody's: those of ended jobs at once, those
//! of jobs that nobody knows when they are old. Logs stay longer (`logs.rs`).

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

use crate::{
    ids::{AttemptId, JobId, WORK_ROOT, job_directory},
    job::Manifest,
    root::Root,
};

/// How old the directory of a job that nobody knows must be.
pub const STRANGER_AGE: Duration = Duration::from_secs(3_600);

/// How often a directory is tried to be removed while somebody still writes into it.
const REMOVE_TRIES: u32 = 5;

/// The length of a run's tail, behind the rows of its partitions (mr-worker writes it).
const RUN_TAIL_BYTES: usize = 40;
/// The last bytes of a run file.
const RUN_MAGIC: &[u8; 8] = b"FLOTRUN\n";
/// The most that the rows take: 4,096 partitions with some room.
const RUN_ROWS_BYTES_MAX: u64 = 1024 * 1024;

/// What is known of a job whose directory is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It runs.
    Active,
    /// It has ended.
    Ended,
    /// Nobody knows it.
    No,
}

/// Removes a job's directory with everything in it.
///
/// # Errors
/// When something stays.
pub fn remove_job(root: &Root, job: JobId) -> io::Result<()> {
    remove_tree(&root.join(&job_directory(job)))
}

/// A worker that was told to stop may still write for a moment, which makes a removal find
/// something new in a directory that it had emptied.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if tries >= REMOVE_TRIES => return Err(error),
            Err(_) => {}
        }
    }
}

/// Looks through the work root; how many directories were removed.
///
/// # Errors
/// When the work root cannot be listed. What cannot be removed is left for the next time.
pub fn sweep(root: &Root, known: impl Fn(JobId) -> Known) -> io::Result<usize> {
    let entries = match fs::read_dir(root.join(WORK_ROOT)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let job = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(job) = job else { continue };
        let nobodys = match known(job) {
            Known::Active => false,
            Known::Ended => true,
            Known::No => is_older(&entry.path(), STRANGER_AGE),
        };
        if nobodys {
            match remove_job(root, job) {
                Ok(()) => removed += 1,
                Err(error) => {
                    tracing::warn!(%job, %error, "the directory of an ended job stays");
                }
            }
        }
    }
    Ok(removed)
}

/// Whether it was last changed so long ago.
pub(crate) fn is_older(path: &Path, than: Duration) -> bool {
    let age =
        fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).map(|at| at.elapsed());
    // A time in the future is no age.
    matches!(age, Ok(Ok(age)) if age >= than)
}

/// Whether a map's run looks as it was committed: its length, and its footer's checksum. Blocks are
/// not read; that is what reduces do.
#[must_use]
pub fn run_is_sound(root: &Root, map: &AttemptId, manifest: &Manifest) -> bool {
    tail_crc(&root.join(&map.run()), manifest.bytes).is_ok_and(|crc| crc == Some(manifest.crc))
}

/// The checksum of a run's tail, if the file has the expected length, ends as runs do, and what it
/// says of its partitions is whole.
fn tail_crc(path: &Path, expected: u64) -> io::Result<Option<u32>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let tail_at = length.checked_sub(RUN_TAIL_BYTES as u64).filter(|_| length == expected);
    let Some(tail_at) = tail_at else { return Ok(None) };
    let mut tail = [0; RUN_TAIL_BYTES];
    file.read_exact_at(&mut tail, tail_at)?;
    let number = |at: usize| {
        tail[at..at + 4].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
    };
    let (rows_crc, footer_bytes, crc) = (number(16), u64::from(number(24)), number(28));
    let rows_bytes = footer_bytes.checked_sub(RUN_TAIL_BYTES as u64);
    let Some(rows_bytes) = rows_bytes.filter(|bytes| *bytes <= RUN_ROWS_BYTES_MAX.min(tail_at))
    else {
        return Ok(None);
    };
    let mut rows = vec![0; usize::try_from(rows_bytes).unwrap_or(0)];
    file.read_exact_at(&mut rows, tail_at - rows_bytes)?;
    let is_whole = tail[32..] == *RUN_MAGIC
        && crc32c::crc32c(&tail[..28]) == crc
        && crc32c::crc32c(&rows) == rows_crc;
    Ok(is_whole.then_some(crc))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{AttemptNumber, TaskId, WorkerId};

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        (directory, root)
    }

    #[test]
    fn sweep_removes_ended_jobs_and_old_strangers_only() {
        let (_directory, root) = root();
        let old = std::time::SystemTime::now() - STRANGER_AGE * 2;
        for number in 1..=4_u128 {
            let path = root.join(&job_directory(JobId(number)));
            fs::create_dir_all(path.join("m/0/1-1")).unwrap();
            fs::write(path.join("m/0/1-1/data.run"), "x").unwrap();
            if number == 4 {
                File::open(&path).unwrap().set_modified(old).unwrap();
            }
        }
        fs::create_dir(root.join(".flotilla/else")).unwrap();
        let known = |job: JobId| match job.0 {
            1 => Known::Active,
            2 => Known::Ended,
            _ => Known::No,
        };
        assert_eq!(sweep(&root, known).unwrap(), 2);
        let left = |number: u128| root.join(&job_directory(JobId(number))).exists();
        assert_eq!([left(1), left(2), left(3), left(4)], [true, false, true, false]);
        assert!(root.join(".flotilla/else").exists());
        remove_job(&root, JobId(9)).unwrap();
    }

    /// A run with one partition's row in its footer.
    fn run_bytes() -> (Vec<u8>, u32) {
        let mut bytes = b"a block of some bytes".to_vec();
        let row = [7; 32];
        let mut tail = vec![3; 16];
        tail.extend(crc32c::crc32c(&row).to_le_bytes());
        tail.extend(2_u32.to_le_bytes());
        tail.extend((row.len() as u32 + 40).to_le_bytes());
        let crc = crc32c::crc32c(&tail);
        tail.extend(crc.to_le_bytes());
        tail.extend(RUN_MAGIC);
        bytes.extend(row);
        bytes.extend(tail);
        (bytes, crc)
    }

    #[test]
    fn damaged_missing_and_cut_runs_are_not_sound() {
        let (_directory, root) = root();
        let number = AttemptNumber { epoch: 1, sequence: 1 };
        let map = AttemptId { job: JobId(1), task: TaskId::map(0), number };
        let (bytes, crc) = run_bytes();
        let manifest = Manifest {
            attempt: number,
            worker: WorkerId(1),
            bytes: bytes.len() as u64,
            records: 1,
            crc,
            content_hash: 0,
            input_bytes: 0,
            counters: Vec::new(),
        };
        let path = root.join(&map.run());
        assert!(!run_is_sound(&root, &map, &manifest));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &bytes).unwrap();
        assert!(run_is_sound(&root, &map, &manifest));
        for at in bytes.len() - 60..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert!(!run_is_sound(&root, &map, &manifest), "byte {at}");
        }
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(!run_is_sound(&root, &map, &manifest), "cut to {length}");
        }
        assert!(!run_is_sound(&root, &map, &Manifest { crc: crc ^ 1, ..manifest }));
    }
}
