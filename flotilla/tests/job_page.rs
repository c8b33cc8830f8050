//! What people look at, on real processes: the page of the coordinator's admin port and what it
//! draws, while a job runs, when it has ended and when it failed; how a job would be cut, and how
//! those went that have ended.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::net::SocketAddr;

use flotilla::local::http;
use serde_json::Value;
use support::fleet::Fleet;
use support::jobs::{
    COUNT, PATIENCE, REDUCES, SLOW_COUNT, Submission, has_ended, made_up_text, running, succeeded,
    until,
};
use support::{Watchdog, flotilla, well};

async fn get(admin: SocketAddr, path: &str) -> (u16, String) {
    http::get(admin, path).await.unwrap()
}

/// What is told, and with which status.
async fn told(admin: SocketAddr, path: &str) -> (u16, Value) {
    let (status, text) = get(admin, path).await;
    (status, serde_json::from_str(&text).unwrap())
}

async fn tasks(admin: SocketAddr, job: &str, kind: &str) -> Vec<Value> {
    let (status, page) = told(admin, &format!("/api/jobs/{job}/tasks?kind={kind}")).await;
    assert_eq!(status, 200, "{page}");
    page["tasks"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_job_is_shown_while_it_runs_and_when_it_has_ended() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = Fleet::start(1, 2, &[]);
    made_up_text(&fleet.root());
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let admin = fleet.coordinators[0].admin();

    let (status, page) = get(admin, "/").await;
    assert_eq!(status, 200);
    for file in ["page.css", "page.js"] {
        assert!(page.contains(file));
        assert_eq!(get(admin, &format!("/{file}")).await.0, 200);
    }

    let id = SLOW_COUNT.submit(&fleet.everybody());
    until(&jobs, &id, "both map", |job| running(job).0 == 2).await;
    let (_, job) = told(admin, &format!("/api/jobs/{id}")).await;
    assert_eq!((&job["id"], &job["state"]), (&Value::from(&*id), &Value::from("mapping")));
    let maps = tasks(admin, &id, "map").await;
    assert_eq!(maps.len(), 6);
    let at_work = maps.iter().filter(|task| task["state"] == "running");
    for task in at_work {
        assert!(
            task["attempts"][0]["worker"].as_str().unwrap().starts_with("mr-worker-"),
            "{task}"
        );
    }
    let (_, workers) = told(admin, "/api/workers").await;
    assert_eq!(workers["workers"].as_array().unwrap().len(), 2);

    succeeded(&jobs, &id).await;
    let (_, list) = told(admin, "/api/jobs?limit=1").await;
    assert_eq!(
        (&list["jobs"][0]["id"], &list["jobs"][0]["state"]),
        (&job["id"], &Value::from("succeeded"))
    );
    // What its attempts did is still known, and the command line tells the same.
    let (maps, reduces) = (tasks(admin, &id, "map").await, tasks(admin, &id, "reduce").await);
    assert_eq!((maps.len(), reduces.len()), (6, REDUCES));
    for task in maps.iter().chain(&reduces) {
        let attempt = &task["attempts"][0];
        assert_eq!(
            (&task["state"], &attempt["state"]),
            (&Value::from("committed"), &Value::from("accepted"))
        );
        // As the coordinator sees it, which hears of a beginning with the next heartbeat.
        assert!(attempt["duration_ms"].as_u64().unwrap() >= SLOW_COUNT.slow_ms / 2, "{task}");
        assert!(task["kind"] == "reduce" || attempt["bytes"] == task["input_bytes"], "{task}");
    }
    let everybody = fleet.everybody();
    let printed = flotilla(&["mr", "--coordinator", &everybody, "tasks", &id, "--json"]);
    let printed: Value = serde_json::from_str(&well(&printed)).unwrap();
    assert_eq!(printed["tasks"].as_array().unwrap().len(), 6 + REDUCES);
}

#[tokio::test]
async fn what_cannot_be_shown_says_why() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = Fleet::start(1, 1, &[]);
    made_up_text(&fleet.root());
    fleet.ready(1).await;
    let admin = fleet.coordinators[0].admin();
    let nobody = "01890000-0000-7000-8000-000000000000";
    for (path, expected) in [
        (format!("/api/jobs/{nobody}"), 404),
        (format!("/api/jobs/{nobody}/tasks"), 404),
        ("/api/jobs/..".to_owned(), 400),
        ("/api/jobs?limit=many".to_owned(), 400),
        ("/api/jobs?limits=1".to_owned(), 400),
        ("/api/jobs?page_token=x".to_owned(), 400),
        (format!("/api/jobs/{nobody}/tasks?kind=both"), 400),
    ] {
        let (status, problem) = told(admin, &path).await;
        assert_eq!(status, expected, "{path}: {problem}");
        assert!(!problem["error"].as_str().unwrap().is_empty());
    }

    // A job that failed keeps the failures of its tasks.
    let top = Submission { app: "top", output: "top", slow_ms: 0, ..SLOW_COUNT };
    let jobs = fleet.jobs();
    let id = top.submit(&fleet.everybody());
    let job = until(&jobs, &id, "the end", has_ended).await;
    let (_, shown) = told(admin, &format!("/api/jobs/{id}")).await;
    assert_eq!(shown["state"], "failed", "{job:?}");
    assert!(shown["failure"].as_str().unwrap().contains("map"));
    let failed: u64 =
        tasks(admin, &id, "map").await.iter().map(|task| task["failures"].as_u64().unwrap()).sum();
    assert!(failed > 0);
}

#[tokio::test]
async fn a_plan_is_explained_before_and_a_job_listed_after_it() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = Fleet::start(1, 1, &[]);
    made_up_text(&fleet.root());
    fleet.ready(1).await;
    let (everybody, root) = (fleet.everybody(), fleet.root());
    let explain = |input: &str, output: &str| {
        let root = root.to_str().unwrap();
        let job = ["--app", "wc", "--input", input, "--output", output, "--split-size", "150kB"];
        flotilla(&[&["mr", "explain", "--root", root, "--json"], &job[..]].concat())
    };
    let plan: Value = serde_json::from_str(&well(&explain("text/*.txt", "counts"))).unwrap();
    let maps = plan["maps"].as_array().unwrap();
    let bytes: u64 = maps.iter().map(|map| map["bytes"].as_u64().unwrap()).sum();
    assert_eq!((plan["files"].as_u64(), plan["bytes"].as_u64()), (Some(6), Some(bytes)));
    assert!(maps.len() > 6, "{plan}");
    assert_eq!(explain("nothing/*.txt", "counts").status.code(), Some(6));
    assert_eq!(explain("text/*.txt", "text").status.code(), Some(5));
    let before: Vec<_> = fs::read_dir(&root).unwrap().collect();
    assert!(before.iter().all(|entry| entry.as_ref().unwrap().file_name() != "counts"));

    let jobs = fleet.jobs();
    let good = COUNT.submit(&everybody);
    succeeded(&jobs, &good).await;
    let bad = Submission { app: "top", output: "top", ..COUNT }.submit(&everybody);
    until(&jobs, &bad, "the end", has_ended).await;
    let list = |further: &[&str]| {
        let list = ["mr", "--coordinator", &everybody, "history"];
        well(&flotilla(&[&list[..], further].concat()))
    };
    let told: Value = serde_json::from_str(&list(&["--json"])).unwrap();
    let ids: Vec<_> = told["jobs"].as_array().unwrap().iter().map(|job| &job["id"]).collect();
    assert_eq!(ids, [bad.as_str(), good.as_str()]);
    let text = list(&["-n", "1"]);
    assert!(text.contains(&bad) && text.contains("failed") && !text.contains(&good), "{text}");
}
