//! Snapshots on their way between members, on a connection of their own.
//!
//! A transfer is the manifest and then the chunks in its order. Everything is checked against the
//! digests that the leader's offer pins, so it does not matter who sent it.

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use proto::raft as pb;
use proto::raft::raft_client::RaftClient;
use raft::{Digest, SnapshotRoot};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Peers;
use crate::store::Snapshots;

/// How many chunks may wait for the connection, or for the disk.
const CHUNKS_WAITING_MAX: usize = 32;

/// How long a transfer may stand still.
const STALL_LIMIT: Duration = Duration::from_secs(10);

/// The manifest is sent in pieces of this size.
const MANIFEST_PIECE_BYTES: usize = 32 << 10;

/// The largest manifest, in bytes: some four million chunks.
const MANIFEST_BYTES_MAX: usize = 256 << 20;

/// The largest message of a transfer.
const CHUNK_MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Streams the snapshot whose manifest has this digest.
pub(crate) async fn serve(
    snapshots: &Snapshots,
    manifest: Digest,
) -> Result<impl Stream<Item = Result<pb::Chunk, Status>> + Send + use<>, Status> {
    let snapshots = snapshots.clone();
    let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let reading = tokio::task::spawn_blocking(move || {
        let encoded = match snapshots.manifest(manifest) {
            Ok(Some(encoded)) => encoded,
            Ok(None) => {
                return send(&chunks, Err(Status::not_found("this snapshot is not kept here")));
            }
            Err(error) => return send(&chunks, Err(Status::data_loss(error.to_string()))),
        };
        for piece in encoded.chunks(MANIFEST_PIECE_BYTES) {
            let piece = pb::chunk::Kind::Manifest(Bytes::copy_from_slice(piece));
            if !send(&chunks, Ok(pb::Chunk { kind: Some(piece) })) {
                return false;
            }
        }
        snapshots.read(manifest).all(|chunk| {
            let chunk = chunk
                .map(|data| pb::Chunk { kind: Some(pb::chunk::Kind::Data(data)) })
                .map_err(|error| Status::data_loss(error.to_string()));
            send(&chunks, chunk)
        })
    });
    // The blocking task ends with the stream that it feeds; its result is in the stream.
    drop(reading);
    Ok(ReceiverStream::new(waiting))
}

fn send(
    chunks: &mpsc::Sender<Result<pb::Chunk, Status>>,
    chunk: Result<pb::Chunk, Status>,
) -> bool {
    let go_on = chunk.is_ok();
    chunks.blocking_send(chunk).is_ok() && go_on
}

/// Fetches a snapshot from the member at `address`, stores it durably, and gives its chunks.
pub(crate) async fn fetch(
    peers: &Peers,
    address: &str,
    root: SnapshotRoot,
    snapshots: Snapshots,
) -> Result<Vec<Bytes>, String> {
    let channel = super::connect(address).map_err(|failure| failure.to_string())?;
    let mut client = RaftClient::new(channel).max_decoding_message_size(CHUNK_MESSAGE_BYTES_MAX);
    let request = pb::FetchRequest {
        from: Some(peers.identity()),
        manifest: Bytes::copy_from_slice(&root.manifest.0),
        only: Vec::new(),
    };
    let fetching = unless_it_stalls(client.fetch(request));
    let mut stream = fetching.await?.into_inner();
    let (pieces, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let storing = tokio::task::spawn_blocking(move || receive(&snapshots, &root, waiting));
    while let Some(piece) = unless_it_stalls(stream.message()).await? {
        let kind = piece.kind.ok_or("a malformed transfer")?;
        if pieces.send(kind).await.is_err() {
            break; // What is wrong with it, the blocking task tells.
        }
    }
    drop(pieces);
    storing.await.map_err(|error| error.to_string())?
}

/// What the giver sends next. However large a snapshot is, each piece of it comes soon, or the
/// giver's disk hangs, and another may be asked.
async fn unless_it_stalls<T>(step: impl Future<Output = Result<T, Status>>) -> Result<T, String> {
    match tokio::time::timeout(STALL_LIMIT, step).await {
        Ok(step) => step.map_err(|status| status.to_string()),
        Err(_) => Err(format!("nothing came for {STALL_LIMIT:?}")),
    }
}

/// Stores what comes in and gives it back.
fn receive(
    snapshots: &Snapshots,
    root: &SnapshotRoot,
    mut pieces: mpsc::Receiver<pb::chunk::Kind>,
) -> Result<Vec<Bytes>, String> {
    let mut manifest = Vec::new();
    let mut first = None;
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            pb::chunk::Kind::Manifest(piece)
                if manifest.len() + piece.len() <= MANIFEST_BYTES_MAX =>
            {
                manifest.extend_from_slice(&piece);
            }
            pb::chunk::Kind::Manifest(_) => {
                return Err(format!("the manifest exceeds {MANIFEST_BYTES_MAX} bytes"));
            }
            pb::chunk::Kind::Data(data) => {
                first = Some(data);
                break;
            }
        }
    }
    let rest = std::iter::from_fn(|| match pieces.blocking_recv()? {
        pb::chunk::Kind::Data(data) => Some(data),
        pb::chunk::Kind::Manifest(_) => None,
    });
    snapshots
        .receive(root, &manifest, first.into_iter().chain(rest))
        .map_err(|error| error.to_string())
}
