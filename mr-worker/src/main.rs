//! The worker with the built-in apps.

use daemon::Code;

fn main() -> Code {
    mr_worker::cli::main(std::env::args_os(), &[], &[])
}
