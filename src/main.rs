//! The `sidestream` program. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sidestream::cli::main()
}
