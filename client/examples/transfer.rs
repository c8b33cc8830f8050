//! Moves an amount between two accounts, whoever else does so at the same time.
//!
//! `cargo run -p flotilla-client --example transfer -- 127.0.0.1:7300`. A transaction compares the
//! revisions of what was read, so that it is executed only if nobody was faster; and it is executed
//! once, even if its answer gets lost on the way.

use flotilla_client::{Error, KvClient, Options, Outcome, Pair, PutOptions, Txn};

/// A common `{tag}` keeps keys in one shard, as those of a transaction have to be.
const FROM: &str = "{bank}/anna";
const TO: &str = "{bank}/ben";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoints = std::env::args().skip(1).collect();
    let client = KvClient::connect(endpoints, Options::default())?;
    client.put(FROM, "100").await?;
    let left = transfer(&client, 30).await?;
    println!("{FROM} has {left}");
    println!("{}", careful(&client).await);
    Ok(())
}

/// Moves `amount`; what is left.
pub(crate) async fn transfer(client: &KvClient, amount: i64) -> Result<i64, Error> {
    loop {
        let (from, to) = (client.get(FROM).await?, client.get(TO).await?);
        let (left, had) = (balance(from.as_ref()) - amount, balance(to.as_ref()) + amount);
        let txn = Txn::new()
            .when_mod_revision(FROM, revision(from.as_ref()))
            .when_mod_revision(TO, revision(to.as_ref()))
            .put(FROM, left.to_string())
            .put(TO, had.to_string());
        if client.txn(txn).await?.succeeded {
            return Ok(left);
        }
        // Somebody else was faster: what was read is no longer so.
    }
}

/// What an outcome means, for those who have to know more than whether it went well.
pub(crate) async fn careful(client: &KvClient) -> String {
    match client.put_raw("key".into(), "value".into(), PutOptions::default()).await {
        Outcome::Done(reply) => format!("written: {:?}", reply.outcome),
        Outcome::Rejected(rejected) => format!("not written, now or ever: {rejected}"),
        Outcome::Unknown(unknown) => format!("written or not; read the key to know: {unknown}"),
    }
}

fn balance(pair: Option<&Pair>) -> i64 {
    let value = pair.and_then(|pair| std::str::from_utf8(&pair.value).ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// 0: the key does not exist.
fn revision(pair: Option<&Pair>) -> u64 {
    pair.map_or(0, |pair| pair.mod_revision)
}
