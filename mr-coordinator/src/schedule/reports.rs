//! The ends of attempts: reports, time-outs, and map outputs that turn out lost.
//!
//! Decides what is proposed for each. A report of success is proposed whenever the leader does not
//! know better, and the log's verdict is the answer: the record is the commit. A map output that a
//! reduce cannot read is looked at by the coordinator itself; it is taken back when that finds it
//! damaged or a second reduce says so too, else the report counts against the reduce, so that no
//! report can keep a job going for ever.

use super::{
    Scheduler,
    active::Suspicion,
    messages::{AppliedTo, Effect, Reply, ReportAnswer, ReportEnd, Ticket, Wants},
};
use crate::{
    command::Command,
    failure::{Failure, Reason},
    ids::{AttemptId, AttemptNumber, TaskId, TaskKind, WorkerId},
    job::{Success, Verdict},
    leases::{AttemptEnd, Lease},
};

/// So many reduce attempts are believed against the coordinator's own look at a file, which does
/// not read all of it.
const ACCUSATIONS_MAX: u32 = 2;

impl Scheduler {
    pub(super) fn report(
        &mut self,
        ticket: Ticket,
        worker: WorkerId,
        attempt: AttemptId,
        end: ReportEnd,
        poll: Option<(u128, Wants)>,
    ) {
        self.roster.hear(worker, self.now);
        let epoch = self.epoch;
        if attempt.number.epoch > epoch {
            // Another leads by now; this one only has not noticed.
            self.reply(ticket, Reply::Busy);
            return;
        }
        if let Some((incarnation, wants)) = poll.filter(|(_, wants)| !wants.is_nothing()) {
            self.report_polls.insert(ticket, (worker, incarnation, wants));
        }
        self.next_begins(worker, attempt.number);
        let Some(active) = self.active(attempt.job) else {
            self.reply_report(ticket, ReportAnswer::JobGone);
            return;
        };
        let acceptable = active.acceptable(&attempt, epoch);
        match end {
            ReportEnd::Success { bytes, records, crc, content_hash, counters } => {
                if let Err(verdict) = acceptable {
                    self.reply_report(ticket, ReportAnswer::of(verdict));
                    return;
                }
                let input_bytes = match attempt.task.kind {
                    TaskKind::Map => {
                        active.plan.as_ref().map_or(0, |plan| plan.map_bytes(attempt.task.number))
                    }
                    TaskKind::Reduce => 0,
                };
                let success = Success { bytes, records, crc, content_hash, input_bytes, counters };
                let command = Command::Committed { attempt, worker, success };
                self.propose(command, AppliedTo::Success { ticket, attempt });
            }
            ReportEnd::Failure(failure) => {
                self.failed(ticket, worker, attempt, failure, acceptable);
            }
            ReportEnd::Abandoned => {
                let now = self.now;
                if let Some(active) = self.active(attempt.job) {
                    active.give_back(attempt.number, AttemptEnd::Abandoned, now);
                    self.effects.push(Effect::Changed { job: attempt.job });
                }
                self.reply_report(ticket, ReportAnswer::Noted);
            }
        }
    }

    /// A slot of a worker is free for what it keeps ready. When that began, its next heartbeat would
    /// tell too late.
    fn next_begins(&mut self, worker: WorkerId, ended: AttemptNumber) {
        let now = self.now;
        let waits = |(_, number, lease): &(u64, AttemptNumber, &Lease)| {
            *number != ended && lease.queued && !lease.may_have_begun()
        };
        let of_worker = self.jobs.iter().flat_map(|(job, active)| {
            let numbers = active.leases.of_worker(worker);
            numbers.filter_map(|number| Some((*job, number, active.leases.live(number)?)))
        });
        let next = of_worker.filter(waits).map(|(job, number, _)| (number, job)).min();
        if let Some((number, job)) = next
            && let Some(active) = self.jobs.get_mut(&job)
        {
            active.leases.presume_begun(number, now);
        }
    }

    fn failed(
        &mut self,
        ticket: Ticket,
        worker: WorkerId,
        attempt: AttemptId,
        failure: Failure,
        acceptable: Result<(), Verdict>,
    ) {
        let now = self.now;
        if acceptable.is_err() {
            // Given up before, or its task is done: nothing to count.
            if let Some(active) = self.active(attempt.job) {
                active.close(attempt.number, AttemptEnd::Failed, now);
            }
            self.reply_report(ticket, ReportAnswer::Noted);
            return;
        }
        match failure.reason.clone() {
            Reason::Intermediate { map, .. } => {
                self.intermediate_lost(Suspicion { reduce: attempt, worker, failure }, map);
                self.reply_report(ticket, ReportAnswer::Noted);
            }
            Reason::User { .. }
            | Reason::Exit { .. }
            | Reason::Input { .. }
            | Reason::Io { .. }
            | Reason::Resource { .. }
            | Reason::Internal { .. }
            | Reason::Timeout { .. } => {
                self.propose_failed(Some(ticket), worker, attempt, failure);
            }
        }
    }

    fn propose_failed(
        &mut self,
        ticket: Option<Ticket>,
        worker: WorkerId,
        attempt: AttemptId,
        failure: Failure,
    ) {
        let now = self.now;
        let name = self.roster.name(worker);
        let failure = failure.clipped();
        if let Some(active) = self.active(attempt.job) {
            active.avoid(attempt.task, worker, now);
            active.note_failure(attempt.number, &failure);
            // A record that may be left out is to blame, not the worker.
            if active.job.spec.scheduling.max_skip == 0 || failure.record().is_none() {
                active.trust.failed(worker, now);
            }
        }
        let command = Command::Failed { attempt, worker: name, failure };
        self.propose(command, AppliedTo::Failure { ticket, attempt });
    }

    /// A failure is in the log, or will not get there: its task is pending again, after a pause.
    pub(super) fn failure_applied(&mut self, attempt: &AttemptId) {
        let now = self.now;
        let Some(active) = self.active(attempt.job) else { return };
        active.leases.end(attempt.number, AttemptEnd::Failed, now);
        let at = active.retry_at(attempt.task, now);
        active.offer(attempt.task, at, now);
        active.touch();
        if let Some(worker) = active.avoided(attempt.task) {
            active.avoid(attempt.task, worker, at);
        }
        self.effects.push(Effect::Changed { job: attempt.job });
    }

    /// Ends attempts that make no progress.
    pub(super) fn time_out(&mut self) {
        let now = self.now;
        let mut stuck = Vec::new();
        for active in self.jobs.values_mut() {
            let timeout = active.job.spec.task_timeout_ms;
            let over = active.leases.numbers(|lease| now.since(lease.progressed) >= timeout);
            for number in over {
                let Some(lease) = active.leases.end(number, AttemptEnd::Failed, now) else {
                    continue;
                };
                let attempt = AttemptId { job: active.job.id, task: lease.task, number };
                stuck.push((attempt, lease.worker, now.since(lease.progressed)));
            }
        }
        for (attempt, worker, idle_ms) in stuck {
            let failure =
                Failure { reason: Reason::Timeout { idle_ms }, stderr_tail: String::new() };
            self.propose_failed(None, worker, attempt, failure);
            self.effects.push(Effect::Changed { job: attempt.job });
        }
    }

    /// A reduce attempt says that a map's committed output is missing or damaged.
    fn intermediate_lost(&mut self, suspicion: Suspicion, map: AttemptId) {
        let now = self.now;
        let reduce = suspicion.reduce;
        let Some(active) = self.active(reduce.job) else { return };
        let manifest = active.job.result(map.task).cloned();
        match manifest {
            Some(manifest)
                if map.job == reduce.job
                    && map.task.kind == TaskKind::Map
                    && reduce.task.kind == TaskKind::Reduce
                    && manifest.attempt == map.number =>
            {
                active.leases.end(reduce.number, AttemptEnd::Aborted, now);
                active.pending.hold(reduce.task);
                active.touch();
                *active.accusations.entry(map.number).or_default() += 1;
                let suspicions = active.suspicions.entry(map).or_default();
                suspicions.push(suspicion);
                if suspicions.len() == 1 {
                    self.effects.push(Effect::CheckRun { map, manifest });
                }
                self.effects.push(Effect::Changed { job: reduce.job });
            }
            // The list that it was given is out of date: the map was taken back meanwhile.
            Some(_) | None => active.give_back(reduce.number, AttemptEnd::Aborted, now),
        }
    }

    /// The coordinator has looked at the file itself.
    pub(super) fn run_checked(&mut self, map: AttemptId, sound: bool) {
        let up_to = self.last_attempt();
        let Some(active) = self.active(map.job) else { return };
        let suspicions = active.suspicions.remove(&map).unwrap_or_default();
        let accusations = active.accusations.get(&map.number).copied().unwrap_or(0);
        if sound && accusations < ACCUSATIONS_MAX {
            for Suspicion { reduce, worker, failure } in suspicions {
                if let Some(active) = self.active(map.job) {
                    active.pending.release(reduce.task);
                }
                self.propose_failed(None, worker, reduce, failure);
            }
            return;
        }
        active.invalidating += 1;
        let count = u32::try_from(suspicions.len()).unwrap_or(u32::MAX);
        active.unrecorded_retries[1] = active.unrecorded_retries[1].saturating_add(count);
        let reduces = suspicions.into_iter().map(|suspicion| suspicion.reduce.task).collect();
        let command = Command::Invalidated { attempt: map, up_to };
        self.propose(command, AppliedTo::Invalidation { map, reduces });
    }

    /// The map's output was taken back, or was not; reduces may go on, with what there is now.
    pub(super) fn invalidation_over(&mut self, map: &AttemptId, reduces: &[TaskId]) {
        let now = self.now;
        let Some(active) = self.active(map.job) else { return };
        active.invalidating = active.invalidating.saturating_sub(1);
        active.offered = true;
        for reduce in reduces {
            active.pending.release(*reduce);
            active.offer(*reduce, now, now);
        }
    }

    /// The last attempt that was given out.
    pub(super) fn last_attempt(&self) -> AttemptNumber {
        AttemptNumber { epoch: self.epoch, sequence: self.sequence }
    }
}
