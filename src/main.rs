//! The program `semgen`; see [`semantic_genesis::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    semantic_genesis::cli::main()
}
