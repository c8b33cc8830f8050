//! The `raftd` binary; everything is in the library.

fn main() -> daemon::Code {
    raftd::log::main(std::env::args_os())
}
