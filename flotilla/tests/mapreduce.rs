//! Jobs on real processes give the right result, byte for byte, whoever dies on the way.
//!
//! The reference is a count made without MapReduce, and, where the folder with the books and their
//! expected results lies beside the workspace, that.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::path::Path;

use flotilla::demo::count;
use flotilla::local::Instance;
use proto::mapreduce::{Job, JobState};
use sha2::{Digest, Sha256};
use support::jobs::{
    COUNT, PATIENCE, REDUCES, SLOW_COUNT, Submission, check_nothing_else, has_ended, made_up_text,
    parts, retries, running, sorted, succeeded, until,
};
use support::{
    TestCluster, Watchdog, complained, contents, flotilla, flotilla_in, ready, said, shared_data,
    well,
};

const WORKERS: u16 = 2;

fn coordinator(test: &TestCluster) -> String {
    test.cluster.description().coordinator().unwrap()
}

async fn cluster() -> TestCluster {
    TestCluster::start(0, WORKERS, |plan| {
        plan.slots = Some(1);
        plan.further.coordinator = vec!["--lease-ms=2000".to_owned()];
    })
    .await
}

#[tokio::test]
async fn a_count_equals_a_sequential_one() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let test = cluster().await;
    let expected = made_up_text(test.root());
    let id = COUNT.submit(&coordinator(&test));
    let job = succeeded(&test.jobs(), &id).await;
    let output = test.root().join("counts");
    assert_eq!(sorted(&output), expected);
    assert_eq!(job.outputs.len(), REDUCES);
    check_nothing_else(&output);

    let coordinator = coordinator(&test);
    let root = test.root().to_str().unwrap();
    let cat = flotilla(&["mr", "--coordinator", &coordinator, "cat", &id, "--root", root]);
    let whole: Vec<u8> = parts(&output).iter().flat_map(|part| fs::read(part).unwrap()).collect();
    assert_eq!(cat.stdout, whole, "{}", complained(&cat));
    let list = flotilla(&["mr", "--coordinator", &coordinator, "list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&well(&list)).unwrap();
    assert_eq!(list["jobs"][0]["id"], id);
}

#[tokio::test]
async fn results_are_shown_and_copied_whole_or_not_at_all() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let test = cluster().await;
    let expected = made_up_text(test.root());
    let coordinator = coordinator(&test);
    let root = test.root().to_str().unwrap();
    let here = tempfile::tempdir().unwrap();
    let mr = |words: &[&str]| {
        flotilla_in(here.path(), &[&["mr", "--coordinator", &coordinator], words].concat())
    };
    let submit = ["submit", "--app", "wc", "--input", "text/*.txt", "--reduces", "3"];
    let packed = well(&mr(&[&submit[..], &["--output", "packed", "--compress-output"]].concat()));
    let watched = mr(&["watch", &packed]);
    assert!(well(&watched).contains("succeeded"), "{}", complained(&watched));
    assert!(complained(&watched).contains("| reduce 3/3 |"), "{}", complained(&watched));

    let counters = well(&mr(&["counters", &packed, "--json"]));
    let counters: serde_json::Value = serde_json::from_str(&counters).unwrap();
    let words = expected.lines().count();
    assert_eq!(counters["counters"]["REDUCE_OUTPUT_RECORDS"], words);

    let all = well(&mr(&["cat", &packed, "--root", root]));
    let mut lines: Vec<String> = all.lines().map(|line| line.replace('\t', " ") + "\n").collect();
    lines.sort();
    assert!(lines.concat() == expected);
    let head = well(&mr(&["head", &packed, "-n", "5", "--root", root]));
    assert!(head.lines().eq(all.lines().take(5)), "{head}");
    well(&mr(&["get-output", &packed, "all.txt", "--merge", "--root", root]));
    assert_eq!(fs::read_to_string(here.path().join("all.txt")).unwrap().trim_end(), all.trim_end());
    well(&mr(&["get-output", &packed, "copy", "--root", root]));
    let named = |dir: &Path| {
        let files = contents(dir).into_iter();
        files.map(|(path, bytes)| (path.file_name().unwrap().to_owned(), bytes)).collect::<Vec<_>>()
    };
    assert!(named(&here.path().join("copy")) == named(&test.root().join("packed")));
    let again = mr(&["get-output", &packed, "copy", "--root", root]);
    assert_eq!(again.status.code(), Some(5), "{}", complained(&again));

    let part = test.root().join("packed/part-00001.zst");
    let mut bytes = fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&part, bytes).unwrap();
    for target in ["bad", "bad.txt"] {
        let merge: &[&str] = if target == "bad" { &[] } else { &["--merge"] };
        let command = [&["get-output", &packed, target, "--root", root], merge].concat();
        let refused = mr(&command);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        assert!(complained(&refused).contains("part-00001.zst"), "{}", complained(&refused));
    }
    let left: Vec<_> = contents(here.path()).into_keys().collect();
    assert_eq!(left.len(), 5, "{left:?}");
}

#[tokio::test]
async fn a_worker_killed_in_a_map_changes_nothing() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let mut test = cluster().await;
    let expected = made_up_text(test.root());
    let (jobs, id) = (test.jobs(), SLOW_COUNT.submit(&coordinator(&test)));
    until(&jobs, &id, "all workers map", |job| running(job).0 == u32::from(WORKERS)).await;
    test.cluster.kill(Instance::Worker(1)).unwrap();
    let job = succeeded(&jobs, &id).await;
    assert!(retries(&job) >= 1, "{job:?}");
    assert_eq!(sorted(&test.root().join("counts")), expected);
    check_nothing_else(&test.root().join("counts"));
}

#[tokio::test]
async fn a_worker_killed_in_a_reduce_changes_nothing() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let mut test = cluster().await;
    let expected = made_up_text(test.root());
    let (jobs, id) = (test.jobs(), SLOW_COUNT.submit(&coordinator(&test)));
    until(&jobs, &id, "all workers reduce", |job| running(job).1 == u32::from(WORKERS)).await;
    test.cluster.kill(Instance::Worker(2)).unwrap();
    let job = succeeded(&jobs, &id).await;
    assert!(job.reduces.unwrap_or_default().retries >= 1, "{job:?}");
    assert_eq!(sorted(&test.root().join("counts")), expected);
    check_nothing_else(&test.root().join("counts"));
}

#[tokio::test]
async fn a_coordinator_killed_in_maps_and_in_reduces_changes_nothing() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let mut test = cluster().await;
    let expected = made_up_text(test.root());
    let id = SLOW_COUNT.submit(&coordinator(&test));
    for (what, in_it) in [
        (
            "a map is committed",
            (|job: &Job| job.maps.unwrap_or_default().committed >= 1) as fn(&_) -> _,
        ),
        ("a reduce is committed", |job: &Job| job.reduces.unwrap_or_default().committed >= 1),
    ] {
        until(&test.jobs(), &id, what, in_it).await;
        test.cluster.kill(Instance::Coordinator).unwrap();
        test.cluster.restart(Instance::Coordinator).unwrap();
        ready(&mut test.cluster).await;
        let job = test.jobs().get(&id, 0).await.unwrap();
        assert!(in_it(&job), "what was committed is forgotten: {job:?}");
    }
    succeeded(&test.jobs(), &id).await;
    assert_eq!(sorted(&test.root().join("counts")), expected);
    check_nothing_else(&test.root().join("counts"));
}

#[tokio::test]
async fn a_job_is_cancelled_and_leaves_nothing() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let test = cluster().await;
    made_up_text(test.root());
    let id = SLOW_COUNT.submit(&coordinator(&test));
    let jobs = test.jobs();
    until(&jobs, &id, "it runs", |job| running(job).0 > 0).await;
    let coordinator = coordinator(&test);
    for _ in 0..2 {
        well(&flotilla(&["mr", "--coordinator", &coordinator, "cancel", &id]));
    }
    let job = until(&jobs, &id, "the end", has_ended).await;
    assert_eq!(job.state(), JobState::Cancelled);
    assert!(!test.root().join("counts").exists());
    let wait = flotilla(&["mr", "--coordinator", &coordinator, "get", &id, "--wait"]);
    assert_eq!(wait.status.code(), Some(4), "{}", complained(&wait));
}

#[tokio::test]
async fn jobs_that_cannot_work_are_refused_and_leave_nothing() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let test = cluster().await;
    made_up_text(test.root());
    fs::create_dir(test.root().join("taken")).unwrap();
    fs::write(test.root().join("taken/mine"), "mine").unwrap();
    let coordinator = coordinator(&test);
    let submit = |app: &str, input: &str, output: &str| {
        let output = flotilla(&[
            "mr",
            "--coordinator",
            &coordinator,
            "submit",
            "--app",
            app,
            "--input",
            input,
            "--output",
            output,
            "--wait",
        ]);
        (output.status.code().unwrap(), complained(&output))
    };
    for (app, input, output, expected, word) in [
        ("wc", "none/*.txt", "new", 6, "none/*.txt"),
        ("wc", "text/*.txt", "taken", 5, "taken"),
        ("wc", "../*.txt", "new", 2, ".."),
        ("wc", "text/*.txt", "../new", 2, "../new"),
        ("", "text/*.txt", "new", 2, "app"),
    ] {
        let (code, complaint) = submit(app, input, output);
        assert_eq!(code, expected, "{app} {input} {output}: {complaint}");
        assert!(complaint.contains(word), "{app} {input} {output}: {complaint}");
    }
    assert!(!test.root().join("new").exists());
    assert!(!test.root().parent().unwrap().join("new").exists());
    assert_eq!(fs::read_dir(test.root().join("taken")).unwrap().count(), 1);
    let absent = flotilla(&[
        "mr",
        "--coordinator",
        &coordinator,
        "get",
        "018f0000-0000-7000-8000-000000000000",
    ]);
    assert_eq!(absent.status.code(), Some(6), "{}", complained(&absent));
    assert_eq!(said(&absent), "");
}

/// Copies the books into a cluster's root; their names are then those in the expected index.
fn books(test: &TestCluster, data: &Path) {
    for book in count::files(&data.join("gutenberg")).unwrap() {
        fs::copy(&book, test.root().join(book.file_name().unwrap())).unwrap();
    }
}

fn check_books(data: &Path, app: &str, output: &Path) {
    let expected = fs::read_to_string(data.join(format!("expected/{app}.txt"))).unwrap();
    assert!(sorted(output) == expected, "{app} differs from what is expected");
    if app == "wc" {
        let sums = fs::read_to_string(data.join("expected/wc-partitions.sha256")).unwrap();
        for line in sums.lines() {
            let (sum, name) = line.split_once("  ").unwrap();
            let bytes = fs::read(output.join(name)).unwrap();
            let found: String =
                Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, sum, "{name}");
        }
        assert_eq!(sums.lines().count(), REDUCES);
    }
    check_nothing_else(output);
}

#[tokio::test]
async fn books_give_the_expected_results_whoever_is_killed() {
    let _watchdog = Watchdog::new(5 * PATIENCE);
    let Some(data) = shared_data() else {
        eprintln!(
            "skipped: books_give_the_expected_results_whoever_is_killed needs ../shared/data"
        );
        return;
    };
    let mut test = cluster().await;
    books(&test, &data);
    let jobs = test.jobs();
    for app in ["wc", "indexer"] {
        let undisturbed = format!("{app}-undisturbed");
        let submission = Submission { app, input: "pg-*.txt", output: &undisturbed, slow_ms: 0 };
        succeeded(&jobs, &submission.submit(&coordinator(&test))).await;
        check_books(&data, app, &test.root().join(&undisturbed));

        let disturbed = format!("{app}-disturbed");
        let submission = Submission { output: &disturbed, slow_ms: 300, ..submission };
        let id = submission.submit(&coordinator(&test));
        until(&jobs, &id, "all workers map", |job| running(job).0 == u32::from(WORKERS)).await;
        test.cluster.kill(Instance::Worker(1)).unwrap();
        test.cluster.restart(Instance::Worker(1)).unwrap();
        until(&jobs, &id, "all workers reduce", |job| running(job).1 == u32::from(WORKERS)).await;
        test.cluster.kill(Instance::Worker(2)).unwrap();
        test.cluster.restart(Instance::Worker(2)).unwrap();
        test.cluster.kill(Instance::Coordinator).unwrap();
        test.cluster.restart(Instance::Coordinator).unwrap();
        let job = succeeded(&jobs, &id).await;
        assert!(retries(&job) >= 1, "{job:?}");
        check_books(&data, app, &test.root().join(&disturbed));
    }
}
