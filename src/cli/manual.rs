//! `muster completions` and `muster man`: generated from the command-line parser, so that they are always current.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Cli, EXIT_FAILED, EXIT_OK, print_error, stdout};

const NAME: &str = "muster";
/// Prefixes of the help paragraphs that become sections.
const EXAMPLES: &str = "Examples:\n";
const EXIT_CODES: &str = "Exit codes: ";

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    muster completions bash > ~/.local/share/bash-completion/completions/muster\n  \
    muster completions zsh > ~/.zfunc/_muster\n  \
    muster completions fish > ~/.config/fish/completions/muster.fish")]
pub(super) struct CompletionsArgs {
    /// Shell.
    shell: Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    muster man | man -l -\n  \
    muster man --directory ~/.local/share/man/man1")]
pub(super) struct ManArgs {
    /// Write the pages of all commands to this directory, instead of printing the main page.
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

pub(super) fn completions(flags: &CompletionsArgs) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut Cli::command(), NAME, &mut script);
    stdout::print_or_fail(&String::from_utf8_lossy(&script))
}

pub(super) fn man(flags: &ManArgs) -> u8 {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let written = match &flags.directory {
        None => page(&command)
            .map_err(anyhow::Error::from)
            .and_then(|page| stdout::print(&String::from_utf8_lossy(&page))),
        Some(directory) => std::fs::create_dir_all(directory)
            .and_then(|()| write_pages(&command, directory))
            .with_context(|| format!("{}: cannot write the pages", directory.display())),
    };
    match written {
        Ok(()) => EXIT_OK,
        Err(error) => {
            print_error(&error);
            EXIT_FAILED
        }
    }
}

/// Writes the pages of a command and of its subcommands.
fn write_pages(command: &Command, directory: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands() {
        write_pages(subcommand, directory)?;
    }
    let name = command.get_display_name().unwrap_or(NAME);
    std::fs::write(directory.join(format!("{name}.1")), page(command)?)
}

/// Renders the page of a command. clap_mangen would put examples and exit codes into one section after the options.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    let man = clap_mangen::Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (mut examples, mut exit_codes) = (None, None);
    let mut notes = Roff::default();
    for paragraph in help.split("\n\n") {
        if let Some(lines) = paragraph.strip_prefix(EXAMPLES) {
            examples = Some(lines);
        } else if let Some(codes) = paragraph.strip_prefix(EXIT_CODES) {
            exit_codes = Some(codes);
        } else {
            notes.control("PP", []).text([roman(paragraph)]);
        }
    }
    notes.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut ending = Roff::default();
    ending.control("SH", ["EXIT STATUS"]);
    let exit_codes = exit_codes.unwrap_or(super::EXIT_CODES);
    for (code, meaning) in exit_statuses(exit_codes) {
        ending.control("TP", []).text([bold(code)]).text([roman(meaning)]);
    }
    if let Some(examples) = examples {
        ending.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in examples.lines() {
            ending.text([roman(line.trim_start())]);
        }
        ending.control("fi", []);
    }
    ending.to_writer(&mut page)?;
    Ok(page)
}

/// Splits `0 success, 1 failed` into codes and meanings. A meaning may contain commas.
fn exit_statuses(text: &str) -> Vec<(&str, String)> {
    let mut statuses: Vec<(&str, String)> = Vec::new();
    for part in text.trim_end_matches('.').split(", ") {
        match part.split_once(' ') {
            Some((code, meaning)) if code.bytes().all(|byte| byte.is_ascii_digit()) => {
                statuses.push((code, meaning.to_owned()));
            }
            _ => {
                if let Some((_, meaning)) = statuses.last_mut() {
                    meaning.push_str(", ");
                    meaning.push_str(part);
                }
            }
        }
    }
    statuses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_meaning_may_contain_commas() {
        let statuses = exit_statuses("0 done, 3 keys would change, or users conflict.");
        let expected = [("0", "done"), ("3", "keys would change, or users conflict")];
        assert_eq!(statuses, expected.map(|(code, meaning)| (code, meaning.to_owned())));
    }
}
