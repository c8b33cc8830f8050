//! Compiles the .proto files with protox, so that no system protoc is needed, and writes the
//! descriptor set that gRPC reflection serves.

use std::{env, fs, io, path::PathBuf};

use prost::Message;

const FILES: [&str; 9] = [
    "flotilla/raft/v1/raft.proto",
    "flotilla/raft/v1/forward.proto",
    "flotilla/log/v1/log.proto",
    "flotilla/kv/v1/kv.proto",
    "flotilla/kv/v1/handoff.proto",
    "flotilla/lock/v1/lock.proto",
    "flotilla/shard/v1/shards.proto",
    "flotilla/admin/v1/admin.proto",
    "flotilla/mapreduce/v1/mapreduce.proto",
];

fn main() -> io::Result<()> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."]).map_err(io::Error::other)?;
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)
}
