//! Taking in the files that jobs send along.

use std::time::Duration;

use proto::mapreduce as pb;
use tonic::{Code, Status, Streaming};

use super::{Desk, never, refuse, stopping};
use crate::{
    blobs::{BlobError, Upload},
    limits::{BLOB_CHUNK_BYTES_MAX, UPLOADS_MAX},
};

/// How long the next piece may take to come, and to be written.
const PIECE_LIMIT: Duration = Duration::from_secs(30);

impl Desk {
    pub(super) async fn put_blob(
        &self,
        mut pieces: Streaming<pb::BlobChunk>,
    ) -> Result<pb::BlobRef, Status> {
        // Only who leads has made sure that the root is its group's.
        if !self.handle.leads() {
            return Err(self.not_leader());
        }
        let _room = self.uploads.try_acquire().map_err(|_| {
            let message = format!("{UPLOADS_MAX} files are being sent (limit uploads_max)");
            refuse(Code::ResourceExhausted, message)
        })?;
        let (root, bytes_max) = (self.root.clone(), self.blob_bytes_max);
        let mut upload = self.on_disk(move || Upload::begin(&root, bytes_max)).await?;
        loop {
            let next = tokio::time::timeout(PIECE_LIMIT, pieces.message()).await;
            let late = |_| never(Status::deadline_exceeded("the next piece does not come"));
            let Some(pb::BlobChunk { data }) = next.map_err(late)?? else { break };
            if data.len() > BLOB_CHUNK_BYTES_MAX {
                let message = format!(
                    "a piece has {} bytes, more than {BLOB_CHUNK_BYTES_MAX} (limit \
                     blob_chunk_bytes_max)",
                    data.len()
                );
                return Err(refuse(Code::InvalidArgument, message));
            }
            upload = self.on_disk(move || upload.push(&data).map(|()| upload)).await?;
        }
        let blob = self.on_disk(move || upload.finish()).await?;
        Ok(pb::BlobRef { sha256: blob.sha256.to_vec().into(), bytes: blob.bytes })
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        step: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, Status> {
        let asked = self.lanes.uploads.ask(step);
        let answered = asked.map_err(|full| refuse(Code::ResourceExhausted, full.to_string()))?;
        match tokio::time::timeout(PIECE_LIMIT, answered).await {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(error @ BlobError::TooLong(_)))) => {
                Err(refuse(Code::InvalidArgument, error.to_string()))
            }
            Ok(Ok(Err(error @ BlobError::Io(_)))) => {
                Err(refuse(Code::FailedPrecondition, error.to_string()))
            }
            Ok(Err(_)) => Err(never(stopping())),
            Err(_) => Err(refuse(
                Code::FailedPrecondition,
                "writing on the shared filesystem takes too long; is it in trouble?",
            )),
        }
    }
}
