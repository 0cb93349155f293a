//! One user from the terminal, the password typed unseen or piped in.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdout, Command};

use crate::support::Setup;
use crate::support::command::{run, run_with};
use crate::support::muster::{TIMEOUT, eventually};
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
        let printed = run_with(&setup, &arguments, &input).await.expect_stdout();
        let sentence = format!("under the contract {contract}");
        assert!(printed.starts_with("Registered ") && printed.contains(&sentence), "{printed}");
        assert!(printed.contains(&name) && printed.ends_with(".\n"), "{printed}");
        assert!(!printed.contains("token") && !printed.contains(PASSWORD));

        let again = run_with(&setup, &arguments, &input).await;
        assert_eq!(again.code, Some(1), "{contract}: the second time");
        let reason = again.stderr.strip_prefix("muster: not registered: ").unwrap();
        let is_word = ["exist", "taken"].iter().any(|word| reason.contains(word));
        assert!(is_word && reason.contains("(HTTP 4"), "{}", again.stderr);
        assert!(!reason.contains(['{', '"']) && !reason.contains(PASSWORD), "{}", again.stderr);
    }
}

#[tokio::test]
async fn json_is_printed_on_request() {
    let muster = Setup::embedded().start().await;
    let (url, email) =
        (format!("http://{}", muster.client().address()), format!("{}@example.com", unique("u")));
    let setup = Setup::embedded();
    let arguments = [
        "signup",
        "--url",
        &url,
        "--firstname",
        "Ann",
        "--email",
        &email,
        "--password-stdin",
        "--json",
    ];
    for (code, field) in [(0, "user"), (1, "errors")] {
        let mut command = setup.command(&arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), PASSWORD.as_bytes()).unwrap();
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(code));
        let printed: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert!(printed.get(field).is_some(), "{printed}");
    }
}

#[tokio::test]
async fn everything_is_checked_before_the_password_is_read() {
    let setup = Setup::embedded();
    for (who, reason) in [
        (&["--firstname", "Ann", "--email", "ann@"][..], "email: "),
        (&["--email", "ann@example.com"], "All fields are required"),
        (&["--contract", "username", "--username", "a", "--email", "ann@"], "email: "),
    ] {
        let ended = run(&setup, &[&["signup"][..], who].concat()).await;
        assert_eq!(ended.code, Some(2), "{who:?}");
        assert!(ended.stderr.contains(reason), "{who:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains("password"), "{who:?}: {}", ended.stderr);
    }
    // A server that is not there, on a terminal.
    let program = env!("CARGO_BIN_EXE_muster");
    let line =
        format!("{program} signup --url http://127.0.0.1:1 --firstname Ann --email a@example.com");
    let ended = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = tokio::time::timeout(TIMEOUT, ended).await.unwrap().unwrap();
    let shown = String::from_utf8_lossy(&ended.stdout);
    assert!(shown.contains("127.0.0.1:1: connection failed"), "{shown}");
    assert!(!shown.contains("Password") && ended.status.code() == Some(1), "{shown}");
}

#[tokio::test]
async fn server_of_another_protocol_is_named() {
    // A broker answers so to a request; other servers speak first.
    for waits in [true, false] {
        expect_no_http(waits).await;
    }
}

async fn expect_no_http(waits: bool) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if waits {
                let _ = stream.read(&mut [0; 64]).await;
            }
            let _ = stream.write_all(b"AMQP\0\0\x09\x01").await;
        }
    });
    let arguments = [
        "signup",
        "--url",
        &url,
        "--firstname",
        "Ann",
        "--email",
        "a@example.com",
        "--password-stdin",
    ];
    let ended = run_with(&Setup::embedded(), &arguments, PASSWORD).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("speak HTTP"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("version"), "{}", ended.stderr);
    assert!(!waits || ended.stderr.contains("the response is not HTTP"));
}

#[tokio::test]
async fn without_a_terminal_it_does_not_ask() {
    let who = ["signup", "--firstname", "Ann", "--email", "ann@example.com"];
    let ended = run(&Setup::embedded(), &who).await;
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
    read_until(&mut screen, &mut shown, "under the contract register").await;
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
    tokio::time::timeout(TIMEOUT, read).await.unwrap();
}
