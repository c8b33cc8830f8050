//! The closed loop that every benchmark is, and what its steps come to.
//!
//! Each of some clients sends its next request when it has the answer to the last. What a request is
//! comes from outside ([`Load`]).

use std::time::Duration;

use daemon::{Code, Failure};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::own::{Own, Spent};
use crate::output::Table;

/// How long requests run before they are measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// How precise latencies are, in decimal digits.
const DIGITS: u8 = 3;

/// One client that waits for each answer.
pub(super) trait Load: Send + 'static {
    /// Makes the next request; whether it was done.
    fn request(&mut self) -> impl Future<Output = bool> + Send;
}

/// What one step came to.
#[derive(Debug)]
pub(super) struct Step {
    operation: &'static str,
    clients: u32,
    seconds: f64,
    /// Latencies in microseconds.
    latencies: Histogram<u64>,
    pub(super) failures: u64,
    client_cpu_seconds: f64,
    members: Option<Spent>,
}

/// Measures one step with these clients.
pub(super) async fn measure<L: Load>(
    operation: &'static str,
    seconds: u64,
    loads: Vec<L>,
    mut own: Option<&mut Own>,
) -> Result<Step, Failure> {
    let clients = u32::try_from(loads.len()).unwrap_or(u32::MAX);
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs(seconds);
    let mut loops = JoinSet::new();
    for load in loads {
        loops.spawn(client_loop(load, begin, end));
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
    let members = before.zip(after).map(|(before, after)| after.since(&before));
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
    mut load: impl Load,
    begin: Instant,
    end: Instant,
) -> Result<(Histogram<u64>, u64), Failure> {
    let mut latencies = histogram()?;
    let mut failures = 0;
    loop {
        let asked = Instant::now();
        if asked >= end {
            return Ok((latencies, failures));
        }
        let done = load.request().await;
        let answered = Instant::now();
        if !done {
            failures += 1;
        } else if answered >= begin && answered < end {
            let micros = u64::try_from((answered - asked).as_micros()).unwrap_or(u64::MAX);
            latencies.saturating_record(micros);
        }
    }
}

/// From a microsecond to a minute.
pub(super) fn histogram() -> Result<Histogram<u64>, Failure> {
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
    pub(super) fn requests(&self) -> f64 {
        self.latencies.len().max(1) as f64
    }

    pub(super) fn per_second(&self) -> f64 {
        if self.latencies.is_empty() { 0.0 } else { self.requests() / self.seconds }
    }

    fn quantile_ms(&self, quantile: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of one request")]
        let micros = self.latencies.value_at_quantile(quantile) as f64;
        micros / 1e3
    }

    /// Processor time of all members, in microseconds for each request.
    pub(super) fn member_cpu_micros(&self) -> Option<f64> {
        Some(self.members.as_ref()?.cpu_seconds() * 1e6 / self.requests())
    }

    pub(super) fn client_cpu_micros(&self) -> f64 {
        self.client_cpu_seconds * 1e6 / self.requests()
    }

    /// What the members have spent, where that is told.
    pub(super) fn members(&self) -> Option<&Spent> {
        self.members.as_ref()
    }

    fn syncs(&self) -> Option<f64> {
        Some(self.members.as_ref()?.syncs? / self.requests())
    }

    pub(super) fn value(&self) -> Value {
        json!({
            "operation": self.operation,
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

/// The steps for people.
pub(super) fn table(steps: &[Step]) -> String {
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
            step.operation.to_owned(),
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
        let members = Some(Spent { syncs: Some(300.0), cpu_seconds_each: vec![0.002, 0.008] });
        let step = Step {
            operation: "put",
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
            operation: "get",
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
