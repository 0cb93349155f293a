//! Runs the program as a process: starts it with its own environment, reads its log, sends signals and cleans up.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use muster::config::{Settings, Sources};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

use super::http::Client;
use super::log_lines::{has_event, malformed_lines};
use super::secrets::lines_with_secrets_or_addresses;
use super::services::{
    EMBEDDED, Pair, QueueAdapter, StoreAdapter, amqp_url, mongodb_database, mongodb_url, unique,
};

/// Limit for everything that the tests wait for.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The token secret of all tests.
pub const SECRET: &str = "a secret of the tests, 32 bytes and more";

/// Environment and directory to start the program with. Each setup has its own queue and store, which its
/// clones share.
#[derive(Clone, Debug)]
pub struct Setup {
    pub environment: BTreeMap<String, String>,
    directory: Arc<TempDir>,
    cleanup: Arc<Cleanup>,
}

impl Setup {
    /// A new queue and store of these kinds, and the lowest bcrypt cost.
    pub fn new(pair: Pair) -> Self {
        let broker = (pair.0 == QueueAdapter::Rabbit).then(|| amqp_url().unwrap());
        Self::on(pair, broker.unwrap_or_default())
    }

    /// As [`Self::new`], on the broker at this URL.
    pub fn on(pair: Pair, broker: String) -> Self {
        let directory = TempDir::new().unwrap();
        let mut environment = BTreeMap::new();
        let mut set = |name: &str, value: String| environment.insert(name.to_owned(), value);
        set("JWT_SECRET", SECRET.into());
        set("MUSTER_BCRYPT_COST", "4".into());
        set("MUSTER_ALLOW_WEAK_COST", "1".into());
        set("MUSTER_LISTEN", "127.0.0.1:0".into());
        set("MUSTER_LOG_FORMAT", "json".into());
        set("MUSTER_LOG_FILTER", "muster=debug,info,lapin=off".into());
        set("RUST_BACKTRACE", "1".into());
        let mut cleanup = Cleanup::default();
        match pair.0 {
            QueueAdapter::Local => set("MUSTER_QUEUE", "local:".into()),
            QueueAdapter::Rabbit => {
                let namespace = unique("test");
                cleanup.namespace = Some((broker.clone(), namespace.clone()));
                set("MUSTER_QUEUE_NAMESPACE", namespace);
                set("MUSTER_QUEUE", broker)
            }
        };
        match pair.1 {
            StoreAdapter::File => set(
                "MUSTER_STORE",
                format!("file:{}", directory.path().join("users.redb").display()),
            ),
            StoreAdapter::Mongo => {
                let url = mongodb_database(&mongodb_url().unwrap(), &unique("test"));
                cleanup.database = Some(url.clone());
                set("MUSTER_STORE", url)
            }
        };
        Self { environment, directory: Arc::new(directory), cleanup: Arc::new(cleanup) }
    }

    /// A setup with the embedded queue and store.
    pub fn embedded() -> Self {
        Self::new(EMBEDDED)
    }

    /// Sets an environment variable.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The directory of the setup. It exists as long as a process from this setup runs.
    pub fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// The settings that the program reads from this environment.
    pub fn settings(&self) -> Settings {
        let environment = self.environment.clone().into_iter().collect();
        Settings::load(&Sources { environment, ..Sources::default() }).unwrap()
    }

    /// Name of the exchange and prefix of all queue names.
    pub fn namespace(&self) -> &str {
        &self.environment["MUSTER_QUEUE_NAMESPACE"]
    }

    /// Starts the program and waits until it is ready.
    pub async fn start(&self) -> Muster {
        self.start_with(&["serve"]).await.ready().await
    }

    /// Starts the program in one role and waits until it is ready.
    pub async fn start_role(&self, role: &str) -> Muster {
        self.start_with(&["serve", "--role", role]).await.ready().await
    }

    /// Starts the program and waits until it logs its address.
    pub async fn start_with(&self, arguments: &[&str]) -> Muster {
        let mut command = self.command(arguments);
        if arguments.contains(&"worker") {
            command.env("MUSTER_ADMIN_LISTEN", "127.0.0.1:0");
        }
        self.spawn(command).await
    }

    /// Starts the program from a shell that runs `prelude` first, and waits until it is ready.
    pub async fn start_after(&self, prelude: &str) -> Muster {
        let script = format!("{prelude}; exec '{}' serve", env!("CARGO_BIN_EXE_muster"));
        let mut command = self.clean("/bin/sh");
        command.args(["-c", &script]);
        self.spawn(command).await.ready().await
    }

    async fn spawn(&self, mut command: Command) -> Muster {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let log = ProcessLog::default();
        let errors = log.collect(child.stderr.take().unwrap());
        let output = log.collect(child.stdout.take().unwrap());
        let mut muster = Muster {
            child,
            log,
            readers: vec![errors, output],
            client: Client::new(""),
            _directory: self.directory.clone(),
            _cleanup: self.cleanup.clone(),
        };
        let line = muster.wait_for_log(|line| address_in(line).is_some()).await;
        muster.client = Client::new(address_in(&line).unwrap());
        muster
    }

    /// A command that runs the program with exactly this environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.clean(env!("CARGO_BIN_EXE_muster"));
        command.args(arguments);
        command
    }

    fn clean(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(&self.environment)
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }
}

/// The address in a log line of an event that reports one.
fn address_in(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let is_listening = ["front_listening", "admin_listening"].contains(&line["event"].as_str()?);
    let (_, address) = line["message"].as_str()?.split_once("://")?;
    is_listening.then(|| address.to_owned())
}

/// A running program. Dropping it kills the process and searches its output for secrets and malformed log lines.
#[derive(Debug)]
pub struct Muster {
    child: Child,
    log: ProcessLog,
    readers: Vec<JoinHandle<()>>,
    client: Client,
    _directory: Arc<TempDir>,
    _cleanup: Arc<Cleanup>,
}

impl Muster {
    /// A client for its address.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its standard output and error so far.
    pub fn output(&self) -> String {
        self.log.lines().join("\n")
    }

    /// Waits until `/ready` answers 200.
    pub async fn ready(self) -> Self {
        eventually("the program to be ready", async || {
            self.client
                .send("GET", "/ready", &[], "")
                .await
                .is_ok_and(|response| response.status == 200)
        })
        .await;
        self
    }

    /// Waits for the first log line that matches, and returns it.
    pub async fn wait_for_log(&mut self, matches: impl Fn(&str) -> bool) -> String {
        let found = self.log.wait_for(matches).await;
        found.unwrap_or_else(|| panic!("no matching log line:\n{}", self.output()))
    }

    /// Waits for the first log line whose `event` field has this name, and returns the line.
    pub async fn wait_for_event(&mut self, name: &str) -> String {
        self.wait_for_log(|line| has_event(line, name)).await
    }

    /// As [`Self::wait_for_event`], for a line that also contains `text`.
    pub async fn wait_for_event_with(&mut self, name: &str, text: &str) -> String {
        self.wait_for_log(|line| has_event(line, name) && line.contains(text)).await
    }

    /// Sets the limit for the size of files that it writes: bytes or `unlimited`.
    pub fn limit_file_size(&self, limit: &str) {
        let (pid, limit) = (self.child.id().to_string(), format!("--fsize={limit}:"));
        let set = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(set.expect("prlimit").success());
    }

    /// Its resident memory in KiB.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits until it exits.
    pub async fn wait_for_exit(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < TIMEOUT, "the program did not exit:\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops it with SIGTERM and returns its whole output.
    pub async fn stop_and_collect_output(mut self) -> String {
        self.signal("TERM");
        assert!(self.wait_for_exit().await.success());
        // Matches no line, so this returns when the output ends.
        self.log.wait_for(|_| false).await;
        self.output()
    }

    /// Sends SIGTERM and waits until it exits.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_exit().await
    }
}

impl Drop for Muster {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- output of the program:\n{}\n---", self.output());
            return;
        }
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let secrets = lines_with_secrets_or_addresses(&self.output());
        assert!(secrets.is_empty(), "the program wrote secrets:\n{}", secrets.join("\n"));
        // The last line of a killed program may be incomplete.
        let output = self.output();
        let complete = output.rsplit_once('\n').map_or("", |(complete, _)| complete);
        let malformed = malformed_lines(complete);
        assert!(malformed.is_empty(), "malformed log lines:\n{}", malformed.join("\n"));
    }
}

/// The lines that a program has written.
#[derive(Clone, Debug, Default)]
struct ProcessLog(Arc<watch::Sender<LogState>>);

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    /// Number of open streams; 0 after the program ended.
    open: usize,
}

impl ProcessLog {
    fn collect(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let log = self.0.clone();
        log.send_modify(|written| written.open += 1);
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                log.send_modify(|written| written.lines.push(line));
            }
            log.send_modify(|written| written.open -= 1);
        })
    }

    fn lines(&self) -> Vec<String> {
        self.0.borrow().lines.clone()
    }

    /// Waits for the first line that matches. `None` if the program ends or the wait times out.
    async fn wait_for(&self, matches: impl Fn(&str) -> bool) -> Option<String> {
        let mut log = self.0.subscribe();
        let find = |written: &LogState| written.lines.iter().find(|line| matches(line)).cloned();
        let found = log.wait_for(|written| written.open == 0 || find(written).is_some());
        let written = tokio::time::timeout(TIMEOUT, found).await.ok()?.ok()?;
        find(&written)
    }
}

/// Polls a condition until it holds. `what` names the expected state in the failure message.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < TIMEOUT, "timed out after {TIMEOUT:?} waiting for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Removes the queues and the database of a setup when dropped.
#[derive(Debug, Default)]
struct Cleanup {
    namespace: Option<(String, String)>,
    database: Option<String>,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let (namespace, database) = (self.namespace.take(), self.database.take());
        // On its own runtime, because this may be dropped inside the test's runtime.
        let cleaning = thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                if let Some((url, namespace)) = namespace {
                    // A broker that a failed test left frozen does not answer.
                    let removing = remove_queues(&url, &namespace);
                    let _ = tokio::time::timeout(TIMEOUT, removing).await;
                }
                if let Some(url) = database
                    && let Ok(client) = mongodb::Client::with_uri_str(url).await
                    && let Some(database) = client.default_database()
                {
                    let _ = database.drop().await;
                }
            });
        });
        let _ = cleaning.join();
    }
}

async fn remove_queues(url: &str, namespace: &str) -> lapin::Result<()> {
    let connection =
        lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let queues = ["interactive", "bulk", "profile", "dead", "retry.1000", "retry.10000"];
    for queue in queues.into_iter().chain(["retry.60000", "retry.600000"]) {
        let name = format!("{namespace}.{queue}");
        channel.queue_delete(name.as_str().into(), Default::default()).await?;
    }
    for exchange in ["", ".dlx", ".events"] {
        let name = format!("{namespace}{exchange}");
        channel.exchange_delete(name.as_str().into(), Default::default()).await?;
    }
    connection.close(200, "cleaned".into()).await
}
