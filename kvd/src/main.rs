//! The `kvd` binary; everything is in the library.

fn main() -> daemon::Code {
    kvd::main(std::env::args_os())
}
