//! Snapshots on their way to other members.
//!
//! A request is for a manifest, or for chunks by their places in it; everything proves itself by
//! its digest, so it does not matter who gives it. A member has one transfer from here at a time:
//! what it asks for first ends when it asks again, since it comes back only when its connection
//! is gone.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use proto::raft as pb;
use raft::{Digest, NodeId};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::store::{RANGES_MAX, Snapshots, StoreError};
use crate::wire;

/// How many members may fetch from this one at a time: each costs reads beside the log, and room
/// for a manifest.
const TRANSFERS_OUT_MAX: usize = 3;

/// How many chunks may wait for a connection.
const CHUNKS_WAITING_MAX: usize = 8;

/// A manifest is sent in pieces of this size.
const MANIFEST_PIECE_BYTES: usize = 32 << 10;

/// Gives snapshots to other members.
#[derive(Debug)]
pub(super) struct Giver {
    snapshots: Snapshots,
    /// Who fetches, and how that is ended: by dropping the sender.
    running: Mutex<BTreeMap<NodeId, oneshot::Sender<()>>>,
}

impl Giver {
    pub(super) fn new(snapshots: Snapshots) -> Self {
        Self { snapshots, running: Mutex::default() }
    }

    /// Streams what a member asks for.
    pub(super) fn give(
        &self,
        to: NodeId,
        request: &pb::FetchRequest,
    ) -> Result<impl Stream<Item = Result<pb::Chunk, Status>> + Send + use<>, Status> {
        let manifest = wire::digest(&request.manifest)
            .ok_or_else(|| Status::invalid_argument("the manifest's digest is not 32 bytes"))?;
        if request.ranges.len() > RANGES_MAX {
            let count = request.ranges.len();
            let message = format!("{count} ranges, over the limit ranges_max of {RANGES_MAX}");
            return Err(Status::invalid_argument(message));
        }
        let (snapshots, ranges) = (self.snapshots.clone(), request.ranges.clone());
        let (pieces, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
        let mut out = Out { pieces, ended: self.begin(to)?, runtime: Handle::current() };
        // The blocking task ends with the stream that it feeds; its result is in the stream.
        drop(tokio::task::spawn_blocking(move || {
            if let Err(status) = give(&snapshots, manifest, &ranges, &mut out) {
                // Who has gone, or does not take what is there, learns it from the end.
                let _ = out.pieces.try_send(Err(status));
            }
        }));
        Ok(ReceiverStream::new(waiting).inspect(count))
    }

    /// Ends the transfer to this member that runs, and begins another.
    fn begin(&self, to: NodeId) -> Result<oneshot::Receiver<()>, Status> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, end| !end.is_closed());
        if running.len() >= TRANSFERS_OUT_MAX && !running.contains_key(&to) {
            let message = format!(
                "{TRANSFERS_OUT_MAX} members fetch from this one, the limit transfers_out_max: ask \
                 again later"
            );
            return Err(Status::resource_exhausted(message));
        }
        let (end, ended) = oneshot::channel();
        running.insert(to, end);
        Ok(ended)
    }
}

/// Where the pieces go.
struct Out {
    pieces: mpsc::Sender<Result<pb::Chunk, Status>>,
    ended: oneshot::Receiver<()>,
    runtime: Handle,
}

impl Out {
    /// Blocks until there is room.
    fn send(&mut self, piece: pb::chunk::Kind) -> Result<(), Status> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = &mut self.ended => Err(Status::aborted("this member has asked again")),
                sent = self.pieces.send(Ok(pb::Chunk { kind: Some(piece) })) => {
                    sent.map_err(|_| Status::cancelled("nobody takes it any more"))
                }
            }
        })
    }
}

/// Reads and sends what is asked for.
fn give(
    snapshots: &Snapshots,
    manifest: Digest,
    ranges: &[pb::Range],
    out: &mut Out,
) -> Result<(), Status> {
    let damaged = |error: StoreError| Status::data_loss(error.to_string());
    let served = snapshots.serve(manifest).map_err(damaged)?;
    let mut served = served.ok_or_else(|| Status::not_found("this snapshot is not kept here"))?;
    if ranges.is_empty() {
        let encoded = served.manifest().encode();
        return encoded.chunks(MANIFEST_PIECE_BYTES).try_for_each(|piece| {
            out.send(pb::chunk::Kind::Manifest(Bytes::copy_from_slice(piece)))
        });
    }
    for place in places(ranges, served.manifest().chunks.len())? {
        out.send(pb::chunk::Kind::Data(served.chunk(place).map_err(damaged)?))?;
    }
    Ok(())
}

/// The places that are asked for, if the manifest has them all.
fn places(
    ranges: &[pb::Range],
    chunks: usize,
) -> Result<impl Iterator<Item = usize> + use<>, Status> {
    let mut end = 0;
    let mut checked = Vec::with_capacity(ranges.len());
    for &pb::Range { first, count } in ranges {
        let behind = first.checked_add(count).filter(|behind| *behind <= chunks as u64);
        let Some(behind) = behind.filter(|_| count > 0 && first >= end) else {
            return Err(Status::invalid_argument(format!(
                "{count} chunks from {first} on, behind those before {end}, of a manifest of {chunks}"
            )));
        };
        // Not more than the number of chunks, which fits.
        checked.push(first as usize..behind as usize);
        end = behind;
    }
    Ok(checked.into_iter().flatten())
}

/// Counts what the connection takes.
fn count(piece: &Result<pb::Chunk, Status>) {
    if let Ok(pb::Chunk { kind: Some(pb::chunk::Kind::Data(data)) }) = piece {
        metrics::counter!("flotilla_snapshot_chunks_sent_total").increment(1);
        metrics::counter!("flotilla_snapshot_bytes_sent_total").increment(data.len() as u64);
    }
}
