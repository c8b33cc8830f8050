//! The whole coordinator, with its store and its ports, and a worker that is played step by step.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]
#![allow(clippy::disallowed_types, reason = "the tests are not pure")]
#![allow(dead_code, reason = "not every test uses all of the bench")]

mod bench;

use std::{fs, time::Duration};

use bench::{Bench, LIMIT, code, names, spec};
use proto::mapreduce::{self as pb, JobState, Verdict, report_request::End};
use tonic::Code;

#[tokio::test]
async fn job_runs_from_submission_to_its_outputs() {
    let mut bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let reply = bench.submit(spec(), "t").await.unwrap();
    assert!(!reply.existed);
    let id = reply.job.unwrap().id;
    worker.run_all(4).await;
    let job = bench.wait(&id, JobState::Succeeded).await;
    assert_eq!(job.outputs, ["out/part-00000", "out/part-00001"]);
    assert_eq!(job.counters["RECORDS"], 4);
    assert_eq!((job.counters["MAP_TASKS"], job.counters["REDUCE_TASKS"]), (2, 2));
    let maps = job.maps.unwrap();
    assert_eq!((maps.total, maps.committed, maps.retries), (2, 2, 0));
    assert_eq!((maps.bytes_committed, maps.bytes_total), (22, 22));
    assert_eq!(names(&bench.root.join("out")), ["_SUCCESS", "part-00000", "part-00001"]);
    assert_eq!(fs::read_to_string(bench.root.join("out/part-00001")).unwrap(), "part 1\n");
    let again = bench.submit(spec(), "t").await.unwrap();
    assert_eq!((again.existed, again.job.unwrap().id), (true, id));
    bench.stop().await;
    assert_eq!(names(&bench.root), [".flotilla", ".flotilla-root", "in", "out"]);
}

#[tokio::test]
async fn lab_results_appear_in_a_directory_that_exists() {
    let bench = Bench::start().await;
    fs::create_dir(bench.root.join("out")).unwrap();
    let mut worker = bench.worker("one").await;
    let lab = pb::JobSpec { output_format: pb::OutputFormat::Lab.into(), ..spec() };
    let id = bench.submit(lab, "t").await.unwrap().job.unwrap().id;
    worker.run_all(4).await;
    bench.wait(&id, JobState::Succeeded).await;
    assert_eq!(names(&bench.root.join("out")), ["_SUCCESS", "mr-out-0", "mr-out-1"]);
}

#[tokio::test]
async fn bad_submissions_are_refused_and_leave_nothing() {
    let bench = Bench::start().await;
    fs::create_dir(bench.root.join("there")).unwrap();
    let submit = async |change: fn(&mut pb::JobSpec)| {
        let mut spec = spec();
        change(&mut spec);
        code(bench.submit(spec, "t").await)
    };
    for (change, expected, words) in [
        ((|s| s.app = String::new()) as fn(&mut pb::JobSpec), Code::InvalidArgument, "app: "),
        (|s| s.reduces = 4_097, Code::InvalidArgument, "reduces: "),
        (|s| s.inputs = vec!["in/*.md".into()], Code::NotFound, "`in/*.md` matches no file"),
        (|s| s.inputs = vec!["../x".into()], Code::InvalidArgument, "inputs: "),
        (|s| s.inputs = vec!["/etc/passwd".into()], Code::InvalidArgument, "outside"),
        (|s| s.output = "there".into(), Code::AlreadyExists, "`there` exists"),
        (|s| s.output = ".".into(), Code::InvalidArgument, "output: "),
        (|s| s.output = "../x".into(), Code::InvalidArgument, "output: "),
    ] {
        let (is, message) = submit(change).await;
        assert_eq!(is, expected, "{message}");
        assert!(message.contains(words), "{message}");
    }
    let (is, message) =
        submit(|s| (s.inputs, s.output) = (vec!["in".into()], "in/out".into())).await;
    assert_eq!(
        (is, message.as_str()),
        (Code::InvalidArgument, "output: it lies in the input `in`")
    );
    let (is, message) = code(bench.submit(spec(), "").await);
    assert_eq!((is, message.contains("client_token")), (Code::InvalidArgument, true));
    let worker = bench.worker("one").await;
    let (is, message) = submit(|s| s.app = "nope".into()).await;
    assert_eq!(
        (is, message.as_str()),
        (Code::InvalidArgument, "app: no worker has the app `nope`; they have: wc")
    );
    drop(worker);
    let jobs = bench.jobs().await.list(pb::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!(jobs.jobs.len(), 0);
    assert_eq!(names(&bench.root), [".flotilla", ".flotilla-root", "in", "there"]);
    assert_eq!(names(&bench.root.join(".flotilla")).len(), 0);
}

#[tokio::test]
async fn second_job_with_the_same_output_or_token_conflicts() {
    let bench = Bench::start().await;
    bench.submit(spec(), "t").await.unwrap();
    let (is, message) = code(bench.submit(spec(), "other").await);
    assert_eq!(is, Code::AlreadyExists, "{message}");
    let other = pb::JobSpec { reduces: 7, ..spec() };
    let (is, message) = code(bench.submit(other, "t").await);
    assert_eq!((is, message.contains("client_token")), (Code::AlreadyExists, true));
}

#[tokio::test]
async fn worker_with_another_root_is_refused() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    for token in ["", "0123"] {
        worker.token = token.to_owned();
        let (is, message) = code(worker.register(&[]).await);
        assert_eq!(is, Code::FailedPrecondition);
        assert!(message.contains("shared root mismatch"), "{message}");
    }
}

#[tokio::test]
async fn every_report_gets_its_verdict() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let id = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    let work = worker.work().await;
    let attempt = work[0].attempt.clone().unwrap();
    let success = worker.write(&work[0]);
    let end = || End::Success(success.clone());
    assert_eq!(worker.report(&attempt, end()).await.unwrap(), Verdict::Accepted);
    assert_eq!(worker.report(&attempt, end()).await.unwrap(), Verdict::AlreadyAccepted);
    let never_given = pb::AttemptId { sequence: 999, ..attempt.clone() };
    assert_eq!(worker.report(&never_given, end()).await.unwrap(), Verdict::LostRace);
    let never_given = pb::AttemptId { task: 1, sequence: 999, ..attempt.clone() };
    assert_eq!(worker.report(&never_given, end()).await.unwrap(), Verdict::Stale);
    let gone = pb::AttemptId { job: uuid::Uuid::new_v4().to_string(), ..attempt.clone() };
    assert_eq!(worker.report(&gone, end()).await.unwrap(), Verdict::JobGone);
    let other_file = pb::Success { file: "../../x".into(), ..success.clone() };
    let (is, _) = code(worker.report(&attempt, End::Success(other_file)).await);
    assert_eq!(is, Code::InvalidArgument);
    let job = pb::JobRef { job: id.clone(), after_version: 0 };
    bench.jobs().await.cancel(job).await.unwrap();
    bench.wait(&id, JobState::Cancelled).await;
    assert_eq!(worker.report(&attempt, end()).await.unwrap(), Verdict::JobGone);
}

#[tokio::test]
async fn cancelled_job_stops_its_attempts_and_leaves_nothing() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let id = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    let work = worker.work().await;
    worker.write(&work[0]);
    let attempts: Vec<_> = work.iter().map(|work| work.attempt.clone().unwrap()).collect();
    assert!(worker.heartbeat(&attempts).await.orders.iter().all(|order| order.go_on));
    let job = || pb::JobRef { job: id.clone(), after_version: 0 };
    for _ in 0..2 {
        bench.jobs().await.cancel(job()).await.unwrap();
    }
    assert!(worker.heartbeat(&attempts).await.orders.iter().all(|order| !order.go_on));
    bench.wait(&id, JobState::Cancelled).await;
    bench.jobs().await.cancel(job()).await.unwrap();
    assert!(!bench.root.join("out").exists());
    assert_eq!(names(&bench.root.join(".flotilla")).len(), 0);
    let unknown = pb::JobRef { job: uuid::Uuid::new_v4().to_string(), after_version: 0 };
    assert_eq!(code(bench.jobs().await.cancel(unknown).await).0, Code::NotFound);
}

#[tokio::test]
async fn succeeded_job_cannot_be_cancelled() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let id = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    worker.run_all(4).await;
    bench.wait(&id, JobState::Succeeded).await;
    let job = pb::JobRef { job: id, after_version: 0 };
    assert_eq!(code(bench.jobs().await.cancel(job).await).0, Code::FailedPrecondition);
}

#[tokio::test]
async fn task_that_fails_for_good_fails_the_job_with_its_reason() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let id = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    let work = worker.work().await;
    let attempt = work[0].attempt.clone().unwrap();
    let user = pb::UserError {
        message: "boom".into(),
        path: "in/a.txt".into(),
        offset: 3,
        exact: true,
        ..Default::default()
    };
    let failure = |kind| pb::FailureReason { kind: Some(kind), stderr_tail: "last words".into() };
    let noted = failure(pb::failure_reason::Kind::User(user));
    assert_eq!(worker.report(&attempt, End::Failure(noted)).await.unwrap(), Verdict::Noted);
    let gone = pb::InputError { path: "in/b.txt".into(), message: "gone".into(), permanent: true };
    let fatal = failure(pb::failure_reason::Kind::Input(gone));
    let other = work[1].attempt.clone().unwrap();
    assert_eq!(worker.report(&other, End::Failure(fatal)).await.unwrap(), Verdict::Noted);
    let job = bench.wait(&id, JobState::Failed).await;
    let failure = job.failure.unwrap();
    assert!(failure.message.starts_with("TaskFailed: "), "{}", failure.message);
    assert!(failure.message.contains("in/b.txt"), "{}", failure.message);
    assert_eq!((failure.attempt, failure.worker.as_str()), (Some(other), "one"));
    assert_eq!(failure.reason.unwrap().stderr_tail, "last words");
    assert!(!bench.root.join("out").exists());
}

#[tokio::test]
async fn running_attempt_survives_a_restart_of_the_coordinator() {
    let mut bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let id = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    let work = worker.work().await;
    assert_eq!(work.len(), 2);
    assert_eq!(worker.run(&work[0]).await, Verdict::Accepted);
    bench.restart().await;
    worker.reconnect(bench.workers().await);
    let running = work[1].attempt.clone().unwrap();
    assert!(worker.heartbeat(std::slice::from_ref(&running)).await.reregister);
    let reply = worker.register(std::slice::from_ref(&running)).await.unwrap();
    assert!(reply.orders[0].go_on);
    assert!(reply.epoch > running.epoch, "a new leader has a new term");
    assert_eq!(worker.run(&work[1]).await, Verdict::Accepted, "its result counts");
    worker.run_all(2).await;
    let job = bench.wait(&id, JobState::Succeeded).await;
    assert_eq!(job.maps.unwrap().retries, 0);
    assert_eq!(job.counters["RECORDS"], 4);
}

#[tokio::test]
async fn silent_worker_s_tasks_go_to_another_and_its_late_report_loses() {
    let bench = Bench::start().await;
    let mut slow = bench.worker("slow").await;
    let one = pb::JobSpec { inputs: vec!["in/a.txt".into()], reduces: 1, ..spec() };
    let id = bench.submit(one, "t").await.unwrap().job.unwrap().id;
    let work = slow.work().await;
    let late = slow.write(&work[0]);
    let mut quick = bench.worker("quick").await;
    quick.run_all(2).await;
    let job = bench.wait(&id, JobState::Succeeded).await;
    assert_eq!(job.maps.unwrap().retries, 1);
    let verdict = slow.report(work[0].attempt.as_ref().unwrap(), End::Success(late)).await.unwrap();
    assert!(matches!(verdict, Verdict::LostRace | Verdict::JobGone), "{verdict:?}");
}

#[tokio::test]
async fn farewell_gives_tasks_to_others_at_once() {
    // Only a farewell explains that another worker has the tasks soon.
    let bench = Bench::start_with(|config| config.lease_ms = 600_000).await;
    let mut first = bench.worker("first").await;
    let long = pb::JobSpec { lease_ms: 600_000, ..spec() };
    let id = bench.submit(long, "t").await.unwrap().job.unwrap().id;
    assert_eq!(first.work().await.len(), 2);
    let mut second = bench.worker("second").await;
    first.deregister().await;
    second.run_all(4).await;
    bench.wait(&id, JobState::Succeeded).await;
}

#[tokio::test]
async fn work_of_a_poll_that_was_given_up_is_not_lost() {
    let bench = Bench::start_with(|config| config.lease_ms = 600_000).await;
    let mut worker = bench.worker("one").await;
    // The poll waits; then its caller goes away, and then there is work.
    let gave_up = tokio::time::timeout(Duration::from_millis(300), worker.poll()).await;
    assert!(gave_up.is_err());
    let long = pb::JobSpec { lease_ms: 600_000, ..spec() };
    let id = bench.submit(long, "t").await.unwrap().job.unwrap().id;
    tokio::time::timeout(LIMIT, worker.run_all(4)).await.unwrap();
    bench.wait(&id, JobState::Succeeded).await;
}

#[tokio::test]
async fn job_without_workers_waits_in_the_queue_and_a_started_one_fails() {
    let bench = Bench::start().await;
    let queued = bench.submit(spec(), "queued").await.unwrap().job.unwrap().id;
    assert_eq!(bench.get(&queued).await.state(), JobState::Queued);
    let mut worker = bench.worker("one").await;
    worker.work().await;
    bench.wait(&queued, JobState::Mapping).await;
    drop(worker);
    let failed = bench.wait(&queued, JobState::Failed).await;
    let message = failed.failure.unwrap().message;
    assert!(message.starts_with("NoWorkers: "), "{message}");
}

#[tokio::test]
async fn lost_output_is_made_again() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let id = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    let mut reduces = Vec::new();
    while reduces.len() < 2 {
        for work in worker.work().await {
            if matches!(work.work, Some(pb::assignment::Work::Map(_))) {
                assert_eq!(worker.run(&work).await, Verdict::Accepted);
            } else {
                reduces.push(work);
            }
        }
    }
    // One part is gone before the coordinator can publish it.
    let success = worker.write(&reduces[0]);
    fs::remove_dir_all(bench.root.join(&reduces[0].attempt_dir)).unwrap();
    let attempt = reduces[0].attempt.clone().unwrap();
    assert_eq!(worker.report(&attempt, End::Success(success)).await.unwrap(), Verdict::Accepted);
    assert_eq!(worker.run(&reduces[1]).await, Verdict::Accepted);
    let again = worker.work().await;
    assert_eq!(again[0].attempt.as_ref().unwrap().task, attempt.task);
    assert_eq!(bench.get(&id).await.state(), JobState::Committing);
    assert_eq!(worker.run(&again[0]).await, Verdict::Accepted);
    let job = bench.wait(&id, JobState::Succeeded).await;
    assert_eq!(job.reduces.unwrap().retries, 1);
    assert_eq!(names(&bench.root.join("out")), ["_SUCCESS", "part-00000", "part-00001"]);
}

#[tokio::test]
async fn lost_intermediate_is_made_again() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let one = pb::JobSpec { inputs: vec!["in/a.txt".into()], reduces: 1, ..spec() };
    let id = bench.submit(one, "t").await.unwrap().job.unwrap().id;
    let map = worker.work().await.remove(0);
    assert_eq!(worker.run(&map).await, Verdict::Accepted);
    let reduce = worker.work().await.remove(0);
    fs::remove_dir_all(bench.root.join(&map.attempt_dir)).unwrap();
    let lost = pb::IntermediateLost { map_attempt: map.attempt, message: "gone".into() };
    let kind = pb::failure_reason::Kind::Intermediate(lost);
    let failure = pb::FailureReason { kind: Some(kind), stderr_tail: String::new() };
    let attempt = reduce.attempt.unwrap();
    assert_eq!(worker.report(&attempt, End::Failure(failure)).await.unwrap(), Verdict::Noted);
    worker.run_all(2).await;
    let job = bench.wait(&id, JobState::Succeeded).await;
    assert_eq!(job.maps.unwrap().retries, 1);
}

#[tokio::test]
async fn output_that_appears_while_the_job_runs_fails_it_and_is_spared() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let id = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    let work = worker.work().await;
    fs::create_dir(bench.root.join("out")).unwrap();
    fs::write(bench.root.join("out/mine"), "mine").unwrap();
    for work in work {
        worker.run(&work).await;
    }
    worker.run_all(2).await;
    let job = bench.wait(&id, JobState::Failed).await;
    let message = job.failure.unwrap().message;
    assert!(message.starts_with("OutputConflict: "), "{message}");
    assert_eq!(names(&bench.root.join("out")), ["mine"]);
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages() {
    let bench = Bench::start().await;
    for number in 0..5 {
        let spec =
            pb::JobSpec { output: format!("out-{number}"), name: number.to_string(), ..spec() };
        bench.submit(spec, &number.to_string()).await.unwrap();
    }
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListRequest { limit: 2, page_token };
        let page = bench.jobs().await.list(request).await.unwrap().into_inner();
        found.extend(page.jobs.into_iter().map(|job| job.spec.unwrap().name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ["4", "3", "2", "1", "0"]);
    let get = pb::JobRef { job: "nonsense".into(), after_version: 0 };
    assert_eq!(code(bench.jobs().await.get(get).await).0, Code::InvalidArgument);
}

#[tokio::test]
async fn wrong_root_and_busy_port_are_told_before_anything_is_created() {
    let bench = Bench::start().await;
    let mut config = bench.config.clone();
    config.group.data = bench.root.join("fresh");
    let busy = mr_coordinator::run(&config, daemon::Shutdown::new()).await.unwrap_err();
    assert_eq!(busy.code(), daemon::Code::Machine);
    config.listen = config.listen.replace(":7400", ":7401");
    config.root = bench.root.join("nowhere");
    let wrong = mr_coordinator::run(&config, daemon::Shutdown::new()).await.unwrap_err();
    assert_eq!(wrong.code(), daemon::Code::Configuration, "{wrong}");
    assert!(!bench.root.join("fresh").exists());
}

#[tokio::test]
async fn root_that_is_not_the_group_s_ends_the_coordinator_and_no_job() {
    let mut bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let id = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    worker.work().await;
    bench.wait(&id, JobState::Mapping).await;
    bench.stop().await;
    // After a reboot nothing is mounted where the root was.
    let away = bench.root.with_extension("away");
    fs::rename(&bench.root, &away).unwrap();
    fs::create_dir(&bench.root).unwrap();
    let run = |config| async move {
        let run = mr_coordinator::run(&config, daemon::Shutdown::new());
        tokio::time::timeout(LIMIT, run).await.unwrap().unwrap_err()
    };
    let empty = run(bench.config.clone()).await;
    assert_eq!(empty.code(), daemon::Code::Configuration, "{empty}");
    assert!(empty.to_string().contains("Is its filesystem mounted?"), "{empty}");
    assert!(!bench.root.join(".flotilla-root").exists());
    fs::remove_dir_all(&bench.root).unwrap();
    fs::rename(&away, &bench.root).unwrap();
    // Another group does not take this root, though nobody uses it now.
    let mut other = bench.config.clone();
    other.group.data = bench.root.with_extension("other");
    let foreign = run(other).await;
    assert_eq!(foreign.code(), daemon::Code::Configuration, "{foreign}");
    assert!(foreign.to_string().contains("belongs to other coordinators"), "{foreign}");
    bench.restart().await;
    worker.reconnect(bench.workers().await);
    worker.register(&[]).await.unwrap();
    worker.run_all(4).await;
    bench.wait(&id, JobState::Succeeded).await;
}
