//! H4, a shard arrives as it was sent: with the digest of everything that moves, exactly-once rows
//! among it, at the revision and at the time at which it was frozen; and no copy is thrown away
//! because it is another one.

use kvd::{outcome::Refusal, step::Deed};

use super::{
    Violation,
    custodians::{Custodians, Stride},
};

pub(super) fn check(custodians: &Custodians, stride: &Stride<'_>) -> Result<(), Violation> {
    let (shard, number) = (stride.step.shard, stride.step.number);
    if let Some(Refusal::BadHandoff { .. } | Refusal::HandoffDiffers { .. }) = stride.refusal() {
        return stride.broken("H4", "what came is not what was sent");
    }
    if !matches!(stride.step.deed, Deed::Install { .. }) || !stride.begins_to_serve() {
        return Ok(());
    }
    let Some((frozen, digest)) = custodians.handed(shard, number) else {
        return stride.broken("H4", "it is installed, and was never frozen");
    };
    let here = stride.executed.contents(shard).map(|contents| contents.digest());
    let header = stride.executed.response.header;
    if here != Some(digest) || (header.revision, header.time) != (frozen.revision, frozen.time) {
        let what = format!("it is another one: {header:?} with {here:?}, {frozen:?} with {digest}");
        return stride.broken("H4", &what);
    }
    Ok(())
}
