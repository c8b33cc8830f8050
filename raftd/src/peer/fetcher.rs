//! Snapshots on their way here, each on a connection of its own.
//!
//! A transfer is the manifest, and then the chunks of it that are missing. It is checked against
//! what the leader offered and stored as it comes, so whatever breaks it off, the next attempt asks
//! only for the rest. As long as who gives it can be had it is brought to its end, whoever leads
//! meanwhile; else it gives way to what is offered now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::raft as pb;
use proto::raft::raft_client::RaftClient;
use raft::{Index, Install, NodeId, SnapshotRoot};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::{Directory, Peers};
use crate::handle::Transferring;
use crate::store::{Manifest, ReceiveError, Receiving, Snapshots};

/// How many chunks may wait for the disk.
const CHUNKS_WAITING_MAX: usize = 8;

/// How much may be under way on the connection: as much as is written between two syncs, so that
/// a cut loses little and the disk does not wait for the network.
const WINDOW_BYTES: u32 = 256 << 10;

/// How long a transfer may stand still.
const STALL_LIMIT: Duration = Duration::from_secs(10);

/// How long to go on asking a giver from whom nothing comes any more.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait before it is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause before a giver is asked again that has no room; each is twice the one before.
const TURN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long a giver without room is waited for: others may offer what it gives.
const TURN_WAIT_MAX: Duration = Duration::from_secs(60);

/// The largest manifest, in bytes: some seven million chunks.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// The largest message of a transfer.
const CHUNK_MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Fetches snapshots. At most one transfer runs at a time.
#[derive(Clone, Debug)]
pub(crate) struct Fetcher {
    pub(crate) snapshots: Snapshots,
    pub(crate) peers: Arc<Peers>,
    pub(crate) directory: Arc<Directory>,
    /// How far the transfer that runs has come.
    pub(crate) progress: watch::Sender<Option<Transferring>>,
}

/// Why a transfer broke off.
#[derive(Debug)]
enum Broken {
    /// The giver may go on.
    Later(String),
    /// The giver is there, and others fetch from it.
    Busy(String),
    /// It will not.
    ForGood(String),
}

impl Fetcher {
    /// Brings the transfer to its end that ran when the process ended, if it leads beyond `commit`
    /// and its giver can be had, else fetches what is offered. What is whole and durable now.
    ///
    /// # Errors
    /// Why nothing could be fetched; what has come stays.
    pub(crate) async fn fetch(
        &self,
        offered: Install,
        commit: Index,
    ) -> Result<SnapshotRoot, String> {
        let snapshots = self.snapshots.clone();
        let before = blocking(move || snapshots.transfer()).await?;
        let before = before.filter(|transfer| {
            let root = &transfer.root;
            Some(transfer.group) == self.peers.group().map(|group| group.id)
                && root.manifest != offered.root.manifest
                && root.position.index > commit
        });
        if let Some(transfer) = before {
            match self.fetch_from(Install { from: transfer.from, root: transfer.root }).await {
                Ok(root) => return Ok(root),
                Err(reason) => info!(reason, "an earlier transfer gives way to a newer offer"),
            }
        }
        self.fetch_from(offered).await
    }

    async fn fetch_from(&self, install: Install) -> Result<SnapshotRoot, String> {
        let Install { from, root } = install;
        let fetched = match self.reach(from) {
            Ok(client) => {
                Transfer { fetcher: self, client, from, root, receiving: None }.run().await
            }
            Err(reason) => Err(reason),
        };
        self.progress.send_replace(None);
        if fetched.is_err() {
            let snapshots = self.snapshots.clone();
            blocking(move || snapshots.give_up()).await?;
        }
        fetched
    }

    fn reach(&self, giver: NodeId) -> Result<RaftClient<Channel>, String> {
        // A leader that is newer than this member's log has said hello.
        let known = self.directory.member(giver).map(|member| member.peer_address);
        let address = known.or_else(|| self.peers.caller(giver));
        let address = address.ok_or_else(|| format!("member {giver} has not said hello"))?;
        let endpoint = super::endpoint(&address).map_err(|failure| failure.to_string())?;
        let channel = endpoint
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .connect_lazy();
        Ok(RaftClient::new(channel).max_decoding_message_size(CHUNK_MESSAGE_BYTES_MAX))
    }
}

/// A transfer from one giver.
struct Transfer<'a> {
    fetcher: &'a Fetcher,
    client: RaftClient<Channel>,
    from: NodeId,
    root: SnapshotRoot,
    /// Some: the manifest is here.
    receiving: Option<Receiving>,
}

impl Transfer<'_> {
    async fn run(mut self) -> Result<SnapshotRoot, String> {
        let (mut until, mut turn_pause) = (Instant::now() + PATIENCE, RETRY_PAUSE);
        let mut waiting: Option<Instant> = None;
        loop {
            let before = self.done();
            let reason = match self.attempt().await {
                Ok(()) => break,
                Err(Broken::ForGood(reason)) => return Err(reason),
                Err(Broken::Later(reason)) => reason,
                Err(Broken::Busy(reason)) => {
                    let since = *waiting.get_or_insert_with(Instant::now);
                    if since.elapsed() >= TURN_WAIT_MAX {
                        return Err(reason);
                    }
                    if turn_pause == RETRY_PAUSE {
                        info!(reason, from = %self.from, "waiting for a turn to fetch a snapshot");
                    }
                    tokio::time::sleep(turn_pause).await;
                    turn_pause = (2 * turn_pause).min(TURN_PAUSE_MAX);
                    until = Instant::now() + PATIENCE;
                    continue;
                }
            };
            (turn_pause, waiting) = (RETRY_PAUSE, None);
            if self.done() > before {
                until = Instant::now() + PATIENCE;
            } else if Instant::now() >= until {
                return Err(reason);
            }
            warn!(reason, from = %self.from, "a transfer broke off, and goes on");
            metrics::counter!("flotilla_snapshot_resumes_total").increment(1);
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let receiving = self.receiving.ok_or("a transfer without a manifest")?;
        let finished = blocking(move || receiving.finish()).await?;
        finished.map_err(|error| error.to_string())
    }

    /// How much is here; none, as long as the manifest is not.
    fn done(&self) -> Option<u64> {
        self.receiving.as_ref().map(Receiving::done_bytes)
    }

    /// Asks for what is missing until nothing is.
    async fn attempt(&mut self) -> Result<(), Broken> {
        let mut receiving = match self.receiving.take() {
            Some(receiving) => receiving,
            None => self.begin().await?,
        };
        loop {
            let wanted = receiving.wanted().into_iter();
            let ranges = wanted
                .map(|range| pb::Range { first: range.start as u64, count: range.len() as u64 });
            let ranges: Vec<_> = ranges.collect();
            if ranges.is_empty() {
                self.receiving = Some(receiving);
                return Ok(());
            }
            let received;
            (receiving, received) = self.receive(receiving, ranges).await?;
            if received.is_err() {
                self.receiving = Some(receiving);
                return received;
            }
        }
    }

    /// Has the manifest stored, if it is not here, and finds what is missing.
    async fn begin(&mut self) -> Result<Receiving, Broken> {
        let (snapshots, root, from) =
            (self.fetcher.snapshots.clone(), self.root.clone(), self.from);
        let name = root.manifest;
        let kept = blocking({
            let snapshots = snapshots.clone();
            move || (snapshots.transfer().is_some(), snapshots.manifest(name))
        });
        // One that is damaged is fetched again; that the machine refuses ends the process.
        let (resumes, encoded) = kept.await?;
        let encoded = match encoded.ok().flatten() {
            Some(encoded) => encoded,
            None => self.fetch_manifest().await?,
        };
        let group = self.fetcher.peers.group().ok_or("the group is not born".to_owned())?.id;
        let receiving = blocking(move || snapshots.begin(group, from, &root, &encoded)).await??;
        metrics::counter!("flotilla_snapshot_chunks_skipped_total")
            .increment(receiving.skipped() as u64);
        metrics::counter!("flotilla_snapshot_resumes_total").increment(u64::from(resumes));
        let (index, bytes) = (receiving.root().position.index, receiving.root().bytes);
        let here = receiving.done_bytes();
        info!(%from, %index, bytes, here, "fetching the chunks that are missing");
        self.fetcher.progress.send_replace(Some(transferring(from, &receiving)));
        Ok(receiving)
    }

    async fn fetch_manifest(&mut self) -> Result<Vec<u8>, Broken> {
        let bytes = Manifest::encoded_bytes(self.root.chunks);
        if bytes.is_none_or(|bytes| bytes > MANIFEST_BYTES_MAX) {
            return Err(Broken::ForGood(format!(
                "a manifest of {} chunks is larger than {MANIFEST_BYTES_MAX} bytes",
                self.root.chunks
            )));
        }
        let mut stream = self.ask(Vec::new()).await?;
        let mut encoded = Vec::new();
        while let Some(piece) = unless_it_stalls(stream.message()).await? {
            let Some(pb::chunk::Kind::Manifest(piece)) = piece.kind else {
                return Err(Broken::ForGood("a malformed transfer: no manifest".to_owned()));
            };
            encoded.extend_from_slice(&piece);
            if bytes.is_some_and(|bytes| encoded.len() as u64 > bytes) {
                return Err(Broken::ForGood("the manifest is longer than was offered".to_owned()));
            }
        }
        if bytes.is_some_and(|bytes| (encoded.len() as u64) < bytes) {
            return Err(Broken::Later("the manifest broke off".to_owned()));
        }
        Ok(encoded)
    }

    /// Stores what is asked for. What has come stays, however it ends.
    async fn receive(
        &mut self,
        mut receiving: Receiving,
        ranges: Vec<pb::Range>,
    ) -> Result<(Receiving, Result<(), Broken>), Broken> {
        let asked: u64 = ranges.iter().map(|range| range.count).sum();
        let mut stream = match self.ask(ranges).await {
            Ok(stream) => stream,
            Err(broken) => return Ok((receiving, Err(broken))),
        };
        let (chunks, mut waiting) = mpsc::channel::<Bytes>(CHUNKS_WAITING_MAX);
        let (progress, from) = (self.fetcher.progress.clone(), self.from);
        let storing = tokio::task::spawn_blocking(move || {
            let mut stored = Ok(());
            while let (Ok(()), Some(chunk)) = (&stored, waiting.blocking_recv()) {
                stored = receiving.put(&chunk);
                progress.send_replace(Some(transferring(from, &receiving)));
            }
            (receiving, stored)
        });
        let came = pass_on(&mut stream, chunks, asked).await;
        let (receiving, stored) = storing.await.map_err(Broken::from)?;
        Ok((receiving, stored.map_err(Broken::from).and(came)))
    }

    async fn ask(&mut self, ranges: Vec<pb::Range>) -> Result<tonic::Streaming<pb::Chunk>, Broken> {
        let request = pb::FetchRequest {
            from: Some(self.fetcher.peers.identity()),
            manifest: Bytes::copy_from_slice(&self.root.manifest.0),
            ranges,
        };
        Ok(unless_it_stalls(self.client.fetch(request)).await?.into_inner())
    }
}

fn transferring(from: NodeId, receiving: &Receiving) -> Transferring {
    let (done_bytes, total_bytes) = (receiving.done_bytes(), receiving.root().bytes);
    Transferring { from, done_bytes, total_bytes }
}

/// Hands chunks on as they come, until there are no more.
async fn pass_on(
    stream: &mut tonic::Streaming<pb::Chunk>,
    chunks: mpsc::Sender<Bytes>,
    asked: u64,
) -> Result<(), Broken> {
    let mut came = 0;
    while let Some(piece) = unless_it_stalls(stream.message()).await? {
        let Some(pb::chunk::Kind::Data(chunk)) = piece.kind else {
            return Err(Broken::ForGood("a malformed transfer: no chunk".to_owned()));
        };
        if chunks.send(chunk).await.is_err() {
            return Ok(()); // What is wrong with those before it, the blocking task tells.
        }
        came += 1;
    }
    if came < asked {
        return Err(Broken::Later(format!("{came} of {asked} chunks came")));
    }
    Ok(())
}

/// What the giver sends next. However large a snapshot is, each piece of it comes soon, or the
/// giver's disk hangs, and another may be asked.
async fn unless_it_stalls<T>(step: impl Future<Output = Result<T, Status>>) -> Result<T, Broken> {
    match tokio::time::timeout(STALL_LIMIT, step).await {
        Ok(step) => step.map_err(Broken::from),
        Err(_) => Err(Broken::Later(format!("nothing came for {STALL_LIMIT:?}"))),
    }
}

/// Does what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        let reason = status.to_string();
        match status.code() {
            Code::NotFound
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::DataLoss
            | Code::OutOfRange
            | Code::Unimplemented => Self::ForGood(reason),
            Code::ResourceExhausted => Self::Busy(reason),
            _ => Self::Later(reason),
        }
    }
}

impl From<ReceiveError> for Broken {
    fn from(error: ReceiveError) -> Self {
        Self::ForGood(error.to_string())
    }
}

impl From<JoinError> for Broken {
    fn from(error: JoinError) -> Self {
        Self::ForGood(error.to_string())
    }
}

impl From<String> for Broken {
    fn from(reason: String) -> Self {
        Self::ForGood(reason)
    }
}
