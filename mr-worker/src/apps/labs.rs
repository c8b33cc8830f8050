//! The apps by which the labs test a MapReduce: they crash, dawdle, and count who else is at work.
//!
//! A worker has them only when it is told so (`lab_apps`). They leave files in their working
//! directory, which is the shared root.

use std::{env, fs, process, thread, time::Duration};

use rand::RngExt;
use rustix::process::{Pid, test_kill_process};

use crate::lab::{KeyValue, Lab};

/// All of them.
pub const LABS: &[&dyn crate::app::Program] =
    &[&CRASH, &NO_CRASH, &EARLY_EXIT, &JOB_COUNT, &MAP_TIMING, &REDUCE_TIMING];

/// Ends its process or sleeps, each at one call in three.
const CRASH: Lab = Lab {
    name: "crash",
    map: |name, contents| {
        crash_maybe();
        facts(name, contents)
    },
    reduce: |_, values| {
        crash_maybe();
        in_order(values)
    },
};

/// What `crash` comes to without crashes.
const NO_CRASH: Lab = Lab { name: "nocrash", map: facts, reduce: |_, values| in_order(values) };

/// Takes its time over two of the books, so that who leaves early leaves too early.
const EARLY_EXIT: Lab = Lab {
    name: "early_exit",
    map: |name, _| vec![KeyValue::new(name, "1")],
    reduce: |key, values| {
        if key.contains("sherlock") || key.contains("tom") {
            thread::sleep(Duration::from_secs(3));
        }
        values.len().to_string()
    },
};

/// Counts how often a map was called, by files.
const JOB_COUNT: Lab = Lab {
    name: "jobcount",
    map: |_, _| {
        let mark = format!("{JOB_COUNT_MARK}-{}-{}", process::id(), rand::random::<u64>());
        fs::write(mark, "x").expect("the shared root takes a file");
        let dawdling = rand::rng().random_range(2_000..5_000);
        thread::sleep(Duration::from_millis(dawdling));
        vec![KeyValue::new("a", "x")]
    },
    reduce: |_, _| names_here(JOB_COUNT_MARK).len().to_string(),
};

const JOB_COUNT_MARK: &str = "mr-worker-jobcount";

/// Tells how many maps run at the same time.
const MAP_TIMING: Lab = Lab {
    name: "mtiming",
    map: |_, _| {
        let began = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let at_once = at_work("map");
        let me = process::id();
        vec![
            KeyValue::new(format!("times-{me}"), format!("{:.1}", began.as_secs_f64())),
            KeyValue::new(format!("parallel-{me}"), at_once.to_string()),
        ]
    },
    reduce: |_, values| in_order(values),
};

/// Tells how many reduces run at the same time.
const REDUCE_TIMING: Lab = Lab {
    name: "rtiming",
    map: |_, _| ('a'..='j').map(|key| KeyValue::new(key, "1")).collect(),
    reduce: |_, _| at_work("reduce").to_string(),
};

fn crash_maybe() {
    match rand::rng().random_range(0..1_000) {
        0..330 => process::exit(1),
        330..660 => {
            let delay = rand::rng().random_range(0..10_000);
            thread::sleep(Duration::from_millis(delay));
        }
        _ => {}
    }
}

fn facts(name: &str, contents: &str) -> Vec<KeyValue> {
    vec![
        KeyValue::new("a", name),
        KeyValue::new("b", name.len().to_string()),
        KeyValue::new("c", contents.len().to_string()),
        KeyValue::new("d", "xyzzy"),
    ]
}

fn in_order(mut values: Vec<String>) -> String {
    values.sort_unstable();
    values.join(" ")
}

/// Says for a second that this process is in a phase; how many live ones say so, this one included.
fn at_work(phase: &str) -> usize {
    let prefix = format!("mr-worker-{phase}-");
    let mark = format!("{prefix}{}", process::id());
    fs::write(&mark, "x").expect("the shared root takes a file");
    let is_alive = |name: &String| {
        let pid = name[prefix.len()..].parse().ok().and_then(Pid::from_raw);
        pid.is_some_and(|pid| test_kill_process(pid).is_ok())
    };
    let alive = names_here(&prefix).iter().filter(|name| is_alive(name)).count();
    thread::sleep(Duration::from_secs(1));
    fs::remove_file(&mark).expect("the mark is this process's own");
    alive
}

/// The names in the working directory that begin so.
fn names_here(prefix: &str) -> Vec<String> {
    let here = env::current_dir().expect("a slot has a working directory");
    let entries = fs::read_dir(here).expect("the shared root can be listed");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}
