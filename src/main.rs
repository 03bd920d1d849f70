//! The binary, which takes arguments and returns an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluicegate::cli::run(std::env::args_os())
}
