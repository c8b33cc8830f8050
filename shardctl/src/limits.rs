//! Every limit of the controller, by name. They are the same on all members and no settings, since
//! what is refused is decided by the machine.

/// The most shards of a cluster.
pub const SHARDS_MAX: u32 = 16 * 1024;

/// The most groups that are known at a time.
pub const GROUPS_MAX: usize = 1_024;

/// The largest weight of a group.
pub const WEIGHT_MAX: u32 = 1_000;

/// The most members of a group.
pub const MEMBERS_MAX: usize = 16;

/// The longest address of a member.
pub const ADDRESS_BYTES_MAX: usize = 300;

/// How many configurations are kept, with the latest.
pub const HISTORY_MAX: usize = 1_024;

/// How many requests are remembered: one that is repeated when so many others came behind it is
/// executed again.
pub const REQUESTS_KEPT_MAX: usize = 4_096;

/// The most configurations of one page of the history.
pub const HISTORY_PAGE_MAX: usize = 64;

/// The most steps of one report.
pub const STEPS_MAX: usize = 1_024;

/// Numbers that count up stay so far below the end of their type that no addition overflows.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;
