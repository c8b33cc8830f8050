//! H8, groups do only what the controller has decided: a step changes how a shard stands only at the
//! two ends of the move that it names, and only if the controller has begun that.

use kvd::step::Deed;

use super::{
    Violation,
    custodians::{Begun, Custodians, Stride},
};

pub(super) fn check(custodians: &Custodians, stride: &Stride<'_>) -> Result<(), Violation> {
    if !stride.moved() {
        return Ok(());
    }
    let Some(begun) = custodians.begun(stride.step.shard, stride.step.number) else {
        // What is discarded goes by the latest number that is over, whichever that is.
        let discards = matches!(stride.step.deed, Deed::Discard);
        return if discards { Ok(()) } else { stride.broken("H8", "nobody has begun that move") };
    };
    let Begun { from, to } = begun;
    let end = match stride.step.deed {
        Deed::Hold | Deed::Freeze | Deed::Cancel | Deed::Unfreeze | Deed::Delete => from,
        Deed::Create
        | Deed::Begin { .. }
        | Deed::Import { .. }
        | Deed::Install { .. }
        | Deed::Abort
        | Deed::Restart => Some(to),
        Deed::Discard => return Ok(()),
    };
    if end == Some(stride.group) {
        Ok(())
    } else {
        stride.broken("H8", &format!("it is at neither end of the move: {begun:?}"))
    }
}
