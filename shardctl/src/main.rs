//! The `shardctl` binary; everything is in the library.

fn main() -> daemon::Code {
    shardctl::main(std::env::args_os())
}
