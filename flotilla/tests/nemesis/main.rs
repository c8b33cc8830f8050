//! Linearizability, proven from outside: real processes under a nemesis, clients of two kinds who
//! record what they asked and what they were told, and a judge who knows nothing else.
//!
//! `FLOTILLA_NEMESIS_SEED` repeats the order of the faults and what clients ask for; what comes of it
//! is another run all the same. A run that saw too little fails.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod answers;
mod clients;
mod controls;
mod disk;
mod faults;
mod group;
mod history;
mod leaders;
mod network;
mod report;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{KvClient, Options};
use rand::SeedableRng;
use rand::rngs::StdRng;
use support::{Depth, Watchdog};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use clients::{Appetite, Caller, Client};
use controls::Wrong;
use faults::{Crowd, Fault, Nemesis};
use group::Group;
use history::{COLD, Generation, Generations, HOT, Record, Visit, judge};
use report::{Gates, Report, Tally};

/// How long the library tries: those of the first kind give up while the others would still be
/// answered.
const DEADLINES: [Duration; 2] = [Duration::from_millis(800), Duration::from_secs(10)];

/// How many clients use the library.
const LIBRARY_CLIENTS: usize = 10;

/// The callers that each member has who ask nobody else.
const CALLERS: [Appetite; 3] = [Appetite::Everything, Appetite::Everything, Appetite::Reads];

/// How long who judges tries to read a key at its end, and the nemesis tries to write.
const PATIENCE: Duration = Duration::from_secs(30);

/// The client numbers of those who read at the end.
const READERS: u64 = 1_000;

/// Those of the crowds that come to members which stood still are higher.
const CROWDS: u64 = 1_000_000;

/// Held by the run that has the machine for itself.
static MACHINE: Mutex<()> = Mutex::const_new(());

/// How much is done.
struct Plan {
    faults: &'static [Fault],
    length: Duration,
    /// It takes longer only until the gates are passed, and never longer than this.
    length_max: Duration,
    hold_ms: std::ops::Range<u64>,
    rest: Duration,
    gates: Gates,
}

impl Plan {
    fn asked(faults: &'static [Fault], operations: [u64; 3], length: [u64; 3]) -> Self {
        let of = |depth: [u64; 3]| match Depth::asked() {
            Depth::Quick => depth[0],
            Depth::Ci => depth[1],
            Depth::Deep => depth[2],
        };
        let length = Duration::from_secs(of(length));
        Self {
            faults,
            length,
            length_max: length * 2 + Duration::from_secs(60),
            hold_ms: 300..of([1_500, 5_000, 5_000]),
            rest: Duration::from_millis(of([300, 300, 1_000])),
            gates: Gates {
                operations: of(operations),
                each_verb: of([20, 500, 10_000]),
                faults: of([3, faults.len() as u64, 10 * faults.len() as u64]),
                each_fault: of([0, 1, 10]),
                leader_changes: usize::try_from(of([1, 5, 50])).unwrap(),
            },
        }
    }
}

fn seed() -> u64 {
    match std::env::var("FLOTILLA_NEMESIS_SEED") {
        Ok(seed) => seed.parse().expect("FLOTILLA_NEMESIS_SEED is a number"),
        Err(_) => rand::random(),
    }
}

/// What the judge of a run knows in the end.
#[derive(Default)]
struct Judged {
    records: u64,
    /// A history that was right, and the same with something wrong in it.
    sample: Option<(Vec<Record>, [Wrong; 3])>,
}

/// Judges one generation after the other until there is none left, or one can't be.
async fn judge_all(
    endpoints: Vec<String>,
    begin: Instant,
    seed: u64,
    tally: Arc<Tally>,
    mut retired: mpsc::UnboundedReceiver<Arc<Generation>>,
    unjudged: watch::Sender<usize>,
) -> Result<Judged, String> {
    let mut reader = Client::new(Caller::library(endpoints, PATIENCE), READERS, seed, tally);
    let mut judged = Judged::default();
    while let Some(generation) = retired.recv().await {
        generation.left().await;
        reader.read_all(&Visit::new(generation.clone(), begin)).await;
        let (records, outcome) = tokio::task::spawn_blocking(move || {
            let records = generation.take_records();
            let outcome = judge(&records).map_err(|what| {
                let path = history::keep(&records, &generation.name);
                format!("{what}\nthe whole history is in {}", path.display())
            });
            (records, outcome)
        })
        .await
        .unwrap();
        judged.records += outcome?;
        unjudged.send_modify(|count| *count -= 1);
        if judged.sample.is_none() {
            judged.sample = controls::plant(&records).map(|planted| (records, planted));
        }
    }
    Ok(judged)
}

/// Everybody who asks.
fn spawn_clients(
    group: &Group,
    seed: u64,
    tally: &Arc<Tally>,
    [hot, cold]: [&Arc<Generations>; 2],
    stop: &watch::Receiver<bool>,
) -> JoinSet<()> {
    let endpoints = group.endpoints();
    let library = (0..LIBRARY_CLIENTS)
        .map(|number| Caller::library(endpoints.clone(), DEADLINES[number % DEADLINES.len()]))
        .map(|caller| (caller, Appetite::Everything));
    let bare = CALLERS.into_iter().flat_map(|appetite| {
        endpoints.iter().map(move |endpoint| (Caller::bare(endpoint), appetite))
    });
    let mut clients = JoinSet::new();
    for (number, (caller, appetite)) in (1..).zip(library.chain(bare)) {
        let client = Client::new(caller, number, seed, tally.clone()).with(appetite);
        clients.spawn(client.work(hot.clone(), cold.clone(), stop.clone()));
    }
    clients
}

/// Strikes until it was enough, and nobody has found anything.
async fn torment(
    group: &mut Group,
    plan: &Plan,
    crowd: Crowd,
    judge: &JoinHandle<Result<Judged, String>>,
) -> BTreeMap<&'static str, u64> {
    let begin = Instant::now();
    let probe = KvClient::connect(group.endpoints(), Options::with_deadline(PATIENCE)).unwrap();
    let (rng, tally) = (StdRng::seed_from_u64(crowd.seed), crowd.tally.clone());
    let mut nemesis = Nemesis { rng, hold_ms: plan.hold_ms.clone(), probe, crowd };
    let mut faults: BTreeMap<_, u64> = plan.faults.iter().map(|it| (it.name(), 0)).collect();
    let mut ahead = Vec::new();
    loop {
        let enough = tally.answered() >= plan.gates.operations
            && faults.values().sum::<u64>() >= plan.gates.faults
            && faults.values().all(|times| *times >= plan.gates.each_fault);
        let over = begin.elapsed() >= plan.length && enough;
        if over || begin.elapsed() >= plan.length_max || judge.is_finished() {
            return faults;
        }
        let fault = ahead.pop().unwrap_or_else(|| {
            ahead = nemesis.shuffled(plan.faults);
            ahead.pop().unwrap()
        });
        eprintln!("{:6.1} s: {}", begin.elapsed().as_secs_f64(), fault.name());
        nemesis.strike(fault, group).await;
        *faults.get_mut(fault.name()).unwrap() += 1;
        tokio::time::sleep(plan.rest).await;
    }
}

/// A whole run.
async fn run(mut group: Group, plan: Plan) {
    let (seed, begin) = (seed(), Instant::now());
    eprintln!("FLOTILLA_NEMESIS_SEED={seed}");
    let _watchdog = Watchdog::new(plan.length_max + Duration::from_secs(240));
    let tally = Arc::new(Tally::new());
    let (retired, inbox) = mpsc::unbounded_channel();
    let unjudged = watch::Sender::new(0);
    let hot = Arc::new(Generations::new(HOT, begin, retired.clone(), unjudged.clone()));
    let cold = Arc::new(Generations::new(COLD, begin, retired, unjudged.clone()));
    let judge = judge_all(group.endpoints(), begin, seed, tally.clone(), inbox, unjudged);
    let judge = tokio::spawn(judge);
    let leaders = leaders::Leaders::watch(group.endpoints());
    let (stop, stopped) = watch::channel(false);
    let mut clients = spawn_clients(&group, seed, &tally, [&hot, &cold], &stopped);
    let clients_count = clients.len() as u64;

    let crowd = Crowd { hot: hot.clone(), tally: tally.clone(), seed, last: CROWDS };
    let faults = torment(&mut group, &plan, crowd, &judge).await;
    stop.send_replace(true);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    hot.end();
    cold.end();
    // Nobody else can send to the judge.
    drop((hot, cold));
    let judged = judge.await.unwrap();
    let length = begin.elapsed();
    group.check_alive();
    let leader_changes = leaders.changes();
    let records = judged.as_ref().map_or(0, |judged| judged.records);
    let report = Report {
        seed,
        length,
        clients: clients_count,
        tally,
        faults,
        leader_changes,
        judged: records,
    };
    eprintln!("{report}");
    let judged = judged.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    let missing = report.inconclusive(plan.gates);
    assert!(missing.is_empty(), "seed {seed}: inconclusive: only {}", missing.join(", "));
    let (sample, planted) = judged.sample.expect("a history has room for what is wrong");
    controls::check(&sample, &planted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_linearizable_under_kills_pauses_and_slow_links() {
    let _alone = MACHINE.lock().await;
    let plan = Plan::asked(&Fault::WITHOUT_ROOT, [2_000, 100_000, 200_000], [10, 45, 600]);
    run(Group::behind_proxies(3).await, plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_linearizable_under_partitions_and_lost_power() {
    const NAME: &str = "histories_are_linearizable_under_partitions_and_lost_power";
    if network::is_sandbox() {
        network::end_with_parent();
        let plan = Plan::asked(&Fault::WITH_ROOT, [2_000, 50_000, 1_000_000], [10, 50, 3_600]);
        run(Group::in_namespaces(5).await, plan).await;
        return;
    }
    let _alone = MACHINE.lock().await;
    match tokio::task::spawn_blocking(|| network::enter(NAME)).await.unwrap() {
        Some(status) => assert!(status.success(), "in namespaces of its own: {status}"),
        None => eprintln!("skipped: {NAME} needs network namespaces, nft and loop mounts"),
    }
}
