//! The `signup` command, with a typed or piped password.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdout, Command};

use crate::support::Setup;
use crate::support::command::{run, run_with};
use crate::support::muster::{TIMEOUT, eventually};
use crate::support::services::unique;

const PASSWORD: &str = "Hunter2-hunter2";

#[tokio::test]
async fn signup_command_works_with_every_contract() {
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
        assert_eq!(again.code, Some(1), "{contract}: a duplicate");
        let reason = again.stderr.strip_prefix("muster: not registered: ").unwrap();
        let is_word = ["exist", "taken"].iter().any(|word| reason.contains(word));
        assert!(is_word && reason.contains("(HTTP 4"), "{}", again.stderr);
        assert!(!reason.contains(['{', '"']) && !reason.contains(PASSWORD), "{}", again.stderr);
    }
}

#[tokio::test]
async fn signup_json_prints_the_response() {
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
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(printed.get(field).is_some(), "{printed}");
    }
}

#[tokio::test]
async fn signup_checks_everything_before_reading_the_password() {
    let setup = Setup::embedded();
    for (who, reason) in [
        (&["--firstname", "Ann", "--email", "ann@"][..], "email: "),
        (&["--email", "ann@example.com"], "All fields are required"),
        (&["--contract", "username", "--username", "a", "--email", "ann@"], "email: "),
    ] {
        let output = run(&setup, &[&["signup"][..], who].concat()).await;
        assert_eq!(output.code, Some(2), "{who:?}");
        assert!(output.stderr.contains(reason), "{who:?}: {}", output.stderr);
        assert!(!output.stderr.contains("password"), "{who:?}: {}", output.stderr);
    }
    // An unavailable server, on a terminal.
    let program = env!("CARGO_BIN_EXE_muster");
    let line =
        format!("{program} signup --url http://127.0.0.1:1 --firstname Ann --email a@example.com");
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(TIMEOUT, output).await.unwrap().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("127.0.0.1:1: connection failed"), "{shown}");
    assert!(!shown.contains("Password") && output.status.code() == Some(1), "{shown}");
}

#[tokio::test]
async fn non_http_server_is_reported() {
    // A broker sends this after a request; other servers send first.
    for waits in [true, false] {
        assert_reports_non_http(waits).await;
    }
}

async fn assert_reports_non_http(waits: bool) {
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
    let output = run_with(&Setup::embedded(), &arguments, PASSWORD).await;
    assert_eq!(output.code, Some(1));
    assert!(
        output.stderr.contains("not HTTP") || output.stderr.contains("an HTTP server"),
        "{}",
        output.stderr
    );
    assert!(!output.stderr.contains("version"), "{}", output.stderr);
    assert!(!waits || output.stderr.contains("the response is not HTTP"));
}

#[tokio::test]
async fn signup_without_a_terminal_needs_password_stdin() {
    let who = ["signup", "--firstname", "Ann", "--email", "ann@example.com"];
    let output = run(&Setup::embedded(), &who).await;
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains("--password-stdin"), "{}", output.stderr);
}

#[tokio::test]
async fn typed_password_is_not_echoed() {
    let setup = Setup::embedded();
    let muster = setup.start().await;
    let program = env!("CARGO_BIN_EXE_muster");
    let email = format!("{}@example.com", unique("typed"));
    let address = muster.client().address();
    let line = format!("{program} signup --url http://{address} --firstname Ann --email {email}");
    // `script` provides a terminal and forwards its input and output.
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
        // The program disables the echo shortly after the prompt.
        eventually("the echo to be off", async || is_silent(&email)).await;
        keys.write_all(format!("{PASSWORD}\n").as_bytes()).await.unwrap();
    }
    read_until(&mut screen, &mut shown, "under the contract register").await;
    assert!(!shown.contains(PASSWORD), "{shown}");
    assert!(terminal.wait().await.unwrap().success());
}

/// Whether the echo is off on the terminal of the program with this argument.
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

async fn read_until(screen: &mut ChildStdout, shown: &mut String, text: &str) {
    let read = async {
        let mut bytes = [0; 256];
        while !shown.contains(text) {
            let count = screen.read(&mut bytes).await.unwrap();
            assert!(count > 0, "the output ended: {shown}");
            shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    };
    tokio::time::timeout(TIMEOUT, read).await.unwrap();
}
