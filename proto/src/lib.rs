//! The wire: every message and service of Flotilla, as generated from the .proto files, and the
//! one function of the contract that is code, [`shard_of`].
//!
//! Decides nothing. Types of this crate stop at the `wire.rs` and `service.rs` of other crates.

mod shard;

pub use shard::{SHARDS_DEFAULT, shard_of};

/// The version of the peer protocol; a member refuses a peer that speaks a newer one.
pub const PEER_PROTOCOL_VERSION: u32 = 1;

/// The encoded `FileDescriptorSet` of all packages, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Every .proto file: its path, as `import` would name it, and its text.
pub const FILES: &[(&str, &str)] = &[
    ("flotilla/raft/v1/raft.proto", include_str!("../flotilla/raft/v1/raft.proto")),
    ("flotilla/kv/v1/kv.proto", include_str!("../flotilla/kv/v1/kv.proto")),
    ("flotilla/admin/v1/admin.proto", include_str!("../flotilla/admin/v1/admin.proto")),
    (
        "flotilla/mapreduce/v1/mapreduce.proto",
        include_str!("../flotilla/mapreduce/v1/mapreduce.proto"),
    ),
];

macro_rules! package {
    ($(#[$doc:meta])* $module:ident = $name:literal) => {
        $(#[$doc])*
        pub mod $module {
            #![allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines, clippy::semicolon_if_nothing_returned)]
            tonic::include_proto!($name);
        }
    };
}

package!(
    /// `flotilla.raft.v1`: between the members of a group.
    raft = "flotilla.raft.v1"
);
package!(
    /// `flotilla.kv.v1`: the key/value store.
    kv = "flotilla.kv.v1"
);
package!(
    /// `flotilla.admin.v1`: for operators.
    admin = "flotilla.admin.v1"
);
package!(
    /// `flotilla.mapreduce.v1`: jobs and workers.
    mapreduce = "flotilla.mapreduce.v1"
);
