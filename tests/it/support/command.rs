//! The program as a command: run to its end, with what it printed.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::Setup;
use super::log_lines::malformed_in;
use super::muster::PATIENCE;
use super::secrets::secrets_in;

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// What it printed, once it has gone well.
    pub fn printed(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self.stdout
    }

    /// The JSON it printed, however it ended.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|_| panic!("no JSON:\n{}\n{}", self.stdout, self.stderr))
    }
}

/// Runs a command to its end.
pub async fn run(setup: &Setup, arguments: &[&str]) -> Ended {
    run_with(setup, arguments, "").await
}

/// Runs a command to its end, with this on its standard input.
pub async fn run_with(setup: &Setup, arguments: &[&str], input: &str) -> Ended {
    let mut command = tokio::process::Command::from(setup.command(arguments));
    command.kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ending = async {
        let mut child = command.spawn().unwrap();
        // Dropped when it is written, so that the program sees its end.
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        child.wait_with_output().await.unwrap()
    };
    let output = tokio::time::timeout(PATIENCE, ending).await;
    let output = output.unwrap_or_else(|_| panic!("{arguments:?}: it does not end"));
    let ended = Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    let malformed = malformed_in(&ended.stderr);
    assert!(malformed.is_empty(), "lines of the log are not JSON:\n{}", malformed.join("\n"));
    // A specification has examples of everything, tokens and passwords too.
    let printed = if arguments.first() == Some(&"spec") { "" } else { &ended.stdout };
    for written in [printed, &ended.stderr] {
        let told = secrets_in(written);
        assert!(told.is_empty(), "{arguments:?} told secrets:\n{}", told.join("\n"));
    }
    ended
}
