//! The key/value store beside etcd: requests a second, latencies, CPU time; with `--keys` memory
//! with so many keys and how long a start with them takes.
//!
//! `cargo build --release -p kvd`, then
//! `cargo run --release --manifest-path bench/Cargo.toml --bin kv`. It takes etcd 3.4 from the path
//! (Debian: `etcd-server`).

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use flotilla_bench::kv::{
    Clients, Cluster, Cost, KEYS, Operation, Plan, System, VALUE_BYTES, drive, fill, steady,
};
use hdrhistogram::Histogram;
// The clients get the allocator of our programs, whomever they ask.
use raftd as _;

/// What `target/` of the main workspace has, unless it is said otherwise.
const KVD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/kvd");

/// How long a cluster may go on with what requests have left to be done before others are measured.
const SETTLE: Duration = Duration::from_secs(20);

/// All are idle when they spend less than a tenth of a core for so long.
const IDLE_LOOK: Duration = Duration::from_millis(500);

/// How long puts go on for members to take snapshots.
const STEADY: Duration = Duration::from_secs(300);

/// How long members rest before their memory is looked at.
const REST: Duration = Duration::from_secs(30);

#[derive(Parser, Debug)]
struct Arguments {
    /// The binary of etcd
    #[arg(long, default_value = "etcd")]
    etcd: PathBuf,
    /// The binary of kvd
    #[arg(long, default_value = KVD)]
    kvd: PathBuf,
    /// How many clients wait for an answer at a time
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    clients: Vec<usize>,
    /// How many connections they share at most
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// How long each is measured in a round
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// How often everything is measured, in turns; the medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many members each has
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=7))]
    members: u16,
    /// Leave etcd out
    #[arg(long)]
    alone: bool,
    /// Instead: load so many keys through each, and tell memory and the time of a start
    #[arg(long)]
    keys: Option<u64>,
    /// With --keys: then put so many a second, until each member of kvd has taken a snapshot, and
    /// tell latencies with and without
    #[arg(long, requires = "keys")]
    steady: Option<u64>,
    /// Which disk: where the clusters keep their data [default: that of temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// A cluster, and how it is driven.
struct Contender<'a> {
    name: String,
    cluster: &'a Cluster,
    system: System,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ran = runtime.and_then(|runtime| {
        runtime.block_on(async {
            tokio::select! {
                ran = run(&arguments) => ran,
                interrupted = tokio::signal::ctrl_c() => interrupted.and(Err(io::Error::other("interrupted"))),
            }
        })
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kv: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> io::Result<()> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("flotilla-bench-kv-");
    let dir = match &arguments.dir {
        Some(dir) => builder.tempdir_in(dir)?,
        None => builder.tempdir()?,
    };
    let mut plans = vec![
        ("kvd", plan(arguments, dir.path(), System::Unary, 1, 256)?),
        ("kvd of 1 shard", plan(arguments, dir.path(), System::Unary, 2, 1)?),
    ];
    if !arguments.alone {
        match Command::new(&arguments.etcd).arg("--version").output() {
            Ok(_) => plans.insert(0, ("etcd", plan(arguments, dir.path(), System::Etcd, 0, 0)?)),
            Err(error) => println!(
                "skipped: etcd, for want of {} (Debian: etcd-server): {error}\n",
                arguments.etcd.display()
            ),
        }
    }
    match arguments.keys {
        Some(keys) => load(plans, keys, arguments.steady).await,
        None => compare(arguments, plans).await,
    }
}

fn plan(
    arguments: &Arguments,
    dir: &Path,
    system: System,
    number: u8,
    shards: u32,
) -> io::Result<Plan> {
    let binary = match system {
        System::Etcd => arguments.etcd.clone(),
        System::Unary | System::Pipelined => arguments.kvd.clone(),
    };
    let dir = dir.join(number.to_string());
    std::fs::create_dir(&dir)?;
    Ok(Plan { system, binary, dir, number, members: arguments.members, shards })
}

/// Drives all clusters in turns.
async fn compare(arguments: &Arguments, plans: Vec<(&str, Plan)>) -> io::Result<()> {
    let mut clusters = Vec::new();
    for (name, plan) in plans {
        let system = plan.system;
        let cluster = Cluster::start(plan).await?;
        fill(&cluster, if system == System::Etcd { system } else { System::Pipelined }, KEYS)
            .await?;
        clusters.push((name, system, cluster));
    }
    let mut contenders = Vec::new();
    for (name, system, cluster) in &clusters {
        let systems: &[System] = match system {
            System::Etcd => &[System::Etcd],
            System::Unary | System::Pipelined => &[System::Unary, System::Pipelined],
        };
        for &system in systems {
            let name = match system {
                System::Etcd => (*name).to_owned(),
                System::Unary => format!("{name}, unary"),
                System::Pipelined => format!("{name}, pipelined"),
            };
            contenders.push(Contender { name, cluster, system });
        }
    }
    let (rounds, seconds) = (arguments.rounds.max(1), arguments.seconds);
    println!(
        "{} members each, values of {VALUE_BYTES} bytes, medians of {rounds} rounds of {seconds} s\n",
        arguments.members
    );
    println!(
        "| request | clients | of | per second | p50 ms | p99 ms | members' CPU us | clients' CPU us |"
    );
    println!("|---|---:|---|---:|---:|---:|---:|---:|");
    for operation in [Operation::Put, Operation::Get] {
        for &count in &arguments.clients {
            let connections = arguments.connections.max(1);
            let clients = Clients { count, connections };
            let mut costs: Vec<Vec<Cost>> = contenders.iter().map(|_| Vec::new()).collect();
            for _ in 0..rounds {
                for (contender, costs) in contenders.iter().zip(&mut costs) {
                    settle(&clusters).await?;
                    let measured = Duration::from_secs(seconds);
                    let Contender { cluster, system, .. } = contender;
                    costs.push(drive(cluster, *system, operation, clients, measured).await?);
                }
            }
            for (contender, costs) in contenders.iter().zip(&costs) {
                row(operation, count, &contender.name, costs);
            }
        }
    }
    Ok(())
}

/// Waits until no cluster does anything that the requests before left to be done, or for so long.
async fn settle(clusters: &[(&str, System, Cluster)]) -> io::Result<()> {
    let began = Instant::now();
    while began.elapsed() < SETTLE {
        let spent = || clusters.iter().map(|(_, _, it)| Ok(it.spent()?.cpu)).sum();
        let before: io::Result<Duration> = spent();
        tokio::time::sleep(IDLE_LOOK).await;
        if spent()? - before? < IDLE_LOOK / 10 {
            return Ok(());
        }
    }
    Ok(())
}

fn row(operation: Operation, clients: usize, name: &str, costs: &[Cost]) {
    let request = match operation {
        Operation::Put => "put",
        Operation::Get => "get",
    };
    println!(
        "| {request} | {clients} | {name} | {:.0} | {:.2} | {:.2} | {:.1} | {:.1} |",
        median(costs, |cost| cost.rate),
        median(costs, |cost| cost.p50_ms),
        median(costs, |cost| cost.p99_ms),
        median(costs, |cost| cost.servers_us),
        median(costs, |cost| cost.clients_us),
    );
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Loads each cluster, one after the other, and starts it again.
async fn load(plans: Vec<(&str, Plan)>, keys: u64, rate: Option<u64>) -> io::Result<()> {
    println!("{keys} keys of 16 bytes, values of {VALUE_BYTES} bytes\n");
    println!(
        "| of | loaded in s | memory of a member, MB | at rest | stop in s | start in s | memory then | at rest |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for (name, plan) in plans {
        let system = plan.system;
        let mut cluster = Cluster::start(plan).await?;
        let began = Instant::now();
        fill(&cluster, if system == System::Etcd { system } else { System::Pipelined }, keys)
            .await?;
        let loaded = began.elapsed();
        let memory = memory(&cluster).await?;
        if let Some(rate) = rate.filter(|_| system != System::Etcd) {
            let steady = steady(&cluster, keys, rate.max(1), STEADY).await?;
            eprintln!("{name}, p50, p99 and longest in ms:");
            told("while no member took a snapshot", &steady.without);
            told(&format!("while one did, {:.1} s", steady.taking.as_secs_f64()), &steady.during);
        }
        let stopping = Instant::now();
        cluster.stop()?;
        let stopped = stopping.elapsed();
        let start = cluster.resume().await?;
        let memory_then = self::memory(&cluster).await?;
        println!(
            "| {name} | {:.1} | {:.0} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0} |",
            loaded.as_secs_f64(),
            memory[0],
            memory[1],
            stopped.as_secs_f64(),
            start.as_secs_f64(),
            memory_then[0],
            memory_then[1],
        );
    }
    Ok(())
}

fn told(when: &str, latencies: &Histogram<u64>) {
    let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    let puts = latencies.len();
    eprintln!("{when}: {:.2}, {:.2}, {:.2} of {puts} puts", at(0.5), at(0.99), at(1.0));
}

/// What a member has in memory, in MB: now, and when nobody has asked for anything for a while.
async fn memory(cluster: &Cluster) -> io::Result<[f64; 2]> {
    let now = cluster.spent()?.memory_bytes;
    tokio::time::sleep(REST).await;
    Ok([now, cluster.spent()?.memory_bytes].map(|bytes| bytes as f64 / 1e6))
}
