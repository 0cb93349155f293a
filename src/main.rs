//! The `muster` program: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use muster::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
