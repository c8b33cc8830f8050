//! `flotilla bench join`: a third group joins two that are written to and read from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use client::KvClient;
use daemon::Failure;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::groups::{Groups, failed};
use super::{CLIENTS_MAX, Report, Usual};
use crate::output::Table;

/// How many groups there are at first.
const GROUPS: u16 = 2;

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// How many keys there are
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    keys: u64,
    /// How many clients wait for an answer at a time, each puts and gets in turns
    #[arg(long, value_name = "COUNT", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(CLIENTS_MAX)))]
    clients: u32,
    #[command(flatten)]
    usual: Usual,
}

/// What the clients have done so far.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    failures: AtomicU64,
    stop: AtomicBool,
}

/// Measures, and tells.
pub(super) async fn run(arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let Arguments { keys, clients, usual } = arguments;
    let shards = proto::SHARDS_DEFAULT;
    let store = Groups::start(usual.dir(), GROUPS + 1, GROUPS, usual.members, shards).await?;
    let kv = store.kv()?;
    report.note(&format!("putting {keys} keys"));
    Groups::fill(&kv, (0..*keys).map(key), &usual.value()).await?;

    let tally = Arc::new(Tally::default());
    let mut loads = JoinSet::new();
    for number in 0..*clients {
        loads.spawn(load(kv.clone(), number, *keys, usual.value(), tally.clone()));
    }
    let span = Duration::from_secs(usual.seconds);
    let before = throughput(&tally, span).await;
    report.note("a third group joins");
    let (began, done) = (Instant::now(), tally.done.load(Relaxed));
    let moved = store.join(GROUPS + 1).await?;
    let took = began.elapsed();
    let during = per_second(tally.done.load(Relaxed) - done, took);
    let after = throughput(&tally, span).await;
    tally.stop.store(true, Relaxed);
    while let Some(joined) = loads.join_next().await {
        joined.map_err(failed)?;
    }
    store.own.cluster.stop().await;

    let failures = tally.failures.load(Relaxed);
    let mut table = Table::new(["REQUESTS/S", "WHEN"]);
    for (rate, when) in [(before, "before"), (during, "while shards move"), (after, "after")] {
        table.row([format!("{rate:.0}"), when.to_owned()]);
    }
    let text = format!(
        "{moved} of {shards} shards moved in {:.1} s; {failures} requests failed\n\n{}",
        took.as_secs_f64(),
        table.text()
    );
    let value = json!({
        "keys": keys,
        "shards": shards,
        "moved": moved,
        "seconds": took.as_secs_f64(),
        "requests_per_second": { "before": before, "during": during, "after": after },
        "failures": failures,
    });
    report.end(&text, &value, failures)
}

/// Puts and gets in turns until it is told to stop.
async fn load(kv: KvClient, client: u32, keys: u64, value: Bytes, tally: Arc<Tally>) {
    let mut rng = StdRng::seed_from_u64(client.into());
    while !tally.stop.load(Relaxed) {
        let key = key(rng.random_range(0..keys));
        let done = match rng.random() {
            true => kv.put(key, value.clone()).await.map(drop),
            false => kv.get(key).await.map(drop),
        };
        let count = if done.is_ok() { &tally.done } else { &tally.failures };
        count.fetch_add(1, Relaxed);
    }
}

fn key(number: u64) -> String {
    format!("bench/{number:010}")
}

async fn throughput(tally: &Tally, span: Duration) -> f64 {
    let (began, done) = (Instant::now(), tally.done.load(Relaxed));
    sleep(span).await;
    per_second(tally.done.load(Relaxed) - done, began.elapsed())
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests")]
fn per_second(count: u64, span: Duration) -> f64 {
    count as f64 / span.as_secs_f64()
}
