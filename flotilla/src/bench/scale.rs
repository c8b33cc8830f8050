//! `flotilla bench scale`: one store of one member, of three, and of two and three groups of three.
//!
//! All of them share this machine's processors with the clients, so what is measured says what a
//! request costs, not what so many machines would do. That is projected, and told as such: a group is
//! as fast as its busiest member, if each member has as many processors for itself as this machine
//! has, and groups add up. It holds if what a request costs does not grow with the number of groups.
//! That is measured by steps of their own, in which requests come at a pace, as many to each group in
//! every shape and by as many connections: what one costs falls when more are answered together, and
//! when all clients wait for their answers, each of many groups has fewer.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use client::KvClient;
use daemon::{Code, Failure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::groups::{Groups, failed};
use super::measure::{Load, Step, measure};
use super::scale_chart::draw;
use super::{CLIENTS_SCALE_MAX, Report, Usual};
use crate::output::Table;

/// How many different keys there are.
const KEYS: u32 = 100_000;

/// What is measured: how many groups of how many members.
const SHAPES: [(u16, u16); 4] = [(1, 1), (1, 3), (2, 3), (3, 3)];

/// The most groups of them.
const GROUPS_MAX: u16 = 3;

/// Which part of the pace has to be kept for what a request costs then to be worth telling.
const PACE_KEPT: f64 = 0.97;

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// How many clients wait for an answer at a time
    #[arg(long, value_name = "COUNT", default_value_t = 5_000,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(CLIENTS_SCALE_MAX)))]
    clients: u32,
    /// How many connections they share at most
    #[arg(long, value_name = "COUNT", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(4..=4_096))]
    connections: u32,
    /// How many writes a second each group gets in the step that tells what one costs
    #[arg(long, value_name = "COUNT", default_value_t = 6_000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    paced_writes: u32,
    /// The same of reads
    #[arg(long, value_name = "COUNT", default_value_t = 15_000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    paced_reads: u32,
    /// Draw a chart into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    usual: Usual,
}

/// What one shape came to, in requests a second.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    pub(super) groups: u16,
    pub(super) members: u16,
    pub(super) writes: Rate,
    pub(super) reads: Rate,
    /// How many entries of logs became durable on a member, all members together.
    pub(super) entries: f64,
}

/// So many requests of a kind a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// On this machine, which all share.
    pub(super) measured: f64,
    /// If each member had such a machine for itself.
    pub(super) projected: f64,
    /// What one costs all members together, in microseconds of processor time.
    pub(super) member_cpu_micros: f64,
    /// The same when each group gets as many as in every other shape; none: they were too many.
    paced_cpu_micros: Option<f64>,
}

struct Requests {
    client: KvClient,
    put: Option<Bytes>,
    rng: StdRng,
    pace: Option<Pace>,
}

/// When a client sends.
#[derive(Clone, Copy)]
struct Pace {
    next: Instant,
    period: Duration,
}

impl Pace {
    /// Of one of so many clients, who together send so many requests a second.
    fn of(number: u32, clients: u32, per_second: u32) -> Self {
        let period = Duration::from_secs(clients.into()) / per_second;
        Self { next: Instant::now() + period * number / clients, period }
    }
}

impl Load for Requests {
    async fn request(&mut self) -> bool {
        if let Some(pace) = &mut self.pace {
            sleep_until(pace.next).await;
            pace.next += pace.period;
        }
        let key = format!("bench/{:06}", self.rng.random_range(0..KEYS));
        match &self.put {
            Some(value) => self.client.put(key, value.clone()).await.is_ok(),
            None => self.client.get(key).await.is_ok(),
        }
    }
}

/// Measures, tells, and draws.
pub(super) async fn run(arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let processors = std::thread::available_parallelism().map_err(failed)?.get();
    let mut all = Vec::new();
    for (groups, members) in SHAPES {
        report.note(&format!("starting {groups} x {members} members"));
        all.push(shape(arguments, report, groups, members, processors).await?);
    }
    if let Some(path) = &arguments.svg {
        let drawn = draw(&all, processors, arguments.clients);
        std::fs::write(path, drawn?).map_err(|error| {
            let message = format!("{} cannot be written", path.display());
            Failure::new(Code::Failed, message).because(error)
        })?;
    }
    tell(report, &all, processors)
}

/// Measures one shape.
async fn shape(
    arguments: &Arguments,
    report: &Report,
    groups: u16,
    members: u16,
    processors: usize,
) -> Result<Figures, Failure> {
    let Arguments { clients, connections, usual, .. } = arguments;
    let dir = usual.dir().map(|dir| dir.join(format!("{groups}x{members}")));
    let mut store =
        Groups::start(dir.as_deref(), groups, groups, members, proto::SHARDS_DEFAULT).await?;
    // Each client has a connection to each group's leader, and one to the controller.
    let share = |groups: u16| (connections / (u32::from(groups) + 1)).clamp(1, *clients) as usize;
    let pool: Vec<_> = (0..share(groups)).map(|_| store.kv()).collect::<Result<_, _>>()?;
    let loads = |value: &Option<Bytes>, pool: &[KvClient], per_second: Option<u32>| {
        let client = |(number, client): (u32, &KvClient)| Requests {
            client: client.clone(),
            put: value.clone(),
            rng: StdRng::seed_from_u64(number.into()),
            pace: per_second.map(|per_second| Pace::of(number, *clients, per_second)),
        };
        (0..*clients).zip(pool.iter().cycle()).map(client).collect::<Vec<_>>()
    };
    let mut rates = Vec::new();
    let kinds = [
        ("put", Some(usual.value()), arguments.paced_writes),
        ("get", None, arguments.paced_reads),
    ];
    for (name, value, pace) in kinds {
        report.begin(name, *clients);
        let loaded = loads(&value, &pool, None);
        let step = measure(name, usual.seconds, loaded, Some(&mut store.own)).await?;
        let pace = pace * u32::from(groups);
        report.note(&format!("measuring {name} at {pace} a second"));
        let loaded = loads(&value, &pool[..share(GROUPS_MAX)], Some(pace));
        let paced = measure(name, usual.seconds, loaded, Some(&mut store.own)).await?;
        let failures = step.failures + paced.failures;
        if failures > 0 {
            return Err(Failure::new(Code::Failed, format!("{failures} requests failed")));
        }
        let kept = paced.per_second() >= PACE_KEPT * f64::from(pace);
        let paced_cpu_micros = paced.member_cpu_micros().filter(|_| kept);
        rates.push(Rate { paced_cpu_micros, ..rate(&step, groups, members, processors)? });
    }
    store.own.cluster.stop().await;
    let [writes, reads] = rates[..] else {
        return Err(Failure::new(Code::Failed, "something was not measured"));
    };
    let entries = writes.measured * f64::from(members);
    Ok(Figures { groups, members, writes, reads, entries })
}

/// What a step came to, and what each member would do with a machine for itself.
fn rate(step: &Step, groups: u16, members: u16, processors: usize) -> Result<Rate, Failure> {
    let silent = || Failure::new(Code::Failed, "a member does not tell what it has spent");
    let spent = step.members().ok_or_else(silent)?;
    let busiest = spent.cpu_seconds_each.chunks(members.into()).map(|group| {
        let most = group.iter().copied().fold(0.0, f64::max);
        most / (step.requests() / f64::from(groups))
    });
    #[expect(clippy::cast_precision_loss, reason = "a few processors")]
    let processors = processors as f64;
    Ok(Rate {
        measured: step.per_second(),
        projected: busiest.map(|seconds| processors / seconds).sum(),
        member_cpu_micros: step.member_cpu_micros().ok_or_else(silent)?,
        paced_cpu_micros: None,
    })
}

fn tell(report: &Report, all: &[Figures], processors: usize) -> Result<(), Failure> {
    let mut table = Table::new([
        "GROUPS x MEMBERS",
        "WRITES/S",
        "READS/S",
        "ENTRIES/S",
        "WRITE CPU µS",
        "READ CPU µS",
        "PACED WRITE CPU µS",
        "PACED READ CPU µS",
        "PROJECTED WRITES/S",
        "PROJECTED READS/S",
    ]);
    let known = |micros: Option<f64>| {
        micros.map_or_else(|| "-".to_owned(), |micros| format!("{micros:.1}"))
    };
    for Figures { groups, members, writes, reads, entries } in all {
        table.row([
            format!("{groups} x {members}"),
            format!("{:.0}", writes.measured),
            format!("{:.0}", reads.measured),
            format!("{entries:.0}"),
            format!("{:.1}", writes.member_cpu_micros),
            format!("{:.1}", reads.member_cpu_micros),
            known(writes.paced_cpu_micros),
            known(reads.paced_cpu_micros),
            format!("{:.0}", writes.projected),
            format!("{:.0}", reads.projected),
        ]);
    }
    let text = format!(
        "{}\n\nMeasured: all members and clients on this machine's {processors} processors. \
         Projected: each member with {processors} processors for itself, as fast as the busiest \
         member of each group allows. Paced: at as many requests a second for each group.",
        table.text()
    );
    let rate = |rate: &Rate| {
        json!({
            "per_second": rate.measured,
            "projected_per_second": rate.projected,
            "member_cpu_micros": rate.member_cpu_micros,
            "paced_member_cpu_micros": rate.paced_cpu_micros,
        })
    };
    let shapes: Vec<_> = all
        .iter()
        .map(|it| {
            json!({
                "groups": it.groups,
                "members": it.members,
                "writes": rate(&it.writes),
                "reads": rate(&it.reads),
                "entries_per_second": it.entries,
            })
        })
        .collect();
    report.output.result(&text, &json!({ "processors": processors, "shapes": shapes }))
}
