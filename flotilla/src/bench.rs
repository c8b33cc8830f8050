//! `flotilla bench kv`: how fast the store is, seen by clients that wait for each answer.
//!
//! A closed loop: each client sends its next request when it has the answer to the last. Puts come
//! first, linearizable gets after. Without endpoints it starts a cluster of its own, and then also
//! tells what the members spent: fdatasyncs and processor time. Clients and members share this
//! machine's processors then, so the clients are kept cheap: one thread, a few connections.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use client::{KvClient, Options};
use daemon::{Code, Failure};
use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::local::{Cluster, Instance, Plan};
use crate::output::{Output, Table, malformed};
use crate::units;
use crate::whereabouts::Endpoints;

/// The most clients of one step: each is a task with a request in flight.
const CLIENTS_MAX: u32 = 4_096;

/// How many connections to each member the clients share at most.
const CONNECTIONS_MAX: usize = 4;

/// How many different keys there are.
const KEYS: u32 = 10_000;

/// How long requests run before they are measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// How long the own cluster may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How precise latencies are, in decimal digits.
const DIGITS: u8 = 3;

/// The metrics that members are asked for.
const SYNCS: &str = "flotilla_store_syncs_total";
const CPU: &str = "process_cpu_seconds_total";

/// The arguments of `flotilla bench`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Measure the key/value store: puts, then linearizable gets
    Kv(Kv),
}

#[derive(clap::Args, Clone, Debug)]
struct Kv {
    /// How many clients wait for an answer at a time; several with commas
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',', default_value = "1,64,256",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(CLIENTS_MAX)))]
    clients: Vec<u32>,
    /// How long a value is
    #[arg(long, value_name = "BYTES", value_parser = units::size, default_value = "256")]
    value_bytes: u64,
    /// How long each step is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// How many members the own cluster has
    #[arg(long, value_name = "COUNT", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(1..=7))]
    members: u16,
    /// Where the own cluster keeps its data [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    endpoints: Endpoints,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Put,
    Get,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
        }
    }
}

/// What one step came to.
#[derive(Debug)]
struct Step {
    operation: Operation,
    clients: u32,
    seconds: f64,
    /// Latencies in microseconds.
    latencies: Histogram<u64>,
    failures: u64,
    client_cpu_seconds: f64,
    members: Option<Spent>,
}

/// What the members together have spent.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spent {
    syncs: Option<f64>,
    cpu_seconds: f64,
}

/// Measures.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let Command::Kv(kv) = arguments.command;
    if kv.value_bytes > client::VALUE_BYTES_MAX as u64 {
        let message = format!(
            "values of {} bytes; the limit value_bytes_max is {}",
            kv.value_bytes,
            client::VALUE_BYTES_MAX
        );
        return Err(Failure::new(Code::WrongCall, message));
    }
    let mut own = if kv.endpoints.given() { None } else { Some(Own::start(&kv).await?) };
    let endpoints = match &own {
        Some(own) => own.cluster.description().kv_endpoints(),
        None => kv.endpoints.resolve()?,
    };
    let mut steps = Vec::new();
    for operation in [Operation::Put, Operation::Get] {
        for &clients in &kv.clients {
            if !output.is_json() {
                eprintln!("measuring {} with {clients} clients ...", operation.name());
            }
            steps.push(measure(&kv, operation, clients, &endpoints, own.as_mut()).await?);
        }
    }
    if let Some(own) = own {
        own.cluster.stop().await;
    }
    let values: Vec<Value> = steps.iter().map(Step::value).collect();
    output.result(&table(&steps), &json!({ "value_bytes": kv.value_bytes, "steps": values }))?;
    let failures: u64 = steps.iter().map(|step| step.failures).sum();
    if failures > 0 {
        return Err(Failure::new(Code::Failed, format!("{failures} requests failed")));
    }
    Ok(())
}

/// A cluster of our own.
struct Own {
    cluster: Cluster,
    _dir: Option<TempDir>,
}

impl Own {
    async fn start(kv: &Kv) -> Result<Self, Failure> {
        let binary = std::env::current_exe().map_err(|error| {
            Failure::new(Code::Failed, "this binary cannot be found").because(error)
        })?;
        let temporary = match kv.dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("flotilla-bench-").tempdir().map_err(
                |error| {
                    let message = "no temporary directory can be made";
                    Failure::new(Code::Failed, message).because(error)
                },
            )?),
        };
        let dir = match (&kv.dir, &temporary) {
            (Some(dir), _) => dir.clone(),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => std::env::temp_dir(),
        };
        let mut cluster = Cluster::start(&Plan::new(binary, dir, kv.members, 0))?;
        cluster.ready(READY_TIMEOUT).await?;
        Ok(Self { cluster, _dir: temporary })
    }

    async fn spent(&mut self) -> Option<Spent> {
        let mut sum = Spent { syncs: Some(0.0), cpu_seconds: 0.0 };
        for instance in self.cluster.instances() {
            if let Instance::Kvd(_) = instance {
                sum.cpu_seconds += self.cluster.metric(instance, CPU).await?;
                let syncs = self.cluster.metric(instance, SYNCS).await;
                sum.syncs = sum.syncs.zip(syncs).map(|(sum, syncs)| sum + syncs);
            }
        }
        Some(sum)
    }
}

async fn measure(
    kv: &Kv,
    operation: Operation,
    clients: u32,
    endpoints: &[String],
    mut own: Option<&mut Own>,
) -> Result<Step, Failure> {
    let connections = CONNECTIONS_MAX.min(clients as usize);
    let pool: Vec<KvClient> = (0..connections)
        .map(|_| KvClient::connect(endpoints.to_vec(), Options::default()).map_err(malformed))
        .collect::<Result<_, _>>()?;
    let value = usize::try_from(kv.value_bytes).unwrap_or(client::VALUE_BYTES_MAX);
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs(kv.seconds);
    let mut loops = JoinSet::new();
    for (number, client) in (0..clients).zip(pool.iter().cycle()) {
        let (client, value) = (client.clone(), Bytes::from(vec![b'v'; value]));
        let rng = StdRng::seed_from_u64(number.into());
        loops.spawn(client_loop(client, operation, value, rng, begin, end));
    }
    tokio::time::sleep_until(begin).await;
    let before = spent(&mut own).await;
    let (client_before, measured_from) = (own_cpu_seconds(), Instant::now());
    tokio::time::sleep_until(end).await;
    let (client_after, measured_to) = (own_cpu_seconds(), Instant::now());
    let after = spent(&mut own).await;
    let mut latencies = histogram()?;
    let mut failures = 0;
    while let Some(joined) = loops.join_next().await {
        let failed = |error| Failure::new(Code::Failed, "a client failed").because(error);
        let (measured, failed_here) = joined.map_err(failed)??;
        latencies.add(&measured).map_err(|error| {
            Failure::new(Code::Failed, "latencies cannot be added up").because(error)
        })?;
        failures += failed_here;
    }
    let members = before.zip(after).map(|(before, after)| Spent {
        syncs: after.syncs.zip(before.syncs).map(|(after, before)| after - before),
        cpu_seconds: after.cpu_seconds - before.cpu_seconds,
    });
    Ok(Step {
        operation,
        clients,
        seconds: (measured_to - measured_from).as_secs_f64(),
        latencies,
        failures,
        client_cpu_seconds: client_after - client_before,
        members,
    })
}

async fn spent(own: &mut Option<&mut Own>) -> Option<Spent> {
    match own {
        Some(own) => own.spent().await,
        None => None,
    }
}

async fn client_loop(
    client: KvClient,
    operation: Operation,
    value: Bytes,
    mut rng: StdRng,
    begin: Instant,
    end: Instant,
) -> Result<(Histogram<u64>, u64), Failure> {
    let mut latencies = histogram()?;
    let mut failures = 0;
    loop {
        let key = format!("bench/{:05}", rng.random_range(0..KEYS));
        let asked = Instant::now();
        if asked >= end {
            return Ok((latencies, failures));
        }
        let done = match operation {
            Operation::Put => client.put(key, value.clone()).await.map(drop),
            Operation::Get => client.get(key).await.map(drop),
        };
        let answered = Instant::now();
        if done.is_err() {
            failures += 1;
        } else if answered >= begin && answered < end {
            let micros = u64::try_from((answered - asked).as_micros()).unwrap_or(u64::MAX);
            latencies.saturating_record(micros);
        }
    }
}

/// From a microsecond to a minute.
fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, 60_000_000, DIGITS)
        .map_err(|error| Failure::new(Code::Failed, "latencies cannot be kept").because(error))
}

fn own_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "seconds and nanoseconds of one process")]
    let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    seconds
}

impl Step {
    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    fn requests(&self) -> f64 {
        self.latencies.len().max(1) as f64
    }

    fn per_second(&self) -> f64 {
        if self.latencies.is_empty() { 0.0 } else { self.requests() / self.seconds }
    }

    fn quantile_ms(&self, quantile: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of one request")]
        let micros = self.latencies.value_at_quantile(quantile) as f64;
        micros / 1e3
    }

    /// Processor time of all members, in microseconds for each request.
    fn member_cpu_micros(&self) -> Option<f64> {
        Some(self.members?.cpu_seconds * 1e6 / self.requests())
    }

    fn client_cpu_micros(&self) -> f64 {
        self.client_cpu_seconds * 1e6 / self.requests()
    }

    fn syncs(&self) -> Option<f64> {
        Some(self.members?.syncs? / self.requests())
    }

    fn value(&self) -> Value {
        json!({
            "operation": self.operation.name(),
            "clients": self.clients,
            "seconds": self.seconds,
            "requests": self.latencies.len(),
            "failures": self.failures,
            "per_second": self.per_second(),
            "p50_ms": self.quantile_ms(0.5),
            "p99_ms": self.quantile_ms(0.99),
            "max_ms": self.quantile_ms(1.0),
            "fdatasyncs_per_request": self.syncs(),
            "member_cpu_micros_per_request": self.member_cpu_micros(),
            "client_cpu_micros_per_request": self.client_cpu_micros(),
        })
    }
}

fn table(steps: &[Step]) -> String {
    let mut table = Table::new([
        "REQUEST",
        "CLIENTS",
        "PER SECOND",
        "P50 MS",
        "P99 MS",
        "FDATASYNCS EACH",
        "MEMBER CPU µS EACH",
        "CLIENT CPU µS EACH",
    ]);
    let known = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    for step in steps {
        table.row([
            step.operation.name().to_owned(),
            step.clients.to_string(),
            format!("{:.0}", step.per_second()),
            format!("{:.2}", step.quantile_ms(0.5)),
            format!("{:.2}", step.quantile_ms(0.99)),
            known(step.syncs(), 3),
            known(step.member_cpu_micros(), 1),
            format!("{:.1}", step.client_cpu_micros()),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_for_each_request() {
        let mut latencies = histogram().unwrap();
        for micros in [1_000; 99].into_iter().chain([9_000]) {
            latencies.record(micros).unwrap();
        }
        let members = Some(Spent { syncs: Some(300.0), cpu_seconds: 0.01 });
        let step = Step {
            operation: Operation::Put,
            clients: 1,
            seconds: 2.0,
            latencies,
            failures: 0,
            client_cpu_seconds: 0.002,
            members,
        };
        assert_eq!(step.per_second().round(), 50.0);
        assert_eq!(step.syncs(), Some(3.0));
        assert_eq!(step.member_cpu_micros().map(f64::round), Some(100.0));
        assert_eq!(step.client_cpu_micros().round(), 20.0);
        assert_eq!(step.quantile_ms(0.5).round(), 1.0);
        assert_eq!(step.quantile_ms(1.0).round(), 9.0);
    }

    #[test]
    fn nothing_measured_is_nothing_per_second() {
        let step = Step {
            operation: Operation::Get,
            clients: 1,
            seconds: 1.0,
            latencies: histogram().unwrap(),
            failures: 3,
            client_cpu_seconds: 0.0,
            members: None,
        };
        assert_eq!(step.per_second(), 0.0);
        assert_eq!(step.syncs(), None);
    }
}
