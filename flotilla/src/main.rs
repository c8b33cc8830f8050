//! The binary: everything is in the library.

use daemon::Code;

fn main() -> Code {
    flotilla::main(std::env::args_os())
}
