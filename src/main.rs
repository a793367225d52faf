//! The `pfimg` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    pfimg::cli::run()
}
