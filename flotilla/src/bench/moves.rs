//! `flotilla bench moves`: what clients notice of shards that move.
//!
//! Two groups share the shards. One shard is filled, and moved to and fro while clients write to all
//! others at a steady rate, and one client to it. What others wait is told with a move under way and
//! without, in turns, so that a machine that is slow for a while is slow for both. A shard was not
//! served for as long as its client had to wait between two answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use client::KvClient;
use client::shards::Change;
use daemon::Failure;
use hdrhistogram::Histogram;
use proto::shard_of;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::groups::{Groups, failed};
use super::measure::histogram;
use super::own::READY_TIMEOUT;
use super::{Report, Usual};
use crate::output::Table;
use crate::units;

/// How many shards there are.
const SHARDS: u32 = 16;

/// The shard that moves.
const MOVED: u32 = 0;

/// How many keys of each other shard are written.
const KEYS: u64 = 1_000;

/// How long nothing moves between two moves.
const REST: Duration = Duration::from_secs(3);

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// How much the shard holds that moves
    #[arg(long, value_name = "BYTES", value_parser = units::size, default_value = "64MiB")]
    shard_bytes: u64,
    /// How often it moves
    #[arg(long, value_name = "COUNT", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    moves: u32,
    /// How many puts a second other shards get
    #[arg(long, value_name = "COUNT", default_value_t = 2_000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Kill the leader of the group that gives the shard away, in the middle of each move
    #[arg(long)]
    kill: bool,
    #[command(flatten)]
    usual: Usual,
}

/// What the clients know of each other.
struct Waits {
    moving: AtomicBool,
    failures: AtomicU64,
    stop: AtomicBool,
}

/// Latencies in microseconds.
struct Latencies {
    resting: Histogram<u64>,
    moving: Histogram<u64>,
}

/// What one move came to.
#[derive(Debug)]
struct Moved {
    took: Duration,
    /// The longest that the shard's client waited between two answers.
    unserved: Duration,
}

/// Measures, and tells.
pub(super) async fn run(arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let usual = &arguments.usual;
    let mut store = Groups::start(usual.dir(), 2, 2, usual.members, SHARDS).await?;
    let kv = store.kv()?;
    report.note("filling the shard that moves");
    let (tag, count) = (tag(MOVED), arguments.shard_bytes / usual.value_bytes.max(1));
    let keys = (0..count).map(|number| format!("{tag}/{number:08}"));
    Groups::fill(&kv, keys, &usual.value()).await?;

    let waits = Arc::new(Waits {
        moving: AtomicBool::new(false),
        failures: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let mut loads = JoinSet::new();
    // Enough of them that one which waits holds nobody up.
    let clients = (arguments.rate / 20).clamp(1, 256);
    for number in 0..clients {
        let every = Duration::from_secs(1) * clients / arguments.rate;
        loads.spawn(write_others(kv.clone(), number, every, usual.value(), waits.clone()));
    }
    let mut moves = Vec::new();
    for number in 1..=arguments.moves {
        sleep(REST).await;
        report.note(&format!("move {number} of {}", arguments.moves));
        moves.push(one_move(&mut store, &kv, arguments, &waits).await?);
    }
    waits.stop.store(true, Relaxed);
    let mut latencies = Latencies { resting: histogram()?, moving: histogram()? };
    while let Some(joined) = loads.join_next().await {
        let Latencies { resting, moving } = joined.map_err(failed)??;
        latencies.resting.add(&resting).map_err(failed)?;
        latencies.moving.add(&moving).map_err(failed)?;
    }
    store.own.cluster.stop().await;
    tell(arguments, report, &moves, &latencies, waits.failures.load(Relaxed))
}

/// A word that puts a key into a shard.
fn tag(shard: u32) -> String {
    let tags = (0_u32..).map(|number| format!("{{{number}}}"));
    let mut there = tags.filter(|tag| shard_of(tag.as_bytes(), SHARDS) == shard);
    there.next().expect("each shard has some of all words")
}

/// Writes to the shards that don't move, once in a while each time; a request that is late because
/// the one before it was slow has waited since it was due.
async fn write_others(
    kv: KvClient,
    client: u32,
    every: Duration,
    value: Bytes,
    waits: Arc<Waits>,
) -> Result<Latencies, Failure> {
    let tags: Vec<_> = (0..SHARDS).filter(|shard| *shard != MOVED).map(tag).collect();
    let mut latencies = Latencies { resting: histogram()?, moving: histogram()? };
    let mut due = interval(every);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in u64::from(client).. {
        let asked = due.tick().await;
        if waits.stop.load(Relaxed) {
            break;
        }
        let tag = &tags[usize::try_from(number).unwrap_or(0) % tags.len()];
        let before = waits.moving.load(Relaxed);
        if kv.put(format!("{tag}/{:04}", number % KEYS), value.clone()).await.is_err() {
            waits.failures.fetch_add(1, Relaxed);
        }
        let micros = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        // What began in the one and ended in the other says nothing.
        match (before, waits.moving.load(Relaxed)) {
            (false, false) => latencies.resting.saturating_record(micros),
            (true, true) => latencies.moving.saturating_record(micros),
            (false, true) | (true, false) => {}
        }
    }
    Ok(latencies)
}

/// Moves the shard to the other group, while one client writes to it.
async fn one_move(
    store: &mut Groups,
    kv: &KvClient,
    arguments: &Arguments,
    waits: &Arc<Waits>,
) -> Result<Moved, Failure> {
    let map = store.settle().await?;
    let owner = map.placements.get(MOVED as usize).map_or(1, |placement| placement.owner);
    let over = Arc::new(AtomicBool::new(false));
    let value = arguments.usual.value();
    let writer = tokio::spawn(write_moved(kv.clone(), value, over.clone(), waits.clone()));
    let began = Instant::now();
    waits.moving.store(true, Relaxed);
    let change = Change::Move { shard: MOVED, group: 3 - owner };
    store.shards.change(&change, None).await.map_err(failed)?;
    let killed = match arguments.kill {
        true => Some(store.kill_leader_of(owner, MOVED).await?),
        false => None,
    };
    store.settle().await?;
    waits.moving.store(false, Relaxed);
    let took = began.elapsed();
    over.store(true, Relaxed);
    if let Some(killed) = killed {
        store.own.cluster.restart(killed)?;
        store.own.cluster.ready(READY_TIMEOUT).await?;
    }
    Ok(Moved { took, unserved: writer.await.map_err(failed)? })
}

/// Writes to the shard that moves, one put after the other; the longest wait for an answer.
async fn write_moved(
    kv: KvClient,
    value: Bytes,
    over: Arc<AtomicBool>,
    waits: Arc<Waits>,
) -> Duration {
    let (tag, mut longest) = (tag(MOVED), Duration::ZERO);
    let mut answered = Instant::now();
    for number in 0_u64.. {
        if over.load(Relaxed) {
            break;
        }
        if kv.put(format!("{tag}/{:08}", number % KEYS), value.clone()).await.is_err() {
            waits.failures.fetch_add(1, Relaxed);
        }
        longest = longest.max(answered.elapsed());
        answered = Instant::now();
    }
    longest
}

fn tell(
    arguments: &Arguments,
    report: &Report,
    moves: &[Moved],
    latencies: &Latencies,
    failures: u64,
) -> Result<(), Failure> {
    let Latencies { resting, moving } = latencies;
    let millis = |duration: &Duration| duration.as_secs_f64() * 1e3;
    let middle = |pick: fn(&Moved) -> Duration| {
        let mut all: Vec<_> = moves.iter().map(pick).collect();
        all.sort_unstable();
        let median = all.get(all.len() / 2).copied().unwrap_or_default();
        (millis(&median), all.last().map_or(0.0, millis))
    };
    let (took, took_longest) = middle(|moved| moved.took);
    let (unserved, unserved_longest) = middle(|moved| moved.unserved);
    let p99 = |latencies: &Histogram<u64>| {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of one request")]
        let micros = latencies.value_at_quantile(0.99) as f64;
        micros / 1e3
    };
    let mut table = Table::new(["OF THE MOVES", "MEDIAN MS", "LONGEST MS"]);
    let row = |name: &str, median: f64, longest: f64| {
        [name.to_owned(), format!("{median:.0}"), format!("{longest:.0}")]
    };
    table.row(row("took", took, took_longest));
    table.row(row("shard not served", unserved, unserved_longest));
    let mut others = Table::new(["OTHER SHARDS", "PUTS", "P99 MS"]);
    for (name, latencies) in [("nothing moves", resting), ("a shard moves", moving)] {
        let p99 = format!("{:.2}", p99(latencies));
        others.row([name.to_owned(), latencies.len().to_string(), p99]);
    }
    let ratio = p99(moving) / p99(resting);
    let text = format!(
        "{}\n\n{}\n\np99 with a move is {ratio:.2} times that without; {failures} requests failed",
        table.text(),
        others.text()
    );
    let value = json!({
        "shard_bytes": arguments.shard_bytes,
        "moves": moves.len(),
        "move_ms": { "median": took, "longest": took_longest },
        "unserved_ms": { "median": unserved, "longest": unserved_longest },
        "others_p99_ms": { "resting": p99(resting), "moving": p99(moving), "ratio": ratio },
        "failures": failures,
    });
    report.end(&text, &value, failures)
}
