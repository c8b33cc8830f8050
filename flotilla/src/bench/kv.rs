//! `flotilla bench kv`: puts first, linearizable gets after.

use bytes::Bytes;
use client::{KvClient, Options, Transport};
use daemon::{Code, Failure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::measure::{Load, measure};
use super::own::Own;
use super::{CLIENTS_MAX, Report, Usual};
use crate::output::malformed;
use crate::whereabouts::Endpoints;

/// How many connections to each member the clients share at most.
const CONNECTIONS_MAX: usize = 4;

/// How many different keys there are.
const KEYS: u32 = 10_000;

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// How many clients wait for an answer at a time; several with commas
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',', default_value = "1,64,256",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(CLIENTS_MAX)))]
    clients: Vec<u32>,
    /// Send all requests of a connection on one stream, not each as a call of its own
    #[arg(long)]
    pipeline: bool,
    #[command(flatten)]
    usual: Usual,
    #[command(flatten)]
    endpoints: Endpoints,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Put,
    Get,
}

/// Both, with their names.
pub(super) const OPERATIONS: [(Operation, &str); 2] =
    [(Operation::Put, "put"), (Operation::Get, "get")];

pub(super) struct Requests {
    client: KvClient,
    operation: Operation,
    value: Bytes,
    rng: StdRng,
}

impl Load for Requests {
    async fn request(&mut self) -> bool {
        let key = format!("bench/{:05}", self.rng.random_range(0..KEYS));
        match self.operation {
            Operation::Put => self.client.put(key, self.value.clone()).await.is_ok(),
            Operation::Get => self.client.get(key).await.is_ok(),
        }
    }
}

/// Measures; answers with how long values were.
pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> Result<u64, Failure> {
    let Arguments { clients, pipeline, usual, endpoints } = arguments;
    let transport = if *pipeline { Transport::Pipelined } else { Transport::Unary };
    if usual.value_bytes > client::VALUE_BYTES_MAX as u64 {
        let (bytes, limit) = (usual.value_bytes, client::VALUE_BYTES_MAX);
        let message = format!("values of {bytes} bytes; the limit value_bytes_max is {limit}");
        return Err(Failure::new(Code::WrongCall, message));
    }
    let mut own = match endpoints.given() {
        true => None,
        false => Some(Own::start(usual.dir(), |plan| plan.kv = usual.members).await?),
    };
    let endpoints = match &own {
        Some(own) => own.cluster.description().kv_endpoints(),
        None => endpoints.resolve()?,
    };
    for (operation, name) in OPERATIONS {
        for &count in clients {
            report.begin(name, count);
            let loads = loads(&endpoints, transport, operation, count, &usual.value())?;
            let step = measure(name, usual.seconds, loads, own.as_mut()).await?;
            report.steps.push(step);
        }
    }
    if let Some(own) = own {
        own.cluster.stop().await;
    }
    Ok(usual.value_bytes)
}

/// So many clients, which share a few connections.
pub(super) fn loads(
    endpoints: &[String],
    transport: Transport,
    operation: Operation,
    clients: u32,
    value: &Bytes,
) -> Result<Vec<Requests>, Failure> {
    let options = Options { transport, ..Options::default() };
    let connect = || KvClient::connect(endpoints.to_vec(), options.clone()).map_err(malformed);
    let connections = CONNECTIONS_MAX.min(clients as usize);
    let pool = (0..connections).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
    let loads = (0..clients).zip(pool.iter().cycle()).map(|(number, client)| Requests {
        client: client.clone(),
        operation,
        value: value.clone(),
        rng: StdRng::seed_from_u64(number.into()),
    });
    Ok(loads.collect())
}
