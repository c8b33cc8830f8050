//! Does something that only one process at a time may do.
//!
//! `cargo run -p flotilla-client --example lock -- 127.0.0.1:7300`. A lock alone is not enough: a
//! process may stand still for longer than its lease lives, and not notice. So each write is
//! guarded by the lock's fencing token, and a late one is refused.

use std::time::Duration;

use flotilla_client::{Error, KvClient, LockClient, LockOptions, Options, PutOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoints = std::env::args().skip(1).collect();
    let client = KvClient::connect(endpoints, Options::default())?;
    match number_the_next_run(&client).await? {
        Some(run) => println!("this is run {run}"),
        None => println!("somebody else is at it"),
    }
    Ok(())
}

/// The number of this run; none: the lock was not to be had.
pub(crate) async fn number_the_next_run(client: &KvClient) -> Result<Option<u64>, Error> {
    let options = LockOptions {
        ttl: Duration::from_secs(10),
        wait: Duration::from_secs(30),
        owner: format!("process {}", std::process::id()).into(),
    };
    let locks = LockClient::new(client.clone());
    // The lock and the keys that it guards share a shard.
    let Some(held) = locks.acquire("{runs}", &options).await? else { return Ok(None) };
    let before = client.get("{runs}/last").await?;
    let before = before.and_then(|pair| std::str::from_utf8(&pair.value).ok()?.parse().ok());
    let run = before.unwrap_or(0_u64) + 1;
    let guarded = PutOptions { guard: Some(held.guard().clone()), ..PutOptions::default() };
    // While this goes on the lease is kept alive; `held.lost()` would tell that it can't be.
    client.put_with("{runs}/last", run.to_string(), guarded).await?;
    held.release().await?;
    Ok(Some(run))
}
