//! A process that holds a lock and stands still for longer than its lease: when it goes on, somebody
//! else has the lock, and what it then writes under its guard is refused.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use client::{LockClient, LockOptions, PutOptions};
use rustix::process::{Pid, Signal, kill_process};
use support::{FLOTILLA, READY_TIMEOUT, TestCluster, Watchdog};

/// What `flotilla lock` ends with when it has lost the lock.
const NOT_HELD: Option<i32> = Some(125);

/// A `flotilla lock` and its command. Both are killed when this is dropped.
struct Holder {
    lock: Child,
    command: Option<Pid>,
}

impl Holder {
    fn signal(&self, signal: Signal) {
        for process in [Some(Pid::from_child(&self.lock)), self.command].into_iter().flatten() {
            kill_process(process, signal).unwrap();
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // They may have ended.
        if let Some(command) = self.command {
            let _ = kill_process(command, Signal::KILL);
        }
        let _ = self.lock.kill();
        let _ = self.lock.wait();
    }
}

#[tokio::test]
async fn a_holder_that_stood_still_beyond_its_lease_writes_nothing_any_more() {
    let _watchdog = Watchdog::new(3 * READY_TIMEOUT);
    let test = TestCluster::start(3, 0, |_| ()).await;
    let endpoints = test.cluster.description().kv_endpoints().join(",");
    let put = |value: &str| {
        format!(
            "{FLOTILLA} kv --endpoints {endpoints} put '{{job}}/state' {value} \
             --guard '{{job}}' $FLOTILLA_LOCK_TOKEN >&2"
        )
    };
    let script = format!("{}; echo $$; read go; {}; echo $?", put("first"), put("late"));
    let lock = Command::new(FLOTILLA)
        .args([
            "lock",
            "--endpoints",
            &endpoints,
            "{job}",
            "--ttl",
            "2s",
            "--",
            "sh",
            "-c",
            &script,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut holder = Holder { lock, command: None };
    let mut go = holder.lock.stdin.take().unwrap();
    let mut said = BufReader::new(holder.lock.stdout.take().unwrap()).lines();
    let command: i32 = said.next().unwrap().unwrap().parse().unwrap();
    holder.command = Pid::from_raw(command);
    let kv = test.kv(READY_TIMEOUT);
    assert_eq!(kv.get("{job}/state").await.unwrap().unwrap().value, "first");

    // The whole machine of the holder stands still until somebody else has the lock.
    holder.signal(Signal::STOP);
    let locks = LockClient::new(kv.clone());
    let options = LockOptions { wait: READY_TIMEOUT, ..LockOptions::default() };
    let second = locks.acquire("{job}", &options).await.unwrap().unwrap();
    let guarded = PutOptions { guard: Some(second.guard().clone()), ..PutOptions::default() };
    kv.put_with("{job}/state", "second", guarded).await.unwrap();

    // The command goes on before anybody can tell it that the lock is lost.
    kill_process(holder.command.unwrap(), Signal::CONT).unwrap();
    writeln!(go, "go").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "1", "the late write is refused");
    assert_eq!(kv.get("{job}/state").await.unwrap().unwrap().value, "second");
    kill_process(Pid::from_child(&holder.lock), Signal::CONT).unwrap();
    // It has ended with its command.
    holder.command = None;
    assert_eq!(holder.lock.wait().unwrap().code(), NOT_HELD);
    second.release().await.unwrap();
}
