//! The program as a process: started with an environment of its own, watched through its log,
//! signalled, and cleaned up after.

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
use super::log_lines::{has_event, malformed_in};
use super::secrets::secrets_and_addresses_in;
use super::services::{
    EMBEDDED, Pair, QueueKind, StoreKind, amqp_url, mongodb_database, mongodb_url, unique,
};

/// Longest wait for the program to do what it must.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The secret all tests sign with.
pub const SECRET: &str = "a secret of the tests, 32 bytes and more";

/// How to start the program: a queue and a store of a test's own, which all clones share.
#[derive(Clone, Debug)]
pub struct Setup {
    pub environment: BTreeMap<String, String>,
    directory: Arc<TempDir>,
    cleanup: Arc<Cleanup>,
}

impl Setup {
    /// A fresh queue and store of this kind, cheap passwords.
    pub fn new(pair: Pair) -> Self {
        let broker = (pair.0 == QueueKind::Rabbit).then(|| amqp_url().unwrap());
        Self::on(pair, broker.unwrap_or_default())
    }

    /// As [`Self::new`], on this broker.
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
            QueueKind::Local => set("MUSTER_QUEUE", "local:".into()),
            QueueKind::Rabbit => {
                let namespace = unique("test");
                cleanup.namespace = Some((broker.clone(), namespace.clone()));
                set("MUSTER_QUEUE_NAMESPACE", namespace);
                set("MUSTER_QUEUE", broker)
            }
        };
        match pair.1 {
            StoreKind::File => set(
                "MUSTER_STORE",
                format!("file:{}", directory.path().join("users.redb").display()),
            ),
            StoreKind::Mongo => {
                let url = mongodb_database(&mongodb_url().unwrap(), &unique("test"));
                cleanup.database = Some(url.clone());
                set("MUSTER_STORE", url)
            }
        };
        Self { environment, directory: Arc::new(directory), cleanup: Arc::new(cleanup) }
    }

    /// The embedded default.
    pub fn embedded() -> Self {
        Self::new(EMBEDDED)
    }

    /// With one more variable.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A directory that lives as long as anything started from here.
    pub fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// The settings the program would have.
    pub fn settings(&self) -> Settings {
        let environment = self.environment.clone().into_iter().collect();
        Settings::load(&Sources { environment, ..Sources::default() }).unwrap()
    }

    /// The exchange's name, with which the names of all queues begin.
    pub fn namespace(&self) -> &str {
        &self.environment["MUSTER_QUEUE_NAMESPACE"]
    }

    /// Starts the program and waits until it is ready.
    pub async fn start(&self) -> Muster {
        self.start_with(&["serve"]).await.ready().await
    }

    /// Starts one role of it and waits until it is ready.
    pub async fn start_role(&self, role: &str) -> Muster {
        self.start_with(&["serve", "--role", role]).await.ready().await
    }

    /// Starts the program and waits until it listens (or consumes), ready or not.
    pub async fn start_with(&self, arguments: &[&str]) -> Muster {
        let mut command = self.command(arguments);
        if arguments.contains(&"worker") {
            command.env("MUSTER_ADMIN_LISTEN", "127.0.0.1:0");
        }
        self.spawn(command).await
    }

    /// Starts the program as a shell does that first runs `prelude`, and waits until it is ready.
    pub async fn start_after(&self, prelude: &str) -> Muster {
        let script = format!("{prelude}; exec '{}' serve", env!("CARGO_BIN_EXE_muster"));
        let mut command = self.clean("/bin/sh");
        command.args(["-c", &script]);
        self.spawn(command).await.ready().await
    }

    async fn spawn(&self, mut command: Command) -> Muster {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let log = Log::default();
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

    /// The program with this environment and no other.
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

fn address_in(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let message = line["message"].as_str()?;
    let address = ["serving on http://", "serving on https://", "probes on http://"]
        .iter()
        .find_map(|told| message.strip_prefix(told))?;
    Some(address.to_owned())
}

/// A running program. Killed when dropped, and held to having told no secret.
#[derive(Debug)]
pub struct Muster {
    child: Child,
    log: Log,
    readers: Vec<JoinHandle<()>>,
    client: Client,
    _directory: Arc<TempDir>,
    _cleanup: Arc<Cleanup>,
}

impl Muster {
    /// Talks to it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// All it has written so far.
    pub fn output(&self) -> String {
        self.log.lines().join("\n")
    }

    /// Waits until it says it is ready.
    pub async fn ready(self) -> Self {
        eventually("the program to be ready", async || {
            self.client
                .send("GET", "/ready", &[], "")
                .await
                .is_ok_and(|answer| answer.status == 200)
        })
        .await;
        self
    }

    /// Waits for a log line and gives it.
    pub async fn wait_for_log(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let found = self.log.wait_for(wanted).await;
        found.unwrap_or_else(|| panic!("no such line came:\n{}", self.output()))
    }

    /// Waits for the first log line whose `event` field has this name, and returns the line.
    pub async fn wait_for_event(&mut self, name: &str) -> String {
        self.wait_for_log(|line| has_event(line, name)).await
    }

    /// Sets the largest file it can write, from now on: a number of bytes, or `unlimited`.
    pub fn limit_file_size(&self, limit: &str) {
        let (pid, limit) = (self.child.id().to_string(), format!("--fsize={limit}:"));
        let set = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(set.expect("prlimit").success());
    }

    /// Its resident memory.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end:\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to stop and gives all it ever wrote.
    pub async fn output_at_end(mut self) -> String {
        self.signal("TERM");
        assert!(self.ended().await.success());
        // A search for nothing ends with the last line.
        self.log.wait_for(|_| false).await;
        self.output()
    }

    /// Asks it to stop and waits for its end.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended().await
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
        let told = secrets_and_addresses_in(&self.output());
        assert!(told.is_empty(), "the program told secrets:\n{}", told.join("\n"));
        // The last line of a program that was killed may be cut off.
        let written = self.output();
        let whole = written.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let malformed = malformed_in(whole);
        assert!(malformed.is_empty(), "lines of the log are not JSON:\n{}", malformed.join("\n"));
    }
}

/// Lines a program writes, as they come.
#[derive(Clone, Debug, Default)]
struct Log(Arc<watch::Sender<Written>>);

#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    /// Streams that have not ended; none when the program has.
    open: usize,
}

impl Log {
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

    /// The first line that fits; none when the program ended or took too long.
    async fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let mut log = self.0.subscribe();
        let find = |written: &Written| written.lines.iter().find(|line| wanted(line)).cloned();
        let told = log.wait_for(|written| written.open == 0 || find(written).is_some());
        let written = tokio::time::timeout(PATIENCE, told).await.ok()?.ok()?;
        find(&written)
    }
}

/// Waits for something to become true.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Removes what a test made on the services.
#[derive(Debug, Default)]
struct Cleanup {
    namespace: Option<(String, String)>,
    database: Option<String>,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let (namespace, database) = (self.namespace.take(), self.database.take());
        // A runtime of its own, because the test's may be the one this is dropped in.
        let cleaning = thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                if let Some((url, namespace)) = namespace {
                    // A broker that a failed test left frozen answers nothing.
                    let removing = remove_queues(&url, &namespace);
                    let _ = tokio::time::timeout(PATIENCE, removing).await;
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
