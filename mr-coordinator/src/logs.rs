//! What attempts said on standard error: where workers keep it, and when it goes.
//!
//! Decides which logs are old: those of jobs that ended long enough ago by their record, and those
//! of jobs that nobody remembers when nothing was written to them for as long. A sweep that was cut
//! short is gone on with by the next one. Workers write logs (mr-worker's `slot/log.rs`), and decide
//! how long they get.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use proto::LOGS_DIR;

use crate::{
    cleanup::{STRANGER_AGE, is_older, remove_tree},
    ids::{AttemptId, AttemptNumber, JobId, TaskId},
    root::Root,
};

/// What the name of a log ends with.
const SUFFIX: &str = ".log";

/// What became of a job whose logs are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It runs.
    Active,
    /// It ended so long ago.
    Ended(Duration),
    /// Nobody knows it, or remembers it.
    Unknown,
}

/// The directory of a job's logs, relative to the shared root.
#[must_use]
pub fn directory(job: JobId) -> String {
    format!("{LOGS_DIR}/{job}")
}

/// The log of an attempt, relative to the shared root.
#[must_use]
pub fn path(attempt: &AttemptId) -> String {
    let AttemptId { job, task, number } = attempt;
    format!("{}/{}-{}-{number}{SUFFIX}", directory(*job), task.kind.letter(), task.number)
}

/// The attempts at a job's tasks that have logs: maps before reduces, in the order of assignment.
///
/// # Errors
/// When they cannot be listed.
pub fn list(root: &Root, job: JobId) -> io::Result<Vec<AttemptId>> {
    let entries = match fs::read_dir(root.join(&directory(job))) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if let Some((task, number)) = name.to_str().and_then(parse) {
            found.push(AttemptId { job, task, number });
        }
    }
    found.sort_unstable_by_key(|attempt| (attempt.task, attempt.number));
    Ok(found)
}

fn parse(name: &str) -> Option<(TaskId, AttemptNumber)> {
    let mut parts = name.strip_suffix(SUFFIX)?.split('-');
    let kind = parts.next()?;
    let number = parts.next()?.parse().ok()?;
    let task = match kind {
        "m" => TaskId::map(number),
        "r" => TaskId::reduce(number),
        _ => return None,
    };
    let (epoch, sequence) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some((task, AttemptNumber { epoch, sequence }))
}

/// Removes the logs of jobs that ended so long ago; of how many jobs.
///
/// # Errors
/// When they cannot be listed. What cannot be removed is left for the next time.
pub fn sweep(root: &Root, kept: Duration, fate: impl Fn(JobId) -> Fate) -> io::Result<usize> {
    let entries = match fs::read_dir(root.join(LOGS_DIR)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let job = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(job) = job else { continue };
        let is_old = match fate(job) {
            Fate::Active => false,
            Fate::Ended(ago) => ago >= kept,
            Fate::Unknown => is_forsaken(&entry.path(), kept),
        };
        if is_old {
            match remove_tree(&entry.path()) {
                Ok(()) => removed += 1,
                Err(error) => tracing::warn!(%job, %error, "logs of an ended job stay"),
            }
        }
    }
    Ok(removed)
}

/// Whether nothing was written for so long to the logs in a directory. Logs themselves are looked
/// at, since a removal that was cut short has changed the directory.
fn is_forsaken(directory: &Path, kept: Duration) -> bool {
    // A job that began just now may be unknown to whoever sweeps.
    if !is_older(directory, STRANGER_AGE.min(kept)) {
        return false;
    }
    let Ok(entries) = fs::read_dir(directory) else { return false };
    let written = entries.map(|entry| entry?.metadata()?.modified());
    let Ok(written) = written.collect::<io::Result<Vec<SystemTime>>>() else { return false };
    // A time in the future is no age.
    written.iter().all(|at| at.elapsed().is_ok_and(|age| age >= kept))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::ids::WORK_ROOT;

    const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        (directory, root)
    }

    fn attempt(job: u128, task: TaskId, epoch: u64, sequence: u32) -> AttemptId {
        AttemptId { job: JobId(job), task, number: AttemptNumber { epoch, sequence } }
    }

    fn write(root: &Root, attempt: &AttemptId) {
        let path = root.join(&path(attempt));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "said").unwrap();
    }

    #[test]
    fn logs_are_listed_in_the_order_of_tasks_and_attempts() {
        let (_directory, root) = root();
        assert_eq!(list(&root, JobId(1)).unwrap(), []);
        let expected = [
            attempt(1, TaskId::map(3), 1, 9),
            attempt(1, TaskId::map(3), 1, 10),
            attempt(1, TaskId::map(3), 2, 1),
            attempt(1, TaskId::map(20), 1, 1),
            attempt(1, TaskId::reduce(0), 2, 2),
        ];
        for attempt in expected.iter().rev() {
            write(&root, attempt);
        }
        write(&root, &attempt(2, TaskId::map(0), 1, 1));
        for other in ["m-1-1.log", "m-1-1-1-1.log", "x-1-1-1.log", "m-1-1-1", "m--1-1-1.log"] {
            fs::write(root.join(&directory(JobId(1))).join(other), "else").unwrap();
        }
        assert_eq!(list(&root, JobId(1)).unwrap(), expected);
        let first = path(&expected[0]);
        assert!(first.starts_with(WORK_ROOT) && first.ends_with("/m-3-1-9.log"), "{first}");
    }

    #[test]
    fn old_logs_go_and_no_others() {
        let (_directory, root) = root();
        let fate = |job: JobId| match job.0 {
            1 => Fate::Active,
            2 => Fate::Ended(WEEK - Duration::from_secs(1)),
            3 => Fate::Ended(WEEK),
            _ => Fate::Unknown,
        };
        assert_eq!(sweep(&root, WEEK, fate).unwrap(), 0);
        let old = |path: &str| {
            File::open(root.join(path))
                .unwrap()
                .set_modified(SystemTime::now() - 2 * WEEK)
                .unwrap();
        };
        // Of 4 nothing is old; of 5 all is; 6 began long ago and is written to; of 7 a part was
        // removed when the sweep was cut short.
        for job in 1..=7 {
            for number in 0..2 {
                let attempt = attempt(job, TaskId::map(number), 1, number);
                write(&root, &attempt);
                if job == 5 || job == 7 || (job == 6 && number == 0) {
                    old(&path(&attempt));
                }
            }
        }
        old(&directory(JobId(5)));
        old(&directory(JobId(6)));
        let cut = File::open(root.join(&directory(JobId(7)))).unwrap();
        cut.set_modified(SystemTime::now() - 2 * STRANGER_AGE).unwrap();
        fs::write(root.join(LOGS_DIR).join("else"), "else").unwrap();
        assert_eq!(sweep(&root, WEEK, fate).unwrap(), 3);
        let left: Vec<u128> =
            (1..=7).filter(|job| !list(&root, JobId(*job)).unwrap().is_empty()).collect();
        assert_eq!(left, [1, 2, 4, 6]);
        assert!(root.join(LOGS_DIR).join("else").exists());
        assert_eq!(sweep(&root, WEEK, fate).unwrap(), 0, "again");
        assert_eq!(crate::cleanup::sweep(&root, |_| crate::cleanup::Known::No).unwrap(), 0);
    }
}
