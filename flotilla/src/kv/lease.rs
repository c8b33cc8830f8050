//! `flotilla kv lease`.

use std::ffi::OsString;
use std::time::Duration;

use client::{KeptAlive, KvClient, LeaseState};
use daemon::{Code, Failure};
use serde_json::json;
use tokio::time::Instant;

use super::bytes;
use crate::output::{Output, refused, shown};
use crate::units;

/// The arguments of `flotilla kv lease`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Make a lease, and print its id
    Grant {
        /// A key of the shard that it is for
        key: OsString,
        /// How long it lives without being kept alive
        #[arg(value_name = "DURATION", value_parser = units::milliseconds)]
        ttl: u64,
    },
    /// Keep a lease alive until Ctrl-C; exit code 6 when it has ended
    KeepAlive {
        /// The lease
        lease: u64,
        /// Once only
        #[arg(long)]
        once: bool,
    },
    /// End a lease: its keys are removed, its locks released; exit code 6 if there is none
    Revoke {
        /// The lease
        lease: u64,
    },
    /// Tell how long a lease lives on, and what is attached to it; exit code 6 if there is none
    Show {
        /// The lease
        lease: u64,
    },
}

/// Does what is asked.
pub(super) async fn run(
    client: &KvClient,
    arguments: Arguments,
    output: Output,
) -> Result<(), Failure> {
    match arguments.command {
        Command::Grant { key, ttl } => {
            let ttl = Duration::from_millis(ttl);
            let granted = client.grant(bytes(key), ttl).await.map_err(refused)?;
            let (lease, ttl) = (granted.lease_id, granted.ttl);
            let value = json!({ "lease_id": lease, "ttl_ms": ttl.as_millis() as u64 });
            output.result(&lease.to_string(), &value)
        }
        Command::KeepAlive { lease, once } => keep_alive(client, lease, once, output).await,
        Command::Revoke { lease } => {
            if !client.revoke(lease).await.map_err(refused)? {
                return Err(none(lease));
            }
            output.result("ended", &json!({ "ended": true }))
        }
        Command::Show { lease } => {
            let state = client.time_to_live(lease, true).await.map_err(refused)?;
            show(&state.ok_or_else(|| none(lease))?, output)
        }
    }
}

async fn keep_alive(
    client: &KvClient,
    lease: u64,
    once: bool,
    output: Output,
) -> Result<(), Failure> {
    let since = Instant::now();
    let ttl = client.keep_alive(lease).await.map_err(refused)?.ok_or_else(|| none(lease))?;
    let text = format!("it lives for {} from now", units::duration(ttl));
    output.result(&text, &json!({ "ttl_ms": ttl.as_millis() as u64 }))?;
    if once {
        return Ok(());
    }
    KeptAlive::new(client.clone(), lease, ttl, since).lost().await;
    Err(Failure::new(Code::NotFound, format!("lease {lease} has ended, or may have")))
}

fn show(state: &LeaseState, output: Output) -> Result<(), Failure> {
    let names = |names: &[bytes::Bytes]| names.iter().map(|name| shown(name)).collect::<Vec<_>>();
    let (keys, locks) = (names(&state.keys), names(&state.locks));
    let mut lines = vec![format!(
        "lives for {} at least, of {}",
        units::duration(state.remaining),
        units::duration(state.ttl)
    )];
    lines.extend(keys.iter().map(|key| format!("key  {key}")));
    lines.extend(locks.iter().map(|lock| format!("lock {lock}")));
    let value = json!({
        "remaining_ms": state.remaining.as_millis() as u64,
        "ttl_ms": state.ttl.as_millis() as u64,
        "keys": keys,
        "locks": locks,
    });
    output.result(&lines.join("\n"), &value)
}

fn none(lease: u64) -> Failure {
    Failure::new(Code::NotFound, format!("lease {lease} has ended, or never was"))
}
