//! The replicated state machine: what each record does, and that duplicates and late records do
//! nothing.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::collections::BTreeMap;

use bytes::Bytes;
use mr_coordinator::{
    command::Command,
    failure::{CauseKind, Failure, Reason},
    ids::{AttemptId, AttemptNumber, JobId, TaskId, WorkerId},
    job::{JobState, Success, Verdict},
    limits::{JOBS_ACTIVE_MAX, JOBS_ENDED_MAX},
    machine::{Machine, Response},
    scheduling::Scheduling,
    spec::{InputFormat, OutputFormat, PlanRoot, Spec},
};
use raft::{Applied, CHUNK_BYTES_MAX, Capture, GroupTime, Index, StateMachine, Term};

struct Log {
    machine: Machine,
    index: u64,
}

impl Log {
    fn new() -> Self {
        Self { machine: Machine::new(), index: 0 }
    }

    fn apply(&mut self, command: &Command) -> Response {
        self.index += 1;
        let at = Applied { index: Index(self.index), term: Term(1), time: GroupTime(self.index) };
        let bytes = command.encode();
        assert_eq!(Command::decode(&bytes).as_ref(), Ok(command), "a command survives its bytes");
        let response = self.machine.apply(at, &bytes);
        check_snapshot(&self.machine);
        response
    }

    fn verdict(&mut self, command: &Command) -> Verdict {
        self.apply(command).verdict
    }

    /// A job with so many maps and reduces, planned.
    fn planned(&mut self, number: u128, maps: u32, reduces: u32) -> JobId {
        let job = JobId(number);
        assert_eq!(
            self.verdict(&submitted(job, &format!("token {number}"), spec(reduces, number))),
            Verdict::Accepted
        );
        let plan = PlanRoot { digest: [7; 32], maps, bytes: 100 };
        assert_eq!(self.verdict(&Command::Planned { job, plan }), Verdict::Accepted);
        job
    }

    fn state(&self, job: JobId) -> JobState {
        self.machine.job(job).unwrap().state
    }
}

/// A snapshot restores to the same state, and its chunks keep to their size.
fn check_snapshot(machine: &Machine) {
    let chunks: Vec<Bytes> = machine.capture().chunks().collect();
    assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK_BYTES_MAX));
    let mut copy = Machine::new();
    copy.restore(&mut chunks.clone().into_iter()).unwrap();
    assert_eq!(copy.digest(), machine.digest(), "the digest follows from the state");
    let again: Vec<Bytes> = copy.capture().chunks().collect();
    assert_eq!(chunks, again, "the encoding is canonical");
}

fn spec(reduces: u32, number: u128) -> Spec {
    Spec {
        app: "wc".into(),
        inputs: vec!["in/*.txt".into()],
        output: format!("out-{number}"),
        reduces,
        input_format: InputFormat::Text,
        output_format: OutputFormat::Lab,
        split_bytes: 0,
        lease_ms: 10_000,
        task_timeout_ms: 600_000,
        max_attempts: 4,
        name: String::new(),
        slow_ms: 0,
        overwrite: false,
        flow: mr_coordinator::flow::Flow::default(),
        scheduling: Scheduling::default(),
        streaming: None,
    }
}

fn submitted(job: JobId, token: &str, spec: Spec) -> Command {
    let output_key = spec.output.clone();
    Command::Submitted { job, token: token.into(), spec, output_key, unix_ms: 5 }
}

fn attempt(job: JobId, task: TaskId, sequence: u32) -> AttemptId {
    AttemptId { job, task, number: AttemptNumber { epoch: 1, sequence } }
}

fn committed(attempt: AttemptId, hash: u64) -> Command {
    let counters = BTreeMap::from([("RECORDS".to_owned(), u64::from(attempt.number.sequence))]);
    let success =
        Success { bytes: 10, records: 3, crc: 1, content_hash: hash, input_bytes: 50, counters };
    Command::Committed { attempt, worker: WorkerId(1), success }
}

fn failed(attempt: AttemptId, permanent: bool) -> Command {
    let reason = Reason::Input { path: "in/a".into(), message: "gone".into(), permanent };
    let failure = Failure { reason, stderr_tail: "tail".into() };
    Command::Failed { attempt, worker: "one".into(), failure }
}

#[test]
fn repeated_token_is_the_same_job_and_another_spec_conflicts() {
    let mut log = Log::new();
    let first = log.apply(&submitted(JobId(1), "t", spec(2, 1)));
    assert_eq!(first.verdict, Verdict::Accepted);
    let again = log.apply(&submitted(JobId(2), "t", spec(2, 1)));
    assert_eq!(again.verdict, Verdict::AlreadyAccepted);
    assert_eq!(again.job.unwrap().id, JobId(1));
    assert_eq!(log.verdict(&submitted(JobId(3), "t", spec(3, 1))), Verdict::TokenConflict);
    assert!(log.machine.job(JobId(2)).is_none());
}

#[test]
fn output_of_an_active_job_is_taken_with_all_above_and_below_it() {
    let mut log = Log::new();
    for (number, output, verdict) in [
        (1, "a/b", Verdict::Accepted),
        (2, "a/b", Verdict::OutputBusy),
        (3, "a/b/c", Verdict::OutputBusy),
        (4, "a", Verdict::OutputBusy),
        (5, "a/bc", Verdict::Accepted),
    ] {
        let spec = Spec { output: output.into(), ..spec(1, 0) };
        assert_eq!(
            log.verdict(&submitted(JobId(number), &number.to_string(), spec)),
            verdict,
            "{output}"
        );
    }
    assert_eq!(log.verdict(&Command::Cancelling { job: JobId(1) }), Verdict::Accepted);
    assert_eq!(log.verdict(&Command::Finished { job: JobId(1), unix_ms: 9 }), Verdict::Accepted);
    assert_eq!(
        log.verdict(&submitted(JobId(6), "6", Spec { output: "a/b".into(), ..spec(1, 0) })),
        Verdict::Accepted
    );
}

#[test]
fn job_goes_from_queue_to_success_and_late_reports_change_nothing() {
    let mut log = Log::new();
    let job = log.planned(1, 2, 1);
    assert_eq!(log.state(job), JobState::Mapping);
    let (first, second) = (attempt(job, TaskId::map(0), 1), attempt(job, TaskId::map(0), 2));
    assert_eq!(log.verdict(&committed(first, 9)), Verdict::Accepted);
    let before = log.machine.digest();
    assert_eq!(log.verdict(&committed(first, 9)), Verdict::AlreadyAccepted);
    assert_eq!(log.verdict(&committed(second, 9)), Verdict::LostRace);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::map(2), 3), 9)), Verdict::Stale);
    assert_eq!(log.verdict(&Command::CommitStarted { job }), Verdict::Stale);
    assert_eq!(log.machine.digest(), before, "refused records change nothing");
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::map(1), 4), 8)), Verdict::Accepted);
    assert_eq!(log.state(job), JobState::Reducing);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::reduce(0), 5), 7)), Verdict::Accepted);
    assert_eq!(log.verdict(&Command::CommitStarted { job }), Verdict::Accepted);
    assert_eq!(log.verdict(&Command::Cancelling { job }), Verdict::TooLate);
    assert_eq!(log.verdict(&Command::Finished { job, unix_ms: 77 }), Verdict::Accepted);
    let ended = log.machine.job(job).unwrap();
    assert_eq!((ended.state, ended.ended_unix_ms), (JobState::Succeeded, 77));
    assert_eq!(ended.counter_sums(), BTreeMap::from([("RECORDS".to_owned(), 1 + 4 + 5)]));
    assert_eq!(log.verdict(&committed(first, 9)), Verdict::JobGone);
    assert_eq!(log.verdict(&Command::Finished { job, unix_ms: 78 }), Verdict::AlreadyAccepted);
}

#[test]
fn job_without_maps_goes_straight_to_its_reduces() {
    let mut log = Log::new();
    let job = log.planned(1, 0, 1);
    assert_eq!(log.state(job), JobState::Reducing);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::reduce(0), 1), 0)), Verdict::Accepted);
    assert_eq!(log.verdict(&Command::CommitStarted { job }), Verdict::Accepted);
}

#[test]
fn fourth_failure_fails_the_job_and_a_repeated_one_does_not_count() {
    let mut log = Log::new();
    let job = log.planned(1, 1, 1);
    for sequence in 1..=3 {
        let failure = failed(attempt(job, TaskId::map(0), sequence), false);
        assert_eq!(log.verdict(&failure), Verdict::Accepted);
        assert_eq!(log.verdict(&failure), Verdict::Stale);
        let late = committed(attempt(job, TaskId::map(0), sequence), 1);
        assert_eq!(log.verdict(&late), Verdict::Stale, "a failed attempt is never accepted");
    }
    assert_eq!(log.state(job), JobState::Mapping);
    assert_eq!(log.verdict(&failed(attempt(job, TaskId::map(0), 4), false)), Verdict::Accepted);
    assert_eq!(log.state(job), JobState::Failing);
    let cause = log.machine.job(job).unwrap().cause.clone().unwrap();
    assert_eq!(cause.kind, CauseKind::TaskFailed);
    assert_eq!(cause.attempt, Some(attempt(job, TaskId::map(0), 4)));
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::map(0), 5), 1)), Verdict::Stale);
    assert_eq!(log.verdict(&Command::Finished { job, unix_ms: 1 }), Verdict::Accepted);
    assert_eq!(log.state(job), JobState::Failed);
}

#[test]
fn permanent_input_error_fails_the_job_at_once() {
    let mut log = Log::new();
    let job = log.planned(1, 1, 1);
    assert_eq!(log.verdict(&failed(attempt(job, TaskId::map(0), 1), true)), Verdict::Accepted);
    assert_eq!(log.state(job), JobState::Failing);
}

#[test]
fn three_lost_workers_make_a_task_poison_and_a_lost_attempt_may_still_win() {
    let mut log = Log::new();
    let job = log.planned(1, 2, 1);
    let lost = |task: u32, sequence| Command::WorkerLost {
        attempt: attempt(job, TaskId::map(task), sequence),
        worker: "one".into(),
    };
    assert_eq!(log.verdict(&lost(0, 1)), Verdict::Accepted);
    assert_eq!(log.verdict(&lost(0, 1)), Verdict::AlreadyAccepted);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::map(0), 1), 1)), Verdict::Accepted);
    for sequence in 2..=4 {
        assert_eq!(log.state(job), JobState::Mapping);
        assert_eq!(log.verdict(&lost(1, sequence)), Verdict::Accepted);
    }
    assert_eq!(log.state(job), JobState::Failing);
    assert_eq!(log.machine.job(job).unwrap().cause.as_ref().unwrap().kind, CauseKind::PoisonTask);
}

#[test]
fn invalidated_map_with_the_same_content_leaves_reduces_committed() {
    let mut log = Log::new();
    let job = log.planned(1, 1, 2);
    let map = attempt(job, TaskId::map(0), 1);
    assert_eq!(log.verdict(&committed(map, 5)), Verdict::Accepted);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::reduce(0), 2), 6)), Verdict::Accepted);
    let up_to = AttemptNumber { epoch: 1, sequence: 3 };
    let invalidated = Command::Invalidated { attempt: map, up_to };
    assert_eq!(log.verdict(&invalidated), Verdict::Accepted);
    assert_eq!(log.verdict(&invalidated), Verdict::Stale);
    assert_eq!(log.state(job), JobState::Mapping);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::map(0), 3), 5)), Verdict::Stale);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::map(0), 4), 5)), Verdict::Accepted);
    assert_eq!(log.machine.job(job).unwrap().committed, [1, 1]);
    // Each attempt of these tests tells 50 input bytes: no sum counts the lost one.
    assert_eq!(log.machine.job(job).unwrap().bytes_committed, 100);
    assert_eq!(log.machine.job(job).unwrap().counter_sums()["RECORDS"], 2 + 4);
}

#[test]
fn invalidated_map_with_other_content_resets_reduces_and_voids_those_under_way() {
    let mut log = Log::new();
    let job = log.planned(1, 1, 2);
    let map = attempt(job, TaskId::map(0), 1);
    assert_eq!(log.verdict(&committed(map, 5)), Verdict::Accepted);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::reduce(0), 2), 6)), Verdict::Accepted);
    let up_to = AttemptNumber { epoch: 1, sequence: 3 };
    assert_eq!(log.verdict(&Command::Invalidated { attempt: map, up_to }), Verdict::Accepted);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::map(0), 4), 99)), Verdict::Accepted);
    assert_eq!(log.machine.job(job).unwrap().committed, [1, 0]);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::reduce(1), 3), 6)), Verdict::Stale);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::reduce(1), 5), 6)), Verdict::Accepted);
    assert_eq!(log.machine.job(job).unwrap().counter_sums()["RECORDS"], 4 + 5);
}

#[test]
fn third_invalidation_of_a_map_fails_the_job() {
    let mut log = Log::new();
    let job = log.planned(1, 1, 1);
    for sequence in 1..=3 {
        let map = attempt(job, TaskId::map(0), sequence);
        assert_eq!(log.verdict(&committed(map, 5)), Verdict::Accepted);
        assert_eq!(
            log.verdict(&Command::Invalidated { attempt: map, up_to: map.number }),
            Verdict::Accepted
        );
    }
    assert_eq!(log.state(job), JobState::Failing);
}

#[test]
fn committing_job_rolls_forward_whatever_fails() {
    let mut log = Log::new();
    let job = log.planned(1, 1, 1);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::map(0), 1), 5)), Verdict::Accepted);
    let reduce = attempt(job, TaskId::reduce(0), 2);
    assert_eq!(log.verdict(&committed(reduce, 5)), Verdict::Accepted);
    assert_eq!(log.verdict(&Command::CommitStarted { job }), Verdict::Accepted);
    assert_eq!(
        log.verdict(&Command::Invalidated { attempt: reduce, up_to: reduce.number }),
        Verdict::Accepted
    );
    assert_eq!(log.verdict(&Command::Finished { job, unix_ms: 1 }), Verdict::Stale);
    for sequence in 3..=20 {
        assert_eq!(
            log.verdict(&failed(attempt(job, TaskId::reduce(0), sequence), false)),
            Verdict::Accepted
        );
    }
    assert_eq!(log.state(job), JobState::Committing);
    assert!(log.machine.job(job).unwrap().task(TaskId::reduce(0)).unwrap().failed.len() < 4);
    assert_eq!(log.verdict(&committed(attempt(job, TaskId::reduce(0), 30), 5)), Verdict::Accepted);
    assert_eq!(log.verdict(&Command::Finished { job, unix_ms: 1 }), Verdict::Accepted);
}

#[test]
fn worker_that_comes_back_as_another_process_takes_the_place_of_the_old_one() {
    let mut log = Log::new();
    let register = |incarnation| Command::WorkerRegistered {
        name: "one".into(),
        incarnation,
        slots: 2,
        apps: vec!["wc".into()],
    };
    let first = log.apply(&register(1));
    assert_eq!(first.worker.unwrap().id, WorkerId(1));
    let again = log.apply(&register(1));
    assert_eq!((again.verdict, again.worker.unwrap().id), (Verdict::AlreadyAccepted, WorkerId(1)));
    let other = log.apply(&register(2));
    assert_eq!((other.worker.unwrap().id, other.replaced), (WorkerId(2), Some(WorkerId(1))));
    assert_eq!(log.verdict(&Command::WorkerLeft { worker: WorkerId(1) }), Verdict::Stale);
    assert_eq!(log.verdict(&Command::WorkerLeft { worker: WorkerId(2) }), Verdict::Accepted);
    assert_eq!(log.machine.workers().count(), 0);
}

#[test]
fn jobs_are_bounded_and_the_oldest_ended_one_is_forgotten_with_its_token() {
    let mut log = Log::new();
    for number in 0..JOBS_ACTIVE_MAX as u128 {
        log.index += 1;
        let at = Applied { index: Index(log.index), term: Term(1), time: GroupTime(0) };
        let command = submitted(JobId(number), &number.to_string(), spec(1, number)).encode();
        assert_eq!(log.machine.apply(at, &command).verdict, Verdict::Accepted);
    }
    assert_eq!(log.verdict(&submitted(JobId(9_999), "x", spec(1, 9_999))), Verdict::TooMany);
    let total = JOBS_ENDED_MAX as u128 + 5;
    for number in 0..total {
        log.index += 1;
        let at = Applied { index: Index(log.index), term: Term(1), time: GroupTime(0) };
        let job = JobId(number);
        let submit = submitted(job, &number.to_string(), spec(1, number)).encode();
        log.machine.apply(at, &submit);
        log.index += 2;
        let at = Applied { index: Index(log.index), ..at };
        log.machine.apply(at, &Command::Cancelling { job }.encode());
        log.machine.apply(at, &Command::Finished { job, unix_ms: 1 }.encode());
    }
    assert_eq!(log.machine.jobs().count(), JOBS_ENDED_MAX);
    assert!(log.machine.job(JobId(4)).is_none());
    assert!(log.machine.job_of_token("4").is_none());
    assert!(log.machine.job(JobId(5)).is_some());
    check_snapshot(&log.machine);
}

#[test]
fn ended_job_is_remembered_as_long_as_another_waits_for_it() {
    let mut log = Log::new();
    let mut apply = |command: &Command| {
        log.index += 1;
        let at = Applied { index: Index(log.index), term: Term(1), time: GroupTime(0) };
        log.machine.apply(at, &command.encode()).verdict
    };
    let after = |number: u128, before: u128| {
        let mut spec = spec(1, number);
        spec.scheduling.after = vec![JobId(before)];
        submitted(JobId(number), &number.to_string(), spec)
    };
    assert_eq!(apply(&after(2, 1)), Verdict::AfterUnknown);
    apply(&submitted(JobId(1), "1", spec(1, 1)));
    assert_eq!(apply(&after(2, 1)), Verdict::Accepted);
    let mut end = |number: u128, submit: bool| {
        let job = JobId(number);
        if submit {
            apply(&submitted(job, &number.to_string(), spec(1, number)));
        }
        apply(&Command::Cancelling { job });
        apply(&Command::Finished { job, unix_ms: 1 });
    };
    end(1, false);
    for number in 0..JOBS_ENDED_MAX as u128 + 5 {
        end(10_000 + number, true);
    }
    end(2, false);
    end(50_000, true);
    assert!(log.machine.job(JobId(1)).is_none(), "nobody waits for it any more");
    assert_eq!(log.machine.jobs().count(), JOBS_ENDED_MAX);
    check_snapshot(&log.machine);
}

#[test]
fn small_change_changes_few_chunks() {
    let mut log = Log::new();
    let job = log.planned(1, 4_000, 1);
    for number in 0..3_999 {
        log.index += 1;
        let at = Applied { index: Index(log.index), term: Term(1), time: GroupTime(0) };
        let command = committed(attempt(job, TaskId::map(number), number + 1), 1).encode();
        assert_eq!(log.machine.apply(at, &command).verdict, Verdict::Accepted);
    }
    let before: Vec<Bytes> = log.machine.capture().chunks().collect();
    log.apply(&committed(attempt(job, TaskId::map(3_999), 9_999), 1));
    let after: Vec<Bytes> = log.machine.capture().chunks().collect();
    let fresh = after.iter().filter(|chunk| !before.contains(chunk)).count();
    assert!(after.len() > 10, "{} chunks", after.len());
    assert!(fresh <= 3, "{fresh} of {} chunks changed", after.len());
}

#[test]
fn damaged_snapshot_is_refused_and_the_state_stays() {
    let mut log = Log::new();
    let job = log.planned(1, 3, 2);
    log.apply(&committed(attempt(job, TaskId::map(0), 1), 5));
    let chunks: Vec<Bytes> = log.machine.capture().chunks().collect();
    let whole: Vec<u8> = chunks.concat();
    let digest = log.machine.digest();
    for cut in 0..whole.len() {
        let restored =
            log.machine.restore(&mut std::iter::once(Bytes::copy_from_slice(&whole[..cut])));
        if restored.is_ok() {
            // A cut between items can look whole, never like the same state.
            assert_ne!(log.machine.digest(), digest, "cut at {cut}");
            log.machine.restore(&mut chunks.clone().into_iter()).unwrap();
        }
        assert_eq!(log.machine.digest(), digest, "cut at {cut}");
    }
}

#[test]
fn broken_command_changes_nothing() {
    let mut log = Log::new();
    log.planned(1, 1, 1);
    let digest = log.machine.digest();
    let at = Applied { index: Index(99), term: Term(1), time: GroupTime(0) };
    for bytes in [&b""[..], b"\x01", b"\x02\x01", b"\x01\x63", b"\x01\x09short"] {
        let response = log.machine.apply(at, &Bytes::copy_from_slice(bytes));
        assert_eq!(response.verdict, Verdict::Malformed);
    }
    assert_eq!(log.machine.digest(), digest);
}

#[test]
fn a_recovery_names_no_worker_again() {
    let mut log = Log::new();
    let register = |incarnation| Command::WorkerRegistered {
        name: "worker".to_owned(),
        incarnation,
        slots: 1,
        apps: Vec::new(),
    };
    let before = log.apply(&register(1)).worker.unwrap().id;
    let digest = log.machine.digest();
    log.machine.recover();
    assert_ne!(log.machine.digest(), digest);
    check_snapshot(&log.machine);
    let after = log.apply(&register(2)).worker.unwrap().id;
    assert_eq!(after.0, before.0 + raft::RECOVERY_GAP + 1);
}
