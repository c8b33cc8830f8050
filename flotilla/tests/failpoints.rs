//! A member of three dies at each named place of the host, while clients append, and joins again:
//! every acknowledged append is there once, in one order, on all members.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client::log::{LogEntry, Range};
use client::{Error, LogClient, Options};
use flotilla::local::Instance;
use proto::admin::StatusReply;
use raftd::failpoint::{Failpoint, VARIABLE};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::{Depth, FLOTILLA, TestCluster, Watchdog};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const MEMBERS: u16 = 3;
const CLIENTS: usize = 4;

/// How long anything may take that is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

/// Clients append for so long, and then pause: what can wait waits until nobody writes.
const BURST: Duration = Duration::from_millis(700);
const PAUSE: Duration = Duration::from_millis(350);

const ABORTED: Option<i32> = Some(6);

/// A member that dies.
#[derive(Debug)]
struct Death {
    at: Failpoint,
    /// At which visit.
    visit: u64,
    /// Whether it leads when it dies, if it comes to that in time.
    leads: bool,
}

/// How often a member comes to a place.
enum Visits {
    /// With every write.
    Often,
    /// Some times in a second.
    Sometimes,
    /// When it starts, or when it votes.
    Seldom,
    /// When the log has outgrown the member.
    Behind,
    /// A daemon never; `recover.rs` looks at these.
    Never,
}

fn visits(at: Failpoint) -> Visits {
    match at {
        Failpoint::LogAppendBefore
        | Failpoint::LogSyncBefore
        | Failpoint::LogSyncAfter
        | Failpoint::FloorWriteBefore
        | Failpoint::AnswerBefore
        | Failpoint::ApplyBefore
        | Failpoint::ApplyAfter => Visits::Often,
        Failpoint::FloorSyncBefore
        | Failpoint::FloorSyncAfter
        | Failpoint::SnapshotCreateBefore
        | Failpoint::SnapshotCreateBetween
        | Failpoint::SnapshotCreateAfter
        | Failpoint::CompactRootBefore
        | Failpoint::CompactRootAfter
        | Failpoint::CompactSweepBefore
        | Failpoint::CompactSweepAfter
        | Failpoint::CompactRepackAfter
        | Failpoint::CompactChunksAfter => Visits::Sometimes,
        Failpoint::OpenFloorBefore | Failpoint::FloorWriteBetween => Visits::Seldom,
        Failpoint::SnapshotInstallBetween
        | Failpoint::SnapshotInstallBefore
        | Failpoint::SnapshotInstallAfter => Visits::Behind,
        Failpoint::RecoverIdentityBefore
        | Failpoint::RecoverEntryBefore
        | Failpoint::RecoverEndBefore
        | Failpoint::RecoverEndAfter => Visits::Never,
    }
}

impl Death {
    fn draw(at: Failpoint, rng: &mut StdRng) -> Self {
        let leads = rng.random();
        let visit = match (visits(at), leads) {
            (Visits::Often, false) => rng.random_range(1..400),
            // It takes a while to lead.
            (Visits::Often, true) => rng.random_range(600..1_200),
            (Visits::Sometimes, _) => rng.random_range(1..=3),
            (Visits::Seldom | Visits::Behind | Visits::Never, _) => 1,
        };
        Self { at, visit, leads }
    }
}

/// What a client asked to be appended, and where it is, if that was told.
type Append = (Bytes, Option<u64>);

async fn append(name: String, client: LogClient, stop: Arc<AtomicBool>) -> Vec<Append> {
    let mut appends = Vec::new();
    let mut burst = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let payload = Bytes::from(format!("{name}.{}", appends.len()));
        let index = match client.append(payload.clone()).await {
            Ok(index) => Some(index),
            Err(Error::Unknown(_)) => None,
            Err(Error::Rejected(rejected)) => panic!("{name}: {rejected}"),
        };
        appends.push((payload, index));
        if burst.elapsed() >= BURST {
            sleep(PAUSE).await;
            burst = Instant::now();
        }
    }
    appends
}

struct Rounds {
    test: TestCluster,
    client: LogClient,
    /// How many members died as leaders.
    leaders: usize,
    /// How many appends were acknowledged.
    acknowledged: usize,
}

impl Rounds {
    async fn start() -> Self {
        let test = TestCluster::start(0, 0, |plan| {
            let settings = plan.dir.join("raftd.toml");
            let text = "[group]\nsnapshot_log_bytes_min = 20000\nretained_bytes = 1000\nretained_bytes_max = 1000\n";
            std::fs::write(&settings, text).unwrap();
            plan.log = MEMBERS;
            plan.further.raftd = vec![format!("--config={}", settings.display())];
        })
        .await;
        let endpoints = test.cluster.description().log_endpoints();
        let client = LogClient::connect(endpoints, Options::with_deadline(DEADLINE)).unwrap();
        Self { test, client, leaders: 0, acknowledged: 0 }
    }

    fn endpoint(&self, node: u16) -> String {
        self.test.cluster.description().log_endpoints()[usize::from(node) - 1].clone()
    }

    async fn status(&self, node: u16) -> Option<StatusReply> {
        client::admin::status(&self.endpoint(node), Duration::from_millis(500)).await.ok()
    }

    /// Which of the members leads, except one.
    async fn leader_but(&self, but: u16) -> u16 {
        let deadline = Instant::now() + DEADLINE;
        loop {
            for node in (1..=MEMBERS).filter(|node| *node != but) {
                if let Some(status) = self.status(node).await
                    && status.leader == u64::from(node)
                {
                    return node;
                }
            }
            assert!(Instant::now() < deadline, "nobody leads");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// One member dies and comes back, while clients append.
    async fn round(&mut self, number: usize, death: &Death, rng: &mut StdRng) {
        let last = self.client.status().await.unwrap().last_index;
        self.client.trim(last + 1).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for me in 0..CLIENTS {
            let name = format!("{number}.{me}");
            clients.spawn(append(name, self.client.clone(), stop.clone()));
        }
        let leader = self.leader_but(0).await;
        let follower = (leader + rng.random_range(0..MEMBERS - 1)) % MEMBERS + 1;
        let victim = if death.leads { leader } else { follower };
        self.die(victim, death).await;
        let instance = Instance::Raftd(victim);
        self.test.cluster.process(instance).unwrap().set_environment(Vec::new());
        self.test.cluster.restart(instance).unwrap();
        self.test.cluster.ready_one(instance, Instant::now() + DEADLINE).await.unwrap();
        stop.store(true, Ordering::Relaxed);
        let appends = clients.join_all().await.concat();
        self.acknowledged += appends.iter().filter(|(_, index)| index.is_some()).count();
        self.check(last + 1, &appends).await;
    }

    /// Starts a member anew that dies where and when it is told, and waits for that.
    async fn die(&mut self, victim: u16, death: &Death) {
        let instance = Instance::Raftd(victim);
        self.test.cluster.kill(instance).unwrap();
        let deadline = Instant::now() + DEADLINE;
        if matches!(visits(death.at), Visits::Behind) {
            // The dead have no more of the log than the leader has now.
            let mut last = None;
            loop {
                let leader = self.leader_but(victim).await;
                if let Some(status) = self.status(leader).await {
                    let last = *last.get_or_insert(status.last_index);
                    if status.first_index > last + 1 {
                        break;
                    }
                }
                assert!(Instant::now() < deadline, "the log is never cut");
                sleep(Duration::from_millis(20)).await;
            }
        }
        let asked = format!("{}=crash@{}", death.at.name(), death.visit);
        let process = self.test.cluster.process(instance).unwrap();
        process.set_environment(vec![(VARIABLE.to_owned(), asked)]);
        process.start().unwrap();
        let mut led = false;
        let ended = loop {
            if let Some(ended) = self.test.cluster.take_ended().into_iter().next() {
                break ended;
            }
            assert!(Instant::now() < deadline, "{instance} does not die: {death:?}");
            if death.leads && !led && !matches!(visits(death.at), Visits::Seldom) {
                led = self.hand_over(victim).await;
            }
            sleep(Duration::from_millis(20)).await;
        };
        self.leaders += usize::from(led);
        assert_eq!((ended.instance, ended.status.signal()), (instance, ABORTED), "{ended}");
        let words = ended.tail.lines().last().unwrap_or_default();
        let told = words.contains("ERROR") && words.contains("crashing at a failpoint");
        assert!(told && words.contains(death.at.name()), "{death:?}: {}", ended.tail);
    }

    /// Makes a member the leader. False: not yet.
    async fn hand_over(&self, to: u16) -> bool {
        for node in (1..=MEMBERS).filter(|node| *node != to) {
            let (endpoint, limit) = (self.endpoint(node), Duration::from_secs(2));
            match client::admin::transfer(&endpoint, Some(to.into()), limit).await {
                Ok(leader) if leader == u64::from(to) => return true,
                Ok(_) | Err(_) => {}
            }
        }
        false
    }

    /// What was acknowledged is where it was told, nothing is there twice or unasked, each client's
    /// is in its order, and all members have the same.
    async fn check(&self, from: u64, appends: &[Append]) {
        let last = self.client.status().await.unwrap().last_index;
        let mut all: Vec<Vec<LogEntry>> = Vec::new();
        for node in 1..=MEMBERS {
            let options = Options::with_deadline(DEADLINE);
            let client = LogClient::connect(vec![self.endpoint(node)], options).unwrap();
            let range = Range { from_index: from, to_index: Some(last), stale: false };
            let mut tail = client.tail(range);
            let mut entries = Vec::new();
            while let Some(entry) = tail.next().await.unwrap() {
                entries.push(entry);
            }
            all.push(entries);
        }
        assert!(all.iter().all(|entries| *entries == all[0]), "the members differ");
        let mut places = BTreeMap::new();
        for entry in &all[0] {
            let before = places.insert(entry.payload.clone(), entry.index);
            assert_eq!(before, None, "{:?} is there twice", entry.payload);
        }
        let mut before = (Bytes::new(), 0);
        for (payload, index) in appends {
            let client = payload.slice(..payload.iter().rposition(|byte| *byte == b'.').unwrap());
            let place = places.remove(payload);
            assert!(index.is_none() || place == *index, "{payload:?} at {place:?}, not {index:?}");
            if let Some(place) = place {
                assert!(before.0 != client || before.1 < place, "{payload:?} is out of order");
                before = (client, place);
            }
        }
        assert!(places.is_empty(), "nobody asked for {places:?}");
    }
}

/// Which places, in which order: all of them, or those of which a quick look is made.
fn places(depth: Depth) -> Vec<Failpoint> {
    let of_daemons = |at: &Failpoint| !matches!(visits(*at), Visits::Never);
    let all = Failpoint::ALL.iter().copied().filter(of_daemons);
    match depth {
        Depth::Quick => vec![
            Failpoint::LogSyncAfter,
            Failpoint::FloorWriteBetween,
            Failpoint::SnapshotInstallAfter,
            Failpoint::CompactRootAfter,
        ],
        Depth::Ci => all.collect(),
        Depth::Deep => all.collect::<Vec<_>>().repeat(10),
    }
}

#[tokio::test]
async fn a_member_may_die_at_any_named_place() {
    let places = places(Depth::asked());
    let _watchdog = Watchdog::new(DEADLINE + places.len() as u32 * Duration::from_secs(30));
    let seed = std::env::var("FLOTILLA_FAILPOINT_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rounds = Rounds::start().await;
    for (number, at) in places.iter().enumerate() {
        let death = Death::draw(*at, &mut rng);
        let begun = Instant::now();
        rounds.round(number, &death, &mut rng).await;
        let Death { at, visit, leads } = death;
        eprintln!("{}@{visit}, leader: {leads}, {:?}", at.name(), begun.elapsed());
    }
    let (deaths, leaders) = (places.len(), rounds.leaders);
    eprintln!(
        "{deaths} deaths, {leaders} of leaders, {} appends acknowledged",
        rounds.acknowledged
    );
    assert!(rounds.acknowledged > 50 * deaths, "the clients hardly appended");
    assert!(deaths < 20 || leaders > 0, "no leader ever died");
}

#[test]
fn an_unknown_place_is_refused_with_the_names_of_all() {
    for daemon in ["kvd", "raftd", "mr-coordinator"] {
        let output = Command::new(FLOTILLA)
            .args([daemon, "--data", "/nowhere"])
            .env(VARIABLE, "log.sink.before=crash")
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{complaint}");
        for point in Failpoint::ALL {
            assert!(complaint.contains(point.name()), "{complaint}");
        }
    }
}
