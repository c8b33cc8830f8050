//! What operators ask of a running coordinator, and what jobs ask of its scheduling: over the
//! network, with workers played step by step.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]
#![allow(clippy::disallowed_types, reason = "the tests are not pure")]
#![allow(dead_code, reason = "not every test uses all of the bench")]

mod bench;

use bench::{Bench, spec};
use proto::mapreduce::{self as pb, JobState, TaskState, poll_reply::Kind, report_request::End};
use tonic::Code;

async fn tasks(
    bench: &Bench,
    job: &str,
    change: impl FnOnce(&mut pb::ListTasksRequest),
) -> pb::ListTasksReply {
    let mut request = pb::ListTasksRequest { job: job.to_owned(), ..Default::default() };
    change(&mut request);
    bench.jobs().await.list_tasks(request).await.unwrap().into_inner()
}

async fn workers(bench: &Bench) -> Vec<pb::WorkerInfo> {
    let request = pb::ListWorkersRequest::default();
    bench.jobs().await.list_workers(request).await.unwrap().into_inner().workers
}

#[tokio::test]
async fn tasks_are_listed_with_their_attempts_in_pages() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let id = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    let work = worker.work().await;
    assert_eq!(work.len(), 2);
    let ids: Vec<_> = work.iter().map(|work| work.attempt.clone().unwrap()).collect();
    worker.heartbeat(&ids).await;
    worker.run(&work[0]).await;
    let user = pb::UserError { message: "boom".into(), ..Default::default() };
    let reason = pb::failure_reason::Kind::User(user);
    let failure = pb::FailureReason { kind: Some(reason), stderr_tail: "words".into() };
    worker.report(&ids[1], End::Failure(failure)).await.unwrap();

    let all = tasks(&bench, &id, |_| {}).await;
    assert_eq!(all.tasks.len(), 4);
    assert!(all.next_page_token.is_empty());
    let done = &all.tasks[ids[0].task as usize];
    assert_eq!((done.state(), done.attempts.len()), (TaskState::Committed, 1));
    assert_eq!(done.attempts[0].state(), pb::AttemptState::Accepted);
    assert_eq!(done.attempts[0].worker, "one");
    let failed = &all.tasks[ids[1].task as usize];
    assert_eq!((failed.state(), failed.failures), (TaskState::Pending, 1));
    assert_eq!(failed.attempts[0].state(), pb::AttemptState::Failed);
    assert_eq!((failed.attempts[0].records, failed.attempts[0].bytes), (1, 1));
    assert_eq!(failed.attempts[0].failure.as_ref().unwrap().stderr_tail, "words");
    assert!(all.tasks[2..].iter().all(|task| task.state() == TaskState::Blocked));
    assert!(all.tasks.iter().all(|task| (task.input_bytes > 0) == (task.kind == 1)));

    let blocked = |request: &mut pb::ListTasksRequest| {
        request.states = vec![TaskState::Blocked.into()];
        request.limit = 1;
    };
    let first = tasks(&bench, &id, blocked).await;
    assert_eq!((first.tasks.len(), first.tasks[0].number), (1, 0));
    let second = tasks(&bench, &id, |request| {
        blocked(request);
        request.page_token = first.next_page_token;
    })
    .await;
    assert_eq!((second.tasks[0].number, second.next_page_token.as_str()), (1, ""));
    let maps = tasks(&bench, &id, |request| request.kind = pb::TaskKind::Map.into()).await;
    assert_eq!(maps.tasks.len(), 2);

    worker.run_all(3).await;
    bench.wait(&id, JobState::Succeeded).await;
    let ended = tasks(&bench, &id, |_| {}).await;
    assert!(ended.tasks.iter().all(|task| task.state() == TaskState::Committed));
    let wrong = pb::ListTasksRequest { job: id, page_token: "x".into(), ..Default::default() };
    let refused = bench.jobs().await.list_tasks(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

/// F7.
#[tokio::test]
async fn attempt_that_is_accepted_when_its_lease_is_over_is_shown_so() {
    let bench = Bench::start().await;
    let mut slow = bench.worker("slow").await;
    let one = pb::JobSpec { inputs: vec!["in/a.txt".into()], reduces: 1, ..spec() };
    let id = bench.submit(one, "t").await.unwrap().job.unwrap().id;
    let work = slow.work().await;
    let late = slow.write(&work[0]);
    let states = async || {
        let page = tasks(&bench, &id, |_| {}).await;
        page.tasks[0].attempts.iter().map(pb::AttemptInfo::state).collect::<Vec<_>>()
    };
    while states().await != [pb::AttemptState::Expired] {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let verdict = slow.report(work[0].attempt.as_ref().unwrap(), End::Success(late)).await;
    assert_eq!(verdict.unwrap(), pb::Verdict::Accepted);
    assert_eq!(states().await, [pb::AttemptState::Accepted]);
}

#[tokio::test]
async fn drained_worker_is_told_so_and_gets_nothing_more() {
    let bench = Bench::start().await;
    let mut one = bench.worker("one").await;
    let mut two = bench.worker("two").await;
    bench.submit(spec(), "t").await.unwrap();
    let work = one.work().await;
    let attempts: Vec<_> = work.iter().map(|work| work.attempt.clone().unwrap()).collect();
    let listed = workers(&bench).await;
    let shown: Vec<_> = listed.iter().map(|worker| worker.name.as_str()).collect();
    assert_eq!(shown, ["one", "two"]);
    assert_eq!(listed[0].attempts, attempts);
    assert!(listed.iter().all(|worker| worker.present && !worker.draining && worker.slots > 0));

    let drain = |name: &str| pb::DrainWorkerRequest { name: name.to_owned() };
    let mut jobs = bench.jobs().await;
    let unknown = jobs.drain_worker(drain("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    for _ in 0..2 {
        let told = jobs.drain_worker(drain("one")).await.unwrap().into_inner();
        assert!(told.worker.unwrap().draining);
    }
    assert!(one.heartbeat(&attempts).await.drain);
    assert!(matches!(one.poll().await, Kind::Drain(_)));
    assert!(!two.heartbeat(&[]).await.drain);
    for work in &work {
        assert_eq!(one.run(work).await, pb::Verdict::Accepted, "what it runs counts");
    }
    one.deregister().await;
    two.run_all(4 - work.len()).await;
    assert_eq!(workers(&bench).await.len(), 1);
}

#[tokio::test]
async fn poll_that_comes_with_a_report_is_answered_with_it() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let id = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    let mut work = worker.work_for(1).await;
    for left in [1, 1, 1, 0] {
        let reply = worker.run_and_poll(&work[0], 1).await;
        assert_eq!(reply.verdict(), pb::Verdict::Accepted);
        work = reply.assignments.map(|given| given.assignments).unwrap_or_default();
        assert_eq!(work.len(), left, "the next phase, too, begins with the last report of one");
    }
    bench.wait(&id, JobState::Succeeded).await;
}

#[tokio::test]
async fn job_reads_what_the_job_before_it_writes() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let first = bench.submit(spec(), "t").await.unwrap().job.unwrap().id;
    let chained = |after: &str, output: &str| pb::JobSpec {
        inputs: vec!["out/part-*".into()],
        output: output.into(),
        after: vec![after.to_owned()],
        ..spec()
    };
    let unknown = chained("01890a5d-ac96-774b-bcce-b302099a8057", "out-x");
    assert_eq!(bench.submit(unknown, "x").await.unwrap_err().code(), Code::NotFound);
    let outside = pb::JobSpec { inputs: vec!["../x".into()], ..chained(&first, "out-x") };
    assert_eq!(bench.submit(outside, "x").await.unwrap_err().code(), Code::InvalidArgument);
    let second = bench.submit(chained(&first, "out-2"), "u").await.unwrap().job.unwrap();
    assert_eq!(second.state(), JobState::Queued);
    let missing = pb::JobSpec { inputs: vec!["none-*".into()], ..chained(&first, "out-3") };
    let third = bench.submit(missing, "v").await.unwrap().job.unwrap().id;
    let fourth = bench.submit(chained(&third, "out-4"), "w").await.unwrap().job.unwrap().id;
    assert!(bench.get(&fourth).await.waiting_for.contains(&third));
    worker.run_all(8).await;
    bench.wait(&first, JobState::Succeeded).await;
    bench.wait(&second.id, JobState::Succeeded).await;
    let failed = bench.wait(&third, JobState::Failed).await.failure.unwrap().message;
    assert!(failed.starts_with("Planning: ") && failed.contains("none-*"), "{failed}");
    let failed = bench.wait(&fourth, JobState::Failed).await.failure.unwrap().message;
    assert!(failed.starts_with("Dependency: ") && failed.contains(&third), "{failed}");
}

#[tokio::test]
async fn bad_record_is_left_out_and_named_beside_the_results() {
    let bench = Bench::start().await;
    let mut worker = bench.worker("one").await;
    let careful = pb::JobSpec { inputs: vec!["in/a.txt".into()], max_skip: 1, ..spec() };
    let id = bench.submit(careful, "t").await.unwrap().job.unwrap().id;
    for tracked in [false, true] {
        let work = worker.work().await;
        assert_eq!(work[0].careful, tracked, "records are tracked once a task has failed");
        let exit = pb::UserExit {
            signal: Some(11),
            path: "in/a.txt".into(),
            offset: 17,
            exact: true,
            ..Default::default()
        };
        let reason = pb::failure_reason::Kind::Exit(exit);
        let failure = pb::FailureReason { kind: Some(reason), stderr_tail: String::new() };
        let attempt = work[0].attempt.clone().unwrap();
        worker.report(&attempt, End::Failure(failure)).await.unwrap();
    }
    let work = worker.work().await;
    let Some(pb::assignment::Work::Map(map)) = &work[0].work else { panic!("it is a map") };
    let record = pb::SkippedRecord { path: "in/a.txt".into(), offset: 17 };
    assert_eq!((map.skip.as_slice(), work[0].careful), ([record.clone()].as_slice(), true));
    assert_eq!(tasks(&bench, &id, |_| {}).await.tasks[0].skipped, [record]);
    worker.run(&work[0]).await;
    worker.run_all(2).await;
    bench.wait(&id, JobState::Succeeded).await;
    let named = std::fs::read_to_string(bench.root.join("out/_skipped/records")).unwrap();
    assert_eq!(named, "in/a.txt:17 map 0\n");
}
