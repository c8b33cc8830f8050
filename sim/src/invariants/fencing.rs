//! H2, what is old changes nothing: the latest move that is over in a group never falls, a step of it
//! or an earlier one leaves the shard alone, and so does one that is refused; a Freeze that comes again
//! tells what the first told.

use kvd::{
    outcome::Refusal,
    step::{Deed, Stepped},
};

use super::{
    Violation,
    custodians::{Custodians, Stride, stepped},
};

pub(super) fn check(custodians: &Custodians, stride: &Stride<'_>) -> Result<(), Violation> {
    let (before, after) = (stride.before, stride.after);
    let (shard, number) = (stride.step.shard, stride.step.number);
    if after.custody.settled < before.custody.settled {
        return stride.broken("H2", "a move is over no more");
    }
    let changed =
        before.custody != after.custody || before.digest.is_some() && before.digest != after.digest;
    // What is discarded may be of any move, and goes piece by piece.
    let discards = matches!(stride.step.deed, Deed::Discard);
    if number <= before.custody.settled && !discards && changed {
        return stride.broken("H2", "a step of a move that is over changes something");
    }
    let thrown_away = matches!(
        stride.refusal(),
        Some(Refusal::BadHandoff { .. } | Refusal::HandoffDiffers { .. })
    );
    if stride.refusal().is_some() && !thrown_away && changed {
        return stride.broken("H2", "a refused step changes something");
    }
    if let Some(Stepped::Frozen(frozen)) = stepped(stride.executed)
        && custodians.handed(shard, number).is_some_and(|(first, _)| first != frozen)
    {
        return stride.broken("H2", "what is frozen has changed");
    }
    Ok(())
}
