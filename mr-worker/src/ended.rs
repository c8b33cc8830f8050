//! What is done about an attempt that has ended, before it is reported.

use std::sync::Arc;

use proto::mapreduce::{Assignment, FailureReason};

use crate::{
    part::{self, PART_FILE},
    paths::Root,
    slot::End,
    task,
};

/// Looks which record a careful attempt was at when its process ended.
pub(crate) async fn locate(end: End, root: Arc<Root>, assignment: Assignment) -> End {
    let End::Failure(mut reason) = end else { return end };
    if !assignment.careful {
        return End::Failure(reason);
    }
    let looked = tokio::task::spawn_blocking(move || {
        task::add_place(&mut reason, &root, &assignment);
        reason
    });
    let lost = |error| task::internal(format!("a look at an attempt's place: {error}"));
    End::Failure(looked.await.unwrap_or_else(lost))
}

/// Makes the part that an attempt wrote durable. Blocks.
///
/// # Errors
/// Why it can't.
pub(crate) fn sync_part(root: &Root, attempt_dir: &str) -> Result<(), FailureReason> {
    // There it was made durable by who wrote it.
    if root.is_remote() {
        return Ok(());
    }
    let dir = root.own(attempt_dir).map_err(|error| task::internal(error.to_string()))?;
    let synced = part::sync(&dir.join(PART_FILE));
    synced.map_err(|failure| task::reason(failure, &Assignment::default()))
}
