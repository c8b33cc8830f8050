//! `flotilla bench forward`: what a request costs if not the group is asked that has its shard.
//!
//! One group has all shards. Its own members are asked, then those of a group that has none, which
//! pass requests on, then a router; in turns, several times, so that what else the machine does
//! concerns all of them. What counts is processor time of all members, of the router and of the clients together.

use client::Transport;
use daemon::{Code, Failure};
use serde_json::{Value, json};

use super::groups::Groups;
use super::kv::{OPERATIONS, loads};
use super::measure::{Step, measure};
use super::own::READY_TIMEOUT;
use super::{CLIENTS_MAX, Report, Usual};
use crate::output::Table;

/// Whom clients ask.
const WAYS: [&str; 3] = ["the owner", "another group", "a router"];

/// How requests travel.
const TRANSPORTS: [(Transport, &str); 2] =
    [(Transport::Pipelined, "stream"), (Transport::Unary, "calls")];

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// How many clients wait for an answer at a time
    #[arg(long, value_name = "COUNT", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(CLIENTS_MAX)))]
    clients: u32,
    /// How often each way is measured; medians are told
    #[arg(long, value_name = "COUNT", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    usual: Usual,
}

/// What one way came to in a round, in microseconds of processor time a request.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    per_second: f64,
    servers: f64,
    clients: f64,
}

/// One kind of request: each round, way by way.
struct Row {
    operation: &'static str,
    transport: &'static str,
    rounds: Vec<[Cost; WAYS.len()]>,
}

/// Measures, and tells.
pub(super) async fn run(arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let Arguments { clients, rounds, usual } = arguments;
    report.note("starting two groups and a router");
    let shards = proto::SHARDS_DEFAULT;
    let mut store = Groups::start(usual.dir(), 2, 1, usual.members, shards).await?;
    let router = store.own.cluster.add_router()?;
    store.own.cluster.ready(READY_TIMEOUT).await?;
    let description = store.own.cluster.description();
    let asked =
        [description.group_endpoints(1), description.group_endpoints(2), vec![router.to_string()]];
    let mut rows = Vec::new();
    for (transport, transport_name) in TRANSPORTS {
        for (operation, name) in OPERATIONS {
            report.note(&format!("measuring {name}, {transport_name}, {rounds} rounds"));
            let mut row = Row { operation: name, transport: transport_name, rounds: Vec::new() };
            for _ in 0..*rounds {
                let mut costs = [Cost::default(); WAYS.len()];
                for (cost, endpoints) in costs.iter_mut().zip(&asked) {
                    let loads = loads(endpoints, transport, operation, *clients, &usual.value())?;
                    let step = measure(name, usual.seconds, loads, Some(&mut store.own)).await?;
                    *cost = Cost::of(&step)?;
                }
                row.rounds.push(costs);
            }
            rows.push(row);
        }
    }
    store.own.cluster.stop().await;
    tell(report, &rows)
}

impl Cost {
    fn of(step: &Step) -> Result<Self, Failure> {
        let refuse = |why: String| Failure::new(Code::Failed, why);
        if step.failures > 0 {
            return Err(refuse(format!("{} requests failed", step.failures)));
        }
        let silent = || refuse("a member does not tell what it has spent".to_owned());
        Ok(Self {
            per_second: step.per_second(),
            servers: step.member_cpu_micros().ok_or_else(silent)?,
            clients: step.client_cpu_micros(),
        })
    }

    fn sum(&self) -> f64 {
        self.servers + self.clients
    }
}

impl Row {
    /// The median over the rounds of what is asked of each.
    fn median(&self, asked: impl Fn(&[Cost; WAYS.len()]) -> f64) -> f64 {
        let mut all: Vec<f64> = self.rounds.iter().map(asked).collect();
        all.sort_by(f64::total_cmp);
        let (below, above) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
        below.midpoint(above)
    }

    /// How many times as much as the direct way one costs, in the same round.
    fn times_direct(&self, way: usize) -> f64 {
        self.median(|round| round[way].sum() / round[0].sum())
    }
}

fn tell(report: &Report, rows: &[Row]) -> Result<(), Failure> {
    let mut table = Table::new([
        "REQUEST",
        "BY",
        "ASKED",
        "PER SECOND",
        "SERVER CPU \u{b5}S EACH",
        "CLIENT CPU \u{b5}S EACH",
        "TIMES DIRECT",
    ]);
    let mut values: Vec<Value> = Vec::new();
    for row in rows {
        for (way, name) in WAYS.iter().enumerate() {
            let per_second = row.median(|round| round[way].per_second);
            let servers = row.median(|round| round[way].servers);
            let clients = row.median(|round| round[way].clients);
            let times = row.times_direct(way);
            table.row([
                row.operation.to_owned(),
                row.transport.to_owned(),
                (*name).to_owned(),
                format!("{per_second:.0}"),
                format!("{servers:.1}"),
                format!("{clients:.1}"),
                format!("{times:.2}"),
            ]);
            values.push(json!({
                "operation": row.operation,
                "by": row.transport,
                "asked": name,
                "per_second": per_second,
                "server_cpu_micros_per_request": servers,
                "client_cpu_micros_per_request": clients,
                "times_direct": times,
            }));
        }
    }
    report.output.result(&table.text(), &json!({ "ways": values }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_compared_with_the_direct_one_of_its_round() {
        let cost = |servers| Cost { servers, clients: 1.0, per_second: 1.0 };
        let round = |direct, other| [cost(direct), cost(other), cost(direct)];
        let mut row = Row { operation: "get", transport: "stream", rounds: Vec::new() };
        row.rounds = vec![round(1.0, 3.0), round(9.0, 29.0), round(1.0, 1.0)];
        assert_eq!([row.times_direct(0), row.times_direct(1)], [1.0, 2.0]);
        assert_eq!(row.median(|round| round[1].servers), 3.0);
        row.rounds.truncate(2);
        assert_eq!(row.times_direct(1), 2.5);
    }
}
