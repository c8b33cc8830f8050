//! The shard controller on real processes: its command line, changes that are made once whoever is
//! killed, watches, and refusals by name. The groups are played by the tests: they report, and say
//! what they did.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bytes::Bytes;
use client::shards::{
    Change, Changed, HistoryRequest, Joining, Placement, RefusedCode, ReportReply, ReportRequest,
    Step, StepKind,
};
use client::{Options, ShardClient};
use flotilla::local::Instance;
use proto::admin::Role;
use proto::shard::shards_client::ShardsClient as RawClient;
use proto::shard::{
    AdoptRequest, ChangeOptions, ChangeReply, JoinRequest, LeaveRequest, QueryRequest, WatchReply,
    WatchRequest, change_reply::Outcome, query_reply,
};
use serde_json::Value;
use support::{FLOTILLA, TestCluster, Watchdog, complained, flotilla, ready, well};
use tokio::time::{Instant, sleep};
use tonic::Streaming;
use tonic::transport::Channel;

const MEMBERS: u16 = 3;
const SHARDS: u32 = 16;

/// How long a client tries: longer than any election.
const DEADLINE: Duration = Duration::from_secs(30);

async fn start(members: u16, further: &[&str]) -> TestCluster {
    TestCluster::start(0, 0, |plan| {
        plan.controllers = members;
        plan.further.shardctl = vec![format!("--shards={SHARDS}")];
        plan.further.shardctl.extend(further.iter().map(|&argument| argument.to_owned()));
    })
    .await
}

fn endpoints(test: &TestCluster) -> Vec<String> {
    test.cluster.description().controller_endpoints()
}

fn connect(endpoints: Vec<String>) -> ShardClient {
    ShardClient::connect(endpoints, Options::with_deadline(DEADLINE)).unwrap()
}

async fn raw(endpoint: &str) -> RawClient<Channel> {
    RawClient::connect(format!("http://{endpoint}")).await.unwrap()
}

/// Runs the command line against all members.
fn shardctl(test: &TestCluster, arguments: &[&str]) -> Output {
    let all = endpoints(test).join(",");
    flotilla(&[&["shardctl", "--endpoints", &all], arguments].concat())
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&well(output)).unwrap()
}

/// The command ended with this code, and complained in these words.
fn check(output: &Output, code: i32, words: &[&str]) {
    let complaint = complained(output);
    assert_eq!(output.status.code(), Some(code), "{complaint}");
    for word in words {
        assert!(complaint.contains(word), "{word:?} is not in {complaint:?}");
    }
}

fn join(groups: impl IntoIterator<Item = u32>) -> Change {
    let members = vec!["127.0.0.1:7300".to_owned()];
    let joining = |group| Joining { group, weight: None, members: members.clone() };
    Change::Join(groups.into_iter().map(joining).collect())
}

/// What the leader of a group tells.
fn report(group: u32, index: u64, steps: Vec<Step>) -> ReportRequest {
    ReportRequest {
        group,
        identity: vec![u8::try_from(group).unwrap(); 32].into(),
        index,
        shards: 0,
        members: vec![format!("127.0.0.1:{}", 7300 + group)],
        steps,
    }
}

fn codes(reply: &ReportReply) -> Vec<RefusedCode> {
    let results = reply.group.iter().chain(&reply.steps);
    let code = |refused: &client::shards::Refused| refused.code();
    results.map(|it| it.refused.as_ref().map_or(RefusedCode::Unspecified, code)).collect()
}

/// What the groups have to do for the moves there are, by group.
fn due(placements: &[Placement]) -> BTreeMap<u32, Vec<Step>> {
    let mut due: BTreeMap<u32, Vec<Step>> = BTreeMap::new();
    for Placement { shard, owner, last: number, r#move, .. } in placements {
        let Some(moving) = r#move else { continue };
        let (group, kind) = match (moving.cancelling, *owner) {
            (false, _) => (moving.to, StepKind::Settled),
            (true, 0) => (moving.to, StepKind::Cancelled),
            (true, owner) => (owner, StepKind::Cancelled),
        };
        let step = Step { shard: *shard, number: *number, kind: kind.into() };
        due.entry(group).or_default().push(step);
    }
    due
}

/// Has the groups do what is due, until nothing is.
async fn settle(client: &ShardClient) {
    loop {
        let state = client.query(None, false).await.unwrap();
        let due = due(&state.placements);
        if due.is_empty() {
            return;
        }
        for (group, steps) in due {
            client.report(&report(group, 1, steps)).await.unwrap();
        }
    }
}

/// The number of the member that leads.
async fn leader(test: &TestCluster) -> u16 {
    let deadline = Instant::now() + DEADLINE;
    loop {
        for (number, endpoint) in (1..).zip(endpoints(test)) {
            let status = client::admin::status(&endpoint, Duration::from_secs(1)).await;
            if status.is_ok_and(|status| status.role() == Role::Leader) {
                return number;
            }
        }
        assert!(Instant::now() < deadline, "nobody leads");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_administrator_is_told_what_moves_and_when_it_has() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let test = start(1, &[]).await;
    let client = connect(endpoints(&test));
    assert_eq!(well(&shardctl(&test, &["status"])), "configuration 0: 0 shards, 0 on their way");

    let two = ["join", "1=127.0.0.1:7301", "2=127.0.0.1:7302"];
    let planned = json(&shardctl(&test, &[&["plan", "--json"], &two[..]].concat()));
    assert_eq!((&planned["number"], planned["moves"].as_array().unwrap().len()), (&1.into(), 16));
    assert_eq!(client.query(None, false).await.unwrap().latest, 0, "a plan changes nothing");
    let said = well(&shardctl(&test, &two));
    assert!(said.starts_with("configuration 1: 16 shards move\n"), "{said}");
    assert!(said.contains("-     2   8      8-15"), "{said}");
    let said = well(&shardctl(&test, &["status"]));
    assert!(said.contains("8-15    -      being made by 2"), "{said}");

    // Nobody makes them yet.
    let vain = shardctl(&test, &["wait", "--timeout", "300ms"]);
    check(&vain, 8, &["waited in vain", "16 shards"]);
    assert_eq!(json(&shardctl(&test, &["wait", "--json", "--number", "1"]))["number"], 1);
    let mut waiting = Command::new(FLOTILLA)
        .args(["shardctl", "--json", "--endpoints", &endpoints(&test)[0], "wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    settle(&client).await;
    let waited = tokio::task::spawn_blocking(move || waiting.wait().unwrap()).await.unwrap();
    assert!(waited.success(), "{waited}");

    let planned = json(&shardctl(&test, &["plan", "--json", "leave", "2"]));
    assert_eq!((&planned["number"], planned["moves"].as_array().unwrap().len()), (&2.into(), 8));
    let moved = well(&shardctl(&test, &["move", "3", "2"]));
    assert!(moved.starts_with("configuration 2: 2 shards move\n"), "{moved}");
    let again = well(&shardctl(&test, &["move", "3", "2"]));
    assert_eq!(again, "configuration 2: no shard moves");
    settle(&client).await;
    let status = json(&shardctl(&test, &["status", "--json"]));
    assert_eq!(
        (&status["shards"][3]["owner"], &status["shards"][3]["pinned"]),
        (&2.into(), &true.into())
    );
    let shares = |status: &Value| [0, 1].map(|at| status["groups"][at]["has"].as_u64().unwrap());
    assert_eq!(shares(&status), [8, 8]);
    // Those groups are not there, which holds up nobody.
    let member = &status["groups"][1]["members"][0];
    assert_eq!(member["address"], "127.0.0.1:7302");
    assert!(member["error"].as_str().unwrap().contains("127.0.0.1:7302"), "{member}");
    well(&shardctl(&test, &["unpin", "3"]));
    well(&shardctl(&test, &["weigh", "2", "3"]));
    settle(&client).await;
    assert_eq!(shares(&json(&shardctl(&test, &["status", "--json"]))), [4, 12]);
    well(&shardctl(&test, &["leave", "1"]));
    settle(&client).await;
    let said = well(&shardctl(&test, &["status"]));
    assert!(said.contains("\n    0  2222222222222222\n"), "{said}");
    assert!(said.contains("1      -       0    0"), "{said}");

    let said = well(&shardctl(&test, &["query", "1"]));
    assert!(said.starts_with("configuration 1: 16 shards\n"), "{said}");
    let history = well(&shardctl(&test, &["history", "--last", "2"]));
    let lines: Vec<_> = history.lines().collect();
    assert_eq!(lines.len(), 3, "{history}");
    assert!(lines[1].starts_with("5       4      0       2 (weight 3)"), "{history}");
    check_operators(&test);
}

/// What operators do works here as everywhere.
fn check_operators(test: &TestCluster) {
    let all = endpoints(test).join(",");
    let status = json(&flotilla(&["status", "--json", "--endpoints", &all]));
    assert_eq!(status["members"][0]["daemon"], "shardctl");
    let dir = test.dir.path().join("shardctl-1");
    let busy = flotilla(&["members", "recover", "--dir", dir.to_str().unwrap()]);
    assert_eq!(busy.status.code(), Some(1), "{}", complained(&busy));
    let health = flotilla(&["shardctl", "serve", "--listen", &endpoints(test)[0], "health"]);
    well(&health);
}

#[tokio::test]
async fn changes_come_about_once_though_leaders_are_killed() {
    let _watchdog = Watchdog::new(Duration::from_secs(240));
    let mut test = start(MEMBERS, &[]).await;
    let client = connect(endpoints(&test));
    client.change(&join([1, 2]), None).await.unwrap();
    settle(&client).await;
    for round in 0..3 {
        // Several at once, while the leader dies.
        let changes =
            [join([10 + round]), join([20 + round]), Change::Move { shard: round, group: 1 }];
        let asked = changes.map(|change| {
            let client = client.clone();
            tokio::spawn(async move { client.change(&change, None).await })
        });
        let number = leader(&test).await;
        test.cluster.kill(Instance::Shardctl(number)).unwrap();
        for asked in asked {
            asked.await.unwrap().unwrap();
        }
        settle(&client).await;
        test.cluster.restart(Instance::Shardctl(number)).unwrap();
        ready(&mut test.cluster).await;
    }
    let state = client.query(None, false).await.unwrap();
    // One for each change.
    assert_eq!(state.latest, 10);
    assert!(state.placements.iter().all(|placement| placement.r#move.is_none()));

    // The same on all members, as soon as they have applied it.
    let mut kept = Vec::new();
    for endpoint in endpoints(&test) {
        let client = connect(vec![endpoint]);
        let page = HistoryRequest { stale: true, ..HistoryRequest::default() };
        let deadline = Instant::now() + DEADLINE;
        let history = loop {
            let history = client.history(page).await.unwrap();
            if history.configurations.first().is_some_and(|it| it.number == state.latest) {
                break history;
            }
            assert!(Instant::now() < deadline, "a member never learns of it");
            sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(history.configurations.len() as u64, state.latest + 1);
        kept.push(history);
    }
    assert!(kept.iter().all(|history| *history == kept[0]));
}

#[tokio::test]
async fn a_request_that_comes_again_is_known_by_its_id() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let test = start(MEMBERS, &[]).await;
    let options =
        |id: u8, dry_run| Some(ChangeOptions { id: vec![id; 16].into(), shards: 0, dry_run });
    let groups = |group| {
        let members = vec!["127.0.0.1:7300".to_owned()];
        vec![Joining { group, weight: None, members }]
    };
    let changed = |reply: ChangeReply| match reply.outcome.unwrap() {
        Outcome::Changed(changed) => Ok(changed),
        Outcome::Refused(refused) => Err(refused.code()),
    };
    let done = |changed: Result<Changed, _>| changed.map(|it| (it.number, it.duplicate));
    let mut firsts = 0;
    // Whichever member is asked.
    for endpoint in endpoints(&test) {
        let mut raw = raw(&endpoint).await;
        let plan = JoinRequest { options: options(1, true), groups: groups(7) };
        let planned = changed(raw.join(plan).await.unwrap().into_inner()).unwrap();
        assert!(!planned.duplicate);
        let first = JoinRequest { options: options(1, false), groups: groups(1) };
        let (number, duplicate) =
            done(changed(raw.join(first).await.unwrap().into_inner())).unwrap();
        assert_eq!(number, 1);
        firsts += u32::from(!duplicate);
        let leave = || LeaveRequest { options: options(2, false), groups: vec![9] };
        let refused = changed(raw.leave(leave()).await.unwrap().into_inner()).unwrap_err();
        let again = changed(raw.leave(leave()).await.unwrap().into_inner()).unwrap_err();
        assert!(matches!(refused, RefusedCode::NotJoined | RefusedCode::RefusedBefore));
        assert_eq!(again, RefusedCode::RefusedBefore);
    }
    assert_eq!(firsts, 1);
    let query = QueryRequest { number: Some(2), stale: false };
    let mut raw = raw(&endpoints(&test)[0]).await;
    match raw.query(query).await.unwrap().into_inner().outcome.unwrap() {
        query_reply::Outcome::Refused(refused) => assert_eq!(refused.code(), RefusedCode::NotKept),
        query_reply::Outcome::State(state) => panic!("{state:?}"),
    }
}

/// The next message.
async fn next(stream: &mut Streaming<WatchReply>) -> WatchReply {
    stream.message().await.unwrap().unwrap()
}

#[tokio::test]
async fn a_watch_tells_all_and_then_what_changes() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let test = start(1, &[]).await;
    let client = connect(endpoints(&test));
    client.change(&join([1]), None).await.unwrap();
    let mut raw = raw(&endpoints(&test)[0]).await;
    let usual = WatchRequest { progress_ms: 60_000 };
    let mut stream = raw.watch(usual).await.unwrap().into_inner();
    let whole = next(&mut stream).await;
    assert!(whole.whole);
    let making = |placement: &Placement| placement.r#move.is_some_and(|it| it.to == 1);
    assert_eq!((whole.number, whole.groups.len()), (1, 1));
    assert!(whole.placements.len() == 16 && whole.placements.iter().all(making));

    // The group tells who it is: known is what it said, and what was settled.
    let settled = |shard| Step { shard, number: 1, kind: StepKind::Settled.into() };
    let reply = client.report(&report(1, 5, vec![settled(3), settled(99)])).await.unwrap();
    assert_eq!(
        codes(&reply),
        [RefusedCode::Unspecified, RefusedCode::Unspecified, RefusedCode::NoShard]
    );
    let (mut groups, mut placements, mut revision) = (Vec::new(), Vec::new(), whole.revision);
    while placements.is_empty() {
        let reply = next(&mut stream).await;
        assert!(!reply.whole && reply.revision > revision);
        revision = reply.revision;
        groups.extend(reply.groups);
        placements.extend(reply.placements);
    }
    assert_eq!((groups.len(), &groups[0].members[..]), (1, &["127.0.0.1:7301".to_owned()][..]));
    let rests = Placement { shard: 3, owner: 1, since: 1, last: 1, ..Placement::default() };
    assert_eq!(placements, [rests]);
    // Told again, it is nothing new; older is refused, and another group of its number too.
    let again = client.report(&report(1, 5, vec![settled(3)])).await.unwrap();
    assert_eq!(codes(&again), [RefusedCode::Unspecified; 2]);
    let old = client.report(&report(1, 4, Vec::new())).await.unwrap();
    assert_eq!(codes(&old), [RefusedCode::Stale]);
    let stranger = ReportRequest { identity: vec![9; 32].into(), ..report(1, 6, vec![settled(4)]) };
    let stranger = client.report(&stranger).await.unwrap();
    assert_eq!(codes(&stranger), [RefusedCode::OtherIdentity; 2]);

    client.change(&Change::Move { shard: 3, group: 1 }, None).await.unwrap();
    let pinned = next(&mut stream).await;
    assert_eq!((pinned.number, pinned.placements.len()), (2, 0));
}

#[tokio::test]
async fn a_watch_goes_on_whoever_is_away() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let mut test = start(MEMBERS, &["--watchers-max=1"]).await;
    let client = connect(endpoints(&test));
    client.change(&join([1]), None).await.unwrap();
    let mut raw = raw(&endpoints(&test)[0]).await;
    let often = WatchRequest { progress_ms: 100 };
    let stream = raw.watch(often).await.unwrap();
    let refused = raw.watch(often).await.unwrap_err();
    assert_eq!(format!("{:?}", refused.code()), "ResourceExhausted");
    assert!(refused.message().contains("watchers_max watchers, which is 1"), "{refused}");
    drop(stream);
    // The place is free again soon after its watcher has gone.
    let deadline = Instant::now() + DEADLINE;
    let mut stream = loop {
        match raw.watch(often).await {
            Ok(stream) => break stream.into_inner(),
            Err(_) => assert!(Instant::now() < deadline, "the place is never given back"),
        }
        sleep(Duration::from_millis(10)).await;
    };
    let whole = next(&mut stream).await;
    assert!(whole.whole);
    let nothing = next(&mut stream).await;
    let progress = WatchReply { revision: whole.revision, number: 1, ..WatchReply::default() };
    assert_eq!(nothing, progress);

    // Who holds on to a member that is cut off is sent away; the client goes on elsewhere.
    for node in 2..=MEMBERS {
        test.cluster.pause(Instance::Shardctl(node)).unwrap();
    }
    let status = loop {
        match stream.message().await {
            Ok(Some(progress)) => assert!(progress.placements.is_empty()),
            Ok(None) => panic!("the stream ended"),
            Err(status) => break status,
        }
    };
    assert_eq!(format!("{:?}", status.code()), "Unavailable", "{status}");
    assert!(status.message().contains("no leader"), "{status}");
    for node in 2..=MEMBERS {
        test.cluster.resume(Instance::Shardctl(node)).unwrap();
    }
    let mut watch = client.watch();
    assert_eq!(watch.next().await.unwrap().number, 1);
    let number = leader(&test).await;
    test.cluster.kill(Instance::Shardctl(number)).unwrap();
    client.change(&join([2]), None).await.unwrap();
    while watch.next().await.unwrap().number < 2 {}
    assert_eq!(watch.map().unwrap().groups.len(), 2);
}

#[tokio::test]
async fn what_is_refused_is_told_by_name() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let test = start(1, &[]).await;
    let ask = |arguments: &[&str]| shardctl(&test, arguments);
    let at = "1=127.0.0.1:7301";
    let many = format!("1={}", vec!["127.0.0.1:7301"; 17].join(","));
    check(&ask(&["join", at, "--shards", "16385"]), 1, &["16385", "shards_max of 16384"]);
    check(&ask(&["join", at, "--weight", "1001"]), 1, &["1001", "weight_max of 1000"]);
    check(&ask(&["join", &many]), 1, &["17", "members_max of 16"]);
    check(&ask(&["join", at, at]), 2, &["group 1 is named twice"]);
    check(&ask(&["join", "1"]), 6, &["group 1 has not reported yet"]);
    check(&ask(&["join", "1=here"]), 2, &["groups[0].members", "host:port"]);
    check(&ask(&["join", at, "--weight", "0"]), 1, &["weight 0"]);
    check(&ask(&["adopt", "1"]), 6, &["group 1 has not reported yet"]);
    assert!(well(&ask(&["join", at])).starts_with("configuration 1: 16 shards move"));
    check(&ask(&["join", at, "--weight", "2"]), 5, &["weight 1", "shardctl weigh"]);
    check(&ask(&["join", "2=127.0.0.1:7302", "--shards", "8"]), 1, &["16 shards, not 8"]);
    check(&ask(&["move", "16", "1"]), 6, &["no shard 16, only 0 to 15"]);
    check(&ask(&["move", "1", "2"]), 6, &["group 2 has not joined"]);
    check(&ask(&["plan", "leave", "2"]), 6, &["group 2 has not joined"]);
    check(&ask(&["weigh", "1", "0"]), 1, &["weight 0"]);
    check(&ask(&["adopt", "1"]), 1, &["no configuration yet"]);
    check(&ask(&["query", "7"]), 6, &["no configuration 7", "from 0 to 1"]);
    check(&ask(&["--json", "leave", "2"]), 6, &["\"exit_code\":6"]);
    let nobody = ["shardctl", "--endpoints", "127.0.0.1:9", "--timeout", "300ms", "status"];
    check(&flotilla(&nobody), 3, &["unavailable"]);
    let nobody = ["shardctl", "--endpoints", "127.0.0.1:9", "--timeout", "300ms", "wait"];
    check(&flotilla(&nobody), 3, &["nobody answered"]);
    check(&flotilla(&["shardctl", "serve", "--colour"]), 64, &["--colour"]);
    check(&flotilla(&["shardctl", "serve", "--shards", "0"]), 78, &["shards is 0"]);

    let mut raw = raw(&endpoints(&test)[0]).await;
    let wrong =
        Some(ChangeOptions { id: Bytes::from_static(b"short"), ..ChangeOptions::default() });
    let refused = raw.adopt(AdoptRequest { options: wrong, group: 1 }).await.unwrap_err();
    assert_eq!(format!("{:?}", refused.code()), "InvalidArgument");
    assert!(refused.message().contains("options.id has 5 bytes"), "{refused}");
    assert_eq!(refused.metadata().get("flotilla-executed").unwrap(), "never");
    let step = Step { shard: 0, number: 1, kind: StepKind::Settled.into() };
    let steps = raw.report(report(1, 1, vec![step; 1_025])).await.unwrap_err();
    assert!(steps.message().contains("the limit steps_max is 1024"), "{steps}");
}

#[tokio::test]
async fn a_recovered_controller_goes_on_with_higher_numbers() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let mut test = start(MEMBERS, &[]).await;
    let all = endpoints(&test);
    connect(all.clone()).change(&join([1]), None).await.unwrap();
    let survivor = connect(vec![all[0].clone()]);
    let deadline = Instant::now() + DEADLINE;
    let before = loop {
        let state = survivor.query(None, true).await.unwrap();
        if state.latest == 1 {
            break state;
        }
        assert!(Instant::now() < deadline, "the survivor never learns of it");
        sleep(Duration::from_millis(10)).await;
    };
    for node in 1..=MEMBERS {
        test.cluster.kill(Instance::Shardctl(node)).unwrap();
    }
    let dir = test.cluster.dir().join("shardctl-1").display().to_string();
    well(&flotilla(&["members", "recover", "--dir", &dir, "--yes"]));
    test.cluster.restart(Instance::Shardctl(1)).unwrap();
    ready(&mut test.cluster).await;
    let state = survivor.query(None, false).await.unwrap();
    assert_eq!((state.latest, &state.groups), (1, &before.groups));
    let gap = 1 << 32;
    assert_eq!(state.revision, before.revision + gap);
    // What was under way may still be told settled, under the number that it has.
    assert!(state.placements.iter().all(|it| (it.last, it.recovered_at) == (1, 1)));
    let changed = survivor.change(&join([2]), None).await.unwrap();
    assert_eq!((changed.number, changed.moves.len()), (gap + 2, 8));
}
