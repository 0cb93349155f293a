//! `muster serve` on a terminal: five lines at the start, and one line for each signup. `script` provides the terminal.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::json;

use crate::support::muster::TIMEOUT;
use crate::support::services::{PRODUCTION, unique};
use crate::support::{Client, Setup};

/// A program on a terminal.
struct Terminal {
    script: Child,
    lines: Receiver<String>,
    pid: String,
}

impl Terminal {
    /// Runs `muster serve` with these arguments.
    fn start(setup: &Setup, arguments: &str) -> Self {
        let typed = format!("echo $$; exec '{}' serve {arguments}", env!("CARGO_BIN_EXE_muster"));
        let mut terminal = Command::new("script");
        terminal.args(["-qec", &typed, "/dev/null"]).current_dir(setup.directory()).env_clear();
        for (name, value) in &setup.environment {
            // With the default filter: that of the tests shows more.
            if name != "MUSTER_LOG_FILTER" {
                terminal.env(name, value);
            }
        }
        terminal.env("PATH", std::env::var_os("PATH").unwrap()).env("SHELL", "/bin/sh");
        let mut script =
            terminal.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("script");
        let (sender, lines) = channel();
        let output = script.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(without_colours(line.trim_end_matches('\r')));
            }
        });
        let pid = lines.recv_timeout(TIMEOUT).unwrap();
        Self { script, lines, pid }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(TIMEOUT).expect("no line in time")
    }

    /// The five lines of the start, without warnings.
    fn start_lines(&self) -> Vec<String> {
        let lines = std::iter::from_fn(|| Some(self.line()));
        lines.filter(|line| !line.contains(" WARN ")).take(5).collect()
    }

    /// Stops it and returns the remaining lines.
    fn stop(mut self) -> Vec<String> {
        assert!(Command::new("kill").args(["-TERM", &self.pid]).status().unwrap().success());
        let rest = self.lines.iter().collect();
        self.script.wait().unwrap();
        rest
    }
}

/// Kills the processes of a failed test.
impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.pid]).stderr(Stdio::null()).status();
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

fn without_colours(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default();
    let rest = parts.map(|part| part.split_once('m').map_or(part, |(_, rest)| rest));
    std::iter::once(first).chain(rest).collect()
}

/// The address of the URL in a line.
fn address(line: &str) -> String {
    let (_, rest) = line.split_once("http://").unwrap();
    rest.split(['/', ' ']).next().unwrap().to_owned()
}

#[tokio::test]
async fn start_prints_five_lines_and_a_signup_one() {
    let setup = Setup::embedded().with("MUSTER_LOG_FORMAT", "auto");
    let terminal = Terminal::start(&setup, "");
    let lines = terminal.start_lines();
    let file = setup.directory().join("users.redb");
    let address = address(&lines[1]);
    let expected = [
        format!(
            "muster {} is running: front and worker in this process",
            env!("CARGO_PKG_VERSION")
        ),
        format!("  sign up   http://{address}/"),
        format!("  status    http://{address}/status   docs  http://{address}/docs"),
        format!("  users     {} (new)   queue  in this process", file.display()),
        "  stop      Ctrl-C finishes requests in progress, a second Ctrl-C aborts them".to_owned(),
    ];
    assert_eq!(lines, expected);

    let client = Client::new(&address);
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    assert_eq!(client.post("/signup", &body).await.status, 201);
    assert_eq!(client.post("/signup", &body).await.status, 403);
    for (outcome, status) in [("registered", 201), ("duplicate", 403)] {
        let line = terminal.line();
        let shown =
            format!("INFO  signup answered contract=username outcome={outcome} status={status} ");
        assert!(line.contains(&shown) && line.contains(" id="), "{line}");
        assert!(line.chars().count() <= 200, "{line}");
    }
    let rest = terminal.stop();
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert!(rest[0].contains("INFO  stopping; a second signal stops immediately"), "{rest:?}");

    // The data file exists now.
    let terminal = Terminal::start(&setup, "");
    let lines = terminal.start_lines();
    assert!(!lines[3].contains("(new)") && lines[3].contains("users.redb"), "{lines:?}");
    terminal.stop();
}

#[tokio::test]
async fn each_role_prints_its_own_start_lines() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_LOG_FORMAT", "auto");
    let front = Terminal::start(&setup, "--role front");
    let lines = front.start_lines();
    assert!(lines[0].ends_with("the front; workers are other processes"), "{lines:?}");
    let address = address(&lines[1]);
    let paths = "/signup, /users/register, /register, …/auth/signup";
    assert_eq!(lines[1], format!("  sign up   http://{address}{paths}"));
    assert!(lines[2].contains(&format!("http://{address}/ready   API  http://{address}/openapi")));
    assert!(lines[3].contains(setup.namespace()) && !lines[3].contains("guest:guest"), "{lines:?}");

    let worker = Terminal::start(&setup, "--role worker");
    let lines = worker.start_lines();
    assert!(lines[0].ends_with("a worker; fronts are other processes"), "{lines:?}");
    assert!(lines[1].contains("threads, cost 4"), "{lines:?}");
    let client = Client::new(&address);
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    assert_eq!(client.post("/signup", &body).await.status, 201);
    // Each process logs its own line.
    let shows = |terminal: &Terminal, text: &str| {
        std::iter::from_fn(|| Some(terminal.line())).find(|line| line.contains(text)).unwrap()
    };
    shows(&front, "signup answered contract=username");
    shows(&worker, "registration handled queue=interactive contract=username outcome=registered");
    front.stop();
    worker.stop();
}

#[test]
fn json_log_on_a_terminal_has_only_json_lines() {
    let setup = Setup::embedded().with("MUSTER_LOG_FORMAT", "json");
    let terminal = Terminal::start(&setup, "");
    let mut messages = Vec::new();
    while !messages.iter().any(|message: &String| message.starts_with("serving on http://")) {
        let line: serde_json::Value = serde_json::from_str(&terminal.line()).unwrap();
        messages.push(line["message"].as_str().unwrap().to_owned());
    }
    assert!(messages.contains(&"component is ready".to_owned()), "{messages:?}");
    let rest = terminal.stop();
    assert!(rest.iter().all(|line| line.starts_with('{')), "{rest:?}");
}
