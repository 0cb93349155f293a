//! Runs the program as a command and collects its output.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::Setup;
use super::log_lines::malformed_lines;
use super::muster::TIMEOUT;
use super::secrets::lines_with_secrets;

/// Exit code and output of a command.
#[derive(Debug)]
pub struct CommandOutput {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl CommandOutput {
    /// Its standard output. Fails if the exit code is not 0.
    pub fn expect_stdout(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self.stdout
    }

    /// The JSON on its standard output, whatever the exit code is.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|_| panic!("not JSON:\n{}\n{}", self.stdout, self.stderr))
    }
}

/// Runs a command and waits for its exit.
pub async fn run(setup: &Setup, arguments: &[&str]) -> CommandOutput {
    run_with(setup, arguments, "").await
}

/// As [`run`], with this standard input. Fails if the output has secrets or malformed log lines.
pub async fn run_with(setup: &Setup, arguments: &[&str], input: &str) -> CommandOutput {
    let mut command = tokio::process::Command::from(setup.command(arguments));
    command.kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ending = async {
        let mut child = command.spawn().unwrap();
        // Dropped after the write, so that the program reads the end of its input.
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        child.wait_with_output().await.unwrap()
    };
    let output = tokio::time::timeout(TIMEOUT, ending).await;
    let output = output.unwrap_or_else(|_| panic!("{arguments:?} did not exit within {TIMEOUT:?}"));
    let ended = CommandOutput {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    let malformed = malformed_lines(&ended.stderr);
    assert!(malformed.is_empty(), "malformed log lines:\n{}", malformed.join("\n"));
    // The specifications contain example tokens and passwords.
    let printed = if arguments.first() == Some(&"spec") { "" } else { &ended.stdout };
    for written in [printed, &ended.stderr] {
        let secrets = lines_with_secrets(written);
        assert!(secrets.is_empty(), "{arguments:?} wrote secrets:\n{}", secrets.join("\n"));
    }
    ended
}
