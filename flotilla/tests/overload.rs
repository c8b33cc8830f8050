//! A leader whose followers are silent takes on what it may and refuses the rest at once, with the
//! limit that was reached; when they are back, nothing of what was taken on is lost.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::time::Duration;

use client::{Error, KvClient, Options, Rejected};
use flotilla::local::Instance;
use support::{READY_TIMEOUT, TestCluster, Watchdog};
use tokio::task::JoinSet;

const CLIENTS: usize = 200;

#[tokio::test]
async fn overload_is_an_exact_error() {
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let mut test = TestCluster::start(3, 0, |plan| {
        let settings = plan.dir.join("kvd.toml");
        // A leader that takes its time to notice that it is alone.
        let text = "[group]\nuncommitted_bytes_max = 100000\nelection_ticks_min = 150\n";
        std::fs::write(&settings, text).unwrap();
        plan.further.kvd = vec![format!("--config={}", settings.display())];
    })
    .await;
    let endpoint = test.cluster.description().kv_endpoints().remove(0);
    let leader = client::admin::status(&endpoint, READY_TIMEOUT).await.unwrap().leader;
    let others: Vec<_> =
        (1..=3).filter(|node| u64::from(*node) != leader).map(Instance::Kvd).collect();
    let at = test.cluster.description().place.kvd(u16::try_from(leader).unwrap()).to_string();
    let options = Options::with_deadline(Duration::from_secs(2));
    let client = KvClient::connect(vec![at], options).unwrap();
    // The client learns the time of the shard, which all keys of one tag share.
    client.put("{one}", "value").await.unwrap();
    for other in &others {
        test.cluster.pause(*other).unwrap();
    }
    let mut puts = JoinSet::new();
    for number in 0..CLIENTS {
        let client = client.clone();
        puts.spawn(async move { client.put(format!("{{one}}-{number}"), vec![7; 1_000]).await });
    }
    let ended = puts.join_all().await;
    assert!(ended.iter().all(Result::is_err), "nothing can be committed");
    let is_over = |put: &&Result<_, Error>| match put {
        Err(Error::Rejected(Rejected::Limit(why))) => why.contains("uncommitted_bytes_max"),
        Ok(_) | Err(_) => false,
    };
    let over = ended.iter().filter(is_over).count();
    println!("{over} of {CLIENTS} puts were over the limit");
    // Some 90 of a kilobyte each fit.
    assert!((100..CLIENTS).contains(&over), "{over} of {CLIENTS} were over the limit");
    for other in others {
        test.cluster.resume(other).unwrap();
    }
    let client = test.kv(READY_TIMEOUT);
    for number in 0..CLIENTS {
        client.put(format!("{{one}}-{number}"), "small").await.unwrap();
    }
}
