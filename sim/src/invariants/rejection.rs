//! H5, a group executes nothing on a shard that it does not serve: it refuses, by the log, and keeps
//! nothing of the request; and refuses nothing for that on one that it serves.

use kvd::outcome::Refusal;

use super::{
    Violation,
    custodians::{Custodians, serves},
    ghost::Executed,
};
use crate::group::GroupId;

pub(super) fn check(
    custodians: &Custodians,
    group: GroupId,
    executed: &Executed,
) -> Result<(), Violation> {
    let (shard, result) = (executed.response.header.shard, &executed.response.result);
    let standing = custodians.standing(shard, group);
    let refused = matches!(result, Err(Refusal::NotServed { .. }));
    let broken = |what: &str| {
        let (index, custody) = (executed.index, standing.custody);
        let what = format!("at {index}: {what}: {custody:?}: {result:?}");
        Err(Violation::new("H5", what))
    };
    match (serves(standing.custody), refused) {
        (false, false) => broken("it executes what it does not serve"),
        (true, true) => broken("it refuses what it serves"),
        (true, false) => Ok(()),
        (false, true) => {
            let now = executed.contents(shard).map(|contents| contents.digest());
            let same = standing.digest.is_none() || standing.digest == now;
            if same { Ok(()) } else { broken("it keeps something of what it refuses") }
        }
    }
}
