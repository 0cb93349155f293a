//! One user from the terminal, the password typed unseen or piped in.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdout, Command};

use crate::support::Setup;
use crate::support::command::{run, run_with};
use crate::support::muster::{PATIENCE, eventually};
use crate::support::services::unique;

const PASSWORD: &str = "Hunter2-hunter2";

#[tokio::test]
async fn every_contract_can_be_signed_up_for() {
    let muster = Setup::embedded().start().await;
    let url = format!("http://{}", muster.client().address());
    for contract in ["username", "nested-name", "flat-name", "register", "error-code"] {
        let (name, setup) = (unique("u"), Setup::embedded());
        let email = format!("{name}@example.com");
        let who: &[&str] = match contract {
            "username" | "error-code" => &["--username", &name, "--email", &email],
            _ => &["--firstname", "Ann", "--lastname", "Lee", "--email", &email],
        };
        let base = ["signup", "--url", &url, "--contract", contract, "--password-stdin"];
        let arguments: Vec<&str> = base.iter().chain(who).copied().collect();
        let input = format!("{PASSWORD}\n");
        let printed = run_with(&setup, &arguments, &input).await.printed();
        assert!(printed.starts_with(&format!("registered under {contract}")), "{printed}");
        assert!(!printed.contains("token") && !printed.contains(PASSWORD));

        let again = run_with(&setup, &arguments, &input).await;
        assert_eq!(again.code, Some(1), "{contract}: the second time");
        assert!(again.stderr.starts_with("muster: not registered"), "{}", again.stderr);
        assert!(!again.stderr.contains(PASSWORD));
    }
}

#[tokio::test]
async fn without_a_terminal_it_does_not_ask() {
    let ended = run(&Setup::embedded(), &["signup", "--email", "ann@example.com"]).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--password-stdin"), "{}", ended.stderr);
}

#[tokio::test]
async fn what_is_typed_is_not_shown() {
    let setup = Setup::embedded();
    let muster = setup.start().await;
    let program = env!("CARGO_BIN_EXE_muster");
    let email = format!("{}@example.com", unique("typed"));
    let address = muster.client().address();
    let line = format!("{program} signup --url http://{address} --firstname Ann --email {email}");
    // `script` gives it a terminal, and passes on what is written and shown there.
    let mut terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (terminal.stdin.take().unwrap(), terminal.stdout.take().unwrap());
    let mut shown = String::new();
    for prompt in ["Password: ", "Once more: "] {
        read_until(&mut screen, &mut shown, prompt).await;
        // A person cannot type between the prompt and the moment after it; a test can.
        eventually("the terminal to show nothing", async || is_silent(&email)).await;
        keys.write_all(format!("{PASSWORD}\n").as_bytes()).await.unwrap();
    }
    read_until(&mut screen, &mut shown, "registered under register").await;
    assert!(!shown.contains(PASSWORD), "{shown}");
    assert!(terminal.wait().await.unwrap().success());
}

/// Whether the terminal of the program that has this argument shows nothing of what is typed.
fn is_silent(argument: &str) -> bool {
    let program = env!("CARGO_BIN_EXE_muster");
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let mut of_program = processes.filter(|process| {
        let arguments = std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        arguments.starts_with(program) && arguments.contains(argument)
    });
    let terminal = of_program.find_map(|process| std::fs::read_link(process.join("fd/0")).ok());
    let Some(terminal) = terminal else { return false };
    let state = std::process::Command::new("stty").arg("-aF").arg(terminal).output().unwrap();
    String::from_utf8_lossy(&state.stdout).split_whitespace().any(|word| word == "-echo")
}

async fn read_until(screen: &mut ChildStdout, shown: &mut String, wanted: &str) {
    let read = async {
        let mut bytes = [0; 256];
        while !shown.contains(wanted) {
            let count = screen.read(&mut bytes).await.unwrap();
            assert!(count > 0, "it ended: {shown}");
            shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
}
