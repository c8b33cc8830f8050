//! Keeps a copy of all keys with a prefix.
//!
//! `cargo run -p flotilla-client --example follow -- jobs/ 127.0.0.1:7300`. A scan tells where its
//! first page stood, and a watch goes on from there: nothing is missed between the two, and nothing
//! while members die. When changes that are needed are compacted, it begins anew.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_client::{
    Error, Event, Keys, KvClient, Options, ScanOptions, Watch, WatchOptions, Watched,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let prefix = arguments.next().unwrap_or_default();
    let client = KvClient::connect(arguments.collect(), Options::default())?;
    let mut follower = Follower::new(&client, prefix).await?;
    loop {
        println!("{} keys", follower.copy.len());
        follower.next(&client).await?;
    }
}

/// A copy that follows what it is a copy of.
pub(crate) struct Follower {
    prefix: Bytes,
    pub(crate) copy: BTreeMap<Bytes, Bytes>,
    watch: Watch,
}

impl Follower {
    /// Reads what is there.
    pub(crate) async fn new(client: &KvClient, prefix: impl Into<Bytes>) -> Result<Self, Error> {
        let prefix = prefix.into();
        let keys = Keys::Prefix(prefix.clone());
        let options = ScanOptions { position: true, ..ScanOptions::default() };
        let mut scan = client.scan(keys.clone(), options);
        let mut copy = BTreeMap::new();
        while let Some(page) = scan.next().await? {
            copy.extend(page.into_iter().map(|(key, pair)| (key, pair.value)));
        }
        let after = scan.position().cloned().unwrap_or_default();
        let watch = client.watch(vec![keys], WatchOptions { after, ..WatchOptions::default() });
        Ok(Self { prefix, copy, watch })
    }

    /// Waits for the next change and takes it in.
    pub(crate) async fn next(&mut self, client: &KvClient) -> Result<(), Error> {
        match self.watch.next().await? {
            Some(Watched::Changed { events, .. }) => {
                for Event { key, pair, .. } in events {
                    match pair {
                        Some(pair) => self.copy.insert(key, pair.value),
                        None => self.copy.remove(&key),
                    };
                }
            }
            Some(Watched::Progress) => {}
            Some(Watched::Compacted { .. }) | None => {
                *self = Self::new(client, self.prefix.clone()).await?;
            }
        }
        Ok(())
    }
}
