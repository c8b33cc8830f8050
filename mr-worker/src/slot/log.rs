//! The log of an attempt: what it says on standard error, in a file below the shared root that
//! outlives the attempt's directory.
//!
//! Decides when there is one (from the first byte on, since most attempts say nothing) and how long
//! it gets. What cannot be written is lost: a log never costs an attempt. The coordinator removes
//! logs, some days after the end of their job.

use std::{error::Error, fs::File, io::Write, sync::Arc};

use proto::{
    LOGS_DIR,
    mapreduce::{AttemptId, TaskKind},
};

use crate::paths::Root;

/// Where logs go.
#[derive(Debug)]
pub(crate) struct Logs {
    /// The shared root.
    pub(crate) root: Arc<Root>,
    /// The longest one, in bytes; 0: there are none.
    pub(crate) bytes_max: u64,
}

/// The log of an attempt.
#[derive(Debug)]
pub(super) struct Log {
    logs: Arc<Logs>,
    /// Relative to the root.
    path: String,
    state: State,
    kept: u64,
    dropped: u64,
}

#[derive(Debug)]
enum State {
    /// Nothing was said yet.
    Silent,
    Open(File),
    /// It cannot be written, or is not wanted.
    GivenUp,
}

impl Log {
    /// The log of an attempt that has said nothing yet.
    pub(super) fn new(logs: Arc<Logs>, attempt: &AttemptId) -> Self {
        let state = if logs.bytes_max == 0 { State::GivenUp } else { State::Silent };
        Self { logs, path: path(attempt), state, kept: 0, dropped: 0 }
    }

    /// Whether what is said next would be written.
    pub(super) fn has_room(&self) -> bool {
        match self.state {
            State::Silent | State::Open(_) => self.kept < self.logs.bytes_max,
            State::GivenUp => false,
        }
    }

    /// So much was said that has no room.
    pub(super) fn drop_bytes(&mut self, bytes: usize) {
        self.dropped += bytes as u64;
    }

    /// Adds what was said, as far as there is room. Blocks.
    pub(super) fn append(&mut self, said: &[u8]) {
        let room = usize::try_from(self.logs.bytes_max - self.kept).unwrap_or(usize::MAX);
        let (kept, dropped) = said.split_at(said.len().min(room));
        self.kept += kept.len() as u64;
        self.dropped += dropped.len() as u64;
        if let State::Silent = self.state {
            match self.logs.root.create_log(&self.path) {
                Ok(file) => self.state = State::Open(file),
                Err(error) => self.give_up(&error),
            }
        }
        self.write(kept);
    }

    /// Whether [`Log::end`] has anything to do.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Ends it; what was dropped is told in a last line. Blocks.
    pub(super) fn end(mut self) {
        if self.dropped > 0 {
            let (dropped, most) = (self.dropped, self.logs.bytes_max);
            let line =
                format!("\n({dropped} more bytes were dropped: limit log_bytes_max, {most})\n");
            self.write(line.as_bytes());
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if let State::Open(file) = &mut self.state
            && let Err(error) = file.write_all(bytes)
        {
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &(dyn Error + 'static)) {
        tracing::warn!(log = self.path, error, "what an attempt says on standard error is lost");
        self.state = State::GivenUp;
    }
}

/// Where the log of an attempt lies, relative to the root; the coordinator names it likewise.
fn path(attempt: &AttemptId) -> String {
    let kind = match attempt.kind() {
        TaskKind::Unspecified | TaskKind::Map => 'm',
        TaskKind::Reduce => 'r',
    };
    let AttemptId { job, task, epoch, sequence, .. } = attempt;
    format!("{LOGS_DIR}/{job}/{kind}-{task}-{epoch}-{sequence}.log")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn attempt(kind: TaskKind) -> AttemptId {
        AttemptId { job: "job".to_owned(), kind: kind.into(), task: 3, epoch: 1, sequence: 7 }
    }

    fn logs(bytes_max: u64) -> (tempfile::TempDir, Arc<Logs>) {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(dir.path()).unwrap());
        (dir, Arc::new(Logs { root, bytes_max }))
    }

    #[test]
    fn a_log_is_there_from_the_first_byte_on_and_where_it_is_looked_for() {
        let (dir, logs) = logs(100);
        Log::new(Arc::clone(&logs), &attempt(TaskKind::Map)).end();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let mut log = Log::new(Arc::clone(&logs), &attempt(TaskKind::Map));
        let path = dir.path().join(".flotilla/logs/job/m-3-1-7.log");
        for said in ["one\n", "two"] {
            log.append(said.as_bytes());
            assert!(fs::read_to_string(&path).unwrap().ends_with(said), "as it comes");
        }
        log.end();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo");
        assert!(super::path(&attempt(TaskKind::Reduce)).ends_with("/job/r-3-1-7.log"));
    }

    #[test]
    fn what_is_beyond_the_limit_is_dropped_and_told() {
        let (dir, logs) = logs(5);
        let mut log = Log::new(logs, &attempt(TaskKind::Map));
        log.append(b"abc");
        assert!(log.has_room());
        log.append(b"defg");
        assert!(!log.has_room());
        log.drop_bytes(10);
        log.end();
        let text = fs::read_to_string(dir.path().join(".flotilla/logs/job/m-3-1-7.log")).unwrap();
        assert_eq!(text, "abcde\n(12 more bytes were dropped: limit log_bytes_max, 5)\n");
    }

    #[test]
    fn a_log_that_cannot_be_written_or_is_not_wanted_costs_nothing() {
        let (dir, logs) = logs(5);
        fs::write(dir.path().join(".flotilla"), "no directory").unwrap();
        let mut log = Log::new(logs, &attempt(TaskKind::Map));
        log.append(b"abc");
        assert!(!log.has_room());
        log.end();

        let (dir, logs) = self::logs(0);
        let log = Log::new(logs, &attempt(TaskKind::Map));
        assert!(!log.has_room());
        log.end();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_attempt_whose_job_is_no_name_has_no_log_elsewhere() {
        let (dir, logs) = logs(100);
        let outside = AttemptId { job: "../../x".to_owned(), ..attempt(TaskKind::Map) };
        let mut log = Log::new(logs, &outside);
        log.append(b"abc");
        assert!(!log.has_room());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
