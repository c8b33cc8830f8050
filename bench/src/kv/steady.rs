//! A steady load: requests begin when they are due, whether or not others were answered, so that a
//! stall counts for each that it delays. Latencies while members take snapshots, and otherwise.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::load::histogram;
use super::{Cluster, System, VALUE_BYTES, other};

/// How often requests begin: some at once.
const STEP: Duration = Duration::from_millis(2);

/// How often members are asked what they do.
const LOOK: Duration = Duration::from_millis(50);

/// What a steady load came to.
#[derive(Debug)]
pub struct Steady {
    /// Latencies in microseconds while no member took a snapshot.
    pub without: Histogram<u64>,
    /// While at least one did.
    pub during: Histogram<u64>,
    /// For how long that was.
    pub taking: Duration,
}

/// Puts so many of `keys` keys a second, until each member has taken a snapshot or time is up.
///
/// # Errors
/// When a request fails.
pub async fn steady(
    cluster: &Cluster,
    keys: u64,
    rate: u64,
    limit: Duration,
) -> io::Result<Steady> {
    let store = cluster.connect(System::Pipelined).await?;
    let (began, done) = (Instant::now(), Cell::new(false));
    let mut requests = JoinSet::new();
    let load = async {
        let mut sent = 0;
        while !done.get() {
            let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
            while sent < due {
                let asked = began + Duration::from_secs_f64(sent as f64 / rate as f64);
                let number = sent.wrapping_mul(6_364_136_223_846_793_005) % keys;
                let store = store.clone();
                requests.spawn(async move {
                    let value = Bytes::from(vec![b's'; VALUE_BYTES]);
                    let done = store.put(format!("fill/{number:011}").into(), value).await;
                    done.then(|| (asked, Instant::now()))
                });
                sent += 1;
            }
            tokio::time::sleep(STEP).await;
        }
    };
    // Beside it, since a member that is busy answers late.
    let look = async {
        let taking = snapshots(cluster, began + limit).await;
        done.set(true);
        taking
    };
    let ((), taking) = tokio::join!(load, look);
    let taking = taking?;
    let (mut without, mut during) = (histogram()?, histogram()?);
    while let Some(joined) = requests.join_next().await {
        let (asked, answered) =
            joined.map_err(other)?.ok_or_else(|| io::Error::other("a put failed"))?;
        let is_during = taking.iter().any(|(from, to)| asked < *to && answered > *from);
        let latencies = if is_during { &mut during } else { &mut without };
        latencies.saturating_record((answered - asked).as_micros() as u64);
    }
    let taking = taking.iter().map(|(from, to)| *to - *from).sum();
    Ok(Steady { without, during, taking })
}

/// From when to when members took snapshots, until each has taken one or time is up.
async fn snapshots(cluster: &Cluster, end: Instant) -> io::Result<Vec<(Instant, Instant)>> {
    let mut before = Instant::now();
    let first = cluster.snapshots().await?;
    let (mut taking, mut since) = (Vec::new(), None);
    loop {
        let looked = Instant::now();
        let now = cluster.snapshots().await?;
        if now.iter().any(|member| member.taking) {
            // It may have begun right after the last look.
            since = since.or(Some(before));
        } else {
            taking.extend(since.take().map(|from| (from, Instant::now())));
            if now.iter().zip(&first).all(|(now, first)| now.index > first.index) {
                return Ok(taking);
            }
        }
        if looked >= end {
            taking.extend(since.map(|from| (from, Instant::now())));
            eprintln!("time is up before each member has taken a snapshot");
            return Ok(taking);
        }
        before = looked;
        tokio::time::sleep(LOOK).await;
    }
}
