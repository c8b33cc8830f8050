//! The `mr-coordinator` binary; everything is in the library.

fn main() -> daemon::Code {
    mr_coordinator::main(std::env::args_os())
}
