//! What jobs of the world must come to, and the invariants.
//!
//! A map's content is a hash of its job, its number and the records that it left out; that of a map
//! of a nondeterministic job is its attempt's own. A reduce's content is a hash of its partition
//! and of what the runs that it was given hold. So the accepted attempts of a job that succeeds can
//! be compared with a run of all tasks one after the other, to the byte as it were.

use std::collections::BTreeSet;

use mr_coordinator::{
    command::Command,
    failure::Record,
    ids::{AttemptId, JobId, TaskId, TaskKind},
    job::{Job, JobState, Verdict},
    schedule::{Assignment, Run, Work},
    spec::{Plan, Split},
};

use super::World;

/// What the world knows of a job that its coordinator does not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    /// Records that the app cannot take, by map task.
    pub(crate) bad: BTreeSet<(u32, u64)>,
    /// Whether each attempt at a map writes something else.
    pub(crate) nondeterministic: bool,
}

/// A plan of so many maps, the later ones larger.
pub(super) fn plan(maps: u32) -> Plan {
    let split = |number: u32| {
        let bytes = bytes(number);
        Split { path: path(number), start: 0, bytes, file_bytes: bytes, ..Split::default() }
    };
    Plan { maps: (0..maps).map(|number| vec![split(number)]).collect(), ..Plan::default() }
}

/// The size of a map task's input.
pub(super) fn bytes(map: u32) -> u64 {
    10_000 + u64::from(map)
}

/// The input of a map task.
pub(super) fn path(map: u32) -> String {
    format!("file {map}")
}

fn mix(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0x9e37_79b9_7f4a_7c15, |sum: u64, part| {
        (sum.rotate_left(23) ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd)
    })
}

/// What a map writes that leaves out these records.
pub(super) fn map_content(job: JobId, map: u32, left_out: impl Iterator<Item = u64>) -> u64 {
    mix([job.0 as u64, u64::from(map)].into_iter().chain(left_out))
}

fn reduce_content(job: JobId, partition: u32, maps: impl Iterator<Item = u64>) -> u64 {
    mix([job.0 as u64, 1 << 40 | u64::from(partition)].into_iter().chain(maps))
}

impl World {
    /// What an attempt writes, given what it was told to read and to leave out.
    pub(super) fn content(&self, attempt: &AttemptId, runs: &[Run], skip: &[Record]) -> u64 {
        let AttemptId { job, task, number } = *attempt;
        match task.kind {
            TaskKind::Map if self.models[&job].nondeterministic => {
                mix([job.0 as u64, u64::from(task.number), number.epoch, number.sequence.into()])
            }
            TaskKind::Map => {
                let left_out: BTreeSet<u64> = skip.iter().map(|record| record.offset).collect();
                map_content(job, task.number, left_out.into_iter())
            }
            TaskKind::Reduce => {
                let contents = runs.iter().map(|run| self.contents[&run.attempt]);
                reduce_content(job, task.number, contents)
            }
        }
    }

    /// The invariants, against a bookkeeping of verdicts alone.
    pub(super) fn check(&mut self, command: &Command, before: Option<&Job>, verdict: Verdict) {
        let accepted = verdict == Verdict::Accepted;
        if let Some(before) = before {
            assert!(!(accepted && before.state.terminal()), "{command:?} after the end");
        }
        if let (Command::Committed { attempt, success, .. }, true) = (command, accepted) {
            assert!(self.issued.contains(attempt), "{attempt} was never given out");
            assert_eq!(success.content_hash, self.contents[attempt]);
            let place = (attempt.job, attempt.task);
            let old = self.accepted.insert(place, *attempt);
            assert_eq!(old, None, "two accepted attempts of one task");
            let counted = (success.counters["COUNT"], success.counters["SKIPPED_RECORDS"]);
            self.counted.insert(*attempt, counted);
        }
        if let (Command::Planned { job, .. }, true, Some(before)) = (command, accepted, before) {
            for dependency in &before.spec.scheduling.after {
                let state = self.state(*dependency);
                assert_eq!(state, Some(JobState::Succeeded), "{job} began before {dependency}");
            }
        }
        let Some(job) = command.job().and_then(|job| self.machine.job(job)).cloned() else {
            return;
        };
        if let (Command::Finished { .. }, true, Some(before)) = (command, accepted, before)
            && job.state == JobState::Succeeded
        {
            self.check_output(before);
        }
        if !job.state.terminal() {
            self.accepted.retain(|(id, task), attempt| {
                let committed = job.result(*task).map(|result| result.attempt);
                *id != job.id || committed == Some(attempt.number)
            });
        }
        self.check_sums(&job);
    }

    fn check_sums(&self, job: &Job) {
        let (first, last) = ((job.id, TaskId::map(0)), (job.id, TaskId::reduce(u32::MAX)));
        let mine = || self.accepted.range(first..=last);
        let sum = |which: fn(&(u64, u64)) -> u64| -> u64 {
            mine().map(|(_, attempt)| which(&self.counted[attempt])).sum()
        };
        let told = job.counter_sums();
        let told = |name: &str| told.get(name).copied().unwrap_or(0);
        let counted = (sum(|counted| counted.0), sum(|counted| counted.1));
        let sums = (told("COUNT"), told("SKIPPED_RECORDS"));
        assert_eq!(sums, counted, "counters are the sum of accepted attempts");
        let maps = mine().filter(|((_, task), _)| task.kind == TaskKind::Map).count();
        assert_eq!(job.committed.iter().sum::<u32>() as usize, mine().count());
        assert_eq!(job.committed[0] as usize, maps);
        assert!(job.skipped <= job.spec.scheduling.max_skip, "more is left out than may be");
        if job.state == JobState::Succeeded {
            assert_eq!(job.committed, [job.total(TaskKind::Map), job.total(TaskKind::Reduce)]);
        }
    }

    /// The results are those of a run of all tasks one after the other.
    fn check_output(&self, job: &Job) {
        let model = &self.models[&job.id];
        let hash = |task| job.result(task).expect("every task is committed").content_hash;
        let maps: Vec<u64> = (0..job.total(TaskKind::Map)).map(|m| hash(TaskId::map(m))).collect();
        for (map, content) in maps.iter().enumerate() {
            let map = map as u32;
            let bad = model.bad.range((map, 0)..(map + 1, 0)).map(|(_, offset)| *offset);
            if !model.nondeterministic {
                assert_eq!(*content, map_content(job.id, map, bad), "map {map} of {}", job.id);
            }
        }
        if model.nondeterministic && job.spec.scheduling.nondeterministic_ok {
            return;
        }
        for partition in 0..job.total(TaskKind::Reduce) {
            let expected = reduce_content(job.id, partition, maps.iter().copied());
            let is = hash(TaskId::reduce(partition));
            assert_eq!(is, expected, "partition {partition} of {} mixes attempts", job.id);
        }
    }

    pub(super) fn check_assignment(&self, assignment: &Assignment) {
        let AttemptId { job, task, .. } = assignment.attempt;
        let job = self.machine.job(job).expect("the job is known");
        if let Work::Reduce(runs) = &assignment.work {
            assert_eq!(runs.len(), job.total(TaskKind::Map) as usize, "a reduce gets every run");
        }
        // What the log has answered and the leader has not heard, it cannot know.
        if self.answers_under_way == 0 {
            assert!(job.state.runs_tasks(), "{task} of a job that is {:?} is given out", job.state);
            assert!(job.result(task).is_none(), "{task}, which is committed, is given out");
            let skipped = job.task(task).map(|task| task.skipped.clone()).unwrap_or_default();
            assert_eq!(assignment.skip, skipped);
        }
    }
}
