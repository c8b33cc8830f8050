//! The replicated log on real processes: acknowledged appends survive whoever is killed, once and in
//! one order for all subscribers; a trim, a quota and limits are told by name.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client::log::{LogEntry, Range};
use client::{Error, LogClient, Options, Rejected};
use flotilla::local::Instance;
use proto::log::log_client::LogClient as RawClient;
use proto::log::{ProposeRequest, RequestId, StatusRequest, SubscribeRequest};
use rustix::process::Signal;
use serde_json::Value;
use support::{FLOTILLA, TestCluster, Watchdog, complained, flotilla, ready, well};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const MEMBERS: u16 = 3;
const CLIENTS: usize = 6;

/// How long a client tries: longer than any election, and than a member is away here.
const DEADLINE: Duration = Duration::from_secs(30);

/// How many appends are acknowledged between two things that happen to the members.
const PACE: usize = 150;

/// What a client asked to be appended.
#[derive(Clone, Debug)]
struct Append {
    payload: Bytes,
    /// Where it is, if that was told.
    index: Option<u64>,
}

async fn start(members: u16, further: &[&str]) -> TestCluster {
    TestCluster::start(0, 0, |plan| {
        // So little log between snapshots that members restart from them and fetch them.
        let settings = plan.dir.join("raftd.toml");
        let text = "[group]\nsnapshot_log_bytes_min = 20000\nretained_bytes = 1000\nretained_bytes_max = 1000\n";
        std::fs::write(&settings, text).unwrap();
        plan.log = members;
        plan.further.raftd = vec![format!("--config={}", settings.display())];
        plan.further.raftd.extend(further.iter().map(|&argument| argument.to_owned()));
    })
    .await
}

fn endpoints(test: &TestCluster) -> Vec<String> {
    test.cluster.description().log_endpoints()
}

fn connect(endpoints: Vec<String>) -> LogClient {
    LogClient::connect(endpoints, Options::with_deadline(DEADLINE)).unwrap()
}

/// `flotilla log` at this cluster.
fn log(test: &TestCluster, arguments: &[&str]) -> Output {
    let endpoints = endpoints(test).join(",");
    flotilla(&[&["log", "--endpoints", &endpoints], arguments].concat())
}

/// The command ended with this code, and these words on stderr.
fn check(output: &Output, code: i32, words: &[&str]) {
    let complaint = complained(output);
    assert_eq!(output.status.code(), Some(code), "{complaint}");
    for word in words {
        assert!(complaint.contains(word), "{word:?} is not in: {complaint}");
    }
}

/// The member that leads, once one does.
async fn leader(test: &TestCluster) -> Instance {
    let deadline = Instant::now() + DEADLINE;
    loop {
        for endpoint in endpoints(test) {
            if let Ok(reply) = client::admin::status(&endpoint, Duration::from_millis(500)).await
                && reply.leader != 0
            {
                return Instance::Raftd(u16::try_from(reply.leader).unwrap());
            }
        }
        assert!(Instant::now() < deadline, "nobody leads");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Appends one to three entries at a time until it is told to stop.
async fn work(
    me: usize,
    client: LogClient,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
) -> Vec<Append> {
    let mut appends = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = appends.len();
        let payloads: Vec<Bytes> =
            (number..=number + number % 3).map(|number| format!("{me}.{number}").into()).collect();
        let first = match client.append_all(payloads.clone()).await {
            Ok(appended) => {
                let count = appended.last_index + 1 - appended.first_index;
                assert_eq!(count, payloads.len() as u64);
                acknowledged.fetch_add(1, Ordering::Relaxed);
                Some(appended.first_index)
            }
            Err(Error::Unknown(_)) => None,
            Err(Error::Rejected(rejected)) => panic!("client {me}: {rejected}"),
        };
        appends.extend(
            payloads.into_iter().zip(0..).map(|(payload, place)| Append {
                payload,
                index: first.map(|first| first + place),
            }),
        );
    }
    appends
}

/// Follows the log at one member until the end that is told at last.
async fn follow(client: LogClient, mut end: watch::Receiver<Option<u64>>) -> Vec<LogEntry> {
    let mut tail = client.tail(Range::default());
    let mut entries: Vec<LogEntry> = Vec::new();
    loop {
        let seen = entries.last().map_or(0, |entry| entry.index);
        if end.borrow().is_some_and(|end| seen >= end) {
            return entries;
        }
        tokio::select! {
            entry = tail.next() => entries.push(entry.unwrap().unwrap()),
            changed = end.changed() => changed.unwrap(),
        }
    }
}

/// Waits until the clients have had so many more answers.
async fn progress(acknowledged: &AtomicUsize) {
    let wanted = acknowledged.load(Ordering::Relaxed) + PACE;
    let deadline = Instant::now() + DEADLINE;
    while acknowledged.load(Ordering::Relaxed) < wanted {
        assert!(Instant::now() < deadline, "the clients make no progress");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn kill_all(test: &mut TestCluster) {
    for node in 1..=MEMBERS {
        test.cluster.process(Instance::Raftd(node)).unwrap().signal(Signal::KILL);
    }
    for node in 1..=MEMBERS {
        test.cluster.kill(Instance::Raftd(node)).unwrap();
        test.cluster.restart(Instance::Raftd(node)).unwrap();
    }
    ready(&mut test.cluster).await;
}

/// Each acknowledged append is where its client was told, nothing is there twice, and nothing that
/// nobody asked for.
fn check_entries(entries: &[LogEntry], appends: &[Append]) {
    let indexes = entries.iter().map(|entry| entry.index);
    assert!(indexes.eq(1..=entries.len() as u64), "the indexes have gaps");
    let mut places = BTreeMap::new();
    for entry in entries {
        let before = places.insert(&entry.payload, entry.index);
        assert_eq!(before, None, "{:?} is there twice, also at {}", entry.payload, entry.index);
    }
    for Append { payload, index } in appends {
        let place = places.remove(payload);
        assert!(index.is_none() || place == *index, "{payload:?} is at {place:?}, not {index:?}");
    }
    assert!(places.is_empty(), "nobody asked for {places:?}");
}

#[tokio::test]
async fn every_acknowledged_append_is_there_once_whoever_is_killed() {
    let _watchdog = Watchdog::new(Duration::from_secs(180));
    let mut test = start(MEMBERS, &[]).await;
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (end, ended) = watch::channel(None);
    let mut followers = JoinSet::new();
    for endpoint in endpoints(&test) {
        followers.spawn(follow(connect(vec![endpoint]), ended.clone()));
    }
    let mut clients = JoinSet::new();
    for me in 0..CLIENTS {
        let client = connect(endpoints(&test));
        clients.spawn(work(me, client, stop.clone(), acknowledged.clone()));
    }
    for _ in 0..2 {
        progress(&acknowledged).await;
        let victim = leader(&test).await;
        test.cluster.kill(victim).unwrap();
        progress(&acknowledged).await;
        test.cluster.restart(victim).unwrap();
        ready(&mut test.cluster).await;
    }
    kill_all(&mut test).await;
    progress(&acknowledged).await;
    stop.store(true, Ordering::Relaxed);
    let appends = clients.join_all().await.concat();

    let status = connect(endpoints(&test)).status().await.unwrap();
    end.send_replace(Some(status.last_index));
    let seen = followers.join_all().await;
    for entries in &seen {
        check_entries(entries, &appends);
        assert_eq!(entries, &seen[0], "subscribers at different members see different logs");
    }
    assert_eq!(seen[0].len() as u64, status.last_index);
    eprintln!(
        "{} entries, {} requests acknowledged",
        seen[0].len(),
        acknowledged.load(Ordering::Relaxed)
    );

    kill_all(&mut test).await;
    let range = Range { to_index: Some(status.last_index), ..Range::default() };
    let mut tail = connect(endpoints(&test)).tail(range);
    let mut again = Vec::new();
    while let Some(entry) = tail.next().await.unwrap() {
        again.push(entry);
    }
    assert_eq!(again, seen[0], "the log after a restart of all");
}

#[tokio::test]
async fn what_is_trimmed_is_out_of_range_on_every_member() {
    let _watchdog = Watchdog::new(Duration::from_secs(180));
    let mut test = start(MEMBERS, &[]).await;
    assert_eq!(well(&log(&test, &["tail"])), "");
    assert_eq!(well(&log(&test, &["append", "a", "b"])), "1 to 2");
    assert_eq!(well(&log(&test, &["append", ""])), "3");
    for number in 4..=9 {
        assert_eq!(well(&log(&test, &["append", "--", "-x"])), number.to_string());
    }
    assert_eq!(
        well(&log(&test, &["tail", "--last", "8", "--indexes"])).lines().next(),
        Some("2\tb")
    );
    check(&log(&test, &["trim", "11"]), 6, &["cannot be trimmed to 11", "last index is 9"]);
    assert_eq!(well(&log(&test, &["trim", "4"])), "the first index is 4");
    assert_eq!(well(&log(&test, &["trim", "2"])), "the first index is 4");
    check(&log(&test, &["tail", "--from", "11"]), 6, &["no index 11 yet", "last index is 9"]);
    check(&log(&test, &["tail", "--from", "11", "-f"]), 6, &["no index 11 yet"]);
    check(&log(&test, &["tail", "--from", "3"]), 6, &["no index 3 any more", "first index is 4"]);
    for endpoint in endpoints(&test) {
        let client = connect(vec![endpoint]);
        let refused = client.tail(Range { from_index: 3, ..Range::default() }).next().await;
        let Err(Rejected::OutOfRange { message, first_index, last_index }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!((first_index, last_index), (Some(4), Some(9)), "{message}");
        assert!(message.contains("its first index is 4"), "{message}");
        let entry = client.tail(Range::default()).next().await.unwrap().unwrap();
        assert_eq!((entry.index, &entry.payload[..]), (4, &b"-x"[..]));
    }
    // A stream whose next entry goes before it is sent ends in the same way.
    let client = connect(endpoints(&test));
    let mut tail = client.tail(Range { from_index: 10, ..Range::default() });
    assert!(timeout(Duration::from_millis(50), tail.next()).await.is_err(), "nothing is there yet");
    kill_all(&mut test).await;
    client.append_all(vec!["ten".into(), "eleven".into()]).await.unwrap();
    client.trim(11).await.unwrap();
    let next = tail.next().await;
    match &next {
        Ok(Some(entry)) => assert_eq!(entry.index, 10, "it was faster than the trim"),
        Err(Rejected::OutOfRange { first_index: Some(11), .. }) => {}
        Ok(None) | Err(_) => panic!("{next:?}"),
    }
    let status: Value = serde_json::from_str(&well(&log(&test, &["status", "--json"]))).unwrap();
    assert_eq!((&status["first_index"], &status["last_index"]), (&11.into(), &11.into()));
    let entry: Value = serde_json::from_str(&well(&log(&test, &["tail", "--json"]))).unwrap();
    assert_eq!((&entry["index"], &entry["entry"]), (&11.into(), &"eleven".into()));
    check_operators(&test);
    check_slow_subscriber(&test, &client).await;
}

/// A subscriber that does not read holds up neither appends nor a trim, and learns what it missed.
async fn check_slow_subscriber(test: &TestCluster, client: &LogClient) {
    let mut raw = RawClient::connect(format!("http://{}", endpoints(test)[0])).await.unwrap();
    let from = client.status().await.unwrap().last_index + 1;
    let usual = SubscribeRequest { from_index: from, to_index: 0, stale: false };
    let mut stream = raw.subscribe(usual).await.unwrap().into_inner();
    let mut last = 0;
    for number in 0..12_u8 {
        let payload = Bytes::from(vec![number; 1 << 20]);
        last = client.append_all(vec![payload.clone(), payload]).await.unwrap().last_index;
    }
    assert_eq!(client.trim(last).await.unwrap(), last);
    // Its member may learn of the trim a heartbeat later.
    let here = || StatusRequest { stale: true };
    let deadline = Instant::now() + DEADLINE;
    while raw.status(here()).await.unwrap().into_inner().header.unwrap().first_index < last {
        assert!(Instant::now() < deadline, "the member never applies the trim");
        sleep(Duration::from_millis(10)).await;
    }
    let mut next = from;
    let status = loop {
        match stream.message().await {
            Ok(Some(reply)) => {
                for entry in reply.entries {
                    assert_eq!(entry.index, next);
                    next += 1;
                }
            }
            Ok(None) => panic!("the stream ended"),
            Err(status) => break status,
        }
    };
    assert_eq!(format!("{:?}", status.code()), "OutOfRange", "{status}");
    assert_eq!(status.metadata().get("flotilla-first-index").unwrap(), &last.to_string());
    assert!(next < last, "{next} of {last} were sent to somebody who does not read");
}

/// What operators do works here as everywhere.
fn check_operators(test: &TestCluster) {
    let all = endpoints(test).join(",");
    let moved = flotilla(&["members", "transfer", "--to", "2", "--endpoints", &all]);
    assert!(well(&moved).starts_with("member 2 leads"));
    let status = well(&flotilla(&["status", "--json", "--endpoints", &all]));
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["leader"], 2);
    assert_eq!(status["members"][0]["daemon"], "raftd");
}

#[tokio::test]
async fn a_member_that_is_cut_off_sends_its_subscribers_away() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let mut test = start(MEMBERS, &[]).await;
    connect(endpoints(&test)).append("a").await.unwrap();
    let mut raw = RawClient::connect(format!("http://{}", endpoints(&test)[0])).await.unwrap();
    let usual = SubscribeRequest { from_index: 1, to_index: 0, stale: false };
    let mut stream = raw.subscribe(usual).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().entries[0].index, 1);
    for node in 2..=MEMBERS {
        test.cluster.pause(Instance::Raftd(node)).unwrap();
    }
    let status = stream.message().await.unwrap_err();
    assert_eq!(format!("{:?}", status.code()), "Unavailable", "{status}");
    assert!(status.message().contains("no leader"), "{status}");
    // Who asks for no more than what the member has gets that.
    let stale = SubscribeRequest { stale: true, ..usual };
    let mut stream = raw.subscribe(stale).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().entries[0].payload, "a");
    for node in 2..=MEMBERS {
        test.cluster.resume(Instance::Raftd(node)).unwrap();
    }
    connect(endpoints(&test)).append("b").await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().entries[0].payload, "b");
}

#[tokio::test]
async fn each_line_of_stdin_becomes_an_entry() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let test = start(1, &[]).await;
    let append = |input: Vec<u8>| {
        let mut child = Command::new(FLOTILLA)
            .args(["log", "--endpoints", &endpoints(&test)[0], "append", "--lines"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may be refused before it was read.
        let _ = child.stdin.take().unwrap().write_all(&input);
        child.wait_with_output().unwrap()
    };
    // An empty line, bytes that are no text, and no line end behind the last.
    let mut lines: Vec<Vec<u8>> = (1..=2_500).map(|line| format!("line {line}").into()).collect();
    lines[7].clear();
    lines[8] = vec![0xff, 0, b'\r'];
    let said = well(&append(lines.join(&b'\n')));
    assert!(said.starts_with('1') && said.ends_with("2500"), "{said}");
    assert!(said.lines().count() < 100, "lines that wait are appended together: {said}");
    let all = log(&test, &["tail"]);
    assert_eq!(all.stdout, [&lines.join(&b'\n')[..], b"\n"].concat());
    check(&append(vec![b'x'; (1 << 20) + 1]), 2, &["entry_bytes_max is 1048576"]);
    assert_eq!(well(&append(Vec::new())), "");
}

#[tokio::test]
async fn limits_are_refused_by_name() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let test = start(1, &["--quota-bytes=2000", "--subscribers-max=1"]).await;
    let entry = "x".repeat(900);
    assert_eq!(well(&log(&test, &["append", &entry, &entry])), "1 to 2");
    check(&log(&test, &["append", &entry]), 1, &["1804 bytes", "quota_bytes is 2000", "trim"]);
    assert_eq!(well(&log(&test, &["trim", "2"])), "the first index is 2");
    assert_eq!(well(&log(&test, &["append", &entry])), "3");
    let many = vec!["e"; 1_025];
    check(&log(&test, &[&["append"], &many[..]].concat()), 2, &["1025", "propose_entries_max"]);
    check(&log(&test, &["append", "--lines", "e"]), 2, &["--lines"]);

    let mut raw = RawClient::connect(format!("http://{}", endpoints(&test)[0])).await.unwrap();
    let id = |client: usize, sequence, acknowledged, expires_ms| {
        let client = Bytes::from(vec![7; client]);
        Some(RequestId { client, sequence, acknowledged, expires_ms })
    };
    let one = || vec![Bytes::from_static(b"e")];
    for (payloads, id, code, words) in [
        (vec![], None, "InvalidArgument", "0 entries"),
        (
            vec![vec![0; (1 << 20) + 1].into()],
            None,
            "InvalidArgument",
            "entry_bytes_max is 1048576",
        ),
        (vec![vec![0; 1 << 20].into(); 3], None, "InvalidArgument", "propose_bytes_max is 2097152"),
        (one(), id(15, 1, 0, 0), "InvalidArgument", "it must have 16"),
        (one(), id(16, 0, 0, 0), "InvalidArgument", "sequences count from 1"),
        (one(), id(16, 2, 2, 0), "InvalidArgument", "not below id.sequence"),
        (one(), id(16, 1, 0, u64::MAX), "InvalidArgument", "expires_ahead_ms_max"),
    ] {
        let refused = raw.propose(ProposeRequest { payloads, id }).await.unwrap_err();
        assert_eq!(format!("{:?}", refused.code()), code, "{refused}");
        assert!(refused.message().contains(words), "{refused}");
        assert_eq!(refused.metadata().get("flotilla-executed").unwrap(), "never", "{refused}");
    }
    let backwards = SubscribeRequest { from_index: 3, to_index: 1, stale: false };
    let refused = raw.subscribe(backwards).await.unwrap_err();
    assert!(refused.message().contains("to_index is 1"), "{refused}");

    let usual = SubscribeRequest::default();
    let held = raw.subscribe(usual).await.unwrap().into_inner();
    let refused = raw.subscribe(usual).await.unwrap_err();
    assert_eq!(format!("{:?}", refused.code()), "ResourceExhausted");
    assert!(refused.message().contains("subscribers_max subscribers, which is 1"), "{refused}");
    // The place is free again soon after its subscriber has gone.
    drop(held);
    let deadline = Instant::now() + DEADLINE;
    while raw.subscribe(usual).await.is_err() {
        assert!(Instant::now() < deadline, "the place is never given back");
        sleep(Duration::from_millis(10)).await;
    }
}
