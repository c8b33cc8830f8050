//! The wire: every message and service of Flotilla, as generated from the .proto files, and the
//! parts of the contract that are code: [`shard_of()`] and the names in [`metadata`].
//!
//! Decides nothing. Types of this crate stop at the `wire.rs` and `service.rs` of other crates.

pub mod metadata;

mod page_token;
mod shard_of;

pub use page_token::{PAGE_TOKEN_VERSION, page_token};
pub use shard_of::{LEASE_SHARD_BITS, SHARDS_DEFAULT, shard_of, shard_of_lease, shard_of_prefix};

/// The version of the peer protocol; a member refuses a peer that speaks a newer one.
pub const PEER_PROTOCOL_VERSION: u32 = 2;

/// The name of the app that stands for programs (`JobSpec.streaming`): a worker that allows them
/// registers it among its apps, and no other app can have it.
pub const STREAMING_APP: &str = "streaming";

/// The work root, where files that jobs send along lie by their digests, relative to the shared root.
pub const BLOBS_DIR: &str = ".flotilla/blobs";

/// The directory, relative to the shared root, below which the logs of attempts lie, those of a job
/// in one named by its id.
pub const LOGS_DIR: &str = ".flotilla/logs";

/// The encoded `FileDescriptorSet` of all packages, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Every .proto file: its path, as `import` would name it, and its text.
pub const FILES: &[(&str, &str)] = &[
    ("flotilla/raft/v1/raft.proto", include_str!("../flotilla/raft/v1/raft.proto")),
    ("flotilla/raft/v1/forward.proto", include_str!("../flotilla/raft/v1/forward.proto")),
    ("flotilla/log/v1/log.proto", include_str!("../flotilla/log/v1/log.proto")),
    ("flotilla/kv/v1/kv.proto", include_str!("../flotilla/kv/v1/kv.proto")),
    ("flotilla/kv/v1/handoff.proto", include_str!("../flotilla/kv/v1/handoff.proto")),
    ("flotilla/lock/v1/lock.proto", include_str!("../flotilla/lock/v1/lock.proto")),
    ("flotilla/shard/v1/shards.proto", include_str!("../flotilla/shard/v1/shards.proto")),
    ("flotilla/admin/v1/admin.proto", include_str!("../flotilla/admin/v1/admin.proto")),
    (
        "flotilla/mapreduce/v1/mapreduce.proto",
        include_str!("../flotilla/mapreduce/v1/mapreduce.proto"),
    ),
];

macro_rules! packages {
    ($($(#[$doc:meta])* $module:ident = $name:literal;)*) => {
        // The code of one package names that of another by the way from here.
        #[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines, clippy::semicolon_if_nothing_returned)]
        mod flotilla {
            $(pub mod $module {
                pub mod v1 {
                    tonic::include_proto!($name);
                }
            })*
        }
        $($(#[$doc])* pub use flotilla::$module::v1 as $module;)*
    };
}

packages! {
    /// `flotilla.raft.v1`: between the members of a group.
    raft = "flotilla.raft.v1";
    /// `flotilla.log.v1`: the stand-alone log.
    log = "flotilla.log.v1";
    /// `flotilla.kv.v1`: the key/value store.
    kv = "flotilla.kv.v1";
    /// `flotilla.lock.v1`: locks.
    lock = "flotilla.lock.v1";
    /// `flotilla.shard.v1`: the shard controller.
    shard = "flotilla.shard.v1";
    /// `flotilla.admin.v1`: for operators.
    admin = "flotilla.admin.v1";
    /// `flotilla.mapreduce.v1`: jobs and workers.
    mapreduce = "flotilla.mapreduce.v1";
}
