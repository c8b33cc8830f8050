//! Jobs of programs on real processes: the same bytes as a pipeline of the same programs, refused
//! where no worker allows them, and nothing left running when a job or a worker ends.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use flotilla::demo::corpus;
use flotilla::local::Instance;
use support::{FLOTILLA, TestCluster, Watchdog, complained, flotilla_in, well};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// How long any wait here may take.
const PATIENCE: Duration = Duration::from_secs(60);

const MAPPER: &str = "#!/bin/sh\nLC_ALL=C tr -cs A-Za-z '\\n' | sed 's/$/\\t1/'\n\
                      echo \"reporter:counter:words,files,1\" >&2\n";
const REDUCER: &str = "#!/usr/bin/awk -f\n\
    BEGIN { FS = \"\\t\" } $1 != k { if (NR > 1) print k \"\\t\" n; k = $1; n = 0 }\n\
    { n += $2 } END { if (NR) print k \"\\t\" n }\n";

async fn cluster(allowed: bool) -> TestCluster {
    TestCluster::start(0, 1, |plan| {
        plan.slots = Some(2);
        if allowed {
            plan.further.worker = vec!["--allow-exec".to_owned()];
        }
    })
    .await
}

/// A directory with the programs.
fn programs() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("m.sh", MAPPER), ("r.awk", REDUCER)] {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

/// The programs as flags, with a combiner, and where they are.
const COUNT: [&str; 10] = [
    "--mapper",
    "./m.sh",
    "--combiner",
    "./r.awk",
    "--reducer",
    "./r.awk",
    "--file",
    "m.sh",
    "--file",
    "r.awk",
];

fn mr(dir: &Path, test: &TestCluster, command: &[&str], further: &[&str]) -> Output {
    let coordinator = test.cluster.description().coordinator().unwrap();
    let mut arguments = vec!["mr", "--coordinator", &coordinator];
    arguments.extend(command.iter().chain(further));
    flotilla_in(dir, &arguments)
}

fn lines(dir: &Path) -> Vec<String> {
    let mut parts: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    parts.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("part-"));
    parts.sort();
    let text: String = parts.iter().map(|part| fs::read_to_string(part).unwrap()).collect();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_count_of_programs_is_the_same_on_a_cluster_here_and_in_a_pipeline() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let (test, dir) = (cluster(true).await, programs());
    let text = test.root().join("text");
    fs::create_dir(&text).unwrap();
    corpus::write(&text, 3, 100_000, 5).unwrap();

    let job = ["--input", "text/*.txt", "--reduces", "3", "--output"];
    let job: Vec<&str> = COUNT.into_iter().chain(job).collect();
    let cluster = [&job[..], &["cluster", "--wait", "--json"]].concat();
    let told = well(&mr(dir.path(), &test, &["submit"], &cluster));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["counters"]["words:files"], 3, "{told}");

    let root = test.root().to_str().unwrap();
    let here = [&job[..], &["here"]].concat();
    well(&mr(dir.path(), &test, &["run", "--local", "--root", root], &here));
    let found = lines(&test.root().join("cluster"));
    assert!(found.len() > 100, "{}", found.len());
    assert_eq!(found, lines(&test.root().join("here")));

    let script = "cat \"$0\"/*.txt | ./m.sh 2>/dev/null | LC_ALL=C sort | ./r.awk";
    let pipeline = Command::new("bash")
        .args(["-c", script])
        .arg(&text)
        .current_dir(dir.path())
        .output()
        .unwrap();
    let expected = String::from_utf8(pipeline.stdout).unwrap();
    let mut sorted = found;
    sorted.sort_unstable();
    assert!(sorted.iter().eq(expected.lines()), "the pipeline counts otherwise");

    let sample = fs::read_dir(&text).unwrap().next().unwrap().unwrap().path();
    let tested = Command::new(FLOTILLA)
        .args(["mr", "test"])
        .args(COUNT)
        .current_dir(dir.path())
        .stdin(Stdio::from(fs::File::open(&sample).unwrap()))
        .output()
        .unwrap();
    assert!(tested.status.success(), "{}", complained(&tested));
    assert!(complained(&tested).contains("words:files"), "{}", complained(&tested));
    assert!(well(&tested).lines().count() > 100);
}

#[tokio::test]
async fn programs_are_refused_where_no_worker_allows_them() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let (test, dir) = (cluster(false).await, programs());
    fs::write(test.root().join("in.txt"), "a\n").unwrap();
    let job = [&COUNT[..], &["--input", "in.txt", "--output", "out"]].concat();
    let refused = mr(dir.path(), &test, &["submit"], &job);
    assert_eq!(refused.status.code(), Some(2), "{}", complained(&refused));
    assert!(complained(&refused).contains("--allow-exec"), "{}", complained(&refused));
    assert!(!test.root().join("out").exists());
}

#[tokio::test]
async fn a_program_that_fails_is_told_with_its_code_and_last_words() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let (test, dir) = (cluster(true).await, programs());
    fs::write(test.root().join("in.txt"), "a\n").unwrap();
    let failing = |mapper: &str| {
        let job = ["--mapper", mapper, "--shell", "--input", "in.txt", "--output", "out"];
        let failed = mr(dir.path(), &test, &["submit", "--max-attempts", "2", "--wait"], &job);
        assert_eq!(failed.status.code(), Some(1), "{}", complained(&failed));
        complained(&failed) + &String::from_utf8_lossy(&failed.stdout)
    };
    let told = failing("cat; echo all is lost >&2; exit 3");
    for word in ["exited with code 3", "all is lost", "in.txt"] {
        assert!(told.contains(word), "{word} is not in {told}");
    }
    let job = ["--mapper", "./nil", "--input", "in.txt", "--output", "out", "--wait"];
    let unfit = mr(dir.path(), &test, &["submit"], &job);
    assert!(complained(&unfit).contains("command not found"), "{}", complained(&unfit));
}

/// Waits until a process is gone, or dead at least.
async fn gone(pid: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        assert!(Instant::now() < deadline, "it runs on: {stat}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a file has so many lines.
async fn written(path: &Path, count: usize) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count && text.ends_with('\n') {
            return lines;
        }
        assert!(Instant::now() < deadline, "{text}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn nothing_runs_on_when_a_job_is_cancelled_or_a_worker_killed() {
    let _watchdog = Watchdog::new(4 * PATIENCE);
    let (mut test, dir) = (cluster(true).await, programs());
    fs::write(test.root().join("in.txt"), "a\n").unwrap();
    let begin = |name: &str, script: &str| {
        let pids = test.root().join(format!("{name}-pids"));
        let mapper = format!("{script} >> {}; wait", pids.display());
        let job =
            ["--mapper", &mapper, "--shell", "--reduces=0", "--input=in.txt", "--output", name];
        (well(&mr(dir.path(), &test, &["submit"], &job)), pids)
    };
    // The shell's job control puts its child into a group of its own.
    let (id, pids) = begin("cancelled", "set -m; sleep 1000 & echo $$ $! | tr ' ' '\\n'");
    let pids = written(&pids, 2).await;
    well(&mr(dir.path(), &test, &["cancel", &id], &[]));
    for pid in &pids {
        gone(pid).await;
    }

    // Nobody is left to kill anything: the kernel does, what the slot itself started.
    let (_, pids) = begin("killed", "sleep 20 & echo $$");
    let pids = written(&pids, 1).await;
    test.cluster.kill(Instance::Worker(1)).unwrap();
    gone(&pids[0]).await;
}
