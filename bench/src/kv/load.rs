//! Closed loops: each client sends its next request when it has the answer to the last.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::{Cluster, Operation, Store, System, VALUE_BYTES, other};
use crate::cpu;

/// How many different keys are put and got.
pub const KEYS: u64 = 10_000;

/// How long requests run before they are measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// What one measurement came to.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Requests a second.
    pub rate: f64,
    /// The median latency.
    pub p50_ms: f64,
    /// What one in a hundred exceeds.
    pub p99_ms: f64,
    /// CPU time of all members, for each request.
    pub servers_us: f64,
    /// CPU time of the clients, for each request.
    pub clients_us: f64,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// How many requests are in flight.
    pub count: usize,
    /// How many connections they share at most.
    pub connections: usize,
}

/// Measures a cluster for so long.
///
/// # Errors
/// When a request fails.
pub async fn drive(
    cluster: &Cluster,
    system: System,
    operation: Operation,
    clients: Clients,
    measured: Duration,
) -> io::Result<Cost> {
    let Clients { count, connections } = clients;
    let mut pool = Vec::new();
    for _ in 0..count.min(connections) {
        pool.push(cluster.connect(system).await?);
    }
    let begin = Instant::now() + WARM_UP;
    let end = begin + measured;
    let mut loops = JoinSet::new();
    for (number, store) in (0..count as u64).zip(pool.iter().cycle()) {
        loops.spawn(closed_loop(store.clone(), operation, number, begin, end));
    }
    tokio::time::sleep_until(begin.into()).await;
    let (servers, clients_cpu) = (cluster.spent()?.cpu, cpu::time());
    tokio::time::sleep_until(end.into()).await;
    let clients_cpu = cpu::time() - clients_cpu;
    let servers = cluster.spent()?.cpu - servers;
    let mut latencies = histogram()?;
    while let Some(joined) = loops.join_next().await {
        latencies.add(joined.map_err(other)??).map_err(other)?;
    }
    let requests = latencies.len().max(1) as f64;
    Ok(Cost {
        rate: requests / measured.as_secs_f64(),
        p50_ms: latencies.value_at_quantile(0.5) as f64 / 1e3,
        p99_ms: latencies.value_at_quantile(0.99) as f64 / 1e3,
        servers_us: servers.as_secs_f64() * 1e6 / requests,
        clients_us: clients_cpu.as_secs_f64() * 1e6 / requests,
    })
}

/// Puts so many keys.
///
/// # Errors
/// When a request fails.
pub async fn fill(cluster: &Cluster, system: System, keys: u64) -> io::Result<()> {
    const CLIENTS: u64 = 256;
    let store = cluster.connect(system).await?;
    let mut loops = JoinSet::new();
    for client in 0..CLIENTS {
        let store = store.clone();
        loops.spawn(async move {
            let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
            for number in (client..keys).step_by(CLIENTS as usize) {
                if !store.put(format!("fill/{number:011}").into(), value.clone()).await {
                    return Err(io::Error::other("a put failed"));
                }
            }
            Ok(())
        });
    }
    while let Some(joined) = loops.join_next().await {
        joined.map_err(other)??;
    }
    Ok(())
}

async fn closed_loop(
    store: Store,
    operation: Operation,
    number: u64,
    begin: Instant,
    end: Instant,
) -> io::Result<Histogram<u64>> {
    let mut latencies = histogram()?;
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let mut random = number + 1;
    loop {
        let asked = Instant::now();
        if asked >= end {
            return Ok(latencies);
        }
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = Bytes::from(format!("bench/{:05}", (random >> 33) % KEYS));
        let done = match operation {
            Operation::Put => store.put(key, value.clone()).await,
            Operation::Get => store.get(key).await,
        };
        let answered = Instant::now();
        if !done {
            return Err(io::Error::other("a request failed"));
        }
        if asked >= begin && answered < end {
            latencies.saturating_record((answered - asked).as_micros() as u64);
        }
    }
}

/// From a microsecond to a minute.
pub(super) fn histogram() -> io::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000, 3).map_err(other)
}
