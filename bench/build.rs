//! Compiles the part of etcd's API that is measured.

use std::io;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=proto/etcd.proto");
    let descriptors = protox::compile(["etcd.proto"], ["proto"]).map_err(io::Error::other)?;
    tonic_prost_build::configure().build_server(false).bytes(".").compile_fds(descriptors)
}
