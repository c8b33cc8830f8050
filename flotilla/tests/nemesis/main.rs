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
mod fleet;
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
use rand::seq::SliceRandom;
use support::{Depth, Watchdog};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use clients::{Appetite, Caller, Client};
use controls::Wrong;
use faults::{Crowd, Fault, Nemesis};
use fleet::{Fleet, Upheaval};
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
struct Plan<F: 'static> {
    faults: &'static [F],
    length: Duration,
    /// It takes longer only until the gates are passed, and never longer than this.
    length_max: Duration,
    hold_ms: std::ops::Range<u64>,
    rest: Duration,
    gates: Gates,
}

impl<F> Plan<F> {
    fn asked(faults: &'static [F], operations: [u64; 3], length: [u64; 3]) -> Self {
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
    caller: Caller,
    begin: Instant,
    seed: u64,
    tally: Arc<Tally>,
    mut retired: mpsc::UnboundedReceiver<Arc<Generation>>,
    unjudged: watch::Sender<usize>,
) -> Result<Judged, String> {
    let mut reader = Client::new(caller, READERS, seed, tally);
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

/// Those who are tormented.
trait Tormented: Sized {
    /// How they are tormented.
    type Fault: Copy + 'static;

    /// Everybody who asks them.
    fn callers(&self) -> Vec<(Caller, Appetite)>;

    /// One who asks them patiently.
    fn reader(&self) -> Caller;

    /// The members of the Raft groups whose leaders are watched, group by group.
    fn watched(&self) -> Vec<Vec<String>>;

    /// Strikes until it was enough, and nobody has found anything.
    async fn torment(
        &mut self,
        plan: &Plan<Self::Fault>,
        crowd: Crowd,
        judge: &JoinHandle<Result<Judged, String>>,
    ) -> BTreeMap<&'static str, u64>;

    /// Looks at them when all is over.
    async fn check(&mut self);
}

/// How the torment goes on.
struct Torment<'a, F: 'static> {
    plan: &'a Plan<F>,
    begin: Instant,
    faults: BTreeMap<&'static str, u64>,
    ahead: Vec<F>,
}

impl<'a, F: Copy> Torment<'a, F> {
    fn new(plan: &'a Plan<F>, name: fn(F) -> &'static str) -> Self {
        let faults = plan.faults.iter().map(|it| (name(*it), 0)).collect();
        Self { plan, begin: Instant::now(), faults, ahead: Vec::new() }
    }

    /// The next fault, which is told; none: it was enough.
    fn next(&mut self, rng: &mut StdRng, tally: &Tally, name: fn(F) -> &'static str) -> Option<F> {
        let gates = self.plan.gates;
        let enough = tally.answered() >= gates.operations
            && self.faults.values().sum::<u64>() >= gates.faults
            && self.faults.values().all(|times| *times >= gates.each_fault);
        let (past, plan) = (self.begin.elapsed(), self.plan);
        if past >= plan.length && enough || past >= plan.length_max {
            return None;
        }
        let fault = self.ahead.pop().unwrap_or_else(|| {
            self.ahead = plan.faults.to_vec();
            self.ahead.shuffle(rng);
            self.ahead.pop().unwrap()
        });
        eprintln!("{:6.1} s: {}", past.as_secs_f64(), name(fault));
        *self.faults.get_mut(name(fault)).unwrap() += 1;
        Some(fault)
    }
}

impl Tormented for Group {
    type Fault = Fault;

    fn callers(&self) -> Vec<(Caller, Appetite)> {
        let endpoints = self.endpoints();
        let library = (0..LIBRARY_CLIENTS)
            .map(|number| Caller::library(endpoints.clone(), DEADLINES[number % DEADLINES.len()]))
            .map(|caller| (caller, Appetite::Everything));
        let bare = CALLERS.into_iter().flat_map(|appetite| {
            endpoints.iter().map(move |endpoint| (Caller::bare(endpoint), appetite))
        });
        library.chain(bare).collect()
    }

    fn reader(&self) -> Caller {
        Caller::library(self.endpoints(), PATIENCE)
    }

    fn watched(&self) -> Vec<Vec<String>> {
        vec![self.endpoints()]
    }

    async fn torment(
        &mut self,
        plan: &Plan<Fault>,
        crowd: Crowd,
        judge: &JoinHandle<Result<Judged, String>>,
    ) -> BTreeMap<&'static str, u64> {
        let probe = KvClient::connect(self.endpoints(), Options::with_deadline(PATIENCE)).unwrap();
        let (rng, tally) = (StdRng::seed_from_u64(crowd.seed), crowd.tally.clone());
        let mut nemesis = Nemesis { rng, hold_ms: plan.hold_ms.clone(), probe, crowd };
        let mut torment = Torment::new(plan, Fault::name);
        while !judge.is_finished()
            && let Some(fault) = torment.next(&mut nemesis.rng, &tally, Fault::name)
        {
            nemesis.strike(fault, self).await;
            tokio::time::sleep(plan.rest).await;
        }
        torment.faults
    }

    async fn check(&mut self) {
        self.check_alive();
    }
}

/// A whole run.
async fn run<T: Tormented>(mut group: T, plan: Plan<T::Fault>) {
    let (seed, begin) = (seed(), Instant::now());
    eprintln!("FLOTILLA_NEMESIS_SEED={seed}");
    let _watchdog = Watchdog::new(plan.length_max + Duration::from_secs(240));
    let tally = Arc::new(Tally::new());
    let (retired, inbox) = mpsc::unbounded_channel();
    let unjudged = watch::Sender::new(0);
    let hot = Arc::new(Generations::new(HOT, begin, retired.clone(), unjudged.clone()));
    let cold = Arc::new(Generations::new(COLD, begin, retired, unjudged.clone()));
    let judge = judge_all(group.reader(), begin, seed, tally.clone(), inbox, unjudged);
    let judge = tokio::spawn(judge);
    let leaders = leaders::Leaders::watch(group.watched());
    let (stop, stopped) = watch::channel(false);
    let mut clients = JoinSet::new();
    for (number, (caller, appetite)) in (1..).zip(group.callers()) {
        let client = Client::new(caller, number, seed, tally.clone()).with(appetite);
        clients.spawn(client.work(hot.clone(), cold.clone(), stopped.clone()));
    }
    let clients_count = clients.len() as u64;

    let crowd = Crowd { hot: hot.clone(), tally: tally.clone(), seed, last: CROWDS };
    let faults = group.torment(&plan, crowd, &judge).await;
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
    group.check().await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_linearizable_while_groups_come_and_go() {
    let _alone = MACHINE.lock().await;
    let plan = Plan::asked(&Upheaval::ALL, [1_000, 20_000, 100_000], [10, 60, 300]);
    run(Fleet::start().await, plan).await;
}
