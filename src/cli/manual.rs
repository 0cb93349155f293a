//! `muster completions` and `muster man`: made from the command line itself, so that they cannot be
//! out of date.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, EXIT_FAILED, EXIT_OK, complain};

const NAME: &str = "muster";

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    muster completions bash > ~/.local/share/bash-completion/completions/muster\n  \
    muster completions zsh > ~/.zfunc/_muster\n  \
    muster completions fish > ~/.config/fish/completions/muster.fish")]
pub(super) struct Completions {
    /// For which shell.
    shell: Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    muster man | man -l -\n  \
    muster man --directory ~/.local/share/man/man1")]
pub(super) struct Man {
    /// Write a page for each command there instead of printing the first.
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

pub(super) fn completions(flags: &Completions) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut Cli::command(), NAME, &mut script);
    ended(io::stdout().write_all(&script).map_err(Into::into))
}

pub(super) fn man(flags: &Man) -> u8 {
    ended(match &flags.directory {
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
            rendered.and_then(|()| io::stdout().write_all(&page)).map_err(Into::into)
        }
        Some(directory) => std::fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
            .with_context(|| format!("{}: cannot be written", directory.display())),
    })
}

fn ended(done: anyhow::Result<()>) -> u8 {
    match done {
        Ok(()) => EXIT_OK,
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
}
