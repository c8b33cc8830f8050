//! Which job gets the next free slot, and which queued job the next place among those that run.
//!
//! The rule: the job of the highest priority. Among jobs of one priority, those of the queue that
//! is served least: whose attempts under way, of all its jobs of any priority, divided by its
//! weight, are the fewest. Among those, and among queues that are served alike, the job submitted
//! first. A job that no task can be taken from is passed over.
//!
//! A queued job is admitted when, of the jobs that are planned or run, fewer than
//! `jobs_running_max` have its priority or a higher one: so what is less urgent never keeps what
//! is more urgent waiting. Places go by the same order, a queue's service being its admitted jobs.
//!
//! Leaves out who asks for a slot (`assign.rs`). Attempts under way are never stopped in favour of
//! another job's.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use crate::spec::Spec;

/// The weights of queues; one that is not named has weight 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights(Arc<BTreeMap<String, u32>>);

impl Weights {
    /// These weights, each at least 1.
    ///
    /// # Panics
    /// When one is 0: its queue would never be served.
    #[must_use]
    pub fn new(weights: BTreeMap<String, u32>) -> Self {
        assert!(weights.values().all(|weight| *weight > 0), "a weight is 0: {weights:?}");
        Self(Arc::new(weights))
    }

    /// A queue's weight.
    #[must_use]
    pub fn of(&self, queue: &str) -> u32 {
        self.0.get(queue).copied().unwrap_or(1)
    }
}

/// What the queues have: slots, or places.
#[derive(Debug, Default)]
pub(super) struct Served {
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    /// The wishes of one of its jobs, for its name.
    spec: Arc<Spec>,
    weight: u64,
    has: u64,
}

impl Served {
    /// Adds to what a job's queue has; where the queue is, for [`Claim::queue`]. There are few
    /// queues with jobs that run, so that they are looked through.
    pub(super) fn add(&mut self, spec: &Arc<Spec>, weights: &Weights, has: usize) -> usize {
        let name = &spec.scheduling.queue;
        let known = self.queues.iter().position(|queue| queue.spec.scheduling.queue == *name);
        let place = known.unwrap_or_else(|| {
            let weight = u64::from(weights.of(name));
            self.queues.push(Queue { spec: spec.clone(), weight, has: 0 });
            self.queues.len() - 1
        });
        self.serve(place, has);
        place
    }

    /// Notes that a queue got more.
    pub(super) fn serve(&mut self, place: usize, more: usize) {
        self.queues[place].has += more as u64;
    }

    /// Which of two claims comes first.
    pub(super) fn compare(&self, one: &Claim, other: &Claim) -> Ordering {
        let (a, b) = (&self.queues[one.queue], &self.queues[other.queue]);
        other
            .priority
            .cmp(&one.priority)
            // a.has / a.weight against b.has / b.weight, in whole numbers.
            .then_with(|| (a.has * b.weight).cmp(&(b.has * a.weight)))
            .then_with(|| one.number.cmp(&other.number))
    }
}

/// A job that could use a slot or a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) priority: u8,
    /// Where its queue is in [`Served`].
    pub(super) queue: usize,
    /// Its place in the order of submission.
    pub(super) number: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        scheduling::Scheduling,
        spec::{InputFormat, OutputFormat},
    };

    fn spec(queue: &str) -> Arc<Spec> {
        Arc::new(Spec {
            app: "wc".into(),
            inputs: vec!["in".into()],
            output: "out".into(),
            reduces: 1,
            input_format: InputFormat::Text,
            output_format: OutputFormat::Text,
            split_bytes: 0,
            lease_ms: 1_000,
            task_timeout_ms: 1_000,
            max_attempts: 4,
            name: String::new(),
            slow_ms: 0,
            overwrite: false,
            flow: crate::flow::Flow::default(),
            scheduling: Scheduling { queue: queue.into(), ..Scheduling::default() },
            streaming: None,
        })
    }

    #[test]
    fn priority_comes_before_shares_and_shares_before_submission() {
        let weights = Weights::new(BTreeMap::from([("heavy".to_owned(), 3)]));
        let mut served = Served::default();
        let light = served.add(&spec("light"), &weights, 1);
        let heavy = served.add(&spec("heavy"), &weights, 2);
        let claim = |priority, queue, number| Claim { priority, queue, number };
        let first = |served: &Served, claims: &[Claim]| {
            claims.iter().min_by(|a, b| served.compare(a, b)).map(|claim| claim.number)
        };
        let claims = [claim(5, light, 1), claim(5, heavy, 2), claim(5, heavy, 3)];
        assert_eq!(first(&served, &claims), Some(2), "2 of 3 is less than 1 of 1");
        assert_eq!(first(&served, &[claims[0], claim(9, light, 7), claims[1]]), Some(7));
        served.serve(heavy, 1);
        assert_eq!(first(&served, &claims), Some(1), "served alike: the first one");
        served.serve(light, 1);
        assert_eq!(first(&served, &claims), Some(2));
    }
}
