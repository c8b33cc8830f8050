//! `flotilla bench log`: appends, one entry a request.

use bytes::Bytes;
use client::log::ENTRY_BYTES_MAX;
use client::{LogClient, Options};
use daemon::{Code, Failure};

use super::measure::{Load, measure};
use super::own::Own;
use super::{CLIENTS_MAX, Report, Usual};
use crate::output::malformed;
use crate::whereabouts::LogEndpoints;

/// How many appends one client may have in flight: half of what an identity takes, so that none
/// waits for another.
const APPENDS_PER_CLIENT: u32 = 128;

/// What the log of the own cluster may take: all that is appended.
const QUOTA_BYTES: u64 = 1 << 40;

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// How many appends are in flight at a time; several with commas
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',', default_value = "1,64,1024",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(CLIENTS_MAX)))]
    in_flight: Vec<u32>,
    #[command(flatten)]
    usual: Usual,
    #[command(flatten)]
    endpoints: LogEndpoints,
}

struct Appends {
    client: LogClient,
    entry: Bytes,
}

impl Load for Appends {
    async fn request(&mut self) -> bool {
        self.client.append(self.entry.clone()).await.is_ok()
    }
}

/// Measures; answers with how long values were.
pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> Result<u64, Failure> {
    let Arguments { in_flight, usual, endpoints } = arguments;
    if usual.value_bytes > ENTRY_BYTES_MAX as u64 {
        let (bytes, limit) = (usual.value_bytes, ENTRY_BYTES_MAX);
        let message = format!("entries of {bytes} bytes; the limit entry_bytes_max is {limit}");
        return Err(Failure::new(Code::WrongCall, message));
    }
    let mut own = match endpoints.given() {
        true => None,
        false => Some(
            Own::start(usual.dir(), |plan| {
                plan.log = usual.members;
                plan.further.raftd = vec![format!("--quota-bytes={QUOTA_BYTES}")];
            })
            .await?,
        ),
    };
    let endpoints = match &own {
        Some(own) => own.cluster.description().log_endpoints(),
        None => endpoints.resolve()?,
    };
    for &count in in_flight {
        report.begin("append", count);
        let connect =
            || LogClient::connect(endpoints.clone(), Options::default()).map_err(malformed);
        let clients = count.div_ceil(APPENDS_PER_CLIENT);
        let pool = (0..clients).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
        let loads = (0..count)
            .zip(pool.iter().cycle())
            .map(|(_, client)| Appends { client: client.clone(), entry: usual.value() });
        let step = measure("append", usual.seconds, loads.collect(), own.as_mut()).await?;
        report.steps.push(step);
    }
    if let Some(own) = own {
        own.cluster.stop().await;
    }
    Ok(usual.value_bytes)
}
