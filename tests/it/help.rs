//! Snapshots of the help of every command, and checks of the completions and the manual.
//!
//! `help/` has one file for each command. `REWRITE_HELP=1 cargo test help::` updates them; review the difference.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::CommandFactory;
use muster::cli::Cli;

use crate::support::Setup;
use crate::support::command::run;

/// Every command as a list of words, starting with the program itself.
fn commands() -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    collect(&Cli::command(), &[], &mut found);
    found
}

fn collect(command: &clap::Command, words: &[String], found: &mut Vec<Vec<String>>) {
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        let mut words = words.to_vec();
        words.push(inner.get_name().to_owned());
        found.push(words.clone());
        collect(inner, &words, found);
    }
}

fn texts() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/help")
}

#[tokio::test]
async fn help_of_every_command_matches_its_snapshot() {
    let setup = Setup::embedded();
    let rewrite = std::env::var_os("REWRITE_HELP").is_some();
    let (mut different, mut expected) = (Vec::new(), BTreeSet::new());
    for words in commands() {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = run(&setup, &arguments).await.expect_stdout();
        let has_commands = help.contains("\nCommands:\n");
        // The command's own options precede the common settings.
        if let Some((options, settings)) = help.split_once("\nSettings:\n") {
            let has_own = options.contains("\nOptions:\n") && options.contains("--help");
            assert!(has_own && !options.contains("--store "), "{arguments:?}: {help}");
            let settings = settings.split("\nExamples:\n").next().unwrap().lines();
            let flags = settings.filter_map(|line| line.trim().split(' ').next());
            let flags: Vec<&str> = flags.filter(|word| word.starts_with("--")).collect();
            assert_eq!(flags, ["--config", "--role", "--listen", "--queue", "--store"], "{help}");
        } else {
            assert!(!help.contains("--store "), "{arguments:?}: {help}");
        }
        assert!(help.contains("Examples:\n") || has_commands, "{arguments:?} shows no example");
        let name =
            ["muster".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join("-") + ".txt";
        let path = texts().join(&name);
        if rewrite {
            std::fs::write(&path, &help).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != help {
            different.push(name.clone());
        }
        expected.insert(name);
    }
    let files: BTreeSet<String> = std::fs::read_dir(texts())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    different.extend(files.difference(&expected).cloned());
    assert!(
        different.is_empty(),
        "the help differs from its snapshot (REWRITE_HELP=1 updates it): {different:?}"
    );
}

#[tokio::test]
async fn completions_and_manual_name_every_command() {
    let setup = Setup::embedded();
    let names: Vec<String> = commands()
        .into_iter()
        .filter(|words| words.len() == 1)
        .map(|mut words| words.remove(0))
        .collect();
    assert!(names.len() > 8, "{names:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&setup, &["completions", shell]).await.expect_stdout();
        for name in &names {
            assert!(script.contains(name.as_str()), "the completions of {shell} have no {name}");
        }
    }
    let page = run(&setup, &["man"]).await.expect_stdout();
    for name in &names {
        assert!(
            page.contains(&format!("muster\\-{}(1)", name.replace('-', "\\-"))),
            "the manual has no {name}"
        );
    }
    let directory = setup.directory().join("man1");
    run(&setup, &["man", "--directory", directory.to_str().unwrap()]).await.expect_stdout();
    for words in commands() {
        let name = ["muster".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join("-");
        let page = std::fs::read_to_string(directory.join(format!("{name}.1"))).unwrap();
        let status = page.split(".SH \"EXIT STATUS\"\n").nth(1);
        let status = status.unwrap_or_else(|| panic!("{name} has no exit status"));
        for code in ["\\fB0\\fR", "\\fB1\\fR", "\\fB2\\fR"] {
            assert!(status.contains(code), "{name} does not explain exit code {code}:\n{status}");
        }
        assert!(!page.contains("Exit codes:") && !page.contains(".SH EXTRA"), "{name}");
    }
}
