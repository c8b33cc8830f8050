//! The records of the replicated log, as bytes.
//!
//! Decides their layout; what they do is `machine.rs`'s and `job.rs`'s matter. Each begins with a
//! version, so that a newer record is told from a broken one.

#![deny(clippy::disallowed_types)]

use bytes::Bytes;

use crate::{
    codec::{BadBytes, Decoder, Encoder},
    failure::{Cause, Failure, put_cause, put_failure, take_cause, take_failure},
    ids::{
        AttemptId, AttemptNumber, JobId, WorkerId, put_attempt, put_number, take_attempt,
        take_number,
    },
    job::Success,
    spec::{PlanRoot, Spec, put_spec, take_spec},
};

/// The version of the records.
pub const COMMAND_VERSION: u8 = 1;

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A job was submitted.
    Submitted {
        /// Its id.
        job: JobId,
        /// What makes the submission idempotent.
        token: String,
        /// What it is to do.
        spec: Spec,
        /// Its output in normal form, relative to the shared root.
        output_key: String,
        /// The leader's wall clock.
        unix_ms: u64,
    },
    /// A job's inputs were listed and split; the plan file is durable.
    Planned {
        /// Which job.
        job: JobId,
        /// What the log holds of the plan.
        plan: PlanRoot,
    },
    /// An attempt succeeded.
    Committed {
        /// Which attempt.
        attempt: AttemptId,
        /// The worker that ran it.
        worker: WorkerId,
        /// Its result.
        success: Success,
    },
    /// An attempt failed in a way that counts.
    Failed {
        /// Which attempt.
        attempt: AttemptId,
        /// The name of the worker that ran it.
        worker: String,
        /// Why.
        failure: Failure,
    },
    /// A worker was lost while it ran an attempt.
    WorkerLost {
        /// Which attempt.
        attempt: AttemptId,
        /// The worker's name.
        worker: String,
    },
    /// A committed result turned out lost.
    Invalidated {
        /// The committed attempt.
        attempt: AttemptId,
        /// Attempts up to this one are void.
        up_to: AttemptNumber,
    },
    /// The point of no return.
    CommitStarted {
        /// Which job.
        job: JobId,
    },
    /// A job is given up.
    Failing {
        /// Which job.
        job: JobId,
        /// Why.
        cause: Cause,
    },
    /// A job is cancelled.
    Cancelling {
        /// Which job.
        job: JobId,
    },
    /// A job has ended.
    Finished {
        /// Which job.
        job: JobId,
        /// The leader's wall clock.
        unix_ms: u64,
    },
    /// A worker registered.
    WorkerRegistered {
        /// Its name.
        name: String,
        /// What it drew when its process started.
        incarnation: u128,
        /// How many tasks it runs at a time.
        slots: u32,
        /// The apps it has.
        apps: Vec<String>,
    },
    /// A worker left, or was not heard from for too long.
    WorkerLeft {
        /// Which.
        worker: WorkerId,
    },
}

impl Command {
    /// The job that it is about, if it is about one.
    #[must_use]
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::Submitted { job, .. }
            | Self::Planned { job, .. }
            | Self::CommitStarted { job }
            | Self::Failing { job, .. }
            | Self::Cancelling { job }
            | Self::Finished { job, .. } => Some(*job),
            Self::Committed { attempt, .. }
            | Self::Failed { attempt, .. }
            | Self::WorkerLost { attempt, .. }
            | Self::Invalidated { attempt, .. } => Some(attempt.job),
            Self::WorkerRegistered { .. } | Self::WorkerLeft { .. } => None,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Encoder::new();
        out.u8(COMMAND_VERSION);
        match self {
            Self::Submitted { job, token, spec, output_key, unix_ms } => {
                out.u8(1);
                out.u128(job.0);
                out.text(token);
                put_spec(&mut out, spec);
                out.text(output_key);
                out.u64(*unix_ms);
            }
            Self::Planned { job, plan } => {
                out.u8(2);
                out.u128(job.0);
                put_plan_root(&mut out, *plan);
            }
            Self::Committed { attempt, worker, success } => {
                out.u8(3);
                put_attempt(&mut out, attempt);
                out.u64(worker.0);
                put_success(&mut out, success);
            }
            Self::Failed { attempt, worker, failure } => {
                out.u8(4);
                put_attempt(&mut out, attempt);
                out.text(worker);
                put_failure(&mut out, failure);
            }
            Self::WorkerLost { attempt, worker } => {
                out.u8(5);
                put_attempt(&mut out, attempt);
                out.text(worker);
            }
            Self::Invalidated { attempt, up_to } => {
                out.u8(6);
                put_attempt(&mut out, attempt);
                put_number(&mut out, *up_to);
            }
            Self::CommitStarted { job } => {
                out.u8(7);
                out.u128(job.0);
            }
            Self::Failing { job, cause } => {
                out.u8(8);
                out.u128(job.0);
                put_cause(&mut out, cause);
            }
            Self::Cancelling { job } => {
                out.u8(9);
                out.u128(job.0);
            }
            Self::Finished { job, unix_ms } => {
                out.u8(10);
                out.u128(job.0);
                out.u64(*unix_ms);
            }
            Self::WorkerRegistered { name, incarnation, slots, apps } => {
                out.u8(11);
                out.text(name);
                out.u128(*incarnation);
                out.u32(*slots);
                put_texts(&mut out, apps);
            }
            Self::WorkerLeft { worker } => {
                out.u8(12);
                out.u64(worker.0);
            }
        }
        out.finish().into()
    }

    /// The record that the bytes are.
    ///
    /// # Errors
    /// [`BadBytes`] when they are none, or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadBytes> {
        let mut from = Decoder::new(bytes);
        let version = from.u8()?;
        if version != COMMAND_VERSION {
            return Err(BadBytes::tag("command version", version));
        }
        let command = take_command(&mut from)?;
        from.end()?;
        Ok(command)
    }
}

fn take_command(from: &mut Decoder<'_>) -> Result<Command, BadBytes> {
    Ok(match from.u8()? {
        1 => Command::Submitted {
            job: JobId(from.u128()?),
            token: from.text()?,
            spec: take_spec(from)?,
            output_key: from.text()?,
            unix_ms: from.u64()?,
        },
        2 => Command::Planned { job: JobId(from.u128()?), plan: take_plan_root(from)? },
        3 => Command::Committed {
            attempt: take_attempt(from)?,
            worker: WorkerId(from.u64()?),
            success: take_success(from)?,
        },
        4 => Command::Failed {
            attempt: take_attempt(from)?,
            worker: from.text()?,
            failure: take_failure(from)?,
        },
        5 => Command::WorkerLost { attempt: take_attempt(from)?, worker: from.text()? },
        6 => Command::Invalidated { attempt: take_attempt(from)?, up_to: take_number(from)? },
        7 => Command::CommitStarted { job: JobId(from.u128()?) },
        8 => Command::Failing { job: JobId(from.u128()?), cause: take_cause(from)? },
        9 => Command::Cancelling { job: JobId(from.u128()?) },
        10 => Command::Finished { job: JobId(from.u128()?), unix_ms: from.u64()? },
        11 => Command::WorkerRegistered {
            name: from.text()?,
            incarnation: from.u128()?,
            slots: from.u32()?,
            apps: take_texts(from)?,
        },
        12 => Command::WorkerLeft { worker: WorkerId(from.u64()?) },
        other => return Err(BadBytes::tag("command", other)),
    })
}

pub(crate) fn put_texts(out: &mut Encoder, texts: &[String]) {
    out.count(texts.len());
    for text in texts {
        out.text(text);
    }
}

pub(crate) fn take_texts(from: &mut Decoder<'_>) -> Result<Vec<String>, BadBytes> {
    (0..from.count()?).map(|_| from.text()).collect()
}

pub(crate) fn put_plan_root(out: &mut Encoder, plan: PlanRoot) {
    out.raw(&plan.digest);
    out.u32(plan.maps);
    out.u64(plan.bytes);
}

pub(crate) fn take_plan_root(from: &mut Decoder<'_>) -> Result<PlanRoot, BadBytes> {
    let mut digest = [0; 32];
    digest.copy_from_slice(from.raw(32, "a digest")?);
    Ok(PlanRoot { digest, maps: from.u32()?, bytes: from.u64()? })
}

fn put_success(out: &mut Encoder, success: &Success) {
    out.u64(success.bytes);
    out.u64(success.records);
    out.u32(success.crc);
    out.u64(success.content_hash);
    out.u64(success.input_bytes);
    out.count(success.counters.len());
    for (name, value) in &success.counters {
        out.text(name);
        out.u64(*value);
    }
}

fn take_success(from: &mut Decoder<'_>) -> Result<Success, BadBytes> {
    Ok(Success {
        bytes: from.u64()?,
        records: from.u64()?,
        crc: from.u32()?,
        content_hash: from.u64()?,
        input_bytes: from.u64()?,
        counters: (0..from.count()?)
            .map(|_| Ok((from.text()?, from.u64()?)))
            .collect::<Result<_, BadBytes>>()?,
    })
}
