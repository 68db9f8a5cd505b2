//! The `natgw` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    natgw::cli::main()
}
