//! Metrics for Prometheus: the recorder behind the macros of the `metrics` crate, and what every
//! process tells about itself.
//!
//! Names follow Prometheus' practice (`_total`, `_seconds`, `_bytes`); histograms have buckets
//! picked by that suffix, since quantiles of several members cannot be added up.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::exit::Failure;
use crate::version;

/// Bounds for durations, in seconds: from a cached read to a stalled disk.
const SECONDS_BUCKETS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];

/// Bounds for sizes, in bytes: from a small entry to a large snapshot.
const BYTES_BUCKETS: [f64; 10] = [
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    16_777_216.0,
    268_435_456.0,
];

/// Bounds for everything else, which are counts: entries in a batch, requests in a queue.
const COUNT_BUCKETS: [f64; 13] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16_384.0];

/// How often the recorder folds the samples of histograms, which otherwise pile up unread.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static METRICS: Mutex<Option<Metrics>> = Mutex::new(None);

/// What the process measured so far. Clones share the recorder.
#[derive(Clone, Debug)]
pub struct Metrics {
    recorder: PrometheusHandle,
    started: Duration,
}

impl Metrics {
    /// Makes the process record its metrics, under the name of `daemon`. There is one recorder in
    /// a process, so a second call answers with the first one.
    ///
    /// # Errors
    /// Machine, when another recorder was installed.
    pub fn install(daemon: &'static str) -> Result<Self, Failure> {
        let mut installed = METRICS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = &*installed {
            return Ok(metrics.clone());
        }
        let refuse = |error: String| Failure::machine("metrics cannot start").because(error);
        let recorder = PrometheusBuilder::new()
            .set_buckets(&COUNT_BUCKETS)
            .and_then(|builder| {
                builder.set_buckets_for_metric(suffix("_seconds"), &SECONDS_BUCKETS)
            })
            .and_then(|builder| builder.set_buckets_for_metric(suffix("_bytes"), &BYTES_BUCKETS))
            .map_err(|error| refuse(error.to_string()))?
            .build_recorder();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let metrics = Self { recorder: recorder.handle(), started };
        ::metrics::set_global_recorder(recorder).map_err(|error| refuse(error.to_string()))?;
        ::metrics::describe_gauge!("flotilla_build_info", "which version of which daemon this is");
        ::metrics::gauge!(
            "flotilla_build_info",
            "daemon" => daemon, "version" => version::PACKAGE, "commit" => version::COMMIT
        )
        .set(1.0);
        Ok(installed.insert(metrics).clone())
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = self.recorder.render();
        let started = self.started.as_secs_f64();
        append(&mut text, "process_start_time_seconds", "gauge", started);
        match Process::read() {
            Ok(process) => process.append(&mut text),
            // Without /proc the rest is still worth having.
            Err(error) => tracing::debug!(%error, "process metrics are not readable"),
        }
        text
    }

    /// Keeps the recorder small for as long as it is polled.
    pub async fn upkeep(&self) -> std::convert::Infallible {
        let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            interval.tick().await;
            self.recorder.run_upkeep();
        }
    }
}

fn suffix(text: &str) -> Matcher {
    Matcher::Suffix(text.to_owned())
}

fn append(text: &mut String, name: &str, kind: &str, value: f64) {
    writeln!(text, "# TYPE {name} {kind}\n{name} {value}").expect("writing to a String succeeds");
}

/// What Linux says about this process.
struct Process {
    cpu_seconds: f64,
    resident_bytes: f64,
    threads: f64,
    descriptors: f64,
}

impl Process {
    /// Reads `/proc/self`, which is memory and does not block. Fields by proc_pid_stat(5).
    fn read() -> std::io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        // The second field is the program's name in parentheses, which may contain anything.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let field = |number: usize| -> std::io::Result<f64> {
            let text = fields.get(number - 3).copied().unwrap_or_default();
            text.parse().map_err(|_| std::io::Error::other("/proc/self/stat is not as documented"))
        };
        #[expect(clippy::cast_precision_loss, reason = "both are small")]
        let (ticks, page_bytes) =
            (rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as f64);
        #[expect(clippy::cast_precision_loss, reason = "a process has few descriptors")]
        let descriptors = std::fs::read_dir("/proc/self/fd")?.count() as f64;
        Ok(Self {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            resident_bytes: field(24)? * page_bytes,
            threads: field(20)?,
            descriptors,
        })
    }

    fn append(&self, text: &mut String) {
        append(text, "process_cpu_seconds_total", "counter", self.cpu_seconds);
        append(text, "process_resident_memory_bytes", "gauge", self.resident_bytes);
        append(text, "process_threads", "gauge", self.threads);
        append(text, "process_open_fds", "gauge", self.descriptors);
    }
}
