//! The labs' seven tests of a MapReduce, under the labs' names, on real processes: eight books, ten
//! reduces, files `mr-out-*` of lines `KEY SPACE VALUE`.
//!
//! Where the folder with the books lies beside the workspace these are read, and results are also
//! compared with those that were made independently; elsewhere texts are made up. At `deep` each
//! test runs 20 times in a row.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::JobClient;
use flotilla::demo::{corpus, count};
use proto::mapreduce::{InputFormat, Job, JobSpec, JobState, OutputFormat};
use support::{Depth, TestCluster, Watchdog, shared_data};
use tokio::time::Instant;

const BOOKS: usize = 8;
const REDUCES: u32 = 10;

/// How long the labs give a job, and one that crashes.
const PATIENCE: Duration = Duration::from_secs(45);
const PATIENCE_CRASH: Duration = Duration::from_secs(120);

/// How often each test runs.
fn rounds() -> u32 {
    match Depth::asked() {
        Depth::Deep => 20,
        Depth::Ci | Depth::Quick => 1,
    }
}

/// A cluster with books, whose workers have the labs' apps and one slot each, as the labs' have.
async fn cluster(workers: u16) -> TestCluster {
    let test = TestCluster::start(0, workers, |plan| {
        plan.slots = Some(1);
        plan.further.worker = vec!["--lab-apps".to_owned()];
    })
    .await;
    match shared_data() {
        Some(data) => {
            for book in count::files(&data.join("gutenberg")).unwrap() {
                fs::copy(&book, test.root().join(book.file_name().unwrap())).unwrap();
            }
        }
        None => {
            corpus::write(test.root(), BOOKS as u32, 50_000, 7).unwrap();
        }
    }
    assert_eq!(books(&test).len(), BOOKS);
    test
}

fn books(test: &TestCluster) -> Vec<PathBuf> {
    let mut books = count::files(test.root()).unwrap();
    books.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    books
}

/// Runs an app of the labs to its end.
async fn run(test: &TestCluster, app: &str, output: &str, patience: Duration) -> Job {
    let jobs = test.jobs();
    let spec = JobSpec {
        app: app.to_owned(),
        inputs: vec!["*.txt".to_owned()],
        output: output.to_owned(),
        reduces: REDUCES,
        input_format: InputFormat::Whole.into(),
        output_format: OutputFormat::Lab.into(),
        // Who crashes on a third of its calls needs more than four tries now and then.
        max_attempts: 100,
        // What the labs give a worker that is not heard from.
        lease_ms: 10_000,
        ..JobSpec::default()
    };
    let submitted = jobs.submit(spec, JobClient::token()).await.unwrap();
    let mut job = submitted.job.unwrap();
    let deadline = Instant::now() + patience;
    while !matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled) {
        assert!(Instant::now() < deadline, "{app} takes too long: {job:?}");
        job = jobs.get(&job.id, job.version).await.unwrap();
    }
    assert_eq!(job.state(), JobState::Succeeded, "{app}: {:?}", job.failure);
    job
}

/// All lines of `mr-out*`, sorted, as the labs read them: `sort mr-out* | grep .`.
fn lines(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("mr-out") {
            let text = fs::read_to_string(entry.path()).unwrap();
            lines.extend(text.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        }
    }
    lines.sort_unstable();
    lines
}

/// What is in the directory of results, by name.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect()
}

/// The results that were made independently, if they are there.
fn expected(app: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(shared_data()?.join("expected").join(format!("{app}.txt")));
    let mut lines: Vec<String> = text.unwrap().lines().map(str::to_owned).collect();
    lines.sort_unstable();
    Some(lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn wc() {
    let _watchdog = Watchdog::new(rounds() * PATIENCE);
    let test = cluster(3).await;
    let words = count::words(&books(&test)).unwrap();
    let mut sequential: Vec<String> =
        words.iter().map(|(word, number)| format!("{word} {number}")).collect();
    sequential.sort_unstable();
    for round in 0..rounds() {
        let output = format!("wc-{round}");
        run(&test, "wc", &output, PATIENCE).await;
        let found = lines(&test.root().join(&output));
        assert!(found == sequential, "{} lines, not {}", found.len(), sequential.len());
        if let Some(expected) = expected("wc") {
            assert!(found == expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indexer() {
    let _watchdog = Watchdog::new(rounds() * PATIENCE);
    let test = cluster(2).await;
    let mut index: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for book in books(&test) {
        let name = book.file_name().unwrap().to_str().unwrap().to_owned();
        for word in count::words(&[book]).unwrap().keys() {
            index.entry(word.clone()).or_default().push(name.clone());
        }
    }
    let mut sequential: Vec<String> = index
        .iter()
        .map(|(word, names)| format!("{word} {} {}", names.len(), names.join(",")))
        .collect();
    sequential.sort_unstable();
    for round in 0..rounds() {
        let output = format!("indexer-{round}");
        run(&test, "indexer", &output, PATIENCE).await;
        let found = lines(&test.root().join(&output));
        assert!(found == sequential, "{} lines, not {}", found.len(), sequential.len());
        if let Some(expected) = expected("indexer") {
            assert!(found == expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn map_parallelism() {
    let _watchdog = Watchdog::new(rounds() * PATIENCE);
    let test = cluster(2).await;
    for round in 0..rounds() {
        let output = format!("mtiming-{round}");
        run(&test, "mtiming", &output, PATIENCE).await;
        let found = lines(&test.root().join(&output));
        let workers = found.iter().filter(|line| line.starts_with("times-")).count();
        assert_eq!(workers, 2, "{found:?}");
        let at_once = |line: &&String| line.starts_with("parallel-") && line.contains(" 2");
        assert!(found.iter().any(|line| at_once(&line)), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reduce_parallelism() {
    let _watchdog = Watchdog::new(rounds() * PATIENCE);
    let test = cluster(2).await;
    for round in 0..rounds() {
        let output = format!("rtiming-{round}");
        run(&test, "rtiming", &output, PATIENCE).await;
        let found = lines(&test.root().join(&output));
        assert_eq!(found.len(), 10, "{found:?}");
        let at_once = found.iter().filter(|line| line.ends_with(" 2")).count();
        assert!(at_once >= 2, "{found:?}");
    }
}

/// F34 too: each map runs once, as there is no reason to run one again.
#[tokio::test(flavor = "multi_thread")]
async fn job_count() {
    let _watchdog = Watchdog::new(rounds() * PATIENCE);
    for _ in 0..rounds() {
        // The app counts the files that all its maps left.
        let test = cluster(4).await;
        run(&test, "jobcount", "jobcount", PATIENCE).await;
        assert_eq!(lines(&test.root().join("jobcount")), ["a 8"]);
        // The labs' own partition of this key.
        assert_eq!(fs::read(test.root().join("jobcount/mr-out-2")).unwrap(), b"a 8\n");
    }
}

/// Nobody ends, and no job is told to have ended, before all results are final.
#[tokio::test(flavor = "multi_thread")]
async fn early_exit() {
    let _watchdog = Watchdog::new(rounds() * PATIENCE);
    let test = cluster(3).await;
    for round in 0..rounds() {
        let output = format!("early-{round}");
        run(&test, "early_exit", &output, PATIENCE).await;
        let at_the_end = content(&test.root().join(&output));
        assert_eq!(at_the_end.len(), REDUCES as usize + 1, "{:?}", at_the_end.keys());
        assert_eq!(lines(&test.root().join(&output)).len(), BOOKS);
        // Another job passes through all workers: what was still being written would be by now.
        run(&test, "nocrash", &format!("after-{round}"), PATIENCE).await;
        assert_eq!(content(&test.root().join(&output)), at_the_end);
    }
}

/// F26: a third of all calls ends its process, another third dawdles.
#[tokio::test(flavor = "multi_thread")]
async fn crash() {
    let _watchdog = Watchdog::new(rounds() * (PATIENCE_CRASH + PATIENCE));
    let test = cluster(3).await;
    run(&test, "nocrash", "nocrash", PATIENCE).await;
    let sequential = lines(&test.root().join("nocrash"));
    assert_eq!(sequential.len(), 4);
    for round in 0..rounds() {
        let output = format!("crash-{round}");
        run(&test, "crash", &output, PATIENCE_CRASH).await;
        assert_eq!(lines(&test.root().join(&output)), sequential);
    }
}
