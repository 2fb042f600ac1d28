//! Entry point of `holdfast-agent`.

fn main() -> std::process::ExitCode {
    holdfast_agent::cli::main()
}
