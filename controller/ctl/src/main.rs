//! Entry point of `holdfastctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_core::keep_freed_buffers();
    holdfastctl::run()
}
