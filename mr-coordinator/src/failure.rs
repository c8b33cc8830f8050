//! Why attempts and jobs fail, as types: what is decided on a reason is decided on its variant,
//! never on its words.
//!
//! Decides which failures count against a task and which end the job at once (mapreduce.md 6.2).

#![deny(clippy::disallowed_types)]

use crate::{
    codec::{BadBytes, Decoder, Encoder, clip},
    ids::{AttemptId, put_attempt, take_attempt},
    limits::TEXT_BYTES_MAX,
};

/// A record of an input file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// The file's path, as the user named it.
    pub path: String,
    /// The record's first byte.
    pub offset: u64,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The app refused or panicked.
    User {
        /// Its words.
        message: String,
        /// The input that was being read, or nothing.
        path: String,
        /// The offset of the record.
        offset: u64,
        /// Whether the app says that a retry is of no use.
        permanent: bool,
        /// Whether these name the very record that it failed at.
        exact: bool,
    },
    /// The slot's process ended by itself.
    Exit {
        /// Its exit code, if it exited.
        code: Option<i32>,
        /// The signal, if one ended it.
        signal: Option<i32>,
        /// The input that it was reading, or nothing.
        path: String,
        /// The offset of the record.
        offset: u64,
        /// Whether these name the very record that it was at.
        exact: bool,
    },
    /// An input could not be read.
    Input {
        /// Which.
        path: String,
        /// Why.
        message: String,
        /// True: retrying will not help.
        permanent: bool,
    },
    /// A map's committed output is missing or damaged.
    Intermediate {
        /// Whose.
        map: AttemptId,
        /// What is wrong with it.
        message: String,
    },
    /// A file could not be written.
    Io {
        /// Which.
        path: String,
        /// Why.
        message: String,
    },
    /// Out of memory or space.
    Resource {
        /// Of what.
        message: String,
    },
    /// A defect of Flotilla.
    Internal {
        /// Which.
        message: String,
    },
    /// No progress for too long; the coordinator's own finding.
    Timeout {
        /// For how long.
        idle_ms: u64,
    },
}

/// An attempt's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened.
    pub reason: Reason,
    /// The last words of the slot's process.
    pub stderr_tail: String,
}

impl Failure {
    /// Whether the job ends at once: another attempt would meet the same.
    #[must_use]
    pub fn fatal(&self) -> bool {
        match &self.reason {
            Reason::Input { permanent, .. } | Reason::User { permanent, .. } => *permanent,
            Reason::Exit { .. }
            | Reason::Intermediate { .. }
            | Reason::Io { .. }
            | Reason::Resource { .. }
            | Reason::Internal { .. }
            | Reason::Timeout { .. } => false,
        }
    }

    /// The record that it failed at, if that is known exactly.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        match &self.reason {
            Reason::User { path, offset, exact: true, .. }
            | Reason::Exit { path, offset, exact: true, .. } => {
                Some(Record { path: path.clone(), offset: *offset })
            }
            Reason::User { .. }
            | Reason::Exit { .. }
            | Reason::Input { .. }
            | Reason::Intermediate { .. }
            | Reason::Io { .. }
            | Reason::Resource { .. }
            | Reason::Internal { .. }
            | Reason::Timeout { .. } => None,
        }
    }

    /// The failure with every text cut to what is kept.
    #[must_use]
    pub fn clipped(self) -> Self {
        let clip = |text: String| clip(&text, TEXT_BYTES_MAX);
        let reason = match self.reason {
            Reason::User { message, path, offset, permanent, exact } => {
                Reason::User { message: clip(message), path: clip(path), offset, permanent, exact }
            }
            Reason::Exit { code, signal, path, offset, exact } => {
                Reason::Exit { code, signal, path: clip(path), offset, exact }
            }
            Reason::Input { path, message, permanent } => {
                Reason::Input { path: clip(path), message: clip(message), permanent }
            }
            Reason::Intermediate { map, message } => {
                Reason::Intermediate { map, message: clip(message) }
            }
            Reason::Io { path, message } => Reason::Io { path: clip(path), message: clip(message) },
            Reason::Resource { message } => Reason::Resource { message: clip(message) },
            Reason::Internal { message } => Reason::Internal { message: clip(message) },
            Reason::Timeout { idle_ms } => Reason::Timeout { idle_ms },
        };
        Self { reason, stderr_tail: clip(self.stderr_tail) }
    }

    /// In a few words, for people.
    #[must_use]
    pub fn summary(&self) -> String {
        match &self.reason {
            Reason::User { message, path, .. } if path.is_empty() => {
                format!("the app failed: {message}")
            }
            Reason::User { message, path, offset, .. } => {
                format!("the app failed: {message} (record at {path}:{offset})")
            }
            Reason::Exit { code, signal, path, offset, exact } => {
                let end = match (code, signal) {
                    (Some(code), _) => format!("the slot's process exited with code {code}"),
                    (None, Some(signal)) => {
                        format!("the slot's process was ended by signal {signal}")
                    }
                    (None, None) => "the slot's process ended".to_owned(),
                };
                if *exact { format!("{end} (record at {path}:{offset})") } else { end }
            }
            Reason::Input { path, message, .. } => format!("cannot read input {path}: {message}"),
            Reason::Intermediate { map, message } => {
                format!("cannot read the output of {}: {message}", map.task)
            }
            Reason::Io { path, message } => format!("cannot write {path}: {message}"),
            Reason::Resource { message } => format!("out of resources: {message}"),
            Reason::Internal { message } => format!("internal error: {message}"),
            Reason::Timeout { idle_ms } => format!("no progress for {idle_ms} ms"),
        }
    }
}

/// What kind of end a failed job had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CauseKind {
    /// A task failed too often, or for a reason that no retry helps.
    TaskFailed,
    /// Too many workers were lost while they ran one task.
    PoisonTask,
    /// There was no worker for it for too long.
    NoWorkers,
    /// Its inputs could not be planned.
    Planning,
    /// Its output cannot be put where it should go.
    OutputConflict,
    /// A map task's committed output was lost again and again.
    IntermediateUnstable,
    /// A job that it comes after did not succeed.
    Dependency,
}

impl CauseKind {
    /// The word that messages begin with, stable for scripts.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::TaskFailed => "TaskFailed",
            Self::PoisonTask => "PoisonTask",
            Self::NoWorkers => "NoWorkers",
            Self::Planning => "Planning",
            Self::OutputConflict => "OutputConflict",
            Self::IntermediateUnstable => "IntermediateUnstable",
            Self::Dependency => "Dependency",
        }
    }
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Which kind of end.
    pub kind: CauseKind,
    /// In a few words.
    pub message: String,
    /// The attempt that decided it, if one did.
    pub attempt: Option<AttemptId>,
    /// The name of the worker that ran it, or nothing.
    pub worker: String,
    /// What it reported.
    pub failure: Option<Failure>,
}

impl Cause {
    /// A cause that no attempt decided.
    #[must_use]
    pub fn plain(kind: CauseKind, message: &str) -> Self {
        let message = clip(message, TEXT_BYTES_MAX);
        Self { kind, message, attempt: None, worker: String::new(), failure: None }
    }
}

fn put_signed(out: &mut Encoder, value: Option<i32>) {
    out.option(value, |out, value| out.u32(value.cast_unsigned()));
}

fn take_signed(from: &mut Decoder<'_>) -> Result<Option<i32>, BadBytes> {
    from.option(|from| Ok(from.u32()?.cast_signed()))
}

pub(crate) fn put_record(out: &mut Encoder, record: &Record) {
    out.text(&record.path);
    out.u64(record.offset);
}

pub(crate) fn take_record(from: &mut Decoder<'_>) -> Result<Record, BadBytes> {
    Ok(Record { path: from.text()?, offset: from.u64()? })
}

pub(crate) fn put_failure(out: &mut Encoder, failure: &Failure) {
    match &failure.reason {
        Reason::User { message, path, offset, permanent, exact } => {
            out.u8(1);
            out.text(message);
            out.text(path);
            out.u64(*offset);
            out.u8(u8::from(*permanent));
            out.u8(u8::from(*exact));
        }
        Reason::Exit { code, signal, path, offset, exact } => {
            out.u8(2);
            put_signed(out, *code);
            put_signed(out, *signal);
            out.text(path);
            out.u64(*offset);
            out.u8(u8::from(*exact));
        }
        Reason::Input { path, message, permanent } => {
            out.u8(3);
            out.text(path);
            out.text(message);
            out.u8(u8::from(*permanent));
        }
        Reason::Intermediate { map, message } => {
            out.u8(4);
            put_attempt(out, map);
            out.text(message);
        }
        Reason::Io { path, message } => {
            out.u8(5);
            out.text(path);
            out.text(message);
        }
        Reason::Resource { message } => {
            out.u8(6);
            out.text(message);
        }
        Reason::Internal { message } => {
            out.u8(7);
            out.text(message);
        }
        Reason::Timeout { idle_ms } => {
            out.u8(8);
            out.u64(*idle_ms);
        }
    }
    out.text(&failure.stderr_tail);
}

pub(crate) fn take_failure(from: &mut Decoder<'_>) -> Result<Failure, BadBytes> {
    let reason = match from.u8()? {
        1 => Reason::User {
            message: from.text()?,
            path: from.text()?,
            offset: from.u64()?,
            permanent: from.u8()? != 0,
            exact: from.u8()? != 0,
        },
        2 => Reason::Exit {
            code: take_signed(from)?,
            signal: take_signed(from)?,
            path: from.text()?,
            offset: from.u64()?,
            exact: from.u8()? != 0,
        },
        3 => {
            Reason::Input { path: from.text()?, message: from.text()?, permanent: from.u8()? != 0 }
        }
        4 => Reason::Intermediate { map: take_attempt(from)?, message: from.text()? },
        5 => Reason::Io { path: from.text()?, message: from.text()? },
        6 => Reason::Resource { message: from.text()? },
        7 => Reason::Internal { message: from.text()? },
        8 => Reason::Timeout { idle_ms: from.u64()? },
        other => return Err(BadBytes::tag("failure reason", other)),
    };
    Ok(Failure { reason, stderr_tail: from.text()? })
}

pub(crate) fn put_cause(out: &mut Encoder, cause: &Cause) {
    out.u8(match cause.kind {
        CauseKind::TaskFailed => 1,
        CauseKind::PoisonTask => 2,
        CauseKind::NoWorkers => 3,
        CauseKind::Planning => 4,
        CauseKind::OutputConflict => 5,
        CauseKind::IntermediateUnstable => 6,
        CauseKind::Dependency => 7,
    });
    out.text(&cause.message);
    out.option(cause.attempt.as_ref(), put_attempt);
    out.text(&cause.worker);
    out.option(cause.failure.as_ref(), put_failure);
}

pub(crate) fn take_cause(from: &mut Decoder<'_>) -> Result<Cause, BadBytes> {
    let kind = match from.u8()? {
        1 => CauseKind::TaskFailed,
        2 => CauseKind::PoisonTask,
        3 => CauseKind::NoWorkers,
        4 => CauseKind::Planning,
        5 => CauseKind::OutputConflict,
        6 => CauseKind::IntermediateUnstable,
        7 => CauseKind::Dependency,
        other => return Err(BadBytes::tag("cause", other)),
    };
    Ok(Cause {
        kind,
        message: from.text()?,
        attempt: from.option(take_attempt)?,
        worker: from.text()?,
        failure: from.option(take_failure)?,
    })
}
