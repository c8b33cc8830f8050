//! Clients that write without a pause, and whether all that they were promised is there.

use std::sync::Arc;

use client::KvClient;
use daemon::{Code, Failure};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::output::refused;

/// How many clients write.
pub(super) const WRITERS: u32 = 8;

/// How many requests are in flight when everything is read back.
const READERS: usize = 32;

/// A write that was acknowledged.
#[derive(Debug)]
pub(super) struct Acknowledged {
    key: String,
    value: String,
    pub(super) asked: Instant,
    pub(super) at: Instant,
}

/// What the writers say.
#[derive(Debug)]
pub(super) enum Told {
    Acknowledged(Acknowledged),
    /// Nobody knows whether it was executed, which is no promise that could be broken.
    Unknown,
    Failed(Failure),
}

/// Those who write. They end with this.
pub(super) struct Writers {
    pub(super) told: mpsc::Receiver<Told>,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Writers {
    pub(super) fn start(client: &KvClient) -> Self {
        let stop = CancellationToken::new();
        let (sender, told) = mpsc::channel(1_024);
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            tasks.spawn(write(client.clone(), writer, sender.clone(), stop.clone()));
        }
        Self { told, stop, _tasks: tasks }
    }

    /// What one says next.
    pub(super) async fn next(&mut self, deadline: Instant) -> Result<Told, Failure> {
        let next = timeout_at(deadline, self.told.recv()).await.ok().flatten();
        next.ok_or_else(|| Failure::new(Code::Failed, "the store does not take writes any more"))
    }

    /// Lets each end its last write; what they say ends then.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }
}

/// Writes one key after the other until it is told to stop.
async fn write(client: KvClient, writer: u32, told: mpsc::Sender<Told>, stop: CancellationToken) {
    for number in 0_u64.. {
        if stop.is_cancelled() {
            return;
        }
        let (key, value) =
            (format!("log/{writer}/{number}"), format!("entry {number} of {writer}"));
        let asked = Instant::now();
        let outcome = match client.put(key.clone(), value.clone()).await {
            Ok(_) => Told::Acknowledged(Acknowledged { key, value, asked, at: Instant::now() }),
            Err(client::Error::Unknown(_)) => Told::Unknown,
            Err(error @ client::Error::Rejected(_)) => Told::Failed(refused(error)),
        };
        if told.send(outcome).await.is_err() {
            return;
        }
    }
}

/// How many acknowledged writes cannot be read.
pub(super) async fn missing(client: &KvClient, writes: Vec<Acknowledged>) -> Result<u64, Failure> {
    let writes = Arc::new(writes);
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let (client, writes) = (client.clone(), writes.clone());
        readers.spawn(async move {
            let mut missing = 0;
            for write in writes.iter().skip(reader).step_by(READERS) {
                let found = client.get(write.key.clone()).await?;
                missing += u64::from(found.is_none_or(|found| found.value != write.value));
            }
            Ok(missing)
        });
    }
    let mut missing = 0;
    while let Some(joined) = readers.join_next().await {
        let counted =
            joined.map_err(|error| Failure::new(Code::Failed, "a reader failed").because(error))?;
        missing += counted.map_err(refused)?;
    }
    Ok(missing)
}
