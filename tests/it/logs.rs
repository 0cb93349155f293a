//! A log that cannot be written or is not read ends no process and delays no signup.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::future::join_all;
use rustix::fs::{OFlags, fcntl_setfl};
use serde_json::json;

use crate::support::muster::{TIMEOUT, eventually};
use crate::support::services::{PRODUCTION, unique, unique_address};
use crate::support::{Client, Setup};

/// Faults of standard error.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// A pipe without a reader.
    Closed,
    /// A full device.
    Full,
    /// A pipe whose reader does not read.
    Unread,
    /// A non-blocking pipe whose reader does not read.
    UnreadNonBlocking,
}

const FAULTS: [Fault; 4] = [Fault::Closed, Fault::Full, Fault::Unread, Fault::UnreadNonBlocking];

impl Fault {
    /// The stream and its reader, if it has one.
    fn stream(self) -> (Stdio, Option<PipeReader>) {
        if let Self::Full = self {
            return (OpenOptions::new().write(true).open("/dev/full").unwrap().into(), None);
        }
        let (reader, writer) = std::io::pipe().unwrap();
        if let Self::UnreadNonBlocking = self {
            fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        }
        (writer.into(), (!matches!(self, Self::Closed)).then_some(reader))
    }

    fn loses_lines(self) -> bool {
        matches!(self, Self::Closed | Self::Full)
    }
}

/// A running program with a faulty log.
struct Process {
    child: Child,
    client: Client,
    log: Option<PipeReader>,
}

impl Process {
    async fn start(setup: &Setup, role: &str, fault: Fault) -> Self {
        let address = unique_address();
        let mut command = setup.command(&["serve", "--role", role]);
        let name = if role == "worker" { "MUSTER_ADMIN_LISTEN" } else { "MUSTER_LISTEN" };
        let (stderr, log) = fault.stream();
        command.env(name, &address).stdout(Stdio::null()).stderr(stderr);
        let child = command.spawn().unwrap();
        // Drops the command's copy of the pipe.
        drop(command);
        let mut process = Self { child, client: Client::new(&address), log };
        eventually(&format!("{role} to be ready with {fault:?}"), async || {
            process.assert_running();
            let response = process.client.send("GET", "/ready", &[], "").await;
            response.is_ok_and(|response| response.status == 200)
        })
        .await;
        process
    }

    fn assert_running(&mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "the process has exited");
    }

    async fn lost_lines(&self) -> u64 {
        let metrics = self.client.get("/metrics", &[]).await;
        let metrics = String::from_utf8(metrics.bytes.to_vec()).unwrap();
        let name = "muster_log_lines_lost_total ";
        let lost = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        lost.parse().unwrap()
    }

    /// Stops it. The exit code must be 0 although the last lines cannot be written.
    async fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let started = Instant::now();
        while started.elapsed() < TIMEOUT {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the process did not exit within {TIMEOUT:?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Signs up users, which logs more bytes than a pipe can hold.
async fn sign_up_many(client: &Client) {
    for _ in 0..25 {
        let signups = (0..8).map(async |_| {
            let body = json!({ "username": unique("ann"), "password": "secret-1" });
            client.post("/signup", &body).await.status
        });
        assert_eq!(join_all(signups).await, [201; 8]);
    }
}

#[tokio::test]
async fn process_serves_while_its_log_cannot_be_written() {
    for fault in FAULTS {
        let setup = Setup::embedded();
        let mut muster = Process::start(&setup, "all", fault).await;
        sign_up_many(&muster.client).await;
        muster.assert_running();
        assert_eq!(muster.lost_lines().await > 0, fault.loses_lines(), "{fault:?}");
        muster.stop().await;
    }
}

#[tokio::test]
async fn front_and_worker_serve_while_their_logs_cannot_be_written() {
    if !PRODUCTION.is_available() {
        return;
    }
    for fault in FAULTS {
        let setup = Setup::new(PRODUCTION);
        let worker = Process::start(&setup, "worker", fault).await;
        let front = Process::start(&setup, "front", fault).await;
        sign_up_many(&front.client).await;
        for mut process in [front, worker] {
            process.assert_running();
            assert_eq!(process.lost_lines().await > 0, fault.loses_lines(), "{fault:?}");
            process.stop().await;
        }
    }
}

#[tokio::test]
async fn log_continues_when_it_is_read_again() {
    let setup = Setup::embedded();
    let mut muster = Process::start(&setup, "all", Fault::UnreadNonBlocking).await;
    sign_up_many(&muster.client).await;
    let log = muster.log.take().unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let read = lines.clone();
    let reader = std::thread::spawn(move || {
        BufReader::new(log).lines().for_each(|line| read.lock().unwrap().push(line.unwrap()));
    });
    eventually("every log line", async || {
        let lines = lines.lock().unwrap();
        lines.iter().filter(|line| line.contains("\"request_answered\"")).count() == 200
    })
    .await;
    assert_eq!(muster.lost_lines().await, 0);
    muster.stop().await;
    reader.join().unwrap();
    for line in lines.lock().unwrap().iter() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "incomplete line: {line}");
    }
}

#[tokio::test]
async fn exit_code_is_right_without_standard_error() {
    let setup = Setup::embedded().with("MUSTER_ROLE", "nonsense");
    for (arguments, code) in [(&["serve"][..], 2), (&["config"], 2), (&["healthcheck"], 2)] {
        for fault in [Fault::Closed, Fault::Full] {
            let (stderr, reader) = fault.stream();
            drop(reader);
            let status = setup.command(arguments).stdout(Stdio::null()).stderr(stderr).status();
            assert_eq!(status.unwrap().code(), Some(code), "{arguments:?}, {fault:?}");
        }
    }
    let setup = Setup::embedded();
    let mut config = setup.command(&["config"]);
    let (stdout, _) = Fault::Full.stream();
    assert_eq!(config.stdout(stdout).stderr(Stdio::null()).status().unwrap().code(), Some(1));
}
