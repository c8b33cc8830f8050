//! The host with a machine that takes its time: whatever it does meanwhile, the member answers.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod machine;
mod member;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use daemon::Code;
use machine::{Counter, Gate, Opened};
use member::{Group, Member, PATIENCE, propose, until};
use raftd::{Role, Settings};
use tokio::time::Instant;

/// How long a member that restores is watched: some election timeouts.
const WATCHED: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_stored_while_the_host_has_no_moment_to_spare() {
    // A command takes longer than a tick, and there are always more of them.
    let settings = Settings {
        tick_ms: 1,
        election_ticks_min: 500,
        heartbeat_ticks: 50,
        snapshot_log_bytes_min: 100_000,
        ..Settings::default()
    };
    let counter = Counter { apply_takes: Duration::from_millis(3), ..Counter::default() };
    let group = Group::new(1, settings).await;
    let member = group.start(0, counter).await;
    until("it leads", || member.handle.status().role == Role::Leader).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (handle, stop) = (member.handle.clone(), stop.clone());
        clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                handle.propose(Bytes::from(vec![7; 1_000]), Instant::now() + PATIENCE).await;
            }
        });
    }
    let begun = Instant::now();
    until("there is a snapshot", || member.handle.status().snapshot.is_some()).await;
    let took = begun.elapsed();
    assert!(took < PATIENCE / 4, "the snapshot took {took:?}");
    stop.store(true, Ordering::Relaxed);
    clients.join_all().await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_says_while_a_snapshot_is_taken() {
    let settings = Settings { tick_ms: 10, snapshot_log_bytes_min: 20_000, ..Settings::default() };
    let counter = Counter::default();
    let gate = counter.capture_gate.clone();
    gate.close();
    let _opened = Opened(gate.clone());
    let group = Group::new(1, settings).await;
    let member = group.start(0, counter).await;
    let status = || member.handle.status();
    until("it leads", || status().role == Role::Leader).await;
    assert!(!status().taking_snapshot);
    propose(&member, 30_000).await;
    until("it takes one", || status().taking_snapshot).await;
    assert_eq!(status().snapshot, None);
    gate.open();
    until("it has one", || !status().taking_snapshot && status().snapshot.is_some()).await;
    member.stop().await;
}

/// A group of three whose third member lacks more than the others keep as log, and comes back with
/// a machine that waits at the gate with the snapshot. Who leads comes first.
async fn one_restores(counter: Counter) -> (Group, [Member; 3]) {
    let settings = Settings {
        tick_ms: 10,
        election_ticks_min: 100,
        heartbeat_ticks: 5,
        snapshot_log_bytes_min: 20_000,
        retained_bytes: 0,
        retained_bytes_max: 1,
        ..Settings::default()
    };
    let group = Group::new(3, settings).await;
    let [one, two, three] = group.start_all().await;
    let leads = |member: &Member| member.handle.status().role == Role::Leader;
    let mut members = [one, two, three];
    until("a member leads", || members.iter().any(leads)).await;
    members.sort_by_key(|member| !leads(member));
    let [leader, other, away] = members;
    for _ in 0..10 {
        propose(&leader, 100).await;
    }
    until("all have all", || away.handle.status().applied >= leader.handle.status().commit).await;
    let place = away.place;
    away.stop().await;
    let before = leader.handle.status().last;
    for _ in 0..60 {
        propose(&leader, 1_000).await;
    }
    until("its log is gone", || leader.handle.status().first > before).await;
    let gate = counter.gate.clone();
    gate.close();
    let back = group.start(place, counter).await;
    until("it restores", || gate.is_waited_at()).await;
    (group, [leader, other, back])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_restores_a_snapshot_goes_on_answering() {
    let gate = Arc::new(Gate::default());
    let _opened = Opened(gate.clone());
    let counter = Counter { gate: gate.clone(), ..Counter::default() };
    let (_group, [leader, other, back]) = one_restores(counter).await;
    let (before, node) = (leader.handle.status(), back.handle.node());
    // What is told of peers is as old as the last tick.
    let is_heard = || {
        let status = leader.handle.status();
        status.members.iter().any(|it| it.member.node == node && it.active)
    };
    until("the leader hears it", is_heard).await;
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        propose(&leader, 100).await;
        let status = leader.handle.status();
        assert_eq!((status.role, status.term), (Role::Leader, before.term), "nobody campaigns");
        let seen = status.members.iter().find(|it| it.member.node == node).unwrap();
        assert!(seen.active, "it is not heard any more after {:?}", begun.elapsed());
        assert_eq!(back.handle.status().leader, Some(before.node));
        // From the state that it came back with.
        let stale = back.handle.query_stale(()).await;
        assert!(matches!(stale, Ok(..=10)), "{stale:?}");
    }
    assert_eq!(back.handle.status().snapshot, None);
    gate.open();
    let all = leader.handle.status().commit;
    until("it has all", || back.handle.status().applied >= all).await;
    assert!(back.handle.status().snapshot.is_some(), "it came from the log");
    let count = leader.handle.query_stale(()).await;
    assert_eq!(back.handle.query_stale(()).await, count);
    for member in [leader, other, back] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_stopped_while_it_restores_ends_and_begins_anew() {
    let gate = Arc::new(Gate::default());
    let _opened = Opened(gate.clone());
    let counter = Counter { gate: gate.clone(), ..Counter::default() };
    let (group, [leader, other, back]) = one_restores(counter).await;
    let place = back.place;
    tokio::time::timeout(PATIENCE, back.stop()).await.expect("it waits for what it restores");
    gate.open();
    let back = group.start(place, Counter::default()).await;
    let all = leader.handle.status().commit;
    until("it has all", || back.handle.status().applied >= all).await;
    assert!(back.handle.status().snapshot.is_some(), "it came from the log");
    for member in [leader, other, back] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_to_which_a_snapshot_means_nothing_ends() {
    let gate = Arc::new(Gate::default());
    let _opened = Opened(gate.clone());
    let counter = Counter { gate: gate.clone(), is_old: true, ..Counter::default() };
    let (_group, [leader, other, back]) = one_restores(counter).await;
    let stale = back.handle.query_stale(()).await;
    assert!(matches!(stale, Ok(..=10)), "{stale:?}");
    gate.open();
    let failure = tokio::time::timeout(PATIENCE, back.finished()).await.unwrap().unwrap_err();
    assert_eq!(failure.code(), Code::Configuration, "{failure}");
    assert!(failure.to_string().contains("does not decode here"), "{failure}");
    for member in [leader, other] {
        member.stop().await;
    }
}
