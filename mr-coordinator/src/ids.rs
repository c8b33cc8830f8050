//! What jobs, tasks, attempts and workers are called, and where an attempt's files are.
//!
//! Decides the names only: an attempt is named by the term of the leader that assigned it and a
//! count within that term, so that no two leaders ever give out one name.

#![deny(clippy::disallowed_types)]

use std::{fmt, str::FromStr};

use crate::codec::{BadBytes, Decoder, Encoder};

/// The directory below the shared root that holds everything of running jobs.
pub const WORK_ROOT: &str = ".flotilla";
/// What a map attempt writes for reduces.
pub const RUN_FILE: &str = "data.run";
/// What an attempt writes that leaves a part of the output.
pub const PART_FILE: &str = "part";

/// Names a job: a UUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u128);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_u128(self.0).as_hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = NotAJobId;

    fn from_str(text: &str) -> Result<Self, NotAJobId> {
        let id = uuid::Uuid::try_parse(text).map(|id| Self(id.as_u128())).map_err(|_| NotAJobId)?;
        // One job has one spelling: directories are named by it.
        if id.to_string() == text { Ok(id) } else { Err(NotAJobId) }
    }
}

/// The text is not a job id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job id is a UUID in lower case with hyphens")]
pub struct NotAJobId;

/// Names a registration of a worker; never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Map or reduce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskKind {
    /// Reads inputs, writes a run file.
    Map,
    /// Reads its partition of all runs, writes an output part.
    Reduce,
}

impl TaskKind {
    /// 0 for map, 1 for reduce: where pairs of numbers keep the kind's.
    #[must_use]
    pub fn slot(self) -> usize {
        match self {
            Self::Map => 0,
            Self::Reduce => 1,
        }
    }

    /// What paths call it.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Map => 'm',
            Self::Reduce => 'r',
        }
    }
}

/// Names a task within its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    /// Map or reduce.
    pub kind: TaskKind,
    /// Its number, from 0; a reduce task's is its partition.
    pub number: u32,
}

impl TaskId {
    /// A map task.
    #[must_use]
    pub fn map(number: u32) -> Self {
        Self { kind: TaskKind::Map, number }
    }

    /// A reduce task.
    #[must_use]
    pub fn reduce(number: u32) -> Self {
        Self { kind: TaskKind::Reduce, number }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TaskKind::Map => write!(f, "map {}", self.number),
            TaskKind::Reduce => write!(f, "reduce {}", self.number),
        }
    }
}

/// Which attempt: the term that assigned it and its count there. The order is that of assignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptNumber {
    /// The Raft term of the leader that assigned it.
    pub epoch: u64,
    /// Its count within that term, over all jobs.
    pub sequence: u32,
}

impl fmt::Display for AttemptNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

/// Names an attempt, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// Its job.
    pub job: JobId,
    /// Its task.
    pub task: TaskId,
    /// Which attempt at it.
    pub number: AttemptNumber,
}

impl AttemptId {
    /// Its directory, relative to the shared root.
    #[must_use]
    pub fn directory(&self) -> String {
        let kind = self.task.kind.letter();
        format!("{}/{kind}/{}/{}", job_directory(self.job), self.task.number, self.number)
    }

    /// The run that it writes for reduces, relative to the shared root.
    #[must_use]
    pub fn run(&self) -> String {
        format!("{}/{RUN_FILE}", self.directory())
    }

    /// The part of the output that it writes, relative to the shared root.
    #[must_use]
    pub fn part(&self) -> String {
        format!("{}/{PART_FILE}", self.directory())
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.job, self.task, self.number)
    }
}

/// A job's directory, relative to the shared root.
#[must_use]
pub fn job_directory(job: JobId) -> String {
    format!("{WORK_ROOT}/{job}")
}

pub(crate) fn put_task(out: &mut Encoder, task: TaskId) {
    out.u8(match task.kind {
        TaskKind::Map => 1,
        TaskKind::Reduce => 2,
    });
    out.u32(task.number);
}

pub(crate) fn take_task(from: &mut Decoder<'_>) -> Result<TaskId, BadBytes> {
    let kind = match from.u8()? {
        1 => TaskKind::Map,
        2 => TaskKind::Reduce,
        other => return Err(BadBytes::tag("task kind", other)),
    };
    Ok(TaskId { kind, number: from.u32()? })
}

pub(crate) fn put_number(out: &mut Encoder, number: AttemptNumber) {
    out.u64(number.epoch);
    out.u32(number.sequence);
}

pub(crate) fn take_number(from: &mut Decoder<'_>) -> Result<AttemptNumber, BadBytes> {
    Ok(AttemptNumber { epoch: from.u64()?, sequence: from.u32()? })
}

pub(crate) fn put_attempt(out: &mut Encoder, attempt: &AttemptId) {
    out.u128(attempt.job.0);
    put_task(out, attempt.task);
    put_number(out, attempt.number);
}

pub(crate) fn take_attempt(from: &mut Decoder<'_>) -> Result<AttemptId, BadBytes> {
    Ok(AttemptId { job: JobId(from.u128()?), task: take_task(from)?, number: take_number(from)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempt_file_lies_below_its_jobs_directory() {
        let job: JobId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let number = AttemptNumber { epoch: 3, sequence: 17 };
        let map = AttemptId { job, task: TaskId::map(4), number };
        let reduce = AttemptId { job, task: TaskId::reduce(9), number };
        let base = ".flotilla/01890a5d-ac96-774b-bcce-b302099a8057";
        assert_eq!(map.run(), format!("{base}/m/4/3-17/data.run"));
        assert_eq!(reduce.part(), format!("{base}/r/9/3-17/part"));
    }

    #[test]
    fn job_id_has_one_spelling() {
        assert!("01890A5D-AC96-774B-BCCE-B302099A8057".parse::<JobId>().is_err());
        assert!("01890a5dac96774bbcceb302099a8057".parse::<JobId>().is_err());
        assert!("../x".parse::<JobId>().is_err());
    }
}
