//! The host of a Raft group.

pub mod admin;
mod birth;
mod events;
mod handle;
mod host;
mod identity;
mod peer;
mod settings;
mod start;
pub mod store;
mod wire;

pub use handle::{
    COMMAND_BYTES_MAX, Handle, MemberStatus, Outcome, REQUESTS_MAX, Refused, Role, Status,
};
pub use identity::{Founder, GroupId, Incarnation};
pub use settings::{ADDRESS_BYTES_MAX, CLUSTER_BYTES_MAX, Flags, MEMBERS_MAX, Member, Settings};
pub use start::{Advertised, Host};
