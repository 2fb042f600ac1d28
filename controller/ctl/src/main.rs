//! Entry point of `holdfastctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfastctl::run()
}
