//! Addresses of the services, and unique names for tests.

use std::env;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The queue adapter of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueAdapter {
    Local,
    Rabbit,
}

/// The store adapter of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreAdapter {
    File,
    Mongo,
}

/// A queue adapter and a store adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair(pub QueueAdapter, pub StoreAdapter);

pub const EMBEDDED: Pair = Pair(QueueAdapter::Local, StoreAdapter::File);
pub const PRODUCTION: Pair = Pair(QueueAdapter::Rabbit, StoreAdapter::Mongo);

/// Every queue adapter with every store adapter.
pub const PAIRS: [Pair; 4] = [
    EMBEDDED,
    Pair(QueueAdapter::Local, StoreAdapter::Mongo),
    Pair(QueueAdapter::Rabbit, StoreAdapter::File),
    PRODUCTION,
];

impl Pair {
    /// Whether its services are configured. Under `./tests/run` a missing service is a failure.
    pub fn is_available(self) -> bool {
        (self.0 == QueueAdapter::Local || amqp_url().is_some())
            && (self.1 == StoreAdapter::File || mongodb_url().is_some())
    }
}

/// The broker's URL.
pub fn amqp_url() -> Option<String> {
    service("AMQP_URL")
}

/// The database server's URL.
pub fn mongodb_url() -> Option<String> {
    service("MONGODB_URL")
}

/// The value of a variable that `./tests/run` always sets. Without it the test is skipped.
pub fn service(name: &str) -> Option<String> {
    let url = env::var(name).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        assert!(env::var_os("TEST_SERVICES").is_none(), "{name} is not set");
        skip(&format!("{name} is not set; ./tests/run starts the services"));
    }
    url
}

/// The value of a variable that `./tests/run` sets where possible. Without it the test is skipped.
pub fn provided(name: &str) -> Option<String> {
    let value = env::var(name).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        skip(&format!("{name} is not set"));
    }
    value
}

/// Reports that the current test is skipped. Fails if `TEST_SERVICES` is `required`.
pub fn skip(reason: &str) {
    assert!(env::var("TEST_SERVICES").as_deref() != Ok("required"), "left out: {reason}");
    skip_unsupported(reason);
}

/// Reports that the current test is skipped because this machine lacks a program or a permission.
pub fn skip_unsupported(reason: &str) {
    let current = std::thread::current();
    let line = format!("{}: {reason}\n", current.name().unwrap_or("a test"));
    // Written directly, because the test runner hides the output of passing tests.
    let _ = std::io::stderr().write_all(format!("left out of {line}").as_bytes());
    append("TEST_LEFT_OUT", &line);
}

/// Reports a measurement; `./tests/run` lists all measurements at its end.
pub fn report(line: &str) {
    println!("{line}");
    append("TEST_REPORT", &format!("{line}\n"));
}

/// Appends a line to the file that a variable names, if it is set.
fn append(variable: &str, line: &str) {
    let Some(path) = env::var_os(variable) else { return };
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// Runs the program that a variable names and returns its output. `None` if the variable is not set.
pub async fn command(variable: &str, arguments: &[&str]) -> Option<String> {
    provided(variable)?;
    let output = try_command(variable, arguments).await;
    Some(output.unwrap_or_else(|| panic!("{variable} {arguments:?} failed")))
}

/// As [`command`]; `None` if the program fails.
pub async fn try_command(variable: &str, arguments: &[&str]) -> Option<String> {
    let program = env::var_os(variable)?;
    let mut command = Command::new(program);
    // Not a pipe: a service that the program starts inherits it, so the pipe would not end.
    let output = tempfile::NamedTempFile::new().unwrap();
    command.args(arguments).stdin(Stdio::null()).stdout(output.reopen().unwrap());
    // On another thread, because the test's proxies run on this one.
    let (done, status) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(command.status().unwrap()));
    let status = status.await.unwrap();
    status.success().then(|| std::fs::read_to_string(output.path()).unwrap())
}

/// The URL of a database on the server at `url`.
pub fn mongodb_database(url: &str, database: &str) -> String {
    let (hosts, options) =
        url.split_once('?').map_or((url, ""), |(hosts, options)| (hosts, options));
    let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
    let (scheme, rest) = hosts.split_once("://").unwrap();
    let hosts = rest.split('/').next().unwrap();
    format!("{scheme}://{hosts}/{database}?{options}")
}

/// A loopback address that only this process uses, for a program that cannot report its port.
pub fn unique_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (id, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("127.{}.{}.{}:{}", 64 + (id >> 16) % 64, (id >> 8) % 256, id % 256, 4000 + n)
}

/// A name that is unique across tests and runs.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let random = muster::domain::id::random_hex();
    format!("{prefix}-{n}-{}", &random[..12])
}
