//! The threads on which everything that touches the shared filesystem runs: never on the runtime,
//! since a disk or a server may take its time.
//!
//! Decides what waits behind what: checks of submissions behind each other, plans behind plans,
//! publications behind publications, removals behind removals. Each lane is one thread with a
//! bounded queue, and ends when nobody can send to it any more.

use daemon::Failure;
use tokio::sync::{mpsc, oneshot};

/// How many tasks may wait on a lane. Every job has at most one step under way, and there are at
/// most [`crate::limits::JOBS_ACTIVE_MAX`] jobs: what more there is comes from callers.
const LANE_TASKS_MAX: usize = 4 * crate::limits::JOBS_ACTIVE_MAX;

type Task = Box<dyn FnOnce() + Send>;

/// A thread that does one thing after another.
#[derive(Clone, Debug)]
pub struct Lane {
    tasks: mpsc::Sender<Task>,
}

/// The lane has too much to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much waits for the shared filesystem (limit lane_tasks_max)")]
pub struct Full;

impl Lane {
    fn start(name: &str) -> Result<Self, Failure> {
        let (tasks, mut queue) = mpsc::channel::<Task>(LANE_TASKS_MAX);
        let work = move || {
            while let Some(task) = queue.blocking_recv() {
                task();
            }
        };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(|error| Failure::machine("a thread cannot start").because(error))?;
        Ok(Self { tasks })
    }

    /// Does something after everything that waits already.
    ///
    /// # Errors
    /// [`Full`] when too much waits.
    pub fn send(&self, task: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        self.tasks.try_send(Box::new(task)).map_err(|_| Full)
    }

    /// As [`Lane::send`], and answers with what it came to. It is left out when nobody waits for
    /// that any more once its turn has come: a caller that asks again would wait behind himself.
    ///
    /// # Errors
    /// [`Full`] when too much waits.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Full> {
        let (answer, answered) = oneshot::channel();
        self.send(move || {
            if answer.is_closed() {
                tracing::debug!("nobody waits for an answer any more");
            } else if answer.send(question()).is_err() {
                tracing::debug!("nobody waited for an answer to its end");
            }
        })?;
        Ok(answered)
    }

    /// Does something after everything that waits already, however long that takes. For what has a
    /// bound of its own: a job has one step under way, and an attempt is looked into once.
    pub fn send_surely(&self, task: impl FnOnce() + Send + 'static) {
        match self.tasks.try_send(Box::new(task)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(task)) => {
                let tasks = self.tasks.clone();
                tokio::spawn(async move {
                    if tasks.send(task).await.is_err() {
                        tracing::error!("a thread for the shared filesystem has ended");
                    }
                });
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                tracing::error!("a thread for the shared filesystem has ended");
            }
        }
    }
}

/// All lanes.
#[derive(Clone, Debug)]
pub struct Lanes {
    /// The first look at the shared root of a member that begins to lead.
    pub claims: Lane,
    /// Checks of submissions.
    pub submissions: Lane,
    /// Plans, and looks at outputs and runs.
    pub plans: Lane,
    /// Publications.
    pub publications: Lane,
    /// Files that jobs send along, piece by piece.
    pub uploads: Lane,
    /// Removals.
    pub removals: Lane,
}

impl Lanes {
    /// Starts the threads.
    ///
    /// # Errors
    /// Machine, when there can be no more.
    pub fn start() -> Result<Self, Failure> {
        Ok(Self {
            claims: Lane::start("mr-claims")?,
            submissions: Lane::start("mr-submissions")?,
            plans: Lane::start("mr-plans")?,
            publications: Lane::start("mr-publish")?,
            uploads: Lane::start("mr-uploads")?,
            removals: Lane::start("mr-removals")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_that_nobody_waits_for_is_left_out() {
        let lane = Lane::start("test").unwrap();
        let (go_on, gone_on) = std::sync::mpsc::channel::<()>();
        lane.send(move || gone_on.recv().unwrap()).unwrap();
        let (seen, saw) = std::sync::mpsc::channel();
        let given_up = lane.ask(move || seen.send(()).unwrap()).unwrap();
        let waited_for = lane.ask(|| 7).unwrap();
        drop(given_up);
        go_on.send(()).unwrap();
        assert_eq!(waited_for.blocking_recv(), Ok(7));
        assert!(saw.recv().is_err(), "nobody waited");
    }
}
