//! What a job asks of the scheduler: its place among other jobs, and how its tasks are run again.
//!
//! Decides which wishes make sense by themselves; what follows from them is decided in
//! `schedule/order.rs`, `schedule/backups.rs` and `job.rs`.

#![deny(clippy::disallowed_types)]

use crate::{
    codec::{BadBytes, Decoder, Encoder},
    ids::JobId,
    limits::{AFTER_MAX, NAME_BYTES_MAX, PRIORITY_MAX, SKIP_MAX},
    spec::BadSpec,
};

/// The priority of a job that names none: there is room on both sides.
pub const PRIORITY_DEFAULT: u8 = 5;
/// The queue of a job that names none.
pub const QUEUE_DEFAULT: &str = "default";

/// The part of a spec that the scheduler works by. Every field has its final value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// The higher one gets the next free slot.
    pub priority: u8,
    /// Jobs of one priority share slots by queue.
    pub queue: String,
    /// Whether slow attempts get a backup.
    pub speculation: bool,
    /// Jobs that must have succeeded before this one is planned.
    pub after: Vec<JobId>,
    /// How many records may be left out.
    pub max_skip: u32,
    /// Whether it waits for workers for ever.
    pub wait_for_workers: bool,
    /// Whether reduces keep their results when a map's output changes.
    pub nondeterministic_ok: bool,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self {
            priority: PRIORITY_DEFAULT,
            queue: QUEUE_DEFAULT.to_owned(),
            speculation: true,
            after: Vec::new(),
            max_skip: 0,
            wait_for_workers: false,
            nondeterministic_ok: false,
        }
    }
}

impl Scheduling {
    /// Checks what can be checked without knowing any other job.
    ///
    /// # Errors
    /// [`BadSpec`] naming the first field that is wrong.
    pub fn check(&self) -> Result<(), BadSpec> {
        if self.priority > PRIORITY_MAX {
            let problem = format!("{} is not within 0 and {PRIORITY_MAX}", self.priority);
            return Err(BadSpec::new("priority", problem));
        }
        if !queue_is_good(&self.queue) {
            let problem = format!("a queue's name has 1 to {NAME_BYTES_MAX} printable bytes");
            return Err(BadSpec::new("queue", problem));
        }
        if self.after.len() > AFTER_MAX {
            let problem = format!("{} jobs; at most {AFTER_MAX}", self.after.len());
            return Err(BadSpec::new("after", problem));
        }
        if self.max_skip > SKIP_MAX {
            return Err(BadSpec::new("max_skip", format!("{}; at most {SKIP_MAX}", self.max_skip)));
        }
        Ok(())
    }
}

/// Whether a text can name a queue.
#[must_use]
pub fn queue_is_good(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

pub(crate) fn put_scheduling(out: &mut Encoder, wishes: &Scheduling) {
    out.u8(wishes.priority);
    out.text(&wishes.queue);
    out.count(wishes.after.len());
    for job in &wishes.after {
        out.u128(job.0);
    }
    out.u32(wishes.max_skip);
    for wish in [wishes.speculation, wishes.wait_for_workers, wishes.nondeterministic_ok] {
        out.u8(u8::from(wish));
    }
}

pub(crate) fn take_scheduling(from: &mut Decoder<'_>) -> Result<Scheduling, BadBytes> {
    Ok(Scheduling {
        priority: from.u8()?,
        queue: from.text()?,
        after: (0..from.count()?).map(|_| from.u128().map(JobId)).collect::<Result<_, _>>()?,
        max_skip: from.u32()?,
        speculation: from.u8()? != 0,
        wait_for_workers: from.u8()? != 0,
        nondeterministic_ok: from.u8()? != 0,
    })
}
